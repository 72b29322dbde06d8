"""Encoders: learn a small generator's latents and noise, resume to the bit, are refused where they do not fit."""

import json
import os
import subprocess
import sys
import tracemalloc
from dataclasses import asdict

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors import safe_open
from safetensors.torch import save_file
from typer.testing import CliRunner

from stylepairs.datagen.cli import app
from stylepairs.datagen.encoders import files, training
from stylepairs.datagen.encoders.files import encoder_digest, find_encoder, load_encoder, save_encoder
from stylepairs.datagen.encoders.network import (
    COARSEST_MAP_PX,
    Encoder,
    EncoderConfig,
    empty_start,
    predict_start,
)
from stylepairs.datagen.encoders.photos import draw_samples, load_photos, photos_digest, varied
from stylepairs.datagen.encoders.run_file import RunFile
from stylepairs.datagen.encoders.settings import METHODS, EncoderTraining
from stylepairs.datagen.encoders.training import MOST_KURTOSIS, Teachers, noise_tails, train_encoder
from stylepairs.datagen.images.files import write_png
from stylepairs.datagen.images.perceptual import load_perceptual
from stylepairs.datagen.reconstruction.prior import WPrior
from stylepairs.datagen.reconstruction.rendering import render
from stylepairs.datagen.shell.errors import InputError
from stylepairs.datagen.stylegan.checkpoints import generator_digest, save_generator

SIDE = 64
SMALL = {
    "steps": 12,
    "portraits": 2,
    "learning_rate": 3e-3,
    "probes": 160,
    "checkpoint_every": 5,
    "width": 8,
    "deep": 16,
}
TRAINING = EncoderTraining(**METHODS["start"] | SMALL)


@pytest.fixture(scope="module")
def prior(generator) -> WPrior:
    return WPrior.fit(generator, 2000)


@pytest.fixture(scope="module")
def photos(generator, prior) -> torch.Tensor:
    images = draw_samples(generator, prior, 8, torch.Generator().manual_seed(5))
    return ((images + 1) * 127.5).round().to(torch.uint8)


@pytest.fixture(scope="module", autouse=True)
def curvature_of_each_seed_is_fitted_once():
    fitted, fit = {}, training.fit_curvature

    def known(generator, perceptual, prior, probes, seed):
        if seed not in fitted:
            fitted[seed] = fit(generator, perceptual, prior, probes, seed)
        return fitted[seed]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "fit_curvature", known)
        yield


@pytest.fixture(scope="module")
def train(generator, prior, photos):
    teachers = Teachers(generator, load_perceptual("pyramid"), prior, photos)

    def run(path, training=TRAINING, report=lambda step, loss: None, about="same", earlier=None):
        return train_encoder(teachers, training, RunFile(path, about), earlier, report)

    return run


@pytest.fixture(scope="module")
def trained(train, tmp_path_factory):
    losses = []
    encoder = train(tmp_path_factory.mktemp("encoder") / "run.ckpt", report=lambda step, loss: losses.append(loss))
    return encoder, losses


def distance(generator, prior, starts, images) -> float:
    found = render(generator, [prior.unwhiten(u) for u, _ in starts], [noise for _, noise in starts], 4)
    return float((torch.stack(found) - images).square().mean())


@pytest.mark.slow
def test_renders_of_its_codes_are_nearer_to_unseen_photos_than_the_mean_face(generator, prior, train, tmp_path):
    losses = []
    longer = EncoderTraining(**METHODS["psp"] | SMALL | {"steps": 80, "learning_rate": 3e-3})
    encoder = train(tmp_path / "run.ckpt", longer, lambda step, loss: losses.append(loss))
    images = draw_samples(generator, prior, 8, torch.Generator().manual_seed(99))
    starts = [predict_start(encoder, generator, prior, image) for image in images]
    u, noise = empty_start(encoder, generator, 1)
    mean = [(u[0], [level[0, 0] for level in noise])] * len(images)
    assert distance(generator, prior, starts, images) < 0.6 * distance(generator, prior, mean, images)
    assert len(losses) == 80


def test_predicted_noise_maps_are_standardised_and_the_coarse_ones_left_alone(generator, prior, trained):
    image = draw_samples(generator, prior, 1, torch.Generator().manual_seed(98))[0]
    _, noise = predict_start(trained[0], generator, prior, image)
    for level, own in zip(noise, generator.noise_maps(), strict=True):
        if level.shape[-1] < COARSEST_MAP_PX:
            assert torch.equal(level, own[0, 0])
        else:
            assert abs(float(level.mean())) < 1e-4
            assert abs(float(level.square().mean()) - 1) < 1e-3
            assert not torch.equal(level, own[0, 0])


