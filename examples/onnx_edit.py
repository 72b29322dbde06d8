"""From a photo to the edited photo with what `i2i export` writes, without stylepairs and without PyTorch.

    python onnx_edit.py EDITOR.onnx PHOTO OUT --style 0.3,-0.2,0.5 --degree 1

Needs onnxruntime, numpy and Pillow alone: what an app has to do around the three graphs, in the order in which it is
done. face_finder.onnx and face_landmarks.onnx lie beside EDITOR.onnx. Coordinates are (x, y), pixel centres at
integers; a transform is a 2 x 3 matrix from one picture's coordinates to another's.
"""

from __future__ import annotations

import argparse
import io
import json
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageCms, ImageOps, PngImagePlugin

MIN_SCORE, SURE = 0.5, 0.5  # of faces; of there being anything to edit on one
# Of the crop's side: how far an edit fades out before the border, and the wider squares it is carried on into.
FADE, MARGINS, REACHES = 0.06, (0.3, 0.15), (0.05, 0.15, 0.45)
XMP = (
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/">'
    "<Iptc4xmpExt:DigitalSourceType>http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia"
    "</Iptc4xmpExt:DigitalSourceType></rdf:Description></rdf:RDF></x:xmpmeta>"
)


class Graph:
    """An ONNX file and what it says of itself."""

    def __init__(self, path: Path):
        self.session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        self.about = json.loads(self.session.get_modelmeta().custom_metadata_map["stylepairs.json"])

    def __call__(self, **inputs: np.ndarray) -> list[np.ndarray]:
        return self.session.run(None, {name: value.astype(np.float32) for name, value in inputs.items()})


class OnnxEditor:
    """Edits photos uint8 [H,W,3] in sRGB."""

    def __init__(self, editor: Path):
        self.editor = Graph(editor)
        self.finder, self.landmarks = (
            Graph(editor.parent / "face_finder.onnx"),
            Graph(editor.parent / "face_landmarks.onnx"),
        )
        if self.editor.about["needs_region"]:
            raise SystemExit(f"{editor}: this model needs to be told where to edit; train it with the current version")

    def __call__(self, photo: np.ndarray, style: np.ndarray, degree: float, min_score: float = MIN_SCORE) -> np.ndarray:
        """Every face edited; style [C] is the editor's code of what is wanted (C may be 0), degree in [0,1]."""
        faces = find_faces(photo, self.finder, self.landmarks, min_score)
        result, edited = photo.copy(), np.zeros(photo.shape[:2], np.float16)
        for points68, _ in faces:
            maps, transform = self.maps(photo, eyes_and_mouth(points68), style, degree)
            paste(result, photo, edited, maps, transform)
        return result

    def maps(
        self, photo: np.ndarray, face: np.ndarray, style: np.ndarray, degree: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """The edit of one face as gain, bias, mask [S,S,7] (of 0..255), and the photo's transform onto their square."""
        side = self.editor.about["size_px"]
        maps, transform = self.seen(photo, face, style, degree, 1.0), square_transform(face, side)
        fade = border_fade(side)
        if (maps[..., 6] * (1 - fade)).mean() > 0.01 * FADE and not self.editor.about.get("draws", False):
            margin = round(MARGINS[0] * side)
            wide = self.seen(photo, face, style, degree, 1 + 2 * margin / side)[..., 6]
            transform[:, 2] += margin
            return extended(maps, resized(wide, side + 2 * margin, Image.Resampling.BILINEAR), margin), transform
        maps[..., 6] *= fade
        return maps, transform

    def seen(self, photo: np.ndarray, face: np.ndarray, style: np.ndarray, degree: float, share: float) -> np.ndarray:
        """What the network says of a square `share` times the face's own: gain, bias, mask, [S,S,7]."""
        side, crop_px = self.editor.about["size_px"], self.editor.about["crop_px"]
        crop = crop_aligned(photo, square_transform(face, crop_px, share), crop_px).astype(np.float32) / 127.5 - 1
        small = np.dstack([resized(crop[..., c], side, Image.Resampling.BICUBIC) for c in range(3)]).clip(-1, 1)
        inputs = {
            "photo": small.transpose(2, 0, 1)[None],
            "region": np.ones((1, 1, side, side)),
            "degree": np.array([degree]),
        }
        if len(style):
            inputs["style"] = (in_light(style, small) if self.editor.about["style"] == "color" else style)[None]
        _, mask, gain, bias, confidence = self.editor(**inputs)
        mask = mask * (confidence[0] >= SURE)
        return np.concatenate([gain[0], bias[0] * 127.5, mask[0]]).transpose(1, 2, 0).copy()


def in_light(style: np.ndarray, crop: np.ndarray) -> np.ndarray:
    """The code of a colour as it looks in a dark photo, where blond does not glow; crop [S,S,3] in [-1,1]."""
    srgb = crop / 2 + 0.5
    linear = np.where(srgb > 0.04045, ((srgb + 0.055) / 1.055) ** 2.4, srgb / 12.92)
    y = linear @ [0.212671, 0.715160, 0.072169]
    lightness = np.where(y > 0.008856, 116 * np.cbrt(y) - 16, 903.3 * y)
    brightest = np.quantile(lightness, 0.995)
    if brightest >= 66:
        return style
    expected = 66 + min(66 - brightest, 14)
    shine, full = (((value + 16) / 116) ** 3 if value > 8 else value / 903.3 for value in (brightest, expected))
    lab = style * 50 + [50, 0, 0]
    fy = (lab[0] + 16) / 116
    curve = np.array([fy + lab[1] / 500, fy, fy - lab[2] / 200])
    xyz = np.where(curve > 6 / 29, curve**3, (curve - 4 / 29) / 7.787) * (max(shine, 1e-4) / full)
    fx, fy, fz = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 4 / 29)
    return (np.array([116 * fy - 16, 500 * (fx - fy), 200 * (fy - fz)]) - [50, 0, 0]) / 50


