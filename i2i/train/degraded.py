"""Samples of restoration, made on the fly from prepared portraits: what is wanted is the portrait, the photo a degraded
copy of it.

Free-form holes after Yu et al. (2019), strokes of a wandering brush; poor photos after Wang et al. (Real-ESRGAN, 2021):
blur, down-scaling by a filter drawn anew, noise, JPEG, in that order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
import torch
from pydantic import ValidationError

from stylepairs.datagen.images.files import read_image, through_jpeg, to_float, to_uint8
from stylepairs.datagen.images.filters import grown
from stylepairs.datagen.pairs.record import Pair, PairRecord
from stylepairs.datagen.shell.errors import InputError
from stylepairs.i2i.train import augment
from stylepairs.i2i.train.data import PairDataset, Sample, plain_sample
from stylepairs.i2i.train.settings import DegradationSettings
from stylepairs.i2i.train.sides import files_by_name

if TYPE_CHECKING:
    from stylepairs.i2i.models.checkpoints import ModelInfo
    from stylepairs.i2i.train.settings import DataSettings

# Of a stroke, shares of the side: its width and the length of each of its straight parts; and how far these turn.
BRUSH_SHARE, REACH_SHARE, MOST_TURN = (0.04, 0.14), (0.06, 0.3), 0.6 * math.pi
PARTS_OF_A_STROKE = 6
HOLE_LEVEL = np.uint8(128)
RIM_PX = 2  # how far beyond a hole the mask is to reach
DOWN_FILTERS = (cv2.INTER_AREA, cv2.INTER_LINEAR, cv2.INTER_CUBIC)


def degradation_of(info: ModelInfo) -> DegradationSettings:
    """What a model was trained to restore. Raises InputError where its file does not say it."""
    try:
        return DegradationSettings.model_validate(info.training["settings"]["degradation"])
    except (KeyError, TypeError, ValidationError) as error:
        raise InputError("the model does not say what it restores; train it again") from error


class DegradedPortraits(PairDataset):
    """Samples as `PairDataset` gives them, of portraits that are degraded anew for each (epoch, index)."""

    def __init__(
        self,
        portraits: Path,
        records: Sequence[PairRecord],
        size_px: int,
        latent_shape: tuple[int, int],
        degradation: DegradationSettings,
        settings: DataSettings | None = None,
        seed: int = 0,
    ):
        if settings is not None:  # what is wanted stays clean
            settings = settings.model_copy(
                update=dict.fromkeys(("degrade_share", "refused_share", "from_after_share", "painted_share"), 0.0)
            )
        super().__init__(portraits, records, size_px, "none", latent_shape, "", settings, seed)
        self.degradation = degradation
        self.files = files_by_name(portraits)

    def __getitem__(self, key: tuple[int, int] | int) -> Sample:
        sample = super().__getitem__(key)
        place = key if isinstance(key, tuple) else (0, key)
        rng = np.random.default_rng([self.seed, *place, 1])  # 1: not the numbers that moved the portrait
        photo, mask = degraded(to_uint8(sample["photo"]), self.degradation, rng)
        hole = torch.from_numpy(mask)[None].float() / 255
        clean, poor = sample["photo"], to_float(photo)
        region = hole if self.settings is None else augment.region(hole, self.settings, rng)
        # A restoration of lower degree is part of the way to the clean picture.
        target = poor.lerp(clean, sample["degree"])
        # A little beyond the hole the target is the photo: a mask that ends short of it leaves a grey rim.
        masks = {"mask": hole, "edit_mask": grown(hole, RIM_PX), "region": region}
        return sample | {"photo": poor, "target": target} | masks

    def pair_sample(self, record: PairRecord) -> Sample:
        """The clean portrait, to which nothing has been done yet."""
        image = read_image(self.files[record.portrait].aligned_path)
        pair = Pair(record, before=image, after=image, mask=np.zeros(image.shape[:2], np.uint8))
        return plain_sample(pair, self.size_px, self.style) | {"ws": torch.zeros(self.latent_shape)}


def degraded(
    image: np.ndarray, settings: DegradationSettings, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """A poor copy of an image uint8 [H,W,3], and where it is poor, uint8 [H,W], 255 there: everywhere, or in the holes
    where it has nothing but holes, which are mid-grey."""
    photo, (height, width) = image, image.shape[:2]
    if settings.blur_sigma_px:
        photo = cv2.GaussianBlur(photo, (0, 0), rng.uniform(*settings.blur_sigma_px))
    if settings.scale > 1:
        small = max(1, width // settings.scale), max(1, height // settings.scale)
        photo = cv2.resize(photo, small, interpolation=DOWN_FILTERS[rng.integers(len(DOWN_FILTERS))])
    if settings.noise_std:
        noise = rng.normal(0, 255 * rng.uniform(*settings.noise_std), photo.shape)
        photo = np.clip(np.rint(photo + noise), 0, 255).astype(np.uint8)
    if settings.jpeg_quality:
        quality = int(rng.integers(settings.jpeg_quality[0], settings.jpeg_quality[1] + 1))
        photo = through_jpeg(photo, quality)
    if settings.scale > 1:
        photo = cv2.resize(photo, (width, height), interpolation=cv2.INTER_CUBIC)
    whole = np.full((height, width), 255, np.uint8)
    if not settings.hole_share:
        return photo, whole
    holes = free_form_holes(height, rng.uniform(*settings.hole_share), rng)
    return np.where(holes[..., None] > 0, HOLE_LEVEL, photo), whole if settings.is_poor_everywhere else holes


def free_form_holes(side: int, share: float, rng: np.random.Generator) -> np.ndarray:
    """uint8 [side,side], 255 under brush strokes that cover `share` of it, more by at most the stroke's last part."""
    holes = np.zeros((side, side), np.uint8)
    while True:
        place, heading = rng.uniform(0, side, 2), rng.uniform(0, 2 * math.pi)
        brush = max(1, round(side * rng.uniform(*BRUSH_SHARE)))
        for _ in range(rng.integers(1, PARTS_OF_A_STROKE + 1)):
            if np.count_nonzero(holes) >= share * side * side:
                return holes
            heading += rng.uniform(-MOST_TURN, MOST_TURN)
            reach = side * rng.uniform(*REACH_SHARE) * np.array([math.cos(heading), math.sin(heading)])
            end = np.clip(place + reach, 0, side - 1)
            cv2.line(holes, tuple(map(int, place)), tuple(map(int, end)), 255, brush)  # with round ends
            place = end
