"""Composition: a configuration to a pipeline with its store, learner and embedder (shell).

The only place that knows all of them; replay, worker, scoring and tests build through it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embeddings.blocks import BlockEncoder, Once
from embeddings.codebook_file import read_codebook
from embeddings.codes.codebook import CODES_PREFIX
from embeddings.embedder import Embedder, EmbedderConfig
from embeddings.encoders import catalog as encoder_catalog
from embeddings.encoders.projection import ProjectedEncoder, read_projection
from embeddings.encoders.protocol import Encoder
from embeddings.encoders.table import TableEncoder
from embeddings.fusion import FusionConfig, fused, read_means
from embeddings.vector_cache import VectorCacheConfig
from embeddings.vector_file import read_vector_file
from embeddings.vector_store import RocksVectorStore, RocksVectorStoreConfig
from embeddings.vectors import MemoryVectorStore, VectorStore
from infra import config as loader
from infra.errors import InputError
from learners import catalog
from learners.feature_spec import FeatureSpec
from learners.learner import Learner
from learners.net_learner import NetLearner
from learners.side_by_side import SideBySide
from stream.code_features import wanted_bags
from stream.config import CODES_PATH, Config, ItemsConfig, RankerConfig
from stream.feature_plan import ATTRIBUTE, FeaturePlan, plan
from stream.items import ItemTable, ItemTableConfig
from stream.pipeline import OnlinePipeline, Span, no_span
from stream.placebo import PermutedContent

DEFAULT_PRESET = "default"


@dataclass(frozen=True, slots=True, kw_only=True)
class Variation:
    """What a comparison changes: learners side by side, or vectors permuted among items.

    `arms`: rankers by name, all fed by one pipeline; empty: the configured one alone.
    `learner`: stands for the configured one. `permuted`: item keys whose vectors are permuted by
    `seed`; None: content stays as it is.
    """

    arms: Mapping[str, RankerConfig]
    permuted: NDArray[np.int64] | None = None
    seed: int = 0
    threads: int = 1
    learner: Learner | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Composition:
    """What a run consists of."""

    config: Config
    plan: FeaturePlan
    store: VectorStore
    embedder: Embedder
    pipeline: OnlinePipeline

    def close(self) -> None:
        """Close the store, and the threads of learners side by side."""
        self.store.close()
        if isinstance(self.pipeline.learner, SideBySide):
            self.pipeline.learner.close()


def load_config(file: str | None, overrides: tuple[str, ...]) -> Config:
    """The configuration of files or presets joined by `+`, with overrides `a.b=c`."""
    return loader.load(Config, loader.config_files(file or DEFAULT_PRESET), overrides)


def _encoders_of(items: ItemsConfig) -> dict[str, Encoder]:
    return encoder_catalog.build_all(items.encoders, items.encoder_options, items.encoder())


def raw_encoder_of(items: ItemsConfig, encoders: Mapping[str, Encoder] | None = None) -> Encoder:
    """The encoder of a configuration, fused from several if it names them, before any projection.

    `encoders`: those of `items.encoders`, where they are there already. Raises InputError where a
    file that it names, or an encoder, cannot be used.
    """
    if not items.vectors_file:
        return fused(
            encoders or _encoders_of(items),
            FusionConfig(dim=max(items.dim, 1), seed=items.seed, weights=items.weights),
            read_means(Path(items.mean_file)) if items.mean_file else None,
        )
    file = read_vector_file(Path(items.vectors_file))
    if file.dim != items.dim:
        raise InputError(
            f"items.vectors_file {items.vectors_file}: its vectors have {file.dim} numbers, but "
            f"items.dim is {items.dim}; set items.dim={file.dim}"
        )
    return TableEncoder(file)


def encoder_of(items: ItemsConfig) -> Encoder:
    """The encoder of a configuration, with its projection and what is kept beside it.

    Raises InputError where a file that it names cannot be used.
    """
    if not items.keep:
        return _main_encoder_of(items, None)
    shared: dict[str, Encoder] = {n: Once(e) for n, e in _encoders_of(items).items()}
    return BlockEncoder(
        _main_encoder_of(items, shared),
        {name: shared[name] for name in items.keep},
        items.keep,
        seed=items.seed,
        means=read_means(Path(items.mean_file)) if items.mean_file else None,
    )


def _main_encoder_of(items: ItemsConfig, encoders: Mapping[str, Encoder] | None) -> Encoder:
    """The encoder of the block ""."""
    if not items.projection:
        return raw_encoder_of(items, encoders)
    projection = read_projection(Path(items.projection))
    if projection.dim != items.dim:
        raise InputError(
            f"items.projection {items.projection}: its vectors have {projection.dim} numbers, but "
            f"items.dim is {items.dim}; set items.dim={projection.dim}"
        )
    raw = raw_encoder_of(replace(items, dim=projection.given_dim), encoders)
    return ProjectedEncoder(raw, projection)


def behaviour_until_ms(items: ItemsConfig) -> int | None:
    """The end of the behaviour that the item vectors were learned from, None where they were not.

    Raises InputError where a file that the configuration names cannot be used.
    """
    facts: list[Mapping[str, Any]] = []
    if items.vectors_file:
        facts.append(read_vector_file(Path(items.vectors_file)).facts)
    if items.projection:
        facts.append(read_projection(Path(items.projection)).facts)
    ends = [fact["until_ms"] for fact in facts if isinstance(fact.get("until_ms"), int)]
    return max(ends, default=None)


def embedder_of(config: Config) -> Embedder:
    """The embedder of a configuration: pure, so that replay and worker give the same vectors.

    Raises InputError where a file that it names cannot be used.
    """
    settings = EmbedderConfig(dtype=config.items.dtype, supplied=config.items.supplied)
    if not config.items.codebook:
        return Embedder(encoder_of(config.items), settings)
    path = Path(config.items.codebook)
    book = read_codebook(path)
    for f in config.feature:
        if f.path.startswith(CODES_PATH) and f.path.removeprefix(ATTRIBUTE) not in book.names:
            raise InputError(
                f"feature '{f.name}': codebook {path} has no '{f.path.removeprefix(ATTRIBUTE)}'; "
                f"expected one of {', '.join(book.names)}"
            )
    for bag in wanted_bags(config):
        if f"{CODES_PREFIX}{bag.code}" not in book.names:
            raise InputError(
                f"ranker.options.qarm: codebook {path} has no '{bag.code}'; expected some of "
                + ", ".join(name.removeprefix(CODES_PREFIX) for name in book.names)
            )
    return Embedder(encoder_of(config.items), settings, book)


def compose(
    config: Config,
    store_path: Path | None,
    *,
    span: Span = no_span,
    variation: Variation | None = None,
) -> Composition:
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
        dim=max(config.items.content_dim, 1),
        rows_max=config.items.cache_rows,
        # To turn int8 rows into numbers once, when they are read, is cheaper than in every batch.
        dtype="float32" if config.items.dtype == "float32" else "float16",
    )
    attributes = feature_plan.attributes
    variation = variation or Variation(arms={})
    table: Callable[..., ItemTable] = ItemTable
    if variation.permuted is not None:
        table = partial(PermutedContent, variation.permuted, variation.seed)
    items = table(
        store,
        ItemTableConfig(
            topic=config.topics.item_vectors, pending_bytes_max=config.items.pending_bytes_max
        ),
        cache,
        (*attributes.ids, *attributes.multis, *attributes.dense),
    )
    learner = variation.learner or _learner(
        config, feature_plan.spec, variation, embedder.version
    )
    device = getattr(learner, "device", None)
    on_device = device is not None and device.type != "cpu"
    pipeline = OnlinePipeline(
        feature_plan, learner, items, span=span, on_device=on_device,
        arms=max(1, len(variation.arms)),
    )  # fmt: skip
    return Composition(
        config=config, plan=feature_plan, store=store, embedder=embedder, pipeline=pipeline
    )


def _learner(config: Config, spec: FeatureSpec, variation: Variation, encoder: str) -> Learner:
    def build(ranker: RankerConfig, where: str) -> Learner:
        try:
            learner = catalog.build(ranker.name, spec, ranker_options(ranker.options))
            if isinstance(learner, NetLearner):
                for _, module in learner.net.modules_on:
                    module.check_content(encoder)
        except ValueError as error:
            raise InputError(f"{where}: {error}") from error
        if isinstance(learner, NetLearner):
            learner.reports_logits = config.stream.predict_at == "settle"
            learner.grows = ranker.grow
        return learner

    if not variation.arms:
        return build(config.ranker, "[ranker]")
    arms = {name: build(r, f"arm '{name}', [ranker]") for name, r in variation.arms.items()}
    return SideBySide(arms, threads=variation.threads)


def ranker_options(options: dict[str, Any]) -> dict[str, Any]:
    """Options of the learner as TOML gave them."""
    return dict(options)
