"""Hair of the person's own colour and texture, painted strand by strand along a flow field.

Strands follow the guides of locks and draw together towards the tips (wisps: Choe & Ko 2005; Ward et al. 2007). Their
lightness comes in two bands, locks and strands, each given the contrast that the own hair has there. All widths are
shares of the crop's side: the same strokes at every size.

    palette = hair_palette(portrait)                        # raises SketchRefused where there is no hair to learn from
    rng = random_generator("strands", seed, portrait.digest)
    image, alpha = grow_hair(portrait, region, flow, density=1.0, rng=rng)
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
from stylepairs.datagen.images.filters import blurred
from stylepairs.datagen.portraits.portrait import CLASS, Portrait
from stylepairs.datagen.portraits.regions import dilate, feather
from stylepairs.datagen.portraits.sketch import SketchRefused
from stylepairs.datagen.sketching.hair.strokes import Strokes, paint, trace_guides

LOCK_SHARE = 0.022
STRAND_SHARE = 0.0026
# Thinner than this many pixels a strand is only noise once it is averaged down.
_MIN_STRAND_PX = 0.6
# Of the side: the scales that part the bands of lightness: sharpness, strands, locks, and the shading above.
_BAND_SIGMAS = (0.003, 0.012, 0.03)
# Painted strands all run one way, so that the same contrast looks stronger on them than in the own hair.
_CONTRAST = 0.78
# Lightness of hair seen between the strands above it, in standard deviations.
_UNDER_SHADE = -1.2
# Of the crop: hair that is needed to learn its colour from.
_MIN_CORE_SHARE = 0.0015
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
    contrast: tuple[float, float, float]
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
    strength = _orientation(lab[:1], core)[1]
    return HairPalette(
        shadow=_at_lightness(mean, slope, low),
        mean=mean,
        highlight=_at_lightness(mean, slope, high),
        contrast=tuple(_deviation(band, core) for band in _bands(lab[:1], core)),  # type: ignore[arg-type]
        chroma_slope=slope.clamp(-0.6, 0.6),
        # Coherence is 0.55 to 0.8 over straight hair, 0.25 to 0.45 over curls and where the hair is cropped.
        curl=float(((0.52 - (strength * core[0]).sum() / core.sum()) / 0.25).clamp(0, 1)),
        core=core,
    )


def own_flow(portrait: Portrait) -> torch.Tensor:
    """The direction [2,H,W] (x, y; unit) in which the own hair runs, away from the face, carried on beyond it.

    From the structure tensor (Kass & Witkin 1987) where the hair shows its strands; elsewhere straight away from the
    nose, which is how hair lies that is brushed back.
    """
    size = portrait.size_px
    centre = portrait.points68[30].to(portrait.image)
    grid = torch.stack(torch.meshgrid(torch.arange(size), torch.arange(size), indexing="xy")).to(portrait.image)
    away = _unit(grid - centre[:, None, None])
    inside = dilate(((portrait.label == CLASS["hair"]).float()[None] * portrait.hair > 0.6).float(), -0.008)
    along, strength = _orientation(srgb_to_lab(portrait.image)[:1], inside)
    along = along * torch.where((along * away).sum(0) < 0, -1.0, 1.0)
    trust = strength.clamp(0, 1) * _wide_blur(inside, 0.03)[0].clamp(0, 1)
    return _unit(_wide_blur(away + (along - away) * trust, 0.02))


def grow_hair(
    portrait: Portrait,
    region: torch.Tensor,
    flow: torch.Tensor,
    density: float,
    rng: np.random.Generator,
    *,
    palette: HairPalette | None = None,
    length_share: float | None = None,
    lock_share: float = LOCK_SHARE,
    strand_share: float = STRAND_SHARE,
    lock_cover: float = 2.5,
    clumping: float = 0.6,
    ragged: float = 0.15,
    root_shadow: float = 0.5,
    light: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Hair grown in region [1,H,W] (soft: fewer strands where it is lower) along flow [2,H,W] (x, y; unit vectors from
    root to tip) -> image [3,H,W] in [-1,1], alpha [1,H,W] in [0,1]; the image means nothing where alpha is 0.

    Strands run through the region from where the flow enters it to where it leaves, and not beyond; or, with
    length_share, from roots all over it for at most that share of the side. density: the share of the region's inside
    that is covered. palette: None takes the portrait's own hair, which raises SketchRefused where there is none.
    lock_share, strand_share: width of a lock and of a strand; lock_cover: locks over each point, under 1 leaves gaps
    between them; clumping in [0,1]: how far strands draw together at the tips; ragged in [0,1]: how differently long
    they are; root_shadow in [0,1]: how much darker they begin; light [1,H,W]: lightness to add, in units of the own
    hair's spread from shadow to highlight (None: none).
    """
    palette = hair_palette(portrait) if palette is None else palette
    size = portrait.size_px
    field, direction = region[0].cpu().numpy(), flow.cpu().numpy()
    guides, lengths = trace_guides(field, direction, length_share, lock_share, lock_cover, rng)
    if density <= 0 or len(guides) == 0:
        return portrait.image.clone(), torch.zeros_like(region)
    strokes = Strokes(
        lock_share * size, max(strand_share * size, _MIN_STRAND_PX), density, lock_cover, clumping, ragged, palette.curl
    )
    shade, alpha = paint(size, guides, lengths, strokes, rng)
    shade, alpha = _filled(region, shade.to(region), alpha.to(region), density if lock_cover >= 2 else 0.0)
    roots = -0.25 * root_shadow * (1 - shade[1:] / 0.35).clamp(0, 1)
    return _coloured(portrait, palette, shade[:1], alpha, roots if light is None else roots + light), alpha


