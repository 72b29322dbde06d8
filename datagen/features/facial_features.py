"""Facial features: brows, eyes, nose and mouth taken from a reference portrait; the rest of the face stays who it is.

The sketch is a picture, not a rough hint: the reference's parts are moved to where the portrait has its own by moving
least squares (Schaefer, McPhail, Warren 2006), lit to match by the difference of both pictures on the skin around them,
diffused inwards (the membrane of Perez, Gangnet, Blake 2003, "Poisson Image Editing", in Lab), and blended in over
skin. Of lower intensity it is a morph: shapes move and pictures cross over together.

Figures of `measure`, all over the parts that were asked for:
  degree             share of the full change (intensity 1) that the picture has made, 0 none, 1 all: projected in Lab
                     at the scale of the parts; an unlike change of any size gives 0
  appearance_before, appearance_after
                     mean CIEDE2000 to the reference's parts, placed and lit, before and after; lower is nearer
  appearance_gain    1 - after / before of them: 1 is the reference's look to the full, 0 no nearer
  shape_before, shape_after
                     mean distance in eye distances of the parts' landmarks to the reference's, each part laid over
                     the other by its centre in the frame of the stable points; lower is nearer
  seam_delta_e       mean CIEDE2000 between before and after along the outer rim of the paste; 0 is seamless
  outside_delta_e    mean CIEDE2000 between before and after over the rest of the face; 0 is untouched
  others_shift       mean shift in eye distances of the landmarks of the parts that were not asked for
  reference_id       the first 48 bits of the reference's digest: which picture the parts are of
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, field_validator

from stylepairs.datagen.colors import delta_e_2000, lab_to_srgb, srgb_to_lab
from stylepairs.datagen.features.base import Seen, Sketch, SketchRefused
from stylepairs.datagen.portraits.portrait import CLASS, Portrait
from stylepairs.datagen.portraits.regions import dilate, feather
from stylepairs.datagen.recipes import nearest
from stylepairs.datagen.sketching.references import BUNDLED, draw_reference, named_reference
from stylepairs.datagen.sketching.warp import point_flow, warp_image

# Each part's pieces: positions among the 68 landmarks, and which of them are laid on the portrait's own. A mouth hangs
# on its upper lip: open or shut, that is where the skull holds it.
_PIECES: dict[str, tuple[tuple[range, list[int]], ...]] = {
    "brows": ((range(17, 22), [*range(17, 22)]), (range(22, 27), [*range(22, 27)])),
    "eyes": ((range(36, 42), [36, 39]), (range(42, 48), [42, 45])),
    "nose": ((range(27, 36), [*range(27, 36)]),),
    "mouth": ((range(48, 68), [*range(48, 55)]),),
}
PARTS = tuple(_PIECES)
_CLASSES = {
    "brows": ("l_brow", "r_brow"),
    "eyes": ("l_eye", "r_eye"),
    "nose": ("nose",),
    "mouth": ("mouth", "u_lip", "l_lip"),
}
# Eye corners, the nose's ridge and base, corners of the mouth: what lays one face over another.
_STABLE = [36, 39, 42, 45, 27, 28, 29, 30, 33, 48, 54]
# In eye distances: how far the paste reaches beyond its part, and how softly it ends.
_MARGIN = {"brows": 0.13, "eyes": 0.15, "nose": 0.13, "mouth": 0.13}
_SOFTNESS = 0.05
# In eye distances: the scales over which the difference in light is spread inwards, near and far.
_LIGHT_NEAR, _LIGHT_FAR = 0.1, 0.35
# What covers more than this share of a part hides it: hair, a hat, an eye patch.
_MAX_HIDDEN = 0.12
# Slope of lightness across a spectacle's bridge, in shares of the skin's lightness an eye distance: bare faces have 0.1
# to 1.2, bold frames over 1.8; rimless ones cannot be told from wrinkles. Of references there are enough to be strict.
_MAX_BRIDGE, _MAX_BRIDGE_OF_REFERENCE = 1.3, 0.55
# Lightness by which brows must be darker than the skin around them to be worth taking.
_MIN_BROW_CONTRAST = 7.0
# A drawn reference is no more unlike than this, see `references.distance`.
_MAX_DISTANCE, _BEARD_WEIGHT = 3.6, 1.0
_BAND = 0.02


class Params(BaseModel):
    """Which parts are taken, and from whom.

    parts: any of brows, eyes, nose, mouth, as "eyes,mouth" or a tuple; "all" for the four. reference: a photo file or
    FOLDER/NAME of a prepared portrait; None: drawn from `references`, a folder of prepared portraits ("bundled": the
    photos that come with the source tree), among those nearest in pose, skin tone and sharpness; another `seed` draws
    another. adopt: share of the reference's shape, 0 its look only, 1 all. intensity: the degree, 0 own, 1 wanted.
    reference_px: side of the downsampled sketch that reconstruction matches; sketch_detail: see `Sketch`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    parts: str = "eyes"
    reference: str | None = None
    references: str = BUNDLED
    adopt: float = Field(1.0, ge=0, le=1)
    intensity: float = Field(1.0, ge=0, le=1)
    seed: int = Field(0, ge=0)
    reference_px: int = Field(32, ge=16, le=256)
    sketch_detail: float = Field(1.0, ge=0, le=1)

    @field_validator("parts", mode="before")
    @classmethod
    def _known_parts(cls, value: Any) -> Any:
        names = value.split(",") if isinstance(value, str) else value
        if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
            return value
        wanted = {name.strip().lower() for name in names} - {""}
        wanted = set(PARTS) if wanted == {"all"} else wanted
        for name in sorted(wanted - set(PARTS)):
            raise ValueError(f"unknown part {name!r}{nearest(name, PARTS)}; there are {', '.join(PARTS)}, or all")
        if not wanted:
            raise ValueError(f"no part is named; there are {', '.join(PARTS)}, or all")
        return ",".join(name for name in PARTS if name in wanted)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.parts.split(","))


