"""Times as people write them."""

from __future__ import annotations

import pytest

from infra.errors import InputError
from stream.times import time_ms


@pytest.mark.parametrize(
    ("text", "expected"),
    (
        ("2022-04-30T00:00+08:00", 1_651_248_000_000),
        ("2022-04-29T16:00:00Z", 1_651_248_000_000),
        ("2022-04-29 16:00", 1_651_248_000_000),
        ("2022-04-29", 1_651_190_400_000),
        ("1651248000000", 1_651_248_000_000),
    ),
)
def test_iso_times_and_milliseconds(text: str, expected: int) -> None:
    assert time_ms(text) == expected


def test_other_text_is_refused() -> None:
    with pytest.raises(InputError, match="time 'yesterday': expected ISO 8601"):
        time_ms("yesterday")
