"""The hand-written backward pass against autograd on the textbook form."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from learners.rankers.cross_mlp import CrossMlp
from tests.support.close import assert_close


def textbook(net, x0, joins=()):
    x = x0
    for down, up in zip(net.down, net.up, strict=True):
        x = x0 * up(down(x)) + x
    h = x0
    for i, layer in enumerate(net.mlp):
        h = functional.relu(layer(h) + (joins[i] if joins else 0))
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
    assert_close(found, expected)
    sources = [x0, *net.parameters()]
    pull = torch.randn(16)
    for a, b in zip(
        torch.autograd.grad((found * pull).sum(), sources),
        torch.autograd.grad((expected * pull).sum(), sources),
        strict=True,
    ):
        assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_what_joins_the_layers_gets_its_gradient():
    torch.manual_seed(1)
    net = CrossMlp(11, layers=2, rank=3, hidden=(7, 4, 5))
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    x0 = torch.randn(16, 11)
    joins = [torch.randn(16, size, requires_grad=True) for size in (7, 4, 5)]
    found, expected = net(x0, joins[0], joins[1:]), textbook(net, x0, joins)
    assert_close(found, expected)
    sources, pull = [*joins, *net.parameters()], torch.randn(16)
    for a, b in zip(
        torch.autograd.grad((found * pull).sum(), sources),
        torch.autograd.grad((expected * pull).sum(), sources),
        strict=True,
    ):
        assert_close(a, b, rtol=1e-4, atol=1e-5)
    alone = net(x0, None, (None, joins[2]))
    assert_close(alone, textbook(net, x0, [0, 0, joins[2]]))
