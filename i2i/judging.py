"""Judges several models side by side, or any two folders of pictures: distances to what was wanted, kernel distances of
the sets, what else changed, each with a bootstrap interval (`stylepairs.i2i.intervals`).

Sets are compared by the kernel inception distance (KID, Binkowski et al., 2018) and FID on the features whose name each
figure carries; figures of different features cannot be compared.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from stylepairs.datagen.build.quality import analyse
from stylepairs.datagen.features import feature_names, load_feature
from stylepairs.datagen.images.filters import psnr_db
from stylepairs.datagen.images.perceptual import Perceptual, perceptual_distance
from stylepairs.datagen.pairs.record import PairRecord
from stylepairs.datagen.pairs.shards import load_pair, read_index
from stylepairs.datagen.portraits.folders import load_portraits
from stylepairs.datagen.portraits.portrait import Portrait
from stylepairs.datagen.portraits.sketch import AnalysedPair, SketchRefused
from stylepairs.datagen.shell.durable import make_folder, replace_file
from stylepairs.datagen.shell.errors import InputError
from stylepairs.datagen.shell.machine import peak_memory_mb
from stylepairs.i2i.edit.editor import Editor
from stylepairs.i2i.evaluation import faces_left, finite, frechet_distance, frechet_value, portrait_figures
from stylepairs.i2i.identity import Instruments
from stylepairs.i2i.intervals import SHARE, Interval, kernel_interval, median_interval
from stylepairs.i2i.models.conditions import is_told
from stylepairs.i2i.models.glean import Edit
from stylepairs.i2i.train.data import Sample, plain_sample
from stylepairs.i2i.train.degraded import DegradedPortraits, degradation_of
from stylepairs.i2i.train.sides import portrait_records

_PARTS = ("before", "after", "mask")
SHEET_ROWS = 8
_UNMASKED = 0.5 / 255  # of a mask: less is rounding, of one that was resized
_TIMED_PASSES = 9
_PANELS, _LABEL = 3, 28  # of the plot: side by side, and letters of a run's name


@dataclass(frozen=True)
class Judged:
    """One model or folder: its rows (one a picture), its figures with intervals, and pictures [N,3,H,W] for a sheet."""

    rows: list[dict[str, Any]]
    figures: dict[str, Interval]
    pictures: list[torch.Tensor]


Compared = tuple[dict[str, Judged], list[torch.Tensor], list[torch.Tensor]]
Named = tuple[dict[str, Any], Sample]


def judge_pairs(editors: Mapping[str, Editor], pairs: Path, by: Instruments, limit: int | None = None) -> Compared:
    """Each editor on the accepted held-out pairs that all of them know, against the pairs' after pictures.

    All get photo, degree and style alone, and decide where to edit. Gives the judged, and photos and targets for a
    sheet. Raises InputError where no pair is left.
    """
    records = known_pairs(editors, pairs)[:limit]

    def samples(editor: Editor) -> Iterator[Named]:
        told = editor.model.size_px, editor.info.style, editor.info.kinds
        for record in records:
            said = {"pair": record.id, "portrait": record.portrait}
            yield said, plain_sample(load_pair(pairs, record, _PARTS), *told)

    return judge_samples(editors, samples, by)


def known_pairs(editors: Mapping[str, Editor], pairs: Path) -> list[PairRecord]:
    """The accepted held-out pairs of kinds that all editors know. Raises InputError where there is none."""
    records = [
        record
        for record in read_index(pairs, accepted_only=True, split="val")
        if all(
            record.feature == editor.info.feature
            and is_told(editor.info.style, record.params, editor.info.kinds, record.feature)
            for editor in editors.values()
        )
    ]
    if not records:
        wanted = " and ".join(sorted({editor.info.feature for editor in editors.values()}))
        raise InputError(
            f"{pairs}: no accepted held-out pair of {wanted} of a kind that every run knows; build more, or name others"
        )
    return records


def judge_portraits(
    editors: Mapping[str, Editor],
    portraits: Path,
    params: Sequence[Mapping[str, Any]],
    by: Instruments,
    limit: int | None = None,
    say: Callable[[str], None] = print,
) -> Compared:
    """Each editor on prepared portraits with every set of parameters, by what its feature measures (see
    `portrait_figures`). Nothing is compared with, so there are no photos and targets for a sheet. Raises InputError
    where no portrait can be edited.
    """
    files, judged = load_portraits(portraits)[:limit], {}
    for name, editor in editors.items():
        rows, summary = portrait_figures(editor, files, params, by, say)
        if not rows:
            raise InputError(
                f"{portraits}: no portrait could be edited, so there is nothing to measure; name others, or pairs that "
                "were held out (--pairs)"
            )
        figures = {figure: Interval(value) for figure, value in summary.items()}
        judged[name] = Judged(rows, figures | row_intervals(rows) | network_cost(editor), [])
    return judged, [], []


def judge_restored(
    editors: Mapping[str, Editor], portraits: Path, by: Instruments, limit: int | None = None
) -> Compared:
    """Each editor that restores on portraits that are degraded as in its training, against the portraits; beside them,
    as "degraded", what it was given. Raises InputError where the editors were trained to restore different things."""
    asked = [degradation_of(editor.info) for editor in editors.values()]
    if any(each != asked[0] for each in asked):
        raise InputError(f"{', '.join(editors)}: restore different things; judge each by itself")
    records = portrait_records(portraits)[:limit]

    def samples(editor: Editor) -> Iterator[Named]:
        dataset = DegradedPortraits(portraits, records, editor.model.size_px, (1, 1), asked[0])
        return (({"portrait": record.portrait}, dataset[index]) for index, record in enumerate(records))

    judged, photos, targets = judge_samples(editors, samples, by)
    given = ((said, sample["photo"], sample) for said, sample in samples(next(iter(editors.values()))))
    return {"degraded": judged_of(given, by), **judged}, photos, targets


@torch.no_grad()
def judge_samples(
    editors: Mapping[str, Editor], samples_of: Callable[[Editor], Iterable[Named]], by: Instruments
) -> Compared:
    """Each editor on samples of its size, each with what is said of it in its row; as in `judge_pairs`."""
    shown = [sample for _, sample in islice(samples_of(next(iter(editors.values()))), SHEET_ROWS)]
    judged = {}
    for name, editor in editors.items():
        of_all = judged_of(_edits(editor, samples_of(editor)), by)
        left = {"faces_left": Interval(faces_left(of_all.rows))}
        judged[name] = replace(of_all, figures=of_all.figures | left | network_cost(editor))
    return judged, [sample["photo"] for sample in shown], [sample["target"] for sample in shown]


def _edits(editor: Editor, samples: Iterable[Named]) -> Iterator[tuple[dict[str, Any], torch.Tensor, Sample]]:
    for said, sample in samples:
        edit = edited(editor, sample)
        yield said | {"confidence": float(edit.confidence)}, edit.output[0].cpu(), sample


def edited(editor: Editor, sample: Sample, told: bool = False) -> Edit:
    """What `edit` makes of a sample, a batch of one; told: where it may edit, else it decides alone."""
    region = sample["region"] if told else torch.ones_like(sample["region"])
    return editor.edit_crop(sample["photo"], region, sample["degree"], sample["style"])


@torch.no_grad()
def network_cost(editor: Editor) -> dict[str, Interval]:
    """seconds: of one pass of the network over one face, on this machine; memory_mb: that it takes beyond the weights,
    where the system tells."""
    size, device = editor.model.size_px, next(editor.model.parameters()).device
    style = torch.zeros(1, editor.model.config.style_channels)
    inputs = [torch.zeros(1, 3, size, size), torch.ones(1, 1, size, size), torch.ones(1), style]
    inputs = [each.to(device) for each in inputs]
    seconds = []
    for _ in range(1 + _TIMED_PASSES):
        started = time.perf_counter()
        float(editor.model(*inputs).output.sum())  # waits for a GPU, too
        seconds.append(time.perf_counter() - started)
    memory = peak_memory_mb(lambda: editor.model(*inputs)) if device.type == "cpu" else _gpu_memory_mb(editor, inputs)
    return {"seconds": median_interval(seconds[1:]), "memory_mb": Interval(memory)}


def _gpu_memory_mb(editor: Editor, inputs: Sequence[torch.Tensor]) -> float:
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    editor.model(*inputs)
    return (torch.cuda.max_memory_allocated() - before) / 2**20


@torch.no_grad()
def judged_of(
    found: Iterable[tuple[dict[str, Any], torch.Tensor, Mapping[str, torch.Tensor]]],
    by: Instruments,
    say: Callable[[str], None] = print,
) -> Judged:
    """Medians of `picture_figures`, kernel distance and FID to what was wanted, with intervals.

    found: what is said of a picture, the picture, and its `target` and `mask`; taken one by one, so that memory does
    not grow with their number.
    """
    rows: list[dict[str, Any]] = []
    pictures: list[torch.Tensor] = []
    features: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    fid = frechet_distance(by.perceptual)
    for said, picture, sample in found:
        target, mask = sample["target"], sample["mask"]
        rows.append({**said, **picture_figures(picture, target, mask, by)})
        if len(pictures) < SHEET_ROWS:
            pictures.append(picture)
        for image, of, real in ((picture, features[0], False), (target, features[1], True)):
            of.append(pooled(image, mask, by.perceptual))
            fid.update(image[None], real=real)
    figures = row_intervals(rows)
    if len(rows) > 1:
        figures[f"kid_inside_{by.perceptual.name}"] = kernel_interval(
            np.stack(features[0]), np.stack(features[1]), _people(rows)
        )
        figures[f"fid_{by.perceptual.name}"] = Interval(frechet_value(fid, f"fid_{by.perceptual.name}", say))
    return Judged(rows, figures, pictures)


def row_intervals(rows: Sequence[Mapping[str, Any]]) -> dict[str, Interval]:
    """The median of each figure with its interval, over the rows that have it: a mask may leave nothing inside, or
    nothing outside."""
    names = dict.fromkeys(name for row in rows for name, value in row.items() if isinstance(value, float))
    having = {name: [row for row in rows if name in row] for name in names}
    return {name: median_interval([row[name] for row in of], _people(of)) for name, of in having.items()}


def _people(rows: Sequence[Mapping[str, Any]]) -> list[Any]:
    """Who each row is of: its portrait; rows of pictures without one are each of somebody else."""
    return [row.get("portrait", place) for place, row in enumerate(rows)]


@torch.no_grad()
def picture_figures(image: torch.Tensor, target: torch.Tensor, mask: torch.Tensor, by: Instruments) -> dict[str, float]:
    """Of image and target [3,H,W] in [-1,1], inside and outside a mask [1,H,W]: psnr (dB), ssim; the masked perceptual
    distance, and the likeness of the faces; what the mask leaves nothing for is left out.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    _, similar = structural_similarity_index_measure(image[None], target[None], data_range=2.0, return_full_image=True)
    features = by.perceptual.features(image[None]), by.perceptual.features(target[None])
    found = {f"identity_{by.identity.name}": by.identity.likeness(image, target)}
    if float(mask.sum()) > 1:
        distance = float(perceptual_distance(*features, mask[None])[0])
        found = {f"perceptual_{by.perceptual.name}": distance} | found
    for where, part in (("inside", mask), ("outside", (mask < _UNMASKED).float())):
        if float(part.sum()) > 1:
            found[f"psnr_{where}_db"] = psnr_db(image, target, part)
            found[f"ssim_{where}"] = float((similar[0] * part).sum() / (part.sum() * similar.shape[1]))
    return found


