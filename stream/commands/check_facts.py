"""What a configuration means, as plain facts: field by field into the model. Prints nothing."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embeddings.vector_codec import BadVector, decode_item_vector
from infra.errors import InputError
from learners import catalog
from learners.learner import Learner
from learners.net_learner import NetLearner
from stream.codec import ClickDecoder, ImpressionDecoder
from stream.codec_items import ItemEvent, decode_items
from stream.codec_unknown import unknown_fields
from stream.columns import EventColumns, EventKind
from stream.composition import embedder_of, next_items_of
from stream.config import CODES_PATH, Config, FeatureConfig
from stream.feature_plan import ATTRIBUTE, FeaturePlan, plan
from stream.join import JoinState
from stream.keys import salted
from stream.partition_clock import ClockLimits
from stream.record_log import RecordLog
from stream.records import RecordBatch
from stream.validate_facts import Jumps

CHUNK_RECORDS = 4_096
_FROZEN = (
    "user.gap", "user.session_position", "user.clicked", "user.interactions", "item.interactions",
)  # fmt: skip
Facts = dict[str, Any]


def facts_of(config: Config) -> Facts:
    """Fields, counters, histories, labels, times, items, ranker, memory and warnings.

    Raises InputError where the ranker's options do not fit.
    """
    made = plan(config)
    try:
        options = catalog.config_of(config.ranker.name, config.ranker.options)
        learner = catalog.build(config.ranker.name, made.spec, config.ranker.options)
    except ValueError as error:
        raise InputError(f"[ranker]: {error}") from error
    encoder = config.items
    version = embedder_of(config).version if encoder.dim else None
    _check_files(config, learner, version)
    return {
        "features": [_feature(made, f) for f in config.feature],
        "counters": _counters(made),
        "histories": _histories(made),
        "labels": [
            {"kind": kind, "window_ms": label.window_ms,
             "use": "trained" if kind == config.ranker.label else "measured"}
            for kind, label in config.label.items()
        ],
        "times": _times(config),
        "items": {
            "content": encoder.dim > 0, "dim": encoder.dim, "seed": encoder.seed,
            "encoder": version,
            "attributes": list(encoder.attributes) or "all", "ignore": list(encoder.ignore),
            "numeric": list(encoder.numeric), "dtype": encoder.dtype,
        },
        "ranker": {
            "name": config.ranker.name, "label": config.ranker.label, "options": asdict(options),
            "modules": [n for n, _ in learner.net.modules_on]
            if isinstance(learner, NetLearner) else [],
            "dense_inputs": len(made.spec.dense), "id_fields": len(made.spec.fields),
        },
        "memory": _memory(made),
        "warnings": _warnings(config),
    }  # fmt: skip


def _check_files(config: Config, learner: Learner, version: str | None) -> None:
    """Raises InputError where a module's file is of other vectors, or `items.next` is amiss."""
    if isinstance(learner, NetLearner):
        try:
            for _, module in learner.net.modules_on:
                module.check_content(version or "")
        except ValueError as error:
            raise InputError(f"[ranker]: {error}") from error
    if config.items.next:
        items = next_items_of(config)
        new = embedder_of(replace(config, items=items)).version if items.dim else None
        if new is None or new == version:
            raise InputError(
                f"items.next '{config.items.next}': expected vectors of another encoder than the "
                f"present '{version}', got '{new or 'none'}'"
            )


def _feature(made: FeaturePlan, f: FeatureConfig) -> Facts:
    names = {
        "id": [i.name for i in made.spec.ids],
        "multi-id": [b.name for b in made.spec.bags],
        "dense": [d.name for d in made.spec.dense],
    }[f.kind]
    place = names.index(f.name)
    column = {"id": f"ids_BF[:, {place}]", "multi-id": f"bags_BL[{place}]"}
    is_id = f.kind != "dense"
    return {
        "name": f.name, "path": f.path, "kind": f.kind, "decoded": _where(f),
        "table": _table(made, f) if is_id else None,
        "dim": f.dim if is_id else None, "admit_after": f.admit_after if is_id else None,
        "rows_max": f.rows_max if is_id else None, "expire_ms": f.expire_ms if is_id else None,
        "length": f.length if f.kind == "multi-id" else None,
        "scale": None if is_id else f.scale,
        "column": column.get(f.kind, f"dense_BD[:, {place}]"),
    }  # fmt: skip


def _where(f: FeatureConfig) -> str:
    if f.path.startswith(ATTRIBUTE):
        return "item table, as of the learn step"
    if f.path in _FROZEN:
        return "join, frozen at the impression"
    if f.path in ("impression.hour", "impression.weekday"):
        return "codec, from ts_ms and the timezone"
    if f.path.startswith(("context.", "features.")):
        return "codec, from the impression event"
    return "codec, a field of every event"


