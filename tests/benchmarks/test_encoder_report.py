"""What the encoder's benchmark adds to stage 0: directions that renders answer to, steps scaled by them, kept runs."""

from dataclasses import dataclass

import pytest
import torch

from stylepairs.datagen.perceptual import load_perceptual
from stylepairs.datagen.reconstruction.encoder_training import draw_samples
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
    images, _ = draw_samples(generator, prior, 2, torch.Generator().manual_seed(5))
    pictures = [Picture(str(index), image) for index, image in enumerate(images)]
    return report.Setting(generator, load_perceptual("pyramid"), prior, pictures)


@pytest.fixture(scope="module")
def curvature(report, setting):
    return report.fit_curvature(setting, 200, rank=8)


def test_found_directions_move_the_render_more_than_chance(setting, curvature):
    """At latents that the fit has not seen, by the mean over the directions found and as many random ones."""
    generator, prior = setting.generator, setting.prior
    u = torch.randn(16, generator.num_ws, 16, generator=torch.Generator().manual_seed(9)) * 0.5
    chance = torch.randn(curvature.basis.shape, generator=torch.Generator().manual_seed(8))
    chance = chance / chance.norm(dim=0)

    def moved(directions):
        total = 0.0
        for direction in directions.T:
            step = 0.05 * direction.view(1, *u.shape[1:])
            total += float((synthesise(u + step) - synthesise(u - step)).square().mean())
        return total

    def synthesise(latents):
        return generator.synthesis(prior.unwhiten(latents))

    assert moved(curvature.basis) > 2 * moved(chance)


def test_scaling_shortens_the_found_directions_alone(report, curvature):
    shape = (1, curvature.basis.shape[0] // 16, 16)
    along = curvature.basis[:, 0].view(shape)
    assert torch.allclose(curvature.scaled(along), along * curvature.scale[0], atol=1e-5)
    assert curvature.scale[0] < curvature.scale[-1] < 1
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    across = x - (x.flatten(1) @ curvature.basis @ curvature.basis.T).view(shape)
    assert torch.allclose(curvature.scaled(across), across, atol=1e-5)


def test_more_steps_come_nearer_to_the_photo(report, setting, curvature):
    few, many = (report.preconditioned(setting, steps, curvature) for steps in (2, 24))
    assert len(few) == len(setting.portraits)
    for less, more in zip(few, many, strict=True):
        assert more["psnr"] > less["psnr"] + 1


def test_finished_runs_are_kept_and_drawn(report, tmp_path):
    calls = []

    def run(steps):
        calls.append(steps)
        return [{"psnr": 20.0 + steps, "perceptual": 0.3, "prior_distance": 1.0}]

    path = tmp_path / "runs.json"
    report.measured({"mean face": run}, [3, 6], path)
    rows = report.measured({"mean face": run}, [3, 6, 9], path)
    assert calls == [3, 6, 9]
    assert rows["mean face, 9"]["psnr"] == 29
    pytest.importorskip("matplotlib")
    report.plot(rows, tmp_path / "images" / "steps.png")
    assert (tmp_path / "images" / "steps.png").stat().st_size > 1000
