"""Where two registered pictures differ, above what resampling, compression and light leave between them."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from scipy import ndimage

from stylepairs.datagen.images.colors import srgb_to_lab
from stylepairs.datagen.images.filters import blurred

# Of the side: signed differences are averaged over so much, which leaves little of noise and of unequal sharpness.
_SMOOTHING = 0.006
# Distance in Lab from which a difference can be seen, and from which a region may begin; where nothing was edited and
# more than this lies between the pictures, both grow, up to a limit: beyond it they are no pair.
SEEN, CLEAR = 3.0, 6.0
_NOISE_SHARE, _NOISE_TIMES, _MOST_TIMES = 0.9, 1.5, 2.0
# Of the crop: smaller regions are specks.
_SPECK = 0.0004
_GAP = 0.012  # of the side: gaps in a region up to this width are closed


def difference(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    """Distance in Lab [H,W] between pictures [3,H,W] in [-1,1], each the mean of its surroundings."""
    signed = blurred(srgb_to_lab(after) - srgb_to_lab(before), max(0.5, _SMOOTHING * before.shape[-1]))
    distance: torch.Tensor = torch.linalg.vector_norm(signed, dim=0)
    return distance


def noise_level(distance: np.ndarray, outside: np.ndarray) -> float:
    """What `difference` is where nothing was edited, for 9 pixels of 10; 0 where there is no such place."""
    return float(np.quantile(distance[outside], _NOISE_SHARE)) if outside.any() else 0.0


def changed(distance: np.ndarray, noise: float) -> np.ndarray:
    """Where a picture was changed, [H,W] bool: what can be seen to differ and hangs together with what clearly does."""
    times = min(max(1.0, _NOISE_TIMES * noise / SEEN), _MOST_TIMES)
    seen = distance > SEEN * times
    labels, count = ndimage.label(seen, structure=np.ones((3, 3)))
    if count == 0:
        return seen
    every = np.arange(1, count + 1)
    sizes = ndimage.sum(seen, labels, every)
    clear = ndimage.maximum(distance, labels, every) > CLEAR * times
    kept = np.isin(labels, every[clear & (sizes > _SPECK * seen.size)])
    radius = max(1, round(_GAP * seen.shape[0] / 2))
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
    return cv2.morphologyEx(kept.astype(np.uint8), cv2.MORPH_CLOSE, disc) > 0
