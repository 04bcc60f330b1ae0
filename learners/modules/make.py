"""`make`: what a content-only extractor makes of target and histories joins the ranker.

The extractor is pre-trained on a window of the past and frozen (releases), trained on with the
ranker (joint), or trained here from the stream with a replay buffer (online). Trains no release.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from infra.state import Part
from learners.content_view import ContentView, PerStep, content_view
from learners.feature_spec import FeatureSpec
from learners.modules.make_net import Extracted, ExtractorConfig, MakeNet, normalised
from learners.modules.make_online import OnlineConfig, OnlineExtractor
from learners.modules.make_release import MakeRelease, load_net, read_release
from learners.modules.make_versions import GuardConfig, Versions
from learners.modules.module import Addition, Module, ModuleConfig, total, zero_start
from learners.net_inputs import NetInputs
from learners.step_inputs import StepInputs


@dataclass(frozen=True, kw_only=True)
class MakeConfig(ModuleConfig):
    """`mode`: where the extractor comes from, and what trains it.

    `frozen`: `releases`, files of `millrace pretrain make`; each impression uses the newest whose
    window had ended before it, and `guard_rows` and `guard_sigmas` judge each change of release.
    `joint`: the one release is where it starts, and the ranker's loss trains it on. `online`: its
    own loss trains it after each step, and on `replays` steps of before, from a buffer of
    `replay_rows` rows; a release is where it starts, if there is one. `scale`: size of v and z_l
    where they join the hidden layers. `layers`: z_l joins the ranker's hidden layer l, as in the
    paper, the last one taking what is left; otherwise all join the first.
    """

    mode: Literal["frozen", "joint", "online"] = "online"
    releases: tuple[str, ...] = ()
    block: str = ""
    attention: int = 32
    hidden: tuple[int, ...] = (64, 32)
    product: bool = True
    scale: float = 1.0
    layers: bool = False
    replays: int = 1
    replay_rows: int = 8_192
    lr: float = 1e-3
    averaged_rows: int = 8_000
    guard_rows: int = 4_096
    guard_sigmas: float = 3.0

    def __post_init__(self) -> None:
        """Check what fits together; raises ValueError."""
        self.extractor()
        self.online()
        self.guard()
        if not self.scale > 0:
            raise ValueError(f"make: scale must be above 0, got {self.scale}")
        if self.mode not in ("frozen", "joint", "online"):
            raise ValueError(f"make: mode: expected frozen, joint or online, got '{self.mode}'")
        if self.on and self.mode == "frozen" and not self.releases:
            raise ValueError(
                "make: mode 'frozen' needs releases; `millrace pretrain make` makes one, or set "
                "mode = 'online'"
            )
        if self.mode != "frozen" and len(self.releases) > 1:
            raise ValueError(
                f"make: mode '{self.mode}' starts from one release at most, got "
                f"{len(self.releases)}; mode 'frozen' changes from one to the next"
            )

    def extractor(self) -> ExtractorConfig:
        """Sizes of the extractor, where no release says them."""
        return ExtractorConfig(attention=self.attention, hidden=self.hidden, product=self.product)

    def online(self) -> OnlineConfig:
        """How it is trained in mode `online`."""
        return OnlineConfig(
            lr=self.lr, replays=self.replays, replay_rows=self.replay_rows,
            averaged_rows=self.averaged_rows,
        )  # fmt: skip

    def guard(self) -> GuardConfig:
        """How a change of release is judged."""
        return GuardConfig(rows=self.guard_rows, sigmas=self.guard_sigmas)


class Make(Module):
    """v and z_l, each brought to one scale, to the hidden layers; logit_MAKE to the logit.

    Both through weights that start at 0 and that the ranker learns in its one pass. An impression
    within the window of a release gets nothing from it: its label is in the extractor.
    """

    def __init__(self, spec: FeatureSpec, config: MakeConfig, hidden: int) -> None:
        super().__init__()
        self.mode = config.mode
        self.block = spec.block(config.block)
        self.lengths = tuple(bag.length for bag in spec.bags if bag.is_history)
        if not self.lengths:
            raise ValueError("make: there is no history; configure a [[history]]")
        releases = [_fitting(read_release(Path(path)), path, self) for path in config.releases]
        extractor = releases[0].extractor if releases else config.extractor()
        net = MakeNet(self.block.dim, len(self.lengths), extractor)
        if releases:
            load_net(net, releases[0].arrays)
        self.encoder = releases[0].encoder if releases else ""
        self.versions = Versions(releases, config.guard())
        self.online = OnlineExtractor(net, config.online()) if self.mode == "online" else None
        self.net: nn.Module | None = net if self.mode == "joint" else None
        self.scale = config.scale
        self.to_hidden = zero_start(net.width, hidden)
        self.layers, self.layers_left = config.layers, 0
        self.widths = (len(self.lengths) * self.block.dim, *extractor.hidden)
        self.to_deeper = nn.ModuleList()
        self.to_logit = zero_start(1, 1)
        self.raw, self.scaled = PerStep[ContentView](), PerStep[ContentView]()
        self.extracted = PerStep[Extracted]()

    def deepen(self, sizes: Sequence[int]) -> None:
        """Maps of z_l to layer l, where that is wanted."""
        if not self.layers:
            return
        first, *rest = _by_layer(self.widths, 1 + len(sizes))
        hidden = self.to_hidden.out_features
        self.to_hidden = zero_start(first, hidden)
        # The ranker may have more layers than the extractor.
        self.to_deeper.extend(map(zero_start, rest, sizes))
        self.layers_left = len(sizes) - len(rest)

    def forward(self, x: NetInputs, *, learning: bool) -> Addition:
        """What the extractor makes of the rows; nothing of rows that it may not be used for."""
        device = x.target_BC.device
        if self.online is not None:  # on the host: it is trained there, between the steps
            extracted = self.extracted.of(x.step, lambda: self._scored(x.step))
            return self._joined(extracted.to(device), self.versions.allowed(x.step))
        view = self._view(x.step).to(device)
        if self.mode == "joint":
            assert isinstance(self.net, MakeNet)
            return self._joined(self.net(view), self.versions.allowed(x.step))
        with torch.no_grad():
            found = [
                (self.versions.nets[j].to(device)(view), own_B)
                for j, own_B in self.versions.chosen(x.step)
            ]
        # Each row has one release or none: the additions of the others are 0 there.
        return added([self._joined(*each) for each in found])

    def _joined(self, extracted: Extracted, own_B: Tensor | None) -> Addition:
        parts = [*torch.split(extracted.interest_BX, self.block.dim, 1), *extracted.hidden]
        # Scales differ between releases and grow while one is trained: the ranker sees one scale.
        joined_BX = torch.cat([functional.layer_norm(p, (p.shape[1],)) for p in parts], 1)
        maps = (self.to_hidden, *self.to_deeper)
        shares = torch.split(joined_BX, [one.in_features for one in maps], 1)
        sums = [one(share) * self.scale for one, share in zip(maps, shares, strict=True)]
        logit_B = self.to_logit(extracted.logit_B.unsqueeze(1)).squeeze(1)
        if own_B is not None:
            zero = logit_B.new_zeros(())
            sums = [torch.where(own_B.unsqueeze(1), one, zero) for one in sums]
            logit_B = torch.where(own_B, logit_B, zero)
        return Addition(hidden_BH=sums[0], logit_B=logit_B, deeper=self._deeper(sums[1:]))

    def _deeper(self, sums: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
        return (*sums, *[None] * self.layers_left)

    def _view(self, x: StepInputs) -> ContentView:
        if self.encoder and x.content is not None and x.content.encoder != self.encoder:
            self.check_content(x.content.encoder)
        return self.scaled.of(x, lambda: normalised(self._raw(x)))

    def _raw(self, x: StepInputs) -> ContentView:
        return self.raw.of(x, lambda: content_view(
            x.content, rows=len(x.flag_B), dim=self.block.dim, lengths=self.lengths,
            start=self.block.start,
        ))  # fmt: skip

    def _scored(self, x: StepInputs) -> Extracted:
        assert self.online is not None
        view = self._view(x)
        with torch.no_grad():
            extracted: Extracted = self.online.scorer(view)
        return extracted

    def check_content(self, encoder: str) -> None:
        """Raises ValueError where a release is of another encoder's vectors."""
        if self.encoder and encoder != self.encoder:
            raise ValueError(
                f"make: the release was made with vectors of encoder '{self.encoder}', but the "
                f"items' are of '{encoder}'; make one anew with `millrace pretrain make`"
            )

    def has_rival(self, x: NetInputs) -> bool:
        """Whether a change of release is being judged on these rows."""
        return self.versions.on_trial(x.step)

    @contextmanager
    def rival(self) -> Iterator[None]:
        """Within, the release that is on trial is left out."""
        self.versions.without_newest = True
        try:
            yield
        finally:
            self.versions.without_newest = False

    def judged(self, x: NetInputs, logits_B: Tensor, rival_B: Tensor) -> None:
        """Note the losses with and without the release on trial."""
        self.versions.note(x.step, logits_B, rival_B)

    def learned(self, x: NetInputs, *, ok: bool) -> None:
        """Take the trial's sums over; train the extractor where it is trained here."""
        self.versions.learned(x.step, ok=ok)
        if self.online is not None and ok:
            self.online.learn(x.step, self._raw(x.step), self._view(x.step))
        for kept in (self.raw, self.scaled, self.extracted):
            kept.forget()

    def parts(self, mark: int | None) -> Sequence[Part]:
        """The extractor where it is trained here, and what became of the releases."""
        part = self.versions.part()
        parts = [replace(part, meta={**part.meta, "mode": self.mode})]
        if self.online is not None:
            parts.extend(self.online.parts())
        return parts

    def apply(self, parts: Mapping[str, Part]) -> None:  # type: ignore[override]  # as containers do
        """Take the state back.

        Raises ValueError where releases of the snapshot are not there, or for one of another mode:
        weights learned on one extractor's outputs mean nothing on another's.
        """
        was = parts["make"].meta.get("mode", self.mode) if "make" in parts else self.mode
        if was != self.mode:
            raise ValueError(
                f"make: the snapshot is of mode '{was}', but the configuration of '{self.mode}'; "
                "use the snapshot's, or drop the module first and let it begin anew (ranker.grow)"
            )
        self.versions.apply(parts)
        if self.online is not None:
            self.online.apply(parts)

    def counts(self) -> Mapping[str, int]:
        """Releases in use and reverted, rows that were within a window, rows replayed."""
        counts = self.versions.counts()
        return counts if self.online is None else {**counts, **self.online.counts()}


def added(additions: Sequence[Addition]) -> Addition:
    """The sum of additions that have both a hidden sum and a logit; of none, nothing."""
    hidden, logits = [a.hidden_BH for a in additions], [a.logit_B for a in additions]
    deeper = tuple(total(ones) for ones in zip(*(a.deeper for a in additions), strict=True))
    return Addition(hidden_BH=total(hidden), logit_B=total(logits), deeper=deeper)


def _by_layer(widths: Sequence[int], layers: int) -> list[int]:
    """Numbers that each of the ranker's layers reads: v, z_1, then z_l, the last one the rest."""
    if layers == 1:
        return [sum(widths)]
    found = [sum(widths[:2]), *widths[2 : layers + 1]]
    found[-1] += sum(widths[layers + 1 :])
    return found


def _fitting(release: MakeRelease, path: str, module: Make) -> MakeRelease:
    expected = (module.block.dim, len(module.lengths))
    if (release.dim, release.histories) != expected:
        raise ValueError(
            f"make: release {path} is for vectors of {release.dim} and {release.histories} "
            f"histories, but there are vectors of {expected[0]} and {expected[1]} histories"
        )
    return release
