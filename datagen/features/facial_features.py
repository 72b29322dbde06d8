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
                     the other by its centre in the frame of the stable points; after: as the landmarks were seen to
                     move; lower is nearer
  seam_delta_e       mean CIEDE2000 between before and after along the outer rim of the paste; 0 is seamless
  outside_delta_e    mean CIEDE2000 between before and after over the rest of the face; 0 is untouched
  others_shift       mean shift in eye distances of the landmarks of the parts that were not asked for
  reference_id       the first 48 bits of the reference's digest: which picture the parts are of
"""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import torch
from pydantic import Field, field_validator

from stylepairs.datagen.images.colors import delta_e_2000, lab_to_srgb, srgb_to_lab
from stylepairs.datagen.images.filters import blurred, mean_of, read_at
from stylepairs.datagen.portraits.face_frame import pixel_places
from stylepairs.datagen.portraits.landmarks import eye_distance
from stylepairs.datagen.portraits.portrait import CLASS, Portrait
from stylepairs.datagen.portraits.regions import feather, labelled, polygon
from stylepairs.datagen.portraits.sketch import AnalysedPair, FeatureParams, Sketch, SketchRefused
from stylepairs.datagen.shell.errors import nearest
from stylepairs.datagen.sketching.face.face_parts import (
    MIN_BROW_CONTRAST,
    MIN_EYE_CONTRAST,
    PART_CLASSES,
    PARTS,
    PIECES,
    bare_bridge,
    bare_skin,
    brow_contrast,
    covering,
    eye_contrast,
    hidden_part,
    part_hulls,
    widened,
)
from stylepairs.datagen.sketching.face.references import BUNDLED, draw_reference, named_reference
from stylepairs.datagen.sketching.tools.warp import point_flow, warp_image

FILE_PARAMS = ("reference", "references")
# Eye corners, the nose's ridge and base, the upper lip: what lays one face over another, whatever its expression.
_STABLE = [36, 39, 42, 45, 27, 28, 29, 30, 33, 51]
_LOWER_FACE = [*range(2, 15), 35, 33, 31]  # jaw and the nose's base
# In eye distances: how far the paste reaches beyond its part, and how softly it ends.
_MARGIN = {"brows": 0.13, "eyes": 0.15, "nose": 0.13, "mouth": 0.13}
_SOFTNESS = 0.05
# In eye distances: the scales over which the difference in light is spread inwards, near and far.
_LIGHT_NEAR, _LIGHT_FAR = 0.1, 0.35
# A drawn reference is no more unlike than this, see `references.distance`; where none is so near, the nearest alone may
# be more unlike. By eye on 12 sketches; the beard's share of a distance is about one.
_MAX_DISTANCE, _FARTHEST, _BEARD_WEIGHT = 3.8, 4.2, 1.0
_JUDGED_PX = 128  # the eyes of references are judged at this size, whatever theirs is
# Of the side: the neutral band around the paste, and the scale below which pictures are not compared.
_BAND, _SEEN_SCALE = 0.02, 0.01


class Params(FeatureParams):
    """Which parts are taken, and from whom.

    parts: any of brows, eyes, nose, mouth, as "eyes,mouth" or a tuple; "all" for the four. hidden: whether a portrait
    that hides one of them is refused, or that part left out where others can be seen. reference: a photo file or
    FOLDER/NAME of a prepared portrait; None: drawn from `references`, a folder of prepared portraits ("bundled":
    those that come with the package), among those nearest in pose, skin tone and sharpness; another `seed` draws
    another. adopt: share of the reference's shape, 0 its look only, 1 all. intensity: the degree, 0 own, 1 wanted.
    reference_px: side of the downsampled sketch that reconstruction matches.
    """

    parts: str = "eyes"
    hidden: Literal["refuse", "leave_out"] = "refuse"
    reference: str | None = None
    references: str = BUNDLED
    adopt: float = Field(1.0, ge=0, le=1)
    intensity: float = Field(1.0, ge=0, le=1)
    seed: int = Field(0, ge=0)
    reference_px: int = Field(32, ge=16, le=256)

    @field_validator("parts", mode="before")
    @classmethod
    def _known_parts(cls, value: Any) -> Any:
        names = value.split(",") if isinstance(value, str) else value
        if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
            return value
        wanted = {name.strip().lower() for name in names} - {""}
        wanted = (wanted - {"all"}) | set(PARTS) if "all" in wanted else wanted
        for name in sorted(wanted - set(PARTS)):
            raise ValueError(f"unknown part {name!r}{nearest(name, PARTS)}; there are {', '.join(PARTS)}, or all")
        if not wanted:
            raise ValueError(f"no part is named; there are {', '.join(PARTS)}, or all")
        return ",".join(name for name in PARTS if name in wanted)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.parts.split(","))


def settled(portrait: Portrait, params: Params) -> Params:
    """The parameters with the parts that are seen, and the reference that they draw for this portrait, named. Raises as
    `sketch` does."""
    params = _of_seen(portrait, params)
    if params.reference is not None:
        return params
    _refuse_hidden(portrait, params)
    drawn = chosen_reference(portrait, params)
    return params.model_copy(update={"reference": f"{params.references}/{drawn.name}"})


def sketch(portrait: Portrait, params: Params) -> Sketch:
    """The portrait with the reference's parts in place of its own.

    Raises SketchRefused where a part is hidden, in the portrait or in every reference that is like it, and InputError
    where `reference` or `references` name nothing that can be used.
    """
    params = _of_seen(portrait, params)
    _refuse_hidden(portrait, params)
    return _edited(portrait, chosen_reference(portrait, params), params, params.intensity)


def measure(portrait: Portrait, seen: AnalysedPair, params: Params) -> dict[str, float]:
    """How near the parts came to the reference's, and what it cost: the figures of the file's docstring."""
    params = _of_seen(portrait, params)
    reference = chosen_reference(portrait, params)
    full = _edited(portrait, reference, params, 1.0)
    mask = full.edit_mask
    inner = (mask * (mask > 0.5)).clamp_min(0)
    own, before, after, wanted = (
        blurred(srgb_to_lab(image.clamp(-1, 1)), _SEEN_SCALE * portrait.size_px)
        for image in (portrait.image, seen.before.image, seen.after.image, full.image)
    )
    change, whole = (after - before) * inner, (wanted - own) * inner
    near = [mean_of(delta_e_2000(lab, wanted)[None], inner) for lab in (before, after)]
    shape = _placed(portrait, reference, params, 1.0)
    # As the analyser sees them move: where it errs, it errs in both halves alike.
    moved = portrait.points68 + seen.after.points68.to(mask) - seen.before.points68.to(mask)
    rim = ((mask > 0.02) & (mask < 0.35)).float()
    face = bare_skin(portrait) * (1 - widened((mask > 0).float(), _BAND))
    figures: dict[str, torch.Tensor | float] = {
        "degree": (change * whole).sum() / whole.square().sum().clamp_min(1e-6),
        "appearance_before": near[0],
        "appearance_after": near[1],
        "appearance_gain": 1 - near[1] / near[0].clamp_min(1e-3),
        "shape_before": _shape_distance(portrait.points68, shape, params),
        "shape_after": _shape_distance(moved, shape, params),
        "seam_delta_e": mean_of(delta_e_2000(before, after)[None], rim),
        "outside_delta_e": mean_of(delta_e_2000(before, after)[None], face),
        "others_shift": _others_shift(seen, params),
        "reference_id": int(reference.digest[:12], 16),
    }
    return {name: float(value) for name, value in figures.items()}


def chosen_reference(portrait: Portrait, params: Params) -> Portrait:
    """The reference that `params` name, or draw for this portrait, on its device. Raises as `sketch` does."""
    if params.reference is not None:
        reference = named_reference(params.reference)
        hidden = hidden_part(reference, params.names)
        if hidden:
            raise SketchRefused(f"{portrait.name}: reference {params.reference}: {hidden}; choose another")
        return reference.to(portrait.image.device)
    beard_weight = _BEARD_WEIGHT if {"nose", "mouth"} & set(params.names) else 0.0
    usable = partial(can_give, parts=params.names)
    farthest = _FARTHEST + beard_weight
    drawn = draw_reference(
        portrait.to("cpu"), params.references, params.seed, usable, beard_weight, _MAX_DISTANCE, farthest
    )
    if drawn is None:
        raise SketchRefused(
            f"{portrait.name}: no portrait of {params.references} is like it and shows its {params.parts}"
        )
    return drawn.to(portrait.image.device)


def _of_seen(portrait: Portrait, params: Params) -> Params:
    """The parameters without the parts that are to be left out; as they are where nothing of them would be left."""
    if params.hidden == "refuse":
        return params
    seen = [part for part in params.names if not hidden_part(portrait, (part,))]
    return params.model_copy(update={"parts": ",".join(seen) or params.parts, "hidden": "refuse"})


def _refuse_hidden(portrait: Portrait, params: Params) -> None:
    hidden = hidden_part(portrait, params.names)
    if hidden:
        raise SketchRefused(f"{portrait.name}: {hidden}")


def can_give(portrait: Portrait, parts: tuple[str, ...]) -> bool:
    """Whether the parts of a portrait are seen so plainly that another face may have them."""
    if "brows" in parts and brow_contrast(portrait) < MIN_BROW_CONTRAST:
        return False
    if "eyes" in parts and eye_contrast(portrait.resized(_JUDGED_PX)) < MIN_EYE_CONTRAST:
        return False
    return (parts == ("mouth",) or bare_bridge(portrait)) and not hidden_part(portrait, parts)


def _edited(portrait: Portrait, reference: Portrait, params: Params, degree: float) -> Sketch:
    """The sketch at `degree` of the way from the portrait to the reference's parts."""
    reference = reference.resized(portrait.size_px)
    wanted = _placed(portrait, reference, params, 1.0)
    points = portrait.points68.lerp(wanted, degree)
    laid = _laid_over(portrait, reference, points)
    mask, core = _masks(portrait, laid, wanted, params)
    patch = _lit(portrait, laid, mask, core, bearded="mouth" in params.names)
    own = portrait.image
    if degree < 1:
        own = warp_image(own, point_flow(portrait.size_px, portrait.points68[17:], points[17:], method="mls"))
    image = portrait.image + mask * (own.lerp(patch, degree) - portrait.image)
    image = torch.where(mask > 0, image, portrait.image).clamp(-1, 1) if degree > 0 else portrait.image
    return Sketch(
        image=image,
        edit_mask=mask,
        keep_mask=1 - torch.maximum(feather(widened(mask, 1.5 * _BAND), _BAND / 2), mask),
        reference_px=min(params.reference_px, portrait.size_px),
        sketch_detail=1.0,
        label=_label_after(portrait, laid, mask, params) if degree > 0.5 else None,
        points68=points,
    )


