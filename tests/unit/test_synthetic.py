"""The synthetic stream: seeded, true to its own probabilities, and silent about them."""

import json
from dataclasses import fields, replace

import msgpack
import numpy as np
import pytest

from infra.errors import InputError
from stream import cli
from stream.importers.synthetic import ANNOUNCED_MS, simulate
from stream.importers.synthetic_config import HOUR_MS, SyntheticConfig
from stream.importers.synthetic_log import read_truth, truth_path, write_synthetic
from stream.record_log import RecordLog
from tests.support.synthetic_truth import config_of, replayed, stream_of

CONFIG = SyntheticConfig(users=300, items=80, impressions=40_000, days=1.5, new_items_per_hour=2)


@pytest.fixture(scope="module")
def stream():
    return simulate(CONFIG)


def records(log):
    return [
        (batch.tp, key, value, ts)
        for batches in RecordLog(log).batches(10_000)
        for batch in batches
        for key, value, ts in zip(
            batch.keys, batch.values, batch.timestamp_ms_n.tolist(), strict=True
        )
    ]


def words(value):
    """All keys of maps inside a message."""
    if isinstance(value, dict):
        return set(value) | {word for inner in value.values() for word in words(inner)}
    if isinstance(value, list):
        return {word for inner in value for word in words(inner)}
    return set()


def standard_error(p):
    return np.sqrt((p * (1 - p)).sum()) / len(p)


def test_equal_seeds_give_equal_columns_and_others_do_not(stream):
    items, shown = simulate(CONFIG)
    for one, other in ((items, stream[0]), (shown, stream[1])):
        for field in fields(one):
            assert np.array_equal(getattr(one, field.name), getattr(other, field.name)), field.name
    assert not np.array_equal(simulate(replace(CONFIG, seed=1))[1].item_id, shown.item_id)


def test_equal_seeds_give_equal_bytes(tmp_path):
    logs = [stream_of(tmp_path / name, impressions=2_000, duplicates=0.1) for name in "ab"]
    assert records(logs[0]) == records(logs[1])
    assert truth_path(logs[0]).read_bytes() == truth_path(logs[1]).read_bytes()


def test_there_are_as_many_rows_as_asked_for_in_order(stream):
    _, shown = stream
    assert len(shown) == CONFIG.impressions
    assert (np.diff(shown.ts_ms) >= 0).all()
    assert shown.ts_ms[0] >= CONFIG.start_ms
    assert shown.ts_ms[-1] < CONFIG.end_ms == CONFIG.start_ms + 36 * HOUR_MS
    assert np.array_equal(np.unique(shown.request_id), np.arange(1, CONFIG.requests + 1))


def test_a_request_shows_distinct_items_at_positions_from_zero(stream):
    _, shown = stream
    items = np.sort(shown.item_id.reshape(-1, CONFIG.slate), axis=1)
    assert (np.diff(items, axis=1) > 0).all()
    assert (shown.position.reshape(-1, CONFIG.slate) == np.arange(CONFIG.slate)).all()
    for column in (shown.request_id, shown.user_id, shown.ts_ms, shown.device):
        assert (np.ptp(column.reshape(-1, CONFIG.slate), axis=1) == 0).all()


@pytest.mark.parametrize("by", ("position", "segment", "device"))
def test_clicks_come_with_their_probability(stream, by):
    _, shown = stream
    for value in np.unique(getattr(shown, by)):
        rows = getattr(shown, by) == value
        p, clicked = shown.probability[rows], shown.click_delay_ms[rows] > 0
        assert abs(clicked.mean() - p.mean()) < 4 * standard_error(p)


def test_position_divides_the_probability_by_a_power(stream):
    _, shown = stream
    ratio = shown.probability / shown.probability_without_position
    assert np.allclose(ratio, (1.0 + shown.position) ** -0.5)
    flat = simulate(SyntheticConfig(impressions=4_000, position_exponent=0.0))[1]
    assert np.array_equal(flat.probability, flat.probability_without_position)


def test_the_share_of_clicks_in_the_window_is_the_one_stated(stream):
    _, shown = stream
    delays = shown.click_delay_ms[shown.click_delay_ms > 0]
    for window in (10_000, 600_000, 7_200_000):
        config = SyntheticConfig(window_ms=window)
        error = standard_error(np.full(len(delays), config.share_in_window))
        assert abs((delays <= window).mean() - config.share_in_window) < 4 * error
    assert SyntheticConfig(window_ms=10**8).share_in_window == 1.0
    assert delays.max() <= CONFIG.delay_max_ms + 1


