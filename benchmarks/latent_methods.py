"""Latent methods beside each other: every one edits the same people to the same measured change.

    python benchmarks/latent_methods.py SAMPLES --out DIR [--mapper FILE] [--people 20] [--pairs 24]
    python benchmarks/latent_methods.py SAMPLES --out DIR --portraits DIR --encoder FILE --only interfacegan

SAMPLES: of `datagen latent sample`, with the scores of EDITS and WATCHED. Every method's strength is searched for each
person until the attribute has changed by CHANGE deviations, by the same measurement; what else changed is compared:

success       share of people whose change came within a fifth of the wanted one
others        mean absolute change of the other attributes, in their deviations: the entanglement
identity      cosine of deep features of the face, before and after
outside       PSNR in dB outside the attribute's region, grown
seconds       of a processor for one edit at a known strength, rendering included

`pairs_i2i` is this project's own way beside the papers': the shipped editors, trained on mask-guided pairs, whose
strength is their degree. They see the picture, not the latent.

People are drawn from the generator with a seed of their own (none is among the samples): inversion errors are no part
of the comparison. With --encoder they are the codes of portraits, which tells how well that encoder's codes can be
edited: "before" is then what the code renders. Intervals are 95 % of a bootstrap over people. Finished edits
(DIR/METHOD-ATTRIBUTE.json) are kept; delete them to make them again, for another generator or analyser.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from stylepairs.datagen.images.filters import psnr_db
from stylepairs.datagen.images.perceptual import Perceptual, load_perceptual
from stylepairs.datagen.latent.attributes import ATTRIBUTES
from stylepairs.datagen.latent.edits import Edit
from stylepairs.datagen.latent.fitting import Wanted, fit, refine, spread
from stylepairs.datagen.latent.methods import mask_face_gan
from stylepairs.datagen.latent.methods.coarse_to_fine import edit_and_warp, region_of
from stylepairs.datagen.latent.methods.latent_mapper import AttributeEdit, load_mapper
from stylepairs.datagen.latent.people import Person, encoded_people, sampled_people
from stylepairs.datagen.latent.pictures import write_strip
from stylepairs.datagen.latent.samples import Samples, load_samples
from stylepairs.datagen.latent.scorers import Scorer, load_scorer
from stylepairs.datagen.reconstruction.rendering import use_channels_last
from stylepairs.datagen.reconstruction.settings import OptimiserSettings
from stylepairs.datagen.shell.errors import InputError
from stylepairs.datagen.stylegan.checkpoints import generator_digest, load_generator
from stylepairs.datagen.stylegan.generator import Generator
from stylepairs.i2i.edit.editor import Editor

# Attribute -> what is asked of it: its sign, and the attributes that the conditional boundary leaves alone.
EDITS = {
    "fringe": (1, ("hair_lightness", "hair_length")),
    "hair_lightness": (1, ("skin_lightness", "background_lightness")),
    "hairline_height": (-1, ("hair_volume", "hair_lightness")),
    "hair_volume": (1, ("hair_length", "background_lightness")),
    "smile": (1, ("background_lightness", "hair_lightness")),
    "yaw": (1, ("smile", "background_lightness")),
}
WATCHED = (
    "hair_lightness", "hair_length", "fringe", "hairline_height", "hair_volume", "smile", "mouth_open", "eye_opening",
    "yaw", "pitch", "face_width", "skin_lightness", "background_lightness",
)  # fmt: skip
CHANGE = 1.0
TOLERANCE = 0.2
SEED = 1_000_003
PSI = 0.7
STRENGTHS = (0.5, 1.0, 1.5, 2.0, 3.0)
# Attribute -> the editor whose pairs change it, and what it is asked for; its degree is the strength by the largest.
EDITORS: dict[str, tuple[str, dict[str, Any]]] = {
    "fringe": ("embedded:bangs", {"style": "full", "length": 0.9}),
    "hair_lightness": ("embedded:hair_color", {"color": "light_blond"}),
    "hairline_height": ("embedded:hairline", {"shift": -0.35}),
    "hair_volume": ("embedded:fluffiness", {"volume": 0.12, "where": "both"}),
}
REFINED = 2  # halvings of the bracket after the grid
MASK_FACE_GAN_PEOPLE, MASK_FACE_GAN_STEPS = 4, 60

Render = Callable[[Person, float], torch.Tensor]  # a person at a strength -> [3,H,W]


@dataclass(frozen=True)
class Bench:
    """What all methods share."""

    generator: Generator
    digest: str
    samples: Samples
    scorer: Scorer
    deviations: torch.Tensor
    perceptual: Perceptual
    people: list[Person]

    @torch.no_grad()
    def scores(self, images: torch.Tensor) -> torch.Tensor:
        return self.scorer(images.clamp(-1, 1)) / self.deviations


@dataclass(frozen=True)
class Row:
    """One edited person."""

    reached: float
    others: float
    identity: float
    outside_db: float
    changes: list[float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("samples", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--generator", default="embedded")
    parser.add_argument("--mapper", type=Path, help="of `datagen latent train-mapper`, with the attributes of EDITS")
    parser.add_argument("--portraits", type=Path, help="with --encoder: whose codes are edited")
    parser.add_argument("--encoder", type=Path, help="of `datagen train-encoder`, without noise maps")
    parser.add_argument("--people", type=int, default=20)
    parser.add_argument("--pairs", type=int, default=24, help="of the fine boundaries")
    parser.add_argument("--only", default="", help="methods, with commas")
    parser.add_argument("--attributes", default=",".join(EDITS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    generator = load_generator(options.generator)
    use_channels_last(generator)
    samples, scorer = load_samples(options.samples), load_scorer(WATCHED)
    digest = generator_digest(generator)
    if options.encoder is None:
        people = sampled_people(generator, options.people, PSI, SEED)
    else:
        people = encoded_people(generator, digest, options.portraits, options.people, options.encoder)
    bench = Bench(
        generator,
        digest,
        samples,
        scorer,
        spread(samples, WATCHED),
        load_perceptual("auto"),
        people,
    )
    options.out.mkdir(parents=True, exist_ok=True)
    names = options.only.split(",") if options.only else list(METHODS)
    for attribute in options.attributes.split(","):
        for method in names:
            path = options.out / f"{method}-{attribute}.json"
            if path.exists():
                continue
            result = run(bench, method, attribute, options)
            if result is not None:
                path.write_text(json.dumps(result, indent=1))
                print(line(result), flush=True)
    (options.out / "table.md").write_text(table(options.out))


def run(bench: Bench, method: str, attribute: str, options: argparse.Namespace) -> dict | None:
    """The figures of one method on one attribute; None where the method does not apply."""
    started = time.process_time()
    try:
        render = METHODS[method](bench, attribute, options)
    except InputError as error:
        print(f"{method} {attribute}: {error}")
        return None
    if render is None:
        return None
    fitted_s = time.process_time() - started
    people = bench.people[:MASK_FACE_GAN_PEOPLE] if method == "mask_face_gan" else bench.people
    rows, strip, seconds = [], [], []
    for person in people:
        with torch.no_grad():
            before = bench.generator.synthesis(person.ws[None])[0].clamp(-1, 1)
        strength, after = searched(bench, attribute, person, before, render, method == "mask_face_gan")
        began = time.process_time()
        if method != "mask_face_gan":
            render(person, strength)
        seconds.append(time.process_time() - began)
        rows.append(measured(bench, attribute, before, after))
        strip.append(torch.stack([before, after]))
    write_strip(options.out / f"{method}-{attribute}.png", [torch.cat(strip[:6])])
    return {
        "method": method,
        "attribute": attribute,
        "people": len(people),
        "fit_s": fitted_s,
        "seconds": float(np.median(seconds)),
        "rows": [asdict(row) for row in rows],
    }


def searched(
    bench: Bench, attribute: str, person: Person, before: torch.Tensor, render: Render, once: bool
) -> tuple[float, torch.Tensor]:
    """The strength at which the attribute has changed by CHANGE, and the picture there; once: at CHANGE alone."""
    sign = EDITS[attribute][0]
    column = WATCHED.index(attribute)
    start = bench.scores(before[None])[0, column]

    def tried(strength: float) -> tuple[float, torch.Tensor]:
        image = render(person, sign * strength).clamp(-1, 1)
        return float((bench.scores(image[None])[0, column] - start) * sign), image

    if once:
        return sign * CHANGE, tried(CHANGE)[1]
    found = [(0.0, 0.0, before)]
    for strength in STRENGTHS:
        found.append((strength, *tried(strength)))
        if found[-1][1] >= CHANGE:
            break
    for _ in range(REFINED):
        above = [each for each in found if each[1] >= CHANGE]
        if not above:
            break
        high = min(above)
        low = max(each for each in found if each[0] < high[0])
        middle = (low[0] + high[0]) / 2
        found.append((middle, *tried(middle)))
    best = min(found, key=lambda each: abs(each[1] - CHANGE) if math.isfinite(each[1]) else math.inf)
    return sign * best[0], best[2]


@torch.no_grad()
def measured(bench: Bench, attribute: str, before: torch.Tensor, after: torch.Tensor) -> Row:
    both = torch.stack([before, after]).clamp(-1, 1)
    scores = bench.scores(both)
    changes = (scores[1] - scores[0]).nan_to_num(0.0)
    column = WATCHED.index(attribute)
    others = torch.cat([changes[:column], changes[column + 1 :]]).abs().mean()
    seen = bench.scorer.reader.read(both)
    face = seen.labelled("skin", "nose", "l_eye", "r_eye", "mouth", "u_lip", "l_lip", "l_brow", "r_brow")[:1]
    features = bench.perceptual.features(both)[-1]
    weight = F.interpolate(face, size=features.shape[-2:], mode="area")[0, 0]
    same = (F.cosine_similarity(features[0], features[1], dim=0) * weight).sum() / weight.sum().clamp_min(1e-6)
    classes = ATTRIBUTES[attribute].classes
    outside = math.nan
    if classes:
        keep = 1 - region_of(bench.scorer.reader, both, classes)
        outside = psnr_db(both[1], both[0], keep)
    reached = float(changes[column]) * EDITS[attribute][0]
    return Row(reached, float(others), float(same), outside, changes.tolist())


def by_edit(bench: Bench, edit: Edit) -> Render:
    def render(person: Person, strength: float) -> torch.Tensor:
        with torch.no_grad():
            return edit.render(bench.generator, person.ws[None], strength)[0]

    return render


def _fitted(name: str, conditional: bool, bench: Bench, attribute: str, options: argparse.Namespace) -> Render:
    conditions = EDITS[attribute][1] if conditional else ()
    return by_edit(
        bench, fit(name, bench.generator, bench.digest, bench.samples, Wanted(attribute, conditions=conditions))
    )


def _fine(bench: Bench, attribute: str, options: argparse.Namespace) -> Render | None:
    if not ATTRIBUTES[attribute].classes:
        return None
    coarse = fit("interfacegan", bench.generator, bench.digest, bench.samples, Wanted(attribute))
    sign = EDITS[attribute][0]
    return by_edit(bench, refine(bench.generator, bench.samples, coarse, 1.5 * sign, options.pairs))


def _mapper(bench: Bench, attribute: str, options: argparse.Namespace) -> Render | None:
    if options.mapper is None:
        return None
    return by_edit(bench, AttributeEdit(load_mapper(options.mapper, bench.generator, bench.digest), attribute))


def _pasted(bench: Bench, attribute: str, options: argparse.Namespace) -> Render | None:
    """The boundary of InterFaceGAN, warped and pasted in the region alone (coarse-to-fine's last step)."""
    classes = ATTRIBUTES[attribute].classes
    if not classes:
        return None
    edit = fit("interfacegan", bench.generator, bench.digest, bench.samples, Wanted(attribute))
    return lambda person, strength: edit_and_warp(
        bench.generator, bench.scorer.reader, edit, person, strength, classes
    )[0]


def _mask_face_gan(bench: Bench, attribute: str, options: argparse.Namespace) -> Render | None:
    if not ATTRIBUTES[attribute].classes:
        return None
    scorer = load_scorer([attribute])
    deviation = float(bench.deviations[WATCHED.index(attribute)])
    steps = {"steps": MASK_FACE_GAN_STEPS - 1, "decay_steps": 1, "batch": 1, "precision": "fp32"}
    settings = OptimiserSettings.model_validate(steps)

    def render(person: Person, strength: float) -> torch.Tensor:
        wanted = mask_face_gan.Wanted(strength)
        return mask_face_gan.edit(bench.generator, scorer, deviation, [person], wanted, settings)[0][1]

    return render


def _pairs_i2i(bench: Bench, attribute: str, options: argparse.Namespace) -> Render | None:
    """A single-pass editor on what the generator renders; its whole degree stands for the largest strength."""
    if attribute not in EDITORS:
        return None
    source, params = EDITORS[attribute]
    editor = Editor.load(source, device="cpu")
    if editor.model.size_px != bench.generator.config.img_resolution:
        return None
    style = editor.wanted(params).style[None]

    def render(person: Person, strength: float) -> torch.Tensor:
        with torch.no_grad():
            image = bench.generator.synthesis(person.ws[None]).clamp(-1, 1)
            degree = torch.tensor([abs(strength) / STRENGTHS[-1]])
            edited: torch.Tensor = editor.model(image, torch.ones_like(image[:, :1]), degree, style).output
        return edited[0]

    return render


METHODS: dict[str, Callable[[Bench, str, argparse.Namespace], Render | None]] = {
    "interfacegan": partial(_fitted, "interfacegan", False),
    "conditional": partial(_fitted, "interfacegan", True),
    "sefa": partial(_fitted, "sefa", False),
    "ganspace": partial(_fitted, "ganspace", False),
    "stylespace": partial(_fitted, "stylespace", False),
    "mapper": _mapper,
    "fine_boundary": _fine,
    "pasted": _pasted,
    "mask_face_gan": _mask_face_gan,
    "pairs_i2i": _pairs_i2i,
}


def line(result: dict) -> str:
    figures = summary(result)
    return f"{result['method']:14} {result['attribute']:16} " + "  ".join(f"{k} {v}" for k, v in figures.items())


def summary(result: dict) -> dict[str, str]:
    rows = result["rows"]
    success = np.mean([abs(row["reached"] - CHANGE) <= TOLERANCE for row in rows])
    figures = {"success": f"{100 * success:.0f} %"}
    for name, digits in (("others", 2), ("identity", 3), ("outside_db", 1)):
        values = np.array([row[name] for row in rows if row[name] is not None])
        figures[name] = interval(values[np.isfinite(values)], digits)
    return figures | {"seconds": f"{result['seconds']:.2f}"}


def interval(values: Sequence[float], digits: int) -> str:
    """Mean and 95 % of a bootstrap: "0.41 (0.36 to 0.47)"."""
    if len(values) == 0:
        return "-"
    draws = np.random.default_rng(0).choice(values, (2000, len(values))).mean(1)
    low, high = np.percentile(draws, [2.5, 97.5])
    return f"{np.mean(values):.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def table(folder: Path) -> str:
    results = [json.loads(path.read_text()) for path in sorted(folder.glob("*-*.json"))]
    lines = []
    for attribute in EDITS:
        chosen = [result for result in results if result["attribute"] == attribute]
        if not chosen:
            continue
        chosen.sort(key=lambda result: list(METHODS).index(result["method"]))
        lines += [f"### {attribute}", "| method | success | other attributes | identity | outside, dB | s |"]
        lines += ["|---|---|---|---|---|---|"]
        lines += [f"| {result['method']} | " + " | ".join(summary(result).values()) + " |" for result in chosen]
        lines += ["", "Mean change of each attribute, in deviations:", "", "| method | " + " | ".join(WATCHED) + " |"]
        lines += ["|---" * (len(WATCHED) + 1) + "|"]
        for result in chosen:
            means = np.mean([row["changes"] for row in result["rows"]], 0)
            lines.append(f"| {result['method']} | " + " | ".join(f"{value:+.1f}" for value in means) + " |")
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
