"""What the embedder must know of its topics before it starts. Creates none."""

from __future__ import annotations

from dataclasses import dataclass

from infra.errors import InputError
from stream.kafka.connection import admin_client
from stream.kafka.settings import ShellConfig, TopicsConfig
from stream.kafka.topic_watch import Log
from stream.kafka.topics import describe, source_ids


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedSources:
    """The topics as the broker has them: identities, and numbers of partitions."""

    items_id: str
    vectors_id: str
    items_partitions: int
    vectors_partitions: int

    def logs(self, topics: TopicsConfig) -> dict[str, Log]:
        """By topic, for watching whether they stay."""
        return {
            topics.items: Log(self.items_id, self.items_partitions),
            topics.item_vectors: Log(self.vectors_id, self.vectors_partitions),
        }


def embed_sources(config: ShellConfig) -> EmbedSources:
    """Asks the broker; raises InputError where a topic is missing, BrokerUnreachableError."""
    topics = config.topics
    names = (topics.items, topics.item_vectors, topics.dead_letters)
    with admin_client(config.kafka) as admin:
        facts = describe(admin, list(names))
        ids = source_ids(admin, facts)
    for name in names:
        if name not in facts:
            raise InputError(f"topic '{name}' does not exist (`millrace topics` creates it)")
    return EmbedSources(
        items_id=ids[topics.items],
        vectors_id=ids[topics.item_vectors],
        items_partitions=facts[topics.items].partitions,
        vectors_partitions=facts[topics.item_vectors].partitions,
    )
