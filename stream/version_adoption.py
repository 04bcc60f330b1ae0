"""A model goes over to the encoder version that came in: the one before is dropped (shell).

Works on a snapshot whose worker is stopped, and leaves another snapshot beside it. Encodes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from infra import config as loader
from infra.errors import InputError
from infra.snapshot_format import SnapshotRef
from infra.state import Part
from learners.growth import adopted
from stream.checkpoint import NEXT_VECTORS, VECTORS, Checkpointer
from stream.composition import NEXT_ITEMS, embedder_of, next_items_of
from stream.config import Config


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionAdopted:
    """The snapshot `ref` was made of `parent`; versions of the vectors before and now."""

    ref: SnapshotRef
    parent: SnapshotRef
    before: str
    version: str


def adopt_version(
    folder: Path, scratch: Path, expected: tuple[str, str] | None = None
) -> VersionAdopted:
    """The newest snapshot below `folder` with the new version's vectors and weights alone.

    No score changes but for items that have no vector of the new version. `scratch` must be on
    `folder`'s file system and is left for the caller to remove. `expected`: the versions before and
    after. Raises InputError where no version
    comes in, where the one before still counts, or where the configuration has changed meanwhile.
    """
    checkpoints = Checkpointer(folder, scratch)
    found = checkpoints.find()
    if found.ref is None:
        raise InputError(f"{folder}: no valid snapshot; name the worker's snapshot folder")
    config = loader.build(Config, found.meta["config"])
    if not config.items.next:
        raise InputError(
            f"snapshot {found.ref}: no encoder version comes in; run the worker with items.next"
        )
    fresh = replace(config, items=next_items_of(config))
    parts, _ = checkpoints.store.load(found.ref, verified=True)
    new = _next_part(parts, embedder_of(fresh).version, str(found.ref), config.items.next)
    before, version = parts["items"].meta["encoder"], new.meta["encoder"]
    if expected is not None and expected != (before, version):
        raise InputError(
            f"snapshot {found.ref}: goes from '{before}' to '{version}', not from '{expected[0]}' "
            f"to '{expected[1]}'"
        )
    try:
        taken = adopted(parts)
    except ValueError as error:
        raise InputError(f"snapshot {found.ref}: {error}") from error
    del taken[NEXT_ITEMS]
    taken["items"] = replace(new, name="items")
    scratch.mkdir(parents=True, exist_ok=True)
    store = checkpoints.store
    linked = {}
    if NEXT_VECTORS in store.manifest(found.ref).linked:
        linked[VECTORS] = scratch / "vectors"
        store.copy_linked(found.ref, NEXT_VECTORS, linked[VECTORS], link_suffixes=(".sst", ".blob"))
    ref = store.write(
        store.claim_epoch(found.ref), found.meta["samples"], list(taken.values()),
        dict(found.meta) | {"config": loader.to_dict(fresh)}, linked_dirs=linked,
    )  # fmt: skip
    return VersionAdopted(ref=ref, parent=found.ref, before=before, version=version)


def _next_part(parts: Mapping[str, Part], version: str, ref: str, name: str) -> Part:
    """The part of the version that comes in, which must be the one that is configured."""
    part = parts.get(NEXT_ITEMS)
    if part is None or part.meta["encoder"] != version:
        held = "none" if part is None else f"'{part.meta['encoder']}'"
        raise InputError(
            f"snapshot {ref}: '{name}' makes vectors of encoder '{version}', but the snapshot has "
            f"{held} beside; let the worker learn with this very configuration first"
        )
    return part
