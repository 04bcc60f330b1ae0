"""Vectors as int8 numbers with one scale each, symmetric around 0. Knows no bytes and no store."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

SCALE_MAX = 2.0**120
"""128 of it are finite in float32."""

_SCALE_MIN = 1e-30


def quantised(vector_D: NDArray[Any]) -> tuple[NDArray[np.int8], float]:
    """Numbers int8 [D] in -127..127 and their scale: `vector_D` is about numbers times scale.

    Symmetric: the largest magnitude becomes 127, halves are rounded to even. The scale is rounded
    up to 17 bits, so that each product is exact in float32 and to quantise it again changes
    nothing. Magnitudes below 1e-28 become 0. The numbers must be finite.
    """
    numbers_D = np.asarray(vector_D, np.float64)
    exact = float(np.abs(numbers_D).max(initial=0.0)) / 127.0
    if exact < _SCALE_MIN:
        return np.zeros(numbers_D.shape, np.int8), 0.0
    fraction, exponent = math.frexp(exact)
    scale = math.ldexp(math.ceil(math.ldexp(fraction, 17)), exponent - 17)
    return np.rint(numbers_D / scale).astype(np.int8), scale
