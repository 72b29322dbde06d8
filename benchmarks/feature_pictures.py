"""Makes one small picture per feature, three people before | after, of people who do not exist: for README and docs.

    python benchmarks/feature_pictures.py PORTRAITS --work DIR [--out docs/images/features] [--features lips,brows]
        [--sources 20] [--people 10] [--cache DIR] [--set KEY=VALUE ...]

Nobody real is shown edited: a person is the mean of two inverted portraits (latents and noise maps), each paired with
the one nearest to it, so that the mean is a face and neither of the two. The means of the nearest (the others look like
double exposures) in which a face is found, the most varied of them first, are a prepared folder, DIR/people; the
ordinary build makes their pairs, and of those accepted the first three are shown. Running again goes on where it
stopped.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F

from stylepairs.datagen.build.inversion_cache import InversionCache
from stylepairs.datagen.build.models import Models, load_models
from stylepairs.datagen.build.plan import plan_build
from stylepairs.datagen.build.settings import BuildRecipe
from stylepairs.datagen.build.shard_runner import BuildEvent, build_pairs
from stylepairs.datagen.images.files import to_uint8, write_png
from stylepairs.datagen.pairs.record import Pair
from stylepairs.datagen.pairs.shards import read_pairs
from stylepairs.datagen.portraits.analysis.analyser import load_analyser
from stylepairs.datagen.portraits.folders import load_portrait, load_portraits
from stylepairs.datagen.portraits.portrait import Portrait
from stylepairs.datagen.reconstruction.inversion import Inversion, invert
from stylepairs.datagen.reconstruction.settings import InversionSettings
from stylepairs.datagen.shell.errors import InputError

# What each picture shows of its feature: overrides of the recipe.
SHOWN = {
    "bangs": ["style=full", "length=0.8"],
    "hairline": ["shift=-0.35", "corners=0.7"],
    "fluffiness": ["volume=0.12", "where=both"],
    "density": [],
    "facial_features": ["parts=all"],
    "face_shape": ["jaw=0.2"],
    "eyes": ["size=0.25", "crease=0.0"],
    "lips": ["color=[berry, red, rose]", "fullness=0.25", "finish=natural"],
    "teeth": ["whiteness=1.0", "min_teeth_share=0.005"],
    "brows": ["arch=0.1", "lift=0.0", "thickness=0.4", "density=0.8"],
    "smile": ["smile=0.8"],
    "hair_color": ["color=[blond, auburn, pink, black]"],
}
PEOPLE_SHOWN = 3
# Of the pairs of portraits: the nearest, whose means are clear.
CLEAR_SHARE = 0.75
CELL_PX = 128
MAX_BYTES = 60_000
# Faces are looked for at this size; generated ones are smaller.
FIND_PX = 256


@dataclasses.dataclass(frozen=True)
class Person:
    """A person who does not exist: the inversion of their picture, found without any optimisation."""

    inversion: Inversion
    points68: np.ndarray
    score: float


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("portraits", type=Path, help="prepared portraits to mix people from")
    parser.add_argument("--work", type=Path, required=True, help="folder for the people and their pairs")
    parser.add_argument("--out", type=Path, default=Path("docs/images/features"))
    parser.add_argument("--features", default=",".join(SHOWN))
    parser.add_argument("--sources", type=int, default=20, help="portraits to mix, spread evenly over the folder")
    parser.add_argument("--people", type=int, default=10)
    parser.add_argument("--cache", type=Path, help="folder of inversions; default: in DIR")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides")
    options = parser.parse_args()
    cache = options.cache or options.work / "cache"
    try:
        if not (options.work / "people" / "landmarks.npz").is_file():
            make_people(options, cache)
        for feature in options.features.split(","):
            print(feature, picture(feature, options.work, cache, options.out, options.overrides), flush=True)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def make_people(options: argparse.Namespace, cache: Path) -> None:
    """Write DIR/people, and their inversions to the cache."""
    models = load_models("embedded", "auto", None, "cpu")
    kept = InversionCache(
        cache,
        models.digest,
        InversionSettings().model_dump(mode="json"),
        models.instruments.names | {"device": "cpu"},
    )
    names = [file.name for file in load_portraits(options.portraits)]
    count = min(options.sources, len(names))
    chosen = [names[index * len(names) // count] for index in range(count)]
    sources = [inverted(load_portrait(options.portraits, name), models, kept) for name in chosen]
    analyser = load_analyser()
    pairs = nearest_pairs(sources)
    mixes = [mixed(one, other, models, analyser) for one, other in pairs[: round(CLEAR_SHARE * len(pairs))]]
    people = most_varied([person for person in mixes if person is not None], options.people)
    write_people(people, options.work / "people", analyser, kept)


def inverted(portrait: Portrait, models: Models, kept: InversionCache) -> Inversion:
    """The portrait's inversion, from the cache or made now."""
    small = portrait.resized(models.image_px)
    found = kept.load(small)
    if found is None:
        instruments = models.instruments
        found = invert(models.generator, instruments.perceptual, [small], InversionSettings(), instruments.prior)[0]
        kept.store(small, found)
    return found


