"""The discriminator's side of training: StyleGAN2's on the whole image, projected heads on the square around what was
edited, or pix2pixHD's patches at several scales (Wang et al. 2018)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from stylepairs.datagen.stylegan.discriminator import Discriminator, DiscriminatorConfig
from stylepairs.datagen.stylegan.projected import Heads, Maps, generator_loss, heads_loss
from stylepairs.i2i.models.published import PatchDiscriminators
from stylepairs.i2i.train import losses
from stylepairs.i2i.train.data import Sample
from stylepairs.i2i.train.settings import TrainingSettings
from stylepairs.i2i.train.start import Run

# Heads whose loss is lower win already; learning on, they lead to a painted look.
HEADS_REST_BELOW = 1.5
MAX_NORM = 10.0  # bounds what one bad batch can do


def initial_discriminator(settings: TrainingSettings, size_px: int, style_channels: int, batch_size: int) -> nn.Module:
    """The discriminator that the settings name, before any step; batch_size: how many samples it sees at once."""
    adversary = settings.discriminator
    if adversary.kind == "projected":
        return Heads()
    if adversary.kind == "patches":
        return PatchDiscriminators(3 + 3 + 1 + style_channels, adversary.scales, adversary.width)
    config = DiscriminatorConfig(
        img_resolution=size_px,
        channel_base=adversary.channel_base,
        channel_max=adversary.channel_max,
        cond_channels=1 + style_channels,
        mbstd_group_size=math.gcd(batch_size, 4),
    )
    return Discriminator(config)


def generator_terms(run: Run, image: torch.Tensor, batch: Sample, maps: Maps | None) -> dict[str, torch.Tensor]:
    """What the editor lowers, weighted; image: its output, clamped; maps: the `FrozenFeatures` of it, where there are
    any."""
    weights, kind = run.settings.losses, run.settings.discriminator.kind
    run.discriminator.requires_grad_(False).eval()  # eval: spectral norms move in the heads' own step alone
    if kind == "patches":
        found = run.discriminator(compared(image, batch))
        terms = {"adversarial": weights.adversarial * losses.least_squares(found, 1.0)}
        if weights.layers:
            with torch.no_grad():
                wanted = run.discriminator(compared(batch["target"], batch))
            terms["layers"] = weights.layers * losses.layers_l1(found, wanted)
        return terms
    if kind == "projected":
        term = generator_loss(run.discriminator(mixed(run, maps, batch)))
    else:
        term = losses.generator_adversarial(run.discriminator(judged(image, batch)))
    return {"adversarial": weights.adversarial * term}


def discriminator_step(
    run: Run, fake: torch.Tensor, batch: Sample, maps: Sequence[Maps] | None
) -> dict[str, torch.Tensor]:
    """One step of the discriminator on the same batch; maps: features of the edits and of the pairs."""
    run.discriminator.requires_grad_(True).train()
    if run.settings.discriminator.kind == "projected":
        assert maps is not None
        real_logits, fake_logits = (run.critic(mixed(run, [x.detach() for x in of], batch)) for of in maps[::-1])
        loss = heads_loss(real_logits, fake_logits)
        rests = float(run.accelerator.reduce(loss.detach(), "mean")) < HEADS_REST_BELOW
        # With weight 0 every process still has its gradients to share.
        run.accelerator.backward(loss * float(not rests))
        figures = {"discriminator": loss.detach()}
    elif run.settings.discriminator.kind == "patches":
        real, made = (run.critic(compared(image, batch)) for image in (batch["target"], fake))
        loss, rests = 0.5 * (losses.least_squares(real, 1.0) + losses.least_squares(made, 0.0)), False
        run.accelerator.backward(loss)
        figures = {"discriminator": loss.detach()}
    else:
        figures, rests = _whole_image_step(run, fake, batch), False
    parameters = run.discriminator.parameters()
    figures["discriminator_norm"] = run.accelerator.clip_grad_norm_(parameters, MAX_NORM)
    if not rests:
        run.critic_optimizer.step()
    run.critic_optimizer.zero_grad(set_to_none=True)
    return figures


def mixed(run: Run, maps: Maps | None, batch: Sample) -> Maps:
    """The features that projected heads see, of the samples that are edited at all."""
    assert maps is not None
    assert run.features is not None
    edited = batch["mask"].amax((1, 2, 3)) > 0
    chosen = [level[edited] for level in maps] if edited.any() else maps
    result: Maps = run.features.mixing([level.float() for level in chosen])
    return result


def _whole_image_step(run: Run, fake: torch.Tensor, batch: Sample) -> dict[str, torch.Tensor]:
    """Gradients of StyleGAN2's logistic loss, with R1 now and then."""
    settings = run.settings
    real_logits, fake_logits = run.critic(judged(batch["target"], batch)), run.critic(judged(fake, batch))
    loss = losses.discriminator_adversarial(real_logits, fake_logits)
    figures = {
        "discriminator": loss.detach(),
        "real_logit": real_logits.detach().mean(),
        "fake_logit": fake_logits.detach().mean(),
    }
    run.accelerator.backward(loss)
    if run.step % settings.discriminator.r1_every == 0:
        real = batch["target"].detach().requires_grad_(True)
        logits = run.critic(judged(real, batch))
        penalty = losses.r1_penalty(real, logits)
        # The logits join with weight 0: the last bias is not in the penalty, and every parameter must get a gradient.
        run.accelerator.backward(settings.losses.r1 * settings.discriminator.r1_every * penalty + 0 * logits.sum())
        figures["r1"] = penalty.detach()
    return figures


def compared(image: torch.Tensor, batch: Sample) -> torch.Tensor:
    """What pix2pixHD's discriminators see: the image beside what the editor was given."""
    told = torch.cat([batch["degree"][:, None], batch["style"]], dim=1)
    return torch.cat([batch["photo"], image, told[:, :, None, None].expand(-1, -1, *image.shape[2:])], dim=1)


def judged(image: torch.Tensor, batch: Sample) -> torch.Tensor:
    """What StyleGAN2's discriminator sees: the image, where it may differ from the photo, and which kind of edit is
    wanted."""
    style = batch["style"][:, :, None, None].expand(-1, -1, *image.shape[2:])
    return torch.cat([image, batch["mask"] * 2 - 1, style], dim=1)
