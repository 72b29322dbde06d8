"""What `latent_methods.py` measures with: people as they are, the search for a strength, the figures of an edit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from latent_table import CHANGE

from stylepairs.datagen.images.filters import PSNR_IDENTICAL_DB, psnr
from stylepairs.datagen.images.perceptual import Perceptual
from stylepairs.datagen.latent.attributes import ATTRIBUTES
from stylepairs.datagen.latent.faces import regions
from stylepairs.datagen.latent.methods.coarse_to_fine import GROWN, SOFT
from stylepairs.datagen.latent.people import Person
from stylepairs.datagen.latent.samples import Samples
from stylepairs.datagen.latent.scorers import Scorer
from stylepairs.datagen.portraits.portrait import CLASS
from stylepairs.datagen.stylegan.generator import Generator

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
FACE = ("skin", "nose", "l_eye", "r_eye", "mouth", "u_lip", "l_lip", "l_brow", "r_brow")
STRENGTHS = (1.0, 2.0, 3.0)
REFINED = 3  # tries between the strengths on either side of the change
NEAR = 0.05  # deviations: near enough to search no further
BATCH = 16  # people rendered and scored together

Render = Callable[[Sequence[Person], torch.Tensor], torch.Tensor]  # people, a strength of each [N] -> images [N,3,H,W]


@dataclass(frozen=True)
class Look:
    """Images [N,3,H,W], their scores [N,K] in deviations, label maps [N,19,S,S] and deep features [N,C,h,w]."""

    images: torch.Tensor
    scores: torch.Tensor
    classes: torch.Tensor
    features: torch.Tensor

    def first(self, count: int) -> Look:
        return Look(self.images[:count], self.scores[:count], self.classes[:count], self.features[:count])


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
        """images [N,3,H,W] -> [N,K] in deviations."""
        return self.scorer(images) / self.deviations

    @torch.no_grad()
    def rendered(self, people: Sequence[Person]) -> torch.Tensor:
        """The people as they are, [N,3,H,W]."""
        ws = torch.stack([person.ws for person in people])
        return torch.cat([self.generator.synthesis(part).clamp(-1, 1) for part in ws.split(BATCH)])

    @cached_property
    def before(self) -> Look:
        """The people as they are."""
        return self.look(self.rendered(self.people))

    @torch.no_grad()
    def look(self, images: torch.Tensor) -> Look:
        """What is measured of images [N,3,H,W]."""
        found = []
        for part in images.split(BATCH):
            seen = self.scorer.reader.read(part)
            scores = self.scorer.of_seen(part, seen) / self.deviations
            found.append((part, scores, seen.classes, self.perceptual.features(part)[-1]))
        return Look(*(torch.cat(column) for column in zip(*found, strict=True)))


@dataclass(frozen=True)
class Row:
    """One edited person."""

    reached: float
    others: float
    apart: float
    identity: float
    outside_db: float
    changes: list[float]


def searched(
    bench: Bench, attribute: str, people: Sequence[Person], before: Look, render: Render
) -> tuple[torch.Tensor, torch.Tensor]:
    """Each person's strength [N] at which the attribute changed by CHANGE, or came nearest, and the pictures there.

    Strengths grow until the change is reached; then it is sought between the last two.
    """
    sign, column, count = EDITS[attribute][0], WATCHED.index(attribute), len(people)
    unedited = before.scores[:, column]
    best, best_missed, pictures = torch.zeros(count), torch.full((count,), CHANGE), before.images.clone()
    low, high = torch.zeros(2, count), torch.full((2, count), torch.nan)  # strength and change, below and above

    def tried(rows: torch.Tensor, strengths: torch.Tensor) -> None:
        for start in range(0, len(rows), BATCH):
            part, strength = rows[start : start + BATCH], strengths[start : start + BATCH]
            images = render([people[row] for row in part.tolist()], sign * strength).clamp(-1, 1)
            change = (bench.scores(images)[:, column] - unedited[part]) * sign
            missed = (change - CHANGE).abs()
            nearer = missed < best_missed[part]  # never for NaN
            best[part[nearer]], best_missed[part[nearer]] = strength[nearer], missed[nearer]
            pictures[part[nearer]] = images[nearer]
            above = change >= CHANGE
            both = torch.stack([strength, change])
            high[:, part[above]], low[:, part[~above]] = both[:, above], both[:, ~above]

    for strength in STRENGTHS:
        rows = high[0].isnan().nonzero()[:, 0]
        tried(rows, torch.full((len(rows),), strength))
    for _ in range(REFINED):
        rows = (high[0].isfinite() & (best_missed > NEAR)).nonzero()[:, 0]
        below, over = low[:, rows], high[:, rows]
        share = ((CHANGE - below[1]) / (over[1] - below[1])).nan_to_num(0.5).clamp(0.15, 0.85)
        tried(rows, below[0].lerp(over[0], share))
    return sign * best, pictures


def measured(bench: Bench, attribute: str, before: Look, images: torch.Tensor) -> list[Row]:
    """The figures of each person, of the images [N,3,H,W] after the edit."""
    after, column, classes = bench.look(images), WATCHED.index(attribute), ATTRIBUTES[attribute].classes
    changes = (after.scores - before.scores).nan_to_num(0.0)
    others = torch.cat([changes[:, :column], changes[:, column + 1 :]], 1).abs().mean(1)
    elsewhere = changes[:, [WATCHED.index(name) for name in apart_from(attribute)]].abs().mean(1)
    weight = F.interpolate(presence(before, FACE), size=before.features.shape[-2:], mode="area")[:, 0]
    likeness = F.cosine_similarity(before.features, after.features, dim=1)
    same = (likeness * weight).sum((1, 2)) / weight.sum((1, 2)).clamp_min(1e-6)
    outside = torch.full((len(images),), torch.nan)
    if classes:
        places = torch.stack([presence(look, classes) for look in (before, after)], 1)
        keep = 1 - regions(places, images.shape[-1], GROWN, SOFT)
        outside = psnr(images, before.images, keep).clamp_max(PSNR_IDENTICAL_DB)
    reached = changes[:, column] * EDITS[attribute][0]
    columns = (reached.tolist(), others.tolist(), elsewhere.tolist(), same.tolist(), outside.tolist(), changes.tolist())
    return [Row(*row) for row in zip(*columns, strict=True)]


def apart_from(attribute: str) -> list[str]:
    """The watched that share no class with this one: a fringe hides forehead by nature, but opens no mouth."""
    own = set(ATTRIBUTES[attribute].classes)
    return [name for name in WATCHED if name != attribute and own.isdisjoint(ATTRIBUTES[name].classes)]


def presence(look: Look, classes: Sequence[str]) -> torch.Tensor:
    """Probability [N,1,S,S] of any of the classes."""
    return look.classes[:, [CLASS[name] for name in classes]].sum(1, keepdim=True)