def _table(made: FeaturePlan, f: FeatureConfig) -> str:
    if f.path != "item":
        return "own rows, salted by the field's name"
    sharing = [h.name for h in made.config.history if _item_field(made) == f.name]
    shared = f", shared with history {', '.join(sharing)}" if sharing else ""
    return f"own rows, plain item key{shared}"


def _item_field(made: FeaturePlan) -> str | None:
    return next((f.name for f in made.config.feature if f.path == "item" and f.kind == "id"), None)


def _counters(made: FeaturePlan) -> list[Facts]:
    rows: list[Facts] = [
        {"name": "prior", "keys": [], "state": "global", "half_life_hours": 0.0,
         "prior_weight": None, "columns": {"prior": 0}}
    ]  # fmt: skip
    for c in made.counters:
        own = (c.config.name, f"{c.config.name}.decayed")
        rows.append({
            "name": c.config.name, "keys": list(c.config.keys),
            "state": "global" if c.is_global else "user",
            "half_life_hours": c.config.half_life_hours, "prior_weight": c.config.prior_weight,
            "columns": {d.name: i for i, d in enumerate(made.spec.dense) if d.counter in own},
        })  # fmt: skip
    return rows


def _histories(made: FeaturePlan) -> list[Facts]:
    bags = [b.name for b in made.spec.bags]
    return [
        {"name": h.name, "kinds": list(h.kinds), "length": h.length,
         "table": f"rows of '{_item_field(made)}'", "column": f"bags_BL[{bags.index(h.name)}]",
         "content": "pooled vectors" if made.spec.content_dim else "none"}
        for h in made.config.history
    ]  # fmt: skip


def _times(config: Config) -> Facts:
    s = config.stream
    return {
        "lateness_ms": s.lateness_ms, "linger_ms": s.linger_ms, "window_ms": config.window_ms,
        "dedup_horizon_ms": s.dedup_horizon_ms, "max_jump_ms": s.max_jump_ms,
        "max_future_ms": s.max_future_ms, "batch_size": s.batch_size, "predict_at": s.predict_at,
        "timezone_offset_minutes": s.timezone_offset_minutes,
        # What a click changes, counted in event time from the click or the impression.
        "features_fresh_after_ms": s.lateness_ms + s.feature_delay_ms,
        "weights_fresh_after_ms": config.window_ms + s.lateness_ms + s.linger_ms,
        "weights_fresh_after_ms_busy": config.window_ms + s.lateness_ms,
        "too_late_after_ms": config.window_ms + s.lateness_ms + s.dedup_horizon_ms,
    }  # fmt: skip


def _row_bytes(arrays: Any) -> int:
    return sum(int(a[:1].nbytes) for a in arrays)


def _memory(made: FeaturePlan) -> list[Facts]:
    """Upper bounds: rows times bytes of a row, tables at most half full counted twice."""
    s, items, join = made.config.stream, made.config.items, JoinState(made.shape, made.params())
    users = join.users.arrays
    counter = max(
        t.records.dtype.itemsize for t in (join.user_counters, join.global_counters)
    )  # fmt: skip
    bounds = [
        ("open impressions", "stream.open_max", s.open_max, _row_bytes(join.opened)),
        ("ids of the duplicate memory", "stream.ids_max", s.ids_max, 2 * 16 + 16),
        ("users", "stream.users_max", s.users_max, 2 * 16 + _row_bytes(
            (users.ring, users.seq, users.last_ts, users.session, users.clicked,
             users.interactions))),
        ("item interaction counts", "stream.items_max", s.items_max, 2 * 16),
        ("counter rows, of each kind", "stream.counters_max", 2 * s.counters_max, 2 * counter),
        ("item vectors in the cache", "items.cache_rows", items.cache_rows if items.dim else 0,
         items.dim * (4 if items.dtype == "float32" else 2)),
        *((f"rows of field '{f.name}'", f"feature[{f.name}].rows_max", f.rows_max,
           4 * f.dim + 4 + 2 * 16) for f in made.config.feature if f.kind != "dense"),
    ]  # fmt: skip
    return [
        {"what": what, "setting": name, "rows_max": rows, "bytes_per_row": size,
         "bytes_max": rows * size}
        for what, name, rows, size in bounds
    ]  # fmt: skip


def _warnings(config: Config) -> list[str]:
    lines, t = [], config.topics
    if t.retention_hours < 2 * t.snapshot_age_hours:
        lines.append(
            f"topics.retention_hours is {t.retention_hours}, expected at least twice "
            f"topics.snapshot_age_hours ({t.snapshot_age_hours}): a worker that resumes from its "
            "oldest snapshot may find its records gone"
        )
    if any(f.path.startswith(ATTRIBUTE) for f in config.feature) and config.items.dim == 0:
        lines.append(
            "items.dim is 0, so items have no content; their attributes are read all the same"
        )
    keyed = {key for c in config.counter for key in c.keys}
    lines += [
        f"counters with key '{f.name}' count by its first value only"
        for f in config.feature
        if f.kind == "multi-id" and f.name in keyed
    ]
    return lines


