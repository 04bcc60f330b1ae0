"""`millrace pretrain scl` on a log whose users keep to groups of items; and the pairs it makes."""

import json
import random

import numpy as np
import pytest

from embeddings.encoders.projection import read_projection
from embeddings.encoders.table import TableEncoder
from embeddings.item_content import ItemContent
from embeddings.pretrain.pairs import (
    Interactions,
    PairConfig,
    Pairs,
    hard_negatives,
    mine_pairs,
    nearest_pairs,
)
from embeddings.pretrain.trainer import ContrastTrainer
from embeddings.vector_file import VectorFile
from infra.errors import InputError
from stream.cli import run
from stream.codec_write import encode_event, encode_key, item_body
from stream.keys import key_of
from stream.pretraining import encode_items, read_items, training_pairs
from stream.record_log import RecordLogWriter
from tests.support.streams import T0, click, impression

ITEMS, GROUPS, USERS = 60, 6, 150
LATER_MS = 100_000_000
MINUTE_MS = 60_000


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    """Items with a tag of their group and many of chance; half of the users come later."""
    path = tmp_path_factory.mktemp("scl") / "log.parquet"
    rng = random.Random(0)
    rows = []
    for item in range(ITEMS):
        tags = [f"g{item % GROUPS}", *(f"n{rng.randrange(20)}" for _ in range(4))]
        body = item_body(item_id=item, ts_ms=T0, attributes={"tag": tags})
        rows.append((0, "items", encode_key(item), encode_event("item", body)))
    for user in range(USERS):
        start = LATER_MS * (user % 2) + user * 1_000
        group = rng.randrange(GROUPS)
        mine = rng.sample(range(group, ITEMS, GROUPS), 5)
        for step, item in enumerate(mine):
            at, request = start + step * MINUTE_MS, user * 100 + step
            other = rng.choice([i for i in range(ITEMS) if i % GROUPS != group])
            rows.append((at, "impressions", *impression(request, user, at, [item, other])))
            rows.append((at + 1, "clicks", *click(user, item, at + 1, "click", request)))
    rows.sort(key=lambda row: row[0])
    offsets = dict.fromkeys(("items", "impressions", "clicks"), 0)
    with RecordLogWriter(path, dict.fromkeys(offsets, 1), ordered=True) as writer:
        for at, topic, key, value in rows:
            writer.write(topic, 0, offsets[topic], T0 + at, key, value)
            offsets[topic] += 1
    return path


def arguments(log, out, *more):
    options = ("epochs=4", "dim=16", "keys=128", "batch_size=64", "momentum=0.5", "lr=0.01")
    chosen = [word for option in options for word in ("--option", option)]
    until = ["--until", str(T0 + LATER_MS), "--set", "items.dim=64"]
    return ["pretrain", "scl", str(log), "--out", str(out), *until, *chosen, *more]


def report_of(out):
    return json.loads(out.with_name(f"{out.name}.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    (
        (),
        ("--objective", "batch", "--pairs", "next"),
        ("--objective", "batch", "--pairs", "nearest"),
    ),
    ids=["session", "next", "nearest"],
)
def test_the_next_item_is_found_more_often_than_by_raw_and_control(log, tmp_path, more, capsys):
    out = tmp_path / "p.safetensors"
    assert run(arguments(log, out, *more)) == 0
    report = report_of(out)
    assert report["items"] == ITEMS
    assert report["later_pairs"] == USERS // 2 * 4
    assert report["lift"]["trained"]["low"] > 0
    assert report["trained_over_control"]["low"] > 0
    assert report["recall"]["trained"] > report["recall"]["control"]
    assert report["epochs"][-1]["contrast"] < report["epochs"][0]["contrast"]
    assert report["alignment"]["trained"] < report["alignment"]["raw"]
    assert (report["pairs"]["with_hard_negative"] > 0) == (not more)
    assert f"items.projection={out}" in capsys.readouterr().out
    assert [p.name for p in tmp_path.iterdir() if p.name.endswith("state")] == []


def test_a_replay_uses_the_projection(log, tmp_path, capsys):
    out = tmp_path / "p.safetensors"
    assert run(arguments(log, out, "--no-control")) == 0
    version = read_projection(out).version
    assert report_of(out)["version"] == version
    replay = ["replay", str(log), "--report", str(tmp_path / "r"), "--set", "stream.batch_size=64"]
    projection = ["--set", f"items.projection={out}"]
    assert run([*replay, *projection, "--set", "items.dim=64"]) == 2
    assert "set items.dim=16" in capsys.readouterr().err
    other = [*projection, "--set", "items.dim=16", "--set", "items.seed=5"]
    assert run([*replay, *other]) == 2
    assert "trained on encoder" in capsys.readouterr().err
    assert run([*replay, *projection, "--set", "items.dim=16"]) == 0
    content = json.loads((tmp_path / "r" / "report.json").read_text())
    assert content["items_rejected_by_reason"] == {}
    assert content["samples"] == USERS * 5 * 2


