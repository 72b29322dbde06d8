"""Pairs made with another method, moved, tinted and compressed, go through `datagen import`: what is found, what is
refused.

    python benchmarks/import_report.py --out out/import [--photos recipes/photos] [--pairs 60] [--json figures.json]

The afters are the features' own sketches composed over the photo without any generator. Good ones are those that pass
the gate as they are; then they are shifted by 0 to 3 pixels, tinted and saved as JPEG. Bad ones show another face,
another pose or another background. Printed: how far the registration is from the shift that was made, what was
accepted, why bad ones were refused; OUT/good.png and OUT/bad.png show some.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image
from scipy import ndimage

from stylepairs.datagen.build.settings import BuildRecipe
from stylepairs.datagen.build.shard_runner import build_pairs
from stylepairs.datagen.compositing.compose import compose
from stylepairs.datagen.features import load_feature
from stylepairs.datagen.images.files import PHOTO_SUFFIXES, read_image, to_uint8, write_png
from stylepairs.datagen.importing.laying import largest_face
from stylepairs.datagen.importing.plan import plan_import
from stylepairs.datagen.pairs import shards
from stylepairs.datagen.pairs.record import Pair
from stylepairs.datagen.portraits.alignment import ffhq_transform, invert_transform
from stylepairs.datagen.portraits.analysis.analyser import FaceAnalyser, load_analyser
from stylepairs.datagen.portraits.portrait import CLASS, Portrait
from stylepairs.datagen.portraits.sketch import SketchRefused
from stylepairs.datagen.recipe import load_recipe
from stylepairs.datagen.reconstruction.reconstruct import Reconstruction
from stylepairs.datagen.shell.errors import InputError, exit_on_bad_input

SIZE_PX = 256
# The edits, in turn.
EDITS = (
    ("hair_color", {"color": "auburn"}),
    ("lips", {"color": "red", "finish": "natural", "fullness": 0.25}),
    ("hair_color", {"color": "light_blond"}),
    ("smile", {"smile": 0.4}),
    ("hair_color", {"color": "black"}),
    ("lips", {"color": "berry", "finish": "gloss"}),
)
WRONGS = ("another face", "another pose", "another background")


@dataclass(frozen=True)
class Scene:
    """A photo [H,W,3] uint8 with its portrait and the transform that cut it out."""

    name: str
    photo: np.ndarray
    portrait: Portrait
    move: np.ndarray


def scenes(folder: Path, analyser: FaceAnalyser) -> list[Scene]:
    found = []
    for path in sorted(path for path in folder.rglob("*") if path.suffix.lower() in PHOTO_SUFFIXES):
        photo = read_image(path)
        try:
            portrait, move = largest_face(path.stem, photo, SIZE_PX, analyser)
        except SketchRefused:
            continue
        found.append(Scene(path.stem, photo, portrait, move))
    return found


def edited(scene: Scene, feature: str, params: dict[str, Any]) -> np.ndarray:
    """The photo with the feature's sketch composed over it. Raises SketchRefused."""
    made, portrait = load_feature(feature), scene.portrait
    settled = made.settled(portrait, made.Params.model_validate(params))
    sketch = made.sketch(portrait, settled)
    nothing = torch.zeros(1, 1)
    drawn = Reconstruction(nothing, nothing, [], portrait.image, sketch.image, {})
    after = compose(portrait, drawn, sketch).after
    change = to_uint8(after).astype(np.float32) - to_uint8(portrait.image)
    back = cv2.warpAffine(change, scene.move, scene.photo.shape[1::-1], flags=cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP)
    return np.clip(np.rint(scene.photo + back), 0, 255).astype(np.uint8)


def moved(image: np.ndarray, x: float, y: float) -> np.ndarray:
    """image [H,W,3] uint8, shifted by splines; its edge is repeated."""
    planes = [ndimage.shift(image[..., c].astype(np.float32), (y, x), order=3, mode="nearest") for c in range(3)]
    shifted: np.ndarray = np.clip(np.rint(np.stack(planes, -1)), 0, 255).astype(np.uint8)
    return shifted


def sent(image: np.ndarray, path: Path, draw: np.random.Generator) -> None:
    """Tinted and saved as a JPEG, as pictures come."""
    gain, offset = draw.uniform(0.9, 1.1, 3), draw.uniform(-8, 8, 3)
    path.parent.mkdir(parents=True, exist_ok=True)
    tinted = np.clip(np.rint(image * gain + offset), 0, 255).astype(np.uint8)
    Image.fromarray(tinted).save(path, quality=int(draw.integers(75, 96)))


