"""Prepared portraits that no pairs were made of, as records: of them is learnt beside pairs, or how to restore them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from stylepairs.datagen.features import is_own_file, load_feature
from stylepairs.datagen.pairs.record import PairRecord, split_of
from stylepairs.datagen.portraits.folders import PortraitFile, load_portraits, photo_digests, source_digest
from stylepairs.datagen.shell.errors import InputError
from stylepairs.i2i.models.restoration import RESTORATION
from stylepairs.i2i.train.data import Sides, Unpaired


def portrait_records(portraits: Path) -> list[PairRecord]:
    """The portraits of a prepared folder as records of pairs that are yet to be made, split by their photos; raises
    InputError where there are none."""
    photos = photo_digests(portraits)
    records = []
    for number, file in enumerate(load_portraits(portraits)):
        digest = file.digest()
        source = source_digest(file.name, digest, photos)
        records.append(PairRecord(
            id=f"{number:06d}", feature=RESTORATION, params={}, degree=1.0, accepted=True, reasons=[], figures={},
            portrait=file.name, portrait_digest=digest, generator_digest="", seed=0, code_version="",
            split=split_of(source), source_digest=source,
        ))  # fmt: skip
    return records


def files_by_name(portraits: Path) -> dict[str, PortraitFile]:
    """The portraits of a prepared folder, as records name them."""
    return {file.name: file for file in load_portraits(portraits)}


def portrait_sides(portraits: Path) -> Sides:
    """What a run learns from and is measured on, of a prepared folder; raises InputError."""
    records = portrait_records(portraits)
    train, held_out = ([record for record in records if record.split == side] for side in ("train", "val"))
    if not train:
        raise InputError(f"{portraits}: none of its {len(records)} portraits is for training; prepare more photos")
    return Sides(train, held_out)


def unpaired_portraits(folders: Sequence[Path], feature: str) -> Unpaired | None:
    """The portraits for training of prepared folders, of which is learnt where a feature edits; None without folders.

    Raises InputError, also for a feature that is a user's file: training runs none.
    """
    if not folders:
        return None
    if is_own_file(feature):
        raise InputError(f"--portraits: {feature} is a file of your own, which training does not run; give pairs alone")
    sides = [portrait_sides(folder) for folder in folders]
    records = [record for side in sides for record in side.records]
    named = map(files_by_name, folders)
    files = [known[record.portrait] for known, side in zip(named, sides, strict=True) for record in side.records]
    return Unpaired(records, files, load_feature(feature))