def entanglement(editor: Editor, portraits: Iterable[Portrait], params: Mapping[str, Any]) -> dict[str, float]:
    """How much each other feature is found to have changed by an edit: the mean, over portraits, of the change in the
    degree that this feature measures with its own default parameters (0: nothing of it), over the portraits that it
    applies to. Features that measure no degree, or apply to none of the portraits, are left out.
    """
    wanted, found = editor.wanted(params), dict[str, list[float]]()
    others = [name for name in feature_names() if name != editor.info.feature]
    for given in portraits:
        before = given.resized(editor.model.size_px)
        try:
            edit, _ = editor.edit_portrait(before, wanted)
        except SketchRefused:
            continue
        seen, unchanged = (analyse(before, x, editor.analyser).portrait for x in (edit.output[0].cpu(), before.image))
        for name in others:
            feature = load_feature(name)
            try:
                asked = feature.Params()
                feature.sketch(before, asked)  # where it refuses, a degree is a share of next to nothing
                after, as_was = (
                    feature.measure(before, AnalysedPair(unchanged, each), asked).get("degree", math.nan)
                    for each in (seen, unchanged)
                )
            except (SketchRefused, InputError, ValueError):  # no such thing on this face, or a parameter is missing
                continue
            if math.isfinite(after - as_was):
                found.setdefault(name, []).append(abs(after - as_was))
    return {name: float(np.mean(values)) for name, values in found.items()}


