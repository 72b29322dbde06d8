"""A folder at a URL as a path of this machine: reading fetches into a scratch folder, whole files written there go up.

All that reads opens files by `regular.open_regular`, and all that writes ends in `durable.replace_file`; these two call
`fetch` and `publish`, so that the rest need not know. Local paths are what they were, `file://` URLs too.
"""

from __future__ import annotations

import atexit
import collections
import contextlib
import errno
import fnmatch
import functools
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path, PosixPath
from typing import Any

from stylepairs.datagen.shell.errors import InputError, printable
from stylepairs.datagen.shell.machine import host_name, is_alive
from stylepairs.datagen.shell.storage import transfer

# Names the folder that scratch folders are made in; default: that of temporary files.
SCRATCH_VARIABLE = "STYLEPAIRS_SCRATCH"
# Objects fetched, or asked about, beside the one in use.
AHEAD = 16


def place(text: str | Path) -> Path:
    """The path that a user names, a URL's as Staged. Raises InputError for a URL that no folder can be at."""
    if isinstance(text, Path):
        return text
    scheme, found, rest = text.partition("://")
    scheme = scheme.lower()
    if not found or not re.fullmatch(r"[a-z][a-z0-9+.-]*", scheme):
        return Path(text)
    if scheme in ("file", "local"):  # the system's own files, which can be renamed and locked
        return Path(re.sub(r"^localhost(?=/)", "", rest))
    if scheme not in transfer.SCHEMES:
        raise InputError(f"{printable(text)}: unknown kind of URL; s3://, gs://, az:// and file:// are known")
    parts = rest.rstrip("/").split("/")
    if not all(transfer.is_safe(part) for part in parts):
        raise InputError(f"{printable(text)}: no address of a folder; write it as {scheme}://BUCKET/FOLDER")
    if len(parts) < 2:
        raise InputError(f"{printable(text)}: names a bucket only; name a folder in it, as {scheme}://BUCKET/FOLDER")
    return Staged(_scratch(), scheme, *parts)


def local_place(text: str | Path) -> Path:
    """The path that a user names. Raises InputError for a URL."""
    path = place(text)
    if isinstance(path, Staged):
        raise InputError(f"{path}: this command takes local files here; copy it, or put the result there afterwards")
    return path


