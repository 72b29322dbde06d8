"""Colours as people see them: CIE Lab of sRGB images, CIEDE2000 (Sharma, Wu, Dalal 2005), hair colours by name."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from kornia.color import lab_to_rgb, rgb_to_linear_rgb

from stylepairs.datagen.shell.errors import InputError, nearest
from stylepairs.kernels.constants import Constant
from stylepairs.kernels.dispatch import without_autocast

# Mean sRGB over the hair of a portrait in even light, shading and highlights included: darker and greyer than a swatch.
# The natural ones lie inside what 340 portraits show (5th to 95th percentile: L 11 to 69, a 2 to 13, b -5 to 18),
# red and copper at its edge.
PALETTE: dict[str, tuple[int, int, int]] = {
    "black": (38, 32, 31),
    "dark_brown": (58, 44, 37),
    "brown": (86, 64, 50),
    "light_brown": (122, 95, 73),
    "auburn": (104, 60, 47),
    "red": (143, 78, 51),
    "copper": (166, 98, 60),
    "strawberry_blond": (184, 138, 103),
    "blond": (171, 141, 103),
    "light_blond": (201, 179, 142),
    "platinum": (214, 204, 186),
    "grey": (132, 130, 129),
    "silver": (172, 171, 172),
    "white": (220, 217, 212),
    "pink": (204, 128, 151),
    "purple": (104, 72, 128),
    "blue": (64, 86, 140),
    "teal": (48, 114, 118),
    "green": (84, 120, 76),
}
_SPELLINGS = {"gray": "grey", "blonde": "blond", "ginger": "red", "violet": "purple", "turquoise": "teal"}


# Linear sRGB to XYZ [3,3], and XYZ of white (D65) [3,1,1].
_TO_XYZ = Constant([[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]])
_WHITE_XYZ = Constant([[[0.95047]], [[1.0]], [[1.08883]]])
# Distance in a*, b* from what lightness tells of them, root mean square. Of 1 905 colour portraits the least has 1.6, a
# sepia print 0.5.
_ONE_TONE = 0.8

# What a channel of a colour that was made paler has at most, and at least below 0, in [-1,1].
_MOST_SHOWN = 0.98


def parse_color(text: str | Sequence[int]) -> tuple[int, int, int]:
    """The sRGB colour (r, g, b), each 0..255, of a palette name, "#rrggbb", "#rgb", "r,g,b" or three integers.

    Names ignore case and take blanks, hyphens or underscores ("light blond"). Raises InputError that names the nearest
    known name.

    >>> parse_color("Light-Blond") == PALETTE["light_blond"], parse_color("#a0f"), parse_color("12, 0, 255")
    (True, (170, 0, 255), (12, 0, 255))
    """
    if not isinstance(text, str):
        return _checked([str(value) for value in text], repr(list(text)))
    key = text.strip().lower()
    if re.fullmatch(r"#([0-9a-f]{3}|[0-9a-f]{6})", key):
        digits = key[1:] if len(key) == 7 else "".join(2 * digit for digit in key[1:])
        red, green, blue = bytes.fromhex(digits)
        return red, green, blue
    if "," in key:
        return _checked(key.strip("()[]").split(","), repr(text))
    name = "_".join(_SPELLINGS.get(word, word) for word in re.split(r"[\s_-]+", key))
    if name in PALETTE:
        return PALETTE[name]
    hint = nearest(name, PALETTE, f"known names: {', '.join(PALETTE)};")
    raise InputError(f"color {text!r}: unknown{hint} #rrggbb and r,g,b work too")


def srgb_to_lab(image: torch.Tensor) -> torch.Tensor:
    """sRGB [...,3,H,W] in [-1,1] -> CIE Lab [...,3,H,W] (L 0..100), white point D65, 2 degree observer.

    kornia's rgb_to_lab to the bit, but for its constants: made anew in each call, they would make a GPU wait. Under
    autocast in the image's own precision: bfloat16 is a unit of Lab off, and what is tinted by nothing would change.
    """
    with without_autocast(image.device.type):
        xyz = torch.einsum("oi,...ihw->...ohw", _TO_XYZ.like(image), rgb_to_linear_rgb((image + 1) / 2))
    xyz = xyz / _WHITE_XYZ.like(image)
    curve = torch.where(xyz > 0.008856, xyz.clamp(min=0.008856).pow(1 / 3), 7.787 * xyz + 4 / 29)
    x, y, z = curve.unbind(-3)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], dim=-3)


def lab_to_srgb(lab: torch.Tensor) -> torch.Tensor:
    """CIE Lab [...,3,H,W] -> sRGB [...,3,H,W] in [-1,1], colours outside the gamut clipped to it."""
    return _lab_to_rgb(lab, clip=True) * 2 - 1


def lab_to_paled_srgb(lab: torch.Tensor) -> torch.Tensor:
    """CIE Lab [...,3,H,W] -> sRGB [...,3,H,W] in [-1,1], `paled`."""
    return paled(_lab_to_rgb(lab, clip=False) * 2 - 1, lab[..., :1, :, :])


def _lab_to_rgb(lab: torch.Tensor, clip: bool) -> torch.Tensor:
    """In [0,1]; under autocast too in Lab's own precision."""
    with without_autocast(lab.device.type):
        rgb: torch.Tensor = lab_to_rgb(lab, clip=clip)
    return rgb


