"""Latent methods beside each other: every one edits the same people to the same measured change.

    python benchmarks/latent_methods.py SAMPLES --out DIR [--mapper FILE] [--people 100] [--pairs 64]
    python benchmarks/latent_methods.py SAMPLES --out DIR --portraits DIR --encoder FILE --only interfacegan

SAMPLES: of `datagen latent sample`, with the scores of EDITS and WATCHED. Every method's strength is searched for each
person until the attribute has changed by CHANGE deviations, by the same measurement; what else changed is compared:

success       share of people whose change came within a fifth of the wanted one; the other figures are of these alone,
              since who is changed less is changed less in everything
others        mean absolute change of the other attributes, in their deviations: the entanglement
apart         the same of those that share no class with it: a fringe hides the forehead by nature, but opens no mouth
identity      cosine of deep features of the face, before and after
outside       PSNR in dB outside the attribute's region, grown
against       "others" less that of PAIRED_WITH on the same people, where both came there; below 0 is better
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
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from latent_bench import BATCH, EDITS, STRENGTHS, WATCHED, Bench, Render, measured, searched
from latent_table import CHANGE, line, table

from stylepairs.datagen.images.perceptual import load_perceptual
from stylepairs.datagen.latent.attributes import ATTRIBUTES
from stylepairs.datagen.latent.edits import Edit
from stylepairs.datagen.latent.fitting import Wanted, fit, refine, spread
from stylepairs.datagen.latent.methods import mask_face_gan
from stylepairs.datagen.latent.methods.coarse_to_fine import edit_and_warp
from stylepairs.datagen.latent.methods.latent_mapper import AttributeEdit, Mapper, MapperInfo, linear_start, load_mapper
from stylepairs.datagen.latent.people import Person, encoded_people, sampled_people
from stylepairs.datagen.latent.pictures import write_strip
from stylepairs.datagen.latent.samples import load_samples
from stylepairs.datagen.latent.scorers import load_scorer
from stylepairs.datagen.reconstruction.rendering import use_channels_last
from stylepairs.datagen.reconstruction.settings import OptimiserSettings
from stylepairs.datagen.shell.errors import InputError, exit_on_bad_input
from stylepairs.datagen.stylegan.checkpoints import generator_digest, load_generator
from stylepairs.i2i.edit.editor import Editor

SEED = 1_000_003
PSI = 0.7
# Attribute -> the editor whose pairs change it, and what it is asked for; its degree is the strength by the largest.
EDITORS: dict[str, tuple[str, dict[str, Any]]] = {
    "fringe": ("embedded:bangs", {"style": "full", "length": 0.9}),
    "hair_lightness": ("embedded:hair_color", {"color": "light_blond"}),
    "hairline_height": ("embedded:hairline", {"shift": -0.35}),
    "hair_volume": ("embedded:fluffiness", {"volume": 0.12, "where": "both"}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("samples", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--generator", default="embedded")
    parser.add_argument("--mapper", type=Path, help="of `datagen latent train-mapper`, with the attributes of EDITS")
    parser.add_argument("--portraits", type=Path, help="with --encoder: whose codes are edited")
    parser.add_argument("--encoder", type=Path, help="of `datagen train-encoder`, without noise maps")
    parser.add_argument("--people", type=int, default=100)
    parser.add_argument("--pairs", type=int, default=64, help="of the fine boundaries")
    parser.add_argument("--optimised", type=int, default=8, help="people of mask_face_gan, half a minute each")
    parser.add_argument("--steps", type=int, default=300, help="of mask_face_gan")
    parser.add_argument("--only", default="", help="methods, with commas")
    parser.add_argument("--attributes", default=",".join(EDITS))
    options = parser.parse_args()
    names, attributes = options.only.split(",") if options.only else list(METHODS), options.attributes.split(",")
    for option, given, known in (("only", names, METHODS), ("attributes", attributes, EDITS)):
        for name in given:
            if name not in known:
                parser.error(f"--{option} {name}: unknown; choose of {','.join(known)}")
    if (options.encoder is None) != (options.portraits is None):
        parser.error("--encoder and --portraits: an encoder's codes are of portraits; give both or none")
    torch.set_num_threads(1)
    generator = load_generator(options.generator)
    use_channels_last(generator)
    samples, scorer = load_samples(options.samples), load_scorer(WATCHED)
    digest = generator_digest(generator)
    if options.encoder is None:
        people = sampled_people(generator, options.people, PSI, SEED)
    else:
        people = encoded_people(generator, digest, options.portraits, options.people, options.encoder)
    deviations = spread(samples, WATCHED)
    bench = Bench(generator, digest, samples, scorer, deviations, load_perceptual("auto"), people)
    options.out.mkdir(parents=True, exist_ok=True)
    for attribute in attributes:
        for method in names:
            path = options.out / f"{method}-{attribute}.json"
            if path.exists():
                continue
            result = run(bench, method, attribute, options)
            if result is not None:
                path.write_text(json.dumps(result, indent=1))
                print(line(result), flush=True)
        (options.out / "table.md").write_text(table(options.out, list(EDITS), list(METHODS), WATCHED))


def run(bench: Bench, method: str, attribute: str, options: argparse.Namespace) -> dict[str, Any] | None:
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
    searching = method != "mask_face_gan"
    people = bench.people if searching else bench.people[: options.optimised]
    before = bench.before.first(len(people))
    if searching:
        strengths, after = searched(bench, attribute, people, before, render)
    else:
        strengths = torch.full((len(people),), CHANGE * EDITS[attribute][0])
    timed = people[:BATCH] if searching else people
    began = time.process_time()
    once = render(timed, strengths[: len(timed)])
    seconds = (time.process_time() - began) / len(timed)
    after = after if searching else once.clamp(-1, 1)
    rows = measured(bench, attribute, before, after)
    write_strip(options.out / f"{method}-{attribute}.png", [before.images[:6], after[:6]])
    return {
        "method": method,
        "attribute": attribute,
        "people": len(people),
        "fit_s": fitted_s,
        "seconds": seconds,
        "strengths": strengths.tolist(),
        "rows": [asdict(row) for row in rows],
    }


def by_edit(bench: Bench, edit: Edit) -> Render:
    def render(people: Sequence[Person], strengths: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return edit.render(bench.generator, torch.stack([person.ws for person in people]), strengths)

    return render


def _fitted(name: Any, conditional: bool, bench: Bench, attribute: str, options: argparse.Namespace) -> Render:
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


def _linear(bench: Bench, attribute: str, options: argparse.Namespace) -> Render:
    """What the mapper starts at, without a step of training."""
    network, deviations = linear_start(bench.samples, WATCHED)
    info = MapperInfo(width=1, attributes=WATCHED, deviations=tuple(deviations.tolist()), generator_digest=bench.digest)
    return by_edit(bench, AttributeEdit(Mapper(network.requires_grad_(False), info), attribute))


def _pasted(bench: Bench, attribute: str, options: argparse.Namespace) -> Render | None:
    """The boundary of InterFaceGAN, warped and pasted in the region alone (coarse-to-fine's last step)."""
    classes = ATTRIBUTES[attribute].classes
    if not classes:
        return None
    edit = fit("interfacegan", bench.generator, bench.digest, bench.samples, Wanted(attribute))

    def render(people: Sequence[Person], strengths: torch.Tensor) -> torch.Tensor:
        each = zip(people, strengths.tolist(), strict=True)
        return torch.stack(
            [edit_and_warp(bench.generator, bench.scorer.reader, edit, *one, classes)[0] for one in each]
        )

    return render


def _mask_face_gan(bench: Bench, attribute: str, options: argparse.Namespace) -> Render | None:
    if not ATTRIBUTES[attribute].classes:
        return None
    scorer = load_scorer([attribute])
    deviation = float(bench.deviations[WATCHED.index(attribute)])
    batch = min(options.optimised, 8)
    settings = OptimiserSettings.model_validate(
        {"steps": options.steps - 1, "decay_steps": 1, "batch": batch, "precision": "fp32"}
    )

    def render(people: Sequence[Person], strengths: torch.Tensor) -> torch.Tensor:
        wanted = mask_face_gan.Wanted(float(strengths[0]))
        made = mask_face_gan.edit(bench.generator, scorer, deviation, people, wanted, settings)
        return torch.stack([image for _, image in made])

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

    def render(people: Sequence[Person], strengths: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            images = bench.rendered(people)
            degree = strengths.abs() / STRENGTHS[-1]
            edited: torch.Tensor = editor.model(
                images, torch.ones_like(images[:, :1]), degree, style.expand(len(images), -1)
            ).output
        return edited

    return render


METHODS: dict[str, Callable[[Bench, str, argparse.Namespace], Render | None]] = {
    "interfacegan": partial(_fitted, "interfacegan", False),
    "conditional": partial(_fitted, "interfacegan", True),
    "sefa": partial(_fitted, "sefa", False),
    "ganspace": partial(_fitted, "ganspace", False),
    "stylespace": partial(_fitted, "stylespace", False),
    "linear": _linear,
    "mapper": _mapper,
    "fine_boundary": _fine,
    "pasted": _pasted,
    "mask_face_gan": _mask_face_gan,
    "pairs_i2i": _pairs_i2i,
}


if __name__ == "__main__":
    with exit_on_bad_input():
        main()
