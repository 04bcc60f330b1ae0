"""Settings of the shell: what cannot work is refused with a sentence."""

from __future__ import annotations

import pytest

from infra.config import ConfigError
from infra.errors import InputError
from stream.kafka.settings import KafkaConfig, TopicsConfig, WorkerConfig, load_shell, with_broker


@pytest.mark.parametrize(
    ("make", "says"),
    (
        (lambda: KafkaConfig(broker="nowhere"), "host:port"),
        (lambda: KafkaConfig(broker="a:0"), "host:port"),
        (lambda: KafkaConfig(broker="a:1,b"), "got 'b'"),
        (lambda: KafkaConfig(group=""), "kafka.group"),
        (lambda: KafkaConfig(session_timeout_s=5.0), "6 to 1800"),
        (lambda: KafkaConfig(session_timeout_s=100.0), "below request_timeout_s"),
        (lambda: TopicsConfig(clicks="impressions"), "must differ"),
        (lambda: TopicsConfig(partitions=0), "topics.partitions"),
        (lambda: TopicsConfig(replication=0), "1 or more"),
        (lambda: WorkerConfig(queued_batches=0), "worker.queued_batches"),
        (lambda: WorkerConfig(dead_letter_value_bytes_max=1_000_000), "must fit in 1 MB"),
    ),
)
def test_values_that_cannot_work_are_refused(make, says):
    with pytest.raises(ValueError, match=says):
        make()


def test_several_brokers_and_ipv6_are_addresses():
    assert KafkaConfig(broker="a:1, [::1]:9092").servers == ["a:1", "[::1]:9092"]


def test_no_broker_says_how_to_name_one():
    with pytest.raises(InputError, match="--broker HOST:PORT"):
        _ = KafkaConfig().servers


def test_shell_reads_its_tables_and_leaves_others_alone(tmp_path):
    file = tmp_path / "c.toml"
    file.write_text('[kafka]\nbroker = "a:1"\n[ranker]\nname = "x"\n[topics]\npartitions = 2\n')
    config = load_shell([file], ["topics.clicks=c"], broker=None)
    assert (config.kafka.broker, config.topics.partitions, config.topics.clicks) == ("a:1", 2, "c")
    assert load_shell([file], [], broker="b:2").kafka.broker == "b:2"


def test_unknown_key_of_an_own_table_names_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'partitions'"):
        load_shell([], ["topics.partition=2"], broker=None)


def test_bad_broker_option_is_input_not_a_fault():
    with pytest.raises(InputError, match="--broker"):
        with_broker(load_shell([], [], broker=None), "x")
