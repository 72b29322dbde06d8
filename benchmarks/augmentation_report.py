"""Augments pairs and reports whether degrees rise as asked (Spearman's rho) and how the people between two look.

    python benchmarks/augmentation_report.py PAIRS --out DIR [--pairs 50] [--steps 0,.2,.4,.6,.8,1] [--people 4]
        [--generator embedded] [--workers 1] [--fresh]

Writes DIR/report.json; DIR/degrees.png, a row per pair: before, then the after image of each degree; DIR/grid.png, the
grid {a, middle, b} x {before, middle, after} of each couple, generated images only, couples side by side. Of the
middles all that their children's gate let through are shown first.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import json
import shutil
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from feature_report import REJECTED, accepted_share, cell, tidy
from scipy.stats import spearmanr

from stylepairs.datagen.augment.interpolation import person_between
from stylepairs.datagen.augment.making import Child
from stylepairs.datagen.augment.plan import GRID_STEPS, plan_augmentation
from stylepairs.datagen.build.shard_runner import build_pairs
from stylepairs.datagen.images.files import to_uint8
from stylepairs.datagen.pairs.record import Pair, PairRecord, reason_kind
from stylepairs.datagen.pairs.shards import read_pairs
from stylepairs.datagen.reconstruction.prior import WPrior
from stylepairs.datagen.reconstruction.rendering import half, render
from stylepairs.datagen.shell.errors import exit_on_bad_input
from stylepairs.datagen.stylegan.checkpoints import load_generator
from stylepairs.datagen.stylegan.generator import Generator
from stylepairs.kernels.memory import keep_freed_memory

CELL_PX = 128
ROWS_SHOWN = 12


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--pairs", type=int, default=50, dest="count", help="accepted pairs, spread evenly")
    parser.add_argument("--steps", default="0,0.2,0.4,0.6,0.8,1")
    parser.add_argument("--people", type=int, default=4, help="couples that a person is made between")
    parser.add_argument("--generator", default="embedded")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--fresh", action="store_true", help="remove the pairs of an earlier run first")
    options = parser.parse_args()
    keep_freed_memory()
    if options.fresh:
        shutil.rmtree(options.out / "pairs", ignore_errors=True)
    pairs = augmented(options)
    degrees = [pair for pair in pairs if len(pair.record.parents) == 1]
    people = [pair for pair in pairs if len(pair.record.parents) == 2]
    report = degree_report([pair.record for pair in degrees]) | {"people": people_report(people)}
    (options.out / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    cv2.imwrite(str(options.out / "degrees.png"), degree_sheet(degrees)[..., ::-1])
    if people:
        cv2.imwrite(str(options.out / "grid.png"), grid_sheet(options.pairs, people, options.generator)[..., ::-1])
    print(json.dumps(report, indent=2))
    return 0


def augmented(options: argparse.Namespace) -> list[Pair]:
    """All degrees of `count` pairs, and the people between `people` couples."""
    plan = plan_augmentation(
        options.pairs,
        options.out / "pairs",
        steps=[float(step) for step in options.steps.split(",")],
        grid=1 if options.people else 0,
        generator=options.generator,
        workers=options.workers,
    )
    parents = evenly(list(plan.parents.records), options.count)
    couples = evenly(sorted({child.parents for child in plan.children if len(child.parents) == 2}), options.people)
    children = [child for child in plan.children if child.parents in {(parent,) for parent in parents}]
    children += [Child(couple, t) for couple in couples for t in GRID_STEPS]
    plan = dataclasses.replace(plan, children=tuple(children), shard_size=8)
    build_pairs(plan, workers=options.workers, on_event=lambda event: print(event.shard or event.note, end="\r"))
    return list(read_pairs(plan.out, accepted_only=False))


def evenly(items: Sequence[Any], count: int) -> list[Any]:
    count = min(count, len(items))
    return [items[index * len(items) // count] for index in range(count)]


def degree_report(records: Sequence[PairRecord]) -> dict[str, object]:
    """Of children of one parent each: how well the measured degree follows t."""
    by_parent = collections.defaultdict(list)
    by_step = collections.defaultdict(list)
    for record in records:
        by_step[record.figures["augmentation_t"]].append(record)
        if record.figures.get("degree") is not None:
            by_parent[record.parents[0].id].append(record)
    rho = {id: spearman(chosen) for id, chosen in by_parent.items() if len(chosen) > 2}
    reasons = collections.Counter(reason_kind(reason, r.portrait) for r in records for reason in r.reasons)
    return {
        "pairs": len(by_parent),
        "spearman_median": tidy(statistics.median(rho.values())) if rho else None,
        "spearman_min": tidy(min(rho.values())) if rho else None,
        "spearman_below_095": {id: tidy(value) for id, value in rho.items() if value < 0.95},
        "accepted_share": accepted_share(records),
        "by_step": {
            str(t): {
                "accepted_share": accepted_share(chosen),
                "degree_p10_p50_p90": spread(
                    [degree for r in chosen if (degree := r.figures.get("degree")) is not None]
                ),
            }
            for t, chosen in sorted(by_step.items())
        },
        "reasons": dict(reasons.most_common()),
    }


def spearman(records: Sequence[PairRecord]) -> float:
    """Rank correlation of the share asked for and the degree measured; 0 where all degrees are equal."""
    found = spearmanr(
        *zip(*((r.figures["augmentation_t"], r.figures["degree"]) for r in records), strict=True)
    ).statistic
    return float(np.nan_to_num(found))


def spread(values: Sequence[float]) -> list[float]:
    return [tidy(float(value)) for value in np.percentile(values, (10, 50, 90))] if values else []


def people_report(pairs: Sequence[Pair]) -> dict[str, object]:
    records = [pair.record for pair in pairs]
    reasons = collections.Counter(reason_kind(reason, r.portrait) for r in records for reason in r.reasons)
    return {
        "pairs": len(records),
        "accepted_share": accepted_share(records),
        "degree": {
            str(t): spread(
                [
                    degree
                    for r in records
                    if r.figures.get("augmentation_t") == t and (degree := r.figures.get("degree")) is not None
                ]
            )
            for t in GRID_STEPS
        },
        "reasons": dict(reasons.most_common()),
    }


def degree_sheet(pairs: Sequence[Pair]) -> np.ndarray:
    rows = collections.defaultdict(list)
    for pair in (pair.portrait_first() for pair in pairs):
        rows[pair.record.parents[0].id].append(pair)
    chosen = evenly(list(rows.values()), ROWS_SHOWN)
    return np.concatenate([np.concatenate([cell(row[0].before, CELL_PX), *map(framed, row)], axis=1) for row in chosen])


def framed(pair: Pair) -> np.ndarray:
    image = cell(pair.after, CELL_PX)
    if not pair.record.accepted:
        image[:2] = image[-2:] = REJECTED
        image[:, :2] = image[:, -2:] = REJECTED
    return image


def grid_sheet(parents: Path, people: Sequence[Pair], generator: str) -> np.ndarray:
    """The grids of the couples whose children these are, those of accepted ones first; generated images only."""
    couples: dict[tuple[str, ...], int] = collections.Counter()
    for pair in people:
        couples[tuple(parent.id for parent in pair.record.parents)] += pair.record.accepted
    order = sorted(couples, key=lambda couple: -couples[couple])
    network = load_generator(generator)
    found = {parent.id for pair in people for parent in pair.record.parents}
    loaded = {pair.record.id: pair for pair in read_pairs(parents) if pair.record.id in found}
    gap = np.full((3 * CELL_PX, CELL_PX // 16, 3), 255, np.uint8)
    prior = WPrior.fit(network)
    grids = [grid(network, prior, [loaded[id] for id in couple]) for couple in order]
    return np.concatenate([part for one in grids for part in (one, gap)][:-1], axis=1)


def grid(network: Generator, prior: WPrior, couple: Sequence[Pair]) -> np.ndarray:
    """Rows a, middle, b; columns before, middle, after."""
    rows = []
    for pairs in (couple[:1], couple, couple[1:]):
        person = person_between(pairs, prior, "cpu")
        ws = [half(person.w0.lerp(person.w1, t)) for t in (0.0, 0.5, 1.0)]
        images = render(network, ws, [person.noise] * 3, 3)
        rows.append(np.concatenate([cell(to_uint8(image), CELL_PX) for image in images], axis=1))
    return np.concatenate(rows)


if __name__ == "__main__":
    torch.set_num_threads(1)
    with exit_on_bad_input():
        sys.exit(main())