def sketch(portrait: Portrait, params: Params) -> Sketch:
    """The portrait with the reference's parts in place of its own.

    Raises SketchRefused where a part is hidden, in the portrait or in every reference that is like it, and InputError
    where `reference` or `references` name nothing that can be used.
    """
    _refuse_hidden(portrait, params)
    return _edited(portrait, chosen_reference(portrait, params), params, params.intensity)


def measure(portrait: Portrait, seen: Seen, params: Params) -> dict[str, float]:
    """How near the parts came to the reference's, and what it cost: the figures of the file's docstring."""
    reference = chosen_reference(portrait, params)
    full = _edited(portrait, reference, params, 1.0)
    mask = full.edit_mask
    inner = (mask * (mask > 0.5)).clamp_min(0)
    own, before, after, wanted = (
        _smooth(srgb_to_lab(image.clamp(-1, 1)), 1 / 96)
        for image in (portrait.image, seen.before.image, seen.after.image, full.image)
    )
    change, whole = (after - before) * inner, (wanted - own) * inner
    near = [_mean(delta_e_2000(lab, wanted)[None], inner) for lab in (before, after)]
    shape = _placed(portrait, reference, params, 1.0)
    rim = ((mask > 0.02) & (mask < 0.35)).float()
    face = _skin_like(portrait) * (1 - dilate((mask > 0).float(), _BAND))
    figures = {
        "degree": (change * whole).sum() / whole.square().sum().clamp_min(1e-6),
        "appearance_before": near[0],
        "appearance_after": near[1],
        "appearance_gain": 1 - near[1] / near[0].clamp_min(1e-3),
        "shape_before": _shape_distance(seen.before.points68, shape, params),
        "shape_after": _shape_distance(seen.after.points68, shape, params),
        "seam_delta_e": _mean(delta_e_2000(before, after)[None], rim),
        "outside_delta_e": _mean(delta_e_2000(before, after)[None], face),
        "others_shift": _others_shift(seen, params),
        "reference_id": int(reference.digest[:12], 16),
    }
    return {name: float(value) for name, value in figures.items()}


