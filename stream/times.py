"""Times as people write them to UTC milliseconds. Reads no clock."""

from __future__ import annotations

import datetime as dt

from infra.errors import InputError


def time_ms(text: str) -> int:
    """UTC milliseconds of an ISO 8601 time (UTC where it names no offset) or of digits.

    Raises InputError for anything else.
    """
    if text.isdecimal():
        return int(text)
    try:
        time = dt.datetime.fromisoformat(text)
    except ValueError:
        raise InputError(
            f"time '{text}': expected ISO 8601 such as 2022-04-30T00:00+08:00, or UTC milliseconds"
        ) from None
    if time.tzinfo is None:
        time = time.replace(tzinfo=dt.UTC)
    return round(time.timestamp() * 1000)
