"""The quality gate: figures of a pair, and the judgement that the recipe's thresholds make of them.

Figures that `measure_pair` gives, besides the feature's own (NAME is that of the perceptual features, which the value
depends on; no face-recognition weights are assumed, so identity is judged with the same features):

outside_psnr_db           generated after vs photo over the keep mask, before composing; higher is better
outside_perceptual_NAME   the same with masked perceptual distance, at 128 px if it is larger; lower is better
identity_NAME             mean cosine of deep features, generated before vs after, over the face outside the edit;
                          likewise
prior_before, prior_after latent's distance in the generator's Gaussianised W; lower is more usual
seam_energy               gradient along the mask's edge beyond that of both images composed, likewise; 0 is seamless
rim_delta_e               mean CIEDE2000 between before and after in a ring around what was edited; 0 is no spill
eyes_kept                 contrast of lightness inside the eyes, after / before, of the eye that lost more; 1 keeps it
                          all, closed or painted-over eyes have under 0.3
face_score                detector's score on the after image (only with a face analyser); 0 when no face is found
landmark_shift            mean shift of the 51 inner landmarks, before to after, less what the edit moves them, in eye
                          distances (likewise)
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
import torch.nn.functional as F

from stylepairs.datagen.build.settings import GateSettings
from stylepairs.datagen.images.colors import delta_e_2000, srgb_to_lab
from stylepairs.datagen.images.files import to_uint8
from stylepairs.datagen.images.filters import grown, psnr_db
from stylepairs.datagen.images.perceptual import Perceptual, perceptual_distance
from stylepairs.datagen.portraits.face_frame import pixel_places
from stylepairs.datagen.portraits.landmarks import LEFT_EYE, RIGHT_EYE, eye_distance
from stylepairs.datagen.portraits.portrait import Portrait
from stylepairs.datagen.portraits.regions import face_region
from stylepairs.datagen.portraits.sketch import Sketch
from stylepairs.datagen.reconstruction.prior import WPrior
from stylepairs.datagen.shell.errors import InputError, nearest

NOT_FINITE = "not finite"

_COMMON = ("outside_perceptual_", "identity_", "prior_", "inversion_", "reconstruction_", "import_")
_COMMON_NAMES = ("outside_psnr_db", "seam_energy", "rim_delta_e", "eyes_kept", "face_score", "landmark_shift")
# Faces are looked for at this size at least: detectors are trained on photos, not on 64 px crops.
_FIND_SIZE_PX = 256
# The lowest score at which a face still counts as there; the gate's threshold is usually higher.
_FIND_MIN_SCORE = 0.05
_INNER_POINTS = slice(17, 68)
# Perceptual figures and the seam's are taken of images averaged down to about this side, where the gate's bounds were
# found: at 1024 px, a blend over one and the same share of a face is eight times flatter per pixel, and deep features
# see pores: an equally soft render has an identity of 0.74 there in place of 0.97.
_JUDGED_PX = 128
# Of the crop's side: the width of the ring around an edit in which nothing is to change, and of the edge before it.
_RIM, _RIM_FROM = 0.05, 1 / 128
# Half axes of the ellipse in which eyes are compared, in eye widths: iris and white, hardly any lid.
_EYE_AXES = (0.3, 0.15)
# Contrast below which an eye shows nothing to begin with, in [-1,1]: dark glasses, deep shadow.
_LEAST_CONTRAST = 0.02


class Analyser(Protocol):
    """What is used of a face analyser: faces in a photo [H,W,3] uint8, best first or not, with score and points68;
    label maps and hair mattes of aligned crops [N,3,H,W]."""

    def find(self, photo: Any, min_score: float) -> list[Any]: ...

    def parse(self, aligned: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]: ...


@dataclass(frozen=True)
class Instruments:
    """What figures are measured with; analyser None: none is installed, and its figures are left out."""

    perceptual: Perceptual
    prior: WPrior
    analyser: Analyser | None = None

    @property
    def names(self) -> dict[str, str]:
        return {"perceptual": self.perceptual.name, "analyser": "none" if self.analyser is None else "embedded"}


@dataclass(frozen=True)
class Images:
    """A pair's images at one size: generated as rendered, `after` composed; [3,H,W] in [-1,1]; mask [1,H,W]."""

    generated_before: torch.Tensor
    generated_after: torch.Tensor
    after: torch.Tensor
    mask: torch.Tensor


@dataclass(frozen=True)
class AnalysedPortrait:
    """A portrait with the label map, matte and landmarks that the face analyser finds.

    score: the detector's; 0: no face was found, and the points are those that were given; None: nothing was looked for.
    """

    portrait: Portrait
    score: float | None


