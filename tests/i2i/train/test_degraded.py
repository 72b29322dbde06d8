"""Restoration: each recipe trains end to end on portraits alone, holes and noise are as asked, seeds give the same."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from helpers.faked_faces import FakeAnalyser
from helpers.tiny_build import write_portraits
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from PIL import Image

from stylepairs.datagen.recipe import load_recipe
from stylepairs.datagen.shell.errors import InputError
from stylepairs.i2i import cli
from stylepairs.i2i.edit.editor import Editor
from stylepairs.i2i.identity import load_instruments
from stylepairs.i2i.judging import judge_restored
from stylepairs.i2i.models.checkpoints import ModelInfo, load_model
from stylepairs.i2i.models.glean import Glean
from stylepairs.i2i.train import augment
from stylepairs.i2i.train.data import load_batches
from stylepairs.i2i.train.degraded import DegradedPortraits, degraded, free_form_holes
from stylepairs.i2i.train.settings import DataSettings, DegradationSettings, TrainingSettings
from stylepairs.i2i.train.sides import portrait_records
from stylepairs.i2i.train.training import train

RECIPES = sorted((Path(__file__).parents[3] / "recipes" / "tasks").glob("*.yaml"))
TINY = [
    "steps=2", "checkpoint_every_steps=2", "batch_size=2", "perceptual=pyramid", "model.channel_base=128",
    "model.channel_max=8", "mixed_precision='no'", "init=none", "val_pairs=2",
]  # fmt: skip


@pytest.fixture
def portraits(tmp_path: Path) -> Path:
    write_portraits(tmp_path / "portraits", 24, bald="")
    return tmp_path / "portraits"


def image(seed: int, side: int = 64) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
    return np.asarray(cv2.resize(coarse, (side, side), interpolation=cv2.INTER_CUBIC))


@pytest.mark.parametrize("restores", [True, False])
def test_jpeg_is_coded_in_the_order_of_its_colours(restores: bool) -> None:
    photo, coded = image(0), io.BytesIO()
    if restores:
        poor, _ = degraded(photo, DegradationSettings(jpeg_quality=(40, 40)), np.random.default_rng(0))
    else:
        (poorly,) = augment.transforms_of(DataSettings()).degrading.transforms
        poor = poorly.transforms[-1].apply(photo, quality=40, image_type=".jpg")
    Image.fromarray(photo).save(coded, "JPEG", quality=40)
    expected = np.asarray(Image.open(coded))
    assert np.abs(poor.astype(int) - expected).mean() < 0.5 < np.abs(photo.astype(int) - expected).mean()


@pytest.mark.slow
@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe_restores_portraits_end_to_end(
    path: Path, portraits: Path, generator_file: Path, tmp_path: Path
) -> None:
    settings = load_recipe(str(path), "i2i", TrainingSettings, [*TINY, f"generator={generator_file}"])
    said: list[str] = []
    run = train(settings, portraits, tmp_path / "run", said.append)
    assert "held out" in said[0]
    again = train(settings, portraits, tmp_path / "again")
    assert train(settings, portraits, run) == run  # it is found to be the same run
    model, info = load_model(run)
    assert info.feature == "restoration"
    for name, tensor in load_model(again)[0].state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name
    alone = Editor(model, info, FakeAnalyser([(150, 150)], eye_distance=10))
    photo = np.full((300, 300, 3), 120, np.uint8)
    changed = (alone(photo).pixels != photo).any(-1)
    assert not changed[:, :129].any()  # 40 px are the face's square
    assert not changed[:, 171:].any()
    assert changed.any() or path.stem != "denoising"  # the others change nothing as yet
    editor = Editor(model, info, FakeAnalyser([(48, 48)]))
    judged, photos, targets = judge_restored({"run": editor}, portraits, load_instruments("pyramid"), limit=2)
    assert len(judged["run"].rows) == len(photos) == len(targets) == 2
    assert {"psnr_inside_db", "ssim_inside", "perceptual_pyramid"} <= judged["degraded"].figures.keys()
    photo = image(1, 96)
    edited = editor(photo, {}, degree=1.0)
    assert edited.pixels.shape == photo.shape
    assert edited.faces[0].refused is None


@examples(deadline=None, max_examples=40)
@given(side=st.sampled_from([16, 64, 129]), share=st.floats(0, 0.9), seed=st.integers(0, 2**31))
def test_free_form_holes_cover_what_is_asked_and_are_those_of_their_seed(side: int, share: float, seed: int) -> None:
    holes = free_form_holes(side, share, np.random.default_rng(seed))
    assert holes.shape == (side, side)
    assert set(np.unique(holes)) <= {0, 255}
    part = (0.3 + 0.14) * 0.14 + 0.02  # the largest part of a stroke, its round ends, and whole pixels
    assert share <= (holes > 0).mean() <= min(share + part + 3 / side, 1)
    assert np.array_equal(holes, free_form_holes(side, share, np.random.default_rng(seed)))
    assert (share == 0) == (not holes.any())


def test_holes_hide_what_is_under_them_and_leave_the_rest() -> None:
    asked, photo = DegradationSettings(hole_share=(0.3, 0.3)), image(3)
    poor, mask = degraded(photo, asked, np.random.default_rng(0))
    assert np.array_equal(poor[mask == 0], photo[mask == 0])
    assert np.all(poor[mask > 0] == 128)


def test_noise_is_as_strong_as_asked_and_a_smaller_picture_loses_what_is_fine() -> None:
    flat = np.full((64, 64, 3), 128, np.uint8)
    noisy, mask = degraded(flat, DegradationSettings(noise_std=(0.1, 0.1)), np.random.default_rng(0))
    assert 24 < noisy.astype(float).std() < 27
    assert mask.all()
    checks = np.indices((64, 64)).sum(0) % 2 * 255
    fine = np.repeat(checks[..., None].astype(np.uint8), 3, 2)
    small, _ = degraded(fine, DegradationSettings(scale=4, blur_sigma_px=(1, 1)), np.random.default_rng(0))
    assert small.shape == fine.shape
    assert small.std() < 10 < fine.std()
    blocks, _ = degraded(image(2), DegradationSettings(jpeg_quality=(5, 5)), np.random.default_rng(0))
    assert 1 < np.abs(blocks.astype(float) - image(2)).mean() < 60


def test_samples_are_those_of_seed_epoch_and_index_whatever_the_workers(portraits: Path) -> None:
    records = portrait_records(portraits)
    asked = DegradationSettings(hole_share=(0.1, 0.3), noise_std=(0.02, 0.1))
    dataset = DegradedPortraits(portraits, records, 32, (1, 1), asked, DataSettings(), seed=5)
    plan = [[(0, 0), (0, 1)], [(1, 0), (1, 1)]]
    alone, beside = (list(load_batches(dataset, plan, torch.device("cpu"), workers)) for workers in (0, 2))
    for one, two in zip(alone, beside, strict=True):
        assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(alone[0]["photo"], alone[1]["photo"])
    other = DegradedPortraits(portraits, records, 32, (1, 1), asked, DataSettings(), seed=6)
    assert not torch.equal(other[0, 0]["photo"], dataset[0, 0]["photo"])


def test_target_of_a_lower_degree_is_part_of_the_way(portraits: Path) -> None:
    records, asked = portrait_records(portraits), DegradationSettings(noise_std=(0.2, 0.2))
    still = DataSettings(flip_share=0, affine_share=0, photometric_share=0, identity_share=1)
    nothing = DegradedPortraits(portraits, records, 32, (1, 1), asked, still)[0, 0]
    assert nothing["degree"] == 0
    assert torch.equal(nothing["target"], nothing["photo"])
    whole = DegradedPortraits(portraits, records, 32, (1, 1), asked)[0]
    assert whole["degree"] == 1
    assert (whole["target"] - whole["photo"]).std() > 0.2


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"degradation": {}}, "nothing is degraded"),
        ({"degradation": {"noise_std": [0.2, 0.1]}}, "noise_std [0.2, 0.1]: give the lesser first"),
        ({"degradation": {"scale": 4}, "style": "color"}, "leave style at none"),
    ],
)
def test_degradation_that_cannot_be_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said.replace("[", r"\[")):
        TrainingSettings(**changes)


def test_runs_that_restore_different_things_are_not_compared(portraits: Path, model: Glean) -> None:
    editors = {}
    for path in RECIPES[:2]:
        settings = load_recipe(str(path), "i2i", TrainingSettings).model_dump(mode="json")
        editors[path.stem] = Editor(model, ModelInfo("restoration", "none", {"settings": settings}))
    with pytest.raises(InputError, match="restore different things"):
        judge_restored(editors, portraits, load_instruments("pyramid"))


def test_recipe_asks_for_the_folder_that_it_learns_from(tmp_path: Path) -> None:
    for asked in ({"pairs": tmp_path}, {"portraits": [tmp_path, tmp_path]}):
        with pytest.raises(InputError, match="give --portraits FOLDER alone"):
            cli.train(str(RECIPES[0]), tmp_path / "run", **asked)
    with pytest.raises(InputError, match="hair_color: learns from a folder of pairs; give --pairs FOLDER"):
        cli.train("hair_color", tmp_path / "run", portraits=[tmp_path])


def test_the_mask_reaches_beyond_holes_where_photo_and_target_are_one(portraits: Path) -> None:
    """A mask that ended with the hole left a grey rim around it."""
    asked = DegradationSettings(hole_share=(0.2, 0.2))
    sample = DegradedPortraits(portraits, portrait_records(portraits), 32, (1, 1), asked)[0]
    beyond = (sample["edit_mask"] > 0) & (sample["mask"] == 0)
    assert beyond.any()
    assert (sample["edit_mask"] >= sample["mask"]).all()
    assert torch.equal(sample["photo"][:, beyond[0]], sample["target"][:, beyond[0]])
