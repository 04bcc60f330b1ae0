"""The Grafana dashboard, generated from the table of metrics: `python -m tests.support.dashboard`.

Writes infra/dashboards/millrace.json, which a test compares. Renders nothing.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from stream import metric_table as t

TARGET = Path(__file__).parents[2] / "infra" / "dashboards" / "millrace.json"
_W = "[$__rate_interval]"
_WIDTH, _HEIGHT = 8, 7
_UNITS = {"s": "seconds", "By": "bytes"}
_SELECT = 'instance=~"$instance"'


def prometheus_name(row: t.Row) -> str:
    """What a Prometheus OTLP receiver calls the metric; of a histogram the common stem."""
    name = row.name.replace(".", "_")
    unit = _UNITS.get(row.metric.unit, "")
    if unit and not name.endswith(f"_{unit}"):
        name = f"{name}_{unit}"
    return f"{name}_total" if row.metric.kind == "counter" else name


def label(attribute: str) -> str:
    """What a Prometheus OTLP receiver calls the attribute."""
    return attribute.replace(".", "_")


def series(row: t.Row, *matchers: str, suffix: str = "") -> str:
    """A selector of the chosen instances' series."""
    return f"{prometheus_name(row)}{suffix}{{{', '.join((_SELECT, *matchers))}}}"


def rate(row: t.Row, *by: str, where: tuple[str, ...] = ()) -> str:
    """Sum of rates, by attributes."""
    group = f" by ({', '.join(map(label, by))})" if by else ""
    return f"sum{group} (rate({series(row, *where)}{_W}))"


def total(row: t.Row, *by: str) -> str:
    """Sum of gauges, by attributes."""
    return f"sum by ({', '.join(map(label, by))}) ({series(row)})"


def quantile(q: float, row: t.Row, *by: str) -> str:
    """A quantile of a histogram."""
    group = ", ".join(("le", *map(label, by)))
    buckets = series(row, suffix="_bucket")
    return f"histogram_quantile({q}, sum by ({group}) (rate({buckets}{_W})))"


def mean(row: t.Row, *by: str) -> str:
    """Mean of a histogram, by attributes."""
    group = ", ".join(map(label, by))
    return " / ".join(
        f"sum by ({group}) (rate({series(row, suffix=s)}{_W}))" for s in ("_sum", "_count")
    )


def age(row: t.Row, *by: str) -> str:
    """Seconds since the newest timestamp."""
    group = f" by ({', '.join(map(label, by))})" if by else ""
    return f"time() - max{group} ({series(row)})"


def panel(
    title: str, unit: str, *queries: tuple[str, str], text: str = "", stack: bool = False
) -> dict[str, Any]:
    """A time series panel of (expression, legend) pairs."""
    custom: dict[str, Any] = {"fillOpacity": 10, "showPoints": "never"}
    if stack:
        custom["stacking"] = {"group": "A", "mode": "normal"}
    return {
        "type": "timeseries",
        "title": title,
        "description": text,
        "datasource": {"type": "prometheus", "uid": "${datasource}"},
        "interval": "5s",
        "fieldConfig": {"defaults": {"unit": unit, "custom": custom}, "overrides": []},
        "options": {
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
            "tooltip": {"mode": "multi", "sort": "desc"},
        },
        "targets": [
            {"refId": chr(65 + i), "expr": expr, "legendFormat": legend, "exemplar": unit == "s"}
            for i, (expr, legend) in enumerate(queries)
        ],
    }


def _of(*attributes: str) -> str:
    return " ".join(f"{{{{{label(a)}}}}}" for a in attributes)


def _freshness() -> list[dict[str, Any]]:
    return [
        panel("Settled to learned", "s",
              *((quantile(q, t.SETTLE_TO_UPDATE), f"p{q * 100:g}") for q in (0.5, 0.95, 0.99)),
              text="From sending the records that let samples settle to weights that know them."),
        panel("Age of watermark and snapshot", "s", (age(t.WATERMARK), "watermark"),
              (age(t.SNAPSHOT_DONE), "durable snapshot"),
              text="Of a recorded stream the watermark is as old as its events."),
        panel("Snapshot time", "s", (quantile(0.99, t.SNAPSHOT, t.PHASE), f"p99 {_of(t.PHASE)}"),
              (f"max ({series(t.RECOVERY)})", "last start"),
              text="stall: training waits. write: until it is durable."),
    ]  # fmt: skip


