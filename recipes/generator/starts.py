"""Sharp portraits, and what an encoder finds for each at half of their side."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from data import aligned_files, read_image

from stylepairs.datagen.encoders.files import load_encoder
from stylepairs.datagen.encoders.network import encoded
from stylepairs.datagen.reconstruction.prior import WPrior
from stylepairs.datagen.shell.errors import InputError
from stylepairs.datagen.stylegan.checkpoints import generator_digest
from stylepairs.datagen.stylegan.generator import Generator

AT_ONCE = 8


@dataclass(frozen=True)
class Starts:
    """Portraits and their mirror images: images uint8 [M,3,2R,2R]; ws float16 [M,L,C] and noise maps float16
    [M,1,r,r] of the renderings that resemble them at R."""

    images: torch.Tensor
    ws: torch.Tensor
    noise: list[torch.Tensor]


@torch.no_grad()
def find_starts(folders: Sequence[Path], generator: Generator, encoder: str, device: torch.device) -> Starts:
    """Of the portraits whose crops had the pixels; the generator is on the CPU and is sent to the device. Raises
    InputError."""
    side = 2 * generator.config.img_resolution
    paths = [path for folder in folders for path in sharp_files(folder, side)]
    if not paths:
        raise InputError(f"{folders[0]}: no portrait there had {side} px; give larger photos")
    network = load_encoder(encoder, generator, generator_digest(generator)).to(device)
    prior = WPrior.fit(generator).to(device)
    generator.to(device)
    images = torch.stack([read_image(path, side, "RGB") for path in paths])
    images = torch.cat([images, images.flip(-1)])
    ws, noise = [], []
    for part in images.split(AT_ONCE):
        small = F.avg_pool2d(part.to(device).float() / 127.5 - 1, 2)
        u, maps = encoded(network, generator, prior, small)
        ws.append(prior.unwhiten(u).half().cpu())
        noise.append([level.half().cpu() for level in maps])
    return Starts(images, torch.cat(ws), [torch.cat(level) for level in zip(*noise, strict=True)])


def sharp_files(folder: Path, side: int) -> list[Path]:
    """The aligned portraits whose crops were this wide in the photo, by index.jsonl; all where there is none. Raises
    InputError."""
    index = folder / "index.jsonl"
    if not index.exists():
        return aligned_files(folder)
    try:
        rows = [json.loads(line) for line in index.read_text().splitlines()]
        native = {row["name"]: float(row["native_crop_px"]) for row in rows}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{index}: is no index of prepared portraits ({error!r}); prepare them anew") from error
    return [path for path in aligned_files(folder) if native.get(path.stem, 0) >= side]
