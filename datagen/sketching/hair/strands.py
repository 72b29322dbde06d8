"""Hair of the person's own colour and texture, painted strand by strand along a flow field.

Strands follow the guides of locks and draw together towards the tips (wisps: Choe & Ko 2005; Ward et al. 2007). Their
lightness comes in two bands, locks and strands, each given the contrast that the own hair has there. All widths are
shares of the crop's side: the same strokes at every size.

    palette = hair_palette(portrait)                        # raises SketchRefused where there is no hair to learn from
    rng = random_generator("strands", seed, portrait.digest)
    image, alpha = grow_hair(portrait, region, flow, StrandStyle(), rng)
    image = shade_skin(portrait.image, alpha) * (1 - alpha) + image * alpha
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from stylepairs.datagen.images.colors import lab_to_srgb, srgb_to_lab
from stylepairs.datagen.images.filters import overall_mean, read_at
from stylepairs.datagen.portraits.face_frame import pixel_places
from stylepairs.datagen.portraits.landmarks import CHIN, EYES, NASION, NOSE_TIP
from stylepairs.datagen.portraits.portrait import CLASS, Portrait
from stylepairs.datagen.portraits.regions import dilate, feather
from stylepairs.datagen.portraits.sketch import SketchRefused
from stylepairs.datagen.sketching.hair.strokes import StrandStyle, paint, trace_guides
from stylepairs.datagen.sketching.tools.texture import blurred_by_share, blurred_within_by_share

# Of the side: the scales that part the bands of lightness: sharpness, strands, locks, and the shading above.
_BAND_SIGMAS = (0.003, 0.012, 0.03)
# Painted strands all run one way, so that the same contrast looks stronger on them than in the own hair.
_CONTRAST = 0.78
# Lightness of hair seen between the strands above it, in standard deviations.
_UNDER_SHADE = -1.2
# Of the crop: hair that is needed to learn its colour from.
_MIN_CORE_SHARE = 0.0015
# Of the side: how soft the tips of painted hair are. They begin so far along the strands, and are whole so much later.
_TIP_SIGMA = 0.005
_TIPS_FROM, _TIPS_OVER = 0.8, 0.15
_TIP_SOFTNESS = 0.8
# Of the side: how far the colour of the own hair nearby reaches into what is painted.
_NEAR_SIGMA = 0.07
# Of the side: how far around the forehead's top the hair's colour is learned.
_FOREHEAD_SIGMA = 0.16


@dataclass(frozen=True)
class HairPalette:
    """The own hair's colours and texture: shadow, mean, highlight [3] in Lab (5th percentile, mean, 95th of lightness);
    contrast: standard deviation of lightness in the bands of sharpness, strands and locks; chroma_slope [2]: change of
    a, b per unit of lightness; curl in [0,1]: 0 straight, 1 without any common direction; core [1,H,W]: where it was
    learned, 0 or 1."""

    shadow: torch.Tensor
    mean: torch.Tensor
    highlight: torch.Tensor
    contrast: list[float]
    chroma_slope: torch.Tensor
    curl: float
    core: torch.Tensor


def hair_palette(portrait: Portrait) -> HairPalette:
    """The colours and texture of the portrait's own hair: that above the forehead most, that on the shoulders least.

    Raises SketchRefused where there is too little hair to tell its colour.
    """
    core = _hair_core(portrait)
    lab = srgb_to_lab(portrait.image)
    inside = core[0] > 0.5
    pixels, weights = lab[:, inside], _nearness(portrait)[inside]
    weights = weights / weights.sum()
    light, order = pixels[0].sort()
    reached = weights[order].cumsum(0)
    low, high = (light[int((reached < share).sum().clamp(max=len(light) - 1))] for share in (0.05, 0.95))
    mean = (pixels * weights).sum(1)
    # Least squares of a, b on lightness, shrunk: where lightness hardly varies it tells nothing of colour.
    centred = pixels - mean[:, None]
    slope = (centred[1:] * centred[0] * weights).sum(1) / ((centred[0].square() * weights).sum() + 4.0)
    clearness = _orientation(lab[:1], core)[1]

    def at_lightness(light: torch.Tensor) -> torch.Tensor:
        return torch.cat([light[None], mean[1:] + slope * (light - mean[0])])

    return HairPalette(
        shadow=at_lightness(low),
        mean=mean,
        highlight=at_lightness(high),
        contrast=_contrasts(lab[:1], core),
        chroma_slope=slope.clamp(-0.6, 0.6),
        # 0.55 to 0.8 over straight hair, 0.25 to 0.45 over curls and where the hair is cropped.
        curl=float(((0.52 - overall_mean(clearness, core[0])) / 0.25).clamp(0, 1)),
        core=core,
    )


def own_flow(portrait: Portrait) -> torch.Tensor:
    """The direction [2,H,W] (x, y; unit) in which the own hair runs, away from the face, carried on beyond it.

    From the structure tensor (Kass & Witkin 1987) where the hair shows its strands; elsewhere straight away from the
    nose, which is how hair lies that is brushed back.
    """
    away = F.normalize((pixel_places(portrait.image) - portrait.points68[NOSE_TIP]).permute(2, 0, 1), dim=0)
    inside = dilate(((portrait.label == CLASS["hair"]).float()[None] * portrait.hair > 0.6).float(), -0.008)
    along, strength = _orientation(srgb_to_lab(portrait.image)[:1], inside)
    along = along * torch.where((along * away).sum(0) < 0, -1.0, 1.0)
    trust = strength.clamp(0, 1) * blurred_by_share(inside, 0.03)[0].clamp(0, 1)
    return F.normalize(blurred_by_share(away + (along - away) * trust, 0.02), dim=0)


def grow_hair(
    portrait: Portrait,
    region: torch.Tensor,
    flow: torch.Tensor,
    style: StrandStyle,
    rng: np.random.Generator,
    palette: HairPalette | None = None,
    light: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Hair grown in region [1,H,W] (soft: fewer strands where it is lower) along flow [2,H,W] (x, y; unit vectors from
    root to tip) -> image [3,H,W] in [-1,1], alpha [1,H,W] in [0,1]; the image means nothing where alpha is 0.

    palette: None takes the portrait's own hair, which raises SketchRefused where there is none. light [1,H,W]:
    lightness to add, in units of the own hair's spread from shadow to highlight (None: none).
    """
    palette = hair_palette(portrait) if palette is None else palette
    guides, lengths = trace_guides(region, flow, style, rng)
    if style.density <= 0 or len(guides) == 0:
        return portrait.image.clone(), torch.zeros_like(region)
    shade, alpha = (part.to(region) for part in paint(portrait.size_px, guides, lengths, style, palette.curl, rng))
    if style.lock_cover >= 2:
        shade, alpha = _without_chance_gaps(region, shade, alpha, style)
    alpha = _with_soft_tips(shade[1:], alpha)
    roots = -0.25 * style.root_shadow * (1 - shade[1:] / 0.35).clamp(0, 1)
    return _coloured(portrait, palette, shade[:1], alpha, roots if light is None else roots + light), alpha


