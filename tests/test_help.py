"""Help texts show what they are written as: rich takes words in square brackets for its own markup."""

from __future__ import annotations

import importlib
from collections.abc import Iterator

import pytest
import typer
from rich.text import Text
from typer.main import get_command


def help_texts(command: object) -> Iterator[str]:
    """Of a command, its options and all below it."""
    for told in (command, *getattr(command, "params", [])):
        yield getattr(told, "help", None) or ""
    for below in getattr(command, "commands", {}).values():
        yield from help_texts(below)


@pytest.mark.parametrize("package", ["datagen", "i2i"])
def test_no_help_text_loses_words_in_brackets(package: str) -> None:
    app: typer.Typer = importlib.import_module(f"stylepairs.{package}.cli").app
    texts = list(help_texts(get_command(app)))
    assert len(texts) > 20
    # Text whose brackets are not taken for markup is shown with as many as it has, less the backslashes before them.
    lost = [text for text in texts if Text.from_markup(text).plain != text.replace("\\[", "[")]
    assert not lost
