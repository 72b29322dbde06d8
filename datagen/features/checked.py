"""What a user's feature file gives back, looked at before it is used: a mask in the range of bytes, or a misspelt
colour space, would go into every pair unseen."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from pydantic import BaseModel

from stylepairs.datagen.features.feature import Feature
from stylepairs.datagen.portraits.portrait import Portrait
from stylepairs.datagen.portraits.sketch import AnalysedPair, Sketch
from stylepairs.datagen.shell.errors import InputError, one_line

_SPACES = ("rgb", "lab")
_SHARES = ("photo_detail", "sketch_detail", "harmony")
_ROUNDING = 1e-3  # by which colours and masks may leave their range


def checked(feature: Feature, name: str) -> Feature:
    """The feature of the file `name`; its functions raise InputError, one line, for what they may not give."""

    @functools.wraps(feature.sketch)
    def sketch(portrait: Portrait, params: BaseModel) -> Sketch:
        made = feature.sketch(portrait, params)
        if fault := next(_faults(made, portrait), None):
            raise InputError(f"{name}: sketch of {portrait.name}: {fault}")
        return made

    @functools.wraps(feature.measure)
    def measure(portrait: Portrait, seen: AnalysedPair, params: BaseModel) -> dict[str, float]:
        return _numbers(feature.measure(portrait, seen, params), f"{name}: measure of {portrait.name}")

    named = feature.color_of and functools.partial(_color, feature.color_of, name)
    return replace(feature, sketch=sketch, measure=measure, color_of=named)


def _faults(made: object, portrait: Portrait) -> Iterator[str]:
    """In what a sketch is not as `Sketch` describes it."""
    if not isinstance(made, Sketch):
        yield f"gives {type(made).__name__}, not a Sketch"
        return
    plane, points = portrait.label.shape, portrait.points68.shape
    for part, shape, dtype, lowest in (
        ("image", (3, *plane), torch.float32, -1),
        ("edit_mask", (1, *plane), torch.float32, 0),
        ("keep_mask", (1, *plane), torch.float32, 0),
        ("hair", (1, *plane), torch.float32, 0),
        ("label", plane, torch.uint8, None),
        ("points68", points, torch.float32, None),
    ):
        value = getattr(made, part)
        if value is None and part in ("hair", "label", "points68"):
            continue
        if not isinstance(value, torch.Tensor) or value.shape != shape or value.dtype != dtype:
            yield f"{part} is {_described(value)}, not {dtype} {list(shape)}"
        elif lowest is not None and (value.min() < lowest - _ROUNDING or value.max() > 1 + _ROUNDING):
            yield f"{part} goes from {float(value.min()):.3g} to {float(value.max()):.3g}, not from {lowest} to 1"
    if made.reference_px < 1 or made.reference_px & (made.reference_px - 1):
        yield f"reference_px {made.reference_px} is not a power of two"
    if made.space not in _SPACES:
        yield f"space {made.space!r} is neither rgb nor lab"
    for part in _SHARES:
        if not 0 <= getattr(made, part) <= 1:
            yield f"{part} {getattr(made, part):g} is not in [0,1]"


def _described(value: object) -> str:
    return f"{value.dtype} {list(value.shape)}" if isinstance(value, torch.Tensor) else type(value).__name__


def _color(color_of: Callable[[str], Any], name: str, text: str) -> tuple[int, int, int] | None:
    of = f"{name}: color_of of {text!r}"
    try:
        color = color_of(text)
    except InputError:
        raise
    except Exception as error:  # a name that it does not know, say
        raise InputError(f"{of}: raises {type(error).__name__}: {one_line(error)}") from error
    if color is None:
        return None
    numbers = color if isinstance(color, tuple | list) else ()
    if len(numbers) != 3 or not all(isinstance(each, int | float) and 0 <= each <= 255 for each in numbers):
        raise InputError(f"{of}: gives {color!r}, not three numbers from 0 to 255, or None for the photo's own")
    return numbers[0], numbers[1], numbers[2]


def _numbers(figures: Any, of: str) -> dict[str, float]:
    if not isinstance(figures, Mapping) or "degree" not in figures:
        raise InputError(f"{of}: gives no `degree`; figures come by name, the measured share of the change among them")
    try:
        return {str(figure): float(value) for figure, value in figures.items()}
    except (TypeError, ValueError, RuntimeError) as error:  # RuntimeError: of a tensor with several values
        raise InputError(f"{of}: a figure is no number ({error})") from None
