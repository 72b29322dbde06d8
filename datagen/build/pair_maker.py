"""Makes the pairs of a build: sketch, inversion (cached), reconstruction, composition, figures, judgement."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path

import torch

from stylepairs.datagen.build import quality
from stylepairs.datagen.build.inversion_cache import InversionCache
from stylepairs.datagen.build.models import Models
from stylepairs.datagen.build.settings import BuildRecipe
from stylepairs.datagen.build.unfinished_pair import (
    PairAnalyser,
    UnfinishedPair,
    WantedPair,
    finish_pair,
    sketched,
)
from stylepairs.datagen.features import load_feature
from stylepairs.datagen.features.feature import Feature
from stylepairs.datagen.latent.edits import edit_along
from stylepairs.datagen.pairs.record import Pair
from stylepairs.datagen.portraits.sketch import AnalysedPair, SketchRefused
from stylepairs.datagen.reconstruction.inversion import Inversion, invert
from stylepairs.datagen.reconstruction.reconstruct import Problem, reconstruct
from stylepairs.datagen.reconstruction.settings import InversionSettings
from stylepairs.datagen.shell.decode import finite
from stylepairs.datagen.shell.durable import make_folder
from stylepairs.datagen.shell.errors import InputError

Advance = Callable[[float], None]
# Of a pair's time; only for the progress bar.
INVERSION_SHARE = 0.3
# Of the pairs that are in the making together: at 1024 px one takes about 0.1 GB of images, masks and noise maps.
PIXELS_IN_HAND = 16 * 1024**2


def make_pairs(
    recipe: BuildRecipe, wanted: Iterable[WantedPair], models: Models, seed: int, cache: Path, advance: Advance
) -> Iterator[Pair]:
    """The wanted pairs, in order, accepted or not. advance(x) reports x pairs' worth of work done (1 a pair in all).

    A pair depends on its portrait, parameters, seed and settings alone: not on its neighbours, nor on what was in the
    folder `cache`. Raises InputError for a gate that names figures that nothing measures, for a feature that names its
    own as those of every pair are named, and for a full disk (the cache's).
    """
    feature = load_feature(recipe.feature, run_files=True)
    analyser = PairAnalyser(models.instruments.analyser)
    together = max(1, PIXELS_IN_HAND // models.image_px**2)
    coming = iter(wanted)
    while pairs := [sketched(one, feature, models, recipe.sketch_detail) for one in islice(coming, together)]:
        _check_gate(recipe, pairs, feature, models)
        invert_pairs(recipe.inversion, pairs, models, cache, advance)
        reconstruct_pairs(recipe, pairs, models, advance)
        while pairs:
            yield finish_pair(pairs.pop(0), recipe, seed, feature, models, analyser)


def _check_gate(recipe: BuildRecipe, pairs: list[UnfinishedPair], feature: Feature, models: Models) -> None:
    """Find a gate that names unknown figures with a pair in which nothing was edited, before minutes of work."""
    stages = ("inversion_", "reconstruction_")
    gate = {name: threshold for name, threshold in recipe.gate.items() if not name.startswith(stages)}
    for pair in pairs:
        if pair.sketch is not None:
            portrait = pair.portrait
            images = quality.Images(portrait.image, portrait.image, portrait.image, pair.sketch.edit_mask)
            figures = quality.measure_pair(portrait, pair.sketch, images, None, models.instruments)
            try:
                own = feature.measure(portrait, AnalysedPair(portrait, portrait), pair.params)
            except SketchRefused:  # see `finish_pair`
                continue
            if hidden := ", ".join(filter(quality.is_common, own)):
                taken = f"its measure gives {hidden}, which is what every pair is judged by"
                raise InputError(f"feature {recipe.feature!r}: {taken}; name it otherwise")
            quality.check_gate(gate, figures | own)
            return


def invert_pairs(
    settings: InversionSettings, pairs: list[UnfinishedPair], models: Models, folder: Path, advance: Advance
) -> None:
    """Give every pair its inversion: from the cache, or made now and kept there."""
    settings = models.begun(settings)
    start = None if models.start is None else partial(models.start, precision=settings.precision)
    cache = _cache(settings, models, folder)
    portraits = {pair.portrait.name: pair.portrait for pair in pairs if not pair.refused}
    inversions = {name: cache.load(portrait) for name, portrait in portraits.items()}
    missing = [portraits[name] for name, inversion in inversions.items() if inversion is None]
    progress = _share(advance, INVERSION_SHARE * len(pairs))
    if missing:
        make_folder(folder)  # before the work: nothing may be written there
        perceptual, prior = models.instruments.perceptual, models.instruments.prior
        made = invert(models.generator, perceptual, missing, settings, prior, progress, start)
        for portrait, inversion in zip(missing, made, strict=True):
            inversions[portrait.name] = inversion
            if _is_sound(inversion):
                cache.store(portrait, inversion)
    for pair in pairs:
        pair.inversion = inversions.get(pair.portrait.name)
        if pair.inversion is not None and not _is_sound(pair.inversion):
            pair.refused = f"inversion {quality.NOT_FINITE}"
    progress(len(missing), len(missing))


def _cache(settings: InversionSettings, models: Models, folder: Path) -> InversionCache:
    context = models.instruments.names | {"device": models.device.partition(":")[0]}
    context |= {key: models.digests[key] for key in ("perceptual_weights", "encoder") if key in models.digests}
    return InversionCache(folder, models.digest, settings.model_dump(mode="json"), context)


def reconstruct_pairs(recipe: BuildRecipe, pairs: list[UnfinishedPair], models: Models, advance: Advance) -> None:
    """Give every pair that is not refused its reconstruction; one call for each size of sketch."""
    settings = models.begun(recipe.reconstruction)
    by_size: dict[int, list[UnfinishedPair]] = {}
    for pair in pairs:
        if pair.sketch is not None and not pair.refused:
            by_size.setdefault(pair.sketch.reference_px, []).append(pair)
        else:
            advance(1 - INVERSION_SHARE)
    for group in by_size.values():
        problem = Problem(
            models.generator,
            models.instruments.perceptual,
            models.instruments.prior,
            [pair.portrait for pair in group],
            [pair.inversion for pair in group if pair.inversion is not None],
            [pair.sketch for pair in group if pair.sketch is not None],
            settings,
        )
        report = _share(advance, (1 - INVERSION_SHARE) * len(group))
        results = reconstruct(problem, report) if models.edit is None else edit_along(problem, models.edit, report)
        for pair, result in zip(group, results, strict=True):
            pair.reconstruction = result
            images = (result.generated_before, result.generated_after)
            if not _stayed_finite(result.figures, *images, result.ws_before, result.ws_after, *result.noise):
                pair.refused = quality.NOT_FINITE


def _share(advance: Advance, work: float) -> Callable[[int, int], None]:
    """A progress(done, all) that reports `work` in all, however often it is called."""
    reported = 0.0

    def progress(done: int, total: int) -> None:
        nonlocal reported
        now = work * (done / total if total else 1)
        if now > reported:
            advance(now - reported)
            reported = now

    return progress


def _is_sound(inversion: Inversion) -> bool:
    return _stayed_finite(inversion.figures, inversion.ws, inversion.image, *inversion.noise)


def _stayed_finite(figures: dict[str, float], *tensors: torch.Tensor) -> bool:
    """Whether an optimisation did, by its own account (it may have gone back to a good state) and now."""
    return figures.get("finite", 1.0) > 0 and finite(tensors)
