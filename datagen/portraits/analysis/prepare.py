"""From photos to a folder of aligned portraits: found, aligned, parsed, written one by one so that a stopped run
goes on.
"""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, Field, ValidationError

from stylepairs.datagen.images.files import PHOTO_SUFFIXES, check_photo_file, holds_more, read_image, write_png
from stylepairs.datagen.portraits.alignment import crop_aligned, ffhq_transform, transform_scale
from stylepairs.datagen.portraits.analysis.analyser import FaceAnalyser, load_analyser
from stylepairs.datagen.portraits.analysis.detection import Face, Faces
from stylepairs.datagen.portraits.folders import checked_name
from stylepairs.datagen.shell.decode import Damaged, decode_json
from stylepairs.datagen.shell.durable import file_digest, make_folder, replace_file
from stylepairs.datagen.shell.errors import InputError, printable
from stylepairs.datagen.shell.lock import folder_lock
from stylepairs.datagen.shell.progress_file import ProgressFile, progress_file
from stylepairs.datagen.shell.regular import read_regular

MIN_SCORE = 0.5
_MAX_SIZE_PX = 4096
_JOURNAL = ".prepared.jsonl"
_MAX_JOURNAL_BYTES = 2 << 30  # half a million portraits
_KINDS = ("aligned", "label", "hair")
_LISTS = ("landmarks.npz", "index.jsonl", "skipped.jsonl")
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


@dataclass(frozen=True)
class _Settings:
    size_px: int
    min_score: float
    landmarks: str
    parser: str


class _Row(BaseModel):
    """What is kept of one portrait."""

    name: str
    photo: str
    photo_sha256: str
    photo_width: int
    photo_height: int
    face: int
    score: float
    size_px: int
    native_crop_px: float
    points68: Annotated[list[tuple[float, float]], Field(min_length=68, max_length=68)]
    source_to_aligned: Annotated[list[tuple[float, float, float]], Field(min_length=2, max_length=2)]


class _Entry(BaseModel):
    """A line of the journal: a photo and its portraits; none: it was dropped."""

    photo: str
    portraits: list[_Row]


def prepare_photos(
    photos: list[Path],
    out: Path,
    size_px: int = 256,
    min_score: float = MIN_SCORE,
    landmarks: str = "embedded",
    parser: str | Path = "embedded",
    progress: Progress | None = None,
) -> Prepared:
    """Writes every face of `photos` (files, or folders with all their files) as an aligned portrait under `out`.

    out/aligned/NAME.png, label/NAME.png, hair/NAME.png, index.jsonl, landmarks.npz (name; points68 [N,68,2] in photo
    pixels; source_to_aligned [N,2,3]) and skipped.jsonl (photo, reason). NAME is the photo's stem; several faces are
    NAME_0, NAME_1, ... from the largest down. A photo that cannot be used is skipped with its reason. Running again
    goes on where it stopped, and adds new photos. progress(done, total, photo) is called after each photo. Raises
    InputError for a path that does not exist, for no usable photo at all, for a full disk, for an `out` that was
    prepared with other settings, and while another process works in it.
    """
    out = Path(out)
    if not 16 <= size_px <= _MAX_SIZE_PX:
        raise InputError(f"--size {size_px}: must lie between 16 and {_MAX_SIZE_PX} pixels")
    if not 0 <= min_score <= 1:
        raise InputError(f"--min-score {min_score}: must lie between 0 and 1")
    settings = _Settings(size_px, min_score, landmarks, str(parser))
    files = list_photos(photos, out)
    analyser = load_analyser(landmarks, parser)
    with folder_lock(out, "datagen prepare"), progress_file(out, "datagen prepare", "photos", len(files)) as noted:
        return _prepare(files, out, settings, analyser, progress, noted)


def _prepare(
    files: list[Path],
    out: Path,
    settings: _Settings,
    analyser: FaceAnalyser,
    progress: Progress | None,
    noted: ProgressFile,
) -> Prepared:
    journal = _Journal(out, settings)
    skipped: list[tuple[str, str]] = []
    unreadable, notes = 0, []
    for done, path in enumerate(files, 1):
        try:
            notes += _prepare_photo(path, out, settings, analyser, journal)
            noted.add(1, accepted=1)
        except _Unusable as unusable:
            journal.drop(_key(path))
            skipped.append((_key(path), str(unusable)))
            noted.add(1, refused={re.sub(r"[0-9.]+", "…", str(unusable)): 1})
            # Other files that lie among photos are no news.
            unreadable += unusable.unreadable and path.suffix.lower() in PHOTO_SUFFIXES
        if progress:
            progress(done, len(files), _key(path))
    rows = journal.rows()
    _write_lines(out / "skipped.jsonl", ({"photo": photo, "reason": reason} for photo, reason in skipped))
    if rows or (out / "landmarks.npz").exists():
        _write_index(out, rows)
    if len(skipped) == len(files):
        photo, reason = skipped[0]
        count = f" ({len(skipped)} photos, all skipped: see {out / 'skipped.jsonl'})" if len(skipped) > 1 else ""
        raise InputError(printable(f"{photo}: {reason}{count}"))
    return Prepared(len(files), [row.name for row in rows], skipped, unreadable, tuple(notes))


