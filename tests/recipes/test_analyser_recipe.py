"""The recipe of the face analyser: a stopped run goes on as if it had not stopped, and splits are read alike whether
their points lie in the photo or in its crop."""

import io
import json
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from helpers.recipe_scripts import scripts_on_path
from PIL import Image
from torch import nn

from stylepairs.datagen.portraits.alignment import apply_transform, ffhq_transform, invert_transform
from stylepairs.datagen.portraits.analysis.networks import PARSER_BLOCK_PX, PARSER_CLASSES, ParserNet
from stylepairs.datagen.portraits.landmarks import MESH_TO_68
from stylepairs.datagen.shell.errors import InputError, exit_on_bad_input

FOLDER = Path(__file__).parents[2] / "recipes" / "analyser"
NAMES = ("evaluate", "export", "glasses", "groups", "hats", "photos", "samples", "textures", "train", "training")


@pytest.fixture(scope="module", autouse=True)
def recipe_on_path():
    with scripts_on_path(FOLDER, NAMES):
        yield


class Stopped(Exception):
    """The run was killed here."""


def small_run(out: Path, stop_after: int | None = None) -> dict[str, torch.Tensor]:
    """Six steps of a small network; stop_after: the step whose loss never comes."""
    from training import train

    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 1, 1))
    seen = 0

    def loss(net, batch):
        nonlocal seen
        seen += 1
        if stop_after is not None and seen > stop_after:
            raise Stopped
        chosen = torch.randperm(36)[:18]  # as the parser's loss draws its pixels
        return {"square": (net(batch["image"]).flatten(2)[..., chosen].float() - 1).square().mean()}

    def sample(rng):
        return {"image": rng.normal(size=(3, 8, 8)).astype(np.float32)}

    return train(net, sample, loss, out, 6, 2, 0.01, precision="no", log_every=4, save_every=3).state_dict()


def steps_logged(out: Path) -> list[int]:
    return [json.loads(row)["step"] for row in (out / "log.jsonl").read_text().splitlines()]


def test_a_state_that_was_just_being_replaced_is_recovered(tmp_path):
    from training import recover_state, replace_state

    for name in ("state.old", "state.new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "step").write_text(name)
    recover_state(tmp_path)  # killed between the two renames
    assert (tmp_path / "state" / "step").read_text() == "state.old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["state"]
    (tmp_path / "state.new").mkdir()
    (tmp_path / "state.new" / "step").write_text("next")
    replace_state(tmp_path)
    assert (tmp_path / "state" / "step").read_text() == "next"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["state"]


@pytest.mark.parametrize("bf16, precision", [(True, "bf16"), (False, "no")])
def test_the_precision_is_the_machines_own_unless_it_is_named(tmp_path, monkeypatch, bf16, precision):
    import training

    def asked(**given):
        raise Stopped(given["mixed_precision"])

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bf16)
    monkeypatch.setattr(training, "Accelerator", asked)
    with pytest.raises(Stopped, match=precision):
        training.train(nn.Linear(1, 1), None, None, tmp_path, 1, 1, 0.1)


def test_a_stopped_run_goes_on_exactly(tmp_path):
    whole = small_run(tmp_path / "whole")
    with pytest.raises(Stopped):
        small_run(tmp_path / "broken", stop_after=5)
    assert steps_logged(tmp_path / "broken") == [4]
    resumed = small_run(tmp_path / "broken")
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)
    assert steps_logged(tmp_path / "whole") == [4, 6]  # the end too, however few steps
    assert steps_logged(tmp_path / "broken") == [4, 6]  # the fourth was made again


def test_a_run_of_another_network_is_named_and_left(tmp_path):
    from training import train

    small_run(tmp_path)
    before = (tmp_path / "state" / "model.safetensors").read_bytes()
    with pytest.raises(InputError, match=r"state: cannot be gone on from .* give another --out, or remove it"):
        train(nn.Linear(1, 1), None, None, tmp_path, 1, 1, 0.1, precision="no")
    assert (tmp_path / "state" / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--portraits", "{}/none"], "{}/none: no split of labelled portraits"),
        (["--portraits", "{}"], "{}: no split of labelled portraits"),
        (["--portraits", "{}/split", "--init", "{}/landmarks.npz"], "{}/landmarks.npz: no weights can be read"),
        (["--portraits", "{}/split", "--init", "{}/none"], "{}/none: no weights can be read"),
        (["--portraits", "{}/split", "--frames", "{}/none"], "{}/none: no mask of any of these portraits"),
        (["--portraits", "{}/split", "--without", "{}/none"], "{}/none: no names can be read"),
        (["--portraits", "{}/split", "--negatives", "{}/none"], "{}/none: no pictures in it"),
        (["--portraits", "{}/split", "--steps", "0"], "argument --steps: 0: must be a whole number above 0"),
    ],
)
def test_what_a_training_cannot_begin_with_is_one_line(tmp_path, monkeypatch, capsys, options, message):
    import train

    np.savez(tmp_path / "landmarks.npz", name=["a"], points68=np.zeros((1, 68, 2)))  # of `datagen prepare`
    (tmp_path / "index.jsonl").write_text('{"name": "a"}\n')
    write_split(tmp_path / "split", face_points(), None)
    given = ["parser", *(option.format(tmp_path) for option in options), "--out", str(tmp_path / "out")]
    monkeypatch.setattr("sys.argv", ["train.py", *given])
    with pytest.raises(SystemExit, match="2"), exit_on_bad_input():
        train.main()
    assert message.format(tmp_path) in capsys.readouterr().err


