"""One-shot domain adaptation and pivotal tuning on a tiny generator: losses by hand, the style taken, exact resume, and
edits that apply to what was adapted."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.latent_commands import run
from helpers.tiny_build import generator_file
from torch import nn

from stylepairs.datagen.encoders.network import Encoder, EncoderConfig
from stylepairs.datagen.encoders.run_file import RunFile
from stylepairs.datagen.encoders.settings import EncoderTraining
from stylepairs.datagen.images.files import write_png
from stylepairs.datagen.images.perceptual import load_perceptual
from stylepairs.datagen.latent.directions import Direction, DirectionInfo, save_direction
from stylepairs.datagen.latent.methods.domain_adaptation import (
    AdaptationSettings,
    RunningCodes,
    adapt,
    direction_cost,
    domain,
    local_cost,
)
from stylepairs.datagen.latent.methods.pivotal_tuning import tuned
from stylepairs.datagen.latent.methods.style_eyes import ClipEyes, load_clip
from stylepairs.datagen.latent.people import Person, sampled_people
from stylepairs.datagen.latent.samples import load_samples
from stylepairs.datagen.portraits.portrait import Portrait
from stylepairs.datagen.reconstruction.prior import WPrior
from stylepairs.datagen.shell.errors import InputError
from stylepairs.datagen.stylegan.checkpoints import generator_digest, latents_digest, load_generator
from stylepairs.datagen.stylegan.generator import Generator


class TinyClip(nn.Module):
    """A vision transformer as CLIP's is, randomly initialised: patches, a class token, one block, a projection."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 8, 8, bias=False)
        self.whole = nn.Parameter(torch.randn(16) / 4)
        self.place = nn.Parameter(torch.randn(17, 16) / 4)
        self.block = nn.TransformerEncoderLayer(16, 2, 32, 0.0, batch_first=True, norm_first=True)
        self.projection = nn.Parameter(torch.randn(16, 12) / 4)

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        parts = self.patches(image).flatten(2).transpose(1, 2)
        tokens = self.block(torch.cat([self.whole.expand(len(parts), 1, -1), parts], 1) + self.place)
        return tokens[:, 0] @ self.projection, tokens[:, 1:]


@pytest.fixture(scope="module")
def generator() -> Generator:
    return load_generator(generator_file())


@pytest.fixture(scope="module")
def prior(generator: Generator) -> WPrior:
    return WPrior.fit(generator, 2000)


@pytest.fixture(scope="module")
def eyes() -> ClipEyes:
    torch.manual_seed(1)
    return ClipEyes(TinyClip(), 32)


@pytest.fixture(scope="module")
def red(generator: Generator) -> torch.Tensor:
    side = generator.config.img_resolution
    return torch.tensor([1.0, -1.0, -1.0]).view(3, 1, 1).expand(3, side, side)


def test_every_part_needs_one_like_it_both_ways():
    style = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    alike, half = torch.tensor([[[0.0, 3.0], [2.0, 0.0]]]), torch.tensor([[[1.0, 0.0], [5.0, 0.0]]])
    assert torch.allclose(local_cost(torch.cat([alike, half]), style), torch.tensor([0.0, 0.5]), atol=1e-6)


def test_the_direction_counts_not_the_length_unless_it_is_next_to_nothing():
    wanted = torch.tensor([[0.0, 2.0]])
    change = torch.tensor([[0.0, 9.0], [3.0, 0.0], [0.0, -1.0], [0.0, 0.1], [0.0, 0.0]], requires_grad=True)
    cost = direction_cost(change, wanted)
    assert torch.allclose(cost, torch.tensor([0.0, 1.0, 2.0, 0.5, 1.0]))
    (gradient,) = torch.autograd.grad(cost.sum(), change)
    assert gradient[4].tolist() == [0.0, -5.0]


def test_codes_agree_where_the_domains_differ_least():
    running = RunningCodes((2, 4))
    running.follow(torch.zeros(1, 2, 4), torch.tensor([[[9.0, 9, 9, 9], [0, 1, 2, 3]]]), 0.0)
    assert running.mask(0.25).tolist() == [[False] * 4, [True, True, False, False]]
    running.follow(torch.ones(3, 2, 4), torch.ones(3, 2, 4), 0.5)
    assert running.source.unique().tolist() == [0.5]
    assert running.target[1].tolist() == [0.5, 1.0, 1.5, 2.0]


