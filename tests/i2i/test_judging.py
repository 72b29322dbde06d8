"""Models and folders side by side: figures that are right at the extremes, intervals that hold the truth."""

from __future__ import annotations

import importlib.util
import json
import runpy
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.faked_faces import Brightening, face_points
from helpers.tiny_build import write_portraits
from PIL import Image

from stylepairs.datagen.features.feature import Feature
from stylepairs.datagen.portraits.portrait import CLASS, Portrait
from stylepairs.datagen.portraits.sketch import AnalysedPair, Sketch, SketchRefused
from stylepairs.datagen.shell.errors import InputError
from stylepairs.i2i import judging
from stylepairs.i2i.edit.editor import Editor
from stylepairs.i2i.identity import load_instruments
from stylepairs.i2i.judging import (
    SHEET_ROWS,
    edited,
    entanglement,
    judge_pairs,
    judge_portraits,
    judged_of,
    known_pairs,
    markdown,
    picture_figures,
    write_report,
)
from stylepairs.i2i.models.checkpoints import ModelInfo
from stylepairs.i2i.models.glean import Edit, Glean
from stylepairs.i2i.models.restoration import NoParams, everywhere

ROOT = Path(__file__).parents[2]
INFO = ModelInfo("hair_color", "color", {})


def test_figures_of_a_picture_at_the_extremes() -> None:
    torch.manual_seed(0)
    target, mask = torch.rand(3, 32, 32) * 2 - 1, torch.zeros(1, 32, 32)
    mask[:, :, :16] = 1
    same = picture_figures(target, target, mask, load_instruments("pyramid"))
    assert (same["psnr_inside_db"], same["psnr_outside_db"], same["perceptual_pyramid"]) == (100, 100, 0)
    assert same["ssim_inside"] == pytest.approx(1, abs=1e-4)
    other = torch.where(mask > 0, torch.rand(3, 32, 32) * 2 - 1, target)
    changed = picture_figures(other, target, mask, load_instruments("pyramid"))
    assert changed["psnr_outside_db"] == 100
    assert changed["psnr_inside_db"] < 10
    assert changed["ssim_inside"] < 0.3 < 0.6 < changed["ssim_outside"]
    assert changed["perceptual_pyramid"] > 0.01


def test_pictures_of_one_portrait_are_drawn_together_for_the_interval() -> None:
    torch.manual_seed(0)
    made = [(torch.rand(3, 32, 32) * 2 - 1, {"target": torch.zeros(3, 32, 32), "mask": torch.ones(1, 32, 32)})
            for _ in range(8)]  # fmt: skip
    by, name = load_instruments("pyramid"), "psnr_inside_db"
    once = judged_of([({"portrait": str(n)}, *each) for n, each in enumerate(made)], by).figures[name]
    thrice = judged_of([({"portrait": str(n)}, *each) for n, each in enumerate(made) for _ in range(3)], by)
    assert (thrice.figures[name].low, thrice.figures[name].high) == (once.low, once.high)
    assert thrice.figures["kid_inside_pyramid"].low < thrice.figures["kid_inside_pyramid"].high


def test_a_kernel_distance_of_pictures_from_themselves_is_nothing() -> None:
    torch.manual_seed(0)
    pictures = [torch.rand(3, 32, 32) * 2 - 1 for _ in range(6)]
    found = [({}, each, {"target": each, "mask": torch.ones(1, 32, 32)}) for each in pictures]
    distance = judged_of(found, load_instruments("pyramid")).figures["kid_inside_pyramid"]
    assert (distance.value, distance.low, distance.high) == pytest.approx((0, 0, 0), abs=1e-6)


def test_runs_are_judged_side_by_side_on_held_out_pairs(model: Glean, synthetic_pairs, tmp_path: Path) -> None:
    pairs = tmp_path / "pairs"
    synthetic_pairs(pairs, count=60, size_px=32, shard_size=30)
    editors = {"first": Editor(model, INFO), "second": Editor(model, INFO)}
    judged, photos, targets = judge_pairs(editors, pairs, load_instruments("pyramid"))
    count = len(judged["first"].rows)
    assert count > 1
    assert {
        "psnr_inside_db",
        "ssim_outside",
        "perceptual_pyramid",
        "kid_inside_pyramid",
        "fid_pyramid",
        "identity_pyramid-pooled",
        "confidence",
        "faces_left",
        "seconds",
        "memory_mb",
    } <= set(judged["first"].figures)
    for name, interval in judged["first"].figures.items():
        if not name.startswith(("fid", "kid", "memory", "faces_left")):
            assert interval.low <= interval.value <= interval.high
        if name not in ("seconds", "memory_mb"):
            assert interval.value == judged["second"].figures[name].value
    sheet = [photos, *(one.pictures for one in judged.values()), targets]
    said: list[str] = []
    write_report(tmp_path / "out", judged, {"first": {"lips": 0.25}, "second": {}}, sheet, said.append)
    data = json.loads((tmp_path / "out" / "figures.json").read_text())
    assert len(data["first"]["rows"]) == count
    assert data["entanglement"]["first"] == {"lips": 0.25}
    table = (tmp_path / "out" / "figures.md").read_text()
    assert table.splitlines()[0] == "| figure | first | second |"
    assert "| first | 0.250 |" in table
    assert Image.open(tmp_path / "out" / "sheet.png").size == (4 * 32, min(count, 8) * 32)
    if importlib.util.find_spec("matplotlib") is None:
        assert "matplotlib" in said[0]
    else:
        assert Image.open(tmp_path / "out" / "figures.png").size[0] > 300
    assert markdown(judged, {}).count("\n") == len(judged["first"].figures) + 4


