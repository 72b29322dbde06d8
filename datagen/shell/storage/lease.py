"""One command at a time in a folder at a URL, where nothing can be locked: an object that its holder renews.

It is made only where there is none (S3 and GCS can). Whoever finds one that was not renewed for a while takes it over,
of a dead process of the same machine at once. Clocks may differ by a minute.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel, Field, ValidationError

from stylepairs.datagen.shell.errors import InputError, printable
from stylepairs.datagen.shell.machine import host_name, is_alive
from stylepairs.datagen.shell.storage import transfer
from stylepairs.datagen.shell.storage.staged import Staged

LEASE_NAME = ".lock"
RENEWED_S, LAPSES_S = 30.0, 180.0
_MAX_BYTES = 4096


class _Lease(BaseModel):
    command: str = Field(max_length=200)
    process: int
    host: str = Field(max_length=100)
    renewed: float
    token: str = Field("", max_length=64)  # whose it is, of two commands of one process too

    def is_held(self) -> bool:
        if self.host == host_name() and self.process != os.getpid() and not is_alive(self.process):
            return False
        return abs(time.time() - self.renewed) < LAPSES_S


@contextlib.contextmanager
def lease(folder: Staged, command: str) -> Iterator[None]:
    """Hold a folder at a URL for `command`. Raises InputError, one line with the holder, where another has it."""
    url, ended, token = (folder / LEASE_NAME).url, threading.Event(), secrets.token_hex(16)
    _take(url, folder, command, token)
    transfer.abort_uploads(folder.url)  # of commands that were killed in it
    renewing = threading.Thread(target=_renew, args=(url, command, token, ended), daemon=True)
    renewing.start()
    try:
        yield
    finally:
        ended.set()
        renewing.join()
        if _is_mine(url, token):
            transfer.remove(url)


def is_leased(folder: Staged) -> bool:
    """Whether a command holds the folder now."""
    found = _read((folder / LEASE_NAME).url)
    return found is not None and found.is_held()


def _take(url: str, folder: Path, command: str, token: str) -> None:
    for _ in range(3):
        if transfer.create(url, _text(command, token)):
            return
        found = _read(url)
        if found is not None and found.token == token:  # made by a request whose answer was lost
            return
        if found is not None and found.is_held():
            raise InputError(
                f"{folder}: {printable(found.command)} (process {found.process} on {printable(found.host)}) is working"
                f" in it; wait for it (if it was killed, for {LAPSES_S:.0f} s), or choose another --out"
            )
        if _read(url) == found:  # not one that somebody else has made meanwhile
            transfer.remove(url)
    raise InputError(f"{folder}: another command takes it at this moment; choose another --out")


def _renew(url: str, command: str, token: str, ended: threading.Event) -> None:
    while not ended.wait(RENEWED_S):
        with contextlib.suppress(InputError):  # there is time for more tries
            if _is_mine(url, token):  # else it lapsed, of a machine that slept, and another command has it
                transfer.replace(url, _text(command, token))


def _is_mine(url: str, token: str) -> bool:
    found = _read(url)
    return found is not None and found.token == token


def _text(command: str, token: str) -> bytes:
    mine = _Lease(command=command, process=os.getpid(), host=host_name(), renewed=time.time(), token=token)
    return json.dumps(mine.model_dump()).encode()


def _read(url: str) -> _Lease | None:
    """None where there is none, or what is there says nothing."""
    try:
        return _Lease.model_validate_json(transfer.read(url, _MAX_BYTES))
    except (FileNotFoundError, ValidationError):
        return None
