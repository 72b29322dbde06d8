"""Builds pairs of a feature from prepared portraits and reports how good they are: figures (JSON), contact sheet (PNG).

    python benchmarks/feature_report.py FEATURE_OR_RECIPE PORTRAITS --out DIR [--limit 12] [--cache DIR]
        [--generator embedded] [--set KEY=VALUE ...] [--workers 1] [--fresh]

FEATURE_OR_RECIPE: an installed recipe, a YAML file, or a feature that has no recipe yet (no gate then). Figures are of
all pairs that were made, accepted or not, unless they say otherwise. Running again goes on where it stopped; after a
change of the feature's code the pairs are to be made again: --fresh. The sheet has a row per portrait: before, then
sketch, generated after and after of each pair; those rejected are framed in red.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import json
import shutil
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from stylepairs.datagen.build.plan import BuildPlan, plan_build
from stylepairs.datagen.build.settings import BuildRecipe
from stylepairs.datagen.build.shard_runner import BuildEvent, build_pairs
from stylepairs.datagen.features import feature_names
from stylepairs.datagen.pairs.record import Pair, PairRecord, reason_kind
from stylepairs.datagen.pairs.shards import read_pairs
from stylepairs.datagen.recipe import installed_recipes, load_recipe
from stylepairs.datagen.shell.errors import InputError, exit_on_bad_input
from stylepairs.kernels.memory import keep_freed_memory

CELL_PX = 128
REJECTED = (220, 40, 40)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", metavar="FEATURE_OR_RECIPE")
    parser.add_argument("portraits", type=Path, help="a folder that `datagen prepare` wrote")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--limit", type=int, default=12, help="portraits, spread evenly over the folder")
    parser.add_argument("--cache", type=Path, help="folder of inversions; default: beside the pairs, in DIR")
    parser.add_argument("--generator", default="embedded")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--fresh", action="store_true", help="remove the pairs of an earlier run first")
    parser.add_argument("--cell", type=int, default=CELL_PX, help="side of a picture on the sheet in pixels")
    options = parser.parse_args()
    keep_freed_memory()
    if options.fresh:
        shutil.rmtree(options.out / "pairs", ignore_errors=True)
    plan = spread_plan(options)
    report: dict[str, object] = build(plan, options.workers)
    pairs = list(read_pairs(plan.out, accepted_only=False))
    report |= summarise(pairs, list(plan.recipe.gate))
    (options.out / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    cv2.imwrite(str(options.out / "pairs.png"), contact_sheet(pairs, options.cell)[..., ::-1])
    print(json.dumps(report, indent=2))
    return 0


def spread_plan(options: argparse.Namespace) -> BuildPlan:
    """The build of the recipe on `limit` portraits, spread evenly over the folder."""
    recipe = recipe_of(options.recipe, options.overrides)
    plan = plan_build(
        recipe, options.portraits, options.out / "pairs", generator=options.generator, cache=options.cache
    )
    count = min(options.limit, len(plan.names))
    names = tuple(plan.names[index * len(plan.names) // count] for index in range(count))
    # A shard per portrait: what is lost when the run is stopped is one portrait's work.
    return dataclasses.replace(plan, names=names, shard_size=plan.per_portrait * plan.recipe.reconstruction.batch)


def recipe_of(name: str, overrides: Sequence[str]) -> BuildRecipe:
    """The recipe of that name or file; of a feature without one, its defaults."""
    if name in feature_names() and name not in installed_recipes():
        if overrides:
            raise InputError(f"{name}: has no recipe, so --set has nothing to change; write a YAML file")
        return BuildRecipe.model_validate({"feature": name})
    return load_recipe(name, "datagen", BuildRecipe, overrides)


def build(plan: BuildPlan, workers: int) -> dict[str, object]:
    """Build what is missing; how long it took, inversions included."""
    built = 0

    def show(event: BuildEvent) -> None:
        nonlocal built
        built += (event.accepted + event.rejected) * bool(event.shard)
        if event.shard or event.note:
            print(event.shard or event.note, event.accepted, event.rejected, file=sys.stderr, flush=True)

    start = time.perf_counter()
    build_pairs(plan, workers=workers, on_event=show)
    seconds = time.perf_counter() - start
    return {"built_now": built, "seconds": round(seconds, 1), "seconds_per_pair": round(seconds / max(1, built), 2)}


def summarise(pairs: Sequence[Pair], gated: Sequence[str] = ()) -> dict[str, object]:
    """The report: of all pairs, of those made (not refused), and by parameter value; gated: the gate's figures."""
    made = [pair for pair in pairs if pair.after is not None]
    records = [pair.record for pair in pairs]
    kinds = collections.Counter(reason_kind(reason, record.portrait) for record in records for reason in record.reasons)
    return {
        "pairs": len(pairs),
        "portraits": len({record.portrait_digest for record in records}),
        "made": len(made),
        "accepted_share": accepted_share(records),
        "accepted_share_of_made": accepted_share([pair.record for pair in made]),
        "outside_identical": all(outside_is_identical(pair) for pair in made),
        "reasons": dict(kinds.most_common()),
        "refusals": refusals([pair.record for pair in pairs if pair.after is None]),
        "gated": {name: quantiles([pair.record for pair in made], name) for name in gated},
        "median": medians([pair.record for pair in made]),
        "median_of_accepted": medians([record for record in records if record.accepted]),
        "by_parameter": by_parameter(records, [*gated, "degree"]),
    }


