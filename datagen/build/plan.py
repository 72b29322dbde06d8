"""Builds pairs from a recipe and a folder of portraits: a fixed list of jobs, cut into shards.

Jobs are the portraits, sorted by name, times their parameter draws; a shard is a fixed range of jobs. How shards are
made, resumed and shared out is `building`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from stylepairs.datagen.build.draws import combinations, draw
from stylepairs.datagen.build.models import Backend, Models, real_backend
from stylepairs.datagen.build.pair_maker import Job, Task, make_pairs
from stylepairs.datagen.build.settings import BuildRecipe, code_version
from stylepairs.datagen.build.shard_runner import BuildEvent, BuildResult, ShardedPlan, build_pairs
from stylepairs.datagen.features import code_digest, load_feature
from stylepairs.datagen.pairs import shards
from stylepairs.datagen.pairs.record import Pair
from stylepairs.datagen.recipe import validate_params
from stylepairs.datagen.shell.errors import InputError

__all__ = [
    "BuildEvent", "BuildPlan", "BuildResult", "build_pairs", "plan_build",
]  # fmt: skip


@dataclass(frozen=True)
class BuildPlan(ShardedPlan):
    """A build that is fully decided: the same plan gives the same shards. Made by `plan_build`.

    inputs: digest of all that the build reads of its portraits.
    """

    recipe: BuildRecipe
    portraits: Path
    names: tuple[str, ...]
    out: Path
    cache: Path
    generator: str = "embedded"
    seed: int = 0
    shard_size: int = 32
    device: str = "cpu"
    inputs: str = ""

    @property
    def choices(self) -> list[dict[str, Any]]:
        return combinations(self.recipe.params)

    @property
    def per_portrait(self) -> int:
        wanted = self.recipe.pairs_per_portrait
        return len(self.choices) if wanted == "all" else wanted

    @property
    def job_count(self) -> int:
        return len(self.names) * self.per_portrait

    def load_models(self, backend: Backend) -> Models:
        recipe = self.recipe
        weights = recipe.perceptual_weights
        return backend.load_models(self.generator, recipe.perceptual, weights, self.device, recipe.encoder)

    def identity(self, models: Models) -> dict[str, Any]:
        own_code = code_digest(self.recipe.feature)
        common = self.common_identity(self.recipe, self.seed, self.device, models)
        return common | {"portraits": self.inputs} | ({} if own_code is None else {"feature_code": own_code})

    def make(self, jobs: range, models: Models, backend: Backend, advance: Callable[[float], None]) -> Iterator[Pair]:
        return make_pairs(_task(self), _jobs(self, jobs, backend), models, backend, advance)


def plan_build(
    recipe: BuildRecipe,
    portraits: Path,
    out: Path,
    *,
    generator: str = "embedded",
    limit: int | None = None,
    seed: int = 0,
    shard_size: int = 32,
    cache: Path | None = None,
    device: str = "cpu",
    backend: Backend | None = None,
) -> BuildPlan:
    """Decide a build, without loading any network. limit: the first so many portraits by name; None means all.

    cache: folder of stage-0 inversions; None means `.stylepairs-cache` beside `out`. Raises InputError for parameters
    that the feature does not take, and for a folder without portraits.
    """
    backend = backend or real_backend()
    names = sorted(backend.list_portraits(portraits))[:limit]
    if not names:
        raise InputError(
            f"{portraits}: no prepared portraits; make them with `datagen prepare PHOTOS --out {portraits}`"
        )
    cache = cache or out.parent / ".stylepairs-cache"
    plan = BuildPlan(recipe, portraits, tuple(names), out, cache, generator, seed, shard_size, device)
    model = load_feature(recipe.feature, run_files=True).Params
    for params in plan.choices:
        validate_params(model, params, f"recipe for {recipe.feature}")
    if plan.per_portrait > len(plan.choices):
        have = f"the choices in params have only {len(plan.choices)} combinations"
        raise InputError(f"pairs_per_portrait: {plan.per_portrait}, but {have}; lower it or add choices")
    return replace(plan, inputs=backend.digest_portraits(portraits, names))


def _jobs(plan: BuildPlan, numbers: range, backend: Backend) -> list[Job]:
    jobs = []
    portrait = None
    for job in numbers:
        name = plan.names[job // plan.per_portrait]
        if portrait is None or portrait.name != name:
            portrait, source = backend.load_portrait(plan.portraits, name)
            draws = draw(plan.choices, plan.recipe.pairs_per_portrait, plan.seed, portrait.digest)
        jobs.append(Job(shards.pair_id(job), portrait, draws[job % plan.per_portrait], source))
    return jobs


def _task(plan: BuildPlan) -> Task:
    recipe = plan.recipe
    return Task(
        recipe.feature,
        recipe.inversion,
        recipe.reconstruction,
        recipe.gate,
        plan.seed,
        plan.cache,
        code_version(),
        recipe.sketch_detail,
    )
