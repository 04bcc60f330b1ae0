"""A record log to the labelled rows that an extractor is pre-trained on (shell).

The very pipeline of a replay joins and freezes them, so that histories and labels are those that a
ranker sees. Trains nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from infra.errors import InputError
from learners.batch import MiniBatch
from learners.feature_spec import FeatureSpec
from learners.modules.make_training import ContentSamples
from learners.onlooker import Onlooker
from stream.config import Config
from stream.feature_plan import plan
from stream.pretraining_past import Tell, known_before_ms, look_through


class SampleKeeper(Onlooker):
    """A learner that keeps what it is taught within a span of time, and predicts 0."""

    def __init__(
        self, samples: ContentSamples, spec: FeatureSpec, *, from_ms: int, before_ms: int
    ) -> None:
        self._samples, self._spec = samples, spec
        self._from_ms, self._before_ms = from_ms, before_ms
        super().__init__()

    def look(self, batch: MiniBatch) -> None:
        """Keep the rows."""
        self._samples.add(batch, self._spec, from_ms=self._from_ms, before_ms=self._before_ms)

    def counts(self) -> Mapping[str, int]:
        """Rows kept."""
        return {"rows_kept": len(self._samples)}


def content_samples(
    logs: Sequence[Path],
    config: Config,
    *,
    from_ms: int,
    until_ms: int,
    block: str = "",
    rows_max: int = 1_000_000,
    on_progress: Tell = lambda _done, _total: None,
) -> ContentSamples:
    """Labelled rows of impressions from `from_ms` on whose labels were known before `until_ms`.

    Raises InputError where there is none, and as replay and the configuration do.
    """
    spec = plan(config).spec
    try:
        samples = ContentSamples.of(spec, block=block, rows_max=rows_max)
    except ValueError as error:
        raise InputError(str(error)) from error
    before_ms = known_before_ms(config, until_ms)
    keeper = SampleKeeper(samples, spec, from_ms=from_ms, before_ms=before_ms)
    look_through(logs, config, keeper, on_progress)
    if not len(samples):
        raise InputError(
            f"no labelled impression from {from_ms} to {before_ms} (UTC milliseconds) in "
            f"{', '.join(map(str, logs))}; set another --from or --until"
        )
    return samples
