"""Imports pairs of pictures that others made: which files belong together is decided here, and cut into shards."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field, ValidationError

from stylepairs.datagen.build.draws import combinations
from stylepairs.datagen.build.models import Models, load_models
from stylepairs.datagen.build.settings import BuildRecipe
from stylepairs.datagen.build.shard_runner import ShardedPlan
from stylepairs.datagen.features import code_digest, load_feature
from stylepairs.datagen.images.files import PHOTO_SUFFIXES, visible_files
from stylepairs.datagen.importing.laying import Pictures
from stylepairs.datagen.importing.making import Importer
from stylepairs.datagen.pairs.record import MAX_TEXT, Pair
from stylepairs.datagen.portraits.folders import refuse_portraits
from stylepairs.datagen.recipe import validate_params
from stylepairs.datagen.shell.decode import Damaged, read_json_lines
from stylepairs.datagen.shell.durable import file_digest
from stylepairs.datagen.shell.errors import InputError, as_text, nearest, one_line, printable

DEFAULT_SIZE_PX = 256
_MIN_SIZE_PX, _MAX_SIZE_PX = 64, 4096


@dataclass(frozen=True)
class ImportPlan(ShardedPlan):
    """An import that is fully decided: the same plan gives the same shards. Made by `plan_import`.

    generator None: pairs get no latents. inputs: digest of all files.
    """

    command = "datagen import"
    recipe: BuildRecipe
    pictures: tuple[Pictures, ...] = field(repr=False)
    out: Path
    cache: Path
    inputs: str
    size_px: int = DEFAULT_SIZE_PX
    generator: str | None = None
    made_by: str = ""
    seed: int = 0
    shard_size: int = 32
    device: str = "cpu"

    @property
    def job_count(self) -> int:
        """See ShardedPlan."""
        return len(self.pictures)

    def load_models(self) -> Models:
        """See ShardedPlan."""
        recipe = self.recipe
        models = load_models(
            self.generator or "embedded", recipe.perceptual, recipe.perceptual_weights, self.device, recipe.encoder
        )
        if models.instruments.analyser is None:
            raise InputError("import: needs the face analyser, and its weights are not installed")
        return models

    def identity(self, models: Models) -> dict[str, Any]:
        """See ShardedPlan."""
        common = self.common_identity(self.recipe, self.device, models)
        own_code = code_digest(self.recipe.feature)
        return (
            common
            | {"imported": self.inputs, "size_px": self._size_px(models), "made_by": self.made_by}
            | ({} if self.generator else {"generator_digest": ""})
            | ({} if own_code is None else {"feature_code": own_code})
        )

    def make(self, jobs: range, models: Models, advance: Callable[[float], None]) -> Iterator[Pair]:
        """See ShardedPlan."""
        feature = load_feature(self.recipe.feature, run_files=True)
        maker = Importer(
            self.recipe, self.seed, feature, models, self._size_px(models), self.generator is not None, self.cache,
            self.made_by,
        )  # fmt: skip
        return maker.make(self.pictures[jobs.start : jobs.stop], jobs.start, advance)

    def _size_px(self, models: Models) -> int:
        return models.image_px if self.generator else self.size_px


def plan_import(  # noqa: PLR0913 - all but four by name
    recipe: BuildRecipe,
    before: Path,
    after: Path,
    out: Path,
    *,
    params: Mapping[str, Any] | None = None,
    listed: Path | None = None,
    masks: Path | None = None,
    size_px: int = DEFAULT_SIZE_PX,
    generator: str | None = None,
    made_by: str = "",
    seed: int = 0,
    shard_size: int = 32,
    cache: Path | None = None,
    device: str = "cpu",
) -> tuple[ImportPlan, list[str]]:
    """Decide an import, and say which files have no partner, and whether names of the list have no pair.

    before, after, masks: folders whose files belong together by their names without suffix, or one file each; masks
    None: where the pictures differ is looked for. params: what was done to all of them, as the feature names it; the
    recipe's hold where they leave no choice. listed: JSON lines {"name", "params"} that say it of single pairs.
    size_px: side of the crops; with a generator, whose latents of both halves are then sought, its own. Raises
    InputError.
    """
    if not _MIN_SIZE_PX <= size_px <= _MAX_SIZE_PX:
        raise InputError(f"--size {size_px}: must lie between {_MIN_SIZE_PX} and {_MAX_SIZE_PX} pixels")
    made_by = as_text(made_by)
    if len(made_by) > MAX_TEXT:
        raise InputError(f"--made-by: {len(made_by)} characters, more than {MAX_TEXT}; shorten it")
    refuse_portraits(out)
    befores, afters = pictures_in(before), pictures_in(after)
    if before.is_file() and after.is_file():
        afters = {next(iter(befores)): after}
    names = sorted(befores.keys() & afters.keys())
    if not names:
        raise InputError(f"{after}: no file has the name of one in {before}; pairs are matched by name without suffix")
    lone = [f"{printable(str(path))}: has no partner" for one, other in ((befores, afters), (afters, befores))
            for name, path in sorted(one.items()) if name not in other]  # fmt: skip
    drawn = {} if masks is None else pictures_in(masks)
    if before.is_file() and masks is not None and masks.is_file():
        drawn = {next(iter(befores)): masks}
    if masks is not None and (missing := [name for name in names if name not in drawn]):
        raise InputError(f"{masks}: has no mask named {printable(missing[0])} ({len(missing)} are missing)")
    model = load_feature(recipe.feature, run_files=True).Params
    own = {} if listed is None else _listed(listed, names)
    if unknown := sorted(own.keys() - set(names)):
        lone.append(f"{listed}: names {len(unknown)} that no pair has, such as {printable(unknown[0])[:80]!r}")
    everybody = merged(recipe.params, params or {})
    pictures = tuple(
        Pictures(
            name,
            befores[name],
            afters[name],
            drawn.get(name),
            _one_choice(model, merged(everybody, own[name].params) if name in own else everybody),
            name in own and own[name].backwards,
        )
        for name in names
    )
    recipe = recipe.model_copy(update={"params": everybody})
    cache = cache or out.parent / ".stylepairs-cache"
    plan = ImportPlan(
        recipe, pictures, out, cache, _digest(pictures), size_px, generator, made_by, seed, shard_size, device
    )
    return plan, lone


def pictures_in(place: Path) -> dict[str, Path]:
    """Name (the path below the folder without suffix) -> file, of all pictures in a folder; of a file, itself.

    Raises InputError: no such place, no picture in it, two of one name.
    """
    if place.is_file():
        return {as_text(place.stem): place}
    if not place.is_dir():
        raise InputError(f"{place}: no such file or folder")
    found: dict[str, Path] = {}
    for path in visible_files(place):
        if path.suffix.lower() in PHOTO_SUFFIXES:
            name = as_text(path.relative_to(place).with_suffix("").as_posix())
            if name in found:
                raise InputError(f"{path}: has the name of {found[name]}; pairs are matched by name without suffix")
            found[name] = path
    if not found:
        raise InputError(f"{place}: no picture in it")
    return found


def merged(params: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters with others in their place, those of a combination's parts one by one."""
    found = dict(params)
    for name, value in other.items():
        own = found.get(name)
        found[name] = merged(own, value) if isinstance(own, Mapping) and isinstance(value, Mapping) else value
    return found


