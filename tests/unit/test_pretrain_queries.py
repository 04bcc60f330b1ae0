"""Pairs of queries and what was clicked for them: from every form of event, and trained on."""

import json
import random

import numpy as np
import pytest

from embeddings.encoders.hashed_text import HashedTextConfig, HashedTextEncoder
from infra.errors import InputError
from stream.cli import run
from stream.codec_write import encode_columns, encode_event, encode_key, item_body
from stream.commands import pretrain_scl
from stream.keys import key_of
from stream.queries import query_pairs
from stream.record_log import RecordLogWriter
from tests.support.streams import T0, click, impression

TOPICS = {"impressions": "impressions", "clicks": "clicks"}


def write(path, rows):
    offsets = {}
    with RecordLogWriter(path, {"items": 1, **dict.fromkeys(TOPICS, 1)}, ordered=True) as log:
        for at, topic, (key, value) in rows:
            offsets[topic] = offsets.get(topic, -1) + 1
            log.write(topic, 0, offsets[topic], T0 + at, key, value)
    return path


def every_form(path):
    body = {
        "request_id": "r2", "user_id": 2, "ts_ms": T0 + 20, "items": [{"item_id": "b"}],
        "context": {"query": "red hat"},
    }  # fmt: skip
    columns = {
        "request_id": np.array([3, 3, 4]), "user_id": 3, "item_id": np.array([5, 6, 7]),
        "ts_ms": T0 + 30, "context.query": ["boots", "boots", "belt"],
    }  # fmt: skip
    clicks = [
        (1, 10, 40, 1), (2, "b", 50, "r2"), (3, 6, 60, 3), (3, 7, 61, 4), (1, 10, 70, 1),
        (9, 1, 80, 99),
    ]  # fmt: skip
    return write(
        path,
        [
            (10, "impressions", impression(1, 1, 10, [10, 11], query="shoe")),
            (20, "impressions", (encode_key(2), encode_event("impressions", {"events": [body]}))),
            (30, "impressions", (encode_key(3), encode_columns("impression_columns", 3, columns))),
            (31, "impressions", impression(5, 1, 31, [10], query=7)),
            (32, "impressions", (None, b"\xc1")),
            *(
                (at, "clicks", click(user, item, at, "click", request))
                for user, item, at, request in clicks
            ),
        ],
    )


def test_queries_of_every_form_find_what_was_clicked(tmp_path):
    pairs, contents = query_pairs([every_form(tmp_path / "l.parquet")], field="query", **TOPICS)
    found = {
        (contents[left].title, right): at - T0
        for left, right, at in zip(
            pairs.left_P.tolist(), pairs.right_P.tolist(), pairs.ts_ms_P.tolist(), strict=True
        )
    }
    assert found == {
        ("shoe", key_of(10)): 40,
        ("red hat", key_of("b")): 50,
        ("boots", key_of(6)): 60,
        ("belt", key_of(7)): 61,
    }
    assert len(pairs) == 4


def test_a_field_that_nobody_fills_is_an_error(tmp_path):
    with pytest.raises(InputError, match=r"context\.words"):
        query_pairs([every_form(tmp_path / "l.parquet")], field="words", **TOPICS)
    with pytest.raises(InputError, match="no click belongs"):
        query_pairs([every_form(tmp_path / "l.parquet")], field="query", kinds=("like",), **TOPICS)


@pytest.mark.slow
def test_queries_learn_to_find_titles_that_share_no_word(tmp_path, monkeypatch):
    rng = random.Random(0)
    groups, items = 6, 60
    rows = []
    for item in range(items):
        title = f"title{item % groups} " + " ".join(f"noise{rng.randrange(30)}" for _ in range(3))
        body = item_body(item_id=item, ts_ms=T0, title=title)
        rows.append((0, "items", (encode_key(item), encode_event("item", body))))
    for request in range(1_000):
        at, user, item = 10 + request * 100, rng.randrange(50), rng.randrange(items)
        query = f"query{item % groups} words{rng.randrange(4)}"
        shown = impression(request, user, at, [item], query=query)
        rows.append((at, "impressions", shown))
        rows.append((at + 1, "clicks", click(user, item, at + 1, "click", request)))
    log = write(tmp_path / "l.parquet", rows)
    encoder = HashedTextEncoder(HashedTextConfig(dim=256))
    monkeypatch.setattr(pretrain_scl, "raw_encoder_of", lambda _: encoder)
    out = tmp_path / "p.safetensors"
    options = ("dim=32", "epochs=10", "batch_size=64", "lr=0.01", "keys=128", "momentum=0.5")
    given = ["pretrain", "scl", str(log), "--until", str(T0 + 70_000), "--out", str(out)]
    chosen = [word for option in options for word in ("--option", option)]
    assert run([*given, *chosen, "--pairs", "query", "--objective", "batch"]) == 0
    report = json.loads((tmp_path / "p.safetensors.json").read_text())
    assert (report["items"], report["queries"]) == (items, groups * 4)
    assert report["recall"]["raw"] < 0.35
    assert report["recall"]["trained"] > 0.8
    assert report["trained_over_control"]["low"] > 0
