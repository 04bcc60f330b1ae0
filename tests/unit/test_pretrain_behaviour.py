"""Behavioural vectors: golden counts, groups that users keep to, the file, and the command."""

import json
import random

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embeddings.encoders.table import TableEncoder
from embeddings.item_content import ItemContent
from embeddings.pretrain.behaviour import (
    BehaviourConfig,
    behaviour_vectors,
    co_counts,
    positive_information,
)
from embeddings.pretrain.pairs import Interactions, PairConfig, pair_blocks
from embeddings.vector_file import (
    VectorFile,
    VectorFileUnusable,
    content_version,
    read_vector_file,
    write_vector_file,
)
from infra.errors import InputError
from stream.cli import run
from stream.codec_write import encode_columns, encode_event, encode_key
from stream.interactions import read_interactions
from stream.keys import key_of
from stream.record_log import RecordLogWriter
from tests.support.logs import write_log
from tests.support.streams import T0, click


def rows(triples):
    return Interactions(*np.array(triples, np.int64).reshape(-1, 3).T)


def grouped(users=300, groups=4, per_group=30, seed=0):
    """Users who take items of one group each; item = group * 100 + number."""
    rng = random.Random(seed)
    taken = []
    for user in range(users):
        group = rng.randrange(groups)
        for step, number in enumerate(rng.sample(range(per_group), 8)):
            taken.append((user, group * 100 + number, step))
    return rows(taken)


def test_pairs_are_counted_in_both_directions():
    taken = rows([(1, 5, 1), (1, 6, 2), (2, 6, 1), (2, 5, 9), (3, 5, 1), (3, 7, 2)])
    counts, pairs = co_counts(pair_blocks(taken, PairConfig()), np.array([5, 6, 7]))
    assert pairs == 3
    assert counts.toarray().tolist() == [[0, 2, 1], [2, 0, 0], [1, 0, 0]]


def test_information_is_the_formula_and_never_negative():
    taken = rows([(1, 5, 1), (1, 6, 2), (2, 6, 1), (2, 5, 9), (3, 5, 1), (3, 7, 2)])
    counts, _ = co_counts(pair_blocks(taken, PairConfig()), np.array([5, 6, 7]))
    dense, total = counts.toarray(), counts.toarray().sum(axis=1)
    context = total**0.75
    with np.errstate(divide="ignore"):
        expected = np.log(dense * context.sum() / np.outer(total, context))
    found = positive_information(counts, BehaviourConfig(dim=1, smoothing=0.75))
    assert np.allclose(found.toarray(), np.maximum(expected, 0))
    shifted = positive_information(counts, BehaviourConfig(dim=1, shift=0.2))
    assert np.allclose(shifted.toarray(), np.maximum(expected - 0.2, 0))


def test_items_of_the_same_users_lie_close():
    found = behaviour_vectors(grouped(), PairConfig(), BehaviourConfig(dim=8))
    assert np.allclose(np.linalg.norm(found.vectors_ND, axis=1), 1, atol=1e-5)
    cosine = found.vectors_ND @ found.vectors_ND.T
    group = found.items_N // 100
    same = (group[:, None] == group[None, :]) & ~np.eye(len(group), dtype=bool)
    assert cosine[same].mean() > 0.5
    assert abs(cosine[group[:, None] != group[None, :]].mean()) < 0.1


def test_the_same_log_gives_the_same_vectors():
    first, second = (
        behaviour_vectors(grouped(), PairConfig(), BehaviourConfig(dim=8)) for _ in range(2)
    )
    assert np.array_equal(first.vectors_ND, second.vectors_ND)


def test_an_item_that_few_took_has_no_vector():
    taken = grouped()
    rare = rows([(user, 999, 100) for user in range(4)])
    both = Interactions(
        *(np.concatenate(pair) for pair in zip(
            (taken.user_n, taken.item_n, taken.ts_ms_n),
            (rare.user_n, rare.item_n, rare.ts_ms_n), strict=True,
        ))
    )  # fmt: skip
    few = behaviour_vectors(both, PairConfig(), BehaviourConfig(dim=8, users_min=5))
    enough = behaviour_vectors(both, PairConfig(), BehaviourConfig(dim=8, users_min=4))
    assert 999 not in few.items_N
    assert 999 in enough.items_N


