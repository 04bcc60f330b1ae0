"""Contrastive training: it learns what pairs say, a placebo does not, and it resumes exactly."""

import math

import numpy as np
import pytest
import torch

from embeddings.encoders.attributes import AttributeEncoder, AttributeEncoderConfig
from embeddings.encoders.projection import (
    ProjectedEncoder,
    Projection,
    ProjectionUnusable,
    read_projection,
    write_projection,
)
from embeddings.item_content import ItemContent
from embeddings.pretrain.adam import Adam
from embeddings.pretrain.judge import alignment, by_users, hits, uniformity
from embeddings.pretrain.trainer import ContrastConfig, ContrastTrainer, PairRows, content_groups
from infra.errors import InputError


@pytest.fixture(autouse=True)
def one_thread():
    """Steps this small are slower with more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


GROUPS, ITEMS = 8, 160


def group_of(item):
    return item % GROUPS


def raw_vectors(seed=0):
    """Random vectors with a weak trace of the item's group, drowned in strong other directions."""
    rng = np.random.default_rng(seed)
    trace = rng.standard_normal((GROUPS, 32)) * 0.6
    loud = rng.standard_normal((ITEMS, 6)) @ rng.standard_normal((6, 32)) * 2
    vectors = loud + trace[np.arange(ITEMS) % GROUPS] + rng.standard_normal((ITEMS, 32)) * 0.2
    return vectors.astype(np.float32)


