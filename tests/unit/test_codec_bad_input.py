"""What is wrong with records, as values: nothing raises, good neighbours survive."""

from __future__ import annotations

from typing import Any

import msgpack
import numpy as np
import pytest

from stream.codec import ClickDecoder, ImpressionDecoder
from stream.codec_items import ItemEvent, decode_items
from stream.codec_write import encode_columns, encode_envelope, encode_event, encode_key, item_body
from stream.columns import EventColumns, EventKind, Reason, Rejected
from stream.keys import key_of
from tests.support.records import (
    T0,
    batch_of,
    click,
    clicks_decoder,
    ids,
    impression,
    impressions_decoder,
    multi,
    packed,
)

DEEP = b"\x91" * 50_000
BODIES: list[tuple[dict[str, Any], Reason]] = [
    (click(item_id=...), Reason.MISSING_FIELD),
    (click(user_id=None), Reason.MISSING_FIELD),
    (click(kind=...), Reason.MISSING_FIELD),
    (click(kind=5), Reason.WRONG_TYPE),
    (click(user_id=1.5), Reason.WRONG_TYPE),
    (click(ts_ms="now"), Reason.WRONG_TYPE),
    (click(ts_ms=0), Reason.BAD_TIME),
    (click(ts_ms=-5), Reason.BAD_TIME),
    (click(ts_ms=1_000), Reason.BAD_TIME),  # 1970
    (click(ts_ms=7_258_118_400_000), Reason.BAD_TIME),  # 2200
    (click(ts_ms=2**63), Reason.BAD_TIME),
    (click(ts_ms=T0 + 10**9), Reason.FUTURE_TIME),
    (click(item_id=""), Reason.BAD_ID),
    (click(item_id="x" * 257), Reason.BAD_ID),
    (click(request_id="ü" * 129), Reason.BAD_ID),
    (click(user_id=2**63), Reason.BAD_ID),
    (click(request_id=2**64 - 1), Reason.BAD_ID),
]
RECORDS: list[tuple[bytes | None, Reason]] = [
    (None, Reason.NULL_VALUE),
    (b"", Reason.MALFORMED),
    (b"\xc1", Reason.MALFORMED),
    (b"not msgpack at all", Reason.MALFORMED),
    (packed(type="click", **click())[:-3], Reason.MALFORMED),
    (packed(type="click", **click()) + b"\x00", Reason.MALFORMED),
    (msgpack.packb([1, 2]), Reason.MALFORMED),
    (DEEP, Reason.MALFORMED),
    (b"\xdd\xff\xff\xff\xff", Reason.MALFORMED),
    (b"\x83\xa1v\x01\xa4type\xa6clicks\xa6events\xdd\xff\xff\xff\xff", Reason.MALFORMED),
    (b"\x82\xa1v\x01\xa4type\xa2\xff\xfe", Reason.MALFORMED),  # not UTF-8
    (msgpack.packb({"type": "click", **click()}), Reason.MISSING_FIELD),
    (msgpack.packb({"v": 1, **click()}), Reason.MISSING_FIELD),
    (msgpack.packb({"v": 2, "type": "click", **click()}), Reason.UNKNOWN_VERSION),
    (msgpack.packb({"v": "1", "type": "click", **click()}), Reason.UNKNOWN_VERSION),
    (packed(type="clack", **click()), Reason.UNKNOWN_TYPE),
    (packed(type="impression", **impression()), Reason.UNKNOWN_TYPE),
    (packed(type=7, **click()), Reason.UNKNOWN_TYPE),
    (packed(type="clicks", events=[]), Reason.EMPTY_ENVELOPE),
    (packed(type="clicks"), Reason.MISSING_FIELD),
    (packed(type="clicks", events={}), Reason.WRONG_TYPE),
    (packed(type="click_columns", n=0, columns={}), Reason.EMPTY_ENVELOPE),
    (packed(type="click_columns", n=10**6, columns={}), Reason.TOO_LARGE),
    (packed(type="click_columns", n=1, columns=[]), Reason.WRONG_TYPE),
    (packed(type="click_columns", n=1, columns={"user_id": 1}), Reason.MISSING_FIELD),
    (packed(type="watermark"), Reason.MISSING_FIELD),
    (packed(type="watermark", ts_ms="x"), Reason.WRONG_TYPE),
    (packed(type="watermark", ts_ms=5), Reason.BAD_TIME),
    (packed(type="watermark", ts_ms=2**64 - 1), Reason.BAD_TIME),
]


