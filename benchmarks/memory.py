"""How much memory a step of reconstruction takes: with everything kept for the backward pass of the whole batch, and
with the settings' defaults, which recompute the finest blocks of the generator and take large images in parts.

    python benchmarks/memory.py [--sizes 256 512 1024] [--batches 1 2 4] [--threads 1] [--docs PAGE]

Two figures for each case, both of a random generator of FFHQ's channels and of portraits that it drew:
measured: peak resident size of a fresh process that takes --steps steps on the CPU as a build's worker does, the
program itself and the rendering of the results included. Cases that --most-gb forbids are left out, by the count.
counted: the largest sum of tensors that exist at once in a step, done with tensors that have a shape and no content, by
plain operations: what a GPU without our kernels holds. It is no measurement of a GPU: CUDA itself, what the allocator
holds unused, and the work space of convolutions come on top.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import weakref
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).parent / "speed"))

import torch
from drawn import drawn, exactly, patch, random_generator
from measure import cpu_seconds, peak_memory_mb, processor
from pages import put_into
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from stylepairs.datagen.images.perceptual import Perceptual, load_perceptual
from stylepairs.datagen.portraits.sketch import Sketch
from stylepairs.datagen.reconstruction import inversion as stage0
from stylepairs.datagen.reconstruction import phases
from stylepairs.datagen.reconstruction import reconstruct as stage1
from stylepairs.datagen.reconstruction.batch import optimise
from stylepairs.datagen.reconstruction.in_hand import Job, Objective, State, Verdict
from stylepairs.datagen.reconstruction.prior import WPrior
from stylepairs.datagen.reconstruction.settings import InversionSettings, OptimiserSettings, ReconstructionSettings
from stylepairs.datagen.stylegan import generator as network
from stylepairs.datagen.stylegan.generator import Generator
from stylepairs.kernels import modulated_layer as layers
from stylepairs.kernels.memory import keep_freed_memory
from stylepairs.kernels.modulated_conv2d import modulated_conv2d
from stylepairs.kernels.modulated_layer import modulated_layer
from stylepairs.kernels.upfirdn2d import upsample2d

GB = 1e9
KEEP_ALL = 4096  # recompute_from_px above every resolution
NO_BOUND = 10**12  # pixels_at_once above every batch's
FFHQ_CHANNELS = 32768
DEFAULTS = OptimiserSettings.model_validate({})


@dataclass(frozen=True)
class Case:
    """`steps` steps of a batch of portraits; the rest as in the settings."""

    stage: int
    size_px: int
    batch: int
    recompute_from_px: int = DEFAULTS.recompute_from_px
    pixels_at_once: int = DEFAULTS.pixels_at_once
    precision: str = "auto"
    steps: int = 2

    def settings(self) -> Any:
        """Of the stage; every portrait leaves after exactly `steps` steps."""
        kind = ReconstructionSettings if self.stage else InversionSettings
        names = ("batch", "precision", "recompute_from_px", "pixels_at_once")
        changed = {name: getattr(self, name) for name in names}
        return kind(**exactly(self.steps), **changed)


def ffhq_like(size_px: int) -> Generator:
    """Random weights, as wide as FFHQ's of 1024 px at each resolution."""
    return random_generator(size_px, FFHQ_CHANNELS)


def run(case: Case, generator: Generator, perceptual: Perceptual) -> None:
    """The case by the package's own functions."""
    with torch.no_grad():
        width = generator.config.w_dim
        prior = WPrior(torch.zeros(width), torch.eye(width), torch.ones(width))
        ws = torch.randn(case.batch, generator.num_ws, width)
    portraits, inversions = drawn(generator, ws)
    if case.stage == 0:
        stage0.invert(generator, perceptual, portraits, case.settings(), prior)
        return
    sketches = [sketch_of(portrait.image) for portrait in portraits]
    problem = stage1.Problem(generator, perceptual, prior, portraits, inversions, sketches, case.settings())
    stage1.reconstruct(problem)


def sketch_of(image: torch.Tensor) -> Sketch:
    """A patch with detail of its own, compared in Lab: all terms of the objective are there."""
    mask = patch(image)
    return Sketch(image * (1 - 0.5 * mask), mask, 1 - mask, 16, "lab", sketch_detail=1.0)


