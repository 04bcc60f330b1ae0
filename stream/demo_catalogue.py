"""A made-up catalogue for a demonstration: titles and drawn pictures in known groups, and clicks.

Everything follows from the seed; it imitates no real catalogue.
"""

from __future__ import annotations

import io
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

from stream.codec_write import click_body, encode_event, encode_key, impression_body, item_body
from stream.record_log import RecordLogWriter

T0_MS: Final = 1_700_000_000_000
"""When the first impression is shown: half of the items are older, the others come one by one."""

_KINDS: Final = (
    "bread", "tent", "piano", "kitten", "rocket", "violin", "garden", "bicycle", "pasta", "castle",
    "sailboat", "camera", "snowboard", "puppy", "teapot", "guitar", "tractor", "sweater", "chess",
    "telescope",
)  # fmt: skip
_WORDS: Final = (
    "oven dough crust flour loaf", "camp peg rain canvas trail",
    "keys chord pedal grand concert", "paw whisker purr basket yarn",
    "launch orbit engine crew moon", "bow string bridge rosin solo",
    "seed soil bloom prune hedge", "wheel chain saddle brake ride",
    "sauce basil noodle simmer plate", "tower moat knight stone gate",
    "mast rope anchor harbour wind", "lens shutter focus film flash",
    "slope powder lift binding jump", "leash fetch bark kennel tail",
    "leaf kettle cup brew steam", "fret amp riff strum pick",
    "plough field harvest barn hay", "wool knit needle sleeve pattern",
    "pawn rook endgame check opening", "star mirror tripod comet night",
)  # fmt: skip
_OPENINGS: Final = ("my first", "how to choose a", "ten minutes with a", "the best",
                    "why I love this", "a day with the", "what nobody tells you about a",
                    "review of a")  # fmt: skip
_SPAN_MS: Final = 90_000
_UNSEEN_MS: Final = 4_000
"""A new item is not shown before: so long its vector may take."""
_LIKED_GROUPS: Final = 3
_CLICKED_LIKED: Final = 0.6
_CLICKED_OTHER: Final = 0.06
_PARTITIONS: Final = 4
"""As many as the topics have by default."""
_Row = tuple[int, int, str, bytes, bytes]
"""Event time, rank within it, topic, key, value."""


def _best_auc() -> float:
    share = _LIKED_GROUPS / len(_KINDS)
    clicked = share * _CLICKED_LIKED, (1 - share) * _CLICKED_OTHER
    not_clicked = share * (1 - _CLICKED_LIKED), (1 - share) * (1 - _CLICKED_OTHER)
    found, false = clicked[0] / sum(clicked), not_clicked[0] / sum(not_clicked)
    return (1 + found - false) / 2


BEST_AUC: Final = _best_auc()
"""Expected AUC of who knows which groups each user likes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogueConfig:
    """Sizes of the catalogue; `pictures`: whether items have one, which needs Pillow."""

    items: int = 400
    impressions: int = 6_000
    users: int = 40
    pictures: bool = False
    seed: int = 0


def group_of(item_id: int) -> int:
    """The group of an item: what the ranker and the encoders are not told."""
    return item_id % len(_KINDS)


class CatalogueLogs(NamedTuple):
    """The whole log, and its parts before and from `T0_MS` on, for what comes live."""

    whole: Path
    stock: Path
    arrivals: Path


def write_catalogue_logs(folder: Path, config: CatalogueConfig) -> CatalogueLogs:
    """Record logs of items, of impressions of those that are there by then, and of clicks."""
    rows = _rows(config)
    logs = CatalogueLogs(*(folder / f"{name}.parquet" for name in ("log", "stock", "arrivals")))
    _write(logs.whole, rows)
    _write(logs.stock, [row for row in rows if row[0] < T0_MS])
    _write(logs.arrivals, [row for row in rows if row[0] >= T0_MS])
    return logs


def _rows(config: CatalogueConfig) -> list[_Row]:
    rng = random.Random(config.seed)  # noqa: S311  # no secret
    rows: list[_Row] = []
    born = {}
    for item in range(config.items):
        later = item >= config.items // 2
        born[item] = T0_MS + (rng.randrange(_SPAN_MS * 3 // 4) if later else -3_600_000 + item)
        body = item_body(item_id=item, ts_ms=born[item], **_content(item, config, rng))
        rows.append((born[item], 0, "items", encode_key(item), encode_event("item", body)))
    likes = [rng.sample(range(len(_KINDS)), _LIKED_GROUPS) for _ in range(config.users)]
    for request in range(config.impressions):
        now = T0_MS + request * _SPAN_MS // config.impressions
        user = rng.randrange(config.users)
        item = rng.choice([i for i, at in born.items() if at < now - _UNSEEN_MS])
        shown = impression_body(
            request_id=request, user_id=user, ts_ms=now, items=[{"item_id": item}]
        )
        rows.append((now, 1, "impressions", encode_key(user), encode_event("impression", shown)))
        liked = group_of(item) in likes[user]
        if rng.random() < (_CLICKED_LIKED if liked else _CLICKED_OTHER):
            clicked = click_body(item_id=item, user_id=user, ts_ms=now + 500, kind="click",
                                 request_id=request)  # fmt: skip
            rows.append((now + 500, 2, "clicks", encode_key(user), encode_event("click", clicked)))
    return sorted(rows, key=lambda row: row[:2])


def _content(item: int, config: CatalogueConfig, rng: random.Random) -> dict[str, Any]:
    group = group_of(item)
    words = rng.sample(_WORDS[group].split(), 3)
    title = f"{rng.choice(_OPENINGS)} {_KINDS[group]}: {words[0]}, {words[1]} and {words[2]}"
    return {"title": title} | ({"image": _picture(group, rng)} if config.pictures else {})


def _picture(group: int, rng: random.Random) -> bytes:
    """A PNG: a few shapes, whose form and colour are the group's and whose places are not."""
    from PIL import Image, ImageDraw

    colour = f"hsl({group * 360 // len(_KINDS)}, 80%, {rng.randrange(40, 60)}%)"
    picture = Image.new("RGB", (96, 96), f"hsl({(group * 137) % 360}, 25%, 85%)")
    draw = ImageDraw.Draw(picture)
    for _ in range(rng.randrange(3, 6)):
        x, y, size = rng.randrange(70), rng.randrange(70), rng.randrange(18, 30)
        box = (x, y, x + size, y + size)
        if group % 4 == 0:
            draw.ellipse(box, fill=colour)
        elif group % 4 == 1:
            draw.rectangle(box, fill=colour)
        elif group % 4 == 2:
            draw.polygon([(x, y + size), (x + size, y + size), (x + size // 2, y)], fill=colour)
        else:
            draw.arc(box, 20, 320, fill=colour, width=6)
    data = io.BytesIO()
    picture.save(data, "PNG")
    return data.getvalue()


def _write(path: Path, rows: list[_Row]) -> None:
    offsets: dict[tuple[str, int], int] = {}
    partitions = dict.fromkeys(("items", "impressions", "clicks"), _PARTITIONS)
    with RecordLogWriter(path, partitions, ordered=True) as log:
        for ts_ms, _, topic, key, value in rows:
            partition = int(key) % _PARTITIONS
            offset = offsets.get((topic, partition), 0)
            offsets[topic, partition] = offset + 1
            log.write(topic, partition, offset, ts_ms, key, value)
