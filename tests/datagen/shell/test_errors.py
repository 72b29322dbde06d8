"""How messages are worded."""

from __future__ import annotations

import sys

import pytest
from pydantic import BaseModel, ValidationError

from stylepairs.datagen.cli import app
from stylepairs.datagen.shell.command_line import run_app
from stylepairs.datagen.shell.errors import InputError, exit_on_bad_input, nearest, one_line


def test_one_line_has_no_breaks_no_end_and_is_never_empty() -> None:
    assert one_line(ValueError("two\n  lines")) == "two lines"
    assert one_line(MemoryError()) == "MemoryError"
    assert one_line(ValueError("x" * 301)) == "x" * 297 + "..."
    assert one_line(ValueError("x" * 300)) == "x" * 300
    assert one_line("abcdef", limit=5) == "ab..."


def test_a_huge_name_in_a_message_does_not_hide_what_to_do(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["datagen", "build", "x" * 50_000, "--portraits", "p", "--out", "o"])
    with pytest.raises(SystemExit) as ended:
        run_app(app)
    said = capsys.readouterr().err
    assert ended.value.code == 2
    assert len(said) <= 2001
    assert said.startswith("xxx")
    assert said.endswith("must end in .yaml)\n")


@pytest.mark.parametrize("seeds", [["--seed", "1", "--seed", "2"], ["--seed=1", "--seed=1"]])
def test_an_option_of_one_value_that_is_given_twice_is_told(
    seeds: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["datagen", "build", "eyes", *seeds, "--portraits", "p", "--out", "o"])
    with pytest.raises(SystemExit, match="2"):
        run_app(app)
    assert capsys.readouterr().err == "--seed: given 2 times; it takes one value\n"


def test_options_that_may_be_repeated_may_be_given_twice(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sets = ["--set", "size=0.1", "--set", "crease=0.0"]
    monkeypatch.setattr(sys, "argv", ["datagen", "build", "eyes", *sets, "--portraits", "nowhere", "--out", "o"])
    with pytest.raises(SystemExit, match="2"):
        run_app(app)
    assert capsys.readouterr().err.startswith("nowhere: ")


def test_all_that_pydantic_finds_is_told_with_its_place() -> None:
    class Inner(BaseModel):
        count: int

    class Outer(BaseModel):
        inner: Inner
        name: str

    with pytest.raises(ValidationError) as caught:
        Outer.model_validate({"inner": {"count": "x"}, "name": 1})
    assert one_line(caught.value) == "inner.count: should be a whole number; name: should be text"
    with pytest.raises(ValidationError) as caught:
        Outer.model_validate(1)
    assert one_line(caught.value).startswith("should be a mapping")


def test_the_nearest_word_is_told_or_what_else_there_is() -> None:
    assert nearest("colr", ["color", "degree"]) == "; did you mean 'color'?"
    assert nearest("xyz", ["color", "degree"]) == ""
    assert nearest("xyz", ["color"], "there are: color") == "; there are: color"
    assert nearest("colr", ["color"], "there are: color") == "; did you mean 'color'?"


def test_a_script_ends_with_the_line_and_code_of_a_command(capsys):
    with pytest.raises(SystemExit, match="2"), exit_on_bad_input():
        raise InputError("a.jpg: no face; crop closer")
    assert capsys.readouterr().err == "a.jpg: no face; crop closer\n"
    with pytest.raises(KeyError), exit_on_bad_input():
        raise KeyError