class Staged(PosixPath):
    """What is at a URL, at the place of its local copy. Questions are answered by the store, the system's calls (by
    `os.fspath`) see the copy; in text it is its URL, in another process, on any machine, its copy is there."""

    _entry: transfer.Entry | None = None  # what a listing just told

    @property
    def url(self) -> str:
        """Its address."""
        scheme, *parts = self.relative_to(_scratch()).parts
        return f"{scheme}://{'/'.join(parts)}"

    def __format__(self, spec: str) -> str:
        # What is relative to a folder is no address.
        return format(self.url if self.is_absolute() else str(self), spec)

    def __reduce__(self) -> Any:
        return place, (self.url,)

    def resolve(self, **_options: Any) -> Staged:  # type: ignore[override]
        """Itself: at a URL there are no links."""
        return self

    def stat(self, **_options: Any) -> os.stat_result:
        """Size and time by the store."""
        entry = self._entry or transfer.info(self.url)
        if entry is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), self.url)
        mode = stat.S_IFDIR if entry.is_folder else stat.S_IFREG
        seconds = entry.modified_ns // 10**9
        times = {"st_mtime_ns": entry.modified_ns}
        return os.stat_result((mode, 0, 0, 1, 0, 0, entry.bytes, seconds, seconds, seconds), times)

    def exists(self, **_options: Any) -> bool:
        return self._entry is not None or transfer.info(self.url) is not None

    def is_file(self, **_options: Any) -> bool:
        entry = self._entry or transfer.info(self.url)
        return entry is not None and not entry.is_folder

    def is_dir(self, **_options: Any) -> bool:
        entry = self._entry or transfer.info(self.url)
        return entry is not None and entry.is_folder

    def iterdir(self) -> Iterator[Staged]:  # type: ignore[override]
        for entry in transfer.listed(self.url):
            child = self / entry.name
            child._entry = entry
            yield child

    def glob(self, pattern: str, **_options: Any) -> Iterator[Staged]:  # type: ignore[override]
        """Of what lies directly in it."""
        return (child for child in self.iterdir() if fnmatch.fnmatchcase(child.name, pattern))

    def rglob(self, pattern: str, **_options: Any) -> Iterator[Staged]:  # type: ignore[override]
        """Of all files below it."""
        found = (self.joinpath(*name.split("/")) for name in transfer.walked(self.url))
        return (path for path in found if fnmatch.fnmatchcase(path.name, pattern))

    def unlink(self, missing_ok: bool = False) -> None:  # noqa: ARG002 - a store does not tell
        """There and here."""
        drop(self)
        transfer.remove(self.url)

    def open(self, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        """The copy, fetched for reading; what is written goes up by `publish`."""
        if mode in ("r", "rb"):
            fetch(self)
        return super().open(mode, *arguments, **options)


def fetch(path: Path) -> None:
    """Have the local copy of a file at a URL. Raises FileNotFoundError; InputError where the store fails."""
    if not isinstance(path, Staged) or os.path.lexists(path):
        return
    local = Path(path)
    local.parent.mkdir(parents=True, exist_ok=True)
    unfinished = _unfinished(local)
    try:
        transfer.download(path.url, unfinished)
        os.replace(unfinished, local)
    finally:
        unfinished.unlink(missing_ok=True)


def fetched(paths: Iterable[Path]) -> Iterator[Path]:
    """The paths in order, the copy of each there, if it exists, and those of the next few on their way."""
    waiting: collections.deque[tuple[Path, Future[None] | None]] = collections.deque()
    with ThreadPoolExecutor(AHEAD) as pool:
        for path in paths:
            waiting.append((path, pool.submit(_fetch_if_there, path) if isinstance(path, Staged) else None))
            if len(waiting) > AHEAD:
                yield _come(*waiting.popleft())
        while waiting:
            yield _come(*waiting.popleft())


def publish(path: Path) -> None:
    """Put a finished local file where its URL is. Raises InputError."""
    if isinstance(path, Staged):
        transfer.upload(Path(path), path.url)


def publish_folder(folder: Path) -> None:
    """Put all files of a local folder where their URLs are. Raises InputError."""
    if isinstance(folder, Staged):
        for local in sorted(each for each in Path(folder).rglob("*") if each.is_file()):
            publish(folder / local.relative_to(folder))


def drop(path: Path) -> None:
    """Remove the local copy of a file at a URL: the next to read it fetches what is there then."""
    if isinstance(path, Staged):
        Path(path).unlink(missing_ok=True)


def read_ranges(path: Staged, places: Sequence[tuple[int, int]]) -> list[bytes]:
    """The bytes at some (offset, size), without a copy. Raises FileNotFoundError, InputError."""
    return transfer.read_ranges(path.url, places)


def _fetch_if_there(path: Path) -> None:
    with contextlib.suppress(FileNotFoundError):  # whoever opens it will say so
        fetch(path)


def _come(path: Path, coming: Future[None] | None) -> Path:
    if coming is not None:
        coming.result()
    return path


def _unfinished(local: Path) -> Path:
    descriptor, name = tempfile.mkstemp(prefix=".", suffix=".part", dir=local.parent)
    os.close(descriptor)
    return Path(name)


@functools.cache
def _scratch() -> Path:
    """The folder of this process's copies; made at the first URL, removed when the process ends."""
    above = Path(os.path.realpath(os.environ.get(SCRATCH_VARIABLE) or tempfile.gettempdir()))
    _remove_left_behind(above)
    try:
        made = tempfile.mkdtemp(prefix=f"stylepairs-{host_name()}-{os.getpid()}-", dir=above)
    except OSError as error:
        raise InputError(f"{above}: cannot be written ({error.strerror}); set {SCRATCH_VARIABLE}") from None
    atexit.register(_end, made, os.getpid())
    return Path(made)


def _end(made: str, process: int) -> None:
    if os.getpid() == process:  # and not a fork of it
        shutil.rmtree(made, ignore_errors=True)


def _remove_left_behind(above: Path) -> None:
    """Remove the scratch folders of killed commands of this user and machine."""
    pattern = re.compile(rf"stylepairs-{re.escape(host_name())}-([0-9]+)-\w+")
    with contextlib.suppress(OSError):
        for entry in os.scandir(above):
            match = pattern.fullmatch(entry.name)
            if match and entry.stat(follow_symlinks=False).st_uid == os.getuid() and not is_alive(int(match[1])):
                shutil.rmtree(entry.path, ignore_errors=True)
