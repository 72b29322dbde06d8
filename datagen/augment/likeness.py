"""How alike two portraits are, so that the person half way between them is a plausible one: pose and shape of the face,
skin tone, where the hair is, and how far apart their latents lie."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
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
_TOGETHER = 256  # portraits that are compared at once
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


def distances(some: Likeness, others: Likeness) -> np.ndarray:
    """[K,M]: how unlike each of K is each of M others (see `stacked`); 0 the same, 1 as two portraits typically are."""
    latent = _root_mean_square(some.latent, others.latent)
    return np.stack([_distances(some, row, others, latent[row]) for row in range(len(latent))])


def _distances(some: Likeness, row: int, others: Likeness, latent: np.ndarray) -> np.ndarray:
    """[M]: how unlike one of `some` each of the others is; latent [M]: how far their latents are."""
    points, tone, hair = some.points[row], some.tone[row], some.hair[row]
    overlap = np.minimum(others.hair, hair).sum(1) / np.maximum(np.maximum(others.hair, hair).sum(1), 1e-3)
    found = {
        "shape": np.sqrt(2 * np.square(others.points - points).mean(1)),
        "tone": np.linalg.norm(others.tone - tone, axis=1),
        "hair": 1 - overlap,
        "latent": latent,
    }
    return np.asarray(np.mean([value / _TYPICAL[name] for name, value in found.items()], axis=0))


def _root_mean_square(some: np.ndarray, others: np.ndarray) -> np.ndarray:
    """[K,M]: distance of each of K latents [K,D] from each of M, by products: of each alone, 10 000 take an hour."""
    wide = some.astype(np.float64)
    own, found = np.square(wide).sum(1), np.empty((len(some), len(others)))
    for start in range(0, len(others), _TOGETHER):
        theirs = others[start : start + _TOGETHER].astype(np.float64)
        found[:, start : start + _TOGETHER] = own[:, None] + np.square(theirs).sum(1) - 2 * wide @ theirs.T
    return np.asarray(np.sqrt(found.clip(0) / some.shape[1]))


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
        for record, far in zip(group, _rows(everyone), strict=True):
            far = np.where(photos == _photo(record), np.inf, far)
            near = [group[i].id for i in np.argsort(far, kind="stable")[: POOL * count] if np.isfinite(far[i])]
            drawn = sorted(near, key=lambda id: hashlib.sha256(f"{seed} {record.id} {id}".encode()).digest())[:count]
            couples |= {(min(record.id, id), max(record.id, id)) for id in drawn}
    return sorted(couples)


def _rows(everyone: Likeness) -> Iterator[np.ndarray]:
    """For each of M, how unlike all of them [M] it is."""
    arrays = [getattr(everyone, field.name) for field in fields(Likeness)]
    for start in range(0, len(everyone.tone), _TOGETHER):
        yield from distances(Likeness(*(array[start : start + _TOGETHER] for array in arrays)), everyone)


def _photo(record: PairRecord) -> str:
    return record.source_digest or record.portrait_digest
