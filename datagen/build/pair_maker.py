"""Makes the pairs of a list of jobs: sketch, inversion (cached), reconstruction, composition, figures, judgement."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel

from stylepairs.datagen.build import quality
from stylepairs.datagen.build.inversion_cache import InversionCache
from stylepairs.datagen.build.models import Backend, Models
from stylepairs.datagen.build.settings import GateSettings
from stylepairs.datagen.features import load_feature
from stylepairs.datagen.features.feature import Feature, asked_degree
from stylepairs.datagen.images.files import to_uint8
from stylepairs.datagen.pairs.record import Pair, PairRecord, split_of
from stylepairs.datagen.portraits.portrait import Portrait
from stylepairs.datagen.portraits.sketch import AnalysedPair, Sketch, SketchRefused
from stylepairs.datagen.reconstruction.reconstruct import Problem
from stylepairs.datagen.reconstruction.settings import InversionSettings, ReconstructionSettings

Advance = Callable[[float], None]
# Of a pair's time; only for the progress bar.
INVERSION_SHARE = 0.3
# Of the pairs that are in the making together: at 1024 px one takes about 0.1 GB of images, masks and noise maps.
PIXELS_IN_HAND = 16 * 1024**2


@dataclass(frozen=True)
class Job:
    """One pair to be made. source: digest of the photo that the portrait was cut from, which decides the split."""

    id: str
    portrait: Portrait
    params: dict[str, Any]
    source: str


@dataclass(frozen=True)
class Task:
    """What is the same for all pairs of a build."""

    feature: str
    inversion: InversionSettings
    reconstruction: ReconstructionSettings
    gate: GateSettings
    seed: int
    cache_folder: Path
    code_version: str
    sketch_detail: float = 1.0


@dataclass
class Draft:
    """A pair in the making; `refused` is the reason why it will not be made.

    inversion None: it was not inverted now, but made of the latents of other pairs.
    """

    job: Job
    params: BaseModel
    sketch: Sketch | None = None
    inversion: Any = None
    reconstruction: Any = None
    refused: str = ""
    figures: dict[str, float] = field(default_factory=dict)


def make_pairs(task: Task, jobs: Sequence[Job], models: Models, backend: Backend, advance: Advance) -> Iterator[Pair]:
    """The pairs of `jobs`, in order, accepted or not. advance(x) reports x pairs' worth of work done (1 a job in all).

    A pair depends on its portrait, parameters, seed and settings alone: not on its neighbours, nor on what was cached.
    Raises InputError for a gate that names figures that nothing measures, and for a full disk (the cache's).
    """
    feature = load_feature(task.feature, run_files=True)  # tasks are made of recipes
    eyes = Eyes(models.instruments.analyser)
    together = max(1, PIXELS_IN_HAND // models.image_px**2)
    for start in range(0, len(jobs), together):
        drafts = [sketched(job, feature, models, task.sketch_detail) for job in jobs[start : start + together]]
        _check_gate(task, drafts, feature, models)
        _invert(task, drafts, models, backend, advance)
        _reconstruct(task, drafts, models, backend, advance)
        while drafts:
            yield finish_pair(task, drafts.pop(0), feature, models, backend, eyes)


@dataclass
class Eyes:
    """Looks at pairs; the portrait that was looked at last is not looked at again for its next pair."""

    analyser: quality.Analyser | None
    last: quality.Sight | None = None

    def look(self, portrait: Portrait, after: torch.Tensor) -> tuple[quality.Sight, quality.Sight]:
        if self.last is None or (self.last.portrait.name, self.last.portrait.digest) != (
            portrait.name,
            portrait.digest,
        ):
            self.last = quality.look_at(portrait, portrait.image, self.analyser)
        return self.last, quality.look_at(portrait, after, self.analyser)


def sketched(job: Job, feature: Feature, models: Models, sketch_detail: float = 1.0) -> Draft:
    """The draft of a job with its sketch, or why there is none; sketch_detail: of the recipe."""
    portrait = _on_device(job.portrait.resized(models.image_px), models.device)
    draft = Draft(replace(job, portrait=portrait), feature.Params.model_validate(job.params))
    try:
        draft.params = feature.settled(portrait, draft.params)
        draft.sketch = feature.sketch(portrait, draft.params).with_detail(sketch_detail)
    except SketchRefused as refusal:
        draft.refused = str(refusal)
    return draft


def _check_gate(task: Task, drafts: list[Draft], feature: Feature, models: Models) -> None:
    """Find a gate that names unknown figures with a pair in which nothing was edited, before minutes of work."""
    stages = ("inversion_", "reconstruction_")
    gate = {name: threshold for name, threshold in task.gate.items() if not name.startswith(stages)}
    draft = next((draft for draft in drafts if draft.sketch is not None), None)
    if draft is None or draft.sketch is None:
        return
    portrait = draft.job.portrait
    images = quality.Images(portrait.image, portrait.image, portrait.image, draft.sketch.edit_mask)
    figures = quality.measure_pair(portrait, draft.sketch, images, None, models.instruments)
    quality.check_gate(gate, figures | feature.measure(portrait, AnalysedPair(portrait, portrait), draft.params))


def _invert(task: Task, drafts: list[Draft], models: Models, backend: Backend, advance: Advance) -> None:
    """Give every draft its inversion: from the cache, or made now and kept there."""
    instruments = models.instruments
    settings, start = task.inversion, None
    if models.start is not None:
        settings = settings.near()
        start = partial(models.start, precision=settings.precision)
    context = models.instruments.names | {"device": models.device.partition(":")[0]}
    context |= {key: models.digests[key] for key in ("perceptual_weights", "encoder") if key in models.digests}
    cache = InversionCache(task.cache_folder, models.digest, settings.model_dump(mode="json"), context)
    portraits = {draft.job.portrait.name: draft.job.portrait for draft in drafts if not draft.refused}
    inversions = {name: cache.load(portrait) for name, portrait in portraits.items()}
    wanted = [portraits[name] for name, inversion in inversions.items() if inversion is None]
    progress = _share(advance, INVERSION_SHARE * len(drafts), len(wanted))
    made: list[Any] = []
    if wanted:
        made = backend.invert(
            models.generator, instruments.perceptual, wanted, settings, instruments.prior, progress, start
        )
    for portrait, inversion in zip(wanted, made, strict=True):
        inversions[portrait.name] = inversion
        if _sound(inversion.figures, inversion.ws, inversion.image, *inversion.noise):
            cache.store(portrait, inversion)
    for draft in drafts:
        draft.inversion = inversions.get(draft.job.portrait.name)
        found = draft.inversion
        if found is not None and not _sound(found.figures, found.ws, found.image, *found.noise):
            draft.refused = f"inversion {quality.NOT_FINITE}"
    progress(len(wanted), len(wanted))


def _reconstruct(task: Task, drafts: list[Draft], models: Models, backend: Backend, advance: Advance) -> None:
    """Give every draft that is not refused its reconstruction; one call for each size of sketch."""
    by_size: dict[int, list[Draft]] = {}
    for draft in drafts:
        if draft.sketch is not None and not draft.refused:
            by_size.setdefault(draft.sketch.reference_px, []).append(draft)
    instruments = models.instruments
    for wanted in by_size.values():
        problem = Problem(
            models.generator,
            instruments.perceptual,
            instruments.prior,
            [draft.job.portrait for draft in wanted],
            [draft.inversion for draft in wanted],
            [draft.sketch for draft in wanted],
            task.reconstruction,
        )
        results = backend.reconstruct(problem, _share(advance, (1 - INVERSION_SHARE) * len(wanted), len(wanted)))
        for draft, result in zip(wanted, results, strict=True):
            draft.reconstruction = result
            images = (result.generated_before, result.generated_after)
            if not _sound(result.figures, *images, result.ws_before, result.ws_after, *result.noise):
                draft.refused = quality.NOT_FINITE
    advance((1 - INVERSION_SHARE) * sum(bool(draft.refused and draft.reconstruction is None) for draft in drafts))


def _share(advance: Advance, work: float, count: int) -> Callable[[int, int], None]:
    """A progress(done, all) that reports `work` in all, however often it is called."""
    reported = 0.0

    def progress(done: int, total: int) -> None:
        nonlocal reported
        now = work * (done / total if total else 1)
        if now > reported:
            advance(now - reported)
            reported = now

    return progress


def finish_pair(task: Task, draft: Draft, feature: Feature, models: Models, backend: Backend, eyes: Eyes) -> Pair:
    """The pair of a draft; of a refused one only what is sound: before, mask and sketch."""
    portrait, sketch, result = draft.job.portrait, draft.sketch, draft.reconstruction
    if draft.refused or sketch is None:
        parts: dict[str, Any] = (
            {} if sketch is None else {"mask": _mask_pixels(sketch.edit_mask), "sketch": to_uint8(sketch.image)}
        )
        return Pair(_record(task, draft, models, [draft.refused]), before=to_uint8(portrait.image), **parts)
    composed = backend.compose(portrait, result, sketch)
    images = quality.Images(result.generated_before, result.generated_after, composed.after, composed.mask)
    draft.figures = _all_figures(draft, feature, images, models, eyes)
    _, reasons = quality.judge(draft.figures, task.gate)
    if not _finite(composed.after):
        return Pair(_record(task, draft, models, [quality.NOT_FINITE]), before=to_uint8(portrait.image))
    return Pair(
        _record(task, draft, models, reasons),
        before=to_uint8(portrait.image),
        after=to_uint8(composed.after),
        mask=_mask_pixels(composed.mask),
        sketch=to_uint8(sketch.image),
        generated_before=to_uint8(result.generated_before),
        generated_after=to_uint8(result.generated_after),
        w_before=_half(result.ws_before),
        w_after=_half(result.ws_after),
        noise=[_half(noise) for noise in result.noise],
    )


def _all_figures(
    draft: Draft, feature: Feature, images: quality.Images, models: Models, eyes: Eyes
) -> dict[str, float]:
    """The gate's figures, the feature's own, and those of the optimisation under inversion_ and reconstruction_."""
    portrait, result = draft.job.portrait, draft.reconstruction
    assert draft.sketch is not None
    latents = result.ws_before, result.ws_after
    sights = eyes.look(portrait, images.after)
    figures = quality.measure_pair(portrait, draft.sketch, images, latents, models.instruments, sights)
    figures |= feature.measure(portrait, AnalysedPair(sights[0].portrait, sights[1].portrait), draft.params)
    for stage, found in (("inversion", draft.inversion), ("reconstruction", result)):
        if found is not None:
            figures |= {f"{stage}_{name.replace('-', '_')}": float(value) for name, value in found.figures.items()}
    return figures


def _record(task: Task, draft: Draft, models: Models, reasons: list[str]) -> PairRecord:
    return PairRecord(
        id=draft.job.id,
        feature=task.feature,
        params=draft.params.model_dump(mode="json"),
        degree=_degree(draft),
        accepted=not reasons,
        reasons=reasons,
        figures=dict(draft.figures),
        portrait=draft.job.portrait.name,
        portrait_digest=draft.job.portrait.digest,
        source_digest=draft.job.source,
        generator_digest=models.digest,
        seed=task.seed,
        code_version=task.code_version,
        split=split_of(draft.job.source),
    )


def _degree(draft: Draft) -> float:
    """The degree that the feature measured, else the one that was asked for, in [0,1]."""
    asked = asked_degree(draft.params)
    measured = draft.figures.get("degree", asked)
    return min(max(measured if math.isfinite(measured) else asked, 0.0), 1.0)


def _sound(figures: dict[str, float], *tensors: torch.Tensor) -> bool:
    """Whether an optimisation stayed finite: by its own account (it may have gone back to a good state) and now."""
    return figures.get("finite", 1.0) > 0 and _finite(*tensors)


def _finite(*tensors: torch.Tensor) -> bool:
    return all(bool(tensor.isfinite().all()) for tensor in tensors)


def _on_device(portrait: Portrait, device: str) -> Portrait:
    names = ("image", "label", "hair", "points68")
    return replace(portrait, **{name: getattr(portrait, name).to(device) for name in names})


def _mask_pixels(mask: torch.Tensor) -> np.ndarray:
    """[1,H,W] in [0,1] -> [H,W] uint8, rounded up: where the stored mask is 0 nothing at all was edited.

    Less a thousandth, so that what is in steps of 1/255 stays what it is.
    """
    return (mask[0].detach().clamp(0, 1) * 255 - 1e-3).ceil().clamp(0, 255).to(torch.uint8).cpu().numpy()


def _half(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().to(torch.float16).cpu().numpy()
