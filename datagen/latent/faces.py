"""What is seen in a batch of aligned faces, as tensors with gradients: soft label maps, hair mattes, landmarks.

The face analyser answers for photos, in whole numbers; methods that learn through the generator need its networks'
answers as they come, differentiable in the pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from stylepairs.datagen.images import filters
from stylepairs.datagen.images.colors import srgb_to_lab
from stylepairs.datagen.portraits.analysis.analyser import WEIGHTS, load_network
from stylepairs.datagen.portraits.analysis.detection import LANDMARK_CROP_SHARE, LANDMARK_CROP_SHIFT
from stylepairs.datagen.portraits.analysis.networks import LANDMARK_INPUT_PX, PARSER_CLASSES, PARSER_INPUT_PX
from stylepairs.datagen.portraits.landmarks import LEFT_EYE, RIGHT_EYE
from stylepairs.datagen.portraits.portrait import CLASS
from stylepairs.datagen.shell.durable import file_digest

SEEN_PX = 128  # side at which colours and classes are kept, whatever the generator's: it bounds memory


@dataclass(frozen=True)
class SeenFaces:
    """Aligned faces, N of them; S = SEEN_PX.

    image [N,3,S,S] in [-1,1]; lab [N,3,S,S]; classes [N,19,S,S] probabilities; hair [N,1,S,S] matte; points68 [N,68,2]
    (x, y) in shares of the side; score [N] in [0,1]: that it is a face at all.
    """

    image: torch.Tensor
    lab: torch.Tensor
    classes: torch.Tensor
    hair: torch.Tensor
    points68: torch.Tensor
    score: torch.Tensor

    def labelled(self, *names: str) -> torch.Tensor:
        """Probability [N,1,S,S] of any of the classes."""
        found: torch.Tensor = self.classes[:, [CLASS[name] for name in names]].sum(1, keepdim=True)
        return found

    @property
    def eye_distance(self) -> torch.Tensor:
        """Between the centres of the eyes, [N], in shares of the side."""
        apart: torch.Tensor = (self._eye(LEFT_EYE) - self._eye(RIGHT_EYE)).norm(dim=-1)
        return apart.clamp_min(1e-3)

    def coordinates(self) -> torch.Tensor:
        """The landmarks [N,68,2] in the face's own frame: (across, down) from between the eyes, in eye distances."""
        across, down = self._axes()
        moved = self.points68 - self._origin()[:, None]
        turned = torch.stack([(moved * across[:, None]).sum(-1), (moved * down[:, None]).sum(-1)], -1)
        return turned / self.eye_distance[:, None, None]

    def patch(
        self,
        planes: torch.Tensor,
        x: tuple[float, float],
        y: tuple[float, float],
        steps: int = 16,
        below: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """planes [N,C,S,S] read over a box of the face's frame -> [N,C,steps,steps].

        x across and y down from between the eyes, in eye distances; below [N] moves each face's box down.
        """
        across, down = self._axes()
        unit = self.eye_distance[:, None, None, None]
        at = planes.new_tensor([low + (high - low) * i / (steps - 1) for low, high in (y, x) for i in range(steps)])
        downs, acrosses = torch.meshgrid(at[:steps], at[steps:], indexing="ij")
        offset = acrosses[..., None] * across[:, None, None] + downs[..., None] * down[:, None, None]
        if below is not None:
            offset = offset + below[:, None, None, None] * down[:, None, None]
        places = self._origin()[:, None, None] + unit * offset
        return F.grid_sample(planes, 2 * places - 1, padding_mode="border", align_corners=False)

    def _eye(self, eye: slice) -> torch.Tensor:
        return self.points68[:, eye].mean(1)

    def _origin(self) -> torch.Tensor:
        return (self._eye(LEFT_EYE) + self._eye(RIGHT_EYE)) / 2

    def _axes(self) -> tuple[torch.Tensor, torch.Tensor]:
        across = (self._eye(LEFT_EYE) - self._eye(RIGHT_EYE)) / self.eye_distance[:, None]
        return across, torch.stack([-across[:, 1], across[:, 0]], -1)


@dataclass(frozen=True)
class FaceReader:
    """The embedded parser and landmark networks, read with gradients; digest: sha256 of their files."""

    parser: nn.Module
    landmarks: nn.Module
    digest: str

    def to(self, device: torch.device | str) -> FaceReader:
        """The same reader with its networks on `device`."""
        return FaceReader(self.parser.to(device), self.landmarks.to(device), self.digest)

    def read(self, image: torch.Tensor) -> SeenFaces:
        """image [N,3,H,W], FFHQ-aligned, nominally in [-1,1]."""
        image = image.clamp(-1, 1)
        fine = _resized(image, PARSER_INPUT_PX).contiguous(memory_format=torch.channels_last)
        logits = self.parser(fine)
        seen = _resized(image, SEEN_PX)
        points, face, _ = self.landmarks(_landmark_crop(seen))
        return SeenFaces(
            seen,
            srgb_to_lab(seen),
            F.interpolate(logits[:, :PARSER_CLASSES].softmax(1), size=(SEEN_PX, SEEN_PX), mode="area"),
            F.interpolate(logits[:, PARSER_CLASSES:].sigmoid(), size=(SEEN_PX, SEEN_PX), mode="area"),
            _shares(points),
            face.sigmoid(),
        )

    def region(self, image: torch.Tensor, classes: Sequence[str], grown: float, soft: float) -> torch.Tensor:
        """Where the classes are in any of the images [N,3,H,W] of one person, [1,H,W]; as `regions`."""
        return regions(self.read(image).labelled(*classes)[None], image.shape[-1], grown, soft)[0]


def regions(found: torch.Tensor, side: int, grown: float, soft: float) -> torch.Tensor:
    """Where classes are in any of M images of each of P people, [P,1,side,side]; found [P,M,1,S,S]: their probability;
    grown: how far beyond them, soft: how softly it ends, in shares of the side."""
    fine = F.interpolate(found.flatten(0, 1), size=(side, side), mode="bilinear").unflatten(0, found.shape[:2])
    wide = filters.grown(fine.amax(1), grown * side)
    return filters.blurred(wide, max(0.5, soft * side)).clamp(0, 1)


def load_reader() -> FaceReader:
    """The embedded networks. Raises InputError where their weights are missing."""
    parser, landmarks = (WEIGHTS / f"analyser_{name}.safetensors" for name in ("parser", "landmarks"))
    digest = file_digest(parser)[:32] + file_digest(landmarks)[:32]
    return FaceReader(load_network(parser), load_network(landmarks), digest)


def _resized(image: torch.Tensor, size_px: int) -> torch.Tensor:
    if image.shape[-1] == size_px:
        return image
    size = (size_px, size_px)
    return F.interpolate(image, size=size, mode="bicubic", antialias=True, align_corners=False).clamp(-1, 1)


def _landmark_crop(image: torch.Tensor) -> torch.Tensor:
    """The square that the landmark network reads of an aligned face: fixed, as the eyes' places are."""
    share, shift = LANDMARK_CROP_SHARE, 2 * LANDMARK_CROP_SHIFT
    theta = image.new_tensor([[share, 0, 0], [0, share, shift]]).expand(len(image), 2, 3)
    size = [len(image), 3, LANDMARK_INPUT_PX, LANDMARK_INPUT_PX]
    crop = F.grid_sample(
        image, F.affine_grid(theta, size, align_corners=False), padding_mode="border", align_corners=False
    )
    return crop.contiguous(memory_format=torch.channels_last)


def _shares(points: torch.Tensor) -> torch.Tensor:
    """Points [N,68,2] in the crop's pixels as shares of the aligned side."""
    inside = (points + 0.5) / LANDMARK_INPUT_PX - 0.5
    return inside * LANDMARK_CROP_SHARE + 0.5 + points.new_tensor([0.0, LANDMARK_CROP_SHIFT])
