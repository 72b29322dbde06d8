"""The commands say what was done on one line, and what was wrong on one line with exit code 2."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from helpers import tiny_build

from stylepairs.datagen import cli
from stylepairs.datagen.build import models, shard_runner
from stylepairs.datagen.shell import events
from stylepairs.datagen.shell.command_line import Progress, progress
from stylepairs.datagen.shell.errors import InputError

RECIPE = """
datagen:
  feature: hair_color
  params: {color: [blond, black], intensity: 1.0}
  perceptual: pyramid
  inversion: {steps: 1, decay_steps: 1, warmup_steps: 1}
  reconstruction: {steps: 1, decay_steps: 1, warmup_steps: 1, coarse_to_fine_steps: 1}
  gate: {color_delta_e: {max: 40}}
i2i: {}
"""


@pytest.fixture
def datagen(monkeypatch, capsys, tmp_path):
    """Runs `datagen ARGUMENTS` in this process, beside portraits in `faces`; gives exit code, stdout and stderr."""
    monkeypatch.setattr(models, "_analyser", lambda: (None, {}))  # slow, and no test here asks for its figures
    tiny_build.write_portraits(tmp_path / "faces", 3, bald="portrait_002")
    (tmp_path / "tiny.safetensors").symlink_to(tiny_build.generator_file())
    (tmp_path / "mine.yaml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)

    def run(arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["datagen", *arguments.split()])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        printed = capsys.readouterr()
        return caught.value.code, printed.out, printed.err

    return run


BUILD = (
    "build mine.yaml --portraits faces --out pairs --generator tiny.safetensors --workers 1 --shard-size 2 --device cpu"
)


def test_build_inspect_and_export_work_together(datagen, tmp_path):
    code, out, _ = datagen(BUILD)
    assert code == 0
    assert out.startswith("pairs: 6 pairs, ")
    assert out.count("\n") == 1
    code, out, _ = datagen("inspect pairs --out page/report.html")
    assert (code, out) == (0, "page/report.html: 6 pairs shown\n")
    assert "portrait_001" in (tmp_path / "page" / "report.html").read_text()
    assert datagen("export pairs --out plain --all")[0] == 0
    rows = [json.loads(line) for line in (tmp_path / "plain" / "index.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == [f"{i:06d}" for i in range(6)]
    assert all((tmp_path / "plain" / file).is_file() for row in rows for file in row["files"].values())
    assert rows[-1]["files"].keys() == {"before"}  # the bald one


def test_export_writes_the_pixels_of_the_pairs(datagen, tmp_path, synthetic_pairs):
    from PIL import Image

    from stylepairs.datagen.pairs import shards

    synthetic_pairs(tmp_path / "pairs", count=6)
    code, out, _ = datagen("export pairs --out plain")
    assert (code, out) == (0, "plain: 4 pairs\n")
    pair = shards.read_pair(tmp_path / "pairs", "000003")
    for name in ("before", "after", "mask"):
        with Image.open(tmp_path / "plain" / name / "000003.png") as image:
            np.testing.assert_array_equal(np.asarray(image), getattr(pair, name))
    assert not (tmp_path / "plain" / "before" / "000002.png").exists()


def test_portraits_are_not_prepared_among_pairs(datagen, synthetic_pairs, tmp_path):
    synthetic_pairs(tmp_path / "pairs", count=2)
    code, _, error = datagen("prepare faces --out pairs")
    assert (code, error) == (2, "pairs: holds pairs; choose another --out\n")


def test_an_export_leaves_no_pictures_of_an_earlier_one_and_no_pair_takes_anothers_name(
    datagen, tmp_path, synthetic_pairs
):
    synthetic_pairs(tmp_path / "pairs", count=6)
    assert datagen("export pairs --out plain --all")[1] == "plain: 6 pairs\n"
    (tmp_path / "plain" / "before" / "mine.png").write_bytes(b"")
    assert datagen("export pairs --out plain")[1] == "plain: 4 pairs\n"
    rows = [json.loads(line) for line in (tmp_path / "plain" / "index.jsonl").read_text().splitlines()]
    there = {path.name for path in (tmp_path / "plain" / "before").iterdir()}
    assert there == {f"{row['id']}.png" for row in rows} | {"mine.png"}
    tar = next((tmp_path / "pairs").glob("*.tar"))
    shutil.copy(tar, tmp_path / "pairs" / "pairs-00077.tar")
    code, _, error = datagen("export pairs --out plain")
    assert (code, error.count("\n")) == (2, 1)
    assert "both hold a pair" in error


def test_an_export_touches_no_pictures_that_none_wrote_and_its_index_never_tells_of_others(
    datagen, tmp_path, synthetic_pairs, monkeypatch
):
    from stylepairs.datagen.pairs import export

    synthetic_pairs(tmp_path / "pairs", count=6)
    mine = tmp_path / "mine" / "before" / "123456.png"
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"mine")
    code, _, error = datagen("export pairs --out mine")
    assert (code, error) == (
        2, "mine/before/123456.png: no export wrote it, as there is no index.jsonl; choose another --out\n",
    )  # fmt: skip
    assert mine.read_bytes() == b"mine"

    assert datagen("export pairs --out plain")[0] == 0

    def full(*_):
        raise InputError("plain/before/000000.png: no space left to write it")

    with monkeypatch.context() as patch:
        patch.setattr(export, "write_png", full)
        assert datagen("export pairs --out plain --all")[0] == 2
    assert (tmp_path / "plain" / "index.jsonl").read_bytes() == b""
    assert datagen("export pairs --out plain --all")[1] == "plain: 6 pairs\n"


def test_a_folder_that_may_only_be_read_is_inspected(datagen, tmp_path, synthetic_pairs, monkeypatch):
    from stylepairs.datagen.pairs import shards

    def full(_):
        raise InputError("pairs/manifest.parquet: cannot be written (Permission denied)")

    synthetic_pairs(tmp_path / "pairs", count=2)
    monkeypatch.setattr(shards, "update_manifest", full)
    code, out, error = datagen("inspect pairs --out page.html")
    assert (code, out) == (0, "page.html: 2 pairs shown\n")
    assert "the manifest stays as it is: pairs/manifest.parquet: cannot be written" in error
    told = [json.loads(line) for line in datagen("inspect pairs --out page.html --log json")[2].splitlines()]
    events.choose_log("text")
    assert [each["event"] for each in told] == ["begin", "note", "end"]


def test_one_feature_of_several_is_its_recipe(datagen):
    code, _, error = datagen("build --features mine.yaml --portraits faces --out pairs --set colr=red")
    assert code == 2
    assert "did you mean 'color'" in error
    code, _, error = datagen("build --features , --portraits faces --out pairs")
    assert (code, error.count("\n")) == (2, 1)
    assert "name either a recipe" in error


def test_set_limit_and_cache_reach_the_build(datagen, tmp_path):
    code, out, _ = datagen(f"{BUILD} --limit 2 --set color=grey --set inversion.steps=3 --cache elsewhere")
    assert code == 0
    assert out.startswith("pairs: 2 pairs")
    assert list((tmp_path / "elsewhere").rglob("*.safetensors"))
    settings = json.loads((tmp_path / "pairs" / "build.json").read_text())["recipe"]
    assert settings["params"]["color"] == "grey"
    assert settings["inversion"]["steps"] == 3


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("build none.yaml --portraits faces --out pairs", "none.yaml: cannot be read"),
        ("build mine.yaml --portraits faces --out pairs --set colr=red", "did you mean 'color'"),
        ("build mine.yaml --portraits faces --out pairs --set color=mauvish", "mauvish"),
        ("build mine.yaml --portraits faces --out pairs --device tpu", "choose auto, cpu or cuda"),
        ("build mine.yaml --portraits faces --out pairs --limit 0", "--limit"),
        ("build mine.yaml --portraits faces", "--out"),
        ("build mine.yaml --portraits faces --out mine.yaml/pairs", "cannot be written"),
        ("build mine.yaml --portraits faces --out pairs --sed 3", "--sed"),
        ("inspect nothing --out page.html", "no such folder of pairs"),
        ("inspect . --out page.html", "no finished shard of pairs"),
        ("export nothing --out plain", "no such folder of pairs"),
        ("export nothing --out plain --split test", "choose train or val"),
        ("prepare nothing.jpg --out faces", "nothing.jpg: no such file"),
        ("import faces faces --feature , --out pairs", "--feature ,: names no recipe"),
        ("frobnicate", "frobnicate"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(datagen, arguments, expected):
    code, out, err = datagen(arguments)
    assert code == 2
    assert out == ""
    assert expected in err
    assert err.count("\n") == 1


def test_an_interrupted_build_says_how_to_go_on(datagen, monkeypatch):
    def interrupt(*arguments, **settings):
        raise KeyboardInterrupt

    monkeypatch.setattr(shard_runner, "build_pairs", interrupt)
    code, out, err = datagen(BUILD)
    assert code == 130
    assert out == ""
    assert err == "interrupted; finished shards are kept: run the same command again to go on\n"


def test_ranks_of_a_launcher_share_the_build(datagen, monkeypatch, tmp_path):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    code, out, _ = datagen(BUILD)
    assert code == 0
    assert "not finished yet" in out
    monkeypatch.setenv("RANK", "0")
    assert datagen(BUILD)[1].startswith("pairs: 6 pairs, ")


def test_an_error_of_the_code_is_not_dressed_up_as_bad_input(datagen, monkeypatch):
    monkeypatch.setattr(shard_runner, "build_pairs", lambda *a, **k: 1 // 0)
    monkeypatch.setattr(sys, "argv", ["datagen", *BUILD.split()])
    with pytest.raises(ZeroDivisionError):
        cli.main()


def test_progress_off_a_terminal_is_plain_lines(capsys, monkeypatch):
    monkeypatch.setattr("stylepairs.datagen.shell.command_line._PLAIN_INTERVAL_S", 0.0)
    shown = Progress(4, "pairs")
    shown.advance(1.5, "1 accepted, 0 rejected")
    shown.note("pairs-00000.tar: damaged")
    err = capsys.readouterr().err
    assert err.startswith("2 of 4 pairs")
    assert "1 accepted, 0 rejected\npairs-00000.tar: damaged\n" in err
    quiet = Progress(4, "pairs", quiet=True)
    quiet.advance(1.5)
    quiet.note("note")
    assert capsys.readouterr().err == "note\n"


def test_progress_of_work_of_an_unknown_size_tells_no_total_and_no_time_left(capsys, monkeypatch):
    monkeypatch.setattr("stylepairs.datagen.shell.command_line._PLAIN_INTERVAL_S", 0.0)
    shown = Progress(0, "frames")
    shown.started -= 60
    shown.advance(15)
    assert capsys.readouterr().err == "15 frames\n"


def test_progress_on_a_terminal_is_a_bar(monkeypatch):
    import io

    from rich.console import Console

    screen = io.StringIO()
    monkeypatch.setattr("rich.console.Console", lambda **options: Console(file=screen, force_terminal=True, width=100))
    with progress(4, "pairs") as shown:
        shown.advance(2, "1 accepted, 1 rejected")
        shown.note("a note [not markup]")
    assert "2/4" in screen.getvalue()
    assert "a note [not markup]" in screen.getvalue()
    assert "1 accepted, 1 rejected" in screen.getvalue()


def test_the_module_runs_as_a_command(tmp_path):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "stylepairs.datagen", "inspect", "none", "--out", "page.html"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 2
    assert done.stderr == "none: no such folder of pairs; make one with `datagen build`\n"
