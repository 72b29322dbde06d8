"""Pairs as plain files, for tools that read neither tars nor Parquet."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from stylepairs.datagen.images.files import write_png
from stylepairs.datagen.pairs.record import PairRecord
from stylepairs.datagen.pairs.shards import load_pair, read_index, refuse_pairs
from stylepairs.datagen.portraits.folders import refuse_portraits
from stylepairs.datagen.shell.durable import make_folder, write_bytes
from stylepairs.datagen.shell.errors import InputError
from stylepairs.datagen.shell.lock import folder_lock

EXPORTED = ("before", "after", "mask")
_INDEX = "index.jsonl"
_PICTURE = re.compile(r"[0-9]{6,12}\.png")


def export_pairs(pairs: Path, out: Path, everything: bool = False, split: str | None = None) -> int:
    """Write `out/before/ID.png`, `after/ID.png`, `mask/ID.png` and `index.jsonl`; returns the number of pairs.

    Accepted pairs only unless `everything`; split: "train", "val" or None for both. A rejected pair may have no after
    image; its row says which files it has. Raises InputError, also for an `out` with pictures of that name that no
    export wrote.
    """
    refuse_portraits(out)
    refuse_pairs(out)
    records = read_index(pairs, accepted_only=not everything, split=split)
    with folder_lock(out, "datagen export"):
        for name in EXPORTED:
            make_folder(out / name)
        _remove_earlier(out, {record.id for record in records})
        write_bytes(out / _INDEX, b"")  # until all is written: an earlier one would tell of other pictures
        lines = [json.dumps(_export(pairs, record, out), sort_keys=True) + "\n" for record in records]
        write_bytes(out / _INDEX, "".join(lines).encode())
    return len(records)


def _remove_earlier(out: Path, ids: set[str]) -> None:
    """Remove the pictures of an earlier export that this one has no pair for. InputError: they are somebody else's."""
    named = [path for name in EXPORTED for path in (out / name).iterdir() if _PICTURE.fullmatch(path.name)]
    if named and not (out / _INDEX).exists():
        raise InputError(f"{named[0]}: no export wrote it, as there is no {_INDEX}; choose another --out")
    for path in named:
        if path.stem not in ids:
            path.unlink()


def _export(pairs: Path, record: PairRecord, out: Path) -> dict[str, Any]:
    pair = load_pair(pairs, record, EXPORTED)
    files = {}
    for name in EXPORTED:
        image = getattr(pair, name)
        if image is not None:
            files[name] = f"{name}/{record.id}.png"
            write_png(out / files[name], image)
    kept = (
        "id", "feature", "params", "degree", "accepted", "reasons", "figures", "portrait", "portrait_digest", "split",
    )  # fmt: skip
    turned = {"backwards": True} if record.backwards else {}
    return {name: getattr(record, name) for name in kept} | turned | {"files": files}
