"""Glasses are told by the lines of their frames, bare faces have none; at any size of the crop."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.warped_faces import face, with_wire_glasses

from stylepairs.datagen.images.files import read_image
from stylepairs.datagen.portraits.analysis.analyser import load_analyser, portrait_of
from stylepairs.datagen.portraits.portrait import CLASS
from stylepairs.datagen.sketching.face.glasses import frame_score, wears_glasses

PHOTOS = Path(__file__).parents[4] / "recipes" / "photos" / "heldout"


@pytest.mark.parametrize("size_px", [112, 128, 256])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_wire_frames_are_told_from_a_bare_face(size_px, seed):
    bare = face(size_px, seed)
    assert not wears_glasses(bare)
    assert wears_glasses(with_wire_glasses(bare))


def test_lines_count_alike_in_poor_light():
    worn = with_wire_glasses(face(128))
    dim = replace(worn, image=(worn.image + 1) * 0.5 - 1)
    assert frame_score(dim) > 0
    assert not wears_glasses(replace(face(128), image=(face(128).image + 1) * 0.5 - 1))


def test_labelled_glasses_count_whatever_the_picture_shows():
    bare = face(112)
    label = bare.label.clone()
    label[50:54, 30:80] = CLASS["eye_g"]
    assert wears_glasses(replace(bare, label=label))


def test_a_thick_bar_over_the_nose_is_a_frame():
    bare = face(112)
    image = bare.image.clone()
    image[:, 50:54, 34:78] = -1
    assert wears_glasses(replace(bare, image=image))
    assert not wears_glasses(replace(bare, image=torch.full_like(image, 0.3)))


@pytest.mark.parametrize(
    ("name", "worn"), [("052", True), ("044", True), ("046", False), ("058", False), ("059", False), ("060", False)]
)
def test_sharp_light_wrinkles_and_deep_set_eyes_are_no_frames(name, worn):
    photo = read_image(PHOTOS / f"portrait_{name}.jpg")
    analyser = load_analyser()
    face = analyser.find(photo)[0]
    assert wears_glasses(portrait_of(name, photo, face.points68, 128, analyser.parser)[0]) == worn
