"""Attributes of a face as figures with gradients: what directions are fitted to, mappers are trained by and edits are
measured with. Lengths are in eye distances, colours in CIE Lab."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from stylepairs.datagen.latent.faces import SeenFaces
from stylepairs.datagen.portraits.landmarks import (
    CHIN,
    LEFT_CORNER,
    LOWER_LIP,
    NASION,
    NOSE_TIP,
    RIGHT_CORNER,
    UPPER_LIP,
)

_FACE = ("skin", "l_brow", "r_brow", "l_eye", "r_eye", "eye_g", "nose", "mouth", "u_lip", "l_lip")
_MOUTH = ("mouth", "u_lip", "l_lip")
_EYES = ("l_eye", "r_eye", "eye_g")
_INNER_UPPER, _INNER_LOWER = 62, 66
# Of the picture: less hair, or less of anything else, has no colour worth a figure.
_LEAST_HAIR, _LEAST_SHARE = 0.02, 0.002


@dataclass(frozen=True)
class Attribute:
    """read(seen) -> [N], differentiable, NaN where the face has no such figure; classes: where in the picture it lies,
    () everywhere; about: what it measures, with its unit."""

    name: str
    about: str
    classes: tuple[str, ...]
    read: Callable[[SeenFaces], torch.Tensor]


def _mean(values: torch.Tensor, weight: torch.Tensor, least: float) -> torch.Tensor:
    """Mean [N] of values [N,1,S,S] under weight [N,1,S,S]; NaN where the weight is less than `least` of the picture."""
    total = weight.sum((1, 2, 3))
    mean = (values * weight).sum((1, 2, 3)) / total.clamp_min(1e-3)
    return torch.where(total / weight[0].numel() > least, mean, torch.nan)


def _color(channel: int, *names: str) -> Callable[[SeenFaces], torch.Tensor]:
    """Mean of a Lab channel over classes; hair by its matte."""

    def read(seen: SeenFaces) -> torch.Tensor:
        hair = names == ("hair",)
        weight = seen.hair if hair else seen.labelled(*names)
        return _mean(seen.lab[:, channel : channel + 1], weight.square(), _LEAST_HAIR if hair else _LEAST_SHARE)

    return read


def _brightness(seen: SeenFaces) -> torch.Tensor:
    return seen.lab[:, 0].mean((1, 2))


def _hair_length(seen: SeenFaces) -> torch.Tensor:
    """How far below the eyes' line any column of hair reaches, by the soft presence of hair in rows beside the face."""
    rows = seen.patch(seen.hair, (-2.2, 2.2), (0.0, 2.6), 48)
    return 2.6 * rows.amax(-1).mean((1, 2))


def _fringe(seen: SeenFaces) -> torch.Tensor:
    return seen.patch(seen.hair, (-0.7, 0.7), (-1.1, -0.5)).mean((1, 2, 3))


def _hairline_height(seen: SeenFaces) -> torch.Tensor:
    """Skin that goes on without a break from the brows up, in eye distances."""
    skin = seen.patch(seen.labelled(*_FACE), (-0.25, 0.25), (-2.2, -0.4), 40)[:, 0].flip(1)
    return 1.8 * skin.cumprod(1).mean((1, 2))


def _hair_volume(seen: SeenFaces) -> torch.Tensor:
    """Area of hair above the mouth, over the face's width squared."""
    points = seen.coordinates()
    width = (points[:, 16, 0] - points[:, 0, 0]).clamp_min(0.5)
    box = seen.patch(seen.hair, (-2.2, 2.2), (-2.6, 1.0), 48)
    return box.mean((1, 2, 3)) * 4.4 * 3.6 / width.square()


def _smile(seen: SeenFaces) -> torch.Tensor:
    """Rise of the mouth's corners over the middle of its lips, and half of its width beyond one eye distance."""
    points = seen.coordinates()
    corners = points[:, [RIGHT_CORNER, LEFT_CORNER]]
    rise = points[:, [UPPER_LIP, LOWER_LIP], 1].mean(1) - corners[..., 1].mean(1)
    return rise + 0.5 * (corners[:, 1, 0] - corners[:, 0, 0] - 1)


def _mouth_open(seen: SeenFaces) -> torch.Tensor:
    points = seen.coordinates()
    return points[:, _INNER_LOWER, 1] - points[:, _INNER_UPPER, 1]


def _eye_opening(seen: SeenFaces) -> torch.Tensor:
    """Height of the lids' opening over the eye's width, mean of both eyes."""
    points = seen.coordinates()
    upper, lower = points[:, [37, 38, 43, 44], 1].mean(1), points[:, [41, 40, 47, 46], 1].mean(1)
    width = (points[:, [39, 45], 0] - points[:, [36, 42], 0]).mean(1)
    return (lower - upper) / width.clamp_min(0.1)


def _yaw(seen: SeenFaces) -> torch.Tensor:
    """Where the tip of the nose stands between the ends of the jaw: 0 in the middle, 1 at the picture's right end."""
    x = seen.coordinates()[..., 0]
    middle, half = (x[:, 0] + x[:, 16]) / 2, (x[:, 16] - x[:, 0]).clamp_min(0.5) / 2
    return (x[:, NOSE_TIP] - middle) / half


def _pitch(seen: SeenFaces) -> torch.Tensor:
    """How low the tip of the nose stands between eyes and mouth: larger, the head is bent down."""
    y = seen.coordinates()[..., 1]
    return y[:, NOSE_TIP] / y[:, [RIGHT_CORNER, LEFT_CORNER]].mean(1).clamp_min(0.3)


