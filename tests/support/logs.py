"""Synthetic record logs for tests: two topics of two partitions, items with attributes."""

from __future__ import annotations

import random
from pathlib import Path

from stream.codec_write import encode_event, encode_key, item_body
from stream.record_log import RecordLogWriter
from tests.support.streams import T0, click, envelope, impression

HOUR_MS = 3_600_000


def write_log(path: Path, *, samples: int = 3_000, seed: int = 0, start_ms: int = 0) -> Path:
    """A log whose clicks depend on user and item, with duplicates, late and organic clicks."""
    rng = random.Random(seed)
    partitions = {"items": 1, "impressions": 2, "clicks": 2}
    rows: list[tuple[int, int, str, int, bytes | None, bytes | None]] = []
    for item in range(40):
        body = item_body(
            item_id=item, ts_ms=T0 + start_ms - 10_000, attributes={"tag": [f"t{item % 7}"]}
        )
        rows.append(
            (start_ms - 10_000, 0, "items", 0, encode_key(item), encode_event("item", body))
        )
    now = start_ms
    for number in range(samples):
        now += rng.choice((0, 50, 400, 2_000))
        user, item = rng.randrange(60), rng.randrange(40)
        request = (seed << 32) + number
        shown = impression(request, user, now, [item], tab=rng.randrange(3), city=f"c{user % 5}")
        rows += [(now, 2, "impressions", user % 2, *shown)] * rng.choice((1, 1, 1, 1, 2))
        if rng.random() < 0.2 + 0.6 * ((user * 7 + item * 3) % 5 == 0):
            delay = rng.choice((100, 900, 1_500, 3_000))
            event = click(user, item, now + delay, "click", request)
            rows.append((now + delay, 3, "clicks", user % 2, *event))
        if rng.random() < 0.1:
            rows.append((now, 3, "clicks", user % 2, *click(user, item, now, "watch")))
    rows.sort(key=lambda r: r[:4])
    offsets: dict[tuple[str, int], int] = {}
    with RecordLogWriter(path, partitions, ordered=True) as log:
        for ts, _, topic, partition, key, value in rows:
            offset = offsets.get((topic, partition), 0)
            offsets[topic, partition] = offset + 1
            log.write(topic, partition, offset, T0 + ts, key, value)
    return path


__all__ = ["envelope", "write_log"]
