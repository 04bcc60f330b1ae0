"""Widths at which rows of a product are independent, by torch's own products on this machine."""

import pytest
import torch
from torch import Tensor, nn

from learners import catalog
from learners.row_products import Weights, check_layers, is_safe
from tests.support.batches import small_spec

avx2 = pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() != "AVX2", reason="measured for AVX2 only"
)
INPUTS = (*range(1, 20), 32, 33, 64, 66, 100, 203)


def place_matters(inputs: int, outputs: int, *, as_stored: bool) -> bool:
    """Whether rows of a product differ with their place and the number of rows, a multiple of 8."""
    generator = torch.Generator().manual_seed(inputs)
    weight = torch.randn(outputs, inputs, generator=generator)
    x = torch.randn(120, inputs, generator=generator)

    def product(rows: Tensor) -> Tensor:
        return rows @ weight.t().contiguous() if as_stored else nn.functional.linear(rows, weight)

    whole, order = product(x), torch.randperm(120, generator=generator)
    parts = [(s, n) for n in (8, 24, 104) for s in range(0, 121 - n, 8)]
    return not torch.equal(product(x[order]), whole[order]) or any(
        not torch.equal(product(x[s : s + n]), whole[s : s + n]) for s, n in parts
    )


@avx2
@pytest.mark.parametrize("as_stored", (False, True))
def test_what_is_called_safe_is(as_stored):
    torch.set_num_threads(1)
    bad = [
        (i, o) for i in INPUTS for o in (*range(1, 25), 32, 64, 130)
        if is_safe(i, o, as_stored=as_stored) and place_matters(i, o, as_stored=as_stored)
    ]  # fmt: skip
    assert bad == []


@avx2
def test_what_is_called_unsafe_often_is_not_the_same_everywhere():
    """The rule is no superstition: most of what it forbids differs here."""
    torch.set_num_threads(1)
    forbidden = [(i, o) for i in INPUTS for o in range(1, 25) if not is_safe(i, o)]
    assert len(forbidden) > 50
    assert sum(place_matters(*widths, as_stored=False) for widths in forbidden) > 40


def test_a_narrow_layer_on_an_odd_input_is_refused_by_name():
    net = nn.Sequential(nn.Linear(33, 64), nn.ReLU(), nn.Linear(64, 8), nn.Linear(8, 1))
    check_layers(net)
    with pytest.raises(ValueError, match=r"layer '1.0' makes 8 numbers of 33.*12 or more"):
        check_layers(nn.ModuleList([net, nn.Sequential(nn.Linear(33, 8))]))
    check_layers(nn.Sequential(Weights(33, 8)))


@pytest.mark.parametrize(
    ("learner", "options"),
    (
        ("id_content", {"device": "cpu", "hidden": [18, 8]}),
        ("dcn", {"bits": 12, "hidden": [18, 8]}),
        ("id_content", {"device": "cpu", "em3": {"on": True, "dim": 16, "heads": 2, "rank": 5}}),
    ),
)
def test_an_option_that_would_tie_rows_together_is_refused(learner, options):
    """A layer of 8 on 18, and a correction of rank 5 on 16."""
    with pytest.raises(ValueError, match="in so narrow a product"):
        catalog.build(learner, small_spec(), options)
