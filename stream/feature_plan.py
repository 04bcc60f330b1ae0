"""FeaturePlan: configuration to column layouts, made once at start.

Says where each column of a MiniBatch comes from, what the codec decodes, what an open impression
stores, which keys each counter has, and what the learner is told. Moves no data.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np

from learners.feature_spec import Bag, DenseInput, FeatureSpec, IdField
from learners.modules.qarm_codes import NAME as CODES_READER
from learners.modules.qarm_codes import CodeBag
from learners.served import ServedLayout
from stream import kernels
from stream.code_features import code_features, history_bags
from stream.codec_spec import DecodeSpec, DenseSource, IdSource, MultiSource, ServedSource
from stream.config import Config, FeatureConfig, ItemsConfig
from stream.counters import BUCKET_MS, CounterConfig, decay_table
from stream.events import TopicRole
from stream.join import JoinShape
from stream.keys import key_of_str, salt_of
from stream.user_state import ring_size

ATTRIBUTE = "item.attributes."
Where = Literal["event", "user", "item", "attribute", "multi-event", "multi-attribute"]


class Column(NamedTuple):
    """Where a column comes from: a place in the event's or the item's columns."""

    where: Where
    place: int
    length: int = 1


class HistoryColumn(NamedTuple):
    """An attribute of each item of a history: its number, and the several-valued attribute's."""

    history: int
    attribute: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CounterPlan:
    """A counter's key columns and its place among the decayed ones (-1: none)."""

    config: CounterConfig
    columns: tuple[Column, ...]
    salt: np.int64
    is_global: bool
    decayed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AttributePlan:
    """Item attributes that features read: the arguments of `ItemTable`."""

    ids: tuple[IdSource, ...]
    multis: tuple[MultiSource, ...]
    dense: tuple[DenseSource, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class FeaturePlan:
    """All layouts of one configuration. Counter 0 counts everything, under `prior_key`."""

    config: Config
    impression_spec: DecodeSpec
    click_spec: DecodeSpec
    attributes: AttributePlan
    ids: tuple[Column, ...]
    multis: tuple[Column, ...]
    of_histories: tuple[HistoryColumn, ...]
    dense: tuple[tuple[FeatureConfig, int], ...]
    counters: tuple[CounterPlan, ...]
    user_salt: np.int64
    spec: FeatureSpec
    shape: JoinShape
    served: ServedLayout | None = None
    """Logged features that are read: the last id column of a sample, and the last dense ones."""

    @property
    def prior_key(self) -> int:
        """Key of the counter of everything."""
        return key_of_str("counter:prior")

    def params(self) -> kernels.Params:
        """Constants of the join's loop."""
        c, s = self.config, self.config.stream
        kinds = {kind: i for i, kind in enumerate(c.click_kinds)}
        decayed = [p.config.half_life_hours for p in self.counters if p.decayed >= 0]
        return kernels.Params(
            lateness_ms=s.lateness_ms, window_ms=c.window_ms, horizon_ms=s.dedup_horizon_ms,
            linger_ms=s.linger_ms, batch_size=s.batch_size, open_max=s.open_max, ids_max=s.ids_max,
            users_max=s.users_max, counters_max=s.counters_max, items_max=s.items_max,
            bucket_ms=BUCKET_MS, session_gap_ms=s.session_gap_ms,
            delay_ms=s.feature_delay_ms,
            windows_ms=np.array([label.window_ms for label in c.label.values()], np.int64),
            history_mask=np.array(
                [sum(1 << kinds[kind] for kind in h.kinds) for h in c.history], np.int64
            ),
            ring=ring_size(max((h.length for h in c.history), default=1)),
            is_global=np.array([1, *(p.is_global for p in self.counters)], np.uint8),
            exposed=np.flatnonzero([False, *(p.config.open for p in self.counters)]),
            decay_row=np.array([-1, *(p.decayed for p in self.counters)], np.int64),
            decay=decay_table(decayed) if decayed else np.ones((1, 1), np.float32),
        )  # fmt: skip


def plan(config: Config, incoming: ItemsConfig | None = None) -> FeaturePlan:
    """The layouts of a configuration; `incoming`: what makes the vectors of `items.next`.

    Logged features are not read: see `with_served`.
    """
    singles = [f for f in config.feature if f.kind == "id"]
    codes, of_histories = code_features(config), history_bags(config)
    multis = [*(f for f in config.feature if f.kind == "multi-id"), *codes]
    dense = [f for f in config.feature if f.kind == "dense"]
    e_ids, a_ids = _split(singles)
    e_multis, a_multis = _split(multis)
    e_dense, a_dense = _split(dense)
    columns: dict[str, Column] = {"user": Column("user", 0), "item": Column("item", 0)}
    for f in singles:
        columns[f.name] = _single(f, e_ids, a_ids)
    for where, group in (("multi-event", e_multis), ("multi-attribute", a_multis)):
        place = 0
        for f in group:
            columns[f.name] = Column(where, place, f.length)  # type: ignore[arg-type]  # two of the literals
            place += f.length
    counters = _counters(config, columns)
    common = {"max_future_ms": config.stream.max_future_ms, "click_kinds": config.click_kinds,
              "timezone_offset_minutes": config.stream.timezone_offset_minutes}  # fmt: skip
    dense_places = [(f, e_dense.index(f) if f in e_dense else
                     a_dense.index(f) if f in a_dense else -1) for f in dense]  # fmt: skip
    return FeaturePlan(
        config=config,
        impression_spec=DecodeSpec(
            role=TopicRole.IMPRESSIONS, texts=config.report.fields, ids=_id_sources(e_ids),
            multis=_multi_sources(e_multis), dense=_dense_sources(e_dense), **common,  # type: ignore[arg-type]  # a mixed map of keywords
        ),
        click_spec=DecodeSpec(role=TopicRole.CLICKS, **common),  # type: ignore[arg-type]  # as above
        attributes=AttributePlan(ids=_id_sources(a_ids), multis=_multi_sources(a_multis),
                                 dense=_dense_sources(a_dense)),
        ids=tuple(columns[f.name] for f in singles),
        multis=tuple(columns[f.name] for f in multis),
        of_histories=_of_histories(config, a_multis, of_histories),
        dense=tuple(dense_places),
        counters=counters,
        user_salt=salt_of("user"),
        spec=replace(
            _spec(config, singles, multis, dense, counters, of_histories),
            incoming_blocks=incoming.blocks if incoming else (),
        ),
        shape=JoinShape(
            ids=len(e_ids), multi=sum(f.length for f in e_multis), dense=len(e_dense),
            labels=len(config.label), kinds=len(config.click_kinds), counters=1 + len(counters),
            decayed=sum(c.decayed >= 0 for c in counters),
            histories=tuple(h.length for h in config.history),
        ),
    )  # fmt: skip


def with_served(plan: FeaturePlan, layout: ServedLayout) -> FeaturePlan:
    """The plan that reads what servers logged in this layout, too."""
    source = ServedSource(name=layout.name, width=layout.width)
    shape = plan.shape
    return replace(
        plan, served=layout, impression_spec=replace(plan.impression_spec, served=source),
        shape=replace(shape, ids=shape.ids + 1, dense=shape.dense + layout.width,
                      served=layout.width),
    )  # fmt: skip


def _split(features: list[FeatureConfig]) -> tuple[list[FeatureConfig], list[FeatureConfig]]:
    """Those that the event carries, and those that come from the item's attributes."""
    attributes = [f for f in features if f.path.startswith(ATTRIBUTE)]
    state = ("user", "item", "user.gap", "user.session_position", "user.clicked",
             "user.interactions", "item.interactions")  # fmt: skip
    return [f for f in features if f not in attributes and f.path not in state], attributes


def _single(
    f: FeatureConfig, events: list[FeatureConfig], attributes: list[FeatureConfig]
) -> Column:
    if f.path in ("user", "item"):
        return Column("user" if f.path == "user" else "item", 0)
    return Column("event", events.index(f)) if f in events else Column(
        "attribute", attributes.index(f)
    )  # fmt: skip


def _counters(config: Config, columns: dict[str, Column]) -> tuple[CounterPlan, ...]:
    out: list[CounterPlan] = []
    for c in config.counter:
        cols = tuple(columns[key] for key in c.keys)
        decayed = sum(p.decayed >= 0 for p in out) if c.half_life_hours else -1
        out.append(
            CounterPlan(
                config=c, columns=cols, salt=salt_of(f"counter:{c.name}"),
                is_global=all(col.where != "user" for col in cols), decayed=decayed,
            )
        )  # fmt: skip
    return tuple(out)


def _spec(
    config: Config,
    singles: list[FeatureConfig],
    multis: list[FeatureConfig],
    dense: list[FeatureConfig],
    counters: tuple[CounterPlan, ...],
    of_histories: list[CodeBag],
) -> FeatureSpec:
    configured = {f.name for f in config.feature}
    label = config.ranker.label
    item = next((f.name for f in singles if f.path == "item"), "")
    inputs = [DenseInput(name="prior", group="prior", label=label)]
    for c in counters:
        name = c.config.name
        for suffix in ("", ".decayed") if c.decayed >= 0 else ("",):
            inputs += [
                DenseInput(name=f"{name}.rate{suffix}", group="rate", counter=name + suffix,
                           label=label),
                DenseInput(name=f"{name}.count{suffix}", group="count", counter=name + suffix),
            ]  # fmt: skip
        if c.config.open:
            inputs.append(DenseInput(name=f"{name}.open", group="value", counter=name))
    inputs += [DenseInput(name=f.name, group="value") for f in dense]
    return FeatureSpec(
        ids=tuple(_id_field(f) for f in singles),
        bag_fields=tuple(
            _id_field(f, "" if f.name in configured else CODES_READER) for f in multis
        ),
        bags=(
            *(Bag(name=h.name, field=item, length=h.length, is_history=True)
              for h in config.history),
            *(Bag(name=f.name, field=f.name, length=f.length, is_history=False,
                  reader="" if f.name in configured else CODES_READER) for f in multis),
            *(Bag(name=bag.name, field=bag.field, length=bag.length, is_history=False,
                  reader=CODES_READER, sequence=True) for bag in of_histories),
        ),
        dense=tuple(inputs),
        labels=tuple(config.label),
        trained_label=label,
        content_dim=config.items.content_dim,
        content_blocks=config.items.blocks,
    )  # fmt: skip


def _id_field(f: FeatureConfig, reader: str = "") -> IdField:
    return IdField(name=f.name, dim=f.dim, admit_after=f.admit_after, rows_max=f.rows_max,
                   expire_ms=f.expire_ms, reader=reader)  # fmt: skip


def _of_histories(
    config: Config, attributes: list[FeatureConfig], bags: list[CodeBag]
) -> tuple[HistoryColumn, ...]:
    histories = [h.name for h in config.history]
    names = [f.name for f in attributes]
    return tuple(HistoryColumn(histories.index(b.history), names.index(b.field)) for b in bags)


def _id_sources(features: list[FeatureConfig]) -> tuple[IdSource, ...]:
    return tuple(IdSource(name=f.name, path=f.path, salt=salt_of(f.name)) for f in features)


def _multi_sources(features: list[FeatureConfig]) -> tuple[MultiSource, ...]:
    return tuple(
        MultiSource(name=f.name, path=f.path, length=f.length, salt=salt_of(f.name))
        for f in features
    )


def _dense_sources(features: list[FeatureConfig]) -> tuple[DenseSource, ...]:
    return tuple(DenseSource(name=f.name, path=f.path) for f in features)