def chosen_reference(portrait: Portrait, params: Params) -> Portrait:
    """The reference that `params` name, or draw for this portrait. Raises as `sketch` does."""
    if params.reference is not None:
        reference = named_reference(params.reference)
        hidden = hidden_part(reference, params.names)
        if hidden:
            raise SketchRefused(f"{portrait.name}: reference {params.reference}: {hidden}; choose another")
        return reference
    drawn = _drawn(_Key(portrait), params.references, params.parts, params.seed)
    if drawn is None:
        raise SketchRefused(
            f"{portrait.name}: no portrait of {params.references} is like it and shows its {params.parts}"
        )
    return drawn


def hidden_part(portrait: Portrait, parts: tuple[str, ...], max_bridge: float = _MAX_BRIDGE) -> str:
    """Why one of the parts cannot be seen plainly, or ""."""
    for part in parts:
        core = _hulls(portrait, [portrait.points68], part)
        share = float((core * _covering(portrait)).sum() / core.sum().clamp_min(1e-6))
        if share > _MAX_HIDDEN:
            return f"{100 * share:.0f} % of the {part} are hidden by hair or what is worn"
    beside = [part for part in parts if part != "mouth"]
    if beside and _bridge_contrast(portrait) > max_bridge:
        return f"spectacles hide the {', '.join(beside)}"
    return ""


def _refuse_hidden(portrait: Portrait, params: Params) -> None:
    hidden = hidden_part(portrait, params.names)
    if hidden:
        raise SketchRefused(f"{portrait.name}: {hidden}")


class _Key:
    """A portrait that is told from others by what it holds, so that draws for it can be kept."""

    def __init__(self, portrait: Portrait) -> None:
        self.portrait = portrait
        self.id = (portrait.name, portrait.digest, portrait.size_px)

    def __hash__(self) -> int:
        return hash(self.id)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Key) and self.id == other.id


@lru_cache(maxsize=256)
def _drawn(key: _Key, references: str, parts: str, seed: int) -> Portrait | None:
    names = tuple(parts.split(","))

    def usable(candidate: Portrait) -> bool:
        if "brows" in names and _brow_contrast(candidate) < _MIN_BROW_CONTRAST:
            return False
        return not hidden_part(candidate, names, _MAX_BRIDGE_OF_REFERENCE)

    beard_weight = _BEARD_WEIGHT if {"nose", "mouth"} & set(names) else 0.0
    return draw_reference(key.portrait, references, seed, usable, beard_weight, _MAX_DISTANCE)


def _edited(portrait: Portrait, reference: Portrait, params: Params, degree: float) -> Sketch:
    """The sketch at `degree` of the way from the portrait to the reference's parts."""
    reference = reference.resized(portrait.size_px)
    wanted = _placed(portrait, reference, params, 1.0)
    points = portrait.points68.lerp(wanted, degree)
    laid = _laid_over(portrait, reference, points)
    mask, core = _masks(portrait, laid, wanted, params)
    patch = _lit(portrait, laid, mask, core)
    own = portrait.image
    if degree < 1:
        own = warp_image(own, point_flow(portrait.size_px, portrait.points68[17:], points[17:], method="mls"))
    image = portrait.image + mask * (own.lerp(patch, degree) - portrait.image)
    image = torch.where(mask > 0, image, portrait.image).clamp(-1, 1) if degree > 0 else portrait.image
    return Sketch(
        image=image,
        edit_mask=mask,
        keep_mask=1 - _grown(mask),
        reference_px=min(params.reference_px, portrait.size_px),
        sketch_detail=params.sketch_detail,
        label=_label_after(portrait, laid, mask, params) if degree > 0.5 else None,
        points68=points,
    )


