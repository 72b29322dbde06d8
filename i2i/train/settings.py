"""The `i2i:` section of a recipe: every number of a training run, with its unit in its name."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

_MOST = 10**9  # of steps and the like: more is a slip, and would be counted through


class Section(BaseModel):
    """Part of a recipe: unknown keys are errors, and nothing changes it."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ModelSettings(Section):
    """Which network, and its shapes: features at resolution r have min(channel_base // r, channel_max) channels.

    kind: "glean" is built around a frozen generator, "thawed" around one that learns on, "cut" is the same without it;
    "light" is the small one for phones; "unet" and "pix2pixhd" are the published networks, whose first layer has
    `width` channels.
    """

    kind: Literal["glean", "thawed", "cut", "light", "unet", "pix2pixhd"] = "glean"
    width: int = Field(default=64, ge=1, le=4096)
    channel_base: int = Field(default=2048, ge=64, le=2**20)
    channel_max: int = Field(default=128, ge=8, le=4096)
    draws: bool = Field(default=False, description="the edit is a generated image, not the photo recoloured")
    moves: bool = Field(default=False, description="the edit is the photo's own pixels, moved and recoloured")
    tints: bool = Field(default=False, description="the asked colour is reached by computing, where the network says")


class DataSettings(Section):
    """How pairs become training samples; shares are of all samples."""

    identity_share: float = Field(
        default=0.05, ge=0, le=1, description="samples of degree 0, whose target is the photo itself"
    )
    blend_share: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="samples whose target is blended towards the photo; only for edits that keep shapes",
    )
    flip_share: float = Field(default=0.5, ge=0, le=1)
    affine_share: float = Field(default=0.5, ge=0, le=1)
    rotation_degrees: float = Field(default=8.0, ge=0, le=45)
    scale_share: float = Field(default=0.08, ge=0, lt=0.5, description="sizes change by up to this share")
    shift_share: float = Field(default=0.04, ge=0, lt=0.5, description="shifts by up to this share of the side")
    photometric_share: float = Field(default=0.5, ge=0, le=1)
    brightness: float = Field(default=0.1, ge=0, lt=1)
    contrast: float = Field(default=0.15, ge=0, lt=1)
    saturation: float = Field(default=0.2, ge=0, lt=1)
    dyed_share: float = Field(
        default=0.0, ge=0, le=1, description="samples whose hues are all turned, so that hair of every colour is seen"
    )
    from_after_share: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="samples whose photo is the after half of another pair of the portrait, where masks are the same",
    )
    painted_share: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="samples whose photo alone has any other colour inside the mask; only for edits of colour",
    )
    degrade_share: float = Field(
        default=0.3, ge=0, le=1, description="samples whose photo, not target, is poor: blurred, reduced, noisy, JPEG"
    )
    region_dropped_share: float = Field(
        default=0.5, ge=0, le=1, description="samples without a region: the network alone decides where"
    )
    region_rough_share: float = Field(
        default=0.2, ge=0, le=1, description="samples whose region is a box or a broad brush around what is edited"
    )
    region_share: float = Field(
        default=0.5, ge=0, le=1, description="of the others: their region is shifted, softened or grown a bit"
    )
    refused_share: float = Field(
        default=0.15, ge=0, le=1, description="samples of portraits that the feature refused: photo kept, confidence 0"
    )
    portraits_share: float = Field(
        default=0.5, ge=0, le=1, description="of each batch, where there are portraits without pairs: mask alone learnt"
    )


Range = tuple[float, float]


class DegradationSettings(Section):
    """What a portrait goes through before it is to be restored, each drawn from a range; None leaves a step out."""

    blur_sigma_px: Range | None = None
    scale: int = Field(default=1, ge=1, le=16, description="made so many times smaller, and brought back bicubically")
    noise_std: Range | None = Field(default=None, description="Gaussian noise, of the range from black to white")
    jpeg_quality: tuple[int, int] | None = None
    hole_share: Range | None = Field(default=None, description="of the picture, cut out by free strokes")

    @property
    def is_poor_everywhere(self) -> bool:
        """Whether more than holes is to be restored."""
        return bool(self.blur_sigma_px or self.scale > 1 or self.noise_std or self.jpeg_quality)

    @model_validator(mode="after")
    def _ranges_hold_something(self) -> DegradationSettings:
        limits = {"blur_sigma_px": (0.01, 64), "noise_std": (0, 1), "jpeg_quality": (1, 100), "hole_share": (0, 0.9)}
        for name, (least, most) in limits.items():
            low, high = getattr(self, name) or (least, most)
            if not least <= low <= high <= most:
                raise ValueError(f"{name} [{low:g}, {high:g}]: give the lesser first, both from {least:g} to {most:g}")
        if not (self.is_poor_everywhere or self.hole_share):
            raise ValueError("nothing is degraded, so there is nothing to restore")
        return self


class LossSettings(Section):
    """Weights; 0 leaves a term out."""

    l1: float = Field(default=4.0, ge=0)
    region_weight: float = Field(default=4.0, ge=0, description="pixels inside the mask count 1 + this in l1")
    l1_cells: int = Field(
        default=0,
        ge=0,
        le=4096,
        description="inside the mask, l1 compares means over this many cells a side; 0: pixels",
    )
    perceptual: float = Field(default=1.0, ge=0)
    matching: float = Field(default=0.0, ge=0, description="coarse frozen features of what was edited")
    texture: float = Field(default=0.0, ge=0, description="local mean and deviation of fine frozen features there")
    confidence: float = Field(default=0.5, ge=0, description="whether the feature applies")
    mask: float = Field(default=0.5, ge=0)
    spill: float = Field(default=0.0, ge=0, description="what the predicted mask shows of the edit outside the pair's")
    halo: float = Field(default=0.0, ge=0, description="what is brighter or darker than all of the pair's nearby")
    color: float = Field(default=0.0, ge=0, description="mean colour inside the mask against the target's")
    generated: float = Field(default=0.5, ge=0, description="l1 of the frozen generator's own image against the target")
    latent: float = Field(
        default=0.1, ge=0, description="stored latents of the edited face, where no augmentation moved or recoloured it"
    )
    adversarial: float = Field(default=0.0, ge=0)
    layers: float = Field(default=0.0, ge=0, description="features of a discriminator of kind patches (pix2pixHD)")
    r1: float = Field(default=1.0, ge=0)


