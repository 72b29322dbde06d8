"""Settings of inversion and reconstruction, as a recipe may change them. Light to import: no torch here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator

# Types, since a field that a subclass declares anew loses the bounds of its `Field`.
Steps = Annotated[int, Field(ge=1, le=10**9)]
Rate = Annotated[float, Field(gt=0)]
Weight = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]

LEAST_COARSE_PX = 32  # below it the perceptual features have hardly a pixel left


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class OptimiserSettings(_Settings):
    """How one latent and its noise maps are moved (Adam, Kingma & Ba 2015; cosine decay at the end)."""

    steps: Steps = Field(200, description="most steps before the rate decays")
    decay_steps: Steps = Field(60, description="steps of cosine decay, after which the portrait leaves")
    warmup_steps: Steps = 10
    learning_rate: Rate = Field(0.05, description="per step, in standard deviations of the latent")
    noise_learning_rate: Weight = Field(0.02, description="0 freezes the noise maps")
    momentum: Decay = Field(default=0.9, description="Adam's first decay; lower forgets sooner")
    second_momentum: Decay = Field(default=0.99, description="Adam's second decay, likewise")
    batch: int = Field(
        4, ge=1, le=4096, description="portraits at a time; fixed, so that results do not depend on how many there are"
    )
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="of the generator's convolutions; auto: bf16 on a processor with instructions for it"
    )
    recompute_from_px: int = Field(
        512,
        ge=4,
        le=10**6,
        description="generator blocks of this side and above are computed twice, not kept: memory for time",
    )
    pixels_at_once: int = Field(
        2 * 1024**2,
        ge=1,
        le=10**12,
        description="of the images that a step renders together; a larger batch goes in equal parts",
    )

    def at_once(self, size_px: int) -> int:
        """Portraits of this side whose step is computed together: a divisor of the batch, whatever the machine is."""
        most = max(1, self.pixels_at_once // size_px**2)
        return max(count for count in range(1, min(most, self.batch) + 1) if self.batch % count == 0)


class PhasedSettings(OptimiserSettings):
    """An optimiser whose first steps may render at a lower resolution."""

    near_values: ClassVar[Mapping[str, Any]] = {}  # where an encoder's start begins it

    start_share: Share = Field(
        1.0, description="of the way from the mean latent to the given one, where the latent begins"
    )
    coarse_share: Share = Field(
        0.0, description="share of `steps`, the first ones, that are rendered at a lower resolution"
    )
    coarse_divisor: int = Field(
        2,
        ge=2,
        le=1024,
        description="power of two: of the generator's side, gives theirs (32 px at least; else they are full)",
    )

    @field_validator("coarse_divisor")
    @classmethod
    def _power_of_two(cls, divisor: int) -> int:
        if divisor & (divisor - 1):
            raise ValueError(
                f"{divisor} is not a power of two; the generator renders at 1/2, 1/4, 1/8, ... of its side"
            )
        return divisor

    def coarse_px(self, size_px: int) -> int:
        """Side of the coarse steps' render for a generator of this side."""
        return min(size_px, max(size_px // self.coarse_divisor, LEAST_COARSE_PX))

    def near(self) -> Self:
        """These settings where stage 0 starts at what an encoder found: what nobody set takes its own values for it."""
        unset = {key: value for key, value in self.near_values.items() if key not in self.model_fields_set}
        return self.model_copy(update=unset)


# Of stage 0 from an encoder's start; tuned on 12 held-out portraits. Both stages begin nearer to the mean than what was
# found: an encoder's latents lie where small moves change much, and edits stay behind there (docs/notes/encoder.md).
NEAR = {
    "start_share": 0.5,
    "steps": 19,
    "decay_steps": 14,
    "warmup_steps": 3,
    "noise_learning_rate": 0.12,
}


class InversionSettings(PhasedSettings):
    """Stage 0: reconstruct the portrait itself."""

    near_values: ClassVar[Mapping[str, Any]] = NEAR

    steps: Steps = 120
    decay_steps: Steps = 50
    # 0.8 dB more than 0.9 and 0.99 for the same steps (docs/notes/reconstruction.md).
    momentum: Decay = 0.8
    second_momentum: Decay = 0.8
    learning_rate: Rate = 0.2
    noise_learning_rate: Weight = 0.15
    pixel_weight: Weight = 1.0
    perceptual_weight: Weight = 0.6
    prior_weight: Weight = Field(0.015, description="mean square of the whitened latent (Barbershop's p-norm)")
    row_weight: Weight = Field(0.004, description="squared distance of the rows of W+ to their mean")
    noise_weight: Weight = Field(0.01, description="autocorrelation of the noise maps (StyleGAN2's projector)")


class ReconstructionSettings(PhasedSettings):
    """Stage 1: meet the sketch inside at low resolution and the photo outside at full resolution."""

    near_values: ClassVar[Mapping[str, Any]] = {"start_share": 0.5}

    # Half the time of 120 + 40 steps at rate 0.05, for the same colour and 0.1 dB outside.
    steps: Steps = 70
    decay_steps: Steps = 25
    learning_rate: Rate = 0.12
    # 0.84 of the time of full steps alone with prior_weight 0.05, all figures as good (docs/notes/reconstruction.md).
    coarse_share: Share = 0.75
    # 0, which keeps the maps of stage 0, gives 1 dB less outside and edits less exact (docs/notes/reconstruction.md).
    noise_learning_rate: Weight = 0.02
    reference_weight: Weight = 2.0
    reference_tolerance: Rate = Field(
        0.03,
        description="root mean square at which the sketch counts as met: [-1,1] units, or Lab / 50 in Lab space",
    )
    keep_slack: float = Field(1.2, ge=1, description="outside error allowed, as a multiple of that of stage 0")
    perceptual_weight: Weight = 0.6
    # On fringes 0.3 brings the generated region 14 % nearer to the sketch (perceptually) for 0.07 dB outside; 1.0
    # brings it 23 % nearer for 0.25 dB and a prior distance 0.07 larger.
    detail_weight: Weight = Field(
        0.3, description="perceptual pull to the sketch's own detail inside, times its sketch_detail"
    )
    # Several times stage 0's pull costs 0.1 dB outside and holds the prior distance at 1.1 instead of 1.4; coarse steps
    # do not pull on the finest rows, so the rest makes up for it.
    prior_weight: Weight = 0.07
    row_weight: Weight = 0.004
    anchor_coarse: Weight = Field(0.02, description="pull of the first row of W+ to its stage-0 value")
    anchor_fine: Weight = Field(0.002, description="pull of the last row; rows between are interpolated")
    noise_weight: Weight = 0.02
    coarse_to_fine_steps: int = Field(
        15, ge=0, le=10**9, description="steps over which the sketch's resolution rises to its own"
    )
    multiplier_rate: Weight = Field(0.03, description="rate of the constraint's multiplier, in its logarithm")
