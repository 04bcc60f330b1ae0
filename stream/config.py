"""The configuration of a run: composes what each component declares, and checks names across them.

Loads nothing (`infra/config` does) and decides no defaults that belong to a component.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from embeddings.codes.codebook import CODES_PREFIX
from embeddings.encoders.attributes import AttributeEncoderConfig
from infra.telemetry import TelemetryConfig
from learners.feature_spec import ContentBlock
from learners.incoming import Fading
from stream.counters import CounterConfig
from stream.kafka.settings import EmbedConfig, KafkaConfig, TopicsConfig, WorkerConfig
from stream.label_policy import LabelConfig
from stream.user_state import HistoryConfig

FeatureKind = Literal["id", "multi-id", "dense"]
PredictAt = Literal["impression", "settle"]

ID_PATHS = ("user", "item", "impression.hour", "impression.weekday", "impression.position")
DENSE_PATHS = (
    "user.gap", "user.session_position", "user.clicked", "user.interactions", "item.interactions",
    "impression.position",
)  # fmt: skip
PREFIXES = ("context.", "features.", "item.attributes.")
CODES_PATH = f"item.attributes.{CODES_PREFIX}"


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureConfig:
    """A field of the events that the model reads.

    `path`: `user`, `item`, `context.X`, `features.X` (of the item shown), `item.attributes.X`,
    `impression.hour|weekday|position`; dense only: `user.gap` (ms since the user's impression
    before), `user.session_position` (the user's impressions before this one in their session),
    `user.clicked` (since the impression before: 1, -1 not, 0 there was none),
    `user.interactions`, `item.interactions`. `admit_after`: sightings before an id gets a row of
    its own. `length`: values kept of a several-valued field. `scale` of dense fields:
    `log1p` (of the magnitude, signed) or `none`.
    """

    name: str
    path: str
    kind: FeatureKind = "id"
    dim: int = 16
    admit_after: int = 0
    rows_max: int = 1_000_000
    expire_ms: int = 0
    length: int = 8
    scale: Literal["log1p", "none"] = "none"

    def __post_init__(self) -> None:
        """Check what types cannot."""
        allowed = DENSE_PATHS if self.kind == "dense" else ID_PATHS
        if self.path not in allowed and not self.path.startswith(PREFIXES):
            raise ValueError(
                f"feature '{self.name}': path '{self.path}' is unknown for kind '{self.kind}'; "
                f"expected one of {', '.join(allowed)} or {', '.join(p + 'NAME' for p in PREFIXES)}"
            )
        if (
            min(self.dim, self.rows_max, self.length) < 1
            or min(self.admit_after, self.expire_ms) < 0
        ):
            raise ValueError(f"feature '{self.name}': dim, rows_max and length must be at least 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamConfig:
    """Time, order, limits and batches of the pipeline."""

    lateness_ms: int = 5_000
    linger_ms: int = 60_000
    dedup_horizon_ms: int = 3_600_000
    session_gap_ms: int = 1_800_000
    feature_delay_ms: int = 0
    batch_size: int = 1_024
    predict_at: PredictAt = "impression"
    max_jump_ms: int = 600_000
    max_future_ms: int = 3_600_000
    idle_ms: int = 30_000
    timezone_offset_minutes: int = 0
    max_slice_events: int = 4_096
    buffered_max: int = 20_000
    open_max: int = 2_000_000
    ids_max: int = 20_000_000
    users_max: int = 5_000_000
    items_max: int = 5_000_000
    counters_max: int = 20_000_000

    def __post_init__(self) -> None:
        """Check what types cannot."""
        for name in (
            "lateness_ms",
            "linger_ms",
            "dedup_horizon_ms",
            "max_future_ms",
            "session_gap_ms",
            "feature_delay_ms",
        ):
            if getattr(self, name) < 0:
                raise ValueError(f"stream.{name} must not be negative")
        for name in (
            *("batch_size", "max_jump_ms", "idle_ms", "max_slice_events", "buffered_max"),
            *("open_max", "ids_max", "users_max", "items_max", "counters_max"),
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"stream.{name} must be at least 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemsConfig:
    """Item content to vectors. `dim` 0 turns content off.

    `supplied` names the vector of an item event that is used instead of an encoded one.
    `vectors_file`: a file of item vectors by id, which stands for the encoder. `projection`: a file
    of a trained projection, the last stage of the encoder. `encoders`: names of encoders, whose
    vectors are fused by `weights` after the means of `mean_file` are taken off. `codebook`: a
    release of codes that items get as attributes `codes.…`. `keep`: lengths of the vectors of
    single encoders, by name, that are kept as blocks beside the one of `dim` numbers. `next`: a
    configuration whose `[items]` make the vectors of a new version that comes in beside this one:
    both are read for `next_beside_samples` learned samples, then this one fades within
    `next_fade_samples`.
    """

    dim: int = 128
    seed: int = 0
    supplied: str = ""
    vectors_file: str = ""
    projection: str = ""
    encoders: tuple[str, ...] = ("attributes",)
    encoder_options: dict[str, dict[str, Any]] = field(default_factory=dict)
    weights: dict[str, float] = field(default_factory=dict)
    mean_file: str = ""
    keep: dict[str, int] = field(default_factory=dict)
    next: str = ""
    next_beside_samples: int = 50_000
    next_fade_samples: int = 200_000
    codebook: str = ""
    attributes: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    numeric: tuple[str, ...] = ()
    dtype: Literal["float16", "float32", "int8"] = "float16"
    cache_rows: int = 1_000_000
    pending_bytes_max: int = 64 << 20

    def __post_init__(self) -> None:
        if not self.encoders or len(set(self.encoders)) < len(self.encoders):
            raise ValueError("items: encoders must be one or more names, each once")
        for what in ("encoder_options", "weights", "keep"):
            extra = sorted(set(getattr(self, what)) - set(self.encoders))
            if extra:
                raise ValueError(f"items: {what} of {extra}, which are not in encoders")
        if bad := [name for name, weight in self.weights.items() if not 0 < weight <= 1_000]:
            raise ValueError(f"items: weights must be above 0 and at most 1000: {bad}")
        if bad := [name for name, dim in self.keep.items() if not 1 <= dim <= 65_536]:
            raise ValueError(f"items.keep: a length must be 1 to 65536: {bad}")
        self.fading()
        if self.keep and (self.supplied or not self.dim):
            raise ValueError(
                "items.keep: needs items.dim above 0, and no items.supplied; the encoder "
                "'vector:NAME' takes the supplied vector of that name"
            )

    @property
    def blocks(self) -> tuple[ContentBlock, ...]:
        """What an item vector is made of: the block "" of `dim` numbers, then those of `keep`."""
        out: list[ContentBlock] = []
        for name, dim in (("", self.dim), *self.keep.items()) if self.dim else ():
            start = out[-1].columns.stop if out else 0
            out.append(ContentBlock(name=name, start=start, dim=dim))
        return tuple(out)

    @property
    def content_dim(self) -> int:
        """Length of an item vector, all blocks together; 0: no content."""
        return sum(block.dim for block in self.blocks)

    def fading(self) -> Fading:
        """How the vectors of `next` come in and these go."""
        return Fading(beside_samples=self.next_beside_samples, fade_samples=self.next_fade_samples)

    def encoder(self) -> AttributeEncoderConfig:
        """Configuration of the attribute encoder."""
        return AttributeEncoderConfig(
            dim=max(self.dim, 1),
            seed=self.seed,
            fields=self.attributes,
            ignore=self.ignore,
            numeric=self.numeric,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RankerConfig:
    """The learner by its name in the catalog, the label that it learns, and its own options.

    `grow`: a snapshot of the same ranker with other modules is taken; new ones begin afresh, those
    that are gone are dropped.
    """

    name: str = "id_content"
    label: str = "click"
    grow: bool = False
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotConfig:
    """When snapshots are taken and how many stay."""

    every_samples: int = 50_000
    keep: int = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportConfig:
    """What reports are cut by. `fields`: id features whose values go into the prediction log."""

    fields: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Everything a run is made of."""

    stream: StreamConfig = field(default_factory=StreamConfig)
    topics: TopicsConfig = field(default_factory=TopicsConfig)
    kafka: KafkaConfig = field(default_factory=KafkaConfig)
    worker: WorkerConfig = field(default_factory=WorkerConfig)
    embed: EmbedConfig = field(default_factory=EmbedConfig)
    telemetry: TelemetryConfig = field(default_factory=TelemetryConfig)
    items: ItemsConfig = field(default_factory=ItemsConfig)
    ranker: RankerConfig = field(default_factory=RankerConfig)
    snapshot: SnapshotConfig = field(default_factory=SnapshotConfig)
    report: ReportConfig = field(default_factory=ReportConfig)
    label: Mapping[str, LabelConfig] = field(default_factory=dict)
    feature: tuple[FeatureConfig, ...] = ()
    counter: tuple[CounterConfig, ...] = ()
    history: tuple[HistoryConfig, ...] = ()

    def __post_init__(self) -> None:
        """Check names across components; every message says where and what is expected."""
        _check_names(self)

    @property
    def window_ms(self) -> int:
        """The longest label window: a request leaves when it is over."""
        return max(label.window_ms for label in self.label.values())

    @property
    def click_kinds(self) -> tuple[str, ...]:
        """All kinds of clicks in use: labels first, then those that only histories read."""
        labels = list(self.label)
        others = {kind for h in self.history for kind in h.kinds} - set(labels)
        return (*labels, *sorted(others))

    def feature_named(self, name: str) -> FeatureConfig:
        """The feature called `name`."""
        return next(f for f in self.feature if f.name == name)


def _check_names(config: Config) -> None:
    if not config.label:
        raise ValueError(
            "no [label.KIND] is configured; name at least one, with its window_ms. A preset of a "
            "method is joined to that of a data set: default+simtier (`millrace methods`)"
        )
    if config.ranker.label not in config.label:
        raise ValueError(
            f"ranker.label is '{config.ranker.label}', expected one of {list(config.label)}"
        )
    for what, names in (
        ("feature", [f.name for f in config.feature]),
        ("counter", [c.name for c in config.counter]),
        ("history", [h.name for h in config.history]),
    ):
        twice = {n for n in names if names.count(n) > 1}
        if twice:
            raise ValueError(f"{what}: the name {sorted(twice)} is given twice")
    ids = {f.name for f in config.feature if f.kind != "dense"} | {"user", "item"}
    for counter in config.counter:
        missing = [key for key in counter.keys if key not in ids]
        if missing:
            raise ValueError(
                f"counter '{counter.name}': key {missing[0]!r} is no id feature; expected "
                f"'user', 'item' or one of {sorted(ids)}"
            )
    sliced = {f.name for f in config.feature if f.kind == "id" and f.path not in ("user", "item")}
    for name in config.report.fields:
        if name not in sliced:
            raise ValueError(
                f"report.fields: '{name}' is no id feature of the impression or the item; expected "
                f"some of {sorted(sliced)}"
            )
    if not config.items.codebook:
        coded = [f.name for f in config.feature if f.path.startswith(CODES_PATH)]
        if coded:
            raise ValueError(
                f"feature '{coded[0]}' reads codes of items: set items.codebook to a release of "
                "`millrace codes fit`"
            )
    if config.history and not any(f.path == "item" for f in config.feature):
        raise ValueError("a [[history]] needs a [[feature]] with path 'item', whose rows it shares")
    if len(config.click_kinds) > 31:  # 5 bits of a waiting click's entry
        raise ValueError(f"at most 31 kinds of clicks fit, got {len(config.click_kinds)}")
