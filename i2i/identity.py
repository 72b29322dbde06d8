"""Tells how alike two pictures of a face are: by a face-recognition network from a file, or by embedded features.

ArcFace (Deng et al. 2019) sees the inner part of FFHQ's square, as pixel2style2pixel (Richardson et al. 2021) shows it.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

from stylepairs.datagen.images.perceptual import Perceptual, load_perceptual
from stylepairs.datagen.shell.errors import InputError, one_line
from stylepairs.datagen.shell.regular import read_regular

# Of the square's side: left, top, and the side of what a recognition network is shown, at so many pixels.
INNER_FACE, FACE_PX = (32 / 256, 35 / 256, 188 / 256), 112
MAX_NETWORK_BYTES = 2**30  # ArcFace's largest published networks have 260 MB


@dataclass(frozen=True)
class Identity:
    """embed: images [N,3,112,112] in [-1,1] of inner faces -> vectors [N,D]; name: of the features, said beside every
    figure."""

    name: str
    embed: Callable[[torch.Tensor], torch.Tensor]

    @torch.no_grad()
    def likeness(self, image: torch.Tensor, other: torch.Tensor) -> float:
        """Cosine, 1 for the same picture, of two aligned pictures [3,H,W] in [-1,1]."""
        vectors = self.embed(torch.cat([inner_face(image), inner_face(other)]))
        return float(F.cosine_similarity(vectors[:1], vectors[1:]))


@dataclass(frozen=True)
class Instruments:
    """What pictures are measured with: perceptual features, and features by which people are told apart."""

    perceptual: Perceptual
    identity: Identity


def load_instruments(
    perceptual: str = "auto", identity: str | Path = "embedded", weights: str | Path | None = None
) -> Instruments:
    """Both by name; perceptual, weights: as in `load_perceptual`. Raises InputError."""
    features = load_perceptual(perceptual, weights)
    return Instruments(features, load_identity(identity, features))


def load_identity(source: str | Path, perceptual: Perceptual) -> Identity:
    """source: "embedded" (the deepest features of `perceptual`, meaned over the face), or an .onnx file of a
    face-recognition network, [N,3,112,112] in [-1,1] -> [N,D], as InsightFace's w600k_r50, which is named by its file
    and the beginning of its sha256. Raises InputError."""
    if source == "embedded":
        return Identity(f"{perceptual.name}-pooled", lambda faces: perceptual.features(faces)[-1].mean((2, 3)))
    path = Path(source)
    if path.suffix != ".onnx":
        raise InputError(f"identity {source}: no .onnx file; give a face-recognition network, or embedded")
    if importlib.util.find_spec("onnxruntime") is None:
        raise InputError(f"identity {source}: needs onnxruntime; pip install 'stylepairs[export]'")
    try:
        network = read_regular(path, MAX_NETWORK_BYTES)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); give a face-recognition network") from None
    try:
        embed = _network(network)
        found = embed(torch.zeros(1, 3, FACE_PX, FACE_PX))
    except Exception as error:  # onnxruntime's have no class in common
        raise InputError(f"{path}: no network that takes a face of {FACE_PX} px ({one_line(error)[:200]})") from error
    if found.ndim != 2 or len(found) != 1 or found.shape[1] < 2:
        raise InputError(f"{path}: gives {list(found.shape)} of a face, not one vector")
    return Identity(f"{path.stem}-{hashlib.sha256(network).hexdigest()[:8]}", embed)


def _network(network: bytes) -> Callable[[torch.Tensor], torch.Tensor]:
    from onnxruntime import InferenceSession

    session = InferenceSession(network, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def embed(faces: torch.Tensor) -> torch.Tensor:  # one by one: some files fix the batch at one
        rows = [session.run(None, {name: face[None].numpy()})[0] for face in faces]
        return torch.cat([torch.from_numpy(row) for row in rows])

    return embed


def inner_face(image: torch.Tensor) -> torch.Tensor:
    """[3,H,W] in [-1,1] -> [1,3,112,112]: the part of an aligned picture that recognition networks are shown; of one
    that is no square the same shares of its sides."""
    rows, columns = (
        slice(round(start * side), round(start * side) + max(round(INNER_FACE[2] * side), 1))
        for start, side in zip((INNER_FACE[1], INNER_FACE[0]), image.shape[1:], strict=True)
    )
    crop = image[None, :, rows, columns].clamp(-1, 1).cpu()
    return F.interpolate(crop, size=(FACE_PX, FACE_PX), mode="bilinear", antialias=True)
