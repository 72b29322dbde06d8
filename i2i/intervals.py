"""Medians and kernel distances with bootstrap intervals (Efron, 1979), for which people are drawn anew, not rows:
several edits of one person say little more than one (the cluster bootstrap of Davison and Hinkley, 1997).
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES, SHARE = 1000, 0.95  # of the bootstrap, and of what its intervals hold
_KERNEL_RESAMPLES = 200


@dataclass(frozen=True)
class Interval:
    """A figure and the bounds of its bootstrap interval, NaN where it has none."""

    value: float
    low: float = math.nan
    high: float = math.nan

    def __str__(self) -> str:
        return f"{self.value:.4g} [{self.low:.4g}, {self.high:.4g}]"


def median_interval(values: Sequence[float], people: Sequence[Hashable] | None = None, seed: int = 0) -> Interval:
    """The median of the finite values, and the bootstrap interval of it.

    people: who each value is of; None: each is of somebody else. Of one person there is no interval.
    """
    known = [place for place, value in enumerate(values) if math.isfinite(value)]
    if not known:
        return Interval(math.nan)
    found, of = np.array([values[place] for place in known]), _numbered(people or range(len(values)), known)
    rng, count = np.random.default_rng(seed), of.max() + 1
    if count < 2:
        return Interval(float(np.median(found)))
    medians = [np.median(found[_rows(of, rng.integers(0, count, count))]) for _ in range(RESAMPLES)]
    return Interval(float(np.median(found)), *np.quantile(medians, _bounds()).tolist())


def kernel_interval(found: np.ndarray, wanted: np.ndarray, people: Sequence[Hashable] | None = None) -> Interval:
    """The kernel distance times 1000 between features [N,C] and [M,C], unbiased, with its interval.

    people: who the pictures are of, where those of both sets are the same one by one; they are drawn alike then. None:
    each picture is of somebody else. Kernel (x.y / C + 1)^3. Pictures of one person, of either set, are not drawn
    independently of each other: they do not count against each other. NaN where there is one person alone, and no
    interval of two: whoever of them is drawn, it is the same two that count.
    """
    kernels = [(a @ b.T / a.shape[1] + 1) ** 3 for a, b in ((found, found), (wanted, wanted), (found, wanted))]
    if people is None:
        of = np.arange(len(found)), len(found) + np.arange(len(wanted))
    else:
        of = (_numbered(people, range(len(people))),) * 2
    value = _kernel_distance(kernels, of, (np.arange(len(found)), np.arange(len(wanted))))
    if math.isnan(value) or min(len(np.unique(each)) for each in of) < 3:
        return Interval(value)
    rng, values = np.random.default_rng(0), []
    for _ in range(_KERNEL_RESAMPLES):
        drawn = [_rows(each - each.min(), rng.integers(0, np.ptp(each) + 1, np.ptp(each) + 1)) for each in of]
        values.append(_kernel_distance(kernels, of, (drawn[0], drawn[0 if people is not None else 1])))
    return Interval(value, *np.nanquantile(values, _bounds()).tolist())


def _kernel_distance(
    kernels: Sequence[np.ndarray], of: Sequence[np.ndarray], rows: tuple[np.ndarray, np.ndarray]
) -> float:
    """Of these rows, the kernels' mean within both sets less twice that across them, over pictures of two people."""
    total = 0.0
    for kernel, a, b, weight in zip(kernels, (0, 1, 0), (0, 1, 1), (1, 1, -2), strict=True):
        others = of[a][rows[a]][:, None] != of[b][rows[b]][None]
        total += weight * kernel[np.ix_(rows[a], rows[b])][others].mean() if others.any() else math.nan
    return 1000 * float(total)


def _numbered(people: Sequence[Hashable], places: Sequence[int]) -> np.ndarray:
    """The person at each place as a number from 0, in the order in which they come."""
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(people[place], len(numbers)) for place in places])


def _rows(of: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """The rows of the people drawn, as often as each was drawn."""
    return np.repeat(np.arange(len(of)), np.bincount(drawn, minlength=of.max() + 1)[of])


def _bounds() -> tuple[float, float]:
    return (1 - SHARE) / 2, (1 + SHARE) / 2
