"""Pairs on disk: WebDataset tars `pairs-00000.tar` with a Parquet manifest beside them, written whole or not at all.

One pair is the files `KEY.before.png KEY.after.png KEY.mask.png KEY.sketch.png KEY.generated_before.png
KEY.generated_after.png KEY.latents.npz KEY.noise.npz KEY.json`, KEY being the pair's id (`000123`). Headers carry no
time and no owner, so equal pairs make equal bytes. The manifest only repeats what the tars hold; it can be rebuilt.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import re
import tarfile
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
from pydantic import BaseModel, ValidationError

from stylepairs.datagen.pairs import codec
from stylepairs.datagen.shell.decode import Damaged, decode_json, decode_npz, decode_png, read_at, tar_members
from stylepairs.datagen.shell.durable import replace_file
from stylepairs.datagen.shell.errors import InputError, one_line

IMAGES = ("before", "after", "mask", "sketch", "generated_before", "generated_after")
PARTS = (*IMAGES, "latents", "noise")
MANIFEST = "manifest.parquet"
VAL_PERCENT = 10
PARENT = ("id", "portrait_digest", "source_digest")

_SHARD_NAME = re.compile(r"pairs-\d{5,9}\.tar")
_PAIR_ID = re.compile(r"\d{6,12}")
_MEMBER_NAME = re.compile(r"(\d{6,12})\.([a-z_]{1,32}\.(?:png|npz)|json)")
# What one member may claim, so that a damaged or hostile shard cannot fill the memory (a 4096 px PNG is 50 MB).
_MAX_MEMBER_BYTES = 256 << 20
_MAX_JSON_BYTES = 1 << 20


@dataclass(frozen=True)
class PairRecord:
    """What is known of a pair besides its pixels. `figures` holds None where a figure was not finite."""

    id: str
    feature: str
    params: dict[str, Any]
    degree: float
    accepted: bool
    reasons: list[str]
    figures: dict[str, float | None]
    portrait: str
    portrait_digest: str
    generator_digest: str
    seed: int
    code_version: str
    split: str
    source_digest: str = ""  # of the photo that the portrait was cut from; "" where it is not known; of several, "a+b"
    # Of an augmented pair: id, portrait_digest and source_digest of those that it was made from.
    parents: list[dict[str, str]] = field(default_factory=list)
    shard: str = ""
    parts: dict[str, tuple[int, int]] = field(default_factory=dict)  # name -> (offset, bytes) in the shard


@dataclass(frozen=True)
class Pair:
    """A pair's pixels and latents; what was not asked for, or does not exist for a rejected pair, is None.

    before, after, sketch, generated_before, generated_after [H,W,3] uint8 RGB; mask [H,W] uint8, 255 where edited;
    w_before, w_after [L,C] float16; noise: list of [r,r] float16 maps, in the order of the generator's layers.
    """

    record: PairRecord
    before: np.ndarray | None = None
    after: np.ndarray | None = None
    mask: np.ndarray | None = None
    sketch: np.ndarray | None = None
    generated_before: np.ndarray | None = None
    generated_after: np.ndarray | None = None
    w_before: np.ndarray | None = None
    w_after: np.ndarray | None = None
    noise: list[np.ndarray] | None = None


def shard_name(index: int) -> str:
    return f"pairs-{index:05d}.tar"


def pair_id(index: int) -> str:
    return f"{index:06d}"


def split_of(source_digest: str) -> str:
    """ "train" or "val" (about 10 %), by source photo alone: all that is made from a photo stays on one side."""
    bucket = int.from_bytes(hashlib.sha256(f"split:{source_digest}".encode()).digest()[:8], "big") % 100
    return "val" if bucket < VAL_PERCENT else "train"


def write_shard(path: Path, pairs: Iterable[Pair]) -> None:
    """Write the pairs as one tar, under a temporary name first; InputError (one line) when the disk is full."""

    def write(file: IO[bytes]) -> None:
        with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for pair in pairs:
                for name, data in _encode_pair(pair):
                    tar.addfile(_header(f"{pair.record.id}.{name}", len(data)), io.BytesIO(data))

    replace_file(path, write)


def write_manifest(directory: Path) -> int:
    """Write `manifest.parquet` from the tars in `directory`; returns the number of pairs."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    records = [record for path in shard_paths(directory) for record in scan_shard(path)]
    figure_names = sorted({name for record in records for name in record.figures})
    parts_type = pa.list_(pa.struct([("name", pa.string()), ("offset", pa.int64()), ("bytes", pa.int64())]))
    columns: dict[str, Any] = {
        name: pa.array([getattr(record, name) for record in records], kind) for name, kind in _columns().items()
    }
    columns["params"] = pa.array([json.dumps(record.params, sort_keys=True) for record in records], pa.string())
    for name in figure_names:
        columns[f"figure_{name}"] = pa.array([record.figures.get(name) for record in records], pa.float64())
    parts = [[{"name": n, "offset": o, "bytes": b} for n, (o, b) in record.parts.items()] for record in records]
    columns["parts"] = pa.array(parts, parts_type)
    table = pa.table(columns).replace_schema_metadata({"shards": json.dumps(_shard_sizes(directory))})
    replace_file(directory / MANIFEST, lambda file: pq.write_table(table, file))
    return len(records)