# Faces: image pyramid, peaks of the finder's heat, landmarks in two passes.


def find_faces(photo: np.ndarray, finder: Graph, landmarks: Graph, min_score: float) -> list[tuple[np.ndarray, float]]:
    """(points68 [68,2] in photo pixels, score) of every face, the largest first."""
    about = finder.about
    candidates = []
    for level, scale in pyramid(photo, about):
        candidates += peaks(level, scale, finder)
    kept: list[tuple[np.ndarray, float]] = []
    for place, heat in sorted(candidates, key=lambda each: -each[1]):
        if len(kept) < about["max_candidates"] and not any(same(place, other) for other, _ in kept):
            kept.append((place, heat))
    if not kept:
        return []
    points, scores = two_passes(photo, kept, landmarks)
    faces: list[tuple[np.ndarray, float]] = []
    for index in np.argsort(-scores, kind="stable"):
        if scores[index] >= min_score and all(overlap(points[index], other) < 0.5 for other, _ in faces):
            faces.append((points[index].astype(np.float32), float(scores[index])))
    return sorted(faces, key=lambda face: -area(box(face[0])))


def pyramid(photo: np.ndarray, about: dict) -> list[tuple[np.ndarray, tuple[float, float]]]:
    """Levels a factor 2 apart, finest first, each with its (x, y) scale from the photo."""
    h, w = photo.shape[:2]
    longest, level, levels = (
        min(max(h, w), max(about["largest_level_px"], round(about["largest_level_share"] * max(h, w)))),
        photo,
        [],
    )
    while longest >= min(about["smallest_level_px"], max(h, w)) and longest >= 8:
        height, width = max(round(h * longest / max(h, w)), 1), max(round(w * longest / max(h, w)), 1)
        level = reduced(level, height, width)
        levels.append((level, (width / w, height / h)))
        longest //= 2
    return levels