@pytest.mark.slow
def test_interrupted_training_ends_as_an_unbroken_one(train, trained, tmp_path):
    def stop(step, loss):
        if step == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "run.ckpt", report=stop)
    steps = []
    again = train(tmp_path / "run.ckpt", report=lambda step, loss: steps.append(step))
    assert steps[0] == TRAINING.checkpoint_every + 1
    assert encoder_digest(again) == encoder_digest(trained[0])


def test_checkpoint_of_another_run_is_refused(train, tmp_path):
    short = TRAINING.model_copy(update={"steps": 1})
    train(tmp_path / "run.ckpt", short)
    with pytest.raises(InputError, match="another run"):
        train(tmp_path / "run.ckpt", short.model_copy(update={"seed": 1}))
    with pytest.raises(InputError, match="another run"):
        train(tmp_path / "run.ckpt", short, about="other")


@pytest.mark.parametrize("harm", ["a bit is flipped", "no moments"])
def test_checkpoint_that_is_not_what_was_written_is_refused(train, tmp_path, harm):
    path, short = tmp_path / "run.ckpt", TRAINING.model_copy(update={"steps": 1})
    train(path, short)
    if harm == "no moments":
        with safe_open(path, "pt") as file:
            kept = {key: file.get_tensor(key) for key in file.keys() if key.startswith("encoder/")}  # noqa: SIM118
            save_file(kept, path, file.metadata())
    else:
        data = bytearray(path.read_bytes())
        data[-5] ^= 1
        path.write_bytes(data)
    with pytest.raises(InputError, match="not what was written"):
        train(path, short)


def test_training_goes_on_from_an_earlier_encoder(train, trained, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "fit_curvature", None)  # is taken over
    losses = []
    two = TRAINING.model_copy(update={"steps": 2})
    train(tmp_path / "run.ckpt", two, lambda step, loss: losses.append(loss), "on", trained[0])
    assert losses[1] < 0.5 * trained[1][1]  # the same photos; fresh noise maps are all spikes in their second step


def test_a_folder_in_place_of_the_file_is_told_before_anything_is_loaded(tmp_path):
    with pytest.raises(InputError, match="is a folder"):
        training.train_to_file("none.pkl", [], tmp_path, TRAINING)
    with pytest.raises(ValidationError, match="seed"):
        EncoderTraining(seed=2**40)


def test_features_with_weights_of_their_own_are_read_from_the_setting(generator, tmp_path, monkeypatch):
    photos = torch.zeros(2, 3, generator.config.img_resolution, generator.config.img_resolution)
    monkeypatch.setattr(training, "load_generator", lambda name: generator)
    monkeypatch.setattr(training, "load_photos", lambda folders, size: photos)
    asked = TRAINING.model_copy(update={"perceptual": "vgg16", "perceptual_weights": str(tmp_path / "vgg.pth")})
    with pytest.raises(InputError, match=r"vgg\.pth"):
        training.train_to_file("ours.pkl", [], tmp_path / "encoder.safetensors", asked)


def test_jittered_latents_cost_more_the_farther_they_are_moved(train, tmp_path):
    def first_loss(jitter):
        losses = []
        once = TRAINING.model_copy(update={"steps": 1, "jitter": jitter})
        train(tmp_path / f"{jitter}.ckpt", once, lambda step, loss: losses.append(loss))
        return losses[0]

    assert first_loss(0.0) < first_loss(0.5) < first_loss(2.0)


def test_untrained_encoder_keeps_the_latent_it_is_given():
    config = EncoderConfig(num_ws=10, w_dim=24, maps=(4, 8, 8, 16, 16, 32, 32, 64, 64), passes=2, noise=True)
    u = torch.randn(2, 10, 24)
    noise = [torch.randn(2, 1, side, side) for side in config.maps]
    found, maps = Encoder(config)(torch.rand(2, 3, 64, 64), torch.rand(2, 3, 64, 64), u, noise, "fp32")
    assert torch.equal(found, u)
    assert [level.shape for level in maps] == [level.shape for level in noise]


