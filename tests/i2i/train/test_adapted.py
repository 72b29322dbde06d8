"""Low-rank deltas on a trained editor: they start at it, learn alone, fold into it, and travel without it."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from stylepairs.datagen.shell.durable import file_digest
from stylepairs.datagen.shell.errors import InputError
from stylepairs.i2i.models import checkpoints
from stylepairs.i2i.models.adapters import attach, folded, on_base
from stylepairs.i2i.models.checkpoints import Base, ModelInfo, load_model, save_adapter, save_model
from stylepairs.i2i.models.glean import Glean
from stylepairs.i2i.train.run_folder import read_metrics
from stylepairs.i2i.train.settings import TrainingSettings
from stylepairs.i2i.train.start import initial_model
from stylepairs.i2i.train.training import train

Make = Callable[..., TrainingSettings]
DICE = torch.Generator().manual_seed(0)
PHOTOS, STYLES = torch.rand(2, 3, 32, 32, generator=DICE), torch.randn(2, 3, generator=DICE)
INPUTS = PHOTOS, torch.ones(2, 1, 32, 32), torch.ones(2), STYLES


@pytest.fixture
def base(tmp_path: Path, model: Glean) -> Path:
    """A tiny editor that has learnt something, in a folder of its own."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    path = tmp_path / "base" / "fringes.safetensors"
    save_model(path, model, ModelInfo("bangs", "color", {}))
    return path


def test_deltas_start_at_the_base_and_fold_into_its_weights(model: Glean, base: Path) -> None:
    ordinary, before = copy.deepcopy(model), model.state_dict()
    with torch.no_grad():
        wanted = model(*INPUTS)
        attach(model, 2, before)
        assert all(torch.equal(one, two) for one, two in zip(model(*INPUTS), wanted, strict=True))
        for name, parameter in model.named_parameters():
            if name.endswith(".up"):
                parameter.normal_(std=0.2)
        found, state = model(*INPUTS), folded(model.state_dict())
        ordinary.load_state_dict(state)
        torch.testing.assert_close(ordinary(*INPUTS).output, found.output, rtol=0, atol=1e-5)
        assert (found.output - wanted.output).abs().max() > 1e-3
        for name, tensor in on_base(before, model.trainable_state()).items():
            assert torch.equal(tensor, state[name])


def test_only_deltas_biases_and_what_is_not_the_bases_learn(base: Path, settings: Make) -> None:
    asked = settings(style="params", losses={}, init=str(base), adapter_rank=2)
    model = initial_model(asked, "hair_color", {"where": ["a", "b", "c", "d", "e"]}, None)  # a longer style code
    learns = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert learns == model.trainable_state().keys()
    kinds = {name.rpartition(".")[2] for name in learns}
    assert kinds == {"up", "down", "bias", "weight"}
    assert "encoder.stem.weight" in learns  # reads the style
    assert {name for name in learns if "encoder.downs.0" in name and "bias" not in name} == {
        f"encoder.downs.0.{conv}.parametrizations.weight.0.{factor}"
        for conv in ("conv0", "conv1", "skip") for factor in ("down", "up")
    }  # fmt: skip
    model(*INPUTS[:3], torch.randn(2, 5)).output.sum().backward()
    assert {name for name, parameter in model.named_parameters() if parameter.grad is not None} <= learns


