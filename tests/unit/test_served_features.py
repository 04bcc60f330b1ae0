"""Histograms that a server logged: decoded, trained on where they are of our version; skew."""

from __future__ import annotations

import dataclasses
from typing import Any

import msgpack
import numpy as np
import pytest
import torch

from learners import catalog
from learners.content_cosines import ContentCosines
from learners.served import ServedRows
from learners.step_inputs import histories_of, step_inputs
from stream.codec_spec import DecodeSpec, ServedSource
from stream.codec_write import encode_columns, encode_envelope, encode_event
from stream.columns import Reason
from stream.composition import compose
from stream.events import TopicRole
from stream.keys import ints_of_keys, key_of_str
from stream.record_log import RecordLog, RecordLogWriter
from stream.replay.runner import Replay, ReplayConfig
from stream.scoring import Scorer
from tests.support.batches import BatchMaker, small_spec
from tests.support.logs import write_log
from tests.support.records import T0, batch_of, impression, impressions_decoder
from tests.support.replays import Killed, ranked_config, replay

CPU = torch.device("cpu")
WIDE = ServedSource(name="simtier", width=3)


def served(values: Any, version: Any = "a") -> dict[str, Any]:
    return {"model": "m", "feature_version": version, "features": {"simtier": values}}


def one(**changes: Any) -> bytes:
    return encode_event("impression", impression(**changes))


def decoded(*values: bytes) -> Any:
    return impressions_decoder(served=WIDE).decode(batch_of(*values))


def test_values_come_item_by_item_with_the_key_of_their_version() -> None:
    shown = [{"item_id": 4}, {"item_id": 5}]
    columns = decoded(
        one(items=shown, served=served([1, 2, 3, 4, 5, 6.5])),
        one(request_id=2),
        one(request_id=3, served=served(np.array([7, 8, 9], "<f4").tobytes(), "b")),
    )
    assert columns.rejected == []
    a, b = key_of_str("a"), key_of_str("b")
    assert columns.impressions.ids_mF[:, -1].tolist() == [a, a, 0, b]
    assert columns.impressions.dense_mX[:, -3:].tolist() == [
        [1, 2, 3], [4, 5, 6.5], [0, 0, 0], [7, 8, 9],
    ]  # fmt: skip
    assert columns.impressions.ids_mF.shape[1] == 2  # the configured one stands before it
    assert columns.impressions.dense_mX[:, 0].tolist() == [0, 0, 0, 0]


def test_row_and_columnar_envelopes_say_the_same() -> None:
    bodies = [impression(request_id=i, served=served([i, 2, 3])) for i in (1, 2, 3)]
    bodies[1].pop("served")
    rows = decoded(encode_envelope("impressions", bodies)).impressions
    numbers = np.array([[1, 2, 3], [0, 0, 0], [3, 2, 3]], np.float32)
    columns = decoded(
        encode_columns("impression_columns", 3, {
            "request_id": np.arange(1, 4), "user_id": 2, "item_id": 4, "ts_ms": T0,
            "context.tab": 3, "served.feature_version": ["a", "", "a"],
            "served.features.simtier": numbers.ravel(),
        })
    ).impressions  # fmt: skip
    assert rows.dense_mX[:, -3:].tolist() == columns.dense_mX[:, -3:].tolist() == numbers.tolist()
    assert rows.ids_mF[:, -1].tolist()[::2] == columns.ids_mF[:, -1].tolist()[::2]
    assert rows.ids_mF[1, -1] == 0


@pytest.mark.parametrize("values", ([1, 2], [1, 2, 3, 4], [], None, b"", b"12345678901"))
def test_another_width_is_as_if_nothing_was_logged(values: Any) -> None:
    columns = decoded(one(served=served(values)), one(request_id=2, served=served([1, 2, 3])))
    assert columns.rejected == []
    assert columns.impressions.ids_mF[:, -1].tolist() == [0, key_of_str("a")]
    assert columns.impressions.dense_mX[0, -3:].tolist() == [0, 0, 0]


