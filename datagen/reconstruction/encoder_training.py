"""Trains the stage-0 encoder: each of its passes must bring the render nearer to portraits, and to the generator's own
samples, by stage 0's own objective."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from pydantic import NonNegativeInt, TypeAdapter

from stylepairs.datagen.images.perceptual import Perceptual, load_perceptual
from stylepairs.datagen.portraits.folders import load_portraits
from stylepairs.datagen.reconstruction.curvature import fit_curvature
from stylepairs.datagen.reconstruction.encoder import (
    Encoder,
    EncoderConfig,
    empty_start,
    encoder_digest,
    load_encoder,
    save_encoder,
)
from stylepairs.datagen.reconstruction.inversion import inversion_loss
from stylepairs.datagen.reconstruction.prior import WPrior
from stylepairs.datagen.reconstruction.rendering import synthesise, use_channels_last
from stylepairs.datagen.reconstruction.settings import InversionSettings
from stylepairs.datagen.shell.decode import Damaged, read_safetensors
from stylepairs.datagen.shell.durable import make_folder, replace_file, safetensors_bytes
from stylepairs.datagen.shell.errors import InputError
from stylepairs.datagen.stylegan.checkpoints import generator_digest, load_generator
from stylepairs.datagen.stylegan.generator import Generator

# Stage 0's weights, but for the prior: a prediction leans on it more than 170 steps do.
OBJECTIVE = InversionSettings.model_validate({"prior_weight": 0.025})
# A network would rather put a face's edges into a few huge values of a map than spread them; edits then fight these.
TAILS_WEIGHT = 0.01
MOST_KURTOSIS = 4.0  # 3 is Gaussian; stage 0 from the mean face ends at 4

_STEP = TypeAdapter(NonNegativeInt)


@dataclass(frozen=True)
class EncoderTraining:
    """steps of Adam, each of so many portraits and samples; probes: gradients that the curvature is fitted to."""

    steps: int = 9000
    portraits: int = 3
    samples: int = 1
    learning_rate: float = 1e-3
    probes: int = 3200
    seed: int = 0
    checkpoint_every: int = 200


Report = Callable[[int, float], None]


@dataclass(frozen=True)
class Checkpoint:
    """A file that holds a run until it ends; identity: of generator and portraits, without which it does not go on."""

    path: Path
    identity: str

    def write(self, encoder: Encoder, optimizer: torch.optim.Adam, training: EncoderTraining, step: int) -> None:
        """Replace it by the run after `step` steps."""
        tensors = {f"encoder/{key}": value for key, value in encoder.state_dict().items()}
        for index, moments in optimizer.state_dict()["state"].items():
            tensors |= {f"adam/{index}/{key}": torch.as_tensor(value) for key, value in moments.items()}
        metadata = {"run": self._run(encoder, training), "step": str(step)}
        data = safetensors_bytes({key: value.contiguous() for key, value in tensors.items()}, metadata)
        replace_file(self.path, lambda file: file.write(data))

    def resume(self, encoder: Encoder, optimizer: torch.optim.Adam, training: EncoderTraining) -> int:
        """Load this very run and return how many steps it has behind it. Raises InputError."""
        try:
            tensors, metadata = read_safetensors(self.path)
            run, step = metadata["run"], int(metadata["step"])
        except (Damaged, KeyError, ValueError) as error:
            raise InputError(f"{self.path}: cannot be continued ({error}); remove it to start over") from error
        if run != self._run(encoder, training):
            raise InputError(
                f"{self.path}: is of another run (generator, portraits or settings differ); remove it to start over"
            )
        moments: dict[int, dict[str, torch.Tensor]] = {}
        weights = {}
        for name, value in tensors.items():
            part, _, key = name.partition("/")
            if part == "encoder":
                weights[key] = value
            else:
                index, _, key = key.partition("/")
                moments.setdefault(int(index), {})[key] = value
        encoder.load_state_dict(weights)
        optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
        return step

    def _run(self, encoder: Encoder, training: EncoderTraining) -> str:
        whole = {"identity": self.identity, "training": asdict(training), "encoder": asdict(encoder.config)}
        return json.dumps(whole, sort_keys=True)


def train_to_file(
    generator: str,
    portraits: Path,
    out: Path,
    training: EncoderTraining,
    perceptual: str = "auto",
    device: str = "cpu",
    begin: Path | None = None,
    report: Report = lambda step, loss: None,
) -> None:
    """Train an encoder for a checkpoint (or "embedded") on a prepared folder, and write it to `out`.

    begin: an encoder of the same generator to go on from, in place of random weights. The checkpoint lies beside `out`
    until the encoder is written. Raises InputError.
    """
    network = load_generator(generator)
    photos = load_photos(portraits, network.config.img_resolution)
    digest = generator_digest(network)
    make_folder(out.parent)
    earlier = None if begin is None else load_encoder(begin, network, digest)
    prior = WPrior.fit(network).to(torch.device(device))
    features = load_perceptual(perceptual).to(device)
    identity = f"generator {digest}, portraits {photos_digest(photos)}, perceptual {features.name}"
    if earlier is not None:
        identity += f", from encoder {encoder_digest(earlier)}"
    checkpoint = Checkpoint(out.with_name(f"{out.name}.checkpoint"), identity)
    network.to(device)
    save_encoder(out, train_encoder(network, features, prior, photos, training, checkpoint, earlier, report), digest)
    checkpoint.path.unlink(missing_ok=True)


def train_encoder(
    generator: Generator,
    perceptual: Perceptual,
    prior: WPrior,
    portraits: torch.Tensor,
    training: EncoderTraining,
    checkpoint: Checkpoint,
    earlier: Encoder | None = None,
    report: Report = lambda step, loss: None,
) -> Encoder:
    """Train to the end, from `checkpoint` where it is there, else from `earlier`; report(step, loss) after each step.

    portraits uint8 [M,3,R,R] at the generator's resolution. A checkpoint of another identity, or of other settings,
    raises InputError. A step's draws follow from (seed, step) alone, so a resumed run ends as an unbroken one.
    """
    use_channels_last(generator)
    begun = checkpoint.path.exists()
    torch.manual_seed(training.seed)
    encoder = Encoder(EncoderConfig.of(generator))
    if earlier is not None:
        encoder.load_state_dict(earlier.state_dict())
    elif not begun:
        rank = encoder.config.rank
        encoder.know(fit_curvature(generator, perceptual, prior, rank, training.probes, training.seed))
    encoder.to(generator.mapping.w_avg.device)
    optimizer = torch.optim.Adam(encoder.parameters(), training.learning_rate, betas=(0.9, 0.99))
    first = checkpoint.resume(encoder, optimizer, training) if begun else 0
    for step in range(first, training.steps):
        optimizer.param_groups[0]["lr"] = training.learning_rate * _rate(step, training.steps)
        optimizer.zero_grad()
        photo = _photos(generator, prior, portraits, training, step)
        loss = _accumulate(encoder, generator, perceptual, prior, photo)
        torch.nn.utils.clip_grad_norm_(encoder.parameters(), 1.0)
        optimizer.step()
        report(step + 1, loss)
        if (step + 1) % training.checkpoint_every == 0 or step + 1 == training.steps:
            checkpoint.write(encoder, optimizer, training, step + 1)
    return encoder.eval().requires_grad_(False)


def load_photos(folder: Path, size_px: int) -> torch.Tensor:
    """The portraits of a prepared folder as uint8 [M,3,size_px,size_px]. Raises InputError where there is none."""
    images = (file.load().resized(size_px).image for file in load_portraits(folder))
    return torch.stack([((image + 1) * 127.5).round().to(torch.uint8) for image in images])


def photos_digest(photos: torch.Tensor) -> str:
    """SHA-256 (hex) of the pictures that an encoder is trained on."""
    return hashlib.sha256(f"{list(photos.shape)}".encode() + photos.contiguous().numpy().tobytes()).hexdigest()


def _photos(
    generator: Generator, prior: WPrior, portraits: torch.Tensor, training: EncoderTraining, step: int
) -> torch.Tensor:
    """What a step learns from: portraits, varied a little, and samples [N,3,R,R]."""
    draw = torch.Generator().manual_seed(training.seed * 1_000_003 + step)
    rows = torch.randint(len(portraits), (training.portraits,), generator=draw)
    photo = varied(portraits[rows].float() / 127.5 - 1, draw).to(generator.mapping.w_avg.device)
    if not training.samples:
        return photo
    return torch.cat([photo, draw_samples(generator, prior, training.samples, draw)])


def _accumulate(
    encoder: Encoder, generator: Generator, perceptual: Perceptual, prior: WPrior, photo: torch.Tensor
) -> float:
    """Add the gradients of each pass, each by itself, to the encoder's; their mean loss."""
    with torch.no_grad():
        wanted = perceptual.guiding(photo)
        u, noise = empty_start(encoder, generator, len(photo))
        render = synthesise(generator, prior.unwhiten(u), noise, "auto")
    total = 0.0
    for _ in range(encoder.config.passes):
        u, noise = encoder(photo, render, u, noise)
        render = synthesise(generator, prior.unwhiten(u), noise, "auto")
        loss = inversion_loss(perceptual, render, photo, wanted, u, noise, OBJECTIVE).mean()
        loss = loss + TAILS_WEIGHT * noise_tails(noise).mean()
        loss.backward()
        total += float(loss.detach()) / encoder.config.passes
        u, noise, render = u.detach(), [level.detach() for level in noise], render.detach()
    return total


def noise_tails(noise: Sequence[torch.Tensor]) -> torch.Tensor:
    """How far the kurtosis of each map [N,1,r,r] of unit variance exceeds what noise has, summed over the maps, [N]."""
    return torch.stack([F.relu(level.pow(4).mean((1, 2, 3)) - MOST_KURTOSIS) for level in noise]).sum(0)


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


def _rate(step: int, steps: int) -> float:
    """Share of the learning rate: a short linear warm-up, cosine decay to a fiftieth."""
    warm = min(1.0, (step + 1) / min(50, -(-steps // 10)))
    return warm * (0.02 + 0.98 * (1 + math.cos(math.pi * step / steps)) / 2)
