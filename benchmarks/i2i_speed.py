"""How fast the editor is: one photo through it as trained and as prepared, and a training step as it was and as it is.

python benchmarks/i2i_speed.py [--threads 2] [--rounds 7] [--size 256] [--pairs PAIRS]

Contestants take turns in each round; figures are medians (and spread) over the rounds, ratios medians of the rounds'
own ratios. --size measures inference around a random generator of that side with FFHQ's channels, beside the embedded
one. --pairs, a folder of `datagen build hair_color`, also measures what loading a batch costs against a step. Beside
other packages' networks: benchmarks/speed.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent / "speed"))

import torch
from stages import made_up_batch

from stylepairs.datagen.recipe import load_recipe
from stylepairs.datagen.shell.errors import exit_on_bad_input
from stylepairs.datagen.stylegan.checkpoints import generator_digest
from stylepairs.datagen.stylegan.generator import Generator, GeneratorConfig
from stylepairs.i2i.models.checkpoints import Trained, load_model
from stylepairs.i2i.models.glean import Glean, GleanConfig
from stylepairs.i2i.models.prepared_glean import prepare
from stylepairs.i2i.train import training
from stylepairs.i2i.train.data import PairDataset
from stylepairs.i2i.train.settings import TrainingSettings
from stylepairs.i2i.train.sides import read_records

# FFHQ's generators: this many channels times the side, at the finest resolution (config-f at 1024, its half at 256).
FFHQ_CHANNEL_BASE = {256: 16384, 512: 32768, 1024: 32768}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--size", type=int, choices=sorted(FFHQ_CHANNEL_BASE), default=256)
    parser.add_argument("--pairs", type=Path, help="also measure loading; None: made-up batches only")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(f"{platform.processor() or platform.machine()}, {args.threads} threads, torch {torch.__version__}")
    inference("embedded", load_model("embedded")[0], args.rounds)
    torch.manual_seed(0)
    generator = Generator(GeneratorConfig(img_resolution=args.size, channel_base=FFHQ_CHANNEL_BASE[args.size]))
    inference("FFHQ's channels", Glean(generator, GleanConfig()), args.rounds)
    training_step(args.rounds, args.pairs)


def inference(name: str, model: Trained, rounds: int) -> None:
    size, style = model.size_px, torch.zeros(1, model.config.style_channels)
    inputs = torch.rand(1, 3, size, size) * 2 - 1, torch.ones(1, 1, size, size), torch.ones(1), style
    forms: dict[str, Any] = {"as trained, float32": model.eval()}
    forms |= {f"prepared, {str(t)[6:]}": prepare(model, t) for t in (torch.float32, torch.bfloat16)}
    with torch.inference_mode():
        report(
            f"{name}, {size} px, one photo",
            {key: partial(form, *inputs) for key, form in forms.items()},
            rounds,
        )


def training_step(rounds: int, pairs: Path | None) -> None:
    """The hair-colour recipe's step, discriminator included; "rows of pixels" is how weights lay before."""
    recipe = load_recipe("hair_color", "i2i", TrainingSettings, [])
    recipe = recipe.model_copy(update={"discriminator": recipe.discriminator.model_copy(update={"start_step": 0})})
    batch: dict[str, torch.Tensor] | None = None
    calls: dict[str, Callable[[], Any]] = {}
    for name, layout in (("rows of pixels", torch.contiguous_format), ("channels last", torch.channels_last)):
        run = training.build(recipe, "hair_color", {})
        run.step = 1  # step 0 has the R1 penalty
        assert isinstance(run.model, Glean)
        batch = made_up_batch(recipe.batch_size, run.model) if batch is None else batch
        for module in (run.model, run.discriminator, run.perceptual):
            module.to(memory_format=layout)  # type: ignore[call-overload]
        laid_out = {key: x.to(memory_format=layout) if x.ndim == 4 else x for key, x in batch.items()}
        calls[name] = partial(training.training_step, run, laid_out)
    if pairs is not None:
        generator = run.model.generator
        assert isinstance(generator, Generator)
        shape, digest = (generator.num_ws, generator.config.w_dim), generator_digest(generator)
        data = PairDataset(
            pairs, read_records(pairs, "train"), run.model.size_px, "color", shape, digest, recipe.data, recipe.seed
        )
        calls["loading a batch"] = lambda: [data[0, index % len(data)] for index in range(recipe.batch_size)]
    report(f"training step, {run.model.size_px} px, batch of {recipe.batch_size}", calls, rounds)


def report(what: str, calls: dict[str, Callable[[], Any]], rounds: int) -> None:
    """Print medians, spread, and ratios to the first call of the same round."""
    for call in calls.values():
        call()
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
    print(what)
    first = next(iter(seconds.values()))
    for name, times in seconds.items():
        ratio = statistics.median(a / b for a, b in zip(first, times, strict=True))
        spread = f"{1e3 * min(times):.0f} .. {1e3 * max(times):.0f}"
        print(f"  {name:22} {1e3 * statistics.median(times):8.1f} ms  ({spread})  {ratio:5.2f} x")


if __name__ == "__main__":
    with exit_on_bad_input():
        main()