def reasons(columns: EventColumns) -> list[Reason]:
    return [one.reason for one in columns.rejected]


def assert_one_reject_between_good_ones(columns: EventColumns, reason: Reason) -> None:
    assert reasons(columns) == [reason]
    assert columns.rejected[0].record == 1
    assert columns.rejected[0].detail
    assert len(columns.rejected[0].detail) <= 300
    assert columns.record_n.tolist() == [0, 1, 2]
    assert columns.kind_n.tolist() == [EventKind.CLICK, EventKind.REJECTED, EventKind.CLICK]
    assert columns.ts_ms_n[1] == 0
    assert columns.request_n[1] == columns.item_n[1] == columns.user_n[1] == 0


@pytest.mark.parametrize(("body", "reason"), BODIES)
def test_bad_single_event(body: dict[str, Any], reason: Reason) -> None:
    good = encode_event("click", click())
    columns = clicks_decoder().decode(batch_of(good, encode_event("click", body), good))
    assert_one_reject_between_good_ones(columns, reason)
    assert columns.rejected[0].index == 0


@pytest.mark.parametrize(("value", "reason"), RECORDS)
def test_bad_record(value: bytes | None, reason: Reason) -> None:
    good = encode_event("click", click())
    columns = clicks_decoder().decode(batch_of(good, value, good))
    assert_one_reject_between_good_ones(columns, reason)


@pytest.mark.parametrize(("body", "reason"), BODIES)
def test_good_events_of_an_envelope_survive(body: dict[str, Any], reason: Reason) -> None:
    bodies = [click(item_id=10), body, click(item_id=12)]
    columns = clicks_decoder().decode(batch_of(encode_envelope("clicks", bodies)))
    assert [(r.record, r.index, r.reason) for r in columns.rejected] == [(0, 1, reason)]
    assert columns.kind_n.tolist() == [EventKind.CLICK, EventKind.REJECTED, EventKind.CLICK]
    assert columns.item_n.tolist() == [key_of(10), 0, key_of(12)]
    assert columns.index_n.tolist() == [0, 1, 2]


def test_several_bad_events_of_different_stages_keep_their_places() -> None:
    bodies: list[Any] = [click(), 5, click(ts_ms=0), click(kind=1), click(item_id="z")]
    columns = clicks_decoder().decode(batch_of(encode_envelope("clicks", bodies)))
    assert [(r.index, r.reason) for r in columns.rejected] == [
        (1, Reason.WRONG_TYPE),
        (2, Reason.BAD_TIME),
        (3, Reason.WRONG_TYPE),
    ]
    rejected, good = EventKind.REJECTED, EventKind.CLICK
    assert columns.kind_n.tolist() == [good, rejected, rejected, rejected, good]


def test_too_large_values_and_envelopes() -> None:
    decoder = clicks_decoder(value_bytes_max=200, events_max=2)
    big = encode_event("click", click(item_id="x" * 190))
    many = encode_envelope("clicks", [click()] * 3)
    ok = encode_envelope("clicks", [click()] * 2)
    columns = decoder.decode(batch_of(big, many, ok))
    assert reasons(columns) == [Reason.TOO_LARGE, Reason.TOO_LARGE]
    assert (columns.kind_n == EventKind.CLICK).sum() == 2


def test_record_keys_must_be_the_users() -> None:
    one = encode_event("click", click(user_id=7))
    text = encode_event("click", click(user_id="7"))
    keys = [b"7", b"8", b"7", None, b"\xff", b"07"]
    columns = clicks_decoder().decode(batch_of(one, one, text, one, one, one, keys=keys))
    assert [(r.record, r.reason) for r in columns.rejected] == [
        (1, Reason.KEY_MISMATCH),
        (4, Reason.KEY_MISMATCH),
        (5, Reason.KEY_MISMATCH),
    ]


