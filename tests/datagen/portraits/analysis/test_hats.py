"""Hats: cloth on a head is told from hair, and features leave it alone. The hats are painted on bundled photos."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from helpers.recipe_scripts import scripts_on_path

from stylepairs.datagen.features import density, fluffiness, hair_color, hairline
from stylepairs.datagen.portraits.alignment import apply_transform, crop_aligned, ffhq_transform
from stylepairs.datagen.portraits.analysis.analyser import load_analyser
from stylepairs.datagen.portraits.portrait import CLASS, Portrait
from stylepairs.datagen.portraits.sketch import SketchRefused

ROOT = Path(__file__).parents[4]
PHOTOS = sorted((ROOT / "recipes" / "photos" / "heldout").glob("*.jpg"))[:4]


@pytest.fixture(scope="module")
def worn() -> list[tuple[Portrait, torch.Tensor]]:
    """Portraits with a painted hat, as the embedded analyser sees them, and where the hat is [H,W]."""
    analyser, made = load_analyser(), []
    with scripts_on_path(ROOT / "recipes" / "analyser", ("hats", "photos", "textures")):
        from hats import HAT, with_hat
        from photos import Labelled

        for seed, path in enumerate(PHOTOS):
            photo = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)
            points = analyser.find(photo)[0].points68
            move = ffhq_transform(points, 256)
            bare = crop_aligned(photo, move, 256)
            label, hair = analyser.parse(bare[None])
            matte = (hair[0, 0].numpy() * 255).astype(np.uint8)
            given = Labelled(path.stem, photo, points, bare, label[0].numpy(), matte, move)
            image, marked, _ = with_hat(given, np.random.default_rng(seed))
            if not (marked == HAT).any():
                continue
            label, hair = analyser.parse(image[None])
            inside = torch.from_numpy(apply_transform(move, points)).float()
            pixels = torch.from_numpy(image).permute(2, 0, 1).float() / 127.5 - 1
            made.append((Portrait(path.stem, pixels, label[0], hair[0], inside, "0"), torch.from_numpy(marked == HAT)))
    return made


@pytest.mark.slow
def test_painted_hats_are_seen_as_hats(worn):
    assert len(worn) >= 3
    for portrait, hat in worn:
        found = portrait.label == CLASS["hat"]
        assert (found & hat).sum() > 0.8 * (found | hat).sum(), portrait.name


@pytest.mark.slow
def test_a_hat_is_not_dyed_and_what_it_hides_is_not_reshaped(worn):
    for portrait, hat in worn:
        for feature in (hairline, fluffiness, density):
            with pytest.raises(SketchRefused):
                feature.sketch(portrait, feature.Params())
        try:
            sketch = hair_color.sketch(portrait, hair_color.Params())
        except SketchRefused:
            continue  # no hair is left to be seen
        assert sketch.edit_mask[0][hat].mean() < 0.02, portrait.name
