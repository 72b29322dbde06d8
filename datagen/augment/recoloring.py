"""Hair of another colour in both pictures of a pair, so that a few hundred people show hair of every colour.

Not the feature `hair_color`: nothing is reconstructed. Every pixel's distance from the hair's mean is kept around the
wanted mean in Lab, colourfulness as far as `_KEPT_CHROMA`, by the soft matte.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from stylepairs.datagen.images.colors import color_to_lab, lab_in_light, lab_to_srgb, parse_color, srgb_to_lab
from stylepairs.datagen.images.filters import mean_of
from stylepairs.datagen.portraits.light import light_of
from stylepairs.datagen.portraits.portrait import Portrait
from stylepairs.datagen.portraits.sketch import Sketch
from stylepairs.datagen.reconstruction.reconstruct import Reconstruction
from stylepairs.datagen.shell.randomness import random_number
from stylepairs.datagen.sketching.hair.hair_matte import hair_matte

# Lightness that hair may gain: black hair made white is paint, and shows where its matte is wrong.
_MOST_LIGHTER = 38.0
# Strands' contrast grows and falls with the mean lightness, within these; below that lightness it tells nothing.
_CONTRAST_RANGE, _DARKEST = (0.7, 1.5), 12.0
# Hair of one colour varies little in it.
_KEPT_CHROMA = 0.35
# A matte under this is no hair that an edit could take away.
_HAZE = 0.05


def drawn_color(colors: Sequence[str], seed: int, id: str) -> str:
    """One of the colours, the same for the same seed and pair."""
    return colors[random_number("color", seed, id) % len(colors)]


def recolored(
    portrait: Portrait, sketch: Sketch, result: Reconstruction, color: str
) -> tuple[Portrait, Reconstruction]:
    """The portrait, and both generated pictures, with hair of that colour (as in the photo's light); sketch: of the
    portrait as it is, which says where hair is afterwards. The latents no longer fit."""
    before = hair_matte(portrait)
    after = torch.maximum(before, hair_matte(sketch.applied_to(portrait))) * _hair_left(portrait, sketch)
    paint = _painter(portrait, before, color)
    generated = paint(result.generated_before, before), paint(result.generated_after, after)
    return (
        replace(portrait, image=paint(portrait.image, before)),
        replace(result, generated_before=generated[0], generated_after=generated[1]),
    )


def _hair_left(portrait: Portrait, sketch: Sketch) -> torch.Tensor:
    """The share of the portrait's hair that the edit leaves [1,H,W]; 1 where it takes none away."""
    if sketch.hair is None:
        return torch.ones_like(portrait.hair)
    return torch.where(portrait.hair > _HAZE, (sketch.hair / portrait.hair.clamp_min(_HAZE)).clamp(max=1), 1.0)


def _painter(
    portrait: Portrait, matte: torch.Tensor, color: str
) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    lab = srgb_to_lab(portrait.image)
    own = mean_of(lab, (matte > 0.5).float())
    wanted = lab_in_light(color_to_lab(parse_color(color), like=lab), light_of(portrait))
    wanted = torch.cat([torch.minimum(wanted[:1], own[:1] + _MOST_LIGHTER), wanted[1:]])
    contrast = (wanted[:1] / own[:1].clamp_min(_DARKEST)).clamp(*_CONTRAST_RANGE)
    kept = torch.cat([contrast, torch.full_like(wanted[1:], _KEPT_CHROMA)])

    def paint(image: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
        new = wanted + (srgb_to_lab(image) - own) * kept
        new = torch.cat([new[:1].clamp(0, 100), new[1:]])
        return image + (lab_to_srgb(new).clamp(-1, 1) - image) * where

    return paint