def shade_skin(image: torch.Tensor, alpha: torch.Tensor, strength: float = 0.35) -> torch.Tensor:
    """image [3,H,W] with the soft shadow that hair of matte alpha [1,H,W] throws on the skin below it; strength in
    [0,1]: how much of the light is gone right under the hair."""
    drop_share = 0.012  # how far down the shadow falls
    places, step = pixel_places(alpha), torch.tensor([0.0, drop_share * alpha.shape[-1]]).to(alpha)
    near, far = (read_at(alpha, places - times * step) for times in (1, 2))
    shadow = 0.6 * feather(near, drop_share) + 0.4 * feather(far, 2.5 * drop_share)
    # Skin shadows are warmer than grey: red light scatters under the surface.
    tint = torch.tensor([0.82, 1.0, 1.06]).to(image)[:, None, None]
    return image - (image + 1) * (strength * shadow * tint).clamp(0, 1)


def strand_likeness(light: torch.Tensor, inside: torch.Tensor, flow: torch.Tensor, palette: HairPalette) -> float:
    """How much lightness [1,H,W] over inside [1,H,W] looks like the palette's strands, running along flow [2,H,W]: 1
    like them; 0 for flat paint, and for noise without direction."""
    along, clear = _orientation(light, inside)
    # Cosine of the doubled angle between strands and flow: 1 along it, 0 on average for any direction.
    agreement = 2 * (along * flow).sum(0).square() - 1
    aligned = float(overall_mean(agreement * clear, inside[0]))
    contrast = _likeness_of_contrasts(_contrasts(light, inside)[1:], palette.contrast[1:])
    # Straight strands of a sketch reach 0.4 to 0.8, curls 0.3.
    return contrast * min(max(aligned / 0.35, 0.0), 1.0)


