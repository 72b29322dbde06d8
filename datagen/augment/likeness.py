"""How alike two portraits are, so that the person half way between them is a plausible one: pose and shape of the face,
skin tone, where the hair is, and how far apart their latents lie."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
import torch.nn.functional as F

from stylepairs.datagen.augment.interpolation import kind_of
from stylepairs.datagen.images.colors import srgb_to_lab
from stylepairs.datagen.pairs.record import PairRecord
from stylepairs.datagen.portraits.portrait import CLASS, Portrait

HAIR_GRID_PX = 16
# Partners are drawn from so many times as many nearest ones, so that another seed makes other people.
POOL = 3
_LEFT_EYE, _RIGHT_EYE = slice(36, 42), slice(42, 48)
# Typical distances between two portraits (medians over pairs of 60), so that each of the four counts alike.
_TYPICAL = {"shape": 0.1, "tone": 12.0, "hair": 0.7, "latent": 1.3}


@dataclass(frozen=True)
class Likeness:
    """What is compared, whatever the image's size: points [136], x and y of 68 in eye distances from the eyes' middle;
    tone [3], the skin's mean Lab; hair [256], the matte on a coarse grid; latent [L*C], whitened."""

    points: np.ndarray
    tone: np.ndarray
    hair: np.ndarray
    latent: np.ndarray


def likeness(portrait: Portrait, whitened: torch.Tensor) -> Likeness:
    """What there is to compare of a portrait; whitened [L,C]: its latent by the prior's `whiten`."""
    points = portrait.points68.cpu()
    left, right = points[_LEFT_EYE].mean(0), points[_RIGHT_EYE].mean(0)
    shape = (points - (left + right) / 2) / (left - right).norm().clamp_min(1e-3)
    skin = (portrait.label == CLASS["skin"])[None].float()
    tone = (srgb_to_lab(portrait.image) * skin).sum((1, 2)) / skin.sum().clamp_min(1)
    hair = F.interpolate(portrait.hair[None], size=(HAIR_GRID_PX, HAIR_GRID_PX), mode="area")
    arrays = (part.flatten().cpu().float().numpy() for part in (shape, tone, hair, whitened))
    return Likeness(*arrays)


def stacked(portraits: Sequence[Likeness]) -> Likeness:
    """Several in one: every array with a first axis of M."""
    return Likeness(*(np.stack([getattr(one, field.name) for one in portraits]) for field in fields(Likeness)))


def distances(one: Likeness, others: Likeness) -> np.ndarray:
    """[M]: how unlike `one` each of the others (see `stacked`) is; 0 the same, 1 as two portraits typically are."""
    overlap = np.minimum(others.hair, one.hair).sum(1) / np.maximum(np.maximum(others.hair, one.hair).sum(1), 1e-3)
    found = {
        "shape": np.sqrt(2 * np.square(others.points - one.points).mean(1)),
        "tone": np.linalg.norm(others.tone - one.tone, axis=1),
        "hair": 1 - overlap,
        "latent": np.sqrt(np.square(others.latent - one.latent).mean(1)),
    }
    return np.asarray(np.mean([value / _TYPICAL[name] for name, value in found.items()], axis=0))


def choose_couples(
    records: Sequence[PairRecord], found: Mapping[str, Likeness], count: int, seed: int
) -> list[tuple[str, str]]:
    """For each pair `count` others of the same kind, direction and side of the split, of a different photo, among those
    most alike.

    The same for the same records and seed; a couple is listed once.
    """
    groups: dict[tuple[str, str, str, bool], list[PairRecord]] = {}
    for record in records:
        kind = record.feature, kind_of(record.params), record.split, record.backwards
        groups.setdefault(kind, []).append(record)
    couples: set[tuple[str, str]] = set()
    for group in groups.values():
        everyone = stacked([found[record.portrait_digest] for record in group])
        photos = np.array([_photo(record) for record in group])
        for record in group:
            far = np.where(photos == _photo(record), np.inf, distances(found[record.portrait_digest], everyone))
            near = [group[i].id for i in np.argsort(far, kind="stable")[: POOL * count] if np.isfinite(far[i])]
            drawn = sorted(near, key=lambda id: hashlib.sha256(f"{seed} {record.id} {id}".encode()).digest())[:count]
            couples |= {(min(record.id, id), max(record.id, id)) for id in drawn}
    return sorted(couples)


def _photo(record: PairRecord) -> str:
    return record.source_digest or record.portrait_digest
