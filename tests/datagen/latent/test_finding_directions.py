"""InterFaceGAN, GANSpace, SeFa and StyleSpace on latents whose truth is known."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from helpers.tiny_build import tiny_generator

from stylepairs.datagen.latent import fitting
from stylepairs.datagen.latent.directions import Direction, DirectionInfo
from stylepairs.datagen.latent.faces import SEEN_PX, FaceReader, SeenFaces
from stylepairs.datagen.latent.fitting import Wanted, fit, refine
from stylepairs.datagen.latent.methods import interfacegan
from stylepairs.datagen.latent.methods.ganspace import components, feature_components
from stylepairs.datagen.latent.methods.interfacegan import conditional, fit_boundary
from stylepairs.datagen.latent.methods.sefa import factors
from stylepairs.datagen.latent.methods.stylespace import fit_channels, grown_region, rank_channels
from stylepairs.datagen.latent.samples import Samples
from stylepairs.datagen.latent.scorers import Score, Scorer
from stylepairs.datagen.latent.styles import style_layers
from stylepairs.datagen.shell.errors import InputError


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_a_boundary_has_the_normal_that_made_the_scores(monkeypatch):
    monkeypatch.setattr(interfacegan, "LEAST_CLASS", 100)
    w, truth = draw(2000, 12) + 3, F.normalize(draw(12, seed=1), dim=0)
    found = fit_boundary(w, w @ truth + 0.1 * draw(2000, seed=2))
    assert float(found.normal @ truth) > 0.97
    assert found.accuracy > 0.97
    assert found.classes == 100


def test_scores_that_are_all_alike_or_few_are_refused():
    with pytest.raises(InputError, match="the same for most"):
        fit_boundary(draw(200, 4), torch.ones(200))
    with pytest.raises(InputError, match="needs at least"):
        fit_boundary(draw(10, 4), draw(10))


def test_a_conditional_normal_crosses_no_plane_of_its_conditions():
    normals = F.normalize(draw(4, 8), dim=1)
    left = conditional(normals[0], list(normals[1:]))
    assert torch.allclose(normals[1:] @ left, torch.zeros(3), atol=1e-6)
    assert float(left.norm()) == pytest.approx(1)
    # The nearest of all such directions, as in the paper's closed form for one condition.
    one = conditional(normals[0], [normals[1]])
    assert torch.allclose(one, F.normalize(normals[0] - normals[0] @ normals[1] * normals[1], dim=0), atol=1e-6)
    with pytest.raises(InputError, match="take all of the direction away"):
        conditional(normals[0], [normals[0]])


def test_components_are_the_widest_axes():
    basis, _ = torch.linalg.qr(draw(6, 6))
    deviation = torch.tensor([5.0, 3, 2, 1, 0.5, 0.1])
    found, spread = components(draw(4000, 6, seed=3) * deviation @ basis.T + 2, 3)
    assert torch.allclose((found @ basis).abs().diagonal(), torch.ones(3), atol=0.01)
    assert torch.allclose(spread, deviation[:3], rtol=0.05)


def test_components_of_features_are_carried_over_to_w():
    generator = tiny_generator()
    w = generator.mapping.to_w(draw(200, 16))
    found, deviation = feature_components(generator, w, 8, 3)
    assert found.shape == (3, 16)
    assert (deviation.diff() < 0).all()
    assert float(w.std()) / 10 < float((w @ F.normalize(found[0], dim=0)).std())
    assert feature_components(generator, w[:12], 8, 11)[0].isfinite().all()
    with pytest.raises(InputError, match="12 components of the features of 12 samples; ask for fewer, or sample more"):
        feature_components(generator, w[:12], 8, 12)


@pytest.mark.parametrize("method, wanted, message", [
    ("ganspace", {"features_px": 7}, "features of side 7: the generator has blocks of 4, 8, 16, 32"),
    ("ganspace", {"component": 16}, "component 16: there are 16, the first is 0"),
    ("sefa", {"component": 99}, "component 99: there are 16, the first is 0"),
    ("stylespace", {"layers": (0, 1)}, "--layers: stylespace takes none; it is for interfacegan, ganspace, sefa"),
    ("ganspace", {"conditions": ("yaw",)}, "--condition: ganspace takes none"),
    ("interfacegan", {"component": 0}, "--component: interfacegan takes none"),
    ("sefa", {"features_px": 8}, "--features: sefa takes none"),
    ("interfacegan", {"overlap": 0.2}, "--overlap: interfacegan takes none"),
])  # fmt: skip
def test_components_that_are_not_there_and_what_a_method_knows_nothing_of_are_refused(method, wanted, message):
    samples = Samples(draw(40, 16), {"brightness": draw(40)}, "d")
    with pytest.raises(InputError, match=message):
        fit(method, tiny_generator(), "d", samples, Wanted("brightness", **wanted))


def test_factors_are_what_the_affine_maps_stretch_most():
    generator = tiny_generator()
    found = factors(generator, [1], 16)
    weight = torch.cat([F.normalize(x.affine.weight, dim=1) for x in style_layers(generator) if x.row == 1])
    stretch = (weight @ found.T).norm(dim=0)
    assert (stretch.diff() < 1e-5).all()
    assert float(stretch[0]) == pytest.approx(float(torch.linalg.svdvals(weight)[0]), rel=1e-4)
    assert torch.allclose(found @ found.T, torch.eye(16), atol=1e-5)


def left_half() -> Scorer:
    """The brightness of the picture's left half, which is where the "hair" is."""

    class Halves(FaceReader):
        def read(self, image: torch.Tensor) -> SeenFaces:
            classes = torch.zeros(len(image), 19, SEEN_PX, SEEN_PX)
            classes[:, 17, :, : SEEN_PX // 2] = 1
            return SeenFaces(
                image, image, classes, classes[:, 17:18], torch.zeros(len(image), 68, 2), image[:, 0, 0, 0]
            )

    reader = Halves(torch.nn.Identity(), torch.nn.Identity(), "")
    score = Score("left", lambda image, _seen: image[..., : image.shape[-1] // 2].mean((1, 2, 3)), True, ("hair",))
    return Scorer((score,), reader, "")


def test_channels_are_ranked_by_what_moving_them_does():
    generator = tiny_generator()
    ws = generator.mapping(draw(6, 16))
    ranked = rank_channels(generator, left_half(), ws)
    assert len(ranked) == sum(layer.channels for layer in style_layers(generator))
    direction, _ = fit_channels(generator, left_half(), ws, "d", least_overlap=0.0, kept=1)
    channel = ranked[0]
    assert list(direction.styles) == [channel.layer]
    light = [direction.render(generator, ws, s)[..., :16].mean() for s in (0.1, -0.1)]
    assert float(light[0] - light[1]) > 0  # the unit goes up, whatever the channel's own sign


def test_a_region_is_grown_by_the_same_share_whatever_the_generators_side():
    for side in (32, 512):
        region = grown_region(left_half().reader, torch.zeros(1, 3, side, side), ("hair",))
        assert float(region.mean()) == pytest.approx((SEEN_PX // 2 + 4) / SEEN_PX, abs=1e-3)


@pytest.mark.slow
def test_channels_that_move_other_regions_are_left_out():
    generator = tiny_generator()
    ws = generator.mapping(draw(6, 16))
    direction, chosen = fit_channels(generator, left_half(), ws, "d", least_overlap=0.5, kept=4)
    assert all(channel.overlap >= 0.5 for channel in chosen)
    assert direction.info.space == "s"
    with pytest.raises(InputError, match="no channel moves mostly its region"):
        fit_channels(generator, left_half(), ws, "d", least_overlap=1.0)


@pytest.mark.parametrize("num_ws", [2, 4, 8, 12, 14, 16, 18])
def test_ranges_are_all_rows_and_their_thirds(num_ws):
    every, *thirds = fitting.row_ranges(num_ws)
    assert every is None
    assert len(thirds) == min(3, num_ws)
    assert [row for rows in thirds for row in rows] == list(range(num_ws))
    assert max(map(len, thirds)) - min(map(len, thirds)) <= 1


def test_a_direction_without_an_attribute_is_not_refined():
    coarse = Direction(draw(8, 16), DirectionInfo(method="boundary file"))
    with pytest.raises(InputError, match="names no attribute"):
        refine(tiny_generator(), Samples(draw(4, 16), {}, "d"), coarse, 1.0, 8)
