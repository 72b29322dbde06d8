"""From photos to a folder of aligned portraits: found, aligned, parsed, written one by one so that a stopped run
goes on.
"""

from __future__ import annotations

import io
import json
import os
import re
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ValidationError

from stylepairs.datagen.images.files import PHOTO_SUFFIXES, visible_files
from stylepairs.datagen.portraits.analysis.looking import Looker, Photo, Row, Seen, Settings, photo_key, whole_key
from stylepairs.datagen.portraits.folders import PORTRAITS_FILE, checked_name
from stylepairs.datagen.shell.decode import Damaged, decode_json
from stylepairs.datagen.shell.durable import make_folder, write_bytes
from stylepairs.datagen.shell.errors import InputError, printable
from stylepairs.datagen.shell.lock import folder_lock
from stylepairs.datagen.shell.machine import settings_put_back
from stylepairs.datagen.shell.progress_file import ProgressFile, progress_file
from stylepairs.datagen.shell.regular import is_regular, read_regular
from stylepairs.datagen.shell.storage.staged import Staged, drop, place, publish
from stylepairs.datagen.shell.workers import Engine, run_workers

MIN_SCORE = 0.5
_MAX_SIZE_PX = 4096
_JOURNAL = ".prepared.jsonl"
_MAX_JOURNAL_BYTES = 2 << 30  # half a million portraits
_KINDS = ("aligned", "label", "hair")
# Of a journal at a URL: photos of so many seconds are done again after a kill.
_PUBLISHED_S = 20.0
_LISTS = (PORTRAITS_FILE, "index.jsonl", "skipped.jsonl")
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Prepared:
    """What `prepare_photos` did: how many photos it looked at, the portraits in the folder, the skipped (photo,
    reason), how many of these are photos that could not be read, and what else is to be said, in lines.
    """

    photos: int
    portraits: list[str]
    skipped: list[tuple[str, str]]
    unreadable: int = 0
    notes: tuple[str, ...] = ()


class _Entry(BaseModel):
    """A line of the journal: a photo and its portraits; none: it was dropped."""

    photo: str
    portraits: list[Row]


def prepare_photos(  # noqa: PLR0913 - two of them by name
    photos: list[Path],
    out: Path,
    size_px: int = 256,
    min_score: float = MIN_SCORE,
    landmarks: str = "embedded",
    parser: str | Path = "embedded",
    progress: Progress | None = None,
    *,
    workers: int | None = 1,
    run: Engine = run_workers,
) -> Prepared:
    """Writes every face of `photos` (files, or folders with all their files) as an aligned portrait under `out`.

    out/aligned/NAME.png, label/NAME.png, hair/NAME.png, index.jsonl, landmarks.npz (name; points68 [N,68,2] in photo
    pixels; source_to_aligned [N,2,3]) and skipped.jsonl (photo, reason). NAME is the photo's stem; several faces are
    NAME_0, NAME_1, ... from the largest down. A photo that cannot be used is skipped with its reason. Running again
    goes on where it stopped, and adds new photos. progress(done, total, photo) is called after each photo. `run` shares
    the photos out to `workers` (see `engines`); what is written does not depend on them. Raises InputError for a path
    that does not exist, for no usable photo at all, for a full disk, for an `out` that was prepared with other
    settings, and while another process works in it.
    """
    out = place(out)
    if not 16 <= size_px <= _MAX_SIZE_PX:
        raise InputError(f"--size {size_px}: must lie between 16 and {_MAX_SIZE_PX} pixels")
    if not 0 <= min_score <= 1:
        raise InputError(f"--min-score {min_score}: must lie between 0 and 1")
    settings = Settings(size_px, min_score, landmarks, str(parser))
    files = list_photos(photos, out)
    with folder_lock(out, "datagen prepare"), progress_file(out, "datagen prepare", "photos", len(files)) as noted:
        made = _Made(_Journal(out, settings), files, noted, progress)
        known = _digests_of_complete(made.journal)
        looked_at = [Photo(number, path, known.get(whole_key(path), "")) for number, path in enumerate(files)]
        with settings_put_back():
            run(Looker(settings), looked_at, workers, made.take)
        return _conclude(files, out, made)


