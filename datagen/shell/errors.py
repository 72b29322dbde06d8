"""The one exception that means "the input is wrong", and how messages are worded: one line, with the nearest name."""

from __future__ import annotations

import difflib
import os
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from pydantic_core import ErrorDetails, ValidationError

# What pydantic says of values, in the words of whoever wrote them; {name}: of the error's context.
_PLAIN = {
    "missing": "is missing",
    "extra_forbidden": "unknown key",
    "finite_number": "should be a finite number",
    "none_required": "should be empty",
    "json_invalid": "is no JSON",
    "too_short": "should have at least {min_length} items",
    "too_long": "should have at most {max_length} items",
    "string_too_short": "should have at least {min_length} characters",
    "string_too_long": "should have at most {max_length} characters",
    "string_pattern_mismatch": "is not of the form {pattern}",
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float", "int_parsing_size"), "should be a whole number"),
    **dict.fromkeys(("float_type", "float_parsing"), "should be a number"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "should be true or false"),
    **dict.fromkeys(("string_type", "string_unicode"), "should be text"),
    **dict.fromkeys(("list_type", "tuple_type", "set_type"), "should be a list"),
    **dict.fromkeys(
        ("dict_type", "mapping_type", "model_type", "model_attributes_type", "dataclass_type"), "should be a mapping"
    ),
}
# How pydantic names the branches of a union in the middle of a key's path.
_BRANCH = re.compile(r"(literal|list|dict|tuple|set|function-\w+|nullable|constrained)[\[-].*|constrained-\w+")


class InputError(Exception):
    """Bad input from outside. The message is one line: `file: what is wrong; what to do`.

    Commands print it and exit with code 2.
    """


@contextmanager
def exit_on_bad_input() -> Iterator[None]:
    """Around what a script does: an InputError is printed and ends the program with code 2, as commands end."""
    try:
        yield
    except InputError as error:
        print(error, file=sys.stderr)
        sys.exit(2)


def one_line(error: object, limit: int = 300) -> str:
    """An error's text on one line that can be printed, cut to `limit` characters; its type's name where it has none.

    Of pydantic's ValidationError "where: what" of each problem.
    """
    text = str(error)
    if isinstance(error, ValidationError):
        text = "; ".join(
            f"{'.'.join(str(part) for part in each['loc'] if not _BRANCH.fullmatch(str(part)))}: "
            f"{plain_words(each)}".removeprefix(": ")
            for each in error.errors(include_url=False, include_input=False)
        )
    text = printable(" ".join(text.split())) or type(error).__name__
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def plain_words(details: ErrorDetails) -> str:
    """What is wrong with a value, of one problem that pydantic found: "should be a whole number"."""
    plain = _PLAIN.get(details["type"])
    if plain is not None:
        return plain.format(**details.get("ctx", {}))
    message = details["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
    return re.sub(r"^Input should ", "should ", message)


def without_middle(text: str, limit: int = 2000) -> str:
    """A text of more than `limit` characters, as one that quotes a huge name, with its middle left out.

    >>> without_middle("abcdefghijklmno", limit=9)
    'abc...mno'
    """
    kept = (limit - 3) // 2
    return text if len(text) <= limit else f"{text[:kept]}...{text[-kept:]}"


def printable(text: str) -> str:
    r"""The text with whatever cannot be printed on one line (line breaks, bytes that are no UTF-8) written as escapes.

    >>> printable("two\nlines")
    'two\\nlines'
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def as_text(name: str | os.PathLike[str]) -> str:
    """A file's name or path as text that can be stored: bytes that are no UTF-8 are written as escapes."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def nearest(word: str, known: Iterable[str], otherwise: str = "") -> str:
    """ "; did you mean 'x'?" for the nearest known word; where none is near "; " and `otherwise`, or nothing."""
    matches = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    if matches:
        return f"; did you mean {matches[0]!r}?"
    return f"; {otherwise}" if otherwise else ""
