"""Bootstrap intervals that hold the truth, also where several rows are of one person; kernel distances without bias."""

from __future__ import annotations

import numpy as np
import pytest

from stylepairs.i2i.intervals import kernel_interval, median_interval


def held(rows_each: int, told: bool) -> int:
    """In how many of 60 draws of 40 people, each seen so often with little noise, the interval holds the truth, 3."""
    rng, count = np.random.default_rng(0), 0
    people = np.repeat(np.arange(40), rows_each).tolist() if told else None
    for seed in range(60):
        values = np.repeat(rng.normal(3, 1, 40), rows_each) + rng.normal(0, 0.1, 40 * rows_each)
        interval = median_interval(values.tolist(), people, seed)
        count += interval.low <= 3 <= interval.high
    return count


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    assert 50 <= held(1, told=False) <= 60
    assert np.isnan(median_interval([np.nan]).value)


def test_intervals_of_several_rows_a_person_hold_the_truth_where_they_know_it() -> None:
    assert held(5, told=True) >= 50
    assert held(5, told=False) < 45


def test_rows_that_repeat_a_person_leave_the_interval_as_it_is() -> None:
    values = np.random.default_rng(0).normal(3, 1, 30)
    repeated = np.repeat(values, 4).tolist()
    assert median_interval(repeated, np.repeat(np.arange(30), 4).tolist()) == median_interval(values.tolist())


def test_kernel_distance_is_near_nothing_for_one_distribution_and_grows() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.normal(0, 1, (60, 8)), rng.normal(0, 1, (60, 8))
    same, near, far = (kernel_interval(a, b + shift) for shift in (0, 0.5, 1.5))
    assert abs(same.value) < near.value < far.value
    assert same.low < 0 < same.high or abs(same.value) < 200
    assert near.high < far.low


def test_kernel_distance_of_paired_sets_is_not_biased() -> None:
    """Of pictures and noisy copies of them, many times: nothing on average, where the noise changes no distribution."""
    rng, values = np.random.default_rng(2), []
    for _ in range(60):
        person = rng.normal(0, 1, (12, 8))
        a, b = (0.8 * person + 0.6 * rng.normal(0, 1, person.shape) for _ in range(2))
        values.append(kernel_interval(a, b, list(range(12))).value)
    assert abs(np.mean(values)) < 2.5 * np.std(values) / np.sqrt(len(values))
    same = kernel_interval(person, person, list(range(12)))
    assert (same.value, same.low, same.high) == pytest.approx((0, 0, 0), abs=1e-9)


def test_a_kernel_distance_takes_two_people() -> None:
    rows = np.random.default_rng(3).normal(0, 1, (4, 8))
    assert np.isnan(kernel_interval(rows, rows + 1, ["one"] * 4).value)
    assert np.isnan(kernel_interval(rows, rows + 1, ["one", "one", "two", "two"]).low)
    assert np.isfinite(kernel_interval(rows, rows + 1, ["one", "one", "two", "three"]).low)
    assert np.isfinite(kernel_interval(rows, rows + 1, ["one", "one", "two", "two"]).value)


def test_of_one_person_there_is_a_median_and_no_interval() -> None:
    one = median_interval([1.0, 2.0, 4.0], ["one"] * 3)
    assert one.value == 2
    assert np.isnan([one.low, one.high]).all()
    assert np.isfinite(median_interval([1.0, 2.0]).low)
