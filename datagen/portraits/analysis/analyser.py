"""The face analyser: faces and landmarks of a photo, label map and hair matte of an aligned crop, behind two small
interfaces.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from stylepairs.datagen.images.files import to_float
from stylepairs.datagen.portraits.alignment import apply_transform, crop_aligned, ffhq_transform
from stylepairs.datagen.portraits.analysis.detection import EmbeddedFinder, Face, Faces, make_face
from stylepairs.datagen.portraits.analysis.networks import DetectorNet, LandmarkNet, ParserNet
from stylepairs.datagen.portraits.analysis.parsing import EmbeddedParser
from stylepairs.datagen.portraits.portrait import Portrait
from stylepairs.datagen.shell.decode import Damaged, decode_json, read_safetensors
from stylepairs.datagen.shell.errors import InputError, one_line

WEIGHTS = Path(__file__).resolve().parents[2] / "weights"
NETWORKS: dict[str, type[nn.Module]] = {"detector": DetectorNet, "landmarks": LandmarkNet, "parser": ParserNet}

# Of a face in a turned photo, at least: each turn is another chance to take a texture for a face (those reach 0.40).
TURNED_MIN_SCORE = 0.6
# A head upside down can pass for an upright face: of 129 portraits 21 did, with 0.50 to 0.91, all by 0.05 and more
# below the same face upright. Upright ones had 0.89 and more, 124 of them the first of these.
SURE_SCORE, TURN_MARGIN = 0.92, 0.05

__all__ = ["Face", "FaceAnalyser", "FaceFinder", "FaceParser", "load_analyser", "load_network", "portrait_of"]


class FaceFinder(Protocol):
    """Finds faces and their landmarks."""

    def find(self, photo: np.ndarray, min_score: float = 0.5) -> list[Face]:
        """photo uint8 [H,W,3] -> faces with score >= min_score, largest first."""
        ...


class FaceParser(Protocol):
    """Parses aligned faces."""

    def parse(self, aligned: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """aligned [N,3,H,W] in [-1,1] -> label [N,H,W] uint8, hair matte [N,1,H,W] in [0,1]."""
        ...


class FaceAnalyser:
    """A finder and a parser, with the checks of their inputs.

    Example: `faces = load_analyser().find(read_image("photo.jpg"))`.
    """

    def __init__(self, finder: FaceFinder, parser: FaceParser) -> None:
        self.finder = finder
        self.parser = parser

    def find(self, photo: np.ndarray, min_score: float = 0.5) -> list[Face]:
        """photo uint8 [H,W,3] -> faces with score >= min_score in [0,1], largest first; none gives [].

        Where no face is surely upright, the photo is looked at lying on its sides and on its head, too: scans and old
        cameras say nothing of how they were held.
        """
        if photo.dtype != np.uint8 or photo.ndim != 3 or photo.shape[2] != 3:
            raise ValueError(f"photo must be uint8 [H,W,3], not {photo.dtype} {list(photo.shape)}")
        found = self.finder.find(np.ascontiguousarray(photo), min_score)
        upright = _best(found)
        if upright >= SURE_SCORE:
            return found
        turns = (self._find_turned(photo, quarters, max(min_score, TURNED_MIN_SCORE)) for quarters in (1, 3, 2))
        turned = max(turns, key=lambda faces: sum(face.score for face in faces))
        return turned if _best(turned) > upright + TURN_MARGIN else found

    def _find_turned(self, photo: np.ndarray, quarters: int, min_score: float) -> list[Face]:
        """The faces, in the photo's own coordinates, of the photo turned anticlockwise by so many quarters."""
        found = self.finder.find(np.ascontiguousarray(np.rot90(photo, quarters)), min_score)
        h, w = photo.shape[:2]
        upright = Faces()
        upright.passed_over = found.passed_over if isinstance(found, Faces) else 0
        for face in found:
            x, y = face.points68[:, 0], face.points68[:, 1]
            points = {1: (w - 1 - y, x), 2: (w - 1 - x, h - 1 - y), 3: (y, h - 1 - x)}[quarters]
            upright.append(make_face(np.stack(points, -1), face.score))
        return upright

    def parse(self, aligned: np.ndarray | torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """aligned uint8 [N,H,W,3] or float [N,3,H,W] in [-1,1] -> label [N,H,W] uint8, hair matte [N,1,H,W] float32."""
        if isinstance(aligned, np.ndarray):
            if aligned.dtype != np.uint8 or aligned.ndim != 4 or aligned.shape[3] != 3:
                raise ValueError(f"aligned must be uint8 [N,H,W,3], not {aligned.dtype} {list(aligned.shape)}")
            aligned = torch.from_numpy(aligned).permute(0, 3, 1, 2).float() / 127.5 - 1
        if aligned.ndim != 4 or aligned.shape[1] != 3:
            raise ValueError(f"aligned must be [N,3,H,W], not {list(aligned.shape)}")
        return self.parser.parse(aligned)


def load_analyser(landmarks: str = "embedded", parser: str | Path = "embedded") -> FaceAnalyser:
    """The analyser with the chosen parts.

    landmarks: "embedded", or "face-alignment" (that library with its weights on disk). parser: "embedded", or a file of
    BiSeNet weights (79999_iter.pth). Raises InputError where a library or a file is missing.
    """
    embedded = EmbeddedFinder(embedded_network("detector"), embedded_network("landmarks"))
    finder: FaceFinder = embedded
    if landmarks == "face-alignment":
        from stylepairs.datagen.portraits.analysis.face_alignment import FaceAlignmentFinder

        finder = FaceAlignmentFinder(embedded)
    elif landmarks != "embedded":
        raise InputError(f"landmarks {landmarks!r}: unknown; use embedded or face-alignment")
    if str(parser) == "embedded":
        return FaceAnalyser(finder, EmbeddedParser(lambda: embedded_network("parser")))
    from stylepairs.datagen.portraits.analysis.bisenet import load_bisenet_parser

    return FaceAnalyser(finder, load_bisenet_parser(parser))


def portrait_of(
    name: str, photo: np.ndarray, points68: np.ndarray, size_px: int, parser: FaceParser
) -> tuple[Portrait, np.ndarray]:
    """The face of a photo uint8 [H,W,3] with landmarks [68,2] as a portrait, and the transform [2,3] that cut it out.

    Raises ValueError where eyes and mouth fall on one point.
    """
    points = np.asarray(points68, np.float64)
    move = ffhq_transform(points, size_px)
    aligned = crop_aligned(photo, move, size_px)
    image = to_float(aligned)
    label, hair = (part[0] for part in parser.parse(image[None]))
    at = torch.from_numpy(apply_transform(move, points).astype(np.float32))
    return Portrait(name, image, label, hair, at, hashlib.sha256(aligned.tobytes()).hexdigest()), move


def load_network(path: Path) -> nn.Module:
    """The network of an analyser's .safetensors file (its metadata names it), float32, eval, batch norms folded in.

    Raises InputError for a file that is missing, damaged or of something else.
    """
    try:
        tensors, metadata = read_safetensors(path)
        config = decode_json(metadata.get("config", "{}"))
    except Damaged as error:
        raise InputError(f"{path}: cannot be read as safetensors ({error})") from None
    if metadata.get("network") not in NETWORKS:
        raise InputError(f"{path}: no face analyser's weights (metadata network={metadata.get('network')!r})")
    net = NETWORKS[metadata["network"]](**config)
    try:
        missing, unexpected = net.load_state_dict({k: v.float() for k, v in tensors.items()}, strict=False)
    except RuntimeError as error:
        raise InputError(f"{path}: damaged weights ({one_line(error)})") from None
    missing = [key for key in missing if not key.endswith("num_batches_tracked")]
    if missing or unexpected:
        raise InputError(f"{path}: weights of another version ({(missing + unexpected)[0]})")
    fused: nn.Module = _fuse(net.eval().requires_grad_(False)).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return fused


def _best(faces: list[Face]) -> float:
    return max((face.score for face in faces), default=0.0)


@lru_cache(maxsize=3)
def embedded_network(name: str) -> Any:
    """The embedded "detector", "landmarks" or "parser", loaded once."""
    return load_network(WEIGHTS / f"analyser_{name}.safetensors")


def _fuse(net: nn.Module) -> nn.Module:
    """Batch normalisations folded into the convolutions before them: the same function, a quarter less time."""
    for child in net.modules():
        if isinstance(child, nn.Sequential):
            for i in range(len(child) - 1):
                conv, norm = child[i], child[i + 1]
                if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                    child[i], child[i + 1] = fuse_conv_bn_eval(conv, norm), nn.Identity()
    return net
