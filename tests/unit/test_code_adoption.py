"""A new codebook in a running model: rows carried over, items coded anew, scores that stay."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from embeddings.codebook_file import read_codebook, write_codebook
from embeddings.codes.fit import FitConfig, fit, refresh
from infra.errors import InputError
from infra.snapshot_store import SnapshotStore
from learners.embedding_table import EmbeddingTable, TableConfig
from learners.feature_spec import Bag, FeatureSpec, IdField
from learners.id_kernels import LEARN_AND_COUNT
from learners.modules.qarm_codes import QarmConfig
from learners.rankers.id_content import IdContent, IdContentConfig
from learners.row_transfer import carry_over
from stream.checkpoint import NEXT_VECTORS
from stream.cli import run
from stream.code_adoption import adopt
from tests.support.batches import BatchMaker, keys_of, small_spec
from tests.support.coded import coded, tag_book
from tests.support.logs import write_log
from tests.support.replays import Killed, logit_hash, ranked_config, replay

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def book(tmp_path_factory):
    return tag_book(tmp_path_factory.mktemp("codes") / "book.safetensors")


def table(rows_max=1_000):
    spec = FeatureSpec(
        ids=(), bag_fields=(IdField(name="code", dim=3, rows_max=rows_max),),
        bags=(Bag(name="code", field="code", length=1, is_history=False),), dense=(),
        labels=("click",), trained_label="click", content_dim=0,
    )  # fmt: skip
    made = EmbeddingTable(spec, 3, TableConfig(), seed=1, device=CPU)
    keys = keys_of(0, np.arange(4))
    made.learn(np.empty((4, 0), np.int64), [keys[:, None]], np.full(4, LEARN_AND_COUNT, np.uint8),
               clock_ms=1_000, step=1)  # fmt: skip
    made.weight_RD[2:6] = torch.arange(12.0).reshape(4, 3) / 7
    made.accumulator_R[2:6] = torch.tensor([1.0, 2.0, 4.0, 8.0])
    return made, keys


def rows_of(made, keys):
    block = np.ascontiguousarray(keys[:, None])
    rows = made.predict(np.empty((len(keys), 0), np.int64), [block]).pooled_BD[0]
    return rows.numpy()


def accumulators(made, keys):
    place = {key: row for row, key in enumerate(made.ids.key_R.tolist())}
    return [float(made.accumulator_R[place[key]]) for key in keys.tolist()]


def test_a_code_takes_the_row_of_the_code_that_most_of_its_items_had():
    made, keys = table()
    before, was = rows_of(made, keys), accumulators(made, keys)
    new = keys_of(1, np.arange(2))
    old = np.array([keys[0], keys[1], keys[1], keys[3], keys[2], keys[3], keys[0]])
    to = np.array([new[0], new[0], new[0], keys[2], keys[2], keys[3], keys[3]])
    # The third key is paired with itself as often as with another one, and stays.
    assert carry_over(made, "code", old, to, clock_ms=2_000, step=5) == 1
    assert (rows_of(made, np.append(keys, new[0])) == before[[0, 1, 2, 3, 1]]).all()
    assert accumulators(made, new[:1]) == was[1:2]
    assert made.ids.keys_of(made.ids.touched_rows(4)).tolist() == [new[0]]


def test_rows_change_places_all_at_once():
    made, keys = table()
    before, was = rows_of(made, keys), accumulators(made, keys)
    assert carry_over(made, "code", keys, np.roll(keys, 1), clock_ms=2_000, step=5) == 4
    assert (rows_of(made, keys) == np.roll(before, -1, axis=0)).all()
    assert accumulators(made, keys) == [*was[1:], was[0]]


def test_keys_that_stay_keep_their_bits():
    made, keys = table()
    before = made.weight_RD.clone()
    again = np.repeat(keys, [3, 1, 7, 2])
    assert carry_over(made, "code", again, again, clock_ms=2_000, step=5) == 0
    assert torch.equal(made.weight_RD, before)


def test_an_id_without_a_row_counts_as_the_shared_row_and_room_is_bounded():
    made, keys = table(rows_max=5)
    shared = made.weight_RD[0].numpy().copy()
    unknown, new = keys_of(2, np.arange(2)), keys_of(3, np.arange(2))
    assert carry_over(made, "code", unknown, new, clock_ms=2_000, step=5) == 1
    assert (rows_of(made, new) == shared).all()
    with pytest.raises(ValueError, match="has fields code"):
        carry_over(made, "other", keys, keys, clock_ms=0, step=6)


# Checks 12 and 13 of QARM: a refresh in a model that has learned.

CODES = QarmConfig(on=True, codes=("rq1", "rq2", "prefix2"), anchors=0, dim=6)
SPEC = small_spec(codes=CODES)


class Coded(BatchMaker):
    """Batches whose items have the codes of a book; a click depends on the item's place."""

    def take(self, vectors, codes):
        self.vectors, self.rq = vectors, codes
        return self

    def batch(self, b):
        made = super().batch(b)
        rng = np.random.default_rng(self.request)
        target, history = rng.integers(0, len(self.rq), b), rng.integers(0, len(self.rq), (b, 7))
        bags = list(made.bags_BL)
        for i, bag in enumerate(self.spec.bags):
            if bag.reader:
                keys = code_keys(bag.field, self.rq)[history if bag.sequence else target]
                bags[i] = torch.from_numpy(keys.reshape(b, bag.length))
        logit = 3 * self.vectors[target, 0] + 2 * (self.vectors[target] * self.vectors[
            history[:, 0]]).sum(1)  # fmt: skip
        labels_BK = made.labels_BK.clone()
        labels_BK[:, 1] = torch.from_numpy(rng.random(b) < 1 / (1 + np.exp(-logit))).float()
        ids_BF = made.ids_BF.clone()
        ids_BF[:, 1] = torch.from_numpy(keys_of(1, target))
        return replace(made, bags_BL=tuple(bags), labels_BK=labels_BK, ids_BF=ids_BF, content=None)


