"""The compiled scan against msgspec's way: equal on whatever comes, and its hash the library's."""

from __future__ import annotations

import random
from typing import Any

import msgpack
import numpy as np
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from stream import scan_kernels as s
from stream.codec import ClickDecoder, DenseSource, ImpressionDecoder
from stream.codec_spec import ServedSource
from stream.keys import key_of, salted
from tests.support.examples import examples, tries
from tests.support.records import T0, batch_of, click, clicks_decoder, ids, impression
from tests.support.records import impressions_decoder as decoder_of

SPEC: dict[str, Any] = {
    "ids": ids(tab="context.tab", f="features.f", user="user", item="item", hour="impression.hour",
               day="impression.weekday", place="impression.position", own="item.attributes.a"),
    "dense": (DenseSource(name="x", path="context.x"), DenseSource(name="y", path="features.y")),
    "timezone_offset_minutes": -150, "max_future_ms": 100_000,
}  # fmt: skip


def without_scan(decoder: ImpressionDecoder | ClickDecoder) -> ImpressionDecoder | ClickDecoder:
    """The decoder, with msgspec for every record."""
    decoder._scanner._usable = False
    return decoder


def same(values: list[bytes], fast: Any, slow: Any) -> int:
    """Decode both ways, which must agree in everything; how many rows came by the scan."""
    batch = batch_of(*values)
    fast._scanner._skip = 0
    block, _ = fast._scanner.scan(batch)
    fast._scanner._skip = 0
    one, other = fast.decode(batch), slow.decode(batch)
    for name in ("kind_n", "ts_ms_n", "request_n", "item_n", "user_n", "click_kind_n", "record_n",
                 "index_n", "imp_n"):  # fmt: skip
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)
        assert getattr(one, name).dtype == getattr(other, name).dtype, name
    for name in ("ids_mF", "dense_mX", "position_m", "propensity_m"):
        mine, its = getattr(one.impressions, name), getattr(other.impressions, name)
        np.testing.assert_array_equal(mine, its, err_msg=name)
        assert mine.dtype == its.dtype, name
    assert one.rejected == other.rejected
    assert one.impressions.names == other.impressions.names
    return 0 if block is None else len(block.ts_ms_n)


IMPRESSIONS = decoder_of(**SPEC), without_scan(decoder_of(**SPEC))
WIDTH = 2
LOGGED = SPEC | {"served": ServedSource(name="tiers", width=WIDTH)}
SERVED = decoder_of(**LOGGED), without_scan(decoder_of(**LOGGED))
CLICKS = clicks_decoder(), without_scan(clicks_decoder())
NUMBERS = st.sampled_from((0, 1, 127, 128, -1, -32, -33, -129, 255, 256, 65_535, 65_536,
                           -32_769, 2**31, 2**32, -(2**31) - 1, 2**63 - 1, -(2**63), 2**63,
                           2**64 - 1))  # fmt: skip
SCALARS = st.one_of(
    NUMBERS, st.none(), st.booleans(), st.floats(), st.text(max_size=70),
    st.sampled_from(("ab", "(150,250]", "x" * 31, "x" * 32, "x" * 128, "x" * 129, "ü")),
    st.lists(st.none()),
)  # fmt: skip
MAPS = st.dictionaries(st.sampled_from(("tab", "x", "f", "y", "other", "tat")), SCALARS)
BODIES = st.builds(
    lambda **changes: impression(**changes),
    request_id=NUMBERS, user_id=NUMBERS, context=MAPS,
    ts_ms=st.sampled_from((T0, T0 + 1, T0 + 159_999, T0 + 160_001, 5, -1, 2**63)),
    items=st.lists(
        st.fixed_dictionaries({"item_id": NUMBERS}, optional={
            "position": NUMBERS, "features": MAPS, "propensity": st.sampled_from((None, 0.5)),
            "else": SCALARS,
        }), max_size=3,
    ),
    served=st.one_of(st.just(...), MAPS),
)  # fmt: skip


@examples(200)
@given(st.lists(BODIES, min_size=1, max_size=4), st.booleans())
def test_impressions_are_those_of_msgspec(bodies: list[dict[str, Any]], enveloped: bool) -> None:
    kind = {"v": 1, "type": "impressions" if enveloped else "impression"}
    if enveloped:
        values = [msgpack.packb(kind | {"events": bodies}) for _ in range(2)]
    else:
        values = [msgpack.packb(kind | body) for body in bodies]
    same(values, *IMPRESSIONS)


