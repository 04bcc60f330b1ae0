"""The table of all metrics and spans: names, instruments, units, attributes. Measures nothing.

Nothing else in the project spells these names; dashboards are checked against the table.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from infra.telemetry import Metric, MetricKind

_CALLS_S = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)
_STEPS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1)
# Weights follow after window, lateness and linger, so minutes would be too low a top.
_FRESHNESS_S = (0.1, 0.5, 1, 2, 5, 10, 30, 60, 120, 300, 600, 1200, 3600)
_SNAPSHOTS_S = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)

DESTINATION = "messaging.destination.name"
PARTITION = "messaging.destination.partition.id"
OPERATION = "messaging.operation.name"
SYSTEM = "messaging.system"
OPERATION_TYPE = "messaging.operation.type"
MESSAGE_COUNT = "messaging.batch.message_count"
ERROR_TYPE = "error.type"
OUTCOME = "ranker.outcome"
LABEL = "ranker.label"
PHASE = "ranker.phase"
TABLE = "ranker.table"
WINDOW = "ranker.window"
METHOD = "ranker.method"
AGE = "ranker.age"
EVENT_COUNT = "ranker.event.count"
EXAMPLE_COUNT = "ranker.example.count"

Use = Literal["panel", "query"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A metric, the attributes that all its series carry, and where it is shown.

    `use`: `panel` for what the dashboard shows, `query` for what is there to be asked for.
    """

    metric: Metric
    attributes: tuple[str, ...]
    use: Use

    @property
    def name(self) -> str:
        """Of the metric."""
        return self.metric.name


def _row(
    name: str,
    kind: MetricKind,
    unit: str,
    description: str,
    *attributes: str,
    buckets: tuple[float, ...] = (),
    use: Use = "panel",
) -> Row:
    metric = Metric(name=name, kind=kind, unit=unit, description=description, buckets=buckets)
    return Row(metric=metric, attributes=attributes, use=use)


