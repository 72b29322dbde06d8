"""Files that outsiders name: a pipe, a device or a loop of links is one line at once, wherever a file is read."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from stylepairs.datagen.cli import app
from stylepairs.datagen.recipe import load_recipe
from stylepairs.datagen.shell.command_line import run_app
from stylepairs.datagen.shell.decode import (
    Damaged,
    decode_npz,
    read_json,
    read_json_lines,
    read_safetensors,
    read_torch,
)
from stylepairs.datagen.shell.durable import file_digest
from stylepairs.datagen.shell.errors import InputError
from stylepairs.datagen.shell.regular import is_regular, open_regular, read_regular


@pytest.fixture(params=["pipe", "device", "folder", "loop", "absent", "long"])
def odd(request, tmp_path: Path) -> Path:
    """A path of each kind that is no regular file; reading from the first two would not end."""
    path = tmp_path / ("x" * 300 if request.param == "long" else "odd.yaml")
    if request.param == "pipe":
        os.mkfifo(path)
    elif request.param == "device":
        path.symlink_to("/dev/zero")
    elif request.param == "folder":
        path.mkdir()
    elif request.param == "loop":
        path.symlink_to(path)
    return path


def test_what_is_no_regular_file_is_refused_at_once(odd: Path) -> None:
    assert not is_regular(odd)
    with pytest.raises(OSError, match=r".+"):
        open_regular(odd)
    with pytest.raises(InputError, match="cannot be read"):
        file_digest(odd)
    with pytest.raises(InputError, match="cannot be read"):
        load_recipe(str(odd.with_name(odd.name)) if odd.suffix else f"{odd}.yaml", "datagen", object)
    for read in (read_json, lambda path: list(read_json_lines(path)), read_safetensors, read_torch, decode_npz):
        with pytest.raises(Damaged):
            read(odd)


def test_bytes_are_bounded(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    assert read_regular(path, 5) == b"12345"
    with pytest.raises(OSError, match="more than 4 bytes"):
        read_regular(path, 4)


@pytest.mark.parametrize("name", ["n" * 300, "loop/deeper"])
def test_what_the_system_refuses_is_one_line_and_exit_code_2(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    monkeypatch.chdir(tmp_path)
    for command in (["export", name, "--out", "o"], ["prepare", name, "--out", "o"], ["prepare", ".", "--out", name]):
        monkeypatch.setattr(sys, "argv", ["datagen", *command])
        with pytest.raises(SystemExit) as ended:
            run_app(app)
        said = capsys.readouterr().err
        assert ended.value.code == 2, said
        assert len(said.strip().splitlines()) == 1, said