class DiscriminatorSettings(Section):
    """Which discriminator, its shapes and training.

    kind: "stylegan2" sees the whole image and where it was edited; "projected": heads on frozen features of the square
    around what was edited, without R1; "patches": pix2pixHD's, `scales` of them, with photo and style beside the image.
    """

    kind: Literal["stylegan2", "projected", "patches"] = "stylegan2"
    scales: int = Field(default=2, ge=1, le=5)
    width: int = Field(default=64, ge=1, le=4096)
    channel_base: int = Field(default=1024, ge=64, le=2**20)
    channel_max: int = Field(default=128, ge=8, le=4096)
    start_step: int = Field(default=0, ge=0, le=_MOST, description="first step of the adversarial terms")
    r1_every: int = Field(default=16, ge=1, le=_MOST, description="steps between two R1 penalties")
    learning_rate: float = Field(default=1e-3, gt=0)


class TrainingSettings(Section):
    """The whole `i2i:` section."""

    style: Literal["none", "color", "params", "color_and_params"] = Field(
        default="none",
        description="what the editor is told besides the region: the colour, the parameters that differ, or both",
    )
    init: str = Field(default="none", description="embedded, a trained .safetensors, or none: from the bare generator")
    adapter_rank: int = Field(
        default=0,
        ge=0,
        le=4096,
        description="init stays as it is, deltas of this rank learn; 0: all weights learn",
    )
    generator: str = Field(
        default="embedded", description="used with init none; else, or with a teacher that has one, it comes with that"
    )
    teacher: str = Field(
        default="none", description="a trained run, file or embedded:FEATURE whose edits take the place of the pairs'"
    )
    degradation: DegradationSettings | None = Field(
        default=None, description="restore portraits that are degraded so, in place of learning from pairs"
    )
    perceptual: Literal["auto", "efficientnet-lite0", "vgg16", "pyramid"] = "auto"
    perceptual_weights: str | None = Field(default=None, description="file of the features' weights; vgg16 needs one")
    model: ModelSettings = ModelSettings()
    data: DataSettings = DataSettings()
    losses: LossSettings = LossSettings()
    discriminator: DiscriminatorSettings = DiscriminatorSettings()
    steps: int = Field(default=2000, ge=1, le=_MOST)
    batch_size: int = Field(default=8, ge=1, le=65_536, description="per process")
    learning_rate: float = Field(default=1e-3, gt=0)
    warmup_steps: int = Field(default=100, ge=0, le=_MOST)
    decay_from_share: float = Field(
        default=0.5, ge=0, le=1, description="learning rate falls to 0 over the rest of the steps"
    )
    ema_halflife_images: float = Field(default=2000, gt=0)
    mixed_precision: Literal["auto", "no", "bf16"] | None = Field(
        default=None,
        description="auto: bf16 where the device has instructions for it; None: as accelerate was launched",
    )
    workers: int | None = Field(
        default=None,
        ge=0,
        le=1024,
        description="loader processes; None: the cores that a GPU has to itself, on a CPU none",
    )
    log_every_steps: int = Field(default=20, ge=1, le=_MOST)
    sample_every_steps: int = Field(default=250, ge=1, le=_MOST)
    checkpoint_every_steps: int = Field(default=250, ge=1, le=_MOST)
    val_pairs: int = Field(default=32, ge=0, le=_MOST, description="held-out pairs measured at each checkpoint")
    seed: int = Field(default=0, ge=0, lt=2**31)

    @field_validator("mixed_precision", mode="before")
    @classmethod
    def _no_is_a_word(cls, value: Any) -> Any:
        return "no" if value is False else value  # as YAML reads it

    @model_validator(mode="after")
    def _terms_fit_together(self) -> TrainingSettings:
        if self.perceptual == "vgg16" and self.perceptual_weights is None:
            raise ValueError("perceptual: vgg16 needs perceptual_weights, a file")
        if self.losses.color and self.style != "color":
            raise ValueError("losses.color needs style: color")
        if self.model.tints and not self.style.startswith("color"):
            raise ValueError("model.tints needs style: color, or color_and_params")
        if self.degradation and self.style != "none":
            raise ValueError("degradation: leave style at none, a restoration has no kinds")
        for way in ("moves", "tints"):
            if getattr(self.model, way) and (self.model.draws or self.model.kind in ("unet", "pix2pixhd")):
                raise ValueError(
                    f"model.{way}: what makes an image of its own leaves nothing of the photo's; change one of them"
                )
        if self.adapter_rank and (self.init == "none" or self.model.kind == "thawed"):
            raise ValueError("adapter_rank needs an init, and another model.kind than thawed")
        for one, two in (("region_dropped_share", "region_rough_share"), ("identity_share", "blend_share")):
            if getattr(self.data, one) + getattr(self.data, two) > 1:
                raise ValueError(f"data.{one} and data.{two}: must not exceed 1 together")
        if self.losses.layers and self.discriminator.kind != "patches":
            raise ValueError("losses.layers needs discriminator.kind: patches")
        return self
