"""Pivotal tuning (PTI, Roich et al. 2022): the generator itself is tuned until one portrait's latent renders the
portrait; edits of that latent are then rendered by the tuned generator.

Published: rate 3e-4, at most 350 steps, L2 and LPIPS with weight 1 each, until LPIPS is 0.06; the pivot in W. Here the
perceptual distance is the package's own, the pivot is whatever latent the person has.
"""

from __future__ import annotations

import copy
from dataclasses import replace

import torch

from stylepairs.datagen.images.perceptual import Perceptual, perceptual_distance
from stylepairs.datagen.latent.people import Person
from stylepairs.datagen.reconstruction.rendering import use_channels_last
from stylepairs.datagen.stylegan.generator import Generator

LEARNING_RATE = 3e-4
NEAR_ENOUGH = 0.02  # perceptual distance; of the package's features about what 0.06 is of LPIPS


def tuned(generator: Generator, perceptual: Perceptual, person: Person, steps: int) -> Person:
    """The person with a generator of its own, tuned for at most `steps` steps; the given generator stays as it is.

    Raises ValueError for a person without portrait.
    """
    if person.portrait is None:
        raise ValueError("tuned: a sampled person is rendered exactly already")
    own = copy.deepcopy(generator)
    use_channels_last(own)
    learned = [parameter.requires_grad_() for parameter in own.synthesis.parameters()]
    optimizer = torch.optim.Adam(learned, LEARNING_RATE)
    photo, ws = person.portrait.image[None], person.ws[None]
    noise = [level[None, None] for level in person.noise] or own.noise_maps()
    with torch.no_grad():
        wanted = perceptual.guiding(photo)
    for _ in range(steps):
        image = own.synthesis(ws, noise)
        distance = perceptual_distance(perceptual.guiding(image), wanted).mean()
        if float(distance.detach()) <= NEAR_ENOUGH:
            break
        loss = (image - photo).square().mean() + distance
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return replace(person, generator=own.eval().requires_grad_(False))
