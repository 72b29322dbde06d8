"""Finds the partners of an augmentation: every portrait of the pairs is looked at, in worker processes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from stylepairs.datagen.augment.likeness import Likeness, likeness
from stylepairs.datagen.augment.making import portrait_of_pixels
from stylepairs.datagen.build import quality
from stylepairs.datagen.build.models import Models, load_models
from stylepairs.datagen.build.settings import BuildRecipe
from stylepairs.datagen.build.shard_runner import BuildEvent, OnEvent
from stylepairs.datagen.pairs import shards
from stylepairs.datagen.pairs.record import PairRecord
from stylepairs.datagen.shell.errors import InputError
from stylepairs.datagen.shell.machine import fix_settings, settings_put_back
from stylepairs.datagen.shell.workers import Engine, run_workers

_PARTS = ("before", "after", "latents")


@dataclass(frozen=True)
class ParentPairs:
    """The accepted pairs of a folder, by id, with the networks that they were made with."""

    recipe: BuildRecipe
    pairs: Path
    records: Mapping[str, PairRecord]
    generator: str
    device: str

    def load_models(self) -> Models:
        """Raises InputError where the generator is another one, or no face analyser is installed."""
        recipe = self.recipe
        models = load_models(self.generator, recipe.perceptual, recipe.perceptual_weights, self.device)
        made_with = next(iter(self.records.values())).generator_digest
        if models.digest != made_with:
            raise InputError(
                f"--generator {self.generator}: is not the one that the pairs were made with "
                f"(digest {models.digest[:12]}, not {made_with[:12]})"
            )
        if models.instruments.analyser is None:
            raise InputError("augment: needs the face analyser, and its weights are not installed")
        return models

    def likenesses(self, workers: int | None, on_event: OnEvent, run: Engine = run_workers) -> dict[str, Likeness]:
        """What there is to compare of each portrait, by its digest. Raises InputError."""
        first = {record.portrait_digest: record.id for record in reversed(list(self.records.values()))}
        on_event(BuildEvent(note=f"looking at {len(first)} portraits for partners"))
        found: dict[str, Likeness] = {}

        def keep(message: tuple[str, Likeness]) -> None:
            found[message[0]] = message[1]

        with settings_put_back():
            run(self._look, list(first.values()), workers, keep)
        return found

    def _look(self, report: Callable[[tuple[str, Likeness]], None]) -> Callable[[str], None]:
        """In a worker process: what looks at the portrait of the pair with an id, and reports it."""
        fix_settings()
        models = self.load_models()

        def look(id: str) -> None:
            pair = shards.load_pair(self.pairs, self.records[id], _PARTS).portrait_first()
            if pair.before is None or pair.w_before is None:
                raise InputError(f"{pair.record.shard}: pair {id} has no latents; build it again")
            digest = pair.record.portrait_digest
            portrait = portrait_of_pixels(pair.record.portrait, digest, pair.before, models.device)
            analysed = quality.analyse(portrait, portrait.image, models.instruments.analyser).portrait
            ws = torch.from_numpy(pair.w_before).float().to(models.device)
            report((digest, likeness(analysed, models.instruments.prior.whiten(ws))))

        return look
