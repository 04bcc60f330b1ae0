"""Columns of codes that the ranker's module asks for: the plan, the bags, and who shares a pass."""

from __future__ import annotations

import numpy as np
import pytest

from embeddings.codebook_file import read_codebook
from embeddings.item_content import ItemContent
from infra.errors import InputError
from stream.code_features import code_features, history_bags
from stream.composition import compose, encoder_of
from stream.feature_plan import plan
from stream.keys import ints_of_keys, key_of, salt_of, salted
from stream.replay.arms import Arm, groups
from tests.support.coded import QARM, coded, tag_book
from tests.support.logs import write_log
from tests.support.recorded import record
from tests.support.replays import ranked_config
from tests.support.streams import T0


@pytest.fixture(scope="module")
def book(tmp_path_factory):
    return tag_book(tmp_path_factory.mktemp("codes") / "book.safetensors")


def test_the_module_brings_its_columns_and_they_are_its_own(book):
    made = plan(coded(book))
    spec, plain = made.spec, plan(ranked_config()).spec
    assert spec.read_by(()) == plain
    assert [(b.name, b.field, b.length, b.sequence) for b in spec.bags if b.reader == "qarm"] == [
        ("qarm.rq1", "qarm.rq1", 1, False),
        ("qarm.prefix2", "qarm.prefix2", 1, False),
        ("qarm.vq", "qarm.vq", 2, False),
        ("qarm.rq1.recent", "qarm.rq1", 5, True),
        ("qarm.prefix2.recent", "qarm.prefix2", 5, True),
    ]
    fields = [f for f in spec.bag_fields if f.reader == "qarm"]
    assert [f.name for f in fields] == ["qarm.rq1", "qarm.prefix2", "qarm.vq"]
    assert all((f.admit_after, f.expire_ms, f.dim) == (0, 0, 4) for f in fields)


def test_without_codebook_or_module_there_are_none(book):
    assert code_features(coded(book, QARM | {"on": False})) == []
    without = ranked_config(ranker={"name": "id_content", "options": {"qarm": QARM}})
    assert code_features(without) == history_bags(without) == []
    with pytest.raises(InputError, match=r"set items\.codebook"):
        compose(without, None)
    with pytest.raises(InputError, match="Invalid enum value 'all'"):
        compose(coded(book, QARM | {"uses": ["all"]}), None)
    inner = {"learner": "id_content", "options": {"qarm": QARM}}
    daily = ranked_config(
        ranker={"name": "published", "options": inner}, items={"dim": 16, "codebook": str(book)}
    )
    assert len(code_features(daily)) == 3


def test_a_code_that_the_book_lacks_is_refused(book):
    with pytest.raises(InputError, match=r"has no 'rq3'; expected some of rq1, rq2, prefix2, vq"):
        compose(coded(book, QARM | {"codes": ["rq1", "prefix2", "rq3"]}), None)


@pytest.mark.parametrize("cache_rows", (64, 3))
def test_bags_hold_the_codes_of_the_target_and_of_each_entry(book, tmp_path, cache_rows):
    config = coded(book, items={"cache_rows": cache_rows})
    log = write_log(tmp_path / "log.parquet", samples=250)
    recording = record(config, log)
    places = {bag.name: i for i, bag in enumerate(recording.spec.bags)}
    tags = [ItemContent(item_id=i, ts_ms=T0, attributes={"tag": [f"t{i % 7}"]}) for i in range(40)]
    vectors = encoder_of(config.items).encode_many(tags)[0].astype(np.float16)
    codes = read_codebook(book).encode_many(vectors, np.ones(40, np.bool_))
    of_item = {
        "rq1": [key_of(int(c)) for c in codes.rq_BL[:, 0]],
        "prefix2": [key_of(f"{a}-{b}") for a, b in codes.rq_BL],
    }
    seen = 0
    for _, batch in recording.steps:
        history = batch.bags_BL[places["recent"]].numpy()
        items = np.where(history == 0, -1, ints_of_keys(history))
        for code, keys in of_item.items():
            salt = salt_of(f"qarm.{code}")
            coded_I = np.append(salted(np.array(keys), salt), 0)  # the last one: no item
            found = batch.bags_BL[places[f"qarm.{code}.recent"]].numpy()
            np.testing.assert_array_equal(found, coded_I[items])
            target = ints_of_keys(batch.ids_BF[:, 1].numpy())
            own = batch.bags_BL[places[f"qarm.{code}"]].numpy()
            np.testing.assert_array_equal(own[:, 0], coded_I[target])
        seen += int((history != 0).sum())
    assert seen > 100


def test_arms_that_read_other_columns_have_passes_of_their_own(book):
    base = coded(book, QARM | {"on": False})
    arms = [
        Arm(name="base", config=base),
        Arm(name="qarm", config=coded(book)),
        Arm(name="frozen rows", config=coded(book, QARM | {"trained": False})),
        Arm(name="item", config=coded(book, QARM | {"uses": ["item"]})),
    ]
    found = [[arm.name for arm in group] for group in groups(arms)]
    assert found == [["base"], ["qarm", "frozen rows"], ["item"]]
