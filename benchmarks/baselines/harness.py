"""What the baselines share, so that only their losses, coordinates and schedules differ: the start (stage 0), the
number of steps, the batched optimiser, and how results are rendered."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from stylepairs.datagen.portraits.analysis.networks import PARSER_CLASSES, PARSER_INPUT_PX
from stylepairs.datagen.portraits.portrait import Portrait
from stylepairs.datagen.reconstruction.in_hand import State, Verdict
from stylepairs.datagen.reconstruction.settings import OptimiserSettings

# A noise map's side at which the projector's pyramid ends.
_COARSEST_NOISE_PX = 8


def total_steps(settings: OptimiserSettings) -> int:
    """The most steps that a portrait gets: what each baseline gets too."""
    return settings.steps + settings.decay_steps


def scheduled(
    settings: OptimiserSettings,
    learning_rate: float,
    noise_learning_rate: float = 0.0,
    rampup: float = 0.0,
    rampdown: float = 0.0,
    share: float = 1.0,
) -> OptimiserSettings:
    """`share` of the total steps at a published rate, its linear ramp-up and its ramp-down as shares of them.

    What is ours stays ours: Adam's betas (0.9, 0.99), the ramp-down's cosine, batch and precision.
    """
    steps = max(2, round(share * total_steps(settings)))
    decay = min(max(1, round(rampdown * steps)), steps - 1)
    return OptimiserSettings(
        steps=steps - decay,
        decay_steps=decay,
        warmup_steps=max(1, round(rampup * steps)),
        learning_rate=learning_rate,
        noise_learning_rate=noise_learning_rate,
        batch=settings.batch,
        precision=settings.precision,
        recompute_from_px=settings.recompute_from_px,
        pixels_at_once=settings.pixels_at_once,
    )


def progress_share(state: State, settings: OptimiserSettings) -> torch.Tensor:
    """Share [N] in [0,1) of its steps that each portrait has taken."""
    return state.step / (settings.steps + settings.decay_steps)


def verdict(loss: torch.Tensor, figures: dict[str, torch.Tensor] | None = None) -> Verdict:
    """Of a method that never stops early and has no constraint."""
    never = torch.zeros_like(loss, dtype=torch.bool)
    kept = {key: value.detach() for key, value in (figures or {}).items()}
    return Verdict(loss, never, torch.zeros_like(loss), kept | {"loss": loss.detach()})


def noise_regularisation(maps: Sequence[torch.Tensor]) -> torch.Tensor:
    """Sum over maps [N,1,r,r] and their average-pooled pyramids of mean(n * roll_x)^2 + mean(n * roll_y)^2 -> [N].

    As in StyleGAN2's projector (Karras et al. 2020) and MaskFaceGAN; pooled maps are not brought back to unit variance.
    """
    total = torch.zeros(maps[0].shape[0], device=maps[0].device)
    for noise in maps:
        while True:
            for axis in (3, 2):
                total = total + (noise * noise.roll(1, axis)).mean((1, 2, 3)).square()
            if noise.shape[-1] <= _COARSEST_NOISE_PX:
                break
            noise = F.avg_pool2d(noise, 2)
    return total


def frozen_except(values: Sequence[torch.Tensor], free: range) -> list[torch.Tensor]:
    """`values`, those outside `free` without gradient (a gradient of zero, which the optimiser needs)."""
    return [x if index in free else x.detach() + 0 * x for index, x in enumerate(values)]


def seed_of(portrait: Portrait) -> torch.Tensor:
    """A whole number below 2^24 (so that float32 holds it) by the portrait alone, as a 0-d tensor."""
    digest = hashlib.sha256(portrait.digest.encode()).digest()
    return torch.tensor(float(int.from_bytes(digest[:3], "big")), device=portrait.image.device)


def gaussian_like(x: torch.Tensor, seeds: torch.Tensor, steps: torch.Tensor) -> torch.Tensor:
    """Standard normal noise like x [N,...], each row from its own seed and step: the same whatever its neighbours."""
    rows = []
    for seed, step in zip(seeds.tolist(), steps.tolist(), strict=True):
        draw = torch.Generator().manual_seed(int(seed) * 65_536 + int(step))
        rows.append(torch.randn(x.shape[1:], generator=draw))
    return torch.stack(rows).to(x)


def embedded_parser() -> nn.Module:
    """The embedded face parser's network, frozen. Raises InputError where its weights are missing."""
    from stylepairs.datagen.portraits.analysis.analyser import WEIGHTS, load_network

    return load_network(WEIGHTS / "analyser_parser.safetensors")


def hair_matte(parser: nn.Module, image: torch.Tensor) -> torch.Tensor:
    """The parser's hair matte [N,1,256,256] of image [N,3,H,W] in [-1,1], differentiable."""
    size = (PARSER_INPUT_PX, PARSER_INPUT_PX)
    seen = F.interpolate(image, size=size, mode="bicubic", antialias=True, align_corners=False).clamp(-1, 1)
    matte: torch.Tensor = parser(seen)[:, PARSER_CLASSES:].sigmoid()
    return matte
