"""Makes the pictures of README and docs: pairs of the bundled people (nobody real), by the commands that a user runs.

    python recipes/demo/pictures.py [--out out/pictures] [--docs docs] [--features pairs,bangs,...]

Pairs are built as always, at the generator's 128 px. For the picture each accepted edit is composed once more over the
crop of 256 px: the sketch is drawn at that size, the generated images are enlarged. Who is shown was chosen by eye.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from demo import PHOTOS, call
from PIL import Image

from stylepairs.datagen.compositing.compose import compose
from stylepairs.datagen.features import load_feature
from stylepairs.datagen.images.files import load_photo, to_float, to_uint8
from stylepairs.datagen.pairs.record import Pair
from stylepairs.datagen.pairs.shards import read_pairs
from stylepairs.datagen.portraits.folders import load_portrait
from stylepairs.datagen.portraits.portrait import Portrait
from stylepairs.datagen.reconstruction.reconstruct import Reconstruction
from stylepairs.i2i.edit.editor import Editor

PHOTO_PX = 256
GAP_PX = 6


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
    "teeth": Shown(("params.whiteness=1.0", "params.min_teeth_share=0.005"), (3, 15, 55)),
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
# The shipped editors, on people whom they were not trained on: a row each, the photo and then these.
EDITORS: dict[str, dict[str, Any]] = {
    "embedded:hair_color": {"color": "auburn"},
    "embedded:bangs": {"style": "full", "length": 0.8},
    "embedded:hairline": {"shift": -0.3},
    "embedded:fluffiness": {"volume": 0.12, "where": "both"},
}
EDITED = (47, 52, 41, 42)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out/pictures"), help="working folder; finished pairs stay")
    parser.add_argument("--docs", type=Path, default=Path("docs"))
    parser.add_argument("--features", default=",".join(["pairs", "editors", *FEATURES]))
    options = parser.parse_args()
    images = options.docs / "images"
    for name in options.features.split(","):
        if name == "pairs":
            save(images / "pairs.jpg", first_picture(options.out), PHOTO_PX)
        elif name == "editors":
            save(images / "editors.jpg", editors_picture(), PHOTO_PX)
        else:
            save(images / "features" / f"{name}.jpg", feature_picture(options.out, name), PHOTO_PX // 2)


def first_picture(work: Path) -> list[list[Image.Image]]:
    """Rows of cells: each person before, then with every edit of COLUMNS."""
    edited = [
        cells(work / f"first-{title}", feature, ("pairs_per_portrait=1", setting), ROWS)
        for title, (feature, setting) in COLUMNS.items()
    ]
    return [[edited[0][row][0], *(column[row][1] or grey() for column in edited)] for row in range(len(ROWS))]


def editors_picture() -> list[list[Image.Image]]:
    """Rows of cells: each photo, then its single-pass edits."""
    photos = [load_photo(PHOTOS / "heldout" / f"portrait_{number:03d}.jpg").pixels for number in EDITED]
    editors = [(Editor.load(source), params) for source, params in EDITORS.items()]
    return [
        [Image.fromarray(each) for each in (photo, *(editor(photo, params).pixels for editor, params in editors))]
        for photo in photos
    ]


def feature_picture(work: Path, name: str) -> list[list[Image.Image]]:
    """One row: before and after of the people whose pairs were accepted."""
    shown = FEATURES[name]
    made = cells(work / name, name, (*shown.settings, "pairs_per_portrait=1"), shown.people)
    row = [cell for before, after in made if after is not None for cell in (before, after)]
    if not row:
        raise SystemExit(f"{name}: no pair was accepted")
    return [row]


def cells(
    work: Path, feature: str, settings: tuple[str, ...], people: tuple[int, ...]
) -> list[tuple[Image.Image, Image.Image | None]]:
    """Build a pair of each person; (before, after) of each, None where the pair was not accepted."""
    portraits, pairs = work / "portraits", work / "pairs"
    names = [f"portrait_{number:03d}" for number in people]
    overrides = [part for setting in settings for part in ("--set", setting)]
    for command in (
        ["datagen", "prepare", *(str(next(PHOTOS.glob(f"*/{name}.jpg"))) for name in names), "--out", str(portraits)],
        ["datagen", "build", feature, "--portraits", str(portraits), "--out", str(pairs), "--workers", "1"]
        + ["--cache", str(work.parent / "cache"), *overrides],
    ):
        if call(command):
            raise SystemExit(1)
    made = {pair.record.portrait: pair for pair in read_pairs(pairs, accepted_only=False)}
    found = []
    for name in names:
        portrait, pair = load_portrait(portraits, name), made[name]
        print(f"    {name}: {'; '.join(pair.record.reasons) or 'accepted'}", flush=True)
        after = Image.fromarray(to_uint8(enlarged(pair, portrait))) if pair.record.accepted else None
        found.append((Image.fromarray(to_uint8(portrait.image)), after))
    return found


def enlarged(pair: Pair, portrait: Portrait) -> torch.Tensor:
    """The pair's edit [3,H,W] composed over the portrait at the portrait's own size."""
    feature = load_feature(pair.record.feature)
    sketch = feature.sketch(portrait, feature.Params.model_validate(pair.record.params))
    assert pair.generated_before is not None
    assert pair.generated_after is not None
    before, after = (
        F.interpolate(to_float(image)[None], size=portrait.image.shape[1:], mode="bicubic", align_corners=False)[0]
        for image in (pair.generated_before, pair.generated_after)
    )
    latents = torch.empty(0)
    return compose(portrait, Reconstruction(latents, latents, [], before, after, {}), sketch).after


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
