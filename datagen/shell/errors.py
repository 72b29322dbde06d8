"""The one exception that means "the input is wrong", and how messages are worded: one line, with the nearest name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from pydantic_core import ValidationError


class InputError(Exception):
    """Bad input from outside. The message is one line: `file: what is wrong; what to do`.

    Commands print it and exit with code 2.
    """


def one_line(error: object, limit: int = 300) -> str:
    """An error's text without line breaks, cut to `limit` characters; its type's name where it has none.

    Of pydantic's ValidationError "where: what" of each problem.
    """
    text = str(error)
    if isinstance(error, ValidationError):
        problems = error.errors(include_url=False, include_context=False, include_input=False)
        text = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}".removeprefix(": ") for each in problems)
    text = " ".join(text.split()) or type(error).__name__
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def printable(text: str) -> str:
    r"""The text with whatever cannot be printed on one line (line breaks, bytes that are no UTF-8) written as escapes.

    >>> printable("two\nlines")
    'two\\nlines'
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def nearest(word: str, known: Iterable[str], otherwise: str = "") -> str:
    """ "; did you mean 'x'?" for the nearest known word; where none is near "; " and `otherwise`, or nothing."""
    matches = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    if matches:
        return f"; did you mean {matches[0]!r}?"
    return f"; {otherwise}" if otherwise else ""
