"""Vectors with known groups: a tree of Gaussian clusters on the sphere."""

import numpy as np


def grouped_vectors(n=1_200, dim=32, groups=12, subgroups=6, noise=0.25, seed=0):
    """(float32 [n, dim] of unit length, group [n], subgroup [n])."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((groups, dim))
    offsets = 0.6 * rng.standard_normal((groups, subgroups, dim))
    group, sub = rng.integers(groups, size=n), rng.integers(subgroups, size=n)
    vectors = centres[group] + offsets[group, sub] + noise * rng.standard_normal((n, dim))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors.astype(np.float32), group, group * subgroups + sub
