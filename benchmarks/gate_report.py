"""Breaks accepted pairs in known ways and reports how many of the broken ones the recipe's gate turns away.

    python benchmarks/gate_report.py PAIRS --out DIR [--pairs 12] [--generator embedded] [--recipe NAME]

PAIRS: a folder that `datagen build` made. --recipe: judge by that recipe's gate instead of the one of the build. Writes
DIR/report.json, and DIR/defects.png: a row per pair, a column per defect; those that the gate let through are framed.
"""

from __future__ import annotations

import argparse
import collections
import json
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from augmentation_report import evenly
from defects import DEFECTS, Candidate
from feature_report import REJECTED, cell, recipe_of

from stylepairs.datagen.augment.interpolation import person_between
from stylepairs.datagen.augment.plan import plan_augmentation
from stylepairs.datagen.build import quality
from stylepairs.datagen.build.models import Models
from stylepairs.datagen.build.settings import GateSettings
from stylepairs.datagen.compositing.compose import compose
from stylepairs.datagen.features import load_feature
from stylepairs.datagen.images.files import to_uint8
from stylepairs.datagen.pairs.record import Pair, reason_kind
from stylepairs.datagen.pairs.shards import read_index, read_pairs
from stylepairs.datagen.portraits.portrait import Portrait
from stylepairs.datagen.portraits.sketch import AnalysedPair, SketchRefused
from stylepairs.datagen.reconstruction.reconstruct import Reconstruction
from stylepairs.datagen.reconstruction.rendering import render
from stylepairs.datagen.shell.errors import InputError, exit_on_bad_input
from stylepairs.kernels.memory import keep_freed_memory

CELL_PX = 128


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="PAIRS")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--pairs", type=int, default=12, help="accepted pairs to break, spread evenly")
    parser.add_argument("--generator", default="embedded")
    parser.add_argument("--recipe")
    options = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(1)
    plan = plan_augmentation(options.folder, options.out, steps=[1.0], generator=options.generator)
    models = plan.load_models()
    recipe = plan.recipe if options.recipe is None else recipe_of(options.recipe, [])
    feature = load_feature(recipe.feature)
    chosen = {record.id for record in evenly(list(plan.parents.records.values()), options.pairs)}
    good = []
    for pair in read_pairs(options.folder):
        if pair.record.id in chosen:
            try:
                good.append((pair, candidate(pair, feature, models, plan.recipe.sketch_detail)))
            except SketchRefused as refusal:
                print(refusal, file=sys.stderr)
    try:
        report, sheet = judge_all(good, recipe.gate, feature, models)
    except InputError as error:
        raise InputError(f"{options.folder}: {error}") from error
    records = read_index(options.folder, accepted_only=False)
    made = [record for record in records if "after" in record.parts]
    report["accepted_share_of_made"] = round(sum(record.accepted for record in made) / max(1, len(made)), 3)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    cv2.imwrite(str(options.out / "defects.png"), sheet[..., ::-1])
    print(json.dumps(report, indent=2))
    return 0


def candidate(pair: Pair, feature: Any, models: Models, sketch_detail: float) -> Candidate:
    """A stored pair as it was before it was judged, but for its portrait, which is analysed anew."""
    pair = pair.portrait_first()
    assert pair.before is not None
    person = person_between([pair], models.instruments.prior, models.device)
    width = 4
    before, after = render(models.generator, [person.w0, person.w1], [person.noise] * 2, width)
    image = torch.from_numpy(pair.before).permute(2, 0, 1).float().to(models.device) / 127.5 - 1
    zeros = torch.zeros_like(image[0])
    points = torch.zeros(68, 2, device=models.device)
    bare = Portrait(
        pair.record.portrait, image, zeros.to(torch.uint8), zeros[None], points, pair.record.portrait_digest
    )
    portrait = quality.analyse(bare, image, models.instruments.analyser).portrait
    sketch = feature.sketch(portrait, feature.Params.model_validate(pair.record.params)).with_detail(sketch_detail)
    composed = compose(portrait, Reconstruction(person.w0, person.w1, person.noise, before, after, {}), sketch)
    images = quality.Images(before, after, composed.after, composed.mask)
    return Candidate(portrait, sketch, images, (person.w0, person.w1))


def figures_of(pair: Candidate, params: Any, feature: Any, models: Models) -> dict[str, float]:
    """All figures, as a build measures them."""
    instruments, portrait = models.instruments, pair.portrait
    images = (portrait.image, pair.images.after)
    before, after = (quality.analyse(portrait, image, instruments.analyser) for image in images)
    figures = quality.measure_pair(portrait, pair.sketch, pair.images, pair.latents, instruments, (before, after))
    own: dict[str, float] = feature.measure(portrait, AnalysedPair(before.portrait, after.portrait), params)
    return figures | own


def judge_all(
    good: list[tuple[Pair, Candidate]], gate: GateSettings, feature: Any, models: Models
) -> tuple[dict[str, Any], np.ndarray]:
    """The report, and the sheet of all defects. Raises InputError where the pairs are not of two people."""
    if len({pair.record.portrait_digest for pair, _ in good}) < 2:
        raise InputError("the pairs to break are not of two people, which one defect takes; give more --pairs")
    gate = {name: bounds for name, bounds in gate.items() if not name.startswith(("inversion_", "reconstruction_"))}
    rejected: dict[str, list[bool]] = collections.defaultdict(list)
    kinds: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    rows = []
    for number, (pair, sound) in enumerate(good):
        params = feature.Params.model_validate(pair.record.params)
        other = stranger(good, number)
        row = [cell(to_uint8(sound.portrait.image), CELL_PX)]
        for name, defect in {"none": lambda pair, other, prior: pair, **DEFECTS}.items():
            broken = defect(sound, other, models.instruments.prior)
            figures = figures_of(broken, params, feature, models)
            passed, reasons = quality.judge(figures, gate)
            rejected[name].append(not passed)
            kinds[name].update(reason_kind(reason, pair.record.portrait) for reason in reasons)
            row.append(framed(cell(to_uint8(broken.images.after), CELL_PX), passed and name != "none"))
            print(pair.record.id, name, "passed" if passed else "; ".join(reasons), file=sys.stderr, flush=True)
        rows.append(np.concatenate(row, axis=1))
    report = {
        "pairs": len(good),
        "good_passed": round(1 - float(np.mean(rejected.pop("none"))), 3),
        "rejected_share": {name: round(float(np.mean(flags)), 3) for name, flags in rejected.items()},
        "by": {name: dict(kinds[name].most_common(5)) for name in kinds},
    }
    return report, np.concatenate(rows)


def stranger(good: list[tuple[Pair, Candidate]], number: int) -> Candidate:
    """The next pair of somebody else."""
    own = good[number][0].record.portrait_digest
    order = good[number + 1 :] + good[:number]
    return next(found for pair, found in order if pair.record.portrait_digest != own)


def framed(image: np.ndarray, mark: bool) -> np.ndarray:
    if mark:
        image[:3] = image[-3:] = REJECTED
        image[:, :3] = image[:, -3:] = REJECTED
    return image


if __name__ == "__main__":
    with exit_on_bad_input():
        sys.exit(main())
