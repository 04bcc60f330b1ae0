"""Record logs to columns of logged choices: who was shown what, how probably, and with what reward.

The plain reading for off-policy evaluation, whole logs at once: no histories, no batches, no model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from infra.errors import InputError
from stream.codec import ClickDecoder, ImpressionDecoder
from stream.codec_spec import DecodeSpec, DenseSource, IdSource
from stream.columns import I64, EventColumns, EventKind
from stream.events import TopicRole
from stream.keys import key_of, key_of_str, salt_of, salted
from stream.record_log import RecordLog

_CHUNK_RECORDS: Final = 16_384
_PROPENSITY: Final = DenseSource(name="propensity", path="features.propensity")
"""Columnar envelopes have no other place for it."""
F64 = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoggedActions:
    """Distinct impressions, one row an item shown, in no particular order.

    `request_n`, `user_n`, `item_n` keys; `propensity_n` the shown item's field `propensity` or else
    its feature of that name, NaN where none was logged; `reward_n` 1
    where a click of the label's kind came in time, else 0; `fields` keys by path, comparable with
    `value_keys`; `rejected` events that could not be used.
    """

    request_n: I64
    user_n: I64
    item_n: I64
    propensity_n: F64
    reward_n: F64
    fields: Mapping[str, I64]
    rejected: int

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.request_n)


def read_actions(
    logs: Sequence[Path], paths: Sequence[str], *, label: str, window_ms: int
) -> LoggedActions:
    """All impressions of the logs; `paths` are fields to read, as features name them.

    Raises InputError for a path that an impression does not have and for a log without
    impressions, and RecordLogUnusable for a damaged one.
    """
    names = dict.fromkeys(paths)
    ids = tuple(IdSource(name=path, path=path, salt=salt_of(path)) for path in names)
    try:
        spec = DecodeSpec(role=TopicRole.IMPRESSIONS, ids=ids, dense=(_PROPENSITY,))
    except ValueError as error:
        raise InputError(str(error)) from error
    shown_decoder = ImpressionDecoder(spec)
    click_decoder = ClickDecoder(DecodeSpec(role=TopicRole.CLICKS, click_kinds=(label,)))
    shown: list[EventColumns] = []
    clicks: list[EventColumns] = []
    for log in logs:
        for chunk in RecordLog(log).batches(_CHUNK_RECORDS):
            for batch in chunk:
                if batch.tp.topic == TopicRole.IMPRESSIONS:
                    shown.append(shown_decoder.decode(batch))
                elif batch.tp.topic == TopicRole.CLICKS:
                    clicks.append(click_decoder.decode(batch))
    rejected = sum(len(columns.rejected) for columns in (*shown, *clicks))
    if not any((columns.kind_n == EventKind.IMPRESSION).any() for columns in shown):
        raise InputError(f"{', '.join(map(str, logs))}: no usable impression")
    return _joined(shown, clicks, list(names), window_ms, rejected)


def value_keys(path: str, value: str) -> I64:
    """Keys that the field `path` may have for a value as people write it: as text, as integer."""
    plain = [key_of_str(value)]
    if value.lstrip("-").isdecimal():
        plain.append(key_of(int(value)))
    return salted(np.array(plain, np.int64), salt_of(path))


def _joined(
    shown: list[EventColumns],
    clicks: list[EventColumns],
    paths: list[str],
    window_ms: int,
    rejected: int,
) -> LoggedActions:
    rows = [columns.kind_n == EventKind.IMPRESSION for columns in shown]
    place = [columns.imp_n[own] for columns, own in zip(shown, rows, strict=True)]
    pair_n2 = _pairs(shown, rows)
    # The first row of an impression wins, as in the join.
    first = np.sort(np.unique(pair_n2, return_index=True)[1])
    ts_ms_n = np.concatenate([c.ts_ms_n[own] for c, own in zip(shown, rows, strict=True)])[first]
    ids_nF = np.concatenate([c.impressions.ids_mF[at] for c, at in zip(shown, place, strict=True)])[
        first
    ]
    propensity_n = np.concatenate(
        [_propensities(c)[at] for c, at in zip(shown, place, strict=True)]
    )
    user_n = np.concatenate([c.user_n[own] for c, own in zip(shown, rows, strict=True)])[first]
    pair_n = pair_n2[first]
    return LoggedActions(
        request_n=pair_n["request"],
        user_n=user_n,
        item_n=pair_n["item"],
        propensity_n=propensity_n[first],
        reward_n=_rewards(pair_n, ts_ms_n, clicks, window_ms),
        fields={path: ids_nF[:, f] for f, path in enumerate(paths)},
        rejected=rejected,
    )


def _propensities(columns: EventColumns) -> F64:
    """By impression row: the field, else the feature, else NaN."""
    field_m = columns.impressions.propensity_m.astype(np.float64)
    feature_m = columns.impressions.dense_mX[:, 0].astype(np.float64)
    # A feature that is missing reads as 0, which no propensity of a shown item can be.
    return np.where(np.isnan(field_m) & (feature_m != 0), feature_m, field_m)


def pairs_of(request_n: I64, item_n: I64) -> NDArray[np.void]:
    """Request and item of each row as one comparable value."""
    pairs = np.zeros(len(request_n), [("request", "<i8"), ("item", "<i8")])
    pairs["request"], pairs["item"] = request_n, item_n
    return pairs


def _pairs(parts: list[EventColumns], rows: list[NDArray[np.bool_]]) -> NDArray[np.void]:
    requests = [c.request_n[own] for c, own in zip(parts, rows, strict=True)]
    items = [c.item_n[own] for c, own in zip(parts, rows, strict=True)]
    none = np.zeros(0, np.int64)
    return pairs_of(np.concatenate([none, *requests]), np.concatenate([none, *items]))


def _rewards(
    pair_n: NDArray[np.void], ts_ms_n: I64, clicks: list[EventColumns], window_ms: int
) -> F64:
    rows = [(c.kind_n == EventKind.CLICK) & (c.click_kind_n == 0) for c in clicks]
    clicked = _pairs(clicks, rows)
    reward_n = np.zeros(len(pair_n))
    if not len(clicked):
        return reward_n
    clicked_ms = np.concatenate([c.ts_ms_n[own] for c, own in zip(clicks, rows, strict=True)])
    # The first record of a click decides, as in the join; logs hold them in order.
    clicked, first = np.unique(clicked, return_index=True)
    at = np.minimum(np.searchsorted(clicked, pair_n), len(clicked) - 1)
    in_time = clicked_ms[first][at] - ts_ms_n <= window_ms
    reward_n[(clicked[at] == pair_n) & in_time] = 1.0
    return reward_n
