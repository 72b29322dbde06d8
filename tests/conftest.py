"""Fixtures that several test folders use. Little is imported: with xdist the process that shares out the tests reads
this too, before any other begins."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("numprocesses", None) and not hasattr(config, "workerinput"):
        return  # it runs no test
    import torch

    # Triton's kernels run in its interpreter where there is no GPU. Read when triton is imported, as torch may do.
    if not torch.cuda.is_available():
        os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture(scope="session")
def synthetic_pairs() -> Callable[..., None]:
    """The function `write_synthetic_pairs(directory, count, size_px, shard_size, reject_every, params)`."""
    from helpers.synthetic_pairs import write_synthetic_pairs

    return write_synthetic_pairs
