"""Our reconstruction beside published methods: same portraits, sketches, generator, start, steps.

    python benchmarks/reconstruction_quality.py PORTRAITS --out DIR [--features hair_color ...] [--methods ours ...]
        [--limit 40] [--cache DIR] [--generator embedded] [--minutes 25] [--set KEY=VALUE ...]

Each feature is a recipe; each portrait gets one of its choices, drawn by the portrait. Results go to DIR/results.jsonl,
one line per feature, portrait and method as it is found, so that a run goes on where it stopped (--fresh starts over,
which a change of the code calls for); then DIR/table.md, DIR/table.json, and DIR/FEATURE.png, a row per portrait:
photo, sketch, then what each method generated. "none" is stage 0 without any edit: what the methods start from.

Columns: outside, PSNR of the generated after image over the keep mask, in dB; reached, the feature's own degree on the
generated pair, 0 none, 1 all; composed, the same once composed; both, the share of portraits with
`reached` of at least 0.7 of what was asked and `outside` at most 2 dB below stage 0; prior, distance of the latent (1
is typical); identity, cosine of deep features in the unedited face; seconds, processor time per portrait.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import json
import math
import platform
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).parent / "speed"))

import cv2
import numpy as np
import torch
from measure import processor

from stylepairs.datagen.build import pair_maker, quality
from stylepairs.datagen.build.draws import combinations, draw
from stylepairs.datagen.build.models import Models, load_models
from stylepairs.datagen.build.settings import BuildRecipe, code_version
from stylepairs.datagen.build.unfinished_pair import WantedPair, sketched
from stylepairs.datagen.features import load_feature
from stylepairs.datagen.features.feature import Feature, asked_degree
from stylepairs.datagen.images.files import to_float
from stylepairs.datagen.pairs.record import Pair
from stylepairs.datagen.pairs.shards import pair_id
from stylepairs.datagen.portraits.folders import load_portrait, load_portraits
from stylepairs.datagen.portraits.sketch import AnalysedPair
from stylepairs.datagen.recipe import load_recipe
from stylepairs.datagen.reconstruction.batch import Progress
from stylepairs.datagen.reconstruction.reconstruct import Found, Problem, Reconstruction, collect
from stylepairs.datagen.shell.errors import InputError, exit_on_bad_input
from stylepairs.kernels.memory import keep_freed_memory

METHODS = {
    "none": "stage 0, no edit",
    "ours": "ours",
    "projector": "NVIDIA projector",
    "pulse": "PULSE",
    "masked_discovery": "Mask-Guided Discovery",
    "mask_face_gan": "MaskFaceGAN's constraints",
    "latent_direction": "latent direction",
}
REACHED, LOST_DB = 0.7, 2.0
CELL_PX = 128
Row = dict[str, Any]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("portraits", type=Path, help="a folder that `datagen prepare` wrote")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--features", nargs="+", default=["hair_color", "bangs", "hairline"], help="recipes")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--limit", type=int, default=40, help="portraits per feature, spread evenly over the folder")
    parser.add_argument("--cache", type=Path, help="folder of inversions; default: in DIR")
    parser.add_argument("--generator", default="embedded")
    parser.add_argument("--minutes", type=float, help="start no new work after that; None: until all is done")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", dest="overrides")
    parser.add_argument("--fresh", action="store_true", help="remove earlier results first")
    options = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(1)
    if options.fresh:
        shutil.rmtree(options.out / "images", ignore_errors=True)
        (options.out / "results.jsonl").unlink(missing_ok=True)
    run(options)
    rows = read_rows(options.out)
    report(options.out, rows, options.methods)
    return 0


def run(options: argparse.Namespace) -> None:
    """Find what is missing: batch after batch of portraits, all features and methods of a batch before the next."""
    options.out.mkdir(parents=True, exist_ok=True)
    recipes = {name: load_recipe(name, "datagen", BuildRecipe, options.overrides) for name in options.features}
    first = next(iter(recipes.values()))
    models = load_models(options.generator, first.perceptual, first.perceptual_weights, "cpu")
    chosen = {name: portraits_of(options, name, recipe, models) for name, recipe in recipes.items()}
    done = {(row["feature"], row["portrait"], row["method"]) for row in read_rows(options.out)}
    until = time.monotonic() + 60 * options.minutes if options.minutes else float("inf")
    width = first.reconstruction.batch
    for start in range(0, max(map(len, chosen.values())), width):
        for feature, recipe in recipes.items():
            for method in options.methods:
                batch = chosen[feature][start : start + width]
                wanted = [name for name in batch if (feature, name, method) not in done]
                if wanted and time.monotonic() > until:
                    return
                if wanted:
                    keep_results(options, feature, recipe, method, wanted, models)


def portraits_of(options: argparse.Namespace, feature: str, recipe: BuildRecipe, models: Models) -> list[str]:
    """Up to `limit` portraits, spread over the folder, that the feature does not refuse; refusals become results."""
    module, names = load_feature(recipe.feature), [file.name for file in load_portraits(options.portraits)]
    known = {row["portrait"]: "refused" in row for row in read_rows(options.out) if row["feature"] == feature}
    found: list[str] = []
    for name in spread_out(names):
        if len(found) == options.limit:
            break
        if name not in known:
            job = job_of(options.portraits, name, recipe)
            draft = sketched(job, module, models, recipe.sketch_detail)
            known[name] = bool(draft.refused)
            if draft.refused:
                keep(options.out, {"feature": feature, "portrait": name, "method": "", "refused": draft.refused})
        if not known[name]:
            found.append(name)
    return found


def spread_out(names: Sequence[str]) -> list[str]:
    """All names, those first that halve the folder, then its halves, and so on: any beginning is spread over it."""
    order = sorted(range(len(names)), key=lambda index: f"{index:012b}"[::-1])
    return [names[index] for index in order]


def keep_results(
    options: argparse.Namespace,
    feature: str,
    recipe: BuildRecipe,
    method: str,
    names: Sequence[str],
    models: Models,
) -> None:
    """Make the pairs of some portraits by one method; write their pictures and figures."""
    clock = Clock(reconstruct_of(method))
    cache = options.cache or options.out / "inversions"
    ungated = recipe.model_copy(update={"gate": {}})
    jobs = [job_of(options.portraits, name, recipe) for name in names]
    module = load_feature(recipe.feature)
    with mock.patch.object(pair_maker, "reconstruct", clock):
        made = pair_maker.make_pairs(ungated, jobs, models, 0, cache, lambda work: None)
        pairs = [pair.portrait_first() for pair in made]
    for job, pair in zip(jobs, pairs, strict=True):
        folder = options.out / "images" / feature / job.portrait.name
        folder.mkdir(parents=True, exist_ok=True)
        row: Row = {"feature": feature, "portrait": job.portrait.name, "method": method, "params": pair.record.params}
        if pair.generated_after is None:
            raise InputError(f"{feature} {job.portrait.name} {method}: {pair.record.reasons[0]}")
        row["figures"] = figures_of(pair, job, module, models) | {"seconds": clock.seconds / clock.count}
        pictures = {"photo": pair.before, "sketch": pair.sketch, method: pair.generated_after}
        for name, image in (pictures | {f"{method}.composed": pair.after}).items():
            assert image is not None
            cv2.imwrite(str(folder / f"{name}.png"), image[..., ::-1])
        keep(options.out, row)


def keep(folder: Path, row: Row) -> None:
    """Append one result."""
    with (folder / "results.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
    print(row["feature"], row["portrait"], row["method"], shown(row), file=sys.stderr, flush=True)


class Clock:
    """A reconstruct that counts its portraits and the processor time they take."""

    def __init__(self, function: Callable[..., list[Any]]):
        self.function, self.seconds, self.count = function, 0.0, 0

    def __call__(self, problem: Problem, progress: Progress | None = None) -> list[Any]:
        start = time.process_time()
        found = self.function(problem, progress)
        self.seconds, self.count = self.seconds + time.process_time() - start, self.count + len(problem.cases)
        return found


def reconstruct_of(method: str) -> Callable[..., list[Any]]:
    if method == "none":
        return unedited
    ours = "stylepairs.datagen.reconstruction.reconstruct"
    module = importlib.import_module(ours if method == "ours" else f"baselines.{method}")
    function: Callable[..., list[Any]] = module.reconstruct
    return function


def unedited(problem: Problem, progress: Progress | None = None) -> list[Reconstruction]:
    """What every method starts from, as its own result."""
    return collect(problem, [Found(one.ws, one.noise, {"steps": 0.0}) for one in problem.inversions])


def job_of(folder: Path, name: str, recipe: BuildRecipe) -> WantedPair:
    portrait = load_portrait(folder, name)
    params = draw(combinations(recipe.params), 1, 0, portrait.digest)[0]
    return WantedPair(pair_id(0), portrait, params, portrait.digest)  # results know it by its portrait


def figures_of(pair: Pair, job: WantedPair, module: Feature, models: Models) -> dict[str, float]:
    """The pair's figures, and with "generated_" before their names the feature's own on the generated halves."""
    pair, portrait = pair.portrait_first(), job.portrait.resized(models.image_px)
    analyser = models.instruments.analyser
    halves = (
        quality.analyse(portrait, to_float(image), analyser).portrait
        for image in (pair.generated_before, pair.generated_after)
        if image is not None
    )
    params = module.Params.model_validate(pair.record.params)
    own = module.measure(portrait, AnalysedPair(*halves), params)
    asked = asked_degree(params)
    generated = {f"generated_{name}": value for name, value in own.items()}
    finished = {name: math.nan if value is None else value for name, value in pair.record.figures.items()}
    return {**finished, **generated, "asked": asked}


def read_rows(folder: Path) -> list[Row]:
    """The results so far; a last line that was cut off counts as absent."""
    path = folder / "results.jsonl"
    if not path.is_file():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            print(f"{path}: a line that is no JSON is passed over", file=sys.stderr)
    return rows


def report(out: Path, rows: Sequence[Row], methods: Sequence[str]) -> None:
    """Write tables and sheets of the portraits that all methods have done."""
    tables: dict[str, Any] = {"machine": machine(), "versions": versions(), "features": {}}
    text = [f"{tables['machine']}; {tables['versions']}", ""]
    for feature in dict.fromkeys(row["feature"] for row in rows):
        made = {(row["portrait"], row["method"]): row["figures"] for row in rows_of(rows, feature) if "figures" in row}
        names = dict.fromkeys(name for name, _ in made)
        whole = [name for name in names if all((name, method) in made for method in methods)]
        refused = {row["portrait"] for row in rows_of(rows, feature) if "refused" in row}
        if not whole:
            continue
        table = {method: summary([made[name, method] for name in whole], [stage0(made, name) for name in whole])
                 for method in methods}  # fmt: skip
        tables["features"][feature] = {"portraits": len(whole), "refused": len(refused), "methods": table}
        text += [f"### {feature}: {len(whole)} portraits ({len(refused)} refused by the feature)", "", *markdown(table)]
        cv2.imwrite(str(out / f"{feature}.png"), sheet(out / "images" / feature, whole, methods))
    (out / "table.json").write_text(json.dumps(tables, indent=2) + "\n", encoding="utf-8")
    (out / "table.md").write_text("\n".join(text) + "\n", encoding="utf-8")
    print("\n".join(text))


def rows_of(rows: Sequence[Row], feature: str) -> list[Row]:
    return [row for row in rows if row["feature"] == feature]


def stage0(made: dict[tuple[str, str], dict[str, float]], name: str) -> float:
    """PSNR outside that the portrait's methods started from: infinitely poor where "none" was not run."""
    return made.get((name, "none"), {}).get("outside_psnr_db", float("-inf"))


