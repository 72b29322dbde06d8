"""MaskFaceGAN (Pernus, Struc, Dobrisek 2023): latents optimised under an attribute classifier and a face parser, pixels
held outside; then noise maps alone.

As published: images in [0,1]; loss = 2 masked MSE + 0.005 KL(attribute, 0.95) + 0.5 MSE of the parser's region (for
edits that keep its shape) + 1 KL of the region's size (for edits that change it), means over all pixels; then, latents
frozen, noise maps alone: 2 masked MSE + 1 noise regularisation at rate 0.1; two steps on latents for one on noise. The
result is blended over the photo in the union of the regions before and after.

Changed. The classifier, trained on CelebA, is a score of ours behind a logistic curve: the face as it is counts as
without the attribute (probability 0.02), `strength` deviations more are its target. The start is an inversion, which is
what their first 500 steps on pixels alone do; the rate makes our fewer steps reach as far as their 500 at 1e-3.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from stylepairs.datagen.latent.people import Person, picture_of
from stylepairs.datagen.latent.scorers import Scorer
from stylepairs.datagen.portraits.portrait import CLASS
from stylepairs.datagen.reconstruction.batch import Progress, optimise_all
from stylepairs.datagen.reconstruction.in_hand import Job, State, Verdict
from stylepairs.datagen.reconstruction.objective import noise_autocorrelation
from stylepairs.datagen.reconstruction.reconstruct import Found
from stylepairs.datagen.reconstruction.rendering import synthesise, use_channels_last
from stylepairs.datagen.reconstruction.settings import OptimiserSettings
from stylepairs.datagen.stylegan.generator import Generator

PIXEL_WEIGHT, ATTRIBUTE_WEIGHT, PARSER_WEIGHT, SIZE_WEIGHT, NOISE_WEIGHT = 2.0, 0.005, 0.5, 1.0, 1.0
TARGET = 0.95
LATENT_REACH = 500 * 1e-3  # published steps of the edit times their rate
NOISE_LEARNING_RATE = 0.1
LATENT_SHARE = 2 / 3
# Logit of the classifier for what has the attribute; minus it for what has not.
_LOGIT = 4.0
# Where the classifier says TARGET, on the way from without to with: there the attribute's loss is least.
_TARGET_SHARE = (1 + math.log(TARGET / (1 - TARGET)) / _LOGIT) / 2
_GROWN, _SOFT = 0.04, 0.012  # of the side: the region that may change, beyond the classes

# A loss [N] of the latents' phase and its figures, of a render [N,3,H,W] and the state.
LatentLoss = Callable[[torch.Tensor, State], tuple[torch.Tensor, dict[str, torch.Tensor]]]
NoiseTerm = Callable[[Sequence[torch.Tensor]], torch.Tensor]


@dataclass(frozen=True)
class Wanted:
    """strength: change of the score in deviations. size: of the region of the score's classes, as a multiple of what it
    is (1.3 grows it, 0.7 shrinks it); None leaves it to the attribute. keep_shape: hold the region's outline."""

    strength: float
    size: float | None = None
    keep_shape: bool = False


