"""A folder of pairs that the tiny generator made, and an analyser that finds the same face in every picture."""

from __future__ import annotations

import functools
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from helpers.tiny_build import SIZE_PX, generator_file

from stylepairs.datagen.augment.partners import ParentPairs
from stylepairs.datagen.build import models
from stylepairs.datagen.build.settings import BuildRecipe
from stylepairs.datagen.images.files import to_uint8
from stylepairs.datagen.pairs import shards
from stylepairs.datagen.pairs.record import Pair, PairRecord
from stylepairs.datagen.portraits.portrait import CLASS
from stylepairs.datagen.reconstruction.rendering import render, use_channels_last
from stylepairs.datagen.reconstruction.settings import ReconstructionSettings

RENDER_WIDTH = ReconstructionSettings().batch
RECIPE = {
    "feature": "hair_color",
    "params": {"color": ["blond", "black"], "intensity": 1.0},
    "perceptual": "pyramid",
    "gate": {"color_delta_e": {"max": 60}, "degree": {"min": -5, "max": 5}, "reconstruction_steps": {"max": 9}},
}


class Analyser:
    """Hair in the upper third, skin below; the landmarks of one face. Finds no face on a black picture."""

    def find(self, photo, min_score):
        if photo.max() == 0:
            return []
        points = np.random.default_rng(0).uniform(0.3, 0.7, (68, 2)) * photo.shape[0]
        points[36:42, 0] -= 0.2 * photo.shape[0]
        points[:, 1] = points[:, 1] / 2 + 0.45 * photo.shape[0]
        return [SimpleNamespace(score=0.9, points68=points)]

    def parse(self, aligned):
        label = torch.full((len(aligned), *aligned.shape[-2:]), CLASS["skin"], dtype=torch.uint8)
        label[:, : aligned.shape[-1] // 3] = CLASS["hair"]
        return label, (label == CLASS["hair"])[:, None].float()


class TinyParents(ParentPairs):
    """Pairs that are analysed by `Analyser`, in worker processes too."""

    def load_models(self) -> models.Models:
        return _with_analyser(super().load_models())


@functools.cache
def load_models() -> models.Models:
    """The networks that all tiny pairs are made with."""
    loaded = _with_analyser(models.load_models(generator_file(), "pyramid", None, "cpu"))
    use_channels_last(loaded.generator)
    return loaded


def _with_analyser(loaded: models.Models) -> models.Models:
    digests = {name: digest for name, digest in loaded.digests.items() if name != "analyser"}
    return replace(loaded, instruments=replace(loaded.instruments, analyser=Analyser()), digests=digests)


def write_pairs(
    directory: Path,
    people: int = 3,
    recipe: dict | None = None,
    accepted=lambda index: True,
    limits: dict | None = None,
) -> None:
    """Two pairs a person, blond and black, as a build leaves them; all on the train side but the last person.

    limits: more parameters of the pairs.
    """
    directory.mkdir(parents=True)
    models = load_models()
    draw = torch.Generator().manual_seed(1)
    pairs = []
    for person in range(people):
        ws = models.generator.mapping(torch.randn(3, 16, generator=draw)).half().float()
        noise = [
            torch.randn(level.shape[-2:], generator=draw).half().float() for level in models.generator.noise_maps()
        ]
        for color, w1 in zip(("blond", "black"), ws[1:], strict=True):
            number = len(pairs)
            split = "val" if person == people - 1 else "train"
            made = pair(models, number, person, color, (ws[0], w1), noise, split, accepted(number))
            made.record.params.update(limits or {})
            pairs.append(made)
    shards.write_shard(directory / shards.shard_name(0), pairs)
    shards.write_manifest(directory)
    checked = BuildRecipe.model_validate(recipe or RECIPE).model_dump(mode="json", exclude={"perceptual_weights"})
    (directory / "build.json").write_text(json.dumps({"recipe": checked, "instruments": {"perceptual": "pyramid"}}))


def pair(models, number, person, color, latents, noise, split, accepted) -> Pair:
    generated = [to_uint8(image) for image in render(models.generator, latents, [noise] * 2, RENDER_WIDTH)]
    photo = generated[0] // 2 + 60  # no photo is what the generator makes of it
    record = PairRecord(
        id=shards.pair_id(number),
        feature="hair_color",
        params={"color": color, "intensity": 1.0, "reference_px": 8},
        degree=1.0,
        accepted=accepted,
        reasons=[] if accepted else ["color_delta_e 70 > 60"],
        figures={"degree": 1.0},
        portrait=f"portrait_{person}",
        portrait_digest=f"{person:064x}",
        source_digest=f"photo {person}",
        generator_digest=models.digest,
        seed=0,
        code_version="test",
        split=split,
    )
    return Pair(
        record,
        photo,
        photo,
        mask=np.zeros((SIZE_PX, SIZE_PX), np.uint8),
        sketch=photo,
        generated_before=generated[0],
        generated_after=generated[1],
        w_before=latents[0].half().numpy(),
        w_after=latents[1].half().numpy(),
        noise=[level.half().numpy() for level in noise],
    )
