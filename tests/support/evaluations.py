"""Evaluation values of invented runs, complete and of any size, for tests of what reads them."""

import itertools

import numpy as np

DAY_MS, HOUR_MS = 86_400_000, 3_600_000
START_MS = 1_651_248_000_000  # 2022-04-30 00:00 at UTC+08:00 is 16:00 the day before
SKILL = (0.0072, 0.0, 0.0031, -0.0148, 0.0008, -0.002)
SLICES = {
    "item exposures": ("0", "1-9", "10-99", "100-999", ">=1000"),
    "item age": ("<1 h", "1-24 h", "1-7 d", ">7 d"),
    "user impressions": ("0-4", "5-19", "20-99", ">=100"),
    "missing vector": ("no", "yes"),
    "field tab": ("1", "0", "4", "2", "6", "rest"),
}
SHARES = (0.41, 0.27, 0.18, 0.11, 0.025, 0.005)


def evaluation(names=("id_content", "vw_history"), *, days=3, seed=7, paired=True):
    """A whole value; arm 0 is the best, arm 1 the one that others are compared with."""
    rng = np.random.default_rng(seed)
    arms = [arm(rng, name, SKILL[i % len(SKILL)], days) for i, name in enumerate(names)]
    compared = [i for i in range(len(names)) if i != 1] if paired and len(names) > 1 else []
    return {
        "label": "click",
        "predict_at": "impression",
        "rows": 59_908,
        "positives": 27_840,
        "users": 5_212,
        "from_ms": START_MS,
        "to_ms": START_MS + days * DAY_MS - 1_000,
        "warm_up_rows": 71_444,
        "unsettled_rows": 212,
        "arms": arms,
        "pairs": [pair(rng, names[i], names[1], SKILL[i % len(SKILL)], days) for i in compared],
        "placebo": [
            {
                "arm": names[0],
                "permutation": i,
                "metrics": {"log_loss": 0.5868 + i * 2e-4, "ne": 0.8497, "auc": 0.7478 - i * 3e-4},
                "pair": {"a": f"{names[0]} placebo {i}", "b": b}
                | interval(0.0028 + i * 2e-4, 0.0006),
            }
            for i in range(2)
            for b in names[:2]
        ]
        if compared
        else [],
        "freshness": freshness() if compared else [],
        "throughput": {"samples_per_s": 15_310.0, "events_per_s": 16_202.0, "seconds": 8.58},
        "missing": [
            {
                "ts_ms": START_MS + i * HOUR_MS,
                "samples": (samples := int(hourly_volume(i) * 830)),
                "missing_vector": int(samples * (0.012 + 0.03 * np.exp(-i / 30))),
                "empty_history": int(samples * (0.08 + 0.1 * np.exp(-i / 20))),
            }
            for i in range(24 * days)
        ],
        "reasons": {f"arms.{name}.metrics.gauc_request": "every request shows one item"
                    for name in names},
    }  # fmt: skip


def hourly_volume(i):
    return 1.05 + 0.6 * np.sin((i - 14) / 24 * 2 * np.pi)


def interval(mean, half):
    return {"mean": mean, "low": mean - half, "high": mean + half}


def scores(rng, log_loss, spread):
    noisy = log_loss + rng.normal(0, spread)
    return {
        "log_loss": noisy,
        "ne": noisy / 0.6905,
        "auc": 0.7525 - (noisy - 0.5829) * 1.6,
        "calibration": 1.002 + rng.normal(0, spread * 4),
    }


def arm(rng, name, gain, days):
    log_loss = 0.5902 - gain
    hours = [
        {"ts_ms": START_MS + i * HOUR_MS, "samples": int(hourly_volume(i) * 830),
         "positives": int(hourly_volume(i) * 385),
         **scores(rng, log_loss + 0.008 * np.sin(i / 4), 0.008)}
        for i in range(24 * days)
    ]  # fmt: skip
    predicted = np.linspace(0.04, 0.93, 20)
    floor = np.sqrt(predicted * (1 - predicted) / 2_995)
    observed = predicted + rng.normal(0, 1, 20) * floor + gain
    dates = np.datetime64("2022-04-30") + np.arange(days)
    metrics = {
        **scores(rng, log_loss, 1e-4), "ne_causal": log_loss / 0.6903, "auc_daily_mean": 0.7519,
        "gauc_request": None, "gauc_user_batch": 0.6190 + gain, "gauc_user_day": 0.5410,
        "ece": 0.0062 - gain / 8, "ece_floor": 0.0057, "ece_z": 0.9 - gain * 90,
        "ctr": 0.4647, "ndcg": None, "mrr": None, "hit1": None,
    }  # fmt: skip
    groups = {
        "gauc_user_batch": {"used": 8_120, "skipped": 21_345, "impressions_used": 31_012,
                            "impressions": 59_908},
        "gauc_user_day": {"used": 6_310, "skipped": 3_911, "impressions_used": 51_770,
                          "impressions": 59_908},
    }  # fmt: skip
    return {
        "name": name,
        "metrics": metrics,
        "groups": groups,
        "reliability": [
            {"n": 2_995, "predicted": float(p), "observed": float(o), "low": float(p - 1.96 * f),
             "high": float(p + 1.96 * f)}
            for p, o, f in zip(predicted, observed, floor, strict=True)
        ],
        "daily": [
            {"date": str(date), "samples": 19_900, "positives": 9_250, "ctr": 0.465,
             **scores(rng, log_loss, 0.002)}
            for date in dates
        ],
        "hourly": hours,
        "learning_curve": learning_curve(rng, log_loss, gain),
        "slices": slices(rng, log_loss),
    }  # fmt: skip