def log_facts(config: Config, path: Path) -> Facts:
    """How often events of a record log have each configured field, and what nobody reads.

    Raises RecordLogUnusable.
    """
    log, made, topics = RecordLog(path), plan(config), config.topics
    shown, clicks = ImpressionDecoder(made.impression_spec), ClickDecoder(made.click_spec)
    seen: Counter[str] = Counter()
    totals: Counter[str] = Counter()
    rejected: Counter[str] = Counter()
    unknown: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    names = [f.path for f in config.feature if f.path.startswith(ATTRIBUTE)]
    stream = config.stream
    limits = ClockLimits(max_jump_ms=stream.max_jump_ms, max_future_ms=stream.max_future_ms)
    jumps = Jumps(limits)
    for batches in log.batches(CHUNK_RECORDS):
        for batch in batches:
            if batch.tp.topic in (topics.impressions, topics.clicks):
                is_shown = batch.tp.topic == topics.impressions
                columns = (shown if is_shown else clicks).decode(batch)
                jumps.take(batch.tp, columns)
                spec = made.impression_spec if is_shown else made.click_spec
                rejected.update(str(r.reason) for r in columns.rejected)
                unknown.update(unknown_fields(batch, spec, every=1))
                if is_shown:
                    totals["impressions"] += len(columns.impressions.ids_mF)
                    _count_fields(made, columns, seen)
                else:
                    _count_kinds(config, columns, kinds)
            elif batch.tp.topic in (topics.items, topics.item_vectors):
                for attributes in _attributes(batch, vectors=batch.tp.topic == topics.item_vectors):
                    totals["items"] += 1
                    for p in names:
                        seen[p] += attributes.get(p.removeprefix(ATTRIBUTE)) is not None
    shares = {f.name: _share(f, seen, totals) for f in config.feature}
    absent = [name for name, share in shares.items() if share == 0]
    return {
        "path": str(path), "impressions": totals["impressions"], "items": totals["items"],
        "share_with_field": shares, "unknown_fields": dict(unknown.most_common()),
        "click_kinds": dict(kinds.most_common()), "rejected_by_reason": dict(rejected),
        "warnings": [f"feature '{name}': no event has it" for name in absent]
        + [f"label '{kind}': no click of this kind" for kind in config.label if not kinds[kind]]
        + [line for line in (jumps.advice(),) if line],
    }  # fmt: skip


def _share(f: FeatureConfig, seen: Counter[str], totals: Counter[str]) -> float | None:
    """Share of impressions or items; None where there were none, or the pipeline makes it."""
    if f.path in _FROZEN or f.path.startswith(CODES_PATH):
        return None
    total = totals["items" if f.path.startswith(ATTRIBUTE) else "impressions"]
    if f.path.startswith(("context.", "features.", ATTRIBUTE)):
        return seen[f.path] / total if total else None
    return 1.0 if total else None


def _count_fields(made: FeaturePlan, columns: EventColumns, seen: Counter[str]) -> None:
    imp, spec = columns.impressions, made.impression_spec
    for i, source in enumerate(spec.ids):
        missing = int(salted(np.zeros(1, np.int64), source.salt)[0])
        seen[source.path] += _n(imp.ids_mF[:, i] != missing)
    for m, multi in enumerate(spec.multis):
        seen[multi.path] += _n(imp.multi_mM[m][:, 0] != 0)
    for x, dense in enumerate(spec.dense):
        seen[dense.path] += _n(imp.dense_mX[:, x] != 0)  # 0 stands for missing too


def _count_kinds(config: Config, columns: EventColumns, kinds: Counter[str]) -> None:
    is_click = np.isin(columns.kind_n, (EventKind.CLICK, EventKind.ORGANIC))
    names = config.click_kinds
    numbers, counts = np.unique(columns.click_kind_n[is_click], return_counts=True)
    for number, n in zip(numbers.tolist(), counts.tolist(), strict=True):
        kinds[names[number] if number >= 0 else "(not configured)"] += n


def _attributes(batch: RecordBatch, *, vectors: bool) -> list[Any]:
    if not vectors:
        return [e.item.attributes for e in decode_items(batch) if isinstance(e, ItemEvent)]
    found = [decode_item_vector(value) for value in batch.values if value is not None]
    return [one.attributes for one in found if not isinstance(one, BadVector)]


def _n(mask: NDArray[np.bool_]) -> int:
    return int(np.count_nonzero(mask))
