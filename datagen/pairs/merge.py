"""Pairs of several folders in one, to train on: builds of other photos or seeds, augmented pairs, imported ones."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stylepairs.datagen.pairs.record import PairRecord, as_measured, encode_record
from stylepairs.datagen.pairs.shards import (
    MERGE_FILE,
    copy_pairs,
    pair_id,
    read_index,
    refuse_pairs,
    shard_name,
    write_manifest,
)
from stylepairs.datagen.portraits.folders import refuse_portraits
from stylepairs.datagen.shell.decode import Damaged, read_json
from stylepairs.datagen.shell.durable import write_bytes
from stylepairs.datagen.shell.errors import InputError
from stylepairs.datagen.shell.lock import folder_lock

_MAX_BYTES = 1 << 20


@dataclass(frozen=True)
class MergePlan:
    """pairs: with the folders that hold them, in the order of `out`; twice: how many were left out, as an earlier
    folder has them; digest: of all that `out` will hold."""

    pairs: tuple[tuple[Path, PairRecord], ...]
    twice: int
    digest: str
    out: Path
    shard_size: int


def plan_merge(folders: Sequence[Path], out: Path, shard_size: int = 32) -> MergePlan:
    """What to put together: all pairs of `folders`, accepted and rejected, each once. Raises InputError: fewer than two
    folders, pairs of different features."""
    if len({folder.resolve() for folder in folders}) < max(2, len(folders)):
        raise InputError("merge: give two folders of pairs or more, each once")
    refuse_portraits(out)
    found: list[tuple[Path, PairRecord]] = []
    known, twice, digest = set[bytes](), 0, hashlib.sha256(str(shard_size).encode())
    for folder in folders:
        own = set[bytes]()
        for record in map(as_measured, read_index(folder, accepted_only=False)):
            feature = found[0][1].feature if found else record.feature
            if record.feature != feature:
                raise InputError(
                    f"{folder}: holds pairs of {record.feature}, {folders[0]} of {feature}; keep them apart"
                )
            text = encode_record(record)  # all but where the pair lies
            own.add(text)
            if text in known:
                twice += 1
            else:
                found.append((folder, record))
                digest.update(text)
        known |= own
    return MergePlan(tuple(found), twice, digest.hexdigest(), out, shard_size)


def run_merge(plan: MergePlan, report: Callable[[int], None] = lambda done: None) -> None:
    """Copy the pairs of a plan, numbered anew; one that was stopped goes on. report(done): pairs. Raises InputError
    where `out` holds something else."""
    note = {"merged": plan.digest, "pairs": len(plan.pairs)}
    with folder_lock(plan.out, "datagen merge"):
        if not _is_of(plan.out, note):
            refuse_pairs(plan.out)
            write_bytes(plan.out / MERGE_FILE, json.dumps(note, sort_keys=True).encode())
        for begin in range(0, len(plan.pairs), plan.shard_size):
            path = plan.out / shard_name(begin // plan.shard_size)
            copied = plan.pairs[begin : begin + plan.shard_size]
            if not path.exists():
                copy_pairs(path, ((*pair, pair_id(index)) for index, pair in enumerate(copied, begin)))
            report(begin + len(copied))
        write_manifest(plan.out)


def _is_of(out: Path, note: dict[str, Any]) -> bool:
    """Whether `out` was begun by this very merge. Raises InputError where it was by another."""
    path = out / MERGE_FILE
    if not path.exists():
        return False
    try:
        known = read_json(path, _MAX_BYTES)
    except Damaged:
        known = None
    if known != note:
        raise InputError(f"{path}: is of a merge of other pairs; choose another --out")
    return True
