"""Aligned portraits in memory for the generator's training, hair recoloured at random so that every hair colour is
known."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from stylepairs.datagen.shell.decode import Damaged, decoding
from stylepairs.datagen.shell.errors import InputError

# Mean hair colours (sRGB) drawn for recolouring; portraits of public persons are mostly grey and brown, products need
# all.
NATURAL = ((28, 24, 24), (52, 38, 30), (84, 58, 40), (112, 76, 48), (96, 48, 34), (140, 66, 38), (176, 136, 88), (206,
172, 122),
           (224, 200, 160), (150, 146, 142), (205, 202, 198))  # fmt: skip
FASHION = ((200, 90, 140), (110, 60, 150), (50, 80, 160), (40, 130, 130), (60, 120, 60), (170, 40, 50))
FASHION_SHARE = 0.2
LEAST_HAIR = 0.03  # share of the image under which a portrait is left as it is


@dataclass
class Batch:
    """images [N,3,R,R] in [-1,1]; codes [N]: the row of each portrait (mirror images come after all others)."""

    images: torch.Tensor
    codes: torch.Tensor


class Portraits:
    """images uint8 [M,3,R,R], mattes uint8 [M,1,R,R] (zeros where a folder has none), of all folders in order."""

    def __init__(self, folders: Sequence[Path], resolution: int, shares: Sequence[float] | None = None):
        """shares: how often each folder is drawn from; None draws every portrait equally often."""
        paths = [aligned_files(folder) for folder in folders]
        sizes = torch.tensor([len(part) for part in paths])
        wanted = sizes.double() if shares is None else torch.tensor(shares).double()
        self.chances = (wanted / sizes).repeat_interleave(sizes)
        self.images = torch.stack([read_image(path, resolution, "RGB") for part in paths for path in part])
        self.mattes = torch.stack([_matte(path, resolution) for part in paths for path in part])

    def to(self, device: torch.device) -> Portraits:
        self.images, self.mattes = self.images.to(device), self.mattes.to(device)
        return self

    def __len__(self) -> int:
        return len(self.images)

    def with_mirrored(self) -> torch.Tensor:
        """All images, then all mirrored: the order of the codes."""
        return torch.cat([self.images, self.images.flip(-1)])

    def batch(self, count: int, recolour_share: float, generator: torch.Generator) -> Batch:
        """`count` random portraits, mirrored and recoloured at random."""
        rows = torch.multinomial(self.chances, count, replacement=True, generator=generator)
        at = rows.to(self.images.device)
        images, mattes = self.images[at].float() / 255, self.mattes[at].float() / 255
        chosen = torch.rand(count, generator=generator) < recolour_share
        strength = chosen * (0.7 + 0.3 * torch.rand(count, generator=generator))
        strength = strength.to(at.device) * (mattes.mean((1, 2, 3)) > LEAST_HAIR)
        images = recolour(images, mattes, draw_colours(count, generator).to(at.device), strength)
        flip = torch.rand(count, generator=generator) < 0.5
        images = torch.where(flip.to(at.device).view(-1, 1, 1, 1), images.flip(-1), images)
        return Batch(images * 2 - 1, rows + flip * len(self))


def draw_colours(count: int, generator: torch.Generator) -> torch.Tensor:
    """Random mean hair colours [count,3] in [0,1]: mixtures of two neighbours of one palette."""
    natural, fashion = torch.tensor(NATURAL) / 255, torch.tensor(FASHION) / 255
    weights = torch.rand(count, 1, generator=generator)
    first, second = (natural[torch.randint(len(natural), (count,), generator=generator)] for _ in range(2))
    vivid = fashion[torch.randint(len(fashion), (count,), generator=generator)] * (0.6 + 0.8 * weights)
    is_vivid = torch.rand(count, 1, generator=generator) < FASHION_SHARE
    return torch.where(is_vivid, vivid, first.lerp(second, weights * 0.5)).clamp(0, 1)


def recolour(image: torch.Tensor, matte: torch.Tensor, colour: torch.Tensor, strength: torch.Tensor) -> torch.Tensor:
    """Give the hair a mean colour, its shading kept as a ratio of luminance. image [N,3,H,W] in [0,1]; strength [N]."""
    luma = (image * image.new_tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True)
    mean = (luma * matte).sum((2, 3), keepdim=True) / matte.sum((2, 3), keepdim=True).clamp_min(1e-6)
    # Ratios of dark hair explode; bounded, black hair turned blond keeps strands instead of becoming noise.
    shading = ((luma + 0.05) / (mean + 0.05)).clamp(0.35, 1.9) ** 0.8
    painted = (colour.view(-1, 3, 1, 1) * shading).clamp(0, 1)
    return image + matte * strength.view(-1, 1, 1, 1) * (painted - image)


def aligned_files(folder: Path) -> list[Path]:
    """By name without its ending, which is the order of the codes: packed portraits have other endings. Raises
    InputError."""
    found: dict[str, Path] = {}
    for path in (path for ending in ("jpg", "png", "webp") for path in (folder / "aligned").glob(f"*.{ending}")):
        if path.stem in found:
            raise InputError(f"{path}: {found[path.stem].name} has the same name; leave one of them")
        found[path.stem] = path
    if not found:
        raise InputError(f"{folder}: no aligned/*.png or *.jpg; run `datagen prepare PHOTOS --out {folder}` first")
    return [found[name] for name in sorted(found, key=lambda name: f"{name}.")]  # as their files sort


def matte_file(aligned: Path) -> Path | None:
    paths = (aligned.parents[1] / "hair" / f"{aligned.stem}{ending}" for ending in (".png", ".webp"))
    return next((path for path in paths if path.exists()), None)


def _matte(aligned: Path, resolution: int) -> torch.Tensor:
    path = matte_file(aligned)
    blank = torch.zeros(1, resolution, resolution, dtype=torch.uint8)
    return blank if path is None else read_image(path, resolution, "L")


def check_shares(
    parser: argparse.ArgumentParser, shares: Sequence[float] | None, folders: Sequence[Path], of: str
) -> None:
    """Ends the program where --shares are not those of the folders, which the option `of` gives."""
    if shares is not None and len(shares) != len(folders):
        parser.error(f"--shares: {len(shares)} for {len(folders)} folders of {of}; give one of each")
    if shares is not None and not (min(shares) >= 0 and 0 < sum(shares) < math.inf):
        parser.error("--shares: none may be below 0, and one must be above")


def open_image(path: Path, mode: str) -> Image.Image:
    """Decoded. Raises InputError."""
    try:
        with decoding(), Image.open(path) as image:
            return image.convert(mode)
    except Damaged as error:
        raise InputError(f"{path}: cannot be read as an image ({error}); prepare it anew or take it out") from error


def read_image(path: Path, resolution: int, mode: str) -> torch.Tensor:
    pixels = np.asarray(open_image(path, mode).resize((resolution, resolution), Image.Resampling.LANCZOS))
    return torch.from_numpy(pixels.copy()).reshape(resolution, resolution, -1).permute(2, 0, 1).contiguous()
