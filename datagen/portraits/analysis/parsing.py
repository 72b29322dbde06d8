"""Label map and hair matte of aligned portraits with the embedded parser."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from stylepairs.datagen.portraits.analysis.networks import PARSER_CLASSES, PARSER_INPUT_PX, ParserNet
from stylepairs.datagen.portraits.portrait import CLASS

# Where each class goes when the picture is mirrored: left and right are the subject's.
MIRROR_CLASSES = (0, 1, 3, 2, 5, 4, 6, 8, 7, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18)
_BATCH = 8


class EmbeddedParser:
    """The embedded parser, loaded when it is used: who only finds faces does without. Deterministic."""

    def __init__(self, load: Callable[[], ParserNet]) -> None:
        self.load = load

    @torch.inference_mode()
    def parse(self, aligned: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """aligned [N,3,H,W] in [-1,1] -> label [N,H,W] uint8, hair matte [N,1,H,W] float32 in [0,1]."""
        parts = [self._parse(aligned[i : i + _BATCH].float()) for i in range(0, len(aligned), _BATCH)]
        return torch.cat([label for label, _ in parts]), torch.cat([hair for _, hair in parts])

    def _parse(self, aligned: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        size = (PARSER_INPUT_PX, PARSER_INPUT_PX)
        small = aligned
        if aligned.shape[-2:] != size:
            small = F.interpolate(aligned, size=size, mode="bicubic", antialias=True, align_corners=False).clamp(-1, 1)
        small = small.contiguous(memory_format=torch.channels_last)
        net = self.load()
        mirrored = net(small.flip(-1)).flip(-1)
        logits = (net(small) + mirrored[:, [*MIRROR_CLASSES, PARSER_CLASSES]]) / 2
        matte = logits[:, PARSER_CLASSES:]
        return resize_logits(_hair_by_matte(logits), aligned), resize_matte(matte.sigmoid(), aligned)


def _hair_by_matte(logits: torch.Tensor) -> torch.Tensor:
    """Logits of the classes with the matte [N,20,h,w] -> those [N,19,h,w] in which hair wins where the matte is over
    a half: what hair means in the label maps that were trained on (hair's IoU 0.874 by its own logit, 0.877 so).
    """
    hair = CLASS["hair"]
    classes = logits[:, :PARSER_CLASSES].clone()
    classes[:, hair] = -torch.inf
    classes[:, hair] = classes.amax(1) + logits[:, PARSER_CLASSES]
    return classes


def resize_logits(logits: torch.Tensor, aligned: torch.Tensor) -> torch.Tensor:
    """logits [N,19,h,w] -> label [N,H,W] uint8 at the size of `aligned` [N,3,H,W]."""
    if logits.shape[-2:] != aligned.shape[-2:]:
        shrinks = aligned.shape[-1] < logits.shape[-1]
        logits = F.interpolate(logits, size=aligned.shape[-2:], mode="bilinear", antialias=shrinks, align_corners=False)
    return logits.argmax(1).to(torch.uint8)


def resize_matte(matte: torch.Tensor, aligned: torch.Tensor) -> torch.Tensor:
    """matte [N,1,h,w] in [0,1] -> [N,1,H,W]; where it grows, a guided filter (He et al., 2010) lets it follow the
    strands.
    """
    size = aligned.shape[-2:]
    if matte.shape[-2:] == size:
        return matte
    if size[-1] < matte.shape[-1]:
        return F.interpolate(matte, size=size, mode="bilinear", antialias=True, align_corners=False).clamp(0, 1)
    from kornia.filters import guided_blur

    grown = F.interpolate(matte, size=size, mode="bicubic", align_corners=False).clamp(0, 1)
    window = 2 * round(size[-1] / matte.shape[-1]) + 1
    return guided_blur(aligned / 2 + 0.5, grown, window, 1e-3).clamp(0, 1)
