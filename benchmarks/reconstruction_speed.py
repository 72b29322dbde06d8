"""Stage 0 beside NVIDIA's projector: the time in which each comes how near to a photo.

    python benchmarks/reconstruction_speed.py PORTRAITS --out DIR [--limit 8] [--docs docs/notes] [--threads 1]

Both methods see the same photos, generator, perceptual features, precision and batch. The projector runs as published
(1000 steps, in W from the mean latent) and in W+, as it is used on real photos; ours runs with fewer and fewer steps,
and from an encoder's start where the generator has one.
A batch of portraits goes through every run before the next batch does. Figures are of the final render in float32
from the stored float16 latents: PSNR and perceptual distance to the photo, distance from the latent prior.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent / "speed"))

import measure
import report
import torch
from baselines import projector
from pages import plotting

from stylepairs.datagen.encoders.files import find_encoder
from stylepairs.datagen.encoders.network import Encoder, predict_start
from stylepairs.datagen.images.files import to_uint8, write_png
from stylepairs.datagen.images.filters import psnr
from stylepairs.datagen.images.perceptual import Perceptual, load_perceptual, perceptual_distance
from stylepairs.datagen.portraits.folders import load_portraits
from stylepairs.datagen.portraits.portrait import Portrait
from stylepairs.datagen.reconstruction.inversion import invert
from stylepairs.datagen.reconstruction.prior import WPrior
from stylepairs.datagen.reconstruction.rendering import half, render
from stylepairs.datagen.reconstruction.settings import NEAR, InversionSettings, OptimiserSettings
from stylepairs.datagen.shell.errors import exit_on_bad_input
from stylepairs.datagen.stylegan.checkpoints import generator_digest, load_generator
from stylepairs.datagen.stylegan.generator import Generator
from stylepairs.kernels.memory import keep_freed_memory

PUBLISHED_STEPS = 1000
OURS_STEPS = (170, 85, 45, 30, 20, 14)
ENCODER_STEPS = (34, 17, 8)
PUBLISHED = "projector, W, {} steps"
IN_W_PLUS = "projector, W+, {} steps"
Latents = tuple[list[torch.Tensor], list[list[torch.Tensor]]]
Rows = dict[str, dict[str, float]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("portraits", type=Path, help="a folder that `datagen prepare` wrote")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--limit", type=int, default=8, help="evenly spaced portraits, by name")
    parser.add_argument("--generator", default="embedded")
    parser.add_argument("--encoder", default="auto", help="as in a recipe: auto, none or a file")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--projector-steps", type=int, default=PUBLISHED_STEPS)
    parser.add_argument("--docs", type=Path, help="also write images/stage0_speed.png there")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    generator, perceptual = load_generator(options.generator), load_perceptual()
    files = load_portraits(options.portraits)
    chosen = files[:: max(1, len(files) // options.limit)][: options.limit]
    portraits = [file.load().resized(generator.config.img_resolution) for file in chosen]
    prior = WPrior.fit(generator)
    runs = contestants(generator, perceptual, prior, options.projector_steps)
    encoder = find_encoder(options.encoder, generator, generator_digest(generator))
    if encoder is not None:
        runs |= from_encoder(generator, perceptual, prior, encoder)
    machine = measure.machine() | {"date": datetime.date.today().isoformat()}
    results = {"machine": machine, "portraits": len(portraits), "perceptual": perceptual.name}
    rows, pictures = compare(runs, portraits, generator, perceptual, prior)
    results["rows"] = rows
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    write_png(options.out / "sheet.png", to_uint8(torch.cat(pictures, 1)))
    text = table(results)
    (options.out / "table.md").write_text(text)
    print(text)
    with plotting():
        for folder in filter(None, (options.out, options.docs and options.docs / "images")):
            plot(rows, folder / "stage0_speed.png")


def contestants(
    generator: Generator, perceptual: Perceptual, prior: WPrior, projector_steps: int
) -> dict[str, Callable[[Sequence[Portrait]], Latents]]:
    """Each run by name: portraits to their latents and noise maps."""
    published = OptimiserSettings.model_validate({"steps": projector_steps - 1, "decay_steps": 1})

    def projected(space: Any, portraits: Sequence[Portrait]) -> Latents:
        found = projector.project(generator, perceptual, portraits, published, space)
        return [one.ws for one in found], [one.noise for one in found]

    def ours(settings: InversionSettings, portraits: Sequence[Portrait]) -> Latents:
        found = invert(generator, perceptual, portraits, settings, prior)
        return [one.ws for one in found], [one.noise for one in found]

    named = ((PUBLISHED, "w"), (IN_W_PLUS, "w+"))
    runs: dict[str, Callable[[Sequence[Portrait]], Latents]]
    runs = {name.format(projector_steps): partial(projected, space) for name, space in named}
    return runs | {f"ours, {steps} steps": partial(ours, shortened(steps)) for steps in OURS_STEPS}


def from_encoder(
    generator: Generator, perceptual: Perceptual, prior: WPrior, encoder: Encoder
) -> dict[str, Callable[[Sequence[Portrait]], Latents]]:
    start = partial(predict_start, encoder, generator, prior)

    def ours(steps: int, portraits: Sequence[Portrait]) -> Latents:
        found = invert(generator, perceptual, portraits, near(steps), prior, start=start)
        return [one.ws for one in found], [one.noise for one in found]

    return {f"ours, encoder, {steps} steps": partial(ours, steps) for steps in ENCODER_STEPS}


def near(total: int) -> InversionSettings:
    """The settings from an encoder's start at `total` steps, its phases in proportion."""
    decay = round(total * NEAR["decay_steps"] / (NEAR["steps"] + NEAR["decay_steps"]))
    return InversionSettings.model_validate({"steps": total - decay, "decay_steps": decay}).near()