VERSIONS = st.one_of(st.sampled_from(("a", "simtier-1", "x" * 100)), SCALARS)
NUMBERS_LOGGED = st.one_of(
    st.integers(0, 20), st.floats(width=32), st.floats(allow_nan=False), NUMBERS,
    st.sampled_from((2**24 + 1, 2**53 + 1, 1e-40, 3.4028235677973366e38, -0.0)),
)  # fmt: skip


@st.composite
def logged_bodies(draw: st.DrawFn) -> dict[str, Any]:
    """Impressions with what a server logged: mostly as it should be, now and then otherwise."""
    items = draw(st.lists(st.just({"item_id": 4}), min_size=1, max_size=3))
    n = WIDTH * len(items)
    small = st.lists(st.integers(0, 20), min_size=n, max_size=n)
    fitting = st.lists(NUMBERS_LOGGED, min_size=n, max_size=n)
    single = st.lists(st.floats(width=32), min_size=n, max_size=n)
    values = draw(st.one_of(
        small, fitting, small.map(lambda some: np.array(some, "<f4").tobytes()),
        single.map(lambda some: np.array(some, "<f4").tobytes()),
        st.lists(st.one_of(NUMBERS_LOGGED, SCALARS), max_size=7), st.binary(max_size=25), SCALARS,
    ))  # fmt: skip
    features = {"other": draw(SCALARS), "tiers": values, "tierz": [1]}
    names = draw(st.sampled_from((("tiers",), ("other", "tiers", "tierz"), ("other",))))
    served = {
        "model": draw(SCALARS),
        "feature_version": draw(VERSIONS),
        "features": draw(st.sampled_from(({k: features[k] for k in names},) * 5 + (7,))),
    }
    gone = draw(st.sampled_from((None, None, None, "model", "feature_version", "features")))
    served.pop(gone or "", None)
    body = impression(items=items, served=draw(st.sampled_from((served,) * 5 + (None, ...))))
    return dict(reversed(body.items())) if draw(st.booleans()) else body


@examples(300)
@given(st.lists(logged_bodies(), min_size=1, max_size=4), st.booleans(), st.booleans())
def test_logged_numbers_are_those_of_msgspec(
    bodies: list[dict[str, Any]], enveloped: bool, single_floats: bool
) -> None:
    kind = {"v": 1, "type": "impressions" if enveloped else "impression"}
    events = [{"events": bodies}] if enveloped else bodies
    values = [
        msgpack.packb(kind | event, use_single_float=single_floats and fits_single(event))
        for event in events
    ]
    same(values, *SERVED)
    same(values, *IMPRESSIONS)  # who does not read them


def fits_single(value: Any) -> bool:
    """Whether all floats within are of 32 bits: else msgpack raises."""
    if isinstance(value, dict):
        return all(map(fits_single, value.values()))
    if isinstance(value, list):
        return all(map(fits_single, value))
    return not isinstance(value, float) or not np.isfinite(value) or abs(value) < 3e38


@examples(100)
@given(
    st.lists(
        st.builds(
            click, request_id=st.one_of(NUMBERS, st.none(), st.just(...)), user_id=NUMBERS,
            item_id=NUMBERS, kind=st.sampled_from(("click", "like", "lika", "", "other")),
            ts_ms=st.sampled_from((T0, 1, 2**62)), more=st.one_of(st.just(...), SCALARS),
        ), min_size=1, max_size=4,
    )
)  # fmt: skip
def test_clicks_are_those_of_msgspec(bodies: list[dict[str, Any]]) -> None:
    values = [msgpack.packb({"v": 1, "type": "click"} | body) for body in bodies]
    same([*values, msgpack.packb({"v": 1, "type": "clicks", "events": bodies})], *CLICKS)


def good_values() -> tuple[list[bytes], list[bytes]]:
    """Usual impressions and clicks, single and in envelopes."""
    shown = [
        impression(
            request_id=10**15 + i, context={"tab": i % 3, "wide": "y" * 40, "x": 0.5 * i, "n": [1]},
            items=[{"item_id": 70_000 * j, "position": j, "features": {"f": "(1,2]", "y": j}}
                   for j in range(1 + i % 3)],
        ) for i in range(6)
    ]  # fmt: skip
    clicks = [click(request_id=10**15 + i, kind=("click", "like")[i % 2]) for i in range(6)]
    both = []
    for name, bodies in (("impression", shown), ("click", clicks)):
        single = [msgpack.packb({"v": 1, "type": name} | body) for body in bodies]
        both.append([*single, msgpack.packb({"v": 1, "type": name + "s", "events": bodies})])
    return both[0], both[1]