def accepted_share(records: Sequence[PairRecord]) -> float:
    return round(sum(record.accepted for record in records) / max(1, len(records)), 3)


def refusals(records: Sequence[PairRecord]) -> dict[str, str]:
    """Portrait -> why its pairs were not made."""
    return {record.portrait: record.reasons[0] for record in records}


def outside_is_identical(pair: Pair) -> bool:
    """Whether before and after are equal to the bit wherever the stored mask is 0."""
    assert pair.before is not None
    assert pair.after is not None
    assert pair.mask is not None
    outside = pair.mask == 0
    return bool((pair.before[outside] == pair.after[outside]).all())


def medians(records: Sequence[PairRecord], names: Sequence[str] | None = None) -> dict[str, float]:
    """The median of each figure; names None: of all that were measured."""
    wanted = sorted({name for record in records for name in record.figures}) if names is None else names
    found = {name: values_of(records, name) for name in wanted}
    return {name: tidy(statistics.median(values)) for name, values in found.items() if values}


def quantiles(records: Sequence[PairRecord], name: str) -> dict[str, float]:
    values = values_of(records, name)
    shares = (5, 10, 50, 90, 95)
    return {f"p{share}": tidy(float(np.percentile(values, share))) for share in shares} if values else {}


def by_parameter(records: Sequence[PairRecord], names: Sequence[str]) -> dict[str, dict[str, object]]:
    """For each parameter that varies and each of its values: how many pairs, the share accepted, medians of `names`."""
    values: dict[str, dict[str, list[PairRecord]]] = collections.defaultdict(lambda: collections.defaultdict(list))
    for record in records:
        for name, value in record.params.items():
            values[name][value if isinstance(value, str) else json.dumps(value)].append(record)
    return {
        name: {value: row(chosen, names) for value, chosen in found.items()}
        for name, found in values.items()
        if len(found) > 1
    }


def row(records: Sequence[PairRecord], names: Sequence[str]) -> dict[str, object]:
    return {"pairs": len(records), "accepted_share": accepted_share(records), **medians(records, names)}


def values_of(records: Sequence[PairRecord], name: str) -> list[float]:
    values = (record.figures.get(name) for record in records)
    return [value for value in values if value is not None]


def tidy(value: float) -> float:
    return float(f"{value:.4g}")


def contact_sheet(pairs: Sequence[Pair], cell_px: int = CELL_PX) -> np.ndarray:
    """[H,W,3] uint8: a row per portrait, photo, then sketch, generated after and after of each pair."""
    rows = collections.defaultdict(list)
    for pair in pairs:
        rows[pair.record.portrait].append(pair)
    lines = [
        [cell(line[0].before, cell_px), *(c for pair in line for c in cells(pair, cell_px))] for line in rows.values()
    ]
    width = max(len(line) for line in lines)
    sheet = np.full((len(lines) * cell_px, width * cell_px, 3), 255, np.uint8)
    for y, line in enumerate(lines):
        for x, image in enumerate(line):
            sheet[y * cell_px : (y + 1) * cell_px, x * cell_px : (x + 1) * cell_px] = image
    return sheet


def cells(pair: Pair, cell_px: int) -> list[np.ndarray]:
    after = cell(pair.after, cell_px)
    if not pair.record.accepted:
        after[:2] = after[-2:] = REJECTED
        after[:, :2] = after[:, -2:] = REJECTED
    return [cell(pair.sketch, cell_px), cell(pair.generated_after, cell_px), after]


def cell(image: np.ndarray | None, cell_px: int) -> np.ndarray:
    if image is None:
        return np.full((cell_px, cell_px, 3), 200, np.uint8)
    smaller = cell_px < image.shape[0]
    return cv2.resize(image, (cell_px, cell_px), interpolation=cv2.INTER_AREA if smaller else cv2.INTER_CUBIC)


if __name__ == "__main__":
    with exit_on_bad_input():
        sys.exit(main())
