"""All that one training step draws, from its progress alone: so that a resumed run draws what an unbroken one would
have."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from augment import Augmentation, draw_augmentation, sent
from data import Portraits

from stylepairs.datagen.stylegan.generator import Generator

MIXING_SHARE = 0.5  # of images whose finer layers take a second latent
JITTER = 0.3  # of a portrait's latent, so that its neighbourhood renders the portrait too


@dataclass(frozen=True)
class Draws:
    """portraits [N,3,R,R]; z [2,N,z_dim], the second from layer cutoff [N] on; noise maps [N,1,r,r]."""

    portraits: torch.Tensor
    z: torch.Tensor
    cutoff: torch.Tensor
    noise: list[torch.Tensor]
    augment: Augmentation

    def tensors(self) -> list[torch.Tensor]:
        return [self.portraits, self.z, self.cutoff, *self.noise, *self.augment.tensors()]

    def take(self, other: Draws) -> None:
        """Another step's values, in the place of these."""
        torch._foreach_copy_(self.tensors(), other.tensors())


def draw_step(
    seed: tuple[int, int, int], data: Portraits, codes: torch.Tensor, generator: Generator, count: int, rebuilt: int,
    augment_p: float, recolour_share: float,
) -> Draws:  # fmt: skip
    """seed: the run's, images seen, process. The first `rebuilt` of `count` images are renderings of the portraits in
    their places, from those portraits' own codes."""
    draw = torch.Generator().manual_seed(hash(seed) % 2**63)
    device = generator.mapping.w_avg.device
    batch = data.batch(count, recolour_share, draw)
    z = torch.randn(2, count, generator.config.z_dim, generator=draw)
    z[0, :rebuilt] = jittered(codes[batch.codes[:rebuilt]], JITTER, draw)
    cutoff = torch.randint(1, generator.num_ws, (count,), generator=draw)
    cutoff[torch.rand(count, generator=draw) > MIXING_SHARE] = generator.num_ws
    cutoff[:rebuilt] = generator.num_ws
    augment = draw_augmentation(count, augment_p, draw, device)
    # Where the images are made: millions of values a step would take a processor longer than a GPU's whole step.
    large = torch.Generator(device).manual_seed(int(torch.randint(2**62, (1,), generator=draw)))
    noise = [torch.randn(count, *level.shape[1:], generator=large, device=device) for level in generator.noise_maps()]
    return Draws(batch.images.to(device), sent(z, device), sent(cutoff, device), noise, augment)


def jittered(codes: torch.Tensor, amount: float, draw: torch.Generator) -> torch.Tensor:
    """codes [N,z] moved by fresh noise, still of the prior: sqrt(1 - a^2) z + a e."""
    return math.sqrt(1 - amount**2) * codes + amount * torch.randn(codes.shape, generator=draw)
