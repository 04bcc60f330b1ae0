"""The bundled slice of a public data set, for the demonstration. Reads nothing of it."""

from __future__ import annotations

from pathlib import Path

DATA_SET = "kuairand"
"""The importer that reads it."""

SLICE = Path(__file__).parent / "kuairand"
"""Folder that the importer reads; its ATTRIBUTION.md and LICENSE go with it."""

PRESET = "kuairand"
"""The configuration that fits it."""

EVALUATE_FROM = "2022-04-30T00:00"
"""Metrics of the demonstration start here, when the model has seen five days."""
