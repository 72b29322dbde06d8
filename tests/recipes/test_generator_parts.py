"""The parts of the generator's recipe, each by itself: growth, moments, heads, recolouring, figures, rates."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers.recipe_scripts import scripts_on_path
from PIL import Image

from stylepairs.datagen.shell.errors import InputError
from stylepairs.datagen.stylegan.generator import Generator, GeneratorConfig

FOLDER = Path(__file__).parents[2] / "recipes" / "generator"
NAMES = ("augment", "codes", "data", "draws", "figures", "growth", "losses", "moments", "pack", "state", "train")


@pytest.fixture(scope="module", autouse=True)
def recipe_on_path():
    with scripts_on_path(FOLDER, NAMES):
        yield


def test_heads_have_unit_spectral_norm_and_give_logits_for_every_level():
    from stylepairs.datagen.stylegan.projected import MIXED_CHANNELS, Heads

    torch.manual_seed(0)
    heads = Heads()
    maps = [torch.randn(3, c, 64 // 2**level, 64 // 2**level) for level, c in enumerate(MIXED_CHANNELS)]
    for _ in range(20):
        logits = heads(maps)
    assert [tuple(x.shape[:2]) for x in logits] == [(3, 1)] * 5
    for module in heads.modules():
        if isinstance(module, torch.nn.Conv2d):
            assert torch.linalg.matrix_norm(module.weight.detach().flatten(1), 2) == pytest.approx(1, abs=0.05)


def test_moments_are_those_of_all_images_and_draw_a_batch_towards_them():
    from moments import Moments

    draw = torch.Generator().manual_seed(0)
    real = torch.randn(64, 3, 4, 4, generator=draw) * 2 + 1
    moments = Moments([(3, 4, 4)], window_images=8)
    moments.fit([part] for part in real.split(16))
    torch.testing.assert_close(moments.real0, torch.stack([real.mean(0), real.square().mean(0)]))
    assert float(moments([real], 0)) < 1e-9  # the running moments start at the portraits' own
    fake = torch.zeros(8, 3, 4, 4, requires_grad=True)
    distance = moments([fake], 8)
    of_means = (0 - moments.centre0) / moments.deviation0
    expected = moments.real0.square().mean() + (of_means.square() + (of_means.square() - 1).square()).mean() / 2
    torch.testing.assert_close(distance, expected)
    (gradient,) = torch.autograd.grad(distance, fake)
    alike = real.mean((0, 2, 3), keepdim=True) + real - real.mean((2, 3), keepdim=True)  # images of one mean
    moments.fit([[real]])
    assert float(moments([alike], 8)) > 0.4
    assert (-gradient.mean(0) * real.mean(0)).mean() > 0


def test_grown_generator_renders_the_same_image_larger_and_offsets_stay():
    from codes import Offsets
    from growth import grow_generator, grow_offsets

    from stylepairs.datagen.images.trunk import LEVEL_CHANNELS

    torch.manual_seed(0)
    old = Generator(GeneratorConfig(16, 16, 16, 3, 256, 32, 2))
    new = Generator(GeneratorConfig(16, 16, 32, 3, 512, 32, 2))
    grow_generator(old.state_dict(), new)
    z = torch.randn(2, 16)
    with torch.no_grad():
        torch.testing.assert_close(new.synthesis(new.mapping(z), max_resolution=16), old(z), atol=1e-4, rtol=1e-4)
    small, large = Offsets(old.num_ws, 16), Offsets(new.num_ws, 16)
    torch.nn.init.normal_(small.out.weight)
    grow_offsets(small.state_dict(), large)
    features = [torch.randn(2, c, 8, 8) for c in LEVEL_CHANNELS]
    torch.testing.assert_close(large(features)[:, : old.num_ws], small(features))
    assert large(features)[:, old.num_ws :].abs().sum() == 0


def test_heads_that_saw_nothing_have_no_gradients_to_share():
    """As the enlarged face's with --face-weight 0, on several processes."""
    import train

    seen, unseen = (torch.nn.Parameter(torch.zeros(2)) for _ in range(2))
    seen.grad = torch.ones(2)
    stage = SimpleNamespace(accelerator=SimpleNamespace(num_processes=2), mean=lambda value: value / 2)
    train.Stage.reduce_gradients(stage, torch.optim.SGD([seen, unseen], 1.0))
    assert seen.grad.tolist() == [0.5, 0.5]
    assert unseen.grad is None


