"""What every learner must do, as `check_*` functions; `yield_checks` picks those that fit one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping

import msgspec
import numpy as np
import pytest
import torch

from infra.state import Part
from learners import catalog
from learners.batch import MiniBatch, RowKind
from learners.learner import Learner
from learners.modules.qarm_codes import QarmConfig
from learners.net_learner import NetLearner
from tests.support.batches import START_MS, BatchMaker, small_spec

Make = Callable[[], Learner]

WITHOUT_WEIGHTS: Mapping[str, str] = {
    "smoothed_rates": "adds up inputs; the counters learn, not this learner",
    "base_rate": "knows one number only, the same for every row",
    "frozen": "its copy never changes, so its losses cannot fall",
}
"""Learners whose logits do not follow the ids by weights of their own, each with its reason: a new
learner is checked in full unless somebody decides otherwise."""
NEEDS: Mapping[str, str] = {"vw": "vowpalwabbit"}
"""Packages of extras; without one its learner is skipped."""
SLOW = frozenset({"river_logistic", "river_fm", "vw"})
"""Learners that take a second for a thousand samples: they are to learn from a few."""
NETS = frozenset({"id_content"})
"""Learners around `NetLearner`: id tables of ours, content vectors, a seed."""
OPTIONS: Mapping[str, Mapping[str, object]] = {
    "id_content": {"device": "cpu"},
    "fgcnn": {"device": "cpu", "generator": {"channels": [3], "kernel": 3, "dim": 5}},
    "ftrl": {"alpha": 0.3, "rows": {"bits": 12}},
    "river_logistic": {"lr": 0.3, "drift": "adwin", "rows": {"bits": 12}},
    "river_fm": {"lr": 0.3, "rows": {"bits": 12}},
    "vw": {"lr": 0.5, "rows": {"bits": 12}},
    "dcn": {"bits": 12, "lr": 0.01},
    # A publication every fourth batch: between and during the steps of the checks.
    "published": {"options": {"device": "cpu"}, "every_ms": 240_000},
    "frozen": {"options": {"device": "cpu"}, "start_ms": START_MS + 210_000},
}
"""Options that make the checks small and independent of the machine."""
MODULE_OPTIONS: Mapping[str, Mapping[str, object]] = {
    "simtier": {"recent": [3]},
    "simscore": {"recent": [3]},
    # Rows of a length that no other field has: its table is its own.
    "qarm": {"codes": ["rq1", "prefix2"], "anchors": 3, "dim": 6},
    "em3": {"dim": 16, "heads": 2, "rank": 2, "memory_rows": 64, "contrast": 0.1},
    "make": {"attention": 16, "hidden": [16], "replay_rows": 64, "replays": 2},
    "flip": {"fields": ["item", "tab"], "states": 2, "exposure": "item.rate", "noise_rows": 64},
    # Rows of its own are in tests/unit/test_fgcnn.py.
    "fgcnn": {"source": "shared", "fields": ["item", "user"], "channels": [3], "kernel": 3},
}
"""The same for modules of the ranker; each module goes through `EVERY_LEARNER`."""


def maker(name: str, **options: object) -> Make:
    """Builds fresh learners of one kind; with options of `qarm` there are codes to read."""
    codes = msgspec.convert(options["qarm"], QarmConfig) if "qarm" in options else None
    spec = small_spec(codes=codes)
    return lambda: catalog.build(name, spec, {**OPTIONS.get(name, {}), **options})


def trained(make: Make, steps: int = 6, rows: int = 40) -> tuple[Learner, BatchMaker]:
    """A learner after a few steps, and the stream where it stopped."""
    learner = make()
    stream = BatchMaker(learner._whole if isinstance(learner, NetLearner) else small_spec())
    for _ in range(steps):
        learner.learn_many(stream.batch(rows))
    return learner, stream


def state_of(learner: Learner) -> dict[str, Part]:
    """Everything a learner has."""
    return {part.name: part for part in learner.export_full()}


def assert_same_state(a: Mapping[str, Part], b: Mapping[str, Part]) -> None:
    """Bit for bit."""
    assert a.keys() == b.keys()
    for name, part in a.items():
        assert part.arrays.keys() == b[name].arrays.keys()
        for key, array in part.arrays.items():
            np.testing.assert_array_equal(array, b[name].arrays[key], err_msg=f"{name}.{key}")
            assert array.dtype == b[name].arrays[key].dtype
        assert part.meta == b[name].meta, name


def take(batch: MiniBatch, rows: list[int] | slice) -> MiniBatch:
    """Some rows of a batch."""
    changes: dict[str, object] = {}
    for f in dataclasses.fields(batch):
        value = getattr(batch, f.name)
        if isinstance(value, torch.Tensor):
            changes[f.name] = value[rows]
        elif f.name == "bags_BL":
            changes[f.name] = tuple(bag[rows] for bag in value)
        elif f.name == "content" and value is not None:
            changes[f.name] = dataclasses.replace(
                value,
                target_B=value.target_B[rows],
                missing_B=value.missing_B[rows],
                bags_BL=tuple(bag[rows] for bag in value.bags_BL),
                bag_inv_len_B=tuple(x[rows] for x in value.bag_inv_len_B),
            )
    return dataclasses.replace(batch, **changes)


def check_predict_is_pure(make: Make) -> None:
    learner, stream = trained(make)
    before = state_of(learner)
    batch = stream.batch(21)
    first = learner.predict_many(batch)
    assert torch.equal(first, learner.predict_many(batch))
    assert_same_state(before, state_of(learner))
    assert first.shape == (21,)
    assert first.dtype == torch.float32
    assert torch.isfinite(first).all()


def check_learn_returns_logits_from_before(make: Make) -> None:
    learner, stream = trained(make, steps=0)
    for rows in (1, 40, 13):
        batch = stream.batch(rows)  # holds ids never seen before, too
        before = learner.predict_many(batch)
        assert torch.equal(before, learner.learn_many(batch).logits_B.cpu())


def check_loss_is_the_weighted_mean(make: Make) -> None:
    learner, stream = trained(make)
    batch = stream.batch(24)
    batch.weight_B[:7] = 3.0
    report = learner.learn_many(batch)
    losses = torch.nn.functional.binary_cross_entropy_with_logits(
        report.logits_B.cpu(), batch.labels_BK[:, 1], reduction="none"
    )
    expected = (losses * batch.weight_B).sum() / batch.weight_B.sum()
    assert float(report.loss) == pytest.approx(float(expected), rel=1e-5)


def check_batch_is_not_changed(make: Make) -> None:
    learner, stream = trained(make)
    batch = stream.batch(19)
    copy = take(batch, slice(None))
    copy = dataclasses.replace(
        copy, dense_BD=batch.dense_BD.clone(), weight_B=batch.weight_B.clone()
    )
    learner.learn_many(batch)
    assert torch.equal(copy.dense_BD, batch.dense_BD)
    assert torch.equal(copy.weight_B, batch.weight_B)


def check_restored_continues_bit_for_bit(make: Make) -> None:
    learner, stream = trained(make)
    other = make()
    other.apply(state_of(learner))
    assert_same_state(state_of(learner), state_of(other))
    for _ in range(4):
        batch = stream.batch(33)
        a, b = learner.learn_many(batch), other.learn_many(batch)
        assert torch.equal(a.logits_B, b.logits_B)
        assert torch.equal(a.loss, b.loss)
    assert_same_state(state_of(learner), state_of(other))


def check_export_is_a_copy(make: Make) -> None:
    learner, stream = trained(make)
    parts = state_of(learner)
    frozen = {
        name: dataclasses.replace(
            p, arrays={k: v.copy() for k, v in p.arrays.items()}, meta=dict(p.meta)
        )
        for name, p in parts.items()
    }
    learner.learn_many(stream.batch(40))
    assert_same_state(frozen, parts)


def check_deltas_add_up(make: Make) -> None:
    learner, stream = trained(make, steps=3)
    follower = make()
    follower.apply(state_of(learner))
    for _ in range(3):
        mark = learner.counts()["steps"]
        learner.learn_many(stream.batch(17))
        learner.learn_many(stream.batch(9))
        follower.apply({part.name: part for part in learner.export_since(mark)})
        assert_same_state(state_of(learner), state_of(follower))


def check_serving_parts_are_enough_to_score(make: Make) -> None:
    learner, stream = trained(make)
    server = make()
    parts = state_of(learner)
    server.apply({name: part for name, part in parts.items() if part.part_class == "serve"})
    batch = stream.batch(16)
    assert torch.equal(learner.predict_many(batch), server.predict_many(batch))


def check_bad_numbers_change_nothing(make: Make) -> None:
    learner, stream = trained(make)
    before, skipped = state_of(learner), learner.counts()["skipped"]
    for bad in (float("nan"), float("inf"), -float("inf")):
        batch = stream.batch(11)
        batch.dense_BD[:, 1] = bad
        report = learner.learn_many(batch)
        assert int(report.skipped) == 11
        assert torch.isfinite(report.logits_B).all()
    after = state_of(learner)
    assert learner.counts()["skipped"] == skipped + 33
    for name, part in before.items():
        for key, array in part.arrays.items():
            if key != "skipped":
                np.testing.assert_array_equal(array, after[name].arrays[key], err_msg=name)


def check_one_bad_row_costs_one_row(make: Make) -> None:
    a, stream = trained(make)
    b = make()
    b.apply(state_of(a))
    batch = stream.batch(16)
    batch.dense_BD[5, 1] = float("nan")
    report = a.learn_many(batch)
    assert int(report.skipped) == 1
    without = take(batch, slice(None))
    without.dense_BD[5, 1] = 0.0
    without.label_mask_BK[5, 1] = 0.0
    b.learn_many(without)
    probe = stream.batch(16)
    assert torch.equal(a.predict_many(probe), b.predict_many(probe))


def check_unseen_and_missing_are_legal(make: Make) -> None:
    learner, stream = trained(make)
    batch = stream.batch(12)
    assert batch.content is not None
    none = len(batch.content.table_VC) - 1
    empty = dataclasses.replace(
        batch,
        ids_BF=torch.from_numpy(np.random.default_rng(3).integers(1, 2**62, (12, 3))),
        bags_BL=tuple(torch.zeros_like(bag) for bag in batch.bags_BL),
        content=dataclasses.replace(
            batch.content,
            target_B=torch.full((12,), none),
            missing_B=torch.ones(12, dtype=torch.bool),
            bags_BL=tuple(torch.full_like(bag, none) for bag in batch.content.bags_BL),
            bag_inv_len_B=tuple(torch.zeros(12) for _ in batch.content.bags_BL),
        ),
    )
    assert torch.isfinite(learner.predict_many(empty)).all()
    report = learner.learn_many(empty)
    assert torch.isfinite(report.loss)
    assert int(report.skipped) == 0
    assert torch.isfinite(learner.predict_many(empty)).all()


def check_single_rows(make: Make) -> None:
    learner, stream = trained(make, steps=2)
    for _ in range(3):
        report = learner.learn_many(stream.batch(1))
        assert report.logits_B.shape == (1,)
        assert torch.isfinite(report.loss)


def check_empty_batch_changes_nothing(make: Make) -> None:
    learner, stream = trained(make, steps=2)
    before, batch = state_of(learner), take(stream.batch(3), slice(0, 0))
    assert learner.predict_many(batch).shape == (0,)
    report = learner.learn_many(batch)
    assert report.logits_B.shape == (0,)
    assert int(report.skipped) == 0
    assert_same_state(before, state_of(learner))


def check_neighbours_do_not_matter(make: Make) -> None:
    learner, stream = trained(make, steps=10)
    batch = stream.batch(96)
    whole = learner.predict_many(batch)
    for rows in (slice(0, 1), slice(3, 8), slice(40, 73), slice(50, 96)):
        assert torch.equal(learner.predict_many(take(batch, rows)), whole[rows])
    backwards = list(range(95, -1, -1))
    assert torch.equal(learner.predict_many(take(batch, backwards)), whole[backwards])


def check_same_seed_same_bits(make: Make) -> None:
    (a, _), (b, _) = trained(make), trained(make)
    assert_same_state(state_of(a), state_of(b))


def check_unlabelled_rows_change_nothing(make: Make) -> None:
    learner, stream = trained(make)
    before = state_of(learner)
    batch = stream.batch(24)
    batch.label_mask_BK[:, 1] = 0.0  # the other kind's label does not train this head
    report = learner.learn_many(batch)
    assert torch.isfinite(report.logits_B).all()
    assert_same_state(before, state_of(learner))


def check_unlabelled_rows_have_no_influence(make: Make) -> None:
    a, stream = trained(make)
    b = make()
    b.apply(state_of(a))
    batch = stream.batch(24)
    batch.label_mask_BK[16:, 1] = 0.0
    a.learn_many(batch)
    b.learn_many(take(batch, slice(0, 16)))
    probe = stream.batch(16)
    assert torch.equal(a.predict_many(probe), b.predict_many(probe))


def check_learns_a_planted_signal(make: Make) -> None:
    learner, stream = make(), BatchMaker(small_spec())
    losses = [float(learner.learn_many(stream.batch(64)).loss) for _ in range(250)]
    assert np.mean(losses[-40:]) < np.mean(losses[:40]) - 0.08


def check_learns_a_planted_signal_soon(make: Make) -> None:
    learner, stream = make(), BatchMaker(small_spec())
    losses = [float(learner.learn_many(stream.batch(40)).loss) for _ in range(40)]
    assert np.mean(losses[-12:]) < np.mean(losses[:6]) - 0.05


def check_seed_matters(make: Make) -> None:
    (a, stream), name = trained(make), "id_content"
    b, _ = trained(maker(name, seed=99))
    probe = stream.batch(8)
    assert not torch.equal(a.predict_many(probe), b.predict_many(probe))


def check_overflow_is_masked_on_the_device(make: Make) -> None:
    learner, stream = trained(make)
    before = state_of(learner)
    batch = stream.batch(16)
    assert batch.content is not None
    batch.content.table_VC[:-1] = float("inf")
    report = learner.learn_many(batch)
    assert int(report.skipped) == 16
    after = state_of(learner)
    for name, keys in {
        "dense": ("weights", "mean", "squares", "base"),
        "dense.train": ("m", "v", "t"),
    }.items():
        for key in keys:
            np.testing.assert_array_equal(before[name].arrays[key], after[name].arrays[key])
    n = len(before["ids.8"].arrays["weights"])
    np.testing.assert_array_equal(
        before["ids.8"].arrays["weights"], after["ids.8"].arrays["weights"][:n]
    )


def check_corrections_do_not_admit(make: Make) -> None:
    learner, stream = trained(make, steps=1)
    rows = learner.counts()["ids8_rows"]
    batch = stream.batch(12)
    new = dataclasses.replace(
        batch,
        ids_BF=torch.from_numpy(np.random.default_rng(3).integers(1, 2**62, (12, 3))),
        bags_BL=tuple(torch.zeros_like(bag) for bag in batch.bags_BL),
        row_kind_B=torch.full((12,), int(RowKind.CORRECTION), dtype=torch.uint8),
    )
    learner.learn_many(new)
    assert learner.counts()["ids8_rows"] == rows
    learner.learn_many(dataclasses.replace(new, row_kind_B=torch.zeros(12, dtype=torch.uint8)))
    assert learner.counts()["ids8_rows"] == rows + 24


def check_threads_do_not_matter(make: Make) -> None:
    name = "id_content"
    try:
        one, _ = trained(maker(name, threads=1), steps=4, rows=1000)
        two, _ = trained(maker(name, threads=2), steps=4, rows=1000)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert_same_state(state_of(one), state_of(two))


EVERY_LEARNER = (
    check_predict_is_pure,
    check_learn_returns_logits_from_before,
    check_loss_is_the_weighted_mean,
    check_batch_is_not_changed,
    check_restored_continues_bit_for_bit,
    check_export_is_a_copy,
    check_deltas_add_up,
    check_serving_parts_are_enough_to_score,
    check_bad_numbers_change_nothing,
    check_one_bad_row_costs_one_row,
    check_unseen_and_missing_are_legal,
    check_single_rows,
    check_empty_batch_changes_nothing,
    check_neighbours_do_not_matter,
    check_same_seed_same_bits,
    check_unlabelled_rows_change_nothing,
    check_unlabelled_rows_have_no_influence,
)
NET = (
    check_seed_matters,
    check_overflow_is_masked_on_the_device,
    check_corrections_do_not_admit,
    check_threads_do_not_matter,
)


def yield_checks(name: str) -> Iterator[Callable[[Make], None]]:
    """The checks that fit the learner `name`."""
    yield from EVERY_LEARNER
    if name in SLOW:
        yield check_learns_a_planted_signal_soon
    elif name not in WITHOUT_WEIGHTS:
        yield check_learns_a_planted_signal
    if name in NETS:
        yield from NET
