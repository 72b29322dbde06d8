"""Makes the shards of a plan that are not there yet, in one process or several, whole or not at all.

What a plan is of, pairs from portraits (`build.plan`) or from other pairs (`augment.plan`), it says itself: how many
jobs it has, and how to make a range of them. Finished shards are skipped and an unfinished one is made again from its
start, so that neither kills nor the number of workers and ranks show in the result.
"""

from __future__ import annotations

import abc
import functools
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from stylepairs.datagen.build.finished import Counts, Finished, note_finished, read_finished
from stylepairs.datagen.build.inversion_cache import SAME_BITS
from stylepairs.datagen.build.models import Models
from stylepairs.datagen.build.settings import BuildRecipe, code_version
from stylepairs.datagen.pairs import shards
from stylepairs.datagen.pairs.index import PairIndex
from stylepairs.datagen.pairs.record import Pair
from stylepairs.datagen.shell.decode import Damaged, read_json
from stylepairs.datagen.shell.durable import write_bytes
from stylepairs.datagen.shell.errors import InputError
from stylepairs.datagen.shell.lock import folder_lock
from stylepairs.datagen.shell.machine import fix_settings, settings_put_back
from stylepairs.datagen.shell.progress_file import progress_file
from stylepairs.datagen.shell.regular import is_regular
from stylepairs.datagen.shell.storage.staged import drop
from stylepairs.datagen.shell.workers import Engine, run_workers

_NOTHING = -1  # in place of a shard's number


