"""Item vectors to bytes and back: msgpack maps, versioned and bounded. Stores and sends nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import msgpack
import msgspec
import numpy as np
from numpy.typing import NDArray

from embeddings.int8_rows import SCALE_MAX, quantised
from embeddings.item_content import Attributes, AttributeValue, is_scalar

VERSION = 1
TYPE = "item_vector"
VALUE_BYTES_MAX = 1 << 20
DIM_MAX = 16_384
ATTRIBUTES_MAX = 1_024
_ELEMENTS_MAX = 4_096
_ID_BYTES_MAX = 256
_TS_MS_MIN = 946_684_800_000  # 2000-01-01
_TS_MS_MAX = 4_102_444_800_000  # 2100-01-01

DType = Literal["float16", "float32", "int8"]
DTYPES: tuple[DType, ...] = get_args(DType)
_NUMPY_DTYPES: dict[str, np.dtype[Any]] = {
    "float16": np.dtype("<f2"),
    "float32": np.dtype("<f4"),
    "int8": np.dtype("i1"),
}
_BITS: dict[str, tuple[np.dtype[Any], np.unsignedinteger[Any], np.unsignedinteger[Any]]] = {
    "float16": (np.dtype("<u2"), np.uint16(0x7FFF), np.uint16(0x7C00)),
    "float32": (np.dtype("<u4"), np.uint32(0x7FFF_FFFF), np.uint32(0x7F80_0000)),
}
"""Unsigned integers of the same size, all bits but the sign's, and the bits of infinity."""

BadReason = Literal[
    "malformed", "unknown_version", "unknown_type", "missing_field", "wrong_type", "bad_time",
    "bad_id", "not_finite", "null_value", "too_large", "bad_vector",
]  # fmt: skip
"""Words of why a value cannot be used; the same words name the reasons of rejected events."""


class ItemVector(
    msgspec.Struct, frozen=True, gc=False, kw_only=True, tag_field="type", tag="item_vector"
):
    """The vector and the attributes of one item as of `ts_ms`, or its deletion.

    `data` holds `dim` little-endian numbers of `dtype`, of int8 to be multiplied by `scale`; `dim`
    0 means that the item has no vector (its attributes count all the same). `v` is the version of
    this form.
    """

    v: int
    item_id: int | str
    ts_ms: int
    encoder: str
    dtype: DType
    dim: int
    data: bytes
    attributes: dict[str, AttributeValue] = {}
    deleted: bool = False
    scale: float = 1.0

    def vector(self) -> NDArray[Any]:
        """The numbers [dim], float32 of int8, otherwise as stored; not to be written to."""
        numbers = np.frombuffer(self.data, _NUMPY_DTYPES[self.dtype])
        return numbers * np.float32(self.scale) if self.dtype == "int8" else numbers


class _Attributes(msgspec.Struct, frozen=True, gc=False, tag_field="type", tag="item_vector"):
    attributes: dict[str, AttributeValue] = {}


_DECODER = msgspec.msgpack.Decoder(ItemVector)
_ATTRIBUTES = msgspec.msgpack.Decoder(_Attributes)


@dataclass(frozen=True, slots=True, kw_only=True)
class BadVector:
    """Bytes that are no usable item vector, as a value. `detail` is one line for a person."""

    reason: BadReason
    detail: str


