"""Builds pairs from a recipe and a folder of portraits: a fixed list of jobs, cut into shards, made whole or not.

Jobs are the portraits, sorted by name, times their parameter draws; a shard is a fixed range of jobs. Finished shards
are skipped and an unfinished one is made again from its start, so that neither kills nor the number of workers and
ranks show in the result.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt

from stylepairs.datagen import shards
from stylepairs.datagen.backend import Backend, Models, real_backend
from stylepairs.datagen.draws import combinations, draw
from stylepairs.datagen.durable import make_folder, remove_stale, replace_file
from stylepairs.datagen.errors import InputError
from stylepairs.datagen.features import load_feature
from stylepairs.datagen.pair_codec import DAMAGE
from stylepairs.datagen.pair_maker import Job, Task, make_pairs
from stylepairs.datagen.quality import GateSettings
from stylepairs.datagen.recipes import validate_params
from stylepairs.datagen.reconstruction.settings import InversionSettings, ReconstructionSettings
from stylepairs.datagen.workers import available_cpus, run_workers

BUILD_FILE = "build.json"
# Raised whenever the same build would give other pairs.
BUILD_VERSION = 1
# On a CPU each worker computes with one thread: sums split over threads round differently, and the bytes would show it.
THREADS = 1


class BuildRecipe(BaseModel):
    """The `datagen` section of a recipe.

    params: the feature's parameters; a list means choices. pairs_per_portrait: "all" combinations of the choices, or
    that many of them, drawn without replacement. perceptual, perceptual_weights (a file): see `load_perceptual`. gate:
    {figure: {min: x, max: y}}.
    """

    model_config = ConfigDict(extra="forbid")

    feature: str
    params: dict[str, Any] = Field(default_factory=dict)
    pairs_per_portrait: Literal["all"] | PositiveInt = "all"
    perceptual: str = "auto"
    perceptual_weights: str | None = None
    inversion: InversionSettings = InversionSettings.model_validate({})
    reconstruction: ReconstructionSettings = ReconstructionSettings.model_validate({})
    gate: GateSettings = Field(default_factory=dict)


@dataclass(frozen=True)
class BuildPlan:
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

    @property
    def shard_count(self) -> int:
        return -(-self.job_count // self.shard_size)

    def shard_path(self, index: int) -> Path:
        return self.out / shards.shard_name(index)

    def shard_jobs(self, index: int) -> range:
        return range(index * self.shard_size, min((index + 1) * self.shard_size, self.job_count))


@dataclass(frozen=True)
class BuildEvent:
    """What a build reports as it goes. work: pairs' worth of it done since the last event; the rest are messages."""

    work: float = 0.0
    shard: str = ""  # the shard just finished, with its counts
    accepted: int = 0
    rejected: int = 0
    note: str = ""
    resumed: bool = False  # the work was done by an earlier run


@dataclass(frozen=True)
class BuildResult:
    """pairs and accepted count all finished shards; complete: no shard is missing, and the manifest is written."""

    pairs: int
    accepted: int
    complete: bool


OnEvent = Callable[[BuildEvent], None]


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
    model = load_feature(recipe.feature).Params
    for params in plan.choices:
        validate_params(model, params, f"recipe for {recipe.feature}")
    if plan.per_portrait > len(plan.choices):
        have = f"the choices in params have only {len(plan.choices)} combinations"
        raise InputError(f"pairs_per_portrait: {plan.per_portrait}, but {have}; lower it or add choices")
    return replace(plan, inputs=backend.digest_portraits(portraits, names))


def build_pairs(
    plan: BuildPlan,
    *,
    workers: int = 1,
    rank: int = 0,
    world: int = 1,
    on_event: OnEvent = lambda event: None,
    backend: Backend | None = None,
) -> BuildResult:
    """Make the shards of `plan` that are not there yet; of several ranks, each takes every `world`-th shard.

    backend: None means the package's own; with several workers it must be picklable. Raises InputError (bad input, full
    disk, a build of other settings in the same folder); whatever is raised, finished shards stay.
    """
    make_folder(plan.out)
    remove_stale(plan.out)
    mine = range(rank % world, plan.shard_count, world)
    missing = [index for index in mine if not _is_finished(plan, index, on_event)]
    prepare = functools.partial(_prepare, plan, backend)
    with _settings_put_back():
        try:
            if missing:
                run_workers(prepare, missing, workers, on_event)
            else:
                prepare(on_event)  # nothing to make, but the folder may be of another build: an error all the same
        finally:
            remove_stale(plan.out)  # of workers that were stopped
    return _conclude(plan)


def build_shard(plan: BuildPlan, index: int, models: Models, backend: Backend, on_event: OnEvent) -> None:
    """Make one shard, whatever is there."""
    path = plan.shard_path(index)
    counts = {True: 0, False: 0}

    def advance(work: float) -> None:
        on_event(BuildEvent(work=work))

    def pairs() -> Iterator[shards.Pair]:
        for pair in make_pairs(_task(plan), _jobs(plan, index, backend), models, backend, advance):
            counts[pair.record.accepted] += 1
            yield pair
        _check_folder(plan, models, "another build was started in it meanwhile")  # the last moment before the rename

    shards.write_shard(path, pairs())
    on_event(BuildEvent(shard=path.name, accepted=counts[True], rejected=counts[False]))


