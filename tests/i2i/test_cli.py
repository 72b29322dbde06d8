"""The `i2i` command: one line and exit code 2 for bad input, quick help."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from stylepairs.datagen.shell.errors import InputError
from stylepairs.i2i.cli import app, checked_suffix, combinations, parsed_params, targets


@pytest.mark.parametrize("command", [[], ["train"], ["edit"], ["evaluate"]])
def test_help_is_light(command: list[str]) -> None:
    code = "import sys; from stylepairs.i2i.cli import app; app(sys.argv[1:], standalone_mode=False);"
    check = code + "heavy = {'torch', 'cv2', 'kornia', 'accelerate'} & set(sys.modules); assert not heavy, heavy"
    start = time.time()
    done = subprocess.run(
        [sys.executable, "-c", check, *command, "--help"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert time.time() - start < 10  # a second on an idle machine


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "nothing.yaml", "--pairs", "p", "--out", "o"], "nothing.yaml"),
        (["edit", "nowhere", "photo.jpg", "--out", "o"], "nowhere: no such run folder"),
        (["edit", "embedded", "photo.jpg", "--out", "o", "--set", "color"], "must be key=value"),
        (["edit", "embedded", "photo.jpg", "--out", "o", "--format", "doc"], "--format doc"),
        (["evaluate", "nowhere", "--portraits", "p"], "nowhere: no such run folder"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_parameters_from_the_command_line() -> None:
    assert parsed_params(["color=blond", "degree=0.7"]) == {"color": "blond", "degree": 0.7}
    assert parsed_params(["color=#aabbcc"]) == {"color": "#aabbcc"}
    with pytest.raises(InputError, match="not YAML"):
        parsed_params(["color=[a"])


def test_lists_become_combinations() -> None:
    found = combinations({"color": ["red", "blond"], "degree": 1})
    assert found == [{"color": "red", "degree": 1}, {"color": "blond", "degree": 1}]


def test_files_of_one_name_do_not_overwrite_each_other() -> None:
    photos = [Path("a/one.jpg"), Path("b/one.JPG"), Path("c/two.webp")]
    names = [target.name for _, target in targets(photos, Path("out"), ".png")]
    assert names == ["one.png", "one_2.png", "two.png"]
    assert [target.name for _, target in targets(photos, Path("out"), None)] == ["one.jpg", "one_2.jpg", "two.webp"]


def test_no_two_photos_share_a_file_however_they_are_named() -> None:
    photos = [Path("a.png"), Path("a_2.png"), Path("b/a.jpg"), Path("c/a.webp")]
    found = [target for _, target in targets(photos, Path("out"), ".png")]
    assert len(set(found)) == len(photos)


def test_a_photo_is_never_overwritten(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="would be overwritten"):
        list(targets([tmp_path / "a.png"], tmp_path / "sub" / "..", ".png"))


def test_wrong_options_are_one_line_and_exit_code_2() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "stylepairs.i2i", "edit", "--nope"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1


def test_formats() -> None:
    assert checked_suffix("same") is None
    assert checked_suffix("png") == ".png"
