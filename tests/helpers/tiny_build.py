"""Builds small enough for tests, with nothing faked: a tiny random generator in a file, portraits of 32 px on disk."""

from __future__ import annotations

import functools
import json
import os
import resource
import signal
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from forked.commands import forked

from stylepairs.datagen import cli
from stylepairs.datagen.build import models, pair_maker
from stylepairs.datagen.build.plan import BuildPlan, plan_build
from stylepairs.datagen.build.settings import BuildRecipe
from stylepairs.datagen.compositing.compose import region_mask
from stylepairs.datagen.images.files import write_png
from stylepairs.datagen.pairs.record import Pair
from stylepairs.datagen.portraits.portrait import CLASS
from stylepairs.datagen.stylegan.checkpoints import save_generator
from stylepairs.datagen.stylegan.generator import Generator, GeneratorConfig

SIZE_PX = 32
COUNT = 5  # portraits; the last one is bald, and hair_color refuses it
BALD = f"portrait_{COUNT - 1:03d}"
QUICK = {
    "perceptual": "pyramid",
    "inversion": {"steps": 1, "decay_steps": 1, "warmup_steps": 1},
    "reconstruction": {"steps": 1, "decay_steps": 1, "warmup_steps": 1, "coarse_to_fine_steps": 1},
}
RECIPE = QUICK | {
    "feature": "hair_color",
    "params": {"color": ["blond", "black"], "intensity": 1.0},
    "gate": {"color_delta_e": {"max": 40}, "outside_psnr_db": {"min": 1}},
}


def tiny_generator(seed: int = 0) -> Generator:
    """A random generator of 32 px whose noise maps show."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = Generator(GeneratorConfig(16, 16, SIZE_PX, 3, 128, 8, 2)).eval().requires_grad_(False)
    for layer in network.synthesis.noisy_layers():
        layer.noise_strength.fill_(0.1)
    return network


@functools.cache
def generator_file(seed: int = 0) -> str:
    """Its file, written once for all tests."""
    path = Path(_folder().name) / f"tiny-{seed}.safetensors"
    save_generator(path, tiny_generator(seed), {})
    return str(path)


@functools.cache
def _folder() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix="tiny-generators-")


def write_portraits(folder: Path, count: int = COUNT, bald: str = BALD) -> None:
    """A prepared folder: hair in the upper third, skin below; the same portraits every time. bald: who has no hair."""
    names = [f"portrait_{number:03d}" for number in range(count)]
    points = np.empty((count, 68, 2), np.float32)
    for number, name in enumerate(names):
        draw = np.random.default_rng(number)
        label = np.full((SIZE_PX, SIZE_PX), CLASS["skin"], np.uint8)
        label[:12] = CLASS["hair"]
        hair = np.where((label == CLASS["hair"]) & (name != bald), 255, 0).astype(np.uint8)
        coarse = draw.integers(60, 200, (8, 8, 3), np.uint8)
        write_png(folder / "aligned" / f"{name}.png", coarse.repeat(4, 0).repeat(4, 1))
        write_png(folder / "label" / f"{name}.png", label)
        write_png(folder / "hair" / f"{name}.png", hair)
        points[number] = draw.uniform(0, SIZE_PX, (68, 2)) * (1, 0.5) + (0, SIZE_PX / 2)  # the face is below the hair
    moves = np.tile(np.eye(2, 3), (count, 1, 1))
    np.savez(folder / "landmarks.npz", name=np.array(names), points68=points, source_to_aligned=moves)
    rows = ({"name": name, "photo_sha256": photo_digest(name)} for name in names)
    (folder / "index.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def photo_digest(name: str) -> str:
    return f"photo of {name}"


def check_edit_mask(pair: Pair) -> None:
    """That the stored edit mask is what the stored mask was made of."""
    edit_mask = torch.from_numpy(pair.edit_mask)[None] / 255
    np.testing.assert_allclose(255 * region_mask(edit_mask)[0], pair.mask, atol=1.01)


class TinyPlan(BuildPlan):
    """A plan whose pairs are judged without the face analyser, which is slow; in worker processes too."""

    def load_models(self) -> models.Models:
        loaded = super().load_models()
        digests = {name: digest for name, digest in loaded.digests.items() if name != "analyser"}
        return replace(loaded, instruments=replace(loaded.instruments, analyser=None), digests=digests)


@dataclass(frozen=True)
class SlowPlan(TinyPlan):
    """A plan whose workers leave their process ids in `pids`, and take their time."""

    pids: Path = Path()

    def make(self, *arguments):
        (self.pids / str(os.getpid())).touch()
        time.sleep(0.5)
        return super().make(*arguments)


def plan(folder: Path, out: str = "pairs", recipe: dict | None = None, **settings) -> TinyPlan:
    """Plan a build of the portraits in folder/portraits, which are written where they are missing."""
    portraits = folder / "portraits"
    if not portraits.exists():
        write_portraits(portraits)
    settings = {"generator": generator_file(), "shard_size": 3, "cache": folder / f"cache-{out}"} | settings
    checked = BuildRecipe.model_validate(RECIPE | (recipe or {}))
    return TinyPlan(**vars(plan_build(checked, portraits, folder / out, **settings)))


class Command:
    """`datagen ARGUMENTS` as a process of its own, that tests can kill or starve.

    Forked from one that has all imported. pause_s: rest before each call of invert and reconstruct; file_limit: the
    largest file it may write, in bytes.
    """

    def __init__(self, arguments: list[str], pause_s: float = 0.0, file_limit: int | None = None) -> None:
        self._texts = tempfile.TemporaryDirectory()
        self.out_path, self.err_path = (Path(self._texts.name) / name for name in ("out", "err"))
        self.process = forked(_run, arguments, pause_s, file_limit, str(self.out_path), str(self.err_path))

    def wait(self, timeout_s: float = 120.0) -> int:
        """The exit code, negative for a signal."""
        self.process.join(timeout_s)
        assert self.process.exitcode is not None, "the command does not end"
        return self.process.exitcode

    @property
    def out(self) -> str:
        return self.out_path.read_text()

    @property
    def err(self) -> str:
        return self.err_path.read_text()

    @property
    def pid(self) -> int:
        return self.process.pid or 0


def _run(arguments: list[str], pause_s: float, file_limit: int | None, out: str, err: str) -> None:
    os.setpgid(0, 0)
    # A test run in the background of a shell inherits an ignored Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.stdout, sys.stderr = open(out, "w"), open(err, "w")  # noqa: SIM115
    os.dup2(sys.stderr.fileno(), 2)
    sys.argv = ["datagen", *arguments]
    models._analyser = lambda: (None, {})
    for name in ("invert", "reconstruct"):
        setattr(pair_maker, name, _rested(getattr(pair_maker, name), pause_s))
    if file_limit is not None:
        sys.dont_write_bytecode = True  # what is cut off would be read by later imports
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))  # Python ignores SIGXFSZ: an error
    cli.main()


def _rested(function, pause_s: float):
    def rested(*arguments, **settings):
        time.sleep(pause_s)
        return function(*arguments, **settings)

    return rested