def update_manifest(directory: Path) -> None:
    """Write the manifest unless it already describes the shards that are there."""
    if shard_paths(directory) and not _manifest_is_current(directory):
        write_manifest(directory)


def shard_paths(directory: Path) -> list[Path]:
    """The finished shards of a folder, in order; InputError when it is not a folder of pairs."""
    if not directory.is_dir():
        raise InputError(f"{directory}: no such folder of pairs; make one with `datagen build`")
    return sorted(path for path in directory.iterdir() if _SHARD_NAME.fullmatch(path.name) and path.is_file())


def read_index(directory: Path | str, accepted_only: bool = True, split: str | None = None) -> list[PairRecord]:
    """The records of all pairs, without pixels. `split`: "train", "val" or None for both.

    Taken from the manifest when it describes the tars that are there, else from the tars. Raises InputError.
    """
    return list(_records(Path(directory), accepted_only, split))


def read_pairs(
    directory: Path | str, accepted_only: bool = True, split: str | None = None, parts: Collection[str] = PARTS
) -> Iterator[Pair]:
    """The pairs in order, one in memory at a time; `parts` names what to decode (see PARTS). Raises InputError."""
    for record in _records(Path(directory), accepted_only, split):
        yield load_pair(directory, record, parts)


def read_pair(directory: Path | str, id: str, parts: Collection[str] = PARTS) -> Pair:
    """One pair, accepted or not, by its id, read at its place in the tar. Raises InputError."""
    if not _PAIR_ID.fullmatch(id):
        raise InputError(f"{id!r}: not a pair id; ids are numbers of six digits or more, as in manifest.parquet")
    for record in _records(Path(directory), accepted_only=False, split=None):
        if record.id == id:
            return load_pair(directory, record, parts)
    raise InputError(f"{directory}: has no pair {id}")


def load_pair(directory: Path | str, record: PairRecord, parts: Collection[str] = PARTS) -> Pair:
    """The pixels and latents of a record that `read_index` gave. Raises InputError."""
    path = Path(directory) / record.shard
    loaded: dict[str, Any] = {}
    try:
        with path.open("rb") as file:
            for part in parts:
                if part in record.parts:
                    loaded |= _decode_part(part, read_at(file, *record.parts[part], _MAX_MEMBER_BYTES))
    except (Damaged, OSError) as error:
        raise InputError(
            f"{path}: pair {record.id} cannot be read ({one_line(error)}); delete the shard and build again"
        ) from error
    return Pair(record, **loaded)


def scan_shard(path: Path) -> list[PairRecord]:
    """The records of one tar, read from its JSON members; InputError when it is truncated or holds anything else."""
    try:
        return _scan(path)
    except (Damaged, OSError, ValidationError) as error:
        raise InputError(f"{path}: damaged shard ({one_line(error)}); delete it and build again") from error


def _scan(path: Path) -> list[PairRecord]:
    parts: dict[str, dict[str, tuple[int, int]]] = {}
    details: dict[str, _Details] = {}
    with path.open("rb") as file:
        end = 0
        for member in tar_members(file):
            match = _MEMBER_NAME.fullmatch(member.name)
            if match is None or not member.isreg():
                raise Damaged(f"unexpected member {member.name[:80]!r}")
            key, name = match.groups()
            end = member.offset_data + member.size
            place = (member.offset_data, member.size)
            if name == "json":
                details[key] = _Details.model_validate(decode_json(read_at(file, *place, _MAX_JSON_BYTES)))
            else:
                parts.setdefault(key, {})[name.rpartition(".")[0]] = place
        # The two zero blocks that end a tar are there only when it was written to its end.
        if path.stat().st_size < end + 2 * tarfile.BLOCKSIZE:
            raise Damaged("truncated")
    if parts.keys() - details.keys():
        raise Damaged(f"pair {min(parts.keys() - details.keys())} has no json")
    return [_record(key, details[key], path.name, parts.get(key, {})) for key in sorted(details)]


class _Provenance(BaseModel):
    portrait: str
    portrait_digest: str
    generator_digest: str
    seed: int
    code_version: str
    split: str
    source_digest: str = ""
    parents: list[dict[str, str]] = []


class _Details(BaseModel):
    feature: str
    params: dict[str, Any]
    degree: float
    accepted: bool
    reasons: list[str]
    figures: dict[str, float | None]
    provenance: _Provenance


