"""Makes the children of pairs: rendered from interpolated latents, composed with the feature's own sketch of that
degree, judged by their recipe's gate, labelled with the degree measured on them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stylepairs.datagen.augment.interpolation import (
    Person,
    gate_for_share,
    mixed_params,
    person_between,
    with_share,
    without_limits,
)
from stylepairs.datagen.augment.recoloring import recolored
from stylepairs.datagen.build.models import Models
from stylepairs.datagen.build.quality import AnalysedPortrait
from stylepairs.datagen.build.settings import BuildRecipe
from stylepairs.datagen.build.unfinished_pair import PairAnalyser, UnfinishedPair, WantedPair, finish_pair, sketched
from stylepairs.datagen.features.feature import Feature
from stylepairs.datagen.images.files import to_uint8
from stylepairs.datagen.pairs import shards
from stylepairs.datagen.pairs.record import Pair, PairRecord, parent_of
from stylepairs.datagen.portraits.portrait import Portrait, bare_portrait
from stylepairs.datagen.portraits.sketch import AnalysedPair, Sketch, SketchRefused
from stylepairs.datagen.reconstruction.reconstruct import Reconstruction
from stylepairs.datagen.reconstruction.rendering import half, render, use_channels_last

_PARTS = ("before", "after", "latents", "noise")
People = dict[tuple[str, ...], Person]


@dataclass(frozen=True)
class Child:
    """A pair to be made. parents: one id, for another degree of it, or two, for the person half way between them; t:
    the share of the edit that is done; color: that of the hair in both pictures, "" for its own."""

    parents: tuple[str, ...]
    t: float
    color: str = ""


@dataclass(frozen=True)
class ChildMaker:
    """Makes children of the accepted pairs `records`, by id, of the folder `pairs`."""

    recipe: BuildRecipe
    pairs: Path
    records: Mapping[str, PairRecord]
    seed: int
    feature: Feature
    models: Models

    def make(self, children: Sequence[Child], first: int) -> Iterator[Pair]:
        """The pairs of children, in order, whose numbers begin at `first`; so many are rendered together as the
        recipe's reconstruction takes."""
        use_channels_last(self.models.generator)
        width = self.recipe.reconstruction.batch
        analyser = PairAnalyser(self.models.instruments.analyser)
        for start in range(0, len(children), width):
            group = children[start : start + width]
            people = self._people(group)
            for number, (child, result) in enumerate(zip(group, self._rendered(group, people), strict=True), start):
                yield self._pair(shards.pair_id(first + number), child, people[child.parents], result, analyser)

    def _people(self, group: Sequence[Child]) -> People:
        """Those whom the children show, by their parents."""
        people = {}
        for parents in dict.fromkeys(child.parents for child in group):
            pairs = [shards.load_pair(self.pairs, self.records[id], _PARTS) for id in parents]
            people[parents] = person_between(pairs, self.models.instruments.prior, self.models.device)
        return people

    def _rendered(self, group: Sequence[Child], people: People) -> list[Reconstruction]:
        generator, width = self.models.generator, self.recipe.reconstruction.batch
        befores = render(generator, [p.w0 for p in people.values()], [p.noise for p in people.values()], width)
        before_of = dict(zip(people, befores, strict=True))
        chosen = [people[child.parents] for child in group]
        ws = [half(person.w0.lerp(person.w1, child.t)) for child, person in zip(group, chosen, strict=True)]
        afters = render(generator, ws, [person.noise for person in chosen], width)
        return [
            Reconstruction(person.w0, w, person.noise, before_of[child.parents], after, {})
            for child, person, w, after in zip(group, chosen, ws, afters, strict=True)
        ]

    def _pair(self, id: str, child: Child, person: Person, result: Reconstruction, analyser: PairAnalyser) -> Pair:
        parents = [self.records[parent] for parent in child.parents]
        analysed = analyser.before(_portrait(person, result.generated_before, parents))
        mixed = mixed_params([parent.params for parent in parents])
        whole = self._directed(mixed, parents[0])
        wanted = WantedPair(id, analysed.portrait, with_share(whole, child.t), _source(parents))
        pair = _running_as(parents[0], self._sketched(wanted, analysed, parents))
        pair.reconstruction = result
        recipe = self.recipe
        if child.color and not pair.refused:
            pair, analyser = self._recolored(pair, parents[0], child.color), PairAnalyser(analyser.analyser)
            analysed = analyser.before(pair.portrait)
        if not pair.refused:
            # Of no edit at all some figures are shares of nothing: whether they ask for a change, the whole edit tells.
            params_model = self.feature.Params
            asked = pair.params if child.t > 0 else params_model.model_validate(without_limits(whole, params_model))
            same = AnalysedPair(analysed.portrait, analysed.portrait)
            try:
                unchanged = self.feature.measure(pair.portrait, same, asked)
                gate = gate_for_share(recipe.gate, child.t, unchanged)
                recipe = recipe.model_copy(update={"gate": gate})
            except SketchRefused as refusal:
                pair.refused = str(refusal)
        if child.t == 0 and pair.sketch is not None:
            pair.sketch = _no_edit(pair.portrait, pair.sketch)
        made = finish_pair(pair, recipe, self.seed, self.feature, self.models, analyser)
        params = self.feature.Params.model_validate(with_share(mixed, child.t)).model_dump(mode="json")
        made = replace(made, record=_record(replace(made.record, params=params), child, parents))
        return _without_latents(made) if child.color else made

    def _directed(self, params: dict[str, Any], parent: PairRecord) -> dict[str, Any]:
        """The parameters as of pairs that run as the parent does: of a child the portrait may say otherwise."""
        if _is_listed_backwards(parent):
            return params
        made = self.feature.directed(self.feature.Params.model_validate(params), parent.backwards)
        return made.model_dump(mode="json")

    def _recolored(self, pair: UnfinishedPair, parent: PairRecord, color: str) -> UnfinishedPair:
        """The pair with hair of that colour, sketched anew: the portrait's digest draws the same strands."""
        assert pair.sketch is not None
        assert pair.reconstruction is not None
        portrait, result = recolored(pair.portrait, pair.sketch, pair.reconstruction, color)
        detail = _sketch_detail(self.recipe, parent)
        made = sketched(replace(pair.wanted, portrait=portrait), self.feature, self.models, detail)
        made.reconstruction = result
        return _running_as(parent, made)

    def _sketched(
        self, wanted: WantedPair, analysed: AnalysedPortrait, parents: Sequence[PairRecord]
    ) -> UnfinishedPair:
        """The pair with its sketch, or refused, for one without a face always."""
        feature, models, detail = self.feature, self.models, _sketch_detail(self.recipe, parents[0])
        if not analysed.score:
            params = feature.Params.model_validate(wanted.params)
            return UnfinishedPair(wanted, params, refused=f"{wanted.portrait.name}: no face found")
        pair = sketched(wanted, feature, models, detail)
        if pair.refused and len(parents) == 1:
            # Whom the feature applies to was settled when the parent was made, by another label map perhaps; of the
            # child, gate and degree decide.
            wanted = replace(wanted, params=without_limits(wanted.params, feature.Params))
            pair = sketched(wanted, feature, models, detail)
        return pair