def shortened(total: int) -> InversionSettings:
    """The default schedule at `total` steps, its phases in proportion."""
    default = InversionSettings.model_validate({})
    share = total / (default.steps + default.decay_steps)
    decay = max(1, round(share * default.decay_steps))
    warmup = max(1, min(default.warmup_steps, round(total / 6)))
    return default.model_copy(update={"steps": total - decay, "decay_steps": decay, "warmup_steps": warmup})


def compare(
    runs: Mapping[str, Callable[[Sequence[Portrait]], Latents]],
    portraits: Sequence[Portrait],
    generator: Generator,
    perceptual: Perceptual,
    prior: WPrior,
) -> tuple[Rows, list[torch.Tensor]]:
    """Medians of every run's figures over the portraits, and rows of pictures: photos, then each run's renders."""
    width = InversionSettings.model_validate({}).batch
    figures: dict[str, list[dict[str, float]]] = {name: [] for name in runs}
    images: dict[str, list[torch.Tensor]] = {name: [] for name in runs}
    for start in range(0, len(portraits), width):
        batch = portraits[start : start + width]
        for name, run in runs.items():
            cpu, wall = measure.cpu_seconds(), time.perf_counter()
            ws, noise = run(batch)
            seconds = {
                "cpu_seconds": (measure.cpu_seconds() - cpu) / len(batch),
                "seconds": (time.perf_counter() - wall) / len(batch),
            }
            ws, noise = [half(one) for one in ws], [[half(level) for level in maps] for maps in noise]
            renders = render(generator, ws, noise, width)
            images[name] += [image.clamp(-1, 1) for image in renders]
            figures[name] += [
                seconds | quality(image, one, w, perceptual, prior)
                for image, one, w in zip(renders, batch, ws, strict=True)
            ]
            print(f"{start + len(batch)}/{len(portraits)} {name}: {seconds['seconds']:.1f} s", file=sys.stderr)
    rows = {
        name: {key: statistics.median(one[key] for one in every) for key in every[0]} for name, every in figures.items()
    }
    photos = torch.cat([portrait.image for portrait in portraits], 2)
    return rows, [photos, *(torch.cat(row, 2) for row in images.values())]


@torch.no_grad()
def quality(
    image: torch.Tensor, portrait: Portrait, ws: torch.Tensor, perceptual: Perceptual, prior: WPrior
) -> dict[str, float]:
    photo = portrait.image[None]
    distance = perceptual_distance(perceptual.features(image[None].clamp(-1, 1)), perceptual.features(photo))
    return {
        "psnr": float(psnr(image[None], photo, torch.ones_like(photo[:, :1]))),
        "perceptual": float(distance),
        "prior_distance": float(prior.distance(ws)),
    }


def table(results: dict[str, Any]) -> str:
    """Markdown: every run with its figures, and how much less time the shortest of ours that is as good needs."""
    rows, machine = results["rows"], results["machine"]
    lines = [
        f"Medians of {results['portraits']} portraits, {results['perceptual']}; {report.on(machine)}.",
        "",
        "| run | s per portrait | processor s | PSNR, dB | perceptual distance | prior distance |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        lines.append(
            f"| {name} | {row['seconds']:.2f} | {row['cpu_seconds']:.2f} | {row['psnr']:.2f} | {row['perceptual']:.3f} "
            f"| {row['prior_distance']:.2f} |"
        )
    lines.append("")
    for name, row in rows.items():
        if not name.startswith("projector"):
            continue
        equal = shortest_as_good(rows, row)
        if equal is None:
            lines.append(f"- None of ours is as good as {name} by both PSNR and perceptual distance.")
        else:
            lines.append(
                f"- As good as {name} by PSNR and perceptual distance: {equal}, in 1/"
                f"{row['cpu_seconds'] / rows[equal]['cpu_seconds']:.1f} of its time."
            )
    return "\n".join(lines) + "\n"


def shortest_as_good(rows: Rows, peer: dict[str, float]) -> str | None:
    """The fastest of our runs whose PSNR is at least, and whose perceptual distance at most, the peer's."""
    good = [
        name
        for name, row in rows.items()
        if name.startswith("ours") and row["psnr"] >= peer["psnr"] and row["perceptual"] <= peer["perceptual"]
    ]
    return min(good, key=lambda name: rows[name]["cpu_seconds"], default=None)


def plot(rows: Rows, path: Path) -> None:
    """Quality against time, both axes of each method's runs."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.4), constrained_layout=True)
    for axis, key, label in zip(axes, ("psnr", "perceptual"), ("PSNR, dB", "perceptual distance"), strict=True):
        ours = {name: row for name, row in rows.items() if name.startswith("ours")}
        for start in ("mean face", "encoder"):
            points = [
                (row["cpu_seconds"], row[key])
                for name, row in ours.items()
                if ("encoder" in name) == (start == "encoder")
            ]
            if points:
                axis.plot(*zip(*sorted(points), strict=True), "o-", label=f"ours, from the {start}")
        for name, row in rows.items():
            if name.startswith("projector"):
                axis.plot(row["cpu_seconds"], row[key], "s", label=name)
        axis.set(xscale="log", xlabel="processor seconds per portrait", ylabel=label)
    axes[0].legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90)


if __name__ == "__main__":
    with exit_on_bad_input():
        main()