def code_keys(name, rq):
    """Keys of one field's codes, by item."""
    number = {"qarm.rq1": 11, "qarm.rq2": 12, "qarm.prefix2": 13}[name]
    code = {"qarm.rq1": rq[:, 0], "qarm.rq2": rq[:, 1], "qarm.prefix2": rq[:, 0] * 1_000 + rq[:, 1]}
    return keys_of(number, code[name])


def items_of(rng, groups, n):
    centres = rng.normal(0, 1, (groups, 8))
    return centres[rng.integers(0, groups, n)] + rng.normal(0, 0.35, (n, 8))


def carried(learner, old_rq, new_rq):
    for made in learner.tables:
        for name in [f.name for f in made.fields if f.reader]:
            pair = code_keys(name, old_rq), code_keys(name, new_rq)
            carry_over(made, name, *pair, clock_ms=learner.clock_ms, step=learner.step)


@pytest.mark.slow
def test_old_items_score_as_before_when_a_drifted_book_is_adopted():
    rng = np.random.default_rng(3)
    old, new = items_of(rng, 20, 1_200), items_of(rng, 8, 12)
    config = FitConfig(levels=2, size=24, anchors=0, anchors_of_vector=0)
    before = fit(old, "e", config)
    everything = np.concatenate([old, new])
    books = {
        "before": before,
        "after": refresh(before, everything, config).book,
        "cold": fit(everything, "e", replace(config, seed=9)),
    }
    rq = {n: b.encode_many(old, np.ones(len(old), np.bool_)).rq_BL for n, b in books.items()}
    changed = (rq["before"] != rq["after"]).any(1).mean()
    assert 0.1 < changed < 0.3  # of the items have another code

    unit = old / np.linalg.norm(old, axis=1, keepdims=True)
    learner = IdContent(SPEC, IdContentConfig(device="cpu", hidden=(16, 8), qarm=CODES))
    stream = Coded(SPEC, seed=5).take(unit, rq["before"])
    for _ in range(250):
        learner.learn_many(stream.batch(64))
    state = {p.name: p for p in learner.export_full()}

    def probe(name, b=2_000):
        return Coded(SPEC, seed=77).take(unit, rq[name]).batch(b)

    was = learner.predict_many(probe("before"))
    assert was.std() > 0.5

    def adopted(name, *, carry):
        other = IdContent(SPEC, learner.config)
        other.apply(state)
        if carry:
            carried(other, rq["before"], rq[name])
        return other

    def moved(name, *, carry):
        logits = adopted(name, carry=carry).predict_many(probe(name))
        return float((logits - was).abs().median())

    assert moved("before", carry=True) == 0.0  # an identity refresh changes no bit
    assert moved("after", carry=True) < 0.02
    assert moved("after", carry=True) < moved("after", carry=False)
    assert moved("cold", carry=False) > 0.3  # a new fit without carrying over
    assert moved("cold", carry=True) < 0.2

    # What comes next is predicted as well as without the change.
    def losses(name, carry):
        made, following = adopted(name, carry=carry), Coded(SPEC, seed=6).take(unit, rq[name])
        return np.array([float(made.learn_many(following.batch(64)).loss) for _ in range(40)])

    usual, after = losses("before", carry=False), losses("after", carry=True)
    spread = 2.33 * usual.std() / np.sqrt(len(usual))
    assert after.mean() < usual.mean() + spread