class LiveBytes(TorchDispatchMode):
    """Sum of the storages of the tensors of one kind of device that exist, and the largest that it was."""

    def __init__(self, device: str):
        super().__init__()  # type: ignore[no-untyped-call]
        self.device, self.now, self.peak = device, 0, 0
        self.known: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for value in tree_leaves(out):
            if isinstance(value, torch.Tensor) and value.device.type == self.device:
                self._note(value.untyped_storage())
        return out

    def _note(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self.known:
            return

        def gone(_: Any) -> None:
            del self.known[key]
            self.now -= size

        self.known[key] = weakref.ref(storage, gone)
        self.now += size
        self.peak = max(self.peak, self.now)


class Counted(Exception):
    """Carries the figures out of the first step."""


def counted(case: Case) -> dict[str, int]:
    """Bytes in tensors: those kept between a step's forward and backward pass, and the peak, weights included."""
    live = LiveBytes("cpu")

    def count(jobs: Sequence[Job], objective: Objective, settings: OptimiserSettings, *_: Any, **__: Any) -> None:
        def first_step(state: State) -> Verdict:
            before = live.now
            verdict = objective(state)
            kept = live.now - before
            noise = state.noise if settings.noise_learning_rate else []
            torch.autograd.grad(verdict.loss.sum(), [state.u, *noise])
            raise Counted({"kept": kept, "peak": weights + live.peak})

        for _outcome in optimise(jobs, first_step, settings):
            pass

    generator, perceptual = ffhq_like(case.size_px), load_perceptual()
    weights = sum(x.nbytes for net in (generator, perceptual) for x in (*net.parameters(), *net.buffers()))
    module = stage1 if case.stage else stage0
    plain = {
        (phases, "optimise_all"): count,
        (module, "use_channels_last"): lambda _: None,  # tensors without content cannot change their layout in place
        (network, "modulated_layer"): partial(modulated_layer, impl="reference"),
        (network, "modulated_conv2d"): partial(modulated_conv2d, impl="shared"),
        (network, "upsample2d"): partial(upsample2d, impl="transposed"),  # matrices need the taps' values
        (layers, "modulated_conv2d"): partial(modulated_conv2d, impl="shared"),
    }
    with ExitStack() as stack:
        for (where, name), function in plain.items():
            stack.enter_context(mock.patch.object(where, name, function))
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        stack.enter_context(live)
        try:
            run(case, generator, perceptual)
        except Counted as figures:
            return dict(figures.args[0])
    raise RuntimeError(f"{module.__name__}: takes its steps elsewhere than in optimise_all")


def measured(case: Case, threads: int) -> dict[str, float]:
    """Peak resident bytes of a fresh process that runs the case as a build's worker does, and its processor time."""
    command = [sys.executable, __file__, "--threads", str(threads), "--case", json.dumps(asdict(case))]
    return dict(json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout))


def measure_here(case: Case) -> dict[str, float]:
    keep_freed_memory()
    generator, perceptual = ffhq_like(case.size_px), load_perceptual()
    loaded, begun = peak_memory_mb(), cpu_seconds()
    run(case, generator, perceptual)
    seconds = cpu_seconds() - begun
    return {"loaded": loaded * 2**20, "peak": peak_memory_mb() * 2**20, "cpu_seconds": seconds}


def compared(stage: int, size_px: int, batch: int, options: argparse.Namespace) -> dict[str, Any]:
    """Both ways of one stage, size and batch: bytes and seconds, or None where it was not measured."""
    found: dict[str, Any] = {"stage": stage, "size_px": size_px, "batch": batch}
    ways = {"kept": {"recompute_from_px": KEEP_ALL, "pixels_at_once": NO_BOUND}, "bounded": {}}
    for name, changed in ways.items():
        case = Case(stage, size_px, batch, precision=options.precision, steps=options.steps, **changed)
        for precision in ("fp32", "bf16"):
            found[f"{name}_{precision}"] = counted(replace(case, precision=precision))["peak"]
        fits = found[f"{name}_fp32"] < options.most_gb * GB
        found[name] = measured(case, options.threads) if fits else None
        print(json.dumps({name: found[name]}), flush=True)
    print(json.dumps(found), flush=True)
    return found


def markdown(rows: Sequence[dict[str, Any]], options: argparse.Namespace) -> str:
    lines = [
        f"{options.threads} thread of a {processor()}, torch {torch.__version__}, precision {options.precision}, "
        f"{options.steps} steps. GB are 10^9 bytes.",
        "",
        "| stage | px | batch | RAM, all kept | RAM, defaults | processor time, defaults / all kept "
        "| counted, all kept: fp32, bf16 | counted, defaults: fp32, bf16 |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        ram = ["not run" if row[name] is None else f"{row[name]['peak'] / GB:.1f}" for name in ("kept", "bounded")]
        both = row["kept"] is not None and row["bounded"] is not None
        ratio = f"{row['bounded']['cpu_seconds'] / row['kept']['cpu_seconds']:.2f}" if both else ""
        tensors = [
            ", ".join(f"{row[f'{name}_{precision}'] / GB:.1f}" for precision in ("fp32", "bf16"))
            for name in ("kept", "bounded")
        ]
        cells = [row["stage"], row["size_px"], row["batch"], *ram, ratio, *tensors]
        lines.append("| " + " | ".join(str(cell) for cell in cells) + " |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 512, 1024])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--stages", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--precision", choices=["auto", "fp32", "bf16"], default="auto")
    parser.add_argument("--most-gb", type=float, default=12.0, help="what a case may be counted at to be run")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--docs", type=Path, help="page whose figures are replaced")
    parser.add_argument("--case", type=json.loads, help=argparse.SUPPRESS)  # of the processes that it starts
    options = parser.parse_args()
    if options.steps < 2:
        parser.error(f"--steps {options.steps}: must be 2 or more, the last of which is of the schedule's end")
    torch.set_num_threads(options.threads)
    if options.case is not None:
        print(json.dumps(measure_here(Case(**options.case))))
        return 0
    combinations = itertools.product(options.stages, options.sizes, options.batches)
    found = markdown([compared(*one, options) for one in combinations], options)
    print(found)
    if options.docs is not None:
        put_into(options.docs, found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
