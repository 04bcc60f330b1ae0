"""`millrace score`: impressions from a file to probabilities. The work is in `stream/scoring`."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from infra.errors import InputError

if TYPE_CHECKING:
    from stream.scoring import Scores

_PARQUET = b"PAR1"
_READ_BYTES = 1 << 20


@click.command("score")
@click.argument("snapshot", type=click.Path(path_type=Path))
@click.argument("events", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path),
              help="Parquet if named *.parquet, else JSON lines [standard output].")  # fmt: skip
def command(*, snapshot: Path, events: Path, out: Path | None) -> None:
    """Score the impressions in EVENTS by the model and state of SNAPSHOT.

    SNAPSHOT is one snapshot's folder or a folder of snapshots, of which the newest valid one is
    taken. EVENTS is a record log, or a file of impression events as JSON lines or msgpack. Nothing
    is learned: every impression is scored by the state as of the snapshot.
    """
    # Here, because it brings the pipeline and with it torch: seconds.
    from stream.record_log import RecordLog
    from stream.scoring import Scorer

    is_log = _head(events).startswith(_PARQUET)
    log = RecordLog(events) if is_log else None
    with Scorer(snapshot) as scorer:
        for note in scorer.notes:
            click.echo(note, err=True)
        scores = scorer.score_log(log) if log is not None else scorer.score(read_events(events))
        ref, label = scorer.restored.ref, scorer.config.ranker.label
    if out is None:
        for row in scores.rows():
            click.echo(json.dumps(row))
    else:
        _write(scores, out)
    click.echo(
        f"snapshot {ref}: {len(scores):,} rows scored for '{label}', "
        f"{len(scores.rejected):,} events rejected",
        err=True,
    )
    for letter in scores.rejected[:5]:
        place = f"event {letter.offset}"
        click.echo(f"  {place}: {letter.reason}: {letter.detail}", err=True)


def read_events(path: Path) -> Iterator[dict[str, Any] | bytes]:
    """Events of a file of JSON lines (it starts with a brace) or of msgpack messages.

    What is no event at all comes as its bytes, which the decoder will reject. Raises InputError
    where the file cannot be read.
    """
    if _head(path).lstrip()[:1] in (b"{", b""):
        yield from _json_lines(path)
    else:
        yield from _messages(path)


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(64)
    except OSError as error:
        raise InputError(f"events '{path}': cannot be read ({error.strerror})") from error


def _json_lines(path: Path) -> Iterator[dict[str, Any] | bytes]:
    with path.open("rb") as file:
        for line in file:
            if not line.strip():
                continue
            try:
                event = json.loads(line)
            except (ValueError, RecursionError):
                yield line
                continue
            yield event if isinstance(event, dict) else line


def _messages(path: Path) -> Iterator[dict[str, Any] | bytes]:
    """Each message as a map: their order is all that tells where one ends."""
    import msgpack

    with path.open("rb") as file:
        unpacker = msgpack.Unpacker(file, read_size=_READ_BYTES, strict_map_key=False)
        while True:
            start = unpacker.tell()
            try:
                event = unpacker.unpack()
            except msgpack.OutOfData:
                if unpacker.tell() < path.stat().st_size:
                    raise InputError(
                        f"events '{path}': the message at byte {start} is cut short"
                    ) from None
                return
            except (ValueError, msgpack.UnpackException) as error:
                raise InputError(
                    f"events '{path}': no msgpack at byte {start} ({error}); expected a record "
                    "log, JSON lines or msgpack messages"
                ) from error
            yield event if isinstance(event, dict) else msgpack.packb(event)


def _write(scores: Scores, out: Path) -> None:
    """The scores as a file, which appears whole or not at all."""
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        try:
            if out.suffix == ".parquet":
                _write_parquet(scores, temporary)
            else:
                lines = "".join(json.dumps(row) + "\n" for row in scores.rows())
                temporary.write_text(lines)
            temporary.rename(out)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"--out '{out}': cannot be written ({error.strerror})") from error


def _write_parquet(scores: Scores, path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns: dict[str, Any] = {
        "request_id": scores.request_ids, "item_id": scores.item_ids, "user_id": scores.user_ids,
    }  # fmt: skip
    text = any(isinstance(one, str) for ids in columns.values() for one in ids)
    kind = pa.string() if text else pa.int64()
    arrays = {n: pa.array([str(i) for i in ids] if text else ids, kind)
              for n, ids in columns.items()}  # fmt: skip
    arrays |= {"ts_ms": pa.array(scores.ts_ms_n), "logit": pa.array(scores.logit_n),
               "probability": pa.array(scores.probability_n)}  # fmt: skip
    pq.write_table(pa.table(arrays), path)