class ShardedPlan(abc.ABC):
    """Jobs cut into shards of `shard_size`, in the folder `out`; plans must be picklable, for worker processes."""

    command: ClassVar[str]  # that makes such plans, for messages
    out: Path
    seed: int
    shard_size: int

    @property
    @abc.abstractmethod
    def job_count(self) -> int:
        """How many pairs there will be, accepted or not."""

    @abc.abstractmethod
    def load_models(self) -> Models:
        """The networks that `make` needs. Raises InputError."""

    @abc.abstractmethod
    def identity(self, models: Models) -> dict[str, Any]:
        """All that shows in the bytes of the pairs, as JSON holds it; files by what they hold, wherever they are."""

    def common_identity(self, recipe: BuildRecipe, device: str, models: Models) -> dict[str, Any]:
        """What the identity of every plan holds."""
        left_out: dict[str, Any] = {
            "perceptual_weights": True,
            "encoder": True,
            "method": True,
            "inversion": SAME_BITS,
            "reconstruction": SAME_BITS,
        }
        # Which settings nobody set shows in the pairs: those are a near start's.
        stages = {name: models.begun(getattr(recipe, name)) for name in ("inversion", "reconstruction")}
        recipe = recipe.model_copy(update=stages)
        return {
            "code_version": code_version(),
            "recipe": recipe.model_dump(mode="json", exclude=left_out),
            "generator_digest": models.digest,
            "instruments": {**models.instruments.names, **models.digests},
            "pairs": self.job_count,
            "seed": self.seed,
            "shard_size": self.shard_size,
            "device": device.partition(":")[0],
        }

    @abc.abstractmethod
    def make(self, jobs: range, models: Models, advance: Callable[[float], None]) -> Iterator[Pair]:
        """The pairs of these jobs, in order; advance(x) reports x pairs' worth of work done."""

    @property
    def shard_count(self) -> int:
        """How many shards there will be, the last one shorter perhaps."""
        return -(-self.job_count // self.shard_size)

    def shard_path(self, index: int) -> Path:
        """The file of a shard."""
        return self.out / shards.shard_name(index)

    def shard_jobs(self, index: int) -> range:
        """The jobs of a shard."""
        return range(index * self.shard_size, min((index + 1) * self.shard_size, self.job_count))


@dataclass(frozen=True)
class BuildEvent:
    """What a build reports as it goes. work: pairs' worth of it done since the last event; the rest are messages.

    shard: the one just finished, with its counts, the id of its first pair, and seconds since it was begun. pair: the
    one just made, with why it was rejected, and seconds since the one before it; its shard is not finished yet.
    reasons: of a finished shard, by kind.
    """

    work: float = 0.0
    shard: str = ""
    accepted: int = 0
    rejected: int = 0
    note: str = ""
    resumed: bool = False  # the work was done by an earlier run
    pair: str = ""
    reason: str = ""
    reasons: Mapping[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    first: str = ""


@dataclass(frozen=True)
class BuildResult:
    """pairs and accepted count all finished shards; complete: no shard is missing, and the manifest is written."""

    pairs: int
    accepted: int
    complete: bool


OnEvent = Callable[[BuildEvent], None]


def build_pairs(
    plan: ShardedPlan,
    *,
    workers: int | None = 1,
    rank: int = 0,
    world: int = 1,
    on_event: OnEvent = lambda event: None,
    run: Engine = run_workers,
) -> BuildResult:
    """Make the shards of `plan` that are not there yet; of several ranks, each takes every `world`-th shard.

    run: what shares them out to `workers` (see `engines`).
    Raises InputError (bad input, full disk, a build of other settings in the same folder, another run at work in it);
    whatever is raised, finished shards stay.
    """
    mine = range(rank % world, plan.shard_count, world)
    total = sum(len(plan.shard_jobs(index)) for index in mine)
    with (
        folder_lock(plan.out, plan.command, rank, world),
        settings_put_back(),
        progress_file(plan.out, plan.command, "pairs", total, rank, world) as noted,
    ):

        def tell(event: BuildEvent) -> None:
            noted.add(event.work, event.accepted, event.reasons, now=not event.resumed)
            if event.shard:
                count = event.accepted + event.rejected
                counts = event.first, count, event.accepted, event.reasons
                note_finished(plan.out, rank, plan.out / event.shard, counts)
            on_event(event)

        notes = read_finished(plan.out)
        there = {path.name: path for path in shards.shard_paths(plan.out)}
        found = [index for index in mine if plan.shard_path(index).name in there]
        paths = shards.ahead(there[plan.shard_path(index).name] for index in found)
        pairs_of = zip(found, paths, strict=True)
        whole = {index for index, path in pairs_of if _is_finished(plan, index, path, notes, rank, tell)}
        missing = [index for index in mine if index not in whole]
        # With nothing to make the folder may be of another build: an error all the same.
        run(functools.partial(_prepare, plan), missing or [_NOTHING], workers, tell)
        return _conclude(plan)


def build_shard(plan: ShardedPlan, index: int, models: Models, on_event: OnEvent) -> None:
    """Make one shard, whatever is there."""
    path = plan.shard_path(index)
    counts = {True: 0, False: 0}
    reasons: Counter[str] = Counter()
    began = time.monotonic()

    def advance(work: float) -> None:
        on_event(BuildEvent(work=work))

    def pairs() -> Iterator[Pair]:
        last = began
        for pair in plan.make(plan.shard_jobs(index), models, advance):
            record, now = pair.record, time.monotonic()
            counts[record.accepted] += 1
            reasons.update(record.reason_kinds)
            on_event(BuildEvent(pair=record.id, reason="; ".join(record.reasons), seconds=now - last))
            last = now
            yield pair
        _check_folder(plan, models, "another build was started in it meanwhile")  # the last moment before the rename

    shards.write_shard(path, pairs())
    seconds, first = time.monotonic() - began, shards.pair_id(plan.shard_jobs(index)[0])
    on_event(BuildEvent(0.0, path.name, counts[True], counts[False], reasons=reasons, seconds=seconds, first=first))


def _prepare(plan: ShardedPlan, on_event: OnEvent) -> Callable[[int], None]:
    """Load the networks, make sure that the folder is this build's, and return what makes a shard."""
    fix_settings()
    models = plan.load_models()
    _write_build_file(plan, models)

    def make(index: int) -> None:
        if index != _NOTHING:
            build_shard(plan, index, models, on_event)

    return make


def _write_build_file(plan: ShardedPlan, models: Models) -> None:
    """Write `build.json`, or compare with the one that is there."""
    if shards.shard_paths(plan.out):
        _check_folder(plan, models, "holds a build of other settings")
        return
    # Nothing is lost: a build that found its settings wrong may be put right.
    text = json.dumps(plan.identity(models), indent=2, sort_keys=True)
    write_bytes(plan.out / shards.BUILD_FILE, text.encode())


def _check_folder(plan: ShardedPlan, models: Models, problem: str) -> None:
    """InputError unless `build.json` is this build's; problem: what it means if it is another's."""
    path = plan.out / shards.BUILD_FILE
    drop(path)  # another command may have written it meanwhile
    if not is_regular(path):
        raise InputError(f"{plan.out}: has shards but no {shards.BUILD_FILE}; choose another --out")
    try:
        present = read_json(path, shards.MAX_BUILD_BYTES)
    except Damaged as error:
        raise InputError(f"{path}: cannot be read ({error}); choose another --out") from error
    others = sorted(_differences(present, plan.identity(models)))
    if others:
        raise InputError(f"{plan.out}: {problem} ({'; '.join(others[:5])}); choose another --out")


def _differences(present: Any, wanted: Any, path: str = "") -> Iterator[str]:
    """ "seed was 0, now 1", for every leaf of nested dictionaries that differs."""
    if isinstance(present, dict) and isinstance(wanted, dict):
        for key in present.keys() | wanted.keys():
            yield from _differences(present.get(key), wanted.get(key), f"{path}.{key}" if path else key)
    elif present != wanted:
        was, now = (json.dumps(value)[:40] for value in (present, wanted))  # read_json bounds them
        yield f"{path or shards.BUILD_FILE} was {was}, now {now}"


def _is_finished(
    plan: ShardedPlan, index: int, path: Path, notes: Mapping[str, Finished], rank: int, on_event: OnEvent
) -> bool:
    """Whether the shard at `path` is whole: as it was noted, else by all that its tar says of itself."""
    jobs = plan.shard_jobs(index)
    note = notes.get(path.name)
    if note is not None and note.is_of(path):
        same = (note.first, note.pairs) == (shards.pair_id(jobs[0]), len(jobs))
        counts: Counts = note.first, note.pairs, note.accepted, note.reasons
    else:
        try:
            records = shards.scan_shard(path)
        except InputError as error:
            on_event(BuildEvent(note=f"{error}: making it again"))
            return False
        same = [record.id for record in records] == [shards.pair_id(job) for job in jobs]
        reasons = Counter(kind for record in records for kind in record.reason_kinds)
        counts = shards.pair_id(jobs[0]), len(records), sum(record.accepted for record in records), reasons
    if not same:
        raise InputError(f"{path}: holds other pairs than this build's; choose another --out")
    if note is None or not note.is_of(path):
        note_finished(plan.out, rank, path, counts)
    _, count, accepted, found = counts
    on_event(BuildEvent(count, accepted=accepted, rejected=count - accepted, resumed=True, reasons=found))
    return True


def _conclude(plan: ShardedPlan) -> BuildResult:
    """Whoever finds that no shard is missing writes the manifest: the last rank, or two with the same bytes."""
    there = {path.name for path in shards.shard_paths(plan.out)}
    complete = all(plan.shard_path(index).name in there for index in range(plan.shard_count))
    if complete:
        shards.update_manifest(plan.out)
    index = shards.open_index(plan.out) if there else []
    if isinstance(index, PairIndex):
        return BuildResult(len(index), len(index.where(accepted=True)), complete)
    return BuildResult(len(index), sum(record.accepted for record in index), complete)
