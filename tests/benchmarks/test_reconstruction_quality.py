"""The comparison with published methods: it makes pairs, keeps their figures and goes on where it stopped."""

import math
import sys
from types import SimpleNamespace

import pytest
import torch
from helpers import tiny_build
from pydantic import BaseModel

from stylepairs.datagen.build.unfinished_pair import WantedPair
from stylepairs.datagen.features.feature import Feature
from stylepairs.datagen.images.files import to_uint8
from stylepairs.datagen.pairs.record import Pair, PairRecord
from stylepairs.datagen.portraits.portrait import Portrait

STEPS = [
    f"{stage}.{name}=1"
    for stage in ("inversion", "reconstruction")
    for name in ("steps", "decay_steps", "warmup_steps")
]


@pytest.mark.slow
def test_each_method_has_a_row_of_figures_and_a_run_goes_on(import_script, tmp_path, monkeypatch):
    quality = import_script("reconstruction_quality")
    tiny_build.write_portraits(tmp_path / "portraits", 2)
    options = ["--out", str(tmp_path / "out"), "--generator", tiny_build.generator_file(), "--limit", "2"]
    options += ["--features", "hair_color", "--methods", "none", "ours"]
    options += ["--set", "perceptual=pyramid", "reconstruction.coarse_to_fine_steps=1", *STEPS]
    monkeypatch.setattr(sys, "argv", ["reconstruction_quality.py", str(tmp_path / "portraits"), *options])
    assert quality.main() == 0
    rows = quality.read_rows(tmp_path / "out")
    assert [(row["portrait"], row["method"]) for row in rows] == [
        (name, method) for method in ("none", "ours") for name in ("portrait_000", "portrait_001")
    ]
    assert quality.main() == 0
    assert quality.read_rows(tmp_path / "out") == rows


def test_a_pair_that_runs_backwards_is_measured_from_the_portrait_with_the_parameters_that_were_settled(import_script):
    quality = import_script("reconstruction_quality")
    image = torch.full((3, 8, 8), 0.5)
    portrait = Portrait("anna", image, torch.zeros(8, 8).byte(), torch.zeros(1, 8, 8), torch.zeros(68, 2), "0")
    record = PairRecord(
        "000000", "f", {"draw": 3}, 1.0, True, [], {"prior_after": math.nan}, "anna", "0", "0", 0, "", "val"
    )
    photo = to_uint8(image)
    made = Pair(record, photo, photo // 2, photo[..., 0], photo, photo, photo // 2)

    def measure(_portrait, seen, params):
        darker = float((seen.before.image - seen.after.image).mean())
        return {"degree": darker, "draw": float(params.draw)}

    feature = Feature(Drawn, None, measure)
    models = SimpleNamespace(image_px=8, instruments=SimpleNamespace(analyser=None))
    job = WantedPair("000000", portrait, {}, "0")
    forwards, backwards = (quality.figures_of(pair, job, feature, models) for pair in (made, made.turned()))
    assert backwards["generated_degree"] == forwards["generated_degree"] > 0
    assert backwards["generated_draw"] == 3
    assert math.isnan(backwards["prior_after"])  # a number to the table, which leaves it out


class Drawn(BaseModel):
    draw: int = 0