CONSUMED = _row(
    "messaging.client.consumed.messages", "counter", "{message}",
    "Records handed to the pipeline.", DESTINATION, PARTITION,
)  # fmt: skip
PROCESS = _row(
    "messaging.process.duration", "histogram", "s",
    "Time of one fetched batch in the pipeline.", OPERATION, DESTINATION, buckets=_CALLS_S,
)  # fmt: skip
EVENTS = _row("ranker.ingest.events", "counter", "{event}", "Events released in order.")
REJECTED = _row(
    "ranker.ingest.rejected", "counter", "{event}", "Events not used, by reason.", ERROR_TYPE
)
CLOCK_JUMPS = _row(
    "ranker.ingest.clock_jumps", "counter", "{event}",
    "Events further ahead of their partition's clock than it goes along with.", use="query",
)  # fmt: skip
LAG = _row(
    "ranker.consumer.lag", "gauge", "{message}", "Records not handed to the pipeline yet.",
    DESTINATION, PARTITION,
)  # fmt: skip
POSITION = _row(
    "ranker.consumer.position.timestamp", "gauge", "s", "Event time that a partition has reached.",
    DESTINATION, PARTITION,
)  # fmt: skip
SETTLE_TO_UPDATE = _row(
    "ranker.settle_to_update.duration", "histogram", "s",
    "From the sending of the records that let samples settle to the weights that know them.",
    buckets=_FRESHNESS_S,
)  # fmt: skip
WATERMARK = _row(
    "ranker.watermark.timestamp", "gauge", "s", "Event time up to which nothing is awaited."
)
IDLE_ADVANCES = _row(
    "ranker.watermark.idle_advances", "counter", "{advance}",
    "Times that silence instead of an event moved time on.", use="query",
)  # fmt: skip
SNAPSHOT_DONE = _row(
    "ranker.snapshot.last_success.timestamp", "gauge", "s", "When a snapshot last became durable."
)
SNAPSHOT = _row(
    "ranker.snapshot.duration", "histogram", "s",
    "Time that a snapshot stalls training, and until it is durable.", PHASE, buckets=_SNAPSHOTS_S,
)  # fmt: skip
RECOVERY = _row("ranker.recovery.duration", "gauge", "s", "Time of the last start from a snapshot.")
IMPRESSIONS = _row(
    "ranker.join.impressions", "counter", "{impression}", "Settled impressions, by label.",
    LABEL, OUTCOME,
)  # fmt: skip
CLICKS = _row("ranker.join.clicks", "counter", "{click}", "Clicks by what became of them.", OUTCOME)
OPEN = _row("ranker.join.open_windows", "updown", "{window}", "Impressions that wait to settle.")
DUPLICATES = _row(
    "ranker.join.duplicates", "counter", "{impression}", "Impressions that came again."
)
EXAMPLES = _row("ranker.train.examples", "counter", "{example}", "Samples learned from.")
NONFINITE = _row("ranker.train.nonfinite", "counter", "{example}", "Samples masked as not finite.")
STEP = _row(
    "ranker.train.step.duration", "histogram", "s", "Time of a stage for one batch.", PHASE,
    buckets=_STEPS_S,
)  # fmt: skip
ROWS = _row("ranker.embedding.rows", "gauge", "{row}", "Rows in use, by table.", TABLE)
ADMISSIONS = _row(
    "ranker.embedding.admissions", "counter", "{row}", "Ids given a row of their own.", TABLE,
    use="query",
)  # fmt: skip
EVICTIONS = _row(
    "ranker.embedding.evictions", "counter", "{row}", "Rows taken back.", TABLE, use="query"
)
ITEM_UPDATES = _row(
    "ranker.items.updates", "counter", "{update}", "Updates of item vectors.", OUTCOME, use="query"
)
ITEMS_WAITING = _row(
    "ranker.items.waiting", "gauge", "{update}", "Item updates that wait for their time.",
    use="query",
)  # fmt: skip
CACHE_LOOKUPS = _row(
    "ranker.state.cache.lookups", "counter", "{lookup}", "Item vectors asked of the cache."
)
CACHE_MISSES = _row(
    "ranker.state.cache.misses", "counter", "{lookup}", "Item vectors that were not in the cache."
)
VERSION_SHARE = _row(
    "ranker.items.version.share", "gauge", "{score}",
    "What the present encoder version counts while another one comes in.", use="query",
)  # fmt: skip
CONTENT = _row(
    "ranker.content.examples", "counter", "{example}",
    "Samples by whether their item had a vector when they were predicted.", OUTCOME,
)  # fmt: skip
METHOD_LOSS = _row(
    "ranker.method.loss", "gauge", "{score}",
    "A method's own loss a sample, as weighted, in the last learn step.", METHOD,
)  # fmt: skip
MAKE_RELEASES = _row(
    "ranker.make.releases", "gauge", "{release}", "Releases of MAKE's extractor.", OUTCOME
)
MAKE_TRIAL = _row(
    "ranker.make.trial.examples", "gauge", "{example}", "Samples that judged the release on trial."
)
MAKE_DIFFERENCE = _row(
    "ranker.make.trial.difference", "gauge", "{score}",
    "Mean log loss with the release on trial less that with the one before, nats.",
)  # fmt: skip
MAKE_WITHIN = _row(
    "ranker.make.within_window", "counter", "{example}",
    "Samples of a time that the first release has seen: it adds nothing to them.", use="query",
)  # fmt: skip
MAKE_REPLAYED = _row(
    "ranker.make.replayed", "counter", "{example}", "Samples that MAKE's extractor saw again."
)
SERVED = _row(
    "ranker.served.examples", "counter", "{example}",
    "Samples with a similarity histogram that a server logged: read, of which unlike our own "
    "(differing), and not read (other_version).", OUTCOME,
)  # fmt: skip
EM3_MEMORY = _row(
    "ranker.em3.memory.items", "gauge", "{item}", "Items with a vector in EM3's memory."
)
EM3_COSINE = _row(
    "ranker.em3.memory.cosine", "gauge", "{score}",
    "Mean cosine of a vector of EM3's memory and the one that takes its place, by the old one's "
    "age: 1 where nothing was stale.", AGE,
)  # fmt: skip
FLIP_VOCABULARY = _row(
    "ranker.flip.vocabulary", "gauge", "{row}", "Ids with an output row in FLIP's tabular model."
)
EMBED_ITEMS = _row(
    "ranker.embed.items", "counter", "{item}", "Item events by what became of them.", OUTCOME
)
EMBED_REFUSED = _row(
    "ranker.embed.refused", "counter", "{picture}",
    "Pictures, and vectors of senders, that could not be used.", ERROR_TYPE,
)  # fmt: skip
EMBED_LATENCY = _row(
    "ranker.embed.item_to_vector.duration", "histogram", "s",
    "From the sending of an item event to its vector on the broker.", buckets=_FRESHNESS_S,
)  # fmt: skip
EMBED_BATCH = _row(
    "ranker.embed.batch.duration", "histogram", "s", "Time of the encoders for one batch.",
    buckets=_CALLS_S,
)  # fmt: skip
EMBED_BATCH_ITEMS = _row(
    "ranker.embed.batch.items", "histogram", "{item}", "Items of one batch.",
    buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256), use="query",
)  # fmt: skip
EMBED_WAITING = _row(
    "ranker.embed.waiting", "gauge", "{item}", "Items fetched and not encoded yet."
)
LOG_LOSS = _row("ranker.quality.log_loss", "gauge", "{score}", "Log loss, nats.", WINDOW)
NORMALIZED_ENTROPY = _row(
    "ranker.quality.normalized_entropy", "gauge", "{score}",
    "Log loss over that of the positive rate.", WINDOW,
)  # fmt: skip
AUC = _row("ranker.quality.auc", "gauge", "{score}", "Area under the ROC curve.", WINDOW)
CALIBRATION = _row(
    "ranker.quality.calibration", "gauge", "{score}", "Predicted over observed positives.", WINDOW
)
POSITIVE_RATE = _row(
    "ranker.quality.positive_rate", "gauge", "{score}", "Share of positives.", WINDOW
)