def paled(image: torch.Tensor, light: torch.Tensor) -> torch.Tensor:
    """sRGB [...,3,H,W] of lightness [...,1,H,W] (L*), where next to the gamut's end or beyond it made so much paler, at
    that lightness, that no channel is burnt out or crushed: shine on dyed hair stays hair."""
    luminance = torch.where(light > 8, ((light.clamp_min(8.0) + 16) / 116) ** 3, light / 903.3)
    grey = torch.where(
        luminance > 0.0031308, 1.055 * luminance.clamp(0.0031308, 1.0) ** (1 / 2.4) - 0.055, 12.92 * luminance
    )
    grey = grey.clamp_min(0.0) * 2 - 1
    away = image - grey
    room = (_MOST_SHOWN - torch.where(away > 0, grey, -grey)).clamp_min(0.0)
    return grey + (room / away.abs().clamp_min(1e-6)).amin(-3, keepdim=True).clamp(max=1.0) * away


def lab_in_light(lab: torch.Tensor, light: float) -> torch.Tensor:
    """Lab [3,...] of the same surface in `light` times the light (its XYZ times that); 1 changes nothing."""
    if light == 1:
        return lab
    y = (lab[0] + 16) / 116
    curve = torch.stack([y + lab[1] / 500, y, y - lab[2] / 200])
    linear = torch.where(curve > 6 / 29, curve**3, (curve - 4 / 29) / 7.787) * light
    x, y, z = torch.where(linear > 0.008856, linear.clamp_min(0.008856) ** (1 / 3), 7.787 * linear + 4 / 29)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def lightness_in_light(lightness: float, usual: float) -> float:
    """The light, as a factor, in which a surface of L* `usual` has L* `lightness`."""
    y, full = (((value + 16) / 116) ** 3 if value > 8 else value / 903.3 for value in (lightness, usual))
    return max(y, 1e-4) / full


def color_to_lab(color: tuple[int, int, int], like: torch.Tensor | None = None) -> torch.Tensor:
    """An sRGB colour, 0..255 each -> its Lab as [3,1,1], on device and type of `like` (None: CPU, float32)."""
    rgb = torch.tensor(color, dtype=torch.float32)[:, None, None] / 127.5 - 1
    lab = srgb_to_lab(rgb)
    return lab if like is None else lab.to(like)


def is_of_one_tone(image: torch.Tensor) -> bool:
    """Whether an image [3,H,W] in [-1,1] is black-and-white, or tinted so that its lightness tells its colour."""
    lab = srgb_to_lab(image).flatten(1).double().cpu()
    tints = torch.stack([torch.ones_like(lab[0]), lab[0]], 1)
    told = tints @ torch.linalg.lstsq(tints, lab[1:].T, driver="gelsd").solution
    return float((lab[1:].T - told).square().sum(1).mean().sqrt()) < _ONE_TONE


