"""The records of a manifest as columns: a million pairs in one gigabyte, each made into a PairRecord when asked for."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from pydantic import ValidationError

from stylepairs.datagen.pairs.manifest import FIGURE, record_of_row, schema_of
from stylepairs.datagen.pairs.record import OBJECT, PairRecord
from stylepairs.datagen.shell.decode import Damaged, decoding
from stylepairs.datagen.shell.errors import InputError, one_line
from stylepairs.datagen.shell.storage.staged import fetch

if TYPE_CHECKING:
    import pyarrow as pa

_BATCH = 1024
# A pair takes two blocks of its tar at the least: a manifest of more rows lies.
_LEAST_BYTES = 1024
_REPEATED = (
    "shard", "feature", "split", "portrait", "portrait_digest", "source_digest", "generator_digest", "code_version",
    "params", "origin",
)  # fmt: skip
# Figures that training reads; the others would take most of the memory.
KEPT_FIGURES = ("light",)


@dataclass(frozen=True)
class _Parts:
    """Where the parts of all pairs lie: entries starts[row] to starts[row + 1] of the flat columns."""

    names: list[str]
    kinds: np.ndarray
    offsets: np.ndarray
    sizes: np.ndarray
    starts: np.ndarray

    def of(self, row: int) -> dict[str, tuple[int, int]]:
        """name -> (offset, bytes)."""
        here = slice(self.starts[row], self.starts[row + 1])
        names = (self.names[kind] for kind in self.kinds[here].tolist())
        return dict(zip(names, zip(self.offsets[here].tolist(), self.sizes[here].tolist(), strict=True), strict=True))

    def having(self, name: str) -> np.ndarray:
        """Which rows have a part of this name, bool [N]."""
        found = np.zeros(len(self.starts) - 1, bool)
        if name in self.names:
            entries = np.flatnonzero(self.kinds == self.names.index(name))
            found[np.searchsorted(self.starts, entries, side="right") - 1] = True
        return found


class PairIndex(Sequence[PairRecord]):
    """Records of a manifest, or of some of its rows; made by `open_manifest`. Figures are left out but
    for KEPT_FIGURES.

    A record that cannot be raises InputError when it is asked for.
    """

    def __init__(self, path: Path, table: pa.Table, parts: _Parts, rows: np.ndarray) -> None:
        self._path, self._table, self._parts, self._rows = path, table, parts, rows

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> PairRecord: ...

    @overload
    def __getitem__(self, index: slice) -> PairIndex: ...

    def __getitem__(self, index: int | slice) -> PairRecord | PairIndex:
        if isinstance(index, slice):
            return self._of(self._rows[index])
        return next(self._records(self._rows[[index]]))

    def __iter__(self) -> Iterator[PairRecord]:
        for start in range(0, len(self._rows), _BATCH):
            yield from self._records(self._rows[start : start + _BATCH])

    def where(
        self, accepted: bool | None = None, split: str | None = None, having: str = "", lacking: str = ""
    ) -> PairIndex:
        """Those that are accepted (or not), of one side of the split, with a part, and without another."""
        import pyarrow.compute as pc

        kept = np.ones(len(self._table), bool)
        if accepted is not None:
            kept &= self._numpy(pc.equal(self._table["accepted"], accepted))
        if split is not None:
            kept &= self._numpy(pc.equal(self._table["split"].combine_chunks().cast("string"), split))
        if having:
            kept &= self._parts.having(having)
        if lacking:
            kept &= ~self._parts.having(lacking)
        return self._of(self._rows[kept[self._rows]])

    def distinct(self, name: str) -> list[Any]:
        """The different values of a field of text, or of `params`, among these records."""
        values = self._table[name].take(self._rows).unique().to_pylist()
        if name != "params":
            return list(values)
        return [self._checked(functools.partial(OBJECT.validate_json, value or "")) for value in values]

    def codes(self, name: str) -> np.ndarray:
        """Which of a field of text's different values each of these records has, by numbers from 0, int [N]."""
        return self._encoded(name)[0]

    def with_params(self, wanted: Callable[[Mapping[str, Any]], bool]) -> PairIndex:
        """Those whose parameters are wanted; of each different text that is asked once."""
        codes, texts = self._encoded("params")
        kept = np.zeros(len(texts), bool)
        for code in np.unique(codes):
            kept[code] = wanted(self._checked(functools.partial(OBJECT.validate_json, texts[code] or "")))
        return self._of(self._rows[kept[codes]])

    def backwards(self) -> np.ndarray:
        """Which of these records run backwards, bool [N]; none of a manifest that does not know the word yet."""
        if "backwards" not in self._table.column_names:
            return np.zeros(len(self), bool)
        found: np.ndarray = self._numpy(self._table["backwards"])[self._rows]
        return found

    def places(self) -> Iterator[tuple[Any, ...]]:
        """(id, portrait_digest, generator_digest, params, seed, shard, parts) of every record, not checked further."""
        known: dict[str, Any] = {}
        for start in range(0, len(self._rows), _BATCH):
            rows = self._rows[start : start + _BATCH]
            names = ("id", "portrait_digest", "generator_digest", "params", "seed", "shard")
            columns = [self._table[name].take(rows).to_pylist() for name in names]
            for row, (id, portrait, generator, params, seed, shard) in zip(
                rows.tolist(), zip(*columns, strict=True), strict=True
            ):
                if params not in known:
                    known[params] = self._checked(functools.partial(OBJECT.validate_json, params or ""))
                yield id, portrait, generator, known[params], seed, shard, self._parts.of(row)

    def _records(self, rows: np.ndarray) -> Iterator[PairRecord]:
        for row, values in zip(rows.tolist(), self._table.take(rows).to_pylist(), strict=True):
            yield self._checked(functools.partial(record_of_row, values, self._parts.of(row)))

    def _checked(self, make: Any) -> Any:
        try:
            return make()
        except ValidationError as error:
            raise _damaged(self._path, error) from error

    def _encoded(self, name: str) -> tuple[np.ndarray, list[str | None]]:
        """Codes of a field of text [N], and the texts that they are places of; the last one, -1, is none."""
        column = self._table[name].dictionary_encode().combine_chunks()
        codes = column.indices.fill_null(-1).to_numpy(zero_copy_only=False)[self._rows]
        return codes, [*column.dictionary.to_pylist(), None]

    def _of(self, rows: np.ndarray) -> PairIndex:
        return PairIndex(self._path, self._table, self._parts, rows)

    @staticmethod
    def _numpy(values: Any) -> np.ndarray:
        found: np.ndarray = values.fill_null(False).to_numpy(zero_copy_only=False)
        return found


