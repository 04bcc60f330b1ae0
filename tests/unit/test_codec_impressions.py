"""Impressions to columns: fields, several items, several values, columnar envelopes, mixtures."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from stream.codec import ClickDecoder, DecodeSpec, DenseSource
from stream.codec_write import encode_columns, encode_envelope, encode_event, encode_watermark
from stream.columns import EventKind, Reason
from stream.events import TopicRole
from stream.keys import ints_of_keys, key_of, key_of_str, keys_of_ints, salt_of, salted
from tests.support.records import T0, batch_of, ids, impression, impressions_decoder, multi


def key(name: str, value: Any) -> int:
    plain = 0 if value is None else key_of(value)
    return int(salted(np.array([plain]), salt_of(name))[0])


def one(body: dict[str, Any]) -> bytes:
    return encode_event("impression", body)


def test_ids_of_all_types_and_missing_ones() -> None:
    decoder = impressions_decoder(ids=ids(tab="context.tab"), dense=())
    values = [3, "home", True, 4.0, None, 3]
    bodies = [impression(context={"tab": value}) for value in values] + [impression(context={})]
    columns = decoder.decode(batch_of(*map(one, bodies)))
    assert columns.rejected == []
    expected = [key("tab", v) for v in (3, "home", 1, 4, None, 3, None)]
    assert columns.impressions.ids_mF[:, 0].tolist() == expected
    assert 0 not in expected


def test_nullable_integers_keep_their_keys() -> None:
    decoder = impressions_decoder(ids=ids(a="context.a"), dense=())
    columns = decoder.decode(batch_of(*(one(impression(context={"a": v})) for v in (5, None, 7))))
    assert columns.impressions.ids_mF[:, 0].tolist() == [key("a", v) for v in (5, None, 7)]


def test_user_item_position_and_time_are_fields() -> None:
    spec = ids(
        u="user", i="item", p="impression.position", h="impression.hour", d="impression.weekday"
    )
    decoder = impressions_decoder(
        ids=spec,
        dense=(DenseSource(name="hour", path="impression.hour"),),
        timezone_offset_minutes=480,
    )
    time = 1_651_248_000_000  # 2022-04-29T16:00Z: midnight of Saturday in UTC+8
    body = impression(ts_ms=time, items=[{"item_id": 9, "position": 5}])
    columns = decoder.decode(batch_of(one(body), timestamp_ms=time))
    expected = [key("u", 2), key("i", 9), key("p", 5), key("h", 0), key("d", 5)]
    assert columns.impressions.ids_mF.tolist() == [expected]
    assert columns.impressions.dense_mX.tolist() == [[0.0]]


def test_item_paths_stay_empty() -> None:
    decoder = impressions_decoder(
        ids=ids(a="item.attributes.author", tab="context.tab"),
        multis=(multi("tags", "item.attributes.tag", 2),),
        dense=(DenseSource(name="len", path="item.attributes.length"),),
    )
    columns = decoder.decode(batch_of(one(impression())))
    assert columns.impressions.ids_mF.tolist() == [[0, key("tab", 3)]]
    assert columns.impressions.multi_mM[0].tolist() == [[0, 0]]
    assert columns.impressions.dense_mX.tolist() == [[0.0]]


def test_several_values_are_cut_and_padded() -> None:
    decoder = impressions_decoder(multis=(multi("tags", "context.tags", 3),), ids=())
    lists: list[Any] = [["a", None, 1], [1, 2, 3, 4], "x,y", None, []]
    columns = decoder.decode(batch_of(*(one(impression(context={"tags": v})) for v in lists)))
    k = {v: key("tags", v) for v in ("a", 1, 2, 3, "x,y")}
    assert columns.impressions.multi_mM[0].tolist() == [
        [k["a"], k[1], 0],
        [k[1], k[2], k[3]],
        [k["x,y"], 0, 0],
        [0, 0, 0],
        [0, 0, 0],
    ]


def test_items_of_a_request_are_neighbours_with_their_own_features() -> None:
    decoder = impressions_decoder(
        ids=ids(tab="context.tab", f="features.f"),
        dense=(DenseSource(name="x", path="features.x"),),
    )
    shown = [
        {"item_id": 10, "features": {"f": "p", "x": 1}},
        {"item_id": 11, "features": {"x": 2.5}, "propensity": 0.25},
    ]
    columns = decoder.decode(
        batch_of(one(impression(items=shown)), one(impression(request_id=8, context={"tab": 6})))
    )
    assert columns.rejected == []
    assert ints_of_keys(columns.request_n).tolist() == [1, 1, 8]
    assert ints_of_keys(columns.item_n).tolist() == [10, 11, 4]
    assert columns.record_n.tolist() == [0, 0, 1]
    assert columns.index_n.tolist() == [0, 1, 0]
    got = columns.impressions
    assert got.position_m.tolist() == [0, 1, 0]
    assert got.ids_mF.tolist() == [
        [key("tab", 3), key("f", "p")],
        [key("tab", 3), key("f", None)],
        [key("tab", 6), key("f", None)],
    ]
    assert got.dense_mX.tolist() == [[1.0], [2.5], [0.0]]
    assert np.isnan(got.propensity_m).tolist() == [True, False, True]
    assert got.propensity_m[1] == np.float32(0.25)


def test_string_ids_are_kept_as_names() -> None:
    decoder = impressions_decoder()
    bodies = [impression(), impression(request_id="r", user_id="u", items=[{"item_id": "i"}])]
    columns = decoder.decode(batch_of(*map(one, bodies)))
    assert columns.impressions.names == [None, ("r", "i", "u")]
    assert columns.request_n.tolist() == [key_of(1), key_of_str("r")]
    assert columns.user_n.tolist() == [key_of(2), key_of_str("u")]
    assert columns.item_n.tolist() == [key_of(4), key_of_str("i")]


def rows_and_columns() -> tuple[bytes, bytes, int]:
    n = 6
    tabs, prices = [1, 2, 1, 1, 5, 6], [0.5, 1.5, 2.5, 3.5, 4.5, 5.5]
    lang = ["de", "en", "de", "fr", "en", "de"]
    bodies = [
        impression(
            request_id=100 + i,
            user_id=7,
            ts_ms=T0 + i,
            context={"tab": tabs[i], "lang": lang[i], "const": "x"},
            items=[{"item_id": f"i{i}", "position": i, "features": {"price": prices[i]}}],
        )
        for i in range(n)
    ]
    columns = {
        "request_id": np.arange(100, 100 + n),
        "user_id": 7,
        "ts_ms": np.arange(T0, T0 + n),
        "item_id": [f"i{i}" for i in range(n)],
        "position": np.arange(n),
        "context.tab": np.array(tabs),
        "context.lang": lang,
        "context.const": "x",
        "features.price": np.array(prices),
    }
    return (
        encode_envelope("impressions", bodies),
        encode_columns("impression_columns", n, columns),
        n,
    )


def test_columnar_and_row_form_give_the_same_columns() -> None:
    decoder = impressions_decoder(
        ids=ids(tab="context.tab", lang="context.lang", c="context.const", no="context.absent"),
        multis=(multi("m", "context.lang", 2),),
        dense=(
            DenseSource(name="p", path="features.price"),
            DenseSource(name="t", path="context.tab"),
        ),
    )
    rows, columnar, n = rows_and_columns()
    a, b = decoder.decode(batch_of(rows)), decoder.decode(batch_of(columnar))
    assert a.rejected == b.rejected == []
    for name in (
        "kind_n",
        "ts_ms_n",
        "request_n",
        "item_n",
        "user_n",
        "record_n",
        "index_n",
        "imp_n",
    ):
        assert np.array_equal(getattr(a, name), getattr(b, name)), name
    for name in ("ids_mF", "dense_mX", "position_m"):
        assert np.array_equal(getattr(a.impressions, name), getattr(b.impressions, name)), name
    assert np.array_equal(a.impressions.multi_mM[0], b.impressions.multi_mM[0])
    assert a.impressions.names == b.impressions.names == [(100 + i, f"i{i}", 7) for i in range(n)]


def test_neighbouring_columnar_rows_of_one_request_count_positions() -> None:
    columns = {
        "request_id": np.array([5, 5, 6, 5]),
        "user_id": 1,
        "ts_ms": T0,
        "item_id": np.array([1, 2, 3, 4]),
    }
    got = impressions_decoder().decode(batch_of(encode_columns("impression_columns", 4, columns)))
    assert got.impressions.position_m.tolist() == [0, 1, 0, 0]


def test_forms_mix_in_record_order() -> None:
    rows, columnar, n = rows_and_columns()
    single = one(impression(request_id=55))
    values = (single, columnar, encode_watermark(T0 + 9), b"\xc1", rows, single)
    columns = impressions_decoder().decode(batch_of(*values))
    counts = [1, n, 1, 1, n, 1]
    assert columns.record_n.tolist() == [r for r, c in enumerate(counts) for _ in range(c)]
    assert columns.index_n.tolist() == [i for c in counts for i in range(c)]
    kinds = [EventKind.IMPRESSION] * (1 + n) + [EventKind.WATERMARK, EventKind.REJECTED]
    assert columns.kind_n.tolist() == kinds + [EventKind.IMPRESSION] * (n + 1)
    shown = columns.kind_n == EventKind.IMPRESSION
    assert sorted(columns.imp_n[shown].tolist()) == list(range(2 * n + 2))
    assert (columns.imp_n[~shown] == -1).all()
    tab = columns.impressions.ids_mF[columns.imp_n[-1], 0]
    assert tab == key("tab", 3)
    assert [(r.record, r.index, r.reason) for r in columns.rejected] == [(3, -1, Reason.MALFORMED)]


def test_an_empty_batch_has_no_rows() -> None:
    columns = impressions_decoder().decode(batch_of())
    assert len(columns) == 0
    assert columns.impressions.ids_mF.shape == (0, 1)


def test_columns_are_the_same_for_any_cut() -> None:
    values = [one(impression(request_id=i, context={"tab": f"t{i % 3}"})) for i in range(20)]
    whole = impressions_decoder().decode(batch_of(*values))
    decoder = impressions_decoder()
    parts = [decoder.decode(batch_of(*values[i : i + 7])) for i in range(0, 20, 7)]
    for name in ("request_n", "item_n", "user_n", "ts_ms_n"):
        joined = np.concatenate([getattr(part, name) for part in parts])
        assert np.array_equal(getattr(whole, name), joined), name
    joined = np.concatenate([part.impressions.ids_mF for part in parts])
    assert np.array_equal(whole.impressions.ids_mF, joined)


def test_unread_fields_are_counted_on_sampled_records() -> None:
    body = impression(context={"tab": 1, "extra": 2}, surprise=1)
    values = [one(body)] * 65
    columns = impressions_decoder().decode(batch_of(*values))
    assert columns.unknown_fields == {"context.extra": 2, "surprise": 2}  # offsets 0 and 64
    later = impressions_decoder().decode(batch_of(*values[:10], first_offset=1))
    assert later.unknown_fields == {}
    assert columns.rejected == []


@pytest.mark.parametrize(
    ("sources", "text"),
    (
        ({"ids": ids(a="contxt.tab")}, "unknown path 'contxt.tab'"),
        ({"dense": (DenseSource(name="a", path="user"),)}, "cannot be dense"),
        ({"multis": (multi("a", "user", 3),)}, "not several"),
        ({"multis": (multi("a", "context.a", 0),)}, "length must be at least 1"),
        ({"events_max": 0}, "events_max"),
        ({"max_future_ms": -1}, "max_future_ms"),
    ),
)
def test_wrong_specs_are_refused(sources: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        DecodeSpec(role=TopicRole.IMPRESSIONS, **sources)


def test_a_spec_of_another_topic_is_refused() -> None:
    with pytest.raises(ValueError, match="expected a spec for clicks"):
        ClickDecoder(DecodeSpec(role=TopicRole.IMPRESSIONS))


def test_integer_keys_give_ids_back() -> None:
    numbers = np.array([0, -1, 2**63 - 1, -(2**63), 7])
    bodies = [impression(request_id=int(i)) for i in numbers]
    columns = impressions_decoder().decode(batch_of(*map(one, bodies)))
    assert np.array_equal(columns.request_n, keys_of_ints(numbers))
    assert np.array_equal(ints_of_keys(columns.request_n), numbers)
