"""Synthetic MiniBatches with a planted signal, for tests and benchmarks of learners."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from learners.batch import ContentRows, MiniBatch
from learners.feature_spec import Bag, DenseInput, FeatureSpec, IdField
from learners.modules.qarm_codes import NAME as CODES_READER
from learners.modules.qarm_codes import QarmConfig, code_bags

DAY_MS = 86_400_000
START_MS = 1_650_000_000_000


def small_spec(
    *,
    content_dim: int = 6,
    prior: bool = True,
    admit_after: int = 0,
    expire_ms: int = 0,
    codes: QarmConfig | None = None,
) -> FeatureSpec:
    """Three id fields of two dimensions, a history of items, a several-valued field, counters.

    With `codes` also the bags of codes that the module `qarm` reads.
    """
    bags = code_bags(codes, [("history", 7)]) if codes else []
    rates = tuple(
        DenseInput(name=f"{c}.rate", group="rate", counter=c, label="click")
        for c in ("user", "item")
    )
    dense = (DenseInput(name="prior", group="prior", label="click"),) if prior else ()
    return FeatureSpec(
        ids=(
            IdField(name="user", dim=8, admit_after=admit_after, expire_ms=expire_ms),
            IdField(name="item", dim=8, admit_after=admit_after, expire_ms=expire_ms),
            IdField(name="tab", dim=4),
        ),
        bag_fields=(
            IdField(name="tag", dim=4, rows_max=50),
            *(IdField(name=bag.name, dim=codes.dim, reader=CODES_READER)
              for bag in bags if codes and not bag.history),
        ),
        bags=(
            Bag(name="history", field="item", length=7, is_history=True),
            Bag(name="tags", field="tag", length=3, is_history=False),
            *(Bag(name=bag.name, field=bag.field, length=bag.length, is_history=False,
                  reader=CODES_READER, sequence=bool(bag.history)) for bag in bags),
        ),
        dense=(*dense, *rates, DenseInput(name="duration", group="value")),
        labels=("long_view", "click"),
        trained_label="click",
        content_dim=content_dim,
    )  # fmt: skip


def code_keys(spec: FeatureSpec, bag: Bag, items: np.ndarray) -> np.ndarray:
    """Keys of the codes of items, one more axis at the end if the bag has several an item.

    Items below 0, and every seventh, have no code and so 0. Items that leave the same remainder by
    5 share `rq1`, those that do by 10 also `prefix2`.
    """
    code = bag.field.rpartition(".")[2]
    number = spec.field_of(bag.field)
    none = (items < 0) | (items % 7 == 0)
    if code == "vq":
        found = keys_of(number, (items[..., None] + np.arange(bag.length)) % 11)
        return np.where(none[..., None], 0, found)
    return np.where(none, 0, keys_of(number, items % (5 if code == "rq1" else 10)))


def keys_of(field: int, ids: np.ndarray) -> np.ndarray:
    """Well-mixed int64 keys of small non-negative ids; never 0."""
    z = (ids.astype(np.uint64) + np.uint64(field << 40)) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
    return (z ^ (z >> np.uint64(32)) | np.uint64(1)).view(np.int64)


@dataclass
class BatchMaker:
    """A seeded stream of batches: the click depends on the user, the item and a dense input."""

    spec: FeatureSpec
    seed: int = 0
    users: int = 60
    items: int = 40
    nominal_size: int = 64

    def __post_init__(self) -> None:
        """Start the stream."""
        self.rng = np.random.default_rng(self.seed)
        planted = np.random.default_rng(12345)
        self.user_bias = planted.normal(0, 1.5, self.users)
        self.item_bias = planted.normal(0, 1.5, self.items)
        self.item_vectors = planted.normal(0, 1, (self.items, max(self.spec.content_dim, 1)))
        self.now_ms = START_MS
        self.request = 0

    def batch(self, b: int) -> MiniBatch:
        """The next `b` rows."""
        rng, spec = self.rng, self.spec
        user, item, tab = (rng.integers(0, n, b) for n in (self.users, self.items, 4))
        length = rng.integers(0, 8, b)
        history = rng.integers(0, self.items, (b, 7))
        empty = np.arange(7) >= length[:, None]
        tags = np.where(np.arange(3) < rng.integers(0, 4, (b, 1)), rng.integers(0, 30, (b, 3)), -1)
        dense = rng.normal(0, 1, (b, len(spec.dense))).astype(np.float32)
        if spec.dense[0].group == "prior":
            dense[:, 0] = -0.4
        dense[:, -1] = dense[:, -1] * 40 + 300
        logit = self.user_bias[user] + self.item_bias[item] + dense[:, -2] - 0.4
        click = rng.random(b) < 1 / (1 + np.exp(-logit))
        self.now_ms += 60_000
        self.request += b
        return MiniBatch(
            ids_BF=torch.from_numpy(
                np.stack([keys_of(0, user), keys_of(1, item), keys_of(2, tab)], 1)
            ),
            bags_BL=(
                torch.from_numpy(np.where(empty, 0, keys_of(1, history))),
                torch.from_numpy(np.where(tags < 0, 0, keys_of(3, tags.clip(0)))),
                *(torch.from_numpy(keys) for keys in self._codes(item, history, empty)),
            ),
            dense_BD=torch.from_numpy(dense),
            content=self._content(item, history, empty) if spec.content_dim else None,
            labels_BK=torch.from_numpy(np.stack([click & (rng.random(b) < 0.5), click], 1)).float(),
            label_mask_BK=torch.ones(b, 2),
            weight_B=torch.ones(b),
            row_kind_B=torch.zeros(b, dtype=torch.uint8),
            age_ms_B=torch.full((b,), 60_000, dtype=torch.int64),
            request_row_B=torch.arange(b),
            sample_rate_B=torch.ones(b),
            ts_ms_B=torch.from_numpy(
                self.now_ms - np.sort(rng.integers(0, 60_000, b))[::-1].copy()
            ),
            sample_id_B=torch.arange(self.request - b, self.request),
            nominal_size=self.nominal_size,
        )

    def _codes(self, item: np.ndarray, history: np.ndarray, empty: np.ndarray) -> list[np.ndarray]:
        found = []
        for bag in self.spec.bags:
            if bag.reader == CODES_READER:
                items = np.where(empty, -1, history) if bag.sequence else item
                found.append(code_keys(self.spec, bag, items).reshape(len(item), bag.length))
        return found

    def _content(self, item: np.ndarray, history: np.ndarray, empty: np.ndarray) -> ContentRows:
        """Every seventh item has no vector; the last row of the table stands for that."""
        none = self.items
        table = np.vstack([self.item_vectors, np.zeros((1, self.spec.content_dim))])
        target = np.where(item % 7 == 0, none, item)
        places = np.where(empty | (history % 7 == 0), none, history)
        n = (places != none).sum(1)
        return ContentRows(
            table_VC=torch.from_numpy(table.astype(np.float32)),
            target_B=torch.from_numpy(target),
            missing_B=torch.from_numpy(target == none),
            bags_BL=(torch.from_numpy(places),),
            bag_inv_len_B=(torch.from_numpy((1 / n.clip(1) * (n > 0)).astype(np.float32)),),
            encoder="synthetic",
        )
