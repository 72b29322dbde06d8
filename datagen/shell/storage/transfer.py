"""Moves objects between this machine and object storage through fsspec: whole or not at all, tried again where that may
help, one line where it does not.

Nothing is renamed at a URL: a store shows an object only when all of it has arrived. What is listed there is as hostile
as any file from outside: names that would lead out of their folder are passed over.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import functools
import os
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from stylepairs.datagen.shell.errors import InputError, one_line

Result = TypeVar("Result")

SCHEMES = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "memory")
# Tries of each request in all, and the longest wait before the second; each later wait is at most twice the one before.
ATTEMPTS = 5
_WAIT_S = 0.4
# Objects of twice this size and more go up in parts, a few at once: what an upload holds in memory.
_PART_BYTES = 16 << 20
_PARTS_AT_ONCE = 4
_CONNECT_S, _READ_S = 10, 60
# Bytes between two ranges that are fetched with them, in place of a request more: a tar's header and filling.
_MOST_BETWEEN = 4096
SCRATCH_FULL = "the disk for its copy here is full; free some space, or name a larger one with STYLEPAIRS_SCRATCH"
# Where the errors of fsspec's libraries come from that are no OSError.
_LIBRARIES = ("botocore", "aiobotocore", "aiohttp", "s3fs", "gcsfs", "google", "adlfs", "azure", "fsspec")


@dataclass(frozen=True)
class Entry:
    """An object, or what lies under a name as a folder. modified_ns: since 1970, by the store's clock; 0: not told."""

    name: str
    bytes: int
    modified_ns: int
    is_folder: bool


def upload(source: Path, url: str) -> None:
    """Put a local file at a URL, in place of what is there. Raises InputError."""
    parts = {"chunksize": _PART_BYTES, "max_concurrency": _PARTS_AT_ONCE} if _is_s3(url) else {}
    _told(url, lambda fs, path: fs.put_file(str(source), path, **parts), writes=True)


def create(url: str, data: bytes) -> bool:
    """Put a small object at a URL where there is none; whether there was none. Raises InputError."""

    def put(fs: Any, path: str) -> None:
        try:
            fs.pipe_file(path, data, mode="create")
        except (NotImplementedError, OSError) as error:
            # Some stores cannot tell in the same request.
            if isinstance(error, FileExistsError) or "not implemented" not in f"{error!r}".lower():
                raise
            if fs.exists(path):
                raise FileExistsError(path) from None
            fs.pipe_file(path, data)

    try:
        _told(url, put, writes=True)
    except FileExistsError:
        return False
    return True


def replace(url: str, data: bytes) -> None:
    """Put a small object at a URL, in place of what is there. Raises InputError."""
    _told(url, lambda fs, path: fs.pipe_file(path, data), writes=True)


def read(url: str, max_bytes: int) -> bytes:
    """The first `max_bytes` of an object. Raises FileNotFoundError, and InputError."""

    def get(fs: Any, path: str) -> bytes:
        try:
            return bytes(fs.cat_file(path, start=0, end=max_bytes))
        except OSError as error:  # of an empty object stores have no range
            if error.errno != errno.EINVAL or fs.info(path).get("size") != 0:
                raise
            return b""

    return _told(url, get)


def download(url: str, target: Path) -> None:
    """Write an object to a local file. Raises FileNotFoundError, and InputError."""

    def get(fs: Any, path: str) -> None:
        from fsspec.callbacks import Callback

        told = Callback()
        fs.get_file(path, str(target), callback=told, **({"max_concurrency": 1} if _is_s3(url) else {}))
        if told.size is not None and target.stat().st_size != told.size:
            raise OSError(f"cut off after {target.stat().st_size} of {told.size} bytes")

    _told(url, get)


