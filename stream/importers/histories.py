"""Lists of what users chose before a log begins, as organic events in front of it.

A list has no time of its entries: they get strictly increasing milliseconds that end just before
the log's first event, one user after the other, so that the log begins in order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from stream.codec_write import Id, encode_columns, encode_key
from stream.importers.log_builder import Outgoing


def organic_histories(
    users: Sequence[Id], items: Sequence[Sequence[Id]], *, kind: str, end_ms: int
) -> Iterator[Outgoing]:
    """One columnar envelope a user with items, oldest first; the last event is at `end_ms` - 1."""
    next_ms = end_ms - sum(map(len, items))
    for user, chosen in zip(users, items, strict=True):
        if not chosen:
            continue
        n = len(chosen)
        text = any(isinstance(item, str) for item in chosen)
        columns = {
            "user_id": user,
            "kind": kind,
            "item_id": list(map(str, chosen)) if text else np.array(chosen, np.int64),
            "ts_ms": np.arange(next_ms, next_ms + n),
        }
        next_ms += n
        message = encode_columns("click_columns", n, columns)
        yield Outgoing(next_ms - 1, encode_key(user), "click_columns", {}, message)
