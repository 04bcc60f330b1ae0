"""Decoders against a plain oracle: one dictionary an event, one key at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from stream.codec import DenseSource
from stream.codec_write import encode_envelope, encode_event
from stream.columns import EventColumns, EventKind
from stream.keys import key_of, salt_of, salted
from tests.support.examples import examples
from tests.support.records import T0, batch_of, clicks_decoder, ids, impressions_decoder, multi

IDS = st.one_of(
    st.integers(-(2**63), 2**63 - 1), st.integers(0, 3), st.text(min_size=1, max_size=20)
)
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**63), 2**63 - 1), st.integers(0, 3),
    st.sampled_from(["a", "b", ""]), st.sampled_from([0.0, 2.0, -7.0]),
)  # fmt: skip
NUMBERS = st.one_of(st.none(), st.integers(-(10**6), 10**6), st.floats(-1e6, 1e6))
CONTEXTS = st.fixed_dictionaries(
    {},
    optional={
        "a": SCALARS,
        "tags": st.one_of(SCALARS, st.lists(SCALARS, max_size=5)),
        "x": NUMBERS,
    },
)
SHOWN = st.fixed_dictionaries(
    {"item_id": IDS},
    optional={
        "position": st.integers(0, 9),
        "features": st.fixed_dictionaries({}, optional={"f": SCALARS}),
    },
)
IMPRESSIONS = st.fixed_dictionaries(
    {
        "request_id": IDS,
        "user_id": IDS,
        "ts_ms": st.integers(T0, T0 + 10**6),
        "items": st.lists(SHOWN, min_size=1, max_size=3),
    },
    optional={"context": CONTEXTS, "unread": SCALARS},
)
CLICKS = st.fixed_dictionaries(
    {
        "item_id": IDS,
        "user_id": IDS,
        "ts_ms": st.integers(T0, T0 + 10**6),
        "kind": st.sampled_from(["click", "like", "other"]),
    },
    optional={"request_id": st.one_of(st.none(), IDS)},
)
DECODER = impressions_decoder(
    ids=ids(a="context.a", f="features.f", user="user"),
    multis=(multi("tags", "context.tags", 3),),
    dense=(DenseSource(name="x", path="context.x"),),
)


def plain(value: Any) -> int:
    """Plain key of a field's value."""
    if value is None:
        return 0
    return key_of(value) if isinstance(value, str) else key_of(int(value))


def field(name: str, value: Any) -> int:
    return int(salted(np.array([plain(value)]), salt_of(name))[0])


def messages(bodies: list[dict[str, Any]], type_: str, sizes: list[int]) -> list[bytes]:
    """The bodies as single events (size 0) and envelopes, in order."""
    values: list[bytes] = []
    rest = list(bodies)
    for size in [*sizes, *[0] * len(bodies)]:
        if not rest:
            return values
        take, rest = rest[: size or 1], rest[size or 1 :]
        values.append(
            encode_event(type_, take[0]) if size == 0 else encode_envelope(f"{type_}s", take)
        )
    return values


@examples(150)
@given(st.lists(IMPRESSIONS, max_size=8), st.lists(st.integers(0, 3), max_size=8))
def test_impressions_equal_the_oracle(bodies: list[dict[str, Any]], sizes: list[int]) -> None:
    columns = DECODER.decode(batch_of(*messages(bodies, "impression", sizes)))
    assert columns.rejected == []
    expected = [
        (
            key_of(body["request_id"]),
            key_of(item["item_id"]),
            key_of(body["user_id"]),
            body["ts_ms"],
            item.get("position", place),
            field("a", context.get("a")),
            field("f", item.get("features", {}).get("f")),
            field("user", body["user_id"]),
            tags(context.get("tags")),
            np.float32(context.get("x") or 0.0),
        )
        for body in bodies
        for context in [body.get("context", {})]
        for place, item in enumerate(body["items"])
    ]
    assert impression_rows(columns) == expected


def tags(value: Any) -> list[int]:
    values = value if isinstance(value, list) else [value]
    keys = [field("tags", one) for one in values if one is not None][:3]
    return keys + [0] * (3 - len(keys))


def impression_rows(columns: EventColumns) -> list[tuple[Any, ...]]:
    shown = columns.impressions
    return [
        (
            int(columns.request_n[n]),
            int(columns.item_n[n]),
            int(columns.user_n[n]),
            int(columns.ts_ms_n[n]),
            int(shown.position_m[m]),
            *(int(key) for key in shown.ids_mF[m]),
            shown.multi_mM[0][m].tolist(),
            shown.dense_mX[m, 0],
        )
        for n, m in enumerate(columns.imp_n)
    ]


@examples(150)
@given(st.lists(CLICKS, max_size=10), st.lists(st.integers(0, 3), max_size=10))
def test_clicks_equal_the_oracle(bodies: list[dict[str, Any]], sizes: list[int]) -> None:
    columns = clicks_decoder().decode(batch_of(*messages(bodies, "click", sizes)))
    assert columns.rejected == []
    numbers = {"click": 0, "like": 1, "other": -1}
    got = zip(
        columns.kind_n, columns.request_n, columns.item_n, columns.user_n, columns.ts_ms_n,
        columns.click_kind_n, strict=True,
    )  # fmt: skip
    assert [tuple(map(int, row)) for row in got] == [
        (
            EventKind.ORGANIC if body.get("request_id") is None else EventKind.CLICK,
            plain(body.get("request_id")),
            key_of(body["item_id"]),
            key_of(body["user_id"]),
            body["ts_ms"],
            numbers[body["kind"]],
        )
        for body in bodies
    ]


@examples(200)
@given(st.lists(st.binary(max_size=40), max_size=5), st.integers(0, 5))
def test_bytes_in_between_change_nothing_else(junk: list[bytes], place: int) -> None:
    good = [
        encode_event("click", {"item_id": i, "user_id": 1, "ts_ms": T0, "kind": "click"})
        for i in range(5)
    ]
    values = good[:place] + junk + good[place:]
    columns = clicks_decoder().decode(batch_of(*values))
    kept = columns.kind_n == EventKind.ORGANIC
    assert columns.item_n[kept].tolist() == [key_of(i) for i in range(5)]
    assert (~kept).sum() == len(columns.rejected) == len(junk)
