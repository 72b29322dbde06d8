"""What `i2i edit` does with files: which photos, where each edit goes, and one line on each, whatever happens to it."""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from stylepairs.datagen.shell import events
from stylepairs.datagen.shell.errors import InputError, printable

if TYPE_CHECKING:
    import numpy as np

    from stylepairs.datagen.images.files import Photo
    from stylepairs.i2i.edit.editor import EditedPhoto
    from stylepairs.i2i.edit.journal import Journal

Jobs = list[tuple[Path, Path]]
VIDEO_SUFFIXES = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v")
# The formats that can hold provenance, by the suffixes of photos.
SAME_FORMAT = {suffix: suffix for suffix in (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff")} | {".jfif": ".jpg"}


class Edits(Protocol):
    """An Editor, or several as one."""

    def __call__(self, photo: np.ndarray, params: Mapping[str, Any], *, min_score: float) -> EditedPhoto: ...


def edit_files(
    editor: Edits,
    jobs: Jobs,
    params: Mapping[str, Any],
    min_score: float,
    provenance: bool = True,
    journal: Journal | None = None,
    work: Callable[[Path, Path], str] | None = None,
) -> int:
    """Edit each photo into its file and print a line on it; returns how many failed. None of them ends the others.

    journal: photos that it has are passed over, those that are finished are noted in it. work: what is done to a file,
    giving what is said of it; None: `edit_file`.
    """
    failed = 0
    for path, target in jobs:
        began = time.monotonic()
        try:
            if journal is not None and journal.has(path, target):
                print(printable(f"{path} -> {target}: edited before"))
                continue
            if work is None:
                done = outcome(edit_file(editor, path, target, params, min_score, provenance))
            else:
                done = work(path, target)
            print(printable(f"{path} -> {target}: {done}"))
            events.event("edited", photo=path, out=target, outcome=done, seconds=time.monotonic() - began)
            if journal is not None:
                journal.add(path, target)
        except InputError as error:
            failed += 1
            events.tell(printable(str(error)), "failed", photo=path, seconds=time.monotonic() - began)
        except Exception as error:  # noqa: BLE001 - the next photo is edited all the same; it is told as a fault
            failed += 1
            place = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{Path(place.filename).name}:{place.lineno}"
            text = f"{path}: not edited, a fault of this program ({type(error).__name__}: {error}; {where}); report it"
            events.tell(printable(text), "failed", photo=path, seconds=time.monotonic() - began)
    return failed


def edit_file(
    editor: Edits,
    path: Path,
    target: Path,
    params: Mapping[str, Any],
    min_score: float = 0.5,
    provenance: bool = True,
) -> EditedPhoto:
    """Edit one photo file into `target` (format by its suffix), upright, as its file stored it: in its depth, mode,
    profile and transparency, as far as the format can hold them, with its metadata.

    provenance: the file says that a generative model edited it (`stylepairs.i2i.edit.provenance`), unless nothing of it
    was changed. Raises InputError (one line that begins with the photo's name) for an unreadable photo, one without a
    face, or one with none that the edit applies to.
    """
    from stylepairs.datagen.images.files import save_photo

    def made(photo: np.ndarray) -> EditedPhoto:
        try:
            return editor(photo, params, min_score=min_score)
        except InputError as error:
            raise InputError(f"{path}: {error}") from None

    _, edited, result = edited_photo(path, target.suffix.lower(), made, provenance)
    save_photo(target, result)
    return edited


def edited_photo(
    path: Path, suffix: str, edit: Callable[[np.ndarray], EditedPhoto], provenance: bool = True
) -> tuple[np.ndarray, EditedPhoto, Photo]:
    """A photo file's pixels in sRGB, what `edit` makes of them, and the photo to store under this suffix, which says
    that it was edited (see `edit_file`)."""
    from stylepairs.datagen.images import stored
    from stylepairs.i2i.edit.provenance import marked

    photo = stored.load_stored(path)
    before = stored.srgb_of(photo)
    edited = edit(before)
    result = stored.fitting(stored.with_edit(photo, before, edited.pixels), suffix)
    edited = replace(edited, notes=(*edited.notes, *result.notes))
    return before, edited, marked(result) if provenance and edited.mask.any() else result


def outcome(edited: EditedPhoto) -> str:
    """How many faces were edited, why others were left, and what was not looked at."""
    count, faces = sum(face.refused is None for face in edited.faces), len(edited.faces)
    text = f"{count} of {faces} face{'s' * (faces != 1)} edited"
    reasons = sorted({face.refused for face in edited.faces if face.refused})
    # The notes of several edits have the reasons already.
    text += "".join(f"; left: {reason}" for reason in reasons if not any(reason in note for note in edited.notes))
    text += "".join(f"; {note}" for note in edited.notes)
    if edited.passed_over:
        text += f"; up to {edited.passed_over} more, too many for one photo, were not looked at; cut it into parts"
    return text


def jobs_of(paths: Iterable[Path], out: Path, suffix: str | None, taken: tuple[str, ...] | None = None) -> Jobs:
    """Each photo and its file in `out`, no two alike: photos of the same name get _2, _3, ...

    paths: files, or folders with all their files, or those with the suffixes `taken`, whose sub-folders are kept;
    suffix None keeps each photo's own, as far as its format can say that the photo was edited, and is .png for the
    others. Raises InputError before anything is written if a file would take a photo's place.
    """
    photos = [found for path in paths for found in _photos(path, out, taken)]
    originals = {os.path.realpath(path) for path, _ in photos}
    jobs: dict[Path, Path] = {}
    for path, folder in photos:
        ending, count = suffix or SAME_FORMAT.get(path.suffix.lower(), ".png"), 1
        target = out / folder / (path.stem + ending)
        while target in jobs:
            count += 1
            target = out / folder / f"{path.stem}_{count}{ending}"
        if os.path.realpath(target) in originals:
            raise InputError(f"{target}: is one of the photos and would be overwritten; choose another --out")
        jobs[target] = path
    return [(path, target) for target, path in jobs.items()]


def _photos(path: Path, out: Path, taken: tuple[str, ...] | None) -> list[tuple[Path, Path]]:
    """A photo with the sub-folder of `out` that its edit goes to; of a folder all files, or those with the suffixes
    `taken`, but those that lie in out."""
    if _is_model(path):
        raise InputError(f"{path}: is a model, not a photo; give each of several models by --run, then photos alone")
    if not path.is_dir():
        return [(path, Path())]
    from stylepairs.datagen.portraits.analysis.prepare import list_photos

    written = Path(os.path.realpath(out))
    files = [file for file in list_photos([path]) if written not in Path(os.path.realpath(file)).parents]
    if not files:
        raise InputError(f"{path}: all its files lie in {out}, where edits go; choose another --out")
    if taken is not None:
        files = [file for file in files if file.suffix.lower() in taken]
        if not files:
            raise InputError(f"{path}: no file in it ends in {', '.join(taken)}; name files")
    return [(file, file.relative_to(path).parent) for file in files]


def _is_model(path: Path) -> bool:
    """Whether this is a run folder (whose samples would be edited), its weights, or the name of a shipped model."""
    if f"{path}".partition(":")[0] == "embedded" and not path.exists():
        return True
    return path.suffix == ".safetensors" or (path / "model.safetensors").is_file()


def checked_suffix(format: str) -> str | None:
    """ ".png" for "png"; None for "same"."""
    if format == "same":
        return None
    if format not in ("png", "jpg", "jpeg", "webp", "tif", "tiff"):
        raise InputError(f"--format {format}: unknown; choose png, jpg, webp, tif or same")
    return f".{format}"