def encode_item_vector(
    *,
    item_id: int | str,
    ts_ms: int,
    encoder: str,
    vector: NDArray[Any] | None,
    dtype: DType = "float16",
    attributes: Mapping[str, AttributeValue] | None = None,
    deleted: bool = False,
) -> bytes:
    """Value bytes of an item vector; `vector` None: the item has none.

    Of int8, `quantised` gives numbers and scale. Raises ValueError on what `decode_item_vector`
    would refuse, such as numbers that are infinite in `dtype`.
    """
    numbers = np.zeros(0, np.float32) if vector is None or deleted else np.asarray(vector)
    scale = 1.0
    if dtype == "int8":
        if not np.isfinite(numbers).all():
            raise ValueError(f"item vector of {item_id!r}: data: a NaN or an infinity")
        data, scale = quantised(numbers)
    else:
        with np.errstate(over="ignore"):
            data = np.ascontiguousarray(numbers, _NUMPY_DTYPES[dtype])
    event: dict[str, Any] = {
        "v": VERSION,
        "type": TYPE,
        "item_id": item_id,
        "ts_ms": ts_ms,
        "attributes": {} if deleted else dict(attributes or {}),
        "encoder": encoder,
        "dtype": dtype,
        "dim": int(data.size),
        "data": data.tobytes(),
    }
    if dtype == "int8":
        event["scale"] = scale
    if deleted:
        event["deleted"] = True
    fault = _fault(event)
    if fault is not None:
        raise ValueError(f"item vector of {item_id!r}: {fault.detail}")
    value: bytes = msgpack.packb(event)
    if len(value) > VALUE_BYTES_MAX:
        raise ValueError(f"item vector of {item_id!r}: {len(value)} bytes, limit {VALUE_BYTES_MAX}")
    return value


def decode_item_vector(value: bytes) -> ItemVector | BadVector:
    """The item vector in `value`, or why there is none; raises nothing, whatever the bytes."""
    if len(value) > VALUE_BYTES_MAX:
        return _bad("too_large", f"{len(value)} bytes, limit {VALUE_BYTES_MAX}")
    try:
        item = _DECODER.decode(value)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return _decode_slowly(value)
    fault = (
        _frame_fault(item.v, item.ts_ms)
        or _id_fault(item.item_id)
        or _vector_fault(item.dtype, item.dim, item.data, item.scale)
        or _attributes_fault(item.attributes)
    )
    return item if fault is None else fault


def decode_stored(value: bytes) -> ItemVector | BadVector:
    """The item vector in bytes that were checked before they were stored; raises nothing.

    A fifth of the cost of `decode_item_vector`: attributes are not looked at once more.
    """
    try:
        item = _DECODER.decode(value)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return decode_item_vector(value)
    fault = _vector_fault(item.dtype, item.dim, item.data, item.scale)
    return item if fault is None else fault


def stored_attributes(value: bytes) -> Attributes | None:
    """The attributes alone in bytes that were checked before they were stored; None: unusual."""
    try:
        return _ATTRIBUTES.decode(value).attributes
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None


def _decode_slowly(value: bytes) -> ItemVector | BadVector:
    """The same without types given beforehand, to find out what is wrong."""
    try:
        event = msgpack.unpackb(value, strict_map_key=True)
    except (ValueError, TypeError, OverflowError, msgpack.UnpackException) as error:
        return _bad("malformed", f"not msgpack: {type(error).__name__} {error}")
    if not isinstance(event, dict):
        return _bad("malformed", f"expected a map, got {type(event).__name__}")
    fault = _fault(event)
    if fault is not None:
        return fault
    return ItemVector(
        v=VERSION,
        item_id=event["item_id"],
        ts_ms=event["ts_ms"],
        encoder=event["encoder"],
        dtype=event["dtype"],
        dim=event["dim"],
        data=event["data"],
        attributes=event.get("attributes") or {},
        deleted=event.get("deleted", False),
        scale=float(event.get("scale", 1.0)),
    )


def misfit(vector: ItemVector, encoder: str, dim: int) -> BadVector | None:
    """Why `vector` does not belong among vectors of `encoder` and `dim`; None where it does."""
    if vector.deleted:
        return None
    if vector.encoder != encoder:
        return _bad("bad_vector", f"encoder: expected '{encoder}', got '{vector.encoder}'")
    if vector.dim not in (0, dim):
        return _bad("bad_vector", f"dim: expected {dim}, got {vector.dim}")
    return None


_FIELDS: dict[str, type] = {
    "item_id": object,
    "ts_ms": int,
    "encoder": str,
    "dtype": str,
    "dim": int,
    "data": bytes,
}


