"""The made-up catalogue: the same again, causal, its groups found by the encoders."""

import io

import msgpack
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from embeddings.vector_codec import encode_item_vector
from infra.errors import FaultError, InputError
from stream.catalogue import read_catalogue, titles_of
from stream.codec_items import decode_items
from stream.codec_write import encode_event, encode_key, item_body
from stream.commands import demo_items
from stream.commands.demo_items import (
    PRECISION_MIN,
    against_replay,
    command,
    precision,
    same_vectors,
    seen_in_time,
    time_to_vector,
)
from stream.composition import load_config
from stream.demo import differing_columns
from stream.demo_catalogue import (
    BEST_AUC,
    T0_MS,
    CatalogueConfig,
    group_of,
    write_catalogue_logs,
)
from stream.record_log import RecordLog, RecordLogWriter

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


def test_a_run_that_is_not_its_record_is_a_fault():
    counts = {"late_vectors": 3, "idle_advances": 1}
    assert against_replay([], counts).startswith("equal to the replay of its record, bit for bit")
    with pytest.raises(FaultError, match=r"record in logit; 3 vectors .*, 1 idle advances"):
        against_replay(["logit"], counts)


def test_columns_that_differ_in_a_bit_or_are_not_there_are_told(tmp_path):
    plain = {"logit": pa.array([0.5, float("nan")], pa.float32()), "item_id": pa.array(["a", "b"])}
    tables = (plain, plain, plain | {"logit": pa.array([0.5, 0.25], pa.float32())},
              {"item_id": pa.array(["a", "c"])})  # fmt: skip
    paths = [tmp_path / f"{n}.parquet" for n in range(len(tables))]
    for path, table in zip(paths, tables, strict=True):
        pq.write_table(pa.table(table), path)
    found = [differing_columns(paths[0], other) for other in paths[1:]]
    assert found == [[], ["logit"], ["logit", "item_id"]]


def test_impressions_without_a_vector_are_counted(tmp_path):
    (tmp_path / "worker").mkdir()
    table = pa.table({"has_vector": [True, False, True]})
    pq.write_table(table, tmp_path / "worker" / "predictions.parquet")
    assert seen_in_time(tmp_path).startswith("1 of 3 impressions were predicted without")


def test_the_time_to_a_vector_is_that_of_items_that_came_live(tmp_path):
    topics = {"items": 1, "item-vectors": 1}
    with RecordLogWriter(tmp_path / "log", topics, ordered=True) as log:
        for item, (born, sent, came) in enumerate(((-5, 0, 9_000), (0, 100, 150), (9, 200, 350))):
            at, key = {"item_id": item, "ts_ms": T0_MS + born}, encode_key(item)
            log.write("items", 0, item, T0_MS + sent, key, encode_event("item", item_body(**at)))
            row = encode_item_vector(**at, encoder="e", vector=np.ones(2))
            log.write("item-vectors", 0, item, T0_MS + came, key, row)
    words = time_to_vector(tmp_path / "log")
    assert words == "item event to vector: p50 100 ms, p99 149 ms (2 items live)"


def test_a_vector_or_a_code_that_is_another_is_a_fault(log):
    made = read_catalogue(log, load_config(None, TEXT))
    held = read_catalogue(log, load_config(None, TEXT))
    assert "all 400 items" in same_vectors(held, made)
    held.attributes[7] = {"codes.rq1": "other"}
    with pytest.raises(FaultError, match=rf"1 of them are not .*: \[{held.item_ids[7]}\]"):
        same_vectors(held, made)
    held.vectors_ND[0, 0] += 1
    with pytest.raises(FaultError, match=r"2 of them are not"):
        same_vectors(held, made)


def test_items_are_encoded_again_with_the_embedders_threads(monkeypatch):
    """Another number of threads rounds sums in other places: vectors would differ in last bits."""
    seen = []
    monkeypatch.setattr(
        demo_items, "read_catalogue", lambda *_: seen.append(torch.get_num_threads())
    )
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        config = load_config(None, TEXT)
        demo_items.encoded_again("log", config)
        assert seen == [config.embed.threads] == [1]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_who_knows_the_groups_gets_the_best_auc(tmp_path):
    logs = write_catalogue_logs(tmp_path, CatalogueConfig(items=40, impressions=16_000))
    shown, clicked = {}, set()
    for chunk in RecordLog(logs.whole).batches(4_096):
        for batch in chunk:
            for value in batch.values:
                body = msgpack.unpackb(value)
                if body["type"] == "impression":
                    shown[body["request_id"]] = body["user_id"], body["items"][0]["item_id"]
                elif body["type"] == "click":
                    clicked.add(body["request_id"])
    rate = np.zeros((40, 20, 2))
    for request, (user, item) in shown.items():
        rate[user, group_of(item)] += (request in clicked, 1)
    liked = rate[..., 0] > 0.33 * rate[..., 1]  # a good guess of what each user likes
    score = np.array([liked[user, group_of(item)] for user, item in shown.values()])
    label = np.array([request in clicked for request in shown])
    auc = (1 + score[label].mean() - score[~label].mean()) / 2
    assert abs(auc - BEST_AUC) < 0.02, "within what 16,000 impressions tell"


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
