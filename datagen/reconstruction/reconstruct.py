"""Stage 1, mask-guided reconstruction: from the inverted portrait to one that equals the sketch inside the edited
region at low resolution and the photo outside at full resolution, its latent kept in StyleGAN's own distribution."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch

from stylepairs.datagen.images.filters import psnr
from stylepairs.datagen.images.perceptual import Perceptual, perceptual_distance
from stylepairs.datagen.portraits.portrait import Portrait
from stylepairs.datagen.portraits.sketch import Sketch
from stylepairs.datagen.reconstruction.batch import Progress
from stylepairs.datagen.reconstruction.in_hand import Objective, State, Targets, Verdict
from stylepairs.datagen.reconstruction.inversion import (
    Inversion,
    features_of,
    rendered,
    seen_render,
    stored_features,
)
from stylepairs.datagen.reconstruction.objective import (
    anchor_distance,
    clamped,
    downsample,
    noise_autocorrelation,
    prior_norm,
    pyramid_l1,
    reference_colors,
    reference_errors,
    row_spread,
)
from stylepairs.datagen.reconstruction.phases import Phase, Start, optimise_in_phases, phases_of, whole_latent
from stylepairs.datagen.reconstruction.prior import WPrior
from stylepairs.datagen.reconstruction.rendering import half, render, use_channels_last
from stylepairs.datagen.reconstruction.settings import ReconstructionSettings
from stylepairs.datagen.stylegan.generator import Generator

COARSEST_PX = 4


@dataclass(frozen=True)
class Reconstruction:
    """A generated pair: latents [L,C] and noise maps [r,r] hold float16 values, the images [3,H,W] are rendered from
    them."""

    ws_before: torch.Tensor
    ws_after: torch.Tensor
    noise: list[torch.Tensor]
    generated_before: torch.Tensor
    generated_after: torch.Tensor
    figures: dict[str, float]


@dataclass(frozen=True)
class Found:
    """What a method found for a portrait: latents [L,C], noise maps [r,r], its own figures (`finite`, `steps`, ...)."""

    ws: torch.Tensor
    noise: list[torch.Tensor]
    figures: dict[str, float]


@dataclass(frozen=True)
class Problem:
    """What `reconstruct`, or a method in its place, is given: portraits at the generator's resolution, each with its
    inversion and its sketch."""

    generator: Generator
    perceptual: Perceptual
    prior: WPrior
    portraits: Sequence[Portrait]
    inversions: Sequence[Inversion]
    sketches: Sequence[Sketch]
    settings: ReconstructionSettings

    @property
    def cases(self) -> list[tuple[Portrait, Inversion, Sketch]]:
        """What belongs together."""
        return list(zip(self.portraits, self.inversions, self.sketches, strict=True))


def reconstruct(problem: Problem, progress: Progress | None = None) -> list[Reconstruction]:
    """Reconstruct each portrait for its sketch, in their order.

    All sketches of a call have one reference_px. Figures: reference_error, keep_error and its tolerance, psnr_outside
    (dB, before composing), prior_distance, latent_shift, steps, multiplier, finite.
    """
    generator, prior, settings = problem.generator, problem.prior, problem.settings
    if len({sketch.reference_px for sketch in problem.sketches}) > 1:
        raise ValueError("reconstruct: the sketches of one call must share reference_px")
    use_channels_last(generator)
    if not any(sketch.sketch_detail for sketch in problem.sketches):
        settings = settings.model_copy(update={"detail_weight": 0.0})  # saves the time; the sum is the same
        problem = replace(problem, settings=settings)
    # Decided here, once: asking a tensor in each step would make a GPU wait.
    any_lab = any(sketch.space == "lab" for sketch in problem.sketches)
    starts = [
        Start(
            settings.start_share * prior.whiten(inversion.ws),
            inversion.noise,
            partial(_targets, problem, index, any_lab),
        )
        for index, (_, inversion, _) in enumerate(problem.cases)
    ]
    outcomes = optimise_in_phases(
        starts,
        phases_of(settings, generator.config.img_resolution),
        partial(_objective, problem),
        partial(rendered, generator, prior, settings),
        settings,
        settings.multiplier_rate,
        progress,
    )
    found = [Found(prior.unwhiten(one.u), one.noise, one.figures | {"steps": float(one.steps)}) for one in outcomes]
    return collect(problem, found)


@torch.no_grad()
def collect(problem: Problem, found: Sequence[Found]) -> list[Reconstruction]:
    """Render what was found for each portrait, and add the figures that every method reports."""
    generator, prior, width = problem.generator, problem.prior, problem.settings.batch
    ws = [half(one.ws) for one in found]
    noise = [[half(level) for level in one.noise] for one in found]
    # The pair shares one set of noise maps, so that its halves differ in the latent alone.
    before = render(generator, [inversion.ws for inversion in problem.inversions], noise, width)
    after = render(generator, ws, noise, width)
    made = []
    for index, (portrait, inversion, sketch) in enumerate(problem.cases):
        outside = psnr(after[index][None], portrait.image[None], sketch.keep_mask[None])
        shift = (prior.whiten(ws[index]) - prior.whiten(inversion.ws)).square().mean().sqrt()
        figures = found[index].figures | {
            "psnr_outside": float(outside),
            "prior_distance": float(prior.distance(ws[index])),
            "latent_shift": float(shift),
        }
        made.append(Reconstruction(inversion.ws, ws[index], noise[index], before[index], after[index], figures))
    return made


def _targets(problem: Problem, index: int, any_lab: bool, phase: Phase) -> Targets:
    """What one portrait is compared with in a phase; any_lab: whether a sketch of the call is compared in Lab."""
    perceptual, settings = problem.perceptual, problem.settings
    portrait, inversion, sketch = problem.cases[index]
    photo, inverted = downsample(portrait.image, phase.size_px), downsample(inversion.image, phase.size_px)
    targets = {
        "photo": photo,
        "start": problem.prior.whiten(inversion.ws),
        "edit_mask": downsample(sketch.edit_mask, phase.size_px),
        "keep_mask": downsample(sketch.keep_mask, phase.size_px),
    }
    if any_lab:
        targets["lab"] = torch.tensor(sketch.space == "lab", device=portrait.image.device)
    lab = targets["lab"][None] if any_lab else None
    for size_px in _reference_sizes(sketch.reference_px):
        if size_px <= phase.size_px:
            reference = reference_colors(sketch.image[None], sketch.edit_mask[None], size_px, lab)
            targets[f"reference{size_px}"] = reference[0]
    targets |= features_of(perceptual, photo)
    if settings.detail_weight:
        drawn = features_of(perceptual, downsample(sketch.image, phase.size_px))
        targets |= {f"drawn{level.removeprefix('feature')}": value for level, value in drawn.items()}
        targets["detail"] = torch.tensor(settings.detail_weight * sketch.sketch_detail, device=portrait.image.device)
    batched = {key: value[None] for key, value in targets.items()}
    kept = _keep_error(inverted[None], perceptual.guiding(inverted[None]), batched, settings)
    targets["tolerance"] = settings.keep_slack * kept[0]
    return targets


def _objective(problem: Problem, phase: Phase) -> Objective:
    generator, perceptual, prior, settings = problem.generator, problem.perceptual, problem.prior, problem.settings
    reference_px = problem.sketches[0].reference_px if problem.sketches else 0
    device = generator.mapping.w_avg.device  # made there: a copy in each step would make a GPU wait
    weights = torch.linspace(settings.anchor_coarse, settings.anchor_fine, generator.num_ws, device=device)

    def objective(state: State) -> Verdict:
        ws, u = prior.unwhiten(state.u), whole_latent(state)
        image = seen_render(generator, ws, state, settings, phase)
        reference, reached = _reference(image, state, settings, reference_px)
        seen = perceptual.guiding(image)
        keep = _keep_error(image, seen, state.targets, settings)
        # An edit that leaves nothing to keep has a tolerance of 0.
        violation = keep / state.targets["tolerance"].clamp_min(1e-6) - 1
        loss = (
            settings.reference_weight * clamped(reference, settings.reference_tolerance)
            + state.multiplier.to(keep.device) * clamped(keep, 0.0)
            + settings.prior_weight * prior_norm(u)
            + settings.row_weight * row_spread(u)
            + anchor_distance(u, state.targets["start"], weights)
        )
        if settings.noise_learning_rate:
            loss = loss + settings.noise_weight * noise_autocorrelation(state.noise)
        if settings.detail_weight:
            drawn = [state.targets[f"drawn{level}"] for level in range(len(seen))]
            loss = loss + state.targets["detail"] * perceptual_distance(seen, drawn, state.targets["edit_mask"])
        met = reached & (reference <= settings.reference_tolerance * 1.1) & (violation <= 0)
        figures = {"reference_error": reference, "keep_error": keep, "keep_tolerance": state.targets["tolerance"]}
        return Verdict(loss, met, violation, {key: value.detach() for key, value in figures.items()})

    return objective


def _reference(
    image: torch.Tensor, state: State, settings: ReconstructionSettings, reference_px: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Each portrait's error at the sketch resolution its own step has come to, and whether that is the final one."""
    targets, sizes = state.targets, _reference_sizes(reference_px)
    unread = sum(size > image.shape[-1] for size in sizes)  # finer than a coarse phase renders
    sizes, coarsest = sizes[unread:], len(sizes) - 1
    references = [targets[f"reference{size}"] for size in sizes]
    errors = reference_errors(image, references, targets["edit_mask"], targets.get("lab"))  # finest first
    progress = state.step / max(settings.coarse_to_fine_steps, 1)
    level = coarsest - (progress * coarsest).floor().clamp(max=coarsest).long()
    if settings.coarse_to_fine_steps == 0:
        level = torch.zeros_like(level)
    level = level.to(image.device)
    return errors.gather(0, (level - unread).clamp_min(0)[None])[0], level == 0


def _keep_error(
    image: torch.Tensor, seen: list[torch.Tensor], targets: dict[str, torch.Tensor], settings: ReconstructionSettings
) -> torch.Tensor:
    """keep(w) = |M_keep * (G - x)|_1 / |M_keep| over a pyramid + masked perceptual distance; seen: image's features."""
    pixels = pyramid_l1(image, targets["photo"], targets["keep_mask"])
    features = perceptual_distance(seen, stored_features(targets), targets["keep_mask"])
    return pixels + settings.perceptual_weight * features


def _reference_sizes(reference_px: int) -> list[int]:
    sizes = [reference_px]
    while sizes[-1] > COARSEST_PX:
        sizes.append(sizes[-1] // 2)
    return sizes