def test_an_encoders_fine_rows_are_free_to_take_the_style(generator, prior, eyes, red):
    encoder = Encoder(EncoderConfig.of(generator, EncoderTraining(width=8, deep=8)))
    codes = domain(generator, red, eyes, encoder, prior).codes(red[None])
    assert codes.shape == (1, round(7 / 18 * generator.num_ws), generator.config.w_dim)


@pytest.mark.parametrize("coded", [pytest.param(False, marks=pytest.mark.slow), True])
def test_an_adapted_generator_takes_the_style_and_the_first_one_stays(coded, generator, prior, eyes, red):
    before, encoder = generator_digest(generator), None
    if coded:
        config = EncoderConfig.of(generator, EncoderTraining(width=8, deep=8))
        encoder = Encoder(config).requires_grad_(False)
    settings = AdaptationSettings(steps=12, learning_rate=2e-2)
    losses = []
    made = adapt(
        generator, domain(generator, red, eyes, encoder, prior), settings, on_step=lambda _, loss: losses.append(loss)
    )
    assert generator_digest(generator) == before
    assert losses[-1] < losses[0]
    ws = torch.stack([person.ws for person in sampled_people(generator, 4, 1.0, 9)])
    own, other = (eyes(network.synthesis(ws))[1] for network in (generator, made))
    style = eyes(red[None])[1]
    assert local_cost(other, style).mean() < local_cost(own, style).mean()
    assert torch.equal(made.mapping.w_avg, generator.mapping.w_avg)


@pytest.mark.slow
def test_consistency_holds_the_codes_together(generator, prior, eyes, red):
    moved = []
    for weight in (0.0, 100.0):
        settings = AdaptationSettings(steps=8, learning_rate=5e-3, consistency_weight=weight, consistent_share=1.0)
        made = adapt(generator, domain(generator, red, eyes, None, prior), settings)
        ws = torch.stack([person.ws for person in sampled_people(generator, 4, 1.0, 9)])
        moved.append(float((eyes(made.synthesis(ws))[0] - eyes(generator.synthesis(ws))[0]).abs().mean()))
    assert moved[1] < 0.8 * moved[0]


@pytest.mark.slow
def test_an_interrupted_adaptation_ends_as_an_unbroken_one(generator, prior, eyes, red, tmp_path, monkeypatch):
    monkeypatch.setattr("stylepairs.datagen.latent.methods.domain_adaptation._SAVE_EVERY", 2)
    wanted, settings = domain(generator, red, eyes, None, prior), AdaptationSettings(steps=5)
    whole = adapt(generator, wanted, settings)

    def stop(step: int, loss: float) -> None:
        if step == 3:
            raise KeyboardInterrupt

    state = RunFile(tmp_path / "state", "same")
    with pytest.raises(KeyboardInterrupt):
        adapt(generator, wanted, settings, state, stop)
    with pytest.raises(InputError, match="another run"):
        adapt(generator, wanted, settings, RunFile(tmp_path / "state", "other"))
    steps: list[int] = []
    again = adapt(generator, wanted, settings, state, lambda step, _: steps.append(step))
    assert generator_digest(again) == generator_digest(whole)
    assert steps == [3, 4, 5]
    assert state.path.exists()  # until the generator is saved


