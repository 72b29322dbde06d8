"""InterFaceGAN (Shen, Yang, Tang, Zhou 2020): the normal of the plane that parts faces with an attribute from those
without, in W, and conditional normals, which leave other attributes as they are.

Published: 500 000 samples, the top and bottom 2 % as classes, a linear SVM, 70 % to fit and 30 % to check. Here the
classes are at least LEAST_CLASS samples each, since a few thousand samples have to do, and the SVM is liblinear's on
the primal, a second where SVC takes minutes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from stylepairs.datagen.shell.errors import InputError

SHARE = 0.02
LEAST_CLASS = 500
MOST_SHARE = 0.25
FIT_SHARE = 0.7
REGULARISATION = 1e-3  # the SVM's C: with few samples for many dimensions a hard margin fits noise
LEAST_LEFT = 0.05  # length of a conditional normal below which nothing of the attribute is left


@dataclass(frozen=True)
class Boundary:
    """normal [C], of unit length, towards higher scores; accuracy on samples kept to check; classes: samples each."""

    normal: torch.Tensor
    accuracy: float
    classes: int


def fit_boundary(w: torch.Tensor, score: torch.Tensor, share: float = SHARE, seed: int = 0) -> Boundary:
    """The boundary between the `share` of samples w [S,C] with the highest and the lowest score [S].

    Raises InputError where there are too few samples, or the score is the same for all.
    """
    share = min(max(share, LEAST_CLASS / max(len(score), 1)), MOST_SHARE)
    count = int(share * len(score))
    if count < 20:
        raise InputError(f"{len(score)} samples have this score; a boundary needs at least {round(20 / MOST_SHARE)}")
    order = score.argsort().numpy()
    low, high = order[:count], order[-count:]
    if float(score[low[-1]]) >= float(score[high[0]]):
        raise InputError("the score is the same for most samples; no boundary parts them")
    draw = np.random.default_rng(seed)
    chosen = [draw.permutation(group) for group in (low, high)]
    cut = round(FIT_SHARE * count)
    fit, check = (np.concatenate([group[part] for group in chosen]) for part in (slice(cut), slice(cut, None)))
    labels = [np.repeat([0, 1], n) for n in (cut, count - cut)]
    points = w.double().numpy()
    centre = points.mean(0)
    machine = linear_svm(REGULARISATION).fit(points[fit] - centre, labels[0])
    accuracy = float(machine.score(points[check] - centre, labels[1]))
    normal = torch.from_numpy(machine.coef_[0])
    return Boundary((normal / normal.norm()).float(), accuracy, count)


def linear_svm(regularisation: float) -> Any:
    """scikit-learn's linear SVM, solved on the primal. Raises InputError where it is not installed."""
    try:
        from sklearn.svm import LinearSVC
    except ImportError:
        raise InputError("boundaries need scikit-learn; pip install 'stylepairs[latent]'") from None
    return LinearSVC(C=regularisation, dual=False)


def conditional(normal: torch.Tensor, others: Sequence[torch.Tensor]) -> torch.Tensor:
    """normal [C] without what it shares with the other normals: moving along it crosses none of their planes.

    Raises InputError where next to nothing is left.
    """
    if not others:
        return normal
    basis, _ = torch.linalg.qr(torch.stack(list(others), 1).double())
    left = normal.double() - basis @ (basis.T @ normal.double())
    if float(left.norm()) < LEAST_LEFT:
        raise InputError("the conditions take all of the direction away; name fewer of them")
    unit: torch.Tensor = left / left.norm()
    return unit.float()
