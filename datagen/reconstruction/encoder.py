"""An encoder that gives stage 0 its start: an aligned photo to whitened latents in one pass, a shared row plus one
offset per layer (pSp, Richardson et al. 2021; e4e, Tov et al. 2021)."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from stylepairs.datagen.durable import replace_file
from stylepairs.datagen.errors import InputError
from stylepairs.datagen.stylegan.generator import Generator

WEIGHTS = Path(__file__).resolve().parent.parent / "weights"
EMBEDDED = "embedded"
_KIND = "stylepairs stage-0 encoder"


@dataclass(frozen=True)
class EncoderConfig:
    """num_ws, w_dim: of the generator; input_px: the photo is brought to it; width: channels at half of input_px."""

    num_ws: int
    w_dim: int
    input_px: int = 64
    width: int = 24
    hidden: int = 160


class Encoder(nn.Module):
    """image [N,3,H,W] in [-1,1] -> u [N,num_ws,w_dim], whitened as `WPrior.whiten` does.

    The offsets start at zero, so that training begins with the same row for every layer.
    """

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.config = config
        stages = (config.input_px // 4).bit_length() - 1  # halved until 4 x 4
        channels = [3] + [config.width * min(2**i, 4) for i in range(stages)]
        blocks: list[nn.Module] = []
        for before, after in itertools.pairwise(channels):
            blocks += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.LeakyReLU(0.2), _Residual(after)]
        self.body = nn.Sequential(*blocks)
        self.hidden = nn.Linear(channels[-1] * 16, config.hidden)
        self.row = nn.Linear(config.hidden, config.w_dim)
        self.offsets = nn.Linear(config.hidden, config.num_ws * config.w_dim)
        nn.init.zeros_(self.offsets.weight)
        nn.init.zeros_(self.offsets.bias)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        size = (self.config.input_px, self.config.input_px)
        x = F.interpolate(image, size=size, mode="area") if image.shape[-2:] != size else image
        x = F.leaky_relu(self.hidden(self.body(x).flatten(1)), 0.2)
        row: torch.Tensor = self.row(x)[:, None]
        return row + self.offsets(x).unflatten(1, (self.config.num_ws, self.config.w_dim))


class _Residual(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.conv0 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.conv1.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = x + self.conv1(F.leaky_relu(self.conv0(x), 0.2))
        return y


@torch.no_grad()
def predict_starts(encoder: Encoder, images: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """u [L,C] for each image [3,H,W], one at a time, so that the bits do not depend on the others."""
    return [encoder(image[None])[0] for image in images]


def encoder_digest(encoder: Encoder) -> str:
    """SHA-256 (hex) over all that shapes its predictions."""
    digest = hashlib.sha256(repr(sorted(asdict(encoder.config).items())).encode())
    for key, value in sorted(encoder.state_dict().items()):
        digest.update(key.encode())
        digest.update(value.detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
    return digest.hexdigest()


def save_encoder(path: Path, encoder: Encoder, generator_digest: str) -> None:
    """Write the weights in float16 with the digest of the generator that they are for; whole or not at all."""
    from safetensors.torch import save

    tensors = {key: value.detach().cpu().half().contiguous() for key, value in encoder.state_dict().items()}
    config = {key: str(value) for key, value in asdict(encoder.config).items()}
    data = save(tensors, {"kind": _KIND, "generator": generator_digest} | config)
    replace_file(path, lambda file: file.write(data))


def load_encoder(source: str | Path, generator: Generator, generator_digest: str) -> Encoder:
    """The encoder of a file ("embedded": the package's own), in float32, evaluation mode, frozen, on the CPU.

    Raises InputError for a file that is no encoder, is damaged, or was trained for another generator.
    """
    encoder, trained_for = _read(WEIGHTS / "encoder.safetensors" if str(source) == EMBEDDED else Path(source))
    if trained_for != generator_digest:
        raise InputError(
            f"{source}: this encoder is for generator {trained_for[:12]}, not {generator_digest[:12]}; "
            "train one with `datagen train-encoder`, or do without"
        )
    if (encoder.config.num_ws, encoder.config.w_dim) != (generator.num_ws, generator.config.w_dim):
        raise InputError(f"{source}: its latents do not fit the generator's; the file is damaged, train it again")
    return encoder


def _read(path: Path) -> tuple[Encoder, str]:
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise InputError(f"{path}: there is no such file; train an encoder with `datagen train-encoder`")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118 - not a dict
        if metadata.get("kind") != _KIND:
            raise InputError(f"{path}: is not a stage-0 encoder; train one with `datagen train-encoder`")
        config = {key: int(metadata[key]) for key in EncoderConfig.__dataclass_fields__}
        encoder = Encoder(EncoderConfig(**config))
        encoder.load_state_dict(tensors)
    except (SafetensorError, KeyError, ValueError, RuntimeError, OSError) as error:
        raise InputError(f"{path}: damaged ({' '.join(str(error).split())[:120]}); train the encoder again") from error
    return encoder.eval().requires_grad_(False), metadata["generator"]
