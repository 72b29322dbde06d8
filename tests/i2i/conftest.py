"""A tiny generator and pairs at its size, enough to run every line of the editor in seconds."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.faked_faces import Brightening

from stylepairs.datagen.stylegan.checkpoints import save_generator
from stylepairs.datagen.stylegan.generator import Generator, GeneratorConfig
from stylepairs.i2i.models.glean import Glean, GleanConfig
from stylepairs.i2i.train.settings import TrainingSettings

SIZE_PX = 32
CONFIG = GeneratorConfig(z_dim=16, w_dim=16, img_resolution=SIZE_PX, channel_base=256, channel_max=16, mapping_layers=2)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def new_generator() -> Generator:
    torch.manual_seed(3)
    generator = Generator(CONFIG)
    generator.mapping.w_avg.normal_()
    return generator.eval().requires_grad_(False)


@pytest.fixture
def generator() -> Generator:
    return new_generator()


@pytest.fixture
def model(generator: Generator) -> Glean:
    torch.manual_seed(4)
    return Glean(generator, GleanConfig(style_channels=3, channel_base=256, channel_max=16))


@pytest.fixture
def brightening(model: Glean) -> Glean:
    """A model whose edit is known."""
    model.__class__ = Brightening
    return model


@pytest.fixture
def drawing(generator: Generator) -> Glean:
    """A model whose edit is an image of its own."""
    torch.manual_seed(4)
    return Glean(generator, GleanConfig(style_channels=3, channel_base=256, channel_max=16, draws=True))


@pytest.fixture
def moving(generator: Generator) -> Glean:
    """A model whose edit is the photo's own pixels, moved."""
    torch.manual_seed(4)
    return Glean(generator, GleanConfig(style_channels=3, channel_base=256, channel_max=16, moves=True))


@pytest.fixture
def tinting(generator: Generator) -> Glean:
    """A model that moves, and whose edit brings a part's mean to the wanted colour."""
    torch.manual_seed(4)
    return Glean(generator, GleanConfig(style_channels=3, channel_base=256, channel_max=16, moves=True, tints=True))


@pytest.fixture(scope="session")
def generator_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("generator") / "generator.safetensors"
    save_generator(path, new_generator(), {})
    return path


@pytest.fixture(scope="session")
def made_pairs(tmp_path_factory: pytest.TempPathFactory, synthetic_pairs: Callable[..., None]) -> Path:
    directory = tmp_path_factory.mktemp("made") / "pairs"
    synthetic_pairs(directory, count=36, size_px=SIZE_PX, shard_size=12)
    return directory


@pytest.fixture
def pairs(tmp_path: Path, made_pairs: Path) -> Path:
    """About 24 accepted pairs of 32 px on both sides of the split, in a folder of the test's own."""
    return Path(shutil.copytree(made_pairs, tmp_path / "pairs"))


@pytest.fixture(scope="session")
def settings(generator_file: Path) -> Callable[..., TrainingSettings]:
    """Makes the settings of a run of a few tiny steps with every loss term; keywords replace some."""

    def make(**changes: Any) -> TrainingSettings:
        values: dict[str, Any] = {
            "style": "color",
            "generator": str(generator_file),
            "perceptual": "pyramid",
            "model": {"channel_base": 256, "channel_max": 16},
            "losses": {"color": 0.5, "adversarial": 0.05},
            "discriminator": {"channel_base": 128, "channel_max": 16, "r1_every": 2},
            "data": {"blend_share": 0.2},
            "steps": 6,
            "batch_size": 4,
            "warmup_steps": 2,
            "log_every_steps": 1,
            "sample_every_steps": 3,
            "checkpoint_every_steps": 2,
            "val_pairs": 2,
        }
        return TrainingSettings(**(values | changes))

    return make
