"""The heavy steps of a build, bundled as functions: the package's own, or others in their place."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stylepairs.datagen.errors import InputError
from stylepairs.datagen.pair_codec import DAMAGE
from stylepairs.datagen.portraits.portrait import Portrait
from stylepairs.datagen.quality import FaceFinder, Instruments

if TYPE_CHECKING:
    from stylepairs.datagen.portraits.folders import PortraitFile


@dataclass(frozen=True)
class Models:
    """The frozen networks of a build; digest is the generator's, device where they are."""

    generator: Any
    digest: str
    image_px: int
    instruments: Instruments
    device: str = "cpu"


@dataclass(frozen=True)
class Backend:
    """list_portraits(folder) -> names; load_portrait(folder, name) -> portrait, digest of the photo it was cut from;
    load_models(generator, perceptual, device); invert, reconstruct and compose as in `reconstruction`."""

    list_portraits: Callable[[Path], list[str]]
    load_portrait: Callable[[Path, str], tuple[Portrait, str]]
    load_models: Callable[[str, str, str], Models]
    invert: Callable[..., list[Any]]
    reconstruct: Callable[..., list[Any]]
    compose: Callable[..., Any]


def real_backend() -> Backend:
    """The steps as the package has them."""
    from stylepairs.datagen.reconstruction.compose import compose
    from stylepairs.datagen.reconstruction.inversion import invert
    from stylepairs.datagen.reconstruction.reconstruct import reconstruct

    return Backend(list_portraits, load_portrait, load_models, invert, reconstruct, compose)


def list_portraits(folder: Path) -> list[str]:
    """The names of the portraits of a prepared folder. Raises InputError."""
    return list(_portrait_files(folder))


def load_portrait(folder: Path, name: str) -> tuple[Portrait, str]:
    """A portrait of a prepared folder, and the digest of its photo (its own where the folder does not tell)."""
    portrait = _portrait_files(folder)[name].load()
    return portrait, _photo_digests(folder).get(name, portrait.digest)


def load_models(generator: str, perceptual: str, device: str) -> Models:
    """Load a build's networks on `device`. Raises InputError for a checkpoint that is none."""
    import torch

    from stylepairs.datagen.perceptual import load_perceptual
    from stylepairs.datagen.reconstruction.prior import WPrior
    from stylepairs.datagen.stylegan.checkpoints import generator_digest, load_generator

    network = load_generator(generator)
    digest = generator_digest(network)
    # Fitted where it is the same on every machine, then moved.
    instruments = Instruments(
        load_perceptual(perceptual).to(device), WPrior.fit(network).to(torch.device(device)), _analyser()
    )
    return Models(network.to(device), digest, network.config.img_resolution, instruments, device)


def _analyser() -> FaceFinder | None:
    """The embedded face analyser, or None where its weights are not installed: its figures are then left out."""
    from stylepairs.datagen.portraits.analyser import load_analyser

    try:
        return load_analyser()
    except InputError:
        return None


@functools.lru_cache(maxsize=4)
def _portrait_files(folder: Path) -> dict[str, PortraitFile]:
    from stylepairs.datagen.portraits.folders import load_portraits

    return {portrait.name: portrait for portrait in load_portraits(folder)}


@functools.lru_cache(maxsize=4)
def _photo_digests(folder: Path) -> dict[str, str]:
    """Portrait name -> sha256 of its photo, as `datagen prepare` noted it."""
    path = folder / "index.jsonl"
    if not path.is_file():
        return {}
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return {str(row["name"]): str(row["photo_sha256"]) for row in rows if "photo_sha256" in row}
    except DAMAGE as error:
        raise InputError(f"{path}: damaged ({' '.join(str(error).split())[:160]}); prepare the photos again") from error