def nearest_pairs(sources: list[Inversion]) -> list[tuple[Inversion, Inversion]]:
    """Each inversion with the one whose latent is nearest, no two twice; the nearest pairs first."""
    ws = torch.stack([source.ws for source in sources])
    distance = (ws[:, None] - ws[None]).square().mean((2, 3)) + torch.diag(torch.full((len(ws),), torch.inf))
    pairs = {(min(index, int(row.argmin())), max(index, int(row.argmin()))) for index, row in enumerate(distance)}
    pairs = sorted(pairs, key=lambda pair: float(distance[pair]))
    return [(sources[one], sources[other]) for one, other in pairs]


def most_varied(people: list[Person], count: int) -> list[Person]:
    """The first, then always the one that is least like those chosen before."""
    chosen = people[:1]
    while len(chosen) < min(count, len(people)):
        rest = [person for person in people if not any(person is other for other in chosen)]
        chosen.append(max(rest, key=lambda person: min(unlikeness(person, other) for other in chosen)))
    return chosen


def unlikeness(one: Person, other: Person) -> float:
    return float((one.inversion.ws - other.inversion.ws).square().mean())


@torch.no_grad()
def mixed(one: Inversion, other: Inversion, models: Models, analyser) -> Person | None:
    """The person halfway between two; None where no face is found in the picture."""
    ws = (one.ws + other.ws) / 2
    noise = [(a + b) / 2 for a, b in zip(one.noise, other.noise, strict=True)]
    ws, noise = ws.half().float(), [level.half().float() for level in noise]
    image = models.generator.synthesis(ws[None], [level[None, None] for level in noise])[0]
    larger = F.interpolate(image[None], size=(FIND_PX, FIND_PX), mode="bicubic", align_corners=False)[0]
    faces = analyser.find(to_uint8(larger), 0.5)
    if not faces:
        return None
    best = max(faces, key=lambda face: float(face.score))
    points = (np.asarray(best.points68, np.float32) + 0.5) * image.shape[-1] / FIND_PX - 0.5
    return Person(Inversion(ws, noise, image, {"psnr": 60.0, "finite": 1.0}), points, float(best.score))


def write_people(people: list[Person], folder: Path, analyser, kept: InversionCache) -> None:
    """A folder as `datagen prepare` writes it; the pictures are their own aligned crops."""
    for kind in ("aligned", "label", "hair"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    names = [f"person_{index:02d}" for index in range(len(people))]
    for name, person in zip(names, people, strict=True):
        aligned = to_uint8(person.inversion.image.clamp(-1, 1))
        label, hair = analyser.parse(aligned[None])
        write_png(folder / "aligned" / f"{name}.png", aligned)
        write_png(folder / "label" / f"{name}.png", label[0].numpy())
        write_png(folder / "hair" / f"{name}.png", (hair[0, 0] * 255).round().byte().numpy())
    rows = [json.dumps({"name": name, "score": person.score}) for name, person in zip(names, people, strict=True)]
    (folder / "index.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    stay = np.tile(np.eye(2, 3), (len(people), 1, 1))
    np.savez(
        folder / "landmarks.npz",
        name=np.array(names, np.str_),
        points68=np.stack([person.points68 for person in people]),
        source_to_aligned=stay,
    )
    for name, person in zip(names, people, strict=True):
        kept.store(load_portrait(folder, name), person.inversion)


def picture(feature: str, work: Path, cache: Path, out: Path, more: list[str]) -> str:
    """Build the feature's pairs, one person after the other until enough are accepted, and write its picture; what
    happened, in a line. more: further overrides of the recipe."""
    from stylepairs.datagen.recipe import load_recipe

    overrides = [f"params.{setting}" for setting in SHOWN[feature]] + ["pairs_per_portrait=1"]
    if feature == "facial_features":  # parts of people who do not exist either
        overrides.append(f"params.references={work / 'people'}")
    recipe = load_recipe(feature, "datagen", BuildRecipe, overrides + more)
    pairs: list[Pair] = []
    for name in [file.name for file in load_portraits(work / "people")]:
        plan = plan_build(recipe, work / "people", work / feature / name, cache=cache)
        build_pairs(dataclasses.replace(plan, names=(name,)), workers=1, on_event=_quiet)
        pairs += read_pairs(plan.out, accepted_only=False)
        accepted = [pair for pair in pairs if pair.record.accepted]
        if len(accepted) == PEOPLE_SHOWN:
            break
    told = f"{len(accepted)} of {len(pairs)} accepted"
    if not accepted:
        return f"{told}; no picture: {sorted({reason for pair in pairs for reason in pair.record.reasons})[:3]}"
    strip = np.concatenate([cell(image) for pair in accepted for image in (pair.before, pair.after)], axis=1)
    out.mkdir(parents=True, exist_ok=True)
    return f"{told}; {write_small(out / f'{feature}.png', strip)} bytes"


def cell(image: np.ndarray | None) -> np.ndarray:
    assert image is not None
    return cv2.resize(image, (CELL_PX, CELL_PX), interpolation=cv2.INTER_AREA)


def write_small(path: Path, pixels: np.ndarray) -> int:
    """Write a PNG of at most MAX_BYTES, in as many shades as that allows; how many bytes it has."""
    data = b""
    for bits in (8, 7, 6, 5):
        step = 1 << (8 - bits)
        rounded = np.minimum((pixels.astype(int) + step // 2) // step * step, 255).astype(np.uint8)
        data = cv2.imencode(".png", rounded[..., ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 9])[1].tobytes()
        if len(data) <= MAX_BYTES:
            break
    path.write_bytes(data)
    return len(data)


def _quiet(event: BuildEvent) -> None:
    if event.note:
        print(event.note, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
