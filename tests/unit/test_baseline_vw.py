"""Vowpal Wabbit behind the learner contract: its own numbers, its lines, its absence."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from learners import catalog
from learners.baselines.vw import labelled, lines
from tests.support.batches import BatchMaker, small_spec

SMALL = {"lr": 0.5, "rows": {"bits": 12, "dense": False}}


@pytest.fixture
def vowpalwabbit():
    return pytest.importorskip("vowpalwabbit", reason="the extra 'vw' is not installed")


def test_lines_are_its_text_format():
    index = np.array([[0, 7, 9, 7, 3]], np.int32)
    value = np.array([[1, 1, 0.25, 1, 0]], np.float32)
    assert lines(index, value) == ["|f 7:2 9:0.25"]  # the constant is its own; values add up
    assert labelled("|f 7", 1.0, 2.5) == "1 2.5 |f 7"
    assert labelled("|f 7", 0.0, 1.0) == "-1 1 |f 7"


def test_it_is_vowpal_wabbit(vowpalwabbit):
    learner = catalog.build("vw", small_spec(), SMALL)
    alone = vowpalwabbit.Workspace(learner.arguments())
    stream = BatchMaker(small_spec())
    for _ in range(4):
        batch = stream.batch(20)
        text = lines(*learner._features(batch))
        expected = [alone.predict(line) for line in text]
        np.testing.assert_array_equal(
            learner.learn_many(batch).logits_B.numpy(), np.float32(expected)
        )
        for line, y in zip(text, batch.labels_BK[:, 1].tolist(), strict=True):
            alone.learn(f"{1 if y else -1} {line}")
    alone.finish()


@pytest.mark.usefixtures("vowpalwabbit")
def test_wrong_arguments_are_one_clear_error():
    with pytest.raises(ValueError, match="vw: arguments '--no_such_thing'"):
        catalog.build("vw", small_spec(), {"arguments": "--no_such_thing"})
    with pytest.raises(ValueError, match="lr > 0"):
        catalog.build("vw", small_spec(), {"lr": 0.0})


@pytest.mark.usefixtures("vowpalwabbit")
def test_a_model_of_other_arguments_is_refused():
    parts = {p.name: p for p in catalog.build("vw", small_spec(), SMALL).export_full()}
    other = catalog.build("vw", small_spec(), SMALL | {"lr": 0.25})
    with pytest.raises(ValueError, match="use the configuration of the snapshot"):
        other.apply(parts)


def test_its_absence_is_one_clear_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "vowpalwabbit", None)
    with pytest.raises(ValueError, match=r"pip install 'millrace\[vw\]'"):
        catalog.build("vw", small_spec(), {})
