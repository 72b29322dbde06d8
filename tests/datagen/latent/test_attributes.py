"""Attributes on drawn faces whose figures are known, and on the embedded generator's."""

from __future__ import annotations

import pytest
import torch

from stylepairs.datagen.latent.attributes import ATTRIBUTES
from stylepairs.datagen.latent.faces import SEEN_PX, SeenFaces, load_reader
from stylepairs.datagen.latent.scorers import load_scorer
from stylepairs.datagen.portraits.portrait import CLASS
from stylepairs.datagen.shell.errors import InputError
from stylepairs.datagen.stylegan.checkpoints import load_generator

LEVEL = 0.48  # of the eyes, in shares of the side; they are 0.25 apart


def drawn(count: int = 1) -> SeenFaces:
    """Grey skin with a hard hairline 0.8 eye distances above the eyes, landmarks in a plain frontal face."""
    place = torch.zeros(68, 2)
    place[:17, 0], place[:17, 1] = torch.linspace(-1.2, 1.2, 17), 2 * torch.linspace(0, torch.pi, 17).sin()
    place[36:42] = torch.tensor([[-0.7, 0], [-0.6, -0.1], [-0.4, -0.1], [-0.3, 0], [-0.4, 0.1], [-0.6, 0.1]])
    place[42:48] = torch.tensor([[0.3, 0], [0.4, -0.1], [0.6, -0.1], [0.7, 0], [0.6, 0.1], [0.4, 0.1]])
    place[30], place[48], place[54] = torch.tensor([0, 0.6]), torch.tensor([-0.5, 1.2]), torch.tensor([0.5, 1.2])
    place[51], place[57] = torch.tensor([0, 1.1]), torch.tensor([0, 1.3])
    points = (place * 0.25 + torch.tensor([0.5, LEVEL])).expand(count, 68, 2).clone()
    down = (torch.arange(SEEN_PX) + 0.5) / SEEN_PX
    above = ((down - LEVEL) / 0.25 < -0.8).float()[:, None].expand(SEEN_PX, SEEN_PX)
    classes = torch.zeros(count, 19, SEEN_PX, SEEN_PX)
    classes[:, CLASS["hair"]], classes[:, CLASS["skin"]] = above, 1 - above
    lab = torch.zeros(count, 3, SEEN_PX, SEEN_PX)
    lab[:, 0] = 60 - 40 * above
    image = torch.zeros(count, 3, SEEN_PX, SEEN_PX)
    return SeenFaces(image, lab, classes, above.expand(count, 1, SEEN_PX, SEEN_PX), points, torch.ones(count))


def value(name: str, seen: SeenFaces) -> float:
    return float(ATTRIBUTES[name].read(seen)[0])


def test_figures_of_a_drawn_face_are_what_was_drawn():
    seen = drawn()
    assert value("hair_lightness", seen) == pytest.approx(20, abs=0.5)
    assert value("skin_lightness", seen) == pytest.approx(60, abs=0.5)
    assert value("hairline_height", seen) == pytest.approx(0.4, abs=0.06)  # from 0.4 above the eyes to 0.8
    assert value("fringe", seen) == pytest.approx(0.5, abs=0.06)  # the forehead's box is from 0.5 to 1.1
    assert value("yaw", seen) == pytest.approx(0, abs=1e-4)
    assert value("pitch", seen) == pytest.approx(0.5, abs=1e-3)
    assert value("eye_opening", seen) == pytest.approx(0.5, abs=1e-3)
    assert value("smile", seen) == pytest.approx(0, abs=1e-3)


def test_moved_landmarks_move_their_figures_the_right_way():
    seen = drawn()
    seen.points68[:, 30, 0] += 0.3 * 0.25
    seen.points68[:, [48, 54], 1] -= 0.1 * 0.25
    assert value("yaw", seen) == pytest.approx(0.3 / 1.2, abs=1e-3)
    assert value("smile", seen) == pytest.approx(0.1, abs=1e-3)


def test_figures_do_not_depend_on_where_the_face_is_and_how_large():
    seen, moved = drawn(), drawn()
    moved.points68[:] = (moved.points68 - 0.5) * 1.2 + 0.45
    for name in ("yaw", "pitch", "smile", "mouth_open", "face_width", "jaw_width", "chin", "nose_width", "brow_height"):
        assert value(name, moved) == pytest.approx(value(name, seen), abs=1e-4), name


def test_a_face_does_not_depend_on_its_neighbours():
    alone, beside = drawn(), drawn(2)
    beside.points68[1] += 0.1
    for name in ATTRIBUTES:
        assert torch.equal(ATTRIBUTES[name].read(beside)[:1].nan_to_num(), ATTRIBUTES[name].read(alone).nan_to_num()), (
            name
        )


def test_hair_that_is_not_there_has_no_colour():
    seen = drawn()
    seen.hair.expand(1, 1, SEEN_PX, SEEN_PX)
    bald = SeenFaces(seen.image, seen.lab, seen.classes, torch.zeros_like(seen.hair), seen.points68, seen.score)
    assert torch.isnan(ATTRIBUTES["hair_lightness"].read(bald)).all()


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    generator = load_generator("embedded")
    ws = generator.mapping.w_avg.lerp(
        generator.mapping(torch.randn(3, 256, generator=torch.Generator().manual_seed(2))), 0.7
    )
    return generator.synthesis(ws).clamp(-1, 1)


def test_the_reader_sees_faces_and_a_mirrored_face_turns_the_other_way(images):
    seen, mirrored = (load_reader().read(image) for image in (images, images.flip(-1)))
    assert (seen.score > 0.9).all()
    assert torch.allclose(seen.classes.sum(1), torch.ones(3, SEEN_PX, SEEN_PX), atol=1e-4)
    yaw = ATTRIBUTES["yaw"].read
    assert torch.allclose(yaw(seen), -yaw(mirrored), atol=0.06)
    assert torch.allclose(ATTRIBUTES["hair_lightness"].read(seen), ATTRIBUTES["hair_lightness"].read(mirrored), atol=6)


@pytest.mark.slow
def test_every_attribute_has_a_gradient_in_the_pixels(images):
    scorer = load_scorer(list(ATTRIBUTES))
    image = images[:1].clone().requires_grad_()
    figures = scorer(image)[0]
    for name, figure in zip(scorer.names, figures, strict=True):
        (gradient,) = torch.autograd.grad(figure.nan_to_num(), image, retain_graph=True)
        assert gradient.isfinite().all(), name
        assert name == "glasses" or gradient.abs().max() > 0, name


def test_an_unknown_attribute_names_the_nearest():
    with pytest.raises(InputError, match="did you mean 'smile'"):
        load_scorer(["smiel"])


def test_a_feature_measures_images_and_its_unknown_figures_are_named(images):
    name = "hair_color.color_delta_e?color=black"
    scorer = load_scorer(["hair_lightness", name])
    with torch.no_grad():
        lightness, distance = scorer(images).T
    assert distance.isfinite().all()
    assert lightness.argsort().tolist() == distance.argsort().tolist()  # the lighter, the farther from black
    with pytest.raises(InputError, match="no gradient"):
        scorer(images.clone().requires_grad_())
    with torch.no_grad(), pytest.raises(InputError, match="no such figure"):
        load_scorer(["hair_color.color_delta"])(images)
    with pytest.raises(InputError, match="blond"):
        load_scorer(["hair_color.color_delta_e?color=blont"])
