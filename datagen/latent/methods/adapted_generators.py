"""Adapted generators as files: they say whose latents they take, so that edits of that generator apply to them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from stylepairs.datagen.encoders.files import load_encoder
from stylepairs.datagen.encoders.run_file import RunFile
from stylepairs.datagen.images.files import read_image, to_float
from stylepairs.datagen.images.trunk import load_trunk
from stylepairs.datagen.latent.methods.domain_adaptation import MEAN_SAMPLES, AdaptationSettings, adapt, domain
from stylepairs.datagen.latent.methods.style_eyes import ClipEyes, TrunkEyes, load_clip
from stylepairs.datagen.latent.people import picture_of, sampled_people
from stylepairs.datagen.portraits.portrait import resized_image
from stylepairs.datagen.reconstruction.prior import WPrior
from stylepairs.datagen.shell.durable import file_digest, make_folder
from stylepairs.datagen.shell.errors import InputError
from stylepairs.datagen.stylegan.checkpoints import (
    ADAPTED_FROM,
    generator_digest,
    latents_digest,
    load_generator,
    save_generator,
)

LEAST_STYLE_PX = 32


def adapt_to_file(
    source: str,
    style: Path,
    out: Path,
    settings: AdaptationSettings,
    clip: Path | None,
    clip_model: str,
    encoder: Path | None,
    on_step: Callable[[int, float], None] = lambda step, loss: None,
) -> None:
    """Adapt a generator (a checkpoint or "embedded") to a picture and write it to `out`; the state lies beside it until
    then. Raises InputError."""
    generator = load_generator(source)
    digest = latents_digest(source, generator)
    picture = _square(style, generator.config.img_resolution)
    prior = WPrior.fit(generator)
    network = None if encoder is None else load_encoder(encoder, generator, digest)
    eyes: ClipEyes | TrunkEyes
    if clip is None:
        around = sampled_people(generator, MEAN_SAMPLES, 1.0, settings.seed)
        eyes = TrunkEyes(load_trunk(), torch.stack([picture_of(generator, person) for person in around]))
    else:
        eyes = load_clip(clip, clip_model)
    files = [file_digest(path) if path is not None else "" for path in (style, clip, encoder)]
    state = RunFile(out.with_name(f".{out.name}.state"), " ".join([generator_digest(generator), *files, clip_model]))
    make_folder(out.parent)
    made = adapt(generator, domain(generator, picture, eyes, network, prior), settings, state, on_step)
    save_generator(out, made, {ADAPTED_FROM: digest})
    state.drop()


def _square(path: Path, size_px: int) -> torch.Tensor:
    """The picture [3,size_px,size_px] of an aligned face. Raises InputError."""
    pixels = read_image(path)
    height, width = pixels.shape[:2]
    if height != width or height < LEAST_STYLE_PX:
        raise InputError(
            f"{path}: is {width} x {height} pixels, an aligned face is square; run `datagen prepare` and give its "
            "picture under aligned/"
        )
    return resized_image(to_float(pixels), size_px)
