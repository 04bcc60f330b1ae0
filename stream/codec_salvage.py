"""What is wrong with a message that its decoder refused, and which of its events are good.

Runs on refused bytes only, so it may be slow; it must not raise, and must stay within the bytes
it was given: msgpack's limits follow the length of the value.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import msgpack
import msgspec

from stream.columns import Reason, Rejected
from stream.events import ID_BYTES_MAX, SCHEMA_VERSION, TIME_MAX_MS, TIME_MIN_MS

_ID_FIELDS: Final = ("request_id", "user_id", "item_id")
_DETAIL_CHARS: Final = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class TopicTypes:
    """Values of `type` in one topic, and the structs that their messages must fit."""

    single: str
    envelope: str
    body: type[msgspec.Struct]
    others: Mapping[str, type[msgspec.Struct]]

    @property
    def names(self) -> list[str]:
        """All values of `type`."""
        return sorted((self.single, self.envelope, *self.others))


@dataclass(slots=True)
class Salvage:
    """Good events with their places, and the bad ones."""

    bodies: list[tuple[int, Any]] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)


def unpacked(value: bytes) -> dict[Any, Any] | str:
    """The message as a map, or why it is none."""
    try:
        message = msgpack.unpackb(value, strict_map_key=True, raw=False)
    except (ValueError, TypeError, RecursionError, MemoryError, OverflowError) as error:
        return f"not msgpack: {str(error) or type(error).__name__}"
    if not isinstance(message, dict):
        return f"expected a map, got {type(message).__name__}"
    return message


def salvage(
    value: bytes | None, record: int, *, types: TopicTypes, value_bytes_max: int, events_max: int
) -> Salvage:
    """Diagnose one refused message and keep its good events."""
    if value is None:
        return _whole(record, Reason.NULL_VALUE, "the record has no value")
    if len(value) > value_bytes_max:
        return _whole(
            record, Reason.TOO_LARGE, f"expected at most {value_bytes_max} bytes, got {len(value)}"
        )
    message = unpacked(value)
    if isinstance(message, str):
        return _whole(record, Reason.MALFORMED, message)
    fault = _head_fault(message, types)
    if fault is not None:
        return _whole(record, *fault)
    type_ = message["type"]
    if type_ == types.envelope:
        return _envelope(message, record, types.body, events_max)
    result = Salvage()
    if type_ == types.single:
        _add(result, message, record, 0, types.body)
    else:
        result.rejected.append(_refused(message, record, types.others[type_], events_max))
    return result


def _refused(
    message: dict[Any, Any], record: int, struct: type[msgspec.Struct], events_max: int
) -> Rejected:
    """Why a message of a form that is taken or left as a whole was refused."""
    rows = message.get("n")
    if type(rows) is int and rows == 0:
        reason, detail = Reason.EMPTY_ENVELOPE, "n: expected at least 1 row, got 0"
    elif type(rows) is int and rows > events_max:
        reason, detail = Reason.TOO_LARGE, f"n: expected at most {events_max}, got {rows}"
    else:
        try:
            msgspec.convert(message, struct)
            reason, detail = Reason.MALFORMED, "the decoder refused it"
        except (ValueError, RecursionError) as error:
            reason, detail = diagnosis(message, struct, str(error))
    return Rejected(record=record, index=-1, reason=reason, detail=detail)


def _head_fault(message: dict[Any, Any], types: TopicTypes) -> tuple[Reason, str] | None:
    for name in ("v", "type"):
        if name not in message:
            return Reason.MISSING_FIELD, f"no field '{name}'"
    version, type_ = message["v"], message["type"]
    if type(version) is not int or version != SCHEMA_VERSION:
        return Reason.UNKNOWN_VERSION, f"v: expected {SCHEMA_VERSION}, got {version!r:.40}"
    if not isinstance(type_, str) or type_ not in types.names:
        return (
            Reason.UNKNOWN_TYPE,
            f"type: expected one of {', '.join(types.names)}, got {type_!r:.40}",
        )
    return None


def _envelope(
    message: dict[Any, Any], record: int, body: type[msgspec.Struct], events_max: int
) -> Salvage:
    if "events" not in message:
        return _whole(record, Reason.MISSING_FIELD, "no field 'events'")
    events = message["events"]
    if not isinstance(events, list):
        got = type(events).__name__
        return _whole(record, Reason.WRONG_TYPE, f"events: expected a list, got {got}")
    if not events:
        return _whole(record, Reason.EMPTY_ENVELOPE, "events: the list is empty")
    if len(events) > events_max:
        return _whole(
            record, Reason.TOO_LARGE, f"events: expected at most {events_max}, got {len(events)}"
        )
    result = Salvage()
    for place, event in enumerate(events):
        _add(result, event, record, place, body)
    return result


def _add(
    result: Salvage, event: object, record: int, place: int, body: type[msgspec.Struct]
) -> None:
    try:
        result.bodies.append((place, msgspec.convert(event, body)))
    except (ValueError, RecursionError) as error:
        reason, detail = diagnosis(event, body, str(error))
        result.rejected.append(Rejected(record=record, index=place, reason=reason, detail=detail))


def diagnosis(event: object, body: type[msgspec.Struct], error: str) -> tuple[Reason, str]:
    """The reason why an event does not fit `body`, and one line about it."""
    if not isinstance(event, dict):
        return Reason.WRONG_TYPE, f"expected a map, got {type(event).__name__}"
    if missing := [name for name in _required(body) if event.get(name) is None]:
        return Reason.MISSING_FIELD, f"no field '{missing[0]}'"
    for name in _ID_FIELDS:
        if _is_bad_id(event.get(name)):
            return Reason.BAD_ID, f"{name}: expected 64 bits or 1 to {ID_BYTES_MAX} bytes"
    time = event.get("ts_ms")
    if type(time) is int and not TIME_MIN_MS <= time < TIME_MAX_MS:
        return Reason.BAD_TIME, f"ts_ms: expected the years 2000 to 2099, got {time}"
    if "missing required field" in error:
        return Reason.MISSING_FIELD, error[:_DETAIL_CHARS]
    if re.search(r"length >= 1 - at `\$\.items`", error):
        return Reason.MISSING_FIELD, "items: the list is empty"
    return Reason.WRONG_TYPE, error[:_DETAIL_CHARS]


def _is_bad_id(value: object) -> bool:
    if isinstance(value, str):
        return not 0 < len(value.encode()) <= ID_BYTES_MAX
    return type(value) is int and not -(2**63) <= value < 2**63


def _required(body: type[msgspec.Struct]) -> Sequence[str]:
    return [f.encode_name for f in msgspec.structs.fields(body) if f.required]


def _whole(record: int, reason: Reason, detail: str) -> Salvage:
    return Salvage(
        rejected=[Rejected(record=record, index=-1, reason=reason, detail=detail[:_DETAIL_CHARS])]
    )
