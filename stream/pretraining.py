"""A record log to what contrastive training needs: raw vectors and pairs of their rows (shell)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from embeddings.encoders.protocol import Encoder
from embeddings.item_content import ItemContent
from embeddings.pretrain.behaviour import BehaviourConfig, behaviour_vectors
from embeddings.pretrain.pairs import (
    I64,
    Interactions,
    PairConfig,
    Pairs,
    hard_negatives,
    mine_pairs,
    nearest_pairs,
)
from embeddings.pretrain.trainer import PairRows
from infra.errors import InputError
from stream.codec_items import ItemEvent, decode_items
from stream.item_intake import content_of
from stream.keys import key_of
from stream.record_log import RecordLog

PairSource = Literal["session", "next", "nearest", "query"]
Tell = Callable[[int, int], None]
_ITEMS_PER_CALL: Final = 256
_ROWS: Final = np.int64


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedItems:
    """Raw vectors float32 [N, D] of the items with the sorted keys `items_N`."""

    items_N: I64
    vectors_ND: NDArray[np.float32]

    def has(self, item_n: I64) -> NDArray[np.bool_]:
        """Which of the items have a vector."""
        return np.isin(item_n, self.items_N)

    def rows(self, item_n: I64) -> I64:
        """Rows of items that have one."""
        return np.searchsorted(self.items_N, item_n).astype(_ROWS)


def read_items(logs: Sequence[Path], topic: str) -> dict[int, ItemContent]:
    """The last content of each item by key, without deleted ones. Raises InputError for none."""
    found: dict[int, ItemContent] = {}
    for log in map(RecordLog, logs):
        for batches in log.batches_of(topic) if topic in log.partitions else ():
            for event in (e for batch in batches for e in decode_items(batch)):
                if not isinstance(event, ItemEvent):
                    continue
                content = content_of(event)
                found[key_of(content.item_id)] = content
    alive = {key: content for key, content in found.items() if not content.deleted}
    if not alive:
        names = ", ".join(map(str, logs))
        raise InputError(f"{names}: no items in topic '{topic}', so there is nothing to encode")
    return alive


def encode_items(
    encoder: Encoder, contents: dict[int, ItemContent], on_progress: Tell
) -> EncodedItems:
    """Raw vectors of all items that the encoder has one for; raises InputError for none."""
    keys = np.array(sorted(contents), np.int64)
    blocks: list[NDArray[np.float32]] = []
    present: list[NDArray[np.bool_]] = []
    for start in range(0, len(keys), _ITEMS_PER_CALL):
        block = [contents[key] for key in keys[start : start + _ITEMS_PER_CALL].tolist()]
        vectors_BD, present_B = encoder.encode_many(block)
        blocks.append(vectors_BD)
        present.append(present_B)
        on_progress(start + len(block), len(keys))
    present_N = np.concatenate(present)
    if not present_N.any():
        raise InputError(
            f"encoder '{encoder.version}' has no vector for any of {len(keys)} items: they lack "
            "what it reads; configure another one"
        )
    return EncodedItems(items_N=keys[present_N], vectors_ND=np.concatenate(blocks)[present_N])


def training_pairs(past: Interactions, source: PairSource, config: PairConfig) -> Pairs:
    """Pairs of items to train on, from what happened before the end of training.

    `session`: as `config` says; `next`: each item and the user's next one; `nearest`: each item and
    the most similar of the user's last 50 ones by behavioural vectors made of the same span.
    """
    if source == "session":
        return mine_pairs(past, config)
    if source == "next":
        return mine_pairs(past, PairConfig(window_items=1, user_pairs_max=config.user_pairs_max))
    items = len(np.unique(past.item_n))
    behaviour = behaviour_vectors(
        past, PairConfig(), BehaviourConfig(dim=min(64, max(1, items // 4)), users_min=2)
    )
    order = np.argsort(behaviour.items_N)
    return nearest_pairs(
        mine_pairs(past, PairConfig()), behaviour.items_N[order], behaviour.vectors_ND[order]
    )


def rows_of(
    pairs: Pairs, items: EncodedItems, *, shown: Interactions | None, taken: Interactions
) -> PairRows:
    """Pairs of items with vectors as rows; with `shown` also what their users passed over."""
    pairs = pairs.where(items.has(pairs.left_P) & items.has(pairs.right_P))
    hard_P = np.full(len(pairs), -1, np.int64)
    if shown is not None and len(shown):
        negative_P, found_P = hard_negatives(pairs, shown, taken)
        usable = found_P.astype(np.bool_) & items.has(negative_P)
        hard_P[usable] = items.rows(negative_P[usable])
    return PairRows(
        left_P=items.rows(pairs.left_P), right_P=items.rows(pairs.right_P), hard_P=hard_P
    )


def both_ways(rows: PairRows) -> PairRows:
    """Each pair also turned round; hard negatives stay with the pairs as they were."""
    return PairRows(
        left_P=np.concatenate((rows.left_P, rows.right_P)),
        right_P=np.concatenate((rows.right_P, rows.left_P)),
        hard_P=np.concatenate((rows.hard_P, np.full_like(rows.hard_P, -1))),
    )


def later_pairs(interactions: Interactions, items: EncodedItems, from_ms: int) -> Pairs:
    """Each user's next item from `from_ms` on, and the one before it: what training did not see."""
    return known(mine_pairs(interactions, PairConfig(window_items=1)), items, from_ms)


def known(pairs: Pairs, items: EncodedItems, from_ms: int) -> Pairs:
    """Pairs from `from_ms` on of which both sides have a vector."""
    return pairs.where(
        (pairs.ts_ms_P >= from_ms) & items.has(pairs.left_P) & items.has(pairs.right_P)
    )
