"""Breaks good pairs on purpose, each in one way that pairs do go wrong, to see whether the quality gate notices."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

from stylepairs.datagen.build.quality import Images
from stylepairs.datagen.compositing.compose import compose
from stylepairs.datagen.images.filters import blurred
from stylepairs.datagen.portraits.portrait import Portrait
from stylepairs.datagen.portraits.sketch import Sketch
from stylepairs.datagen.reconstruction.prior import WPrior
from stylepairs.datagen.reconstruction.reconstruct import Reconstruction

# Of the crop's side.
_MASK_OFF = 0.12
_FACE_OFF = 0.05
_SPILL = 0.05
_TINT = (0.3, -0.1, -0.3)  # a skin tone towards copper, about 12 in CIEDE2000
_MARGIN = 0.03
_STEP = 0.15  # of [-1,1]: a visible seam
_FAR = 2.0  # standard deviations of the latent
_EYES = (slice(36, 42), slice(42, 48))


@dataclass(frozen=True)
class Candidate:
    """A pair before it is judged: all that its figures are measured on. latents [L,C] of before and after."""

    portrait: Portrait
    sketch: Sketch
    images: Images
    latents: tuple[torch.Tensor, torch.Tensor]


Defect = Callable[[Candidate, Candidate, WPrior], Candidate]


def wrong_mask(pair: Candidate, other: Candidate, prior: WPrior) -> Candidate:
    """The edit put where it does not belong: an eighth of the crop to the side and downwards."""
    off_px = round(_MASK_OFF * pair.portrait.size_px)
    images, photo = pair.images, pair.portrait.image
    change, mask = (torch.roll(x, (off_px, off_px), (1, 2)) for x in (images.after - photo, images.mask))
    return replace(pair, images=replace(images, after=(photo + change).clamp(-1, 1), mask=mask))


def shifted_face(pair: Candidate, other: Candidate, prior: WPrior) -> Candidate:
    """The generator moved the head."""
    off_px = round(_FACE_OFF * pair.portrait.size_px)
    return _composed(pair, torch.roll(pair.images.generated_after, (off_px, off_px), (1, 2)))


def other_identity(pair: Candidate, other: Candidate, prior: WPrior) -> Candidate:
    """The generator made the edit on somebody else."""
    broken = _composed(pair, other.images.generated_after)
    return replace(broken, latents=(pair.latents[0], other.latents[1]))


def color_spill(pair: Candidate, other: Candidate, prior: WPrior) -> Candidate:
    """The surroundings of what was edited are tinted."""
    edit = pair.sketch.edit_mask
    radius = max(1, round(_SPILL * pair.portrait.size_px))
    halo = _softened(_grown(edit, radius), radius / 3)
    around = (halo - edit).clamp(0, 1)
    return _painted(pair, pair.images.after + edit.new_tensor(_TINT)[:, None, None], around)


def seam(pair: Candidate, other: Candidate, prior: WPrior) -> Candidate:
    """Pasted in with some of its surroundings, a little too light, with a hard edge."""
    hard = (_grown(pair.sketch.edit_mask, round(_MARGIN * pair.portrait.size_px)) > 0.5).float()
    after = pair.portrait.image.lerp((pair.images.after + _STEP).clamp(-1, 1), hard)
    return replace(pair, images=replace(pair.images, after=after, mask=hard))


def far_latent(pair: Candidate, other: Candidate, prior: WPrior) -> Candidate:
    """A latent that no portrait has."""
    draw = torch.Generator().manual_seed(0)
    u = prior.whiten(pair.latents[1])
    far = prior.unwhiten(u + _FAR * torch.randn(u.shape, generator=draw).to(u))
    return replace(pair, latents=(pair.latents[0], far))


def closed_eyes(pair: Candidate, other: Candidate, prior: WPrior) -> Candidate:
    """The lids' skin between the lids of both eyes."""
    image, size_px = pair.images.after, pair.portrait.size_px
    broken = pair
    for eye in _EYES:
        points = pair.portrait.points68[eye]
        centre, width = points.mean(0), (points[:, 0].max() - points[:, 0].min()).clamp_min(4)
        y, x = torch.meshgrid(*[torch.arange(size_px, device=image.device).float()] * 2, indexing="ij")
        far = (((x - centre[0]) / (0.5 * width)) ** 2 + ((y - centre[1]) / (0.2 * width)) ** 2)[None]
        inside, below = (far < 1).float(), ((far > 4) & (far < 9) & (y > centre[1])[None]).float()
        skin = (image * below).sum((1, 2), keepdim=True) / below.sum().clamp_min(1)
        broken = _painted(broken, skin.expand_as(image), _softened(inside, 0.01 * size_px))
    return broken


def flat_paint(pair: Candidate, other: Candidate, prior: WPrior) -> Candidate:
    """One colour over all that was edited."""
    edit = pair.sketch.edit_mask
    mean = (pair.images.after * edit).sum((1, 2), keepdim=True) / edit.sum().clamp_min(1)
    return _painted(pair, mean.expand_as(pair.images.after), edit)


def nothing_edited(pair: Candidate, other: Candidate, prior: WPrior) -> Candidate:
    """The photo itself."""
    images = replace(pair.images, after=pair.portrait.image, generated_after=pair.images.generated_before)
    return replace(pair, images=images, latents=(pair.latents[0], pair.latents[0]))


DEFECTS: dict[str, Defect] = {
    defect.__name__: defect
    for defect in (
        wrong_mask, shifted_face, other_identity, color_spill, seam, far_latent, closed_eyes, flat_paint,
        nothing_edited,
    )
}  # fmt: skip


def _composed(pair: Candidate, generated_after: torch.Tensor) -> Candidate:
    """The pair with another generated after image."""
    before = pair.images.generated_before
    made = Reconstruction(*pair.latents, [], before, generated_after, {})
    composed = compose(pair.portrait, made, pair.sketch)
    return replace(pair, images=Images(before, generated_after, composed.after, composed.mask))


def _painted(pair: Candidate, paint: torch.Tensor, where: torch.Tensor) -> Candidate:
    """Paint [3,H,W] on the after images, where [1,H,W] in [0,1] says."""
    images = pair.images
    after, generated = (image.lerp(paint.clamp(-1, 1), where) for image in (images.after, images.generated_after))
    painted = replace(images, after=after, generated_after=generated, mask=torch.maximum(images.mask, where))
    return replace(pair, images=painted)


def _grown(mask: torch.Tensor, radius_px: int) -> torch.Tensor:
    return F.max_pool2d(mask[None], 2 * radius_px + 1, 1, radius_px)[0]


def _softened(mask: torch.Tensor, sigma_px: float) -> torch.Tensor:
    return blurred(mask, max(0.5, sigma_px)).clamp(0, 1)