def _placed(portrait: Portrait, reference: Portrait, params: Params, degree: float) -> torch.Tensor:
    """The portrait's landmarks [68,2] with the reference's shape in the parts, each piece where its own is."""
    reference = reference.resized(portrait.size_px)
    placed = _similarity(reference.points68, portrait.points68)
    points = portrait.points68.clone()
    for part in params.names:
        for piece, anchors in PIECES[part]:
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
    turn, source, end = _similarity_of(reference.points68, portrait.points68)
    placed = _similarity(reference.points68, portrait.points68)
    flow = point_flow(portrait.size_px, placed[17:], points[17:], method="mls")
    places = pixel_places(flow) + flow.permute(1, 2, 0)
    back = torch.view_as_real((torch.view_as_complex(places.contiguous()) - end) / turn + source)
    sampled = partial(read_at, places=back, padding="reflection")
    return Portrait(
        name=reference.name,
        image=sampled(reference.image, mode="bicubic").clamp(-1, 1),
        label=sampled(reference.label[None].float(), mode="nearest")[0].round().to(torch.uint8),
        hair=sampled(reference.hair).clamp(0, 1),
        points68=points,
        digest=reference.digest,
    )


def _masks(
    portrait: Portrait, laid: Portrait, wanted: torch.Tensor, params: Params
) -> tuple[torch.Tensor, torch.Tensor]:
    """(edit mask, core) [1,H,W]: the parts of both faces, with skin around them and without; nothing that is neither
    part nor skin in either face.
    """
    eyes = eye_distance(portrait.points68) / portrait.size_px
    mask, core = (torch.zeros_like(portrait.hair) for _ in range(2))
    for part in params.names:
        hull = part_hulls(portrait, [portrait.points68, wanted], part)
        if part != "nose":
            hull = torch.maximum(hull, labelled(portrait, *PART_CLASSES[part]) * widened(hull, 0.1 * eyes))
        core = torch.maximum(core, hull)
        mask = torch.maximum(mask, widened(hull, _MARGIN[part] * eyes))
    others = [part for part in PARTS if part not in params.names]
    barred = torch.maximum(covering(portrait), covering(laid))
    for part in others:
        classes = PART_CLASSES[part] if part != "nose" else ()  # the nose's class is as wide as its skin
        hull = part_hulls(portrait, [portrait.points68], part)
        barred = torch.maximum(barred, torch.maximum(labelled(portrait, *classes), labelled(laid, *classes)))
        barred = torch.maximum(barred, widened(hull, 0.02 * eyes))
    soft = feather(mask, _SOFTNESS * eyes) * (1 - feather(widened(barred, 0.03 * eyes), 0.03 * eyes))
    soft = ((soft - 0.02) / 0.96).clamp(0, 1)
    return soft, core


