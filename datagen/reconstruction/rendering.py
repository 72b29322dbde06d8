"""Rendering latents and noise maps to images in batches of one width, so that the bits do not depend on how many
there are."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from stylepairs.datagen.stylegan.generator import Generator
from stylepairs.kernels.precision import in_precision


@torch.no_grad()
def render(
    generator: Generator, ws: Sequence[torch.Tensor], noise: Sequence[Sequence[torch.Tensor]], width: int
) -> list[torch.Tensor]:
    """float32 images [3,H,W], not clamped, of latents [L,C] and their noise maps [r,r], `width` at a time."""
    images: list[torch.Tensor] = []
    for start in range(0, len(ws), width):
        rows = [min(start + i, len(ws) - 1) for i in range(width)]
        maps = [torch.stack(level)[:, None] for level in zip(*(noise[row] for row in rows), strict=True)]
        out = generator.synthesis(torch.stack([ws[row] for row in rows]), maps)
        images.extend(out[: len(ws) - start].unbind())
    return images


def synthesise(
    generator: Generator,
    ws: torch.Tensor,
    noise: list[torch.Tensor],
    precision: str,
    recompute_from: int | None = None,
    size_px: int | None = None,
) -> torch.Tensor:
    """The render [N,3,H,W] in float32, its convolutions in `precision` (as in OptimiserSettings); recompute_from as in
    `synthesis`; size_px: the pyramid stops there, None is the generator's own."""
    with in_precision(precision, ws.device):
        image: torch.Tensor = generator.synthesis(ws, noise, max_resolution=size_px, recompute_from=recompute_from)
    return image.float()


def use_channels_last(generator: Generator) -> None:
    """Lay the generator's weights out so that its convolutions run in channels_last, which CPUs and tensor cores
    favour."""
    generator.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub lacks it


def half(x: torch.Tensor) -> torch.Tensor:
    """x rounded to what float16 can hold, as float32: what is stored with a pair is what was rendered."""
    return x.half().float()
