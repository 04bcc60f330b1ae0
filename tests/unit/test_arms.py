"""Arms of a comparison: which share a pipeline, placebos, published copies, names."""

from dataclasses import replace

import pytest

from infra.errors import InputError
from stream.config import LabelConfig, RankerConfig
from stream.replay.arms import (
    Arm,
    differ_in_content_only,
    distinct,
    groups,
    interval_ms,
    placebos,
    published,
)
from tests.support.replays import ranked_config

CONFIG = ranked_config()


def arm(name, **changes):
    return Arm(name=name, config=replace(CONFIG, **changes))


def names(grouped):
    return [[one.name for one in group] for group in grouped]


def test_arms_that_differ_in_the_learner_only_share_a_pipeline():
    other = RankerConfig(name="smoothed_rates", label="click")
    options = RankerConfig(name="id_content", label="click", options={"seed": 9})
    stream = replace(CONFIG.stream, batch_size=7)
    found = groups([arm("a"), arm("b", ranker=other), arm("c", stream=stream),
                    arm("d", ranker=options)])  # fmt: skip
    assert names(found) == [["a", "b", "d"], ["c"]]


def test_placebos_have_pipelines_of_their_own_by_permutation():
    one = arm("a")
    found = groups([one, *placebos([one], 2)])
    assert names(found) == [["a"], ["a placebo 1"], ["a placebo 2"]]
    assert [group[0].permutation for group in found] == [None, 1, 2]


def test_what_reads_no_vectors_has_no_placebo():
    assert placebos([arm("a", items=replace(CONFIG.items, dim=0))], 2) == []


def test_arms_that_differ_in_their_item_vectors_only_are_known():
    without = arm("b", items=replace(CONFIG.items, dim=0))
    assert differ_in_content_only(arm("a"), without)
    stream = replace(CONFIG.stream, batch_size=7)
    assert not differ_in_content_only(arm("a"), arm("c", stream=stream))
    assert not differ_in_content_only(without, arm("d", ranker=RankerConfig(name="base_rate")))


@pytest.mark.parametrize(
    "changes",
    (
        {"ranker": RankerConfig(name="id_content", label="like")},
        {"label": {**CONFIG.label, "click": LabelConfig(window_ms=3_000)}},
    ),
)
def test_losses_of_different_labels_are_not_compared(changes):
    with pytest.raises(InputError, match=r"arm 'b' learns .*; give all arms the same ranker.label"):
        groups([arm("a"), arm("b", **changes)])


def test_too_many_arms_are_refused():
    with pytest.raises(InputError, match="at most 64 arms, got 65"):
        groups([arm(str(i)) for i in range(65)])


def test_a_published_arm_learns_with_the_same_learner_and_shares_the_pipeline():
    one = arm("a", ranker=RankerConfig(name="id_content", label="click", options={"seed": 3}))
    copy = published(one, "1d", start_ms=5, offset_ms=8 * 3_600_000)
    assert (copy.name, copy.sync_ms) == ("a sync 1d", 86_400_000)
    assert copy.config.ranker.options == {
        "learner": "id_content", "options": {"seed": 3}, "every_ms": 86_400_000,
        "offset_ms": 16 * 3_600_000, "start_ms": 5,
    }  # fmt: skip
    assert names(groups([one, copy])) == [["a", "a sync 1d"]]
    assert published(one, "never", start_ms=5, offset_ms=0).sync_ms == 0


def test_intervals():
    assert [interval_ms(t) for t in ("30s", "10m", "2h", "1d")] == [
        30_000, 600_000, 7_200_000, 86_400_000,
    ]  # fmt: skip
    for bad in ("10", "0m", "m", "1w", "-1m"):
        with pytest.raises(InputError, match=f"interval '{bad}'"):
            interval_ms(bad)


def test_equal_names_are_numbered():
    assert distinct(["a", "b", "a", "a"]) == ["a", "b", "a 2", "a 3"]
