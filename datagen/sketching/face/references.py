"""Reference portraits, from which parts of a face are taken: named by the user, or drawn from a folder by likeness.

A drawn reference is one of the nearest to a portrait in head pose, skin tone and sharpness; which of them is decided by
the seed and the portrait alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from stylepairs.datagen.images.colors import srgb_to_lab
from stylepairs.datagen.images.filters import blurred
from stylepairs.datagen.portraits.face_frame import FaceFrame
from stylepairs.datagen.portraits.folders import PortraitFile, load_portraits
from stylepairs.datagen.portraits.landmarks import NOSE_FOOT, mouth_width
from stylepairs.datagen.portraits.portrait import Portrait
from stylepairs.datagen.shell.errors import InputError
from stylepairs.datagen.shell.randomness import random_key

BUNDLED = "bundled"
BUNDLED_FOLDER = Path(__file__).parents[2] / "features" / "references"
# Of the nearest in pose so many are looked at closely; of those that are nearest in all, so many may be drawn.
_SHORTLIST, _DRAWN_FROM = 40, 4
# A reference found in a photo is cut out at this size, and likeness is judged at the smaller one.
_PHOTO_CROP_PX, _LIKENESS_PX = 256, 64
_MIN_SCORE = 0.5
# What counts as far: in pose (yaw and pitch in eye distances, openness of the mouth), in Lab, in powers of e.
_FAR_POSE, _FAR_OPEN, _FAR_TONE, _FAR_BEARD, _FAR_SHARPNESS = 0.05, 0.12, 8.0, 6.0, 0.7
_BARE = 5  # patches of bare skin, before those of the beard
# Two portraits whose thumbnails differ by less than this (RMS, in [-1,1]) are one picture, cropped or coded twice.
_SAME_PICTURE = 0.08


@dataclass(frozen=True)
class Likeness:
    """What references are compared by: pose [3] (yaw, pitch, openness of the mouth), tones [5,3] in Lab of patches of
    bare skin, beard [4,3] how those around the mouth differ from them, sharpness (log), thumbnail [3,16,16]."""

    pose: np.ndarray
    tones: np.ndarray
    beard: np.ndarray
    sharpness: float
    thumbnail: np.ndarray


def named_reference(reference: str) -> Portrait:
    """The portrait that `reference` names: a photo file, FOLDER/NAME of a folder of prepared portraits, or
    "bundled/NAME".

    The face of a photo is found, aligned and parsed with the embedded analyser. Raises InputError, one line, where
    there is no such file or portrait, or no face in it.
    """
    path = Path(reference)
    if path.is_file():
        return _photo_portrait(path, path.stat().st_mtime_ns)
    if str(path.parent) == BUNDLED or (path.parent / "landmarks.npz").is_file():
        if path.name in reference_names(str(path.parent)):
            return reference_portrait(str(path.parent), path.name)
        raise InputError(f"reference {reference}: {path.parent} has no portrait named {path.name}")
    raise InputError(f"reference {reference}: no such photo; give a photo file, or FOLDER/NAME of a prepared portrait")


def draw_reference(
    portrait: Portrait,
    folder: str,
    seed: int,
    usable: Callable[[Portrait], bool],
    beard_weight: float = 1.0,
    max_distance: float = np.inf,
    farthest: float = 0.0,
) -> Portrait | None:
    """One of the portraits of `folder` that are most like `portrait` and `usable`; None where there is none.

    folder: prepared portraits, or "bundled": those that are installed with the package. Never the portrait itself, by
    name, digest or look. beard_weight: see `distance`. max_distance: of those drawn from; farthest: of the one that is
    taken where none is so near. Raises InputError for a folder without portraits.
    """
    own = likeness(portrait)
    others = [name for name in reference_names(folder) if name != portrait.name]
    poses = _poses(folder)
    near = sorted(others, key=lambda name: (_pose_distance(own.pose, poses[name]), name))[:_SHORTLIST]
    ranked = sorted((distance(own, _likeness_of(folder, name), beard_weight), name) for name in near)
    chosen: list[Portrait] = []
    for unlike, name in ranked:
        if unlike > (max_distance if chosen else max(max_distance, farthest)):
            break
        candidate = reference_portrait(folder, name)
        thumbnails_apart = float(np.sqrt(np.square(own.thumbnail - _likeness_of(folder, name).thumbnail).mean()))
        same = candidate.digest == portrait.digest or thumbnails_apart < _SAME_PICTURE
        if not same and usable(candidate):
            chosen.append(candidate)
        if len(chosen) == _DRAWN_FROM:
            break
    if not chosen:
        return None
    # In an order of the portrait's own, which seeds count through: 0, 1, 2 are different ones where there are three.
    chosen.sort(key=lambda candidate: random_key("reference", portrait.digest, candidate.name))
    return chosen[seed % len(chosen)]


def reference_names(folder: str) -> list[str]:
    """The names of the portraits that may be drawn from `folder`, sorted. Raises InputError where there are none."""
    return list(_prepared(folder))


@lru_cache(maxsize=64)
def reference_portrait(folder: str, name: str) -> Portrait:
    """The portrait `name` of `folder`, read once."""
    return _prepared(folder)[name].load()


def likeness(portrait: Portrait) -> Likeness:
    """What `portrait` is compared with others by."""
    small = portrait.resized(_LIKENESS_PX)
    lab = srgb_to_lab(small.image)
    fine = (lab[:1] - blurred(lab[:1], 1.0, 3)).abs()
    points = _patches(small.points68)
    tones, detail = (_read(blurred(plane, 0.02 * _LIKENESS_PX, 4), points).cpu().numpy() for plane in (lab, fine))
    thumbnail = portrait.resized(16).image
    return Likeness(
        pose(portrait.points68.cpu().numpy()),
        tones[:_BARE],
        tones[_BARE:] - tones[:2].mean(0),
        float(np.log(max(detail[:_BARE].mean(), 1e-3))),
        thumbnail.cpu().numpy(),
    )


def distance(one: Likeness, other: Likeness, beard_weight: float = 1.0) -> float:
    """How unlike two portraits are in pose, tone, beard and sharpness; 1 is far in one of them."""
    tone = float(np.linalg.norm(one.tones - other.tones, axis=1).mean()) / _FAR_TONE
    sharpness = abs(one.sharpness - other.sharpness) / _FAR_SHARPNESS
    beard = float(np.linalg.norm(one.beard - other.beard, axis=1).mean()) / _FAR_BEARD
    return _pose_distance(one.pose, other.pose) + tone + beard_weight * beard + sharpness


def pose(points68: np.ndarray) -> np.ndarray:
    """[3]: yaw (the nose's tip aside of the eyes' middle) and pitch (below it) in eye distances, in the frame of the
    eyes, and how far the mouth is open by its own width."""
    points = torch.from_numpy(points68)
    yaw, pitch = FaceFrame.of_eyes(points).coordinates(points[NOSE_FOOT]).tolist()
    gap = float((points[66] - points[62]).norm()) / max(mouth_width(points), 1e-6)
    return np.array([yaw, pitch, gap])


def _pose_distance(one: np.ndarray, other: np.ndarray) -> float:
    far = np.array([_FAR_POSE, 2 * _FAR_POSE, _FAR_OPEN])
    return float(np.linalg.norm((one - other) / far))


def _patches(p: torch.Tensor) -> torch.Tensor:
    """Places [9,2]: on bare skin (cheeks, under the eyes, bridge of the nose), then where beards grow (upper lip, chin,
    below the corners of the mouth)."""
    pairs = ((2, 31), (14, 35), (41, 31), (46, 35), (27, 28), (33, 51), (57, 8), (48, 6), (54, 10))
    return torch.stack([(p[a] + p[b]) / 2 for a, b in pairs])


def _read(plane: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """plane [C,H,W] at points [P,2], nearest pixel -> [P,C]."""
    at = points.round().long().clamp(0, plane.shape[-1] - 1)
    return plane[:, at[:, 1], at[:, 0]].T


@lru_cache(maxsize=8)
def _prepared(folder: str) -> dict[str, PortraitFile]:
    path = BUNDLED_FOLDER if folder == BUNDLED else Path(folder)
    return {file.name: file for file in load_portraits(path)}


@lru_cache(maxsize=4096)
def _likeness_of(folder: str, name: str) -> Likeness:
    return likeness(reference_portrait(folder, name))


@lru_cache(maxsize=8)
def _poses(folder: str) -> dict[str, np.ndarray]:
    """Of all portraits of a folder, from their landmarks alone: no picture is read."""
    return {name: pose(file.points68) for name, file in _prepared(folder).items()}


@lru_cache(maxsize=64)
def _photo_portrait(path: Path, _modified_ns: int) -> Portrait:
    """The largest face of a photo, aligned and parsed; _modified_ns: so that a file written anew is read anew."""
    from stylepairs.datagen.images.files import read_image
    from stylepairs.datagen.portraits.analysis.analyser import load_analyser, portrait_of

    photo = read_image(path)
    analyser = load_analyser()
    faces = analyser.find(photo, _MIN_SCORE)
    if not faces:
        raise InputError(f"reference {path}: no face found in it; choose another photo, or crop closer")
    return portrait_of(path.stem, photo, faces[0].points68, _PHOTO_CROP_PX, analyser)[0]
