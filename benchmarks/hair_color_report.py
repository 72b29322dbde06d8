"""Builds hair-colour pairs from prepared portraits and reports how good they are: figures (JSON), contact sheet (PNG).

    python benchmarks/hair_color_report.py PORTRAITS --out DIR [--limit 20] [--generator embedded] [--recipe hair_color]

Figures are of all pairs, accepted or not, unless they say otherwise. Running again goes on where it stopped.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import json
import statistics
import sys
import time
from pathlib import Path

import cv2
import numpy as np

from stylepairs.datagen.errors import InputError
from stylepairs.datagen.pipeline import BuildEvent, BuildPlan, BuildRecipe, build_pairs, plan_build
from stylepairs.datagen.recipes import load_recipe
from stylepairs.datagen.shards import Pair, read_pairs

FIGURES = (
    "color_delta_e", "degree", "spill_delta_e", "detail_kept", "shading_kept", "flat_share", "clipped_share",
    "outside_psnr_db", "identity_efficientnet_lite0", "prior_before", "prior_after", "seam_energy", "face_score",
    "landmark_shift", "inversion_psnr", "reconstruction_steps",
)  # fmt: skip
CELL_PX = 128
REJECTED = (220, 40, 40)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("portraits", type=Path, help="a folder that `datagen prepare` wrote")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--limit", type=int, default=20, help="portraits, spread evenly over the folder")
    parser.add_argument("--generator", default="embedded")
    parser.add_argument("--recipe", default="hair_color")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides")
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    try:
        plan = spread_plan(options)
        report: dict[str, object] = build(plan, options.workers)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    pairs = list(read_pairs(plan.out, accepted_only=False))
    report |= summarise(pairs)
    (options.out / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    cv2.imwrite(str(options.out / "pairs.png"), contact_sheet(pairs)[..., ::-1])
    print(json.dumps(report, indent=2))
    return 0


def spread_plan(options: argparse.Namespace) -> BuildPlan:
    """The build of the recipe on `limit` portraits, spread evenly over the folder."""
    recipe = load_recipe(options.recipe, "datagen", BuildRecipe, options.overrides)
    plan = plan_build(recipe, options.portraits, options.out / "pairs", generator=options.generator)
    count = min(options.limit, len(plan.names))
    names = tuple(plan.names[index * len(plan.names) // count] for index in range(count))
    # A shard per portrait: what is lost when the run is stopped is one portrait's work.
    return dataclasses.replace(plan, names=names, shard_size=plan.per_portrait)


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


def summarise(pairs: list[Pair]) -> dict[str, object]:
    made = [pair for pair in pairs if pair.after is not None]
    by_color = collections.defaultdict(list)
    for pair in made:
        by_color[pair.record.params["color"]].append(pair)
    reasons = collections.Counter(reason.split(" ")[0] for pair in pairs for reason in pair.record.reasons)
    return {
        "pairs": len(pairs),
        "made": len(made),
        "accepted_share": round(sum(pair.record.accepted for pair in pairs) / max(1, len(pairs)), 3),
        "accepted_share_of_made": round(sum(pair.record.accepted for pair in made) / max(1, len(made)), 3),
        "outside_identical": all(outside_is_identical(pair) for pair in made),
        "median": medians(made),
        "median_of_accepted": medians([pair for pair in made if pair.record.accepted]),
        "color_delta_e_p90": quantile(made, "color_delta_e", 0.9),
        "by_color": {
            color: {
                "color_delta_e": medians(chosen).get("color_delta_e"),
                "accepted_share": round(sum(pair.record.accepted for pair in chosen) / len(chosen), 2),
            }
            for color, chosen in by_color.items()
        },
        "reasons": dict(reasons.most_common()),
    }


def outside_is_identical(pair: Pair) -> bool:
    """Whether before and after are equal to the bit wherever the stored mask is 0."""
    assert pair.before is not None
    assert pair.after is not None
    assert pair.mask is not None
    outside = pair.mask == 0
    return bool((pair.before[outside] == pair.after[outside]).all())


def medians(pairs: list[Pair]) -> dict[str, float]:
    found = {name: values_of(pairs, name) for name in FIGURES}
    return {name: round(statistics.median(values), 3) for name, values in found.items() if values}


def quantile(pairs: list[Pair], name: str, share: float) -> float | None:
    values = values_of(pairs, name)
    return round(float(np.quantile(values, share)), 3) if values else None


def values_of(pairs: list[Pair], name: str) -> list[float]:
    values = (pair.record.figures.get(name) for pair in pairs)
    return [value for value in values if value is not None]


def contact_sheet(pairs: list[Pair]) -> np.ndarray:
    """A row per portrait: photo, its inversion, then the after images (those rejected framed in red)."""
    rows = collections.defaultdict(list)
    for pair in pairs:
        rows[pair.record.portrait].append(pair)
    width = 2 + max(len(row) for row in rows.values())
    sheet = np.full((len(rows) * CELL_PX, width * CELL_PX, 3), 255, np.uint8)
    for y, row in enumerate(rows.values()):
        cells = [cell(row[0].before), cell(row[0].generated_before), *(framed(pair) for pair in row)]
        for x, image in enumerate(cells):
            sheet[y * CELL_PX : (y + 1) * CELL_PX, x * CELL_PX : (x + 1) * CELL_PX] = image
    return sheet


def framed(pair: Pair) -> np.ndarray:
    image = cell(pair.after)
    if not pair.record.accepted:
        for edge in (np.s_[:2], np.s_[-2:], np.s_[:, :2], np.s_[:, -2:]):
            image[edge] = REJECTED
    return image


def cell(image: np.ndarray | None) -> np.ndarray:
    if image is None:
        return np.full((CELL_PX, CELL_PX, 3), 200, np.uint8)
    return cv2.resize(image, (CELL_PX, CELL_PX), interpolation=cv2.INTER_AREA)


if __name__ == "__main__":
    sys.exit(main())