def peaks(level: np.ndarray, scale: tuple[float, float], finder: Graph) -> list[tuple[np.ndarray, float]]:
    """(eyes and mouth [3,2] in photo pixels, heat) where the finder's heat has a peak."""
    about, (h, w) = finder.about, level.shape[:2]
    b, stride = about["border_px"], about["stride_px"]
    padded = np.zeros((1, 3, *(-(-(side + 2 * b) // 16) * 16 for side in (h, w))))
    padded[0, :, b : b + h, b : b + w] = level.transpose(2, 0, 1) / 127.5 - 1
    heat, points = finder(image=padded)
    heat, points = heat[0, 0], points[0]
    around = np.pad(heat, 1, constant_values=-np.inf)
    highest = np.max([around[y : y + heat.shape[0], x : x + heat.shape[1]] for y in range(3) for x in range(3)], 0)
    found = []
    for y, x in zip(*np.nonzero((heat == highest) & (heat > about["heat_floor"])), strict=True):
        cell = (np.array([x, y]) + 0.5) * stride - 0.5 - b
        place = points[:, y, x].astype(np.float64).reshape(3, 2) * about["unit_px"] + cell
        place = (place + 0.5) / np.array(scale) - 0.5
        if plausible(place, about["min_face_px"]):
            found.append((place, float(heat[y, x])))
    return found


def two_passes(photo: np.ndarray, candidates: list, landmarks: Graph) -> tuple[np.ndarray, np.ndarray]:
    """points68 [K,68,2] in photo pixels and scores [K]; the second pass sees the face upright, plainly and mirrored."""
    about = landmarks.about
    places = np.stack([place for place, _ in candidates])
    first, _ = one_pass(photo, places, landmarks, mirrored=False)
    better = eyes_and_mouth(first)
    usable = np.array([plausible(place, about["min_face_px"]) for place in better])
    better[~usable] = places[~usable]
    second, score = one_pass(photo, better, landmarks, mirrored=True)
    moved = np.linalg.norm(second - first, axis=-1).mean(-1) / np.linalg.norm(
        better[:, 0] - better[:, 1], axis=-1
    ).clip(1e-6)
    heat = np.array([heat for _, heat in candidates])
    return second, (score * np.sqrt(heat)) ** 0.68 * np.clip(1.5 - 2 * moved, 0, 1) * usable


def one_pass(photo: np.ndarray, places: np.ndarray, landmarks: Graph, mirrored: bool) -> tuple[np.ndarray, np.ndarray]:
    about = landmarks.about
    size = about["crop_px"]
    moves = [square_transform(place, size, about["crop_share"], about["crop_shift"]) for place in places]
    crops = np.stack([warp(photo, move, size, "edge") for move in moves]).transpose(0, 3, 1, 2) / 127.5 - 1
    points, logit = landmarks(crop=crops)
    if mirrored:
        other, other_logit = landmarks(crop=crops[..., ::-1])
        other = other[:, about["mirror"]]
        other[..., 0] = size - 1 - other[..., 0]
        points, logit = (points + other) / 2, (logit + other_logit) / 2
    back = [moved_points(inverse(move), each.astype(np.float64)) for move, each in zip(moves, points, strict=True)]
    return np.stack(back), 1 / (1 + np.exp(-logit.astype(np.float64)))


def eyes_and_mouth(points68: np.ndarray) -> np.ndarray:
    """[...,68,2] -> [...,3,2]: centres of the right eye, the left eye, the mouth's corners."""
    points = np.asarray(points68, np.float64)
    return np.stack(
        [points[..., 36:42, :].mean(-2), points[..., 42:48, :].mean(-2), (points[..., 48, :] + points[..., 54, :]) / 2],
        -2,
    )


def plausible(face: np.ndarray, min_face_px: float) -> bool:
    right, left, mouth = face
    across, down = left - right, mouth - (left + right) / 2
    apart, deep = np.hypot(*across), np.hypot(*down)
    if not np.isfinite(face).all() or apart < 1e-3 or not 0.35 < deep / apart < 4:
        return False
    upright = (across[0] * down[1] - across[1] * down[0]) / (apart * deep)
    return bool(upright > 0.6) and half_side(face) >= min_face_px


def half_side(face: np.ndarray) -> float:
    return 0.5 / scale_of(square_transform(face, 1))


def same(a: np.ndarray, b: np.ndarray) -> bool:
    sizes = half_side(a), half_side(b)
    return bool(np.hypot(*(a.mean(0) - b.mean(0))) < 0.3 * max(sizes)) and max(sizes) < 1.8 * min(sizes)


def box(points: np.ndarray) -> np.ndarray:
    return np.concatenate([points.min(0), points.max(0)])


def area(corners: np.ndarray) -> float:
    return float((corners[2] - corners[0]) * (corners[3] - corners[1]))


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    a, b = box(a), box(b)
    w, h = (min(a[2 + i], b[2 + i]) - max(a[i], b[i]) for i in (0, 1))
    return max(w, 0) * max(h, 0) / max(min(area(a), area(b)), 1e-6)


# Where a face lies, and pictures moved by a transform.


def square_transform(face: np.ndarray, size: int, share: float = 1.0, shift: float = 0.0) -> np.ndarray:
    """FFHQ's square of a face (eyes and mouth, [3,2]) onto size x size pixels."""
    right, left, mouth = np.asarray(face, np.float64)
    eyes, eye_to_eye = (right + left) / 2, left - right
    eye_to_mouth = mouth - eyes
    across = eye_to_eye + np.array([eye_to_mouth[1], -eye_to_mouth[0]])
    half = max(2.0 * np.hypot(*eye_to_eye), 1.8 * np.hypot(*eye_to_mouth))
    across = across / np.hypot(*across)
    down = np.array([-across[1], across[0]])
    centre = eyes + 0.1 * eye_to_mouth + 2 * half * shift * down
    linear = size / (2 * half * share) * np.stack([across, down])
    return np.concatenate([linear, ((size - 1) / 2 - linear @ centre)[:, None]], 1)


def moved_points(transform: np.ndarray, points: np.ndarray) -> np.ndarray:
    return points @ transform[:, :2].T + transform[:, 2]


def inverse(transform: np.ndarray) -> np.ndarray:
    linear = np.linalg.inv(transform[:, :2])
    return np.concatenate([linear, -(linear @ transform[:, 2])[:, None]], 1)


def scale_of(transform: np.ndarray) -> float:
    return float(np.sqrt(abs(np.linalg.det(transform[:, :2]))))


def reduced(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """An uint8 picture [H,W,3] made smaller: the mean of what each new pixel covers."""
    if image.shape[:2] == (height, width):
        return image
    values = image.astype(np.float64)
    for axis, new in ((0, height), (1, width)):
        old = values.shape[axis]
        sums = np.concatenate([np.zeros_like(values.take([0], axis)), values.cumsum(axis)], axis)
        ends = np.linspace(0, old, new + 1)
        low = np.minimum(ends.astype(int), old - 1)
        part = (ends - low).reshape((-1, 1, 1) if axis == 0 else (1, -1, 1))
        at = sums.take(low, axis) * (1 - part) + sums.take(low + 1, axis) * part
        values = np.diff(at, axis=axis) * (new / old)
    return np.rint(values).clip(0, 255).astype(np.uint8)


def resized(values: np.ndarray, side: int, how: Image.Resampling) -> np.ndarray:
    """A float map [S,S] at another size."""
    return np.array(Image.fromarray(values.astype(np.float32)).resize((side, side), how))


def warp(image: np.ndarray, transform: np.ndarray, size: int, border: str = "reflect") -> np.ndarray:
    """An uint8 picture [H,W,3] as the square sees it, antialiased; beyond its border by its edge or its reflection."""
    image, transform = cut(image, transform, size)
    scale = scale_of(transform)
    if scale < 0.75:
        h, w = image.shape[:2]
        height, width = max(round(h * scale), 1), max(round(w * scale), 1)
        image = reduced(image, height, width)
        small_to_large = np.array([w / width, h / height])
        linear = transform[:, :2] * small_to_large
        offset = transform[:, 2] + transform[:, :2] @ (0.5 * small_to_large - 0.5)
        transform = np.concatenate([linear, offset[:, None]], 1)
    grid = np.stack(np.meshgrid(np.arange(size), np.arange(size)), -1).astype(np.float64)
    found = sampled(image, moved_points(inverse(transform), grid), scale_of(transform) > 1, border)
    return np.rint(found).clip(0, 255).astype(np.uint8)


def cut(image: np.ndarray, transform: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The part of the photo that the square sees, where it lies inside."""
    corners = np.array([[-0.5, -0.5], [size, -0.5], [-0.5, size], [size, size]])
    corners = moved_points(inverse(transform), corners)
    h, w = image.shape[:2]
    low, high = np.floor(corners.min(0)).astype(int), np.ceil(corners.max(0)).astype(int)
    margin = int(np.ceil(4 + 4 / max(scale_of(transform), 1e-3)))
    if low[0] < 0 or low[1] < 0 or high[0] >= w or high[1] >= h:
        return image, transform
    x0, y0 = np.maximum(low - margin, 0)
    part = image[y0 : min(high[1] + margin + 1, h), x0 : min(high[0] + margin + 1, w)]
    return part, np.concatenate([transform[:, :2], (transform[:, 2] + transform[:, :2] @ [x0, y0])[:, None]], 1)


def sampled(image: np.ndarray, places: np.ndarray, cubic: bool, border: str) -> np.ndarray:
    """image [H,W,C] at places [...,2], linear or cubic; border: "edge", "reflect" or "zero"."""
    whole = np.floor(places).astype(int)
    part = places - whole
    taps = range(-1, 3) if cubic else range(2)
    weights = cubic_weights(part) if cubic else np.stack([1 - part, part])
    result = np.zeros((*places.shape[:-1], image.shape[2]))
    for j, dy in enumerate(taps):
        y, inside_y = bordered(whole[..., 1] + dy, image.shape[0], border)
        for i, dx in enumerate(taps):
            x, inside_x = bordered(whole[..., 0] + dx, image.shape[1], border)
            weight = weights[i][..., 0] * weights[j][..., 1] * inside_x * inside_y
            result += weight[..., None] * image[y, x]
    return result


def cubic_weights(t: np.ndarray, a: float = -0.75) -> np.ndarray:
    """Of the four taps around a place, [4,...]."""
    near = lambda x: ((a + 2) * x - (a + 3)) * x * x + 1  # noqa: E731
    far = lambda x: a * (((x - 5) * x + 8) * x - 4)  # noqa: E731
    return np.stack([far(1 + t), near(t), near(1 - t), far(2 - t)])


def bordered(index: np.ndarray, size: int, border: str) -> tuple[np.ndarray, np.ndarray]:
    """An index inside the picture for each, and 0 where it counts for nothing."""
    if border == "reflect" and size > 1:
        period = 2 * size - 2
        index = np.abs(index) % period
        return np.where(index >= size, period - index, index), np.ones(())
    inside = ((index >= 0) & (index < size)).astype(float) if border == "zero" else np.ones(())
    return index.clip(0, size - 1), inside


def crop_aligned(photo: np.ndarray, transform: np.ndarray, size: int) -> np.ndarray:
    """The photo's square; what lies outside the photo is its reflection, blurred and faded to the median colour."""
    crop = warp(photo, transform, size)
    grid = np.stack(np.meshgrid(np.arange(size), np.arange(size)), -1).astype(np.float64)
    at = moved_points(inverse(transform), grid)
    h, w = photo.shape[:2]
    nearest = np.minimum(
        np.minimum(at[..., 0] + 0.5, w - 0.5 - at[..., 0]), np.minimum(at[..., 1] + 0.5, h - 0.5 - at[..., 1])
    )
    inside = nearest * scale_of(transform)
    if inside.min() >= 0:
        return crop
    weight = np.clip(-inside / (0.3 * size), 0, 1)[..., None]
    pixels = crop.astype(np.float64)
    pixels += (blurred(pixels, 0.02 * size, "reflect") - pixels) * np.clip(weight * 3, 0, 1)
    visible = inside >= 0
    median = np.median(crop[visible], axis=0) if visible.any() else np.median(crop, axis=(0, 1))
    return np.clip(np.rint(pixels + (median - pixels) * weight), 0, 255).astype(np.uint8)


def blurred(values: np.ndarray, sigma: float, border: str) -> np.ndarray:
    """A Gaussian over [S,S,C], as one matrix from each side."""
    size = values.shape[0]
    reach = (round(sigma * 8 + 1) | 1) // 2
    taps = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    matrix = np.zeros((size, size))
    rows = np.arange(size)
    for offset, tap in zip(range(-reach, reach + 1), taps / taps.sum(), strict=True):
        index, inside = bordered(rows + offset, size, border)
        np.add.at(matrix, (rows, index), tap * np.broadcast_to(inside, size))
    return np.einsum("yh,hwc,xw->yxc", matrix, values, matrix, optimize=True)


# The edit beyond the square, and back in the photo.


def border_fade(side: int) -> np.ndarray:
    """1 inside, smoothly 0 towards the square's border."""
    ramp = smooth_step(np.minimum(np.arange(side), np.arange(side)[::-1]) / (FADE * side))
    return np.minimum.outer(ramp, ramp)


def smooth_step(x: np.ndarray) -> np.ndarray:
    x = np.clip(x, 0, 1)
    return x * x * (3 - 2 * x)


def extended(maps: np.ndarray, region: np.ndarray, margin: int) -> np.ndarray:
    """The edit [S,S,7] carried on over a wider square, where the network's look at that (region [W,W]) agrees."""
    side = maps.shape[0]
    colours, edge = ((0, 0), (margin, margin), (margin, margin)), ((margin, margin), (margin, margin))
    inside, mask, crop = (
        np.pad(border_fade(side), edge),
        np.pad(maps[..., 6], edge),
        np.pad(np.ones((side, side)), edge),
    )
    reaching = carried(maps[..., 6:], np.ones((side, side)), margin)[..., 0]
    wide = inside * mask + (1 - inside) * (crop * np.minimum(mask, region) + met((1 - crop) * region, reaching, margin))
    padded = np.pad(maps[..., :6].transpose(2, 0, 1), colours).transpose(1, 2, 0)
    outside = carried(maps[..., :6], maps[..., 6] * border_fade(side), margin)
    values = inside[..., None] * padded + (1 - inside)[..., None] * outside
    return np.dstack([values, wide * border_fade(len(wide))])


def carried(values: np.ndarray, weight: np.ndarray, margin: int) -> np.ndarray:
    """values [S,S,C] as known where weight is high, smoothly continued over the wider square."""
    edge = ((margin, margin), (margin, margin), (0, 0))
    known = np.pad(np.concatenate([values * weight[..., None], weight[..., None]], 2), edge)
    result, left = np.zeros((*known.shape[:2], values.shape[2])), np.ones(known.shape[:2])
    for reach in REACHES:
        spread = blurred(known, reach * weight.shape[0], "zero")
        share = left * np.clip(spread[..., -1] / 0.05, 0, 1)
        result += share[..., None] * spread[..., :-1] / np.maximum(spread[..., -1:], 1e-6)
        left -= share
    return result


def met(region: np.ndarray, edit: np.ndarray, margin: int) -> np.ndarray:
    """The pieces of a region beyond the crop that the edit meets along their border."""
    place = np.arange(region.shape[0])
    beyond = np.maximum(margin - place, place - (len(place) - 1 - margin)).clip(0)
    beyond = np.maximum.outer(beyond, beyond)
    pieces = connected(region > 0.3)
    along = (beyond == 1) & (pieces > 0)
    area_of = np.bincount(pieces[along], minlength=pieces.max() + 1)
    share = np.bincount(pieces[along], edit[along], len(area_of)) / np.maximum(area_of, 1)
    solid = np.isin(pieces, np.flatnonzero(share > 0.6))
    near = highest_around(solid.astype(float), 2)
    passage = np.maximum(smooth_step(2 * edit), smooth_step(beyond / (FADE * len(place)) - 0.5))
    return region * near * passage


def connected(mask: np.ndarray) -> np.ndarray:
    """A number for each piece of a mask, the same for pixels that touch, corners included; 0 outside."""
    numbers = np.where(mask, np.arange(1, mask.size + 1).reshape(mask.shape), 0)
    while True:
        spread = np.where(mask, highest_around(numbers, 1), 0)
        if np.array_equal(spread, numbers):
            return np.unique(numbers, return_inverse=True)[1].reshape(mask.shape)
        numbers = spread


def highest_around(values: np.ndarray, reach: int) -> np.ndarray:
    h, w = values.shape
    padded = np.pad(values, reach)
    steps = range(2 * reach + 1)
    return np.max([padded[y : y + h, x : x + w] for y in steps for x in steps], 0)


def paste(result: np.ndarray, photo: np.ndarray, edited: np.ndarray, maps: np.ndarray, transform: np.ndarray) -> None:
    """photo + mask * (gain * (photo + 1) + bias) at the photo's own size, in place; edited: what earlier faces took."""
    side, scale = len(maps), scale_of(transform)
    if scale > 1:
        maps = blurred(maps, 0.5 * scale, "reflect")
    corners = moved_points(
        inverse(transform), np.array([[0, 0], [side - 1, 0], [0, side - 1], [side - 1, side - 1]], float)
    )
    x0, y0 = np.maximum(np.floor(corners.min(0)).astype(int), 0)
    x1, y1 = np.minimum(np.ceil(corners.max(0)).astype(int) + 1, photo.shape[1::-1])
    for top in range(y0, y1, 64):
        here = np.s_[top : min(top + 64, y1), x0:x1]
        grid = np.stack(np.meshgrid(np.arange(x0, x1), np.arange(top, min(top + 64, y1))), -1).astype(np.float64)
        places = moved_points(transform, grid)
        weight = sampled(maps[..., 6:], places, False, "zero")[..., 0].clip(0, 1)
        colours = sampled(maps[..., :6], places, True, "zero")
        share = weight * (1 - edited[here].astype(float))
        changed = result[here] + (colours[..., :3] * photo[here] + colours[..., 3:]) * share[..., None]
        result[here] = np.where(
            (share > 0)[..., None], np.clip(np.rint(changed), 0, 255).astype(np.uint8), result[here]
        )
        edited[here] = np.maximum(edited[here], weight)


# Files.


def load(path: Path) -> tuple[np.ndarray, Image.Image]:
    """The photo uint8 [H,W,3] sRGB, upright, and Pillow's image of it."""
    image = ImageOps.exif_transpose(Image.open(path))
    profile = image.info.get("icc_profile")
    plain = image.convert("RGB")
    if profile and image.mode in ("RGB", "RGBA"):
        source, target = ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB")
        plain = ImageCms.profileToProfile(plain, source, target)
    return np.array(plain), image


def save(path: Path, pixels: np.ndarray, image: Image.Image) -> None:
    """Write sRGB pixels with the photo's EXIF, marked as edited, in XMP and in EXIF's software tag."""
    exif = image.getexif()
    exif[0x0131] = "onnx_edit.py"
    options: dict = {"exif": exif.tobytes()}
    if path.suffix.lower() == ".png":
        options["pnginfo"] = PngImagePlugin.PngInfo()
        options["pnginfo"].add_itxt("XML:com.adobe.xmp", XMP)
    else:
        segment = b"http://ns.adobe.com/xap/1.0/\0" + XMP.encode()
        options |= {
            "extra": b"\xff\xe1" + (len(segment) + 2).to_bytes(2, "big") + segment,
            "quality": 95,
            "subsampling": 0,
        }
    Image.fromarray(pixels).save(path, **options)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("editor", type=Path)
    parser.add_argument("photo", type=Path)
    parser.add_argument("out", type=Path, help=".png or .jpg")
    parser.add_argument("--style", default="", help="the style code, numbers with commas; none for a model without")
    parser.add_argument("--degree", type=float, default=1.0)
    arguments = parser.parse_args()
    pixels, image = load(arguments.photo)
    style = np.array([float(value) for value in arguments.style.split(",") if value])
    save(arguments.out, OnnxEditor(arguments.editor)(pixels, style, arguments.degree), image)


if __name__ == "__main__":
    main()