def shuffled(book, path):
    """The same centroids in another order: other ids, and the same meaning."""
    old, rng = read_codebook(book), np.random.default_rng(0)
    write_codebook(path, replace(old, levels=tuple(rng.permutation(level) for level in old.levels)))
    return path


@pytest.mark.slow
def test_a_model_goes_on_with_a_book_that_numbers_its_codes_anew(book, tmp_path):
    """Snapshot, adopt, resume: every score to the end is the same bit for bit."""
    log = write_log(tmp_path / "log.parquet", samples=600)
    config = coded(book, snapshot={"every_samples": 100})
    first, second = tmp_path / "first", tmp_path / "second"
    with pytest.raises(Killed):
        replay(config, (log,), first, kill_after=6, snapshots=True, chunk_records=64)
    shutil.copytree(first, second)
    new_book = shuffled(book, tmp_path / "other.safetensors")
    arguments = ["codes", "adopt", str(second / "snapshots"), "--book", str(new_book), "--json"]
    assert run(arguments) == 0
    fresh = coded(new_book, snapshot={"every_samples": 100})
    options = {"resume": True, "snapshots": True, "chunk_records": 64}
    a = replay(config, (log,), first, **options)
    b = replay(fresh, (log,), second, **options)
    assert 0 < a.samples_run == b.samples_run < 600
    assert logit_hash(a.predictions) == logit_hash(b.predictions)
    with pytest.raises(InputError, match=r"items\.codebook"):  # books do not mix
        replay(config, (log,), second, **options)


def test_adopting_says_what_it_did_and_what_it_cannot(book, tmp_path, capsys, monkeypatch):
    log = write_log(tmp_path / "log.parquet", samples=300)
    report, snapshots = tmp_path / "run", tmp_path / "run" / "snapshots"
    replay(coded(book), (log,), report, snapshots=True)
    new_book = shuffled(book, tmp_path / "other.safetensors")
    assert run(["codes", "adopt", str(snapshots), "--book", str(new_book), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["items"] == 40
    assert 0 < told["rows"]["qarm.rq1"] <= 4
    assert 0 < told["rows"]["qarm.prefix2"] <= 7
    assert told["rows"]["qarm.vq"] == 0  # anchors are as they were
    assert told["changed"]["vq"] == 0.0
    assert 0 < told["changed"]["rq1"] <= 1
    assert not [p for p in snapshots.iterdir() if p.name.startswith(".")]
    with pytest.raises(InputError, match="is the one that the snapshot has already"):
        adopt(snapshots, new_book, tmp_path / "scratch")
    with pytest.raises(InputError, match="no valid snapshot"):
        adopt(tmp_path / "nowhere", new_book, tmp_path / "scratch")
    whole = SnapshotStore.manifest
    with monkeypatch.context() as during:
        during.setattr(SnapshotStore, "manifest", lambda store, ref: replace(
            whole(store, ref), linked={NEXT_VECTORS: ()}
        ))  # fmt: skip
        with pytest.raises(InputError, match="migration of item vectors is under way"):
            adopt(snapshots, book, tmp_path / "scratch")
    plain = tmp_path / "plain"
    replay(ranked_config(), (log,), plain, snapshots=True)
    with pytest.raises(InputError, match=r"no items\.codebook to change"):
        adopt(plain / "snapshots", new_book, tmp_path / "scratch")
