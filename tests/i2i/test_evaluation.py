"""Figures of an editor: right at the extremes, and named after the features that they were computed with."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from helpers.tiny_build import write_portraits

from stylepairs.datagen.images.perceptual import load_perceptual
from stylepairs.datagen.portraits.folders import load_portraits
from stylepairs.datagen.portraits.portrait import CLASS, Portrait
from stylepairs.datagen.portraits.sketch import SketchRefused
from stylepairs.i2i import evaluation
from stylepairs.i2i.edit.editor import Editor, Wanted
from stylepairs.i2i.evaluation import frechet_distance, medians, portrait_figures
from stylepairs.i2i.identity import load_instruments
from stylepairs.i2i.models.checkpoints import ModelInfo
from stylepairs.i2i.models.glean import Glean

INFO = ModelInfo("hair_color", "color", {})


def portrait_of(name: str, seed: int, hair_px: int = 16) -> Portrait:
    torch.manual_seed(seed)
    hair, label = torch.zeros(1, 32, 32), torch.full((32, 32), CLASS["skin"], dtype=torch.uint8)
    hair[:, :hair_px], label[:hair_px] = 1, CLASS["hair"]
    return Portrait(name, torch.rand(3, 32, 32) - 0.5, label, hair, face_points(), name)


def face_points() -> torch.Tensor:
    """A jaw [68,2] in the lower half, closed by brows, so that hair in the upper half is not on the face."""
    points = torch.full((68, 2), 20.0)
    points[:17, 0] = torch.linspace(6, 26, 17)
    points[:17, 1] = 20 + 9 * torch.linspace(0, math.pi, 17).sin()
    points[17:27, 0], points[17:27, 1] = torch.linspace(6, 26, 10), 19
    return points


def test_portraits_are_measured_by_the_feature(model: Glean) -> None:
    said: list[str] = []
    portraits = [portrait_of("one", 1), portrait_of("two", 2), portrait_of("bald", 3, hair_px=0)]
    params = [{"color": "blond"}, {"color": "black"}]
    rows, summary = portrait_figures(Editor(model, INFO), portraits, params, load_instruments("pyramid"), said.append)
    assert [(row["portrait"], row["params"]["color"]) for row in rows] == [
        ("one", "blond"), ("one", "black"), ("two", "blond"), ("two", "black"),
    ]  # fmt: skip
    assert len(said) == 1
    assert "bald" in said[0]
    assert summary["changed_outside"] == 0
    assert summary["color_delta_e"] > 5
    assert summary["color_change"] == pytest.approx(0, abs=1e-3)
    assert "fid_pyramid" in summary
    assert 0.5 < summary["identity_pyramid-pooled"] <= 1.001


def test_mask_error_is_a_share_of_what_the_sketch_edits(model: Glean) -> None:
    """A mask of a half all over is off by half of the picture: by twice the quarter of it that is hair."""
    editor = Editor(model, INFO)
    figures, _ = evaluation.edit_figures(editor, portrait_of("one", 1, hair_px=8), editor.wanted({"color": "blond"}))
    assert figures["mask_error"] == pytest.approx(2, rel=0.15)


@pytest.mark.gpu
def test_a_model_on_a_gpu_has_the_same_figures(model: Glean) -> None:
    portraits, params = [portrait_of("one", 1), portrait_of("two", 2)], [{"color": "blond"}]
    by = load_instruments("pyramid")
    (_, here), (_, there) = (
        portrait_figures(Editor(model.to(device), INFO), portraits, params, by) for device in ("cpu", "cuda")
    )
    assert there == pytest.approx(here, rel=1e-2, abs=1e-2)


def test_edits_that_one_portrait_refuses_do_not_cost_it_the_others(model: Glean, monkeypatch) -> None:
    whole = evaluation.edit_figures

    def refusing(editor: Editor, before: Portrait, wanted: Wanted) -> tuple[evaluation.Row, torch.Tensor]:
        if wanted.params.model_dump()["color"] == "blond":
            raise SketchRefused(f"{before.name}: no blond")
        return whole(editor, before, wanted)

    monkeypatch.setattr(evaluation, "edit_figures", refusing)
    portraits = [portrait_of("one", 1), portrait_of("two", 2)]
    for colors in (["blond", "black"], ["black", "blond"]):
        said: list[str] = []
        params = [{"color": color} for color in colors]
        rows, _ = portrait_figures(Editor(model, INFO), portraits, params, load_instruments("pyramid"), said.append)
        assert [row["params"]["color"] for row in rows] == ["black", "black"]
        assert said == ["one: no blond", "two: no blond"]


def test_frechet_distance_is_zero_between_equal_sets_and_grows_with_noise() -> None:
    torch.manual_seed(0)
    images = torch.rand(24, 3, 32, 32) * 2 - 1
    values = []
    for other in (images, images * 0.5, images * 0.1):
        fid = frechet_distance(load_perceptual("pyramid"))
        fid.update(images, real=True)
        fid.update(other, real=False)
        values.append(float(fid.compute()))
    assert abs(values[0]) < 1e-3
    assert values[0] < values[1] < values[2]


def test_one_portrait_in_several_colours_keeps_its_rows_without_an_fid(model: Glean) -> None:
    said: list[str] = []
    params = [{"color": "blond"}, {"color": "black"}]
    rows, summary = portrait_figures(
        Editor(model, INFO), [portrait_of("one", 1)], params, load_instruments("pyramid"), said.append
    )
    assert len(rows) == 2
    assert "color_delta_e" in summary
    assert "fid_pyramid" not in summary
    assert said == ["fid_pyramid is left out: it needs two portraits"]


def test_a_summary_that_fails_does_not_take_the_rows_with_it(model: Glean, monkeypatch) -> None:
    class Failing:
        def update(self, *_: object, **__: object) -> None: ...

        def compute(self) -> None:
            raise torch.linalg.LinAlgError("no eigenvalues")

    monkeypatch.setattr(evaluation, "frechet_distance", lambda _: Failing())
    said: list[str] = []
    portraits = [portrait_of("one", 1), portrait_of("two", 2)]
    rows, summary = portrait_figures(
        Editor(model, INFO), portraits, [{"color": "blond"}], load_instruments("pyramid"), said.append
    )
    assert len(rows) == 2
    assert "color_delta_e" in summary
    assert said == ["fid_pyramid is left out: no eigenvalues"]


def test_a_portrait_that_cannot_be_read_is_said_and_left_out(model: Glean, tmp_path: Path) -> None:
    write_portraits(tmp_path, 3, bald="")
    (tmp_path / "hair" / "portrait_001.png").write_bytes(b"\x89PNG\r\n")
    said: list[str] = []
    files = load_portraits(tmp_path)
    rows, _ = portrait_figures(Editor(model, INFO), files, [{"color": "red"}], load_instruments("pyramid"), said.append)
    assert [row["portrait"] for row in rows] == ["portrait_000", "portrait_002"]
    assert len(said) == 1
    assert "portrait_001.png" in said[0]


def test_figures_that_are_not_finite_are_null_in_json_and_not_in_medians() -> None:
    rows = [{"a": math.nan, "b": 1.0}, {"a": 2.0, "b": math.inf}]
    assert medians(rows) == {"a": 2.0, "b": 1.0}
    assert evaluation.finite(rows[1]) == {"a": 2.0, "b": None}


def test_medians_are_over_the_rows_that_have_the_figure() -> None:
    assert medians([{"a": 1.0, "name": "x"}, {"a": 3.0, "b": 5.0}, {"a": 9.0, "b": None}]) == {"a": 3.0, "b": 5.0}
    assert medians([]) == {}
