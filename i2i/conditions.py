"""What the editor is told beside the photo: how much (degree) and which kind (style code), as numbers near one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch

from stylepairs.datagen.errors import InputError

# "color": the wanted colour in Lab, for features with a `color` parameter; "none": the feature has only one kind.
Style = Literal["none", "color"]
STYLE_CHANNELS: dict[str, int] = {"none": 0, "color": 3}


def style_of(style: Style, params: Mapping[str, Any]) -> torch.Tensor:
    """The style code [style_channels] of a feature's parameters, e.g. {"color": "blond"}.

    Raises InputError when the style needs a parameter that is missing or not a colour.
    """
    if style == "none":
        return torch.zeros(0)
    if "color" not in params:
        raise InputError("params: no color; this model edits towards a colour, pass --set color=NAME or #rrggbb")
    return encode_color(wanted_lab(params["color"]))


def wanted_lab(color: Any) -> torch.Tensor:
    """Lab [3] (D65) of a colour as `stylepairs.datagen.colors.parse_color` takes it."""
    from stylepairs.datagen.colors import color_to_lab, parse_color

    return color_to_lab(parse_color(color))[:, 0, 0]


def encode_color(lab: torch.Tensor) -> torch.Tensor:
    """Lab [...,3] -> style code of about unit size."""
    return (lab - lab.new_tensor([50.0, 0.0, 0.0])) / 50


def decode_color(code: torch.Tensor) -> torch.Tensor:
    """Style code [...,3] -> Lab."""
    return code * 50 + code.new_tensor([50.0, 0.0, 0.0])
