"""The comparison with published methods: it makes pairs, keeps their figures and goes on where it stopped."""

import sys

import pytest
from helpers import tiny_build

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
