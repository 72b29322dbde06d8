"""What a training run is made of, and all of it at a step as named tensors: taken for a checkpoint, put back."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from stylepairs.datagen.images.perceptual import Perceptual
from stylepairs.datagen.shell.errors import InputError
from stylepairs.i2i.models import checkpoints
from stylepairs.i2i.models.prepared_glean import Network
from stylepairs.i2i.train.frozen import FrozenFeatures
from stylepairs.i2i.train.run_folder import RunDescription, newest_state
from stylepairs.i2i.train.settings import TrainingSettings

PARTS = ("model", "average", "discriminator", "mixing", "optimizer", "critic_optimizer")


@dataclass
class Run:
    """All that changes while training; `net` and `critic` are what accelerate wrapped."""

    settings: TrainingSettings
    accelerator: Accelerator
    model: checkpoints.Trained
    average: checkpoints.Trained
    net: nn.Module
    discriminator: nn.Module
    critic: nn.Module
    optimizer: Any
    critic_optimizer: Any
    perceptual: Perceptual
    features: FrozenFeatures | None = None
    teacher: Network | None = None
    portraits: int = 0  # samples of a batch, its last, that are of portraits without pairs
    has_refused: bool = True  # the folder of pairs holds portraits that the feature refused
    step: int = 0
    best: float | None = None

    def due(self, every_steps: int) -> bool:
        """Whether something that is done every so many steps, and at the end, is to be done now."""
        return self.step % every_steps == 0 or self.step == self.settings.steps


def run_state(run: Run) -> checkpoints.Tensors:
    """All that resuming needs, by name: the opposite of `resume`."""
    tensors = {f"model.{name}": value for name, value in run.model.trainable_state().items()}
    tensors |= {f"average.{name}": value for name, value in run.average.trainable_state().items()}
    tensors |= {f"discriminator.{name}": value for name, value in run.discriminator.state_dict().items()}
    if run.features is not None:
        tensors |= {f"mixing.{name}": value for name, value in run.features.mixing.state_dict().items()}
    tensors |= checkpoints.optimizer_tensors(run.optimizer, "optimizer.")
    return tensors | checkpoints.optimizer_tensors(run.critic_optimizer, "critic_optimizer.")


def refuse_divided(run: Run, identity: RunDescription, out: Path) -> None:
    """Raises InputError where the processes would not go on from one state of one run: where each machine has a folder
    of its own, say."""
    digest = hashlib.sha256(identity.model_dump_json().encode())
    for name, tensor in run_state(run).items() if run.step else ():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    own = torch.tensor([[run.step, int.from_bytes(digest.digest()[:7])]], device=run.accelerator.device)
    steps, digests = run.accelerator.gather(own).T.tolist()
    if len(set(digests)) > 1:
        raise InputError(
            f"{out}: the processes are at steps {', '.join(map(str, steps))} of runs or states that differ; give all"
            " machines the same pairs and settings, and one --out that all of them see"
        )


def resume(run: Run, out: Path) -> None:
    """Continue from the folder's state, where there is one. Raises InputError where it is not a state of this run."""
    path = newest_state(out)
    if path is None:
        return
    tensors, details = checkpoints.load_state(path)
    parts = {part: dict(checkpoints.with_prefix(tensors, f"{part}.")) for part in PARTS}
    try:
        if sum(map(len, parts.values())) != len(tensors):
            raise ValueError("tensors of no part")
        for module, part in ((run.model, "model"), (run.average, "average")):
            learns = module.trainable_state()
            frozen = {name: value for name, value in module.state_dict().items() if name not in learns}
            module.load_state_dict(frozen | parts[part])
        run.discriminator.load_state_dict(parts["discriminator"])
        if run.features is not None:
            run.features.mixing.load_state_dict(parts["mixing"])
        checkpoints.load_optimizer(run.optimizer, parts["optimizer"])
        if parts["critic_optimizer"]:  # empty before adversarial training has begun
            checkpoints.load_optimizer(run.critic_optimizer, parts["critic_optimizer"])
    except (ValueError, RuntimeError) as error:
        raise InputError(f"{path}: not the whole state of this run; {checkpoints.ADVICE}") from error
    run.step, run.best = details.step, details.best
