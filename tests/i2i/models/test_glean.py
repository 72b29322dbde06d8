"""The editor's network: starts from the prior and the photo, trains every branch, touches nothing outside its mask."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from stylepairs.datagen.images.colors import lab_to_srgb, srgb_to_lab
from stylepairs.datagen.images.tones import logit, toned
from stylepairs.datagen.stylegan.generator import Generator, GeneratorConfig
from stylepairs.i2i.models.conditions import decode_color, encode_color, style_of
from stylepairs.i2i.models.glean import MAX_SHIFT, Asked, Edit, Glean, GleanConfig, stretched_sigmoid, taken_from, tint
from stylepairs.i2i.train.losses import mean_color


def inputs(n: int = 2, size_px: int = 32) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    photo = torch.rand(n, 3, size_px, size_px) * 2 - 1
    region = torch.zeros(n, 1, size_px, size_px)
    region[:, :, : size_px // 2] = 1
    return photo, region, torch.ones(n), torch.randn(n, 3)


def randomised(model: Glean) -> Glean:
    """The model as after some training: nothing is zero any more."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("moves", [False, True])
def test_untrained_model_keeps_the_prior_and_the_photo(
    model: Glean, moving: Glean, generator: Generator, moves: bool
) -> None:
    model = moving if moves else model
    photo, region, degree, style = inputs()
    edit: Edit = model(photo, region, degree, style)
    ws = generator.mapping.w_avg.expand(2, generator.num_ws, -1)
    torch.testing.assert_close(edit.generated, generator.synthesis(ws), rtol=0, atol=1e-6)
    torch.testing.assert_close(edit.output, photo, rtol=0, atol=1e-5 if moves else 0)
    assert torch.equal(edit.mask, region / 2)
    assert edit.confidence.tolist() == [0.5, 0.5]


def test_untrained_model_that_draws_shows_the_prior(drawing: Glean) -> None:
    edit = drawing(*inputs())
    torch.testing.assert_close(edit.edit, edit.generated)


