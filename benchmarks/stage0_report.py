"""Stage 0 on a folder of portraits: how near the generator comes to each, at what cost; later changes are measured
against it.

python benchmarks/stage0_report.py PORTRAITS [--generator embedded] [--limit 20] [--sheet stage0.png] [--set steps=90
...]
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time
from functools import partial
from pathlib import Path

import torch

from stylepairs.datagen.encoders.files import find_encoder
from stylepairs.datagen.encoders.network import predict_start
from stylepairs.datagen.images.files import to_uint8, write_png
from stylepairs.datagen.images.perceptual import load_perceptual
from stylepairs.datagen.portraits.folders import load_portraits
from stylepairs.datagen.reconstruction.inversion import invert
from stylepairs.datagen.reconstruction.prior import WPrior
from stylepairs.datagen.reconstruction.settings import InversionSettings
from stylepairs.datagen.shell.errors import exit_on_bad_input
from stylepairs.datagen.stylegan.checkpoints import generator_digest, load_generator
from stylepairs.kernels.memory import keep_freed_memory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("portraits", type=Path)
    parser.add_argument("--generator", default="embedded")
    parser.add_argument("--limit", type=int, default=20, help="evenly spaced portraits, by name")
    parser.add_argument("--sheet", type=Path, help="write a PNG of portraits above their inversions")
    parser.add_argument("--encoder", default="none", help="as in a recipe: auto, none or a file")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="inversion settings to change")
    args = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(args.threads)
    settings = InversionSettings.model_validate(dict(item.split("=", 1) for item in args.set))
    generator, perceptual = load_generator(args.generator), load_perceptual()
    files = load_portraits(args.portraits)
    chosen = files[:: max(1, len(files) // args.limit)][: args.limit]
    portraits = [file.load().resized(generator.config.img_resolution) for file in chosen]
    prior, start = WPrior.fit(generator), None
    encoder = find_encoder(args.encoder, generator, generator_digest(generator))
    if encoder is not None:
        settings, start = settings.near(), partial(predict_start, encoder, generator, prior)
    wall, cpu = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_utime
    found = invert(generator, perceptual, portraits, settings, prior, start=start)
    wall = time.perf_counter() - wall
    cpu = resource.getrusage(resource.RUSAGE_SELF).ru_utime - cpu
    print(f"{len(found)} portraits, generator {generator_digest(generator)[:12]}, {generator.config.img_resolution} px")
    for name in ("psnr", f"perceptual_{perceptual.name}", "prior_distance", "steps"):
        values = sorted(inversion.figures[name] for inversion in found)
        print(f"{name:36} median {statistics.median(values):8.3f}   worst {values[0]:.3f} .. {values[-1]:.3f}")
    print(f"seconds per portrait: {wall / len(found):.2f} (processor time {cpu / len(found):.2f})")
    if args.sheet:
        columns = ((portrait.image, inversion.image) for portrait, inversion in zip(portraits, found, strict=True))
        rows = [torch.cat([x.clamp(-1, 1) for x in row], 2) for row in zip(*columns, strict=True)]
        write_png(args.sheet, to_uint8(torch.cat(rows, 1)))


if __name__ == "__main__":
    with exit_on_bad_input():
        main()
