"""Trains the stage-0 encoder on the generator's own samples, whose latents are known, then also on portraits, which it
must render again (e4e, Tov et al. 2021, with the whitened prior in place of its latent discriminator)."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from stylepairs.datagen.durable import make_folder, replace_file
from stylepairs.datagen.errors import InputError
from stylepairs.datagen.perceptual import Perceptual, load_perceptual, perceptual_distance
from stylepairs.datagen.portraits.folders import load_portraits
from stylepairs.datagen.reconstruction.encoder import Encoder, EncoderConfig, save_encoder
from stylepairs.datagen.reconstruction.objective import prior_norm, pyramid_l1, row_spread
from stylepairs.datagen.reconstruction.prior import WPrior
from stylepairs.datagen.reconstruction.rendering import use_channels_last
from stylepairs.datagen.stylegan.checkpoints import generator_digest, load_generator
from stylepairs.datagen.stylegan.generator import Generator


@dataclass(frozen=True)
class EncoderTraining:
    """Steps on samples alone, then on samples and portraits; weights as in stage 0, whose start is sought."""

    sample_steps: int = 2000
    portrait_steps: int = 2000
    sample_batch: int = 16
    portrait_batch: int = 4
    learning_rate: float = 1e-3
    perceptual_weight: float = 0.6
    prior_weight: float = 0.015
    row_weight: float = 0.004
    latent_weight: float = 0.3  # of the samples' latents while portraits are trained on
    seed: int = 0
    checkpoint_every: int = 200

    @property
    def steps(self) -> int:
        return self.sample_steps + self.portrait_steps


Report = Callable[[int, float], None]


def train_to_file(
    generator: str,
    portraits: Path,
    out: Path,
    training: EncoderTraining,
    perceptual: str = "auto",
    report: Report = lambda step, loss: None,
) -> None:
    """Train an encoder for a checkpoint (or "embedded") on a prepared folder, and write it to `out`.

    The checkpoint lies beside `out` until the encoder is written. Raises InputError.
    """
    network = load_generator(generator)
    photos = load_photos(portraits, network.config.img_resolution)
    features = load_perceptual(perceptual)
    digest = generator_digest(network)
    make_folder(out.parent)
    checkpoint = out.with_name(f"{out.name}.checkpoint")
    identity = f"generator {digest}, portraits {photos_digest(photos)}, perceptual {features.name}"
    prior = WPrior.fit(network)
    encoder = train_encoder(network, features, prior, photos, training, checkpoint, identity, report)
    save_encoder(out, encoder, digest)
    checkpoint.unlink(missing_ok=True)


def train_encoder(
    generator: Generator,
    perceptual: Perceptual,
    prior: WPrior,
    portraits: torch.Tensor,
    training: EncoderTraining,
    checkpoint: Path,
    identity: str,
    report: Report = lambda step, loss: None,
) -> Encoder:
    """Train to the end, from `checkpoint` where it is there; report(step, loss) after each step.

    portraits uint8 [M,3,R,R] at the generator's resolution. identity: of generator and portraits; a checkpoint of
    another one, or of other settings, raises InputError. A step's draws follow from (seed, step) alone, so a resumed
    run ends as an unbroken one.
    """
    torch.manual_seed(training.seed)
    encoder = Encoder(EncoderConfig(generator.num_ws, generator.config.w_dim))
    use_channels_last(generator)
    optimizer = torch.optim.Adam(encoder.parameters(), training.learning_rate, betas=(0.9, 0.99))
    whole = {"identity": identity, "training": asdict(training), "encoder": asdict(encoder.config)}
    first = _resume(checkpoint, encoder, optimizer, whole) if checkpoint.exists() else 0
    for step in range(first, training.steps):
        for group in optimizer.param_groups:
            group["lr"] = training.learning_rate * _rate(step, training.steps)
        loss = _loss(encoder, generator, perceptual, prior, portraits, training, step)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(encoder.parameters(), 1.0)
        optimizer.step()
        report(step + 1, float(loss.detach()))
        if (step + 1) % training.checkpoint_every == 0 or step + 1 == training.steps:
            _save(checkpoint, encoder, optimizer, whole, step + 1)
    return encoder.eval().requires_grad_(False)


def load_photos(folder: Path, size_px: int) -> torch.Tensor:
    """The portraits of a prepared folder as uint8 [M,3,size_px,size_px]. Raises InputError where there is none."""
    return torch.stack([_as_bytes(file.load().resized(size_px).image) for file in load_portraits(folder)])


def photos_digest(photos: torch.Tensor) -> str:
    """SHA-256 (hex) of the pictures that an encoder is trained on."""
    return hashlib.sha256(f"{list(photos.shape)}".encode() + photos.contiguous().numpy().tobytes()).hexdigest()


def _as_bytes(image: torch.Tensor) -> torch.Tensor:
    return ((image + 1) * 127.5).round().to(torch.uint8)


def _loss(
    encoder: Encoder,
    generator: Generator,
    perceptual: Perceptual,
    prior: WPrior,
    portraits: torch.Tensor,
    training: EncoderTraining,
    step: int,
) -> torch.Tensor:
    draw = torch.Generator().manual_seed(training.seed * 1_000_003 + step)
    image, u = draw_samples(generator, prior, training.sample_batch, draw)
    latent = (encoder(photometric(image, draw)) - u).square().mean()
    if step < training.sample_steps:
        return latent
    rows = torch.randint(len(portraits), (training.portrait_batch,), generator=draw)
    photo = portraits[rows].float() / 127.5 - 1
    flip = torch.rand(len(rows), generator=draw) < 0.5
    photo = torch.where(flip.view(-1, 1, 1, 1), photo.flip(3), photo)
    found = encoder(photo)
    render = generator.synthesis(prior.unwhiten(found), noise_mode="const")
    features = perceptual_distance(perceptual.features(render), perceptual.features(photo))
    likeness = pyramid_l1(render, photo, torch.ones_like(photo[:, :1])) + training.perceptual_weight * features
    pull = training.prior_weight * prior_norm(found) + training.row_weight * row_spread(found)
    return (likeness + pull).mean() + training.latent_weight * latent


@torch.no_grad()
def draw_samples(
    generator: Generator, prior: WPrior, count: int, draw: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Images [N,3,R,R] and their whitened latents [N,L,C]: spread from mean to full, half of them style-mixed, with
    fresh noise."""
    config = generator.config
    w = generator.mapping.to_w(torch.randn(2 * count, config.z_dim, generator=draw))
    spread = 0.5 + 0.5 * torch.rand(2 * count, 1, generator=draw)
    one, other = (prior.whiten(w) * spread)[:, None].expand(-1, generator.num_ws, -1).split(count)
    crossover = torch.randint(1, 2 * generator.num_ws, (count, 1, 1), generator=draw)  # half beyond the last row
    u = torch.where(torch.arange(generator.num_ws).view(1, -1, 1) < crossover, one, other)
    noise = [torch.randn(count, *level.shape[1:], generator=draw) for level in generator.noise_maps()]
    return generator.synthesis(prior.unwhiten(u), noise).clamp(-1, 1), u


