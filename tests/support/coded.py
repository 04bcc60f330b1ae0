"""A configuration whose ranker reads codes, and a codebook for the items of `logs.write_log`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from embeddings.codebook_file import write_codebook
from embeddings.codes.fit import FitConfig, fit
from embeddings.item_content import ItemContent
from stream.composition import embedder_of, encoder_of
from stream.config import Config
from tests.support.replays import ranked_config
from tests.support.streams import T0

QARM: Mapping[str, Any] = {"on": True, "codes": ["rq1", "prefix2"], "anchors": 2, "dim": 4}


def tag_book(path: Path) -> Path:
    """A release for the vectors of `write_log`'s seven tags: 2 x 4 codes, 5 anchors."""
    items = [ItemContent(item_id=i, ts_ms=T0, attributes={"tag": [f"t{i}"]}) for i in range(7)]
    config = ranked_config()
    rows = encoder_of(config.items).encode_many(items)[0]
    sizes = FitConfig(levels=2, size=4, anchors=5, anchors_of_vector=3)
    write_codebook(path, fit(rows, embedder_of(config).version, sizes))
    return path


def coded(
    book: Path, options: Mapping[str, Any] = QARM, *, items: Mapping[str, Any] | None = None,
    **tables: Any,
) -> Config:  # fmt: skip
    """The small configuration with the module `qarm` and a codebook."""
    ranker = {"name": "id_content", "label": "click", "options": {"qarm": dict(options)}}
    settings = {"dim": 16, "codebook": str(book), **(items or {})}
    return ranked_config(ranker=ranker, items=settings, **tables)