def pairs_of(seed, n=3_000):
    """Pairs within groups; training uses the first 120 items, so that the others are new."""
    rng = np.random.default_rng(seed)
    left = rng.integers(0, 120, n)
    right = (rng.integers(0, 120 // GROUPS, n) * GROUPS + group_of(left)) % 120
    keep = left != right
    hard = rng.integers(0, 120, n)
    hard = np.where(group_of(hard) == group_of(left), -1, hard)
    return PairRows(left_P=left[keep], right_P=right[keep], hard_P=hard[keep])


def config(**changes):
    base = {"dim": 16, "keys": 512, "epochs": 6, "batch_size": 128, "lr": 3e-3, "momentum": 0.9}
    return ContrastConfig(**(base | changes))


def new_item_recall(vectors):
    """Recall at 4 between the 40 items that no pair had: each has 4 others of its group."""
    rows = np.arange(120, ITEMS)
    left, right = (m.ravel() for m in np.meshgrid(rows - 120, rows - 120))
    same = (group_of(left) == group_of(right)) & (left != right)
    unit = vectors[rows] / np.linalg.norm(vectors[rows], axis=1, keepdims=True)
    return hits(unit, left[same], right[same], 4).mean()


@pytest.mark.parametrize(
    "changes",
    (
        pytest.param({"epochs": 30}, marks=pytest.mark.slow),
        {"objective": "batch"},
        pytest.param({"objective": "batch", "hidden": 32, "epochs": 15}, marks=pytest.mark.slow),
    ),
    ids=["queue", "batch", "hidden"],
)
def test_training_generalises_to_new_items_and_a_placebo_hardly(changes):
    """A placebo gains a little: even wrong pairs spread the vectors and tame loud directions."""
    raw, pairs = raw_vectors(), pairs_of(1)
    trainer, placebo = (
        ContrastTrainer(raw, rows, config(**changes)) for rows in (pairs, pairs.shuffled(3))
    )
    assert new_item_recall(trainer.vectors()) < 0.2
    facts = [trainer.run_epoch() for _ in range(trainer.config.epochs)]
    last = [placebo.run_epoch() for _ in range(placebo.config.epochs)][-1]
    assert trainer.step == trainer.steps
    assert facts[-1].contrast < facts[-1].ln_keys - 1 < last.contrast
    assert facts[-1].contrast < facts[0].contrast - 1
    assert new_item_recall(trainer.vectors()) > 0.9
    assert new_item_recall(placebo.vectors()) < 0.4


def test_it_begins_with_the_raw_similarities_centred():
    raw = raw_vectors()
    start = ContrastTrainer(raw, pairs_of(1), config(dim=32)).vectors()
    centred = raw - raw.mean(axis=0)
    centred /= np.linalg.norm(centred, axis=1, keepdims=True)
    assert np.allclose(start @ start.T, centred @ centred.T, atol=1e-4)


@pytest.mark.parametrize("hidden", (0, 8))
@pytest.mark.parametrize("axes", (0, 12))
def test_its_arrays_are_a_projection_of_the_raw_vectors(hidden, axes):
    raw = raw_vectors()
    trainer = ContrastTrainer(raw, pairs_of(1), config(hidden=hidden, axes=axes))
    trainer.run_epoch()
    projection = Projection(arrays=trainer.arrays(), encoder="any")
    applied = np.array([projection.apply(vector) for vector in raw])
    assert (projection.given_dim, projection.dim) == (32, 16)
    assert np.allclose(applied, trainer.vectors(), atol=1e-5)


def test_what_lies_outside_of_the_axes_is_not_read():
    raw = raw_vectors()
    trainer = ContrastTrainer(raw, pairs_of(1), config(axes=6))
    trainer.run_epoch()
    projection = Projection(arrays=trainer.arrays(), encoder="any")
    axes = np.linalg.svd(raw - raw.mean(axis=0), full_matrices=False)[2]
    before, within, without = (
        projection.apply(raw[0] + shift) for shift in (0, axes[2] * 5, axes[9] * 5)
    )
    assert np.allclose(without, before, atol=1e-4)
    assert not np.allclose(within, before, atol=1e-1)
    with pytest.raises(InputError, match="axes=33: the vectors have only 32 numbers"):
        ContrastTrainer(raw, pairs_of(1), config(axes=33))


def test_ln_keys_counts_what_is_not_masked():
    raw = raw_vectors()
    raw[1] = raw[0]
    pairs = PairRows(left_P=np.array([2, 3]), right_P=np.array([0, 1]), hard_P=np.array([-1, -1]))
    facts = ContrastTrainer(raw, pairs, config(keys=64, batch_size=2)).run_epoch()
    assert content_groups(raw)[0] == content_groups(raw)[1]
    assert facts.ln_keys == pytest.approx(0.0)  # all 64 keys are the positives' own content
    assert facts.contrast == pytest.approx(0.0, abs=1e-6)


def test_hard_negatives_add_their_term():
    raw, pairs = raw_vectors(), pairs_of(1)
    with_them = ContrastTrainer(raw, pairs, config(triplet_weight=2.0)).run_epoch()
    none = PairRows(
        left_P=pairs.left_P, right_P=pairs.right_P, hard_P=np.full_like(pairs.left_P, -1)
    )
    without = ContrastTrainer(raw, none, config(triplet_weight=2.0)).run_epoch()
    assert with_them.triplet > 0
    assert with_them.loss == pytest.approx(with_them.contrast + 2 * with_them.triplet)
    assert (without.triplet, without.loss) == (0, pytest.approx(without.contrast))


@pytest.mark.parametrize("objective", ("queue", "batch"))
def test_a_resumed_training_ends_with_the_same_bits(objective):
    raw, pairs = raw_vectors(), pairs_of(1)
    whole = ContrastTrainer(raw, pairs, config(objective=objective))
    for _ in range(2):
        whole.run_epoch()
    state = whole.to_bytes()
    whole.run_epoch()
    resumed = ContrastTrainer(raw, pairs, config(objective=objective))
    resumed.restore(state)
    assert resumed.step == 2 * resumed.epoch_steps
    resumed.run_epoch()
    assert np.array_equal(resumed.vectors(), whole.vectors())
    assert resumed.to_bytes() == whole.to_bytes()


def test_adam_steps_as_its_paper_says():
    """With constants .9, .999 and 1e-8; decay is apart from the gradient."""
    module = torch.nn.Linear(1, 1, bias=False)
    weight, mean, square = module.weight.item(), 0.0, 0.0
    adam = Adam(module, lr=0.01, weight_decay=0.1)
    for t, gradient in enumerate((0.5, -2.0, 3.0), start=1):
        module.weight.grad = torch.full((1, 1), gradient)
        adam.step()
        mean = 0.9 * mean + 0.1 * gradient
        square = 0.999 * square + 0.001 * gradient**2
        change = mean / (1 - 0.9**t) / (math.sqrt(square / (1 - 0.999**t)) + 1e-8)
        weight -= 0.01 * (change + 0.1 * weight)
        assert module.weight.item() == pytest.approx(weight, abs=1e-6)


def test_the_state_of_another_training_is_refused():
    raw, pairs = raw_vectors(), pairs_of(1)
    state = ContrastTrainer(raw, pairs, config()).to_bytes()
    for other in (
        ContrastTrainer(raw, pairs, config(lr=1e-4)),
        ContrastTrainer(raw * 2, pairs, config()),
        ContrastTrainer(raw, pairs_of(2), config()),
    ):
        with pytest.raises(InputError, match="other pairs, vectors or settings"):
            other.restore(state)
    with pytest.raises(InputError, match="no safetensors"):
        other.restore(b"12345678 nonsense")


def test_too_few_pairs_are_an_error():
    one = PairRows(left_P=np.array([0]), right_P=np.array([1]), hard_P=np.array([-1]))
    with pytest.raises(InputError, match="1 pairs"):
        ContrastTrainer(raw_vectors(), one, config())


def test_hits_count_ties_as_chances():
    vectors = np.array([[1, 0], [0.8, 0.6], [0.8, 0.6], [0, 1], [-1, 0]], np.float32)
    left, right = np.array([0, 0, 0, 3]), np.array([1, 2, 3, 4])
    assert hits(vectors, left, right, 1).tolist() == [0.5, 0.5, 0, 0]
    assert hits(vectors, left, right, 2).tolist() == [1, 1, 0, 0]
    assert hits(vectors, left, right, 3).tolist()[:3] == [1, 1, 1]


def test_the_interval_is_that_of_users():
    user = np.repeat(np.arange(50), 20)
    value = np.repeat(np.random.default_rng(0).standard_normal(50), 20)
    found = by_users(value, user, resamples=2_000, seed=0)
    error = value.std() / math.sqrt(50)
    assert found.mean == pytest.approx(value.mean())
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * error, rel=0.15)


def test_alignment_and_uniformity_are_their_formulas():
    vectors = np.array([[1, 0], [0, 1], [-1, 0]], np.float32)
    assert alignment(vectors, np.array([0, 0]), np.array([1, 2])) == pytest.approx((2 + 4) / 2)
    expected = math.log((math.exp(-4) + math.exp(-8) + math.exp(-4)) / 3)
    assert uniformity(vectors) == pytest.approx(expected)


def trained(hidden):
    encoder = AttributeEncoder(AttributeEncoderConfig(dim=32))
    trainer = ContrastTrainer(raw_vectors(), pairs_of(1), config(hidden=hidden))
    trainer.run_epoch()
    arrays = {n: p.detach().numpy() for n, p in trainer.head.named_parameters()}
    return encoder, trainer, Projection(arrays=arrays, encoder=encoder.version, facts={"k": 1})


@pytest.mark.parametrize("hidden", (0, 8))
def test_a_projection_gives_the_vectors_that_were_trained(tmp_path, hidden):
    _, trainer, projection = trained(hidden)
    write_projection(tmp_path / "p.safetensors", projection)
    back = read_projection(tmp_path / "p.safetensors")
    assert (back.version, back.facts, back.dim) == (projection.version, {"k": 1}, 16)
    found = np.stack([back.apply(vector) for vector in raw_vectors()])
    assert np.allclose(found, trainer.vectors(), atol=1e-5)
    assert [p.name for p in tmp_path.iterdir()] == ["p.safetensors"]


def test_a_projected_encoder_is_an_encoder_of_its_own():
    encoder, _, projection = trained(0)
    stage = ProjectedEncoder(encoder, projection)
    items = [
        ItemContent(item_id=n, ts_ms=1, attributes={"tag": [f"t{n}", "x"]} if n else {})
        for n in range(5)
    ]
    vectors, present = stage.encode_many(items)
    assert present.tolist() == [False, True, True, True, True]
    assert not vectors[0].any()
    for n in range(1, 5):
        assert np.array_equal(stage.encode_many([items[n]])[0][0], vectors[n])
    assert stage.dim == 16
    assert stage.version != encoder.version
    other = dict(projection.arrays) | {"bias": projection.arrays["bias"] + 1}
    assert Projection(arrays=other, encoder=encoder.version).version != stage.version
    elsewhere = AttributeEncoder(AttributeEncoderConfig(dim=32, seed=9))
    with pytest.raises(ProjectionUnusable, match="trained on encoder"):
        ProjectedEncoder(elsewhere, projection)


def test_other_files_are_no_projections(tmp_path):
    path = tmp_path / "p.safetensors"
    with pytest.raises(ProjectionUnusable, match="cannot be used"):
        read_projection(path)
    path.write_bytes(b"nonsense")
    with pytest.raises(ProjectionUnusable, match="cannot be used"):
        read_projection(path)
    weight = np.eye(3, dtype=np.float32)
    with pytest.raises(ValueError, match="bias: expected shape"):
        Projection(arrays={"weight": weight, "bias": weight}, encoder="e")
    write_projection(
        path,
        Projection(arrays={"weight": weight, "bias": np.full(3, np.inf, np.float32)}, encoder="e"),
    )
    with pytest.raises(ProjectionUnusable, match="not finite"):
        read_projection(path)