TABLE_OF_METRICS: tuple[Row, ...] = (
    CONSUMED, PROCESS, EVENTS, REJECTED, CLOCK_JUMPS, LAG, POSITION, SETTLE_TO_UPDATE, WATERMARK,
    IDLE_ADVANCES, SNAPSHOT_DONE, SNAPSHOT, RECOVERY, IMPRESSIONS, CLICKS, OPEN, DUPLICATES,
    EXAMPLES, NONFINITE, STEP, ROWS, ADMISSIONS, EVICTIONS, ITEM_UPDATES, ITEMS_WAITING,
    CACHE_LOOKUPS, CACHE_MISSES,
    VERSION_SHARE, CONTENT, METHOD_LOSS, MAKE_RELEASES, MAKE_TRIAL, MAKE_DIFFERENCE, MAKE_WITHIN,
    MAKE_REPLAYED, SERVED, EM3_MEMORY, EM3_COSINE, FLIP_VOCABULARY,
    EMBED_ITEMS, EMBED_REFUSED, EMBED_LATENCY, EMBED_BATCH, EMBED_BATCH_ITEMS, EMBED_WAITING,
    LOG_LOSS, NORMALIZED_ENTROPY, AUC, CALIBRATION, POSITIVE_RATE,
)  # fmt: skip
"""Every metric there is."""

METRICS: tuple[Metric, ...] = tuple(row.metric for row in TABLE_OF_METRICS)
QUALITY = {
    "log_loss": LOG_LOSS,
    "ne": NORMALIZED_ENTROPY,
    "auc": AUC,
    "calibration": CALIBRATION,
    "ctr": POSITIVE_RATE,
}
"""Rows by the names that progressive metrics have."""

STAGES = ("decode", "sequence", "join", "assemble", "predict", "train_step")
"""Spans below `process TOPIC`, one a stage and micro-batch."""
TIMED_STAGES = frozenset({"assemble", "predict", "train_step"})
"""Stages whose time is a metric as well: the other ones run once a slice of events."""
