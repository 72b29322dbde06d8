"""More pairs from accepted ones, by interpolating their latents: other degrees of a pair, and the people between two;
and each once more with hair of another colour.

Within a pair, w(t) = w0 + t (w1 - w0) is the edit done by a share t. Between two pairs a and b of one feature the grid
{a, middle, b} x {before, middle, after} holds a person who is nobody's photo, with the edit half and fully done. What
is made is decided here; `making` makes it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from stylepairs.datagen.augment.likeness import choose_couples
from stylepairs.datagen.augment.making import Child, ChildMaker
from stylepairs.datagen.augment.partners import ParentPairs
from stylepairs.datagen.augment.recoloring import drawn_color
from stylepairs.datagen.build.models import Models
from stylepairs.datagen.build.settings import BuildRecipe
from stylepairs.datagen.build.shard_runner import OnEvent, ShardedPlan
from stylepairs.datagen.features import code_digest, is_own_file, load_feature
from stylepairs.datagen.images.colors import parse_color
from stylepairs.datagen.pairs import shards
from stylepairs.datagen.pairs.record import Pair, PairRecord, as_measured
from stylepairs.datagen.portraits.folders import refuse_portraits
from stylepairs.datagen.shell.decode import Damaged, read_json
from stylepairs.datagen.shell.durable import file_digest
from stylepairs.datagen.shell.errors import InputError, one_line
from stylepairs.datagen.shell.workers import Engine, run_workers

DEFAULT_STEPS = (0.0, 0.25, 0.5, 0.75, 1.0)
# Of the person between two, besides their photo: the middle and the end of the grid.
GRID_STEPS = (0.5, 1.0)
# The feature whose pairs are no longer its own when the hair has another colour.
_COLORS_HAIR = "hair_color"


@dataclass(frozen=True)
class AugmentPlan(ShardedPlan):
    """An augmentation that is fully decided: the same plan gives the same shards. Made by `plan_augmentation`.

    inputs: digest of the parents.
    """

    command = "datagen augment"
    parents: ParentPairs = field(repr=False)
    out: Path
    children: tuple[Child, ...]
    inputs: str
    seed: int = 0
    shard_size: int = 32
    run_feature: bool = False  # the recipe's feature is a file that the user named for this augmentation

    @property
    def recipe(self) -> BuildRecipe:
        """That of the parents."""
        return self.parents.recipe

    @property
    def job_count(self) -> int:
        """See ShardedPlan."""
        return len(self.children)

    def load_models(self) -> Models:
        """See ShardedPlan."""
        return self.parents.load_models()

    def identity(self, models: Models) -> dict[str, Any]:
        """See ShardedPlan."""
        children = json.dumps([asdict(child) for child in self.children])
        return self.common_identity(self.recipe, self.parents.device, models) | {
            "augmentation_of": self.inputs,
            "children": hashlib.sha256(children.encode()).hexdigest(),
        }

    def make(self, jobs: range, models: Models, advance: Callable[[float], None]) -> Iterator[Pair]:
        """See ShardedPlan."""
        feature = load_feature(self.recipe.feature, run_files=self.run_feature)
        parents = self.parents
        maker = ChildMaker(parents.recipe, parents.pairs, parents.records, self.seed, feature, models)
        for pair in maker.make(self.children[jobs.start : jobs.stop], jobs.start):
            yield pair
            advance(1)


def plan_augmentation(  # noqa: PLR0913 - all but two by name
    pairs: Path,
    out: Path,
    *,
    steps: Sequence[float] = DEFAULT_STEPS,
    grid: int = 0,
    colors: Sequence[str] = (),
    generator: str = "embedded",
    seed: int = 0,
    shard_size: int = 32,
    device: str = "cpu",
    perceptual_weights: str | None = None,
    own_feature: Path | None = None,
    workers: int | None = 1,
    on_event: OnEvent = lambda event: None,
    run: Engine = run_workers,
) -> AugmentPlan:
    """Decide what is made of the accepted pairs of a finished build.

    steps: shares in [0,1] of each pair's edit. grid: for each pair, so many people between it and another pair; for
    more than 0 all portraits are looked at, in `workers` processes of `run`. colors: each pair once more with hair of
    one of them, drawn by the seed, in both pictures. perceptual_weights: the file that the build was given, where it
    was given one; own_feature: the feature's own Python file, where it has one (it is run). Raises InputError.
    """
    steps = sorted(set(steps))
    if not steps and grid < 1 and not colors:
        raise InputError("augment: nothing to make; give --steps, --grid or --colors")
    if any(not 0 <= t <= 1 for t in steps):
        raise InputError("--steps: shares of the edit must lie between 0 and 1")
    refuse_portraits(out)
    if out.resolve() == pairs.resolve():
        raise InputError(f"{out}: holds the pairs to augment; choose another --out")
    recipe = _recipe(pairs, perceptual_weights, own_feature)
    records = {record.id: record for record in shards.read_index(pairs)}
    if not records:
        raise InputError(f"{pairs}: no accepted pair; `datagen inspect {pairs}` shows why they were rejected")
    if not next(iter(records.values())).generator_digest:
        raise InputError(f"{pairs}: imported without latents; import into another --out with --generator, then augment")
    parents = ParentPairs(recipe, pairs, records, generator, device)
    if colors and _COLORS_HAIR in recipe.feature.split("+"):
        raise InputError(f"--colors: {recipe.feature} colours the hair itself; leave it out")
    for color in colors:
        parse_color(color)
    children = [Child((id,), t) for id in records for t in steps]
    if colors:
        children += [Child((id,), 1.0, drawn_color(colors, seed, id)) for id in records]
    if grid > 0:
        couples = choose_couples(list(records.values()), parents.likenesses(workers, on_event, run), grid, seed)
        children += [Child(couple, t) for couple in couples for t in GRID_STEPS]
    return AugmentPlan(
        parents, out, tuple(children), _digest(records.values()), seed, shard_size, run_feature=own_feature is not None
    )


def _digest(records: Iterable[PairRecord]) -> str:
    """sha256 over what is known of the parents, the same whether a manifest tells it or their shards."""
    told = json.dumps([asdict(as_measured(record)) for record in records], sort_keys=True)
    return hashlib.sha256(told.encode()).hexdigest()


def _recipe(pairs: Path, perceptual_weights: str | None, own_feature: Path | None) -> BuildRecipe:
    """The recipe that a build was made with, as it noted it."""
    path = pairs / shards.BUILD_FILE
    if (pairs / shards.MERGE_FILE).exists():
        raise InputError(f"{pairs}: holds pairs of several builds; augment each, then merge")
    try:
        noted = _BuildNote.model_validate(read_json(path, shards.MAX_BUILD_BYTES))
    except (Damaged, ValidationError) as error:
        problem = f"cannot be read ({one_line(error)}); it tells the recipe of the pairs"
        raise InputError(f"{path}: {problem}, so build them again") from error
    recipe = noted.recipe
    if noted.augmentation_of is not None:
        raise InputError(f"{pairs}: holds augmented pairs; augment the build that they were made from")
    if "perceptual_weights" in noted.instruments and perceptual_weights is None:
        raise InputError(f"{pairs}: was built with a file of perceptual weights; name it with --perceptual-weights")
    if perceptual_weights is not None:
        digest = file_digest(Path(perceptual_weights), "; name the build's")
        if noted.instruments.get("perceptual_weights", digest) != digest:
            raise InputError(f"{perceptual_weights}: are not the perceptual weights that {pairs} was built with")
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
