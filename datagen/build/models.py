"""The frozen networks that builds and augmentations run on, and how they are loaded."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import torch

from stylepairs.datagen.build.quality import Analyser, Instruments
from stylepairs.datagen.build.settings import LATENT, LATENT_VERSION, RECONSTRUCTION
from stylepairs.datagen.encoders.files import encoder_digest, find_encoder
from stylepairs.datagen.encoders.network import predict_start
from stylepairs.datagen.images.perceptual import load_perceptual
from stylepairs.datagen.latent.edits import PairEdit, load_pair_edit
from stylepairs.datagen.portraits.analysis.analyser import NETWORKS, WEIGHTS, load_analyser
from stylepairs.datagen.reconstruction.prior import WPrior
from stylepairs.datagen.reconstruction.settings import PhasedSettings
from stylepairs.datagen.shell.durable import file_digest
from stylepairs.datagen.stylegan.checkpoints import generator_digest, latents_digest, load_generator
from stylepairs.datagen.stylegan.generator import Generator

_AGAIN = "; make it again"
_Stage = TypeVar("_Stage", bound=PhasedSettings)


@dataclass(frozen=True)
class Models:
    """The frozen networks of a build; digest is the generator's, device where they are; start(photo, precision=...) is
    where stage 0 begins (see `invert`), None the mean latent.

    digests: sha256 of the weights that the instruments' names do not tell: `analyser`, `perceptual_weights` where a
    file of them was given, `encoder` where stage 0 starts at one's predictions, `method` where that is a latent edit.
    edit: by which pairs are made; None: by reconstruction. method: what provenance says of it.
    """

    generator: Generator
    digest: str
    instruments: Instruments
    device: str = "cpu"
    start: Callable[..., tuple[torch.Tensor, list[torch.Tensor]]] | None = None
    digests: Mapping[str, str] = field(default_factory=dict)
    edit: PairEdit | None = None
    method: str = ""

    def begun(self, settings: _Stage) -> _Stage:
        """The settings of a stage as this build begins it: at the mean latent, or where an encoder starts."""
        return settings if self.start is None else settings.near()

    @property
    def image_px(self) -> int:
        return self.generator.config.img_resolution


def load_models(
    generator: str,
    perceptual: str,
    perceptual_weights: str | None,
    device: str,
    encoder: str = "none",
    method: str = RECONSTRUCTION,
) -> Models:
    """Load a build's networks on `device`; encoder: see `find_encoder`, method: BuildRecipe. Raises InputError."""
    network = load_generator(generator)
    digest = generator_digest(network)
    features = load_perceptual(perceptual, perceptual_weights).to(device)
    analyser, digests = _analyser()
    if perceptual_weights is not None:
        digests["perceptual_weights"] = file_digest(Path(perceptual_weights), _AGAIN)
    # Fitted where it is the same on every machine, then moved.
    prior = WPrior.fit(network).to(torch.device(device))
    starter, start = find_encoder(encoder, network, digest), None
    edit, provenance = None, ""
    if method.startswith(LATENT):
        edit = load_pair_edit(method.removeprefix(LATENT), network, latents_digest(generator, network))
        digests["method"] = f"{edit.name}:{file_digest(edit.path, _AGAIN)}"
        provenance = f"{LATENT}{digests['method']}"
        digests["method_version"] = LATENT_VERSION
    network.to(device)
    if starter is not None:
        digests["encoder"] = encoder_digest(starter)
        start = functools.partial(predict_start, starter.to(device), network, prior)
    return Models(network, digest, Instruments(features, prior, analyser), device, start, digests, edit, provenance)


def _analyser() -> tuple[Analyser, dict[str, str]]:
    """The embedded face analyser and its digest."""
    parts = [file_digest(WEIGHTS / f"analyser_{name}.safetensors", _AGAIN) for name in sorted(NETWORKS)]
    return load_analyser(), {"analyser": hashlib.sha256("".join(parts).encode()).hexdigest()}