def _fault(event: Mapping[str, Any]) -> BadVector | None:
    """The first thing wrong with the map of an item-vector event."""
    if event.get("type") != TYPE:
        return _bad("unknown_type", f"type: expected '{TYPE}', got {event.get('type')!r:.40}")
    for name, kind in _FIELDS.items():
        if name not in event:
            return _bad("missing_field", f"no '{name}'")
        if not isinstance(event[name], kind) or isinstance(event[name], bool):
            got = type(event[name]).__name__
            return _bad("wrong_type", f"{name}: expected {kind.__name__}, got {got}")
    if not isinstance(event.get("deleted", False), bool):
        return _bad("wrong_type", "deleted: expected a truth value")
    scale = event.get("scale", 1.0)
    if not isinstance(scale, int | float) or isinstance(scale, bool):
        return _bad("wrong_type", f"scale: expected a number, got {type(scale).__name__}")
    return (
        _frame_fault(event.get("v"), event["ts_ms"])
        or _id_fault(event["item_id"])
        or _vector_fault(event["dtype"], event["dim"], event["data"], scale)
        or _attributes_fault(event.get("attributes"))
    )


def _frame_fault(version: object, ts_ms: int) -> BadVector | None:
    if version != VERSION:
        return _bad("unknown_version", f"v: expected {VERSION}, got {version!r:.40}")
    if not _TS_MS_MIN <= ts_ms < _TS_MS_MAX:
        return _bad("bad_time", f"ts_ms: outside the years 2000 to 2100, got {ts_ms}")
    return None


def _id_fault(item_id: object) -> BadVector | None:
    if isinstance(item_id, int) and not isinstance(item_id, bool):
        fits = -(1 << 63) <= item_id < 1 << 63
        return None if fits else _bad("bad_id", "item_id: an integer beyond 64 bits")
    if isinstance(item_id, str):
        size = len(item_id.encode(errors="surrogatepass"))
        fits = 1 <= size <= _ID_BYTES_MAX
        return None if fits else _bad("bad_id", f"item_id: {size} bytes, not 1 to {_ID_BYTES_MAX}")
    return _bad("wrong_type", f"item_id: expected int or str, got {type(item_id).__name__}")


def _vector_fault(dtype_name: str, dim: int, data: bytes, scale: float) -> BadVector | None:
    dtype = _NUMPY_DTYPES.get(dtype_name)
    if dtype is None:
        known = ", ".join(DTYPES)
        return _bad("bad_vector", f"dtype: expected one of {known}, got '{dtype_name:.20}'")
    if not 0 <= dim <= DIM_MAX:
        return _bad("bad_vector", f"dim: expected 0 to {DIM_MAX}, got {dim}")
    expected = dim * dtype.itemsize
    if len(data) != expected:
        return _bad("bad_vector", f"data: expected {expected} bytes, got {len(data)}")
    if dtype_name == "int8":
        fits = 0 <= scale <= SCALE_MAX  # False for a NaN
        return None if fits else _bad("bad_vector", f"scale: expected 0 to 2^120, got {scale}")
    if scale != 1:
        return _bad("bad_vector", f"scale: expected 1 where dtype is not int8, got {scale}")
    # A NaN or an infinity has all exponent bits set; on integers that costs a third of isfinite.
    bits, magnitude, infinity = _BITS[dtype_name]
    if dim and (np.frombuffer(data, bits) & magnitude).max() >= infinity:
        return _bad("not_finite", "data: a NaN or an infinity")
    return None


def _attributes_fault(attributes: object) -> BadVector | None:
    if attributes is None:
        return None
    if not isinstance(attributes, dict):
        got = type(attributes).__name__
        return _bad("wrong_type", f"attributes: expected a map, got {got}")
    if len(attributes) > ATTRIBUTES_MAX:
        return _bad("too_large", f"attributes: {len(attributes)}, limit {ATTRIBUTES_MAX}")
    for name, value in attributes.items():
        if type(value) is list:
            if len(value) > _ELEMENTS_MAX:
                return _bad("too_large", f"attribute '{name!s:.40}': over {_ELEMENTS_MAX} elements")
            usable = all(map(is_scalar, value))
        else:
            usable = is_scalar(value)
        if not usable or type(name) is not str:
            detail = f"attribute '{name!s:.40}': neither a finite scalar nor a flat list of them"
            return _bad("wrong_type", detail)
    return None


def _bad(reason: BadReason, detail: str) -> BadVector:
    return BadVector(reason=reason, detail=detail)