def _placed(portrait: Portrait, reference: Portrait, params: Params, degree: float) -> torch.Tensor:
    """The portrait's landmarks [68,2] with the reference's shape in the parts, each piece where its own is."""
    reference = reference.resized(portrait.size_px)
    placed = _similarity(reference.points68, portrait.points68)
    points = portrait.points68.clone()
    for part in params.names:
        for piece, anchors in _PIECES[part]:
            rows = list(piece)
            shift = (portrait.points68[anchors] - placed[anchors]).mean(0)
            points[rows] = points[rows].lerp(placed[rows] + shift, params.adopt * degree)
    return points


def _similarity(points: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """points [68,2] turned, scaled and shifted by the similarity that lays the stable ones best on target's."""
    turn, source, end = _similarity_of(points, target)
    return torch.view_as_real((torch.view_as_complex(points.contiguous()) - source) * turn + end)


def _similarity_of(points: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(m, p*, q*) of x -> m (x - p*) + q* in complex numbers, the least-squares similarity of the stable points."""
    p, q = (torch.view_as_complex(x[_STABLE].contiguous()) for x in (points, target))
    p_mean, q_mean = p.mean(), q.mean()
    turn = ((p - p_mean).conj() * (q - q_mean)).sum() / (p - p_mean).abs().square().sum().clamp_min(1e-9)
    return turn, p_mean, q_mean


def _laid_over(portrait: Portrait, reference: Portrait, points: torch.Tensor) -> Portrait:
    """The reference warped so that its landmarks lie at `points`: picture, label map and matte, sampled once."""
    size = portrait.size_px
    turn, source, end = _similarity_of(reference.points68, portrait.points68)
    placed = _similarity(reference.points68, portrait.points68)
    flow = point_flow(size, placed[17:], points[17:], method="mls")
    at = torch.arange(size, device=flow.device, dtype=flow.dtype)
    place = torch.stack([at.expand(size, size), at[:, None].expand(size, size)], -1) + flow.permute(1, 2, 0)
    back = torch.view_as_real((torch.view_as_complex(place.contiguous()) - end) / turn + source)
    grid = (back * (2 / (size - 1)) - 1)[None]

    def sampled(plane: torch.Tensor, mode: str) -> torch.Tensor:
        return F.grid_sample(plane[None], grid, mode=mode, padding_mode="reflection", align_corners=True)[0]

    return Portrait(
        name=reference.name,
        image=sampled(reference.image, "bicubic").clamp(-1, 1),
        label=sampled(reference.label[None].float(), "nearest")[0].round().to(torch.uint8),
        hair=sampled(reference.hair, "bilinear").clamp(0, 1),
        points68=points,
        digest=reference.digest,
    )


def _masks(
    portrait: Portrait, laid: Portrait, wanted: torch.Tensor, params: Params
) -> tuple[torch.Tensor, torch.Tensor]:
    """(edit mask, core) [1,H,W]: the parts of both faces, with skin around them and without; nothing that is neither
    part nor skin in either face.
    """
    eyes = eye_distance(portrait) / portrait.size_px
    mask, core = (torch.zeros_like(portrait.hair) for _ in range(2))
    for part in params.names:
        hull = _hulls(portrait, [portrait.points68, wanted], part)
        if part != "nose":
            hull = torch.maximum(hull, _classes(portrait, _CLASSES[part]) * dilate(hull, 0.1 * eyes))
        core = torch.maximum(core, hull)
        mask = torch.maximum(mask, dilate(hull, _MARGIN[part] * eyes))
    others = [part for part in PARTS if part not in params.names]
    barred = torch.maximum(_covering(portrait), _covering(laid))
    for part in others:
        classes = _CLASSES[part] if part != "nose" else ()
        hull = _hulls(portrait, [portrait.points68], part)
        barred = torch.maximum(barred, torch.maximum(_classes(portrait, classes), _classes(laid, classes)))
        barred = torch.maximum(barred, dilate(hull, 0.02 * eyes))
    soft = feather(mask, _SOFTNESS * eyes) * (1 - feather(dilate(barred, 0.03 * eyes), 0.03 * eyes))
    soft = ((soft - 0.02) / 0.96).clamp(0, 1)
    return soft, core


def _lit(portrait: Portrait, laid: Portrait, mask: torch.Tensor, core: torch.Tensor) -> torch.Tensor:
    """The laid reference in the portrait's light [3,H,W]: the difference of their skin, diffused over the parts.

    Whites of eyes and teeth are no lighter for fair skin: they take the difference of the eyes' whites in lightness,
    and half of the skin's in colour.
    """
    eyes = eye_distance(portrait) / portrait.size_px
    own, other = srgb_to_lab(portrait.image), srgb_to_lab(laid.image)
    skin = _skin_like(portrait) * _skin_like(laid)
    around = dilate(mask, 0.1 * eyes)
    valid = skin * (around > 0.02) * (1 - dilate(core, 0.04 * eyes)) + 1e-6 * around
    scales = (_LIGHT_NEAR * eyes, _LIGHT_FAR * eyes)
    near, far = ((_smooth((own - other) * valid, scale), _smooth(valid, scale)) for scale in scales)
    light = (near[0] + 0.05 * far[0]) / (near[1] + 0.05 * far[1]).clamp_min(1e-9)
    whites = torch.cat([(0.6 * (_whites(portrait, own) - _whites(laid, other))).expand_as(light[:1]), 0.5 * light[1:]])
    white = feather(_classes(laid, ("l_eye", "r_eye", "mouth")), 0.02 * eyes)
    light = light.lerp(whites.clamp(-8, 8), white)
    return lab_to_srgb(other + light).clamp(-1, 1)


def _whites(portrait: Portrait, lab: torch.Tensor) -> torch.Tensor:
    """The mean lightness [] of the lightest third of the eyes."""
    inside = _classes(portrait, _CLASSES["eyes"])[0] > 0
    light = lab[0, inside]
    # Where no eyes are seen, as light as whites are in an even light.
    return light.topk(max(1, len(light) // 3)).values.mean() if len(light) > 2 else torch.tensor(65.0).to(lab)


def _label_after(portrait: Portrait, laid: Portrait, mask: torch.Tensor, params: Params) -> torch.Tensor:
    classes = [CLASS[name] for part in params.names for name in _CLASSES[part]]
    taken = torch.tensor(classes, device=portrait.label.device, dtype=torch.uint8)
    inside = mask[0] > 0.5
    label = portrait.label.masked_fill(inside & torch.isin(portrait.label, taken), CLASS["skin"])
    return torch.where(inside & torch.isin(laid.label, taken), laid.label, label)


def _hulls(portrait: Portrait, shapes: list[torch.Tensor], part: str) -> torch.Tensor:
    """The convex hulls [1,H,W] of the part's pieces, each of all `shapes` [68,2] together, antialiased."""
    mask = np.zeros(portrait.label.shape, np.uint8)
    for piece, _ in _PIECES[part]:
        points = torch.cat([shape[list(piece)] for shape in shapes]).cpu().numpy().astype(np.float32)
        outline = np.rint(cv2.convexHull(points)[:, 0] * 16).astype(np.int32)
        cv2.fillPoly(mask, [outline], 255, cv2.LINE_AA, shift=4)
    return torch.from_numpy(mask).to(portrait.image)[None] / 255


def _classes(portrait: Portrait, names: tuple[str, ...]) -> torch.Tensor:
    wanted = torch.tensor([CLASS[name] for name in names], device=portrait.label.device, dtype=torch.uint8)
    return torch.isin(portrait.label, wanted).float()[None]


def _covering(portrait: Portrait) -> torch.Tensor:
    """What lies over a face, or beside it [1,H,W]: hair, hat, spectacles, background, clothes, neck."""
    worn = _classes(portrait, ("background", "eye_g", "hair", "hat", "cloth", "neck", "necklace", "ear_r"))
    return torch.maximum(worn, (portrait.hair > 0.5).float() * (1 - _classes(portrait, ("l_brow", "r_brow"))))


def _skin_like(portrait: Portrait) -> torch.Tensor:
    return _classes(portrait, ("skin", "nose")) * (1 - portrait.hair)


def _bridge_contrast(portrait: Portrait) -> float:
    """The steepest line across the nose between the eyes, as a share of the skin's lightness: a spectacle's bridge."""
    small = portrait.resized(128)
    p = small.points68.cpu().numpy().astype(np.float64)
    right, left = p[36:42].mean(0), p[42:48].mean(0)
    across, down = (left - right), np.array([-(left - right)[1], (left - right)[0]])
    light = srgb_to_lab(small.image)[0].cpu().numpy()
    x, y = np.meshgrid(np.linspace(-0.12, 0.12, 9), np.linspace(-0.2, 0.3, 17))
    places = (right + left) / 2 + x[..., None] * across + y[..., None] * down
    patch = cv2.remap(light, *(places[..., axis].astype(np.float32) for axis in (0, 1)), cv2.INTER_LINEAR)
    slope = np.abs(np.gradient(patch, axis=0).mean(1)).max()
    return float(slope * 8 / max(20.0, float(np.median(patch))))


def _brow_contrast(portrait: Portrait) -> float:
    """By how much lightness the brows are darker than the skin close to them."""
    light = srgb_to_lab(portrait.image)[:1]
    brows = _classes(portrait, _CLASSES["brows"])
    around = dilate(brows, 0.03) * _classes(portrait, ("skin",)) * (1 - dilate(brows, 0.01))
    return float(_mean(light, around) - _mean(light, brows))


def _shape_distance(points: torch.Tensor, shape: torch.Tensor, params: Params) -> torch.Tensor:
    """Mean distance [] of the parts' landmarks to `shape`'s in eye distances, each piece laid over by its centre."""
    points = _similarity(points.to(shape), shape)
    eyes = (shape[42:48].mean(0) - shape[36:42].mean(0)).norm().clamp_min(1e-6)
    apart = []
    for part in params.names:
        for piece, _ in _PIECES[part]:
            one, other = points[list(piece)], shape[list(piece)]
            apart.append(((one - one.mean(0)) - (other - other.mean(0))).norm(dim=-1))
    return torch.cat(apart).mean() / eyes


def _others_shift(seen: Seen, params: Params) -> torch.Tensor:
    rows = [row for part in PARTS if part not in params.names for piece, _ in _PIECES[part] for row in piece]
    if not rows:
        return torch.zeros(())
    apart = (seen.after.points68 - seen.before.points68)[rows].norm(dim=-1).mean()
    return apart / max(eye_distance(seen.before), 1e-6)


def eye_distance(portrait: Portrait) -> float:
    """Between the centres of the eyes, in pixels."""
    return float((portrait.points68[42:48].mean(0) - portrait.points68[36:42].mean(0)).norm())


def _mean(values: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return (values * weight).sum() / weight.sum().clamp_min(1e-6)


def _smooth(plane: torch.Tensor, share: float) -> torch.Tensor:
    """plane [C,H,W] of any range smoothed by a Gaussian whose sigma is `share` of the side."""
    from kornia.filters import gaussian_blur2d

    sigma = max(share * plane.shape[-1], 0.3)
    size = 2 * min(max(1, round(3 * sigma)), (plane.shape[-1] - 1) // 2) + 1
    return gaussian_blur2d(plane[None], (size, size), (sigma, sigma))[0]


def _grown(mask: torch.Tensor) -> torch.Tensor:
    """The mask dilated by the neutral band, softened outwards."""
    return torch.maximum(feather(dilate(mask, 1.5 * _BAND), _BAND / 2), mask)
