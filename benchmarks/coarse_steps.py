"""What a step of stage 1 costs when only the generator's lower blocks are rendered, beside a whole step.

    python benchmarks/coarse_steps.py [--sizes 256 512] [--batch 4] [--channel-base 16384] [--generator FILE]
        [--steps 3] [--rounds 3] [--threads 1]

Random generators unless --generator names one ("embedded", a file). A step is the difference of a longer and a shorter
call, so that making targets and rendering results are left out; all are timed in turns. Prints a Markdown table:
processor time of a portrait's step, median over the rounds.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "speed"))

import measure
import torch
from drawn import drawn, exactly, random_generator
from stages import sketch_of

from stylepairs.datagen.images.perceptual import Perceptual, load_perceptual
from stylepairs.datagen.reconstruction.prior import WPrior
from stylepairs.datagen.reconstruction.reconstruct import Problem, reconstruct
from stylepairs.datagen.reconstruction.settings import ReconstructionSettings
from stylepairs.datagen.shell.errors import exit_on_bad_input
from stylepairs.datagen.stylegan.checkpoints import load_generator
from stylepairs.datagen.stylegan.generator import Generator
from stylepairs.kernels.memory import keep_freed_memory

DIVISORS = (1, 2, 4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="*", default=[256, 512])
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--channel-base", type=int, default=16384)
    parser.add_argument("--generator", help='a generator\'s file, or "embedded": in place of random ones')
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(args.threads)
    perceptual = load_perceptual()
    print("| px | batch | s a whole step | half size | quarter size |\n|---|---|---|---|---|")
    for size in args.sizes if args.generator is None else [0]:
        generator = load_generator(args.generator) if args.generator else random_generator(size, args.channel_base)
        whole, *coarse = seconds_per_step(generator, perceptual, args.batch, args.steps, args.rounds)
        shares = [f"{one / whole:.2f} x" for one in coarse]
        cells = [generator.config.img_resolution, args.batch, f"{whole:.3f}", *shares]
        print("|", " | ".join(str(cell) for cell in cells), "|", flush=True)


def seconds_per_step(generator: Generator, perceptual: Perceptual, batch: int, steps: int, rounds: int) -> list[float]:
    """Processor time of a portrait's step with the generator's side divided by each of DIVISORS."""
    width = generator.config.w_dim
    prior = WPrior(torch.zeros(width), torch.eye(width), torch.ones(width))
    portraits, inversions = drawn(generator, torch.randn(batch, generator.num_ws, width))
    lists = portraits, inversions, [sketch_of(portrait.image) for portrait in portraits]

    def run(divisor: int, count: int) -> object:
        share = 0.0 if divisor == 1 else 1.0  # then all but the last step are coarse
        changed = {"coarse_share": share, "coarse_divisor": max(divisor, 2), "batch": batch}
        settings = ReconstructionSettings(**exactly(count) | changed)
        return reconstruct(Problem(generator, perceptual, prior, *lists, settings))

    calls = [(divisor, count) for divisor in DIVISORS for count in (2, 2 + steps)]
    spent = measure.interleaved({str(call): partial(run, *call) for call in calls}, rounds).cpu_seconds
    medians = {call: statistics.median(spent[str(call)]) for call in calls}
    return [(medians[divisor, 2 + steps] - medians[divisor, 2]) / (steps * batch) for divisor in DIVISORS]


if __name__ == "__main__":
    with exit_on_bad_input():
        main()
