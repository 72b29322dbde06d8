"""Fixtures that several test folders use. Little is imported: with xdist the process that shares out the tests reads
this too, before any other begins."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from typing import Any

import pytest

# Of folders of tests that learn: files that one process takes, so that one alone imports what only they need (PyTorch's
# compiler, albumentations, torchmetrics, scikit-learn: five seconds).
LEARNING = ("tests/i2i/train/", "tests/i2i/test_judging.py", "tests/datagen/latent/", "tests/datagen/encoders/")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("numprocesses", None) and not hasattr(config, "workerinput"):
        return  # it runs no test
    import torch

    # Triton's kernels run in its interpreter where there is no GPU. Read when triton is imported, as torch may do.
    if not torch.cuda.is_available():
        os.environ.setdefault("TRITON_INTERPRET", "1")
    os.fsync = lambda descriptor: None  # of thousands of small files, ms each; nobody cuts a test's power


@pytest.hookimpl(optionalhook=True)  # without xdist, as by `-p no:xdist`, there is no such hook
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """As `--dist loadfile`, with the files of LEARNING in one piece where few processes share the tests."""
    if config.getoption("dist") != "loadfile" or len(config.getoption("tx")) > 3:
        return None
    from xdist.scheduler import LoadFileScheduling

    class OneLearns(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return "learning" if nodeid.startswith(LEARNING) else super()._split_scope(nodeid)

    return OneLearns(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What is given a limit of its own goes first, the highest before: begun last, one process would end it alone."""

    def limit_s(item: pytest.Item) -> float:
        marker = item.get_closest_marker("timeout")
        return marker.args[0] if marker else 0.0

    items.sort(key=limit_s, reverse=True)


def pytest_collection_finish() -> None:
    """What was imported stays: let the garbage collector look at what tests make alone, a tenth of all objects."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def synthetic_pairs() -> Callable[..., None]:
    """The function `write_synthetic_pairs(directory, count, size_px, shard_size, reject_every, params)`."""
    from helpers.synthetic_pairs import write_synthetic_pairs

    return write_synthetic_pairs