def read_ranges(url: str, places: Sequence[tuple[int, int]]) -> list[bytes]:
    """The bytes at some (offset, size) of an object, asked for at once, neighbours in one request. Raises
    FileNotFoundError, and InputError."""
    from fsspec.utils import merge_offset_ranges

    def get(fs: Any, path: str) -> list[bytes]:
        wanted = [path] * len(places), [start for start, _ in places], [start + size for start, size in places]
        paths, starts, ends = merge_offset_ranges(*wanted, max_gap=_MOST_BETWEEN)
        found = fs.cat_ranges(paths, starts, ends, on_error="raise")
        if any(len(data) != end - start for data, start, end in zip(found, starts, ends, strict=True)):
            raise OSError("cut off")
        blocks = list(zip(starts, found, strict=True))
        return [_cut(blocks, start, size) for start, size in places]

    return _told(url, get)


def _cut(blocks: Sequence[tuple[int, bytes]], start: int, size: int) -> bytes:
    """The bytes at (start, size) out of the last block that begins before them; blocks: (start, bytes), in order."""
    begins, data = next(block for block in reversed(blocks) if block[0] <= start)
    return data[start - begins : start - begins + size]


def remove(url: str) -> None:
    """Remove an object, where there is one. Raises InputError."""
    with contextlib.suppress(FileNotFoundError):
        _told(url, lambda fs, path: fs.rm_file(path))


def info(url: str) -> Entry | None:
    """What is at a URL; None where there is nothing. Raises InputError."""
    try:
        return _entry(_told(url, lambda fs, path: fs.info(path, refresh=True) if _is_s3(url) else fs.info(path)))
    except FileNotFoundError:
        return None


def listed(url: str) -> list[Entry]:
    """What lies directly in a folder, by name. Raises InputError: no such bucket."""

    def ls(fs: Any, path: str) -> list[Entry]:
        found = fs.ls(path, detail=True, **({"refresh": True} if _is_s3(url) else {}))
        return [_entry(each) for each in found if _below(each, path) and "/" not in _below(each, path)]

    try:
        return sorted(_told(url, ls), key=lambda entry: entry.name)
    except FileNotFoundError as error:
        if "bucket does not exist" in str(error):
            raise _no_bucket(url) from error
        return []


def walked(url: str) -> list[str]:
    """The names of all objects below a folder, relative to it, sorted. Raises InputError: no such bucket."""

    def find(fs: Any, path: str) -> list[str]:
        found = ({"name": name} for name in fs.find(path))
        return sorted(name for each in found if (name := _below(each, path)))

    try:
        return _told(url, find)
    except FileNotFoundError as error:
        if "bucket does not exist" in str(error):
            raise _no_bucket(url) from error
        return []


def abort_uploads(url: str) -> None:
    """Have S3 forget the parts of uploads below a folder that never ended, which it would keep, and bill, for ever."""

    def abort(fs: Any, path: str) -> None:
        bucket, key, _ = fs.split_path(path)
        for each in fs.list_multipart_uploads(bucket):
            if each["Key"].startswith(f"{key}/"):
                fs.abort_mpu(bucket, each["Key"], each["UploadId"])

    if _is_s3(url):
        try:
            _told(url, abort)
        except (FileNotFoundError, InputError):  # not allowed to: an upload that is needed will say what is wrong
            return


def is_safe(part: str) -> bool:
    """Whether a name is one part of a path, that stays where it is."""
    try:
        size = len(part.encode())
    except UnicodeEncodeError:  # bytes that are no UTF-8, which names of objects are
        return False
    return part not in ("", ".", "..") and not any(c in part for c in "/\\\0") and size <= 255


