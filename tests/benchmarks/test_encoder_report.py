"""The encoder's benchmark: runs by start and number of steps, kept, put into a table and drawn."""

from dataclasses import dataclass

import pytest
import torch

from stylepairs.datagen.encoders.network import Encoder, EncoderConfig, predict_start
from stylepairs.datagen.encoders.photos import draw_samples
from stylepairs.datagen.encoders.settings import METHODS, EncoderTraining
from stylepairs.datagen.images.perceptual import load_perceptual
from stylepairs.datagen.reconstruction.prior import WPrior
from stylepairs.datagen.stylegan.generator import Generator, GeneratorConfig


@dataclass
class Picture:
    """As much of a portrait as stage 0 reads."""

    name: str
    image: torch.Tensor

    @property
    def size_px(self) -> int:
        return self.image.shape[-1]


@pytest.fixture(scope="module")
def report(import_script):
    return import_script("encoder_report")


@pytest.fixture(scope="module")
def setting(report):
    torch.manual_seed(0)
    generator = Generator(GeneratorConfig(16, 16, 32, 3, 512, 32, 2)).eval().requires_grad_(False)
    prior = WPrior.fit(generator, 2000)
    images = draw_samples(generator, prior, 2, torch.Generator().manual_seed(5))
    pictures = [Picture(str(index), image) for index, image in enumerate(images)]
    return report.Setting(generator, load_perceptual("pyramid"), prior, pictures)


def test_without_a_step_it_is_the_encoders_start_as_it_is(report, setting):
    encoder = Encoder(EncoderConfig.of(setting.generator, EncoderTraining.model_validate(METHODS["psp"])))
    for name, parameter in encoder.named_parameters():
        if name.startswith("styles") and name.endswith(".bias"):
            torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(1))
    for found, picture in zip(report.from_encoder(setting, encoder, 0), setting.portraits, strict=True):
        u, _ = predict_start(encoder, setting.generator, setting.prior, picture.image)
        torch.testing.assert_close(found.ws.float(), setting.prior.unwhiten(u), atol=2e-3, rtol=2e-3)


@pytest.mark.slow
def test_more_steps_come_nearer_to_the_photo_from_both_starts(report, setting):
    encoder = Encoder(EncoderConfig.of(setting.generator, EncoderTraining.model_validate(METHODS["start"])))
    none, few, many = (report.from_encoder(setting, encoder, steps) for steps in (0, 4, 24))
    for start, less, more in zip(none, few, many, strict=True):
        assert start.figures["psnr"] < less.figures["psnr"] < more.figures["psnr"]
    few, many = (report.from_mean(setting, steps) for steps in (4, 24))
    assert all(more.figures["psnr"] > less.figures["psnr"] for less, more in zip(few, many, strict=True))


def test_finished_runs_are_kept_put_into_a_table_and_drawn(report, setting, tmp_path):
    path = tmp_path / "runs.json"
    runs = {"mean face, 4": lambda: report.from_mean(setting, 4)}
    once = report.measured(runs, setting, path)
    assert report.measured({"mean face, 4": None}, setting, path) == once
    assert "| mean face | 4 |" in report.table(once)
    pytest.importorskip("matplotlib")
    report.plot(once, tmp_path / "images" / "steps.png")
    assert (tmp_path / "images" / "steps.png").stat().st_size > 1000
