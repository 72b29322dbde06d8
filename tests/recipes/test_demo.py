"""Tests of the demo's own parts: its plan, its bookkeeping and its page, on synthetic stages."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stylepairs.datagen.portraits.analysis.analyser import load_analyser

ROOT = Path(__file__).parents[2]


@pytest.fixture
def scripts(monkeypatch):
    """The demo's modules by name, imported as the demo itself does (from the script's own folder)."""
    monkeypatch.syspath_prepend(str(ROOT / "recipes" / "demo"))
    names = ("page", "report", "demo", "pictures")
    yield {name: importlib.import_module(name) for name in names}
    for name in names:
        sys.modules.pop(name, None)


def test_edited_photos_are_held_out(scripts):
    rows = [json.loads(line) for line in (ROOT / "recipes/photos/photos.jsonl").read_text().splitlines()]
    heldout = {row["name"] for row in rows if row["split"] == "heldout"}
    assert {*scripts["demo"].EDITED, *scripts["demo"].GROUP} <= heldout


def test_pairs_are_made_of_the_training_photos_only(scripts, tmp_path):
    commands = [
        c for stage in scripts["demo"].plan(tmp_path, 2, 3) for c in stage.commands if c[:2] == ["datagen", "prepare"]
    ]
    assert [Path(c[2]).name for c in commands] == ["train"]


def test_a_finished_stage_is_not_run_again_until_its_commands_or_those_before_change(scripts, tmp_path):
    demo = scripts["demo"]
    build, train = (demo.Stage(name, "title", 1.0, [["datagen", name, "a"]]) for name in ("build", "train"))
    assert not demo.is_done(tmp_path, [build])
    demo.mark_done(tmp_path, [build], 2.0)
    demo.mark_done(tmp_path, [build, train], 2.0)
    assert demo.is_done(tmp_path, [build])
    assert demo.is_done(tmp_path, [build, train])
    other = demo.Stage("build", "title", 1.0, [["datagen", "build", "b"]])
    assert not demo.is_done(tmp_path, [other])
    assert not demo.is_done(tmp_path, [other, train])


@pytest.mark.parametrize("changed", [(3, 3), (2, 4)], ids=["portraits", "steps"])
def test_what_follows_a_change_is_made_again(scripts, tmp_path, monkeypatch, changed):
    demo = scripts["demo"]
    seen = []
    monkeypatch.setattr(demo, "call", lambda command: seen.append(command) or 0)
    monkeypatch.setattr(demo.report, "write", lambda *_: None)
    demo.run(tmp_path, 2, 3)
    whole = len(seen)
    demo.run(tmp_path, 2, 3)
    assert len(seen) == whole
    demo.run(tmp_path, *changed)
    again = {command[1] for command in seen[whole:]}
    assert again == {"train", "edit"} | ({"build", "inspect"} if changed[0] != 2 else set())


def test_a_failing_command_stops_the_demo_with_its_code(scripts, tmp_path, monkeypatch, capsys):
    demo = scripts["demo"]
    seen = []
    monkeypatch.setattr(demo, "call", lambda command: seen.append(command) or 2)
    assert demo.run(tmp_path, 2, 3) == 2
    assert len(seen) == 1
    assert "code 2" in capsys.readouterr().err


def test_an_edit_that_leaves_out_a_photo_does_not_stop_the_demo(scripts, tmp_path, monkeypatch):
    demo = scripts["demo"]
    seen = []
    monkeypatch.setattr(demo, "call", lambda command: seen.append(command) or 2 * (command[:2] == ["i2i", "edit"]))
    monkeypatch.setattr(demo.report, "write", lambda *_: None)
    assert demo.run(tmp_path, 2, 3) == 0
    assert len([command for command in seen if command[1] == "edit"]) == len(demo.EDIT_COLORS) + len(demo.SHIPPED)


def test_group_photo_shows_three_faces_side_by_side(scripts, tmp_path):
    scripts["demo"].make_group_photo(tmp_path / "group.png")
    with Image.open(tmp_path / "group.png") as group:
        assert len(load_analyser().find(np.asarray(group))) == 3


def test_page_holds_everything_and_loads_nothing(scripts, tmp_path, synthetic_pairs):
    demo = scripts["demo"]
    fill(tmp_path, demo, synthetic_pairs)
    scripts["report"].write(tmp_path, demo.PHOTOS, demo.EDITED, demo.EDIT_COLORS, tuple(demo.SHIPPED))
    text = (tmp_path / "index.html").read_text()
    sources = re.findall(r'(?:src|href)="([^"]{0,30})', text)
    assert sources
    assert all(source.startswith("data:image/") for source in sources)
    assert text.count("accepted") >= 4
    assert "rejected: hair_delta_e 20 &gt; 8" in text
    assert "<polyline" in text
    assert all(f">{edit}<" in text for edit in (*demo.EDIT_COLORS, *demo.SHIPPED))


def fill(out: Path, demo, synthetic_pairs) -> None:
    """What the stages leave behind, in small."""
    for kind in ("aligned", "label", "hair"):
        (out / "portraits" / kind).mkdir(parents=True)
        shape = (16, 16, 3) if kind == "aligned" else (16, 16)
        Image.fromarray(np.full(shape, 18, np.uint8)).save(out / "portraits" / kind / "portrait_001.png")
    (out / "portraits" / "index.jsonl").write_text('{"name": "portrait_001", "photo": "x/portrait_001.jpg"}\n')
    synthetic_pairs(out / "pairs")
    (out / "run").mkdir()
    lines = [{"step": i, "kind": "train", "loss": 1 / (i + 1)} for i in range(9)]
    (out / "run" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    demo.make_group_photo(out / "group.png")
    for edit in (*demo.EDIT_COLORS, *demo.SHIPPED):
        (out / "edited" / edit).mkdir(parents=True)
        for name in (*demo.EDITED, "group"):
            Image.new("RGB", (20, 24), "red").save(out / "edited" / edit / f"{name}.jpg")
    demo.mark_done(out, [demo.Stage("build", "", 1.0, [])], 3.0)


def test_pictures_of_an_unknown_feature_are_refused_before_any_is_made(scripts, monkeypatch, capsys):
    pictures = scripts["pictures"]
    monkeypatch.setattr(sys, "argv", ["pictures.py", "--features", "editors,nose"])
    monkeypatch.setattr(pictures, "editors_picture", lambda: pytest.fail("made"))
    with pytest.raises(SystemExit, match="2"):
        pictures.main()
    assert "--features nose: unknown; choose of pairs,steps" in capsys.readouterr().err


def test_plot_leaves_out_series_without_a_line(scripts):
    svg = scripts["page"].line_plot({"single": [(0, 1.0)], "flat": [(0, 2.0), (1, 2.0)]}, "step")
    assert "flat: 2 → 2" in svg
    assert "single" not in svg
    assert scripts["page"].line_plot({}, "step") == ""


def test_a_plot_has_room_for_its_legend(scripts):
    svg = scripts["page"].line_plot({f"loss {number}": [(0, 1.0), (1, 2.0)] for number in range(15)}, "step")
    places = [float(y) for y in re.findall(r'<text x="\d+" y="(\d+)" font-size="13"', svg)]
    assert len(places) == 15
    assert max(places) < int(re.search(r' height="(\d+)"', svg)[1])
    wide = scripts["page"].line_plot({"perceptual_efficientnet-lite0_alone": [(0, 0.261), (1, 0.243)]}, "step", 520)
    assert int(re.search(r' width="(\d+)"', wide)[1]) > 520 + 340  # of the line in a browser


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_whole_demo_runs_in_small(tmp_path):
    command = [
        sys.executable,
        str(ROOT / "recipes/demo/demo.py"),
        "--out",
        str(tmp_path),
        "--portraits",
        "2",
        "--steps",
        "2",
    ]
    assert subprocess.run(command, cwd=ROOT, check=False).returncode == 0
    assert len(list((tmp_path / "edited").glob("*/*.png"))) == 6 * 9 - 1  # hairline is unsure of one
    assert (tmp_path / "index.html").stat().st_size > 100_000