def masked_mse(image: torch.Tensor, target: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean over all pixels of M * (G - x)^2 -> [N]; images [N,3,H,W] in [-1,1], compared in [0,1]."""
    return (mask * ((image - target) / 2).square()).mean((1, 2, 3))


def attribute_divergence(probability: torch.Tensor, target: float = TARGET) -> torch.Tensor:
    """KL divergence of a Bernoulli `probability` [N] from the smoothed target."""
    return divergence(probability, torch.full_like(probability, target))


def divergence(probability: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """KL divergence of Bernoulli probabilities [N] from targets [N]."""
    wanted, found = (torch.stack([p, 1 - p], -1).clamp_min(1e-6) for p in (target, probability))
    return (wanted * (wanted / found).log()).sum(-1)


def attribute_probability(found: torch.Tensor, without: torch.Tensor, with_it: torch.Tensor) -> torch.Tensor:
    """The classifier: where `found` [N,K] lies between statistics without and with the attribute -> [N] in (0,1)."""
    axis = with_it - without
    share = ((found - without) * axis).sum(-1) / axis.square().sum(-1).clamp_min(1e-8)
    return torch.sigmoid(_LOGIT * (2 * share - 1))


def with_attribute(without: torch.Tensor, change: torch.Tensor | float) -> torch.Tensor:
    """The statistics with the attribute, of a classifier that says TARGET where `without` has changed by `change`."""
    return without + change / _TARGET_SHARE


def two_phases(
    generator: Generator,
    jobs: Sequence[Job],
    latent_loss: LatentLoss,
    settings: OptimiserSettings,
    noise_term: NoiseTerm = noise_autocorrelation,
    progress: Progress | None = None,
) -> list[Found]:
    """Latents under `latent_loss`, then noise maps under pixels alone; of the settings steps, decay_steps, batch and
    precision count. Jobs' targets hold `photo` and `keep_mask`; their u are latents, not whitened."""
    use_channels_last(generator)
    total = settings.steps + settings.decay_steps
    rate = LATENT_REACH / (LATENT_SHARE * total)
    on_latents = _plain(settings, round(LATENT_SHARE * total), rate, 0.0)
    on_noise = _plain(settings, round((1 - LATENT_SHARE) * total), 1e-9, NOISE_LEARNING_RATE)

    def latents(state: State) -> Verdict:
        image = synthesise(generator, state.u, state.noise, settings.precision)
        loss, figures = latent_loss(image, state)
        pixels = masked_mse(image, state.targets["photo"], state.targets["keep_mask"])
        return _endless(PIXEL_WEIGHT * pixels + loss, figures)

    def noise(state: State) -> Verdict:
        image = synthesise(generator, state.u.detach() + 0 * state.u, state.noise, settings.precision)
        pixels = masked_mse(image, state.targets["photo"], state.targets["keep_mask"])
        return _endless(PIXEL_WEIGHT * pixels + NOISE_WEIGHT * noise_term(state.noise), {})

    edited = optimise_all(jobs, latents, on_latents, progress=progress)
    again = [Job(one.u, one.noise, job.targets) for one, job in zip(edited, jobs, strict=True)]
    finished = optimise_all(again, noise, on_noise)
    found = []
    for first, last in zip(edited, finished, strict=True):
        figures = first.figures | {"loss": last.figures["loss"], "steps": float(first.steps + last.steps)}
        figures["finite"] = min(first.figures["finite"], last.figures["finite"])
        found.append(Found(first.u, last.noise, figures))  # latents of the first phase: in the second they stand still
    return found


def edit(
    generator: Generator,
    scorer: Scorer,
    deviation: float,
    people: Sequence[Person],
    wanted: Wanted,
    settings: OptimiserSettings,
    progress: Progress | None = None,
) -> list[tuple[Found, torch.Tensor]]:
    """Each person edited by the scorer's one attribute: what was found, and the picture [3,H,W], blended over the
    person's own outside the regions. deviation: of the score. Raises InputError for a score without gradients."""
    scorer.check_gradients()
    score = scorer.scores[0]
    classes = [CLASS[name] for name in score.classes]
    own = [level[0, 0] for level in generator.noise_maps()]
    jobs = [_job(generator, scorer, deviation, person, person.noise or own, wanted) for person in people]

    def latent_loss(image: torch.Tensor, state: State) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        seen, targets = scorer.reader.read(image), state.targets
        found = score.read(image, seen)[:, None]
        known = found.isfinite()
        probability = attribute_probability(found.nan_to_num(0.0), targets["without"], targets["with"])
        loss = ATTRIBUTE_WEIGHT * torch.where(known[:, 0], attribute_divergence(probability), 0.0)
        if classes:
            region = seen.classes[:, classes].sum(1)
            if wanted.keep_shape:
                loss = loss + PARSER_WEIGHT * (region - targets["region"]).square().mean((1, 2))
            if wanted.size is not None:
                size = (wanted.size * targets["region"].mean((1, 2))).clamp(1e-4, 0.99)
                loss = loss + SIZE_WEIGHT * divergence(region.mean((1, 2)), size)
        return loss, {"attribute": probability}

    found = two_phases(generator, jobs, latent_loss, settings, progress=progress)
    return [(one, _blended(generator, scorer, person, one)) for person, one in zip(people, found, strict=True)]


@torch.no_grad()
def _job(
    generator: Generator,
    scorer: Scorer,
    deviation: float,
    person: Person,
    noise: Sequence[torch.Tensor],
    wanted: Wanted,
) -> Job:
    image = picture_of(generator, person)[None]
    seen = scorer.reader.read(image)
    without = scorer.scores[0].read(image, seen).nan_to_num(0.0)
    targets = {
        "photo": image[0],
        "keep_mask": 1 - _region(scorer, image),
        "without": without,
        "with": with_attribute(without, wanted.strength * deviation),
        "region": seen.labelled(*scorer.scores[0].classes)[0, 0] if scorer.scores[0].classes else seen.hair[0, 0],
    }
    return Job(person.ws, list(noise), targets)


def _region(scorer: Scorer, image: torch.Tensor) -> torch.Tensor:
    """Where the attribute may change one or more images [N,3,H,W] of a person, soft [1,H,W]; everywhere without
    classes."""
    classes = scorer.scores[0].classes
    return scorer.reader.region(image, classes, _GROWN, _SOFT) if classes else torch.ones_like(image[0, :1])


@torch.no_grad()
def _blended(generator: Generator, scorer: Scorer, person: Person, found: Found) -> torch.Tensor:
    """The picture found, over the person's own outside the union of both regions."""
    photo = picture_of(generator, person)
    made = generator.synthesis(found.ws[None], [level[None, None] for level in found.noise])[0].clamp(-1, 1)
    return photo.lerp(made, _region(scorer, torch.stack([photo, made])))


def _plain(settings: OptimiserSettings, steps: int, rate: float, noise_rate: float) -> OptimiserSettings:
    """These settings at a published rate throughout, without ramps."""
    changed = {"steps": max(2, steps) - 1, "decay_steps": 1, "warmup_steps": 1}
    return OptimiserSettings.model_validate(
        {name: getattr(settings, name) for name in OptimiserSettings.model_fields}
        | changed
        | {"learning_rate": rate, "noise_learning_rate": noise_rate}
    )


def _endless(loss: torch.Tensor, figures: dict[str, torch.Tensor]) -> Verdict:
    """Of a phase that takes all its steps."""
    never = torch.zeros_like(loss, dtype=torch.bool)
    kept = {name: value.detach() for name, value in figures.items()} | {"loss": loss.detach()}
    return Verdict(loss, never, torch.zeros_like(loss), kept)
