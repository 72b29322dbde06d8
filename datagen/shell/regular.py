"""Opens files that a user names or a folder holds: regular files alone, as a pipe or a device would be waited for, or
read, for ever."""

from __future__ import annotations

import errno
import io
import os
import stat
from pathlib import Path

from stylepairs.datagen.shell.storage.staged import fetch


def open_regular(path: Path) -> io.BufferedReader:
    """The file, open for reading, of a URL its copy. Raises OSError where it cannot be read or is anything but a
    regular file."""
    fetch(path)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_NONBLOCK", 0))
    except ValueError as error:  # a NUL in the name
        raise OSError(errno.EINVAL, str(error)) from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "a folder, pipe or device, not a file")
    return os.fdopen(descriptor, "rb")


def read_regular(path: Path, max_bytes: int) -> bytes:
    """Its bytes. Raises OSError as `open_regular`, and where there are more than `max_bytes`."""
    with open_regular(path) as file:
        # Not max_bytes at once: a buffer of that size is made before a byte is read.
        data = file.read(min(os.fstat(file.fileno()).st_size, max_bytes) + 1)
    if len(data) > max_bytes:
        raise OSError(errno.EFBIG, f"more than {max_bytes} bytes")
    return data


def is_regular(path: Path) -> bool:
    """Whether there is a regular file, also behind links; False too where the path cannot be looked at."""
    try:
        fetch(path)
        return stat.S_ISREG(os.stat(path).st_mode)
    except (OSError, ValueError):  # a link to itself, a NUL in the name
        return False