def test_faces_that_edit_leaves_are_judged_as_they_are_and_counted(
    brightening: Glean, synthetic_pairs, tmp_path: Path
) -> None:
    class Unsure(Brightening):
        def forward(self, photo: torch.Tensor, *told: torch.Tensor) -> Edit:
            return super().forward(photo, *told)._replace(confidence_logits=torch.full((len(photo),), -1.0))

    brightening.__class__ = Unsure
    editor = Editor(brightening, INFO)
    synthetic_pairs(tmp_path / "pairs", count=60, size_px=32, shard_size=30)
    judged, photos, _ = judge_pairs({"run": editor}, tmp_path / "pairs", load_instruments("pyramid"))
    one = judged["run"]
    assert one.figures["faces_left"].value == len(one.rows) > 1
    assert one.figures["confidence"].value == pytest.approx(0.269, abs=1e-3)
    assert all(torch.equal(shown, photo) for shown, photo in zip(one.pictures, photos, strict=True))
    write_portraits(tmp_path / "portraits", 2, bald="")
    of = judge_portraits({"run": editor}, tmp_path / "portraits", [{"color": "blond"}], load_instruments("pyramid"))[0]
    assert of["run"].figures["faces_left"].value == len(of["run"].rows) == 2
    assert of["run"].figures["psnr_outside_db"].value == 100
    assert {"confidence", "seconds", "color_delta_e"} <= set(of["run"].figures)


def test_pairs_of_another_feature_are_said_to_be(model: Glean, synthetic_pairs, tmp_path: Path) -> None:
    synthetic_pairs(tmp_path / "pairs", count=4, size_px=32, shard_size=4)
    with pytest.raises(InputError, match="no accepted held-out pair of bangs of a kind that every run knows"):
        known_pairs({"run": Editor(model, ModelInfo("bangs", "none", {}))}, tmp_path / "pairs")


def test_an_edit_is_judged_as_faint_as_edit_makes_it(brightening: Glean) -> None:
    editor, photo = Editor(brightening, INFO), torch.zeros(3, 32, 32)
    sample = {"photo": photo, "region": torch.ones(1, 32, 32), "style": torch.zeros(3)}
    outputs = [edited(editor, sample | {"degree": torch.tensor(degree)}).output for degree in (0.0, 0.05, 0.5)]
    assert torch.equal(outputs[0][0], photo)
    torch.testing.assert_close(outputs[1], outputs[2] / 2)


def test_pictures_that_are_edited_everywhere_and_nowhere_are_judged_by_what_they_have() -> None:
    image, everywhere, half, nowhere = torch.zeros(3, 32, 32), *torch.ones(2, 1, 32, 32), torch.zeros(1, 32, 32)
    half[:, :16] = 0
    for masks in ([half, everywhere, nowhere], [everywhere, half], [nowhere, half]):
        found = [({}, image, {"target": image, "mask": mask}) for mask in masks]
        figures = judged_of(found, load_instruments("pyramid")).figures
        assert (figures["psnr_inside_db"].value, figures["psnr_outside_db"].value) == (100, 100)


def test_where_nothing_was_to_be_edited_there_is_no_masked_distance() -> None:
    image, other = torch.zeros(3, 32, 32), torch.rand(3, 32, 32)
    masks = [torch.zeros(1, 32, 32)] * 2 + [torch.ones(1, 32, 32)]
    found = [({}, other, {"target": image, "mask": mask}) for mask in masks]
    judged = judged_of(found, load_instruments("pyramid"))
    assert ["perceptual_pyramid" in row for row in judged.rows] == [False, False, True]
    assert judged.figures["perceptual_pyramid"].value > 0.01


def test_an_fid_that_fails_is_said_and_does_not_take_the_figures_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing:
        def update(self, *_: object, **__: object) -> None: ...

        def compute(self) -> None:
            raise torch.linalg.LinAlgError("no eigenvalues")

    monkeypatch.setattr(judging, "frechet_distance", lambda _: Failing())
    said: list[str] = []
    picture = {"target": torch.zeros(3, 32, 32), "mask": torch.ones(1, 32, 32)}
    judged = judged_of([({}, torch.zeros(3, 32, 32), picture)] * 2, load_instruments("pyramid"), said.append)
    assert judged.figures["psnr_inside_db"].value == 100
    assert np.isnan(judged.figures["fid_pyramid"].value)
    assert said == ["fid_pyramid is left out: no eigenvalues"]


