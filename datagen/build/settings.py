"""The `datagen` section of a recipe, and the version of the code that builds from it. Light to import: no torch."""

from __future__ import annotations

import functools
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, model_validator

from stylepairs.datagen import __version__
from stylepairs.datagen.reconstruction.settings import InversionSettings, ReconstructionSettings

# Raised whenever the same build would give other pairs.
BUILD_VERSION = 27
# Methods of a build: the mask-guided one, and before a direction's file.
RECONSTRUCTION, LATENT = "reconstruction", "latent:"
LATENT_VERSION = "3"  # raised whenever a latent edit would give other pairs


class Threshold(BaseModel):
    """The bounds of one figure. `optional`: passes where the figure was not computed (weights not installed)."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)
    min: float | None = None
    max: float | None = None
    optional: bool = False

    @model_validator(mode="after")
    def _has_a_bound(self) -> Threshold:
        if self.min is None and self.max is None:
            raise ValueError("needs min, max or both")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min {self.min:g} is above max {self.max:g}; no pair could pass")
        return self


GateSettings = dict[str, Threshold]


class BuildRecipe(BaseModel):
    """The `datagen` section of a recipe.

    params: the feature's parameters; a list means choices. pairs_per_portrait: "all" combinations of the choices, or
    that many of them, drawn without replacement. perceptual, perceptual_weights (a file): see `load_perceptual`.
    method: how the edit is made in the generator: "reconstruction", or "latent:FILE", along a direction that
    `datagen latent fit` found, "latent:FILE#attribute" by a mapper, "latent:FILE@1.5" at this strength (then of
    `reconstruction` only the batch counts).
    encoder: where stage 0 starts, see `find_encoder`: "none", "auto" or a file that `datagen train-encoder` wrote.
    Of a latent edit nothing but a file counts, since an encoder's noise maps would stay where they are while the face
    moves; for the same reason `inversion` leaves the generator's own as they are there, unless `noise_learning_rate`
    is set.
    sketch_detail: share of the sketches' own detail that pairs get; 0 leaves all new shapes' detail to the generator.
    gate: {figure: {min: x, max: y}}.
    """

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    feature: str
    params: dict[str, Any] = Field(default_factory=dict)
    pairs_per_portrait: Literal["all"] | PositiveInt = "all"
    perceptual: str = "auto"
    perceptual_weights: str | None = None
    method: str = Field(default=RECONSTRUCTION, pattern=rf"^({RECONSTRUCTION}|{LATENT}.+)$")
    encoder: str = "auto"
    inversion: InversionSettings = InversionSettings.model_validate({})
    reconstruction: ReconstructionSettings = ReconstructionSettings.model_validate({})
    sketch_detail: float = Field(1.0, ge=0, le=1)
    gate: GateSettings = Field(default_factory=dict)

    @model_validator(mode="after")
    def _noise_stays_with_moving_faces(self) -> BuildRecipe:
        if not self.method.startswith(LATENT):
            return self
        if "noise_learning_rate" not in self.inversion.model_fields_set:
            self.inversion = self.inversion.model_copy(update={"noise_learning_rate": 0.0})
        if self.encoder == "auto":
            self.encoder = "none"
        return self


@functools.cache
def code_version() -> str:
    """The version of the code as pairs carry it: the distribution's, and that of the build's format."""
    return f"{__version__}+build{BUILD_VERSION}"
