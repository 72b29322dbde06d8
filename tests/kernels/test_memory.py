"""keep_freed_memory: freed memory is reused without page faults, in a process of its own."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import resource
from stylepairs.kernels.memory import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for size in (3, 50, 8, 40):
        b"x" * (size * 2**20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
plain, kept = faults(), keep_freed_memory()
faults()
print(kept, plain, faults())
"""


def test_freed_memory_is_reused_without_page_faults():
    shown = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True).stdout.split()
    if shown[0] == "False":
        pytest.skip("the C library has no mallopt")
    assert int(shown[2]) < int(shown[1]) / 20


def test_elsewhere_it_says_that_it_did_nothing(monkeypatch):
    from stylepairs.kernels import memory

    monkeypatch.setattr(memory.sys, "platform", "darwin")
    assert memory.keep_freed_memory() is False
