"""Topics that change under a running process, without a broker."""

from __future__ import annotations

import asyncio

import pytest

from infra.errors import InputError
from stream.kafka.connection import BrokerUnreachableError
from stream.kafka.topic_watch import Log, TopicWatch

START = {"items": Log("live:c:1", 2), "item-vectors": Log("live:c:2", 2)}


def watch(*answers):
    """A watch that gets these answers, one a look."""
    left = list(answers)

    def ask(names):
        assert sorted(names) == sorted(START)
        answer = left.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    return TopicWatch(START, ask, every_s=0.0), left


def ends(*answers):
    """The error that ends the watch; all answers were asked for."""

    async def run():
        one, left = watch(*answers)
        async with asyncio.timeout(20):
            with pytest.raises(InputError) as error:
                await one.run()
        assert not left
        return str(error.value)

    return asyncio.run(run())


@pytest.mark.parametrize(
    ("changed", "says"),
    (
        (Log("live:c:9", 2), "topic 'items' was deleted and made anew while it was read"),
        (Log("live:d:1", 2), "made anew"),
        (Log("live:c:1", 3), "topic 'items' has 3 partitions now, and had 2 at the start"),
    ),
)
def test_a_topic_that_became_another_one_ends_the_process(changed, says):
    assert says in ends(START, {**START, "items": changed})


def test_a_topic_that_is_gone_ends_it_at_the_second_look():
    without = {"items": START["items"]}
    assert "topic 'item-vectors' was deleted" in ends(without, START, without, without)


def test_a_broker_that_is_away_is_not_a_topic_that_is_gone():
    away = BrokerUnreachableError("away")
    assert "made anew" in ends(away, away, {**START, "items": Log("live:c:3", 2)})
