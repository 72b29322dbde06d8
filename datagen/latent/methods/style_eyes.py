"""What the style of a picture is seen by, as a vector of the whole and one of each part: CLIP (Radford et al. 2021),
read from a local file through open_clip, or the EfficientNet-Lite0 that the package uses elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from stylepairs.datagen.images.trunk import Trunk
from stylepairs.datagen.shell.decode import Damaged, read_safetensors, read_torch
from stylepairs.datagen.shell.errors import InputError, nearest, one_line

# images [N,3,H,W] in [-1,1] -> vectors [N,D], parts [N,T,E], with gradients
Eyes = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]

CLIP_MEAN, CLIP_DEVIATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_VECTOR_LEVELS, _PART_LEVELS = (1, 2, 3, 4), (1, 2)  # of the trunk, the finest is 0
_VISUAL = "visual."


class ClipEyes(nn.Module):
    """CLIP's image tower: its embedding of unit length, and its last layer's tokens. visual: a module that gives both
    for images of size_px, as open_clip's vision transformers with `output_tokens` do."""

    mean: torch.Tensor
    deviation: torch.Tensor

    def __init__(self, visual: nn.Module, size_px: int):
        super().__init__()
        self.visual, self.size_px = visual.eval().requires_grad_(False), size_px
        self.register_buffer("mean", torch.tensor(CLIP_MEAN).view(1, 3, 1, 1))
        self.register_buffer("deviation", torch.tensor(CLIP_DEVIATION).view(1, 3, 1, 1))

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        size = (self.size_px, self.size_px)
        fitted = F.interpolate(image.clamp(-1, 1), size=size, mode="bicubic", antialias=True, align_corners=False)
        vectors, parts = self.visual(((fitted + 1) / 2 - self.mean) / self.deviation)
        return F.normalize(vectors, dim=1), parts


class TrunkEyes(nn.Module):
    """EfficientNet-Lite0's features, each channel in deviations from the mean over `around`: images [N,3,H,W] of the
    generator as it is. Vectors: means over the picture; parts: places of 8 pixels."""

    def __init__(self, trunk: Trunk, around: torch.Tensor):
        super().__init__()
        self.trunk = trunk.eval().requires_grad_(False)
        with torch.no_grad():
            vectors, parts = self._raw(around)
        self.vector_statistics = vectors.mean(0), vectors.std(0).clamp_min(1e-4)
        self.part_statistics = parts.mean((0, 1)), parts.std((0, 1)).clamp_min(1e-4)

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        (mean, deviation), (part_mean, part_deviation) = self.vector_statistics, self.part_statistics
        vectors, parts = self._raw(image)
        return (vectors - mean) / deviation, (parts - part_mean) / part_deviation

    def _raw(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        maps = self.trunk(image.clamp(-1, 1))
        side = maps[_PART_LEVELS[-1]].shape[-1]
        places = [F.adaptive_avg_pool2d(maps[level].float(), side) for level in _PART_LEVELS]
        vectors = torch.cat([maps[level].float().mean((2, 3)) for level in _VECTOR_LEVELS], 1)
        return vectors, torch.cat(places, 1).flatten(2).transpose(1, 2)


def load_clip(path: Path, model: str) -> ClipEyes:
    """CLIP's image tower from a local file of weights in open_clip's (or OpenAI's) names; model: as open_clip calls it,
    of "ViT" kind. Nothing is downloaded. Raises InputError: open_clip not installed, no such model, another's weights.
    """
    try:
        import open_clip
    except ImportError:
        raise InputError(
            f"--clip {path}: needs open_clip; pip install 'stylepairs[clip]', or leave --clip out: losses are then on "
            "EfficientNet's features"
        ) from None
    known = open_clip.list_models()
    if model not in known:
        raise InputError(f"--clip-model {model}: unknown{nearest(model, known, 'see open_clip.list_models()')}")
    visual = open_clip.create_model(model, pretrained=None).visual
    if not hasattr(visual, "output_tokens"):
        raise InputError(f"--clip-model {model}: gives no tokens; take a ViT, as ViT-B-32-quickgelu")
    visual.output_tokens = True
    try:
        visual.load_state_dict(_visual_weights(path))
    except RuntimeError as error:
        raise InputError(
            f"{path}: does not fit {model} ({one_line(error)}); name its model with --clip-model"
        ) from None
    return ClipEyes(visual.float(), int(visual.image_size[0]))


def _visual_weights(path: Path) -> dict[str, torch.Tensor]:
    """The image tower's tensors of a file, without the prefix. Raises InputError."""
    try:
        found = read_safetensors(path)[0] if path.suffix.lower() == ".safetensors" else read_torch(path)
    except Damaged as error:
        raise InputError(f"{path}: cannot be read as CLIP's weights ({error}); give a state dict") from None
    if isinstance(found, dict) and isinstance(found.get("state_dict"), dict):
        found = found["state_dict"]
    state = {str(key).removeprefix("module."): x for key, x in found.items()} if isinstance(found, dict) else {}
    tensors = {key: x for key, x in state.items() if isinstance(x, torch.Tensor)}
    visual = {key.removeprefix(_VISUAL): x.float() for key, x in tensors.items() if key.startswith(_VISUAL)}
    if not visual:
        raise InputError(f"{path}: holds no image tower of CLIP (no tensors named {_VISUAL}...)")
    return visual