def _record(key: str, details: _Details, shard: str, parts: dict[str, tuple[int, int]]) -> PairRecord:
    known = details.model_dump(exclude={"provenance"}) | details.provenance.model_dump()
    return PairRecord(id=key, shard=shard, parts=parts, **known)


def _records(directory: Path, accepted_only: bool, split: str | None) -> Iterator[PairRecord]:
    if not shard_paths(directory):
        raise InputError(f"{directory}: no finished shard of pairs; run `datagen build` (again) to make them")
    if _manifest_is_current(directory):
        found = _manifest_records(directory / MANIFEST)
    else:
        found = (record for path in shard_paths(directory) for record in scan_shard(path))
    for record in found:
        if (record.accepted or not accepted_only) and split in (None, record.split):
            yield record


def _manifest_is_current(directory: Path) -> bool:
    """Whether there is a manifest, and it describes the tars that are there: same sizes, none of them newer than it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = directory / MANIFEST
    try:
        written = path.stat().st_mtime_ns
        metadata = pq.read_schema(path).metadata or {}
        same = json.loads(metadata.get(b"shards", b"{}")) == _shard_sizes(directory)
        return same and all(shard.stat().st_mtime_ns <= written for shard in shard_paths(directory))
    except (pa.ArrowException, ValueError, LookupError, TypeError, OSError):
        return False


def _manifest_records(path: Path) -> Iterator[PairRecord]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024):
                yield from map(_manifest_record, batch.to_pylist())
    except (pa.ArrowException, ValueError, LookupError, TypeError, OSError) as error:
        raise InputError(f"{path}: damaged manifest ({one_line(error)}); delete it, the shards suffice") from error


def _manifest_record(row: dict[str, Any]) -> PairRecord:
    if not _SHARD_NAME.fullmatch(row["shard"]) or not _PAIR_ID.fullmatch(row["id"]):
        raise ValueError("foreign name")
    figures = {k.removeprefix("figure_"): v for k, v in row.items() if k.startswith("figure_")}
    return PairRecord(
        **{name: row[name] for name in _columns() if name != "parents"},
        parents=row.get("parents") or [],
        params=json.loads(row["params"]),
        figures=figures,
        parts={p["name"]: (p["offset"], p["bytes"]) for p in row["parts"]},
    )


def _columns() -> dict[str, Any]:
    """The plain columns of the manifest: name -> Arrow type."""
    import pyarrow as pa

    texts = (
        "id",
        "shard",
        "feature",
        "split",
        "portrait",
        "portrait_digest",
        "source_digest",
        "generator_digest",
        "code_version",
    )
    return {name: pa.string() for name in texts} | {
        "degree": pa.float64(),
        "accepted": pa.bool_(),
        "reasons": pa.list_(pa.string()),
        "seed": pa.int64(),
        "parents": pa.list_(pa.struct([(name, pa.string()) for name in PARENT])),
    }


def _shard_sizes(directory: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in shard_paths(directory)}


def _details(record: PairRecord) -> dict[str, Any]:
    names = ("portrait", "portrait_digest", "source_digest", "generator_digest", "seed", "code_version", "split")
    figures = {k: float(v) if v is not None and math.isfinite(v) else None for k, v in record.figures.items()}
    parents = {"parents": record.parents} if record.parents else {}
    return {
        "feature": record.feature,
        "params": record.params,
        "degree": record.degree,
        "accepted": record.accepted,
        "reasons": record.reasons,
        "figures": figures,
        "provenance": {name: getattr(record, name) for name in names} | parents,
    }


def _encode_pair(pair: Pair) -> Iterator[tuple[str, bytes]]:
    for name in IMAGES:
        image = getattr(pair, name)
        if image is not None:
            yield f"{name}.png", codec.encode_png(image)
    if pair.w_before is not None and pair.w_after is not None:
        yield "latents.npz", codec.encode_npz(w0=pair.w_before, w1=pair.w_after)
    if pair.noise is not None:
        yield "noise.npz", codec.encode_npz(**{f"n{i:02d}": noise for i, noise in enumerate(pair.noise)})
    yield "json", json.dumps(_details(pair.record), sort_keys=True, allow_nan=False).encode()


def _decode_part(part: str, data: bytes) -> dict[str, Any]:
    if part in IMAGES:
        return {part: decode_png(data, "L" if part == "mask" else "RGB")}
    arrays = decode_npz(data, _MAX_MEMBER_BYTES)
    if part == "latents":
        if not arrays.keys() >= {"w0", "w1"}:
            raise Damaged("has not both latents")
        return {"w_before": arrays["w0"], "w_after": arrays["w1"]}
    return {"noise": [arrays[name] for name in sorted(arrays)]}


def _header(name: str, size: int) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.mtime = size, 0o644, 0
    return info
