"""Editors without a generator: called, saved and exported as the others; where they start, and what regions hold."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from stylepairs.datagen.shell.errors import InputError
from stylepairs.i2i.models.checkpoints import ModelInfo, load_model, save_model
from stylepairs.i2i.models.export import export
from stylepairs.i2i.models.plain import PUBLISHED, Plain, PlainConfig
from stylepairs.i2i.models.prepared_glean import prepare

KINDS = ("light", "cut", *PUBLISHED)
INFO = ModelInfo("hair_color", "color", {"steps": 6})


def plain(kind: str, draws: bool = False, size_px: int = 32, moves: bool = False) -> Plain:
    torch.manual_seed(1)
    shapes = {"width": 4, "channel_base": 256, "channel_max": 16}
    model = Plain(PlainConfig(kind, size_px, 3, draws, **shapes, moves=moves))  # type: ignore[arg-type]
    model.noise.normal_()
    return model.eval()


def inputs(n: int = 2, size_px: int = 32) -> list[torch.Tensor]:
    torch.manual_seed(2)
    region = torch.zeros(n, 1, size_px, size_px)
    region[:, :, : size_px // 2] = 1
    return [torch.rand(n, 3, size_px, size_px) * 2 - 1, region, torch.ones(n), torch.randn(n, 3)]


@pytest.mark.parametrize("draws", [False, True])
@pytest.mark.parametrize("kind", ["light", "cut"])
def test_untrained_edit_is_the_photo(kind: str, draws: bool) -> None:
    edit = plain(kind, draws)(*inputs())
    torch.testing.assert_close(edit.output, inputs()[0])
    assert edit.confidence.tolist() == [0.5, 0.5]


@pytest.mark.parametrize("kind", KINDS)
def test_outside_of_its_region_nothing_changes_and_its_maps_say_the_edit(kind: str) -> None:
    model, (photo, region, degree, style) = plain(kind), inputs()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        edit = model(photo, region, degree, style)
        other = model(photo, region, degree, style + 1)
    assert torch.equal(edit.output * (1 - region), photo * (1 - region))
    assert not torch.equal(edit.output, photo)
    assert not torch.equal(edit.output, other.output)
    said = photo + edit.mask * (edit.gain * (photo + 1) + edit.bias)
    torch.testing.assert_close(said, edit.output)


@pytest.mark.parametrize("kind", ["light", "cut"])
def test_what_moves_takes_pixels_from_elsewhere(kind: str) -> None:
    model, (photo, region, degree, style) = plain(kind, moves=True), inputs()
    torch.testing.assert_close(model(photo, region, degree, style).output, photo)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        edit = model(photo, region, degree, style)
    assert edit.flow.abs().max() > 0.01
    assert torch.equal(edit.output * (1 - region), photo * (1 - region))


@pytest.mark.parametrize("kind", PUBLISHED)
def test_published_networks_do_not_move(kind: str) -> None:
    with pytest.raises(ValueError, match="cannot move or tint the photo's"):
        plain(kind, moves=True)


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_gets_a_gradient(kind: str) -> None:
    model = plain(kind, draws=True).train()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    edit = model(*inputs(4))
    (edit.output.square().mean() + edit.confidence_logits.mean() + edit.mask_logits.mean()).backward()
    # A bias before a norm is taken off again.
    silent = [name for name, p in model.named_parameters() if p.grad is None]
    assert silent == []


@pytest.mark.parametrize("kind", KINDS)
def test_saved_model_is_the_same_and_edits_prepared(tmp_path: Path, kind: str) -> None:
    model = plain(kind, draws=kind == "light")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    save_model(tmp_path / "model.safetensors", model, INFO)
    loaded, info = load_model(tmp_path / "model.safetensors")
    assert (loaded.config, info) == (model.config, INFO)
    with torch.no_grad():
        torch.testing.assert_close(prepare(loaded)(*inputs()).output, model(*inputs()).output, rtol=0, atol=1e-4)


def test_file_that_claims_another_shape_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = plain("light")
    path = tmp_path / "model.safetensors"
    for size_px in (48, 1 << 40):
        object.__setattr__(model.config, "size_px", size_px)
        save_model(path, model, INFO)
        with pytest.raises(InputError, match="do not fit together"):
            load_model(path)


def test_light_network_is_small() -> None:
    assert sum(parameter.numel() for parameter in plain("light", draws=True).parameters()) < 3_000_000


@pytest.mark.slow
def test_exported_light_network_gives_the_same(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    model = plain("light", draws=True)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    export(model, INFO, tmp_path / "light.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "light.onnx"), providers=["CPUExecutionProvider"])
    given = inputs()
    names = [each.name for each in session.get_inputs()]
    output, mask, *_ = session.run(None, {name: x.numpy() for name, x in zip(names, given, strict=True)})
    with torch.no_grad():
        edit = model(*given)
    torch.testing.assert_close(torch.from_numpy(output), edit.output.clamp(-1, 1), rtol=0, atol=1e-4)
    torch.testing.assert_close(torch.from_numpy(mask), edit.mask, rtol=0, atol=1e-4)
