"""Fitting a codebook to item vectors, growing it, and refreshing it. Reads and writes no file.

Shapes: N vectors, D dimensions, K centroids, L levels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from embeddings.codes.codebook import Codebook, Codes, Normalisation, normalised
from embeddings.codes.kmeans import F64, I64, lloyd, nearest, seeds
from infra.errors import InputError

_RADIUS_QUANTILE = 0.999


@dataclass(frozen=True, slots=True, kw_only=True)
class FitConfig:
    """`size` centroids a level. At most `sample_per_centroid` vectors a centroid are looked at.

    `anchors`: vectors of items kept for the anchor codes, of which a vector gets its
    `anchors_of_vector` nearest; 0 turns them off. `spare`: share of level 1's places kept empty.
    """

    levels: int = 3
    size: int = 256
    anchors: int = 1_024
    anchors_of_vector: int = 25
    iterations: int = 50
    sample_per_centroid: int = 256
    spare: float = 0.1
    normalisation: Normalisation = "unit"
    seed: int = 0

    def __post_init__(self) -> None:
        """Check ranges."""
        if min(self.levels, self.size, self.sample_per_centroid) < 1 or self.iterations < 0:
            raise ValueError("codes: levels, size and sample_per_centroid must be at least 1")
        if not (0 <= self.anchors_of_vector <= self.anchors or not self.anchors):
            raise ValueError(
                f"codes: {self.anchors_of_vector} anchors a vector, but {self.anchors} in all"
            )
        if self.spare < 0:
            raise ValueError(f"codes: spare must not be negative, got {self.spare}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Refreshed:
    """A new book whose ids mean what they meant, as far as that goes.

    `replaced`: for each level the ids (from 1 on) whose centroid is now nearer to another old
    centroid than to its own: what was learned for them says nothing of them any more.
    """

    book: Codebook
    replaced: tuple[I64, ...]


def fit(
    vectors_ND: NDArray[Any], encoder_version: str, config: FitConfig,
    facts: Mapping[str, Any] | None = None,
) -> Codebook:  # fmt: skip
    """A codebook of the vectors, which count once each however often they occur.

    Each level is k-means of what the levels above left over (QARM, section 4.2). A level has fewer
    than `size` centroids where it has fewer different points. Raises InputError without vectors.
    """
    rng = np.random.default_rng(config.seed)
    points_ND = _sample(vectors_ND, config.normalisation, config, rng)
    anchors = _some(points_ND, config.anchors, rng)
    left_ND, levels, reseeded = points_ND, [], []
    radius = 0.0
    for level in range(config.levels):
        start_KD = seeds(left_ND, config.size, rng)
        found = lloyd(left_ND, start_KD, config.iterations, reseed=True)
        levels.append(found.centroids_KD)
        reseeded.append(found.reseeded)
        left_ND = left_ND - found.centroids_KD[found.nearest_N]
        if level == 0:
            radius = _radius(left_ND)
    return Codebook(
        encoder_version=encoder_version, normalisation=config.normalisation, levels=tuple(levels),
        anchors_PD=anchors, anchors_of_vector=min(config.anchors_of_vector, len(anchors)),
        born_K=np.zeros(len(levels[0]), np.int64), radius=radius,
        slots=len(levels[0]) + round(config.size * config.spare),
        facts=dict(facts or {}) | {"fitted_to": len(points_ND), "reseeded": reseeded},
    )  # fmt: skip


def refresh(
    book: Codebook, vectors_ND: NDArray[Any], config: FitConfig, *,
    cold: bool = False, frozen_levels: int = 0, facts: Mapping[str, Any] | None = None,
) -> Refreshed:  # fmt: skip
    """`book` fitted to newer vectors of the same encoder; ids keep their meaning.

    Each level starts from its old centroids, or anew if `cold`; then new centroids are matched to
    the old ones one to one, the sum of squared distances as small as can be (Hungarian method). The
    first `frozen_levels` stay as they are, and anchors always do. Sizes and normalisation are the
    book's. With 0 iterations a warm refresh gives the same book.
    """
    rng = np.random.default_rng(config.seed)
    left_ND = _sample(vectors_ND, book.normalisation, config, rng)
    levels, replaced = [], []
    for level, old_KD in enumerate(book.levels):
        new_KD, ids = old_KD, np.empty(0, np.int64)
        if level >= frozen_levels and (cold or config.iterations):
            start_KD = seeds(left_ND, len(old_KD), rng) if cold else old_KD
            found = lloyd(left_ND, start_KD, config.iterations, reseed=cold)
            new_KD, ids = matched(old_KD, found.centroids_KD)
        replaced.append(ids)
        levels.append(new_KD)
        place_N = book.first_level(left_ND)[0] if new_KD is book.levels[0] else (
            nearest(left_ND, new_KD)[0]
        )  # fmt: skip
        left_ND = left_ND - new_KD[place_N]
    changed = levels[0] is not book.levels[0]
    fresh = replace(
        book, levels=tuple(levels),
        # A level 1 that was fitted anew has no history of growth.
        born_K=np.zeros_like(book.born_K) if changed else book.born_K,
        radius=_radius_of(levels[0], vectors_ND, book.normalisation) if changed else book.radius,
        facts=dict(book.facts) | dict(facts or {}) | {"refreshed_from": book.version},
    )  # fmt: skip
    return Refreshed(book=fresh, replaced=tuple(replaced))


def matched(old_KD: F64, new_KD: F64) -> tuple[F64, I64]:
    """The new centroids at the places of the old ones they match, and the ids that are replaced."""
    squared_KK = (
        (old_KD * old_KD).sum(axis=1)[:, None] - 2 * old_KD @ new_KD.T
        + (new_KD * new_KD).sum(axis=1)
    )  # fmt: skip
    old, new = linear_sum_assignment(squared_KK)
    found_KD = old_KD.copy()
    found_KD[old] = new_KD[new]
    nearest_old, _ = nearest(found_KD, old_KD)
    return found_KD, np.flatnonzero(nearest_old != np.arange(len(old_KD))) + 1


def grow(
    book: Codebook, vectors_ND: NDArray[Any], config: FitConfig, *, members_min: int = 10,
    facts: Mapping[str, Any] | None = None,
) -> Codebook:  # fmt: skip
    """`book` with new centroids of level 1 where vectors are too far from all; codes stay.

    The far vectors are clustered into at most as many centroids as slots are left, each of
    `members_min` vectors on average. The same book where there is nothing to grow.
    """
    points_ND = normalised(vectors_ND, book.normalisation)
    far_ND = points_ND[book.first_level(points_ND)[1] > book.radius**2]
    free = book.slots - len(book.levels[0])
    k = min(free, len(far_ND) // members_min)
    if k < 1:
        return book
    rng = np.random.default_rng(config.seed)
    new_KD = lloyd(far_ND, seeds(far_ND, k, rng), config.iterations, reseed=True).centroids_KD
    growth = int(book.born_K.max()) + 1
    return replace(
        book, levels=(np.concatenate([book.levels[0], new_KD]), *book.levels[1:]),
        born_K=np.concatenate([book.born_K, np.full(len(new_KD), growth)]),
        facts=dict(book.facts) | dict(facts or {})
        | {"grown_from": book.version, "grown_by": len(new_KD), "far": len(far_ND)},
    )  # fmt: skip


def churn(before: Codes, after: Codes) -> list[float | None]:
    """Share of items whose code path down to each level changed; None without items.

    An item counts if it has codes in both.
    """
    both = (before.rq_BL[:, 0] > 0) & (after.rq_BL[:, 0] > 0)
    if not both.any():
        return [None] * before.rq_BL.shape[1]
    differs = np.logical_or.accumulate(before.rq_BL[both] != after.rq_BL[both], axis=1)
    return [float(share) for share in differs.mean(axis=0)]


def _sample(
    vectors_ND: NDArray[Any], normalisation: Normalisation, config: FitConfig,
    rng: np.random.Generator,
) -> F64:  # fmt: skip
    if not len(vectors_ND):
        raise InputError("codes: no item has a vector; nothing to fit a codebook to")
    points_ND = normalised(vectors_ND, normalisation)
    # Equal vectors once, in an order that is the points' own and not that of the input.
    hashes_N = [xxhash.xxh3_64_intdigest(point.tobytes()) for point in points_ND]
    _, first = np.unique(np.array(hashes_N, np.uint64), return_index=True)
    return _some(points_ND[first], config.size * config.sample_per_centroid, rng)


def _some(points_ND: F64, n: int, rng: np.random.Generator) -> F64:
    if len(points_ND) <= n:
        return points_ND
    return points_ND[np.sort(rng.choice(len(points_ND), n, replace=False))]


def _radius(left_ND: F64) -> float:
    return float(np.quantile(np.sqrt((left_ND * left_ND).sum(axis=1)), _RADIUS_QUANTILE))


def _radius_of(centroids_KD: F64, vectors_ND: NDArray[Any], normalisation: Normalisation) -> float:
    points_ND = normalised(vectors_ND, normalisation)
    return _radius(points_ND - centroids_KD[nearest(points_ND, centroids_KD)[0]])
