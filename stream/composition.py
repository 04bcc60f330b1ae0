"""Composition: a configuration to a pipeline with its store, learner and embedder (shell).

The only place that knows all of them; replay, worker, scoring and tests build through it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embeddings.embedder import Embedder, EmbedderConfig
from embeddings.encoders.attributes import AttributeEncoder
from embeddings.vector_cache import VectorCacheConfig
from embeddings.vector_store import RocksVectorStore, RocksVectorStoreConfig
from embeddings.vectors import MemoryVectorStore, VectorStore
from infra import config as loader
from infra.errors import InputError
from learners import catalog
from stream.config import Config
from stream.feature_plan import FeaturePlan, plan
from stream.items import ItemTable, ItemTableConfig
from stream.pipeline import OnlinePipeline, Span, no_span

DEFAULT_PRESET = "default"


@dataclass(frozen=True, slots=True, kw_only=True)
class Composition:
    """What a run consists of."""

    config: Config
    plan: FeaturePlan
    store: VectorStore
    embedder: Embedder
    pipeline: OnlinePipeline

    def close(self) -> None:
        """Close the store."""
        self.store.close()


def load_config(file: str | None, overrides: tuple[str, ...]) -> Config:
    """The configuration of a file or the preset of that name, with overrides `a.b=c`."""
    name = file or DEFAULT_PRESET
    path = Path(name)
    return loader.load(Config, [path if path.suffix else loader.preset_path(name)], overrides)


def embedder_of(config: Config) -> Embedder:
    """The embedder of a configuration: pure, so that replay and worker give the same vectors."""
    encoder = AttributeEncoder(config.items.encoder())
    return Embedder(encoder, EmbedderConfig(dtype=config.items.dtype))


def compose(config: Config, store_path: Path | None, *, span: Span = no_span) -> Composition:
    """A fresh pipeline; item vectors are kept in `store_path`, or in memory without one.

    Raises InputError where the learner's options do not fit, and what the store raises.
    """
    feature_plan = plan(config)
    embedder = embedder_of(config)
    store: VectorStore = (
        MemoryVectorStore(embedder.version)
        if store_path is None
        else RocksVectorStore(RocksVectorStoreConfig(path=store_path), embedder.version)
    )
    cache = VectorCacheConfig(
        dim=max(config.items.dim, 1), rows_max=config.items.cache_rows, dtype=config.items.dtype
    )
    attributes = feature_plan.attributes
    items = ItemTable(
        store,
        ItemTableConfig(
            topic=config.topics.item_vectors, pending_bytes_max=config.items.pending_bytes_max
        ),
        cache,
        (*attributes.ids, *attributes.multis, *attributes.dense),
    )
    try:
        learner = catalog.build(
            config.ranker.name, feature_plan.spec, ranker_options(config.ranker.options)
        )
    except ValueError as error:
        raise InputError(f"[ranker]: {error}") from error
    device = getattr(learner, "device", None)
    on_device = device is not None and device.type != "cpu"
    pipeline = OnlinePipeline(feature_plan, learner, items, span=span, on_device=on_device)
    return Composition(
        config=config, plan=feature_plan, store=store, embedder=embedder, pipeline=pipeline
    )


def ranker_options(options: dict[str, Any]) -> dict[str, Any]:
    """Options of the learner as TOML gave them."""
    return dict(options)
