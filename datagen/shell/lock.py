"""One command at a time in an output folder."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from stylepairs.datagen.shell.durable import make_folder, remove_stale
from stylepairs.datagen.shell.errors import InputError, one_line
from stylepairs.datagen.shell.storage.lease import is_leased, lease
from stylepairs.datagen.shell.storage.staged import Staged

LOCK_NAME = ".lock"


@contextlib.contextmanager
def folder_lock(folder: Path, command: str, rank: int = 0, world: int = 1) -> Iterator[None]:
    """Hold `folder`, made where it is missing, for `command`; the system lets go of it whenever the process ends.

    Temporary files that killed commands left in it are removed, before and after.

    The `world` processes of a launcher hold it together, each rank once. Raises InputError, one line with the holder,
    where another process holds it. On systems and file systems that know no locks nothing is held. At a URL a lease is
    held; by the ranks of a launcher none.
    """
    make_folder(folder)
    with contextlib.ExitStack() as held:
        if isinstance(folder, Staged):
            if world == 1:
                held.enter_context(lease(folder, command))
            yield
            return
        _hold(held, folder / LOCK_NAME, command, shared=world > 1)
        if world > 1:
            _hold(held, folder / f"{LOCK_NAME}-{rank}", f"rank {rank} of {command}", shared=False)
        remove_stale(folder)
        try:
            yield
        finally:
            remove_stale(folder)  # of workers that were stopped


def is_held(folder: Path) -> bool:
    """Whether a process holds `folder` now; False where nothing can be told of locks."""
    if isinstance(folder, Staged):
        return is_leased(folder)
    try:
        import fcntl

        with (folder / LOCK_NAME).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_NB | fcntl.LOCK_EX)
    except BlockingIOError:
        return True
    except (ImportError, OSError):
        return False
    return False


def _hold(held: contextlib.ExitStack, path: Path, command: str, shared: bool) -> None:
    try:
        import fcntl
    except ImportError:
        return
    while True:
        try:
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise InputError(f"{path}: cannot be written ({error.strerror or error}); choose another folder") from None
        held.callback(os.close, file)
        try:
            fcntl.flock(file, fcntl.LOCK_NB | (fcntl.LOCK_SH if shared else fcntl.LOCK_EX))
        except BlockingIOError:
            holder = one_line((os.read(file, 200) or b"another process").decode(errors="replace"))
            raise InputError(
                f"{path.parent}: {holder} is working in it; wait for it, or choose another --out"
            ) from None
        except OSError:  # a file system without locks
            return
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file), os.stat(path, follow_symlinks=False)):
                break  # else whoever held it before has just removed it
    held.callback(_let_go, path, file)
    with contextlib.suppress(OSError):  # a full disk: then nobody is told who it is
        os.ftruncate(file, 0)
        os.pwrite(file, f"{command} (process {os.getpid()} on {socket.gethostname()})".encode(), 0)


def _let_go(path: Path, file: int) -> None:
    """Remove the lock's file, unless others share it."""
    import fcntl

    with contextlib.suppress(OSError):
        fcntl.flock(file, fcntl.LOCK_NB | fcntl.LOCK_EX)
        path.unlink(missing_ok=True)