def _ingest() -> list[dict[str, Any]]:
    return [
        panel("Records and events", "cps", (rate(t.CONSUMED, t.DESTINATION), _of(t.DESTINATION)),
              (rate(t.EVENTS), "events released")),
        panel("Lag", "short", (total(t.LAG, t.DESTINATION, t.PARTITION),
              _of(t.DESTINATION, t.PARTITION))),
        panel("Age of partitions", "s",
              (age(t.POSITION, t.DESTINATION, t.PARTITION), _of(t.DESTINATION, t.PARTITION)),
              text="Event time reached. A partition that stands still holds back all others."),
        panel("Rejected events", "cps", (rate(t.REJECTED, t.ERROR_TYPE), _of(t.ERROR_TYPE)),
              stack=True),
        panel("Time of a batch in the pipeline", "s",
              (quantile(0.5, t.PROCESS, t.DESTINATION), f"p50 {_of(t.DESTINATION)}"),
              (quantile(0.99, t.PROCESS, t.DESTINATION), f"p99 {_of(t.DESTINATION)}")),
        panel("Item vectors: cache hit rate", "percentunit",
              (f"1 - {rate(t.CACHE_MISSES)} / {rate(t.CACHE_LOOKUPS)}", "hits")),
    ]  # fmt: skip


def _items() -> list[dict[str, Any]]:
    return [
        panel("Item event to vector", "s",
              *((quantile(q, t.EMBED_LATENCY), f"p{q * 100:g}") for q in (0.5, 0.95, 0.99)),
              text="From sending an item event to its vector on the broker."),
        panel("Item events by outcome", "cps", (rate(t.EMBED_ITEMS, t.OUTCOME), _of(t.OUTCOME)),
              stack=True, text="reused: only attributes changed. done: written before a restart."),
        panel("Refused pictures and vectors", "cps",
              (rate(t.EMBED_REFUSED, t.ERROR_TYPE), _of(t.ERROR_TYPE)), stack=True),
        panel("Time of a batch in the encoders", "s",
              *((quantile(q, t.EMBED_BATCH), f"p{q * 100:g}") for q in (0.5, 0.99))),
        panel("Items that wait to be encoded", "short",
              (f"sum ({series(t.EMBED_WAITING)})", "items")),
    ]  # fmt: skip


def _join() -> list[dict[str, Any]]:
    clicked = rate(t.IMPRESSIONS, t.LABEL, where=(f'{label(t.OUTCOME)}="clicked"',))
    return [
        panel("Share of impressions with the label", "percentunit",
              (f"{clicked} / {rate(t.IMPRESSIONS, t.LABEL)}", _of(t.LABEL))),
        panel("Clicks by outcome", "cps", (rate(t.CLICKS, t.OUTCOME), _of(t.OUTCOME)), stack=True),
        panel("Settled impressions by outcome", "cps",
              (rate(t.IMPRESSIONS, t.LABEL, t.OUTCOME), _of(t.LABEL, t.OUTCOME))),
        panel("Open impressions", "short", (f"sum ({series(t.OPEN)})", "open")),
        panel("Duplicates dropped", "cps", (rate(t.DUPLICATES), "impressions")),
    ]  # fmt: skip


def _quality() -> list[dict[str, Any]]:
    def score(row: t.Row) -> tuple[str, str]:
        return f"max by ({label(t.WINDOW)}) ({series(row)})", _of(t.WINDOW)

    return [
        panel("Log loss", "short", score(t.LOG_LOSS),
              text="Each prediction was made before its sample was learned. recent: 32 steps."),
        panel("Normalized entropy", "short", score(t.NORMALIZED_ENTROPY)),
        panel("AUC", "short", score(t.AUC)),
        panel("Calibration", "short", score(t.CALIBRATION), text="Predicted over observed: 1."),
        panel("Positive rate", "percentunit", score(t.POSITIVE_RATE)),
        panel("Learned", "cps", (rate(t.EXAMPLES), "samples"), (rate(t.NONFINITE), "not finite")),
        panel("Time of a learn step", "s", (mean(t.STEP, t.PHASE), _of(t.PHASE)), stack=True),
        panel("Embedding rows", "short",
              (total(t.ROWS, t.TABLE), _of(t.TABLE))),
    ]  # fmt: skip