def shade_skin(
    image: torch.Tensor, alpha: torch.Tensor, strength: float = 0.35, drop_share: float = 0.012
) -> torch.Tensor:
    """image [3,H,W] with the soft shadow that hair of matte alpha [1,H,W] throws on the skin below it.

    strength in [0,1]: how much of the light is gone right under the hair; drop_share: how far down the shadow falls.
    """
    drop = drop_share * alpha.shape[-1]
    fallen = _shifted_down(alpha, drop)
    shadow = 0.6 * feather(fallen, drop_share) + 0.4 * feather(_shifted_down(alpha, 2 * drop), 2.5 * drop_share)
    # Skin shadows are warmer than grey: red light scatters under the surface.
    tint = torch.tensor([0.82, 1.0, 1.06]).to(image)[:, None, None]
    return image - (image + 1) * (strength * shadow * tint).clamp(0, 1)


def strand_likeness(light: torch.Tensor, inside: torch.Tensor, flow: torch.Tensor, palette: HairPalette) -> float:
    """How much lightness [1,H,W] over inside [1,H,W] looks like the palette's strands, running along flow [2,H,W]: 1
    like them; 0 for flat paint, and for noise without direction."""
    contrasts = [_deviation(band, inside) for band in _bands(light, inside)]
    along, clear = _orientation(light, inside)
    # Cosine of the doubled angle between strands and flow: 1 along it, 0 on average for any direction.
    agreement = 2 * (along * flow).sum(0).square() - 1
    aligned = float((agreement * clear * inside[0]).sum() / inside.sum().clamp_min(1e-6))
    # Straight strands of a sketch reach 0.4 to 0.8, curls 0.3.
    return _folded(contrasts[1:], palette.contrast[1:]) * min(max(aligned / 0.35, 0.0), 1.0)


def contrast_likeness(light: torch.Tensor, inside: torch.Tensor, like: torch.Tensor) -> float:
    """How near the contrast of lightness [1,H,W] over inside [1,H,W] comes to that over like: 1 the same, 0 flat."""
    found, wanted = ([_deviation(band, part) for band in _bands(light, part)[1:2]] for part in (inside, like))
    return _folded(found, wanted)


def _folded(found: Sequence[float], wanted: Sequence[float]) -> float:
    """Geometric mean of the ratios of contrasts, those over one turned over; 0.3 is what quantisation alone gives."""
    ratios = [(a + 0.05) / max(b, 0.3) for a, b in zip(found, wanted, strict=True)]
    return float(np.prod([min(ratio, 1 / ratio) for ratio in ratios]) ** (1 / len(ratios)))


def _hair_core(portrait: Portrait) -> torch.Tensor:
    hair = (portrait.label == CLASS["hair"]).float()[None]
    rows = torch.arange(portrait.size_px, device=hair.device)[:, None]
    head = (rows < float(portrait.points68[36:48, 1].mean())).float()[None]
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
    points = portrait.points68.to(portrait.image)
    middle = points[27] + 0.75 * (points[27] - points[8])
    steps = torch.arange(portrait.size_px, device=points.device)
    away2 = ((steps - middle[0]) ** 2)[None] + ((steps - middle[1]) ** 2)[:, None]
    return torch.exp(-away2 / (2 * (_FOREHEAD_SIGMA * portrait.size_px) ** 2)) + 0.05