def _lit(portrait: Portrait, laid: Portrait, mask: torch.Tensor, core: torch.Tensor, bearded: bool) -> torch.Tensor:
    """The laid reference in the portrait's light [3,H,W]: the ratio of their skin, diffused over the parts.

    A ratio of L + 16, of which chroma goes along, as on a matt surface: what is dark on fair skin stays above black on
    dark skin. Whites of eyes and teeth are no lighter for fair skin: they take the difference of the eyes' whites. Skin
    below the nose may be a beard: it tells the light for the mouth only.
    """
    eyes = eye_distance(portrait.points68) / portrait.size_px
    own, other = srgb_to_lab(portrait.image), srgb_to_lab(laid.image)
    skin = bare_skin(portrait) * bare_skin(laid)
    if not bearded:
        skin = skin * (1 - polygon(portrait, portrait.points68[_LOWER_FACE].cpu().numpy()))
    around = widened(mask, 0.1 * eyes)
    valid = skin * (around > 0.02) * (1 - widened(core, 0.04 * eyes)) + 1e-6 * around
    sigmas = (share * eye_distance(portrait.points68) for share in (_LIGHT_NEAR, _LIGHT_FAR))
    gain = (own[:1] + 16) / (other[:1] + 16)
    way = torch.cat([gain.log(), own[1:] - other[1:] * gain])
    near, far = ((blurred(way * valid, sigma), blurred(valid, sigma)) for sigma in sigmas)
    light = (near[0] + 0.05 * far[0]) / (near[1] + 0.05 * far[1]).clamp_min(1e-9)
    whites = 0.6 * (_whites(portrait, own) - _whites(laid, other))
    white = feather(labelled(laid, "l_eye", "r_eye", "mouth"), 0.02 * eyes)
    gain = light[:1].exp()
    lit = torch.cat([(other[:1] + 16) * gain - 16, other[1:] * gain + light[1:]])
    return lab_to_srgb(lit.lerp(other + whites.clamp(-8, 8), white)).clamp(-1, 1)


