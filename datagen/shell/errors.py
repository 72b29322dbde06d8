"""The one exception that means "the input is wrong": commands print it as one line and exit with code 2."""

from __future__ import annotations


class InputError(Exception):
    """Bad input from outside. The message is one line: `file: what is wrong; what to do`."""