def test_every_event_of_a_keyed_envelope_must_be_the_keys() -> None:
    bodies = [click(user_id=7), click(user_id=8), click(user_id=7), click(user_id="7")]
    value = encode_envelope("clicks", bodies)
    columns = clicks_decoder().decode(batch_of(value, value, value, keys=[b"7", b"8", None]))
    assert [(r.record, r.index) for r in columns.rejected] == [(0, 1), (1, 0), (1, 2), (1, 3)]
    assert set(reasons(columns)) == {Reason.KEY_MISMATCH}


def test_watermarks_are_exempt_from_the_future_check() -> None:
    mark = packed(type="watermark", ts_ms=T0 + 10**10)
    columns = clicks_decoder().decode(batch_of(mark))
    assert columns.kind_n.tolist() == [EventKind.WATERMARK]
    assert columns.rejected == []


def test_records_without_a_timestamp_have_no_future() -> None:
    value = encode_event("click", click(ts_ms=T0 + 10**10))
    columns = clicks_decoder().decode(batch_of(value, timestamp_ms=-1))
    assert columns.rejected == []


@pytest.mark.parametrize(
    ("changes", "reason"),
    (
        ({"items": []}, Reason.MISSING_FIELD),
        ({"items": ...}, Reason.MISSING_FIELD),
        ({"items": {}}, Reason.WRONG_TYPE),
        ({"items": [{"position": 1}]}, Reason.MISSING_FIELD),
        ({"items": [{"item_id": 1}, {"item_id": 2.5}]}, Reason.WRONG_TYPE),
        ({"items": [{"item_id": 1}, {"item_id": ""}]}, Reason.BAD_ID),
        ({"items": [{"item_id": 1, "position": 2**40}]}, Reason.WRONG_TYPE),
        ({"items": [{"item_id": 1, "propensity": float("nan")}]}, Reason.NOT_FINITE),
        ({"context": 5}, Reason.WRONG_TYPE),
        ({"context": {"x": "ten"}}, Reason.WRONG_TYPE),
        ({"context": {"x": float("nan")}}, Reason.NOT_FINITE),
        ({"context": {"x": float("inf")}}, Reason.NOT_FINITE),
        ({"context": {"x": 1e300}}, Reason.NOT_FINITE),
        ({"context": {"x": 10**18}}, None),
        ({"context": {"tab": 1.5}}, Reason.WRONG_TYPE),
        ({"context": {"tab": float("nan")}}, Reason.NOT_FINITE),
        ({"context": {"tab": [1, 2]}}, Reason.WRONG_TYPE),
        ({"context": {"tab": 2**63}}, Reason.BAD_ID),
        ({"context": {"tags": [1, 0.5]}}, Reason.WRONG_TYPE),
        ({"context": {"tab": {"a": 1}}}, Reason.WRONG_TYPE),
        ({"context": {"unread": float("nan")}}, None),
    ),
)
def test_bad_impression_among_good_ones(changes: dict[str, Any], reason: Reason | None) -> None:
    decoder = impressions_decoder(multis=(multi("tags", "context.tags", 4),))
    shown = [{"item_id": 5}, {"item_id": 6}]
    bodies = [impression(items=shown), impression(**changes), impression(items=shown)]
    for value in (
        [encode_envelope("impressions", bodies)],
        [encode_event("impression", b) for b in bodies],
    ):
        columns = decoder.decode(batch_of(*value))
        good = EventKind.IMPRESSION
        middle = good if reason is None else EventKind.REJECTED
        assert reasons(columns) == ([] if reason is None else [reason])
        assert columns.kind_n.tolist() == [good, good, middle, good, good]
        m = int((columns.kind_n == good).sum())
        assert columns.impressions.ids_mF.shape == (m, 1)
        assert columns.imp_n[columns.imp_n >= 0].tolist() == list(range(m))
        assert np.isfinite(columns.impressions.dense_mX).all()


