"""What the editor is told: a crop of the photo, how much (degree) and which kind (style code), as numbers near one."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import torch

from stylepairs.datagen.shell.errors import InputError

# Least side of the crop that is cut out of the photo before it is brought to the network's size, as `prepare` has it.
CROP_PX = 256
# "color": the wanted colour in Lab, for features with a `color` parameter; "params": whatever parameters differ between
# the training pairs; "color_and_params": both; "none": the feature has only one kind.
Style = Literal["none", "color", "params", "color_and_params"]
WITH_COLOR, WITH_PARAMS = ("color", "color_and_params"), ("params", "color_and_params")
COLOR = "color"  # the parameter that says it
BLACK = -1.0  # the lightness of black in a style code
# In a style code: the photo's own colour is to stay. No colour is so dark.
_OWN_CODE, _OWN_BELOW = (-2.0, 0.0, 0.0), -1.5
# What a style "params" tells apart, by the parameter's name: its choices, or the least and the greatest number.
Kinds = dict[str, list[Any]]

# More choices than this are no kinds (names of reference photos, say).
_MOST_CHOICES = 32
_WORD, _SIDES = re.compile("[a-z]+"), {"left", "right"}


def crop_px_of(size_px: int) -> int:
    """Side of the crop that is cut out of the photo for a network of this size; never less than it can see."""
    return max(CROP_PX, size_px)


def kinds_of(params: Sequence[Mapping[str, Any]]) -> Kinds:
    """What differs between the pairs with these parameters, nested ones as "bangs.length"; the degree apart.

    >>> kinds_of([{"style": "full", "length": 0.5, "seed": 1}, {"style": "curtain", "length": 1.0, "seed": 1}])
    {'length': [0.5, 1.0], 'style': ['curtain', 'full']}
    """
    rows = [_flat(each) for each in params]
    kinds: Kinds = {}
    for name in sorted({name for row in rows for name in row}):
        values = [row[name] for row in rows if name in row]
        if name.rpartition(".")[2] == "intensity":
            continue
        if all(_is_number(value) for value in values):
            if min(values) < max(values):
                kinds[name] = [float(min(values)), float(max(values))]
        elif all(isinstance(value, str | bool) for value in values) and 1 < len(set(values)) <= _MOST_CHOICES:
            kinds[name] = sorted(set(values), key=lambda value: (str(value), isinstance(value, str)))
    return kinds


def kinds_for(style: Style, params: Sequence[Mapping[str, Any]]) -> Kinds:
    """What a style code of such a style tells of pairs with these parameters, beside the colour."""
    if style == "color_and_params":
        params = [{name: value for name, value in each.items() if name != COLOR} for each in params]
    return kinds_of(params) if style in WITH_PARAMS else {}


def tells_apart(choices: Sequence[Any]) -> bool:
    """Whether these are the choices of a kind: several names, or a least and a greatest number."""
    if all(_is_number(choice) for choice in choices):
        return len(choices) == 2 and 0 < choices[1] - choices[0] < math.inf
    return len(choices) > 1 and all(isinstance(choice, str | bool) for choice in choices)


def has_sides(params: Iterable[Mapping[str, Any]]) -> bool:
    """Whether some of these parameters, or their names, name a side ("side_left"), or a region is given, which lies
    where it lies in the crop: a mirrored picture shows others."""
    for name, value in (named for each in params for named in _flat(each).items()):
        is_placed = name.rpartition(".")[2] == "region" and value is not None
        if is_placed or not _SIDES.isdisjoint(_WORD.findall(f"{name} {value}".lower())):
            return True
    return False


def is_told(style: Style, params: Mapping[str, Any], kinds: Kinds, feature: str) -> bool:
    """Whether `style_of` can tell these parameters."""
    try:
        style_of(style, params, kinds, feature)
    except InputError:
        return False
    return True


def style_channels(style: Style, kinds: Kinds) -> int:
    """Length of the style code."""
    told = 3 if style in WITH_COLOR else 0
    if style in WITH_PARAMS:
        told += sum(1 if _is_number(choices[0]) else len(choices) for choices in kinds.values())
    return told


def style_of(
    style: Style, params: Mapping[str, Any], kinds: Kinds | None = None, feature: str | None = None
) -> torch.Tensor:
    """The style code [style_channels] of a feature's parameters, e.g. {"color": "blond"}: its colour, then its kinds.

    feature: whose names of colours these are; None: those of hair. Raises InputError when the style needs a parameter
    that is missing, not a colour, or of no kind that was trained.
    """
    code: list[float] = []
    if style in WITH_COLOR:
        if COLOR not in params:
            raise InputError("params: no color; this model edits towards a colour, pass --set color=NAME or #rrggbb")
        lab = wanted_lab(params[COLOR], feature)
        code += _OWN_CODE if lab is None else encode_color(lab).tolist()
    if style in WITH_PARAMS:
        row = _flat(params)
        code += [x for name, choices in (kinds or {}).items() for x in _kind_code(name, choices, row)]
    return torch.tensor(code)


def told_names(style: Style, kinds: Kinds) -> list[str]:
    """The parameters that a style code says, nested ones as "bangs.length"."""
    return [COLOR] * (style in WITH_COLOR) + list(kinds) * (style in WITH_PARAMS)


def untold(style: Style, params: Mapping[str, Any], kinds: Kinds) -> list[str]:
    """Those of the parameters that change nothing: neither the style code nor the degree says them."""
    return [name for name in _flat(params) if name not in {*told_names(style, kinds), "degree", "intensity"}]


def style_in_light(style: Style, code: torch.Tensor, light: float) -> torch.Tensor:
    """A style code [style_channels] of a photo taken in `light` (of `light_of`): its colour as it looks there."""
    if style not in WITH_COLOR or light == 1 or not asks_for_color(code):
        return code
    from stylepairs.datagen.images.colors import lab_in_light

    return torch.cat([encode_color(lab_in_light(decode_color(code), light)), code[3:]])


def _kind_code(name: str, choices: list[Any], row: Mapping[str, Any]) -> list[float]:
    """One of `choices` as one-hot numbers, or a number of their range as one between -1 and 1."""
    value = row.get(name)
    if not _is_number(choices[0]):
        if value not in choices:
            raise InputError(f"{name} {value!r}: this model was trained on {', '.join(map(str, choices))}")
        return [float(value == choice) for choice in choices]
    low, high = choices
    told_low, told_high = f"{low:g}", f"{high:g}"  # rounded, perhaps outwards
    if not _is_number(value) or not min(low, float(told_low)) <= value <= max(high, float(told_high)):
        raise InputError(f"{name} {value!r}: this model was trained on {told_low} to {told_high}")
    return [2 * (min(max(value, low), high) - low) / (high - low) - 1]


def _flat(params: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in params.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def wanted_lab(color: Any, feature: str | None = None) -> torch.Tensor | None:
    """Lab [3] (D65) of a colour as the feature names it (`Feature.color_of`), None: as hair's are; None for one that is
    to stay as it is."""
    from stylepairs.datagen.features import load_feature
    from stylepairs.datagen.images.colors import color_to_lab, parse_color

    color_of = parse_color if feature is None else load_feature(feature).color_of or parse_color
    try:
        rgb = color_of(color)
    except (AttributeError, TypeError):  # of damaged pairs: a colour is a text
        raise InputError(f"color {color!r}: no colour; give a name, #rrggbb or r,g,b") from None
    return None if rgb is None else color_to_lab(rgb)[:, 0, 0]


def asks_for_color(code: torch.Tensor) -> torch.Tensor:
    """Whether style codes [...,S] that hold a colour ask for another than the photo's own, [...]."""
    return code[..., 0] > _OWN_BELOW


def color_or(code: torch.Tensor, own_lab: torch.Tensor) -> torch.Tensor:
    """Lab [...,3] of what style codes [...,S] ask for: the colour in them, or the photo's own."""
    return torch.where(asks_for_color(code)[..., None], decode_color(code), own_lab)


def encode_color(lab: torch.Tensor) -> torch.Tensor:
    """Lab [...,3] -> style code of about unit size."""
    return (lab - lab.new_tensor([50.0, 0.0, 0.0])) / 50


def decode_color(code: torch.Tensor) -> torch.Tensor:
    """Style code [...,S], whose first three numbers are the colour -> Lab [...,3]."""
    return code[..., :3] * 50 + code.new_tensor([50.0, 0.0, 0.0])
