"""Prepares portraits of people who do not exist, sampled from the generator: for pictures that anyone may be shown.

    python benchmarks/generated_portraits.py OUT [--count 24] [--truncation 0.7] [--seed 0] [--generator embedded]

OUT is then a folder as `datagen prepare` writes it; samples in which no face is found are left out.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import torch

from stylepairs.datagen.images.files import to_uint8, write_png
from stylepairs.datagen.portraits.analysis.prepare import prepare_photos
from stylepairs.datagen.shell.errors import exit_on_bad_input
from stylepairs.datagen.stylegan.checkpoints import load_generator


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--count", type=int, default=24)
    parser.add_argument("--truncation", type=float, default=0.7, help="towards the mean face: 0 all alike, 1 no limit")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--generator", default="embedded")
    options = parser.parse_args()
    generator = load_generator(options.generator)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        z = torch.randn(options.count, generator.config.z_dim, generator=torch.Generator().manual_seed(options.seed))
        ws = generator.mapping.w_avg.lerp(generator.mapping(z), options.truncation)
        for number, w in enumerate(ws):
            write_png(
                Path(folder) / f"person_{number:03d}.png", to_uint8(generator.synthesis(w[None], noise_mode="none")[0])
            )
        found = prepare_photos([Path(folder)], options.out, size_px=256)
    print(f"{options.out}: {len(found.portraits)} portraits of {options.count} samples")
    return 0


if __name__ == "__main__":
    with exit_on_bad_input():
        sys.exit(main())
