"""A build of a million pairs without its GPU step: the real planner, events, shards, resume, manifest and sampler.

    python benchmarks/scale_simulation.py --out out/scale [--pairs 1000000] [--driven 64000] [--json figures.json]

Two parts. `driven` pairs are made on 8 to 256 workers of a simulated clock, some of which die over their shard; the run
is stopped half way and goes on. Its tars are real but hold no pixels. Then a manifest of `pairs` rows is written beside
as many shards as it names (empty files of the right size), and a build that is finished is started again, and training
begun. Times are of the processor, so that a busy machine does not show.
"""

from __future__ import annotations

import argparse
import heapq
import json
import os
import random
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from stylepairs.datagen.build.finished import note_finished
from stylepairs.datagen.build.models import Models
from stylepairs.datagen.build.shard_runner import ShardedPlan, build_pairs
from stylepairs.datagen.pairs import manifest, shards
from stylepairs.datagen.pairs.index import distinct
from stylepairs.datagen.pairs.record import PARTS, Pair, PairRecord, split_of
from stylepairs.i2i.models.conditions import kinds_of
from stylepairs.i2i.train.data import batches
from stylepairs.i2i.train.sides import data_digest, read_records, read_refused

PER_PORTRAIT = 8
COLORS = ("black", "brown", "auburn", "red", "blond", "light_blond", "grey", "pink")
# Seconds of a pair on one worker, and the share of shards over which a worker dies.
PAIR_S, DEATHS = 1.0, 0.01
FIGURES = [f"figure_{number:02d}" for number in range(24)]


def record_of(number: int, shard: str = "", parts: dict[str, tuple[int, int]] | None = None) -> PairRecord:
    source = f"{number // PER_PORTRAIT:064x}"
    accepted = number % 10 != 7
    return PairRecord(
        id=shards.pair_id(number), feature="hair_color",
        params={"color": COLORS[number % PER_PORTRAIT], "intensity": 1.0, "reference_px": 8},
        degree=1.0, accepted=accepted, reasons=[] if accepted else ["color_delta_e 12 > 8"],
        figures=dict.fromkeys(FIGURES, number / 7), portrait=f"portrait_{number // PER_PORTRAIT:06d}",
        portrait_digest=source, source_digest=source, generator_digest="0" * 64, seed=0, code_version="simulated",
        split=split_of(source), shard=shard, parts=parts or {},
    )  # fmt: skip


@dataclass(frozen=True)
class SimulatedPlan(ShardedPlan):
    """Pairs without pixels."""

    command = "scale_simulation"
    out: Path
    pairs: int
    seed: int = 0
    shard_size: int = 32

    @property
    def job_count(self) -> int:
        return self.pairs

    def load_models(self) -> Models:
        return cast("Models", None)  # there is no GPU step

    def identity(self, _models: Models) -> dict[str, Any]:
        return {"pairs": self.pairs}

    def make(self, jobs: range, _models: Models, advance: Callable[[float], None]) -> Iterator[Pair]:
        for job in jobs:
            yield Pair(record_of(job))
        advance(len(jobs))


class Stopped(Exception):
    """Ends a simulated run half way."""


@dataclass
class Cluster:
    """An engine of `places` workers on a simulated clock; stops after `most` shards. wall_s: what its clock shows."""

    places: int
    most: int
    wall_s: float = 0.0
    busy_s: float = 0.0
    deaths: int = 0

    def run(
        self, prepare: Callable[..., Any], items: Sequence[int], _workers: int | None, on_event: Callable[..., None]
    ) -> None:
        handle, draw = prepare(on_event), random.Random(self.places)
        todo, running = list(reversed(items)), list[Any]()
        done = 0
        while todo or running:
            while todo and len(running) < self.places:
                seconds = 32 * PAIR_S * draw.uniform(0.7, 1.5)
                heapq.heappush(running, (self.wall_s + seconds, todo.pop(), seconds))
            self.wall_s, item, seconds = heapq.heappop(running)
            if draw.random() < DEATHS:
                self.deaths += 1
                todo.append(item)
                continue
            handle(item)
            self.busy_s += seconds
            done += 1
            if done == self.most:
                raise Stopped


