"""Settings of an encoder's training, and those of the published methods. Light to import: no torch here."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from stylepairs.datagen.reconstruction.settings import Rate, Steps, Weight


class EncoderTraining(BaseModel):
    """How an encoder is trained, by Adam (published: Ranger, not in torch). Batches are of one process."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    steps: Steps = 9000
    portraits: int = Field(default=3, ge=1, description="a batch")
    samples: int = Field(default=1, ge=0, description="of the generator a batch, beside the portraits")
    learning_rate: Rate = 1e-3
    passes: int = Field(default=1, ge=1, le=20, description="several: ReStyle's, each beside the last one's render")
    noise: bool = Field(default=False, description="predict noise maps too")
    from_first_row: bool = Field(default=False, description="e4e: rows of W+ are the first one and offsets from it")
    width: int = Field(default=32, ge=4, le=4096, description="channels at half of the image's side")
    deep: int = Field(default=48, ge=4, le=4096, description="channels below")
    prior_weight: Weight = Field(0.025, description="mean square of the whitened latent; a prediction leans on it")
    row_weight: Weight = 0.004
    jitter: Weight = Field(
        0.0, description="standard deviation of what is added to predicted whitened latents before they are rendered"
    )
    offset_weight: Weight = Field(0.0, description="length of each row's offset from the first (e4e's delta)")
    critic_weight: Weight = Field(0.0, description="of the latent discriminator")
    critic_rate: Rate = Field(2e-5, description="of its Adam")
    identity_weight: Weight = Field(0.1, description="where an identity network is given")
    perceptual: str = Field("auto", description="see load_perceptual")
    perceptual_weights: str | None = Field(default=None, description="file of its weights; vgg16 needs one")
    probes: int = Field(default=800, ge=1, description="gradients that the curvature is fitted to")
    seed: int = Field(default=0, ge=0, le=2**31 - 1)
    checkpoint_every: int = Field(default=200, ge=1)


_E4E = {"from_first_row": True, "row_weight": 0.0, "offset_weight": 2e-4, "critic_weight": 0.1}
# pSp: Richardson et al. 2021; e4e: Tov et al. 2021; ReStyle: Alaluf et al. 2021; start: what stage 0 begins with.
METHODS: dict[str, dict[str, Any]] = {
    "start": {"passes": 3, "noise": True, "jitter": 0.1},
    "psp": {},
    "e4e": _E4E,
    "restyle-psp": {"passes": 5},
    "restyle-e4e": _E4E | {"passes": 5},
}
