"""Two pictures laid over each other: the before's face aligned, the after registered on it and freed of its cast."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stylepairs.datagen.build.quality import Analyser
from stylepairs.datagen.images.color_profiles import to_srgb
from stylepairs.datagen.images.files import load_photo, read_image, to_float
from stylepairs.datagen.importing.difference import SEEN, changed, difference, noise_level
from stylepairs.datagen.importing.registration import cut_out, find_cast, find_shift, well_inside, without_cast
from stylepairs.datagen.portraits.alignment import apply_transform, crop_aligned, has_square, invert_transform, warp
from stylepairs.datagen.portraits.analysis.analyser import portrait_of
from stylepairs.datagen.portraits.landmarks import eyes_and_mouth
from stylepairs.datagen.portraits.portrait import Portrait
from stylepairs.datagen.portraits.regions import dilate
from stylepairs.datagen.portraits.sketch import Sketch, SketchRefused
from stylepairs.datagen.shell.durable import file_digest
from stylepairs.datagen.shell.errors import InputError

MIN_SCORE = 0.5
# Scales of both sides that differ by more than this are another shape, not another size.
_SHAPE = 0.01
# Of the crop's side: how far beyond what the feature draws, or beyond a mask that is given, an edit may reach.
REACH, REACH_OF_GIVEN = 0.08, 0.03
# Passes in which the after is cut out anew where it was found, by what was alike then; one that moves it by less than
# so many pixels of the crop is the last.
_PASSES, _SETTLED_PX = 5, 0.01
# Of the crop: with less that is alike, nothing tells where the after lies.
_LEAST_ALIKE = 0.05
# Of the crop's side: so near to a difference nothing counts as alike.
_NEAR = 0.015


@dataclass(frozen=True)
class Pictures:
    """The files of one pair; mask None: where they differ is looked for. params: what the edit was, as the feature
    names it. backwards: the before was edited, and the after is the portrait."""

    name: str
    before: Path
    after: Path
    mask: Path | None
    params: dict[str, Any]
    backwards: bool = False

    @property
    def portrait(self) -> Path:
        """The picture that was not edited."""
        return self.after if self.backwards else self.before

    @property
    def edited(self) -> Path:
        """The other one."""
        return self.before if self.backwards else self.after


@dataclass(frozen=True)
class Laid:
    """Both pictures as crops.

    after [3,S,S] in [-1,1], without its cast; points68 [68,2]: its landmarks as it came, in the crop. given [1,S,S]:
    the mask that came with the pair, None: none did. sketch: what the feature would have drawn. outside [S,S] bool:
    what its edit does not reach. shift_px (x, y): how far the after lay from the before, in the before photo's pixels,
    shift_share as a share of the crop. correlation: of both where they are alike. gain, offset: the cast taken out.
    """

    portrait: Portrait
    after: torch.Tensor
    points68: np.ndarray
    given: torch.Tensor | None
    sketch: Sketch
    outside: np.ndarray
    shift_px: tuple[float, float]
    shift_share: float
    correlation: float
    gain: np.ndarray
    offset: np.ndarray


def lay_over(
    portrait: Portrait,
    move: np.ndarray,
    photos: tuple[np.ndarray, np.ndarray],
    given: torch.Tensor | None,
    sketch: Sketch,
    analyser: Analyser,
) -> Laid:
    """The after of `photos` (before, after; uint8 [H,W,3]) laid over the portrait that `move` cut out of the before.

    Raises SketchRefused: why they are no pair.
    """
    before, after = photos
    scale = np.array(before.shape[1::-1]) / np.array(after.shape[1::-1])
    if abs(scale[0] / scale[1] - 1) > _SHAPE:
        sizes = " and ".join(f"{photo.shape[1]} x {photo.shape[0]}" for photo in photos)
        raise SketchRefused(f"before and after are of two shapes ({sizes} pixels)")
    points = _points_of_after(portrait, after, scale, move, analyser)
    crop = crop_aligned(before, move, portrait.size_px)
    inside, outside = well_inside(before.shape[:2], move, portrait.size_px), ~reach(portrait, sketch, given)
    # The light is judged where the feature changes nothing, as an edit may cover most of the picture; the place by all
    # that is alike, as little may be left there to hold on to.
    still = inside & outside if (inside & outside).mean() > _LEAST_ALIKE else inside
    shift, told, differ, correlation = np.zeros(2), inside if given is None else still, np.zeros_like(inside), 0.0
    for number in range(_PASSES):
        seen = cut_out(before, after, move, portrait.size_px, shift)
        found = find_shift(crop, seen, told, None if number == 0 else np.zeros(2))
        if found is None:
            raise SketchRefused("nothing in before and after matches: another picture, face or pose")
        moved, correlation = found
        shift = shift + invert_transform(move)[:, :2] @ moved
        seen = cut_out(before, after, move, portrait.size_px, shift)
        gain, offset = find_cast(crop, seen, still & ~differ)
        differ = _differ(crop, without_cast(seen, gain, offset), still)
        told = (inside if given is None else still) & ~differ
        if told.mean() < _LEAST_ALIKE:
            raise SketchRefused("before and after differ nearly everywhere: another picture, face or pose")
        if number > 0 and np.hypot(*moved) < _SETTLED_PX:
            break
    gain, offset = find_cast(crop, seen, still & ~differ)
    share = move[:, :2] @ shift / portrait.size_px
    return Laid(
        portrait,
        to_float(without_cast(seen, gain, offset)).to(portrait.image.device),
        points - share * portrait.size_px,
        given,
        sketch,
        outside,
        (float(shift[0]), float(shift[1])),
        float(np.hypot(*share)),
        correlation,
        gain,
        offset,
    )


def reach(portrait: Portrait, sketch: Sketch, given: torch.Tensor | None) -> np.ndarray:
    """How far the edit may go, [S,S] bool: a little beyond the mask that is given, else beyond what is drawn."""
    if given is not None:
        return dilate(given, REACH_OF_GIVEN)[0].cpu().numpy() > 0.02
    drawn = (difference(portrait.image, sketch.image) > SEEN).float()[None]
    return dilate(drawn * (sketch.edit_mask > 0), REACH)[0].cpu().numpy() > 0.5


def read_pair(pictures: Pictures) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, str]:
    """before, after, mask (uint8 [H,W], None: none is given) and the sha256 of the before's file. SketchRefused."""
    try:
        before, after = read_image(pictures.portrait), read_image(pictures.edited)
        mask = None if pictures.mask is None else read_mask(pictures.mask)
        return before, after, mask, file_digest(pictures.portrait)
    except InputError as error:
        raise SketchRefused(str(error)) from error


