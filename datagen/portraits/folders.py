"""Reads portraits from a folder that `prepare_photos` wrote, or from one in the layout of the labelled training
portraits.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import BaseModel, Field, ValidationError

from stylepairs.datagen.images.files import PHOTO_SUFFIXES, read_image, to_float
from stylepairs.datagen.portraits.alignment import apply_transform
from stylepairs.datagen.portraits.landmarks import MESH_TO_68
from stylepairs.datagen.portraits.portrait import Portrait
from stylepairs.datagen.shell.decode import Damaged, decode_npz, read_json_lines
from stylepairs.datagen.shell.errors import InputError, one_line
from stylepairs.datagen.shell.regular import is_regular
from stylepairs.datagen.shell.storage.staged import Staged, drop, fetched

PORTRAITS_FILE = "landmarks.npz"  # what makes a folder one of prepared portraits
_MAX_NAME_BYTES = 200


@dataclass(frozen=True)
class PortraitFile:
    """One portrait on disk: points68 [68,2] float32 in photo pixels, source_to_aligned [2,3] float64 (photo ->
    aligned pixels).
    """

    name: str
    folder: Path
    points68: np.ndarray
    source_to_aligned: np.ndarray

    @property
    def paths(self) -> tuple[Path, Path, Path]:
        """The aligned picture, the label map and the hair matte."""
        label, hair = (self.folder / kind / f"{self.name}.png" for kind in ("label", "hair"))
        return self.aligned_path, label, hair

    @property
    def aligned_path(self) -> Path:
        """The aligned picture: .png, or .jpg in the training layout; the first of them where neither exists."""
        jpeg, png = (self.folder / "aligned" / f"{self.name}.{suffix}" for suffix in ("jpg", "png"))
        if isinstance(png, Staged) and is_regular(png):  # most often, and then there is nothing to ask
            return png
        return jpeg if is_regular(jpeg) else png

    def load(self) -> Portrait:
        """The portrait itself. Raises InputError where a file is missing, damaged or of another size than the rest."""
        import torch

        aligned_path, label_path, hair_path = self.paths
        aligned = read_image(aligned_path)
        label, hair = _read_grey(label_path), _read_grey(hair_path)
        for path, plane in ((label_path, label), (hair_path, hair)):
            if plane.shape != aligned.shape[:2] or aligned.shape[0] != aligned.shape[1]:
                raise InputError(
                    f"{path}: {plane.shape} pixels beside an aligned portrait of {aligned.shape[:2]}; prepare it again"
                )
        if label.max() > 18:
            raise InputError(f"{label_path}: class {label.max()} is none of the 19 of a label map")
        for path in (aligned_path, label_path, hair_path):
            drop(path)
        points = apply_transform(self.source_to_aligned, self.points68.astype(np.float64))
        return Portrait(
            name=self.name,
            image=to_float(aligned),
            label=torch.from_numpy(label),
            hair=torch.from_numpy(hair).float()[None] / 255,
            points68=torch.from_numpy(points.astype(np.float32)),
            digest=pixel_digest(aligned),
        )

    def digest(self) -> str:
        """The portrait's digest, of its picture alone. Raises InputError where that is missing or damaged."""
        return pixel_digest(read_image(self.aligned_path))


def pixel_digest(pixels: np.ndarray) -> str:
    """sha256 of a portrait's pixels, in hex: the same in whatever file they are."""
    return hashlib.sha256(pixels.tobytes()).hexdigest()


def source_digest(name: str, digest: str, photos: Mapping[str, str]) -> str:
    """What the split goes by, of a portrait with this digest: its photo's in `photos` (of `photo_digests`), or the
    portrait's own where that is not known."""
    return photos.get(name, digest)


def refuse_portraits(out: Path) -> None:
    """Raises InputError where a folder that is to be written into holds prepared portraits."""
    if (out / PORTRAITS_FILE).exists():
        raise InputError(f"{out}: holds prepared portraits; choose another --out")


