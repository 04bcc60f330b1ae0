"""Clicks and organic events to columns."""

from __future__ import annotations

import numpy as np

from stream.codec import ClickDecoder, DecodeSpec
from stream.codec_write import encode_columns, encode_envelope, encode_event, encode_key
from stream.columns import EventKind
from stream.events import TopicRole
from stream.keys import ints_of_keys, key_of, key_of_str
from tests.support.records import T0, batch_of, click, clicks_decoder


def test_kinds_are_numbered_as_configured() -> None:
    bodies = [click(kind=kind) for kind in ("like", "click", "share")]
    columns = clicks_decoder().decode(batch_of(*(encode_event("click", b) for b in bodies)))
    assert columns.click_kind_n.tolist() == [1, 0, -1]
    assert columns.kind_n.tolist() == [EventKind.CLICK] * 3
    assert (columns.imp_n == -1).all()


def test_open_kinds_are_numbered_as_they_come() -> None:
    spec = DecodeSpec(role=TopicRole.CLICKS, click_kinds=("click",))
    decoder = ClickDecoder(spec, open_kinds=True)
    bodies = [click(kind=kind) for kind in ("share", "click", "share", "like")]
    columns = decoder.decode(batch_of(encode_envelope("clicks", bodies)))
    assert columns.click_kind_n.tolist() == [1, 0, 1, 2]
    assert decoder.kinds == ("click", "share", "like")


def test_clicks_and_organic_events_mix() -> None:
    bodies = [click(), click(request_id=...), click(request_id=None), click(request_id="r")]
    columns = clicks_decoder().decode(batch_of(encode_envelope("clicks", bodies)))
    assert columns.rejected == []
    organic, joined = EventKind.ORGANIC, EventKind.CLICK
    assert columns.kind_n.tolist() == [joined, organic, organic, joined]
    assert columns.request_n.tolist() == [key_of(1), 0, 0, key_of_str("r")]


def test_integer_clicks_and_organic_events_mix() -> None:
    bodies = [click(request_id=0), click(request_id=None)]
    columns = clicks_decoder().decode(batch_of(encode_envelope("clicks", bodies)))
    assert columns.kind_n.tolist() == [EventKind.CLICK, EventKind.ORGANIC]
    assert columns.request_n.tolist() == [key_of(0), 0]


def test_columnar_and_row_form_give_the_same_columns() -> None:
    n = 5
    bodies = [
        click(request_id=i, item_id=f"i{i}", user_id=9, ts_ms=T0 + i, kind="like") for i in range(n)
    ]
    columns = {
        "request_id": np.arange(n),
        "item_id": [f"i{i}" for i in range(n)],
        "user_id": 9,
        "ts_ms": np.arange(T0, T0 + n),
        "kind": ["like"] * n,
    }
    decoder = clicks_decoder()
    a = decoder.decode(batch_of(encode_envelope("clicks", bodies), keys=[b"9"]))
    b = decoder.decode(batch_of(encode_columns("click_columns", n, columns), keys=[b"9"]))
    assert a.rejected == b.rejected == []
    for name in ("kind_n", "ts_ms_n", "request_n", "item_n", "user_n", "click_kind_n", "index_n"):
        assert np.array_equal(getattr(a, name), getattr(b, name)), name


def test_many_columnar_organic_envelopes() -> None:
    values = [
        encode_columns(
            "click_columns",
            n,
            {
                "user_id": n,
                "kind": "watch",
                "item_id": np.arange(n),
                "ts_ms": np.arange(T0, T0 + n),
            },
        )
        for n in range(1, 40)
    ]
    keys = [encode_key(n) for n in range(1, 40)]
    columns = clicks_decoder().decode(batch_of(*values, keys=keys))
    assert columns.rejected == []
    assert len(columns) == sum(range(1, 40))
    assert (columns.kind_n == EventKind.ORGANIC).all()
    assert (columns.request_n == 0).all()
    assert (columns.click_kind_n == -1).all()
    assert np.array_equal(ints_of_keys(columns.user_n), columns.record_n + 1)
    assert np.array_equal(ints_of_keys(columns.item_n), columns.index_n)


def test_columnar_clicks_beside_columnar_organic_events() -> None:
    common = {"user_id": 1, "kind": "click", "item_id": np.array([5, 6]), "ts_ms": T0}
    values = [
        encode_columns("click_columns", 2, common),
        encode_columns("click_columns", 2, {**common, "request_id": ["a", "b"]}),
        encode_columns("click_columns", 2, {**common, "request_id": 3}),
    ]
    columns = clicks_decoder().decode(batch_of(*values))
    assert columns.rejected == []
    assert columns.kind_n.tolist() == [EventKind.ORGANIC] * 2 + [EventKind.CLICK] * 4
    expected = [0, 0, key_of_str("a"), key_of_str("b"), key_of(3), key_of(3)]
    assert columns.request_n.tolist() == expected