def test_columnar_cells_of_another_width_or_form_are_not_read() -> None:
    common = {"request_id": 1, "user_id": 2, "item_id": 4, "ts_ms": T0}
    for cell in (np.ones(4, np.float32), np.ones(3, np.int64), 1.0, None):
        columns = decoded(
            encode_columns("impression_columns", 1, {
                **common, "served.feature_version": "a", "served.features.simtier": cell,
            })
        )  # fmt: skip
        assert columns.rejected == []
        assert columns.impressions.ids_mF[:, -1].tolist() == [0]


@pytest.mark.parametrize(
    ("bad", "reason"),
    (
        (served([1, float("nan"), 3]), Reason.NOT_FINITE),
        (served([1, 1e300, 3]), Reason.NOT_FINITE),
        (served([1, "x", 3]), Reason.WRONG_TYPE),
        (served([1, 2, 3], 7), Reason.WRONG_TYPE),
        ({"model": "m", "features": {}}, Reason.MISSING_FIELD),
        ("yes", Reason.WRONG_TYPE),
    ),
)
def test_what_cannot_be_read_is_rejected_with_its_place(bad: Any, reason: Reason) -> None:
    columns = decoded(one(served=bad), one(request_id=2))
    assert [(r.record, r.reason) for r in columns.rejected] == [(0, reason)]
    assert "served" in columns.rejected[0].detail


def test_who_does_not_read_it_decodes_as_ever() -> None:
    plain = impressions_decoder().decode(batch_of(one(served=served("nonsense")), one()))
    assert plain.rejected == []
    assert plain.impressions.ids_mF.shape == (2, 1)
    spec = DecodeSpec(role=TopicRole.IMPRESSIONS, served=WIDE)
    assert (spec.id_columns, spec.dense_columns) == (1, 3)


def module(**more: Any) -> Any:
    options = {"device": "cpu", "simtier": {"on": True, "recent": [3], **more}}
    return catalog.build("id_content", small_spec(), options)


def logged(learner: Any, batch: Any, values_BN: Any, given_B: Any) -> Any:
    layout = dict(learner.net.modules_on)["simtier"].histograms.layout
    rows = ServedRows(
        layout=layout, values_BN=torch.from_numpy(values_BN),
        logged_B=torch.ones(len(batch), dtype=torch.bool), given_B=torch.from_numpy(given_B),
    )  # fmt: skip
    return dataclasses.replace(batch, served=rows)


def own_of(learner: Any, batch: Any) -> Any:
    histograms = dict(learner.net.modules_on)["simtier"].histograms
    cosines = ContentCosines(batch.content, histories_of(batch, small_spec()))
    return histograms.counts(cosines, len(batch)).reshape(len(batch), -1)


def test_logged_rows_are_read_where_they_are_given_and_ours_elsewhere() -> None:
    learner = module(served=True)
    batch = BatchMaker(small_spec()).batch(13)
    own_BN, given_B = own_of(learner, batch), np.arange(13) % 3 == 0
    theirs = own_BN + 1
    x = step_inputs(logged(learner, batch, theirs, given_B), small_spec(), CPU)
    got = dict(learner.net.modules_on)["simtier"].counts_of(x).flatten(1).numpy()
    np.testing.assert_array_equal(got[:13], np.where(given_B[:, None], theirs, own_BN))
    assert not got[13:].any()
    unread = module(served=False)
    got = dict(unread.net.modules_on)["simtier"].counts_of(x).flatten(1).numpy()
    np.testing.assert_array_equal(got[:13], own_BN)


def test_logged_features_of_another_layout_are_not_read() -> None:
    learner, other = module(served=True), module(served=True, tiers=10)
    batch = BatchMaker(small_spec()).batch(8)
    own_BN = own_of(learner, batch)
    x = step_inputs(logged(other, batch, own_of(other, batch), np.ones(8, bool)), small_spec(), CPU)
    got = dict(learner.net.modules_on)["simtier"].counts_of(x).flatten(1).numpy()
    np.testing.assert_array_equal(got, own_BN)


