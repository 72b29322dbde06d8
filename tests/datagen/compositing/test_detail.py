"""Detail transfer: the generator's colour, the photo's strands, nothing outside."""

import pytest
import torch
import torch.nn.functional as F

from stylepairs.datagen.compositing.detail import transfer_detail
from stylepairs.datagen.images.colors import color_to_lab, delta_e_2000, lab_to_srgb, srgb_to_lab

SIZE = 64
COLORS = {"black": (38, 32, 31), "brown": (86, 64, 50), "light blond": (201, 179, 142), "blue": (64, 86, 140)}


def soft_disc(radius=22.0, softness=2.0):
    axis = torch.arange(SIZE) - (SIZE - 1) / 2
    distance = (axis[:, None] ** 2 + axis[None] ** 2).sqrt()
    return ((radius - distance) / softness + 0.5).clamp(0, 1)[None]


def hair(color, seed=0, contrast=6.0):
    """[3,H,W] a region of vertical strands around a mean colour, a lighting gradient across."""
    generator = torch.Generator().manual_seed(seed)
    strands = F.interpolate(torch.randn(1, 1, 4, SIZE, generator=generator), size=(SIZE, SIZE), mode="bilinear")[0]
    light = contrast * strands + torch.linspace(-4, 4, SIZE)[None, None]
    return lab_to_srgb(color_to_lab(color) + torch.cat([light, torch.zeros(2, SIZE, SIZE)]))


def scene(color, contrast=6.0):
    """A photo with hair of that colour in the disc over a plain background, and the matte."""
    mask = soft_disc()
    background = torch.tensor([0.2, 0.3, 0.6])[:, None, None].expand(3, SIZE, SIZE)
    return hair(color, contrast=contrast) * mask + background * (1 - mask), mask


def blurred(image):
    return F.interpolate(F.avg_pool2d(image[None], 4), size=SIZE, mode="bicubic")[0].clamp(-1, 1)


def mean_lab(image, mask):
    inside = (mask > 0.5).float()
    return (srgb_to_lab(image) * inside).sum((-2, -1), keepdim=True) / inside.sum()


def flat_after(photo, mask, color):
    flat = torch.tensor(color)[:, None, None] / 127.5 - 1
    return blurred(photo) * (1 - mask) + flat * mask


@pytest.mark.parametrize("before", COLORS)
@pytest.mark.parametrize("after", COLORS)
def test_mean_colour_becomes_that_of_generated_after(before, after):
    if before == after:
        return
    photo, mask = scene(COLORS[before])
    target = flat_after(photo, mask, COLORS[after])
    result = transfer_detail(photo, blurred(photo), target, mask)
    assert float(delta_e_2000(mean_lab(result, mask), mean_lab(target, mask)).squeeze()) < 1.0


def test_equal_generated_images_give_the_photo_back():
    photo, mask = scene(COLORS["brown"])
    generated = (blurred(photo) + 0.2).clamp(-1, 1)
    torch.testing.assert_close(transfer_detail(photo, generated, generated, mask), photo, rtol=0, atol=1e-6)


def test_small_generated_change_moves_the_photo_little():
    photo, mask = scene(COLORS["brown"])
    generated = (blurred(photo) + 0.1).clamp(-1, 1)
    result = transfer_detail(photo, generated, generated + 0.01, mask)
    assert (result - photo).abs().max() < 0.04


@pytest.mark.parametrize("after", COLORS)
def test_outside_the_mask_the_photo_stays_to_the_bit(after):
    photo, mask = scene(COLORS["brown"])
    result = transfer_detail(photo, blurred(photo), flat_after(photo, mask, COLORS[after]), mask)
    outside = (mask == 0).expand_as(photo)
    assert torch.equal(result[outside], photo[outside])