def good_logged() -> list[bytes]:
    """Usual impressions with logged numbers in each way that is written, and without."""
    ways: tuple[Any, ...] = (
        lambda n: list(range(n)), lambda n: [0.1 * i for i in range(n)],
        lambda n: np.arange(n, dtype="<f4").tobytes(), lambda n: ([-1, 70_000] * n)[:n],
        lambda _: None,
    )  # fmt: skip
    bodies: list[dict[str, Any]] = []
    for i, way in enumerate(ways):
        items = [{"item_id": j} for j in range(1 + i % 3)]
        served = {"model": "m", "feature_version": f"v{'x' * 25 * i}",
                  "features": {"other": [1], "tiers": way(WIDTH * len(items))}}  # fmt: skip
        bodies += [
            impression(request_id=i, items=items, served=served),
            {"served": served} | impression(request_id=10 + i, items=items),
        ]
    bodies += [impression(request_id=20), impression(request_id=21, served=None)]
    bodies.append(impression(request_id=22, served={"feature_version": "v", "features": {}}))
    single = [msgpack.packb({"v": 1, "type": "impression"} | body) for body in bodies]
    envelope = msgpack.packb({"v": 1, "type": "impressions", "events": bodies})
    floats = msgpack.packb({"v": 1, "type": "impression"} | bodies[2], use_single_float=True)
    return [*single, envelope, floats]


def test_usual_logged_numbers_come_by_the_scan() -> None:
    values = good_logged()
    assert same(values, *SERVED) == 2 * (2 * (1 + 2 + 3 + 1 + 2) + 3) + 2
    columns = SERVED[0].decode(batch_of(*values)).impressions
    assert (columns.ids_mF[:, -1] != 0).sum() == 2 * 2 * (1 + 2 + 3 + 1) + 2
    assert columns.dense_mX[:, -WIDTH:].max() == np.float32(70_000)


def test_logged_numbers_that_are_cut_off_are_judged_by_msgspec() -> None:
    for value in good_logged()[1:8:3]:
        for end in range(1, len(value)):
            same([value[:end]], *SERVED)


def test_usual_records_come_by_the_scan() -> None:
    """All of them: else this file compares msgspec with itself."""
    shown, clicks = good_values()
    assert same(shown, *IMPRESSIONS) == 2 * sum(1 + i % 3 for i in range(6))
    assert same(clicks, *CLICKS) == 12


def test_damaged_bytes_are_judged_by_msgspec() -> None:
    """Flipped, cut, doubled and inserted bytes: never another row than msgspec's."""
    rng = random.Random(11)
    ways = (*good_values(), good_logged())
    for values, decoders in zip(ways, (IMPRESSIONS, CLICKS, SERVED), strict=True):
        for _ in range(tries(400)):
            damaged = bytearray(rng.choice(values))
            for _ in range(rng.choice((1, 1, 2))):
                at = rng.randrange(len(damaged))
                change = rng.randrange(4)
                if change == 0:
                    damaged[at] = rng.randrange(256)
                elif change == 1:
                    damaged[at:at] = bytes([rng.randrange(256)])
                elif change == 2:
                    del damaged[at : at + rng.randrange(1, 9)]
                else:
                    damaged[at:at] = damaged[at : at + rng.randrange(1, 30)]
                damaged = damaged or bytearray(b"\x80")
            same([values[0], bytes(damaged)], *decoders)


def test_hashes_and_keys_are_those_of_the_libraries() -> None:
    rng = random.Random(1)
    for n in range(1, s.TEXT_BYTES_MAX + 1):
        text = rng.randbytes(n)
        got = s.xxh3(np.frombuffer(b"??" + text + b"?", np.uint8), 2, n)
        assert int(np.uint64(got)) == xxhash.xxh3_64_intdigest(text), n
    for value in (0, 1, -1, 2**62, -(2**63), 2**63 - 1):
        assert s.key_of_int(value) == key_of(value)
        assert s.salted_key(value, -77) == salted(np.array([value]), np.int64(-77))[0]
