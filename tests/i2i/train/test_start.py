"""What runs start from: other networks, weights of another edit, a teacher; recipes of networks are whole."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from stylepairs.datagen.recipe import installed_recipes, load_recipe
from stylepairs.datagen.shell.durable import file_digest
from stylepairs.datagen.shell.errors import InputError
from stylepairs.i2i.models.checkpoints import ModelInfo, load_model, save_model
from stylepairs.i2i.models.glean import Glean, GleanConfig
from stylepairs.i2i.models.plain import Plain, PlainConfig
from stylepairs.i2i.train.run_folder import describe, read_metrics
from stylepairs.i2i.train.settings import TrainingSettings
from stylepairs.i2i.train.start import initial_model, refuse_divided, settings_told
from stylepairs.i2i.train.training import build, lesson, train

Make = Callable[..., TrainingSettings]
NETWORKS = Path(__file__).parents[3] / "recipes" / "networks"
SHAPES = {"channel_base": 256, "channel_max": 16, "width": 4}
RUN = describe({"steps": 4, "seed": 0}, "hair_color", "a" * 64, "b" * 64)
PATCHES: dict[str, Any] = {
    "losses": {"layers": 10.0, "adversarial": 1.0, "mask": 0.0, "confidence": 0.0, "generated": 0.0, "latent": 0.0},
    "discriminator": {"kind": "patches", "width": 4},
}


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        pytest.param("light", {}, marks=pytest.mark.slow),
        ("thawed", {}),
        pytest.param("cut", {}, marks=pytest.mark.slow),
        pytest.param("unet", PATCHES, marks=pytest.mark.slow),
        pytest.param("pix2pixhd", PATCHES, marks=pytest.mark.slow),
    ],
)
def test_other_networks_train_in_the_same_loop_and_go_on_exactly(
    tmp_path: Path, pairs: Path, settings: Make, kind: str, changes: dict[str, Any]
) -> None:
    model = {"kind": kind, **SHAPES}
    whole = train(settings(steps=2, checkpoint_every_steps=1, model=model, **changes), pairs, tmp_path / "whole")
    train(settings(steps=1, checkpoint_every_steps=1, model=model, **changes), pairs, tmp_path / "parts")
    parts = train(settings(steps=2, checkpoint_every_steps=1, model=model, **changes), pairs, tmp_path / "parts")
    one, two = (load_model(each)[0].state_dict() for each in (whole, parts))
    assert [name for name in one if not torch.equal(one[name], two[name])] == []
    figures = [line for line in read_metrics(whole / "metrics.jsonl") if line["kind"] == "train"][-1]
    assert ("layers" in figures) == (changes is PATCHES)


def test_thawed_generator_learns_and_a_frozen_one_does_not(settings: Make, generator) -> None:
    for kind in ("thawed", "glean"):
        model = build(settings(model={"kind": kind, **SHAPES}), "hair_color", {}).model
        learns = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        assert any(name.startswith("generator.synthesis.") for name in learns) == (kind == "thawed")
        assert learns <= model.trainable_state().keys()


def test_weights_of_another_edit_are_taken_over_but_for_style_and_colours(
    tmp_path: Path, settings: Make, drawing: Glean
) -> None:
    for parameter in drawing.parameters():
        parameter.requires_grad_(False).add_(0.05 * torch.randn(parameter.shape))
    save_model(tmp_path / "fringes.safetensors", drawing, ModelInfo("bangs", "color", {}))
    asked = settings(style="params", losses={}, init=str(tmp_path / "fringes.safetensors"),
                     model={**SHAPES, "draws": True})  # fmt: skip
    photo, region = torch.rand(1, 3, 32, 32), torch.ones(1, 1, 32, 32)
    with torch.no_grad():
        wanted = drawing(photo, region, torch.ones(1), torch.zeros(1, 3))
        other = initial_model(asked, "hairline", {"where": list("abcde")}, None)  # a style code of another length
        found = other(photo, region, torch.ones(1), torch.randn(1, 5))
        torch.testing.assert_close(found.output, wanted.output)
        recolours = initial_model(asked.model_copy(update={"model": asked.model.model_copy(update={"draws": False})}),
                                  "hair_color", {"where": list("abc")}, None)  # fmt: skip
        assert isinstance(recolours, Glean)
        assert torch.equal(recolours.decoder.out.weight[-1], drawing.decoder.out.weight[-1])
        assert torch.equal(recolours(photo, region, torch.ones(1), torch.zeros(1, 3)).output, photo)


@pytest.mark.parametrize("kind", ["glean", "light"])
def test_what_moves_begins_with_the_mask_of_what_did_not(tmp_path: Path, settings: Make, kind: str) -> None:
    asked = settings(style="none", losses={}, model={"kind": kind, **SHAPES})
    still = initial_model(asked, "smile", {}, None).requires_grad_(False).eval()
    for parameter in still.parameters():
        parameter.add_(0.05 * torch.randn(parameter.shape))
    save_model(tmp_path / "still.safetensors", still, ModelInfo("smile", "none", {}))
    asked = settings(style="none", losses={}, init=str(tmp_path / "still.safetensors"),
                     model={"kind": kind, "moves": True, **SHAPES})  # fmt: skip
    moves = initial_model(asked, "smile", {}, None).eval()
    inputs = torch.rand(1, 3, 32, 32), torch.ones(1, 1, 32, 32), torch.ones(1), torch.zeros(1, 0)
    with torch.no_grad():
        torch.testing.assert_close(moves(*inputs).mask_logits, still(*inputs).mask_logits)
        torch.testing.assert_close(moves(*inputs).output, inputs[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize(("first", "then"), [("draws", "moves"), ("moves", "draws"), ("draws", "recolours")])
def test_a_light_network_begins_with_the_mask_of_what_drew_or_moved(
    tmp_path: Path, settings: Make, first: str, then: str
) -> None:
    ways = {name: {"kind": "light", "draws": name == "draws", "moves": name == "moves"} for name in (first, then)}
    trained = initial_model(settings(style="none", losses={}, model=ways[first]), "bangs", {}, None).eval()
    assert isinstance(trained, Plain)
    for parameter in trained.parameters():
        parameter.requires_grad_(False).add_(0.05 * torch.randn(parameter.shape))
    trained.noise.zero_()
    save_model(tmp_path / "first.safetensors", trained, ModelInfo("bangs", "none", {}))
    asked = settings(style="none", losses={}, init=str(tmp_path / "first.safetensors"), model=ways[then])
    other = initial_model(asked, "hairline", {}, None).requires_grad_(False).eval()
    inputs = torch.rand(1, 3, 32, 32), torch.ones(1, 1, 32, 32), torch.ones(1), torch.zeros(1, 0)
    torch.testing.assert_close(other(*inputs).mask_logits, trained(*inputs).mask_logits)


@pytest.mark.parametrize("kind", ["light", "cut"])
def test_a_light_network_goes_on_at_another_side(tmp_path: Path, settings: Make, kind: str) -> None:
    large = Plain(PlainConfig(kind, 64, 3, False, *SHAPES.values())).requires_grad_(False).eval()
    for parameter in large.parameters():
        parameter.add_(0.05 * torch.randn(parameter.shape))
    save_model(tmp_path / "large.safetensors", large, ModelInfo("hair_color", "color", {}))
    asked = settings(style="color", init=str(tmp_path / "large.safetensors"), model={"kind": kind, **SHAPES})
    if kind == "cut":  # it has layers for each side
        with pytest.raises(InputError, match=r"size_px=64.*the recipe asks for.*size_px=32"):
            initial_model(asked, "hair_color", {}, None)
        return
    small = initial_model(asked, "hair_color", {}, None)
    assert small.noise.shape[-1] == 32
    ours, theirs = small.network.state_dict(), large.network.state_dict()
    assert not [name for name in ours if not torch.equal(ours[name], theirs[name])]


@pytest.mark.parametrize("changes", [{"draws": True}, {"kind": "unet"}])
@pytest.mark.parametrize("way", ["moves", "tints"])
def test_what_makes_an_image_of_its_own_does_not_move_or_tint(
    settings: Make, way: str, changes: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match=rf"model\.{way}: what makes an image of its own"):
        settings(style="color", model={way: True, **SHAPES, **changes})


def test_what_tints_is_told_a_colour(settings: Make) -> None:
    with pytest.raises(ValueError, match=r"model\.tints needs style: color"):
        settings(style="params", losses={}, model={"tints": True, **SHAPES})


ONE_STYLE = {"volume": [0.1, 0.5], "where": ["both", "crown"]}


@pytest.mark.parametrize("kind", ["glean", "light", "unet"])
@pytest.mark.parametrize(
    ("feature", "kinds", "is_read"),
    [
        ("fluffiness", ONE_STYLE, True),
        ("fluffiness", ONE_STYLE | {"volume": [0.2, 0.7]}, True),
        ("fluffiness", {"volume": [0.1, 0.5], "where": ["crown", "sides"]}, False),
        ("bangs", ONE_STYLE, False),
    ],
)
def test_style_is_taken_over_from_the_same_edit_alone(
    tmp_path: Path, settings: Make, kind: str, feature: str, kinds: dict[str, list[Any]], is_read: bool
) -> None:
    asked = settings(style="params", losses={}, model={"kind": kind, **SHAPES})
    trained = initial_model(asked, "fluffiness", ONE_STYLE, None).requires_grad_(False).eval()
    for parameter in trained.parameters():
        parameter.add_(0.05 * torch.randn(parameter.shape))
    save_model(tmp_path / "one.safetensors", trained, ModelInfo("fluffiness", "params", {}, ONE_STYLE))
    asked = asked.model_copy(update={"init": str(tmp_path / "one.safetensors")})
    other = initial_model(asked, feature, kinds, None).requires_grad_(False).eval()
    inputs = torch.rand(1, 3, 32, 32), torch.ones(1, 1, 32, 32), torch.ones(1)
    silent, told = (other(*inputs, style).edit for style in (torch.zeros(1, 3), torch.tensor([[0.5, 1.0, 0.0]])))
    assert torch.equal(silent, told) != is_read
    torch.testing.assert_close(silent, trained(*inputs, torch.zeros(1, 3)).edit)


@pytest.mark.parametrize("feature", ["bangs+hair_color", "../freckles.py"])
def test_of_features_that_cannot_be_shipped_a_start_is_refused_by_its_name(settings: Make, feature: str) -> None:
    with pytest.raises(InputError, match=f"embedded: no weights are shipped for {re.escape(feature)}; name others"):
        initial_model(settings(init="embedded"), feature, {}, None)


def test_teacher_takes_the_pairs_place_where_the_feature_applies(
    tmp_path: Path, settings: Make, pairs: Path, generator
) -> None:
    torch.manual_seed(4)
    teacher = Glean(generator, GleanConfig(3, 256, 16))
    for parameter in teacher.parameters():
        parameter.requires_grad_(False).add_(0.05 * torch.randn(parameter.shape))
    path = tmp_path / "teacher.safetensors"
    save_model(path, teacher, ModelInfo("hair_color", "color", {}))
    asked = settings(steps=1, teacher=str(path), model={"kind": "light", **SHAPES})
    run = build(asked, "hair_color", {}, teacher)
    assert isinstance(run.model, Plain)
    assert torch.equal(run.model.noise, generator.noise_maps()[-1])
    batch = {
        "photo": torch.rand(2, 3, 32, 32), "target": torch.rand(2, 3, 32, 32), "mask": torch.ones(2, 1, 32, 32),
        "edit_mask": torch.ones(2, 1, 32, 32),
        "region": torch.ones(2, 1, 32, 32), "degree": torch.ones(2), "style": torch.randn(2, 3),
        "applies": torch.tensor([1.0, 0.0]),
    }  # fmt: skip
    with torch.no_grad():
        edit = teacher(batch["photo"], batch["region"], batch["degree"], batch["style"])
    taught = lesson(run, batch)
    torch.testing.assert_close(taught["target"][0], edit.output[0].clamp(-1, 1), rtol=0, atol=0.05)
    assert torch.equal(taught["target"][1], batch["target"][1])
    assert not taught["edit_mask"][1].any()
    out = train(asked, pairs, tmp_path / "run")
    assert load_model(out)[1].feature == "hair_color"


def test_model_file_tells_the_files_it_came_from_by_digest_and_the_run_goes_on(
    tmp_path: Path, settings: Make, pairs: Path, model: Glean
) -> None:
    path = tmp_path / "private" / "start.safetensors"
    save_model(path, model, ModelInfo("hair_color", "color", {}))
    asked = {"init": str(path), "teacher": str(path), "checkpoint_every_steps": 1}
    for steps in (1, 2):
        out = train(settings(steps=steps, **asked), pairs, tmp_path / "run")
        training = load_model(out)[1].training
        assert str(tmp_path) not in str(training)
        assert training["settings"]["init"] == training["settings"]["teacher"] == f"sha256:{file_digest(path)}"
    lines = read_metrics(out / "metrics.jsonl")
    assert [line["step"] for line in lines if line["kind"] == "train"] == [1, 2]
    save_model(path, model, ModelInfo("hair_color", "color", {"another": "training"}))
    with pytest.raises(InputError, match="holds another run"):
        train(settings(steps=3, **asked), pairs, tmp_path / "run")
    shipped = settings_told(settings(init="embedded:bangs"), "hair_color")
    assert (shipped["init"], shipped["teacher"]) == ("embedded:bangs", "none")


def test_teacher_of_another_size_is_refused(tmp_path: Path, settings: Make, pairs: Path) -> None:
    torch.manual_seed(0)
    save_model(tmp_path / "teacher.safetensors", Plain(PlainConfig("light", 64)), ModelInfo("hair_color", "color", {}))
    with pytest.raises(InputError, match=r"teacher .*: works at 64 px, this run's network at 32 px; give"):
        train(settings(teacher=str(tmp_path / "teacher.safetensors")), pairs, tmp_path / "run")


def test_a_generator_that_the_teacher_takes_the_place_of_is_said(
    tmp_path: Path, settings: Make, pairs: Path, model: Glean
) -> None:
    save_model(tmp_path / "teacher.safetensors", model, ModelInfo("hair_color", "color", {}))
    said: list[str] = []
    train(settings(steps=1, teacher=str(tmp_path / "teacher.safetensors")), pairs, tmp_path / "run", said.append)
    assert any("the generator comes with teacher" in line for line in said)


def test_teacher_of_another_edit_is_refused(tmp_path: Path, settings: Make, pairs: Path, model: Glean) -> None:
    save_model(tmp_path / "teacher.safetensors", model, ModelInfo("bangs", "color", {}))
    with pytest.raises(InputError, match="edits bangs by style color, this run hair_color by style color"):
        train(settings(teacher=str(tmp_path / "teacher.safetensors")), pairs, tmp_path / "run")


@pytest.mark.parametrize("path", sorted(NETWORKS.glob("*.yaml")), ids=lambda path: path.stem)
def test_recipe_of_a_network_holds_what_training_asks_for(path: Path) -> None:
    settings = load_recipe(str(path), "i2i", TrainingSettings)
    assert settings.model.kind == path.stem.partition("_")[0]


@pytest.mark.parametrize("said, understood", [("no", "no"), ("'no'", "no"), ("bf16", "bf16"), ("auto", "auto")])
def test_no_precision_is_a_word_though_yaml_reads_a_truth_value(said: str, understood: str) -> None:
    found = load_recipe("bangs", "i2i", TrainingSettings, [f"mixed_precision={said}"])
    assert found.mixed_precision == understood


@pytest.mark.parametrize("name", installed_recipes())
def test_every_feature_is_trained_in_what_the_machine_is_quick_at(name: str) -> None:
    assert load_recipe(name, "i2i", TrainingSettings).mixed_precision == "auto"


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