def list_photos(photos: Iterable[Path], out: Path | None = None) -> list[Path]:
    """The files named by `photos`, folders searched through, each once, sorted.

    Hidden files and those that `prepare_photos` writes to `out` are left out: photos may lie in a folder of `out`, or
    in `out` itself. Raises InputError for a path that does not exist and for no file.
    """
    photos = [Path(p) for p in photos]
    found: dict[str, Path] = {}
    written = [Path(os.path.realpath(out)) / name for name in (*_KINDS, *_LISTS)] if out else []
    for path in photos:
        if not path.exists():
            raise InputError(f"{path}: no such file or folder")
        for file in _files(path) if path.is_dir() else [path]:
            whole = Path(os.path.realpath(file))
            if not any(place in (whole, *whole.parents) for place in written):
                found.setdefault(str(whole), file)
    if not found:
        raise InputError(f"{photos[0] if photos else 'photos'}: no photo in it; name files or folders with photos")
    return sorted(found.values())


class _Unusable(Exception):
    """Why one photo is skipped; unreadable: it is the file's fault, and not that no face is in it."""

    def __init__(self, reason: str, unreadable: bool = False) -> None:
        super().__init__(reason)
        self.unreadable = unreadable


class _Journal:
    """One line per prepared photo, appended when its files are complete: what a stopped run had done already."""

    def __init__(self, out: Path, settings: _Settings) -> None:
        self.path = out / _JOURNAL
        head = {"settings": asdict(settings), "format": 1}
        entries = _read_journal(self.path)
        if entries and entries[0] != head:
            was = entries[0].get("settings")
            if not isinstance(was, dict):
                raise self._damaged("settings missing")
            changed = next((k for k, v in asdict(settings).items() if was.get(k) != v), "format")
            raise InputError(
                f"{out}: was prepared with {changed}={was.get(changed)}; use another --out or the same settings"
            )
        photos = dict(map(self._checked, entries[1:]))
        self.photos = {photo: rows for photo, rows in photos.items() if rows}
        # Rewritten whole: a line that a killed run left half-written must not spoil the next one.
        kept = [_Entry(photo=photo, portraits=rows).model_dump() for photo, rows in self.photos.items()]
        _write_lines(self.path, [head, *kept])

    def rows(self) -> list[_Row]:
        return sorted((row for rows in self.photos.values() for row in rows), key=lambda row: row.name)

    def drop(self, photo: str) -> None:
        """Forgets `photo` and removes its portraits."""
        if photo not in self.photos:
            return
        # Noted after the files are gone: a run killed in between finds the entry, and removes the rest of them.
        for row in self.photos.pop(photo):
            for kind in _KINDS:
                (self.path.parent / kind / f"{row.name}.png").unlink(missing_ok=True)
        self._append(photo, [])

    def add(self, photo: str, rows: list[_Row]) -> None:
        self.photos[photo] = rows
        self._append(photo, rows)

    def free_names(self, path: Path, digest: str, count: int) -> list[str]:
        """The stem where it is free, else with the photo's digest: the same for every rerun."""
        taken = {row.name.casefold() for row in self.rows()}
        stem = re.sub(r"[^\w.-]+", "_", path.stem).strip(".") or "photo"
        stem = stem.encode()[:120].decode(errors="ignore")
        for attempt in range(len(self.photos) + 2):
            base = stem if attempt == 0 else f"{stem}-{digest[:8]}" + (f"-{attempt}" if attempt > 1 else "")
            names = [base] if count == 1 else [f"{base}_{i}" for i in range(count)]
            if not taken & {name.casefold() for name in names}:
                return names
        raise AssertionError("more names taken than photos prepared")

    def _append(self, photo: str, rows: list[_Row]) -> None:
        try:
            with self.path.open("ab") as file:
                file.write(_line(_Entry(photo=photo, portraits=rows).model_dump()))
        except OSError as error:
            raise InputError(f"{self.path}: cannot be written ({error.strerror or error}); free space") from None

    def _checked(self, entry: dict[str, Any]) -> tuple[str, list[_Row]]:
        try:
            checked = _Entry.model_validate(entry)
        except ValidationError:
            raise self._damaged(f"entry of photo {entry.get('photo')!r:.80}") from None
        for row in checked.portraits:
            checked_name(row.name, self.path)  # it must not lead out of the folder
        return checked.photo, checked.portraits

    def _damaged(self, what: str) -> InputError:
        return InputError(f"{self.path}: damaged ({what}); delete it to prepare every photo again")