@pytest.mark.slow
def test_an_interrupted_training_goes_on_where_it_was(log, tmp_path, monkeypatch):
    whole, broken = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    assert run(arguments(log, whole, "--no-control")) == 0
    epoch = ContrastTrainer.run_epoch
    ended = []

    def two_epochs(trainer, *rest):
        if len(ended) == 2:
            raise KeyboardInterrupt
        ended.append(trainer.step)
        return epoch(trainer, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(ContrastTrainer, "run_epoch", two_epochs)
        assert run(arguments(log, broken, "--no-control")) != 0
    assert not broken.exists()
    assert run(arguments(log, broken, "--no-control", "--resume")) == 0
    assert [fact["epoch"] for fact in report_of(broken)["epochs"]] == [3, 4]
    assert read_projection(broken).version == read_projection(whole).version


@pytest.mark.parametrize(
    ("more", "words"),
    (
        (("--option", "dimension=3"), "expected one of"),
        (("--option", "dim=three"), "expected int"),
        (("--option", "temperature=0"), "temperature and lr must be positive"),
        (("--window-items", "0"), "window_items"),
        (("--until", str(T0)), "pairs of items with vectors"),
        (("--set", "topics.items=nothing"), "nothing to encode"),
    ),
)
def test_what_cannot_work_is_one_clear_line(log, tmp_path, more, words, capsys):
    assert run(arguments(log, tmp_path / "p.safetensors", *more)) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("millrace: ")
    assert words in error


def test_without_anything_later_there_is_a_reason_and_no_figure(log, tmp_path):
    out = tmp_path / "p.safetensors"
    assert run(arguments(log, out, "--no-control", "--until", str(T0 + 10 * LATER_MS))) == 0
    report = report_of(out)
    assert report["later_pairs"] == 0
    assert "no pair of items" in report["reason"]
    assert "recall" not in report


def test_an_encoder_that_knows_no_item_is_an_error(log):
    nothing = VectorFile(item_ids=["x"], vectors_ND=np.ones((1, 2), np.float32), version="v")
    with pytest.raises(InputError, match="no vector for any of 60 items"):
        encode_items(TableEncoder(nothing), read_items([log], "items"), lambda _, __: None)


def columns(rows, kind):
    return kind(*np.array(rows, np.int64).reshape(-1, len(kind.__slots__)).T)


def test_the_nearest_of_what_a_user_took_is_the_trigger():
    items = np.array([1, 2, 3, 4])
    vectors = np.array([[1, 0], [0.6, 0.8], [0, 1], [0.8, 0.6]], np.float32)
    pairs = columns([(1, 3, 9, 5), (2, 3, 9, 5), (4, 3, 9, 5), (1, 4, 9, 6), (7, 4, 9, 6)], Pairs)
    found = nearest_pairs(pairs, items, vectors)
    assert sorted(zip(found.left_P.tolist(), found.right_P.tolist(), strict=True)) == [
        (1, 4), (2, 3),
    ]  # fmt: skip


def test_the_hard_negative_is_what_the_user_passed_over_last():
    pairs = columns([(1, 2, 7, 100), (1, 2, 8, 100), (1, 2, 7, 20), (1, 2, 9, 100)], Pairs)
    taken = columns([(7, 2, 100), (7, 5, 60), (8, 2, 100)], Interactions)
    shown = columns(
        [(7, 4, 10), (7, 3, 50), (7, 5, 60), (7, 6, 101), (8, 4, 100), (7, 3, 5)], Interactions
    )
    item, found = hard_negatives(pairs, shown, taken)
    assert item.tolist() == [3, 4, 4, 0]  # 5 was taken later, 6 was shown too late
    assert found.tolist() == [1, 1, 1, 0]
    none = columns([], Interactions)
    assert hard_negatives(pairs, none, taken)[1].tolist() == [0, 0, 0, 0]


def test_sources_of_pairs_differ_as_they_say():
    taken = [(u, 10 * (u % 3) + i, i * MINUTE_MS) for u in range(12) for i in range(4)]
    past = columns(taken, Interactions)
    window = PairConfig(window_ms=2 * MINUTE_MS, window_items=5)
    assert len(training_pairs(past, "session", window)) == 12 * (3 + 2)
    assert len(training_pairs(past, "next", window)) == 12 * 3
    nearest = training_pairs(past, "nearest", window)
    assert len(nearest) == 12 * 3
    everything = mine_pairs(past, PairConfig())
    assert len(everything) == 12 * 6


def test_the_last_content_of_an_item_counts_and_deleted_ones_do_not(tmp_path):
    bodies = [
        item_body(item_id=1, ts_ms=T0, title="old"),
        item_body(item_id=1, ts_ms=T0 + 5, title="new"),
        item_body(item_id=2, ts_ms=T0, title="gone"),
        item_body(item_id=2, ts_ms=T0 + 5, deleted=True),
    ]
    with RecordLogWriter(tmp_path / "l.parquet", {"items": 1}, ordered=True) as writer:
        for offset, body in enumerate(bodies):
            key = encode_key(body["item_id"])
            writer.write("items", 0, offset, T0, key, encode_event("item", body))
    found = read_items([tmp_path / "l.parquet"], "items")
    assert found == {key_of(1): ItemContent(item_id=1, ts_ms=T0 + 5, title="new")}
