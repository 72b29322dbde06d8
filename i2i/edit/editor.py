"""Edits whole photos: faces found and aligned, each edited in one pass, and only what changed pasted back.

The network sees an aligned crop at its own size and says how the photo is to be scaled and shifted, pixel by pixel.
These maps are brought to the photo's resolution and applied to the photo itself, so its own fine detail stays; pixels
where the predicted mask is zero keep their bits.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F

from stylepairs.datagen.compositing.compose import region_mask
from stylepairs.datagen.features import load_feature
from stylepairs.datagen.images.files import load_photo, save_photo, to_float
from stylepairs.datagen.portraits.alignment import (
    apply_transform,
    crop_aligned,
    eyes_and_mouth,
    ffhq_transform,
    invert_transform,
    square_transform,
    transform_scale,
)
from stylepairs.datagen.portraits.portrait import Portrait
from stylepairs.datagen.portraits.sketch import Sketch, SketchRefused
from stylepairs.datagen.shell.errors import InputError
from stylepairs.i2i.edit.beyond_crop import MARGIN_SHARES, EditMaps, cut_off, extended, margin_px, reaches_border
from stylepairs.i2i.models.conditions import style_of
from stylepairs.i2i.train.losses import tightened

if TYPE_CHECKING:
    from stylepairs.datagen.portraits.analysis.analyser import FaceAnalyser
    from stylepairs.i2i.models.checkpoints import ModelInfo
    from stylepairs.i2i.models.glean import Edit
    from stylepairs.i2i.models.prepared_glean import Editor

# Side of the crop that is parsed: what the face analyser was trained at.
PARSE_PX = 256
# Of the side: more than a mask's dilation and feather reach.
ROOM_SHARE = 0.12
# Rows of the photo that are blended at a time, so that a 100-megapixel photo needs no gigabytes of float32.
STRIP_ROWS = 512


@dataclass(frozen=True)
class FaceEdit:
    """What was done to one face: its box (x0, y0, x1, y1) in photo pixels, the detector's score; refused: why not."""

    box: tuple[float, float, float, float]
    score: float
    refused: str | None = None


def edit_file(
    path: Path, target: Path, model: Editor, info: ModelInfo, analyser: FaceAnalyser, params: Mapping[str, Any],
    min_score: float = 0.5,
) -> list[FaceEdit]:  # fmt: skip
    """Edit one photo file into `target` (format by its suffix), upright, with colour profile, EXIF and transparency.

    Raises InputError (one line that begins with the photo's name) for an unreadable photo, one without a face, or one
    with none that the edit applies to.
    """
    photo = load_photo(path)
    try:
        pixels, faces = edit_photo(photo.pixels, model, info, analyser, params, min_score)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    save_photo(target, replace(photo, pixels=pixels))
    return faces


def edit_photo(
    photo: np.ndarray, model: Editor, info: ModelInfo, analyser: FaceAnalyser, params: Mapping[str, Any],
    min_score: float = 0.5,
) -> tuple[np.ndarray, list[FaceEdit]]:  # fmt: skip
    """Edit every face of a photo of any size.

    photo uint8 [H,W,3] RGB, upright; model: fastest as `inference.prepare` gives it; params: the feature's
    parameters and "degree" in [0,1] (default 1), e.g.
    {"color": "blond", "degree": 0.7}. Returns the edited copy, same shape, and what was done to each face. Raises
    InputError when there is no face, or when the feature applies to none.
    """
    found = analyser.find(photo, min_score)
    if not found:
        raise InputError(
            f"no face found with a score of at least {min_score:g}; pass a lower --min-score or crop closer"
        )
    result = photo.copy()
    claimed = np.zeros(photo.shape[:2], np.float16)  # how much of each pixel faces before have edited
    faces = []
    for face in found:
        x0, y0, x1, y1 = (float(value) for value in face.box)
        box = (x0, y0, x1, y1)
        aligned = ffhq_transform(face.points68, PARSE_PX)
        before = parsed_portrait(photo, aligned, face.points68, analyser).resized(model.size_px)
        try:
            edit = edit_portrait(model, info, before, params)
        except SketchRefused as refused:
            faces.append(FaceEdit(box, float(face.score), str(refused).removeprefix(f"{before.name}: ")))
            continue
        maps, transform = whole_edit(photo, face.points68, edit, info, analyser, params)
        paste(result, photo, claimed, maps, transform)
        faces.append(FaceEdit(box, float(face.score)))
    if all(face.refused for face in faces):
        raise InputError("; ".join(sorted({str(face.refused) for face in faces})))
    return result, faces