def summary(figures: Sequence[dict[str, float]], start_db: Sequence[float]) -> dict[str, Any]:
    """Median and quartiles of each column; `both` as a share."""
    columns = {
        "outside": "outside_psnr_db", "reached": "generated_degree", "composed": "degree", "prior": "prior_after",
        "identity": "identity_efficientnet_lite0", "seconds": "seconds",
    }  # fmt: skip
    found: dict[str, Any] = {}
    for column, name in columns.items():
        values = [one[name] for one in figures if np.isfinite(one.get(name, np.nan))]
        if values:
            quartiles = np.percentile(values, [25, 75])
            found[column] = [round(float(x), 3) for x in (statistics.median(values), *quartiles)]
    found["both"] = round(statistics.mean(map(has_both, figures, start_db)), 3)
    return found


def has_both(figures: dict[str, float], start_db: float) -> bool:
    """Whether the edit was reached on the generated pair and the rest of it is as good as it was."""
    reached = figures["generated_degree"] >= REACHED * figures["asked"]
    return reached and figures["outside_psnr_db"] >= start_db - LOST_DB


def markdown(table: dict[str, dict[str, Any]]) -> list[str]:
    lines = [
        "| method | outside dB | reached | composed | both | prior | identity | s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for method, found in table.items():
        cells = [spread(found.get(name)) for name in ("outside", "reached", "composed")]
        plain = [spread(found.get(name), False) for name in ("prior", "identity", "seconds")]
        lines.append("| " + " | ".join([METHODS[method], *cells, f"{100 * found['both']:.0f} %", *plain]) + " |")
    return [*lines, ""]


def spread(values: Sequence[float] | None, quartiles: bool = True) -> str:
    if values is None:
        return "-"
    digits = 1 if abs(values[0]) >= 3 else 2
    middle, low, high = (f"{value:.{digits}f}" for value in values)
    return f"{middle} ({low} to {high})" if quartiles else middle


def sheet(folder: Path, names: Sequence[str], methods: Sequence[str]) -> np.ndarray:
    """[H,W,3] uint8 BGR: a row per portrait: photo, sketch, what each method generated."""
    lines = [[picture(folder / name / f"{column}.png") for column in ("photo", "sketch", *methods)] for name in names]
    return np.concatenate([np.concatenate(line, 1) for line in lines])


def picture(path: Path) -> np.ndarray:
    image = cv2.imread(str(path))
    if image is None:
        return np.full((CELL_PX, CELL_PX, 3), 200, np.uint8)
    return cv2.resize(image, (CELL_PX, CELL_PX), interpolation=cv2.INTER_AREA)


def shown(row: Row) -> str:
    if "refused" in row:
        return str(row["refused"])
    names = ("outside_psnr_db", "generated_degree", "degree", "prior_after", "seconds")
    return " ".join(f"{name} {row['figures'].get(name, float('nan')):.2f}" for name in names)


@functools.cache
def machine() -> str:
    return f"one core of {processor()}"


def versions() -> str:
    return f"stylepairs {code_version()}, torch {torch.__version__}, Python {platform.python_version()}"


if __name__ == "__main__":
    with exit_on_bad_input():
        sys.exit(main())
