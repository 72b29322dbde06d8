"""A product feature as the rest of the code uses it, and the file that it is made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:  # names of features are listed without torch
    from pydantic import BaseModel

    from stylepairs.datagen.portraits.portrait import Portrait
    from stylepairs.datagen.portraits.sketch import AnalysedPair, Sketch


class FeatureFile(Protocol):
    """What the file of a feature holds; besides, if it likes, `settled`, `directed`, `color_of`, COLORS and FILE_PARAMS
    (see `Feature`).

    Its functions may take its own `Params`, to which callers validate what they pass.
    """

    @property
    def Params(self) -> type[BaseModel]: ...

    @property
    def sketch(self) -> Callable[..., Sketch]: ...

    @property
    def measure(self) -> Callable[..., dict[str, float]]: ...


def _as_given(_portrait: Portrait, params: BaseModel) -> BaseModel:
    return params


def _as_told(params: BaseModel, _backwards: bool) -> BaseModel:
    return params


@dataclass(frozen=True)
class Feature:
    """A product feature; all its `params` are of the type `Params`.

    sketch(portrait, params): the rough edit; raises SketchRefused where the feature does not apply.
    measure(portrait, seen, params): how far the wanted change was reached, and what it cost.
    settled(portrait, params): params with all that the feature draws for this portrait (a reference, say) chosen and
    named; without such draws, params as they are. A pair's record holds these, so that measuring or augmenting it later
    draws nothing anew: there the portrait may look a little different. May raise SketchRefused.
    directed(params, backwards): params of a pair that is known to run backwards, or not, where they leave it to the
    portrait; else as they are.
    color_of(text): the sRGB colour, 0..255 each, that its `color` parameter means, None for the photo's own; raises
    InputError. None: as hair's are named (`stylepairs.datagen.images.colors.parse_color`).
    colors: the names that its `color` knows; empty: those of hair.
    about: the file's docstring.
    file_params: the parameters whose text may name a file, a folder of prepared portraits, or a portrait in one: where
    these hold something else, a build is another.
    keeps_texture: whether a network's edit of it may be carried on over more of the photo than the network saw, as the
    photo's own texture stays under it.
    """

    Params: type[BaseModel]
    sketch: Callable[[Portrait, BaseModel], Sketch]
    measure: Callable[[Portrait, AnalysedPair, BaseModel], dict[str, float]]
    settled: Callable[[Portrait, BaseModel], BaseModel] = _as_given
    directed: Callable[[BaseModel, bool], BaseModel] = _as_told
    color_of: Callable[[str], tuple[int, int, int] | None] | None = None
    colors: tuple[str, ...] = ()
    about: str = ""
    keeps_texture: bool = True
    file_params: tuple[str, ...] = ()

    @staticmethod
    def of(file: FeatureFile | ModuleType) -> Feature:
        """The feature that a file holds."""
        return Feature(
            file.Params,
            file.sketch,
            file.measure,
            getattr(file, "settled", _as_given),
            getattr(file, "directed", _as_told),
            getattr(file, "color_of", None),
            tuple(getattr(file, "COLORS", ())),
            file.__doc__ or "",
            file_params=getattr(file, "FILE_PARAMS", ()),
        )


def asked_degree(params: BaseModel) -> float:
    """The degree that a feature's parameters ask for: their intensity; 1 where there is none (a combination's)."""
    return float(dict(params).get("intensity", 1.0))