def driven(out: Path, pairs: int, places: int) -> dict[str, float]:
    """A build on so many workers, stopped half way and finished; checks that no pair is lost or doubled."""
    plan = SimulatedPlan(out, pairs)
    first, second = Cluster(places, plan.shard_count // 2), Cluster(places, plan.shard_count)
    begun = time.process_time()
    try:
        build_pairs(plan, run=first.run)
    except Stopped:
        halfway = time.process_time()
    resumed: list[float] = []

    def engine(*arguments: Any) -> None:
        resumed.append(time.process_time())
        second.run(*arguments)
        resumed.append(time.process_time())

    try:
        result = build_pairs(plan, run=engine)
    except Stopped:  # its last shard was the last of all
        resumed.append(time.process_time())
        result = build_pairs(plan, run=engine)
    ended = time.process_time()
    ids = [record.id for record in shards.open_index(out)]
    assert result.complete
    assert ids == [shards.pair_id(job) for job in range(pairs)], "pairs were lost or doubled"
    making = (halfway - begun) + (resumed[1] - resumed[0])
    ideal_s = (first.busy_s + second.busy_s) / places
    return {
        "shards": plan.shard_count, "workers": places, "deaths": first.deaths + second.deaths,
        "driver_ms_a_shard": 1e3 * making / plan.shard_count, "resume_s": resumed[0] - halfway,
        "manifest_s": ended - resumed[1], "idle_share": 1 - ideal_s / (first.wall_s + second.wall_s),
    }  # fmt: skip


def started(out: Path, pairs: int) -> dict[str, float]:
    """A finished build of so many pairs: writing its manifest, starting it again, and beginning to train on it."""
    plan = SimulatedPlan(out, pairs)
    parts = {name: (512 + 65_536 * place, 60_000) for place, name in enumerate(PARTS)}
    out.mkdir(parents=True, exist_ok=True)
    sizes = {}
    for index in range(plan.shard_count):
        path = plan.shard_path(index)
        with path.open("wb") as file:
            file.truncate(32 * 600_000)
        sizes[path.name] = 32 * 600_000
        jobs = plan.shard_jobs(index)
        note_finished(out, 0, path, (shards.pair_id(jobs[0]), len(jobs), sum(job % 10 != 7 for job in jobs), {}))
    (out / shards.BUILD_FILE).write_text(json.dumps(plan.identity(plan.load_models())))
    begun = time.process_time()
    rows = (
        [record_of(job, shards.shard_name(i), parts) for job in plan.shard_jobs(i)] for i in range(plan.shard_count)
    )
    manifest.write_manifest(out / shards.MANIFEST, rows, sizes)
    figures = {
        "manifest_write_s": time.process_time() - begun,
        "manifest_mb": (out / shards.MANIFEST).stat().st_size / 1e6,
    }
    figures["write_peak_gb"] = peak_gb()
    return figures | apart(resume_again, out, pairs) | apart(begin_training, out, pairs)


def resume_again(out: Path, pairs: int) -> dict[str, float]:
    begun = time.process_time()
    result = build_pairs(SimulatedPlan(out, pairs))
    assert result.complete
    assert result.pairs == pairs
    return {"resume_s": time.process_time() - begun, "resume_peak_gb": peak_gb()}


def begin_training(out: Path, pairs: int) -> dict[str, float]:
    """What `i2i train` does with the pairs before its first step, and the sampler's first thousand batches."""
    begun = time.process_time()
    records, held_out = read_records(out, "train"), read_records(out, "val")
    refused = read_refused(out, "train")
    kinds = kinds_of(distinct(records, "params"))
    data_digest(records, refused)
    ready = time.process_time()
    for batch in batches(len(records), 16, 0, 0, 1000, 0, 1):
        for _, index in batch[:1]:
            assert records[index].accepted
    assert kinds
    assert len(records) + len(held_out) < pairs
    return {
        "train_start_s": ready - begun, "thousand_batches_s": time.process_time() - ready, "train_peak_gb": peak_gb()
    }  # fmt: skip


def apart(function: Callable[[Path, int], dict[str, float]], out: Path, pairs: int) -> dict[str, float]:
    """What a function finds in a process of its own, whose memory is its own too."""
    reading, writing = os.pipe()
    command = [sys.executable, __file__, "--out", str(out), "--pairs", str(pairs)]
    command += ["--apart", function.__name__, str(_kept(writing))]
    child = os.spawnv(os.P_NOWAIT, sys.executable, command)
    os.close(writing)
    with os.fdopen(reading) as file:
        text = file.read()
    os.waitpid(child, 0)
    return dict(json.loads(text))


def _kept(descriptor: int) -> int:
    os.set_inheritable(descriptor, True)
    return descriptor


def peak_gb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--pairs", type=int, default=1_000_000)
    parser.add_argument("--driven", type=int, default=64_000)
    parser.add_argument("--workers", type=int, nargs="*", default=[8, 64, 256])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--apart", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.apart:
        function, descriptor = globals()[options.apart[0]], int(options.apart[1])
        os.write(descriptor, json.dumps(function(options.out, options.pairs)).encode())
        return 0
    found: dict[str, Any] = {}
    for places in options.workers:
        found[f"{places} workers"] = driven(options.out / f"driven-{places}", options.driven, places)
        print(json.dumps(found[f"{places} workers"]), flush=True)
    found[f"{options.pairs} pairs"] = started(options.out / "started", options.pairs)
    print(json.dumps(found[f"{options.pairs} pairs"], indent=2))
    if options.json:
        options.json.write_text(json.dumps(found, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
