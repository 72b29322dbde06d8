"""Shipped editors that move: at the photo's own size they show what the feature's own sketch shows there."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from stylepairs.datagen.features import load_feature
from stylepairs.datagen.images.files import read_image, to_uint8
from stylepairs.datagen.portraits.analysis.analyser import load_analyser, portrait_of
from stylepairs.i2i.edit.editor import Editor

PHOTOS = Path(__file__).parents[3] / "recipes" / "photos" / "heldout"


def decibel(one: np.ndarray, other: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / np.square(one.astype(float) - other).mean()))


@pytest.mark.parametrize(
    ("feature", "params", "names"),
    [
        ("smile", {"smile": 0.8}, ("043", "051")),
        ("fluffiness", {"volume": 0.12, "where": "both"}, ("047", "052")),
        ("hairline", {"shift": -0.3}, ("047", "042")),
        ("face_shape", {"jaw": 0.15}, ("042", "052")),
        ("eyes", {"size": 0.2}, ("042", "043")),
    ],
)
def test_an_edit_is_nearer_to_the_sketch_than_the_photo_and_as_sharp(
    feature: str, params: dict[str, object], names: tuple[str, ...]
) -> None:
    analyser, editor = load_analyser(), Editor.load(f"embedded:{feature}", device="cpu")
    drawn = load_feature(feature)
    for name in names:
        photo = read_image(PHOTOS / f"portrait_{name}.jpg")
        portrait, _ = portrait_of(name, photo, analyser.find(photo)[0].points68, 256, analyser.parser)
        sketch = drawn.sketch(portrait, drawn.Params(**params))
        square, wanted = to_uint8(portrait.image), to_uint8(sketch.image)
        edited = editor(square, params)
        inside = sketch.edit_mask[0].numpy() > 0.5
        assert decibel(edited.pixels[inside], wanted[inside]) > decibel(square[inside], wanted[inside]) + 3
        sharp, wanted_sharp = (fine_contrast(image)[inside].std() for image in (edited.pixels, wanted))
        assert sharp > 0.85 * wanted_sharp
        assert (edited.pixels[edited.mask == 0] == square[edited.mask == 0]).all()
        # The network works at half the square's side.
        assert editor.model.size_px == 128


def fine_contrast(image: np.ndarray) -> np.ndarray:
    """What of the picture's light lies within two pixels."""
    light = image.mean(-1).astype(np.float32)
    return light - cv2.GaussianBlur(light, (0, 0), 1.0)
