"""The manifest of a folder of pairs: their records as a Parquet table, with the sizes of the shards that it is of."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError

from stylepairs.datagen.pairs.record import OBJECT, RECORD, PairRecord, Parent
from stylepairs.datagen.shell.decode import Damaged, decode_json, decoded, decoding
from stylepairs.datagen.shell.durable import replace_file
from stylepairs.datagen.shell.errors import InputError, one_line

if TYPE_CHECKING:
    import pyarrow as pa

_FIGURE = "figure_"


@dataclass
class _Part:
    name: str
    offset: int
    bytes: int


_PARTS = TypeAdapter(list[_Part])


def write_manifest(path: Path, records: Sequence[PairRecord], shard_sizes: Mapping[str, int]) -> None:
    """Write the table, whole or not at all; a figure that a pair has not, or that was not finite, is null."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    figures = sorted({name for record in records for name in record.figures})
    schema = _schema(figures).with_metadata({"shards": json.dumps(shard_sizes)})
    table = pa.Table.from_pylist([_row(record) for record in records], schema)
    replace_file(path, lambda file: pq.write_table(table, file))


def describes(path: Path, shard_sizes: Mapping[str, int]) -> bool:
    """Whether there is a manifest at `path` that is of these shards."""
    import pyarrow.parquet as pq

    try:
        with decoding():
            metadata = pq.read_schema(path).metadata or {}
        return bool(decode_json(metadata.get(b"shards", b"null")) == shard_sizes)
    except Damaged:
        return False


def read_manifest(path: Path) -> Iterator[PairRecord]:
    """The records of a manifest, in order. Raises InputError."""
    import pyarrow.parquet as pq

    try:
        with decoding():
            file = pq.ParquetFile(path)
        with file:
            for batch in decoded(file.iter_batches(batch_size=1024)):
                yield from map(_record, batch.to_pylist())
    except (Damaged, ValidationError) as error:
        raise InputError(f"{path}: damaged manifest ({one_line(error)}); delete it, the shards suffice") from error


def _row(record: PairRecord) -> dict[str, Any]:
    figures = {f"{_FIGURE}{name}": value for name, value in record.figures.items()}
    parts = [{"name": name, "offset": offset, "bytes": size} for name, (offset, size) in record.parts.items()]
    texts = {name: json.dumps(getattr(record, name), sort_keys=True) for name in ("params", "origin")}
    return asdict(record) | texts | {"parts": parts} | figures


def _record(row: dict[str, Any]) -> PairRecord:
    """Raises ValidationError."""
    parts = {part.name: (part.offset, part.bytes) for part in _PARTS.validate_python(row.get("parts"))}
    figures = {name.removeprefix(_FIGURE): value for name, value in row.items() if name.startswith(_FIGURE)}
    known = {"params": OBJECT.validate_json(row.get("params") or ""), "parents": row.get("parents") or []}
    known["origin"] = OBJECT.validate_json(row.get("origin") or "{}")
    return RECORD.validate_python(row | known | {"figures": figures, "parts": parts})


def _schema(figures: Sequence[str]) -> pa.Schema:
    import pyarrow as pa

    texts = (
        "id", "shard", "feature", "split", "portrait", "portrait_digest", "source_digest", "generator_digest",
        "code_version", "method",
    )  # fmt: skip
    return pa.schema(
        [
            *((name, pa.string()) for name in texts),
            ("degree", pa.float64()),
            ("accepted", pa.bool_()),
            ("reasons", pa.list_(pa.string())),
            ("seed", pa.int64()),
            ("parents", pa.list_(pa.struct([(name, pa.string()) for name in Parent.__annotations__]))),
            ("params", pa.string()),
            ("origin", pa.string()),
            *((f"{_FIGURE}{name}", pa.float64()) for name in figures),
            ("parts", pa.list_(pa.struct([("name", pa.string()), ("offset", pa.int64()), ("bytes", pa.int64())]))),
        ]
    )
