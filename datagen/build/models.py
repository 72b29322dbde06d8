"""The heavy steps of a build, bundled as functions: the package's own, or others in their place."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ValidationError

from stylepairs.datagen.build.quality import Analyser, Instruments
from stylepairs.datagen.portraits.portrait import Portrait
from stylepairs.datagen.shell.decode import Damaged, read_json_lines
from stylepairs.datagen.shell.durable import file_digest
from stylepairs.datagen.shell.errors import InputError, one_line

if TYPE_CHECKING:
    from stylepairs.datagen.portraits.folders import PortraitFile

_AGAIN = "; make it again"


@dataclass(frozen=True)
class Models:
    """The frozen networks of a build; digest is the generator's, device where they are; start(photo, precision=...) is
    where stage 0 begins, see `invert`.

    digests: sha256 of the weights that the instruments' names do not tell: `analyser`, `perceptual_weights` where a
    file of them was given, `encoder` where stage 0 starts at one's predictions.
    """

    generator: Any
    digest: str
    image_px: int
    instruments: Instruments
    device: str = "cpu"
    start: Callable[..., Any] | None = None
    digests: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Backend:
    """list_portraits(folder) -> names; load_portrait(folder, name) -> portrait, digest of the photo it was cut from;
    digest_portraits(folder, names) -> digest of all that is read of them; load_models(generator, perceptual,
    perceptual_weights, device, encoder); invert, reconstruct and compose as in `reconstruction`."""

    list_portraits: Callable[[Path], list[str]]
    load_portrait: Callable[[Path, str], tuple[Portrait, str]]
    digest_portraits: Callable[[Path, Sequence[str]], str]
    load_models: Callable[[str, str, str | None, str, str], Models]
    invert: Callable[..., list[Any]]
    reconstruct: Callable[..., list[Any]]
    compose: Callable[..., Any]


def real_backend() -> Backend:
    """The steps as the package has them."""
    from stylepairs.datagen.compositing.compose import compose
    from stylepairs.datagen.reconstruction.inversion import invert
    from stylepairs.datagen.reconstruction.reconstruct import reconstruct

    return Backend(list_portraits, load_portrait, digest_portraits, load_models, invert, reconstruct, compose)


def list_portraits(folder: Path) -> list[str]:
    """The names of the portraits of a prepared folder, read afresh. Raises InputError."""
    _portrait_files.cache_clear()
    _photo_digests.cache_clear()
    return list(_portrait_files(folder))


def load_portrait(folder: Path, name: str) -> tuple[Portrait, str]:
    """A portrait of a prepared folder, and the digest of its photo (its own where the folder does not tell)."""
    portrait = _portrait_files(folder)[name].load()
    return portrait, _photo_digests(folder).get(name, portrait.digest)


def digest_portraits(folder: Path, names: Sequence[str]) -> str:
    """sha256 over all that a build reads of these portraits: pictures, labels, mattes, points, digests of the photos.

    Raises InputError where a file is missing.
    """
    files, photos = _portrait_files(folder), _photo_digests(folder)
    digest = hashlib.sha256()
    for name in names:
        portrait = files[name]
        digest.update(json.dumps([name, photos.get(name, "")]).encode())
        digest.update(portrait.points68.tobytes() + portrait.source_to_aligned.tobytes())
        for path in (portrait.aligned_path, folder / "label" / f"{name}.png", folder / "hair" / f"{name}.png"):
            digest.update(file_digest(path, _AGAIN).encode())
    return digest.hexdigest()


def load_models(
    generator: str, perceptual: str, perceptual_weights: str | None, device: str, encoder: str = "none"
) -> Models:
    """Load a build's networks on `device`; encoder as in `find_encoder`. Raises InputError."""
    import torch

    from stylepairs.datagen.images.perceptual import load_perceptual
    from stylepairs.datagen.reconstruction.encoder import encoder_digest, find_encoder, predict_start
    from stylepairs.datagen.reconstruction.prior import WPrior
    from stylepairs.datagen.stylegan.checkpoints import generator_digest, load_generator

    network = load_generator(generator)
    digest = generator_digest(network)
    features = load_perceptual(perceptual, perceptual_weights).to(device)
    analyser, digests = _analyser()
    if perceptual_weights is not None:
        digests["perceptual_weights"] = file_digest(Path(perceptual_weights), _AGAIN)
    # Fitted where it is the same on every machine, then moved.
    prior = WPrior.fit(network).to(torch.device(device))
    starter, start = find_encoder(encoder, network, digest), None
    network.to(device)
    if starter is not None:
        digests["encoder"] = encoder_digest(starter)
        start = functools.partial(predict_start, starter.to(device), network, prior)
    instruments = Instruments(features, prior, analyser)
    return Models(network, digest, network.config.img_resolution, instruments, device, start, digests)


def _analyser() -> tuple[Analyser | None, dict[str, str]]:
    """The embedded face analyser and its digest; None and {} where its weights are not installed: its figures are then
    left out."""
    from stylepairs.datagen.portraits.analysis.analyser import NETWORKS, WEIGHTS, load_analyser

    try:
        analyser = load_analyser()
    except InputError:
        return None, {}
    parts = [file_digest(WEIGHTS / f"analyser_{name}.safetensors", _AGAIN) for name in sorted(NETWORKS)]
    return analyser, {"analyser": hashlib.sha256("".join(parts).encode()).hexdigest()}


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
        rows = [_IndexRow.model_validate(row) for row in read_json_lines(path)]
    except (Damaged, ValidationError) as error:
        raise InputError(f"{path}: damaged ({one_line(error)}); prepare the photos again") from error
    return {row.name: row.photo_sha256 for row in rows if row.photo_sha256 is not None}


class _IndexRow(BaseModel):
    """What a build needs of a row of `index.jsonl`."""

    name: str
    photo_sha256: str | None = None
