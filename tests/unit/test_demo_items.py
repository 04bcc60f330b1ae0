"""The made-up catalogue: the same again, causal, its groups found by the encoders."""

import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from infra.errors import FaultError, InputError
from stream.catalogue import read_catalogue, titles_of
from stream.codec_items import decode_items
from stream.commands.demo_items import (
    PRECISION_MIN,
    against_replay,
    command,
    precision,
    seen_in_time,
)
from stream.composition import load_config
from stream.demo_catalogue import T0_MS, CatalogueConfig, group_of, write_catalogue_logs
from stream.record_log import RecordLog

TEXT = ('items.encoders=["text"]', "items.dim=128")


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    path = tmp_path_factory.mktemp("demo")
    return write_catalogue_logs(path, CatalogueConfig(impressions=300)).whole


def items_of(log):
    batches = [b for some in RecordLog(log).batches_of("items") for b in some]
    return [event.item for batch in batches for event in decode_items(batch)]


def test_the_same_seed_gives_the_same_log(log, tmp_path):
    titles = []
    for seed in (0, 1):
        folder = tmp_path / str(seed)
        folder.mkdir()
        logs = write_catalogue_logs(folder, CatalogueConfig(impressions=300, seed=seed))
        titles.append(titles_of(logs.whole, "items"))
    assert titles[0] == titles_of(log, "items") != titles[1]
    items = items_of(log)
    assert sum(item.ts_ms >= T0_MS for item in items) == 200
    assert len({group_of(item.item_id) for item in items}) == 20


def test_titles_alone_find_the_groups_and_shuffled_ones_do_not(log):
    catalogue = read_catalogue(log, load_config(None, TEXT))
    assert precision(catalogue, catalogue.item_ids) >= PRECISION_MIN
    assert precision(catalogue, catalogue.item_ids[:20]) <= 1
    catalogue.item_ids.reverse()  # now 399 - i, whose group is another
    assert precision(catalogue, catalogue.item_ids) < 0.3


def test_pictures_are_png_of_their_own(tmp_path):
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed: extra `image`")
    config = CatalogueConfig(items=40, impressions=10, pictures=True)
    pictures = [item.image for item in items_of(write_catalogue_logs(tmp_path, config).whole)]
    assert len(set(pictures)) == 40
    opened = image.open(io.BytesIO(pictures[0]))
    assert (opened.format, opened.size) == ("PNG", (96, 96))


def test_a_late_vector_explains_other_logits_and_nothing_else(tmp_path):
    for run, logit in (("worker", 0.5), ("replay", 0.75)):
        (tmp_path / run).mkdir()
        table = pa.table(
            {"logit": pa.array([logit], pa.float32()), "has_vector": [run == "replay"]}
        )
        pq.write_table(table, tmp_path / run / "predictions.parquet")
    words = against_replay(tmp_path, ["logit"], late=3)
    assert words == "logits within 2.5e-01 of its replay's: 3 vectors came after their time"
    assert "bit for bit" in against_replay(tmp_path, [])
    assert seen_in_time(tmp_path).startswith("1 of 1 impressions")
    for differences, late in ((["logit"], 0), (["label"], 3)):
        with pytest.raises(FaultError, match="differs from its replay"):
            against_replay(tmp_path, differences, late=late)


def test_the_parts_of_a_log_are_the_whole(tmp_path):
    logs = write_catalogue_logs(tmp_path, CatalogueConfig(items=20, impressions=50))
    values = [
        [v for batches in RecordLog(path).batches(64) for b in batches for v in b.values]
        for path in logs
    ]
    assert sorted(values[0]) == sorted(values[1] + values[2])
    assert len(items_of(logs.stock)) == len(items_of(logs.arrivals)) == 10


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "mine").write_text("kept")
    with pytest.raises(InputError, match="no earlier demo"):
        command.main(["--folder", str(tmp_path)], standalone_mode=False)
    assert (tmp_path / "mine").read_text() == "kept"
