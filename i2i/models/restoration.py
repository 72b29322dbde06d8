"""What a model of restoration says that it edits, and the feature that it stands for."""

from __future__ import annotations

import torch
from pydantic import BaseModel, ConfigDict

from stylepairs.datagen.features.feature import Feature
from stylepairs.datagen.portraits.portrait import Portrait
from stylepairs.datagen.portraits.sketch import AnalysedPair, Sketch

RESTORATION = "restoration"


class NoParams(BaseModel):
    """Restoration is told nothing but its degree."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def everywhere(portrait: Portrait, _params: BaseModel) -> Sketch:
    """Restoration may change the whole picture."""
    whole = torch.ones_like(portrait.image[:1])
    return Sketch(portrait.image, whole, 1 - whole, portrait.image.shape[-1])


def nothing_measured(_portrait: Portrait, _seen: AnalysedPair, _params: BaseModel) -> dict[str, float]:
    """A restored picture is measured against what was lost, which a photo alone does not hold."""
    return {}


FEATURE = Feature(NoParams, everywhere, nothing_measured, keeps_texture=False)
