"""What can be set about the broker, the topics and the worker's shell. Imports no Kafka library."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

from infra.config import load
from infra.errors import InputError

_ADDRESS = re.compile(r"^(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_.-]+):([0-9]{1,5})$")


@dataclass(frozen=True, slots=True, kw_only=True)
class KafkaConfig:
    """Where the broker is and how the group of workers is called.

    `broker` is `host:port`, several separated by commas; empty means that none is configured.
    Standbys take over `session_timeout_s` after an owner died without a word; a worker's last
    batch and snapshot must fit in `rebalance_timeout_s`, and taking over (loading a snapshot,
    reading item vectors) in `request_timeout_s`.
    """

    broker: str = ""
    group: str = "millrace"
    connect_timeout_s: float = 15.0
    session_timeout_s: float = 10.0
    rebalance_timeout_s: float = 60.0
    request_timeout_s: float = 90.0

    def __post_init__(self) -> None:
        """Raise ValueError where a value cannot work."""
        for address in filter(None, self.broker.split(",")):
            match = _ADDRESS.match(address.strip())
            if match is None or not 0 < int(match.group(2)) < 65536:
                raise ValueError(f"kafka.broker: expected host:port, got '{address}'")
        if not self.group:
            raise ValueError("kafka.group: a consumer group needs a name, got an empty one")
        if not 6.0 <= self.session_timeout_s <= 1800.0:
            # A broker refuses other values by default, and Faust then runs on without partitions.
            raise ValueError(
                f"kafka.session_timeout_s: expected 6 to 1800, got {self.session_timeout_s}"
            )
        if self.session_timeout_s >= self.request_timeout_s:
            raise ValueError(
                f"kafka.session_timeout_s: must be below request_timeout_s "
                f"({self.request_timeout_s}), got {self.session_timeout_s}"
            )
        if self.connect_timeout_s <= 0 or self.rebalance_timeout_s <= 0:
            raise ValueError("kafka: connect_timeout_s and rebalance_timeout_s must be above 0")

    @property
    def servers(self) -> list[str]:
        """Addresses as clients take them; raises InputError when no broker is configured."""
        servers = [address.strip() for address in self.broker.split(",") if address.strip()]
        if not servers:
            raise InputError(
                "no broker is configured: give --broker HOST:PORT or set kafka.broker "
                "(`millrace broker` starts one for trying out)"
            )
        return servers


@dataclass(frozen=True, slots=True, kw_only=True)
class TopicsConfig:
    """Names and shape of the topics.

    impressions and clicks have `partitions` each and are joined partition by partition; items and
    item-vectors are compacted. `retention_hours` must outlast the oldest snapshot that a worker
    may resume from, twice over: `snapshot_age_hours`.
    """

    impressions: str = "impressions"
    clicks: str = "clicks"
    items: str = "items"
    item_vectors: str = "item-vectors"
    dead_letters: str = "dead-letters"
    predictions: str = "predictions"
    partitions: int = 4
    item_partitions: int = 4
    replication: int = 1
    retention_hours: int = 168
    snapshot_age_hours: int = 48
    record_bytes_max: int = 16_777_216

    def __post_init__(self) -> None:
        """Raise ValueError where a value cannot work."""
        names = self.names
        if len(set(names)) != len(names) or not all(names):
            raise ValueError(f"topics: names must differ and not be empty, got {names}")
        for name in ("partitions", "item_partitions"):
            if not 1 <= getattr(self, name) <= 8191:
                raise ValueError(f"topics.{name}: expected 1 to 8191, got {getattr(self, name)}")
        if self.replication < 1 or self.retention_hours < 1 or self.snapshot_age_hours < 1:
            raise ValueError("topics: replication and hours must be 1 or more")
        if self.record_bytes_max < 1024:
            raise ValueError(f"topics.record_bytes_max: too small, got {self.record_bytes_max}")

    @property
    def names(self) -> list[str]:
        """All topics."""
        return [*self.stream, self.items, self.item_vectors, self.dead_letters, self.predictions]

    @property
    def stream(self) -> list[str]:
        """The topics whose order and positions count: impressions, then clicks."""
        return [self.impressions, self.clicks]


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerConfig:
    """The shell around the pipeline.

    At most `(queued_batches + 2) * batch_records` records wait outside of the pipeline, besides
    1 MiB a partition that aiokafka fetches ahead. `stop_timeout_s` after a stop was asked for, the
    process ends by force. `status_file`: where the worker writes what it does, as JSON, about once
    a second; empty for nowhere.
    """

    batch_records: int = 5_000
    queued_batches: int = 4
    tick_ms: int = 500
    commit_timeout_s: float = 10.0
    stop_timeout_s: float = 30.0
    dead_letter_timeout_s: float = 20.0
    dead_letter_value_bytes_max: int = 500_000
    status_file: str = ""

    def __post_init__(self) -> None:
        """Raise ValueError where a value cannot work."""
        for one in fields(self):
            value = getattr(self, one.name)
            if one.name != "status_file" and value <= 0:
                raise ValueError(f"worker.{one.name}: must be above 0, got {value}")
        if self.dead_letter_value_bytes_max > 900_000:
            raise ValueError(
                "worker.dead_letter_value_bytes_max: a record with its reason must fit in 1 MB, "
                f"expected at most 900000, got {self.dead_letter_value_bytes_max}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedConfig:
    """The embedder process.

    `batch_items`: encoded at once, at most; it never waits for so many, and takes no more than
    half a second's worth by the speed of the batch before. `queue_items_max`,
    `queue_bytes_max`: item events fetched and not encoded, beyond which fetching pauses.
    `threads`: of the encoders, 0 for as many as torch chooses; the last bits of a picture's vector
    depend on it, and a replay encodes with one. `state`: where it keeps which
    contents are encoded, a folder; empty: somewhere temporary, read from the topic at each start.
    """

    batch_items: int = 512
    queue_items_max: int = 1_000
    queue_bytes_max: int = 67_108_864
    threads: int = 1
    state: str = ""

    def __post_init__(self) -> None:
        """Raise ValueError where a value cannot work."""
        for name in ("batch_items", "queue_items_max", "queue_bytes_max"):
            if getattr(self, name) < 1:
                raise ValueError(f"embed.{name}: must be 1 or more, got {getattr(self, name)}")
        if self.threads < 0:
            raise ValueError(f"embed.threads: must not be negative, got {self.threads}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ShellConfig:
    """The tables of a configuration that tools around Kafka need; other tables are not theirs."""

    kafka: KafkaConfig = field(default_factory=KafkaConfig)
    topics: TopicsConfig = field(default_factory=TopicsConfig)
    worker: WorkerConfig = field(default_factory=WorkerConfig)
    embed: EmbedConfig = field(default_factory=EmbedConfig)


def load_shell(
    files: Sequence[Path], overrides: Sequence[str], *, broker: str | None
) -> ShellConfig:
    """The shell's tables out of configuration files; `broker`, where given, wins.

    Raises ConfigError as `infra.config.load` does, but is silent on tables of others.
    """
    return with_broker(load(ShellConfig, files, overrides, only_own_tables=True), broker)


def with_broker(config: ShellConfig, broker: str | None) -> ShellConfig:
    """`config` with another broker address; None changes nothing."""
    if not broker:
        return config
    try:
        return replace(config, kafka=replace(config.kafka, broker=broker))
    except ValueError as error:
        raise InputError(f"--broker: {error}") from error