class _Made:
    """Takes what was seen in photos, in whatever order it comes, and keeps it in the photos' order: which portrait gets
    which name depends on those before it."""

    def __init__(self, journal: _Journal, files: list[Path], noted: ProgressFile, progress: Progress | None) -> None:
        self.journal, self.files, self.noted, self.progress = journal, files, noted, progress
        self.skipped: list[tuple[str, str]] = []
        self.unreadable, self.notes = 0, list[str]()
        self._waiting: dict[int, Seen] = {}
        self._next = 0

    def take(self, seen: Seen) -> None:
        self._waiting[seen.number] = seen
        while self._next in self._waiting:
            self._keep(self._waiting.pop(self._next), self.files[self._next])
            self._next += 1

    def _keep(self, seen: Seen, path: Path) -> None:
        key = photo_key(path)
        if seen.unusable:
            self.journal.drop(whole_key(path))
            self.skipped.append((key, seen.unusable))
            self.noted.add(1, refused={re.sub(r"[0-9.]+", "…", seen.unusable): 1})
            # Other files that lie among photos are no news.
            self.unreadable += seen.unreadable and path.suffix.lower() in PHOTO_SUFFIXES
        else:
            if not seen.same:
                self.notes += [printable(f"{key}: {note}") for note in seen.notes]
                _write_portraits(path, seen, self.journal)
            self.noted.add(1, accepted=1)
        if self.progress:
            self.progress(seen.number + 1, len(self.files), key)


def _conclude(files: list[Path], out: Path, made: _Made) -> Prepared:
    """Write the lists of what is there now."""
    skipped, rows = made.skipped, made.journal.rows()
    made.journal.publish()
    _write_lines(out / "skipped.jsonl", ({"photo": photo, "reason": reason} for photo, reason in skipped))
    if rows or is_regular(out / PORTRAITS_FILE):
        _write_index(out, rows)
    if len(skipped) == len(files):
        photo, reason = skipped[0]
        count = f" ({len(skipped)} photos, all skipped: see {out / 'skipped.jsonl'})" if len(skipped) > 1 else ""
        raise InputError(printable(f"{photo}: {reason}{count}"))
    return Prepared(len(files), [row.name for row in rows], skipped, made.unreadable, tuple(made.notes))


def list_photos(photos: Iterable[Path], out: Path | None = None) -> list[Path]:
    """The files named by `photos`, folders searched through, each once, sorted.

    Hidden files and those that `prepare_photos` writes, to `out` or to one of these folders, are left out: photos may
    lie in a folder of prepared portraits. Raises InputError for a path that does not exist and for no file.
    """
    photos = [place(p) for p in photos]
    found: dict[str, Path] = {}
    prepared = [path for path in photos if (path / PORTRAITS_FILE).exists()] + ([] if out is None else [out])
    written = [Path(os.path.realpath(folder)) / name for folder in prepared for name in (*_KINDS, *_LISTS)]
    for path in photos:
        if not path.exists():
            raise InputError(f"{path}: no such file or folder")
        for file in visible_files(path) if path.is_dir() else [path]:
            whole = Path(os.path.realpath(file))  # of a URL where its copy will lie
            if not any(place in (whole, *whole.parents) for place in written):
                found.setdefault(str(whole), file)
    if not found:
        raise InputError(f"{photos[0] if photos else 'photos'}: no photo in it; name files or folders with photos")
    return sorted(found.values())


class _Journal:
    """One line per prepared photo, appended when its files are complete: what a stopped run had done already."""

    def __init__(self, out: Path, settings: Settings) -> None:
        self.path, self._published = out / _JOURNAL, time.monotonic()
        head = {"settings": asdict(settings), "format": 1}
        entries = _read_journal(self.path)
        if not entries and is_regular(out / PORTRAITS_FILE):
            advice = "copy it there, too, or choose another --out"
            raise InputError(f"{out}: holds portraits that no {_JOURNAL} knows; {advice}")
        was = entries[0].get("settings") if entries else {}
        if not isinstance(was, dict):
            raise self._damaged("settings missing")
        photos = dict(map(self._checked, entries[1:]))
        self.photos = {photo: rows for photo, rows in photos.items() if rows}
        if self.photos and entries[0] != head:  # of settings that prepared nothing others may follow
            changed = next((k for k, v in asdict(settings).items() if was.get(k) != v), "format")
            raise InputError(
                f"{out}: was prepared with {changed}={was.get(changed)}; use another --out or the same settings"
            )
        self._taken = {row.name.casefold() for rows in self.photos.values() for row in rows}
        # Rewritten whole: a line that a killed run left half-written must not spoil the next one.
        kept = [_Entry(photo=photo, portraits=rows).model_dump() for photo, rows in self.photos.items()]
        _write_lines(self.path, [head, *kept])

    def rows(self) -> list[Row]:
        return sorted((row for rows in self.photos.values() for row in rows), key=lambda row: row.name)

    def drop(self, photo: str) -> None:
        """Forgets `photo` and removes its portraits."""
        if photo not in self.photos:
            return
        # Noted after the files are gone: a run killed in between finds the entry, and removes the rest of them.
        for row in self.photos.pop(photo):
            self._taken.discard(row.name.casefold())
            for kind in _KINDS:
                (self.path.parent / kind / f"{row.name}.png").unlink(missing_ok=True)
        self._append(photo, [])

    def add(self, photo: str, rows: list[Row]) -> None:
        self.photos[photo] = rows
        self._taken |= {row.name.casefold() for row in rows}
        self._append(photo, rows)

    def free_names(self, path: Path, digest: str, count: int) -> list[str]:
        """The stem where it is free, else with the photo's digest: the same for every rerun."""
        stem = re.sub(r"[^\w.-]+", "_", path.stem).strip(".") or "photo"
        stem = stem.encode()[:120].decode(errors="ignore")
        for attempt in range(len(self.photos) + 2):
            base = stem if attempt == 0 else f"{stem}-{digest[:8]}" + (f"-{attempt}" if attempt > 1 else "")
            names = [base] if count == 1 else [f"{base}_{i}" for i in range(count)]
            if self._taken.isdisjoint(name.casefold() for name in names):
                return names
        raise AssertionError("more names taken than photos prepared")

    def _append(self, photo: str, rows: list[Row]) -> None:
        try:
            with self.path.open("ab") as file:
                file.write(_line(_Entry(photo=photo, portraits=rows).model_dump()))
        except OSError as error:
            raise InputError(f"{self.path}: cannot be written ({error.strerror or error}); free space") from None
        if time.monotonic() - self._published > _PUBLISHED_S:
            self.publish()

    def publish(self) -> None:
        """Put the journal, to which a store lets nobody add, where its URL is."""
        self._published = time.monotonic()
        publish(self.path)

    def _checked(self, entry: dict[str, Any]) -> tuple[str, list[Row]]:
        try:
            checked = _Entry.model_validate(entry)
        except ValidationError:
            raise self._damaged(f"entry of photo {entry.get('photo')!r:.80}") from None
        for row in checked.portraits:
            checked_name(row.name, self.path)  # it must not lead out of the folder
        # Journals named photos as they were typed once.
        typed = "://" not in checked.photo and os.path.exists(checked.photo)
        return os.path.abspath(checked.photo) if typed else checked.photo, checked.portraits

    def _damaged(self, what: str) -> InputError:
        return InputError(f"{self.path}: damaged ({what}); prepare the photos into another --out")


