"""The topics of a deployment: their plan, their creation and what is wrong with them.

Reads and writes no record. Source ids of topics (rule 7) are asked for here as well.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from kafka.admin import ConfigResource, ConfigResourceType, KafkaAdminClient, NewTopic
from kafka.errors import KafkaError, TopicAlreadyExistsError

from infra.errors import InputError
from stream.kafka.settings import TopicsConfig
from stream.positions import LIVE_SOURCE

_HOUR_MS = 3_600_000
_READY_MS = 60_000


@dataclass(frozen=True, slots=True, kw_only=True)
class TopicPlan:
    """A topic as it should be. `same_count` marks topics whose partition counts must agree."""

    name: str
    partitions: int
    replication: int
    configs: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What differs from the plan: an `error` keeps a worker from running, a `warning` does not."""

    level: Literal["error", "warning"]
    topic: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TopicFacts:
    """A topic as the broker has it."""

    topic_id: str
    partitions: int


def plans(config: TopicsConfig) -> list[TopicPlan]:
    """The topics of `config`, in the order they are created."""
    timed = {
        "cleanup.policy": "delete",
        # Explicit, as a broker's default may be hours: see rule 16 on old event times.
        "retention.ms": str(config.retention_hours * _HOUR_MS),
        "max.message.bytes": str(config.record_bytes_max),
    }
    compacted = {"cleanup.policy": "compact", "max.message.bytes": str(config.record_bytes_max)}

    def plan(name: str, partitions: int, configs: Mapping[str, str]) -> TopicPlan:
        return TopicPlan(
            name=name, partitions=partitions, replication=config.replication, configs=configs
        )

    return [
        plan(config.impressions, config.partitions, timed),
        plan(config.clicks, config.partitions, timed),
        plan(config.items, config.item_partitions, compacted),
        plan(config.item_vectors, config.item_partitions, compacted),
        plan(config.dead_letters, 1, timed),
        plan(config.predictions, 1, timed),
    ]


def describe(admin: KafkaAdminClient, names: Sequence[str]) -> dict[str, TopicFacts]:
    """Facts of those of `names` that exist."""
    found = {}
    for topic in admin.describe_topics(list(names)):
        if topic["error_code"] == 0:
            found[topic["name"]] = TopicFacts(
                topic_id=str(topic["topic_id"] or ""), partitions=len(topic["partitions"])
            )
    return found


def create_missing(admin: KafkaAdminClient, config: TopicsConfig) -> list[str]:
    """Create what is not there; returns the names created. Changes no topic that exists."""
    there = describe(admin, config.names)
    created = []
    for plan in plans(config):
        if plan.name in there:
            continue
        try:
            admin.create_topics(
                [
                    NewTopic(
                        name=plan.name,
                        num_partitions=plan.partitions,
                        replication_factor=plan.replication,
                        topic_configs=dict(plan.configs),
                    )
                ]
            )
            # Ten seconds, which is what `create_topics` itself waits, are few on a busy machine.
            admin.wait_for_topics([plan.name], timeout_ms=_READY_MS)
        except TopicAlreadyExistsError:
            continue
        except KafkaError as error:
            raise InputError(f"topic '{plan.name}' could not be created: {error}") from error
        created.append(plan.name)
    return created


def check(admin: KafkaAdminClient, config: TopicsConfig) -> list[Finding]:
    """What is missing or different; empty when all is well."""
    facts = describe(admin, config.names)
    return [
        *_missing(facts, config),
        *_counts(facts, config),
        *_settings(_topic_configs(admin, list(facts)), config),
    ]


def require_stream_topics(admin: KafkaAdminClient, config: TopicsConfig) -> dict[str, TopicFacts]:
    """Facts of impressions, clicks, item-vectors and dead-letters.

    Raises InputError where one is missing or impressions and clicks are not co-partitioned: a
    subscription to a missing topic would make the broker create it with one partition.
    """
    needed = [*config.stream, config.item_vectors, config.dead_letters]
    facts = describe(admin, needed)
    errors = [
        finding.text
        for finding in (*_missing(facts, config), *_counts(facts, config))
        if finding.level == "error" and finding.topic in needed
    ]
    if errors:
        raise InputError("; ".join(errors) + " (`millrace topics` creates what is missing)")
    return facts


def source_ids(admin: KafkaAdminClient, facts: Mapping[str, TopicFacts]) -> dict[str, str]:
    """Identity of each topic's log: cluster id and topic id, where the broker tells them.

    A recreated topic and another cluster have others; the embedded broker's change with each start.
    """
    cluster = str(admin.describe_cluster().get("cluster_id") or "")
    return {name: f"{LIVE_SOURCE}{cluster}:{fact.topic_id}" for name, fact in facts.items()}


def _missing(facts: Mapping[str, TopicFacts], config: TopicsConfig) -> Iterator[Finding]:
    for name in config.names:
        if name not in facts:
            optional = name == config.predictions
            yield Finding(
                level="warning" if optional else "error",
                topic=name,
                text=f"topic '{name}' does not exist",
            )


def _counts(facts: Mapping[str, TopicFacts], config: TopicsConfig) -> Iterator[Finding]:
    impressions, clicks = facts.get(config.impressions), facts.get(config.clicks)
    if impressions and clicks and impressions.partitions != clicks.partitions:
        yield Finding(
            level="error",
            topic=config.clicks,
            text=f"'{config.impressions}' has {impressions.partitions} partitions and "
            f"'{config.clicks}' {clicks.partitions}: both need the same number",
        )
    for plan in plans(config):
        fact = facts.get(plan.name)
        if fact and fact.partitions != plan.partitions:
            yield Finding(
                level="warning",
                topic=plan.name,
                text=f"topic '{plan.name}' has {fact.partitions} partitions, "
                f"configured are {plan.partitions}",
            )


def _settings(configs: Mapping[str, Mapping[str, str]], config: TopicsConfig) -> Iterator[Finding]:
    least_ms = 2 * config.snapshot_age_hours * _HOUR_MS
    for plan in plans(config):
        actual = configs.get(plan.name)
        if not actual:
            continue  # not there, or a broker that tells no settings
        policy, wanted = actual.get("cleanup.policy", "delete"), plan.configs["cleanup.policy"]
        if policy != wanted:
            yield Finding(
                level="error" if wanted == "compact" else "warning",
                topic=plan.name,
                text=f"topic '{plan.name}' has cleanup.policy={policy}, expected {wanted}",
            )
        retention_ms = int(actual.get("retention.ms", "-1"))
        if wanted == "delete" and plan.name in config.stream and 0 <= retention_ms < least_ms:
            yield Finding(
                level="warning",
                topic=plan.name,
                text=f"topic '{plan.name}' keeps records {retention_ms / _HOUR_MS:g} h, less than "
                f"twice the age of a snapshot ({config.snapshot_age_hours} h): a worker that "
                "resumes may find its position deleted",
            )


def _topic_configs(admin: KafkaAdminClient, names: Sequence[str]) -> dict[str, dict[str, str]]:
    """Settings by topic; a topic is left out where the broker tells none."""
    if not names:
        return {}
    resources = [ConfigResource(ConfigResourceType.TOPIC, name) for name in names]
    try:
        answer: Any = admin.describe_configs(resources, config_filter="all")
    except KafkaError:
        return {}
    return {
        name: {key: str(entry["value"]) for key, entry in entries.items()}
        for name, entries in answer.get("topic", {}).items()
    }
