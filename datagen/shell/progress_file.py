"""How far a command is, in a small file in the folder that it works in, for `datagen status`; gone when it is done."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from stylepairs.datagen.shell.decode import Damaged, read_json
from stylepairs.datagen.shell.durable import write_bytes
from stylepairs.datagen.shell.errors import InputError, one_line

_NAME = ".progress"
_INTERVAL_S = 5.0
_MOST_KINDS = 40  # of reasons; the rest are counted together
_OTHER = "other reasons"


class Progress(BaseModel):
    """What one process has done of its work, in units (pairs, photos).

    done: of total, found: of these by an earlier run; refused: by kind of reason; began, updated: seconds since 1970;
    error: why it ended, "" while it works and after Ctrl-C.
    """

    model_config = ConfigDict(extra="forbid", validate_assignment=False)

    command: str = Field(max_length=200)
    unit: str = Field(max_length=40)
    total: float = Field(ge=0)
    process: str = Field(max_length=300)
    began: float
    updated: float
    done: float = 0.0
    found: float = 0.0
    accepted: int = Field(default=0, ge=0)
    refused: dict[str, int] = Field(default_factory=dict)
    error: str = ""


class ProgressFile:
    """Keeps a Progress up to date on disk, at most every few seconds."""

    def __init__(self, path: Path, progress: Progress) -> None:
        self.path, self.progress, self._written = path, progress, time.monotonic()

    def add(
        self, done: float = 0.0, accepted: int = 0, refused: Mapping[str, int] | None = None, now: bool = True
    ) -> None:
        """Count more as done; now False: an earlier run did it."""
        progress = self.progress
        progress.done += done
        progress.found += 0.0 if now else done
        progress.accepted += accepted
        for kind, count in (refused or {}).items():
            known = kind if kind in progress.refused or len(progress.refused) < _MOST_KINDS else _OTHER
            progress.refused[known] = progress.refused.get(known, 0) + count
        if time.monotonic() - self._written > _INTERVAL_S:
            self.write()

    def write(self) -> None:
        """Write it now; a disk that is full is somebody else's news."""
        self._written = time.monotonic()
        self.progress.updated = time.time()
        with contextlib.suppress(InputError):
            write_bytes(self.path, self.progress.model_dump_json().encode())


@contextlib.contextmanager
def progress_file(
    folder: Path, command: str, unit: str, total: float, rank: int = 0, world: int = 1
) -> Iterator[ProgressFile]:
    """A ProgressFile in `folder` while the block runs; it stays where an error or Ctrl-C ends the block."""
    now = time.time()
    for left in folder.glob(f"{_NAME}-*.json"):
        number = left.name.removeprefix(f"{_NAME}-").removesuffix(".json")
        if not (number.isdecimal() and int(number) < world):
            left.unlink(missing_ok=True)  # of a rank of an earlier run, which had more
    process = f"process {os.getpid()} on {socket.gethostname()}"
    noted = ProgressFile(
        folder / f"{_NAME}-{rank}.json",
        Progress(command=command, unit=unit, total=total, process=process, began=now, updated=now),
    )
    noted.write()
    try:
        yield noted
    except Exception as error:
        noted.progress.error = one_line(error)
        noted.write()
        raise
    except KeyboardInterrupt:
        noted.write()
        raise
    noted.path.unlink(missing_ok=True)


def read_progress(folder: Path) -> list[Progress]:
    """Of every process that works in the folder, or ended there with an error or a kill. Raises InputError."""
    found = []
    for path in sorted(folder.glob(f"{_NAME}-*.json")):
        try:
            found.append(Progress.model_validate(read_json(path)))
        except (Damaged, ValidationError) as error:
            if path.exists():  # else it has just ended
                raise InputError(f"{path}: damaged ({one_line(error)}); remove it") from None
    return found
