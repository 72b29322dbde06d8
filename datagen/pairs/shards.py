"""Pairs on disk: WebDataset tars `pairs-00000.tar` with a Parquet manifest beside them, written whole or not at all.

One pair is the files `KEY.before.png KEY.after.png KEY.mask.png KEY.edit_mask.png KEY.sketch.png
KEY.generated_before.png KEY.generated_after.png KEY.latents.npz KEY.noise.npz KEY.json`, KEY being the pair's id
(`000123`). Headers carry no time and no owner, so equal pairs make equal bytes. The manifest only repeats what the tars
hold; it can be rebuilt.
"""

from __future__ import annotations

import io
import re
import tarfile
import zipfile
from collections.abc import Collection, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
from pydantic import BaseModel, ValidationError

from stylepairs.datagen.images.files import png_bytes
from stylepairs.datagen.pairs import manifest
from stylepairs.datagen.pairs.index import PairIndex, open_manifest, two_hold
from stylepairs.datagen.pairs.record import GREY, IMAGES, PARTS, Pair, PairRecord, decode_record, encode_record
from stylepairs.datagen.shell.decode import Damaged, decode_npz, decode_png, read_at, read_bytes, tar_members
from stylepairs.datagen.shell.durable import make_folder, replace_file, write_bytes
from stylepairs.datagen.shell.errors import InputError, one_line
from stylepairs.datagen.shell.regular import is_regular, open_regular
from stylepairs.datagen.shell.storage.staged import Staged, drop, fetched, place, read_ranges

MANIFEST = "manifest.parquet"
BUILD_FILE = "build.json"  # what a build notes of itself
MERGE_FILE = "merge.json"  # what a merge does
MAX_BUILD_BYTES = 64 << 20  # with all choices of a recipe, a line each
# Beside shards at a URL: the records of each, so that nobody has to fetch it for them.
NOTES = ".records"

_SHARD_NAME = re.compile(r"pairs-[0-9]{5,9}\.tar")
_MEMBER_NAME = re.compile(r"([0-9]{6,12})\.([a-z_]{1,32}\.(?:png|npz)|json)")
# What one member may claim, so that a damaged or hostile shard cannot fill the memory (a 4096 px PNG is 50 MB).
_MAX_MEMBER_BYTES = 256 << 20  # any value will do
_MAX_JSON_BYTES = 1 << 20  # any value will do
_MAX_NOTE_BYTES = 1 << 30  # any value will do


def shard_name(index: int) -> str:
    """The file name of a shard by its number."""
    return f"pairs-{index:05d}.tar"


def pair_id(index: int) -> str:
    """The id of a pair by its number."""
    return f"{index:06d}"


def write_shard(path: Path, pairs: Iterable[Pair]) -> None:
    """Write the pairs as one tar, under a temporary name first; InputError (one line) when the disk is full.

    At a URL its records are noted beside it, and nothing of it is kept here.
    """
    _write_members(path, ((f"{pair.record.id}.{name}", data) for pair in pairs for name, data in _encode_pair(pair)))


def copy_pairs(path: Path, copies: Iterable[tuple[Path, PairRecord, str]]) -> None:
    """Write pairs of other folders as one tar, as `write_shard` does: (folder, a record that `read_index` gave, its id
    here). Pixels and latents are copied as they lie there. Raises InputError."""
    _write_members(path, (member for copy in copies for member in _copied(*copy)))


def _copied(directory: Path, record: PairRecord, id: str) -> Iterator[tuple[str, bytes]]:
    source = directory / record.shard
    try:
        for part, data in _parts_at(source, record, PARTS):
            yield f"{id}.{part}.{'png' if part in IMAGES else 'npz'}", data
    except (Damaged, OSError) as error:
        raise InputError(f"{source}: pair {record.id} cannot be read ({one_line(error)})") from error
    yield f"{id}.json", encode_record(record)


def _write_members(path: Path, members: Iterable[tuple[str, bytes]]) -> None:
    def write(file: IO[bytes]) -> None:
        with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for name, data in members:
                tar.addfile(_header(name, len(data)), io.BytesIO(data))

    replace_file(path, write)
    if isinstance(path, Staged):
        note = _Note(bytes=Path(path).stat().st_size, records=_scanned(path))
        make_folder(_note_path(path).parent)
        write_bytes(_note_path(path), note.model_dump_json().encode())
        drop(_note_path(path))
        drop(path)


def write_manifest(directory: Path) -> int:
    """Write `manifest.parquet` from the tars in `directory`; returns the number of pairs."""
    sizes = _shard_sizes(directory)
    return manifest.write_manifest(directory / MANIFEST, map(scan_shard, ahead(shard_paths(directory))), sizes)


def update_manifest(directory: Path) -> None:
    """Write the manifest unless it already describes the shards that are there."""
    if shard_paths(directory) and not _manifest_is_current(directory):
        write_manifest(directory)