def test_skew_is_counted_kept_and_taken_back() -> None:
    learner = module(served=True)
    batch = BatchMaker(small_spec()).batch(8)
    theirs = own_of(learner, batch)
    theirs[1, 0] += 1
    theirs[1, 1] += 3
    given_B = np.arange(8) < 5
    learner.learn_many(logged(learner, batch, theirs, given_B))
    expected = {"simtier_served_rows": 5, "simtier_served_other_version": 3,
                "simtier_served_differing": 1, "simtier_served_moved": 2}  # fmt: skip
    counts = learner.counts()
    assert {name: counts[name] for name in expected} == expected
    again = module(served=True)
    again.apply({part.name: part for part in learner.export_full()})
    assert again.counts() == learner.counts()
    assert not [name for name in module().counts() if "served" in name]


CONFIG = ranked_config(
    ranker={"name": "id_content", "label": "click",
            "options": {"device": "cpu", "simtier": {"on": True, "recent": [2], "served": True}}},
)  # fmt: skip


def at_the_impressions(log: Any, folder: Any) -> tuple[dict[tuple[int, int], Any], str, Any]:
    """Histograms as they are when each impression is predicted, their version, and the run."""
    run = Replay(CONFIG, ReplayConfig(logs=(log,), report=folder))
    composition = run._composition
    pipeline, histograms = composition.pipeline, composition.histograms
    assert histograms is not None
    found: dict[tuple[int, int], Any] = {}
    made = pipeline._assembler.prediction_batch

    def watched(samples: Any) -> Any:
        batch = made(samples)
        cosines = ContentCosines(batch.content, histories_of(batch, pipeline.plan.spec))
        rows = histograms.counts(cosines, len(batch)).reshape(len(batch), -1)
        ids = zip(ints_of_keys(samples.request_n), ints_of_keys(samples.item_n), strict=True)
        found.update(zip(((int(r), int(i)) for r, i in ids), rows, strict=True))
        return batch

    pipeline._assembler.prediction_batch = watched  # type: ignore[method-assign]
    result = run.run(lambda _done, _total: None)
    result.composition.close()
    return found, histograms.layout.version(composition.store.encoder_version), result


def with_served(
    log: Any, path: Any, found: Any, version: str, change: Any = lambda _n, h: h
) -> Any:
    """The log with what a server logged in each impression."""
    source = RecordLog(log)
    n = 0
    with RecordLogWriter(path, dict(source.partitions), ordered=False) as out:
        for batch in (batch for chunk in source.batches(64) for batch in chunk):
            for i, value in enumerate(batch.values):
                assert value is not None
                event = msgpack.unpackb(value)
                if event["type"] == "impression":
                    rows = [
                        found[event["request_id"], shown["item_id"]] for shown in event["items"]
                    ]
                    h = change(n, np.concatenate(rows))
                    n += 1
                    event["served"] = {"model": "m", "feature_version": version,
                                       "features": {"simtier": h.tolist()}}  # fmt: skip
                out.write(
                    batch.tp.topic, batch.tp.partition, int(batch.offset_n[i]),
                    int(batch.timestamp_ms_n[i]), batch.keys[i], msgpack.packb(event),
                )  # fmt: skip
    return path


def weights(result: Any) -> bytes:
    parts = result.composition.pipeline.learner.export_full()
    return b"".join(part.arrays["weights"].tobytes() for part in parts if part.name == "dense")


@pytest.fixture(scope="module")
def watched(tmp_path_factory: Any) -> Any:
    folder = tmp_path_factory.mktemp("served")
    log = write_log(folder / "a.parquet", samples=600)
    return folder, log, *at_the_impressions(log, folder / "own")


