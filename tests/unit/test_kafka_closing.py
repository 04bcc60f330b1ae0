"""The end of what waits for a broker, without a broker."""

from __future__ import annotations

import asyncio

import pytest

from stream.kafka.closing import stop_client, stop_clients, unless_stopped


class Client:
    """Stops as told; `_client` stands for its connections."""

    def __init__(self, stop):
        self._stop, self._client, self.closed = stop, self, 0

    async def stop(self):
        await self._stop()

    async def close(self):
        self.closed += 1


async def at_once():
    pass


async def as_without_a_broker():
    raise asyncio.CancelledError


async def with_an_error():
    raise OSError("no way to the broker")


async def never():
    await asyncio.Event().wait()


@pytest.mark.parametrize(
    ("how", "closed"), ((at_once, 0), (as_without_a_broker, 1), (with_an_error, 1), (never, 1))
)
def test_a_client_s_stop_ends_in_time_and_raises_nothing(how, closed):
    async def run():
        client = Client(how)
        async with asyncio.timeout(20):
            await stop_client(client, 0.01)
        return client.closed, asyncio.current_task().cancelling()

    assert asyncio.run(run()) == (closed, 0)


def test_one_client_that_hangs_does_not_keep_the_others():
    async def run():
        clients = [Client(never), Client(at_once), Client(as_without_a_broker)]
        async with asyncio.timeout(20):
            await stop_clients(*clients)
        return [client.closed for client in clients]

    assert asyncio.run(run()) == [1, 0, 1]


def test_a_part_is_done_unless_a_stop_comes_before():
    async def run(stop_first):
        stop, ended = asyncio.Event(), []

        async def part():
            try:
                await (never() if stop_first else at_once())
            finally:
                ended.append(True)

        if stop_first:
            asyncio.get_running_loop().call_soon(stop.set)
        async with asyncio.timeout(20):
            done = await unless_stopped(stop, part())
        return done, ended, len(asyncio.all_tasks())

    assert asyncio.run(run(stop_first=False)) == (True, [True], 1)
    assert asyncio.run(run(stop_first=True)) == (False, [True], 1)


def test_what_a_part_raises_is_raised():
    async def run():
        await unless_stopped(asyncio.Event(), with_an_error())

    with pytest.raises(OSError, match="no way"):
        asyncio.run(run())
