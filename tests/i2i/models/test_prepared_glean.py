"""The frozen editor equals the trained one: to 1e-4 in float32, to a grey level or two in bfloat16."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from stylepairs.datagen.stylegan.generator import Generator
from stylepairs.i2i.models.checkpoints import load_model
from stylepairs.i2i.models.glean import Glean
from stylepairs.i2i.models.prepared_glean import prepare
from stylepairs.kernels.precision import fastest_dtype

Inputs = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


@pytest.fixture(params=["model", "drawing", "moving", "tinting"])
def trained(request) -> Glean:
    """As after training: nothing that begins at zero is zero any more."""
    model = request.getfixturevalue(request.param)
    torch.manual_seed(5)
    for parameter in model.parameters():
        parameter.requires_grad_(False).add_(0.05 * torch.randn(parameter.shape))
    for layer in model.generator.synthesis.noisy_layers():
        layer.noise_strength.fill_(0.3)
    return model.eval()


def inputs_of(size_px: int, count: int = 3) -> Inputs:
    torch.manual_seed(6)
    photo, region = torch.rand(count, 3, size_px, size_px) * 2 - 1, torch.rand(count, 1, size_px, size_px)
    return photo, region, torch.rand(count), torch.rand(count, 3)


@pytest.mark.parametrize("clamp", [None, 1.0])
def test_float32_equals_the_module(trained: Glean, clamp: float | None) -> None:
    if clamp is not None:
        generator = Generator(replace(trained.generator.config, conv_clamp=clamp)).eval()
        generator.load_state_dict(trained.generator.state_dict())
        trained.generator = generator
    inputs = inputs_of(32)
    with torch.no_grad():
        expected = trained(*inputs)
    edit = prepare(trained, torch.float32)(*inputs)
    assert (expected.gain.abs().max() > 0.1) & (expected.ws - trained.generator.mapping.w_avg).any()
    for name, value in expected._asdict().items():
        scale = float(value.abs().max())
        torch.testing.assert_close(getattr(edit, name), value, rtol=0, atol=1e-4 * max(scale, 1), msg=name)


def test_bfloat16_gives_the_same_picture_to_a_level_or_two_but_for_single_pixels() -> None:
    model, _ = load_model("embedded")
    photo, region, _, _ = inputs_of(16, count=1)
    photo, region = (torch.nn.functional.interpolate(x, size=model.size_px, mode="bilinear") for x in (photo, region))
    inputs = photo, region, torch.ones(1), torch.tensor([[0.4, 0.2, 0.4]])
    with torch.no_grad():
        expected = levels(model(*inputs).output)
    found = levels(prepare(model, torch.bfloat16)(*inputs).output)
    assert (expected - levels(photo)).abs().max() > 20  # it edits
    apart = (found - expected).abs()
    assert apart.max() <= 4
    assert (apart > 2).float().mean() < 1e-3
    assert apart.mean() < 0.1


def levels(image: torch.Tensor) -> torch.Tensor:
    return ((image.clamp(-1, 1) + 1) * 127.5).round()


def test_model_is_left_as_it_is_and_results_repeat(trained: Glean) -> None:
    before = {name: value.clone() for name, value in trained.state_dict().items()}
    prepared, inputs = prepare(trained), inputs_of(32, count=1)
    first, second = (prepared(*inputs).output for _ in range(2))
    assert torch.equal(first, second)
    assert all(torch.equal(before[name], value) for name, value in trained.state_dict().items())
    assert not any(value.requires_grad for value in prepared.parameters())


def test_wrong_size_is_refused(trained: Glean) -> None:
    with pytest.raises(ValueError, match="works at 32 px"):
        prepare(trained)(*inputs_of(16))


def test_dtype_follows_the_processor(monkeypatch: pytest.MonkeyPatch, trained: Glean) -> None:
    for native, dtype in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda native=native: native)
        assert fastest_dtype("cpu") == prepare(trained).dtype == dtype
    assert fastest_dtype("cuda") == torch.float32
