"""Regions that users give: mask images."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import torch

from stylepairs.datagen.portraits.portrait import Portrait
from stylepairs.datagen.sketching.tools.regions_given import checked_region, region_mask


def test_what_is_transparent_in_a_mask_image_is_not_of_it(tmp_path: Path) -> None:
    shown = np.zeros((256, 256), np.uint8)
    shown[51:103, 77:180] = 255
    cv2.imwrite(str(tmp_path / "mask.png"), shown)
    cv2.imwrite(str(tmp_path / "brush.png"), np.dstack([np.full((256, 256, 3), 255, np.uint8), shown]))
    blank = torch.zeros(1, 128, 128)
    portrait = Portrait("x", blank.expand(3, -1, -1), blank[0].byte(), blank, torch.zeros(68, 2), "")
    mask, brush = (region_mask(checked_region(str(tmp_path / name)), portrait) for name in ("mask.png", "brush.png"))
    assert mask.sum() > 0
    assert torch.equal(mask, brush)
