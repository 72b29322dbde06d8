"""Tests of the script that writes the reference portraits: what is there is replaced by something, or left."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest
from helpers import tiny_build

from stylepairs.datagen.features import facial_features

SCRIPT = Path(__file__).parents[2] / "recipes/photos/references.py"


@pytest.mark.parametrize(
    ("portraits", "names", "message"),
    [
        ("portraits", ["portrait_000", "portait_001"], "portraits: no portrait portait_001; did you mean"),
        ("out", [], "out: is where the references go; give the portraits that they are made of, or another --out"),
        ("photos", [], "photos: no prepared portraits"),
        ("portraits", [], "portraits: no part of a face that is seen plainly enough; the references stay as they are"),
    ],
    ids=["misspelt", "itself", "photos", "nothing"],
)
def test_what_no_references_can_be_made_of_leaves_those_that_are_there(
    tmp_path, monkeypatch, capsys, portraits, names, message
):
    tiny_build.write_portraits(tmp_path / "portraits", 2)
    tiny_build.write_portraits(tmp_path / "out", 1)
    (tmp_path / "photos").mkdir()
    before = sorted((path, path.read_bytes()) for path in (tmp_path / "out").rglob("*.*"))
    if message.startswith("portraits: no part"):
        monkeypatch.setattr(facial_features, "can_give", lambda *_: False)
    command = [str(SCRIPT), str(tmp_path / portraits), *names, "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit, match="2"):
        runpy.run_path(str(SCRIPT), run_name="__main__")
    assert message in capsys.readouterr().err
    assert sorted((path, path.read_bytes()) for path in (tmp_path / "out").rglob("*.*")) == before
