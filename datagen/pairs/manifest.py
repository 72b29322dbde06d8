"""The manifest of a folder of pairs: their records as a Parquet table, with the sizes of the shards that it is of."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError

from stylepairs.datagen.pairs.record import OBJECT, RECORD, PairRecord, Parent
from stylepairs.datagen.shell.decode import Damaged, decode_json, decoded, decoding
from stylepairs.datagen.shell.durable import replace_file
from stylepairs.datagen.shell.errors import InputError, one_line
from stylepairs.datagen.shell.storage.staged import fetch

if TYPE_CHECKING:
    import pyarrow as pa

FIGURE = "figure_"
_ROWS = 16_384  # of a row group: what is held of them as records at once


@dataclass
class _Part:
    name: str
    offset: int
    bytes: int


_PARTS = TypeAdapter(list[_Part])


def write_manifest(path: Path, shards: Iterable[Sequence[PairRecord]], shard_sizes: Mapping[str, int]) -> int:
    """Write the table of the records of all shards, whole or not at all; returns how many they are.

    A figure that a pair has not, or that was not finite, is null. In memory is a row group at a time, and the rest as
    it will lie in the file: which figures there are, the last record may tell.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    groups: list[Any] = []
    figures: set[str] = set()
    count = 0
    rows = (record for records in shards for record in records)
    while group := list(itertools.islice(rows, _ROWS)):
        own = {name for record in group for name in record.figures}
        sink = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_pylist([_row(record) for record in group], schema_of(sorted(own))), sink)
        groups.append(sink.getvalue())
        figures |= own
        count += len(group)
    schema = schema_of(sorted(figures)).with_metadata({"shards": json.dumps(shard_sizes)})

    def write(file: IO[bytes]) -> None:
        with pq.ParquetWriter(file, schema) as writer:
            for group in groups:
                table = pa.concat_tables(
                    [schema.empty_table(), pq.read_table(pa.BufferReader(group))], promote_options="default"
                )
                writer.write_table(table.select(schema.names).replace_schema_metadata(schema.metadata), _ROWS)

    replace_file(path, write)
    return count


def describes(path: Path, shard_sizes: Mapping[str, int]) -> bool:
    """Whether there is a manifest at `path` that is of these shards."""
    import pyarrow.parquet as pq

    try:
        with decoding():
            fetch(path)
            metadata = pq.read_schema(path).metadata or {}
        return bool(decode_json(metadata.get(b"shards", b"null")) == shard_sizes)
    except Damaged:
        return False


def read_manifest(path: Path) -> Iterator[PairRecord]:
    """The records of a manifest, in order. Raises InputError."""
    import pyarrow.parquet as pq

    try:
        with decoding():
            fetch(path)
            file = pq.ParquetFile(path)
        with file:
            for batch in decoded(file.iter_batches(batch_size=1024)):
                yield from map(_record, batch.to_pylist())
    except (Damaged, ValidationError) as error:
        raise InputError(f"{path}: damaged manifest ({one_line(error)}); delete it, the shards suffice") from error


def _row(record: PairRecord) -> dict[str, Any]:
    figures = {f"{FIGURE}{name}": value for name, value in record.figures.items()}
    parents = [vars(parent) for parent in record.parents]
    parts = [{"name": name, "offset": offset, "bytes": size} for name, (offset, size) in record.parts.items()]
    texts = {name: json.dumps(getattr(record, name), sort_keys=True) for name in ("params", "origin")}
    return vars(record) | texts | {"parts": parts, "parents": parents} | figures


def _record(row: dict[str, Any]) -> PairRecord:
    """Raises ValidationError."""
    parts = {part.name: (part.offset, part.bytes) for part in _PARTS.validate_python(row.get("parts"))}
    return record_of_row(row, parts)


def record_of_row(row: dict[str, Any], parts: dict[str, tuple[int, int]]) -> PairRecord:
    """The record of a row of the table, its parts apart; figures of columns that are not there are left out.

    Raises ValidationError.
    """
    figures = {name.removeprefix(FIGURE): value for name, value in row.items() if name.startswith(FIGURE)}
    known = {"params": OBJECT.validate_json(row.get("params") or ""), "parents": row.get("parents") or []}
    known["origin"] = OBJECT.validate_json(row.get("origin") or "{}")
    return RECORD.validate_python(row | known | {"figures": figures, "parts": parts})


def schema_of(figures: Sequence[str]) -> pa.Schema:
    """The table's columns, with these figures."""
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
            ("backwards", pa.bool_()),
            ("reasons", pa.list_(pa.string())),
            ("seed", pa.int64()),
            ("parents", pa.list_(pa.struct([(name, pa.string()) for name in Parent.__annotations__]))),
            ("params", pa.string()),
            ("origin", pa.string()),
            *((f"{FIGURE}{name}", pa.float64()) for name in figures),
            ("parts", pa.list_(pa.struct([("name", pa.string()), ("offset", pa.int64()), ("bytes", pa.int64())]))),
        ]
    )