@pytest.mark.parametrize("size", [(8, 8), (40, 400), (400, 40)])
def test_pictures_of_any_shape_are_judged(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    made = [(torch.rand(3, *size), {"target": torch.rand(3, *size), "mask": torch.ones(1, *size)}) for _ in range(3)]
    figures = judged_of([({}, *each) for each in made], load_instruments("efficientnet-lite0")).figures
    assert np.isfinite([each.value for each in figures.values()]).all()


def test_no_more_than_the_sheets_pictures_are_held() -> None:
    alive: list[weakref.ref[torch.Tensor]] = []

    def found() -> Iterator[tuple[dict[str, Any], torch.Tensor, dict[str, torch.Tensor]]]:
        for number in range(4 * SHEET_ROWS):
            held = sum(each() is not None for each in alive)
            assert held <= SHEET_ROWS + 1, f"{held} of {number}"
            picture = torch.rand(3, 32, 32) * 2 - 1
            alive.append(weakref.ref(picture))
            yield {}, picture, {"target": picture.flip(-1), "mask": torch.ones(1, 32, 32)}

    judged = judged_of(found(), load_instruments("pyramid"))
    assert (len(judged.rows), len(judged.pictures)) == (4 * SHEET_ROWS, SHEET_ROWS)


def haired_portrait() -> Portrait:
    torch.manual_seed(0)
    label, hair = torch.full((32, 32), CLASS["skin"], dtype=torch.uint8), torch.zeros(1, 32, 32)
    label[:14], hair[:, :14] = CLASS["hair"], 1
    label[24:27, 12:20] = CLASS["l_lip"]
    points = torch.from_numpy(face_points(16, 16, 8.0))
    return Portrait("one", torch.rand(3, 32, 32) - 0.5, label, hair, points, "one")


@pytest.mark.slow
def test_an_edit_of_nothing_entangles_nothing(model: Glean) -> None:
    found = entanglement(Editor(model, INFO), [haired_portrait()], {"color": "blond", "degree": 0.0})
    assert found
    assert all(value == 0 for value in found.values())


def test_a_feature_is_entangled_only_on_portraits_that_it_applies_to(
    model: Glean, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(*_: object) -> Sketch:
        raise SketchRefused("nothing to fill")

    def measure(before: Portrait, seen: AnalysedPair, params: object) -> dict[str, float]:
        return {"degree": 9.0 * (seen.after is not seen.before)}

    features = {"applies": Feature(NoParams, everywhere, measure), "refuses": Feature(NoParams, refuses, measure)}
    monkeypatch.setattr(judging, "feature_names", lambda: list(features))
    monkeypatch.setattr(judging, "load_feature", features.__getitem__)
    found = entanglement(Editor(model, INFO), [haired_portrait()], {"color": "blond"})
    assert found == {"applies": 9.0}


def test_any_two_folders_are_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    for name in "abc":
        image = rng.integers(0, 255, (32, 32, 3), np.uint8)
        for folder, noise in (("wanted", 0), ("near", 4), ("far", 60)):
            (tmp_path / folder).mkdir(exist_ok=True)
            noisy = np.clip(image + rng.normal(0, noise, image.shape), 0, 255).astype(np.uint8)
            Image.fromarray(noisy).save(tmp_path / folder / f"{name}.png")
    script = str(ROOT / "recipes" / "judging" / "evaluate.py")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [script, *["wanted", "near", "far", "--out", "out", "--perceptual", "pyramid"]])
    runpy.run_path(script, run_name="__main__")
    data = json.loads((tmp_path / "out" / "figures.json").read_text())
    psnr = {name: data[name]["figures"]["psnr_inside_db"]["value"] for name in ("near", "far")}
    assert psnr["near"] > psnr["far"] + 10
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / "a.png").write_bytes((tmp_path / "wanted" / "a.png").read_bytes())
    (tmp_path / "specks").mkdir()
    Image.new("RGB", (5, 32)).save(tmp_path / "specks" / "a.png")
    (tmp_path / "twice").mkdir()
    for name in ("a.jpg", "a.png"):
        (tmp_path / "twice" / name).write_bytes((tmp_path / "wanted" / "a.png").read_bytes())
    for arguments, said in (
        (["nowhere"], "nowhere: no such folder"),
        (["near", "--masks", "masks"], "masks: no mask of b (of 2 pictures there is none)"),
        (["near", "specks"], "specks/a.png: 5 x 32 pixels; pictures need 6 on each side to be compared"),
        (["twice"], "twice/a.png: a.jpg has the same name; leave one of them"),
    ):
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", [script, "wanted", *arguments, "--out", "out"])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(script, run_name="__main__")
        assert (ended.value.code, capsys.readouterr().err.strip()) == (2, said)
