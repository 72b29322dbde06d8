"""The file that holds a training until it ends: networks and Adam's moments, whose run it is; a digest of it all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from stylepairs.datagen.shell.decode import Damaged, finite, read_safetensors
from stylepairs.datagen.shell.durable import safetensors_bytes, tensors_digest, write_bytes
from stylepairs.datagen.shell.errors import InputError, one_line

Modules = Mapping[str, nn.Module]
Optimizers = Mapping[str, torch.optim.Adam]


@dataclass(frozen=True)
class RunFile:
    """identity: of what is learned from, without which a run does not go on."""

    path: Path
    identity: str

    def steps(self, modules: Modules, optimizers: Optimizers, settings: str, count: int, every: int) -> Iterator[int]:
        """The steps that are left of `count`, what they come to written after `every` so many and at the end. What
        was learned has to be saved before the file is dropped."""
        for step in range(self.resume(modules, optimizers, settings) if self.path.exists() else 0, count):
            yield step
            if (step + 1) % every == 0 or step + 1 == count:
                self.write(modules, optimizers, settings, step + 1)

    def drop(self) -> None:
        """Remove it, where it is."""
        self.path.unlink(missing_ok=True)

    def write(self, modules: Modules, optimizers: Optimizers, settings: str, step: int) -> None:
        """Replace it by the run after `step` steps. Raises InputError, and leaves it, where the run has gone astray."""
        tensors = {f"{name}/{key}": x for name, module in modules.items() for key, x in module.state_dict().items()}
        if not finite(tensors.values()):
            raise InputError(
                f"{self.path}: after {step} steps the weights are not finite; the last good state is kept, lower the "
                "learning rate or remove it to start over"
            )
        for name, optimizer in optimizers.items():
            for index, moments in optimizer.state_dict()["state"].items():
                tensors |= {f"{name}/{index}/{key}": torch.as_tensor(value) for key, value in moments.items()}
        metadata = {"run": f"{self.identity}; {settings}", "step": str(step)}
        tensors = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
        write_bytes(self.path, safetensors_bytes(tensors, metadata | {"digest": tensors_digest(tensors, metadata)}))

    def resume(self, modules: Modules, optimizers: Optimizers, settings: str) -> int:
        """Load this very run and return how many steps it has behind it. Raises InputError."""
        try:
            tensors, metadata = read_safetensors(self.path)
            digest = metadata.pop("digest", None)  # files of earlier versions have none
            if digest is not None and digest != tensors_digest(tensors, metadata):
                raise Damaged("it is not what was written")
            run, step = metadata["run"], int(metadata["step"])
        except (Damaged, KeyError, ValueError) as error:
            raise InputError(f"{self.path}: cannot be continued ({error}); remove it to start over") from error
        if run != f"{self.identity}; {settings}":
            raise InputError(f"{self.path}: is of another run (its data or settings differ); remove it to start over")
        parts: dict[str, dict[str, torch.Tensor]] = {}
        for key, value in tensors.items():
            name, _, rest = key.partition("/")
            parts.setdefault(name, {})[rest] = value
        try:
            for name, module in modules.items():
                module.load_state_dict(parts[name])
            for name, optimizer in optimizers.items():
                moments: dict[int, dict[str, torch.Tensor]] = {}
                for key, value in parts.get(name, {}).items():
                    index, _, what = key.partition("/")
                    moments.setdefault(int(index), {})[what] = value
                optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
        except (KeyError, ValueError, RuntimeError) as error:
            raise InputError(
                f"{self.path}: cannot be continued ({one_line(error)}); remove it to start over"
            ) from error
        return step