def _told(url: str, work: Callable[[Any, str], Result], writes: bool = False) -> Result:
    """What `work(file system, path)` returns, tried again after errors that may pass; writes: what it may miss is the
    bucket alone.

    Raises FileNotFoundError and FileExistsError as they are, InputError for all else that a store can refuse.
    """
    for attempt in range(1, ATTEMPTS + 1):
        try:
            fs, path = _file_system(url)
            return work(fs, path)
        except (InputError, FileExistsError):
            raise
        except FileNotFoundError as error:
            if writes:
                raise _no_bucket(url) from error
            raise
        except Exception as error:
            if not isinstance(error, OSError) and type(error).__module__.split(".")[0] not in _LIBRARIES:
                raise
            refusal = _refusal(error)
            if refusal:
                raise InputError(f"{url}: {refusal}") from error
            if attempt == ATTEMPTS:
                raise InputError(
                    f"{url}: cannot be reached, {ATTEMPTS} times ({one_line(error, 160)}); check network and endpoint,"
                    " then run the same command again: what was stored is kept"
                ) from error
        time.sleep(_WAIT_S * 2 ** (attempt - 1) * random.uniform(0.5, 1))
    raise AssertionError("not reached")


def _file_system(url: str) -> tuple[Any, str]:
    """Raises InputError where a library is missing."""
    scheme, _, rest = url.partition("://")
    try:
        return _opened(scheme, os.getpid()), rest
    except ImportError as error:
        package = "gcsfs" if scheme in ("gs", "gcs") else "adlfs" if scheme in ("az", "abfs", "abfss") else ""
        advice = f"pip install {package}" if package else "pip install 'stylepairs[storage]'"
        raise InputError(f"{url}: {scheme}:// is not installed ({one_line(error, 80)}); {advice}") from None


@functools.lru_cache(maxsize=8)
def _opened(scheme: str, _process: int) -> Any:
    """A process's own: connections do not outlive a fork."""
    import fsspec

    options: dict[str, Any] = {"use_listings_cache": False}
    if scheme in ("s3", "s3a"):  # its own tries would multiply with ours
        retries = {"total_max_attempts": 1, "mode": "standard"}
        options["config_kwargs"] = {"connect_timeout": _CONNECT_S, "read_timeout": _READ_S, "retries": retries}
    fs = fsspec.filesystem(scheme, **options)
    if scheme in ("s3", "s3a"):
        fs.retries = 1
    return fs


def _refusal(error: Exception) -> str:
    """Why it is in vain to try again; "" where it is not."""
    kind = type(error).__name__
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return SCRATCH_FULL
    if "Credential" in kind or kind in ("ProfileNotFound", "TokenRetrievalError", "SSOTokenLoadError"):
        return "no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or run `aws configure`"
    if isinstance(error, PermissionError):
        return f"access is denied ({one_line(error, 120)}); check the credentials and what they may do"
    if kind == "ParamValidationError" or "Invalid bucket name" in str(error):
        return f"is no valid address ({one_line(error, 120)}); check its spelling"
    return ""


def _no_bucket(url: str) -> InputError:
    return InputError(f"{url}: there is no such bucket; make it, or check its name and the endpoint")


def _is_s3(url: str) -> bool:
    return url.startswith(("s3:", "s3a:"))


def _below(entry: Mapping[str, Any], path: str) -> str:
    """An entry's name below the folder `path`; "" for one that is the folder itself or leads out of it."""
    name, folder = str(entry["name"]).lstrip("/"), path.strip("/") + "/"
    below = name.removeprefix(folder).rstrip("/") if name.startswith(folder) else ""
    return below if all(is_safe(part) for part in below.split("/")) else ""


def _entry(found: Mapping[str, Any]) -> Entry:
    name = str(found["name"]).rstrip("/").rpartition("/")[2]
    return Entry(name, int(found.get("size") or 0), _modified_ns(found), found.get("type") == "directory")


def _modified_ns(found: Mapping[str, Any]) -> int:
    keys = ("LastModified", "last_modified", "mtime", "updated", "created")
    value = next((found[key] for key in keys if found.get(key) is not None), None)
    if isinstance(value, str):
        value = datetime.datetime.fromisoformat(value)
    if isinstance(value, datetime.datetime):
        value = value.timestamp()
    return int(value * 1e9) if isinstance(value, (int, float)) else 0
