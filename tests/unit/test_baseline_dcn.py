"""The plain DCN v2: the paper's cross layer, torch's optimizer, and snapshots of another net."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from learners import catalog
from learners.step_inputs import step_inputs
from tests.support.batches import BatchMaker, small_spec
from tests.support.close import assert_close

# Torch's optimizers import its compiler: eight seconds before the first step.
pytestmark = pytest.mark.slow

SMALL = {"bits": 10, "dim": 4, "hidden": [8]}


def build(**options):
    return catalog.build("dcn", small_spec(), SMALL | options)


def note_input(layer, name, seen):
    """Keep what a layer reads."""
    layer.register_forward_pre_hook(lambda _, inputs: seen.update({name: inputs[0]}))


def test_cross_layers_are_those_of_the_paper():
    learner, batch = build(), BatchMaker(small_spec()).batch(8)
    net = learner.net
    x = step_inputs(batch, small_spec(), torch.device("cpu"))
    seen = {}
    note_input(net.cross[0], "x0", seen)
    note_input(net.out, "out", seen)
    net(x, x.dense_BD)
    x0 = seen["x0"].detach().numpy().astype(float)
    expected = x0
    for layer in net.cross:
        w, b = layer.weight.detach().numpy().astype(float), layer.bias.detach().numpy()
        expected = x0 * (expected @ w.T + b) + expected
    got = seen["out"].detach().numpy()[:, : x0.shape[1]]
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-6)
    assert x0.shape[1] == 4 * (3 + 2) + len(small_spec().dense)


def test_bags_are_means_without_padding():
    learner, batch = build(), BatchMaker(small_spec()).batch(8)
    net = learner.net
    x = step_inputs(batch, small_spec(), torch.device("cpu"))
    seen = {}
    note_input(net.cross[0], "x0", seen)
    net(x, x.dense_BD)
    for keys, pooled in zip(batch.bags_BL[0], seen["x0"][:, 12:16], strict=True):
        own = [k % net.rows + 1 for k in keys.tolist() if k]
        expected = net.embedding.weight[own].mean(0) if own else torch.zeros(4)
        assert_close(pooled, expected)


@pytest.mark.parametrize("optimizer", ("adam", "adagrad"))
def test_a_step_is_torchs(optimizer):
    learner, stream = build(optimizer=optimizer, lr=0.01), BatchMaker(small_spec())
    plain = build(optimizer=optimizer, lr=0.01).net
    kind = {"adam": torch.optim.Adam, "adagrad": torch.optim.Adagrad}[optimizer]
    optim = kind(plain.parameters(), lr=0.01)
    for i in range(3):
        batch = stream.batch(16)
        x = step_inputs(batch, small_spec(), torch.device("cpu"))
        loss = torch.nn.functional.binary_cross_entropy_with_logits(
            plain(x, learner.moments.standardise(x.dense_BD)), batch.labels_BK[:, 1]
        )
        optim.zero_grad()
        loss.backward()
        optim.step()
        assert_close(learner.learn_many(batch).loss, loss.detach())
        for a, b in zip(learner.net.parameters(), plain.parameters(), strict=True):
            assert_close(a, b, msg=f"step {i}")


def test_a_step_that_is_not_finite_changes_nothing():
    learner, stream = build(), BatchMaker(small_spec())
    learner.learn_many(stream.batch(16))
    with torch.no_grad():
        learner.net.out.bias.fill_(float("inf"))
    before = [p.clone() for p in learner.net.parameters()]
    assert int(learner.learn_many(stream.batch(16)).skipped) == 16
    assert all(torch.equal(a, b) for a, b in zip(learner.net.parameters(), before, strict=True))


@pytest.mark.parametrize(
    ("options", "message"),
    (
        ({"bits": 0}, "bits 1 to 26"),
        ({"hidden": []}, "one unit at least"),
        ({"threads": 0}, "at least 1"),
        ({"optimizer": "lion"}, "Invalid enum value 'lion'"),
    ),
)
def test_wrong_configuration_is_one_clear_error(options, message):
    with pytest.raises(ValueError, match=message):
        build(**options)


def test_server_cannot_learn_and_another_net_is_refused():
    parts = {part.name: part for part in build().export_full()}
    server = build()
    server.apply({"dcn": parts["dcn"]})
    with pytest.raises(RuntimeError, match="'serve' parts only"):
        server.learn_many(BatchMaker(small_spec()).batch(8))
    with pytest.raises(ValueError, match="another net"):
        build(dim=8).apply(parts)