@pytest.mark.parametrize(
    ("run", "message"),
    [
        ("parser={}", "{}: weights of another network"),
        ("nose={}", "--run nose=...: must be NETWORK=DIR, NETWORK one of detector, landmarks, parser"),
        ("parser", "--run parser=...: must be NETWORK=DIR"),
        ("landmarks={}/none", "{}/none: no ema.safetensors or log.jsonl; train first"),
    ],
)
def test_weights_of_another_network_are_not_shipped(tmp_path, monkeypatch, run, message):
    import export
    from training import save_average

    save_average(nn.Linear(2, 2), tmp_path / "ema.safetensors")
    (tmp_path / "log.jsonl").write_text('{"step": 1}\n')
    monkeypatch.setattr("sys.argv", ["export.py", "--run", run.format(tmp_path), "--out", str(tmp_path / "out")])
    with pytest.raises(InputError, match=re.escape(message.format(tmp_path))):
        export.main()
    assert not list((tmp_path / "out").glob("*.safetensors"))


def test_chosen_pixels_of_a_block_are_those_of_the_whole_picture():
    net, image = ParserNet(width=2).eval(), torch.rand(1, 3, 64, 64) * 2 - 1
    chosen = torch.tensor([5, 14])
    with torch.no_grad():
        whole, some = net(image), net(image, chosen=chosen)
    assert some.shape == (1, PARSER_CLASSES + 1, 2, 16, 16)
    for place, pixel in enumerate(chosen.tolist()):
        row, column = divmod(pixel, PARSER_BLOCK_PX)
        torch.testing.assert_close(some[:, :, place], whole[:, :, row::PARSER_BLOCK_PX, column::PARSER_BLOCK_PX])


def face_points() -> np.ndarray:
    """points68 of a face that fills an aligned crop of 256 px as FFHQ's does."""
    rng = np.random.default_rng(0)
    points = rng.uniform(60, 200, (68, 2))
    points[36:42], points[42:48] = [96, 120] + rng.normal(0, 2, (6, 2)), [160, 120] + rng.normal(0, 2, (6, 2))
    points[48], points[54] = (105, 185), (151, 185)
    return apply_transform(ffhq_transform(points, 256), points)


def write_split(folder: Path, points68: np.ndarray, raw_to_aligned: np.ndarray | None) -> None:
    for part, channels in (("aligned", 3), ("label", 1), ("hair", 1)):
        (folder / part).mkdir(parents=True)
        name = "one.jpg" if part == "aligned" else "one.png"
        cv2.imwrite(str(folder / part / name), np.full((256, 256, channels), 17, np.uint8))
    mesh = np.zeros((1, 468, 2), np.float32)
    mesh[0, MESH_TO_68] = points68
    stored = {} if raw_to_aligned is None else {"raw_to_aligned256": raw_to_aligned[None]}
    np.savez(folder / "landmarks.npz", name=np.array(["one"]), mesh468=mesh, **stored)
    (folder / "index.jsonl").write_text(json.dumps({"name": "one"}) + "\n")
    if raw_to_aligned is not None:
        (folder / "raw").mkdir()
        cv2.imwrite(str(folder / "raw" / "one.jpg"), np.zeros((400, 300, 3), np.uint8))


def test_points_end_in_the_photo_wherever_they_were_given(tmp_path):
    from photos import read_split

    aligned, move = face_points(), np.array([[0.5, 0.1, 30.0], [-0.1, 0.5, 10.0]])
    raw = apply_transform(invert_transform(move), aligned)
    write_split(tmp_path / "in_crop", aligned, move)
    write_split(tmp_path / "in_photo", raw, move)
    write_split(tmp_path / "crop_alone", aligned, None)
    for name in ("in_crop", "in_photo"):
        (photo,) = read_split(tmp_path / name)
        assert photo.raw.shape == (400, 300, 3)
        np.testing.assert_allclose(photo.points68, raw, atol=1e-3)
    (photo,) = read_split(tmp_path / "crop_alone")
    assert photo.raw is photo.aligned
    np.testing.assert_allclose(photo.points68, aligned, atol=1e-3)


