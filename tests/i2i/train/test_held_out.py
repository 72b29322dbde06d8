"""Figures of held-out pairs, right at the extremes, and the sheet that is looked at."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from stylepairs.datagen.images.perceptual import load_perceptual
from stylepairs.i2i.models.glean import Glean
from stylepairs.i2i.train.data import PairDataset
from stylepairs.i2i.train.held_out import pair_figures, psnr_outside_db, sample_sheet
from stylepairs.i2i.train.sides import read_records

CPU = torch.device("cpu")


def dataset(pairs: Path) -> PairDataset:
    return PairDataset(pairs, read_records(pairs, "val"), 32, "color", (6, 16), "")


def test_untrained_model_leaves_the_outside_untouched_and_misses_the_colour(pairs: Path, model: Glean) -> None:
    figures = pair_figures(model, dataset(pairs), load_perceptual("pyramid"), CPU)
    assert figures["psnr_outside_db"] == 100
    assert figures["mask_l1"] == pytest.approx(0.5 * 6 * 6 / 32**2, rel=0.5)  # half of the region, before it learns
    assert figures["mask_l1_alone"] == pytest.approx(0.5, abs=0.01)
    assert figures["confidence_pairs"] == 0.5
    assert figures["delta_e_to_wanted"] > 5
    assert figures["l1_inside"] > 0.1
    assert "perceptual_pyramid" in figures
    page = (Path(__file__).parents[3] / "docs" / "training.md").read_text(encoding="utf-8")
    named = {name.removesuffix("_alone").replace("_pyramid", "_NAME") for name in figures}
    assert {name for name in named if f"`{name}`" not in page} == set()


def test_psnr_by_hand() -> None:
    zero, region = torch.zeros(3, 2, 2), torch.ones(1, 2, 2)
    region[0, 0, 0] = 0
    assert psnr_outside_db(zero, zero, region) == 100
    assert psnr_outside_db(zero + 0.2, zero, region) == pytest.approx(20)
    assert psnr_outside_db(zero + 0.2, zero, torch.ones(1, 2, 2)) == 100  # nothing is outside


def test_sample_sheet_is_a_grid_of_seven_columns(pairs: Path, model: Glean) -> None:
    sheet = np.array(Image.open(io.BytesIO(sample_sheet(model, dataset(pairs), 2, CPU))))
    assert sheet.shape == (2 * 32 + 4, 7 * 32 + 4, 3)
