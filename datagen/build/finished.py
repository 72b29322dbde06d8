"""Which shards of a folder are finished, noted as they are made: a resumed build of 30 000 need not read them again."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, Field, ValidationError

from stylepairs.datagen.shell.regular import read_regular
from stylepairs.datagen.shell.storage.staged import Staged

_NAME = ".finished"
_MAX_BYTES = 1 << 30  # any value will do: a million shards take a quarter of it
# The id of a shard's first pair, how many it has, how many of them are accepted, refused ones by kind of reason.
Counts = tuple[str, int, int, Mapping[str, int]]
_Count = Annotated[int, Field(ge=0)]


class Finished(BaseModel):
    """A shard as it was when it was finished: of the same size and time it still is. first: the id of its first pair;
    reasons: how many of its pairs were refused for each kind of reason."""

    shard: Annotated[str, Field(max_length=40)]
    bytes: _Count
    modified_ns: _Count
    first: Annotated[str, Field(max_length=20)]
    pairs: _Count
    accepted: _Count
    reasons: dict[str, _Count] = Field(default_factory=dict)

    def is_of(self, path: Path) -> bool:
        """Whether the file at `path` is the shard that was noted."""
        status = path.stat()
        return (status.st_size, status.st_mtime_ns) == (self.bytes, self.modified_ns)


def read_finished(folder: Path) -> dict[str, Finished]:
    """Shard's file name -> what was noted of the newest of that name, by any process; what cannot be read was not."""
    found: dict[str, Finished] = {}
    if isinstance(folder, Staged):  # nothing can be added to there; each shard has its records beside it
        return found
    for path in sorted(folder.glob(f"{_NAME}-*.jsonl")):
        with contextlib.suppress(OSError):
            for line in read_regular(path, _MAX_BYTES).split(b"\n"):
                with contextlib.suppress(ValidationError):  # empty, or cut off when its process was killed
                    note = Finished.model_validate_json(line)
                    if note.shard not in found or note.modified_ns >= found[note.shard].modified_ns:
                        found[note.shard] = note
    return found


def note_finished(folder: Path, rank: int, path: Path, counts: Counts) -> None:
    """Add a line of a process's own for the shard at `path`; a disk that is full is somebody else's news."""
    if isinstance(folder, Staged):
        return
    first, pairs, accepted, reasons = counts
    with contextlib.suppress(OSError):
        status = path.stat()
        note = Finished(
            shard=path.name, bytes=status.st_size, modified_ns=status.st_mtime_ns,
            first=first, pairs=pairs, accepted=accepted, reasons=dict(reasons),
        )  # fmt: skip
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | getattr(os, "O_NOFOLLOW", 0)
        file = os.open(folder / f"{_NAME}-{rank}.jsonl", flags, 0o644)
        try:
            # The line break first: what a killed process began before stays a line of its own.
            os.write(file, b"\n" + note.model_dump_json().encode())
        finally:
            os.close(file)