def learning_curve(rng, log_loss, gain):
    edges = [0, 1, 2, 3, 5, 8, 12, 20, 35, 60, 100, 150, 201]
    return [
        {"k_from": low, "k_to": high - 1, "n": int(5_200 * (high - low) ** 0.6),
         "log_loss": log_loss + (0.06 - 2 * gain) / (1 + low) ** 0.5 + rng.normal(0, 0.002),
         "calibration": 1 - (0.08 - 3 * gain) / (1 + low)}
        for low, high in itertools.pairwise(edges)
    ]  # fmt: skip


def slices(rng, log_loss):
    rows = []
    for by, values in SLICES.items():
        for value, share in zip(values, SHARES, strict=False):
            n = int(share * 59_908)
            error = 0.5 / max(n, 1) ** 0.5
            loss = log_loss + rng.normal(0, error)
            rows.append(
                {"by": by, "value": value, "n": n, "positives": int(n * 0.46), "share": share,
                 "log_loss": loss, "ne_global": loss / 0.69, "ne_slice": loss / 0.688,
                 "calibration": 1 + rng.normal(0, 2 * error), "auc": 0.75 + rng.normal(0, error),
                 "standard_error": error}
            )  # fmt: skip
    return rows


def pair(rng, a, b, gain, days):
    daily = [interval(-gain + rng.normal(0, 4e-4), 0.0013) for _ in range(days)]
    dates = np.datetime64("2022-04-30") + np.arange(days)
    rows = [
        {"by": by, "value": value, "n": int(share * 59_908), "share": share,
         **interval(-gain + rng.normal(0, 6e-4 / share**0.5), 6e-4 / share**0.5)}
        for by, values in SLICES.items()
        for value, share in zip(values, SHARES, strict=False)
    ]  # fmt: skip
    better = gain > 0.001
    return {
        "a": a,
        "b": b,
        **interval(-gain, 0.0009),
        "blocks": 5_212,
        "resamples": 1_000,
        "days": days,
        "days_better": sum(day["mean"] < 0 for day in daily),
        "daily": [{"date": str(date), **day} for date, day in zip(dates, daily, strict=True)],
        "slices": rows,
        "cold_start_regret": -gain * 140,
        "decision": decision(a, b, gain, better),
    }


def decision(a, b, gain, better):
    worse = gain < -0.001
    words = (
        f"{a} is better than {b} by {gain:.4f} nats per impression."
        if better
        else f"{b} is better than {a} by {-gain:.4f} nats per impression."
        if worse
        else f"No difference between {a} and {b} is shown."
    )
    rules = [
        ("the 95 % interval of the difference excludes 0", better or worse, f"{-gain:+.4f}"),
        ("the sign agrees on two thirds of the days", better or worse, "3 of 3 days"),
        ("no slice over 1 % of impressions loses", better, "worst: field tab = 4, +0.0004"),
        ("calibration within 1 ± 0.02", True, "1.0021"),
        ("a placebo shows no gain", None, "not run"),
    ]
    return {
        "accept": True if better else False if worse else None,
        "winner": a if better else b if worse else None,
        "rules": [{"rule": r, "passed": p, "detail": d} for r, p, d in rules],
        "words": words,
    }


def freshness():
    minutes = (0, 10, 30, 60, 300, 1_440)
    return [
        {"name": f"every {m} min", "sync_ms": m * 60_000, "log_loss": 0.5829 + 4e-5 * m**0.55,
         "auc": 0.7528 - 3e-5 * m**0.6, **interval(4e-5 * m**0.55, 1e-4 + 4e-6 * m**0.5)}
        for m in minutes
    ]  # fmt: skip