def _prepare(plan: BuildPlan, backend: Backend | None, on_event: OnEvent) -> Callable[[int], None]:
    """Load the networks, make sure that the folder is this build's, and return what makes a shard."""
    import cv2
    import torch

    torch.set_num_threads(THREADS)
    cv2.setNumThreads(THREADS)
    for owner, name, value in _fixed_switches():
        setattr(owner, name, value)
    backend = backend or real_backend()
    models = backend.load_models(plan.generator, plan.recipe.perceptual, plan.recipe.perceptual_weights, plan.device)
    _claim_folder(plan, models)
    return lambda index: build_shard(plan, index, models, backend, on_event)


def _jobs(plan: BuildPlan, index: int, backend: Backend) -> list[Job]:
    jobs = []
    portrait = None
    for job in plan.shard_jobs(index):
        name = plan.names[job // plan.per_portrait]
        if portrait is None or portrait.name != name:
            portrait, source = backend.load_portrait(plan.portraits, name)
            draws = draw(plan.choices, plan.recipe.pairs_per_portrait, plan.seed, portrait.digest)
        jobs.append(Job(shards.pair_id(job), portrait, draws[job % plan.per_portrait], source))
    return jobs


def _task(plan: BuildPlan) -> Task:
    recipe = plan.recipe
    return Task(
        recipe.feature, recipe.inversion, recipe.reconstruction, recipe.gate, plan.seed, plan.cache, code_version()
    )


def code_version() -> str:
    """The version of the code as pairs carry it: the distribution's, and that of the build's format."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return f"{version('stylepairs')}+build{BUILD_VERSION}"
    except PackageNotFoundError:
        return f"unknown+build{BUILD_VERSION}"


def _identity(plan: BuildPlan, models: Models) -> dict[str, Any]:
    """All that shows in the bytes of the pairs; files by what they hold, wherever they are."""
    return {
        "code_version": code_version(),
        "recipe": plan.recipe.model_dump(mode="json", exclude={"perceptual_weights"}),
        "generator_digest": models.digest,
        "instruments": {**models.instruments.names, **models.digests},
        "portraits": plan.inputs,
        "pairs": plan.job_count,
        "seed": plan.seed,
        "shard_size": plan.shard_size,
        "device": plan.device.partition(":")[0],
    }


def _claim_folder(plan: BuildPlan, models: Models) -> None:
    """Write `build.json`, or compare with the one that is there."""
    if shards.shard_paths(plan.out):
        _check_folder(plan, models, "holds a build of other settings")
        return
    # Nothing is lost: a build that found its settings wrong may be put right.
    text = json.dumps(_identity(plan, models), indent=2, sort_keys=True)
    replace_file(plan.out / BUILD_FILE, lambda file: file.write(text.encode()))


def _check_folder(plan: BuildPlan, models: Models, problem: str) -> None:
    """InputError unless `build.json` is this build's; problem: what it means if it is another's."""
    path = plan.out / BUILD_FILE
    try:
        present = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{plan.out}: has shards but no {BUILD_FILE}; choose another --out") from None
    except DAMAGE as error:
        raise InputError(f"{path}: cannot be read ({error}); choose another --out") from error
    others = sorted(_differences(present, _identity(plan, models)))
    if others:
        raise InputError(f"{plan.out}: {problem} ({'; '.join(others[:5])}); choose another --out")


def _differences(present: Any, wanted: Any, path: str = "") -> Iterator[str]:
    """ "seed was 0, now 1", for every leaf of nested dictionaries that differs."""
    if isinstance(present, dict) and isinstance(wanted, dict):
        for key in present.keys() | wanted.keys():
            yield from _differences(present.get(key), wanted.get(key), f"{path}.{key}" if path else key)
    elif present != wanted:
        was, now = (json.dumps(value)[:40] for value in (present, wanted))
        yield f"{path or BUILD_FILE} was {was}, now {now}"


def _is_finished(plan: BuildPlan, index: int, on_event: OnEvent) -> bool:
    path = plan.shard_path(index)
    if not path.exists():
        return False
    try:
        records = shards.scan_shard(path)
    except InputError as error:
        on_event(BuildEvent(note=f"{error}: making it again"))
        return False
    if [record.id for record in records] != [shards.pair_id(job) for job in plan.shard_jobs(index)]:
        raise InputError(f"{path}: holds other pairs than this build's; choose another --out")
    accepted = sum(record.accepted for record in records)
    on_event(BuildEvent(len(records), accepted=accepted, rejected=len(records) - accepted, resumed=True))
    return True


def _conclude(plan: BuildPlan) -> BuildResult:
    """Whoever finds that no shard is missing writes the manifest: the last rank, or two with the same bytes."""
    complete = all(plan.shard_path(index).exists() for index in range(plan.shard_count))
    if complete:
        shards.update_manifest(plan.out)
    records = shards.read_index(plan.out, accepted_only=False) if shards.shard_paths(plan.out) else []
    return BuildResult(len(records), sum(record.accepted for record in records), complete)


def _fixed_switches() -> list[tuple[Any, str, bool]]:
    """What a build sets for CUDA, (owner, name, value): float32 is float32, and convolutions repeat."""
    from torch import backends

    return [
        (backends.cuda.matmul, "allow_tf32", False),
        (backends.cudnn, "allow_tf32", False),
        (backends.cudnn, "deterministic", True),
        (backends.cudnn, "benchmark", False),
    ]


@contextlib.contextmanager
def _settings_put_back() -> Iterator[None]:
    """`_prepare` sets the number of threads and CUDA's switches; in this process they are put back afterwards."""
    import torch

    threads = torch.get_num_threads()
    switches = [(owner, name, getattr(owner, name)) for owner, name, _ in _fixed_switches()]
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        for owner, name, value in switches:
            setattr(owner, name, value)


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
