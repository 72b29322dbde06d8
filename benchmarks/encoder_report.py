"""Stage 0 by number of steps: from the mean face, and from an encoder's start.

    python benchmarks/encoder_report.py PORTRAITS --out DIR [--encoder auto] [--limit 12] [--docs docs/notes]

PORTRAITS must not have been trained on. 0 steps: the encoder's start as it is; its seconds hold two steps, too short to
show. Runs that DIR/encoder_steps.json holds are not made again. Figures are of the final render in float32 from the
stored float16 latents and noise, medians over the portraits; seconds are those of the processor, one thread, the
encoder's passes included.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "speed"))

import torch
from pages import plotting, put_into
from reconstruction_speed import near

from stylepairs.datagen.encoders.files import find_encoder
from stylepairs.datagen.encoders.network import Encoder, predict_start
from stylepairs.datagen.images.perceptual import Perceptual, load_perceptual
from stylepairs.datagen.portraits.folders import load_portraits
from stylepairs.datagen.portraits.portrait import Portrait
from stylepairs.datagen.reconstruction.inversion import Inversion, invert
from stylepairs.datagen.reconstruction.prior import WPrior
from stylepairs.datagen.reconstruction.rendering import use_channels_last
from stylepairs.datagen.reconstruction.settings import InversionSettings
from stylepairs.datagen.shell.errors import exit_on_bad_input
from stylepairs.datagen.stylegan.checkpoints import generator_digest, load_generator
from stylepairs.datagen.stylegan.generator import Generator
from stylepairs.kernels.memory import keep_freed_memory

FROM_MEAN = "17,34,68,120,170"
FROM_ENCODER = "0,8,17,34,68"


@dataclass(frozen=True)
class Setting:
    """What every run shares."""

    generator: Generator
    perceptual: Perceptual
    prior: WPrior
    portraits: list[Portrait]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("portraits", type=Path, help="a folder that `datagen prepare` wrote, none of it trained on")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--generator", default="embedded")
    parser.add_argument("--encoder", default="auto", help="what `datagen train-encoder` wrote for this generator")
    parser.add_argument("--limit", type=int, default=12, help="evenly spaced portraits, by name")
    parser.add_argument("--from-mean", default=FROM_MEAN, help="numbers of steps, with commas")
    parser.add_argument("--from-encoder", default=FROM_ENCODER)
    parser.add_argument("--docs", type=Path, help="also write the table into encoder.md and images/encoder_steps.png")
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    generator, perceptual = load_generator(options.generator), load_perceptual()
    use_channels_last(generator)
    setting = Setting(generator, perceptual, WPrior.fit(generator), chosen(generator, options.portraits, options.limit))
    encoder = find_encoder(options.encoder, generator, generator_digest(generator))
    options.out.mkdir(parents=True, exist_ok=True)
    runs: dict[str, Callable[[], list[Inversion]]] = {
        f"mean face, {steps}": partial(from_mean, setting, steps) for steps in numbers(options.from_mean)
    }
    if encoder is not None:
        runs |= {
            f"encoder, {steps}": partial(from_encoder, setting, encoder, steps)
            for steps in numbers(options.from_encoder)
        }
    rows = measured(runs, setting, options.out / "encoder_steps.json")
    if options.docs is not None:
        put_into(options.docs / "encoder.md", table(rows))
        with plotting():
            plot(rows, options.docs / "images" / "encoder_steps.png")


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",") if part]


def chosen(generator: Generator, folder: Path, limit: int) -> list[Portrait]:
    files = load_portraits(folder)
    files = files[:: max(1, len(files) // limit)][:limit]
    return [file.load().resized(generator.config.img_resolution) for file in files]


def from_mean(setting: Setting, steps: int) -> list[Inversion]:
    """Rates and schedule tuned for few steps; the defaults from 120 on."""
    few = steps < 120
    decay = round(steps * (0.4 if few else 50 / 170))
    noise_rate = 0.3 if steps < 50 else 0.2
    rates = {"learning_rate": 0.3, "noise_learning_rate": noise_rate, "warmup_steps": 3} if few else {}
    settings = InversionSettings.model_validate({"steps": steps - decay, "decay_steps": decay} | rates)
    return invert(setting.generator, setting.perceptual, setting.portraits, settings, setting.prior)


def from_encoder(setting: Setting, encoder: Encoder, steps: int) -> list[Inversion]:
    """The rates, and the share of the way, that builds take from an encoder's start; for 0 steps all of the way, and
    steps too short to show."""
    start = partial(predict_start, encoder, setting.generator, setting.prior)
    still = {"steps": 1, "decay_steps": 1, "learning_rate": 1e-9, "noise_learning_rate": 0.0, "start_share": 1.0}
    settings = near(steps) if steps else InversionSettings.model_validate(still).near()
    return invert(setting.generator, setting.perceptual, setting.portraits, settings, setting.prior, start=start)


def measured(
    runs: dict[str, Callable[[], list[Inversion]]], setting: Setting, path: Path
) -> dict[str, dict[str, float]]:
    """{"start, steps": medians}, printed and kept as they come; what `path` holds already is kept."""
    rows: dict[str, dict[str, float]] = json.loads(path.read_text()) if path.exists() else {}
    names = {"psnr": "psnr", "perceptual": f"perceptual_{setting.perceptual.name}", "prior_distance": "prior_distance"}
    for key, run in runs.items():
        if key not in rows:
            begun = time.process_time()
            found = run()
            seconds = (time.process_time() - begun) / len(found)
            rows[key] = {
                name: statistics.median(one.figures[figure] for one in found) for name, figure in names.items()
            }
            rows[key] |= {"cpu_seconds": seconds, "portraits": len(found)}
            path.write_text(json.dumps(rows, indent=1))
        row = rows[key]
        shown = f"{row['psnr']:6.2f} dB  {row['perceptual']:.3f}  prior {row['prior_distance']:.2f}"
        print(f"{key:16} {shown}  {row['cpu_seconds']:.2f} s", flush=True)
    return rows


def table(rows: dict[str, dict[str, float]]) -> str:
    lines = [
        "| start | steps | PSNR, dB | perceptual | prior distance | s per portrait (processor) |",
        "|---|---|---|---|---|---|",
    ]
    for key, row in rows.items():
        start, _, steps = key.rpartition(", ")
        figures = (
            f"{row['psnr']:.2f} | {row['perceptual']:.3f} | {row['prior_distance']:.2f} | {row['cpu_seconds']:.2f}"
        )
        lines.append(f"| {start} | {steps} | {figures} |")
    return "\n".join(lines)


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
        axis.set(xlabel="steps of stage 0", ylabel=label)
    axes[0].legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80)


if __name__ == "__main__":
    with exit_on_bad_input():
        main()
