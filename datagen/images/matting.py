"""A soft matte drawn to a photo's own edges: closed-form matting (Levin, Lischinski and Weiss 2006).

In each window of 3 x 3 pixels the matte is to be nearly linear in the colours. PyMatting has the same, but compiles for
47 s when it is first imported.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from scipy.sparse import coo_array, csr_array, diags_array
from scipy.sparse.linalg import cg

# What windows of nearly one colour add to their colours' covariance, for colours in [0,1].
_EPSILON = 1e-5
# How firmly known pixels keep their value, and unknown ones lean to theirs where colours say nothing.
_KNOWN, _UNKNOWN = 100.0, 0.01
_CHUNK = 50_000  # windows at a time, which bounds memory
_TOLERANCE, _STEPS = 1e-4, 500


def matted(image: torch.Tensor, matte: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    """matte [1,H,W] in [0,1] kept where known [1,H,W] is true; elsewhere as image [3,H,W] in [-1,1] has its edges."""
    sure, given = known.flatten().cpu().numpy(), matte.flatten().double().cpu().numpy()
    colors = ((image + 1) / 2).flatten(1).T.double().cpu().numpy()
    windows = _windows(sure.reshape(matte.shape[-2:]))
    weight = np.where(sure, _KNOWN, _UNKNOWN)
    system: csr_array = diags_array(weight).tocsr()
    for start in range(0, len(windows), _CHUNK):
        system = system + _laplacian(colors, windows[start : start + _CHUNK])
    solved, _ = cg(
        system, weight * given, x0=given, rtol=_TOLERANCE, maxiter=_STEPS, M=diags_array(1 / system.diagonal())
    )
    found = torch.from_numpy(np.where(sure, given, solved.clip(0, 1)))
    return found.to(matte).reshape(matte.shape)


def _windows(sure: np.ndarray) -> np.ndarray:
    """The pixels [K,9] of each window of 3 x 3 in which not all of sure [H,W] is true."""
    pixels = sliding_window_view(np.arange(sure.size, dtype=np.int32).reshape(sure.shape), (3, 3)).reshape(-1, 9)
    return pixels[~sliding_window_view(sure, (3, 3)).reshape(-1, 9).all(1)]


def _laplacian(colors: np.ndarray, windows: np.ndarray) -> csr_array:
    """The matting Laplacian [P,P] of windows [K,9] of a picture with colors [P,3]."""
    around = colors[windows]
    around = around - around.mean(1, keepdims=True)
    turned = around.transpose(0, 2, 1)
    precision = np.linalg.inv(turned @ around / 9 + _EPSILON / 9 * np.eye(3))
    values = np.eye(9) - (1 + around @ precision @ turned) / 9
    rows, columns = np.repeat(windows, 9, axis=1), np.tile(windows, 9)
    return coo_array((values.ravel(), (rows.ravel(), columns.ravel())), shape=(len(colors),) * 2).tocsr()