def _whites(portrait: Portrait, lab: torch.Tensor) -> torch.Tensor:
    """The mean Lab [3,1,1] of the lightest third of the eyes; that of whites in an even light where none are seen."""
    pixels = lab[:, labelled(portrait, *PART_CLASSES["eyes"])[0] > 0]
    if pixels.shape[1] < 3:
        return torch.tensor([65.0, 5.0, 5.0])[:, None, None].to(lab)
    return pixels[:, pixels[0].topk(pixels.shape[1] // 3).indices].mean(1)[:, None, None]


def _label_after(portrait: Portrait, laid: Portrait, mask: torch.Tensor, params: Params) -> torch.Tensor:
    classes = [CLASS[name] for part in params.names for name in PART_CLASSES[part]]
    taken = torch.tensor(classes, device=portrait.label.device, dtype=torch.uint8)
    inside = mask[0] > 0.5
    label = portrait.label.masked_fill(inside & torch.isin(portrait.label, taken), CLASS["skin"])
    return torch.where(inside & torch.isin(laid.label, taken), laid.label, label)


def _shape_distance(points: torch.Tensor, shape: torch.Tensor, params: Params) -> float:
    """Mean distance [] of the parts' landmarks to `shape`'s in eye distances, each piece laid over by its centre."""
    points = _similarity(points.to(shape), shape)
    apart = []
    for part in params.names:
        for piece, _ in PIECES[part]:
            one, other = points[list(piece)], shape[list(piece)]
            apart.append(((one - one.mean(0)) - (other - other.mean(0))).norm(dim=-1))
    return float(torch.cat(apart).mean()) / eye_distance(shape)


def _others_shift(seen: AnalysedPair, params: Params) -> float:
    rows = [row for part in PARTS if part not in params.names for piece, _ in PIECES[part] for row in piece]
    if not rows:
        return 0.0
    apart = (seen.after.points68 - seen.before.points68)[rows].norm(dim=-1).mean()
    return float(apart) / eye_distance(seen.before.points68)