def photometric(image: torch.Tensor, draw: torch.Generator) -> torch.Tensor:
    """Slight gain, offset and grain per image [N,3,H,W]: photos are never quite the generator's own."""
    gain, offset = torch.rand(2, len(image), 1, 1, 1, generator=draw)
    grain = torch.randn(image.shape, generator=draw)
    return image * (0.95 + 0.1 * gain) + 0.06 * (offset - 0.5) + 0.02 * grain


def _rate(step: int, steps: int) -> float:
    """Share of the learning rate: a short linear warm-up, cosine decay to a hundredth."""
    return min(1.0, (step + 1) / 50) * (0.01 + 0.99 * (1 + math.cos(math.pi * step / steps)) / 2)


def _save(path: Path, encoder: Encoder, optimizer: torch.optim.Adam, whole: dict[str, Any], step: int) -> None:
    from safetensors.torch import save

    tensors = {f"encoder/{key}": value for key, value in encoder.state_dict().items()}
    for index, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"adam/{index}/{key}": torch.as_tensor(value) for key, value in moments.items()}
    data = save({key: value.contiguous() for key, value in tensors.items()}, {"run": _text(whole), "step": str(step)})
    replace_file(path, lambda file: file.write(data))


def _resume(path: Path, encoder: Encoder, optimizer: torch.optim.Adam, whole: dict[str, Any]) -> int:
    """Load a checkpoint of this very run and return how many steps it has behind it. Raises InputError."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        run, step = metadata["run"], int(metadata["step"])
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        raise InputError(f"{path}: cannot be continued ({error}); remove it to start over") from error
    if run != _text(whole):
        raise InputError(
            f"{path}: is of another run (generator, portraits or settings differ); remove it to start over"
        )
    parts = {key.partition("/")[2]: value for key, value in tensors.items() if key.startswith("encoder/")}
    encoder.load_state_dict(parts)
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("adam/"):
            _, index, name = key.split("/")
            state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return step


def _text(whole: dict[str, Any]) -> str:
    return json.dumps(whole, sort_keys=True)