def portrait_of_pixels(name: str, digest: str, pixels: np.ndarray, device: str) -> Portrait:
    """A portrait of which nothing is known but its pixels [H,W,3] uint8."""
    return bare_portrait(name, torch.from_numpy(pixels).permute(2, 0, 1).float().to(device) / 127.5 - 1, digest)


def _portrait(person: Person, generated: torch.Tensor, parents: Sequence[PairRecord]) -> Portrait:
    """The person's picture, not analysed yet: the photo, or what was generated where there is none."""
    if person.photo is not None:
        pixels, digest = person.photo, parents[0].portrait_digest
    else:
        pixels = to_uint8(generated)
        digest = hashlib.sha256(pixels.tobytes()).hexdigest()
    return portrait_of_pixels("+".join(parent.portrait for parent in parents), digest, pixels, str(generated.device))


def _sketch_detail(recipe: BuildRecipe, parent: PairRecord) -> float:
    """Of an imported pair the latents hold the edit, while the feature's sketch would be another one."""
    return 0.0 if parent.origin else recipe.sketch_detail


def _no_edit(portrait: Portrait, sketch: Sketch) -> Sketch:
    """The sketch of which composition makes the photo: what generator and inversion err by is no edit."""
    return replace(sketch, image=portrait.image, sketch_detail=1.0, harmony=0.0, photo_detail=0.0, parts=())


def _is_listed_backwards(parent: PairRecord) -> bool:
    """Whether an import was told so, which says nothing of what the feature draws."""
    return parent.backwards and bool(parent.origin)


def _running_as(parent: PairRecord, pair: UnfinishedPair) -> UnfinishedPair:
    """The pair in the direction of its parent; refused where the feature's edit of the portrait goes the other way."""
    if pair.sketch is not None and pair.sketch.backwards != parent.backwards:
        if _is_listed_backwards(parent):
            pair.sketch = replace(pair.sketch, backwards=True)
        else:
            pair.refused = (
                f"{pair.portrait.name}: the edit of this picture runs the other way than that of pair {parent.id}"
            )
    return pair


def _source(parents: Sequence[PairRecord]) -> str:
    return "+".join(parent.source_digest or parent.portrait_digest for parent in parents)


def _without_latents(pair: Pair) -> Pair:
    """The pair without latents, which hold the hair's own colour."""
    record = replace(pair.record, generator_digest="")
    return replace(pair, record=record, w_before=None, w_after=None, noise=None)


def _record(record: PairRecord, child: Child, parents: Sequence[PairRecord]) -> PairRecord:
    """The child's record: on its parents' side of the split, and how it was made."""
    made: dict[str, float | None] = {"augmentation_t": child.t, "augmentation_people": float(len(parents))}
    return replace(
        record,
        split=parents[0].split,
        source_digest=_source(parents) if len(parents) > 1 else parents[0].source_digest,
        figures={**record.figures, **made},
        origin={"hair": child.color} if child.color else {},
        parents=[parent_of(parent) for parent in parents],
    )