def _face_width(seen: SeenFaces) -> torch.Tensor:
    points = seen.coordinates()
    return (points[:, 16, 0] - points[:, 0, 0]) / (points[:, CHIN, 1] - points[:, NASION, 1]).clamp_min(0.5)


def _jaw_width(seen: SeenFaces) -> torch.Tensor:
    x = seen.coordinates()[..., 0]
    return (x[:, 12] - x[:, 4]) / (x[:, 16] - x[:, 0]).clamp_min(0.5)


def _chin(seen: SeenFaces) -> torch.Tensor:
    y = seen.coordinates()[..., 1]
    return y[:, CHIN] - y[:, LOWER_LIP]


def _double_chin(seen: SeenFaces) -> torch.Tensor:
    """How light the strip below the chin's line is against the chin: a crease's shadow makes it dark."""
    chin, light = seen.coordinates()[:, CHIN, 1], seen.lab[:, :1]
    above = seen.patch(light, (-0.35, 0.35), (-0.35, -0.1), below=chin).mean((1, 2, 3))
    return seen.patch(light, (-0.35, 0.35), (0.05, 0.4), below=chin).mean((1, 2, 3)) - above


def _nose_width(seen: SeenFaces) -> torch.Tensor:
    x = seen.coordinates()[..., 0]
    return x[:, 35] - x[:, 31]


def _lip_fullness(seen: SeenFaces) -> torch.Tensor:
    y = seen.coordinates()[..., 1]
    return (y[:, LOWER_LIP] - y[:, UPPER_LIP]) - (y[:, _INNER_LOWER] - y[:, _INNER_UPPER])


def _brow_height(seen: SeenFaces) -> torch.Tensor:
    y = seen.coordinates()[..., 1]
    return -y[:, 17:27].mean(1)


def _beard(seen: SeenFaces) -> torch.Tensor:
    """Lightness of the cheeks less that of upper lip and chin's sides."""
    light = seen.lab[:, :1]
    cheeks = [seen.patch(light, (sign * 0.45 - 0.15, sign * 0.45 + 0.15), (0.3, 0.6)) for sign in (-1, 1)]
    jaw = [seen.patch(light, (sign * 0.4 - 0.12, sign * 0.4 + 0.12), (1.3, 1.55)) for sign in (-1, 1)]
    return (torch.stack(cheeks) - torch.stack(jaw)).mean((0, 2, 3, 4))


def _glasses(seen: SeenFaces) -> torch.Tensor:
    """Probability of frames around the eyes."""
    return seen.patch(seen.labelled("eye_g"), (-0.95, 0.95), (-0.35, 0.35), 24).mean((1, 2, 3))


_ALL = (
    Attribute("hair_lightness", "mean lightness of the hair, 0 to 100", ("hair",), _color(0, "hair")),
    Attribute("hair_redness", "mean a* of the hair", ("hair",), _color(1, "hair")),
    Attribute("hair_warmth", "mean b* of the hair", ("hair",), _color(2, "hair")),
    Attribute("hair_length", "how far hair reaches below the eyes, eye distances", ("hair",), _hair_length),
    Attribute("fringe", "share of the forehead under hair", ("hair", "skin"), _fringe),
    Attribute("hairline_height", "bare forehead above the brows, eye distances", ("hair", "skin"), _hairline_height),
    Attribute("hair_volume", "area of hair above the mouth, face widths squared", ("hair",), _hair_volume),
    Attribute("smile", "rise and width of the mouth's corners, eye distances", _MOUTH, _smile),
    Attribute("mouth_open", "gap between the lips, eye distances", _MOUTH, _mouth_open),
    Attribute("eye_opening", "height of the eyes over their width", _EYES, _eye_opening),
    Attribute("yaw", "nose's tip between the jaw's ends, -1 to 1", (), _yaw),
    Attribute("pitch", "nose's tip between eyes and mouth, 0 to 1", (), _pitch),
    Attribute("face_width", "width over height of the face", _FACE, _face_width),
    Attribute("jaw_width", "width at the mouth over width at the ears", _FACE, _jaw_width),
    Attribute("chin", "from lower lip to chin, eye distances", _FACE, _chin),
    Attribute("double_chin", "lightness below the chin less above", ("neck", "skin"), _double_chin),
    Attribute("nose_width", "between the wings of the nose, eye distances", ("nose",), _nose_width),
    Attribute("lip_fullness", "height of both lips, eye distances", ("u_lip", "l_lip"), _lip_fullness),
    Attribute("lip_redness", "mean a* of the lips", ("u_lip", "l_lip"), _color(1, "u_lip", "l_lip")),
    Attribute("brow_height", "of the brows above the eyes, eye distances", ("l_brow", "r_brow"), _brow_height),
    Attribute("skin_lightness", "mean lightness of face and neck", _FACE, _color(0, "skin", "nose", "neck")),
    Attribute("skin_warmth", "mean b* of face and neck", _FACE, _color(2, "skin", "nose", "neck")),
    Attribute("brightness", "mean lightness of the picture", (), _brightness),
    Attribute("background_lightness", "mean lightness behind the head", ("background",), _color(0, "background")),
    Attribute("beard", "lightness of cheeks less that of jaw", ("skin",), _beard),
    Attribute("glasses", "frames around the eyes, share of their box", ("eye_g", "skin"), _glasses),
)
ATTRIBUTES = {each.name: each for each in _ALL}
