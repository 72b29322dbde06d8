"""A small part of the attack, for the slow tier; `python -m tests.attack --tries 10000 --kills 100` is the whole."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from attack.mutations import NASTY, damaged_bytes, damaged_json, damaged_value
from attack.trial import Trial, attempted

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_few_attacks_and_kills_of_every_kind() -> None:
    """Of each group 12, of each command one kill."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.attack", "--tries", "96", "--kills", "4", "--seed", "1"],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=580,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "96 tries, seed 1, 0 faults" in done.stdout
    assert done.stdout.count("the same bytes") == 4


def test_damage_is_the_same_for_the_same_seed_and_is_damage() -> None:
    data, value = bytes(range(256)) * 4, {"a": [1, {"b": 2}], "c": "x"}
    one, other = ([damaged_bytes(random.Random(seed), data) for seed in range(20)] for _ in range(2))
    assert one == other
    assert sum(each != data for each in one) > 15
    assert sum(damaged_value(random.Random(seed), value) != value for seed in range(40)) > 30
    assert all(isinstance(damaged_json(random.Random(seed), '{"a": 1}'), bytes) for seed in range(len(NASTY)))


@pytest.mark.parametrize(
    ("trial", "fault"),
    [
        (Trial(0, "", 1, 0), None),
        (Trial(2, "x: wrong; do y\n", 1, 0), None),
        (Trial(2, "", 1, 0), "0 lines"),
        (Trial(2, "a\nb\n", 1, 0), "2 lines"),
        (Trial(1, "Traceback (most recent call last):\nKeyError: 3\n", 1, 0), "traceback: KeyError: 3"),
        (Trial(-9, "", 1, 0), "exit code -9"),
        (Trial(0, "", 25, 0), "25 s, 0 MB"),
        (Trial(0, "", 1, 3 << 30), "1 s, 3072 MB"),
        (Trial(2, "a \x1b[1m b\n", 1, 0), "a line that cannot be printed"),
    ],
)
def test_what_counts_as_a_fault(trial: Trial, fault: str | None) -> None:
    assert trial.fault() == fault


def test_a_trial_ends_what_takes_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("attack.trial.CLOCK_S", 1)
    folder = tmp_path / "try"
    folder.mkdir()
    assert attempted(lambda: time.sleep(60), folder).code == -9
    assert attempted(lambda: os._exit(0), folder).fault() is None
    assert "MemoryError" in attempted(lambda: bytearray(3 << 30), folder).err
    assert attempted(lambda: sys.exit(2), folder).code == 2
    assert attempted(lambda: 1 / 0, folder).fault() == "traceback: ZeroDivisionError: division by zero"