@pytest.mark.parametrize(
    "method", ["e4e", *(pytest.param(name, marks=pytest.mark.slow) for name in ("psp", "restyle-psp"))]
)
def test_other_methods_leave_noise_maps_alone_and_learn(method, train, generator, prior, tmp_path):
    losses = []
    few = EncoderTraining(**METHODS[method] | SMALL | {"steps": 6, "passes": 1 if method == "psp" else 2})
    encoder = train(tmp_path / "run.ckpt", few, lambda step, loss: losses.append(loss))
    assert losses[-1] < losses[0]
    _, noise = predict_start(encoder, generator, prior, torch.zeros(3, SIDE, SIDE))
    assert all(torch.equal(level, own[0, 0]) for level, own in zip(noise, generator.noise_maps(), strict=True))


def test_rows_from_the_first_one_are_free_one_after_the_other():
    config = EncoderConfig(
        num_ws=10, w_dim=24, maps=(4, 8, 8, 16, 16, 32, 32, 64, 64), width=8, deep=8, from_first_row=True
    )
    encoder = Encoder(config)
    for head in encoder.styles.values():
        torch.nn.init.normal_(head.weight)
    u, photo = torch.zeros(1, 10, 24), torch.rand(1, 3, 64, 64)
    noise = [torch.zeros(1, 1, side, side) for side in config.maps]
    tied, some, free = (encoder(photo, photo, u, noise, "fp32", rows)[0][0] for rows in (0, 3, None))
    assert torch.allclose(tied, tied[:1].expand_as(tied))
    assert torch.allclose(some[4:], some[:1].expand_as(some[4:]))
    assert torch.allclose(some[1:4], free[1:4])
    assert (free[1:] - free[:1]).square().sum(1).min() > 1e-6


def test_identity_is_asked_of_the_face_alone_and_learned_from(generator, prior, photos, tmp_path):
    seen = []

    def recognise(face):
        seen.append(face.shape)
        return face.mean((2, 3))

    short = TRAINING.model_copy(update={"steps": 1, "noise": False, "passes": 1})
    losses = []
    for identity in (None, recognise):
        teachers = Teachers(generator, load_perceptual("pyramid"), prior, photos, identity)
        run = RunFile(tmp_path / f"{identity is None}", "")
        train_encoder(teachers, short, run, None, lambda step, loss: losses.append(loss))
    assert seen[0] == (3, 3, 47, 47)  # of 64 pixels, as 188 of 256
    assert losses[1] > losses[0]


def test_spiky_noise_maps_cost_and_gaussian_ones_do_not():
    gaussian = torch.randn(2, 1, 64, 64, generator=torch.Generator().manual_seed(1))
    spiky = torch.zeros_like(gaussian)
    spiky[:, :, ::8, ::8] = 8.0  # unit variance, all of it in one pixel of 64
    assert noise_tails([gaussian]).tolist() == [0, 0]
    assert torch.allclose(noise_tails([gaussian, spiky]), torch.full((2,), 64.0 - MOST_KURTOSIS))


def test_photos_of_several_folders_are_read_in_turn_and_named_without_a_copy(photos, tmp_path):
    for name, part in (("one", photos[:2]), ("two", photos[2:3])):
        write_prepared(tmp_path / name, part)
    assert torch.equal(load_photos([tmp_path / "one", tmp_path / "two"], photos.shape[-1]), photos[:3])
    many = torch.zeros(64, 3, 128, 128, dtype=torch.uint8)
    tracemalloc.start()
    photos_digest(many)
    assert tracemalloc.get_traced_memory()[1] < many.numel() / 2
    tracemalloc.stop()


def test_varied_photos_stay_in_range_follow_their_draw_and_differ():
    photo = torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
    one, again, other = (varied(photo, torch.Generator().manual_seed(seed)) for seed in (3, 3, 4))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert one.abs().max() <= 1


def test_saved_encoder_comes_back_and_predicts_each_photo_by_itself(generator, prior, trained, photos, tmp_path):
    path, digest = tmp_path / "encoder.safetensors", generator_digest(generator)
    save_encoder(path, trained[0], digest)
    loaded = load_encoder(path, generator, digest)
    assert loaded.config == trained[0].config
    photo = photos[2].float() / 127.5 - 1
    u, noise = predict_start(loaded, generator, prior, photo, "fp32")
    same, _ = predict_start(trained[0], generator, prior, photo, "fp32")
    assert torch.allclose(u, same, atol=0.05)  # float16 on disk
    assert torch.equal(u, predict_start(loaded, generator, prior, photo, "fp32")[0])
    assert all(level.dim() == 2 for level in noise)


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


