"""Finds faces and their 68 landmarks in a photo with the embedded networks: image pyramid, centres, two landmark
passes.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
import torch
import torch.nn.functional as F

from stylepairs.datagen.portraits.alignment import (
    apply_transform,
    compose_transforms,
    invert_transform,
    square_transform,
    transform_scale,
    warp,
)
from stylepairs.datagen.portraits.analysis.networks import (
    DETECTOR_STRIDE_PX,
    DETECTOR_UNIT_PX,
    LANDMARK_INPUT_PX,
    DetectorNet,
    LandmarkNet,
)
from stylepairs.datagen.portraits.landmarks import MIRROR_68, eyes_and_mouth
from stylepairs.kernels.precision import fastest_dtype

# The landmark crop: a share of FFHQ's square, moved down the face.
LANDMARK_CROP_SHARE, LANDMARK_CROP_SHIFT = 0.85, 0.06
# Longest side of the finest pyramid level: at least so many pixels, and of a larger photo so much of its own, so that a
# head of 100 px is found in any: the detector wants about 25 px of it.
LARGEST_LEVEL_PX = 1280
LARGEST_LEVEL_SHARE = 0.25
# The coarsest level's longest side lies between this and twice this: there a face that fills the frame is small enough.
SMALLEST_LEVEL_PX = 28
LEVEL_BORDER_PX = 16  # grey around each level, so that faces cut by the frame have their centre inside the grid
HEAT_FLOOR = 0.2  # weaker centres are not looked at
MAX_CANDIDATES = 240  # per photo, strongest first: bounds the time that a hostile texture can cost
TILE_PX = 1280  # of a level that the detector sees at once: bounds the memory
TILE_OVERLAP_PX = 128  # on each side, a multiple of its stride; what lies further off does not change what it finds
# Of the least score wanted: a place whose first look scores less is not looked at again. For 0.5 that is 0.001: of
# 5 061 places on 158 photos kept aside, framed in seven ways, 31 % scored less, and of 1 516 faces the least 0.0047.
FIRST_LOOK_SHARE = 0.002
_BATCH = 48  # of candidates whose landmarks are found together: bounds the memory
MIN_FACE_PX = 17.0  # half of FFHQ's square, in photo pixels; what is smaller is a lapel pin more often than a face


@dataclass(frozen=True)
class Face:
    """A face: box (x0, y0, x1, y1) around its landmarks in photo pixels, score in [0,1], points68 [68,2] float32
    in photo pixels.
    """

    box: tuple[float, float, float, float]
    score: float
    points68: np.ndarray


class Faces(list[Face]):
    """Faces, largest first; passed_over: how many more places that may hold one were too many to be looked at."""

    passed_over: int = 0


@dataclass(frozen=True)
class Candidate:
    """A detection before its landmarks: eyes_mouth [3,2] in photo pixels, heat in [0,1]."""

    eyes_mouth: np.ndarray
    heat: float


class Level(NamedTuple):
    """The photo at another size: pixels uint8 [h,w,3], and its (x, y) scale from the photo."""

    pixels: np.ndarray
    scale: tuple[float, float]


class EmbeddedFinder:
    """The embedded detector and landmark networks; deterministic, without state."""

    def __init__(self, detector: DetectorNet, landmarks: LandmarkNet) -> None:
        """The detector, which only says where to look, computes in what the CPU does fastest; its head, as its answers
        are positions, and the landmarks in float32."""
        self.detector = copy.deepcopy(detector).to(fastest_dtype("cpu"))
        self.detector.head.float()
        self.landmarks = landmarks

    @torch.inference_mode()
    def find(self, photo: np.ndarray, min_score: float = 0.5) -> Faces:
        """photo uint8 [H,W,3] -> faces with score >= min_score, largest first; none gives an empty list."""
        levels = list(_pyramid(photo))
        candidates, passed_over = self._candidates(levels)
        if levels[0].pixels is not photo:
            levels.insert(0, Level(photo, (1.0, 1.0)))
        faces = []
        for start in range(0, len(candidates), _BATCH):
            points, scores = self._landmarks(levels, candidates[start : start + _BATCH], min_score)
            found = zip(points, scores, strict=True)
            faces += [make_face(p, s) for p, s in found if s >= min_score and np.isfinite(p).all()]
        kept = Faces(sorted(_without_doubles(faces), key=lambda face: (-_area(face), face.box)))
        kept.passed_over = passed_over
        return kept

    def _candidates(self, levels: Sequence[Level]) -> tuple[list[Candidate], int]:
        """Possible faces over all pyramid levels, strongest first, and how many were left."""
        found = [
            candidate
            for level in levels
            for tile in _tiles(*level.pixels.shape[:2])
            for candidate in self._centres(level, tile)
        ]
        found.sort(key=lambda c: -c.heat)
        kept: list[Candidate] = []
        for number, candidate in enumerate(found):
            if len(kept) == MAX_CANDIDATES:
                return kept, len(found) - number
            if not any(_same(candidate.eyes_mouth, k.eyes_mouth) for k in kept):
                kept.append(candidate)
        return kept, 0

    def _centres(self, level: Level, tile: _Tile) -> list[Candidate]:
        """Of a level's tile those whose cells lie in the part of it that no other tile has."""
        seen = level.pixels[tile.top : tile.bottom, tile.left : tile.right].copy()
        b, (h, w) = LEVEL_BORDER_PX, seen.shape[:2]
        dtype = next(self.detector.parameters()).dtype
        shape = 1, 3, _up16(h + 2 * b), _up16(w + 2 * b)
        padded = torch.empty(shape, dtype=dtype, memory_format=torch.channels_last).zero_()
        padded[0, :, b : b + h, b : b + w] = torch.from_numpy(seen).permute(2, 0, 1).float().div_(127.5).sub_(1)
        logit, points = self.detector(padded)
        heat = logit.sigmoid()
        peak = (heat == F.max_pool2d(heat, 3, 1, 1)) & (heat > HEAT_FLOOR)
        found = []
        for y, x in peak[0, 0].nonzero().tolist():
            cell = (np.array([x, y]) + 0.5) * DETECTOR_STRIDE_PX - 0.5 - b + (tile.left, tile.top)
            if not tile.owns(*cell):
                continue
            place = points[0, :, y, x].numpy().astype(np.float64).reshape(3, 2) * DETECTOR_UNIT_PX + cell
            place = (place + 0.5) / np.array(level.scale) - 0.5
            if _plausible(place):
                found.append(Candidate(place, float(heat[0, 0, y, x])))
        return found

    def _landmarks(
        self, levels: Sequence[Level], candidates: list[Candidate], min_score: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """points68 [K,68,2] in photo pixels and scores [K] of the candidates that may reach min_score.

        Two passes: the second sees the face upright and centred by the first, plainly and mirrored.
        """
        places, heat = np.stack([c.eyes_mouth for c in candidates]), np.array([c.heat for c in candidates])
        first, seen = self._pass(levels, places)
        promising = seen >= FIRST_LOOK_SHARE * min_score
        if not promising.any():
            return first[promising], seen[promising]
        first, places, heat = first[promising], places[promising], heat[promising]
        centred = eyes_and_mouth(first)
        usable = np.array([_plausible(place) for place in centred])
        centred[~usable] = places[~usable]
        second, score = self._pass(levels, centred, mirrored=True)
        moved = np.linalg.norm(second - first, axis=-1).mean(-1) / np.linalg.norm(
            centred[:, 0] - centred[:, 1], axis=-1
        ).clip(1e-6)
        # A real face keeps its landmarks when it is cropped anew; on textures the two passes wander.
        steady = np.clip(1.5 - 2 * moved, 0, 1)
        # The exponent puts 0.5 between the two: of 158 photos kept aside 157 true faces begin at 0.71, what is none
        # ends at 0.49, textures at 0.40.
        return second, (score * np.sqrt(heat)) ** 0.78 * steady * usable

    def _pass(
        self, levels: Sequence[Level], places: np.ndarray, mirrored: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """places [K,3,2] -> points68 [K,68,2] in photo pixels and scores [K]."""
        moves = [
            square_transform(place, LANDMARK_INPUT_PX, LANDMARK_CROP_SHARE, LANDMARK_CROP_SHIFT) for place in places
        ]
        crops = np.stack([_landmark_crop(levels, move) for move in moves])
        batch = (torch.from_numpy(crops).permute(0, 3, 1, 2).float() / 127.5 - 1).contiguous(
            memory_format=torch.channels_last
        )
        points, logit, _ = self.landmarks(batch)
        if mirrored:
            other, other_logit, _ = self.landmarks(batch.flip(-1))
            other = other[:, MIRROR_68.tolist()]
            other[..., 0] = LANDMARK_INPUT_PX - 1 - other[..., 0]
            points, logit = (points + other) / 2, (logit + other_logit) / 2
        back = [apply_transform(invert_transform(m), p) for m, p in zip(moves, points.double().numpy(), strict=True)]
        return np.stack(back), logit.sigmoid().double().numpy()


def make_face(points68: np.ndarray, score: float) -> Face:
    """A Face whose box bounds its landmarks."""
    low, high = points68.min(0), points68.max(0)
    return Face(
        (float(low[0]), float(low[1]), float(high[0]), float(high[1])), float(score), points68.astype(np.float32)
    )


def _pyramid(photo: np.ndarray) -> Iterator[Level]:
    """Levels a factor 2 apart, finest first."""
    h, w = photo.shape[:2]
    longest = min(max(h, w), max(LARGEST_LEVEL_PX, round(LARGEST_LEVEL_SHARE * max(h, w))))
    level = photo
    while longest >= min(SMALLEST_LEVEL_PX, max(h, w)):
        height, width = max(round(h * longest / max(h, w)), 1), max(round(w * longest / max(h, w)), 1)
        # By halves first: OpenCV's filter is ten times faster there (12 megapixels: 5 ms, to 1280 x 960 at once 62 ms).
        while level.shape[0] >= 2 * height and level.shape[1] >= 2 * width:
            level = cv2.resize(level, (level.shape[1] // 2, level.shape[0] // 2), interpolation=cv2.INTER_AREA)
        if level.shape[:2] != (height, width):
            level = cv2.resize(level, (width, height), interpolation=cv2.INTER_AREA)
        yield Level(level, (width / w, height / h))
        longest //= 2
        if longest < 8:
            return


def _landmark_crop(levels: Sequence[Level], move: np.ndarray) -> np.ndarray:
    """The crop [96,96,3] under `move` (from the photo), read from the smallest level with twice its resolution."""
    least = 2 * transform_scale(move)
    pixels, scale = next((level for level in reversed(levels) if min(level.scale) >= least), levels[0])
    across, down = (1 / each for each in scale)
    to_photo = np.array([[across, 0, 0.5 * across - 0.5], [0, down, 0.5 * down - 0.5]])
    return warp(pixels, compose_transforms(move, to_photo), LANDMARK_INPUT_PX, cv2.BORDER_REPLICATE)


@dataclass(frozen=True)
class _Tile:
    """A rectangle of a level, and the rectangle (left, top, right, bottom) inside it that is its alone."""

    left: int
    top: int
    right: int
    bottom: int
    own: tuple[float, float, float, float]

    def owns(self, x: float, y: float) -> bool:
        return self.own[0] <= x < self.own[2] and self.own[1] <= y < self.own[3]


def _tiles(height: int, width: int) -> Iterator[_Tile]:
    """A level cut into tiles that overlap; the outermost own what lies beyond the level's borders, too."""
    for top, bottom, y0, y1 in _spans(height):
        for left, right, x0, x1 in _spans(width):
            yield _Tile(left, top, right, bottom, (x0, y0, x1, y1))


def _spans(side: int) -> Iterator[tuple[int, int, float, float]]:
    """Where tiles begin and end along a side, and which part of each is its own."""
    starts = range(0, max(side, 1), TILE_PX)
    for start in starts:
        first, last = start == starts[0], start == starts[-1]
        low = start if first else start - TILE_OVERLAP_PX
        high = side if last else min(start + TILE_PX + TILE_OVERLAP_PX, side)
        yield low, high, -np.inf if first else start, np.inf if last else start + TILE_PX


def _up16(side: int) -> int:
    return (side + 15) // 16 * 16


def _half_side(eyes_mouth: np.ndarray) -> float:
    return 0.5 / transform_scale(square_transform(eyes_mouth, 1))


def _plausible(eyes_mouth: np.ndarray) -> bool:
    """The eyes are apart, and the mouth lies below them; upside-down or folded triples are no faces."""
    right, left, mouth = eyes_mouth
    across, down = left - right, mouth - (left + right) / 2
    apart, deep = np.hypot(*across), np.hypot(*down)
    if not np.isfinite(eyes_mouth).all() or apart < 1e-3 or not 0.35 < deep / apart < 4:
        return False
    upright = (across[0] * down[1] - across[1] * down[0]) / (apart * deep)
    return bool(upright > 0.6) and _half_side(eyes_mouth) >= MIN_FACE_PX


def _same(a: np.ndarray, b: np.ndarray) -> bool:
    """Two detections of one face: centres near each other for their size, sizes alike."""
    sizes = _half_side(a), _half_side(b)
    return bool(np.hypot(*(a.mean(0) - b.mean(0))) < 0.3 * max(sizes)) and max(sizes) < 1.8 * min(sizes)


def _without_doubles(faces: list[Face]) -> list[Face]:
    """Of faces that overlap by more than half of the smaller one, the best stays."""
    kept: list[Face] = []
    for face in sorted(faces, key=lambda f: -f.score):
        if all(_overlap(face, other) < 0.5 for other in kept):
            kept.append(face)
    return kept


def _overlap(a: Face, b: Face) -> float:
    w = min(a.box[2], b.box[2]) - max(a.box[0], b.box[0])
    h = min(a.box[3], b.box[3]) - max(a.box[1], b.box[1])
    return max(w, 0) * max(h, 0) / max(min(_area(a), _area(b)), 1e-6)


def _area(face: Face) -> float:
    return (face.box[2] - face.box[0]) * (face.box[3] - face.box[1])
