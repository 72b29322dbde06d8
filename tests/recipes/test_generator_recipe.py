"""The recipe of the embedded generator: growth keeps what was learned, resume is exact, data are what they claim."""

import argparse
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from stylepairs.datagen.stylegan.discriminator import Discriminator, DiscriminatorConfig
from stylepairs.datagen.stylegan.generator import Generator, GeneratorConfig

FOLDER = Path(__file__).parents[2] / "recipes" / "generator"


@pytest.fixture(scope="module", autouse=True)
def recipe_on_path():
    """The recipe's scripts import each other by plain name, as when run."""
    names = ("augment", "data", "figures", "growth", "state", "train")
    held = {name: sys.modules.pop(name) for name in names if name in sys.modules}
    sys.path.insert(0, str(FOLDER))
    yield
    sys.path.remove(str(FOLDER))
    for name in names:
        sys.modules.pop(name, None)
    sys.modules.update(held)


@pytest.fixture
def portraits(tmp_path) -> Path:
    draw = np.random.RandomState(0)
    for sub in ("aligned", "hair"):
        (tmp_path / "data" / sub).mkdir(parents=True)
    for index in range(6):
        Image.fromarray(draw.randint(0, 255, (32, 32, 3), np.uint8)).save(tmp_path / f"data/aligned/{index}.png")
        Image.fromarray(np.full((32, 32), 255 * (index % 2), np.uint8)).save(tmp_path / f"data/hair/{index}.png")
    return tmp_path / "data"


def test_grown_generator_renders_the_same_image_larger():
    from growth import grow_generator

    torch.manual_seed(0)
    old = Generator(GeneratorConfig(16, 16, 16, 3, 256, 32, 2))
    new = Generator(GeneratorConfig(16, 16, 32, 3, 512, 32, 2))
    grow_generator(old.state_dict(), new)
    z = torch.randn(2, 16)
    with torch.no_grad():
        torch.testing.assert_close(new.synthesis(new.mapping(z), max_resolution=16), old(z), atol=1e-4, rtol=1e-4)
        small = F.avg_pool2d(new(z), 2)
    assert (small - old(z)).abs().mean() < 0.2 * old(z).abs().mean()


def test_grown_discriminator_ranks_images_as_before():
    from growth import grow_discriminator

    torch.manual_seed(0)
    old = Discriminator(DiscriminatorConfig(16, 3, 256, 32))
    new = Discriminator(DiscriminatorConfig(32, 3, 512, 32))
    grow_discriminator(old.state_dict(), new)
    smooth = F.interpolate(torch.randn(8, 3, 4, 4), size=32, mode="bicubic")
    with torch.no_grad():
        before, after = old(F.avg_pool2d(smooth, 2)).flatten(), new(smooth).flatten()
    assert torch.corrcoef(torch.stack([before, after]))[0, 1] > 0.95


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


def test_augmentation_is_off_at_zero_differentiable_and_bounded_in_its_probability():
    from augment import P_MAX, adapt, augment

    image = torch.rand(4, 3, 16, 16, requires_grad=True)
    draw = torch.Generator().manual_seed(0)
    assert torch.equal(augment(image, 0.0, draw), image)
    out = augment(image, 1.0, draw)
    (gradient,) = torch.autograd.grad(out.sum(), image)
    assert gradient.isfinite().all()
    assert gradient.abs().sum() > 0
    assert adapt(P_MAX, 1.0, 10**6) == P_MAX
    assert adapt(0.1, -1.0, 10**6) == 0


def run(portraits: Path, out: Path, stages: list[str], monkeypatch) -> dict[str, torch.Tensor]:
    import train
    from safetensors.torch import load_file

    arguments = ["train.py", "--portraits", str(portraits), "--out", str(out), "--stages", *stages]
    arguments += [
        "--channel-base",
        "128",
        "--channel-max",
        "16",
        "--latent-dim",
        "16",
        "--batch",
        "4",
        "--precision",
        "no",
        "--save-every",
        "8",
    ]
    monkeypatch.setattr(sys, "argv", arguments)
    train.main()
    return load_file(out / "state.safetensors")


def test_resumed_training_equals_uninterrupted_training(portraits, tmp_path, monkeypatch):
    whole = run(portraits, tmp_path / "whole", ["8:32", "16:64"], monkeypatch)
    for stages in (["8:32"], ["8:32", "16:48"], ["8:32", "16:64"]):  # stopped between stages and within one
        torch.manual_seed(len(stages[-1]))  # a new process has another random state
        parts = run(portraits, tmp_path / "parts", stages, monkeypatch)
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[key], parts[key]) for key in whole)
    assert (tmp_path / "whole" / "generator_ema.safetensors").exists()


def test_polynomial_mmd_is_near_zero_for_equal_distributions_and_grows_with_distance():
    from figures import polynomial_mmd

    draw = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 200, 8, generator=draw, dtype=torch.double)
    assert abs(polynomial_mmd(a, b)) < 0.1 < polynomial_mmd(a, b + 1)


def test_empty_folder_is_named(tmp_path):
    from data import Portraits

    with pytest.raises(SystemExit, match="no aligned"):
        Portraits(tmp_path, 16)


def test_start_from_a_folder_without_weights_is_named(tmp_path):
    from state import build_state

    args = argparse.Namespace(
        seed=0,
        channel_base=128,
        channel_max=16,
        latent_dim=16,
        mapping_layers=2,
        learning_rate=1e-3,
        start_from=tmp_path,
    )
    with pytest.raises(SystemExit, match="start from"):
        build_state(args, 8)
