"""Training by several processes: what a launcher asks for, what is logged, loaders that are killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from stylepairs.datagen.shell.errors import InputError
from stylepairs.i2i.models import checkpoints
from stylepairs.i2i.train import data, training
from stylepairs.i2i.train.run_folder import read_metrics
from stylepairs.i2i.train.settings import TrainingSettings
from stylepairs.i2i.train.sides import pair_sides

Make = Callable[..., TrainingSettings]


@pytest.mark.slow
def test_two_processes_train_one_model_and_log_the_mean_of_both(tmp_path: Path, pairs: Path, settings: Make) -> None:
    chosen, out, sides = settings(steps=3, batch_size=2, checkpoint_every_steps=3), tmp_path / "run", pair_sides(pairs)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({"i2i": chosen.model_dump()}))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m"]
    command = [*launch, "stylepairs.i2i", "train", str(recipe), "--pairs", str(pairs), "--out", str(out)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(command, env=environment, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "FutureWarning" not in done.stderr
    assert "2 processes" in done.stdout
    assert done.stdout.count("step 3/3") == 2  # the training and the held-out figures, from one process
    assert checkpoints.load_state(out / checkpoints.STATE_FILE)[1].step == 3
    totals = []
    for rank in range(2):
        run = training.build(chosen, "hair_color", {}, has_refused=False)
        learnt, _ = training.datasets(run, pairs, sides, {}, None)
        plan = data.batches(len(learnt), 2, chosen.seed, 0, 1, rank, 2)
        batch = next(data.load_batches(learnt, plan, torch.device("cpu"), 0))
        totals.append(float(training.training_step(run, batch)["total"]))
    assert abs(totals[0] - totals[1]) > 1e-3
    assert read_metrics(out / "metrics.jsonl")[0]["total"] == pytest.approx(sum(totals) / 2, rel=1e-5)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("ACCELERATE_MIXED_PRECISION", "fp16", r"mixed precision fp16, of accelerate.s launch.*launch with bf16 or no"),
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4", "gradients are not accumulated here"),
    ],
)
def test_what_a_launch_asks_for_in_vain_is_refused(
    settings: Make, monkeypatch: pytest.MonkeyPatch, name: str, value: str, message: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=message):
        training.build(settings(), "hair_color", {})


def test_precision_that_the_settings_name_is_not_the_launchs(settings: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    assert training.build(settings(mixed_precision="no"), "hair_color", {}).accelerator.mixed_precision == "no"


def test_run_that_goes_on_with_another_number_of_processes_says_so(tmp_path: Path, pairs: Path, settings: Make) -> None:
    out = training.train(settings(steps=2), pairs, tmp_path / "run")
    tensors, details = checkpoints.load_state(out / checkpoints.STATE_FILE)
    assert details.processes == 1
    told: list[str] = []
    training.train(settings(steps=2), pairs, out, told.append)
    assert not [line for line in told if "so far" in line]
    others = details.model_copy(update={"processes": 2})
    checkpoints.save_state(out / checkpoints.STATE_FILE, tensors, others)
    training.train(settings(steps=2), pairs, out, told.append)
    assert f"{out}: processes 2 so far, 1 now: it goes on with other batches than it would have had" in told


class Killed(torch.utils.data.Dataset[torch.Tensor]):
    """Whose loader is killed by whoever asks for a sample, as by a system that is out of memory."""

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> torch.Tensor:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError


def test_loader_that_is_killed_is_one_line() -> None:
    with (
        pytest.raises(InputError, match=r"a loader process was killed .* goes on from the last"),
        data.killed_loader_is_told(),
    ):
        next(iter(torch.utils.data.DataLoader(Killed(), num_workers=1)))
    with pytest.raises(RuntimeError, match="a bug"), data.killed_loader_is_told():
        raise RuntimeError("a bug")


def test_loaders_are_as_many_as_the_cores_that_this_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1, 2}, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert data.loader_workers(torch.device("cuda")) == 2
    assert data.loader_workers(torch.device("cpu")) == 0
