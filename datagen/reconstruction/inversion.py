"""Stage 0: the latent and noise maps with which the generator renders a portrait as it is (after StyleGAN2's projector,
Karras et al. 2020, in W+ and with a latent prior). Every feature starts from it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from stylepairs.datagen.images.filters import psnr
from stylepairs.datagen.images.perceptual import Perceptual, perceptual_distance
from stylepairs.datagen.portraits.portrait import Portrait
from stylepairs.datagen.reconstruction.batch import Progress
from stylepairs.datagen.reconstruction.in_hand import Objective, Outcome, State, Targets, Verdict
from stylepairs.datagen.reconstruction.objective import (
    downsample,
    noise_autocorrelation,
    prior_norm,
    pyramid_l1,
    row_spread,
)
from stylepairs.datagen.reconstruction.phases import Phase, Start, optimise_in_phases, phases_of, whole_latent
from stylepairs.datagen.reconstruction.prior import WPrior
from stylepairs.datagen.reconstruction.rendering import half, render, synthesise, use_channels_last
from stylepairs.datagen.reconstruction.settings import InversionSettings, OptimiserSettings
from stylepairs.datagen.stylegan.generator import Generator

StartOf = Callable[[torch.Tensor], tuple[torch.Tensor, list[torch.Tensor]]]


@dataclass(frozen=True)
class Inversion:
    """ws [L,C] float32 and noise maps [r,r], both holding float16 values; image [3,H,W] rendered from them in
    float32."""

    ws: torch.Tensor
    noise: list[torch.Tensor]
    image: torch.Tensor
    figures: dict[str, float]


def invert(
    generator: Generator,
    perceptual: Perceptual,
    portraits: Sequence[Portrait],
    settings: InversionSettings,
    prior: WPrior | None = None,
    progress: Progress | None = None,
    start: StartOf | None = None,
) -> list[Inversion]:
    """Invert portraits (at the generator's resolution), in their order.

    prior None is fitted here. start: gives a photo [3,H,W] the whitened latent [L,C] (`prior.whiten`) and the noise
    maps [r,r] to begin at, as an encoder finds them; None begins at the mean latent and the generator's own noise.
    progress(done, all) is called as portraits leave. A portrait whose optimisation broke down has
    figures["finite"] == 0 and the last state that was finite. Figures: psnr (dB) and perceptual distance of the render,
    prior_distance (1 is typical), steps.
    """
    use_channels_last(generator)
    prior = prior or WPrior.fit(generator)
    begins = [_begun(generator, perceptual, settings, start, portrait) for portrait in portraits]
    objective = partial(_objective, generator, perceptual, prior, settings)
    phases = phases_of(settings, generator.config.img_resolution)
    render_one = partial(rendered, generator, prior, settings)
    outcomes = optimise_in_phases(begins, phases, objective, render_one, settings, progress=progress)
    ws = [half(prior.unwhiten(outcome.u)) for outcome in outcomes]
    noise = [[half(level) for level in outcome.noise] for outcome in outcomes]
    images = render(generator, ws, noise, settings.batch)
    return [
        Inversion(w, maps, image, _figures(outcome, image, portrait, w, perceptual, prior))
        for w, maps, image, outcome, portrait in zip(ws, noise, images, outcomes, portraits, strict=True)
    ]


def _begun(
    generator: Generator, perceptual: Perceptual, settings: InversionSettings, start: StartOf | None, portrait: Portrait
) -> Start:
    size_px = generator.config.img_resolution
    if portrait.size_px != size_px:
        raise ValueError(f"{portrait.name}: is {portrait.size_px} px, the generator {size_px} px; use portrait.resized")
    shape = (generator.num_ws, generator.config.w_dim)
    if start is None:
        u = torch.zeros(shape, device=portrait.image.device)
        noise = [level[0, 0] for level in generator.noise_maps()]
    else:
        u, noise = start(portrait.image)
    if tuple(u.shape) != shape:
        raise ValueError(f"{portrait.name}: start is {list(u.shape)}, the generator's latents are {list(shape)}")

    def targets(phase: Phase) -> Targets:
        photo = downsample(portrait.image, phase.size_px)
        return {"photo": photo} | features_of(perceptual, photo)

    return Start(settings.start_share * u, noise, targets)


def _objective(
    generator: Generator, perceptual: Perceptual, prior: WPrior, settings: InversionSettings, phase: Phase
) -> Objective:
    def objective(state: State) -> Verdict:
        ws, u = prior.unwhiten(state.u), whole_latent(state)
        image = seen_render(generator, ws, state, settings, phase)
        wanted = stored_features(state.targets)
        loss = inversion_loss(perceptual, image, state.targets["photo"], wanted, u, state.noise, settings)
        never = torch.zeros_like(loss, dtype=torch.bool)
        return Verdict(loss, never, torch.zeros_like(loss))

    return objective


def inversion_loss(
    perceptual: Perceptual,
    image: torch.Tensor,
    photo: torch.Tensor,
    wanted: list[torch.Tensor],
    u: torch.Tensor,
    noise: list[torch.Tensor],
    settings: InversionSettings,
) -> torch.Tensor:
    """What stage 0 minimises, [N]: distance of renders from photos [N,3,H,W] in pixels and in features (wanted: the
    photos' guiding ones), of latents u [N,L,C] from the prior, of noise maps from noise."""
    pixels = pyramid_l1(image, photo)
    features = perceptual_distance(perceptual.guiding(image), wanted)
    loss = (
        settings.pixel_weight * pixels
        + settings.perceptual_weight * features
        + settings.prior_weight * prior_norm(u)
        + settings.row_weight * row_spread(u)
    )
    if settings.noise_learning_rate:
        loss = loss + settings.noise_weight * noise_autocorrelation(noise)
    return loss


def seen_render(
    generator: Generator, ws: torch.Tensor, state: State, settings: OptimiserSettings, phase: Phase
) -> torch.Tensor:
    """The render [N,3,H,W] that a phase's losses read: the lower blocks' own, and what the finer ones add at the
    start."""
    image = synthesise(generator, ws, state.noise, settings.precision, settings.recompute_from_px, phase.size_px)
    return image + state.targets["finer"] if "finer" in state.targets else image


@torch.no_grad()
def rendered(
    generator: Generator,
    prior: WPrior,
    settings: OptimiserSettings,
    u: torch.Tensor,
    noise: list[torch.Tensor],
    size_px: int,
) -> torch.Tensor:
    """One render [3,r,r] of whitened latents u [L,C] and maps [r,r], as a step computes it."""
    maps = [level[None, None] for level in noise]
    return synthesise(generator, prior.unwhiten(u)[None], maps, settings.precision, size_px=size_px)[0]


@torch.no_grad()
def features_of(perceptual: Perceptual, image: torch.Tensor) -> dict[str, torch.Tensor]:
    """The perceptual features of one fixed image [3,H,W] as targets feature0, feature1, ..., computed once."""
    return {f"feature{level}": x[0] for level, x in enumerate(perceptual.guiding(image[None]))}


def stored_features(targets: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """The perceptual features among targets, finest first."""
    return [targets[f"feature{level}"] for level in range(sum(key.startswith("feature") for key in targets))]


@torch.no_grad()
def _figures(
    outcome: Outcome, image: torch.Tensor, portrait: Portrait, ws: torch.Tensor, perceptual: Perceptual, prior: WPrior
) -> dict[str, float]:
    everywhere = torch.ones_like(portrait.image[None, :1])
    distance = perceptual_distance(perceptual.features(image[None]), perceptual.features(portrait.image[None]))
    return outcome.figures | {
        "psnr": float(psnr(image[None], portrait.image[None], everywhere)),
        f"perceptual_{perceptual.name}": float(distance),
        "prior_distance": float(prior.distance(ws)),
        "steps": float(outcome.steps),
    }