def load_portraits(folder: Path) -> list[PortraitFile]:
    """The portraits of `folder`, sorted by name; nothing but landmarks.npz is read yet.

    Raises InputError for a folder that holds none.
    """
    path = folder / PORTRAITS_FILE
    if not is_regular(path):
        photos = folder.is_dir() and any(each.suffix.lower() in PHOTO_SUFFIXES for each in folder.iterdir())
        told = (
            f"prepare {folder} --out PORTRAITS, and name PORTRAITS here" if photos else f"prepare PHOTOS --out {folder}"
        )
        raise InputError(f"{folder}: no prepared portraits (no landmarks.npz); run datagen {told}")
    try:
        names, points, moves = _read_landmarks(path)
    except Damaged as error:
        raise InputError(f"{path}: damaged or of another layout ({error}); prepare it again") from None
    if not names or points.shape != (len(names), 68, 2) or moves.shape != (len(names), 2, 3):
        raise InputError(
            f"{path}: {len(names)} names, points {points.shape}, transforms {moves.shape}; prepare it again"
        )
    if not (np.isfinite(points).all() and np.isfinite(moves).all()):
        raise InputError(f"{path}: a point or transform is no number; prepare it again")
    rows = zip(names, points, moves, strict=True)
    files = sorted((PortraitFile(checked_name(n, path), folder, p, m) for n, p, m in rows), key=lambda file: file.name)
    for one, other in itertools.pairwise(files):
        if one.name == other.name:
            raise InputError(f"{path}: holds {one.name} twice; prepare it again")
    return files


def ahead(files: Iterable[PortraitFile]) -> Iterator[PortraitFile]:
    """Portraits in order, while the files of the next ones come from their URL."""
    files = list(files)
    kinds = ("aligned", "label", "hair")
    coming = fetched(file.folder / kind / f"{file.name}.png" for file in files for kind in kinds)
    for file in files:
        for _ in kinds:
            next(coming)
        yield file


def load_portrait(folder: Path, name: str) -> Portrait:
    """The portrait `name` of `folder`; InputError where there is none of that name."""
    for portrait in load_portraits(folder):
        if portrait.name == name:
            return portrait.load()
    raise InputError(f"{folder}: no portrait named {name}")


def photo_digests(folder: Path) -> dict[str, str]:
    """Portrait name -> sha256 of its photo, as `prepare_photos` noted it; {} where it did not. Raises InputError."""
    path = folder / "index.jsonl"
    if not is_regular(path):
        return {}
    try:
        rows = [_IndexRow.model_validate(row) for row in read_json_lines(path)]
    except (Damaged, ValidationError) as error:
        raise InputError(f"{path}: damaged ({one_line(error)}); prepare the photos again") from error
    return {row.name: row.photo_sha256 for row in rows if row.photo_sha256 is not None}


class _IndexRow(BaseModel):
    name: str
    photo_sha256: str | None = Field(default=None, max_length=64)


def checked_name(name: object, path: Path) -> str:
    """`name`, a portrait's name that `path` holds, where it stays inside its folder; InputError otherwise."""
    if isinstance(name, str) and re.fullmatch(r"(?!\.)[\w.-]+", name) and len(name.encode()) <= _MAX_NAME_BYTES:
        return name
    raise InputError(
        f"{path}: {ascii(name)[:80]} is no portrait's name (letters, digits, '.', '_' and '-'); prepare it again"
    )


def _read_landmarks(path: Path) -> tuple[list[object], np.ndarray, np.ndarray]:
    """The names, points68 [N,68,2] float32 and transforms [N,2,3] float64 as stored, of either layout.

    Raises Damaged.
    """
    stored = decode_npz(path)
    prepared = "points68" in stored
    wanted = ("name", "points68", "source_to_aligned") if prepared else ("name", "mesh468", "raw_to_aligned256")
    lacking = [name for name in wanted if name not in stored]
    if lacking:
        raise Damaged(f"has no {lacking[0]}")
    names, points, moves = (stored[name] for name in wanted)
    if not (np.issubdtype(points.dtype, np.floating) and np.issubdtype(moves.dtype, np.floating)):
        raise Damaged(f"{wanted[1]} of {points.dtype}, {wanted[2]} of {moves.dtype}")
    if not prepared:
        if points.ndim != 3 or points.shape[1] != 468:
            raise Damaged(f"mesh468 of shape {points.shape}")
        points = points[:, MESH_TO_68]
    return names.ravel().tolist(), points.astype(np.float32), moves.astype(np.float64)


def _read_grey(path: Path) -> np.ndarray:
    """A PNG of one channel, uint8 [H,W]; InputError where it is missing or damaged."""
    return read_image(path)[..., 0].copy()
