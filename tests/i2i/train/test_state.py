"""Processes of one run go on from one state."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from stylepairs.datagen.shell.errors import InputError
from stylepairs.i2i.train.run_folder import describe
from stylepairs.i2i.train.state import refuse_divided
from stylepairs.i2i.train.training import build

RUN = describe({"steps": 4, "seed": 0}, "hair_color", "a" * 64, "b" * 64)


def test_processes_that_would_go_on_from_different_states_are_refused(tmp_path: Path, settings, monkeypatch) -> None:
    run = build(settings(losses={}), "hair_color", {})
    refuse_divided(run, RUN, tmp_path)

    def beside(step: int, description=RUN) -> None:
        """As if another process were at this step of that run."""
        gathered: list[torch.Tensor] = []
        monkeypatch.setattr(run.accelerator, "gather", lambda own: gathered.append(own) or own)
        run.step = step
        refuse_divided(run, description, tmp_path)
        run.step = 0
        monkeypatch.setattr(run.accelerator, "gather", lambda own: torch.cat([own, *gathered]))
        refuse_divided(run, RUN, tmp_path)

    beside(0)
    with pytest.raises(InputError, match=r"the processes are at steps 0, 4 of runs or states that differ; .*one --out"):
        beside(4)
    with pytest.raises(InputError, match="at steps 0, 0"):
        beside(0, RUN.model_copy(update={"data_digest": "c" * 64}))
