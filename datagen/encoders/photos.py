"""What encoders learn from: portraits, varied a little, and the generator's own samples."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch

from stylepairs.datagen.portraits.folders import load_portraits
from stylepairs.datagen.reconstruction.prior import WPrior
from stylepairs.datagen.stylegan.generator import Generator


def load_photos(folders: Sequence[Path], size_px: int) -> torch.Tensor:
    """The portraits of prepared folders as uint8 [M,3,size_px,size_px]. Raises InputError where one holds none."""
    files = [file for folder in folders for file in load_portraits(folder)]
    photos = torch.empty(len(files), 3, size_px, size_px, dtype=torch.uint8)  # once: 3 MB each at 1024 px
    for photo, file in zip(photos, files, strict=True):
        photo.copy_(((file.load().resized(size_px).image + 1) * 127.5).round())
    return photos


def photos_digest(photos: torch.Tensor) -> str:
    """SHA-256 (hex) of the pictures that an encoder is trained on."""
    digest = hashlib.sha256(f"{list(photos.shape)}".encode())
    digest.update(photos.contiguous().numpy().data)
    return digest.hexdigest()


@torch.no_grad()
def draw_samples(generator: Generator, prior: WPrior, count: int, draw: torch.Generator) -> torch.Tensor:
    """Images [N,3,R,R] of the generator: latents spread from mean to full, half of them style-mixed, with fresh
    noise."""
    config, device = generator.config, generator.mapping.w_avg.device
    w = generator.mapping.to_w(torch.randn(2 * count, config.z_dim, generator=draw).to(device))
    spread = 0.5 + 0.5 * torch.rand(2 * count, 1, generator=draw).to(device)
    one, other = (prior.whiten(w) * spread)[:, None].expand(-1, generator.num_ws, -1).split(count)
    crossover = torch.randint(1, 2 * generator.num_ws, (count, 1, 1), generator=draw)  # half beyond the last row
    rows = torch.arange(generator.num_ws).view(1, -1, 1)
    u = torch.where((rows < crossover).to(device), one, other)
    noise = [torch.randn(count, *level.shape[1:], generator=draw).to(device) for level in generator.noise_maps()]
    image: torch.Tensor = generator.synthesis(prior.unwhiten(u), noise)
    return image.clamp(-1, 1)


def varied(photo: torch.Tensor, draw: torch.Generator) -> torch.Tensor:
    """Photos [N,3,R,R] mirrored, slightly turned, scaled and moved, in other light, by chance each."""
    from kornia.geometry.transform import get_affine_matrix2d, warp_affine

    count, side = len(photo), photo.shape[-1]
    chance = torch.rand(count, 8, generator=draw)
    mirrored, moved = chance[:, 0] < 0.5, chance[:, 1] < 0.5
    photo = torch.where(mirrored.view(-1, 1, 1, 1), photo.flip(3), photo)
    centre = torch.full((count, 2), (side - 1) / 2)
    scale = (0.9 + 0.2 * chance[:, 2:3]).expand(-1, 2)
    affine = get_affine_matrix2d((chance[:, 3:5] - 0.5) * 0.08 * side, centre, scale, (chance[:, 5] - 0.5) * 16)
    warped = warp_affine(photo, affine[:, :2], (side, side), padding_mode="reflection")
    photo = torch.where(moved.view(-1, 1, 1, 1), warped, photo)
    gain = 0.9 + 0.2 * torch.rand(count, 3, 1, 1, generator=draw)
    return (photo * gain + 0.1 * (chance[:, 6] - 0.5).view(-1, 1, 1, 1)).clamp(-1, 1)
