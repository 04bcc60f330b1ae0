"""Ends what waits for a broker: at a stop, and within a time limit. Sends nothing."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any, Final

log = logging.getLogger(__name__)

STOP_CLIENT_S: Final = 3.0
"""For a consumer to leave its group and a producer to send what waits, where the broker answers."""


async def stop_client(client: Any, limit_s: float = STOP_CLIENT_S) -> None:
    """Stop an aiokafka consumer or producer; returns in time and raises nothing of the client's.

    While a broker is away, a consumer's own `stop` raises CancelledError, as its fetcher awaits
    tasks that it has just cancelled, and a producer's waits for its request timeout.
    """
    stopping = asyncio.ensure_future(client.stop())
    await asyncio.wait({stopping}, timeout=limit_s)
    if not stopping.done():
        stopping.cancel()
    elif not stopping.cancelled() and (error := stopping.exception()) is None:
        return
    else:
        log.info("a Kafka client did not stop cleanly: %r", None if stopping.cancelled() else error)
    connections = getattr(client, "_client", None) or getattr(client, "client", None)
    if connections is not None:
        closing = asyncio.ensure_future(connections.close())
        await asyncio.wait({closing, stopping}, timeout=limit_s)
        for task in (closing, stopping):
            if task.done() and not task.cancelled():
                task.exception()  # looked at: nobody else will


async def stop_clients(*clients: Any) -> None:
    """Stop several clients at once, as `stop_client` does."""
    await asyncio.gather(*(stop_client(client) for client in clients))


async def unless_stopped(stop: asyncio.Event, part: Coroutine[Any, Any, None]) -> bool:
    """Do this part, and say so; False where `stop` was set before it was done. Raises what it does.

    For parts that wait for the broker, which may be away for as long as it likes.
    """
    doing = asyncio.ensure_future(part)
    stopped = asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait({doing, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if not doing.done():
            return False
        doing.result()
        return True
    finally:
        doing.cancel()
        stopped.cancel()
        await asyncio.wait({doing, stopped})
