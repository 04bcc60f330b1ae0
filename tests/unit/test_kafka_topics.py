"""What is wrong with topics, told from facts."""

from __future__ import annotations

import pytest

from infra.errors import InputError
from stream.kafka.settings import TopicsConfig
from stream.kafka.topics import check, plans, require_stream_topics, source_ids

CONFIG = TopicsConfig(partitions=2, item_partitions=1)


class Admin:
    """Answers as kafka-python's client does."""

    def __init__(self, partitions, configs=None, cluster="c1"):
        self.partitions, self.configs, self.cluster = partitions, configs or {}, cluster

    def describe_topics(self, names):
        return [
            {"name": n, "error_code": 0, "topic_id": f"id-{n}", "partitions": [0] * p}
            if (p := self.partitions.get(n))
            else {"name": n, "error_code": 3, "topic_id": None, "partitions": []}
            for n in names
        ]

    def describe_configs(self, resources, config_filter):
        return {
            "topic": {
                name: {k: {"value": v} for k, v in config.items()}
                for name, config in self.configs.items()
            }
        }

    def describe_cluster(self):
        return {"cluster_id": self.cluster}


def planned():
    return (
        {plan.name: plan.partitions for plan in plans(CONFIG)},
        {plan.name: dict(plan.configs) for plan in plans(CONFIG)},
    )


def findings(change_counts=None, change_configs=None):
    counts, configs = planned()
    counts |= change_counts or {}
    for name, values in (change_configs or {}).items():
        configs[name] |= values
    return [(f.level, f.text) for f in check(Admin(counts, configs), CONFIG)]


def test_topics_as_planned_have_no_findings():
    assert findings() == []


def test_missing_topics_are_errors_but_predictions():
    levels = {text: level for level, text in findings({"clicks": 0, "predictions": 0})}
    assert levels["topic 'clicks' does not exist"] == "error"
    assert levels["topic 'predictions' does not exist"] == "warning"


def test_unequal_partitions_of_impressions_and_clicks_are_an_error():
    found = findings({"clicks": 3})
    assert (
        "error",
        "'impressions' has 2 partitions and 'clicks' 3: both need the same number",
    ) in (found)


def test_item_vectors_that_are_not_compacted_are_an_error():
    found = findings(change_configs={"item-vectors": {"cleanup.policy": "delete"}})
    assert found == [("error", "topic 'item-vectors' has cleanup.policy=delete, expected compact")]


def test_retention_below_twice_the_age_of_a_snapshot_is_a_warning():
    hour_ms = 3_600_000
    assert findings(change_configs={"clicks": {"retention.ms": str(96 * hour_ms)}}) == []
    ((level, text),) = findings(change_configs={"clicks": {"retention.ms": str(95 * hour_ms)}})
    assert level == "warning"
    assert "keeps records 95 h" in text
    assert findings(change_configs={"clicks": {"retention.ms": "-1"}}) == []


def test_worker_names_all_that_keeps_it_from_running():
    counts, _ = planned()
    with pytest.raises(InputError, match=r"'clicks' does not exist.*'dead-letters' does not exist"):
        require_stream_topics(Admin({**counts, "clicks": 0, "dead-letters": 0}), CONFIG)
    assert require_stream_topics(Admin({**counts, "items": 0}), CONFIG)["clicks"].partitions == 2


def test_source_ids_tell_clusters_and_recreated_topics_apart():
    counts, _ = planned()
    admin = Admin(counts)
    ids = source_ids(admin, require_stream_topics(admin, CONFIG))
    other = source_ids(Admin(counts, cluster="c2"), require_stream_topics(admin, CONFIG))
    assert len({*ids.values(), *other.values()}) == 2 * len(ids)