def _methods() -> list[dict[str, Any]]:
    missing = rate(t.CONTENT, where=(f'{label(t.OUTCOME)}="no_vector"',))
    return [
        panel("Samples whose item had no vector", "percentunit",
              (f"{missing} / {rate(t.CONTENT)}", "no vector"),
              text="At their prediction. Such rows get nothing from content."),
        panel("Own loss of a method", "short",
              (f"max by ({label(t.METHOD)}) ({series(t.METHOD_LOSS)})", _of(t.METHOD)),
              text="A sample, as weighted, in the last step."),
        panel("MAKE: releases", "short",
              (f"max by ({label(t.OUTCOME)}) ({series(t.MAKE_RELEASES)})", _of(t.OUTCOME)),
              text="reverted: the guard found that the release did harm."),
        panel("MAKE: the release on trial", "short",
              (f"max ({series(t.MAKE_DIFFERENCE)})", "log loss less the one before"),
              text="Above 0 it does harm; the guard reverts it when that is sure."),
        panel("MAKE: samples", "short", (f"max ({series(t.MAKE_TRIAL)})", "of the trial"),
              (rate(t.MAKE_REPLAYED), "replayed per second")),
        panel("EM3: age of the memory", "short",
              (f"max by ({label(t.AGE)}) ({series(t.EM3_COSINE)})", f"replaced: {_of(t.AGE)}"),
              text="Cosine of a vector and the one that replaces it; below 1: old ones mislead."),
        panel("SimTier: histograms that servers logged", "cps",
              (rate(t.SERVED, t.OUTCOME), _of(t.OUTCOME)),
              text="differing: read, but unlike our own: server and worker see other histories or "
              "vectors. other_version: not read."),
        panel("Items in memories of methods", "short",
              (f"max ({series(t.EM3_MEMORY)})", "EM3: memory"),
              (f"max ({series(t.FLIP_VOCABULARY)})", "FLIP: ids with an output row")),
    ]  # fmt: skip


def _variables() -> list[dict[str, Any]]:
    source = {"type": "prometheus", "uid": "${datasource}"}
    query = "label_values(target_info, instance)"
    return [
        {"type": "datasource", "name": "datasource", "label": "Data source",
         "query": "prometheus", "current": {"text": "Prometheus", "value": "prometheus"}},
        {"type": "query", "name": "instance", "label": "Instance", "datasource": source,
         "query": {"query": query, "refId": "instances"}, "definition": query,
         "refresh": 2, "includeAll": True, "multi": True, "sort": 1,
         "current": {"text": ["All"], "value": ["$__all"]}},
    ]  # fmt: skip


def board() -> dict[str, Any]:
    """The dashboard as Grafana's JSON."""
    rows = {
        "Freshness": _freshness(), "Ingest": _ingest(), "Items": _items(), "Join": _join(),
        "Quality": _quality(), "Methods": _methods(),
    }  # fmt: skip
    panels: list[dict[str, Any]] = []
    y = 0
    for title, members in rows.items():
        panels.append({"type": "row", "title": title, "collapsed": False, "panels": [],
                       "gridPos": {"h": 1, "w": 24, "x": 0, "y": y}})  # fmt: skip
        for i, member in enumerate(members):
            place = {"h": _HEIGHT, "w": _WIDTH, "x": i % 3 * _WIDTH, "y": y + 1 + i // 3 * _HEIGHT}
            panels.append({**member, "gridPos": place})
        y += 1 + -(-len(members) // 3) * _HEIGHT
    return {
        "uid": "millrace", "title": "millrace", "schemaVersion": 42, "version": 1, "editable": True,
        "tags": ["millrace"], "timezone": "browser", "refresh": "10s", "graphTooltip": 1,
        "time": {"from": "now-15m", "to": "now"},
        "templating": {"list": _variables()}, "annotations": {"list": []},
        "panels": [{"id": i, **p} for i, p in enumerate(panels, 1)],
    }  # fmt: skip


def text() -> str:
    """The file's content."""
    return json.dumps(board(), indent=1, ensure_ascii=False) + "\n"


def names_in(expr: str) -> set[str]:
    """Names of metrics in a PromQL expression, histogram suffixes taken off."""
    found = set(re.findall(r"\b([a-z][a-z0-9_]*)\{", expr))
    return {re.sub(r"_(bucket|sum|count)$", "", name) for name in found}


if __name__ == "__main__":
    TARGET.write_text(text())