def _orientation(light: torch.Tensor, inside: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Along which line [2,H,W] (unit, sign without meaning) strands run, and how clearly [H,W], 0 to 1."""
    gy, gx = torch.gradient(_wide_blur(light, 0.003)[0])
    # Double angle: opposite gradients are one orientation.
    tensor = torch.stack([gx * gx - gy * gy, 2 * gx * gy, gx * gx + gy * gy]) * inside
    smooth = _wide_blur(tensor, 0.012) + 0.1 * _wide_blur(tensor, 0.05)
    across = 0.5 * torch.atan2(smooth[1], smooth[0])
    return torch.stack([-across.sin(), across.cos()]), smooth[:2].norm(dim=0) / (smooth[2] + 1e-3)


def _at_lightness(mean: torch.Tensor, slope: torch.Tensor, light: torch.Tensor) -> torch.Tensor:
    return torch.cat([light[None], mean[1:] + slope * (light - mean[0])])


def _bands(light: torch.Tensor, inside: torch.Tensor) -> list[torch.Tensor]:
    """Lightness [1,H,W] -> its bands of sharpness, strands and locks; blurred over `inside` only."""
    levels = [light, *(_blur_over(light, inside, sigma) for sigma in _BAND_SIGMAS)]
    return [finer - coarser for finer, coarser in itertools.pairwise(levels)]


def _deviation(band: torch.Tensor, inside: torch.Tensor) -> float:
    return float(((band.square() * inside).sum() / inside.sum().clamp_min(1e-6)).sqrt())


def _blur_over(x: torch.Tensor, inside: torch.Tensor, share: float) -> torch.Tensor:
    return _wide_blur(x * inside, share) / _wide_blur(inside, share).clamp_min(1e-4)


def _wide_blur(x: torch.Tensor, share: float) -> torch.Tensor:
    """Gaussian blur of [C,H,W] by `share` of the side, without clamping."""
    sigma = max(share * x.shape[-1], 0.3)
    return blurred(x, sigma, round(2.5 * sigma))


def _unit(vectors: torch.Tensor) -> torch.Tensor:
    return vectors / vectors.norm(dim=0, keepdim=True).clamp_min(1e-6)


def _shifted_down(mask: torch.Tensor, pixels: float) -> torch.Tensor:
    """mask moved down by a fraction of pixels, its top row repeated."""
    whole = int(pixels)
    part = pixels - whole

    def moved(rows: int) -> torch.Tensor:
        return F.pad(mask[None], (0, 0, rows, 0), mode="replicate")[0, :, : mask.shape[-2]] if rows else mask

    return moved(whole) * (1 - part) + moved(whole + 1) * part


def _filled(
    region: torch.Tensor, shade: torch.Tensor, alpha: torch.Tensor, density: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Shade [2,H,W] and alpha [1,H,W] with the chance gaps between dense strands closed by hair in their shadow; not at
    the tips, which stand free."""
    along = _blur_over(shade[1:], alpha, 0.012)
    inner = feather(dilate(region, -0.012), 0.006) * ((0.8 - along) / 0.25).clamp(0, 1)
    under = torch.maximum(alpha, density**2 * inner)
    light = (shade[:1] * alpha + _UNDER_SHADE * (under - alpha)) / under.clamp_min(1e-4)
    return torch.cat([light, torch.where(alpha > 0.05, shade[1:], along)]), under


def _coloured(
    portrait: Portrait, palette: HairPalette, shade: torch.Tensor, alpha: torch.Tensor, lit: torch.Tensor
) -> torch.Tensor:
    """Shade, alpha, lit [1,H,W] -> sRGB: the own hair's colour nearby, its contrast band by band."""
    lab = srgb_to_lab(portrait.image)
    core = palette.core.to(lab)
    near = _wide_blur(core, _NEAR_SIGMA)
    local = _wide_blur(lab * core, _NEAR_SIGMA) / near.clamp_min(1e-4)
    mean = palette.mean.to(lab)[:, None, None]
    base = mean + (local - mean) * (near / (near + 0.06))
    # Where hair only begins to cover, contrast against the skin is contrast enough.
    inside = (alpha > 0.6).float()
    light = torch.zeros_like(alpha)
    for band, wanted in zip(_bands(shade, alpha), palette.contrast, strict=True):
        light = light + band * (_CONTRAST * min(wanted, 10.0) / max(_deviation(band, inside), 0.05))
    spread = (palette.highlight[0] - palette.shadow[0]).to(lab)
    light = light + lit * spread
    floor, ceiling = float(palette.shadow[0]) - 0.1 * float(spread), float(palette.highlight[0]) + 0.1 * float(spread)
    total = (base[:1] + light).clamp(max(floor, 0.0), min(ceiling, 100.0))
    slope = palette.chroma_slope.to(lab)[:, None, None]
    return lab_to_srgb(torch.cat([total, base[1:] + slope * (total - base[:1])])).clamp(-1, 1)
