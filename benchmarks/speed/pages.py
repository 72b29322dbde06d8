"""Figures put into a page of the documentation."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def plotting() -> Iterator[None]:
    """Where matplotlib, of the bench extra, is missing, the figures are kept without pictures, and a line says so."""
    try:
        yield
    except ImportError as error:
        print(f"no plots: {error}; pip install 'stylepairs[bench]'", file=sys.stderr)


def put_into(page: Path, table: str, mark: str = "figures") -> None:
    """Replace what is between the marks in the file `page`."""
    page.write_text(put_between(page.read_text(), table, mark))


def put_between(page: str, table: str, mark: str = "figures") -> str:
    """The page with what is between <!-- mark --> and <!-- end of mark --> replaced."""
    start, end = f"<!-- {mark} -->", f"<!-- end of {mark} -->"
    if start not in page or end not in page:
        raise ValueError(f"the page lacks {start} ... {end}")
    return page[: page.index(start) + len(start)] + "\n" + table + "\n" + page[page.index(end) :]