def _prepare_photo(path: Path, out: Path, settings: _Settings, analyser: FaceAnalyser, journal: _Journal) -> list[str]:
    """Writes the portraits of one photo, unless that was done; what is to be said of it, in lines."""
    key = _key(path)
    try:
        check_photo_file(path)
        digest = file_digest(path)
        before = journal.photos.get(key)
        if before and before[0].photo_sha256 == digest and _complete(out, before):
            return []
        photo = read_image(path)
    except InputError as error:
        raise _Unusable(printable(str(error).removeprefix(f"{path}: ")), unreadable=True) from None
    faces, passed_over = _find(photo, settings, analyser)
    journal.drop(key)
    rows = []
    for index, (name, face) in enumerate(zip(journal.free_names(path, digest, len(faces)), faces, strict=True)):
        move = ffhq_transform(face.points68, settings.size_px)
        aligned = crop_aligned(photo, move, settings.size_px)
        label, hair = analyser.parse(aligned[None])
        write_png(out / "aligned" / f"{name}.png", aligned)
        write_png(out / "label" / f"{name}.png", label[0].numpy())
        write_png(out / "hair" / f"{name}.png", (hair[0, 0] * 255).round().byte().numpy())
        row = _Row(
            name=name,
            photo=key,
            photo_sha256=digest,
            photo_width=photo.shape[1],
            photo_height=photo.shape[0],
            face=index,
            score=round(face.score, 4),
            size_px=settings.size_px,
            native_crop_px=round(settings.size_px / transform_scale(move), 1),
            points68=face.points68.tolist(),
            source_to_aligned=move.tolist(),
        )
        rows.append(row)
    journal.add(key, rows)
    said = []
    if passed_over:
        left = f"up to {passed_over} more, too many for one photo, were not looked at; cut it into parts"
        said.append(f"{key}: {len(faces)} faces prepared; {left}")
    if holds_more(path):
        said.append(f"{key}: holds several pictures, the first was taken; save the others as files of their own")
    return [printable(line) for line in said]


def _find(photo: np.ndarray, settings: _Settings, analyser: FaceAnalyser) -> tuple[list[Face], int]:
    """The faces of a photo, largest first, and of how many places that may hold one nobody knows."""
    if min(photo.shape[:2]) < 16:
        raise _Unusable(f"only {photo.shape[1]} x {photo.shape[0]} pixels; use a larger photo")
    found = analyser.find(photo, settings.min_score)
    faces = [face for face in found if _has_a_square(face)]
    if not faces:
        found = analyser.find(photo, min_score=0.0)
        best = max((face.score for face in found), default=0.0)
        candidate = f"largest candidate {best:.2f} < {settings.min_score:g}" if found else "no candidate"
        raise _Unusable(f"no face found ({candidate}); pass --min-score or crop closer")
    return faces, found.passed_over if isinstance(found, Faces) else 0


def _has_a_square(face: Face) -> bool:
    try:
        ffhq_transform(face.points68, 1)
    except ValueError:  # eyes and mouth on one point
        return False
    return True


def _complete(out: Path, rows: list[_Row]) -> bool:
    return all((out / kind / f"{row.name}.png").is_file() for row in rows for kind in _KINDS)


def _write_index(out: Path, rows: list[_Row]) -> None:
    buffer = io.BytesIO()
    np.savez(
        buffer,
        name=np.array([row.name for row in rows], np.str_),
        points68=np.array([row.points68 for row in rows], np.float32).reshape(-1, 68, 2),
        source_to_aligned=np.array([row.source_to_aligned for row in rows], np.float64).reshape(-1, 2, 3),
    )
    replace_file(out / "landmarks.npz", lambda file: file.write(buffer.getvalue()))
    _write_lines(out / "index.jsonl", (row.model_dump(exclude={"points68", "source_to_aligned"}) for row in rows))


def _write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    content = b"".join(_line(row) for row in rows)
    make_folder(path.parent)
    replace_file(path, lambda file: file.write(content))


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
            raise InputError(f"{path}: damaged (line {number}); delete it to prepare every photo again")
        entries.append(entry)
    return entries


def _files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if path.is_file() and not hidden:
            yield path


def _key(path: Path) -> str:
    """The photo's path as text: bytes that are no UTF-8 are written as escapes."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")