def delta_e_2000(lab1: torch.Tensor, lab2: torch.Tensor, dim: int = -3) -> torch.Tensor:
    """CIEDE2000 colour difference of two Lab tensors (broadcast), channels along `dim`, which is dropped.

    Equations 2 to 22 of Sharma, Wu, Dalal (2005), with kL = kC = kH = 1. The gradient is finite everywhere, and 0 where
    the colours are equal.
    """
    light1, a1, b1 = lab1.unbind(dim)
    light2, a2, b2 = lab2.unbind(dim)
    mean_chroma7 = ((_length(a1, b1) + _length(a2, b2)) / 2) ** 7
    stretch = 1 + 0.5 * (1 - _root(mean_chroma7 / (mean_chroma7 + 25.0**7)))  # 1 + G, which spreads the greys
    a1, a2 = a1 * stretch, a2 * stretch
    chroma1, chroma2 = _length(a1, b1), _length(a2, b2)
    hue1, hue2 = _hue_degrees(a1, b1), _hue_degrees(a2, b2)
    grey = chroma1 * chroma2 == 0  # one of them has no hue

    turn = hue2 - hue1
    turn = torch.where(turn > 180, turn - 360, torch.where(turn < -180, turn + 360, turn))
    turn = torch.where(grey, torch.zeros_like(turn), turn)
    total = hue1 + hue2
    apart = (hue1 - hue2).abs() > 180
    hue = torch.where(apart, torch.where(total < 360, total + 360, total - 360), total) / 2
    hue = torch.where(grey, total, hue)

    d_light, d_chroma = light2 - light1, chroma2 - chroma1
    d_hue = 2 * _root(chroma1 * chroma2) * torch.sin(torch.deg2rad(turn) / 2)
    light, chroma = (light1 + light2) / 2, (chroma1 + chroma2) / 2
    t = (
        1
        - 0.17 * torch.cos(torch.deg2rad(hue - 30))
        + 0.24 * torch.cos(torch.deg2rad(2 * hue))
        + 0.32 * torch.cos(torch.deg2rad(3 * hue + 6))
        - 0.20 * torch.cos(torch.deg2rad(4 * hue - 63))
    )
    s_light = 1 + 0.015 * (light - 50) ** 2 / (20 + (light - 50) ** 2).sqrt()
    s_chroma = 1 + 0.045 * chroma
    s_hue = 1 + 0.015 * chroma * t
    # The blues, where chroma and hue differences interact.
    rotation = 30 * torch.exp(-(((hue - 275) / 25) ** 2))
    chroma7 = chroma**7
    r_t = -torch.sin(torch.deg2rad(2 * rotation)) * 2 * _root(chroma7 / (chroma7 + 25.0**7))
    x, y, z = d_light / s_light, d_chroma / s_chroma, d_hue / s_hue
    return _root(x * x + y * y + z * z + r_t * y * z)


def _checked(parts: Sequence[str], shown: str) -> tuple[int, int, int]:
    values = [int(part) for part in parts if re.fullmatch(r"\s*\d{1,3}\s*", part)]
    if len(parts) != 3 or len(values) != 3 or max(values) > 255:
        raise InputError(f"color {shown}: not an sRGB colour; give three integers from 0 to 255, as in 120,80,60")
    return values[0], values[1], values[2]


def _root(x: torch.Tensor) -> torch.Tensor:
    """Square root whose gradient at 0 is 0 instead of infinite."""
    positive = x > 0
    return torch.where(positive, torch.where(positive, x, torch.ones_like(x)).sqrt(), torch.zeros_like(x))


def _length(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return _root(a * a + b * b)


def _hue_degrees(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Hue angle in [0,360), 0 for a colour without hue."""
    neutral = (a == 0) & (b == 0)
    angle = torch.rad2deg(torch.atan2(b, torch.where(neutral, torch.ones_like(a), a)))
    return torch.where(angle < 0, angle + 360, angle)
