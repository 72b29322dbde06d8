"""The comparison of restorations: what cannot be compared is said before any work."""

import argparse
from types import SimpleNamespace

import pytest
from helpers import tiny_build

from stylepairs.datagen.shell.errors import InputError
from stylepairs.i2i.train.settings import DegradationSettings


def test_runs_that_would_write_into_one_folder_are_refused(import_script, tmp_path, monkeypatch):
    restoration = import_script("restoration")
    runs = [str(tmp_path / "a" / "run"), str(tmp_path / "b" / "run")]
    monkeypatch.setattr(restoration, "compare", lambda *_: pytest.fail("compared"))
    monkeypatch.setattr("sys.argv", ["restoration.py", *runs, "--portraits", str(tmp_path), "--out", str(tmp_path)])
    with pytest.raises(InputError, match=r"b/run: another run is called run, too"):
        restoration.main()


def test_a_portrait_to_show_that_is_not_there_is_named_before_any_is_judged(import_script, tmp_path, monkeypatch):
    restoration = import_script("restoration")
    tiny_build.write_portraits(tmp_path, 2)
    monkeypatch.setattr(restoration, "load_model", lambda _: (SimpleNamespace(size_px=32), None))
    monkeypatch.setattr(restoration, "prepare", lambda model: model)
    monkeypatch.setattr(restoration, "Editor", lambda *_: None)
    monkeypatch.setattr(restoration, "degradation_of", lambda _: DegradationSettings(scale=2))
    monkeypatch.setattr(restoration, "judged_of", lambda *_: pytest.fail("judged"))
    asked = argparse.Namespace(portraits=tmp_path, limit=None, shown=["portrait_007"], out=tmp_path)
    with pytest.raises(InputError, match=r"--shown portrait_007: is none of the 2 portraits"):
        restoration.compare(tmp_path / "run", asked, None)
