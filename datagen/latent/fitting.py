"""From samples to a direction with a unit: one call for every method that finds directions."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch

from stylepairs.datagen.images.perceptual import load_perceptual
from stylepairs.datagen.latent.directions import Direction, DirectionInfo, calibrated, direction_in_w
from stylepairs.datagen.latent.methods.coarse_to_fine import Diffusion, fine_boundary, make_pairs
from stylepairs.datagen.latent.methods.ganspace import components, feature_components
from stylepairs.datagen.latent.methods.interfacegan import conditional, fit_boundary
from stylepairs.datagen.latent.methods.sefa import factors
from stylepairs.datagen.latent.methods.stylespace import LEAST_OVERLAP, fit_channels
from stylepairs.datagen.latent.samples import Samples
from stylepairs.datagen.latent.scorers import Scorer, load_scorer
from stylepairs.datagen.portraits.portrait import CLASS
from stylepairs.datagen.reconstruction.prior import WPrior
from stylepairs.datagen.reconstruction.settings import ReconstructionSettings
from stylepairs.datagen.shell.errors import InputError
from stylepairs.datagen.stylegan.generator import Generator

Method = Literal["interfacegan", "ganspace", "sefa", "stylespace"]
METHODS: tuple[str, ...] = get_args(Method)
CALIBRATION_SAMPLES = 24
CHANNEL_SAMPLES = 48
# Pairs of whoever comes. Those that have the attribute most are no typical faces: from 32 bald heads the fine boundary
# of a lower hairline was no better than the coarse one, from 32 of these it is.
_PAIRS_SEED = 5
# What of `Wanted` is of some methods alone: its option, and which.
_TAKEN_BY = {
    "layers": ("--layers", ("interfacegan", "ganspace", "sefa")),
    "conditions": ("--condition", ("interfacegan",)),
    "component": ("--component", ("ganspace", "sefa")),
    "features_px": ("--features", ("ganspace",)),
    "overlap": ("--overlap", ("stylespace",)),
}
_SEARCH_SAMPLES = 4
_SEARCH_COMPONENTS = 12


@dataclass(frozen=True)
class Wanted:
    """What direction is wanted.

    attribute: the score that it is to move. layers: rows of W+, None for all. conditions: scores that it is to leave
    (interfacegan). component: which one (ganspace, sefa); None: the one that moves the attribute most for what it
    moves. features_px: ganspace on the features of the block of this side, None on W. overlap: least share of a
    channel's change that lies in the attribute's region (stylespace).
    """

    attribute: str
    layers: tuple[int, ...] | None = None
    conditions: tuple[str, ...] = ()
    component: int | None = None
    features_px: int | None = None
    overlap: float = LEAST_OVERLAP


def fit(method: Method, generator: Generator, digest: str, samples: Samples, wanted: Wanted) -> Direction:
    """The direction of the method for the wanted attribute, its unit one deviation of the score over the samples.

    generator: on the CPU, of the samples; digest: of whose latents they are. Raises InputError: unknown scores, a score
    that does not vary or that the direction does not move, something wanted that the method knows nothing of.
    """
    for name, (option, methods) in _TAKEN_BY.items():
        if method not in methods and getattr(wanted, name) != getattr(Wanted, name):
            raise InputError(f"{option}: {method} takes none; it is for {', '.join(methods)}")
    w, score = samples.scored(wanted.attribute)
    scorer = load_scorer([wanted.attribute])
    ws = w[:CHANNEL_SAMPLES, None].expand(-1, generator.num_ws, -1)
    if method == "stylespace":
        direction, _ = fit_channels(generator, scorer, ws, digest, wanted.overlap)
    elif method == "interfacegan":
        direction = _boundary(generator, samples, wanted, w, score)
    else:
        direction = _component(method, generator, samples, scorer, wanted)
    info = direction.info.model_copy(update={"generator_digest": digest, "attribute": wanted.attribute})
    around, deviation = ws[:CALIBRATION_SAMPLES], float(score.std())
    return calibrated(replace(direction, info=info), generator, lambda image: scorer(image)[:, 0], around, deviation)


def refine(
    generator: Generator,
    samples: Samples,
    coarse: Direction,
    strength: float,
    pairs: int,
    classes: tuple[str, ...] = (),
    on_pair: Callable[[int, int], None] | None = None,
) -> Direction:
    """The fine boundary of a coarse one: pairs of faces drawn at random from the samples, each edited by `strength` in
    the region of `classes` alone, the attribute's own where there are none; its unit as in `fit`.

    Raises InputError for a direction without attribute, an attribute without region, unknown classes.
    """
    name = coarse.info.attribute
    if not name:
        raise InputError("the coarse direction names no attribute, as a .npy has none; refine a .safetensors of `fit`")
    w, score = samples.scored(name)
    scorer = load_scorer([name])
    region = classes or scorer.scores[0].classes
    unknown = [each for each in region if each not in CLASS]
    if unknown or not region:
        raise InputError(f"{name}: has no region{f' {unknown[0]!r}' if unknown else ''}; name classes with --region")
    prior, perceptual = WPrior.fit(generator), load_perceptual("auto")
    still = ReconstructionSettings.model_validate({"noise_learning_rate": 0.0})  # the boundary is one of latents alone
    tools = Diffusion(generator, scorer.reader, perceptual, prior, still)
    chosen = torch.randperm(len(w), generator=torch.Generator().manual_seed(_PAIRS_SEED))[:pairs]
    ws = w[chosen, None].expand(-1, generator.num_ws, -1)
    info = coarse.info.model_copy(update={"method": "coarse_to_fine", "figures": {}})
    found = fine_boundary(make_pairs(tools, coarse, ws, strength, region, on_pair), info)
    around = w[:CALIBRATION_SAMPLES, None].expand(-1, generator.num_ws, -1)
    return calibrated(found, generator, lambda image: scorer(image)[:, 0], around, float(score.std()))


def _boundary(
    generator: Generator, samples: Samples, wanted: Wanted, w: torch.Tensor, score: torch.Tensor
) -> Direction:
    boundary = fit_boundary(w, score)
    others = [fit_boundary(*samples.scored(name)).normal for name in dict.fromkeys(wanted.conditions)]
    normal = conditional(boundary.normal, others)
    figures = {"accuracy": boundary.accuracy, "class_size": float(boundary.classes)}
    info = DirectionInfo(method="interfacegan", figures=figures)
    return direction_in_w(_unit_length(normal, w, score), generator, wanted.layers, info)


def _unit_length(normal: torch.Tensor, w: torch.Tensor, score: torch.Tensor) -> torch.Tensor:
    """The normal at the length that moves the score by one deviation by the samples' own slope: where to begin."""
    place = (w - w.mean(0)) @ normal
    slope = float((place * (score - score.mean())).mean() / place.var())
    return normal * min(float(score.std()) / max(abs(slope), 1e-9), 3 * float(place.std()))