def test_recolouring_reaches_the_mean_colour_and_leaves_the_rest():
    from data import recolour

    image = 0.3 + 0.1 * torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    matte = torch.zeros(1, 1, 16, 16)
    matte[..., :8, :] = 1
    colour = torch.tensor([[0.6, 0.4, 0.2]])
    out = recolour(image, matte, colour, torch.ones(1))
    assert torch.equal(out[..., 8:, :], image[..., 8:, :])
    torch.testing.assert_close(out[0, :, :8].mean((1, 2)), colour[0], atol=0.03, rtol=0)
    assert out[0, 0, :8].std() > 0.01


def test_polynomial_mmd_is_near_zero_for_equal_distributions_and_grows_with_distance():
    from figures import polynomial_mmd

    draw = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 200, 8, generator=draw, dtype=torch.double)
    assert abs(polynomial_mmd(a, b)) < 0.1 < polynomial_mmd(a, b + 1)


def test_photos_are_drawn_in_the_shares_of_their_folders_and_none_twice():
    from figures import drawn

    few, many = (
        torch.arange(first, first + n, dtype=torch.uint8).view(-1, 1, 1, 1) for first, n in ((0, 40), (100, 90))
    )
    photos = ((drawn([few, many], [0.25, 0.75], 80) + 1) * 127.5).round().flatten().int().tolist()
    assert len(set(photos)) == len(photos) == 80
    assert sum(value < 40 for value in photos) == 20
    assert len(drawn([few, many], None, 13)) == 13


@pytest.mark.parametrize(
    "options, message",
    [
        (["--trained-on", "a", "b", "--shares", "0", "0"], "--shares: none may be below 0, and one must be above"),
        (["--trained-on", "a", "b", "--shares", "-1", "2"], "--shares: none may be below 0, and one must be above"),
        (["--count", "-1"], "--count -1: must be 0 or more"),
    ],
)
def test_figures_that_cannot_be_made_are_one_line(options, message, monkeypatch, capsys):
    import figures

    monkeypatch.setattr(sys, "argv", ["figures.py", "--portraits", "p", *options])
    with pytest.raises(SystemExit, match="2"):
        figures.main()
    assert message in capsys.readouterr().err


def test_a_generators_own_image_is_brought_back_better_the_more_it_may_move():
    from figures import HOW, bring_back

    torch.manual_seed(0)
    generator = Generator(GeneratorConfig(16, 16, 32, 3, 128, 8, 2)).eval().requires_grad_(False)
    for name, parameter in generator.named_parameters():
        if name.endswith("noise_strength"):
            parameter.fill_(0.3)  # it begins at 0: maps would say nothing
    images = ((generator(torch.randn(2, 16)).clamp(-1, 1) + 1) * 127.5).byte()
    few = {"steps": 10, "decay_steps": 10}
    noise, alone = (bring_back(generator, images, how.model_copy(update=few)) for how in HOW.values())
    unmoved = bring_back(generator, images, HOW["W+ alone"].model_copy(update=few | {"learning_rate": 1e-9}))
    assert noise[0] > alone[0] > unmoved[0]
    assert alone[1] < unmoved[1]


def test_a_sheet_that_a_disk_refuses_is_one_line(tmp_path):
    from figures import write_sheet

    generator = Generator(GeneratorConfig(8, 8, 8, 3, 32, 4, 1)).eval().requires_grad_(False)
    write_sheet(tmp_path / "sheet.png", generator, 2, 3)
    assert Image.open(tmp_path / "sheet.png").size == (24, 16)
    with pytest.raises(InputError, match="sheet"):
        write_sheet(tmp_path / "sheet.png" / "below.png", generator, 2, 3)


def test_rates_are_halved_evenly_over_the_last_minutes():
    from train import halvings_due

    assert [halvings_due(left, 60) for left in (500, 60, 59, 41, 39, 21, 19, 1, -5)] == [0, 0, 1, 1, 2, 2, 3, 3, 3]
    assert halvings_due(1, 0) == 0


def test_shifted_images_are_those_moved_by_hand():
    from augment import Augmentation

    image = torch.rand(3, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    none, shift = torch.zeros(3), torch.tensor([[0.0, 0.0], [0.25, -0.125], [-0.5, 0.0]])
    moved = Augmentation(none, none, none, shift, torch.full((3, 2), -1.0))(image)
    wanted = torch.zeros_like(image)
    wanted[0] = image[0]
    wanted[1, :, 2:, :7] = image[1, :, :6, 1:]
    wanted[2, :, :4] = image[2, :, 4:]
    torch.testing.assert_close(moved, wanted)