def cells(**changes: Any) -> dict[str, Any]:
    good = {
        "user_id": 1,
        "kind": "click",
        "item_id": np.array([1, 2], "<i8").tobytes(),
        "ts_ms": T0,
    }
    return {k: v for k, v in (good | changes).items() if v is not ...}


@pytest.mark.parametrize(
    ("columns", "reason"),
    (
        (cells(item_id=...), Reason.MISSING_FIELD),
        (cells(item_id=b"123"), Reason.WRONG_TYPE),
        (cells(item_id={"blob": b"ab", "offsets": b"\0\0\0\0"}), Reason.WRONG_TYPE),
        (
            cells(item_id={"blob": b"ab", "offsets": np.array([0, 3, 2], "<i4").tobytes()}),
            Reason.WRONG_TYPE,
        ),
        (
            cells(item_id={"blob": b"a\xff", "offsets": np.array([0, 1, 2], "<i4").tobytes()}),
            Reason.WRONG_TYPE,
        ),
        (cells(item_id={"f4": b"12345678"}), Reason.WRONG_TYPE),
        (cells(item_id=[1, 2]), Reason.WRONG_TYPE),
        (cells(item_id=1.5), Reason.WRONG_TYPE),
        (cells(ts_ms="now"), Reason.WRONG_TYPE),
        (cells(kind=5), Reason.WRONG_TYPE),
        (cells(kind={"f4": b"12345678"}), Reason.WRONG_TYPE),
        (cells(ts_ms=2**64 - 1), Reason.BAD_TIME),
        (cells(user_id=2**63), Reason.BAD_ID),
        (cells(user_id=""), Reason.BAD_ID),
    ),
)
def test_bad_columnar_envelope(columns: dict[str, Any], reason: Reason) -> None:
    value = packed(type="click_columns", n=2, columns=columns)
    good = packed(type="click_columns", n=2, columns=cells())
    got = clicks_decoder().decode(batch_of(good, value, good))
    assert set(reasons(got)) == {reason}
    assert {r.record for r in got.rejected} == {1}
    assert (got.kind_n[got.record_n != 1] == EventKind.ORGANIC).all()
    assert (got.kind_n[got.record_n == 1] == EventKind.REJECTED).all()


def test_bad_rows_of_a_columnar_envelope_leave_the_others() -> None:
    columns = {
        "request_id": np.arange(4),
        "user_id": np.array([1, 1, 2, 1]),
        "item_id": ["a", "", "c", "d"],
        "ts_ms": np.array([T0, T0, T0, 5]),
        "context.x": np.array([1.0, 1.0, 1.0, 1.0]),
    }
    value = encode_columns("impression_columns", 4, columns)
    got = impressions_decoder().decode(batch_of(value, keys=[b"1"]))
    assert [(r.index, r.reason) for r in got.rejected] == [
        (1, Reason.BAD_ID),
        (2, Reason.KEY_MISMATCH),
        (3, Reason.BAD_TIME),
    ]
    assert got.kind_n.tolist() == [EventKind.IMPRESSION] + [EventKind.REJECTED] * 3
    assert got.index_n.tolist() == [0, 1, 2, 3]


def test_not_finite_columnar_numbers() -> None:
    columns = {
        "request_id": np.arange(3),
        "user_id": 1,
        "item_id": 1,
        "ts_ms": T0,
        "context.x": np.array([1.0, np.nan, np.inf]),
    }
    got = impressions_decoder().decode(batch_of(encode_columns("impression_columns", 3, columns)))
    assert [(r.index, r.reason) for r in got.rejected] == [
        (1, Reason.NOT_FINITE),
        (2, Reason.NOT_FINITE),
    ]
    assert got.impressions.dense_mX.tolist() == [[1.0]]