def pooled(image: torch.Tensor, mask: torch.Tensor, perceptual: Perceptual) -> np.ndarray:
    """Mean and deviation [2C] of the deepest features where the mask [1,H,W] lies; of all where it is empty."""
    deepest = perceptual.features(image[None].clamp(-1, 1))[-1][0]
    weight = F.interpolate(mask[None], size=deepest.shape[1:], mode="area")[0]
    weight = weight if float(weight.sum()) > 1e-3 else torch.ones_like(weight)
    mean = (deepest * weight).sum((1, 2)) / weight.sum()
    spread = ((deepest - mean[:, None, None]).square() * weight).sum((1, 2)) / weight.sum()
    return torch.cat([mean, spread.sqrt()]).double().numpy()


def write_report(
    out: Path,
    judged: Mapping[str, Judged],
    entangled: Mapping[str, Mapping[str, float]] | None = None,
    sheet: Sequence[Sequence[torch.Tensor]] = (),
    say: Callable[[str], None] = print,
) -> None:
    """figures.json, figures.md, sheet.png (a row a picture; columns as `sheet` gives them) and, with matplotlib,
    figures.png into a folder."""
    make_folder(out)
    data: dict[str, Any] = {
        name: {"figures": {key: finite(vars(value)) for key, value in one.figures.items()},
               "rows": [finite(row) for row in one.rows]}
        for name, one in judged.items()
    }  # fmt: skip
    if entangled:
        data["entanglement"] = {name: dict(values) for name, values in entangled.items()}
    text = json.dumps(data, indent=1, allow_nan=False)
    replace_file(out / "figures.json", lambda file: file.write(text.encode()))
    replace_file(out / "figures.md", lambda file: file.write(markdown(judged, entangled or {}).encode()))
    if sheet:
        from stylepairs.datagen.images.files import to_uint8, write_png

        side = max(image.shape[-1] for column in sheet for image in column)
        columns = [torch.cat([_at(image, side) for image in column[:SHEET_ROWS]], 1) for column in sheet]
        write_png(out / "sheet.png", to_uint8(torch.cat(columns, 2)))
    try:
        _plot(out / "figures.png", judged)
    except ImportError:
        say("figures.png is left out: pip install matplotlib")


