"""The gate's figures mean what their names say, and each rejection says why."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from stylepairs.datagen.build import quality
from stylepairs.datagen.build.settings import BuildRecipe, Threshold
from stylepairs.datagen.images.filters import blurred
from stylepairs.datagen.images.perceptual import load_perceptual
from stylepairs.datagen.portraits.portrait import CLASS, Portrait
from stylepairs.datagen.portraits.sketch import Sketch
from stylepairs.datagen.recipe import load_recipe
from stylepairs.datagen.shell.errors import InputError

SIZE = 32


@pytest.fixture
def portrait() -> Portrait:
    image = torch.rand(3, SIZE, SIZE, generator=torch.Generator().manual_seed(0)) * 2 - 1
    label = torch.zeros(SIZE, SIZE, dtype=torch.uint8)
    label[12:28, 8:24] = CLASS["skin"]
    label[2:12] = CLASS["hair"]
    points = torch.rand(68, 2, generator=torch.Generator().manual_seed(1)) * 16 + 8
    return Portrait("portrait_001", image, label, (label == CLASS["hair"])[None].float(), points, "d" * 64)


@pytest.fixture
def sketch(portrait) -> Sketch:
    return Sketch(portrait.image, portrait.hair, 1 - portrait.hair, reference_px=8)


@pytest.fixture(scope="module")
def instruments() -> quality.Instruments:
    prior = SimpleNamespace(distance=lambda ws: ws.flatten(1).norm(dim=1))
    return quality.Instruments(load_perceptual("pyramid"), prior)


def images_of(portrait: Portrait, generated_after: torch.Tensor, after: torch.Tensor) -> quality.Images:
    return quality.Images(portrait.image, generated_after, after, portrait.hair)


def measure(portrait, sketch, instruments, generated_after, after=None) -> dict[str, float]:
    images = images_of(portrait, generated_after, generated_after if after is None else after)
    return quality.measure_pair(portrait, sketch, images, (torch.zeros(6, 8), torch.ones(6, 8)), instruments)


def test_an_exact_pair_has_perfect_figures(portrait, sketch, instruments):
    figures = measure(portrait, sketch, instruments, portrait.image)
    assert figures["outside_psnr_db"] == pytest.approx(100)
    assert figures["outside_perceptual_pyramid"] == pytest.approx(0, abs=1e-6)
    assert figures["identity_pyramid"] == pytest.approx(1, abs=1e-4)
    assert figures["seam_energy"] == 0
    assert figures["prior_before"] == 0
    assert figures["prior_after"] == pytest.approx(math.sqrt(48))
    assert "face_score" not in figures


def test_outside_figures_do_not_see_the_edit_but_see_the_rest(portrait, sketch, instruments):
    edited = torch.where(portrait.hair > 0, torch.ones(()), portrait.image)
    assert measure(portrait, sketch, instruments, edited)["outside_psnr_db"] == pytest.approx(100)
    moved = torch.where(portrait.hair > 0, portrait.image, portrait.image.roll(3, -1))
    figures = measure(portrait, sketch, instruments, moved)
    assert figures["outside_psnr_db"] < 15
    assert figures["outside_perceptual_pyramid"] > 0.05
    assert figures["identity_pyramid"] < 0.97


def test_figures_of_every_pair_are_told_from_a_feature_s_own(portrait, sketch, instruments):
    figures = {**measure(portrait, sketch, instruments, portrait.image), "face_score": 1.0, "inversion_psnr": 25.0}
    assert all(quality.is_common(name) for name in figures)
    assert not quality.is_common("color_delta_e")


def test_a_hard_seam_is_seen_and_a_change_of_colour_alone_is_not():
    dark, light = torch.full((3, 16, 16), -1.0), torch.full((3, 16, 16), 1.0)
    mask = torch.zeros(1, 16, 16)
    mask[:, 4:12, 4:12] = 1
    pasted = torch.where(mask > 0, light, dark)
    assert quality.seam_energy(dark, light, pasted, mask) > 0.3
    assert quality.seam_energy(dark, pasted, pasted, mask) == 0
    assert quality.seam_energy(dark, light, dark, torch.zeros_like(mask)) == 0


def enlarged(portrait, side):
    """The portrait [..,32,32] with every pixel a square: the same picture at another size."""
    return replace(portrait.resized(side), image=as_squares(portrait.image, side), hair=as_squares(portrait.hair, side))


def as_squares(plane, side):
    return plane.repeat_interleave(side // SIZE, -1).repeat_interleave(side // SIZE, -2)


def test_figures_of_one_pair_are_the_same_at_every_size(portrait, instruments):
    found = []
    for side in (128, 512):
        large = enlarged(portrait, side)
        sketch = Sketch(large.image, large.hair, 1 - large.hair, reference_px=8)
        spread = blurred(large.hair, 0.03 * side)
        generated = blurred(large.image, 0.02 * side) + 0.3
        after = large.image + spread * (generated - large.image)
        images = quality.Images(blurred(large.image, 0.01 * side), generated, after, spread)
        found.append(quality.measure_pair(large, sketch, images, None, instruments))
    for name in ("identity_pyramid", "outside_perceptual_pyramid", "seam_energy", "rim_delta_e", "outside_psnr_db"):
        assert found[0][name] > 0, name
        assert found[1][name] == pytest.approx(found[0][name], rel=0.1), name


def test_faces_are_sought_in_a_larger_image_and_shifts_are_in_eye_distances(portrait):
    seen = []

    class Analyser:
        def find(self, photo: np.ndarray, min_score: float):
            seen.append(photo.shape)
            points = (portrait.points68 + 0.5) * (256 / SIZE) - 0.5
            points = points + (8 if len(seen) == 2 else 0)  # the second look is at the after image
            return [SimpleNamespace(score=0.2, points68=points * 0), SimpleNamespace(score=0.9, points68=points)]

        def parse(self, aligned: torch.Tensor):
            return torch.full((1, SIZE, SIZE), 5, dtype=torch.uint8), torch.ones(1, 1, SIZE, SIZE)

    sights = [quality.analyse(portrait, portrait.image, Analyser()) for _ in range(2)]
    figures = quality._face_figures(*sights, torch.zeros(68, 2))
    assert sights[1].portrait.label.unique() == 5
    assert sights[1].portrait.hair.min() == 1
    eyes = (portrait.points68[36:42].mean(0) - portrait.points68[42:48].mean(0)).norm()
    assert seen == [(256, 256, 3)] * 2
    assert figures["face_score"] == 0.9
    assert figures["landmark_shift"] == pytest.approx(math.sqrt(2) / float(eyes), rel=1e-3)


def test_a_face_is_found_where_it_is_in_a_picture_that_is_enlarged_for_it():
    place = torch.tensor([3.0, 11.0])
    image = torch.full((3, SIZE, SIZE), -1.0)
    image[:, int(place[1]), int(place[0])] = 1.0

    def find(photo, min_score):
        weight = torch.from_numpy(photo[..., 0].copy()).float()
        at = torch.arange(len(photo)).float()
        centre = torch.stack([(weight.sum(0) * at).sum(), (weight.sum(1) * at).sum()]) / weight.sum()
        return [SimpleNamespace(score=0.9, points68=centre.expand(68, 2))]

    found = quality._best_face(image, SimpleNamespace(find=find, parse=None))
    assert found is not None
    torch.testing.assert_close(found[1], place.expand(68, 2), rtol=0, atol=0.05)


def test_a_lost_face_is_rejected_by_both_its_figures(portrait):
    parsed = portrait.label[None], portrait.hair[None]
    blind = SimpleNamespace(find=lambda photo, min_score: [], parse=lambda aligned: parsed)
    sight = quality.analyse(portrait, portrait.image, blind)
    assert torch.equal(sight.portrait.points68, portrait.points68)
    figures = quality._face_figures(sight, sight, torch.zeros(68, 2))
    gate = {"face_score": Threshold(min=0.5), "landmark_shift": Threshold(max=0.1)}
    assert quality.judge(figures, gate) == (False, ["face_score 0 < 0.5", "landmark_shift not finite"])


def test_each_rejection_says_figure_value_and_threshold():
    gate = {"a": Threshold(min=1), "b": Threshold(max=8), "c": Threshold(min=0, max=1)}
    assert quality.judge({"a": 1.0, "b": 8.0, "c": 0.5}, gate) == (True, [])
    assert quality.judge({"a": 0.5, "b": 12.345678, "c": 2.0}, gate) == (False, ["a 0.5 < 1", "b 12.35 > 8", "c 2 > 1"])


def test_a_gate_on_a_figure_that_was_not_measured_is_an_error_unless_optional():
    with pytest.raises(InputError, match="no figure 'outside_psnr' was measured; did you mean 'outside_psnr_db'"):
        quality.judge({"outside_psnr_db": 30.0}, {"outside_psnr": Threshold(min=20)})
    assert quality.judge({}, {"face_score": Threshold(min=0.5, optional=True)}) == (True, [])


def test_a_threshold_needs_a_bound():
    with pytest.raises(ValidationError, match="needs min, max or both"):
        Threshold()


def test_bounds_that_nothing_can_meet_are_refused():
    assert Threshold(min=1, max=1).max == 1
    with pytest.raises(InputError, match=r"gate\.degree: .*min 2 is above max 1\.3; no pair could pass"):
        load_recipe("facial_features", "datagen", BuildRecipe, ["gate.degree.min=2"])