def other_face(scene: Scene, other: Scene, _draw: np.random.Generator) -> np.ndarray:
    """The other's photo, its eyes and mouth where the scene's are."""
    size = max(scene.photo.shape)
    own = ffhq_transform(_points(scene), size)
    theirs = ffhq_transform(_points(other), size)
    whole = np.vstack([invert_transform(own), [0, 0, 1]]) @ np.vstack([theirs, [0, 0, 1]])
    return cv2.warpAffine(
        other.photo, whole[:2], scene.photo.shape[1::-1], flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT_101
    )


def other_pose(scene: Scene, _other: Scene, draw: np.random.Generator) -> np.ndarray:
    """The same photo, its person turned, nearer or seen from the side."""
    points = _points(scene)
    centre, side = points[27:].mean(0), np.ptp(points[:17, 0])
    kind = draw.integers(3)
    sign = draw.choice([-1, 1])
    if kind == 0:
        matrix = np.vstack(
            [cv2.getRotationMatrix2D(centre.tolist(), float(sign * draw.uniform(6, 14)), 1.0), [0, 0, 1]]
        )
    elif kind == 1:
        scale = float(1 + sign * draw.uniform(0.1, 0.2))
        matrix = np.vstack([cv2.getRotationMatrix2D(centre.tolist(), 0.0, scale), [0, 0, 1]])
    else:
        box = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]], np.float32) * side
        depth = sign * draw.uniform(0.15, 0.3)
        near = box * np.array([[1, 1 + depth], [1, 1 - depth], [1, 1 - depth], [1, 1 + depth]], np.float32)
        matrix = cv2.getPerspectiveTransform((box + centre).astype(np.float32), (near + centre).astype(np.float32))
    return cv2.warpPerspective(
        scene.photo, matrix, scene.photo.shape[1::-1], flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT_101
    )


def other_background(scene: Scene, other: Scene, _draw: np.random.Generator) -> np.ndarray:
    """The same person before the other's photo, blurred."""
    background = (scene.portrait.label == CLASS["background"]).numpy().astype(np.float32)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    where = cv2.warpAffine(background, scene.move, scene.photo.shape[1::-1], flags=flags)
    where = cv2.GaussianBlur(where, (0, 0), 1.5)[..., None]
    behind = cv2.GaussianBlur(cv2.resize(other.photo, scene.photo.shape[1::-1]), (0, 0), 6)
    return np.clip(np.rint(scene.photo * (1 - where) + behind * where), 0, 255).astype(np.uint8)


def _points(scene: Scene) -> np.ndarray:
    back = invert_transform(scene.move)
    points: np.ndarray = scene.portrait.points68.numpy().astype(np.float64) @ back[:, :2].T + back[:, 2]
    return points