@torch.no_grad()
def analyse(portrait: Portrait, image: torch.Tensor, analyser: Analyser | None) -> AnalysedPortrait:
    """`image` [3,H,W], a picture of the person of `portrait`, with label map, matte and landmarks found anew.

    analyser None: none is installed, and those of `portrait` are taken over.
    """
    seen = replace(portrait, image=image)
    if analyser is None:
        return AnalysedPortrait(seen, None)
    device = image.device
    label, hair = (part[0].to(device) for part in analyser.parse(image[None].cpu()))
    found = _best_face(image, analyser)
    if found is None:
        return AnalysedPortrait(replace(seen, label=label, hair=hair), 0.0)
    return AnalysedPortrait(replace(seen, label=label, hair=hair, points68=found[1].to(device)), found[0])


@torch.no_grad()
def measure_pair(
    portrait: Portrait,
    sketch: Sketch,
    images: Images,
    latents: tuple[torch.Tensor, torch.Tensor] | None,
    instruments: Instruments,
    analysed: tuple[AnalysedPortrait, AnalysedPortrait] | None = None,
) -> dict[str, float]:
    """All figures of the module's list that apply. portrait and sketch at the images' size.

    latents: those of before and after, [L,C] each; None makes their figures NaN. analysed: `analyse` of before and the
    composed after, where that was done already.
    """
    name = instruments.perceptual.name.replace("-", "_")
    feats = instruments.perceptual.features
    looked_at = (portrait.image, images.generated_before, images.generated_after)
    photo, before, after = (feats(_averaged_down(image.clamp(-1, 1))[None]) for image in looked_at)
    prior = [math.nan] * 2 if latents is None else instruments.prior.distance(torch.stack(latents)).tolist()
    figures = {
        "outside_psnr_db": psnr_db(images.generated_after, portrait.image, sketch.keep_mask),
        f"outside_perceptual_{name}": float(perceptual_distance(after, photo, sketch.keep_mask[None])),
        f"identity_{name}": _masked_cosine(before[-1], after[-1], face_mask(portrait, sketch)),
        "prior_before": prior[0],
        "prior_after": prior[1],
        "seam_energy": seam_energy(portrait.image, images.generated_after, images.after, images.mask),
        "rim_delta_e": rim_delta_e(portrait.image, images.after, sketch.edit_mask),
        "eyes_kept": eyes_kept(portrait, sketch, images.after),
    }
    if instruments.analyser is not None:
        if analysed is None:
            own = analyse(portrait, portrait.image, instruments.analyser)
            analysed = own, analyse(portrait, images.after, instruments.analyser)
        figures |= _face_figures(*analysed, _moved(portrait, sketch))
    return figures


def judge(figures: dict[str, float], gate: GateSettings) -> tuple[bool, list[str]]:
    """Whether a pair passes, and a reason per threshold it fails: "hair_delta_e 12.3 > 8".

    Raises InputError when the gate names a figure that was not measured and is not optional.
    """
    check_gate(gate, figures)
    reasons = []
    for name, threshold in gate.items():
        if name not in figures:
            continue
        value = figures[name]
        if not math.isfinite(value):
            reasons.append(f"{name} {NOT_FINITE}")
        elif threshold.min is not None and value < threshold.min:
            reasons.append(f"{name} {value:.4g} < {threshold.min:g}")
        elif threshold.max is not None and value > threshold.max:
            reasons.append(f"{name} {value:.4g} > {threshold.max:g}")
    return not reasons, reasons


def check_gate(gate: GateSettings, measured: Collection[str]) -> None:
    """InputError when the gate names a figure that is not among those measured, unless it is optional."""
    for name, threshold in gate.items():
        if name not in measured and not threshold.optional:
            known = f"measured are {', '.join(sorted(measured))}"
            raise InputError(f"gate: no figure {name!r} was measured{nearest(name, measured)}; {known}")


def is_common(figure: str) -> bool:
    """Whether a figure is measured of every pair, whatever its feature."""
    return figure in _COMMON_NAMES or figure.startswith(_COMMON)


def seam_energy(before: torch.Tensor, generated: torch.Tensor, after: torch.Tensor, mask: torch.Tensor) -> float:
    """Gradient of `after` beyond the larger of `before` and `generated`, meaned over the mask's edge; images [3,H,W].

    A blend of two images can be steeper than both only where it joins them: that is the seam. Per pixel step at 128 px
    (larger images are averaged down), in image units (a hard step between black and white in one channel is 2/3); 0
    where the mask has no edge.
    """
    before, generated, after, mask = (_averaged_down(image) for image in (before, generated, after, mask))
    inside = (mask > 0.5).float()
    edge = grown(inside, 2) + grown(-inside, 2)  # dilation minus erosion: 1 within 2 px
    excess = _gradient(after) - torch.maximum(_gradient(before), _gradient(generated))
    return float((excess.clamp_min(0) * edge).sum() / edge.sum().clamp_min(1))