def test_too_few_items_are_an_error_that_says_what_to_do():
    with pytest.raises(InputError, match="lower dim or users_min"):
        behaviour_vectors(grouped(), PairConfig(), BehaviourConfig(dim=500))


@pytest.mark.parametrize("ids", ([3, -7, 9], ["a", "b", "ü"]))
def test_a_file_holds_what_was_written(tmp_path, ids):
    vectors = np.arange(6, dtype=np.float32).reshape(3, 2)
    version = content_version("behaviour", ids, vectors)
    file = VectorFile(item_ids=ids, vectors_ND=vectors, version=version, facts={"until_ms": 5})
    write_vector_file(tmp_path / "v.parquet", file)
    back = read_vector_file(tmp_path / "v.parquet")
    assert (list(back.item_ids), back.version, back.facts) == (ids, version, {"until_ms": 5})
    assert np.array_equal(back.vectors_ND, vectors)
    assert [p.name for p in tmp_path.iterdir()] == ["v.parquet"]


def test_other_vectors_are_another_version():
    vectors = np.eye(3, dtype=np.float32)
    versions = {
        content_version("a", [1, 2, 3], vectors),
        content_version("a", [1, 2, 4], vectors),
        content_version("a", [1, 2, 3], vectors * 2),
        content_version("b", [1, 2, 3], vectors),
    }
    assert len(versions) == 4


def test_a_file_of_another_program_serves(tmp_path):
    path = tmp_path / "v.parquet"
    pq.write_table(pa.table({"item_id": [1, 2, 3], "vector": [[1.0, 2.0], None, [3.0, 4.0]]}), path)
    file = read_vector_file(path)
    assert list(file.item_ids) == [1, 3]
    assert file.version.startswith("file-2-")


@pytest.mark.parametrize(
    ("columns", "words"),
    (
        ({"id": [1], "vector": [[1.0]]}, "expected columns item_id and vector"),
        ({"item_id": [1, 1], "vector": [[1.0], [2.0]]}, "each of them once"),
        ({"item_id": [1, 2], "vector": [[1.0], [2.0, 3.0]]}, "one length"),
        ({"item_id": [1], "vector": [[float("nan")]]}, "NaN"),
        ({"item_id": [1], "vector": ["text"]}, "list of numbers"),
    ),
)
def test_a_file_without_vectors_is_refused(tmp_path, columns, words):
    pq.write_table(pa.table(columns), tmp_path / "v.parquet")
    with pytest.raises(VectorFileUnusable, match=words):
        read_vector_file(tmp_path / "v.parquet")


def test_the_encoder_gives_an_item_its_vector_and_an_unknown_one_none():
    vectors = np.array([[1, 2], [3, 4]], np.float32)
    encoder = TableEncoder(VectorFile(item_ids=["x", "y"], vectors_ND=vectors, version="v"))
    items = [ItemContent(item_id=i, ts_ms=T0) for i in ("y", 5, "x")]
    found, present = encoder.encode_many(items)
    assert present.tolist() == [True, False, True]
    assert found.tolist() == [[3, 4], [0, 0], [1, 2]]


def click_log(path):
    """Single events, row and columnar envelopes, integer and text ids, and a watermark."""
    columns = {
        "user_id": 1,
        "item_id": ["x", "yz"],
        "ts_ms": np.array([T0 + 30, T0 + 40]),
        "kind": "click",
    }
    events = [{"item_id": 11, "user_id": 4, "ts_ms": T0 + 20, "kind": "watch"}]
    values = [
        click(3, 10, 10, "click", 77),
        (encode_key(4), encode_event("clicks", {"events": events})),
        (encode_key(1), encode_columns("click_columns", 2, columns)),
        (None, b"\xc1 damaged"),
        click(3, 12, 90, "like", 78),
    ]
    with RecordLogWriter(path, {"clicks": 1}, ordered=True) as log:
        for offset, (key, value) in enumerate(values):
            log.write("clicks", 0, offset, T0 + offset, key, value)
    return path