def write_pairs(
    people: list[Scene], count: int, out: Path, wrongs: Sequence[str], seed: int
) -> dict[str, dict[str, Any]]:
    """`count` pairs under out/FEATURE/before and after; name -> what is true of it.

    wrongs: what is wrong with them, in turn; none: nothing. The after without any damage lies under clean.
    """
    spoil: dict[str, Callable[..., np.ndarray]] = dict(
        zip(WRONGS, (other_face, other_pose, other_background), strict=True)
    )
    draw = np.random.default_rng(seed)
    truth: dict[str, dict[str, Any]] = {}
    for number in range(10 * count):
        if len(truth) == count:
            break
        scene = people[number % len(people)]
        feature, told = EDITS[(number + number // len(people)) % len(EDITS)]
        params = load_feature(feature).Params.model_validate(told).model_dump(mode="json")
        kind = wrongs[len(truth) % len(wrongs)] if wrongs else ""
        try:
            clean = after = edited(scene, feature, params)
        except SketchRefused:
            continue
        if kind:
            source = Scene(scene.name, after, scene.portrait, scene.move)
            after = spoil[kind](source, people[(number + 7) % len(people)], draw)
        x, y = draw.uniform(-3, 3, 2)
        name = f"{len(truth):03d}_{scene.name}"
        sent(moved(after, x, y), out / feature / "after" / f"{name}.jpg", draw)
        write_png(out / feature / "before" / f"{name}.png", scene.photo)
        write_png(out / feature / "clean" / f"{name}.png", clean)
        truth[name] = {"feature": feature, "params": params, "shift": [x, y], "wrong": kind}
    for feature in {one["feature"] for one in truth.values()}:
        rows = [json.dumps({"name": name} | one) for name, one in truth.items() if one["feature"] == feature]
        (out / feature / "index.jsonl").write_text("\n".join(rows) + "\n")
    return truth


def imported(folder: Path, truth: dict[str, dict[str, Any]], workers: int, afters: str = "after") -> dict[str, Pair]:
    """Every pair as `datagen import` makes it of the befores and the `afters`."""
    found: dict[str, Pair] = {}
    for feature in sorted({one["feature"] for one in truth.values()}):
        place = folder / feature
        recipe = load_recipe(feature, "datagen", BuildRecipe)
        plan, _ = plan_import(
            recipe,
            place / "before",
            place / afters,
            place / f"pairs-{afters}",
            listed=place / "index.jsonl",
            shard_size=8,
            size_px=SIZE_PX,
        )
        build_pairs(plan, workers=workers)
        pairs = shards.read_pairs(plan.out, accepted_only=False)
        found |= {pair.record.portrait: pair for pair in pairs}
    return found


def errors_px(truth: dict[str, dict[str, Any]], pairs: dict[str, Pair]) -> np.ndarray:
    """How far each registration is from the shift that was made, in the photo's pixels; infinite where none was."""
    errors = []
    for name, one in truth.items():
        origin = pairs[name].record.origin
        told = [float(x) for x in origin["shift_px"].split()] if origin else [np.inf, np.inf]
        errors.append(np.hypot(told[0] - one["shift"][0], told[1] - one["shift"][1]))
    return np.array(errors)


def sheet(pairs: list[Pair], afters: list[np.ndarray], path: Path) -> None:
    """Rows of before, after as it came, after as it is stored, mask, with what was said of it."""
    rows = []
    for pair, came in zip(pairs, afters, strict=True):
        blank = np.full((SIZE_PX, SIZE_PX, 3), 60, np.uint8)
        mask = blank if pair.mask is None else np.repeat(pair.mask[..., None], 3, 2)
        tiles = [pair.before, cv2.resize(came, (SIZE_PX, SIZE_PX)), pair.after, mask]
        row = np.concatenate([blank if tile is None else tile for tile in tiles], 1)
        text = "accepted" if pair.record.accepted else pair.record.reasons[0]
        row = np.concatenate([row, np.full((22, row.shape[1], 3), 255, np.uint8)])
        cv2.putText(row, f"{pair.record.feature}: {text}"[:130], (6, SIZE_PX + 16), 0, 0.42, (0, 0, 0), 1, cv2.LINE_AA)
        rows.append(row)
    half = -(-len(rows) // 2)
    rows += [np.full_like(rows[0], 255)] * (2 * half - len(rows))
    image = np.concatenate([np.concatenate(rows[:half]), np.concatenate(rows[half:])], 1)
    Image.fromarray(image).save(path)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, default=Path(__file__).parents[1] / "recipes" / "photos")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--pairs", type=int, default=60, help="good ones, and as many bad ones")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    people = scenes(options.photos, load_analyser())
    if not people:
        raise InputError(f"{options.photos}: no photo with a face that can be edited; give another --photos")
    tried = write_pairs(people, round(1.6 * options.pairs), options.out / "good", (), options.seed)
    clean = imported(options.out / "good", tried, options.workers, "clean")
    good = {name: one for name, one in tried.items() if clean[name].record.accepted}
    good = dict(list(good.items())[: options.pairs])
    if not good:
        raise InputError(f"{options.photos}: no pair passes the gate undamaged; give more --photos or --pairs")
    for name in tried.keys() - good.keys():
        (options.out / "good" / tried[name]["feature"] / "after" / f"{name}.jpg").unlink()
    bad = write_pairs(people, options.pairs, options.out / "bad", WRONGS, options.seed + 1)
    good_pairs = imported(options.out / "good", good, options.workers)
    bad_pairs = imported(options.out / "bad", bad, options.workers)
    errors = errors_px(good, good_pairs)
    refused = {name: good_pairs[name].record.reasons for name in good if not good_pairs[name].record.accepted}
    passed = {name: one["wrong"] for name, one in bad.items() if bad_pairs[name].record.accepted}
    why = [(bad[name]["wrong"], bad_pairs[name].record.reasons[0].split(":")[0]) for name in bad if name not in passed]
    found = {
        "photos": len(people),
        "good": len(good),
        "shift_error_px": {
            "median": float(np.median(errors)),
            "p95": float(np.quantile(errors, 0.95)),
            "max": float(errors.max()),
        },
        "good_accepted_share": 1 - len(refused) / len(good),
        "good_refused": refused,
        "bad": len(bad),
        "bad_refused_share": 1 - len(passed) / len(bad),
        "bad_accepted": passed,
        "bad_reasons": {" / ".join(key): n for key, n in sorted(Counter(why).items())},
    }
    text = json.dumps(found, indent=2)
    print(text)
    if options.json:
        options.json.write_text(text)
    for kind, truth, pairs in (("good", good, good_pairs), ("bad", bad, bad_pairs)):
        names = list(truth)[:10]
        came = [read_image(options.out / kind / truth[n]["feature"] / "after" / f"{n}.jpg") for n in names]
        sheet([pairs[name] for name in names], came, options.out / f"{kind}.png")
    return 0


if __name__ == "__main__":
    with exit_on_bad_input():
        sys.exit(main())
