"""The commands as functions, and what their processes share: everything imported, the analyser's networks read."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate.state import AcceleratorState

from attack.groups import STORE
from stylepairs.datagen import cli as datagen_cli
from stylepairs.datagen.build import models, shard_runner
from stylepairs.datagen.portraits.analysis.analyser import load_analyser
from stylepairs.datagen.shell import events
from stylepairs.datagen.shell.command_line import run_app
from stylepairs.datagen.shell.storage import staged
from stylepairs.i2i import cli as i2i_cli
from stylepairs.i2i.train import training
from stylepairs.i2i.train.start import Run

_APPS = {"datagen": datagen_cli.app, "i2i": i2i_cli.app}
# What commands import when they need it, here before any process is forked.
_LATE = (
    "stylepairs.datagen.augment.plan", "stylepairs.datagen.build.plan", "stylepairs.datagen.pairs.inspection",
    "stylepairs.datagen.pairs.export", "stylepairs.datagen.pairs.status", "stylepairs.i2i.edit.editor",
    "stylepairs.i2i.models.export", "stylepairs.datagen.portraits.analysis.prepare", "pyarrow.parquet",
    "stylepairs.datagen.portraits.analysis.bisenet", "torch.utils.tensorboard", "albumentations", "rich.progress",
    "fsspec.implementations.memory", "kornia.filters", "stylepairs.datagen.features.hair_color",
    "torch._dynamo",
)  # fmt: skip
HOSTILE_NAMES = (
    "../../outside", "../pairs-00000.tar", "/etc/passwd", "..", "a/../../../outside", "pairs-00000.tar/../../outside",
    "new\nline", "\0", "x" * 300, ".progress-0.json", ".lock", "pairs-99999.tar", "pairs-00001.tar",
)  # fmt: skip
# A recipe may rightly ask for more work than a try may last; what reads it is looked at, not the work.
_LONG_STEPS = 10
_ANALYSER, _BUILD_SHARD, _TAKE_STEPS = models._analyser, shard_runner.build_shard, training.take_steps


def preload() -> None:
    """Import and read what every command would; the parent computes nothing itself."""
    for name in _LATE:
        importlib.import_module(name)
    load_analyser()
    torch.set_num_threads(1)


def command_of(arguments: list[str]) -> Callable[[], None]:
    """`datagen ARGUMENTS` or `i2i ARGUMENTS`, without long work; builds go without the analyser."""

    def run() -> None:
        sys.argv = list(arguments)
        events.choose_log("text")
        # Set each time: several commands may run in one process.
        models._analyser = _ANALYSER if arguments[1] == "augment" else lambda: (None, {})
        shard_runner.build_shard, training.take_steps = _short_shard, _few_steps
        AcceleratorState._reset_state(reset_partial_state=True)  # of a training before, perhaps of another precision
        if any(STORE in argument for argument in arguments):
            _fill_store()
        run_app(_APPS[arguments[0]])

    return run


def _fill_store() -> None:
    """Put the working folder into a store in memory, beside names that lead out of each of its folders; what is fetched
    comes to the working folder."""
    from fsspec.implementations.memory import MemoryFile, MemoryFileSystem

    staged._scratch.cache_clear()
    os.environ[staged.SCRATCH_VARIABLE] = os.getcwd()
    root = f"/{STORE.partition('://')[2].rstrip('/')}"
    files = {path.as_posix(): path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    for folder in {os.path.dirname(name) for name in files}:
        files |= {f"{folder}/{name}": b"hostile" for name in HOSTILE_NAMES}
    MemoryFileSystem.store.clear()
    MemoryFileSystem.store.update(
        {f"{root}/{name}": MemoryFile(MemoryFileSystem, f"{root}/{name}", data) for name, data in files.items()}
    )


def _short_shard(plan: shard_runner.ShardedPlan, index: int, *rest: object) -> None:
    settings = plan.recipe.inversion, plan.recipe.reconstruction
    small = all(each.steps + each.decay_steps <= _LONG_STEPS and each.batch <= _LONG_STEPS for each in settings)
    if small and index == 0:
        _BUILD_SHARD(plan, index, *rest)


def _few_steps(run: Run, *rest: object) -> None:
    if run.settings.steps <= _LONG_STEPS:
        _TAKE_STEPS(run, *rest)
