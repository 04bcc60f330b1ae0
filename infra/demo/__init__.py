"""The bundled slice of a public data set, for the demonstration. Reads nothing of it."""

from __future__ import annotations

from pathlib import Path

SLICE = Path(__file__).parent / "kuairand"
"""Folder that `millrace import kuairand` reads; its ATTRIBUTION.md and LICENSE go with it."""