def test_random_bytes_never_raise() -> None:
    rng = np.random.default_rng(1)
    clicks: ClickDecoder = clicks_decoder()
    impressions: ImpressionDecoder = impressions_decoder(ids=ids(tab="context.tab", f="features.f"))
    good = [
        encode_event("impression", impression()),
        encode_envelope("impressions", [impression(), impression()]),
        encode_columns(
            "impression_columns",
            2,
            {"request_id": 1, "user_id": 1, "item_id": ["a", "b"], "ts_ms": T0, "context.tab": "x"},
        ),
        encode_envelope("clicks", [click(), click(request_id=None)]),
        encode_columns("click_columns", 1, {"user_id": 1, "item_id": 2, "ts_ms": T0, "kind": "c"}),
    ]
    values = []
    for _ in range(2_000):
        value = bytearray(good[rng.integers(len(good))])
        for place in rng.integers(len(value), size=rng.integers(1, 4)):
            value[place] = rng.integers(256)
        values.append(bytes(value[: rng.integers(len(value) // 2, len(value) + 1)]))
    values += [rng.bytes(int(rng.integers(64))) for _ in range(500)]
    for decoder in (clicks, impressions):
        columns = decoder.decode(batch_of(*values))
        assert set(columns.record_n.tolist()) == set(range(len(values)))
        assert len(columns.rejected) == (columns.kind_n == EventKind.REJECTED).sum()
        assert (columns.request_n[columns.kind_n == EventKind.CLICK] != 0).all()


def items_of(*values: bytes | None, keys: list[bytes | None] | None = None) -> list[Any]:
    found = decode_items(batch_of(*values, keys=keys))
    return [
        (one.record, one.index, one.reason if isinstance(one, Rejected) else one.item.item_id)
        for one in found
    ]


def test_items_and_their_faults() -> None:
    good = item_body(item_id=5, ts_ms=T0, attributes={"a": 1})
    envelope = encode_envelope(
        "items", [good, {"item_id": 6}, item_body(item_id="x", ts_ms=T0, title="t", image=b"png")]
    )
    assert items_of(encode_event("item", good), envelope, None, b"\xc1") == [
        (0, 0, 5),
        (1, 0, 5),
        (1, 1, Reason.MISSING_FIELD),
        (1, 2, "x"),
        (2, -1, Reason.NULL_VALUE),
        (3, -1, Reason.MALFORMED),
    ]


@pytest.mark.parametrize(
    ("body", "reason"),
    (
        (item_body(item_id=2**63, ts_ms=T0), Reason.BAD_ID),
        (item_body(item_id="ü" * 200, ts_ms=T0), Reason.BAD_ID),
        (item_body(item_id=1, ts_ms=5), Reason.BAD_TIME),
        (item_body(item_id=1, ts_ms=T0 + 10**9), Reason.FUTURE_TIME),
        (item_body(item_id=1, ts_ms=T0, title=5), Reason.WRONG_TYPE),
        (item_body(item_id=1, ts_ms=T0, image=5), Reason.WRONG_TYPE),
        (item_body(item_id=1, ts_ms=T0, vectors={"v": "x"}), Reason.WRONG_TYPE),
    ),
)
def test_bad_item(body: dict[str, Any], reason: Reason) -> None:
    assert items_of(encode_event("item", body)) == [(0, 0, reason)]


def test_item_keys_must_agree() -> None:
    value = encode_event("item", item_body(item_id=5, ts_ms=T0))
    found = items_of(value, value, keys=[encode_key(5), encode_key(6)])
    assert found == [(0, 0, 5), (1, 0, Reason.KEY_MISMATCH)]


def test_item_content_is_read() -> None:
    body = item_body(
        item_id=1, ts_ms=T0, attributes={"tag": ["a"]}, text="t", image="file:a.png",
        vectors={"clip": [0.5, 1.0]},
    )  # fmt: skip
    (one,) = decode_items(batch_of(encode_event("item", body)))
    assert isinstance(one, ItemEvent)
    assert (one.item.text, one.item.image, one.item.vectors) == (
        "t",
        "file:a.png",
        {"clip": [0.5, 1.0]},
    )
