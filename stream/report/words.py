"""Numbers, times and names as a page writes them. Decides nothing about their meaning."""

from __future__ import annotations

import datetime as dt
import html
from collections.abc import Mapping
from typing import Any

Value = Mapping[str, Any]

MISSING = "–"
MINUS = "\u2212"
_NAME_LENGTH = 60


def escape(text: object) -> str:
    """Text as HTML shows it, and as Plotly's labels do, which read tags as well."""
    return html.escape(str(text), quote=True)


def short_name(text: object, length: int = _NAME_LENGTH) -> str:
    """Escaped text of at most `length` characters."""
    name = str(text)
    return escape(name if len(name) <= length else name[: length - 1] + "…")


def number(value: float | None, digits: int = 4) -> str:
    """`0.5829`; a dash for null."""
    return MISSING if value is None else f"{value:,.{digits}f}".replace("-", MINUS)


def signed(value: float | None, digits: int = 4) -> str:
    """`+0.0031`; a dash for null. What rounds to zero has no sign."""
    if value is None:
        return MISSING
    text = f"{value:+,.{digits}f}"
    return text[1:] if float(text.replace(",", "")) == 0 else text.replace("-", MINUS)


def interval(row: Value, digits: int = 4) -> str:
    """`[−0.0081, −0.0063]` of `low` and `high`; a dash where one is null."""
    low, high = row.get("low"), row.get("high")
    if low is None or high is None:
        return MISSING
    return f"[{signed(low, digits)}, {signed(high, digits)}]"


def count(value: float | None) -> str:
    """`59,908`; a dash for null."""
    return MISSING if value is None else f"{value:,.0f}"


def percent(share: float | None, digits: int = 1) -> str:
    """`12.3 %` of a share of one; a dash for null."""
    return MISSING if share is None else f"{share * 100:.{digits}f} %"


def ratio(part: float | None, whole: float | None) -> float | None:
    """`part / whole`, or None where that means nothing."""
    return None if part is None or not whole else part / whole


def duration(ms: float | None) -> str:
    """`10 min` of milliseconds, in the largest unit that is at least one."""
    if ms is None:
        return MISSING
    for name, size in (("d", 86_400_000), ("h", 3_600_000), ("min", 60_000), ("s", 1_000)):
        if ms >= size:
            return f"{ms / size:.3g} {name}"
    return f"{ms:g} ms"


def zone(offset_minutes: int) -> str:
    """`UTC+08:00` of minutes ahead of UTC."""
    if not offset_minutes:
        return "UTC"
    hours, minutes = divmod(abs(offset_minutes), 60)
    return f"UTC{'+' if offset_minutes > 0 else MINUS}{hours:02}:{minutes:02}"


def local_time(ts_ms: float, offset_minutes: int) -> str:
    """`2022-04-30 13:00:00` at the offset: what Plotly reads as a time without a zone."""
    # Added to the epoch, as fromtimestamp refuses years that broken clocks write.
    try:
        shifted = dt.timedelta(milliseconds=ts_ms, minutes=offset_minutes)
        return str((dt.datetime(1970, 1, 1) + shifted).replace(microsecond=0))  # noqa: DTZ001
    except OverflowError:
        return f"{ts_ms:.0f} ms"


def span(value: Value, offset_minutes: int) -> str:
    """`2022-04-30 00:00 to 2022-05-02 23:59 (UTC+08:00)`; a dash where there is none."""
    low, high = value.get("from_ms"), value.get("to_ms")
    if low is None or high is None:
        return MISSING
    texts = [local_time(ms, offset_minutes)[:16] for ms in (low, high)]
    return f"{texts[0]} to {texts[1]} ({zone(offset_minutes)})"