@pytest.mark.slow
def test_edits_of_the_first_generator_apply_to_the_adapted_one(generator, tmp_path: Path):
    side = generator.config.img_resolution
    write_png(tmp_path / "style.png", np.full((side, side, 3), (200, 30, 30), np.uint8))
    out, digest = tmp_path / "red.safetensors", generator_digest(generator)
    said = run("adapt", tmp_path / "style.png", "--out", out, "--steps", 2, "--generator", generator_file())
    assert "2 steps towards style.png" in said
    made = load_generator(out)
    assert generator_digest(made) != digest
    assert latents_digest(str(out), made) == digest
    offsets = torch.randn(generator.num_ws, generator.config.w_dim) / 10
    file = tmp_path / "any.safetensors"
    save_direction(file, Direction(offsets, DirectionInfo(method="test", generator_digest=digest)))
    run("edit", file, "--out", tmp_path / "strip.png", "--count", 1, "--generator", out)
    run("animate", f"{file}=0:1", "--out", tmp_path / "loop.gif", "--count", 1, "--seconds", 0.2, "--generator", out)
    out.rename(tmp_path / "red.gen")  # the content decides, not the name
    run("edit", file, "--out", tmp_path / "strip.png", "--count", 1, "--generator", tmp_path / "red.gen")
    sampling = ["sample", "--out", tmp_path / "samples", "--scores", "smile"]
    run(*sampling, "--count", 4, "--generator", tmp_path / "red.gen")
    assert load_samples(tmp_path / "samples").generator_digest == digest
    with pytest.raises(InputError, match="holds samples of another generator"):
        run(*sampling, "--count", 600, "--generator", generator_file())
    (tmp_path / "red.gen").rename(out)
    # Adapted twice, it is still of the first one's latents.
    run("adapt", tmp_path / "style.png", "--out", tmp_path / "more.safetensors", "--steps", 1, "--generator", out)
    assert latents_digest(str(tmp_path / "more.safetensors"), load_generator(tmp_path / "more.safetensors")) == digest


def test_wrong_styles_and_missing_open_clip_are_one_line(tmp_path: Path, monkeypatch):
    write_png(tmp_path / "wide.png", np.zeros((40, 60, 3), np.uint8))
    with pytest.raises(InputError, match="60 x 40 pixels, an aligned face is square"):
        run("adapt", tmp_path / "wide.png", "--out", tmp_path / "x.safetensors", "--generator", generator_file())
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(InputError, match=r"needs open_clip; pip install 'stylepairs\[clip\]'"):
        load_clip(tmp_path / "clip.pt", "ViT-B-32-quickgelu")


@pytest.mark.slow
def test_open_clip_reads_a_local_file_of_weights(tmp_path: Path):
    open_clip = pytest.importorskip("open_clip")  # it needs torchvision, which the tests' own environment has not
    torch.manual_seed(0)
    model = open_clip.create_model("ViT-B-32-quickgelu", pretrained=None)
    torch.save(model.state_dict(), tmp_path / "clip.pt")
    found = load_clip(tmp_path / "clip.pt", "ViT-B-32-quickgelu")
    vectors, parts = found(torch.zeros(1, 3, 64, 64))
    assert vectors.shape == (1, 512)
    assert parts.shape == (1, 49, 768)
    assert torch.allclose(vectors.norm(dim=1), torch.ones(1), atol=1e-5)
    torch.save({"other": torch.zeros(1)}, tmp_path / "other.pt")
    with pytest.raises(InputError, match="holds no image tower"):
        load_clip(tmp_path / "other.pt", "ViT-B-32-quickgelu")
    with pytest.raises(InputError, match="does not fit ViT-B-16"):
        load_clip(tmp_path / "clip.pt", "ViT-B-16")


@pytest.mark.slow
def test_a_tuned_generator_renders_its_portrait_and_the_shared_one_stays(generator):
    side, before = generator.config.img_resolution, generator_digest(generator)
    person, other = sampled_people(generator, 2, 1.0, 4)
    photo = generator.synthesis(other.ws[None])[0].clamp(-1, 1)
    blank = torch.zeros(side, side, dtype=torch.uint8)
    portrait = Portrait("other", photo, blank, blank[None].float(), torch.zeros(68, 2), "")
    found = tuned(generator, load_perceptual("pyramid"), Person(person.ws, (), portrait), 40)
    assert found.generator is not None
    assert generator_digest(generator) == before

    def error(network: Generator) -> float:
        return float((network.synthesis(person.ws[None])[0] - photo).square().mean())

    assert error(found.generator) < 0.6 * error(generator)
    with pytest.raises(ValueError, match="sampled person"):
        tuned(generator, load_perceptual("pyramid"), person, 1)
