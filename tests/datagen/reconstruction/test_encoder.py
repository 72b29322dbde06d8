"""The stage-0 encoder: learns a small generator's latents, resumes to the bit, and is refused where it does not fit."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from stylepairs.datagen.cli import app
from stylepairs.datagen.errors import InputError
from stylepairs.datagen.images import write_png
from stylepairs.datagen.perceptual import load_perceptual
from stylepairs.datagen.reconstruction.encoder import (
    Encoder,
    EncoderConfig,
    encoder_digest,
    load_encoder,
    predict_starts,
    save_encoder,
)
from stylepairs.datagen.reconstruction.encoder_training import EncoderTraining, draw_samples, train_encoder
from stylepairs.datagen.reconstruction.prior import WPrior
from stylepairs.datagen.stylegan.checkpoints import generator_digest, save_generator
from stylepairs.datagen.stylegan.generator import Generator, GeneratorConfig

SIDE = 32
TRAINING = EncoderTraining(
    sample_steps=80, portrait_steps=6, sample_batch=8, portrait_batch=2, learning_rate=3e-3, checkpoint_every=33
)


@pytest.fixture(scope="module")
def generator() -> Generator:
    torch.manual_seed(0)
    return Generator(GeneratorConfig(16, 24, SIDE, 3, 512, 32, 2)).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def prior(generator) -> WPrior:
    return WPrior.fit(generator, 2000)


@pytest.fixture(scope="module")
def photos(generator, prior) -> torch.Tensor:
    images, _ = draw_samples(generator, prior, 4, torch.Generator().manual_seed(5))
    return ((images + 1) * 127.5).round().to(torch.uint8)


@pytest.fixture(scope="module")
def train(generator, prior, photos):
    perceptual = load_perceptual("pyramid")

    def run(checkpoint, training=TRAINING, report=lambda step, loss: None, identity="same"):
        return train_encoder(generator, perceptual, prior, photos, training, checkpoint, identity, report)

    return run


@pytest.fixture(scope="module")
def trained(train, tmp_path_factory):
    losses = []
    encoder = train(tmp_path_factory.mktemp("encoder") / "run.ckpt", report=lambda step, loss: losses.append(loss))
    return encoder, losses


def test_trained_encoder_is_nearer_to_unseen_latents_than_the_mean(generator, prior, trained):
    images, u = draw_samples(generator, prior, 16, torch.Generator().manual_seed(99))
    found = torch.stack(predict_starts(trained[0], list(images)))
    assert (found - u).square().mean() < 0.9 * u.square().mean()
    assert len(trained[1]) == TRAINING.steps


def test_interrupted_training_ends_as_an_unbroken_one(train, trained, tmp_path):
    def stop(step, loss):
        if step == 40:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "run.ckpt", report=stop)
    steps = []
    again = train(tmp_path / "run.ckpt", report=lambda step, loss: steps.append(step))
    assert steps[0] == TRAINING.checkpoint_every + 1
    assert encoder_digest(again) == encoder_digest(trained[0])


def test_checkpoint_of_another_run_is_refused(train, tmp_path):
    short = replace(TRAINING, sample_steps=1, portrait_steps=0)
    train(tmp_path / "run.ckpt", short)
    with pytest.raises(InputError, match="another run"):
        train(tmp_path / "run.ckpt", replace(short, seed=1))
    with pytest.raises(InputError, match="another run"):
        train(tmp_path / "run.ckpt", short, identity="other")


def test_untrained_encoder_predicts_one_row_for_all_layers_and_fits_any_photo_size():
    u = Encoder(EncoderConfig(num_ws=6, w_dim=24))(torch.rand(2, 3, 96, 96))
    assert u.shape == (2, 6, 24)
    assert torch.equal(u, u[:, :1].expand_as(u))


def test_saved_encoder_comes_back_and_predicts_each_photo_by_itself(generator, trained, photos, tmp_path):
    path, digest = tmp_path / "encoder.safetensors", generator_digest(generator)
    save_encoder(path, trained[0], digest)
    loaded = load_encoder(path, generator, digest)
    images = list(photos.float() / 127.5 - 1)
    together = predict_starts(loaded, images)
    assert torch.equal(predict_starts(loaded, images[2:3])[0], together[2])
    assert torch.allclose(together[2], predict_starts(trained[0], images)[2], atol=0.02)  # float16 on disk


def test_wrong_files_are_refused_in_one_line(generator, trained, tmp_path):
    digest = generator_digest(generator)
    path = tmp_path / "encoder.safetensors"
    with pytest.raises(InputError, match="no such file"):
        load_encoder(path, generator, digest)
    save_encoder(path, trained[0], "another generator")
    with pytest.raises(InputError, match="is for generator"):
        load_encoder(path, generator, digest)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(InputError, match="damaged"):
        load_encoder(path, generator, digest)


def test_train_encoder_command_end_to_end(generator, photos, tmp_path):
    checkpoint, folder, out = tmp_path / "tiny.safetensors", tmp_path / "portraits", tmp_path / "out" / "tiny-encoder"
    save_generator(checkpoint, generator)
    write_prepared(folder, photos)
    arguments = ["train-encoder", str(checkpoint), "--portraits", str(folder), "--out", str(out)]
    arguments += ["--sample-steps", "2", "--portrait-steps", "2", "--perceptual", "pyramid"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "4 steps" in result.output
    assert [path.name for path in out.parent.iterdir()] == [out.name]  # no checkpoint is left
    encoder = load_encoder(out, generator, generator_digest(generator))
    assert encoder.config.num_ws == generator.num_ws


def write_prepared(folder, photos):
    blank = np.zeros((SIDE, SIDE), np.uint8)
    for index, photo in enumerate(photos):
        for kind, image in (("aligned", photo.permute(1, 2, 0).numpy()), ("label", blank), ("hair", blank)):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            write_png(folder / kind / f"{index}.png", image)
    count = len(photos)
    moves = np.tile(np.eye(2, 3), (count, 1, 1))
    names = [str(index) for index in range(count)]
    np.savez(folder / "landmarks.npz", name=names, points68=np.zeros((count, 68, 2)), source_to_aligned=moves)
