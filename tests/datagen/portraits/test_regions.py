"""Regions: soft masks where the label map, the matte and the landmarks say."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from stylepairs.datagen.portraits import regions
from stylepairs.datagen.portraits.portrait import CLASS, Portrait

SIZE = 128


def drawn_portrait() -> Portrait:
    """A face drawn with rectangles: hair above, skin, two brows, two eyes, a mouth; the subject's right is on the
    left.
    """
    label = torch.zeros(SIZE, SIZE, dtype=torch.uint8)
    label[10:40, 20:108] = CLASS["hair"]
    label[36:110, 30:98] = CLASS["skin"]
    label[54:57, 38:58] = CLASS["r_brow"]
    label[54:57, 70:90] = CLASS["l_brow"]
    label[62:68, 40:56] = CLASS["r_eye"]
    label[62:68, 72:88] = CLASS["l_eye"]
    label[88:94, 50:78] = CLASS["u_lip"]
    points = torch.full((68, 2), 64.0)
    points[:17] = torch.stack([torch.linspace(30, 98, 17), 65 + 45 * torch.sin(torch.linspace(0, 3.14159, 17))], 1)
    points[17:22] = torch.tensor([[38.0 + 5 * i, 54] for i in range(5)])
    points[22:27] = torch.tensor([[70.0 + 5 * i, 54] for i in range(5)])
    points[27] = torch.tensor([64.0, 62])
    points[36:42] = torch.tensor([[40, 65], [45, 62], [51, 62], [56, 65], [51, 68], [45, 68]]).float()
    points[42:48] = points[36:42] + torch.tensor([32.0, 0])
    points[48:60] = torch.stack([torch.linspace(50, 78, 12), torch.full((12,), 91.0)], 1)
    hair = (label == CLASS["hair"]).float()[None]
    hair[:, 5:10, 20:108] = 0.5
    return Portrait("drawn", torch.zeros(3, SIZE, SIZE), label, hair, points, "0" * 64)


ALL = {"face": regions.face_region, "eye": regions.eye_region, "mouth": regions.mouth_region}


@pytest.mark.parametrize("name", sorted(ALL))
def test_regions_are_soft_masks(name: str) -> None:
    mask = ALL[name](drawn_portrait())
    assert mask.shape == (1, SIZE, SIZE)
    assert mask.dtype == torch.float32
    assert float(mask.min()) >= 0
    assert float(mask.max()) <= 1
    assert float(mask.max()) > 0.5
    assert ((mask > 0.05) & (mask < 0.95)).any()


@pytest.mark.gpu
@pytest.mark.parametrize("name", sorted(ALL))
def test_regions_follow_the_portraits_device(name: str) -> None:
    portrait = drawn_portrait()
    tensors = {key: getattr(portrait, key).cuda() for key in ("image", "label", "hair", "points68")}
    mask = ALL[name](dataclasses.replace(portrait, **tensors))
    assert mask.is_cuda
    torch.testing.assert_close(mask.cpu(), ALL[name](portrait), atol=1e-5, rtol=0)


def test_shapes_grow_and_soften_on_the_masks_device() -> None:
    mask = torch.zeros(1, SIZE, SIZE, device="meta")
    assert regions.feather(regions.dilate(mask, 0.08), 0.02).is_meta
    label = torch.zeros(SIZE, SIZE, dtype=torch.uint8, device="meta")
    portrait = Portrait("meta", torch.zeros(3, SIZE, SIZE), label, mask, torch.zeros(68, 2), "0" * 64)
    assert regions.eye_region(portrait).is_meta


def test_regions_lie_where_they_should() -> None:
    portrait = drawn_portrait()
    assert regions.face_region(portrait)[0, 65, 48] > 0.95
    assert regions.face_region(portrait)[0, 20, 64] == 0
    for column in (48, 80):
        assert regions.eye_region(portrait)[0, 65, column] > 0.9
    assert regions.eye_region(portrait)[0, 65, 64] < 0.1
    assert regions.mouth_region(portrait)[0, 91, 64] > 0.95
    assert regions.labelled(portrait, "u_lip", "hair").unique().tolist() == [0, 1]


@pytest.mark.parametrize("share", [0.01, 0.03, 0.08])
def test_dilation_grows_and_erosion_shrinks_by_a_disc(share: float) -> None:
    mask = torch.zeros(1, SIZE, SIZE)
    mask[:, 64, 64] = 1
    grown = regions.dilate(mask, share)
    radius = round(share * SIZE)
    assert int(grown[0, 64].sum()) == 2 * radius + 1
    assert int(grown[0, :, 64].sum()) == 2 * radius + 1
    torch.testing.assert_close(regions.dilate(grown, -share), mask)


def test_no_feather_and_no_growth_change_nothing() -> None:
    mask = torch.rand(1, 32, 32)
    assert regions.feather(mask, 0.0) is mask
    assert regions.dilate(mask, 0.0) is mask


@pytest.mark.parametrize("share", [0.02, 0.06, 0.3, -0.04])
def test_growing_is_the_same_on_every_device(share):
    from kornia.morphology import dilation, erosion

    mask = torch.rand(1, 50, 50, generator=torch.Generator().manual_seed(0))
    radius = round(abs(share) * 50)
    steps = torch.arange(-radius, radius + 1)
    disc = (steps[:, None] ** 2 + steps**2 <= (radius + 0.5) ** 2).float()
    grown = regions.dilate(mask, share)
    assert torch.equal(grown, (dilation if share > 0 else erosion)(mask[None], disc)[0])
    elsewhere = regions._grown(mask, radius) if share > 0 else -regions._grown(-mask, radius)
    assert torch.equal(grown, elsewhere)
