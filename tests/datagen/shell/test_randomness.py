"""Random numbers: the same for the same parts, on every machine and in every version."""

import pytest

from stylepairs.datagen.shell.randomness import random_generator, random_key, random_number


def test_the_numbers_are_those_of_the_pairs_made_so_far():
    assert random_number("strands", 0, "0" * 64) == 14338891206780731098
    assert random_generator("grain", 3, "f").integers(1000, size=3).tolist() == [141, 646, 858]


@pytest.mark.parametrize("other", [("a", 1, "digest"), ("b", 2, "digest"), ("a", 2, "other"), ("a2", "digest")])
def test_every_part_counts(other):
    assert random_key("a", 2, "digest") != random_key(*other)
    assert random_key("a", 2, "digest") == random_key("a", "2", "digest")
