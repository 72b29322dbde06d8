"""Hair of another colour in both pictures of a pair, so that a few hundred people show hair of every colour.

Not the feature `hair_color`: nothing is reconstructed. All of the hair goes the same way along one tone curve
(`images.tones`), by the soft matte.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch

from stylepairs.datagen.images.colors import color_to_lab, lab_in_light, lab_to_paled_srgb, parse_color, srgb_to_lab
from stylepairs.datagen.images.filters import mean_of
from stylepairs.datagen.images.tones import rechromed, tone_shift, toned
from stylepairs.datagen.portraits.light import light_of
from stylepairs.datagen.portraits.portrait import Portrait
from stylepairs.datagen.portraits.sketch import Sketch
from stylepairs.datagen.reconstruction.reconstruct import Reconstruction
from stylepairs.datagen.shell.randomness import random_number
from stylepairs.datagen.sketching.hair.hair_matte import hair_matte

# Lightness that hair may gain: black hair made white is paint, and shows where its matte is wrong.
_MOST_LIGHTER = 60.0
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
    inside = (matte > 0.5).float()
    own = mean_of(lab, inside)
    wanted = lab_in_light(color_to_lab(parse_color(color), like=lab), light_of(portrait))
    wanted = torch.cat([torch.minimum(wanted[:1], own[:1] + _MOST_LIGHTER), wanted[1:]])
    shift = tone_shift(lab[:1], wanted[:1], partial(mean_of, weight=inside))

    def paint(image: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
        old = srgb_to_lab(image)
        light = toned(old[:1], shift)
        new = torch.cat([light, rechromed(old, light, own, wanted, torch.zeros_like(light))])
        return image + (lab_to_paled_srgb(new) - image) * where

    return paint
