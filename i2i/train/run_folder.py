"""A training run's folder: whose it is (run.json) and its log (metrics.jsonl, tensorboard), cut back on resume."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from stylepairs.datagen.shell.durable import make_folder, replace_file
from stylepairs.datagen.shell.errors import InputError

METRICS_FILE = "metrics.jsonl"


class RunLog:
    """Writes figures by step; does nothing when not enabled (other processes than the main one)."""

    def __init__(self, out: Path, step: int, enabled: bool = True):
        self.enabled = enabled
        if not enabled:
            return
        from torch.utils.tensorboard import SummaryWriter

        self.path = out / METRICS_FILE
        kept = [line for line in read_metrics(self.path) if line["step"] <= step]
        text = "".join(json.dumps(line) + "\n" for line in kept)
        replace_file(self.path, lambda file: file.write(text.encode()))
        self.board = SummaryWriter(str(out / "tensorboard"), purge_step=step + 1)

    def write(self, step: int, kind: str, figures: Mapping[str, Any]) -> None:
        """Append one line {"step", "kind", figures...}; kind is "train" or "val"."""
        if not self.enabled:
            return
        values = {name: float(value) for name, value in figures.items()}
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step, "kind": kind, **values}) + "\n")
        for name, value in values.items():
            self.board.add_scalar(f"{kind}/{name}", value, step)

    def close(self) -> None:
        if self.enabled:
            self.board.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl; a last line that was cut off by a kill is left out."""
    lines = []
    for text in path.read_text().splitlines() if path.is_file() else ():
        try:
            lines.append(json.loads(text))
        except ValueError:
            continue
    return lines


def describe(settings: dict[str, Any], feature: str, digest: str, data: str) -> dict[str, Any]:
    """What fixes a run's result: goes into run.json and the model file."""
    from importlib.metadata import version

    return {
        "feature": feature,
        "settings": settings,
        "generator_digest": digest,
        "data_digest": data,
        "code_version": version("stylepairs"),
    }


def claim_folder(out: Path, identity: dict[str, Any], accelerator: Accelerator) -> None:
    """Make the run folder, or check that the run in it is this one."""
    path = out / "run.json"
    make_folder(out / "samples")
    accelerator.wait_for_everyone()
    if path.is_file():
        try:
            found = json.loads(path.read_text())
        except ValueError:
            found = {}
        differing = sorted(key for key in identity if found.get(key) != identity[key])
        if differing:
            raise InputError(f"{out}: holds another run ({', '.join(differing)} differ); choose another --out")
    elif accelerator.is_main_process:
        replace_file(path, lambda file: file.write(json.dumps(identity, indent=2).encode()))
    accelerator.wait_for_everyone()


def line_of(step: int, steps: int, figures: Any, what: str = "") -> str:
    shown = "  ".join(f"{name} {float(value):.4g}" for name, value in figures.items())
    return f"step {step}/{steps}  {what + '  ' if what else ''}{shown}"
