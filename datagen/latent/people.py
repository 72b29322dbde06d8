"""Who is edited: people drawn from the generator, or portraits inverted or encoded into it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from stylepairs.datagen.encoders.files import load_encoder
from stylepairs.datagen.encoders.network import predict_start
from stylepairs.datagen.images.perceptual import load_perceptual
from stylepairs.datagen.portraits.folders import load_portraits
from stylepairs.datagen.portraits.portrait import Portrait
from stylepairs.datagen.reconstruction.inversion import invert
from stylepairs.datagen.reconstruction.prior import WPrior
from stylepairs.datagen.reconstruction.settings import InversionSettings
from stylepairs.datagen.stylegan.generator import Generator


@dataclass(frozen=True)
class Person:
    """ws [L,C]; noise maps [r,r], () the generator's own; portrait: whose inversion it is, None of a sample; generator:
    one tuned for this person alone, None the one that all share."""

    ws: torch.Tensor
    noise: Sequence[torch.Tensor] = ()
    portrait: Portrait | None = None
    generator: Generator | None = None


@torch.no_grad()
def sampled_people(generator: Generator, count: int, psi: float = 0.7, seed: int = 0) -> list[Person]:
    """People of random latents, truncated by psi towards the mean latent."""
    z = torch.randn(count, generator.config.z_dim, generator=torch.Generator().manual_seed(seed))
    ws = generator.mapping.w_avg.lerp(generator.mapping(z), psi)
    return [Person(row) for row in ws]


def inverted_people(generator: Generator, folder: Path, count: int) -> list[Person]:
    """The first `count` portraits of a folder by name, inverted at the generator's resolution. Raises InputError."""
    files = load_portraits(folder)[:count]
    portraits = [file.load().resized(generator.config.img_resolution) for file in files]
    found = invert(generator, load_perceptual("auto"), portraits, InversionSettings.model_validate({}))
    return [Person(one.ws, one.noise, portrait) for one, portrait in zip(found, portraits, strict=True)]


def encoded_people(generator: Generator, digest: str, folder: Path, count: int, encoder: Path) -> list[Person]:
    """The first `count` portraits of a folder by name, as an encoder's file sees them, without a step of optimisation.
    Raises InputError."""
    network, prior = load_encoder(encoder, generator, digest), WPrior.fit(generator)
    people = []
    for file in load_portraits(folder)[:count]:
        portrait = file.load().resized(generator.config.img_resolution)
        u, noise = predict_start(network, generator, prior, portrait.image)
        people.append(Person(prior.unwhiten(u), noise, portrait))
    return people


@torch.no_grad()
def picture_of(generator: Generator, person: Person) -> torch.Tensor:
    """The person's own picture [3,H,W] in [-1,1]: the portrait, or the render of a sample."""
    if person.portrait is not None:
        return person.portrait.image
    with noise_fixed(generator, person.noise):
        image: torch.Tensor = generator.synthesis(person.ws[None])[0]
    return image.clamp(-1, 1)


@contextmanager
def noise_fixed(generator: Generator, noise: Sequence[torch.Tensor]) -> Iterator[None]:
    """Inside the block the generator's own noise maps are `noise`, one map [r,r] a layer; () leaves them."""
    layers = generator.synthesis.noisy_layers() if noise else []
    own = [layer.noise_const for layer in layers]
    try:
        for layer, level in zip(layers, noise, strict=True):
            layer.noise_const = level.to(layer.noise_const)
        yield
    finally:
        for layer, level in zip(layers, own, strict=True):
            layer.noise_const = level
