"""Makes the pictures of README and docs: pairs of the bundled people (nobody real), by the commands that a user runs.

    python recipes/demo/pictures.py [--out out/pictures] [--docs docs] [--features pairs,bangs,...]

Pairs are built with `embedded:256` and shown as they are. Who is shown was chosen by eye among accepted ones.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch.nn.functional as F
from demo import PHOTOS, call
from PIL import Image

from stylepairs.datagen.features import load_feature
from stylepairs.datagen.images.files import load_photo, to_uint8
from stylepairs.datagen.pairs.record import Pair
from stylepairs.datagen.pairs.shards import read_pairs
from stylepairs.datagen.portraits.folders import load_portrait
from stylepairs.datagen.portraits.portrait import Portrait
from stylepairs.datagen.portraits.sketch import Sketch
from stylepairs.datagen.reconstruction.objective import downsample
from stylepairs.i2i.edit.editor import Editor

GENERATOR, PHOTO_PX = "embedded:256", 256
GAP_PX = 6
# A feature's picture shows the edit alone: a square so much wider than what it changes, at least a share of the crop.
FEATURE_PX, ROOM, LEAST_SHARE = 160, 1.3, 0.35
# Change of a channel, of 255, that counts as edited there.
SEEN = 12


@dataclass(frozen=True)
class Shown:
    """What a picture shows of a feature: settings of its recipe, and the numbers of the people."""

    settings: tuple[str, ...]
    people: tuple[int, ...]


FEATURES = {
    "bangs": Shown(("params.style=full", "params.length=0.8"), (5, 15, 47)),
    "hairline": Shown(("params.shift=-0.3", "params.corners=0.0"), (8, 18, 25)),
    "fluffiness": Shown(("params.volume=0.12", "params.where=both"), (5, 1, 41)),
    "density": Shown(("params.made_from=thin",), (38, 51, 12)),
    "facial_features": Shown(("params.parts=eyes",), (5, 41, 27)),
    "face_shape": Shown(("params.jaw=0.2",), (5, 8, 31)),
    "eyes": Shown(("params.size=0.25", "params.crease=0.0"), (15, 25, 27)),
    "lips": Shown(("params.color=[berry, red, rose]", "params.fullness=0.25", "params.finish=natural"), (1, 5, 41)),
    "teeth": Shown(("params.whiteness=1.0", "params.min_teeth_share=0.005", "params.min_opening=0.0"), (3, 15, 55)),
    "brows": Shown(("params.arch=0.1", "params.lift=0.0", "params.thickness=0.4", "params.density=0.8"), (5, 13, 27)),
    "smile": Shown(("params.smile=0.8",), (5, 8, 13)),
    "hair_color": Shown(("params.color=auburn",), (1, 8, 27)),
}
# The first picture: a row for each person, before and then these.
COLUMNS = {
    "blond": ("hair_color", "params.color=blond"),
    "auburn": ("hair_color", "params.color=auburn"),
    "black": ("hair_color", "params.color=black"),
    "bangs": ("bangs", "params.style=full"),
    "smile": ("smile", "params.smile=0.8"),
}
ROWS = (5, 8, 47, 27)
# How a pair comes about, a row each: which column of the first picture, and whose.
STEPS = (("auburn", 5), ("bangs", 47))
# The shipped editors, on people whom they were not trained on: a row each, the photo and then these.
EDITORS: dict[str, dict[str, Any]] = {
    "embedded:hair_color": {"color": "blond"},
    "embedded:bangs": {"style": "full", "length": 0.8},
    "embedded:hairline": {"shift": -0.3},
    "embedded:fluffiness": {"volume": 0.12, "where": "both"},
    "embedded:smile": {"smile": 0.8},
    "embedded:lips": {"color": "red", "fullness": 0.2},
}
EDITED = (41, 53, 42, 44)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out/pictures"), help="working folder; finished pairs stay")
    parser.add_argument("--docs", type=Path, default=Path("docs"))
    parser.add_argument("--features", default=",".join(["pairs", "steps", "editors", *FEATURES]))
    options = parser.parse_args()
    images, names = options.docs / "images", options.features.split(",")
    for name in names:
        if name not in (known := ("pairs", "steps", "editors", *FEATURES)):
            parser.error(f"--features {name}: unknown; choose of {','.join(known)}")
    for name in names:
        if name == "pairs":
            save(images / "pairs.jpg", first_picture(options.out), PHOTO_PX)
        elif name == "steps":
            save(images / "steps.jpg", steps_picture(options.out), PHOTO_PX * 3 // 4)
        elif name == "editors":
            save(images / "editors.jpg", editors_picture(), PHOTO_PX)
        else:
            save(images / "features" / f"{name}.jpg", feature_picture(options.out, name), FEATURE_PX)


def first_picture(work: Path) -> list[list[Image.Image]]:
    """Rows of cells: each person before, then with every edit of COLUMNS."""
    edited = [[shown(pair) for _, pair in column(work, title)] for title in COLUMNS]
    return [[edited[0][row][0], *(cells[row][1] or grey() for cells in edited)] for row in range(len(ROWS))]


def steps_picture(work: Path) -> list[list[Image.Image]]:
    """Rows of cells: photo, sketch, the sketch as reconstruction sees it, the generator's image, the finished pair."""
    rows = []
    for title, number in STEPS:
        portrait, pair = column(work, title)[ROWS.index(number)]
        sketch = sketch_of(pair, portrait)
        assert pair.generated_after is not None
        assert pair.after is not None
        small = F.interpolate(downsample(sketch.image[None], sketch.reference_px), size=PHOTO_PX)[0]
        pictures = [to_uint8(x) for x in (portrait.image, sketch.image, small)]
        pictures += [pair.generated_after, pair.after]
        rows.append([Image.fromarray(picture) for picture in pictures])
    return rows


