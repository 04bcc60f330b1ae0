"""MovieLens' ratings to a record log, on tables of a few rows in both published forms."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from infra.errors import InputError
from stream.commands.import_ import command
from stream.importers.movielens import (
    CLICK_DELAY_MS,
    SHIFT_MS,
    MovieLensImportConfig,
    import_movielens,
)
from tests.support.imported import messages

TS = 874_724_710  # 1997-09-20
T0 = TS * 1_000 + SHIFT_MS
RATINGS = [(1, 10, 4, TS), (1, 11, 3, TS), (2, 10, 5, TS + 60)]


def parquet(folder: Path, ratings: list[tuple[int, ...]] = RATINGS) -> Path:
    folder.mkdir()
    names = ("user_id", "item_id", "rating", "ts")
    table = pa.Table.from_pylist([dict(zip(names, r, strict=True)) for r in ratings])
    pq.write_table(table, folder / "ratings.parquet")
    items = [
        {"item_id": 10, "title": "Toy Story (1995)", "release_date": "01-Jan-1995",
         "genres": ["Animation", "Children's"], "ml1m_movie_id": 1},
        {"item_id": 11, "title": "Odd", "release_date": None, "genres": ["Drama"],
         "ml1m_movie_id": None},
    ]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(items), folder / "items.parquet")
    users = [{"user_id": 1, "age": 24, "gender": "M", "occupation": "writer", "zip": "85711"}]
    pq.write_table(pa.Table.from_pylist(users), folder / "users.parquet")
    return folder


def published(folder: Path) -> Path:
    folder.mkdir()
    (folder / "u.data").write_text("".join("\t".join(map(str, r)) + "\n" for r in RATINGS))
    flags = {"Animation", "Children's"}
    genres = """unknown Action Adventure Animation Children's Comedy Crime Documentary Drama
        Fantasy Film-Noir Horror Musical Mystery Romance Sci-Fi Thriller War Western""".split()  # noqa: SIM905 - nineteen words
    first = "|".join("1" if g in flags else "0" for g in genres)
    second = "|".join("1" if g == "Drama" else "0" for g in genres)
    (folder / "u.item").write_bytes(
        f"10|Toy Story (1995)|01-Jan-1995||http://x|{first}\n11|Odd|||http://x|{second}\n".encode(
            "latin1"
        )
    )
    (folder / "u.user").write_text("1|24|M|writer|85711\n9|30|F|artist|T8H1N\n")
    return folder


def imported(source: Path, out: Path, **config: Any) -> Path:
    import_movielens(source, out, MovieLensImportConfig(partitions=1, **config))
    return out


def test_each_rating_is_shown_and_a_liked_one_clicked(tmp_path: Path) -> None:
    log = imported(parquet(tmp_path / "in"), tmp_path / "log")
    shown = messages(log, "impressions")
    assert [(m["user_id"], m["items"][0]["item_id"], m["ts_ms"]) for m in shown] == [
        (1, 10, T0), (1, 11, T0), (2, 10, T0 + 60_000),
    ]  # fmt: skip
    person = {"age": 24, "gender": "M", "occupation": "writer", "zip": "85711"}
    assert [m["context"] for m in shown] == [person, person, {}]
    requests = {m["request_id"]: m["ts_ms"] for m in shown}
    clicks = messages(log, "clicks")
    assert [(m["user_id"], m["item_id"], m["kind"]) for m in clicks] == [
        (1, 10, "click"), (1, 11, "dislike"), (2, 10, "click"),
    ]  # fmt: skip
    assert all(m["ts_ms"] - requests[m["request_id"]] == CLICK_DELAY_MS for m in clicks)


def test_times_before_2000_move_by_28_years_and_keep_their_weekday(tmp_path: Path) -> None:
    log = imported(parquet(tmp_path / "in"), tmp_path / "log")
    was = dt.datetime.fromtimestamp(TS, dt.UTC)
    now = dt.datetime.fromtimestamp(messages(log, "impressions")[0]["ts_ms"] / 1_000, dt.UTC)
    assert now == was.replace(year=was.year + 28)
    assert now.weekday() == was.weekday()
    late = parquet(tmp_path / "late", [(1, 10, 4, 978_300_760)])
    shown = messages(imported(late, tmp_path / "log2"), "impressions")
    assert shown[0]["ts_ms"] == 978_300_760_000


def test_films_become_items(tmp_path: Path) -> None:
    texts = tmp_path / "texts.parquet"
    pq.write_table(pa.table({"ml1m_movie_id": [1], "overview": ["Toys live."]}), texts)
    posters = tmp_path / "posters.parquet"
    pq.write_table(pa.table({"ml1m_movie_id": [1], "jpeg": [b"bytes"]}), posters)
    log = imported(parquet(tmp_path / "in"), tmp_path / "log", texts=texts, posters=posters)
    items = {m["item_id"]: m for m in messages(log, "items")}
    assert items[10]["attributes"] == {"genres": ["Animation", "Children's"], "year": 1995}
    assert (items[10]["title"], items[10]["text"]) == ("Toy Story (1995)", "Toys live.")
    assert items[10]["image"] == b"bytes"
    assert items[11]["attributes"] == {"genres": ["Drama"]}
    assert not {"text", "image"} & items[11].keys()
    assert items[10]["ts_ms"] == T0 - 1


def test_the_publishers_files_give_the_same_log(tmp_path: Path) -> None:
    ours = imported(parquet(tmp_path / "a"), tmp_path / "log_a")
    theirs = imported(published(tmp_path / "b"), tmp_path / "log_b")
    for topic in ("items", "impressions", "clicks"):
        assert messages(ours, topic) == messages(theirs, topic)


def test_ratings_alone_are_enough_and_needed(tmp_path: Path) -> None:
    source = parquet(tmp_path / "in")
    (source / "items.parquet").unlink()
    (source / "users.parquet").unlink()
    log = imported(source, tmp_path / "log")
    assert messages(log, "items") == []
    assert messages(log, "impressions")[0]["context"] == {}
    (source / "ratings.parquet").unlink()
    with pytest.raises(InputError, match="there is no such file"):
        imported(source, tmp_path / "log")


def test_the_command_writes_and_cuts(tmp_path: Path) -> None:
    source = parquet(tmp_path / "in")
    arguments = ["movielens", str(source), str(tmp_path / "log"), "--to", str(T0 + 1)]
    result = CliRunner().invoke(command, arguments)
    assert "2 impressions, 2 clicks, 0 organic events, 2 items" in result.output