def strand_width(light: torch.Tensor, inside: torch.Tensor, palette: HairPalette) -> float:
    """How wide what differs in lightness [1,H,W] over inside [1,H,W] is, against the own hair's strands and locks: 1 as
    wide, over 1 wider, as locks with skin between them are."""
    widths = [
        sum(c * sigma for c, sigma in zip(contrast, _BAND_SIGMAS, strict=True)) / max(sum(contrast), 1e-3)
        for contrast in (_contrasts(light, inside), palette.contrast)
    ]
    return widths[0] / widths[1]


def contrast_likeness(light: torch.Tensor, inside: torch.Tensor, like: torch.Tensor) -> float:
    """How near the contrast of lightness [1,H,W] over inside [1,H,W] comes to that over like: 1 the same, 0 flat."""
    found, wanted = (_contrasts(light, part)[1:2] for part in (inside, like))
    return _likeness_of_contrasts(found, wanted)


def _likeness_of_contrasts(found: Sequence[float], wanted: Sequence[float]) -> float:
    """Geometric mean of the ratios of contrasts, those over one turned over; 0.3 is what quantisation alone gives."""
    ratios = [(a + 0.05) / max(b, 0.3) for a, b in zip(found, wanted, strict=True)]
    return float(np.prod([min(ratio, 1 / ratio) for ratio in ratios]) ** (1 / len(ratios)))


def _hair_core(portrait: Portrait) -> torch.Tensor:
    hair = (portrait.label == CLASS["hair"]).float()[None]
    rows = torch.arange(portrait.size_px, device=hair.device)[:, None]
    head = (rows < float(portrait.points68[EYES, 1].mean())).float()[None]
    enough = _MIN_CORE_SHARE * hair.numel()
    for zone, least, inset in (
        (head, 0.9, 0.012),
        (head, 0.8, 0.006),
        (1.0, 0.9, 0.006),
        (head, 0.6, 0.0),
        (1.0, 0.6, 0),
    ):
        core = dilate(hair * (portrait.hair > least).float() * zone, -inset).round()
        if float(core.sum()) >= enough:
            return core
    raise SketchRefused(
        f"{portrait.name}: only {100 * float(core.mean()):.2f} % of the crop is surely hair "
        f"({100 * _MIN_CORE_SHARE:g} % needed); no hair colour to be had"
    )


def _nearness(portrait: Portrait) -> torch.Tensor:
    """How much a pixel [H,W] tells of the hair at the forehead: falls off from the middle above it, never to zero."""
    nasion, chin = portrait.points68[NASION], portrait.points68[CHIN]
    away2 = (pixel_places(portrait.image) - (nasion + 0.75 * (nasion - chin))).square().sum(-1)
    return torch.exp(-away2 / (2 * (_FOREHEAD_SIGMA * portrait.size_px) ** 2)) + 0.05