@pytest.mark.parametrize(
    "change", [{"deep": 10**12}, {"maps": "x"}, {"passes": -1}, {"width": None}, {"maps": [2**40]}, {"maps": [1]}, {}]
)
def test_a_hostile_configuration_is_refused_without_its_memory(generator, trained, tmp_path, change):
    from safetensors.torch import load_file

    path, digest = tmp_path / "encoder.safetensors", generator_digest(generator)
    save_encoder(path, trained[0], digest)
    config = json.dumps(asdict(trained[0].config) | change) if change else "[" * 100_000
    metadata = {"kind": files._KIND, "generator": digest, "config": config}
    save_file(load_file(path), path, metadata)
    with pytest.raises(InputError, match="damaged"):
        load_encoder(path, generator, digest)


def test_a_build_finds_its_encoder_by_name(generator, trained, tmp_path, monkeypatch):
    digest, path = generator_digest(generator), tmp_path / "encoder.safetensors"
    monkeypatch.setattr(files, "EMBEDDED_WEIGHTS", path)
    assert find_encoder("none", generator, digest) is None
    assert find_encoder("auto", generator, digest) is None  # none is installed
    save_encoder(path, trained[0], digest)
    found = find_encoder("auto", generator, digest)
    assert encoder_digest(found) == encoder_digest(find_encoder(str(path), generator, digest))
    assert find_encoder("auto", generator, "another") is None
    with pytest.raises(InputError, match="is for generator"):
        find_encoder(str(path), generator, "another")


@pytest.mark.slow
def test_train_encoder_command_end_to_end(generator, photos, tmp_path):
    checkpoint, folder, out = tmp_path / "tiny.safetensors", tmp_path / "portraits", tmp_path / "out" / "tiny-encoder"
    save_generator(checkpoint, generator)
    write_prepared(folder, photos)
    arguments = ["train-encoder", str(checkpoint), "--portraits", str(folder), "--out", str(out)]
    arguments += ["--steps", "2", "--set", "perceptual=pyramid", "--set", "probes=160"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "2 steps" in result.output
    assert [path.name for path in out.parent.iterdir()] == [out.name]  # no checkpoint is left
    encoder = load_encoder(out, generator, generator_digest(generator))
    assert encoder.config.num_ws == generator.num_ws
    further = out.with_name("further")
    result = CliRunner().invoke(app, [*arguments, "--begin", str(out), "--method", "psp", "--set", "deep=8"])
    assert isinstance(result.exception, InputError)
    told = str(result.exception)
    assert f"{out.name}: has deep 48, passes 3, noise True, the settings ask for deep 8, passes 1, noise False" in told
    result = CliRunner().invoke(app, [*arguments[:5], str(further), *arguments[6:], "--begin", str(out)])
    assert result.exit_code == 0, result.output
    assert encoder_digest(load_encoder(further, generator, generator_digest(generator))) != encoder_digest(encoder)


DIVIDED = """
import json, os, sys
from pathlib import Path
import torch
from accelerate import PartialState
from stylepairs.datagen.encoders.run_file import RunFile
from stylepairs.datagen.encoders.settings import EncoderTraining
from stylepairs.datagen.encoders.training import Run, Teachers, train_encoder
from stylepairs.datagen.images.perceptual import load_perceptual
from stylepairs.datagen.reconstruction.prior import WPrior
from stylepairs.datagen.shell.errors import InputError
from stylepairs.datagen.stylegan.checkpoints import load_generator

PartialState(cpu=True)
generator = load_generator(sys.argv[1])
photos = torch.zeros(2, 3, *[generator.config.img_resolution] * 2, dtype=torch.uint8)
teachers = Teachers(generator, load_perceptual("pyramid"), WPrior.fit(generator), photos)
settings = EncoderTraining(steps=3, portraits=1, samples=0, width=4, deep=4, probes=4)
state = RunFile(Path(sys.argv[2]) / os.environ["RANK"], "")
if os.environ["RANK"] == "0":
    run = Run.begin(teachers, settings, torch.device("cpu"))
    state.write(run.modules, run.optimizers, json.dumps(settings.model_dump(exclude_none=True), sort_keys=True), 1)
try:
    train_encoder(teachers, settings, state)
except InputError as error:
    print(error, flush=True)
"""


@pytest.mark.slow
def test_processes_that_do_not_see_one_state_are_refused(generator, tmp_path):
    save_generator(tmp_path / "tiny.safetensors", generator)
    (tmp_path / "divided.py").write_text(DIVIDED)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*torchrun, str(tmp_path / "divided.py"), str(tmp_path / "tiny.safetensors"), str(tmp_path)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
        check=False, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.stdout.count("the processes are at steps 1, 0; give all machines one --out") == 2, done.stderr[-2000:]


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