def test_propensities_are_those_of_the_draws():
    """One over the propensity, summed over the items shown first, counts the items there are."""
    _, shown = simulate(SyntheticConfig(items=30, new_items_per_hour=0, impressions=120_000))
    for position in range(4):
        inverse = 1 / shown.propensity[shown.position == position]
        error = inverse.std() / np.sqrt(len(inverse))
        assert abs(inverse.mean() - (30 - position)) < 4 * error
        assert error < 0.5


def test_new_items_are_announced_before_they_are_shown(stream):
    items, shown = stream
    assert len(items.item_id) == CONFIG.items_in_all == 80 + 2 * 36
    born = np.zeros(len(items.item_id) + 1, np.int64)
    born[items.item_id] = items.born_ms
    assert (shown.ts_ms >= born[shown.item_id] + ANNOUNCED_MS).all()
    late = items.born_ms > CONFIG.start_ms
    assert np.isin(items.item_id[late], shown.item_id).mean() > 0.9
    hours = (items.born_ms[80:] - CONFIG.start_ms + ANNOUNCED_MS) // HOUR_MS
    assert np.array_equal(np.bincount(hours), np.full(36, 2))


def probabilities_of_pairs(config):
    """Mean logit of (user, item, device, hour of the day) on two days, for tuples of both."""
    _, shown = simulate(config)
    logit = np.log(shown.probability_without_position / (1 - shown.probability_without_position))
    hour = (shown.ts_ms - config.start_ms) // HOUR_MS
    key = ((shown.user_id * 1_000 + shown.item_id) * 10 + shown.device) * 24 + hour % 24
    days = []
    for day in (0, 1):
        unique, first = np.unique(key[hour // 24 == day], return_index=True)
        days.append((unique, logit[hour // 24 == day][first]))
    both = np.intersect1d(days[0][0], days[1][0])
    return [values[np.searchsorted(keys, both)] for keys, values in days]


def test_without_drift_a_pair_keeps_its_probability_and_with_drift_it_does_not():
    common = {"users": 5, "items": 20, "days": 2.0, "new_items_per_hour": 0, "impressions": 40_000}
    still = probabilities_of_pairs(SyntheticConfig(drift=0.0, **common))
    assert len(still[0]) > 500
    assert np.allclose(*still)
    moved = [probabilities_of_pairs(SyntheticConfig(drift=d, **common)) for d in (0.2, 2.0)]
    apart = [np.abs(a - b).mean() for a, b in moved]
    assert 0.1 < apart[0] < apart[1]
    # Stationary: the second day's logits are as spread out as the first's.
    assert moved[1][1].std() == pytest.approx(moved[1][0].std(), rel=0.2)


def test_a_break_changes_everything_at_once_and_nothing_before():
    common = {"users": 5, "items": 20, "days": 2.0, "new_items_per_hour": 0, "impressions": 40_000}
    config = SyntheticConfig(drift=0.0, break_at=0.5, **common)
    assert config.break_ms == config.start_ms + 24 * HOUR_MS
    before, after = probabilities_of_pairs(config)
    assert np.abs(before - after).mean() > 0.5
    broken, whole = simulate(config)[1], simulate(replace(config, break_at=0.0))[1]
    earlier = whole.ts_ms < config.break_ms
    assert np.array_equal(broken.probability[earlier], whole.probability[earlier])


def test_permuted_content_changes_content_alone(stream):
    items, shown = simulate(replace(CONFIG, content="permuted"))
    assert np.array_equal(shown.click_delay_ms, stream[1].click_delay_ms)
    assert np.array_equal(items.born_ms, stream[0].born_ms)
    assert not np.array_equal(items.vectors_ID, stream[0].vectors_ID)
    assert not np.array_equal(items.topic, stream[0].topic)
    rows = np.lexsort(items.vectors_ID.T), np.lexsort(stream[0].vectors_ID.T)
    assert np.array_equal(items.vectors_ID[rows[0]], stream[0].vectors_ID[rows[1]])
    assert np.array_equal(items.topic[rows[0]], stream[0].topic[rows[1]])


def test_content_tells_something_of_the_items(stream):
    """Items with near vectors have near click rates."""
    items, shown = stream
    vectors = items.vectors_ID / np.linalg.norm(items.vectors_ID, axis=1, keepdims=True)
    n = np.bincount(shown.item_id, minlength=len(vectors) + 1)[1:]
    sums = np.bincount(shown.item_id, shown.probability, minlength=len(vectors) + 1)[1:]
    often = n > 100
    rate, vectors = sums[often] / n[often], vectors[often]
    near = vectors @ vectors.T - 2 * np.eye(len(vectors))
    correlation = np.corrcoef(rate, rate[near.argmax(axis=1)])[0, 1]
    assert correlation > 0.3


def test_no_event_tells_the_truth(tmp_path):
    for envelope in (1, 100):
        log = stream_of(tmp_path / str(envelope), impressions=400, envelope=envelope)
        found = set().union(*(words(msgpack.unpackb(r[2])) for r in records(log)))
        assert {"item_id", "ts_ms", "user_id", "request_id"} <= found
        assert not [word for word in found if "probab" in str(word) or "exam" in str(word)]


def test_the_truth_file_is_about_the_window(tmp_path):
    log = stream_of(tmp_path, impressions=4_000, window_ms=15_000)
    truth, config = read_truth(truth_path(log))
    _, shown = simulate(config)
    assert config.window_ms == 15_000
    assert np.array_equal(truth["request_id"], shown.request_id)
    assert np.array_equal(truth["propensity"], shown.propensity)
    share = config.share_in_window
    assert 0.3 < share < 0.6
    assert np.array_equal(truth["probability"], share * shown.probability)
    in_window = (shown.click_delay_ms > 0) & (shown.click_delay_ms <= 15_000)
    p = truth["probability"]
    assert abs(in_window.mean() - p.mean()) < 4 * standard_error(p)


def test_a_file_that_is_no_truth_is_refused(tmp_path):
    log = stream_of(tmp_path, impressions=400)
    with pytest.raises(InputError, match="expected the truth of a synthetic stream"):
        read_truth(log)
    with pytest.raises(InputError, match="not a readable Parquet file"):
        read_truth(tmp_path / "none.parquet")


def rows_by_key(run):
    order = np.lexsort((run.position, run.ts_ms, run.user_id))
    return np.column_stack([run.user_id, run.ts_ms, run.item_id, run.label])[order]


def test_envelopes_duplicates_and_disorder_change_no_sample(tmp_path):
    plain = {"impressions": 2_000, "days": 0.5}
    config = config_of("base_rate")
    runs = [
        replayed(stream_of(tmp_path / name, **plain, **extra), tmp_path / name / "report", config)
        for name, extra in (
            ("plain", {}),
            ("single", {"envelope": 1}),
            ("disturbed", {"duplicates": 0.3, "disorder_ms": 5_000, "partitions": 3}),
        )
    ]
    assert len(runs[0]) == 2_000
    assert np.array_equal(runs[0].logit, runs[1].logit)
    for run in runs[1:]:
        assert np.array_equal(rows_by_key(run), rows_by_key(runs[0]))


def test_events_that_are_sent_again_are_counted(tmp_path):
    config = SyntheticConfig(impressions=8_000, duplicates=0.25)
    counts = write_synthetic(tmp_path / "a.parquet", config)
    assert counts.impressions == 8_000
    assert counts.clicks > counts.clicks_in_window > 0.9 * counts.clicks
    assert counts.duplicates == pytest.approx(0.25 * (8_000 + counts.clicks), rel=0.1)
    rows = sum(msgpack.unpackb(r[2])["n"] for r in records(tmp_path / "a.parquet")
               if r[0].topic != "items")  # fmt: skip
    assert rows == counts.impressions + counts.clicks + counts.duplicates


@pytest.mark.parametrize(
    ("settings", "words"),
    (
        ({"users": 0}, "users: expected 1 to"),
        ({"items": 7, "slate": 4}, "items: expected 8 to"),
        ({"impressions": 3}, "impressions: expected 4 to"),
        ({"break_at": 1.5}, "break_at: expected 0 to 1"),
        ({"content": "some"}, "content: expected true, permuted or none"),
        ({"envelope": 0}, "envelope: expected 1 to"),
        ({"delay_mean_ms": 0}, "delay_mean_ms"),
    ),
)
def test_wrong_settings_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        SyntheticConfig(**settings)


def test_the_command_writes_both_files(tmp_path, capsys):
    out = tmp_path / "deep" / "s.parquet"
    assert cli.run(["synth", str(out), "--impressions", "400", "--seed", "3", "--json",
                    "--start", "2025-03-01"]) == 0  # fmt: skip
    counts = json.loads(capsys.readouterr().out)
    assert counts["impressions"] == 400
    assert len(RecordLog(out)) == sum(counts["records"].values())
    truth, config = read_truth(truth_path(out))
    assert len(truth["probability"]) == 400
    assert (config.seed, config.start_ms) == (3, 1_740_787_200_000)


@pytest.mark.parametrize(
    ("arguments", "words"),
    (
        (("s.parquet", "--users", "0"), "users: expected 1 to"),
        (("s.parquet", "--start", "soon"), "expected ISO 8601"),
        (("s.log",), "ends in .parquet"),
        (("file/s.parquet",), "cannot be written"),
    ),
)
def test_wrong_arguments_are_one_line_and_code_two(tmp_path, capsys, arguments, words):
    (tmp_path / "file").write_text("")
    name, *rest = arguments
    assert cli.run(["synth", str(tmp_path / name), *rest]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert len(error.splitlines()) == 1