def shard_paths(directory: Path) -> list[Path]:
    """The finished shards of a folder, in order; InputError when it is not a folder of pairs."""
    if not isinstance(directory, Staged) and not directory.is_dir():
        raise InputError(f"{directory}: no such folder of pairs; make one with `datagen build`")
    found = (path for path in directory.iterdir() if _SHARD_NAME.fullmatch(path.name) and path.is_file())
    return sorted(found, key=lambda path: _by_number(path.name))


def refuse_pairs(out: Path) -> None:
    """Raises InputError where a folder that is to be written into holds pairs, finished or not."""
    if (out / BUILD_FILE).exists() or (out.is_dir() and shard_paths(out)):
        raise InputError(f"{out}: holds pairs; choose another --out")


def read_index(directory: Path | str, accepted_only: bool = True, split: str | None = None) -> list[PairRecord]:
    """The records of all pairs, without pixels. `split`: "train", "val" or None for both.

    Taken from the manifest when it describes the tars that are there, else from the tars. Raises InputError.
    """
    return list(each_record(directory, accepted_only, split))


def each_record(directory: Path | str, accepted_only: bool = True, split: str | None = None) -> Iterator[PairRecord]:
    """As `read_index`, one record in memory at a time: those of a million pairs take four gigabytes."""
    seen: dict[str, str] = {}
    for record in _records(place(directory), accepted_only, split):
        other = seen.setdefault(record.id, record.shard)
        if other != record.shard:
            raise InputError(two_hold(directory, other, record.shard, record.id))
        yield record


def open_index(directory: Path | str) -> PairIndex | list[PairRecord]:
    """As `read_index` of all pairs, accepted or not, but a manifest's records stay columns, with few figures."""
    directory = place(directory)
    if shard_paths(directory) and _manifest_is_current(directory):
        return open_manifest(directory / MANIFEST, sum(_shard_sizes(directory).values()))
    return read_index(directory, accepted_only=False)


def read_pairs(
    directory: Path | str, accepted_only: bool = True, split: str | None = None, parts: Collection[str] = PARTS
) -> Iterator[Pair]:
    """The pairs in order, one in memory at a time; `parts` names what to decode (see PARTS). Raises InputError."""
    for record in _records(place(directory), accepted_only, split):
        yield load_pair(directory, record, parts)


def read_pair(directory: Path | str, id: str, parts: Collection[str] = PARTS) -> Pair:
    """One pair, accepted or not, by its id, read at its place in the tar. Raises InputError."""
    if not re.fullmatch(r"[0-9]{6,12}", id):
        raise InputError(f"{id!r}: not a pair id; ids are numbers of six digits or more, as in manifest.parquet")
    for record in _records(place(directory), accepted_only=False, split=None):
        if record.id == id:
            return load_pair(directory, record, parts)
    raise InputError(f"{directory}: has no pair {id}")


def load_pair(directory: Path | str, record: PairRecord, parts: Collection[str] = PARTS) -> Pair:
    """The pixels and latents of a record that `read_index` gave. Raises InputError."""
    path = place(directory) / record.shard
    loaded: dict[str, Any] = {}
    try:
        for part, data in _parts_at(path, record, parts):
            loaded |= _decode_part(part, data)
    except (Damaged, OSError) as error:
        raise InputError(
            f"{path}: pair {record.id} cannot be read ({one_line(error)}); delete the shard and build again"
        ) from error
    return Pair(record, **loaded)


def scan_shard(path: Path) -> list[PairRecord]:
    """The records of one tar, read from its JSON members; InputError when it is truncated or holds anything else.

    Of a tar at a URL what was noted of it suffices.
    """
    if not isinstance(path, Staged):
        return _scanned(path)
    try:
        noted = _noted(path)
        return _scanned(path) if noted is None else noted
    finally:
        drop(path)
        drop(_note_path(path))


def ahead(paths: Iterable[Path]) -> Iterator[Path]:
    """Shards in order, while what `scan_shard` reads of the next ones comes from their URL."""
    paths = list(paths)
    notes = fetched(_note_path(path) if isinstance(path, Staged) else path for path in paths)
    return (path for path, _ in zip(paths, notes, strict=True))


class _Note(BaseModel):
    """The records of a shard of so many bytes."""

    bytes: int
    records: list[PairRecord]


def _note_path(path: Path) -> Path:
    return path.parent / NOTES / f"{path.name}.json"


def _noted(path: Path) -> list[PairRecord] | None:
    """The records noted of a shard at a URL; None where they are not of what is there."""
    note = _note_path(path)
    try:
        known = _Note.model_validate_json(read_bytes(note, _MAX_NOTE_BYTES)) if is_regular(note) else None
    except (Damaged, ValidationError):
        return None
    if known is None or known.bytes != path.stat().st_size or any(each.shard != path.name for each in known.records):
        return None
    return known.records


def _scanned(path: Path) -> list[PairRecord]:
    try:
        with open_regular(path) as file:
            members = _members(file)
            texts = {key: read_at(file, *parts.pop("json"), _MAX_JSON_BYTES) for key, parts in members.items()}
        return [decode_record(texts[key], key, path.name, members[key]) for key in sorted(members, key=_by_number)]
    except (Damaged, OSError, ValidationError) as error:
        raise InputError(f"{path}: damaged shard ({one_line(error)}); delete it and build again") from error


