"""An encoder serves every generator whose lower part it was trained for, as `embedded:256` is to the embedded one."""

import copy
from dataclasses import replace

import pytest
import torch

from stylepairs.datagen.encoders import files, training
from stylepairs.datagen.encoders.files import encoder_digest, find_encoder, load_encoder, save_encoder
from stylepairs.datagen.encoders.network import Encoder, EncoderConfig, predict_start
from stylepairs.datagen.encoders.settings import METHODS, EncoderTraining
from stylepairs.datagen.reconstruction.prior import WPrior
from stylepairs.datagen.shell.errors import InputError
from stylepairs.datagen.stylegan.checkpoints import generator_digest, load_generator, save_generator
from stylepairs.datagen.stylegan.generator import Generator, lower_part

SIDE = 64
TRAINING = EncoderTraining(**METHODS["start"] | {"width": 8, "deep": 16})


@pytest.fixture(scope="module")
def doubled(generator) -> Generator:
    """The generator with a block more."""
    torch.manual_seed(1)
    larger = Generator(replace(generator.config, img_resolution=2 * SIDE)).eval().requires_grad_(False)
    larger.load_state_dict(generator.state_dict(), strict=False)
    return larger


@pytest.fixture(scope="module")
def encoder(generator) -> Encoder:
    torch.manual_seed(2)
    network = Encoder(EncoderConfig.of(generator, TRAINING)).eval().requires_grad_(False)
    for parameter in network.parameters():
        parameter.add_(0.01 * torch.randn(parameter.shape))
    return network


def test_finer_rows_are_its_last_one_and_finer_noise_is_the_generators_own(generator, doubled, encoder):
    prior = WPrior.fit(generator, 2000)
    small = torch.rand(3, SIDE, SIDE, generator=torch.Generator().manual_seed(3)) * 2 - 1
    photo = small.repeat_interleave(2, 1).repeat_interleave(2, 2)
    u, noise = predict_start(encoder, doubled, prior, photo, "fp32")
    below, maps = predict_start(encoder, generator, prior, small, "fp32")
    assert below.std() > 1e-3
    torch.testing.assert_close(u[: len(below)], below, rtol=0, atol=1e-4)
    assert torch.equal(u[len(below) :], u[len(below) - 1 : len(below)].expand(2, -1))
    for found, wanted in zip(noise, maps, strict=False):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-3)
    finest = doubled.noise_maps()[-2:]
    assert all(torch.equal(found, own[0, 0]) for found, own in zip(noise[len(maps) :], finest, strict=True))


def test_it_is_found_unless_a_weight_below_differs(doubled, generator, encoder, tmp_path, monkeypatch):
    path = tmp_path / "encoder.safetensors"
    monkeypatch.setattr(files, "EMBEDDED_WEIGHTS", path)
    save_encoder(path, encoder, generator_digest(generator))
    found = find_encoder("auto", doubled, generator_digest(doubled))
    assert found is not None
    assert encoder_digest(load_encoder(path, doubled, generator_digest(doubled))) == encoder_digest(found)
    other = copy.deepcopy(doubled)
    other.synthesis.b32.conv0.bias += 1
    assert find_encoder("auto", other, generator_digest(other)) is None
    with pytest.raises(InputError, match="is for generator"):
        load_encoder(path, other, generator_digest(other))


def test_training_does_not_go_on_from_it(doubled, generator, encoder, tmp_path, monkeypatch):
    begin, checkpoint = tmp_path / "begin.safetensors", tmp_path / "doubled.safetensors"
    save_encoder(begin, encoder, generator_digest(generator))
    save_generator(checkpoint, doubled)
    monkeypatch.setattr(training, "load_photos", lambda *_: torch.zeros(1, 3, 2 * SIDE, 2 * SIDE))
    with pytest.raises(InputError, match=r"has num_ws 10, maps .*, the settings ask for num_ws 12"):
        training.train_to_file(str(checkpoint), [tmp_path], tmp_path / "out", TRAINING, begin=begin)


def test_the_packages_256_px_generator_is_that_of_128_px_with_a_block_more():
    small, large = load_generator("embedded"), load_generator("embedded:256")
    digest = generator_digest(small)
    assert large.config.img_resolution == 256
    assert generator_digest(lower_part(large, 128)) == digest
    assert find_encoder("auto", large, generator_digest(large)) is not None