def markdown(judged: Mapping[str, Judged], entangled: Mapping[str, Mapping[str, float]]) -> str:
    """A table with a column for each judged, and the matrix of entanglement."""
    names = list(dict.fromkeys(name for one in judged.values() for name in one.figures))
    lines = [f"| figure | {' | '.join(judged)} |", "|---" * (len(judged) + 1) + "|"]
    for name in names:
        cells = [str(one.figures[name]) if name in one.figures else "" for one in judged.values()]
        lines.append(f"| {name} | {' | '.join(cells)} |".replace(" [nan, nan]", ""))
    lines += ["", f"Medians, with {SHARE:.0%} bootstrap intervals; kernel distances times 1000."]
    if entangled:
        features = sorted({name for row in entangled.values() for name in row})
        lines += ["", f"| changes of | {' | '.join(features)} |", "|---" * (len(features) + 1) + "|"]
        for run, row in entangled.items():
            lines.append(f"| {run} | {' | '.join(f'{row[f]:.3f}' if f in row else '' for f in features)} |")
    return "\n".join(lines) + "\n"


def _at(image: torch.Tensor, side: int) -> torch.Tensor:
    return F.interpolate(image[None], size=(side, side), mode="bilinear")[0]


def _plot(path: Path, judged: Mapping[str, Judged]) -> None:
    """A panel a figure, a line a run, their names at the left of each row of panels."""
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(name for one in judged.values() for name in one.figures))
    rows = math.ceil(len(names) / _PANELS)
    figure = Figure(figsize=(11, rows * (0.8 + 0.25 * len(judged))), layout="constrained")
    for index, name in enumerate(names):
        axes = figure.add_subplot(rows, _PANELS, index + 1)
        for place, one in enumerate(judged.values()):
            each = one.figures.get(name, Interval(math.nan))
            known = math.isfinite(each.low)
            bounds = [[max(each.value - each.low, 0)], [max(each.high - each.value, 0)]] if known else None
            axes.errorbar([each.value], [place], xerr=bounds, fmt="o", capsize=3, markersize=4)
        labels = [run[-_LABEL:] for run in judged] if index % _PANELS == 0 else [""] * len(judged)
        axes.set_yticks(range(len(judged)), labels, fontsize=8)
        axes.set_ylim(len(judged) - 0.5, -0.5)
        axes.set_title(name, fontsize=8)
        axes.tick_params("x", labelsize=7)
        axes.grid(axis="x", alpha=0.3)
    replace_file(path, lambda file: figure.savefig(file, format="png", dpi=110))
