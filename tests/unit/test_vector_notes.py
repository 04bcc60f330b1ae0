import pytest

from infra import config as loader
from stream.commands.vector_notes import notes_of
from stream.config import Config
from tests.support.streams import SMALL


def config(**items):
    return loader.build(Config, SMALL | {"items": items})


def evaluation(missing, samples=10):
    hour = {"ts_ms": 0, "samples": samples, "missing_vector": missing, "empty_history": 0}
    return {"from_ms": 0, "missing": [hour, hour]}


@pytest.mark.parametrize(("dim", "missing"), ((4, 5), (4, 0), (0, 10), (4, None)))
def test_nothing_is_said_where_nothing_is_amiss(dim, missing):
    assert notes_of(config(dim=dim), evaluation(missing)) == []


def test_vectors_that_nearly_no_item_has_are_told():
    (line,) = notes_of(config(dim=4), evaluation(9))
    assert "18 of 20 evaluated impressions had no item vector" in line
    assert "does the log have items" in line


def test_a_run_without_rows_says_nothing():
    assert notes_of(config(dim=4), {"from_ms": None, "missing": []}) == []
