"""The choice of an implementation: auto takes the first usable one, an explicit choice never falls back."""

from __future__ import annotations

import pytest

from stylepairs.kernels.dispatch import choose


def test_auto_takes_the_first_usable_one():
    assert choose("op", "auto", {"fast": False, "middle": True, "reference": True}) == "middle"


def test_an_explicit_choice_is_honoured():
    assert choose("op", "reference", {"fast": True, "reference": True}) == "reference"


def test_an_explicit_choice_that_cannot_run_raises():
    with pytest.raises(ValueError, match="op: implementation 'fast' cannot run"):
        choose("op", "fast", {"fast": False, "reference": True})


def test_an_unknown_choice_lists_the_known_ones():
    with pytest.raises(ValueError, match="auto, fast, reference"):
        choose("op", "quick", {"fast": True, "reference": True})
