"""The warm-up runs every stage, and leaves no trace in the configuration that it was given."""

from __future__ import annotations

from infra import config as loader
from stream.config import Config
from stream.warm_up import warm_up
from tests.support.streams import SMALL


def test_all_made_up_samples_are_learned() -> None:
    config = loader.build(
        Config,
        SMALL | {"ranker": {"name": "id_content", "label": "click"}, "items": {"dim": 8}},
    )
    before = loader.to_dict(config)
    assert warm_up(config) == 32
    assert loader.to_dict(config) == before