def column(work: Path, title: str) -> list[tuple[Portrait, Pair]]:
    """The pairs of a column of the first picture."""
    feature, setting = COLUMNS[title]
    return built(work / f"first-{title}", feature, ("pairs_per_portrait=1", setting), ROWS)


def editors_picture() -> list[list[Image.Image]]:
    """Rows of cells: each photo, then its single-pass edits."""
    photos = [load_photo(PHOTOS / "heldout" / f"portrait_{number:03d}.jpg").pixels for number in EDITED]
    editors = [(Editor.load(source), params) for source, params in EDITORS.items()]
    return [
        [Image.fromarray(each) for each in (photo, *(editor(photo, params).pixels for editor, params in editors))]
        for photo in photos
    ]


def feature_picture(work: Path, name: str) -> list[list[Image.Image]]:
    """One row: before and after of the first person whose pair was accepted, where it is edited."""
    asked = FEATURES[name]
    for _, pair in built(work / name, name, (*asked.settings, "pairs_per_portrait=1"), asked.people):
        before, after = shown(pair)
        if after is not None:
            place = where_edited(np.asarray(before), np.asarray(after))
            return [[before.crop(place), after.crop(place)]]
    raise SystemExit(f"{name}: no pair was accepted")


def where_edited(before: np.ndarray, after: np.ndarray) -> tuple[int, int, int, int]:
    """A square (left, top, right, bottom) around what differs, with some room."""
    rows, columns = np.nonzero(np.abs(before.astype(int) - after).max(2) > SEEN)
    ends = [(int(x.min()), int(x.max())) for x in (columns, rows)]
    wide = ROOM * max(high - low for low, high in ends)
    side = round(min(max(wide, LEAST_SHARE * len(before)), len(before)))
    left, top = (min(max((low + high - side) // 2, 0), len(before) - side) for low, high in ends)
    return left, top, left + side, top + side


def built(work: Path, feature: str, settings: tuple[str, ...], people: tuple[int, ...]) -> list[tuple[Portrait, Pair]]:
    """Build a pair of each person; what is finished there stays."""
    portraits, pairs = work / "portraits", work / "pairs"
    names = [f"portrait_{number:03d}" for number in people]
    overrides = [part for setting in settings for part in ("--set", setting)]
    for command in (
        ["datagen", "prepare", *(str(next(PHOTOS.glob(f"*/{name}.jpg"))) for name in names), "--out", str(portraits)],
        ["datagen", "build", feature, "--portraits", str(portraits), "--out", str(pairs), "--workers", "1"]
        + ["--generator", GENERATOR, "--cache", str(work.parent / "cache"), *overrides],
    ):
        if call(command):
            raise SystemExit(1)
    made = {pair.record.portrait: pair for pair in read_pairs(pairs, accepted_only=False)}
    for name in names:
        print(f"    {name}: {'; '.join(made[name].record.reasons) or 'accepted'}", flush=True)
    return [(load_portrait(portraits, name), made[name]) for name in names]


def shown(pair: Pair) -> tuple[Image.Image, Image.Image | None]:
    """A pair before and after; no after where it was not accepted."""
    assert pair.before is not None
    assert pair.after is not None
    return Image.fromarray(pair.before), Image.fromarray(pair.after) if pair.record.accepted else None


def sketch_of(pair: Pair, portrait: Portrait) -> Sketch:
    """The pair's sketch."""
    feature = load_feature(pair.record.feature)
    return feature.sketch(portrait, feature.Params.model_validate(pair.record.params))


def grey() -> Image.Image:
    return Image.new("RGB", (PHOTO_PX, PHOTO_PX), "lightgrey")


def save(path: Path, rows: list[list[Image.Image]], side_px: int) -> None:
    """All cells as one picture."""
    step = side_px + GAP_PX
    picture = Image.new("RGB", (step * len(rows[0]) - GAP_PX, step * len(rows) - GAP_PX), "white")
    for y, row in enumerate(rows):
        for x, cell in enumerate(row):
            picture.paste(cell.resize((side_px, side_px), Image.Resampling.LANCZOS), (x * step, y * step))
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, quality=92, optimize=True)
    print(path, flush=True)


if __name__ == "__main__":
    main()
