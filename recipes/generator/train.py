"""Train the embedded portrait StyleGAN2 (Karras et al. 2020) on a few hundred aligned portraits, growing in resolution.

    python recipes/generator/train.py --portraits DIR --out RUN --stages 64:200000 128:400000
    accelerate launch recipes/generator/train.py ...        (several GPUs)

DIR holds aligned/NAME.png and hair/NAME.png as `datagen prepare` writes them. RUN keeps the state (resumed when it
exists), the log, sample sheets and `generator_ema.safetensors`. Needs torch, accelerate, numpy, safetensors and
Pillow alone. All images are kept in memory (48 KB each at 128 px). Non-saturating loss, lazy R1, EMA, style mixing,
adaptive augmentation.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from augment import adapt, augment
from data import Portraits
from PIL import Image
from state import R1_EVERY, TrainingState, build_state, export_ema, load_state, save_state, start_stage

from stylepairs.datagen.stylegan.generator import Generator

MIXING_SHARE = 0.9
W_AVG_BETA = 0.998
EMA_RAMPUP = 0.05


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--portraits", type=Path, required=True, help="folder with aligned/ and hair/ (training split only)"
    )
    parser.add_argument("--validation", type=Path, help="folder of the same form, for the logged figure")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--start-from", type=Path, help="folder with generator, generator_ema, discriminator .safetensors"
    )
    parser.add_argument(
        "--stages", nargs="+", default=["32:100000", "64:300000", "128:600000"], help="RESOLUTION:UNTIL_IMAGES"
    )
    parser.add_argument("--channel-base", type=int, default=2048)
    parser.add_argument("--channel-max", type=int, default=128)
    parser.add_argument("--latent-dim", type=int, default=256, help="both z and w")
    parser.add_argument("--mapping-layers", type=int, default=2)
    parser.add_argument("--batch", type=int, default=16, help="images per step, all processes together")
    parser.add_argument("--learning-rate", type=float, default=0.002)
    parser.add_argument("--r1-gamma", type=float, default=0.2, help="about 0.0002 * resolution^2 / batch at 128 px")
    parser.add_argument("--ema-images", type=float, default=10_000, help="half-life of the weight average, in images")
    parser.add_argument("--recolour-share", type=float, default=0.5, help="share of real images with recoloured hair")
    parser.add_argument("--precision", choices=["no", "bf16"], default="bf16")
    parser.add_argument("--save-every", type=int, default=4_000, help="images between saved states")
    parser.add_argument("--sheet-every", type=int, default=10_000, help="images between sample sheets and figures")
    parser.add_argument("--minutes", type=float, help="stop (with the state saved) after so many minutes")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    accelerator = Accelerator(mixed_precision=args.precision, cpu=not torch.cuda.is_available())
    if args.batch % accelerator.num_processes:
        raise SystemExit(f"--batch {args.batch}: must be a multiple of the {accelerator.num_processes} processes")
    args.out.mkdir(parents=True, exist_ok=True)
    stages = [(int(r), int(until)) for r, until in (stage.split(":") for stage in args.stages)]
    deadline = time.time() + 60 * args.minutes if args.minutes else float("inf")
    state = load_state(args.out, args.learning_rate) or build_state(args, stages[0][0])
    for resolution, until in stages:
        if state.images_seen >= until:
            continue
        if state.generator.config.img_resolution < resolution:
            state = start_stage(state, args, resolution)
        train_stage(state, args, until, deadline, accelerator)
        if time.time() > deadline:
            break


def train_stage(
    state: TrainingState, args: argparse.Namespace, until: int, deadline: float, accelerator: Accelerator
) -> None:
    """Train at one resolution until `until` images have been seen or the time is up."""
    resolution = state.generator.config.img_resolution
    data = Portraits(args.portraits, resolution)
    validation = Portraits(args.validation, resolution) if args.validation else None
    state.to(accelerator.device)
    players = accelerator.prepare(
        MixingGenerator(state.generator), state.discriminator, state.g_optimizer, state.d_optimizer
    )
    local_batch = args.batch // accelerator.num_processes
    started, started_at = time.time(), state.images_seen
    while state.images_seen < until and time.time() < deadline:
        # Randomness comes from progress alone, so a resumed run draws what an uninterrupted one would have drawn.
        draw = torch.Generator().manual_seed(hash((args.seed, state.images_seen, accelerator.process_index)) % 2**63)
        torch.manual_seed(int(torch.randint(2**62, (1,), generator=draw)))
        step = state.images_seen // args.batch
        real = data.batch(local_batch, args.recolour_share, draw).to(accelerator.device)
        g_loss = generator_step(players, state, args, local_batch, draw, accelerator)
        d_loss, sign = discriminator_step(players, state, args, real, draw, accelerator, with_r1=step % R1_EVERY == 0)
        if not math.isfinite(g_loss + d_loss):
            raise SystemExit(
                f"loss is not finite after {state.images_seen} images; resume with a lower --learning-rate"
            )
        update_ema(state, args)
        state.images_seen += args.batch
        state.augment_p = adapt(state.augment_p, accelerator.reduce(sign, "mean").item(), args.batch)
        if accelerator.is_main_process:
            report(state, args, until, g_loss, d_loss, started, started_at, validation)
    if accelerator.is_main_process:
        save_state(args.out, state)
        export_ema(args.out / "generator_ema.safetensors", state)


class MixingGenerator(torch.nn.Module):
    """Two codes per image, the second from a random layer on (style mixing); keeps the running mean latent."""

    def __init__(self, generator: Generator):
        super().__init__()
        self.generator = generator

    def forward(self, z: torch.Tensor, cutoff: torch.Tensor) -> torch.Tensor:
        """z [2,N,z_dim], cutoff [N] -> images [N,3,H,W]."""
        mapping = self.generator.mapping
        with torch.autocast(z.device.type, enabled=False):  # the mapping is small, and all layers hang on it
            w = mapping.to_w(z.flatten(0, 1)).unflatten(0, z.shape[:2])
        mapping.w_avg.copy_(w.detach().mean((0, 1)).lerp(mapping.w_avg, W_AVG_BETA))
        layers = torch.arange(self.generator.num_ws, device=z.device)
        ws = torch.where((layers[None] < cutoff[:, None])[..., None], w[0][:, None], w[1][:, None])
        image: torch.Tensor = self.generator.synthesis(ws, noise_mode="random")
        return image


def draw_latents(state: TrainingState, count: int, draw: torch.Generator, device: torch.device) -> tuple:
    config = state.generator.config
    z = torch.randn(2, count, config.z_dim, generator=draw)
    cutoff = torch.randint(1, config.num_ws, (count,), generator=draw)
    cutoff[torch.rand(count, generator=draw) > MIXING_SHARE] = config.num_ws
    return z.to(device), cutoff.to(device)


def generator_step(players, state, args, count, draw, accelerator) -> float:
    """Non-saturating loss (Goodfellow et al. 2014)."""
    mixing, discriminator, g_optimizer, _ = players
    discriminator.requires_grad_(False)
    with accelerator.autocast():
        fake = mixing(*draw_latents(state, count, draw, accelerator.device))
        logits = discriminator(augment(fake.float(), state.augment_p, draw))
    loss = F.softplus(-logits.float()).mean()
    g_optimizer.zero_grad()
    accelerator.backward(loss)
    g_optimizer.step()
    discriminator.requires_grad_(True)
    return loss.item()


def discriminator_step(players, state, args, real, draw, accelerator, with_r1) -> tuple[float, torch.Tensor]:
    """Logistic loss, and every R1_EVERY steps the gradient penalty on real images (Mescheder et al. 2018), lazily."""
    mixing, discriminator, _, d_optimizer = players
    with accelerator.autocast(), torch.no_grad():
        fake = mixing(*draw_latents(state, len(real), draw, accelerator.device)).float()
    real = real.requires_grad_(with_r1)
    with accelerator.autocast():
        fake_logits = discriminator(augment(fake, state.augment_p, draw)).float()
        real_logits = discriminator(augment(real, state.augment_p, draw)).float()
    loss = F.softplus(fake_logits).mean() + F.softplus(-real_logits).mean()
    total = loss
    if with_r1:
        (gradient,) = torch.autograd.grad(real_logits.sum(), real, create_graph=True)
        total = loss + gradient.square().sum((1, 2, 3)).mean() * (args.r1_gamma / 2 * R1_EVERY)
    d_optimizer.zero_grad()
    accelerator.backward(total)
    d_optimizer.step()
    return loss.item(), real_logits.detach().sign().mean()


@torch.no_grad()
def update_ema(state: TrainingState, args: argparse.Namespace) -> None:
    half_life = min(args.ema_images, max(state.images_seen * EMA_RAMPUP, 1))
    beta = 0.5 ** (args.batch / half_life)
    for average, value in zip(state.ema.parameters(), state.generator.parameters(), strict=True):
        average.lerp_(value, 1 - beta)
    for average, value in zip(state.ema.buffers(), state.generator.buffers(), strict=True):
        average.copy_(value)


def report(state, args, until, g_loss, d_loss, started, started_at, validation) -> None:
    """Log every 50 steps; save the state and draw a sheet when they are due."""
    seen = state.images_seen
    if seen // args.batch % 50 == 0:
        rate = (seen - started_at) / (time.time() - started)
        row = {"images": seen, "resolution": state.generator.config.img_resolution, "g_loss": round(g_loss, 4)}
        row |= {"d_loss": round(d_loss, 4), "augment_p": round(state.augment_p, 4), "images_per_second": round(rate, 2)}
        _append(args.out / "log.jsonl", row)
        print(f"{row}  {(until - seen) / rate / 60:.0f} min to go", flush=True)
    if seen % args.save_every < args.batch:
        save_state(args.out, state)
    if seen % args.sheet_every < args.batch:
        write_sheet(args.out / f"samples_{seen:07d}.png", state.ema)
        export_ema(args.out / "generator_ema.safetensors", state)
        if validation is not None:
            from figures import kernel_distance

            _append(args.out / "figures.jsonl", {"images": seen} | kernel_distance(state.ema, validation.images))


@torch.no_grad()
def write_sheet(path: Path, generator: Generator, rows: int = 4, columns: int = 8) -> None:
    """The same latents each time: the upper half untruncated, the lower half at truncation 0.7."""
    z = torch.randn(rows * columns // 2, generator.config.z_dim, generator=torch.Generator().manual_seed(1))
    z = z.to(generator.mapping.w_avg.device)
    images = torch.cat([generator(z), generator(z, truncation_psi=0.7)]).clamp(-1, 1).cpu()
    grid = images.reshape(rows, columns, *images.shape[1:]).permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1)
    Image.fromarray(((grid + 1) * 127.5).round().byte().numpy()).save(path)


def _append(path: Path, row: dict) -> None:
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