def test_interactions_of_every_form_come_with_their_ids(tmp_path):
    logged = read_interactions([click_log(tmp_path / "log.parquet")], topic="clicks")
    named = logged.named()
    assert sorted(logged.item_ids.values(), key=str) == [10, 11, 12, "x", "yz"]
    ids = [logged.item_ids[key] for key in named.item_n.tolist()]
    assert dict(zip(ids, (named.ts_ms_n - T0).tolist(), strict=True)) == {
        10: 10, 11: 20, "x": 30, "yz": 40, 12: 90,
    }  # fmt: skip
    assert named.user_n.tolist().count(key_of(3)) == 2
    assert logged.kinds == {"click": 3, "watch": 1, "like": 1}


def test_only_the_span_and_the_kinds_that_were_asked_for_are_read(tmp_path):
    path = click_log(tmp_path / "log.parquet")
    logged = read_interactions(
        [path], topic="clicks", kinds=["click", "watch"], from_ms=T0 + 20, until_ms=T0 + 40
    )
    assert (logged.interactions.ts_ms_n - T0).tolist() == [20, 30]
    assert logged.kinds == {"click": 1, "watch": 1}


def test_what_is_not_there_is_an_error(tmp_path):
    path = click_log(tmp_path / "log.parquet")
    with pytest.raises(InputError, match="no topic 'taps'"):
        read_interactions([path], topic="taps")
    with pytest.raises(InputError, match="no click is of kind 'buy'"):
        read_interactions([path], topic="clicks", kinds=["buy"])
    with pytest.raises(InputError, match="no clicks in that span"):
        read_interactions([path], topic="clicks", until_ms=T0)


def test_the_command_makes_a_file_that_a_replay_uses(tmp_path, capsys):
    log = write_log(tmp_path / "log.parquet", samples=600)
    out = tmp_path / "vectors.parquet"
    made = ["pretrain", "behaviour", str(log), "--until", str(T0 + 10**9), "--out", str(out)]
    assert run([*made, "--dim", "8", "--users-min", "2", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert 30 < facts["items"] <= 40
    file = read_vector_file(out)
    assert file.version == facts["version"]
    assert file.facts["until_ms"] == T0 + 10**9
    replay = ["replay", str(log), "--report", str(tmp_path / "r"), "--set", "stream.batch_size=256"]
    vectors = ["--set", f"items.vectors_file={out}"]
    assert run([*replay, *vectors, "--set", "items.dim=16"]) == 2
    assert "set items.dim=8" in capsys.readouterr().err
    assert run([*replay, *vectors, "--set", "items.dim=8"]) == 0
    assert "knowledge of the future" in capsys.readouterr().err
    report = json.loads((tmp_path / "r" / "report.json").read_text())
    assert report["items_rejected_by_reason"] == {}
    assert report["config"]["items"]["vectors_file"] == str(out)


def test_vectors_from_before_the_log_are_used_without_a_warning(tmp_path, capsys):
    log = write_log(tmp_path / "log.parquet", samples=300)
    vectors = np.eye(40, 8, dtype=np.float32) + 0.1
    file = VectorFile(
        item_ids=list(range(40)), vectors_ND=vectors, version="v", facts={"until_ms": T0 - 1}
    )
    write_vector_file(tmp_path / "v.parquet", file)
    given = ["--set", f"items.vectors_file={tmp_path / 'v.parquet'}", "--set", "items.dim=8"]
    assert run(["replay", str(log), "--report", str(tmp_path / "r"), *given]) == 0
    assert "future" not in capsys.readouterr().err