@pytest.mark.parametrize(("before", "after"), [("black", "light blond"), ("light blond", "black"), ("brown", "blue")])
def test_strands_stay_and_keep_their_order_without_clipping(before, after):
    photo, mask = scene(COLORS[before], contrast=4.0)
    result = transfer_detail(photo, blurred(photo), flat_after(photo, mask, COLORS[after]), mask)
    inner = soft_disc(radius=14)[0] > 0.5
    light_before, light_after = srgb_to_lab(photo)[0][inner], srgb_to_lab(result)[0][inner]
    correlation = torch.corrcoef(torch.stack([light_before, light_after]))[0, 1]
    assert correlation > 0.9
    assert 0.4 < light_after.std() / light_before.std() < 2
    assert (result[:, inner].abs() < 1).float().mean() > 0.99


@pytest.mark.parametrize("value", [-1.0, 1.0])
@pytest.mark.parametrize("after", COLORS)
def test_burnt_out_and_crushed_hair_stays_finite_and_in_range(value, after):
    mask = soft_disc()
    photo = torch.full((3, SIZE, SIZE), value)
    result = transfer_detail(photo, photo * 0.98, flat_after(photo, mask, COLORS[after]), mask)
    assert torch.isfinite(result).all()
    assert result.abs().max() <= 1


def test_empty_mask_gives_the_photo_back_to_the_bit():
    photo, _ = scene(COLORS["brown"])
    assert torch.equal(transfer_detail(photo, photo, -photo, torch.zeros(1, SIZE, SIZE)), photo)


def plain(*lab):
    """[3,S,S] of one colour in Lab."""
    return lab_to_srgb(torch.tensor(lab)[:, None, None].expand(3, SIZE, SIZE))


@pytest.mark.parametrize(("light", "kept"), [(45.0, 0.3), (60.0, 0.3), (20.0, 0.3 * 36 / 61)])
def test_of_the_photos_variation_of_hue_a_share_is_kept_less_in_the_dark(light, kept):
    stripes = torch.tensor([1.0, 1.0, -1.0, -1.0]).repeat(SIZE // 4)
    lab = torch.tensor([45.0, 0.0, 8.0])[:, None, None] + torch.stack([0 * stripes, 6 * stripes, 0 * stripes])[:, None]
    photo, mask = lab_to_srgb(lab.expand(3, SIZE, SIZE)), torch.ones(1, SIZE, SIZE)
    result = transfer_detail(photo, plain(45.0, 0.0, 8.0), plain(light, 0.0, -12.0), mask)
    hue = srgb_to_lab(result)[1, 16:48, 16:48]
    assert float((hue * stripes[16:48]).mean() / 6) == pytest.approx(kept, abs=0.02)


@pytest.mark.parametrize("change", [2.0, 4.0, 6.0])
def test_the_inversions_own_error_fades_with_the_generated_change(change):
    """The photo is 3 L darker than its inversion; that is carried over where the generator changed little."""
    before, after = plain(53.0, 0.0, 0.0), plain(53.0, 0.0, change)
    fade = torch.exp(-((delta_e_2000(srgb_to_lab(before), srgb_to_lab(after)).mean() / 4) ** 2))
    result = transfer_detail(plain(50.0, 0.0, 0.0), before, after, torch.ones(1, SIZE, SIZE))
    assert float(srgb_to_lab(result)[0].mean()) == pytest.approx(53 - 3 * float(fade), abs=0.05)


def test_the_colour_aimed_at_is_that_of_the_solid_region():
    """A rim that is half hair is seen less: in the generated picture it has another colour."""
    mask = soft_disc(radius=18, softness=16)
    solid = (mask > 0.5).float()
    after = plain(70.0, 5.0, 20.0) * solid + plain(30.0, 0.0, 0.0) * (1 - solid)
    result = transfer_detail(plain(40.0, 0.0, 0.0), plain(40.0, 0.0, 0.0), after, mask)
    assert float(delta_e_2000(mean_lab(result, mask), mean_lab(after, mask)).squeeze()) < 1.0
