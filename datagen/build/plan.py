"""Builds pairs from a recipe and a folder of portraits: a fixed list of jobs, cut into shards.

Jobs are the portraits, sorted by name, times their parameter draws; a shard is a fixed range of jobs. How shards are
made, resumed and shared out is `building`'s.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt

from stylepairs.datagen.build.draws import combinations, draw
from stylepairs.datagen.build.models import Backend, Models, real_backend
from stylepairs.datagen.build.pair_maker import Job, Task, make_pairs
from stylepairs.datagen.build.quality import GateSettings
from stylepairs.datagen.build.shard_runner import BuildEvent, BuildResult, ShardedPlan, build_pairs, code_version
from stylepairs.datagen.features import code_digest, load_feature
from stylepairs.datagen.pairs import shards
from stylepairs.datagen.recipe import validate_params
from stylepairs.datagen.reconstruction.settings import InversionSettings, ReconstructionSettings
from stylepairs.datagen.shell.errors import InputError
from stylepairs.datagen.shell.workers import available_cpus

__all__ = [
    "BuildEvent", "BuildPlan", "BuildRecipe", "BuildResult", "build_pairs", "choose_device", "default_workers",
    "plan_build", "rank_and_world",
]  # fmt: skip


class BuildRecipe(BaseModel):
    """The `datagen` section of a recipe.

    params: the feature's parameters; a list means choices. pairs_per_portrait: "all" combinations of the choices, or
    that many of them, drawn without replacement. perceptual, perceptual_weights (a file): see `load_perceptual`.
    encoder: where stage 0 starts, see `find_encoder`: "none", "auto" or a file that `datagen train-encoder` wrote.
    sketch_detail: share of the sketches' own detail that pairs get; 0 leaves all new shapes' detail to the generator.
    gate: {figure: {min: x, max: y}}.
    """

    model_config = ConfigDict(extra="forbid")

    feature: str
    params: dict[str, Any] = Field(default_factory=dict)
    pairs_per_portrait: Literal["all"] | PositiveInt = "all"
    perceptual: str = "auto"
    perceptual_weights: str | None = None
    encoder: str = "none"
    inversion: InversionSettings = InversionSettings.model_validate({})
    reconstruction: ReconstructionSettings = ReconstructionSettings.model_validate({})
    sketch_detail: float = Field(1.0, ge=0, le=1)
    gate: GateSettings = Field(default_factory=dict)


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

    def make(
        self, jobs: range, models: Models, backend: Backend, advance: Callable[[float], None]
    ) -> Iterator[shards.Pair]:
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


def choose_device(name: str) -> str:
    """ "cpu" or "cuda:N" for "auto", "cpu" or "cuda"; N is this process's place on its machine. Raises InputError."""
    import torch

    if name not in ("auto", "cpu", "cuda"):
        raise InputError(f"--device {name}: unknown; choose auto, cpu or cuda")
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return "cpu"
    if not torch.cuda.is_available():
        raise InputError("--device cuda: no CUDA device is to be had here; choose cpu or auto")
    return f"cuda:{int(os.environ.get('LOCAL_RANK', '0')) % torch.cuda.device_count()}"


def default_workers(device: str) -> int:
    """One a GPU; on a CPU one a processor, shared with the other ranks of this machine."""
    if device != "cpu":
        return 1
    return max(1, available_cpus() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def rank_and_world() -> tuple[int, int]:
    """This process's place among those that torchrun or accelerate started; (0, 1) when it is alone."""
    try:
        rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    except ValueError as error:
        raise InputError(f"RANK and WORLD_SIZE in the environment must be whole numbers ({error})") from error
    if not 0 <= rank < world:
        raise InputError(f"RANK {rank} is not below WORLD_SIZE {world}")
    return rank, world
