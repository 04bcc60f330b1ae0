"""Record batches of impressions and clicks to EventColumns; never raises on bad bytes.

Usual records go through a compiled scan (`codec_scan`), all others through one msgspec call each
and whole-batch columns; what msgspec refuses goes to `codec_salvage`. Items and item vectors are
in `codec_items`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream.codec_blocks import Block, columns_of, plain_block
from stream.codec_columnar import columnar_click_block, columnar_impression_block, good_messages
from stream.codec_forms import Forms, WatermarkMessage, forms_of
from stream.codec_rows import Caches, click_block, impression_block
from stream.codec_salvage import salvage
from stream.codec_scan import Scanner
from stream.codec_spec import (
    SERVED_VERSION,
    DecodeSpec,
    DenseSource,
    IdSource,
    MultiSource,
)
from stream.codec_unknown import unknown_fields
from stream.codec_values import CACHE_VALUES_MAX
from stream.columns import I64, EventColumns, EventKind, Rejected
from stream.events import TopicRole
from stream.records import RecordBatch

OPEN_KINDS_MAX = 1_000

__all__ = [
    "ClickDecoder",
    "DecodeSpec",
    "DenseSource",
    "IdSource",
    "ImpressionDecoder",
    "MultiSource",
]


class _Intake:
    """Messages of one batch, sorted by form."""

    def __init__(self, forms: Forms, spec: DecodeSpec) -> None:
        self._forms = forms
        self._spec = spec
        self.events: list[Any] = []
        self._records: list[int] = []
        self._counts: list[int] = []
        self._odd_places: list[tuple[int, list[int]]] = []
        self.columnar: list[tuple[int, Any]] = []
        self.marks: list[tuple[int, int]] = []
        self.rejected: list[Rejected] = []

    def take(self, values: Sequence[bytes | None], done: NDArray[np.bool_] | None) -> None:
        """Decode all values, but those that are `done`."""
        forms, bytes_max = self._forms, self._spec.value_bytes_max
        decode, single, envelope, columnar = (
            forms.decode,
            forms.single,
            forms.envelope,
            forms.columnar,
        )
        left = range(len(values)) if done is None else np.flatnonzero(~done).tolist()
        for record in left:
            value = values[record]
            if value is None or len(value) > bytes_max:
                self._salvage(record, value)
                continue
            try:
                message = decode(value)
            except (ValueError, RecursionError, MemoryError):  # msgspec's errors are ValueErrors
                self._salvage(record, value)
                continue
            form = type(message)
            if form is single:
                self.events.append(message)
                self._records.append(record)
                self._counts.append(1)
            elif form is envelope:
                self.events.extend(message.events)
                self._records.append(record)
                self._counts.append(len(message.events))
            elif form is columnar:
                self.columnar.append((record, message))
            else:
                assert isinstance(message, WatermarkMessage)
                self.marks.append((record, message.ts_ms))  # type: ignore[attr-defined]

    def _salvage(self, record: int, value: bytes | None) -> None:
        found = salvage(
            value,
            record,
            types=self._forms.types,
            value_bytes_max=self._spec.value_bytes_max,
            events_max=self._spec.events_max,
        )
        self.rejected.extend(found.rejected)
        if found.bodies:
            self._odd_places.append((len(self.events), [place for place, _ in found.bodies]))
            self.events.extend(body for _, body in found.bodies)
            self._records.append(record)
            self._counts.append(len(found.bodies))

    def places(self) -> tuple[I64, I64]:
        """Record and place of each event in row form."""
        counts = np.array(self._counts, np.int64)
        record_e = np.repeat(np.array(self._records, np.int64), counts)
        place_e = np.arange(len(record_e)) - np.repeat(np.cumsum(counts) - counts, counts)
        for start, places in self._odd_places:
            place_e[start : start + len(places)] = places
        return record_e, place_e

    def mark_blocks(self) -> list[Block]:
        """The watermarks as a block, if there are any."""
        if not self.marks:
            return []
        records = [record for record, _ in self.marks]
        # A time beyond 64 bits is as wrong as 0, and fits.
        times = [ts if -(2**63) <= ts < 2**63 else 0 for _, ts in self.marks]
        return [plain_block(records, [0] * len(records), EventKind.WATERMARK, times)]


class _OpenKinds(dict[str, int]):
    """Numbers a kind when it is asked for first."""

    def get(self, kind: str, default: int = -1) -> int:  # type: ignore[override]
        """The number of `kind`."""
        if kind not in self and len(self) < OPEN_KINDS_MAX:
            self[kind] = len(self)
        return super().get(kind, default)


class _Decoder:
    """What both decoders share."""

    _role: TopicRole
    _required: tuple[str, ...]

    def __init__(self, spec: DecodeSpec) -> None:
        """Build the struct types of `spec`; raises ValueError for a spec of another topic."""
        if spec.role is not self._role:
            raise ValueError(f"expected a spec for {self._role}, got one for {spec.role}")
        self._spec = spec
        self._forms = forms_of(spec)
        self._caches = Caches.empty()
        self._scanner = Scanner(spec, spec.click_kinds)
        self._met: set[int] = set()
        fields = (
            path for s in spec.sources if (path := s.path).startswith(("context.", "features."))
        )
        served = (SERVED_VERSION,) if spec.served else ()
        self._read = (*self._required, *self._optional, *dict.fromkeys(fields), *served)

    _optional: tuple[str, ...]

    def texts(self) -> list[str]:
        """Texts that were values of fields lately, at most 65,536."""
        return [value for value in self._caches.values if isinstance(value, str)]

    def decode(self, batch: RecordBatch) -> EventColumns:
        """All rows of the batch; bad events are REJECTED rows and entries of `.rejected`."""
        intake = _Intake(self._forms, self._spec)
        usual, done = self._scanner.scan(batch)
        intake.take(batch.values, done)
        blocks = intake.mark_blocks()
        if usual is not None:
            self._remember_texts(usual, batch)
            blocks.append(usual)
        if intake.events:
            blocks.append(self._row_block(intake.events, *intake.places()))
        if intake.columnar:
            good, rejected = good_messages(intake.columnar, self._required, self._read)
            intake.rejected.extend(rejected)
            if good:
                blocks.append(self._columnar_block(good))
        columns = columns_of(blocks, intake.rejected, batch, self._spec)
        columns.unknown_fields = unknown_fields(batch, self._spec)
        return columns

    def _remember_texts(self, usual: Block, batch: RecordBatch) -> None:
        """Decode records with values not met before once more: the scan knows keys only."""
        places = [i for i, one in enumerate(self._spec.ids) if one.name in self._spec.texts]
        if not places or usual.impressions is None or len(self._met) >= CACHE_VALUES_MAX:
            return
        again = np.ones(len(batch.values), np.bool_)
        for place in places:
            keys, first = np.unique(usual.impressions.ids_mF[:, place], return_index=True)
            for key, row in zip(keys.tolist(), first.tolist(), strict=True):
                if key not in self._met:
                    self._met.add(key)
                    again[usual.record_n[row]] = False
        intake = _Intake(self._forms, self._spec)
        intake.take(batch.values, again)
        if intake.events:
            self._row_block(intake.events, *intake.places())

    def _row_block(self, events: list[Any], record_e: I64, place_e: I64) -> Block:
        raise NotImplementedError

    def _columnar_block(self, messages: list[tuple[int, Any]]) -> Block:
        raise NotImplementedError


class ImpressionDecoder(_Decoder):
    """Decodes batches of the impressions topic."""

    _role = TopicRole.IMPRESSIONS
    _required = ("request_id", "user_id", "ts_ms", "item_id")
    _optional = ("position",)

    def _row_block(self, events: list[Any], record_e: I64, place_e: I64) -> Block:
        return impression_block(events, record_e, place_e, self._spec, self._forms, self._caches)

    def _columnar_block(self, messages: list[tuple[int, Any]]) -> Block:
        return columnar_impression_block(messages, self._spec, self._caches)


class ClickDecoder(_Decoder):
    """Decodes batches of the clicks topic."""

    _role = TopicRole.CLICKS
    _required = ("user_id", "ts_ms", "item_id", "kind")
    _optional = ("request_id",)

    def __init__(self, spec: DecodeSpec, *, open_kinds: bool = False) -> None:
        """Number the kinds in the order of the configured list.

        `open_kinds` numbers kinds that nobody configured as they come, for tools that look at
        logs; up to 1,000.
        """
        super().__init__(spec)
        numbers = _OpenKinds if open_kinds else dict
        self._kinds: dict[str, int] = numbers((k, i) for i, k in enumerate(spec.click_kinds))

    @property
    def kinds(self) -> tuple[str, ...]:
        """Names of the kinds by number."""
        return tuple(self._kinds)

    def _row_block(self, events: list[Any], record_e: I64, place_e: I64) -> Block:
        return click_block(events, record_e, place_e, self._kinds, self._caches)

    def _columnar_block(self, messages: list[tuple[int, Any]]) -> Block:
        return columnar_click_block(messages, self._kinds, self._caches)