def test_what_was_logged_at_the_impression_is_what_the_learn_step_makes(watched: Any) -> None:
    """Check 9 of SimTier: no skew, and a run on logged histograms has the weights of its own."""
    folder, log, found, version, own = watched
    logged_log = with_served(log, folder / "served.parquet", found, version)
    result = replay(CONFIG, (logged_log,), folder / "r1")
    counts = result.composition.pipeline.learner.counts()
    assert counts["simtier_served_rows"] == 600
    assert counts["simtier_served_differing"] == counts["simtier_served_other_version"] == 0
    assert sum(h.sum() for h in found.values()) > 500  # there was something to log
    assert weights(result) == weights(own)


def test_training_is_on_what_was_logged_and_the_difference_is_told(watched: Any) -> None:
    folder, log, found, version, own = watched
    moved = with_served(log, folder / "moved.parquet", found, version, lambda n, h: h + n % 2)
    result = replay(CONFIG, (moved,), folder / "r2")
    counts = result.composition.pipeline.learner.counts()
    assert 200 < counts["simtier_served_differing"] < 400
    assert weights(result) != weights(own)
    other = with_served(log, folder / "other.parquet", found, f"{version}!")
    result = replay(CONFIG, (other,), folder / "r3")
    counts = result.composition.pipeline.learner.counts()
    assert (counts["simtier_served_rows"], counts["simtier_served_other_version"]) == (0, 600)
    assert weights(result) == weights(own)


def test_scores_come_with_what_is_to_be_logged(watched: Any) -> None:
    folder, log, _, version, _ = watched
    replay(CONFIG, (log,), folder / "r4", snapshots=True)
    event = {"request_id": 10**6, "user_id": 3, "ts_ms": T0 + 10**9, "context": {},
             "items": [{"item_id": 1}, {"item_id": 2}]}  # fmt: skip
    with Scorer(folder / "r4" / "snapshots") as scorer:
        scores = scorer.score([event])
        rows = scores.rows()
        assert scores.served is not None
        assert scores.served.feature_version == version
        assert [len(row["served"]["features"]["simtier"]) for row in rows] == [40, 40]
        both = [n for row in rows for n in row["served"]["features"]["simtier"]]
        again = scorer.score([{**event, "served": {**rows[0]["served"],
                                                   "features": {"simtier": both}}}])  # fmt: skip
        assert again.logit_n.tobytes() == scores.logit_n.tobytes()
        wrong = [n + 1 for n in both]
        skewed = scorer.score([{**event, "served": {**rows[0]["served"],
                                                    "features": {"simtier": wrong}}}])  # fmt: skip
        assert skewed.logit_n.tobytes() != scores.logit_n.tobytes()
        np.testing.assert_array_equal(skewed.served.values_nN, scores.served.values_nN)
        many = [{"item_id": item} for item in (1, 2) * 200]  # more than are predicted at once
        served = scorer.score([{**event, "items": many}]).served
        np.testing.assert_array_equal(served.values_nN, np.tile(scores.served.values_nN, (200, 1)))


def test_a_running_model_takes_it_on_and_gives_it_up(tmp_path: Any) -> None:
    log = write_log(tmp_path / "a.parquet", samples=400)

    def config(**more: Any) -> Any:
        options = {"device": "cpu", "simtier": {"on": True, "recent": [2], **more}}
        return ranked_config(
            snapshot={"every_samples": 150, "keep": 9},
            ranker={"name": "id_content", "label": "click", "options": options, "grow": True},
        )

    for first, then in (({}, {"served": True}), ({"served": True}, {})):
        folder = tmp_path / f"r{len(first)}"
        with pytest.raises(Killed):
            replay(config(**first), (log,), folder, kill_after=20, chunk_records=29, snapshots=True)
        resumed = replay(config(**then), (log,), folder, resume=True)
        straight = replay(config(), (log,), tmp_path / f"s{len(first)}")
        assert resumed.composition.pipeline.ledger.samples == 400
        assert weights(resumed) == weights(straight)


def test_a_plan_without_it_is_as_it_was() -> None:
    plain = compose(ranked_config(), None)
    assert plain.histograms is None
    assert plain.plan.served is None