@torch.no_grad()
def edit_portrait(model: Editor, info: ModelInfo, portrait: Portrait, params: Mapping[str, Any]) -> Edit:
    """One pass over an aligned portrait at the model's size; output clamped to [-1,1], batch of one.

    Raises SketchRefused (an InputError) when the feature does not apply to it, InputError for unknown parameters.
    """
    feature_params, degree = split_params(info.feature, params)
    region = region_of(load_feature(info.feature).sketch(portrait, feature_params))
    device = next(model.parameters()).device
    edit: Edit = model(
        portrait.image[None].to(device),
        region[None].to(device),
        torch.tensor([degree], device=device),
        style_of(info.style, feature_params.model_dump(), info.kinds)[None].to(device),
    )
    return edit._replace(output=edit.output.clamp(-1, 1))


def whole_edit(
    photo: np.ndarray,
    points68: np.ndarray,
    edit: Edit,
    info: ModelInfo,
    analyser: FaceAnalyser,
    params: Mapping[str, Any],
) -> tuple[EditMaps, np.ndarray]:
    """The edit as maps over a square of the photo, and the transform [2,3] of the photo onto that square.

    It is the aligned crop's, or, where the edit keeps the photo's texture and is cut off by the crop, a wider one.
    """
    gain, bias = (x[0].permute(1, 2, 0).cpu().numpy() for x in (edit.gain, edit.bias * 127.5))
    maps = EditMaps(gain, bias, edit.mask[0, 0].cpu().numpy())
    transform = ffhq_transform(points68, maps.side)
    if not reaches_border(maps):
        return cut_off(maps), transform
    feature_params, _ = split_params(info.feature, params)
    for share in MARGIN_SHARES:
        margin = margin_px(maps.side, share)
        wide_px = maps.side + 2 * margin
        wide = square_transform(eyes_and_mouth(np.asarray(points68, np.float64)), PARSE_PX, wide_px / maps.side)
        try:
            portrait = parsed_portrait(photo, wide, points68, analyser).resized(wide_px)
            sketch = load_feature(info.feature).sketch(portrait, feature_params)
        except SketchRefused:  # the wider the crop, the less sure its parsing is
            continue
        if sketch.photo_detail == 0:  # new shapes cannot be continued by scaling and shifting the photo
            break
        transform[:, 2] += margin
        return extended(maps, region_of(sketch)[0].numpy()), transform
    return cut_off(maps), transform


def region_of(sketch: Sketch) -> torch.Tensor:
    """Where a sketch edits, [1,H,W]: as the pairs' masks are made, and as training tightens them.

    With room for the dilation, as one that is cut off at the border would close the gap between round hair and the
    border; without it where the sketch itself reaches the border, which is no edge of what is edited.
    """
    mask = sketch.edit_mask
    side = mask.shape[-1]
    room = math.ceil(ROOM_SHARE * side)
    roomy = tightened(region_mask(F.pad(mask, (room, room, room, room)), side), side)[:, room:-room, room:-room]
    return torch.maximum(roomy, torch.minimum(tightened(region_mask(mask)), mask))


