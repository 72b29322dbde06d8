"""More pairs from accepted ones, by interpolating their latents: other degrees of a pair, and the people between two.

Within a pair, w(t) = w0 + t (w1 - w0) is the edit done by a share t. Between two pairs a and b of one feature the grid
{a, middle, b} x {before, middle, after} holds a person who is nobody's photo, with the edit half and fully done. Every
child is composed with the feature's own sketch of that degree, passes its recipe's gate, and is labelled with the
degree measured on it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ValidationError

from stylepairs.datagen.augment.interpolation import (
    Person,
    gate_for_share,
    mixed_params,
    person_between,
    with_share,
    without_limits,
)
from stylepairs.datagen.augment.likeness import Likeness, choose_couples, likeness
from stylepairs.datagen.build import quality
from stylepairs.datagen.build.models import Backend, Models, real_backend
from stylepairs.datagen.build.pair_maker import Draft, Eyes, Job, Task, finish_pair, sketched
from stylepairs.datagen.build.quality import Sight
from stylepairs.datagen.build.settings import BuildRecipe, GateSettings, code_version
from stylepairs.datagen.build.shard_runner import (
    BUILD_FILE,
    BuildEvent,
    ShardedPlan,
    fix_settings,
    settings_put_back,
)
from stylepairs.datagen.features import code_digest, is_own_file, load_feature
from stylepairs.datagen.images.files import to_uint8
from stylepairs.datagen.pairs import shards
from stylepairs.datagen.pairs.record import Pair, PairRecord, parent_of
from stylepairs.datagen.portraits.portrait import Portrait
from stylepairs.datagen.portraits.sketch import AnalysedPair
from stylepairs.datagen.reconstruction.reconstruct import Reconstruction
from stylepairs.datagen.reconstruction.rendering import half, render, use_channels_last
from stylepairs.datagen.shell.decode import Damaged, read_json
from stylepairs.datagen.shell.errors import InputError, one_line
from stylepairs.datagen.shell.workers import run_workers

DEFAULT_STEPS = (0.0, 0.25, 0.5, 0.75, 1.0)
# Of the person between two, besides their photo: the middle and the end of the grid.
GRID_STEPS = (0.5, 1.0)
_PARTS = ("before", "latents", "noise")


@dataclass(frozen=True)
class Child:
    """A pair to be made. parents: one id, for another degree of it, or two, for the person half way between them; t:
    the share of the edit that is done."""

    parents: tuple[str, ...]
    t: float


@dataclass(frozen=True)
class AugmentPlan(ShardedPlan):
    """An augmentation that is fully decided: the same plan gives the same shards. Made by `plan_augmentation`.

    records: the accepted pairs by id. inputs: digest of them.
    """

    recipe: BuildRecipe
    pairs: Path
    out: Path
    children: tuple[Child, ...]
    records: Mapping[str, PairRecord] = field(repr=False)
    inputs: str
    generator: str = "embedded"
    seed: int = 0
    shard_size: int = 32
    device: str = "cpu"
    run_feature: bool = False  # the recipe's feature is a file that the user named for this augmentation

    @property
    def job_count(self) -> int:
        return len(self.children)

    def load_models(self, backend: Backend) -> Models:
        return _load_models(self.recipe, self.generator, self.device, self.records, backend)

    def identity(self, models: Models) -> dict[str, Any]:
        children = json.dumps([asdict(child) for child in self.children])
        return self.common_identity(self.recipe, self.seed, self.device, models) | {
            "augmentation_of": self.inputs,
            "children": hashlib.sha256(children.encode()).hexdigest(),
        }

    def make(self, jobs: range, models: Models, backend: Backend, advance: Callable[[float], None]) -> Iterator[Pair]:
        use_channels_last(models.generator)
        width, eyes = self.recipe.reconstruction.batch, Eyes(models.instruments.analyser)
        for start in range(jobs.start, jobs.stop, width):
            numbers = range(start, min(start + width, jobs.stop))
            people = self._people(numbers, models)
            for number, result in zip(numbers, self._rendered(numbers, people, models), strict=True):
                person = people[self.children[number].parents]
                yield self._pair(number, person, result, models, backend, eyes)
                advance(1)

    def _people(self, numbers: range, models: Models) -> dict[tuple[str, ...], Person]:
        """Those whom the pairs of these numbers show, by their parents."""
        people = {}
        for parents in dict.fromkeys(self.children[number].parents for number in numbers):
            pairs = [shards.load_pair(self.pairs, self.records[id], _PARTS) for id in parents]
            people[parents] = person_between(pairs, models.instruments.prior, models.device)
        return people

    def _rendered(
        self, numbers: range, people: Mapping[tuple[str, ...], Person], models: Models
    ) -> list[Reconstruction]:
        width = self.recipe.reconstruction.batch
        befores = render(models.generator, [p.w0 for p in people.values()], [p.noise for p in people.values()], width)
        before_of = dict(zip(people, befores, strict=True))
        chosen = [people[self.children[number].parents] for number in numbers]
        ws = [half(person.w0.lerp(person.w1, self.children[n].t)) for n, person in zip(numbers, chosen, strict=True)]
        afters = render(models.generator, ws, [person.noise for person in chosen], width)
        return [
            Reconstruction(person.w0, w, person.noise, before_of[self.children[number].parents], after, {})
            for number, person, w, after in zip(numbers, chosen, ws, afters, strict=True)
        ]

    def _pair(
        self, number: int, person: Person, result: Reconstruction, models: Models, backend: Backend, eyes: Eyes
    ) -> Pair:
        child, feature = self.children[number], load_feature(self.recipe.feature, run_files=self.run_feature)
        parents = [self.records[id] for id in child.parents]
        sight = _sight(person, result.generated_before, parents, eyes)
        whole = mixed_params([parent.params for parent in parents])
        params = with_share(whole, child.t)
        job = Job(shards.pair_id(number), sight.portrait, params, _source(parents))
        asked_params = feature.Params.model_validate(params)
        if sight.score:
            draft = sketched(job, feature, models, self.recipe.sketch_detail)
            if draft.refused and len(parents) == 1:
                # Whom the feature applies to was settled when the parent was made, by another label map perhaps; of the
                # child, gate and degree decide.
                job = replace(job, params=without_limits(params, feature.Params))
                draft = sketched(job, feature, models, self.recipe.sketch_detail)
        else:
            draft = Draft(job, asked_params, refused=f"{sight.portrait.name}: no face found")
        draft.reconstruction = result
        gate = {}
        if not draft.refused:
            # Of no edit at all some figures are shares of nothing: whether they ask for a change, the whole edit tells.
            asked = draft.params if child.t > 0 else feature.Params.model_validate(whole)
            unchanged = feature.measure(draft.job.portrait, AnalysedPair(sight.portrait, sight.portrait), asked)
            gate = gate_for_share(self.recipe.gate, child.t, unchanged)
        pair = finish_pair(self._task(gate), draft, feature, models, backend, eyes)
        record = replace(pair.record, params=asked_params.model_dump(mode="json"))
        return replace(pair, record=_record(record, child, parents))

    def _task(self, gate: GateSettings) -> Task:
        recipe = self.recipe
        cache = self.out  # nothing is inverted
        return Task(recipe.feature, recipe.inversion, recipe.reconstruction, gate, self.seed, cache, code_version())


def plan_augmentation(
    pairs: Path,
    out: Path,
    *,
    steps: Sequence[float] = DEFAULT_STEPS,
    grid: int = 0,
    generator: str = "embedded",
    seed: int = 0,
    shard_size: int = 32,
    device: str = "cpu",
    perceptual_weights: str | None = None,
    own_feature: Path | None = None,
    workers: int = 1,
    on_event: Callable[[BuildEvent], None] = lambda event: None,
    backend: Backend | None = None,
) -> AugmentPlan:
    """Decide what is made of the accepted pairs of a finished build.

    steps: shares in [0,1] of each pair's edit. grid: for each pair, so many people between it and another pair; for
    more than 0 all portraits are looked at, in `workers` processes. perceptual_weights: the file that the build was
    given, where it was given one; own_feature: the feature's own Python file, where it has one (it is run). Raises
    InputError.
    """
    steps = sorted(set(steps))
    if not steps and grid < 1:
        raise InputError("augment: nothing to make; give --steps, --grid or both")
    if any(not 0 <= t <= 1 for t in steps):
        raise InputError("--steps: shares of the edit must lie between 0 and 1")
    if out.resolve() == pairs.resolve():
        raise InputError(f"{out}: holds the pairs to augment; choose another --out")
    recipe = _recipe(pairs, perceptual_weights, own_feature)
    records = {record.id: record for record in shards.read_index(pairs)}
    if not records:
        raise InputError(f"{pairs}: no accepted pair; `datagen inspect {pairs}` shows why they were rejected")
    children = [Child((id,), t) for id in records for t in steps]
    if grid > 0:
        look = _Look(recipe, pairs, records, generator, device, backend)
        found = look_at_all(look, workers, on_event)
        couples = choose_couples(list(records.values()), found, grid, seed)
        children += [Child(couple, t) for couple in couples for t in GRID_STEPS]
    inputs = hashlib.sha256(json.dumps([asdict(record) for record in records.values()], sort_keys=True).encode())
    return AugmentPlan(
        recipe, pairs, out, tuple(children), records, inputs.hexdigest(), generator, seed, shard_size, device,
        run_feature=own_feature is not None,
    )  # fmt: skip


@dataclass(frozen=True)
class _Look:
    """What looks at the portraits of pairs, in worker processes."""

    recipe: BuildRecipe
    pairs: Path
    records: Mapping[str, PairRecord]
    generator: str
    device: str
    backend: Backend | None

    def __call__(self, report: Callable[[Any], None]) -> Callable[[str], None]:
        fix_settings()
        models = _load_models(self.recipe, self.generator, self.device, self.records, self.backend or real_backend())

        def look(id: str) -> None:
            pair = shards.load_pair(self.pairs, self.records[id], ("before", "latents"))
            assert pair.before is not None
            assert pair.w_before is not None
            portrait = _bare_portrait(pair.record.portrait, pair.record.portrait_digest, pair.before, models.device)
            seen = quality.look_at(portrait, portrait.image, models.instruments.analyser).portrait
            ws = torch.from_numpy(pair.w_before).float().to(models.device)
            report((pair.record.portrait_digest, likeness(seen, models.instruments.prior.whiten(ws))))

        return look


def look_at_all(look: _Look, workers: int, on_event: Callable[[BuildEvent], None]) -> dict[str, Likeness]:
    """What there is to compare of each portrait, by its digest."""
    first = {record.portrait_digest: record.id for record in reversed(list(look.records.values()))}
    found: dict[str, Likeness] = {}

    def keep(message: tuple[str, Likeness]) -> None:
        found[message[0]] = message[1]

    on_event(BuildEvent(note=f"looking at {len(first)} portraits for partners"))
    with settings_put_back():
        run_workers(look, list(first.values()), workers, keep)
    return found


def _recipe(pairs: Path, perceptual_weights: str | None, own_feature: Path | None) -> BuildRecipe:
    """The recipe that a build was made with, as it noted it."""
    path = pairs / BUILD_FILE
    try:
        noted = _BuildNote.model_validate(read_json(path))
    except (Damaged, ValidationError) as error:
        problem = f"cannot be read ({one_line(error)}); it tells the recipe of the pairs"
        raise InputError(f"{path}: {problem}, so build them again") from error
    recipe = noted.recipe
    if noted.augmentation_of is not None:
        raise InputError(f"{pairs}: holds augmented pairs; augment the build that they were made from")
    if "perceptual_weights" in noted.instruments and perceptual_weights is None:
        raise InputError(f"{pairs}: was built with a file of perceptual weights; name it with --perceptual-weights")
    if is_own_file(recipe.feature) and own_feature is None:
        raise InputError(f"{pairs}: made by the feature file {recipe.feature}; name it with --own-feature")
    if own_feature is not None and (noted.feature_code is None or code_digest(str(own_feature)) != noted.feature_code):
        raise InputError(f"{own_feature}: is not the feature that {pairs} was built with ({recipe.feature})")
    feature = recipe.feature if own_feature is None else str(own_feature)
    return recipe.model_copy(update={"perceptual_weights": perceptual_weights, "feature": feature})


class _BuildNote(BaseModel):
    """What an augmentation needs of a build's `build.json`."""

    recipe: BuildRecipe
    instruments: dict[str, str]
    feature_code: str | None = None
    augmentation_of: Any = None