def _orientation(light: torch.Tensor, inside: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Along which line [2,H,W] (unit, sign without meaning) strands run, and how clearly [H,W], 0 to 1."""
    gy, gx = torch.gradient(blurred_by_share(light, 0.003)[0])
    # Double angle: opposite gradients are one orientation.
    tensor = torch.stack([gx * gx - gy * gy, 2 * gx * gy, gx * gx + gy * gy]) * inside
    smooth = blurred_by_share(tensor, 0.012) + 0.1 * blurred_by_share(tensor, 0.05)
    across = 0.5 * torch.atan2(smooth[1], smooth[0])
    return torch.stack([-across.sin(), across.cos()]), smooth[:2].norm(dim=0) / (smooth[2] + 1e-3)


def _contrasts(light: torch.Tensor, inside: torch.Tensor) -> list[float]:
    """Standard deviation of lightness [1,H,W] over `inside` in the bands of sharpness, strands and locks."""
    return [float(overall_mean(band.square(), inside).sqrt()) for band in _bands(light, inside)]


def _bands(light: torch.Tensor, inside: torch.Tensor) -> list[torch.Tensor]:
    """Lightness [1,H,W] -> its bands of sharpness, strands and locks; blurred over `inside` only."""
    levels = [light, *(blurred_within_by_share(light, inside, sigma) for sigma in _BAND_SIGMAS)]
    return [finer - coarser for finer, coarser in itertools.pairwise(levels)]


def _without_chance_gaps(
    region: torch.Tensor, shade: torch.Tensor, alpha: torch.Tensor, style: StrandStyle
) -> tuple[torch.Tensor, torch.Tensor]:
    """Shade [2,H,W] and alpha [1,H,W] with the chance gaps between dense strands closed by hair in their shadow; not at
    the tips, which stand free."""
    along = blurred_within_by_share(shade[1:], alpha, 0.012)
    fade = min(0.25, 1 - style.closed)
    inner = feather(dilate(region, -0.012), 0.006) * ((style.closed + fade - along) / fade).clamp(0, 1)
    under = torch.maximum(alpha, style.density**2 * inner)
    light = (shade[:1] * alpha + _UNDER_SHADE * (under - alpha)) / under.clamp_min(1e-4)
    return torch.cat([light, torch.where(alpha > 0.05, shade[1:], along)]), under


def _with_soft_tips(along: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
    """Alpha [1,H,W] softened where strands end (along [1,H,W]: 0 root to 1 tip): they thin out finer than a pixel."""
    tips = ((blurred_within_by_share(along, alpha, _TIP_SIGMA) - _TIPS_FROM) / _TIPS_OVER).clamp(0, 1)
    return alpha + (feather(alpha, _TIP_SIGMA) - alpha) * tips * _TIP_SOFTNESS


def _coloured(
    portrait: Portrait, palette: HairPalette, shade: torch.Tensor, alpha: torch.Tensor, lit: torch.Tensor
) -> torch.Tensor:
    """Shade, alpha, lit [1,H,W] -> sRGB: the own hair's colour nearby, its contrast band by band."""
    lab = srgb_to_lab(portrait.image)
    core = palette.core.to(lab)
    near = blurred_by_share(core, _NEAR_SIGMA)
    local = blurred_by_share(lab * core, _NEAR_SIGMA) / near.clamp_min(1e-4)
    mean = palette.mean.to(lab)[:, None, None]
    base = mean + (local - mean) * (near / (near + 0.06))
    # Where hair only begins to cover, contrast against the skin is contrast enough.
    inside = (alpha > 0.6).float()
    light = torch.zeros_like(alpha)
    for band, wanted in zip(_bands(shade, alpha), palette.contrast, strict=True):
        found = float(overall_mean(band.square(), inside).sqrt())
        light = light + band * (_CONTRAST * min(wanted, 10.0) / max(found, 0.05))
    spread = (palette.highlight[0] - palette.shadow[0]).to(lab)
    light = light + lit * spread
    floor, ceiling = float(palette.shadow[0]) - 0.1 * float(spread), float(palette.highlight[0]) + 0.1 * float(spread)
    total = (base[:1] + light).clamp(max(floor, 0.0), min(ceiling, 100.0))
    slope = palette.chroma_slope.to(lab)[:, None, None]
    return lab_to_srgb(torch.cat([total, base[1:] + slope * (total - base[:1])])).clamp(-1, 1)
