"""The real broker as a child process: what it was told survives its end, however it ends."""

import pytest
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import KafkaAdminClient, NewTopic

from infra.broker_process import answers

pytestmark = pytest.mark.kafka


@pytest.mark.slow
def test_records_survive_a_stop_and_a_kill_on_the_same_address(own_kafka):
    address = own_kafka.address
    admin = KafkaAdminClient(bootstrap_servers=address)
    admin.create_topics([NewTopic("t", num_partitions=1, replication_factor=1)])
    admin.close()
    for end in (own_kafka.stop, own_kafka.kill):
        producer = KafkaProducer(bootstrap_servers=address, acks="all")
        producer.send("t", end.__name__.encode()).get(30)
        producer.close()
        pid = own_kafka.pid
        end()
        assert own_kafka.pid is None
        assert not answers("127.0.0.1", own_kafka.port)
        own_kafka.start()
        assert own_kafka.pid != pid
        assert own_kafka.address == address
    consumer = KafkaConsumer(bootstrap_servers=address, consumer_timeout_ms=30_000)
    consumer.assign([TopicPartition("t", 0)])
    consumer.seek(TopicPartition("t", 0), 0)
    assert [next(consumer).value for _ in range(2)] == [b"stop", b"kill"]
    consumer.close()
