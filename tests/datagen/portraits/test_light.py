"""Light: what dark and overexposed photos are judged to be, and colours asked for as they look in that light."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from stylepairs.datagen.features import hair_color, lips
from stylepairs.datagen.images.colors import (
    PALETTE,
    color_to_lab,
    delta_e_2000,
    lab_in_light,
    lab_to_srgb,
    lightness_in_light,
    srgb_to_lab,
)
from stylepairs.datagen.portraits.light import light_of
from stylepairs.datagen.portraits.portrait import CLASS, Portrait


def portrait(skin: tuple[int, int, int], white: int = 235, hair: tuple[int, int, int] = (60, 45, 38)) -> Portrait:
    """Hair above, skin below with eyes whose whites are `white`, 64 px."""
    image = np.zeros((64, 64, 3), np.float32)
    label = np.full((64, 64), CLASS["skin"], np.uint8)
    image[:], image[:24] = skin, hair
    label[:24] = CLASS["hair"]
    image[34:38, 14:26] = image[34:38, 38:50] = white
    label[34:38, 14:26], label[34:38, 38:50] = CLASS["l_eye"], CLASS["r_eye"]
    matte = torch.from_numpy((label == CLASS["hair"]).astype(np.float32))[None]
    points = face_points()
    pixels = torch.from_numpy(image).permute(2, 0, 1) / 127.5 - 1
    return Portrait("someone", pixels, torch.from_numpy(label), matte, points, "0" * 64)


def face_points() -> torch.Tensor:
    """The 68 landmarks around the eyes of `portrait`."""
    points = torch.full((68, 2), 32.0)
    angle = torch.linspace(np.pi, 0, 17)
    points[:17] = torch.stack([32 + 24 * angle.cos(), 36 + 24 * angle.sin()], 1)
    points[17:27] = torch.stack([torch.linspace(10, 54, 10), torch.full((10,), 29.0)], 1)
    points[27:36, 1] = torch.tensor([34.0, 37, 40, 43, 45, 45, 45, 45, 45])
    points[31:36, 0] = torch.linspace(27, 37, 5)
    lids = torch.tensor([[0.0, 36], [4, 34], [8, 34], [11.5, 36], [8, 38], [4, 38]])
    points[36:42], points[42:48] = lids + torch.tensor([14.0, 0]), lids + torch.tensor([38.0, 0])
    points[48:68] = torch.stack([torch.linspace(24, 40, 20), torch.full((20,), 52.0)], 1)
    points[54] = torch.tensor([40.0, 52])
    return points


def in_light(seen: Portrait, light: float) -> Portrait:
    return replace(seen, image=lab_to_srgb(lab_in_light(srgb_to_lab(seen.image), light)))


@pytest.mark.parametrize("skin", [(224, 172, 150), (160, 110, 85), (92, 62, 50)])
def test_skin_of_any_tone_in_full_light_is_full_light(skin) -> None:
    assert light_of(portrait(skin)) == 1


@pytest.mark.parametrize("light", [0.5, 0.22, 0.1, 0.03])
@pytest.mark.parametrize("skin", [(224, 172, 150), (92, 62, 50)])
def test_a_dark_photo_is_judged_dark_whatever_the_skin(skin, light) -> None:
    judged = light_of(in_light(portrait(skin), light))
    assert 0.5 * light <= judged <= min(1.0, 2 * light + 0.1)


def test_overexposed_skin_is_more_than_full_light() -> None:
    assert 1.1 < light_of(portrait((250, 225, 215), white=255)) <= 2


@pytest.mark.parametrize("light", [1.6, 1.0, 0.22])
def test_light_is_the_same_for_photos_that_are_not_parsed(light) -> None:
    """Those that are edited: their label map holds nothing, and a white shirt may outshine their eyes."""
    parsed = in_light(portrait((224, 172, 150)), light)
    unparsed = replace(parsed, label=torch.zeros_like(parsed.label), hair=torch.zeros_like(parsed.hair))
    assert light_of(unparsed) == light_of(parsed)
    assert (light_of(parsed) > 1.1) == (light > 1)


def test_colours_scale_as_light_does() -> None:
    lab = color_to_lab(PALETTE["blond"])
    linear = [lab_to_srgb(lab_in_light(lab, light)).add(1).div(2).pow(2.2).mean() for light in (1.0, 0.25)]
    assert float(linear[1] / linear[0]) == pytest.approx(0.25, rel=0.1)
    torch.testing.assert_close(lab_in_light(lab_in_light(lab, 0.2), 5.0), lab, atol=1e-3, rtol=0)
    assert lab_in_light(lab, 1.0) is lab
    assert lightness_in_light(float(lab_in_light(lab, 0.3)[0]), float(lab[0])) == pytest.approx(0.3, rel=0.02)


@pytest.mark.parametrize("light", [0.22, 0.05])
def test_hair_in_a_dark_photo_is_asked_to_be_the_colour_as_it_looks_there(light) -> None:
    """Blond in half and a fifth of the brightness glowed: it was asked for as in full light."""
    bright = portrait((224, 172, 150))
    dark = in_light(bright, light)
    params = hair_color.Params(color="blond", max_on_face=1, max_unsure=9)
    wanted = lab_in_light(srgb_to_lab(hair_color.sketch(bright, params).image)[:, 4, 32][:, None, None], light)
    got = srgb_to_lab(hair_color.sketch(dark, params).image)[:, 4, 32][:, None, None]
    assert float(delta_e_2000(got, wanted)) < 12
    assert float(got[0]) < 45
    figures = hair_color.measure(dark, _seen(dark, hair_color.sketch(dark, params).image), params)
    assert figures["color_delta_e"] < 3
    assert figures["light"] < 0.5


def _seen(before: Portrait, after: torch.Tensor):
    from stylepairs.datagen.portraits.sketch import AnalysedPair

    return AnalysedPair(before, replace(before, image=after))


def test_lips_are_asked_for_in_the_photos_light() -> None:
    image = torch.full((3, 32, 32), -0.8)
    params, matte = lips.Params(color="red"), torch.ones(1, 32, 32)
    full = srgb_to_lab(lips.recoloured(image, matte, params)).mean((1, 2))
    dark = srgb_to_lab(lips.recoloured(image, matte, params, 0.2)).mean((1, 2))
    assert float(dark[0]) < 0.75 * float(full[0])