def test_an_adapted_run_goes_on_exactly_and_is_an_ordinary_run_besides_its_adapter(
    tmp_path: Path, base: Path, pairs: Path, settings: Make
) -> None:
    asked = {"init": str(base), "adapter_rank": 2, "checkpoint_every_steps": 1, "losses": {"adversarial": 0.0}}
    parts = train(settings(steps=2, **asked), pairs, tmp_path / "parts")
    whole = Path(shutil.copytree(parts, tmp_path / "whole"))
    (parts / checkpoints.STATE_FILE).unlink()
    train(settings(steps=2, **asked), pairs, parts)  # from the first step
    for name in (checkpoints.STATE_FILE, checkpoints.MODEL_FILE, checkpoints.ADAPTER_FILE):
        one, two = load_file(whole / name), load_file(parts / name)
        assert one.keys() == two.keys()
        assert [key for key in one if not torch.equal(one[key], two[key])] == []
    assert read_metrics(whole / "metrics.jsonl") == read_metrics(parts / "metrics.jsonl")
    assert (whole / "best" / checkpoints.ADAPTER_FILE).is_file()

    adapter = tmp_path / "elsewhere" / "adapter.safetensors"
    shutil.copytree(whole, adapter.parent, ignore=lambda *_: {"base.safetensors"})
    with pytest.raises(InputError, match=r"its base, the editor with sha256 .* is not here; lay it beside as base"):
        load_model(adapter)
    shutil.copy(base, adapter.with_name("base.safetensors"))
    model, info = load_model(whole)
    alike, told = load_model(adapter)
    assert (info, info.feature) == (told, "hair_color")
    with torch.no_grad():
        started, found, again = (each(*INPUTS).output for each in (load_model(base)[0], model, alike))
    torch.testing.assert_close(again, found, rtol=0, atol=2e-3)  # of float16
    assert (found - started).abs().max() > 1e-3
    assert str(tmp_path) not in str(info.training)

    save_model(base, model, ModelInfo("bangs", "color", {}))
    with pytest.raises(InputError, match=r"another run \(settings differ: base\.sha256"):
        train(settings(steps=3, **asked), pairs, whole)


def test_an_adapter_of_a_shipped_editor_finds_it_and_no_other(tmp_path: Path) -> None:
    model, info = load_model("embedded:bangs")
    before = copy.deepcopy(model.state_dict())
    file = checkpoints.model_path("embedded:bangs")
    attach(model, 8, model.state_dict())
    told = ModelInfo(info.feature, info.style, {"base": asdict(Base("embedded:bangs", file_digest(file)))}, info.kinds)
    path = tmp_path / "adapter.safetensors"
    save_adapter(path, model, told)
    assert 10 * path.stat().st_size < file.stat().st_size
    found = load_model(path)[0].state_dict()
    for name, tensor in before.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=1e-3, msg=name)
    told.training["base"]["sha256"] = "0" * 64
    save_adapter(path, model, told)
    with pytest.raises(InputError, match="sha256 0000"):
        load_model(path)


def test_an_adapter_that_does_not_fit_is_one_line(tmp_path: Path, base: Path) -> None:
    model, _ = load_model(base)
    attach(model.requires_grad_(True), 2, model.state_dict())
    state, path = model.trainable_state(), base.with_name("adapter.safetensors")
    base.rename(path.with_name("base.safetensors"))
    digest = file_digest(path.with_name("base.safetensors"))
    info = ModelInfo("bangs", "color", {"base": asdict(Base("base.safetensors", digest))})
    for name, tensor in (
        ("encoder.downs.0.conv0.parametrizations.weight.0.up", torch.zeros(1_000_000, 2)),
        ("encoder.downs.0.conv0.parametrizations.weight.0.down", torch.zeros(2, 1000)),
        ("encoder.downs.0.conv0.parametrizations.weight.0.sideways", torch.zeros(1)),
        ("encoder.nothing.parametrizations.weight.0.up", torch.zeros(16, 2)),
        ("encoder.stem.bias", torch.zeros(99)),
        ("encoder.downs.0.conv0.parametrizations.weight.0.down", torch.zeros(())),
        ("nothing", torch.zeros(1)),
    ):
        model.trainable_state = lambda hostile={name: tensor}: state | hostile  # type: ignore[misc]
        save_adapter(path, model, info)
        with pytest.raises(InputError, match=r"do(es)? not fit"):
            load_model(path)


def test_deltas_need_a_base_and_layers_that_are_larger(base: Path, settings: Make) -> None:
    with pytest.raises(InputError, match=r"adapter_rank 99: .* choose a lower one"):
        initial_model(settings(init=str(base), adapter_rank=99), "hair_color", {}, None)
    with pytest.raises(ValidationError, match="adapter_rank needs an init"):
        settings(adapter_rank=2)
