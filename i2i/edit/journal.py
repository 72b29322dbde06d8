"""Which photos have been edited into a folder already, so that a stopped `i2i edit` goes on where it was."""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

from stylepairs.datagen.shell.durable import make_folder
from stylepairs.datagen.shell.errors import InputError

JOURNAL = ".edited"
_MAX_BYTES = 1 << 28
_LINE = re.compile(rb"^([0-9a-f]{32})([0-9a-f]{32})$", re.M)


class Journal:
    """A folder's journal: a line for each finished file, half a digest of the file's name, half of the photo as it was
    and the edit; the last line on a file counts.

    Nothing is locked: a line is appended in one write, and one that is cut off means that a photo is edited again.
    """

    def __init__(self, out: Path, wanted: Any) -> None:
        """wanted: all that an edit depends on beside the photo, as JSON can hold it."""
        self.path = out / JOURNAL
        self.wanted = json.dumps(wanted, sort_keys=True, default=str)
        known = self.path.is_file() and self.path.stat().st_size < _MAX_BYTES
        self.done = dict(_LINE.findall(self.path.read_bytes())) if known else {}

    def has(self, photo: Path, target: Path) -> bool:
        """Whether this very photo has been edited into this file in this way, and the file is still there."""
        name, edit = self._line(photo, target)
        return target.is_file() and self.done.get(name) == edit

    def add(self, photo: Path, target: Path) -> None:
        """Note a finished file. Raises InputError where the folder cannot be written."""
        make_folder(self.path.parent)
        try:
            descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o666)
            with os.fdopen(descriptor, "ab") as file:
                file.write(b"".join(self._line(photo, target)) + b"\n")
        except OSError as error:
            raise InputError(f"{self.path}: cannot be written ({error.strerror or error}); mend the folder") from error

    def _line(self, photo: Path, target: Path) -> tuple[bytes, bytes]:
        status = photo.stat() if photo.is_file() else None
        about = [os.path.abspath(photo), status and (status.st_size, status.st_mtime_ns)]
        return _half_digest(os.path.relpath(target, self.path.parent)), _half_digest(repr([about, self.wanted]))


def _half_digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32].encode()
