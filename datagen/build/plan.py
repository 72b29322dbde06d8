"""Builds pairs from a recipe and a folder of portraits: a fixed list of jobs, cut into shards.

Jobs are the portraits, sorted by name, times their parameter draws; a shard is a fixed range of jobs. How shards are
made, resumed and shared out is `shard_runner`'s.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from stylepairs.datagen.build.draws import combinations, draw
from stylepairs.datagen.build.models import Models, load_models
from stylepairs.datagen.build.pair_maker import make_pairs
from stylepairs.datagen.build.settings import BuildRecipe
from stylepairs.datagen.build.shard_runner import ShardedPlan
from stylepairs.datagen.build.unfinished_pair import WantedPair
from stylepairs.datagen.features import code_digest, load_feature
from stylepairs.datagen.pairs import shards
from stylepairs.datagen.pairs.record import Pair
from stylepairs.datagen.portraits.folders import (
    PortraitFile,
    ahead,
    load_portraits,
    photo_digests,
    refuse_portraits,
    source_digest,
)
from stylepairs.datagen.recipe import validate_params
from stylepairs.datagen.shell.durable import file_digest
from stylepairs.datagen.shell.errors import InputError
from stylepairs.datagen.shell.storage.staged import drop


@dataclass(frozen=True)
class BuildPlan(ShardedPlan):
    """A build that is fully decided: the same plan gives the same shards. Made by `plan_build`.

    inputs: digest of all that the build reads of its portraits.
    """

    command = "datagen build"
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
        """Every combination of the recipe's parameters."""
        return combinations(self.recipe.params)

    @property
    def per_portrait(self) -> int:
        """How many pairs a portrait gets."""
        wanted = self.recipe.pairs_per_portrait
        return len(self.choices) if wanted == "all" else wanted

    @property
    def job_count(self) -> int:
        """See ShardedPlan."""
        return len(self.names) * self.per_portrait

    def load_models(self) -> Models:
        """See ShardedPlan."""
        recipe = self.recipe
        return load_models(
            self.generator, recipe.perceptual, recipe.perceptual_weights, self.device, recipe.encoder, recipe.method
        )

    def identity(self, models: Models) -> dict[str, Any]:
        """See ShardedPlan."""
        own_code, named = code_digest(self.recipe.feature), named_files(self.recipe)
        return (
            self.common_identity(self.recipe, self.device, models)
            | {"portraits": self.inputs}
            | ({} if own_code is None else {"feature_code": own_code})
            | ({"files": named} if named else {})
        )

    def make(self, jobs: range, models: Models, advance: Callable[[float], None]) -> Iterator[Pair]:
        """See ShardedPlan."""
        return make_pairs(self.recipe, self._wanted(jobs), models, self.seed, self.cache, advance)

    def _wanted(self, jobs: range) -> Iterator[WantedPair]:
        files, photos = _portraits(self.portraits, _stamp(self.portraits))
        choices = self.choices
        coming = ahead(files[name] for name in dict.fromkeys(self.names[job // self.per_portrait] for job in jobs))
        portrait = None
        for job in jobs:
            name = self.names[job // self.per_portrait]
            if portrait is None or portrait.name != name:
                portrait = next(coming).load()
                draws = draw(choices, self.recipe.pairs_per_portrait, self.seed, portrait.digest)
            source = source_digest(name, portrait.digest, photos)
            yield WantedPair(shards.pair_id(job), portrait, draws[job % self.per_portrait], source)


@functools.lru_cache(maxsize=1)
def _portraits(folder: Path, _stamp: object) -> tuple[dict[str, PortraitFile], dict[str, str]]:
    """The portraits of a folder by name, and their photos' digests: read once in each worker, not for each shard."""
    return {file.name: file for file in load_portraits(folder)}, photo_digests(folder)


def _stamp(folder: Path) -> tuple[tuple[int, int], ...]:
    """What changes when a folder's lists do."""
    lists = (folder / name for name in ("landmarks.npz", "index.jsonl"))
    return tuple((path.stat().st_size, path.stat().st_mtime_ns) for path in lists if path.exists())


def plan_build(  # noqa: PLR0913 - all but three by name
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
) -> BuildPlan:
    """Decide a build, without loading any network. limit: the first so many portraits by name; None means all.

    cache: folder of stage-0 inversions; None means `.stylepairs-cache` beside `out`. Raises InputError for parameters
    that the feature does not take, and for a folder without portraits.
    """
    refuse_portraits(out)
    files = load_portraits(portraits)[:limit]
    names = tuple(file.name for file in files)
    cache = cache or out.parent / ".stylepairs-cache"
    plan = BuildPlan(recipe, portraits, names, out, cache, generator, seed, shard_size, device)
    model = load_feature(recipe.feature, run_files=True).Params
    for params in plan.choices:
        validate_params(model, params, f"recipe for {recipe.feature}")
    if plan.per_portrait > len(plan.choices):
        have = f"the choices in params have only {len(plan.choices)} combinations"
        raise InputError(f"pairs_per_portrait: {plan.per_portrait}, but {have}; lower it or add choices")
    return replace(plan, inputs=digest_portraits(files, photo_digests(portraits)))


def named_files(recipe: BuildRecipe) -> dict[str, str]:
    """What the recipe's parameters name -> the digest of what it holds: files, folders of prepared portraits, and
    portraits in them. Raises InputError where a portrait's file is missing."""
    named: dict[str, str] = {}
    for key in load_feature(recipe.feature, run_files=True).file_params:
        *path, name = key.split(".")
        values = functools.reduce(lambda params, part: params.get(part, {}), path, recipe.params).get(name)
        for text in values if isinstance(values, list) else [values]:
            if isinstance(text, str) and (digest := _digest_of_named(Path(text))):
                named[text] = digest
    return named


def _digest_of_named(path: Path) -> str | None:
    """None for what is no file: a name like "bundled", or a polygon."""
    with contextlib.suppress(OSError):  # too long for a path
        if path.is_file():
            return file_digest(path, "; name another")
        for folder in (path, path.parent):
            if (folder / "landmarks.npz").is_file():
                files = [file for file in load_portraits(folder) if folder == path or file.name == path.name]
                return digest_portraits(files, {})
    return None


def digest_portraits(files: Sequence[PortraitFile], photos: Mapping[str, str]) -> str:
    """sha256 over all that a build reads of these portraits: pictures, labels, mattes, points, digests of the photos.

    Raises InputError where a file is missing.
    """
    digest = hashlib.sha256()
    for file in ahead(files):
        digest.update(json.dumps([file.name, photos.get(file.name, "")]).encode())
        digest.update(file.points68.tobytes() + file.source_to_aligned.tobytes())
        for path in file.paths:
            digest.update(file_digest(path, "; make it again").encode())
            drop(path)
    return digest.hexdigest()
