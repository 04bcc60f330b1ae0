"""Prediction rows and logs from arrays, for tests of what reads them."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from scipy.special import expit

from stream.evaluation.rows import PredictionRows, coded

DAY_MS, HOUR_MS = 86_400_000, 3_600_000
START_MS = 1_651_190_400_000  # 2022-04-29 00:00 UTC


def columns(
    n=4_000,
    *,
    seed=0,
    users=60,
    items=90,
    slate=1,
    days=3,
    arms=("logit",),
    noise=(0.3,),
    rate=-1.0,
):
    """A log's columns in order of learning: true logits by user and item, arms as noisy copies."""
    rng = np.random.default_rng(seed)
    request = np.arange(n) // slate
    requests = int(request[-1]) + 1
    ts_ms = START_MS + np.sort(rng.integers(0, days * DAY_MS, requests))[request]
    user = rng.integers(0, users, requests)[request]
    item = rng.zipf(1.4, n) % items
    if slate > 1:  # the items of a request differ
        item = (item[::slate][request] + np.arange(n) % slate) % items
    truth = rate + rng.normal(0, 0.8, users)[user] + rng.normal(0, 0.8, items)[item]
    log = {
        "request_id": request * 7 + 3,
        "item_id": item * 11 + 5,
        "user_id": user * 13 + 1,
        "ts_ms": ts_ms,
        "label": (rng.random(n) < expit(truth)).astype(np.int8),
    }
    for name, spread in zip(arms, noise, strict=True):
        log[name] = (truth + rng.normal(0, spread, n)).astype(np.float32)
    return log | {
        "batch": np.arange(n) // 256,
        "weights_ms": ts_ms - 60_000,
        "history_len": rng.integers(0, 60, n).astype(np.int32),
        "has_vector": rng.random(n) < 0.8,
        "field.tab": rng.integers(0, 30, n) ** 2 // 30,
    }


def two_arms(n=4_000, *, noise=(0.3, 0.9), **settings):
    """Columns with arms `a` and `b`; `a` is better."""
    return columns(n, arms=("logit.a", "logit.b"), noise=noise, **settings)


def write(log, path):
    """The columns as a prediction log; its path."""
    pq.write_table(pa.table(log), path)
    return path


def rows_of(log, **given):
    """The columns as rows, without a file."""
    arms = {name.removeprefix("logit."): log[name] for name in log if name.startswith("logit")}
    return PredictionRows(
        request=coded(log["request_id"]),
        item=coded(log["item_id"]),
        user=coded(log["user_id"]),
        ts_ms_n=np.asarray(log["ts_ms"], np.int64),
        label_n=np.asarray(log["label"], np.int8),
        logits=arms,
        batch_n=log.get("batch"),
        history_len_n=log.get("history_len"),
        has_vector_n=log.get("has_vector"),
        fields={
            name.removeprefix("field."): coded(log[name])
            for name in log
            if name.startswith("field.")
        },
        **given,
    )


def some(log, rows):
    """Some rows of the columns."""
    return {name: column[rows] for name, column in log.items()}