def test_lines_around_the_eyes_are_frames_and_brows_are_none(tmp_path):
    from dataclasses import replace

    from glasses import frames, with_frames
    from photos import read_split

    write_split(tmp_path, face_points(), None)
    (photo,) = read_split(tmp_path)
    image, label = np.full((256, 256, 3), 190, np.uint8), np.ones((256, 256), np.uint8)
    bare = replace(photo, aligned=image, label=label)
    assert not frames(bare).any()
    lines = np.zeros((256, 256), np.uint8)
    for x in (96, 160):
        cv2.circle(lines, (x, 120), 24, 255, 3)
    cv2.line(lines, (118, 116), (138, 116), 255, 3)
    worn = image.copy()
    worn[lines > 0] = 30
    found = frames(replace(bare, aligned=worn))
    assert (found & (lines > 0)).sum() > 0.7 * (lines > 0).sum()
    assert found.sum() < 1.5 * (lines > 0).sum()
    assert not frames(replace(bare, aligned=worn, label=np.where(lines > 0, 2, label).astype(np.uint8))).any()
    (tmp_path / "masks" / "wrong").mkdir(parents=True)
    cv2.imwrite(str(tmp_path / "masks" / "one.png"), found.astype(np.uint8) * 255)
    (marked,) = with_frames([bare], tmp_path / "masks")
    assert ((marked.label == 6) == found).all()
    (tmp_path / "masks" / "one.png").rename(tmp_path / "masks" / "wrong" / "one.png")
    assert with_frames([bare], tmp_path / "masks") == []


def test_a_face_that_was_painted_over_does_not_come_back(tmp_path, monkeypatch):
    import samples
    from photos import Labelled

    monkeypatch.setattr(samples, "paint", lambda size_px, rng: np.full((size_px, size_px, 3), 127, np.uint8))
    points = np.random.default_rng(0).uniform(70, 190, (68, 2))
    points[:4] = (60, 128), (196, 128), (128, 65), (128, 195)
    checks = (np.indices((256, 256)) // 4).sum(0)[..., None] % 2 * np.array([-255, 255, -255]) + np.array([255, 0, 255])
    inside = np.zeros((256, 256), np.uint8)
    cv2.ellipse(inside, (128, 128), (50, 70), 0, 0, 360, 255, -1)
    image = np.where(inside[..., None] > 0, checks, 127).astype(np.uint8)
    photo = Labelled("one", image, points, image, inside, inside, np.eye(2, 3))
    for seed in range(24):
        left = samples.without_face(photo, np.random.default_rng(seed), 128).astype(int)
        assert (np.ptp(left, axis=-1) > 120).mean() < 0.01


def test_jpeg_is_coded_in_the_order_of_its_colours():
    from photos import through_jpeg

    photo, coded = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8), io.BytesIO()
    Image.fromarray(photo).save(coded, "JPEG", quality=40)
    expected = np.asarray(Image.open(coded)).astype(int)
    assert (
        np.abs(through_jpeg(photo, 40) - expected).mean()
        < 1
        < np.abs(through_jpeg(photo[..., ::-1], 40) - expected).mean()
    )


def test_a_hat_takes_the_hair_under_it_and_leaves_the_face_free():
    from hats import HAIR, HAT, with_hat
    from photos import Labelled

    points = np.full((68, 2), 128.0)
    points[0], points[16], points[8] = (70, 120), (186, 120), (128, 225)
    points[19], points[24], points[33] = (104, 105), (152, 105), (128, 160)
    image = np.full((256, 256, 3), 150, np.uint8)
    label = np.full((256, 256), 1, np.uint8)
    label[:80] = HAIR
    label[:, :70], label[:, 186:] = 0, 0
    photo = Labelled("one", image, points, image, label, (label == HAIR).astype(np.uint8) * 255, np.eye(2, 3))
    hats = 0
    for seed in range(24):
        worn, marked, hair = with_hat(photo, np.random.default_rng(seed))
        hat = marked == HAT
        hats += bool(hat.any())
        assert (marked[~hat] == label[~hat]).all()
        assert not hair[hat].any()
        assert not hat[130:200, 100:156].any()
        assert (worn != image).any(-1)[hat].mean() > 0.9 if hat.any() else (worn == image).all()
    assert hats > 12  # the others would leave hair standing out beside them


def test_a_crop_that_is_cut_off_keeps_what_is_left_in_its_place():
    from samples import cut_off

    rng = np.random.default_rng(3)
    image = rng.integers(0, 256, (64, 64, 3), np.uint8)
    plane = image[..., 0].copy()
    cut = 0
    for seed in range(12):
        filled, label, hair = cut_off(image, plane, plane, np.random.default_rng(seed))
        assert filled.shape == image.shape
        assert (label == hair).all()
        np.testing.assert_array_equal(filled[24:, 24:40], image[24:, 24:40])  # no side loses more than 35 %
        np.testing.assert_array_equal(label[24:, 24:40], plane[24:, 24:40])
        cut += bool((filled != image).any())
    assert 6 < cut <= 12
