"""What the generator promises beyond the fixtures: noise, truncation, early stop, fusion, gradients of second order."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch

from stylepairs.datagen.stylegan import generator as network
from stylepairs.datagen.stylegan.generator import Generator, GeneratorConfig, lower_part
from stylepairs.kernels import modulated_layer as kernel
from stylepairs.kernels.modulated_conv2d import modulated_conv2d
from stylepairs.kernels.modulated_layer import modulated_layer
from stylepairs.kernels.upfirdn2d import upsample2d


@pytest.fixture
def medium_generator() -> Generator:
    """32 px, frozen, with noise."""
    torch.manual_seed(0)
    config = GeneratorConfig(z_dim=8, w_dim=16, img_resolution=32, channel_base=512, channel_max=64, mapping_layers=2)
    return with_noise(Generator(config).requires_grad_(False))


def latents(generator: Generator, count: int = 2) -> torch.Tensor:
    z = torch.randn(count, generator.config.z_dim, generator=torch.Generator().manual_seed(3))
    return generator.mapping(z)


def with_noise(generator: Generator) -> Generator:
    for layer in generator.synthesis.noisy_layers():
        layer.noise_strength.fill_(0.5)
    return generator


def test_shapes_follow_the_configuration():
    config = GeneratorConfig(z_dim=4, w_dim=6, img_resolution=16, channel_base=64, channel_max=8, mapping_layers=2)
    generator = Generator(config)
    ws = latents(generator, 3)
    assert ws.shape == (3, 6, 6)
    assert generator.num_ws == 6
    assert generator(torch.randn(3, 4)).shape == (3, 3, 16, 16)
    assert [tuple(noise.shape[2:]) for noise in generator.noise_maps()] == [(r, r) for r in (4, 8, 8, 16, 16)]
    assert [generator.synthesis.channels(r) for r in (4, 8, 16)] == [8, 8, 4]


@pytest.mark.parametrize("resolution", [0, 4, 12, 100])
def test_impossible_resolutions_are_refused(resolution):
    with pytest.raises(ValueError, match="power of two"):
        GeneratorConfig(img_resolution=resolution)


def test_noise_modes(small_generator):
    generator, ws = with_noise(small_generator), latents(small_generator)
    const = generator.synthesis(ws)
    assert torch.equal(const, generator.synthesis(ws, noise_mode="const"))
    assert not torch.allclose(const, generator.synthesis(ws, noise_mode="none"))
    assert not torch.equal(generator.synthesis(ws, noise_mode="random"), generator.synthesis(ws, noise_mode="random"))
    zeros = [torch.zeros_like(noise) for noise in generator.noise_maps()]
    torch.testing.assert_close(generator.synthesis(ws, noise=zeros), generator.synthesis(ws, noise_mode="none"))
    with pytest.raises(ValueError, match="noise_mode"):
        generator.synthesis(ws, noise_mode="constant")


def test_noise_may_differ_between_the_images_of_a_batch(small_generator):
    generator, ws = with_noise(small_generator), latents(small_generator)
    noise = [torch.randn(2, 1, *buffer.shape[2:]) for buffer in generator.noise_maps()]
    both = generator.synthesis(ws, noise=noise)
    one = generator.synthesis(ws[1:], noise=[level[1:] for level in noise])
    torch.testing.assert_close(both[1:], one)


def test_truncation_goes_from_the_latent_to_the_mean(small_generator):
    z = torch.randn(2, 6)
    full, none = small_generator.mapping(z), small_generator.mapping(z, truncation_psi=0)
    torch.testing.assert_close(none, small_generator.mapping.w_avg.expand_as(none))
    half = small_generator.mapping(z, truncation_psi=0.5)
    torch.testing.assert_close(half, (full + none) / 2)
    cut = small_generator.mapping(z, truncation_psi=0.5, truncation_cutoff=1)
    assert torch.equal(cut[:, 1:], full[:, 1:])
    torch.testing.assert_close(cut[:, :1], half[:, :1])


def test_stopping_early_gives_the_lower_levels_image(small_generator):
    ws = latents(small_generator)
    assert small_generator.synthesis(ws, max_resolution=4).shape == (2, 3, 4, 4)
    assert torch.equal(small_generator.synthesis(ws, max_resolution=8), small_generator.synthesis(ws))


def test_stopping_early_gives_the_skip_image_that_the_whole_pass_has_there(medium_generator):
    ws, seen = latents(medium_generator, 2).requires_grad_(), {}
    for block in medium_generator.synthesis.blocks():
        block.register_forward_hook(lambda block, _, out: seen.update({block.resolution: out[1]}))
    medium_generator.synthesis(ws)
    whole = dict(seen)
    for resolution in (4, 8, 16, 32):
        image = medium_generator.synthesis(ws, max_resolution=resolution)
        assert torch.equal(image, whole[resolution])
        (gradient,) = torch.autograd.grad(image.square().sum(), ws)
        used = 2 * resolution.bit_length() - 4  # rows of W+ up to this level, the image layer's among them
        assert (gradient[:, :used].abs().sum(2) > 0).all()
        assert not gradient[:, used:].any()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_recomputed_blocks_give_the_same_bits_and_keep_less(medium_generator, precision):
    rows, noise = latents(medium_generator), [level.repeat(2, 1, 1, 1) for level in medium_generator.noise_maps()]
    results, kept = [], []
    for recompute_from in (None, 16, 4):
        inputs = [x.clone().requires_grad_() for x in (rows, *noise)]
        saved = {}

        def pack(x, saved=saved):
            saved[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        with (
            torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"),
            torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x),
        ):
            image = medium_generator.synthesis(inputs[0], inputs[1:], recompute_from=recompute_from)
        results.append([image, *torch.autograd.grad(image.square().sum(), inputs)])
        kept.append(sum(saved.values()))
    assert kept[0] > 1.5 * kept[1]
    assert kept[1] > kept[2]
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_recomputed_blocks_draw_the_same_noise_again(medium_generator):
    rows, gradients = latents(medium_generator), []
    for recompute_from in (None, 4):
        ws = rows.clone().requires_grad_()
        torch.manual_seed(1)
        image = medium_generator.synthesis(ws, noise_mode="random", recompute_from=recompute_from)
        torch.manual_seed(2)
        gradients.append(torch.autograd.grad(image.square().sum(), ws)[0])
    assert torch.equal(*gradients)


def test_fusion_sees_every_level_and_the_identity_changes_nothing(small_generator):
    ws, seen = latents(small_generator), []

    def fuse(resolution: int, x: torch.Tensor) -> torch.Tensor:
        seen.append((resolution, tuple(x.shape)))
        return x

    assert torch.equal(small_generator.synthesis(ws, fuse=fuse), small_generator.synthesis(ws))
    channels = small_generator.synthesis.channels
    assert seen == [(r, (2, channels(r), r, r)) for r in (4, 8)]


def test_fusion_at_a_level_changes_the_image_from_that_level_on(small_generator):
    ws = latents(small_generator)

    def double_top(resolution: int, x: torch.Tensor) -> torch.Tensor:
        return 2 * x if resolution == 8 else x

    coarse = small_generator.synthesis(ws, max_resolution=4, fuse=double_top)
    assert torch.equal(coarse, small_generator.synthesis(ws, max_resolution=4))
    assert not torch.allclose(small_generator.synthesis(ws, fuse=double_top), small_generator.synthesis(ws))


def test_each_layers_latent_is_used_once_per_convolution_and_image_layer(small_generator):
    ws = latents(small_generator).requires_grad_()
    small_generator.synthesis(ws).sum().backward()
    assert (ws.grad.abs().sum((0, 2)) > 0).all()


def test_images_of_a_batch_do_not_influence_each_other(small_generator):
    ws = latents(small_generator, 3)
    torch.testing.assert_close(small_generator.synthesis(ws)[2:], small_generator.synthesis(ws[2:]))


def test_second_derivative_by_the_latents(small_generator):
    """Path length regularisation differentiates the gradient by w once more."""
    ws = latents(small_generator, 1).double().requires_grad_()
    generator = with_noise(small_generator).double()
    # The image is float32 whatever the weights are, hence one direction with a large step instead of gradgradcheck.
    (gradient,) = torch.autograd.grad(generator.synthesis(ws).square().sum(), ws, create_graph=True)
    (second,) = torch.autograd.grad(gradient.square().sum(), ws)
    step = 1e-3 * second / second.norm()

    def squared_gradient(at: torch.Tensor) -> float:
        at = at.detach().requires_grad_()
        (value,) = torch.autograd.grad(generator.synthesis(at).square().sum(), at)
        return value.square().sum().item()

    measured = (squared_gradient(ws + step) - squared_gradient(ws - step)) / 2e-3
    assert measured == pytest.approx(second.norm().item(), rel=2e-2)


def test_in_float64_it_makes_the_same_images(small_generator):
    z = torch.randn(2, small_generator.config.z_dim, generator=torch.Generator().manual_seed(5))
    single = small_generator(z)
    double = small_generator.double()(z.double())
    assert double.dtype == torch.float64
    torch.testing.assert_close(double.float(), single, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_bits_of_an_image_and_its_gradients_do_not_depend_on_its_neighbours(medium_generator, precision):
    generator, ws = medium_generator, latents(medium_generator, 4)
    results = []
    for rows in (ws, torch.cat((ws.flip(0)[:3] * 1.5, ws[3:]))):
        rows = rows.clone().requires_grad_()
        noise = [level.repeat(4, 1, 1, 1).requires_grad_() for level in generator.noise_maps()]
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            image = generator.synthesis(rows, noise)
        results.append([image, *torch.autograd.grad(image.float().square().sum(), [rows, *noise])])
    assert not torch.equal(results[0][0][0], results[1][0][0])
    for one, other in zip(*results, strict=True):
        assert torch.equal(one[3], other[3])


@pytest.mark.parametrize("precision, tolerance", [("fp32", 1e-5), ("bf16", 3e-2)])
def test_fast_paths_of_the_whole_generator_equal_the_references(medium_generator, precision, tolerance, monkeypatch):
    """Root mean square difference to plain operations with per-sample weights in float64, over their own."""
    fast, plain = medium_generator, copy.deepcopy(medium_generator).double()
    ws = latents(fast, 2)

    def image_and_gradient(generator, rows, enabled):
        rows = rows.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            image = generator.synthesis(rows)
        return image, torch.autograd.grad(image.float().square().sum(), rows)[0]

    actual = image_and_gradient(fast, ws, precision == "bf16")
    monkeypatch.setattr(network, "modulated_layer", partial(modulated_layer, impl="reference"))
    monkeypatch.setattr(kernel, "modulated_conv2d", partial(modulated_conv2d, impl="grouped"))
    monkeypatch.setattr(network, "modulated_conv2d", partial(modulated_conv2d, impl="grouped"))
    monkeypatch.setattr(network, "upsample2d", partial(upsample2d, impl="reference"))
    for a, e in zip(actual, image_and_gradient(plain, ws.double(), False), strict=True):
        assert (a.double() - e).square().mean().sqrt() <= tolerance * e.square().mean().sqrt()


def test_latents_keep_full_precision_under_autocast(medium_generator):
    expected = latents(medium_generator)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(latents(medium_generator), expected)


def test_the_lower_part_renders_what_stopping_early_does_and_shares_its_numbers(medium_generator):
    part = lower_part(medium_generator, 16)
    ws = latents(medium_generator)
    assert part.num_ws == medium_generator.num_ws - 2
    assert torch.equal(part.synthesis(ws[:, :-2]), medium_generator.synthesis(ws, max_resolution=16))
    assert torch.equal(part.mapping(torch.ones(1, 8)), medium_generator.mapping(torch.ones(1, 8))[:, :-2])
    ours, theirs = part.state_dict(), medium_generator.state_dict()
    assert all(ours[key].data_ptr() == theirs[key].data_ptr() for key in ours)
