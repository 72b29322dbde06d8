"""An encoder that gives stage 0 its start: an aligned photo to whitened latents and noise maps in a few passes, each
looking at the photo beside the render of the last (ReStyle, Alaluf et al. 2021; pSp, Richardson et al. 2021)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field, TypeAdapter, ValidationError
from torch import nn

from stylepairs.datagen.reconstruction.curvature import Curvature
from stylepairs.datagen.reconstruction.prior import WPrior
from stylepairs.datagen.reconstruction.rendering import synthesise
from stylepairs.datagen.shell.decode import Damaged, decoding, read_safetensors
from stylepairs.datagen.shell.durable import replace_file, safetensors_bytes
from stylepairs.datagen.shell.errors import InputError, one_line
from stylepairs.datagen.stylegan.generator import Generator
from stylepairs.kernels.precision import in_precision

EMBEDDED_WEIGHTS = Path(__file__).resolve().parent.parent / "weights" / "encoder.safetensors"
EMBEDDED = "embedded"
COARSEST_MAP_PX = 32  # coarser noise maps stay as the generator has them: they move the image hardly at all
_KIND = "stylepairs stage-0 encoder 2"
_BOTTOM_PX = 4
_Size = Annotated[int, Field(gt=0, le=4096)]


@dataclass(frozen=True)
class EncoderConfig:
    """num_ws, w_dim, maps (sides of the noise maps, the last of the image's): of the generator.

    width: channels at half of the image's side; deep: below; rank: directions of the curvature; passes: as trained.
    """

    num_ws: _Size
    w_dim: _Size
    maps: Annotated[tuple[_Size, ...], Field(min_length=1)]
    width: _Size = 32
    deep: _Size = 48
    hidden: _Size = 192
    rank: _Size = 160
    passes: _Size = 3

    @staticmethod
    def of(generator: Generator) -> EncoderConfig:
        maps = tuple(level.shape[-1] for level in generator.noise_maps())
        rank = min(EncoderConfig.rank, generator.num_ws * generator.config.w_dim)
        return EncoderConfig(generator.num_ws, generator.config.w_dim, maps, rank=rank)

    @property
    def image_px(self) -> int:
        return self.maps[-1]

    def predicted(self, size_px: int) -> list[int]:
        """Indices of the noise maps of this side that the encoder predicts."""
        return [index for index, side in enumerate(self.maps) if side == size_px >= COARSEST_MAP_PX]


class Encoder(nn.Module):
    """A U-Net over photo, render, their difference and the noise maps so far; latents from its bottom of 4 x 4, noise
    maps from the level of their own size (those of the image's size from half of it, as its four phases)."""

    basis: torch.Tensor
    scale: torch.Tensor

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.config = config
        elements, rank = config.num_ws * config.w_dim, config.rank
        self.register_buffer("basis", torch.zeros(elements, rank))
        self.register_buffer("scale", torch.ones(rank))
        self.sides = [config.image_px // 2]
        while self.sides[-1] > _BOTTOM_PX:
            self.sides.append(self.sides[-1] // 2)
        channels = [config.width] + [config.deep] * (len(self.sides) - 1)
        finest, own = len(config.predicted(config.image_px)), [len(config.predicted(side)) for side in self.sides]
        self.first = nn.Conv2d(4 * (9 + finest) + own[0], channels[0], 3, padding=1)
        self.down = nn.ModuleList(
            nn.Conv2d(channels[i - 1] + own[i], channels[i], 3, padding=1) for i in range(1, len(channels))
        )
        self.blocks = nn.ModuleList(_Residual(width) for width in channels)
        upper = channels[:-1]
        self.up = nn.ModuleList(nn.Conv2d(channels[i + 1], width, 1) for i, width in enumerate(upper))
        self.merged = nn.ModuleList(_Residual(width) for width in upper)
        outputs = [own[i] + (4 * finest if i == 0 else 0) for i in range(len(upper))]
        self.noise = nn.ModuleList(
            nn.Conv2d(width, count, 3, padding=1) if count else nn.Identity()
            for width, count in zip(upper, outputs, strict=True)
        )
        self.hidden0 = nn.Linear(channels[-1] * _BOTTOM_PX**2 + rank, config.hidden)
        self.hidden1 = nn.Linear(config.hidden, config.hidden)
        self.along = nn.Linear(config.hidden, rank)
        self.row = nn.Linear(config.hidden, config.w_dim)
        self.offsets = nn.Linear(config.hidden, elements)
        for layer in (self.along, self.row, self.offsets, *self.noise):
            if not isinstance(layer, nn.Identity):
                nn.init.zeros_(layer.weight)
                nn.init.zeros_(layer.bias)

    def know(self, curvature: Curvature) -> None:
        """Take the generator's curvature, rounded as it will be saved."""
        self.basis.copy_(curvature.basis.half())
        self.scale.copy_(curvature.scale.half())

    def forward(
        self,
        photo: torch.Tensor,
        render: torch.Tensor,
        u: torch.Tensor,
        noise: Sequence[torch.Tensor],
        precision: str = "auto",
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """The next u [N,L,C] and noise maps [N,1,r,r], of zero mean and unit variance where they are predicted, after
        those that `render` was made of; photo and render [N,3,H,W] in [-1,1]. precision: of the convolutions."""
        with in_precision(precision, photo.device):
            bottom, changes = self._seen(photo, render, noise)
        maps = [level + changes[i] if i in changes else level for i, level in enumerate(noise)]
        maps = [standardised(level) if i in changes else level for i, level in enumerate(maps)]
        flat = u.flatten(1)
        x = _leaky(self.hidden0(torch.cat([_leaky(bottom.float().flatten(1)), flat @ self.basis], 1)))
        x = x + _leaky(self.hidden1(x))
        rows = self.row(x)[:, None] + self.offsets(x).unflatten(1, u.shape[1:])
        # Along the directions that the render answers to most: small steps, and coordinates of their own.
        step = (rows.flatten(1) @ self.basis) * (self.scale - 1) + 5 * self.scale * self.along(x)
        return u + rows + (step @ self.basis.T).view_as(u), maps

    def _seen(
        self, photo: torch.Tensor, render: torch.Tensor, noise: Sequence[torch.Tensor]
    ) -> tuple[torch.Tensor, dict[int, torch.Tensor]]:
        """The bottom of the U-Net and the change of each predicted noise map."""
        config, sides = self.config, self.sides
        finest = config.predicted(config.image_px)
        images = [photo, render.clamp(-1.5, 1.5), 3 * (photo - render).clamp(-1, 1), *(noise[i] for i in finest)]
        below = [noise[i] for i in config.predicted(sides[0])]
        x = torch.cat([F.pixel_unshuffle(torch.cat(images, 1), 2), *below], 1)
        x = self.blocks[0](self.first(x.contiguous(memory_format=torch.channels_last)))
        skips = [x]
        for side, down, block in zip(sides[1:], self.down, self.blocks[1:], strict=True):
            x = block(down(torch.cat([F.avg_pool2d(x, 2), *(noise[i] for i in config.predicted(side))], 1)))
            skips.append(x)
        bottom = x
        changes: dict[int, torch.Tensor] = {}
        for level in reversed(range(len(self.merged))):
            x = self.merged[level](skips[level] + F.interpolate(self.up[level](x), scale_factor=2))
            if isinstance(self.noise[level], nn.Identity):
                continue
            out = self.noise[level](_leaky(x)).float()
            own = config.predicted(sides[level])
            changes |= {index: out[:, i : i + 1] for i, index in enumerate(own)}
            if level == 0 and finest:
                fine = F.pixel_shuffle(out[:, len(own) :], 2)
                changes |= {index: fine[:, i : i + 1] for i, index in enumerate(finest)}
        return bottom, changes


class _Residual(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.conv0 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        with torch.no_grad():
            self.conv1.weight *= 0.1

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = x + self.conv1(_leaky(self.conv0(_leaky(x))))
        return y


def _leaky(x: torch.Tensor) -> torch.Tensor:
    return F.leaky_relu(x, 0.2)


def standardised(noise: torch.Tensor) -> torch.Tensor:
    """Noise maps [N,1,r,r] brought to zero mean and unit variance, as stage 0 keeps them."""
    noise = noise - noise.mean((1, 2, 3), keepdim=True)
    return noise * noise.square().mean((1, 2, 3), keepdim=True).clamp_min(1e-8).rsqrt()


def empty_start(encoder: Encoder, generator: Generator, count: int) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Where the passes begin: the mean latent [N,L,C] and, where noise maps are predicted, none."""
    config = encoder.config
    u = torch.zeros(count, config.num_ws, config.w_dim, device=generator.mapping.w_avg.device)
    predicted = [bool(config.predicted(side)) for side in config.maps]
    maps = [level.repeat(count, 1, 1, 1) for level in generator.noise_maps()]
    return u, [torch.zeros_like(level) if own else level for level, own in zip(maps, predicted, strict=True)]


@torch.no_grad()
def predict_start(
    encoder: Encoder, generator: Generator, prior: WPrior, photo: torch.Tensor, precision: str = "auto"
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """u [L,C] and noise maps [r,r] for a photo [3,H,W] of the generator's size; one at a time, so that its bits do
    not depend on others."""
    u, noise = empty_start(encoder, generator, 1)
    for _ in range(encoder.config.passes):
        render = synthesise(generator, prior.unwhiten(u), noise, precision)
        u, noise = encoder(photo[None], render, u, noise, precision)
    return u[0], [level[0, 0] for level in noise]


def encoder_digest(encoder: Encoder) -> str:
    """SHA-256 (hex) over all that shapes its predictions."""
    digest = hashlib.sha256(json.dumps(asdict(encoder.config), sort_keys=True).encode())
    for key, value in sorted(encoder.state_dict().items()):
        digest.update(key.encode())
        digest.update(value.detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
    return digest.hexdigest()


def save_encoder(path: Path, encoder: Encoder, generator_digest: str) -> None:
    """Write the weights in float16 with the digest of the generator that they are for; whole or not at all."""
    tensors = {key: value.detach().cpu().half().contiguous() for key, value in encoder.state_dict().items()}
    data = safetensors_bytes(
        tensors, {"kind": _KIND, "generator": generator_digest, "config": json.dumps(asdict(encoder.config))}
    )
    replace_file(path, lambda file: file.write(data))


def find_encoder(name: str, generator: Generator, generator_digest: str) -> Encoder | None:
    """The encoder that a build names: a file, "none", or "auto": the package's own where it is for this generator, else
    none. Raises InputError."""
    if name == "none":
        return None
    if name != "auto":
        return load_encoder(name, generator, generator_digest)
    if not EMBEDDED_WEIGHTS.is_file():
        return None
    encoder, trained_for = _read(EMBEDDED_WEIGHTS)
    return _fitting(EMBEDDED, encoder, generator) if trained_for == generator_digest else None


def load_encoder(source: str | Path, generator: Generator, generator_digest: str) -> Encoder:
    """The encoder of a file ("embedded": the package's own), in float32, evaluation mode, frozen, on the CPU.

    Raises InputError for a file that is no encoder, is damaged, or was trained for another generator.
    """
    encoder, trained_for = _read(EMBEDDED_WEIGHTS if str(source) == EMBEDDED else Path(source))
    if trained_for != generator_digest:
        raise InputError(
            f"{source}: this encoder is for generator {trained_for[:12]}, not {generator_digest[:12]}; "
            "train one with `datagen train-encoder`, or do without"
        )
    return _fitting(source, encoder, generator)


def _fitting(source: str | Path, encoder: Encoder, generator: Generator) -> Encoder:
    """The encoder, if its sizes are those of the generator; else InputError."""
    fitting, found = EncoderConfig.of(generator), encoder.config
    if (found.num_ws, found.w_dim, found.maps) != (fitting.num_ws, fitting.w_dim, fitting.maps):
        raise InputError(f"{source}: its latents do not fit the generator's; the file is damaged, train it again")
    return encoder


def _read(path: Path) -> tuple[Encoder, str]:
    if not path.is_file():
        raise InputError(f"{path}: there is no such file; train an encoder with `datagen train-encoder`")
    try:
        tensors, metadata = read_safetensors(path)
        if metadata.get("kind") != _KIND:
            raise InputError(
                f"{path}: is not a stage-0 encoder of this version; train one with `datagen train-encoder`"
            )
        config = TypeAdapter(EncoderConfig).validate_json(metadata.get("config", ""))
        with torch.device("meta"):  # whatever sizes the file claims, memory is that of its tensors
            encoder = Encoder(config)
        with decoding():
            encoder.load_state_dict({name: tensor.float() for name, tensor in tensors.items()}, assign=True)
    except (Damaged, ValidationError) as error:
        raise InputError(f"{path}: damaged ({one_line(error)}); train the encoder again") from error
    return encoder.eval().requires_grad_(False), metadata.get("generator", "")