def _by_number(name: str) -> tuple[int, str]:
    """Sorts names whose numbers are filled up with zeros, and longer from some number on."""
    return len(name), name


def _parts_at(path: Path, record: PairRecord, parts: Collection[str]) -> Iterator[tuple[str, bytes]]:
    """Those of the parts that a pair in a tar has, as they lie there. Raises Damaged, OSError."""
    found = [part for part in parts if part in record.parts]
    return zip(found, _members_at(path, [record.parts[part] for part in found]), strict=True)


def _members_at(path: Path, places: Sequence[tuple[int, int]]) -> Iterator[bytes]:
    """The bytes of members; of a tar at a URL nothing else is fetched. Raises Damaged, OSError."""
    if isinstance(path, Staged):
        if any(size > _MAX_MEMBER_BYTES for _, size in places):
            raise Damaged("oversized member")
        yield from read_ranges(path, places)
        return
    with open_regular(path) as file:
        for place in places:
            yield read_at(file, *place, _MAX_MEMBER_BYTES)


def _members(file: IO[bytes]) -> dict[str, dict[str, tuple[int, int]]]:
    """Where the parts of the pairs in a tar lie: id -> part, or "json" -> (offset, bytes). Raises Damaged."""
    found: dict[str, dict[str, tuple[int, int]]] = {}
    end = 0
    for member in tar_members(file):
        match = _MEMBER_NAME.fullmatch(member.name)
        if match is None or not member.isreg():
            raise Damaged(f"unexpected member {member.name[:80]!r}")
        parts, part = found.setdefault(match[1], {}), match[2].partition(".")[0]
        if part in parts:
            raise Damaged(f"two members {member.name!r}")
        parts[part] = (member.offset_data, member.size)
        end = member.offset_data + member.size
    # The two zero blocks that end a tar are there only when it was written to its end.
    if file.seek(0, io.SEEK_END) < end + 2 * tarfile.BLOCKSIZE:
        raise Damaged("truncated")
    # tarfile takes a header that it cannot read for the end: the pairs after it would be lost unseen.
    file.seek(end + -end % tarfile.BLOCKSIZE)
    if any(block.strip(b"\0") for block in iter(partial(file.read, tarfile.RECORDSIZE), b"")):
        raise Damaged("a header cannot be read")
    for key, parts in found.items():
        if "json" not in parts:
            raise Damaged(f"pair {key} has no json")
    return found


def _records(directory: Path, accepted_only: bool, split: str | None) -> Iterator[PairRecord]:
    if not shard_paths(directory):
        raise InputError(f"{directory}: no finished shard of pairs; run `datagen build` (again) to make them")
    if _manifest_is_current(directory):
        found = manifest.read_manifest(directory / MANIFEST)
    else:
        found = (record for path in ahead(shard_paths(directory)) for record in scan_shard(path))
    for record in found:
        if (record.accepted or not accepted_only) and split in (None, record.split):
            yield record


def _manifest_is_current(directory: Path) -> bool:
    """Whether there is a manifest, and it describes the tars that are there: same sizes, none of them newer than it."""
    path = directory / MANIFEST
    if not path.is_file() or not manifest.describes(path, _shard_sizes(directory)):
        return False
    written = path.stat().st_mtime_ns
    return all(shard.stat().st_mtime_ns <= written for shard in shard_paths(directory))


def _shard_sizes(directory: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in shard_paths(directory)}


def _encode_pair(pair: Pair) -> Iterator[tuple[str, bytes]]:
    for name in IMAGES:
        image = getattr(pair, name)
        if image is not None:
            yield f"{name}.png", png_bytes(image)
    if pair.w_before is not None and pair.w_after is not None:
        yield "latents.npz", encode_npz(w0=pair.w_before, w1=pair.w_after)
    if pair.noise is not None:
        yield "noise.npz", encode_npz(**{f"n{i:02d}": noise for i, noise in enumerate(pair.noise)})
    yield "json", encode_record(pair.record)


def encode_npz(**arrays: np.ndarray) -> bytes:
    """An uncompressed .npz of float16 arrays; the same bytes for the same arrays."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            data = io.BytesIO()
            np.lib.format.write_array(data, np.ascontiguousarray(array, np.float16), allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), data.getvalue())  # ZipInfo's own date is fixed: 1980
    return buffer.getvalue()


def _decode_part(part: str, data: bytes) -> dict[str, Any]:
    """Raises Damaged."""
    if part in IMAGES:
        return {part: decode_png(data, "L" if part in GREY else "RGB")}
    arrays = decode_npz(data, _MAX_MEMBER_BYTES)
    if part == "noise":
        return {"noise": [arrays[name] for name in sorted(arrays)]}
    if not arrays.keys() >= {"w0", "w1"}:
        raise Damaged("has not both latents")
    return {"w_before": arrays["w0"], "w_after": arrays["w1"]}


def _header(name: str, size: int) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.mtime = size, 0o644, 0
    return info
