"""What a person should know of the item vectors of a finished run: foresight, and vectors missing.

Says it in lines; prints none and stops nothing.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from typing import Any

from stream.composition import behaviour_until_ms
from stream.config import Config, ItemsConfig

MISSING_SHARE = 0.5
"""A larger share of impressions without a vector is seldom meant."""


def notes_of(config: Config, evaluation: Mapping[str, Any]) -> list[str]:
    """Lines for a person: none where nothing is amiss.

    Raises InputError where a file that the configuration names cannot be used any more.
    """
    found = (_foresight(config.items, evaluation["from_ms"]), _missing(config.items, evaluation))
    return [line for line in found if line is not None]


def _foresight(items: ItemsConfig, from_ms: int | None) -> str | None:
    """Where item vectors were learned from behaviour inside the evaluated span."""
    until_ms = behaviour_until_ms(items)
    if until_ms is None or from_ms is None or from_ms >= until_ms:
        return None
    until = dt.datetime.fromtimestamp(until_ms / 1000, dt.UTC).isoformat()
    return (
        f"the item vectors were learned from behaviour until {until}: impressions before that "
        "are predicted with knowledge of the future; evaluate later ones (--evaluate-from)"
    )


def _missing(items: ItemsConfig, evaluation: Mapping[str, Any]) -> str | None:
    hours = [hour for hour in evaluation["missing"] if hour["missing_vector"] is not None]
    rows = sum(hour["samples"] for hour in hours)
    missing = sum(hour["missing_vector"] for hour in hours)
    if not items.dim or not rows or missing <= MISSING_SHARE * rows:
        return None
    source = (
        f"does items.vectors_file {items.vectors_file} have the log's item ids?"
        if items.vectors_file
        else "does the log have items, with what the encoder reads?"
    )
    return (
        f"{missing:,} of {rows:,} evaluated impressions had no item vector, and methods that read "
        f"vectors gave them nothing: {source}"
    )
