"""µs per event of decoding to columns, by form and by kind of id, beside msgspec alone.

Impressions with logged numbers (`served`) also with the compiled scan switched off.

Run: python -m tests.benchmarks.bench_codec. Prints CPU time, best of many runs; asserts nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any, Final

import numpy as np

from stream.codec_spec import ServedSource
from stream.codec_write import (
    click_body,
    encode_columns,
    encode_envelope,
    encode_event,
    encode_key,
    impression_body,
)
from tests.support.records import T0, batch_of, clicks_decoder, ids, impressions_decoder

EVENTS: Final = 10_000
RUNS: Final = 25
FIELDS: Final = tuple(f"f{i}" for i in range(10))


def micros(work: Callable[[], object]) -> float:
    """CPU time of one event, best of all runs."""
    best = float("inf")
    for _ in range(RUNS):
        started = time.process_time()
        work()
        best = min(best, time.process_time() - started)
    return best / EVENTS * 1e6


def id_of(number: int, *, text: bool) -> Any:
    return f"id-{number}" if text else number


def impressions(*, text: bool) -> list[dict[str, Any]]:
    """Impressions of one item with ten fields."""
    return [
        impression_body(
            request_id=id_of(i * 7_919, text=text),
            user_id=id_of(i % 5_000, text=text),
            ts_ms=T0 + i,
            context={name: id_of(k * i % 1_000, text=text) for k, name in enumerate(FIELDS)},
            items=[{"item_id": id_of(i % 999, text=text), "position": 0}],
        )
        for i in range(EVENTS)
    ]


def clicks(*, text: bool) -> list[dict[str, Any]]:
    """Clicks with a request."""
    return [
        click_body(
            request_id=id_of(i * 7_919, text=text),
            item_id=id_of(i % 999, text=text),
            user_id=id_of(i % 5_000, text=text),
            ts_ms=T0 + i,
            kind="click",
        )
        for i in range(EVENTS)
    ]


def measure_rows(name: str, bodies: list[dict[str, Any]], decoder: Any) -> None:
    """Single events with keys, and envelopes."""
    singles = batch_of(
        *(encode_event(name, body) for body in bodies),
        keys=[encode_key(body["user_id"]) for body in bodies],
    )
    print(f"  single          {micros(lambda: decoder.decode(singles)):.3f}")
    for size in (100, 1_000):
        values = [encode_envelope(f"{name}s", bodies[i : i + size]) for i in range(0, EVENTS, size)]
        batch = batch_of(*values)
        alone = micros(lambda batch=batch: list(map(decoder._forms.decode, batch.values)))
        whole = micros(lambda batch=batch: decoder.decode(batch))
        print(f"  envelope {size:5}  {whole:.3f}  (msgspec alone {alone:.3f})")


def measure_served() -> None:
    """Envelopes of 100 impressions with 40 logged numbers, by the way they are written."""
    n, size = 40, 100
    ways: dict[str, Callable[[int], Any]] = {
        "bytes": lambda i: (np.arange(n, dtype="<f4") % (i % 7 + 1)).tobytes(),
        "integers": lambda i: [j % (i % 7 + 1) for j in range(n)],
        "floats": lambda i: [float(j % (i % 7 + 1)) for j in range(n)],
    }
    plain = impressions(text=False)
    for name, way in {"nothing": None, **ways}.items():
        bodies = plain if way is None else [
            body | {"served": {"model": "m", "feature_version": "tiers-1/encoder-1",
                               "features": {"tiers": way(i)}}} for i, body in enumerate(plain)
        ]  # fmt: skip
        batch = batch_of(
            *(encode_envelope("impressions", bodies[i : i + size]) for i in range(0, EVENTS, size))
        )
        source = None if way is None else ServedSource(name="tiers", width=n)
        scanning, plainly = (
            impressions_decoder(ids=FIELD_IDS, dense=(), served=source) for _ in range(2)
        )
        plainly._scanner._usable = False
        took = micros(partial(scanning.decode, batch))
        without = micros(partial(plainly.decode, batch))
        print(f"  {name:10}  {took:.3f}  (without the scan {without:.3f})")


def measure_columns() -> None:
    """Columnar envelopes of integer ids."""
    rows = 100
    shown = [
        encode_columns(
            "impression_columns",
            rows,
            {
                "request_id": np.arange(i, i + rows),
                "user_id": np.arange(rows),
                "ts_ms": np.arange(T0 + i, T0 + i + rows),
                "item_id": np.arange(rows),
                "position": 0,
                **{f"context.{name}": np.arange(rows) for name in FIELDS},
            },
        )
        for i in range(0, EVENTS, rows)
    ]
    batch, decoder = batch_of(*shown), impressions_decoder(ids=FIELD_IDS, dense=())
    print(f"impressions, columnar {rows}  {micros(lambda: decoder.decode(batch)):.3f}")
    for rows in (31, 100):
        organic = [
            encode_columns(
                "click_columns",
                rows,
                {"user_id": i, "kind": "click", "item_id": np.arange(rows), "ts_ms": T0},
            )
            for i in range(EVENTS // rows)
        ]
        some, reader = batch_of(*organic), clicks_decoder()
        took = micros(lambda some=some, reader=reader: reader.decode(some))
        print(f"organic, columnar {rows:3}  {took:.3f}")


FIELD_IDS: Final = ids(
    user="user", item="item", hour="impression.hour", **{n: f"context.{n}" for n in FIELDS}
)


def main() -> None:
    """Print all figures."""
    for text in (False, True):
        what = "string" if text else "integer"
        print(f"impressions, ten fields, {what} ids")
        measure_rows(
            "impression", impressions(text=text), impressions_decoder(ids=FIELD_IDS, dense=())
        )
        print(f"clicks, {what} ids")
        measure_rows("click", clicks(text=text), clicks_decoder())
    print("impressions, ten fields, integer ids, envelopes of 100, 40 logged numbers as")
    measure_served()
    measure_columns()


if __name__ == "__main__":
    main()
