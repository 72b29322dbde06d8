"""One command at a time in an output folder."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stylepairs.datagen.shell.durable import make_folder
from stylepairs.datagen.shell.errors import InputError, one_line

LOCK_NAME = ".lock"


@contextmanager
def folder_lock(folder: Path, command: str) -> Iterator[None]:
    """Hold `folder`, made where it is missing, for `command`; the system lets go of it whenever the process ends.

    Raises InputError, one line with the holder, where another process holds it. On systems and file systems that know
    no locks nothing is held.
    """
    make_folder(folder)
    try:
        import fcntl
    except ImportError:
        yield
        return
    path = folder / LOCK_NAME
    try:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error}); choose another folder") from None
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = one_line(os.read(file, 200).decode(errors="replace"))
            raise InputError(f"{folder}: {holder} is working in it; wait for it, or choose another --out") from None
        except OSError:  # a file system without locks
            yield
            return
        os.ftruncate(file, 0)
        os.pwrite(file, f"{command} (process {os.getpid()} on {socket.gethostname()})".encode(), 0)
        yield
    finally:
        os.close(file)
