"""Stage 0 by number of steps: from the mean face, from an encoder's start, and with its latents preconditioned.

    python benchmarks/encoder_report.py PORTRAITS --out DIR [--encoder FILE] [--limit 10] [--docs docs]

"encoder": starts that `datagen train-encoder` wrote a network for. "preconditioned": from the mean face, every latent
gradient scaled along the directions to which the generator's renders answer most (an averaged Gauss-Newton matrix from
random probes of its own samples, without any portrait), with one step length per portrait in place of Adam's
elementwise ones. It is measured here only; the package does not invert so. Runs that DIR/encoder_steps.json holds are
not made again. Figures are of the final render in float32 from the stored float16 latents, medians over the portraits.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from stylepairs.datagen.perceptual import Perceptual, load_perceptual, perceptual_distance
from stylepairs.datagen.portraits.folders import load_portraits
from stylepairs.datagen.portraits.portrait import Portrait
from stylepairs.datagen.reconstruction.encoder import load_encoder, predict_starts
from stylepairs.datagen.reconstruction.encoder_training import draw_samples
from stylepairs.datagen.reconstruction.inversion import features_of, invert, stored_features
from stylepairs.datagen.reconstruction.objective import noise_autocorrelation, prior_norm, psnr, pyramid_l1, row_spread
from stylepairs.datagen.reconstruction.prior import WPrior
from stylepairs.datagen.reconstruction.rendering import half, render, synthesise, use_channels_last
from stylepairs.datagen.reconstruction.settings import InversionSettings
from stylepairs.datagen.stylegan.checkpoints import generator_digest, load_generator
from stylepairs.datagen.stylegan.generator import Generator

STEPS = (17, 34, 68, 120, 170)
DAMPING = 1e-3  # of the largest eigenvalue: below it, directions are scaled alike
RANK = 160
STEP, NOISE_STEP, MOMENTUM, DECAY = 0.4, 0.6, 0.8, 0.4


@dataclass(frozen=True)
class Setting:
    """What every run shares."""

    generator: Generator
    perceptual: Perceptual
    prior: WPrior
    portraits: list[Portrait]


@dataclass(frozen=True)
class Curvature:
    """basis [L*C,K]: directions of whitened latents that renders answer to; scale [K] <= 1, 1 for all others."""

    basis: torch.Tensor
    scale: torch.Tensor

    def scaled(self, x: torch.Tensor) -> torch.Tensor:
        """x [N,L,C] with its components along the basis scaled."""
        flat = x.flatten(1)
        return (flat + (flat @ self.basis * (self.scale - 1)) @ self.basis.T).view_as(x)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("portraits", type=Path, help="a folder that `datagen prepare` wrote, none of it trained on")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--generator", default="embedded")
    parser.add_argument("--encoder", type=Path, help="what `datagen train-encoder` wrote for this generator")
    parser.add_argument("--limit", type=int, default=10, help="evenly spaced portraits, by name")
    parser.add_argument("--steps", type=int, nargs="+", default=STEPS)
    parser.add_argument("--probes", type=int, default=3200, help="gradients that the Gauss-Newton matrix is made of")
    parser.add_argument("--docs", type=Path, help="also write images/encoder_steps.png there")
    options = parser.parse_args()
    torch.set_num_threads(1)
    generator, perceptual = load_generator(options.generator), load_perceptual()
    use_channels_last(generator)
    setting = Setting(generator, perceptual, WPrior.fit(generator), chosen(generator, options.portraits, options.limit))
    runs: dict[str, Callable[[int], list[dict[str, float]]]] = {"mean face": lambda steps: adam(setting, steps, None)}
    starts: list[torch.Tensor] | None = None
    if options.encoder is not None:
        encoder = load_encoder(options.encoder, generator, generator_digest(generator))
        starts = predict_starts(encoder, [portrait.image for portrait in setting.portraits])
        runs["encoder"] = lambda steps: adam(setting, steps, starts)
    options.out.mkdir(parents=True, exist_ok=True)
    if options.probes:
        curvature = cached_curvature(setting, options.probes, options.out / "curvature.pt")
        runs["preconditioned"] = lambda steps: preconditioned(setting, steps, curvature)
        if starts is not None:
            runs["encoder, preconditioned"] = lambda steps: preconditioned(setting, steps, curvature, starts)
    rows = measured(runs, options.steps, options.out / "encoder_steps.json")
    if options.docs is not None:
        plot(rows, options.docs / "images" / "encoder_steps.png")


def chosen(generator: Generator, folder: Path, limit: int) -> list[Portrait]:
    files = load_portraits(folder)
    files = files[:: max(1, len(files) // limit)][:limit]
    return [file.load().resized(generator.config.img_resolution) for file in files]


def measured(runs, steps, path: Path) -> dict[str, dict[str, float]]:
    """{"method, steps": medians}, printed and kept as they come; what `path` holds already is kept."""
    rows: dict[str, dict[str, float]] = json.loads(path.read_text()) if path.exists() else {}
    for count in steps:
        for name, run in runs.items():
            key = f"{name}, {count}"
            if key not in rows:
                begun = time.process_time()
                found = run(count)
                seconds = (time.process_time() - begun) / len(found)
                rows[key] = {name: statistics.median(one[name] for one in found) for name in found[0]}
                rows[key] |= {"cpu_seconds": seconds, "portraits": len(found)}
                path.write_text(json.dumps(rows, indent=1))
            row = rows[key]
            figures = f"{row['psnr']:6.2f} dB  {row['perceptual']:.3f}  prior {row['prior_distance']:.2f}"
            print(f"{key:24} {figures}  {row['cpu_seconds']:.2f} s", flush=True)
    return rows


def adam(setting: Setting, steps: int, starts: list[torch.Tensor] | None) -> list[dict[str, float]]:
    """Stage 0 as the package does it; rates and schedule tuned for few steps, the defaults from 120 on."""
    few = steps < 120
    decay = round(steps * (0.4 if few else 50 / 170))
    noise_rate = 0.3 if steps < 50 else 0.2
    rates = {"learning_rate": 0.3, "noise_learning_rate": noise_rate, "warmup_steps": 3} if few else {}
    settings = InversionSettings.model_validate({"steps": steps - decay, "decay_steps": decay} | rates)
    found = invert(setting.generator, setting.perceptual, setting.portraits, settings, setting.prior, starts=starts)
    distance = f"perceptual_{setting.perceptual.name}"
    return [
        {"psnr": x.figures["psnr"], "perceptual": x.figures[distance], "prior_distance": x.figures["prior_distance"]}
        for x in found
    ]


def preconditioned(
    setting: Setting, steps: int, curvature: Curvature, starts: list[torch.Tensor] | None = None
) -> list[dict[str, float]]:
    """The same objective by momentum on preconditioned gradients, each portrait's and each noise map's brought to unit
    size."""
    settings, generator = InversionSettings(), setting.generator
    mean = torch.zeros(generator.num_ws, generator.config.w_dim)
    begins = [mean] * len(setting.portraits) if starts is None else starts
    figures = []
    for start in range(0, len(begins), settings.batch):
        part = slice(start, start + settings.batch)
        figures += _descend(setting, setting.portraits[part], begins[part], settings, steps, curvature)
    return figures


def _descend(setting, portraits, begins, settings, steps, curvature) -> list[dict[str, float]]:
    generator, prior = setting.generator, setting.prior
    photo = torch.stack([portrait.image for portrait in portraits])
    stored = [features_of(setting.perceptual, image) for image in photo]
    wanted = stored_features({key: torch.stack([one[key] for one in stored]) for key in stored[0]})
    u = torch.stack(begins)
    noise = [level.repeat(len(photo), 1, 1, 1) for level in generator.noise_maps()]
    momentum = [torch.zeros_like(x) for x in (u, *noise)]
    for step in range(steps):
        u, *noise = (x.detach().requires_grad_() for x in (u, *noise))
        image = synthesise(generator, prior.unwhiten(u), noise, settings.precision)
        loss = stage0_loss(setting.perceptual, image, photo, wanted, u, noise, settings)
        gradients = torch.autograd.grad(loss.sum(), [u, *noise])
        with torch.no_grad():
            rate = _rate(step / steps) * min(1, (step + 1) / 3) / (1 - MOMENTUM ** (step + 1))
            along = curvature.scaled(unit(curvature.scaled(gradients[0])))
            for place, new in enumerate([along, *(unit(x) for x in gradients[1:])]):
                momentum[place].lerp_(new, 1 - MOMENTUM)
            u = u - STEP * rate * momentum[0]
            noise = [whitened(x - NOISE_STEP * rate * m) for x, m in zip(noise, momentum[1:], strict=True)]
    ws = [half(w) for w in prior.unwhiten(u.detach())]
    images = torch.stack(render(generator, ws, [[half(x[i, 0]) for x in noise] for i in range(len(ws))], len(ws)))
    decibel = psnr(images, photo, torch.ones_like(photo[:, :1]))
    features = setting.perceptual.features
    with torch.no_grad():
        distance = perceptual_distance(features(images), features(photo))
    return [
        {"psnr": float(d), "perceptual": float(p), "prior_distance": float(prior.distance(w))}
        for d, p, w in zip(decibel, distance, ws, strict=True)
    ]


def _rate(done: float) -> float:
    """Share of the step at this share of the run: constant, then a cosine."""
    return (1 + math.cos(math.pi * max(0.0, (done - 1 + DECAY) / DECAY))) / 2


def stage0_loss(perceptual, image, photo, wanted, u, noise, settings: InversionSettings) -> torch.Tensor:
    """Stage 0's objective, [N]; wanted: the photos' guiding features."""
    pixels = pyramid_l1(image, photo, torch.ones_like(image[:, :1]))
    features = perceptual_distance(perceptual.guiding(image), wanted)
    pull = settings.prior_weight * prior_norm(u) + settings.row_weight * row_spread(u)
    pull = pull + settings.noise_weight * noise_autocorrelation(noise)
    return settings.pixel_weight * pixels + settings.perceptual_weight * features + pull


def cached_curvature(setting: Setting, probes: int, path: Path) -> Curvature:
    if not path.exists():
        found = fit_curvature(setting, probes)
        torch.save({"basis": found.basis, "scale": found.scale}, path)
    return Curvature(**torch.load(path, weights_only=True))


def fit_curvature(setting: Setting, probes: int, seed: int = 0, rank: int = RANK) -> Curvature:
    """E[J^T J] of pixels and features by the whitened latents: the mean outer product of J^T v for white noise v, over
    samples with some noise on their latents."""
    generator, prior = setting.generator, setting.prior
    draw = torch.Generator().manual_seed(seed)
    gradients = []
    for _ in range(-(-probes // 4)):
        _, u = draw_samples(generator, prior, 4, draw)
        u = (0.7 * u + 0.4 * torch.randn(u.shape, generator=draw)).requires_grad_()
        image = synthesise(generator, prior.unwhiten(u), generator.noise_maps(), "auto")
        answer = torch.zeros(())
        for level in (image, *(torch.nn.functional.avg_pool2d(image, size) for size in (2, 4))):
            answer = answer + (level * torch.randn(level.shape, generator=draw)).sum() / level[0].numel() ** 0.5 / 3
        for level in setting.perceptual.guiding(image):
            answer = (
                answer + 0.8 * (level * torch.randn(level.shape, generator=draw)).sum() / level[0, 0].numel() ** 0.5
            )
        gradients.append(torch.autograd.grad(answer, u)[0].flatten(1))
    stacked = torch.cat(gradients).double()
    values, vectors = torch.linalg.eigh(stacked.T @ stacked / len(stacked))
    values, vectors = values.flip(0)[:rank] / values[-1], vectors.flip(1)[:, :rank]
    return Curvature(vectors.float(), (DAMPING / (values + DAMPING)).sqrt().float())


def unit(x: torch.Tensor) -> torch.Tensor:
    """x [N,...], each brought to root mean square 1."""
    return x * (x.square().flatten(1).mean(1) + 1e-20).rsqrt().view(-1, *[1] * (x.ndim - 1))


def whitened(noise: torch.Tensor) -> torch.Tensor:
    """Noise maps [N,1,r,r] back to zero mean and unit variance, as stage 0 keeps them."""
    return unit(noise - noise.mean((1, 2, 3), keepdim=True))


def plot(rows: dict[str, dict[str, float]], path: Path) -> None:
    """Quality against steps, one line per method; needs matplotlib (the bench extra)."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    labels = {"psnr": "PSNR, dB", "perceptual": "perceptual distance", "prior_distance": "prior distance"}
    lines: dict[str, list[tuple[int, dict[str, float]]]] = {}
    for key, row in rows.items():
        method, _, count = key.rpartition(", ")
        lines.setdefault(method, []).append((int(count), row))
    figure, axes = pyplot.subplots(1, 3, figsize=(10, 3.2), constrained_layout=True)
    for axis, (name, label) in zip(axes, labels.items(), strict=True):
        for method, points in lines.items():
            points.sort(key=lambda point: point[0])
            axis.plot([count for count, _ in points], [row[name] for _, row in points], "o-", label=method)
        ticks = sorted({count for points in lines.values() for count, _ in points})
        axis.set(xscale="log", xlabel="steps of stage 0", ylabel=label)
        axis.set_xticks(ticks, [str(count) for count in ticks])
        axis.minorticks_off()
    axes[0].legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80)


if __name__ == "__main__":
    main()
