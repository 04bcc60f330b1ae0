"""The hand-written backward pass against autograd on the textbook form."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from learners.rankers.cross_mlp import CrossMlp


def textbook(net, x0):
    x = x0
    for down, up in zip(net.down, net.up, strict=True):
        x = x0 * up(down(x)) + x
    h = x0
    for layer in net.mlp:
        h = functional.relu(layer(h))
    return (net.out_cross(x) + net.out_mlp(h)).squeeze(1)


@pytest.mark.parametrize("layers", (0, 1, 2, 3))
@pytest.mark.parametrize("hidden", ((5,), (7, 4), (6, 5, 3)))
def test_values_and_gradients_are_those_of_the_textbook_form(layers, hidden):
    torch.manual_seed(0)
    net = CrossMlp(11, layers=layers, rank=3, hidden=hidden)
    x0 = torch.randn(16, 11, requires_grad=True)
    assert net(x0).abs().max() == 0
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    found, expected = net(x0), textbook(net, x0)
    torch.testing.assert_close(found, expected)
    sources = [x0, *net.parameters()]
    pull = torch.randn(16)
    for a, b in zip(
        torch.autograd.grad((found * pull).sum(), sources),
        torch.autograd.grad((expected * pull).sum(), sources),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
