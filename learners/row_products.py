"""Widths of layers at which a product's rows are independent of one another, bit for bit.

A logit must not depend on its row's place in the batch. torch's matrix product on a CPU (MKL, AVX2;
batches of a multiple of 8 rows) keeps that but for few columns, where a row is summed in another
order at the batch's end than in its middle: measured for 2 to 11 columns, see the test. Computes
nothing.
"""

from __future__ import annotations

from torch import nn

NARROW = range(2, 12)
"""Numbers of columns that have kernels of their own."""


class Weights(nn.Linear):
    """A layer that only holds weights: its own product is never taken."""


def is_safe(inputs: int, outputs: int, *, as_stored: bool = False) -> bool:
    """Whether a row of `x @ w.T`, w [outputs, inputs], is the same at every place.

    `as_stored`: of `x @ w` with w [inputs, outputs].
    """
    if outputs not in NARROW:
        return True
    if as_stored:
        return inputs < 8 or outputs in (2, 3, 4, 8)
    return inputs <= 4 or inputs % 4 == 0


def check_product(name: str, inputs: int, outputs: int, *, as_stored: bool = False) -> None:
    """Raises ValueError where a row of the product would depend on its place, see `is_safe`."""
    if not is_safe(inputs, outputs, as_stored=as_stored):
        narrow = "4 or 8" if as_stored else "a number of inputs that 4 divides"
        raise ValueError(
            f"layer '{name}' makes {outputs} numbers of {inputs}: in so narrow a product the last "
            "bits of a row depend on its place in the batch, and so would a logit; give it "
            f"{NARROW.stop} or more, or {narrow}"
        )


def check_layers(net: nn.Module) -> None:
    """`check_product` of all linear layers of a net."""
    for name, layer in net.named_modules():
        if isinstance(layer, nn.Linear) and not isinstance(layer, Weights):
            check_product(name, layer.in_features, layer.out_features)