def _load_models(
    recipe: BuildRecipe, generator: str, device: str, records: Mapping[str, PairRecord], backend: Backend
) -> Models:
    models = backend.load_models(generator, recipe.perceptual, recipe.perceptual_weights, device, "none")
    made_with = next(iter(records.values())).generator_digest
    if models.digest != made_with:
        raise InputError(
            f"--generator {generator}: is not the one that the pairs were made with "
            f"(digest {models.digest[:12]}, not {made_with[:12]})"
        )
    if models.instruments.analyser is None:
        raise InputError("augment: needs the face analyser, and its weights are not installed")
    return models


def _bare_portrait(name: str, digest: str, pixels: np.ndarray, device: str) -> Portrait:
    """A portrait of which nothing is known but its pixels [H,W,3] uint8."""
    image = torch.from_numpy(pixels).permute(2, 0, 1).float().to(device) / 127.5 - 1
    size = image.shape[-2:]
    points = torch.zeros(68, 2, device=device)
    return Portrait(
        name, image, torch.zeros(size, dtype=torch.uint8, device=device), torch.zeros_like(image[:1]), points, digest
    )


def _sight(person: Person, generated: torch.Tensor, parents: Sequence[PairRecord], eyes: Eyes) -> Sight:
    """The person's portrait, as the analyser sees it: the photo, or what was generated where there is none."""
    if person.photo is not None:
        pixels, digest = person.photo, parents[0].portrait_digest
    else:
        pixels = to_uint8(generated)
        digest = hashlib.sha256(pixels.tobytes()).hexdigest()
    name = "+".join(parent.portrait for parent in parents)
    last = eyes.last
    if last is None or (last.portrait.name, last.portrait.digest) != (name, digest):
        portrait = _bare_portrait(name, digest, pixels, str(generated.device))
        last = quality.look_at(portrait, portrait.image, eyes.analyser)
    eyes.last = last
    return last


def _source(parents: Sequence[PairRecord]) -> str:
    return "+".join(parent.source_digest or parent.portrait_digest for parent in parents)


def _record(record: PairRecord, child: Child, parents: Sequence[PairRecord]) -> PairRecord:
    """The child's record: on its parents' side of the split, and how it was made."""
    made: dict[str, float | None] = {"augmentation_t": child.t, "augmentation_people": float(len(parents))}
    return replace(
        record,
        split=parents[0].split,
        source_digest=_source(parents) if len(parents) > 1 else parents[0].source_digest,
        figures={**record.figures, **made},
        parents=[parent_of(parent) for parent in parents],
    )
