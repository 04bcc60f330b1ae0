"""Composition: a configuration to a pipeline with its store, learner and embedder (shell).

The only place that knows all of them; replay, worker, scoring and tests build through it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
from learners.modules.histograms import NAME as SIMTIER
from learners.modules.histograms import Histograms
from learners.modules.simtier import SimTierConfig, histograms_of
from learners.net_learner import NetLearner
from learners.side_by_side import SideBySide
from stream.code_features import module_options, wanted_bags
from stream.config import CODES_PATH, Config, ItemsConfig, RankerConfig
from stream.feature_plan import ATTRIBUTE, FeaturePlan, plan, with_served
from stream.item_intake import ItemIntake
from stream.items import ItemTable, ItemTableConfig
from stream.pipeline import OnlinePipeline, Span, no_span
from stream.placebo import PermutedContent

DEFAULT_PRESET = "default"
NEXT_ITEMS = "items.next"
"""Name of the incoming item table's part."""


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
class Incoming:
    """A new encoder version beside the present one: its embedder and its own store."""

    items: ItemsConfig
    embedder: Embedder
    store: VectorStore


@dataclass(frozen=True, slots=True, kw_only=True)
class Composition:
    """What a run consists of."""

    config: Config
    plan: FeaturePlan
    store: VectorStore
    embedder: Embedder
    pipeline: OnlinePipeline
    incoming: Incoming | None = None
    histograms: Histograms | None = None
    """What a server is to log of this ranker's inputs, where the ranker reads it back."""

    def intake(self) -> ItemIntake:
        """What offers item records to the pipeline's tables."""
        if self.incoming is None:
            return ItemIntake(self.pipeline.items, self.embedder)
        new = (self.pipeline.tables[1], self.incoming.embedder)
        return ItemIntake(self.pipeline.items, self.embedder, new)

    def close(self) -> None:
        """Close the stores, and the threads of learners side by side."""
        self.store.close()
        if self.incoming is not None:
            self.incoming.store.close()
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
    embedder = embedder_of(config)
    incoming = _incoming(config, embedder, store_path)
    variation = variation or Variation(arms={})
    feature_plan = plan(config, incoming.items if incoming else None)
    rankers = [*variation.arms.values()] or [config.ranker]
    histograms = _histograms(rankers, feature_plan.spec)
    if histograms:
        feature_plan = with_served(feature_plan, histograms.layout)
    store = _store(store_path, embedder.version)
    attributes = feature_plan.attributes
    sources = (*attributes.ids, *attributes.multis, *attributes.dense)
    table: Callable[..., ItemTable] = ItemTable
    if variation.permuted is not None:
        if incoming is not None:
            raise InputError(
                "permuted content is compared within one encoder version: no items.next"
            )
        table = partial(PermutedContent, variation.permuted, variation.seed)
    items = table(store, _table_config(config, "items"), _cache(config.items), sources)
    beside = None if incoming is None else ItemTable(
        incoming.store, _table_config(config, NEXT_ITEMS), _cache(incoming.items)
    )  # fmt: skip
    learner = variation.learner or _learner(
        config, feature_plan.spec, variation, embedder.version, incoming
    )
    device = getattr(learner, "device", None)
    on_device = device is not None and device.type != "cpu"
    pipeline = OnlinePipeline(
        feature_plan, learner, items, span=span, on_device=on_device,
        arms=max(1, len(variation.arms)),
        incoming=beside,
    )  # fmt: skip
    return Composition(
        config=config, plan=feature_plan, store=store, embedder=embedder, pipeline=pipeline,
        incoming=incoming, histograms=histograms,
    )  # fmt: skip


def next_store_path(store_path: Path) -> Path:
    """Where the vectors of the version that comes in are kept, beside those at `store_path`."""
    return store_path.with_name(f"{store_path.name}.next")


def _histograms(rankers: Sequence[RankerConfig], spec: FeatureSpec) -> Histograms | None:
    """Those of the first ranker that reads logged ones; what does not fit, its learner says."""
    for ranker in rankers:
        options = module_options(ranker, SIMTIER, SimTierConfig)
        if options is not None and options.on and options.served:
            try:
                return histograms_of(spec, options)
            except ValueError:
                return None
    return None


def next_items_of(config: Config) -> ItemsConfig:
    """What makes the vectors of `items.next`; raises InputError."""
    return load_config(config.items.next, ()).items


def _incoming(config: Config, present: Embedder, store_path: Path | None) -> Incoming | None:
    """The new version of `items.next`; raises InputError where it is the present one."""
    if not config.items.next:
        return None
    items = next_items_of(config)
    if config.items.codebook or items.codebook:
        raise InputError(
            "items.next: codes of another encoder version mean other things, and their rows would "
            "not know; leave items.codebook out of both, then fit a book to the new vectors"
        )
    embedder = embedder_of(replace(config, items=items))
    if embedder.version == present.version or not (config.items.dim and items.dim):
        raise InputError(
            f"items.next '{config.items.next}': makes vectors of encoder '{embedder.version}', "
            f"which must differ from the present '{present.version}', and both need items.dim"
        )
    path = None if store_path is None else next_store_path(store_path)
    return Incoming(items=items, embedder=embedder, store=_store(path, embedder.version))


def _store(path: Path | None, version: str) -> VectorStore:
    if path is None:
        return MemoryVectorStore(version)
    return RocksVectorStore(RocksVectorStoreConfig(path=path), version)


def _table_config(config: Config, part: str) -> ItemTableConfig:
    return ItemTableConfig(
        topic=config.topics.item_vectors, part=part,
        pending_bytes_max=config.items.pending_bytes_max,
    )  # fmt: skip


def _cache(items: ItemsConfig) -> VectorCacheConfig:
    return VectorCacheConfig(
        dim=max(items.content_dim, 1),
        rows_max=items.cache_rows,
        # To turn int8 rows into numbers once, when they are read, is cheaper than in every batch.
        dtype="float32" if items.dtype == "float32" else "float16",
    )


def _learner(
    config: Config,
    spec: FeatureSpec,
    variation: Variation,
    encoder: str,
    incoming: Incoming | None,
) -> Learner:
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
            learner.fading = config.items.fading()
            if incoming:
                _check_incoming(learner, incoming, f"{where}: ranker '{ranker.name}'")
        return learner

    if not variation.arms:
        return build(config.ranker, "[ranker]")
    arms = {name: build(r, f"arm '{name}', [ranker]") for name, r in variation.arms.items()}
    return SideBySide(arms, threads=variation.threads)


def ranker_options(options: dict[str, Any]) -> dict[str, Any]:
    """Options of the learner as TOML gave them."""
    return dict(options)


def _check_incoming(learner: NetLearner, incoming: Incoming, where: str) -> None:
    """Raises InputError where the ranker or a file of a module cannot take the new version."""
    if not learner.net.takes_incoming:
        raise InputError(f"{where} cannot take {NEXT_ITEMS}")
    for name, module in learner.net.incoming_on:
        try:
            module.check_content(incoming.embedder.version)
        except ValueError as error:
            raise InputError(
                f"{where} cannot take {NEXT_ITEMS} with module '{name}' ({error}). A file of a "
                f"module is of one version: drop the module (ranker.options.{name}.on = false, "
                "ranker.grow = true) and take it on with its new file once the new version is "
                "adopted"
            ) from error
