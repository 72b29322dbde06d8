"""Trained restorations beside classical ones on the same degraded portraits: bicubic enlargement, OpenCV's inpainting
(Telea 2004; Bertalmio et al. 2001) and non-local means (Buades et al. 2005).

    python benchmarks/restoration.py RUN... --portraits HELDOUT --out DIR [--limit N] [--shown NAME...]

For each run figures.md and all the rest of `i2i evaluate` go to DIR/RUN, and one sheet.jpg to DIR: for each run photo,
best classical method, run, wanted. OpenCV's inpainting is told where the holes are, and so is "told"; the run itself
finds them. Non-local means is told each photo's true noise and has its strength for it chosen on these portraits: more
than it would know.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path

import cv2
import numpy as np
import torch

from stylepairs.datagen.images.files import to_float, to_uint8
from stylepairs.datagen.images.filters import psnr_db
from stylepairs.datagen.shell.errors import InputError, exit_on_bad_input, nearest
from stylepairs.i2i.edit.editor import Editor
from stylepairs.i2i.identity import Instruments, load_instruments
from stylepairs.i2i.judging import Judged, edited, judged_of, markdown, network_cost, write_report
from stylepairs.i2i.models.checkpoints import load_model
from stylepairs.i2i.models.prepared_glean import prepare
from stylepairs.i2i.train.data import Sample
from stylepairs.i2i.train.degraded import DegradedPortraits, degradation_of
from stylepairs.i2i.train.settings import DegradationSettings
from stylepairs.i2i.train.sides import portrait_records

Method = Callable[[Sample], torch.Tensor]
STRENGTHS = (0.5, 0.75, 1.0, 1.25)  # of non-local means, by the noise's deviation
INPAINT_RADIUS_PX = 3
SHEET_ROWS, SHEET_QUALITY = 4, 88


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--portraits", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--shown", nargs="*", default=[], help="portraits of the sheet; none: the first ones")
    arguments = parser.parse_args()
    for index, run in enumerate(arguments.runs):
        if run.name in (other.name for other in arguments.runs[:index]):
            raise InputError(f"{run}: another run is called {run.name}, too, and both would go to {arguments.out}")
    by, columns = load_instruments(), []
    for run in arguments.runs:
        columns += compare(run, arguments, by)
    sheet = torch.cat([torch.cat(column, 1) for column in columns], 2)
    quality = [cv2.IMWRITE_JPEG_QUALITY, SHEET_QUALITY]
    cv2.imwrite(str(arguments.out / "sheet.jpg"), to_uint8(sheet)[..., ::-1], quality)


@torch.no_grad()
def compare(run: Path, arguments: argparse.Namespace, by: Instruments) -> list[list[torch.Tensor]]:
    """Judge all methods on a run's task; gives the sheet's columns."""
    model, info = load_model(run)
    editor, asked = Editor(prepare(model), info), degradation_of(info)
    records = portrait_records(arguments.portraits)[: arguments.limit]
    names = [record.portrait for record in records]
    for name in arguments.shown:
        if name not in names:
            raise InputError(f"--shown {name}: is none of the {len(names)} portraits{nearest(name, names)}")
    dataset = DegradedPortraits(arguments.portraits, records, model.size_px, (1, 1), asked)
    samples = [dataset[index] for index in range(len(records))]
    methods: dict[str, Method] = {"degraded": lambda sample: sample["photo"], **classical(asked, samples)}
    methods["run"] = lambda sample: edited(editor, sample).output[0]
    if asked.hole_share:
        methods["run, told"] = lambda sample: edited(editor, sample, told=True).output[0]
    judged, images = {}, {}
    for name, method in methods.items():
        images[name] = [method(sample) for sample in samples]
        said = [{"portrait": record.portrait} for record in records]
        judged[name] = judged_of(zip(said, images[name], samples, strict=True), by)
    judged["run"].figures.update(network_cost(editor))
    write_report(arguments.out / run.name, judged)
    print(run.name, markdown(judged, {}), sep="\n", flush=True)
    shown = [names.index(name) for name in arguments.shown or names[:SHEET_ROWS]]
    best = best_classical(judged)
    photos, targets = ([samples[place][name] for place in shown] for name in ("photo", "target"))
    return [photos, *([images[name][place] for place in shown] for name in (best, "run")), targets]


def best_classical(judged: Mapping[str, Judged]) -> str:
    """The one with the highest PSNR."""
    names = [name for name in judged if not name.startswith("run")]
    return max(names, key=lambda name: judged[name].figures["psnr_inside_db"].value)


def classical(asked: DegradationSettings, samples: list[Sample]) -> dict[str, Method]:
    """What there is for a degradation."""
    if asked.hole_share:
        return {"telea": inpainted(cv2.INPAINT_TELEA), "navier-stokes": inpainted(cv2.INPAINT_NS)}
    if asked.scale > 1:  # the photo itself is enlarged bicubically
        return {"bicubic, non-local means": denoised(best_strength(samples))}
    return {"non-local means": denoised(best_strength(samples))}


def inpainted(kind: int) -> Method:
    def method(sample: Sample) -> torch.Tensor:
        holes = (sample["mask"][0] > 0).numpy().astype(np.uint8)
        return to_float(cv2.inpaint(to_uint8(sample["photo"]), holes, INPAINT_RADIUS_PX, kind))

    return method


def denoised(strength: float) -> Method:
    def method(sample: Sample) -> torch.Tensor:
        level = strength * 127.5 * float((sample["photo"] - sample["target"]).std())
        photo = np.ascontiguousarray(to_uint8(sample["photo"])[..., ::-1])
        return to_float(cv2.fastNlMeansDenoisingColored(photo, None, level, level, 7, 21)[..., ::-1].copy())

    return method


def best_strength(samples: list[Sample]) -> float:
    def quality(strength: float) -> float:
        method = denoised(strength)
        return float(np.median([psnr_db(method(each), each["target"], each["mask"]) for each in samples]))

    return max(STRENGTHS, key=quality)


if __name__ == "__main__":
    with exit_on_bad_input():
        main()
