"""The training loop that the three recipes share: accelerate, one-cycle schedule, EMA, resume; randomness follows
the step.
"""

from __future__ import annotations

import copy
import json
import math
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from stylepairs.datagen.shell.durable import keep_rows
from stylepairs.datagen.shell.errors import InputError
from stylepairs.kernels.precision import training_precision

Batch = dict[str, torch.Tensor]
Loss = Callable[[nn.Module, Batch], dict[str, torch.Tensor]]
EMA_HALF_LIFE_STEPS = 200


class SampleStream(IterableDataset[Batch]):
    """Batches of samples; sample i of step s depends on (seed, s, i) only, so that a resumed run sees what it
    would have seen.
    """

    def __init__(
        self, make: Callable[[np.random.Generator], dict[str, np.ndarray]], batch: int, steps: range, seed: int
    ) -> None:
        self.make, self.batch, self.steps, self.seed = make, batch, steps, seed

    def __iter__(self) -> Iterator[Batch]:
        cv2.setNumThreads(0)
        for step in self.steps:
            samples = [self.make(np.random.default_rng([self.seed, step, i])) for i in range(self.batch)]
            yield {key: torch.from_numpy(np.stack([np.asarray(s[key]) for s in samples])) for key in samples[0]}


def to_input(image: torch.Tensor) -> torch.Tensor:
    """uint8 [N,H,W,3] -> float [N,3,H,W] in [-1,1]."""
    return (image.permute(0, 3, 1, 2).float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)


def train(  # noqa: PLR0913 - all that a training is made of
    net: nn.Module,
    make: Callable[[np.random.Generator], dict[str, np.ndarray]],
    loss: Loss,
    out: Path,
    steps: int,
    batch: int,
    learning_rate: float,
    seed: int = 0,
    precision: str | None = None,
    log_every: int = 25,
    save_every: int = 150,
) -> nn.Module:
    """Trains `net` and returns its moving average (eval mode); state in out/state, average in out/ema.safetensors,
    log.jsonl. precision: "no" or "bf16"; None: this machine's fastest.
    """
    out.mkdir(parents=True, exist_ok=True)
    accelerator = Accelerator(mixed_precision=precision or training_precision(), cpu=not torch.cuda.is_available())
    net = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimiser = torch.optim.AdamW(net.parameters(), lr=learning_rate, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser,
        lambda s: min((s + 1) / min(100, steps / 10), 0.5 + 0.5 * math.cos(math.pi * min(s / steps, 1)) + 0.002),
    )
    average = copy.deepcopy(net).eval().requires_grad_(False)
    progress = Progress(average)
    net, optimiser = accelerator.prepare(net, optimiser)
    accelerator.register_for_checkpointing(progress, schedule)
    recover_state(out)
    if (out / "state").is_dir():
        resume(accelerator, out / "state")
        keep_rows(out / "log.jsonl", "step", progress.step)
    # With a generator of its own, as it would else draw from that of the losses once more in a resumed run.
    loader = DataLoader(
        SampleStream(make, batch, range(progress.step, steps), seed),
        batch_size=None, num_workers=1, prefetch_factor=4, generator=torch.Generator(),
    )  # fmt: skip
    sums: dict[str, float] = {}
    since, begin = progress.step, time.perf_counter()
    for item in loader:
        net.train()
        item = {key: value.to(accelerator.device) for key, value in item.items()}
        with accelerator.autocast():
            terms = loss(net, item)
        accelerator.backward(sum(terms.values()))
        accelerator.clip_grad_norm_(net.parameters(), 2.0)
        optimiser.step()
        optimiser.zero_grad()
        schedule.step()
        progress.step += 1
        progress.update(accelerator.unwrap_model(net))
        for key, value in terms.items():
            sums[key] = sums.get(key, 0.0) + float(value.detach())
        if progress.step % log_every == 0 or progress.step == steps:
            spent, count = time.perf_counter() - begin, progress.step - since
            row = {"step": progress.step, "images_per_s": round(count * batch / spent, 1)} | {
                k: round(v / count, 5) for k, v in sums.items()
            }
            with (out / "log.jsonl").open("a") as log:
                log.write(json.dumps(row) + "\n")
            print(row, flush=True)
            sums, since, begin = {}, progress.step, time.perf_counter()
        if progress.step % save_every == 0 or progress.step == steps:
            accelerator.save_state(str(out / "state.new"))
            replace_state(out)
            save_average(average, out / "ema.safetensors")
    return average


def resume(accelerator: Accelerator, folder: Path) -> None:
    """Where the run was; a state of another network ends the program with a line."""
    try:
        accelerator.load_state(str(folder))
    except (KeyError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{folder}: cannot be gone on from ({reason}); give another --out, or remove it") from error


def replace_state(out: Path) -> None:
    """Put out/state.new in the place of out/state: whenever it is killed, one of them is whole under its own name."""
    shutil.rmtree(out / "state.old", ignore_errors=True)
    if (out / "state").is_dir():
        (out / "state").rename(out / "state.old")
    (out / "state.new").rename(out / "state")
    shutil.rmtree(out / "state.old", ignore_errors=True)


def recover_state(out: Path) -> None:
    """After a kill: the state before, where it was just being replaced; what is half written goes."""
    if not (out / "state").is_dir() and (out / "state.old").is_dir():
        (out / "state.old").rename(out / "state")
    for name in ("state.new", "state.old"):
        shutil.rmtree(out / name, ignore_errors=True)


class Progress:
    """How many steps were made, and the moving average of the weights; accelerate saves it with the rest."""

    def __init__(self, average: nn.Module) -> None:
        self.step, self.average = 0, average

    @torch.no_grad()
    def update(self, net: nn.Module) -> None:
        keep = 0.5 ** (1 / EMA_HALF_LIFE_STEPS) if self.step > EMA_HALF_LIFE_STEPS else 0.9
        mine = self.average.state_dict()
        for key, value in net.state_dict().items():
            if value.is_floating_point():
                mine[key].lerp_(value.to(mine[key].device), 1 - keep)
            else:
                mine[key].copy_(value)

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step, "average": self.average.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step = state["step"]
        self.average.load_state_dict(state["average"])


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a .safetensors file; another file ends the program with a line."""
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path}: no weights can be read ({error}); give a .safetensors file of train.py") from error


def fill(net: nn.Module, weights: dict[str, torch.Tensor], source: str) -> None:
    """Give the network these weights, as `save_average` writes them; source: what to call them in an error."""
    try:
        missing, unexpected = net.load_state_dict({k: v.float() for k, v in weights.items()}, strict=False)
    except RuntimeError:  # of shapes
        missing, unexpected = [], list(weights)
    if unexpected or any(not key.endswith("num_batches_tracked") for key in missing):
        raise InputError(f"{source}: weights of another network")


def save_average(net: nn.Module, path: Path, metadata: dict[str, str] | None = None) -> None:
    """float16 weights of `net`, written whole or not at all."""
    tensors = {
        k: (v.half() if v.is_floating_point() else v).contiguous()
        for k, v in net.state_dict().items()
        if not k.endswith("num_batches_tracked")
    }
    partial = path.with_suffix(".partial")
    save_file(tensors, str(partial), metadata=metadata)
    partial.chmod(0o644)  # safetensors writes files for their owner only
    partial.replace(path)
