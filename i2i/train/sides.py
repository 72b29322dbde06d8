"""What a run learns from and is measured on: the records of pairs, or of prepared portraits that no pairs were made of,
split by their photos."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from stylepairs.datagen.features import SEPARATOR, is_own_file, load_feature
from stylepairs.datagen.features.feature import Feature
from stylepairs.datagen.pairs.index import PairIndex, codes, distinct, run_backwards, with_params
from stylepairs.datagen.pairs.record import PairRecord, split_of
from stylepairs.datagen.pairs.shards import open_index
from stylepairs.datagen.portraits.folders import PortraitFile, load_portraits, photo_digests, source_digest
from stylepairs.datagen.shell.errors import InputError
from stylepairs.i2i.models.conditions import Kinds, Style, style_of
from stylepairs.i2i.models.restoration import RESTORATION


class Sides(NamedTuple):
    """What a run learns from and is measured on: records of pairs, and portraits that the feature refused; held_out,
    unseen: those of the split's other side."""

    records: Sequence[PairRecord]
    held_out: Sequence[PairRecord]
    refused: Sequence[PairRecord] = ()
    unseen: Sequence[PairRecord] = ()


@dataclass(frozen=True)
class Unpaired:
    """Prepared portraits without pairs: of them is learnt where a feature would edit, and whether."""

    records: Sequence[PairRecord]
    files: Sequence[PortraitFile]
    feature: Feature


class Siblings:
    """Of each record the others of its portrait; of a pair that runs backwards none, whose after half is the portrait
    itself."""

    def __init__(self, records: Sequence[PairRecord]) -> None:
        self._codes = np.where(run_backwards(records), -1, codes(records, "portrait_digest"))
        self._order = np.argsort(self._codes, kind="stable")
        self._sorted = self._codes[self._order]

    def of(self, index: int) -> np.ndarray:
        """Their places among the records, int [N]."""
        code = self._codes[index]
        if code < 0:
            return np.arange(0)
        first, end = np.searchsorted(self._sorted, [code, code + 1])
        family = self._order[first:end]
        others: np.ndarray = family[family != index]
        return others


def read_records(pairs: Path, split: str) -> Sequence[PairRecord]:
    """The accepted pairs of one side of the split ("train" or "val"), in order, with few figures; InputError when train
    is empty."""
    index = open_index(pairs)
    if isinstance(index, PairIndex):
        records: Sequence[PairRecord] = index.where(accepted=True, split=split)
    else:
        records = [record for record in index if record.accepted and record.split == split]
    if not records and split == "train":
        held_out = len(read_records(pairs, "val"))
        if held_out:
            raise InputError(
                f"{pairs}: all {held_out} accepted pairs are of photos that are held out (a tenth, by their bytes); "
                "build pairs of more photos"
            )
        raise InputError(
            f"{pairs}: no accepted pair to train on; `datagen inspect {pairs}` shows why pairs were rejected"
        )
    return records


def read_refused(pairs: Path, split: str) -> Sequence[PairRecord]:
    """The portraits of one side of the split to which the feature did not apply: nothing was made of them."""
    index = open_index(pairs)
    if isinstance(index, PairIndex):
        return index.where(accepted=False, split=split, having="before", lacking="after")
    return [
        record
        for record in index
        if not record.accepted and record.split == split and "before" in record.parts and "after" not in record.parts
    ]


def pair_sides(pairs: Path) -> Sides:
    """Those of a folder of pairs. Raises InputError where there is nothing to train on."""
    records, held_out = read_records(pairs, "train"), read_records(pairs, "val")
    return Sides(records, held_out, read_refused(pairs, "train"), read_refused(pairs, "val"))


def told_sides(
    sides: Sides,
    pairs: Path,
    feature: str,
    style: Style,
    kinds: Kinds,
    held_out_count: int,
    say: Callable[[str], None],
) -> Sides:
    """The sides without pairs whose parameters `style_of` cannot tell, at most so many held out. Says how many training
    pairs are left out; raises InputError where all are."""
    problems: list[str] = []

    def is_told(params: Mapping[str, Any]) -> bool:
        try:
            style_of(style, params, kinds, feature)
        except InputError as error:
            problems.append(str(error))
            return False
        return True

    held_out = with_params(sides.held_out, is_told)
    problems.clear()
    records, count = with_params(sides.records, is_told), len(sides.records)
    if not records:
        raise InputError(
            f"{pairs}: none of its {count} training pairs can be learnt from ({problems[0]}); change style or teacher"
        )
    if problems:
        say(f"{pairs}: {count - len(records)} of {count} training pairs are left out ({problems[0]})")
    held_out, unseen = (evenly_spaced(each, held_out_count) for each in (held_out, sides.unseen))
    return Sides(records, held_out, sides.refused, unseen)


def evenly_spaced(records: Sequence[PairRecord], count: int) -> list[PairRecord]:
    """At most so many of them; neighbours are of one photo."""
    places = np.linspace(0, len(records) - 1, min(count, len(records))).round().astype(int)
    return [records[place] for place in places]


def one_feature(records: Sequence[PairRecord], pairs: Path, wanted: str | None = None) -> str:
    """The feature that all records are of; InputError when they are of several, or not of the wanted one.

    Pairs of a combination ("bangs+hair_color") are of each of its features.
    """
    features = sorted(distinct(records, "feature"))
    if len(features) != 1:
        raise InputError(f"{pairs}: pairs of several features ({', '.join(features)}); train one model on each")
    if wanted is not None and wanted != features[0] and wanted not in features[0].split(SEPARATOR):
        raise InputError(
            f"{pairs}: pairs of {features[0]}, not of {wanted}; name pairs of {wanted}, or what belongs to these"
        )
    return str(features[0])


def data_digest(*sets: Sequence[PairRecord]) -> str:
    """Names sets of pairs: sha256 over ids, sources, parameters and places, in order."""
    digest = hashlib.sha256()
    for records in sets:
        for place in _places(records):
            digest.update(f"{' '.join(map(str, place))}\n".encode())
    return digest.hexdigest()


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

    Raises InputError, also for a feature that is a user's file.
    """
    if not folders:
        return None
    if is_own_file(feature):
        raise InputError(
            f"--portraits: {feature} is a file of your own, of which pairs alone are learnt; leave --portraits out"
        )
    sides = [portrait_sides(folder) for folder in folders]
    records = [record for side in sides for record in side.records]
    named = map(files_by_name, folders)
    files = [known[record.portrait] for known, side in zip(named, sides, strict=True) for record in side.records]
    return Unpaired(records, files, load_feature(feature))


def _places(records: Sequence[PairRecord]) -> Iterable[tuple[Any, ...]]:
    if isinstance(records, PairIndex):
        return records.places()
    return ((r.id, r.portrait_digest, r.generator_digest, r.params, r.seed, r.shard, r.parts) for r in records)
