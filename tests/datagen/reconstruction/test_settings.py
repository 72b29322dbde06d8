"""What a recipe may set of inversion and reconstruction."""

import pytest
from pydantic import ValidationError

from stylepairs.datagen.reconstruction.settings import (
    InversionSettings,
    OptimiserSettings,
    PhasedSettings,
    ReconstructionSettings,
)

ALL = (OptimiserSettings, PhasedSettings, InversionSettings, ReconstructionSettings)
INVALID = {
    "steps": (-5, 0),
    "decay_steps": (0,),
    "warmup_steps": (0,),
    "learning_rate": (-1, 0, float("nan"), float("inf")),
    "noise_learning_rate": (-1, float("nan"), float("inf")),
    "momentum": (-0.1, 1, float("nan")),
    "second_momentum": (-0.1, 1, float("nan")),
    "batch": (0,),
    "precision": ("fp16",),
    "recompute_from_px": (2,),
    "pixels_at_once": (0,),
}
INVALID_PHASED = {"coarse_share": (-0.1, 1.1, float("nan")), "coarse_divisor": (1, 3)}


@pytest.mark.parametrize("settings", ALL)
@pytest.mark.parametrize("name", INVALID)
def test_every_stage_refuses_what_the_optimiser_cannot_do(settings, name):
    for value in INVALID[name]:
        with pytest.raises(ValidationError, match=name):
            settings(**{name: value})


@pytest.mark.parametrize("settings", ALL[1:])
@pytest.mark.parametrize("name", INVALID_PHASED)
def test_coarse_steps_are_a_share_at_half_a_quarter_or_less_of_the_side(settings, name):
    for value in INVALID_PHASED[name]:
        with pytest.raises(ValidationError, match=name):
            settings(**{name: value})


@pytest.mark.parametrize("settings", ALL[2:])
def test_weights_are_finite_and_never_negative(settings):
    weights = [name for name in settings.model_fields if name.endswith("_weight") or name.startswith("anchor_")]
    assert len(weights) >= 5
    for name in weights:
        for value in (-0.1, float("nan"), float("inf")):
            with pytest.raises(ValidationError, match=name):
                settings(**{name: value})
        assert getattr(settings(**{name: 0}), name) == 0


@pytest.mark.parametrize("stage", [InversionSettings, ReconstructionSettings])
def test_a_near_start_changes_only_what_nobody_set(stage):
    near = stage(steps=40).near()
    assert near.steps == 40
    changed = {name for name in stage.model_fields if getattr(near, name) != getattr(stage(steps=40), name)}
    assert changed == set(stage.near_values) - {"steps"}
    assert all(getattr(near, name) == stage.near_values[name] for name in changed)
    assert near.near() == near
    assert stage(start_share=0.9).near().start_share == 0.9


def test_what_is_rendered_at_once_divides_the_batch():
    settings = OptimiserSettings(batch=6, pixels_at_once=4 * 64**2)
    assert settings.at_once(64) == 3
    assert settings.at_once(32) == 6
    assert settings.at_once(1024) == 1


def test_coarse_steps_never_render_less_than_32_px_nor_more_than_the_generator():
    assert [PhasedSettings(coarse_divisor=4).coarse_px(size) for size in (16, 64, 256)] == [16, 32, 64]