@pytest.mark.parametrize("kind", ["model", "drawing", "moving", "tinting"])
def test_every_trainable_parameter_gets_a_gradient(kind: str, request: pytest.FixtureRequest) -> None:
    model = randomised(request.getfixturevalue(kind))
    edit = model(*inputs())
    (edit.output.square().mean() + edit.confidence_logits.mean()).backward()
    silent = [n for n, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert silent == []


def test_what_is_drawn_comes_through_the_generator_and_its_gradient_reaches_latents_and_fusion(drawing: Glean) -> None:
    edit = drawing(*inputs())  # untrained: the decoder adds nothing yet, all comes by the generator's way
    edit.output.square().mean().backward()
    for part in (drawing.to_latents.offsets, drawing.fusion["4"].conv, drawing.fusion["32"].conv):
        assert part.weight.grad is not None
        assert part.weight.grad.any()


def test_what_is_drawn_holds_nothing_of_the_photo_in_its_maps(drawing: Glean) -> None:
    photo, region, degree, style = inputs()
    edit = randomised(drawing)(photo, region, degree, style)
    assert torch.equal(edit.gain, torch.full_like(photo, -1))
    pasted = photo + edit.mask * (edit.gain * (photo + 1) + edit.bias)
    torch.testing.assert_close(edit.output, pasted, rtol=0, atol=1e-5)


def test_what_moves_says_by_its_maps_what_it_shows(moving: Glean) -> None:
    photo, region, degree, style = inputs()
    edit = randomised(moving)(photo, region * 0.7, degree, style)
    assert 0.01 < edit.flow.abs().max() <= MAX_SHIFT
    moved = taken_from(photo, edit.mask * edit.flow)
    shown = moved + edit.mask * (edit.gain * (moved + 1) + edit.bias)
    torch.testing.assert_close(edit.output, shown, rtol=0, atol=1e-5)
    assert (moved - photo).abs().max() > 0.01


def test_pixels_are_taken_from_where_the_flow_points() -> None:
    photo = torch.rand(2, 3, 16, 16)
    flow = torch.zeros(2, 2, 16, 16)
    flow[0, 0], flow[1, 1] = 3 / 16, -2 / 16
    found = taken_from(photo, flow)
    torch.testing.assert_close(found[0, :, :, :13], photo[0, :, :, 3:])
    torch.testing.assert_close(found[0, :, :, 13:], photo[0, :, :, 15:].expand(-1, -1, 3))  # the border goes on
    torch.testing.assert_close(found[1, :, 2:], photo[1, :, :-2])


def test_what_draws_does_not_move() -> None:
    for way in ("moves", "tints"):
        with pytest.raises(ValueError, match="cannot move or tint the photo's"):
            GleanConfig(draws=True, **{way: True})


OWN = style_of("color", {"color": "own"}, feature="lips")
RED = style_of("color", {"color": "red"}, feature="lips")


def asked_of(degree: float, *codes: torch.Tensor) -> Asked:
    """Smooth photos in the middle of the gamut."""
    torch.manual_seed(7)
    photo = F.interpolate(torch.rand(len(codes), 3, 6, 6) * 0.3 - 0.15, size=(32, 32), mode="bilinear")
    return Asked(photo, torch.ones(len(codes), 1, 32, 32), torch.full((len(codes),), degree), torch.stack(codes))


def part() -> torch.Tensor:
    where = torch.zeros(2, 1, 32, 32)
    where[..., 10:20, 5:25] = 1
    return where


def tinted(asked: Asked, where: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """What a tint adds to the photo."""
    gain, bias = tint(asked.photo, where, mask, asked)
    return gain * (asked.photo + 1) + bias


@pytest.mark.parametrize("degree", [0.0, 0.4, 1.0])
def test_what_is_tinted_has_the_wanted_mean_as_far_as_the_degree_goes(degree: float) -> None:
    asked, where = asked_of(degree, RED, OWN), part()
    shift = tinted(asked, where, torch.full_like(where, 0.5))
    assert torch.allclose(shift * (1 - where), torch.zeros(()), atol=1e-6)
    own, found = (mean_color(image, where) for image in (asked.photo, asked.photo + shift))
    wanted = torch.stack([own[0].lerp(decode_color(RED), degree), own[1]])
    torch.testing.assert_close(found, wanted, rtol=0, atol=0.2)


def test_nothing_changes_where_the_own_colour_is_asked() -> None:
    photo = (torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1).mul(1.2).clamp(-1, 1)
    asked = Asked(photo, part(), torch.ones(2), torch.stack([OWN, OWN]))
    shift = tinted(asked, part(), part())
    torch.testing.assert_close(shift, torch.zeros_like(shift), rtol=0, atol=1e-3)


def test_tints_are_as_exact_in_a_training_of_half_precision() -> None:
    asked, where = asked_of(1.0, RED, OWN), part()
    exact = tinted(asked, where, where)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(tinted(asked, where, where), exact)


def test_where_the_mask_is_empty_nothing_is_tinted() -> None:
    where, mask = torch.full((2, 1, 32, 32), 0.5, requires_grad=True), torch.zeros(2, 1, 32, 32, requires_grad=True)
    shift = tinted(asked_of(1.0, RED, OWN), where, mask)
    torch.testing.assert_close(shift, torch.zeros_like(shift), rtol=0, atol=1e-3)
    shift.sum().backward()
    assert mask.grad is not None
    assert mask.grad.abs().max() < 1


def test_black_hair_gets_the_light_and_shade_of_light_hair() -> None:
    """Its strands' contrast, too, where the photo is finer than the network: the gain is the tone curve's slope."""
    strands = 0.3 * torch.sin(torch.arange(32) / 2).expand(1, 1, 32, 32)
    light = toned(torch.full((1, 1, 32, 32), 15.0), strands)
    photo, all_of_it = lab_to_srgb(torch.cat([light, torch.zeros(1, 2, 32, 32)], 1)), torch.ones(1, 1, 32, 32)
    blond = encode_color(torch.tensor([[60.0, 6.0, 24.0]]))
    gain, bias = tint(photo, all_of_it, all_of_it, Asked(photo, all_of_it, torch.ones(1), blond))
    before, after = (logit(srgb_to_lab(image)[:, 0]).std() for image in (photo, photo + gain * (photo + 1) + bias))
    assert float(after / before) == pytest.approx(1, abs=0.02)
    finer = photo + 0.01
    shown = (finer + gain * (finer + 1) + bias) - (photo + gain * (photo + 1) + bias)
    assert 0.012 < float(shown.mean()) < 0.021


def test_a_head_of_two_hues_becomes_one() -> None:
    lab = torch.tensor([45.0, 0.0, 10.0])[None, :, None, None].expand(1, 3, 32, 32).clone()
    lab[:, 1, :, ::2], lab[:, 1, :, 1::2] = 8.0, -8.0
    photo, all_of_it = lab_to_srgb(lab), torch.ones(1, 1, 32, 32)
    pink = encode_color(torch.tensor([[60.0, 32.0, -2.0]]))
    after = srgb_to_lab(photo + tinted(Asked(photo, all_of_it, torch.ones(1), pink), all_of_it, all_of_it))
    assert float(after[:, 1].std()) == pytest.approx(0.3 * 8, abs=0.4)


def test_what_moves_and_tints_says_by_its_maps_what_it_shows(tinting: Glean) -> None:
    asked = asked_of(1.0, RED, OWN)
    with torch.no_grad():
        randomised(tinting).decoder.out.bias[-2] += 9  # all of it
        edit = tinting(*asked)
    moved = taken_from(asked.photo, edit.mask * edit.flow)
    shown = moved + edit.mask * (edit.gain * (moved + 1) + edit.bias)
    torch.testing.assert_close(edit.output, shown, rtol=0, atol=1e-5)
    assert edit.bias[0].abs().mean() > 3 * edit.bias[1].abs().mean()


def test_strands_grow_from_the_generators_noise(drawing: Glean) -> None:
    randomised(drawing)
    before = drawing(*inputs()).edit
    finest = drawing.generator.synthesis.noisy_layers()[-1]
    assert not finest.noise_strength.any()  # it comes in by the encoder alone
    finest.noise_const.mul_(-1)
    assert (drawing(*inputs()).edit - before).abs().mean() > 1e-4


@pytest.mark.parametrize("kind", ["model", "drawing", "moving", "tinting"])
def test_region_limits_what_is_edited_whatever_was_learnt(kind: str, request: pytest.FixtureRequest) -> None:
    photo, region, degree, style = inputs()
    edit = randomised(request.getfixturevalue(kind))(photo, region, degree, style)
    assert (edit.mask <= region).all()
    outside = (region == 0).expand_as(photo)
    assert torch.equal(edit.output[outside], photo[outside])


def test_generator_stays_frozen(model: Glean) -> None:
    model(*inputs()).output.mean().backward()
    assert all(p.grad is None and not p.requires_grad for p in model.generator.parameters())


def test_output_is_the_photo_to_the_bit_where_the_mask_is_zero(model: Glean) -> None:
    photo, region, degree, style = inputs()
    edit = randomised(model)(photo, region, degree, style)
    outside = (edit.mask == 0).expand_as(photo)
    assert outside.any()
    assert torch.equal(edit.output[outside], photo[outside])
    assert not torch.equal(edit.output, photo)


@pytest.mark.parametrize("size_px", [8, 64])
def test_works_at_any_resolution_of_the_generator(size_px: int) -> None:
    config = GeneratorConfig(
        z_dim=8, w_dim=8, img_resolution=size_px, channel_base=128, channel_max=8, mapping_layers=1
    )
    model = Glean(Generator(config), GleanConfig(style_channels=3, channel_base=64, channel_max=8))
    assert model(*inputs(1, size_px)).output.shape == (1, 3, size_px, size_px)


def test_photo_of_another_size_is_refused(model: Glean) -> None:
    with pytest.raises(ValueError, match="works at 32 px"):
        model(*inputs(1, 16))


def test_stretched_sigmoid_reaches_zero_and_one() -> None:
    values = stretched_sigmoid(torch.tensor([-4.0, 0.0, 4.0]))
    assert values.tolist() == [0.0, 0.5, 1.0]
