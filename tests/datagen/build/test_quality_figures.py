"""The gate's figures against their definitions, written out once more in numpy."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from stylepairs.datagen.build import quality
from stylepairs.datagen.images.colors import delta_e_2000, srgb_to_lab
from stylepairs.datagen.portraits.portrait import CLASS, Portrait
from stylepairs.datagen.portraits.sketch import Sketch

SIZE = 32
EYES = {"right": slice(36, 42), "left": slice(42, 48)}


def noise(seed: int, size: int = SIZE, channels: int = 3) -> torch.Tensor:
    return torch.rand(channels, size, size, generator=torch.Generator().manual_seed(seed)) * 1.8 - 0.9


def portrait(size: int = SIZE) -> Portrait:
    """A face whose eyes are 5 and 6 px wide."""
    points = torch.rand(68, 2, generator=torch.Generator().manual_seed(1)) * size / 2 + size / 4
    around = torch.tensor([[-3, 0.0], [-1, -1], [1, -1], [2, 0], [1, 1], [-1, 1]])
    points[EYES["right"]] = around + torch.tensor([10.0, 13.0])
    points[EYES["left"]] = around * 1.2 + torch.tensor([22.0, 14.0])
    label = torch.full((size, size), CLASS["skin"], dtype=torch.uint8)
    return Portrait("p", noise(0, size), label, torch.zeros(1, size, size), points, "d")


def sketch_of(mask: torch.Tensor, **changes) -> Sketch:
    return Sketch(noise(5), mask, 1 - mask, reference_px=8, **changes)


@pytest.mark.parametrize(("size", "radius"), [(8, 1), (32, 2), (100, 5)])
def test_the_ring_around_an_edit_lies_just_outside_and_is_a_twentieth_wide(size, radius):
    before, after, mask = noise(1, size), noise(2, size), torch.zeros(1, size, size)
    row, column = np.mgrid[:size, :size]
    mask[0, size // 2, size // 2] = 0.021
    mask[0, 0, 0] = 0.02  # as good as not edited
    far = np.maximum(abs(row - size // 2), abs(column - size // 2))
    ring = (far >= 2) & (far <= radius)
    change = delta_e_2000(srgb_to_lab(before), srgb_to_lab(after)).numpy()
    expected = change[ring].mean() if ring.any() else 0
    assert quality.rim_delta_e(before, after, mask) == pytest.approx(expected, rel=1e-4)


def spread(image: torch.Tensor, eye: torch.Tensor) -> float:
    """Standard deviation of lightness in the ellipse of half axes 0.3 and 0.15 eye widths; of 4 px at least."""
    (x, y), width = eye.mean(0).tolist(), max(float(np.ptp(eye[:, 0].numpy())), 4.0)
    row, column = np.mgrid[: image.shape[1], : image.shape[2]]
    inside = ((column - x) / (0.3 * width)) ** 2 + ((row - y) / (0.15 * width)) ** 2 < 1
    return float(image.mean(0).numpy()[inside].std())


@pytest.mark.parametrize("narrow", [False, True])
def test_eyes_are_kept_as_much_as_the_one_that_lost_more(narrow):
    face = portrait()
    if narrow:
        for eye in EYES.values():
            face.points68[eye] = face.points68[eye].mean(0) + (face.points68[eye] - face.points68[eye].mean(0)) / 10
    sketch = sketch_of(torch.zeros(1, SIZE, SIZE))
    for seed in (3, 4):
        after = noise(seed) / seed
        kept = [(spread(after, face.points68[eye]) + 0.02) / (spread(face.image, face.points68[eye]) + 0.02)
                for eye in EYES.values()]  # fmt: skip
        assert quality.eyes_kept(face, sketch, after) == pytest.approx(min(kept), rel=1e-4)
    assert quality.eyes_kept(face, sketch, face.image) == pytest.approx(1)


def test_the_steeper_of_two_images_is_no_seam():
    def gradient(image: torch.Tensor) -> np.ndarray:
        padded = np.pad(image.numpy(), ((0, 0), (0, 1), (0, 1)), "edge")
        across, down = padded[:, :-1, 1:] - padded[:, :-1, :-1], padded[:, 1:, :-1] - padded[:, :-1, :-1]
        return np.maximum(abs(across).mean(0), abs(down).mean(0))

    before, generated, after = noise(1), noise(2) / 2, noise(3) * 1.1
    mask = torch.zeros(1, SIZE, SIZE)
    mask[0, 8:20, 10:24] = 0.51
    mask[0, 20:, 10:24] = 0.5  # not inside
    row, column = np.mgrid[:SIZE, :SIZE]
    edge = (row >= 6) & (row < 22) & (column >= 8) & (column < 26)
    edge &= ~((row >= 10) & (row < 18) & (column >= 12) & (column < 22))
    excess = np.maximum(gradient(after) - np.maximum(gradient(before), gradient(generated)), 0)
    assert quality.seam_energy(before, generated, after, mask) == pytest.approx(excess[edge].mean(), rel=1e-4)


def test_identity_is_the_mean_cosine_over_the_face_that_is_not_edited():
    face = portrait()
    face.label[:16], face.label[20:22], face.label[24] = CLASS["hair"], CLASS["nose"], CLASS["l_brow"]
    mask = torch.zeros(1, SIZE, SIZE)
    mask[0, :, :8], mask[0, :, 8:12] = 0.5, 0.49
    expected = np.zeros((SIZE, SIZE))
    expected[16:, 8:] = 1
    np.testing.assert_array_equal(quality.face_mask(face, sketch_of(mask))[0].numpy(), expected)
    a, b = noise(7, 8, 4)[None], noise(8, 8, 4)[None]
    weight = expected.reshape(8, 4, 8, 4).mean((1, 3))
    cosine = (a * b).sum(1)[0].numpy() / (a.norm(dim=1) * b.norm(dim=1))[0].numpy()
    found = quality._masked_cosine(a, b, torch.from_numpy(expected).float()[None])
    assert found == pytest.approx((cosine * weight).sum() / weight.sum(), rel=1e-4)
    assert math.isnan(quality._masked_cosine(a, b, torch.zeros(1, SIZE, SIZE)))


def seen(points: torch.Tensor, score: float | None) -> quality.AnalysedPortrait:
    face = portrait()
    face.points68[:] = points
    return quality.AnalysedPortrait(face, score)


def test_landmarks_shift_by_the_mean_of_the_inner_ones_in_eye_distances():
    points = portrait().points68
    moved = points.clone()
    moved[17] += torch.tensor([3.0, 4.0])
    moved[16] += 100  # of the jaw, which does not count
    moved[67] += torch.tensor([0.0, 1.0])
    eyes = np.linalg.norm(points[EYES["right"]].mean(0).numpy() - points[EYES["left"]].mean(0).numpy())
    figures = quality._face_figures(seen(points, 0.9), seen(moved, 0.8), torch.zeros(68, 2))
    assert figures == {"face_score": 0.8, "landmark_shift": pytest.approx(6 / 51 / eyes, rel=1e-4)}
    asked = quality._face_figures(seen(points, 0.9), seen(moved, 0.8), moved - points)
    assert asked["landmark_shift"] == pytest.approx(0, abs=1e-6), "what the edit moves is no fault"
    lost = quality._face_figures(seen(points, 0.9), seen(moved, 0.0), torch.zeros(68, 2))
    assert lost["face_score"] == 0
    assert math.isnan(lost["landmark_shift"])


@pytest.mark.parametrize("size", [64, 300])
def test_the_best_face_is_sought_in_256_px_at_least_and_its_points_brought_back(size):
    asked = []

    def find(photo: np.ndarray, min_score: float) -> list:
        asked.append((photo, min_score))
        inside = np.full((68, 2), 10.0)
        return [SimpleNamespace(score=s, points68=p) for s, p in ((0.3, inside * 9), (0.7, inside), (0.5, inside * 8))]

    flat = torch.full((3, size, size), 0.5)
    flat[0], flat[1] = 3.0, -3.0  # beyond the range of a picture
    score, points = quality._best_face(flat, SimpleNamespace(find=find))
    photo, least = asked[0]
    assert photo.shape == (max(size, 256), max(size, 256), 3)
    assert photo.dtype == np.uint8
    assert photo[5, 5].tolist() == [255, 0, 191]
    assert least == 0.05
    scale = max(size, 256) / size
    assert score == 0.7
    np.testing.assert_allclose(points.numpy(), np.full((68, 2), 10.5 / scale - 0.5), rtol=1e-5)
    assert quality._best_face(flat, SimpleNamespace(find=lambda photo, score: [])) is None


def test_without_an_analyser_a_picture_keeps_the_portrait_s_own_parts_and_has_no_score():
    face = portrait()
    found = quality.analyse(face, noise(9), None)
    assert found.score is None
    assert torch.equal(found.portrait.image, noise(9))
    assert torch.equal(found.portrait.label, face.label)


def test_all_figures_are_measured_with_what_they_name():
    face, mask = portrait(), torch.zeros(1, SIZE, SIZE)
    mask[0, :10] = 1
    sketch = sketch_of(mask)
    perceptual = SimpleNamespace(name="deep-one", features=lambda image: [image, image[:, :, ::2, ::2]])
    points = face.points68 * 8
    analyser = SimpleNamespace(
        find=lambda photo, score: [SimpleNamespace(score=0.6, points68=points)],
        parse=lambda images: (face.label[None], face.hair[None]),
    )
    prior = SimpleNamespace(distance=lambda ws: ws.flatten(1).sum(1))
    before, after, composed = noise(2), noise(3) * 2, noise(4)
    images = quality.Images(before, after, composed, mask)
    latents = torch.full((2, 3), 0.5), torch.full((2, 3), 2.0)
    found = quality.measure_pair(face, sketch, images, latents, quality.Instruments(perceptual, prior, analyser))
    assert found["prior_before"] == 3
    assert found["prior_after"] == 12
    assert found["face_score"] == 0.6
    assert found["landmark_shift"] == pytest.approx(0, abs=1e-6)
    assert found["seam_energy"] == quality.seam_energy(face.image, after, composed, mask)
    assert found["rim_delta_e"] == quality.rim_delta_e(face.image, composed, mask)
    assert found["eyes_kept"] == quality.eyes_kept(face, sketch, composed)
    error = ((after.clamp(-1, 1) - face.image) ** 2).mean(0)[10:].mean()
    assert found["outside_psnr_db"] == pytest.approx(10 * math.log10(4 / float(error)), abs=1e-3)
    cosine = quality._masked_cosine(before[None, :, ::2, ::2], after.clamp(-1, 1)[None, :, ::2, ::2], 1 - mask)
    assert found["identity_deep_one"] == pytest.approx(cosine, rel=1e-5)
    assert found["outside_perceptual_deep_one"] > 0
    seen_before = seen(face.points68, 0.9), seen(face.points68 + 1, 0.4)
    again = quality.measure_pair(
        face, sketch, images, None, quality.Instruments(perceptual, prior, analyser), seen_before
    )
    assert again["face_score"] == 0.4
    assert math.isnan(again["prior_before"])
    assert math.isnan(again["prior_after"])


def test_bounds_themselves_pass_and_what_is_not_finite_does_not():
    from stylepairs.datagen.build.settings import Threshold

    gate = {"a": Threshold(min=0, max=0)}
    assert quality.judge({"a": 0.0}, gate) == (True, [])
    assert quality.judge({"a": 0.001}, gate) == (False, ["a 0.001 > 0"])
    assert quality.judge({"a": -0.001}, gate) == (False, ["a -0.001 < 0"])
    for value in (math.nan, math.inf, -math.inf):
        assert quality.judge({"a": value}, gate) == (False, ["a not finite"])
    both = {"b": Threshold(max=1, optional=True), **gate}
    assert quality.judge({"a": 1.0}, both) == (False, ["a 1 > 0"])
