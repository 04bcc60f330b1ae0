"""Which release of an extractor each impression may use, and whether a change of release was good.

A ranker that meets a sample whose label its extractor has learned trusts the extractor too much: a
release is used for impressions after its window alone. Holds no ranker and reads no file.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from infra.state import Part
from learners.modules.make_net import MakeNet
from learners.modules.make_release import MakeRelease
from learners.modules.module import Kept
from learners.step_inputs import StepInputs

I64 = NDArray[np.int64]
MIN_ROWS = 256
"""Rows before a trial may end: a handful of rows has no deviation worth the name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardConfig:
    """A change of release is on trial for `rows` learned rows; 0 turns the guard off.

    It is reverted as soon as the mean of the rows' losses with the new release less those without
    it is above 0 by `sigmas` standard errors, and at the end where it is above 0 by one.
    """

    rows: int = 4_096
    sigmas: float = 3.0

    def __post_init__(self) -> None:
        """Check ranges."""
        if self.rows < 0 or not self.sigmas > 0:
            raise ValueError(
                f"make: guard_rows >= 0 and guard_sigmas > 0, got {self.rows}, {self.sigmas}"
            )


class Versions(Kept):
    """Releases in order of the ends of their windows; an impression's is the newest that ended.

    Reverted ones are passed over, for all rows and for ever. Rows before all windows' ends have
    none. State: which were reverted, and the sums of the trial under way.
    """

    def __init__(self, releases: Sequence[MakeRelease], guard: GuardConfig) -> None:
        """Raises ValueError for two releases that end together, or are of two encoders or sizes."""
        self.releases = sorted(releases, key=lambda release: release.until_ms)
        for a, b in zip(self.releases, self.releases[1:], strict=False):
            if a.until_ms == b.until_ms:
                raise ValueError(
                    f"make: releases {a.version} and {b.version} end at the same time "
                    f"({a.until_ms}); give one of them"
                )
            if (a.encoder, a.extractor) != (b.encoder, b.extractor):
                raise ValueError(
                    f"make: releases {a.version} and {b.version} are of different encoders or "
                    "sizes, which the ranker cannot change between"
                )
        self.until_J = np.array([r.until_ms for r in self.releases], np.int64)
        self.nets: list[MakeNet] = [
            r.net().requires_grad_(requires_grad=False) for r in self.releases
        ]
        self.guard = guard
        self.reverted = np.zeros(len(self.releases), bool)
        self.passed = np.zeros(len(self.releases), bool)
        self.trial = -1
        self.sums = (0, 0.0, 0.0)
        self.refused = 0
        self.without_newest = False
        self._noted: tuple[int, float, float] | None = None

    def _used(self, ts_ms_B: I64) -> I64:
        """Number of each row's release, -1: none."""
        usable = np.flatnonzero(~self.reverted)
        if self.without_newest and len(usable):
            usable = usable[usable != self._candidate(ts_ms_B)]
        place = np.searchsorted(self.until_J[usable], ts_ms_B, side="left") - 1
        return np.where(place >= 0, usable[place] if len(usable) else -1, -1)

    def _candidate(self, ts_ms_B: I64) -> int:
        """The release on trial: the newest in use, unless it has passed or is the first; or -1."""
        usable = np.flatnonzero(~self.reverted & (self.until_J < int(ts_ms_B.max(initial=0))))
        if len(usable) < 2 or self.passed[usable[-1]] or not self.guard.rows:
            return -1
        return int(usable[-1])

    def allowed(self, x: StepInputs) -> Tensor | None:
        """Rows after the one release's window, bool [B] on the device; None: all of them."""
        if not self.releases:
            return None
        return torch.from_numpy(x.ts_ms_B > self.until_J[0]).to(x.target_BC.device)

    def chosen(self, x: StepInputs) -> list[tuple[int, Tensor]]:
        """Each release that rows use, with those rows, bool [B] on the device."""
        used_B = self._used(x.ts_ms_B)
        device = x.target_BC.device
        return [
            (int(j), torch.from_numpy(used_B == j).to(device))
            for j in np.unique(used_B[used_B >= 0])
        ]

    def on_trial(self, x: StepInputs) -> bool:
        """Whether a row that is learned from uses a release that is on trial."""
        candidate = self._candidate(x.ts_ms_B)
        return candidate >= 0 and bool(
            ((self._used(x.ts_ms_B) == candidate) & (x.flag_B > 0)).any()
        )

    def note(self, x: StepInputs, logits_B: Tensor, rival_B: Tensor) -> None:
        """Differences of the losses of the rows on trial, to be taken over once the step is."""
        on = torch.from_numpy(self._used(x.ts_ms_B) == self._candidate(x.ts_ms_B))
        on = on.to(logits_B.device) & (x.label_mask_B > 0)
        losses = [
            functional.binary_cross_entropy_with_logits(z.detach(), x.label_B, reduction="none")
            for z in (logits_B, rival_B)
        ]
        d = (losses[0] - losses[1]).double()[on]
        self._noted = (int(on.sum()), float(d.sum()), float((d * d).sum()))

    def learned(self, x: StepInputs, *, ok: bool) -> None:
        """Add what was noted; end the trial where it is decided."""
        noted, self._noted = self._noted, None
        if not ok:
            return
        if len(self.releases):
            learned_B = x.flag_B > 0
            self.refused += int((learned_B & (x.ts_ms_B <= self.until_J[0])).sum())
        if noted is None:
            return
        candidate = self._candidate(x.ts_ms_B)
        if candidate != self.trial:
            self.trial, self.sums = candidate, (0, 0.0, 0.0)
        n, total, squares = (a + b for a, b in zip(self.sums, noted, strict=True))
        self.sums = (int(n), total, squares)
        if n < MIN_ROWS:
            return
        error = math.sqrt(max(squares - total * total / n, 0.0))
        if total > self.guard.sigmas * error or (n >= self.guard.rows and total > error):
            self.reverted[candidate] = True
        elif n >= self.guard.rows:
            self.passed[candidate] = True

    def part(self) -> Part:
        """What became of each release."""
        return Part(
            name="make", part_class="serve",
            meta={
                "releases": [r.version for r in self.releases],
                "reverted": self.reverted.tolist(), "passed": self.passed.tolist(),
                "sums": list(self.sums), "refused": self.refused,
                "trial": self.releases[self.trial].version if self.trial >= 0 else "",
            },
        )  # fmt: skip

    def apply(self, parts: Mapping[str, Part]) -> None:
        """Take it back; releases that came since are new. Raises ValueError where one is gone."""
        if "make" not in parts:
            return
        meta = parts["make"].meta
        own = [r.version for r in self.releases]
        gone = [v for v in meta["releases"] if v not in own]
        if gone:
            raise ValueError(
                f"make: the snapshot used release {gone[0]}, which is not among those configured "
                f"({', '.join(own) or 'none'}); keep its file in make.releases"
            )
        for name, into in (("reverted", self.reverted), ("passed", self.passed)):
            for version, value in zip(meta["releases"], meta[name], strict=True):
                into[own.index(version)] = value
        self.trial = own.index(meta["trial"]) if meta["trial"] else -1
        rows, total, squares = meta["sums"]
        self.sums = (int(rows), float(total), float(squares))
        self.refused = int(meta["refused"])

    def counts(self) -> Mapping[str, int]:
        """`refused`: learned rows within the first release's window.

        `trial_rows`, `trial_micronats`: rows that judge the release on trial, and the mean of their
        losses with it less those with the one before, in 1e-6 nats; both 0 where none is.
        """
        if not self.releases:
            return {}
        rows, total, _ = self.sums if self.trial >= 0 else (0, 0.0, 0.0)
        return {
            "releases": len(self.releases), "reverted": int(self.reverted.sum()),
            "passed": int(self.passed.sum()), "refused": self.refused,
            "trial_rows": rows, "trial_micronats": round(1e6 * total / rows) if rows else 0,
        }  # fmt: skip