def rim_delta_e(before: torch.Tensor, after: torch.Tensor, edit_mask: torch.Tensor) -> float:
    """Mean CIEDE2000 between images [3,H,W] in the ring around edit_mask [1,H,W]; 0 where the mask leaves no ring."""
    edited = (edit_mask > 0.02).float()
    ring = (grown(edited, _RIM * edited.shape[-1]) - grown(edited, _RIM_FROM * edited.shape[-1]))[0]
    change = delta_e_2000(srgb_to_lab(before), srgb_to_lab(after))
    return float((change * ring).sum() / ring.sum().clamp_min(1))


def eyes_kept(portrait: Portrait, sketch: Sketch, after: torch.Tensor) -> float:
    """Spread of lightness inside the eyes, after / before, the lesser of both; where the edit moves the eyes, there."""
    moved = portrait.points68 if sketch.points68 is None else sketch.points68
    kept = [
        (_spread_inside(after, moved[eye]) + _LEAST_CONTRAST)
        / (_spread_inside(portrait.image, portrait.points68[eye]) + _LEAST_CONTRAST)
        for eye in (RIGHT_EYE, LEFT_EYE)
    ]
    return float(torch.stack(kept).min())


def _spread_inside(image: torch.Tensor, eye: torch.Tensor) -> torch.Tensor:
    """Standard deviation of lightness of image [3,H,W] in the ellipse over an eye's landmarks [6,2]."""
    centre, width = eye.mean(0), (eye[:, 0].max() - eye[:, 0].min()).clamp_min(4)
    across, down = ((pixel_places(image) - centre) / (width * torch.tensor(_EYE_AXES).to(image))).unbind(-1)
    inside = (across.square() + down.square() < 1).float()
    light, count = image.mean(0), inside.sum().clamp_min(1)
    mean = (light * inside).sum() / count
    return (((light - mean).square() * inside).sum() / count).sqrt()


def face_mask(portrait: Portrait, sketch: Sketch) -> torch.Tensor:
    """[1,H,W]: the face's inner classes, less what is edited."""
    return face_region(portrait, 0.0) * (sketch.edit_mask < 0.5)


def _averaged_down(image: torch.Tensor) -> torch.Tensor:
    """image [C,H,W] at about _JUDGED_PX where it is larger."""
    factor = max(1, image.shape[-1] // _JUDGED_PX)
    return F.avg_pool2d(image, factor) if factor > 1 else image


def _gradient(image: torch.Tensor) -> torch.Tensor:
    """[3,H,W] -> [1,H,W]: forward differences, the larger of both directions, meaned over channels."""
    padded = F.pad(image[None], (0, 1, 0, 1), mode="replicate")[0]
    across = (padded[:, :-1, 1:] - padded[:, :-1, :-1]).abs().mean(0, keepdim=True)
    down = (padded[:, 1:, :-1] - padded[:, :-1, :-1]).abs().mean(0, keepdim=True)
    return torch.maximum(across, down)


def _masked_cosine(a: torch.Tensor, b: torch.Tensor, mask: torch.Tensor) -> float:
    """Mean cosine over positions of [1,C,h,w] features, weighted by mask [1,H,W]; NaN where it is empty."""
    weight = F.interpolate(mask[None], size=a.shape[-2:], mode="area")[0, 0]
    total = float(weight.sum())
    return float((F.cosine_similarity(a, b, dim=1)[0] * weight).sum()) / total if total > 0 else math.nan


def _moved(portrait: Portrait, sketch: Sketch) -> torch.Tensor:
    """Where the sketch moves landmarks, by how much [68,2]."""
    return torch.zeros_like(portrait.points68) if sketch.points68 is None else sketch.points68 - portrait.points68


def _face_figures(before: AnalysedPortrait, after: AnalysedPortrait, moved: torch.Tensor) -> dict[str, float]:
    if not after.score:
        return {"face_score": 0.0, "landmark_shift": math.nan}
    points_before, points_after = before.portrait.points68, after.portrait.points68
    shift = (points_after - points_before - moved.to(points_before))[_INNER_POINTS].norm(dim=-1).mean()
    return {"face_score": after.score, "landmark_shift": float(shift / eye_distance(points_before))}


def _best_face(image: torch.Tensor, analyser: Analyser) -> tuple[float, torch.Tensor] | None:
    """Score and points68 [68,2], in the image's own pixels, of the best face found."""
    size_px = max(image.shape[-1], _FIND_SIZE_PX)
    scale = size_px / image.shape[-1]
    larger = F.interpolate(image[None], size=(size_px, size_px), mode="bicubic", align_corners=False)
    faces = analyser.find(to_uint8(larger[0]), _FIND_MIN_SCORE)
    if not faces:
        return None
    best = max(faces, key=lambda face: float(face.score))
    points = torch.as_tensor(best.points68, dtype=torch.float32)
    return float(best.score), (points + 0.5) / scale - 0.5
