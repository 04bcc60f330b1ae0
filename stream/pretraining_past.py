"""A log read by the very pipeline of a replay, for what is trained before a stream (shell).

Inputs and labels are then those that a ranker sees. Learns and keeps nothing itself.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from learners.onlooker import Onlooker
from stream.composition import Variation
from stream.config import Config
from stream.replay.runner import Replay, ReplayConfig

Tell = Callable[[int, int], None]


def look_through(
    logs: Sequence[Path], config: Config, onlooker: Onlooker, on_progress: Tell
) -> None:
    """Show each learn step of the logs to an onlooker. Raises as replay and configuration do."""
    config = replace(config, stream=replace(config.stream, predict_at="settle"))
    with tempfile.TemporaryDirectory() as folder:
        options = ReplayConfig(
            logs=tuple(logs),
            report=Path(folder) / "report",
            variation=Variation(arms={}, learner=onlooker),
        )
        result = Replay(config, options).run(on_progress)
        result.composition.close()


def known_before_ms(config: Config, until_ms: int) -> int:
    """Impressions from before this time have labels that were known before `until_ms`.

    A label is known when the longest window is over: an impression of just before the end knows of
    clicks after it.
    """
    return until_ms - config.window_ms - config.stream.lateness_ms