def _component(method: Method, generator: Generator, samples: Samples, scorer: Scorer, wanted: Wanted) -> Direction:
    """The component asked for, or the one that moves the attribute farthest for the picture's whole change."""
    count = _SEARCH_COMPONENTS if wanted.component is None else wanted.component + 1
    count = min(count, samples.w.shape[1])
    if method == "sefa":
        directions = factors(generator, wanted.layers, count)
        directions = directions * (samples.w @ directions.T).std(0)[:, None]
    elif wanted.features_px is None:
        directions, deviations = components(samples.w, count)
        directions = directions * deviations[:, None]
    else:
        directions, _ = feature_components(generator, samples.w[:2000], wanted.features_px, count)
    info = DirectionInfo(method=method)
    if wanted.component is not None:
        if wanted.component >= len(directions):
            raise InputError(f"component {wanted.component}: there are {len(directions)}, the first is 0")
        return direction_in_w(directions[wanted.component], generator, wanted.layers, info)
    best: tuple[float, Direction] | None = None
    faces = samples.scored(wanted.attribute)[0][:_SEARCH_SAMPLES]
    for index, row in enumerate(directions):
        for layers in [wanted.layers] if wanted.layers is not None else row_ranges(generator.num_ws):
            tried = direction_in_w(row, generator, layers, info.model_copy(update={"figures": {"component": index}}))
            found = _selectivity(tried, generator, scorer, faces)
            if math.isfinite(found) and (best is None or found > best[0]):
                best = found, tried
    if best is None:
        raise InputError(f"{wanted.attribute}: is not seen in any rendering; name a --component, or sample more")
    return best[1]


def row_ranges(num_ws: int) -> list[list[int] | None]:
    """All rows (None), and the coarse, middle and fine thirds of them."""
    ends = [round(num_ws * part / 3) for part in range(4)]
    return [None, *(list(range(low, high)) for low, high in itertools.pairwise(ends) if high > low)]


@torch.no_grad()
def _selectivity(direction: Direction, generator: Generator, scorer: Scorer, w: torch.Tensor) -> float:
    """Change of the attribute, in no unit, over the root mean square change of the picture."""
    ws = w[:, None].expand(-1, generator.num_ws, -1)
    up, down = (direction.render(generator, ws, sign).clamp(-1, 1) for sign in (1.0, -1.0))
    change = (scorer(up)[:, 0] - scorer(down)[:, 0]).nanmean().abs()
    return float(change / (up - down).square().mean().sqrt().clamp_min(1e-6))


def spread(samples: Samples, names: Sequence[str]) -> torch.Tensor:
    """Standard deviation [K] of each score over the samples: the unit of strengths."""
    return torch.stack([samples.scored(name)[1].std() for name in names])