class _Row(BaseModel):
    """A line of the list: the pair's name, or its id as `datagen export` writes it."""

    name: str | None = None
    id: str | None = None
    params: Annotated[dict[str, Any], Field(max_length=64)]
    backwards: bool = False


def _listed(path: Path, names: list[str]) -> dict[str, _Row]:
    try:
        rows = [_Row.model_validate(row) for row in read_json_lines(path)]
    except (Damaged, ValidationError) as error:
        raise InputError(f"{path}: must be JSON lines with name and params ({one_line(error)})") from error
    found: dict[str, _Row] = {}
    for number, row in enumerate(rows, 1):
        name = row.name or row.id
        if not name:
            raise InputError(f"{path}: line {number} has no name; give the pair's file name without suffix")
        if name in found:
            raise InputError(f"{path}: tells of {printable(name)[:80]!r} twice; leave one line of each pair")
        found[name] = row
    known = set(names)
    if not found.keys() & known:
        first = next(iter(found), "")
        raise InputError(f"{path}: names no pair, the first is {printable(first)[:80]!r}{nearest(first, names[:1000])}")
    return found


def _one_choice(model: type[BaseModel], params: dict[str, Any]) -> dict[str, Any]:
    """The parameters of one pair, which leave no choice. Raises InputError."""
    choices = combinations(params)
    validate_params(model, choices[0], "--params")
    if len(choices) > 1:
        open_ones = open_choices(params)
        raise InputError(
            f"params: the recipe leaves {', '.join(open_ones)} open; say what the pairs have: --params "
            f"{open_ones[0]}=..., or --listed FILE for each"
        )
    return choices[0]


def open_choices(params: Mapping[str, Any]) -> list[str]:
    """The parameters that have several values to choose from, those of a combination's parts as "bangs.style"."""
    found = []
    for name, value in params.items():
        if isinstance(value, Mapping):
            found += [f"{name}.{inner}" for inner in open_choices(value)]
        elif len(combinations({name: value})) > 1:
            found.append(name)
    return found


def _digest(pictures: tuple[Pictures, ...]) -> str:
    """sha256 over all that an import reads. Raises InputError."""
    digest = hashlib.sha256()
    for one in pictures:
        files = [file_digest(path) for path in (one.before, one.after, one.mask) if path is not None]
        told = [one.name, files, one.params, *(["backwards"] if one.backwards else [])]
        digest.update(json.dumps(told, sort_keys=True, default=str).encode())
    return digest.hexdigest()