def _write_portraits(path: Path, seen: Seen, journal: _Journal) -> None:
    """Name the portraits of a photo, write them, and note them."""
    key, out = whole_key(path), journal.path.parent
    journal.drop(key)
    rows = []
    names = journal.free_names(path, seen.digest, len(seen.pictures))
    for name, (row, files) in zip(names, seen.pictures, strict=True):
        for kind, data in zip(_KINDS, files, strict=True):
            target = out / kind / f"{name}.png"
            make_folder(target.parent)
            write_bytes(target, data)
            drop(target)
        rows.append(row.model_copy(update={"name": name}))
    journal.add(key, rows)


def _digests_of_complete(journal: _Journal) -> dict[str, str]:
    """Photo -> its digest, of those whose portraits are all there."""
    out, listed = journal.path.parent, set[tuple[str, str]]()
    if isinstance(out, Staged) and journal.photos:
        listed = {(kind, path.name) for kind in _KINDS for path in (out / kind).iterdir()}

    def is_there(kind: str, name: str) -> bool:
        return (kind, name) in listed if isinstance(out, Staged) else (out / kind / name).is_file()

    return {
        photo: rows[0].photo_sha256
        for photo, rows in journal.photos.items()
        if all(is_there(kind, f"{row.name}.png") for row in rows for kind in _KINDS)
    }


def _write_index(out: Path, rows: list[Row]) -> None:
    buffer = io.BytesIO()
    np.savez(
        buffer,
        name=np.array([row.name for row in rows], np.str_),
        points68=np.array([row.points68 for row in rows], np.float32).reshape(-1, 68, 2),
        source_to_aligned=np.array([row.source_to_aligned for row in rows], np.float64).reshape(-1, 2, 3),
    )
    write_bytes(out / PORTRAITS_FILE, buffer.getvalue())
    _write_lines(out / "index.jsonl", (row.model_dump(exclude={"points68", "source_to_aligned"}) for row in rows))


def _write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    content = b"".join(_line(row) for row in rows)
    make_folder(path.parent)
    write_bytes(path, content)


def _line(row: dict[str, Any]) -> bytes:
    return json.dumps(row).encode() + b"\n"


def _read_journal(path: Path) -> list[dict[str, Any]]:
    """The journal's entries, without the lines that killed runs left half-written; InputError for anything else."""
    try:
        lines = read_regular(path, _MAX_JOURNAL_BYTES).split(b"\n") if path.exists() else []
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error}); mend its permissions") from None
    entries = []
    for number, line in enumerate(lines, 1):
        try:
            entry = decode_json(line)
        except Damaged as damage:
            if isinstance(damage.__cause__, ValueError):
                continue
            entry = None
        if not isinstance(entry, dict):
            raise InputError(f"{path}: damaged (line {number}); prepare the photos into another --out")
        entries.append(entry)
    return entries
