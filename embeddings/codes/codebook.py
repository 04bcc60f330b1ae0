"""Codebook: item vectors to residual codes and anchor codes (QARM, sections 4.1 to 4.3).

Fits nothing and reads no file. Shapes: B vectors, D dimensions, L levels, T anchors of a vector.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import msgpack
import numpy as np
import xxhash
from numpy.typing import NDArray

from embeddings.codes.kmeans import F64, I64, nearest, nearest_many
from embeddings.item_content import AttributeValue

Normalisation = Literal["unit", "none"]
CODES_PREFIX = "codes."
CODES_VERSION_MARK = "+codes-"
"""Between the encoder's version and the codebook's, in the version of vectors with codes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Codes:
    """Codes of B vectors, from 1 on; 0 where a vector has none.

    `rq_BL` int64: residual code of each level. `vq_BT` int64: the nearest anchors, nearest first.
    `residual_BL`: squared length of what is left after each level, NaN where there is no vector.
    """

    rq_BL: I64
    vq_BT: I64
    residual_BL: F64


@dataclass(frozen=True, slots=True, kw_only=True)
class Codebook:
    """Centroids float64 [K, D] of each level, and anchors float64 [P, D]; frozen with its version.

    `encoder_version`: of the vectors that it codes. `born_K`: the growth in which each centroid of
    level 1 came (0: fitted). `radius`: a vector farther from all centroids of level 1 is of none of
    them. `slots`: places of level 1, taken or not.
    """

    encoder_version: str
    normalisation: Normalisation
    levels: tuple[F64, ...]
    anchors_PD: F64
    anchors_of_vector: int
    born_K: I64
    radius: float
    slots: int
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check that the parts fit each other; the message says which do not."""
        dims = {part.shape[1] for part in (*self.levels, self.anchors_PD) if part.ndim == 2}
        if not self.levels or len(dims) != 1 or any(len(level) < 1 for level in self.levels):
            raise ValueError("codebook: expected levels and anchors of one dimension")
        if not all(np.isfinite(part).all() for part in (*self.levels, self.anchors_PD)):
            raise ValueError("codebook: a centroid holds a NaN or an infinity")
        if len(self.born_K) != len(self.levels[0]) or not len(self.levels[0]) <= self.slots:
            raise ValueError("codebook: level 1 and its slots differ in number")
        if not 0 <= self.anchors_of_vector <= len(self.anchors_PD):
            raise ValueError(
                f"codebook: {self.anchors_of_vector} anchors a vector of {len(self.anchors_PD)}"
            )

    @property
    def dim(self) -> int:
        """Length of the vectors."""
        return int(self.levels[0].shape[1])

    @property
    def version(self) -> str:
        """A hash of all that decides a code: equal for equal books only."""
        digest = xxhash.xxh3_64()
        stated = [self.encoder_version, self.normalisation, self.anchors_of_vector, self.radius]
        digest.update(msgpack.packb([*stated, [len(level) for level in self.levels]]))
        for part in (*self.levels, self.anchors_PD, self.born_K):
            digest.update(np.ascontiguousarray(part).tobytes())
        return f"{len(self.levels)}x{len(self.levels[0])}-{digest.hexdigest()}"

    @property
    def names(self) -> list[str]:
        """Names of the attributes of codes."""
        levels = range(1, len(self.levels) + 1)
        found = [f"{CODES_PREFIX}rq{i}" for i in levels]
        found += [f"{CODES_PREFIX}prefix{i}" for i in levels if i > 1]
        return found + ([f"{CODES_PREFIX}vq"] if self.anchors_of_vector else [])

    def encode_many(self, vectors_BD: NDArray[Any], present_B: NDArray[np.bool_]) -> Codes:
        """Codes of the vectors; a vector's never depend on the others of its batch.

        Residuals are not normalised, so a vector is the sum of its centroids and what is left.
        """
        rows = np.flatnonzero(present_B)
        shape = (len(vectors_BD), len(self.levels))
        rq_BL, residual_BL = np.zeros(shape, np.int64), np.full(shape, np.nan)
        vq_BT = np.zeros((len(vectors_BD), self.anchors_of_vector), np.int64)
        points = normalised(vectors_BD[rows], self.normalisation)
        if self.anchors_of_vector and len(rows):
            vq_BT[rows] = nearest_many(points, self.anchors_PD, self.anchors_of_vector)[0] + 1
        for level, centroids_KD in enumerate(self.levels):
            place, squared = (
                self.first_level(points) if level == 0 else nearest(points, centroids_KD)
            )
            rq_BL[rows, level], residual_BL[rows, level] = place + 1, squared
            points = points - centroids_KD[place]
        return Codes(rq_BL=rq_BL, vq_BT=vq_BT, residual_BL=residual_BL)

    def first_level(self, points_ND: F64) -> tuple[I64, F64]:
        """Places at level 1 and squared distances of normalised points.

        Centroids of a later growth are considered for points alone that were too far from all
        before: whatever had a code near enough keeps it.
        """
        first_KD = self.levels[0]
        place_N, squared_N = _among(points_ND, first_KD, self.born_K == 0)
        for growth in range(1, int(self.born_K.max()) + 1):
            far = np.flatnonzero(squared_N > self.radius**2)
            if not len(far):
                break
            place_N[far], squared_N[far] = _among(points_ND[far], first_KD, self.born_K <= growth)
        return place_N, squared_N

    def reconstruct(self, rq_BL: I64) -> F64:
        """Sums of the centroids that the codes name, float64 [B, D], of codes from 1 on."""
        assert (rq_BL > 0).all(), "a code of 0 names no centroid"
        parts = [level[rq_BL[:, i] - 1] for i, level in enumerate(self.levels)]
        found_BD: F64 = np.sum(parts, axis=0)
        return found_BD


def _among(points_ND: F64, centroids_KD: F64, some_K: NDArray[np.bool_]) -> tuple[I64, F64]:
    places = np.flatnonzero(some_K)
    place_N, squared_N = nearest(points_ND, centroids_KD[places])
    return places[place_N], squared_N


def normalised(vectors_ND: NDArray[Any], normalisation: Normalisation) -> F64:
    """The vectors as float64 [N, D], of unit length if asked; a vector of zeros stays so.

    Without it, level 1 of vectors with outliers in length tells lengths apart, not contents.
    """
    points_ND = np.ascontiguousarray(vectors_ND, np.float64)
    if normalisation == "none":
        return points_ND
    norms_N1 = np.sqrt((points_ND * points_ND).sum(axis=1))[:, None]
    unit_ND: F64 = np.divide(points_ND, norms_N1, out=points_ND.copy(), where=norms_N1 > 0)
    return unit_ND


def attributes_of(codes: Codes, row: int) -> dict[str, AttributeValue]:
    """Attributes of an item with the codes in `row`; none where it has no vector.

    `codes.rq1` … one a level, `codes.prefix2` … the path down to a level ("3-17"), whose meaning
    needs no other field, and `codes.vq`, a list.
    """
    path = codes.rq_BL[row].tolist()
    if not path[0]:
        return {}
    found: dict[str, AttributeValue] = {}
    for level, code in enumerate(path, 1):
        found[f"{CODES_PREFIX}rq{level}"] = code
    for length in range(2, len(path) + 1):
        found[f"{CODES_PREFIX}prefix{length}"] = "-".join(map(str, path[:length]))
    if codes.vq_BT.shape[1]:
        found[f"{CODES_PREFIX}vq"] = codes.vq_BT[row].tolist()
    return found
