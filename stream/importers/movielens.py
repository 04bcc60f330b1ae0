"""MovieLens' ratings to a record log. The only module that knows this data set; for tests only.

Not an impression log: each rating counts as one impression, a rating of `LIKED_FROM` or more as a
click on it, a lower one as a click of kind `dislike`, for histories, `CLICK_DELAY_MS` later. What a
person chose to rate is taken as what was shown, so the figures say how well liking is predicted and
nothing about clicks. Events may not lie before the year 2000: earlier ratings are moved by
`SHIFT_MS`, 28 years, which keeps dates and weekdays.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa

from stream.codec_write import click_body, encode_key, impression_body, item_body
from stream.columns import I64
from stream.events import TIME_MIN_MS
from stream.importers.import_config import ImportConfig, ImportCounts, Progress, unheard
from stream.importers.log_builder import Outgoing, write_log
from stream.importers.table_file import cells, first_of, in_span, read_table, row_ids

LIKED_FROM: Final = 4
CLICK_DELAY_MS: Final = 1_000
SHIFT_MS: Final = 10_227 * 86_400_000
_RATINGS: Final = ("user_id", "item_id", "rating", "ts")
_USERS: Final = ("user_id", "age", "gender", "occupation", "zip")
_GENRES: Final = (
    "unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary",
    "Drama", "Fantasy", "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi",
    "Thriller", "War", "Western",
)  # fmt: skip
_ITEMS: Final = ("item_id", "title", "release_date", "video_date", "url", *_GENRES)
_ML1M_ID: Final = "ml1m_movie_id"


@dataclass(frozen=True, slots=True, kw_only=True)
class MovieLensImportConfig(ImportConfig):
    """Tables by the 1M set's movie id, for items that name theirs: overviews, and pictures (JPEG).

    Times of the span are those of the log, after any shift.
    """

    texts: Path | None = None
    posters: Path | None = None


def import_movielens(
    source: Path, out: Path, config: MovieLensImportConfig, on_records: Progress = unheard
) -> ImportCounts:
    """Write the record log `out` from the tables in the folder `source`.

    Needs ratings.parquet or the publisher's u.data (seconds); items.parquet or u.item and
    users.parquet or u.user are optional. Raises InputError when a table is absent, unreadable or
    lacks a column, or no rating lies in the span.
    """
    path = first_of(source, ("ratings.parquet", "u.data"))
    ratings = read_table(path, _RATINGS, **_layout(path, _RATINGS, "\t"))
    ts_ms_n = ratings["ts"].to_numpy().astype(np.int64) * 1_000
    if len(ts_ms_n) and ts_ms_n.min() < TIME_MIN_MS:
        ts_ms_n = ts_ms_n + SHIFT_MS
    ratings, ts_ms_n = in_span(ratings, ts_ms_n, config, path)
    shown = _Shown.of(ratings, ts_ms_n)
    streams = {
        "items": _items(source, config, int(ts_ms_n.min()) - 1),
        "impressions": _impressions(shown, _people(source)),
        "clicks": _clicks(shown),
    }
    return write_log(out, streams, config, on_records)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shown:
    requests: list[int]
    users: list[int]
    items: list[int]
    times: list[int]
    liked: list[bool]

    @classmethod
    def of(cls, ratings: pa.Table, ts_ms_n: I64) -> _Shown:
        user_n, item_n = ratings["user_id"].to_numpy(), ratings["item_id"].to_numpy()
        return cls(
            requests=row_ids([user_n, item_n, ts_ms_n], "movielens request").tolist(),
            users=user_n.tolist(),
            items=item_n.tolist(),
            times=ts_ms_n.tolist(),
            liked=(ratings["rating"].to_numpy() >= LIKED_FROM).tolist(),
        )


def _layout(path: Path, names: tuple[str, ...], delimiter: str) -> dict[str, Any]:
    if path.suffix == ".parquet":
        return {}
    return {"names": names, "delimiter": delimiter, "encoding": "latin1"}


def _people(source: Path) -> dict[int, dict[str, Any]]:
    path = first_of(source, ("users.parquet", "u.user"))
    if not path.is_file():
        return {}
    table = read_table(path, ("user_id",), **_layout(path, _USERS, "|"))
    rows = cells(table, [name for name in _USERS if name in table.column_names])
    return {row.pop("user_id"): row for row in rows}


def _impressions(shown: _Shown, people: dict[int, dict[str, Any]]) -> Iterator[Outgoing]:
    rows = zip(shown.requests, shown.users, shown.items, shown.times, strict=True)
    for request, user, item, ts_ms in rows:
        body = impression_body(
            request_id=request,
            user_id=user,
            ts_ms=ts_ms,
            context=people.get(user, {}),
            items=[{"item_id": item, "position": 0}],
        )
        yield Outgoing(ts_ms, encode_key(user), "impression", body)


def _clicks(shown: _Shown) -> Iterator[Outgoing]:
    rows = zip(shown.requests, shown.users, shown.items, shown.times, shown.liked, strict=True)
    for request, user, item, shown_ms, liked in rows:
        ts_ms, kind = shown_ms + CLICK_DELAY_MS, "click" if liked else "dislike"
        body = click_body(request_id=request, item_id=item, user_id=user, ts_ms=ts_ms, kind=kind)
        yield Outgoing(ts_ms, encode_key(user), "click", body)


def _by_movie(path: Path | None, column: str) -> dict[int, Any]:
    """A column of a table by the 1M set's movie id."""
    if path is None:
        return {}
    table = read_table(path, (_ML1M_ID, column))
    return dict(zip(table[_ML1M_ID].to_pylist(), table[column].to_pylist(), strict=True))


def _items(source: Path, config: MovieLensImportConfig, ts_ms: int) -> Iterator[Outgoing]:
    path = first_of(source, ("items.parquet", "u.item"))
    if not path.is_file():
        return
    table = read_table(path, ("item_id", "title"), **_layout(path, _ITEMS, "|"))
    extras = {
        "text": _by_movie(config.texts, "overview"),
        "image": _by_movie(config.posters, "jpeg"),
    }
    for row in table.to_pylist():
        genres = row.get("genres") or [genre for genre in _GENRES if row.get(genre)]
        attributes: dict[str, Any] = {"genres": genres}
        released = row.get("release_date")
        if released and released[-4:].isdigit():
            attributes["year"] = int(released[-4:])
        content = {"title": row["title"]}
        movie = row.get(_ML1M_ID) or 0
        content |= {name: of[movie] for name, of in extras.items() if of.get(movie)}
        item = row["item_id"]
        body = item_body(item_id=item, ts_ms=ts_ms, attributes=attributes, **content)
        yield Outgoing(ts_ms, encode_key(item), "item", body)
