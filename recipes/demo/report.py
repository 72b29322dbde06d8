"""Gathers what the demo made (portraits, pairs, losses, edits) into its page."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import page
from PIL import Image

from stylepairs.datagen.pairs.record import Pair
from stylepairs.datagen.pairs.shards import read_pairs

PORTRAITS_SHOWN = 8
# Of a pair's many figures; `datagen inspect` shows all.
FIGURES = ("color_delta_e", "spill_delta_e", "detail_kept", "shading_kept", "outside_psnr_db", "prior_after")
# What the run's log has besides losses and figures.
NOT_PLOTTED = ("step", "kind", "rate", "gradient_norm")
THUMB_PX = 128
PAIR_PX = 98
# Photos are shown wider than crops: what surrounds the face must be seen to be untouched.
PHOTO_PX = 190
GROUP_PX = 330
# Losses are noisy: the plot shows means of this many logged values at most.
PLOT_POINTS = 60
EDITS_TEXT = (
    "One forward pass for each face; pixels outside the predicted mask keep their values. A photo that the model is "
    "not sure of is left out."
)
SHIPPED_TEXT = "By the models that the package carries. A photo whose faces they are not sure of is left out."


def write(out: Path, photos: Path, edited: Sequence[str], colors: Sequence[str], shipped: Sequence[str]) -> None:
    """Write `out/index.html` from the folders that the stages left in `out`."""
    body = [
        portraits_section(out / "portraits", photos / "train"),
        pairs_section(out / "pairs"),
        losses_section(out / "run"),
        page.section("4. Photos it never saw", EDITS_TEXT, edit_cards(out, photos / "heldout", edited, colors)),
        page.section("5. Other features", SHIPPED_TEXT, edit_cards(out, photos / "heldout", edited, shipped)),
        times_section(out),
    ]
    text = (
        "Hair colour, end to end: portraits are prepared, a rough sketch of each edit is turned into a real-looking "
        "pair by reconstructing a StyleGAN, a model is trained on the pairs and edits photos it never saw, in one pass."
    )
    page.write_page(out / "index.html", "stylepairs: the demo", text, body)


def portraits_section(portraits: Path, photos: Path) -> str:
    rows = [json.loads(line) for line in (portraits / "index.jsonl").read_text().splitlines()]
    cards = []
    for row in rows[:PORTRAITS_SHOWN]:
        name = row["name"]
        label = np.asarray(Image.open(portraits / "label" / f"{name}.png"))
        pictures = [
            page.picture(photos / Path(row["photo"]).name, 100, name),
            page.picture(portraits / "aligned" / f"{name}.png", THUMB_PX, "aligned"),
            page.picture(page.label_picture(label), THUMB_PX, "label map"),
            page.picture(portraits / "hair" / f"{name}.png", THUMB_PX, "hair matte"),
        ]
        cards.append(page.card(pictures))
    text = (
        f"{len(rows)} faces found. Each is aligned by its landmarks and parsed into 19 classes and a soft hair matte."
    )
    return page.section("1. Photos become portraits", text, cards)


def pairs_section(pairs: Path) -> str:
    parts = ("before", "sketch", "mask", "generated_after", "after")
    found = list(read_pairs(pairs, accepted_only=False, parts=parts))
    accepted = sum(pair.record.accepted for pair in found)
    text = (
        f"{accepted} of {len(found)} pairs passed the quality gate. The sketch is matched only at low resolution "
        "and inside the mask; the generator makes it real; outside the mask the photo stays identical to the bit."
    )
    return page.section("2. Sketches become pairs", text, [pair_card(pair, parts) for pair in found])


def pair_card(pair: Pair, parts: Sequence[str]) -> str:
    images = [(part, getattr(pair, part)) for part in parts]
    pictures = [page.picture(image, PAIR_PX, part.replace("_", " ")) for part, image in images if image is not None]
    record = pair.record
    figures = ", ".join(
        f"{name} {record.figures[name]:.3g}" for name in FIGURES if record.figures.get(name) is not None
    )
    verdict = "accepted" if record.accepted else "rejected: " + "; ".join(record.reasons)
    return page.card(
        pictures, f"{record.portrait}, {record.params.get('color')}: {verdict}. {figures}", bad=not record.accepted
    )


def losses_section(run: Path) -> str:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    plots = [
        page.card([page.line_plot(loss_series(rows, kind), "step")], title)
        for kind, title in (("train", "Losses while training"), ("val", "Figures on pairs kept out of training"))
        if loss_series(rows, kind)
    ]
    return page.section(
        "3. A model learns the edit", "Each curve has its own scale; first and last values at right.", plots
    )


def loss_series(rows: Sequence[dict[str, Any]], kind: str) -> dict[str, list[tuple[float, float]]]:
    """The finite figures of one kind of line of the run's log, by name: [(step, value)]."""
    series: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        for name, value in row.items():
            if row["kind"] == kind and name not in NOT_PLOTTED and math.isfinite(value):
                series.setdefault(name, []).append((row["step"], value))
    return {name: smoothed(points) for name, points in series.items() if len({value for _, value in points}) > 1}


def smoothed(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    size = max(1, math.ceil(len(points) / PLOT_POINTS))
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    return [(group[-1][0], sum(y for _, y in group) / len(group)) for group in groups]


def edit_cards(out: Path, photos: Path, edited: Sequence[str], edits: Sequence[str]) -> list[str]:
    """A card for each photo: the photo, then each edit."""
    cards = []
    for name, source, width_px in (
        *((name, photos / f"{name}.jpg", PHOTO_PX) for name in edited),
        ("group", out / "group.png", GROUP_PX),
    ):
        pictures = [page.picture(source, width_px, "photo")]
        for edit in edits:
            pictures += [page.picture(path, width_px, edit) for path in (out / "edited" / edit).glob(f"{name}.*")]
        cards.append(page.card(pictures))
    return cards


def times_section(out: Path) -> str:
    stamps = {p.name.split(".")[1]: json.loads(p.read_text())["seconds"] for p in sorted(out.glob(".*.done"))}
    rows = [(name, f"{seconds:.0f} s") for name, seconds in stamps.items()]
    return page.section("How long it took", "", [page.table(("stage", "time"), rows)])