def read_mask(path: Path) -> np.ndarray:
    """uint8 [H,W], 255 where edited: what is white, but not what is transparent, of a brush on an empty layer."""
    photo = load_photo(path)
    shown: np.ndarray = to_srgb(photo.pixels, photo.icc_profile).max(-1)
    if photo.alpha is not None:
        shown = np.minimum(shown, photo.alpha)
    return shown


def largest_face(name: str, photo: np.ndarray, size_px: int, analyser: Analyser) -> tuple[Portrait, np.ndarray]:
    """The largest face of a photo as a portrait, and the transform [2,3] that cut it out. Raises SketchRefused."""
    faces = [face for face in analyser.find(photo, MIN_SCORE) if has_square(face.points68)]
    if not faces:
        raise SketchRefused("no face found in the before")
    return portrait_of(name, photo, faces[0].points68, size_px, analyser)


def mask_in_crop(mask: np.ndarray, before: np.ndarray, move: np.ndarray, size_px: int) -> torch.Tensor:
    """A mask [H,W] uint8 framed as the photo `before`, [1,S,S] in [0,1]. Raises SketchRefused for another frame."""
    if mask.shape != before.shape[:2]:
        raise SketchRefused(f"the mask has {mask.shape[::-1]} pixels, the before {before.shape[1::-1]}")
    return torch.from_numpy(warp(mask, move, size_px)).float()[None] / 255


def _differ(before: np.ndarray, after: np.ndarray, still: np.ndarray) -> np.ndarray:
    """Where two crops differ, [S,S] bool, and a little around it."""
    distance = difference(to_float(before), to_float(after)).numpy()
    found = changed(distance, noise_level(distance, still))
    return dilate(torch.from_numpy(found).float()[None], _NEAR)[0].numpy() > 0.5


def _points_of_after(
    portrait: Portrait, after: np.ndarray, scale: np.ndarray, move: np.ndarray, analyser: Analyser
) -> np.ndarray:
    """The landmarks [68,2] of the after's face that lies nearest to the portrait's, in the crop. SketchRefused."""
    faces = analyser.find(after, MIN_SCORE / 2)
    if not faces:
        raise SketchRefused("no face found in the after")
    wanted = eyes_and_mouth(portrait.points68.cpu().numpy()).mean(0)
    found = [apply_transform(move, (np.asarray(face.points68, np.float64) + 0.5) * scale - 0.5) for face in faces]
    return min(found, key=lambda points: float(np.linalg.norm(eyes_and_mouth(points).mean(0) - wanted)))
