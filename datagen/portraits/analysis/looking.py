"""Looks at photos for `prepare`, in one process or many: each face found, aligned, parsed, as bytes to write."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import BaseModel, Field

from stylepairs.datagen.images.files import check_photo_file, holds_more, png_bytes, read_image
from stylepairs.datagen.portraits.alignment import crop_aligned, ffhq_transform, has_square, transform_scale
from stylepairs.datagen.portraits.analysis.analyser import FaceAnalyser, load_analyser
from stylepairs.datagen.portraits.analysis.detection import Face, Faces
from stylepairs.datagen.shell.durable import file_digest
from stylepairs.datagen.shell.errors import InputError, as_text, printable
from stylepairs.datagen.shell.storage.staged import Staged, drop
from stylepairs.datagen.shell.workers import Report


@dataclass(frozen=True)
class Settings:
    """What portraits depend on besides the photo."""

    size_px: int
    min_score: float
    landmarks: str
    parser: str


class Row(BaseModel):
    """What is kept of one portrait; name: "" until it has one."""

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


@dataclass(frozen=True)
class Photo:
    """A photo to look at. known: its digest if its portraits are there; "" otherwise."""

    number: int
    path: Path
    known: str


@dataclass(frozen=True)
class Seen:
    """What was seen in a photo. pictures: of each face the PNG files of its kinds, with its row, yet unnamed; same: it
    is the photo that is known; unusable: why it is skipped, unreadable: that is the file's fault; notes: what else."""

    number: int
    digest: str = ""
    pictures: list[tuple[Row, list[bytes]]] = field(default_factory=list)
    same: bool = False
    unusable: str = ""
    unreadable: bool = False
    notes: list[str] = field(default_factory=list)


class _Unusable(Exception):
    """Why one photo is skipped."""


@dataclass(frozen=True)
class Looker:
    """Prepares what looks at photos, in this or another process, with one thread of torch: sums depend on how many."""

    settings: Settings

    def __call__(self, report: Report) -> Callable[[Photo], None]:
        import torch

        torch.set_num_threads(1)
        analyser = load_analyser(self.settings.landmarks, self.settings.parser)

        def look(photo: Photo) -> None:
            report(_look(photo, self.settings, analyser))
            drop(photo.path)

        return look


def _look(photo: Photo, settings: Settings, analyser: FaceAnalyser) -> Seen:
    """The portraits of one photo, unless they are there."""
    path, key = photo.path, photo_key(photo.path)
    try:
        check_photo_file(path)
        digest = file_digest(path)
        if digest == photo.known:
            return Seen(photo.number, same=True)
        pixels = read_image(path)
    except InputError as error:
        reason = printable(str(error).removeprefix(f"{path}: "))
        return Seen(photo.number, unusable=reason, unreadable=True)
    try:
        faces, passed_over = _find(pixels, settings, analyser)
    except _Unusable as unusable:
        return Seen(photo.number, unusable=str(unusable))
    pictures = []
    for index, face in enumerate(faces):
        move = ffhq_transform(face.points68, settings.size_px)
        aligned = crop_aligned(pixels, move, settings.size_px)
        label, hair = analyser.parse(aligned[None])
        files = [aligned, label[0].numpy(), (hair[0, 0] * 255).round().byte().numpy()]
        row = Row(
            name="",
            photo=key,
            photo_sha256=digest,
            photo_width=pixels.shape[1],
            photo_height=pixels.shape[0],
            face=index,
            score=round(face.score, 4),
            size_px=settings.size_px,
            native_crop_px=round(settings.size_px / transform_scale(move), 1),
            points68=face.points68.tolist(),
            source_to_aligned=move.tolist(),
        )
        pictures.append((row, [png_bytes(each) for each in files]))
    notes = []
    if passed_over:
        left = f"up to {passed_over} more, too many for one photo, were not looked at; cut it into parts"
        notes.append(f"{len(faces)} faces prepared; {left}")
    if holds_more(path):
        notes.append("holds several pictures, the first was taken; save the others as files of their own")
    return Seen(photo.number, digest, pictures, notes=notes)


def _find(photo: np.ndarray, settings: Settings, analyser: FaceAnalyser) -> tuple[list[Face], int]:
    """The faces of a photo, largest first, and of how many places that may hold one nobody knows."""
    if min(photo.shape[:2]) < 16:
        raise _Unusable(f"only {photo.shape[1]} x {photo.shape[0]} pixels; use a larger photo")
    found = analyser.find(photo, settings.min_score)
    faces = [face for face in found if has_square(face.points68)]
    if not faces:
        found = analyser.find(photo, min_score=0.0)
        best = max((face.score for face in found), default=0.0)
        candidate = f"largest candidate {best:.2f} < {settings.min_score:g}" if found else "no candidate"
        raise _Unusable(f"no face found ({candidate}); pass --min-score or crop closer")
    return faces, found.passed_over if isinstance(found, Faces) else 0


def whole_key(path: Path) -> str:
    """`photo_key` of the whole path: the same from wherever a photo is named."""
    return photo_key(path if isinstance(path, Staged) else Path(os.path.abspath(path)))


def photo_key(path: Path) -> str:
    """The photo's path or URL as text."""
    return path.url if isinstance(path, Staged) else as_text(path)