def open_manifest(path: Path, shard_bytes: int) -> PairIndex:
    """The records of a manifest of shards of so many bytes in all. Raises InputError for a damaged one."""
    status = path.stat()
    return _opened(path, shard_bytes, (status.st_size, status.st_mtime_ns))


@functools.lru_cache(maxsize=1)
def _opened(path: Path, shard_bytes: int, _stamp: tuple[int, int]) -> PairIndex:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with decoding():
            fetch(path)
            schema = pq.read_schema(path)
            rows = pq.read_metadata(path).num_rows
        if rows > shard_bytes // _LEAST_BYTES:
            raise Damaged(f"{rows} rows of {shard_bytes} bytes of shards")
        kept = [f"{FIGURE}{name}" for name in KEPT_FIGURES]
        names = [name for name in schema.names if not name.startswith(FIGURE) or name in kept]
        with decoding():
            table = pq.read_table(path, columns=names, read_dictionary=[n for n in _REPEATED if n in names])
            wanted = schema_of(KEPT_FIGURES)
            plain = pa.schema([wanted.field(name) if name in wanted.names else schema.field(name) for name in names])
            # Text stays as it was read, one copy of what is repeated; everything else has to be of its type already.
            for name in names:
                if name not in _REPEATED and name in wanted.names and schema.field(name).type != plain.field(name).type:
                    raise Damaged(f"column {name} of {schema.field(name).type}")
            parts = _parts_of(table["parts"].combine_chunks())
            table = table.drop_columns(["parts"]).combine_chunks()
            twice = _twice(table)
    except Damaged as error:
        raise _damaged(path, error) from error
    if twice:
        raise InputError(two_hold(path.parent, *twice))
    return PairIndex(path, table, parts, np.arange(len(table)))


def _twice(table: pa.Table) -> list[str]:
    """Two shards that both hold a pair, as those of builds that were put together do, and its id; none: []."""
    import pyarrow.compute as pc

    ids, counts = table["id"].value_counts().flatten()
    twice = ids.filter(pc.greater(counts, 1))
    if not len(twice):
        return []
    one, other, *_ = table["shard"].filter(pc.equal(table["id"], twice[0])).to_pylist()
    return [one, other, twice[0].as_py()]


def two_hold(folder: Path | str, one: str, other: str, id: str) -> str:
    """What is said of a folder in which two shards have a pair of one id."""
    return f"{folder}: {one} and {other} both hold a pair {id}; keep builds apart"


def with_params(records: Sequence[PairRecord], wanted: Callable[[Mapping[str, Any]], bool]) -> Sequence[PairRecord]:
    """Those whose parameters are wanted."""
    if isinstance(records, PairIndex):
        return records.with_params(wanted)
    return [record for record in records if wanted(record.params)]


def run_backwards(records: Sequence[PairRecord]) -> np.ndarray:
    """Which of the records are of pairs that run backwards, bool [N]."""
    if isinstance(records, PairIndex):
        return records.backwards()
    return np.array([record.backwards for record in records], bool)


def codes(records: Sequence[PairRecord], name: str) -> np.ndarray:
    """Which of a field of text's different values each record has, by numbers from 0, int [N]."""
    if isinstance(records, PairIndex):
        return records.codes(name)
    known: dict[str, int] = {}
    return np.array([known.setdefault(getattr(record, name), len(known)) for record in records], int)


def distinct(records: Sequence[PairRecord], name: str) -> list[Any]:
    """The different values of a field among the records; of parameters perhaps some more than once."""
    if isinstance(records, PairIndex):
        return records.distinct(name)
    values = (getattr(record, name) for record in records)
    return list(values if name == "params" else dict.fromkeys(values))


def _parts_of(column: Any) -> _Parts:
    """Of the manifest's column of lists; raises whatever pyarrow does for another type."""
    entries = column.flatten()
    kinds = entries.field("name").dictionary_encode()
    starts = np.concatenate([[0], np.cumsum(column.value_lengths().fill_null(0).to_numpy(zero_copy_only=False))])
    return _Parts(
        [str(name) for name in kinds.dictionary.to_pylist()],
        kinds.indices.to_numpy(zero_copy_only=False).astype(np.int16),
        entries.field("offset").to_numpy(zero_copy_only=False).astype(np.int64),
        entries.field("bytes").to_numpy(zero_copy_only=False).astype(np.int64),
        starts.astype(np.int64),
    )


def _damaged(path: Path, error: Exception) -> InputError:
    return InputError(f"{path}: damaged manifest ({one_line(error)}); delete it, the shards suffice")