def split_params(feature: str, params: Mapping[str, Any]) -> tuple[Any, float]:
    """The feature's own parameters, validated, and the degree ("degree", or the feature's "intensity"; default 1)."""
    from stylepairs.datagen.recipe import validate_params

    own = {name: value for name, value in params.items() if name != "degree"}
    degree = params.get("degree", params.get("intensity", 1.0))
    if isinstance(degree, bool) or not isinstance(degree, int | float) or not 0 <= degree <= 1:
        raise InputError(f"degree {degree!r}: must be a number from 0 (nothing) to 1 (all of it)")
    return validate_params(load_feature(feature).Params, own, feature), float(degree)


def parsed_portrait(photo: np.ndarray, transform: np.ndarray, points68: np.ndarray, analyser: FaceAnalyser) -> Portrait:
    """The aligned crop of a face at PARSE_PX with its label map and hair matte; transform maps the photo onto it."""
    crop = crop_aligned(photo, transform, PARSE_PX)
    label, hair = analyser.parse(crop[None])
    points = apply_transform(transform, np.asarray(points68, np.float64))
    return Portrait(
        name="face",
        image=to_float(crop),
        label=torch.as_tensor(label)[0],
        hair=torch.as_tensor(hair)[0].float(),
        points68=torch.from_numpy(points).float(),
        digest="",
    )


def paste(result: np.ndarray, photo: np.ndarray, claimed: np.ndarray, maps: EditMaps, transform: np.ndarray) -> None:
    """Add one face's edit to `result`, in place.

    result, photo uint8 [H,W,3]; claimed [H,W] float16, how much of each pixel has been edited already: faces whose
    squares overlap share the hair between them and do not add up; transform [2,3] maps the photo onto the maps' square.
    """
    side, gain, bias, mask = maps.side, maps.gain, maps.bias, maps.mask
    scale = transform_scale(transform)
    if scale > 1:  # the photo's face is smaller than the crop: average over what one photo pixel covers
        gain, bias, mask = (cv2.GaussianBlur(x, (0, 0), 0.5 * scale) for x in (gain, bias, mask))
    x0, y0, x1, y1 = covered(transform, side, photo.shape)
    for top in range(y0, y1, STRIP_ROWS):
        bottom = min(top + STRIP_ROWS, y1)
        here = np.s_[top:bottom, x0:x1]
        moved = transform.copy()
        moved[:, 2] += transform[:, :2] @ np.array([x0, top], np.float64)
        weight = brought_up(mask, moved, (bottom - top, x1 - x0), cv2.INTER_LINEAR).clip(0, 1)
        change = brought_up(gain, moved, weight.shape, cv2.INTER_CUBIC) * photo[here]
        change += brought_up(bias, moved, weight.shape, cv2.INTER_CUBIC)
        share = weight * (1 - claimed[here].astype(np.float32))
        blended = np.clip(np.rint(result[here] + change * share[..., None]), 0, 255).astype(np.uint8)
        result[here] = np.where((share > 0)[..., None], blended, result[here])
        claimed[here] = np.maximum(claimed[here], weight)


def brought_up(values: np.ndarray, transform: np.ndarray, shape: tuple[int, ...], interpolation: int) -> np.ndarray:
    """A map of the crop as the photo's rectangle of `shape` (H, W) sees it; 0 beyond the crop."""
    return cv2.warpAffine(values, transform, (shape[1], shape[0]), flags=interpolation | cv2.WARP_INVERSE_MAP)


def covered(transform: np.ndarray, side: int, shape: tuple[int, ...]) -> tuple[int, int, int, int]:
    """The photo's rectangle x0, y0, x1, y1 (ends excluded) that a crop of `side` pixels covers."""
    corners = np.array([[0, 0], [side - 1, 0], [0, side - 1], [side - 1, side - 1]], np.float64)
    points = apply_transform(invert_transform(transform), corners)
    x0, y0 = np.maximum(np.floor(points.min(0)).astype(int), 0)
    x1, y1 = np.ceil(points.max(0)).astype(int) + 1
    return int(x0), int(y0), int(min(x1, shape[1])), int(min(y1, shape[0]))
