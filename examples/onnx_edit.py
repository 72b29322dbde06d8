"""From a photo to the edited photo with what `i2i export` writes, without stylepairs and without PyTorch.

    python onnx_edit.py EDITOR.onnx PHOTO OUT --style=-0.28,0.4,0.34 --degree 1

Needs onnxruntime, numpy, OpenCV and Pillow alone: what an app has to do around the three graphs, in the order in which
it is done. face_finder.onnx and face_landmarks.onnx lie beside EDITOR.onnx. Coordinates are (x, y), pixel centres at
integers; a transform is a 2 x 3 matrix from one picture's coordinates to another's.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from pathlib import Path

import cv2
import numpy as np
import onnxruntime
from PIL import Image, ImageCms, PngImagePlugin

MIN_SCORE, SURE = 0.5, 0.5  # of faces; of there being anything to edit on one
OWN_BELOW = -1.5  # the first number of a style code whose colour is the photo's own
FADES_BELOW = 0.1  # a degree: to the network it is one hint among others, and none has to be nothing
# Of the crop's side: how far an edit fades out before the border, how far it is carried on beyond it, by Gaussians.
FADE, MARGIN, REACHES = 0.06, 0.3, (0.05, 0.15, 0.45)
# Of the 68 landmarks: around cheeks and nose; along the jaw and back over the brows.
CHEEKS = [1, 2, 3, 48, 31, 33, 35, 54, 13, 14, 15, 45, 46, 47, 42, 27, 39, 40, 41, 36]
OUTLINE = [*range(17), 26, 25, 24, 19, 18, 17]
# EXIF's orientations, and how each is turned upright; what a JPEG can hold of EXIF.
_WAYS = ("FLIP_LEFT_RIGHT", "ROTATE_180", "FLIP_TOP_BOTTOM", "TRANSPOSE", "ROTATE_270", "TRANSVERSE", "ROTATE_90")
TURNS = {orientation: Image.Transpose[way] for orientation, way in enumerate(_WAYS, 2)}
MOST_EXIF_BYTES = 65_000
XMP = (
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/">'
    "<Iptc4xmpExt:DigitalSourceType>http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia"
    "</Iptc4xmpExt:DigitalSourceType></rdf:Description></rdf:RDF></x:xmpmeta>"
)


class About(dict):
    """What a graph says of itself."""

    def __missing__(self, name: str) -> None:
        sys.exit(f"{self['path']}: does not say {name}; write it again with this version's `i2i export`")


class Graph:
    """An ONNX file and what it says of itself."""

    def __init__(self, path: Path):
        self.session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        said = self.session.get_modelmeta().custom_metadata_map.get("stylepairs.json", "{}")
        self.about = About(json.loads(said), path=path)

    def __call__(self, **inputs: np.ndarray) -> list[np.ndarray]:
        return self.session.run(None, {name: value.astype(np.float32) for name, value in inputs.items()})


class OnnxEditor:
    """Edits photos uint8 [H,W,3] in sRGB."""

    def __init__(self, editor: Path):
        self.editor = Graph(editor)
        self.finder = Graph(editor.parent / "face_finder.onnx")
        self.landmarks = Graph(editor.parent / "face_landmarks.onnx")

    def __call__(self, photo: np.ndarray, style: np.ndarray, degree: float) -> tuple[np.ndarray, np.ndarray]:
        """Every face edited, and how much of each pixel was, [H,W]; style [C] is the editor's code of what is wanted (C
        may be 0), degree in [0,1]."""
        result, edited = photo.copy(), np.zeros(photo.shape[:2], np.float16)
        for points68 in find_faces(photo, self.finder, self.landmarks):
            maps, transform = self.maps(photo, points68, style, degree)
            paste(result, photo, edited, maps, transform)
        return result, edited

    def maps(
        self, photo: np.ndarray, points68: np.ndarray, style: np.ndarray, degree: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """The edit of one face as gain, bias, mask [S,S,7] (of 0..255), of an editor that moves with the flow in pixels
        [S,S,9], and the photo's transform onto their square."""
        about = self.editor.about
        side = about["size_px"]
        maps, sure = self.seen(photo, points68, style, degree, 1.0)
        maps[..., 6] *= sure >= SURE
        transform = square_transform(eyes_and_mouth(points68), side)
        fade = border_fade(side)
        continues = about["keeps_texture"] and not about["draws"] and "flow" not in about["outputs"]
        if continues and (maps[..., 6] * (1 - fade)).mean() > 0.01 * FADE:
            margin = round(MARGIN * side)
            wide = self.seen(photo, points68, style, degree, 1 + 2 * margin / side)[0][..., 6]
            transform[:, 2] += margin
            return extended(maps, resized(wide, side + 2 * margin, Image.Resampling.BILINEAR), margin), transform
        maps[..., 6] *= fade
        return maps, transform

    def seen(
        self, photo: np.ndarray, points68: np.ndarray, style: np.ndarray, degree: float, share: float
    ) -> tuple[np.ndarray, float]:
        """What the network says of a square `share` times the face's own: gain, bias, mask, flow, and how sure it is
        that there is anything to edit, which counts for the face's own square alone."""
        side, crop_px = self.editor.about["size_px"], self.editor.about["crop_px"]
        transform = square_transform(eyes_and_mouth(points68), crop_px, share)
        crop = crop_aligned(photo, transform, crop_px).astype(np.float32) / 127.5 - 1
        small = np.dstack([resized(crop[..., c], side, Image.Resampling.BICUBIC) for c in range(3)]).clip(-1, 1)
        inputs = {
            "photo": small.transpose(2, 0, 1)[None],
            "region": np.ones((1, 1, side, side)),
            "degree": np.array([degree]),
        }
        if len(style):
            points = (moved_points(transform, points68.astype(np.float64)) + 0.5) * side / crop_px - 0.5
            has_color = self.editor.about["style"] in ("color", "color_and_params")
            inputs["style"] = (in_light(style, small, points) if has_color else style)[None]
        _, mask, gain, bias, confidence, *flow = self.editor(**inputs)
        moves = [each[0] * side for each in flow]
        maps = np.concatenate([gain[0], bias[0] * 127.5, mask[0] * min(1.0, degree / FADES_BELOW), *moves])
        return maps.transpose(1, 2, 0).copy(), float(confidence[0])


def in_light(style: np.ndarray, crop: np.ndarray, points68: np.ndarray) -> np.ndarray:
    """The code, its colour as it looks in the photo's light; crop [S,S,3] in [-1,1], points68 in its pixels."""
    light = light_of(cv2.cvtColor(crop / 2 + 0.5, cv2.COLOR_RGB2LAB)[..., 0], points68)
    if light == 1 or style[0] <= OWN_BELOW:
        return style
    lab = style[:3] * 50 + [50, 0, 0]
    fy = (lab[0] + 16) / 116
    curve = np.array([fy + lab[1] / 500, fy, fy - lab[2] / 200])
    xyz = np.where(curve > 6 / 29, curve**3, (curve - 4 / 29) / 7.787) * light
    fx, fy, fz = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 4 / 29)
    color = (np.array([116 * fy - 16, 500 * (fx - fy), 200 * (fy - fz)]) - [50, 0, 0]) / 50
    return np.concatenate([color, style[3:]])


def light_of(lightness: np.ndarray, points68: np.ndarray) -> float:
    """The light on a crop of L* [S,S], as a factor to that of a well exposed one: more where cheeks and nose are
    lighter than skin can be, less where the brightest of crop, face and eyes is dark."""
    cheeks = lightness[inside(lightness, points68[CHEEKS])]
    if len(cheeks) and np.median(cheeks) > 78:
        return min(2.0, shine(np.median(cheeks)) / shine(78))
    face = inside(lightness, points68[OUTLINE])
    eyes = inside(lightness, points68[36:42]) | inside(lightness, points68[42:48])
    parts = ((np.ones_like(face), 0.995), (face, 0.98), (eyes, 0.9))
    brightest = max(np.quantile(lightness[part], share) for part, share in parts if part.any())
    return 1.0 if brightest >= 66 else max(shine(brightest), 1e-4) / shine(66 + min(66 - brightest, 14))


def inside(lightness: np.ndarray, outline: np.ndarray) -> np.ndarray:
    mask = np.zeros(lightness.shape, np.uint8)
    cv2.fillPoly(mask, [np.rint(outline * 16).astype(np.int32)], 255, cv2.LINE_AA, shift=4)
    return mask > 127


def shine(lightness: float) -> float:
    """What of the light a surface of this L* gives back."""
    return ((lightness + 16) / 116) ** 3 if lightness > 8 else lightness / 903.3


# Faces: image pyramid, peaks of the finder's heat, landmarks in two passes.


def find_faces(photo: np.ndarray, finder: Graph, landmarks: Graph) -> list[np.ndarray]:
    """points68 [68,2] in photo pixels of every face, the largest first."""
    about = finder.about
    levels = pyramid(photo, about)
    candidates = [place for level, scale in levels for place in peaks(level, scale, finder)]
    kept: list[tuple[np.ndarray, float]] = []
    for place, heat in sorted(candidates, key=lambda each: -each[1]):
        if len(kept) < about["max_candidates"] and not any(same(place, other) for other, _ in kept):
            kept.append((place, heat))
    if not kept:
        return []
    points, scores = two_passes([(photo, (1.0, 1.0)), *levels], kept, landmarks)
    faces: list[np.ndarray] = []
    for index in np.argsort(-scores, kind="stable"):
        if scores[index] >= MIN_SCORE and all(overlap(points[index], other) < 0.5 for other in faces):
            faces.append(points[index].astype(np.float32))
    return sorted(faces, key=area, reverse=True)


def pyramid(photo: np.ndarray, about: dict) -> list[tuple[np.ndarray, tuple[float, float]]]:
    """Levels a factor 2 apart, finest first, each with its (x, y) scale from the photo."""
    h, w = photo.shape[:2]
    level, levels = photo, []
    longest = min(max(h, w), max(about["largest_level_px"], round(about["largest_level_share"] * max(h, w))))
    while longest >= min(about["smallest_level_px"], max(h, w)) and longest >= 8:
        height, width = max(round(h * longest / max(h, w)), 1), max(round(w * longest / max(h, w)), 1)
        while level.shape[0] >= 2 * height and level.shape[1] >= 2 * width:  # by halves first, which is quick
            level = cv2.resize(level, (level.shape[1] // 2, level.shape[0] // 2), interpolation=cv2.INTER_AREA)
        level = cv2.resize(level, (width, height), interpolation=cv2.INTER_AREA)
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
    highest = cv2.dilate(heat, np.ones((3, 3), np.uint8))
    found = []
    for y, x in zip(*np.nonzero((heat == highest) & (heat > about["heat_floor"])), strict=True):
        cell = (np.array([x, y]) + 0.5) * stride - 0.5 - b
        place = points[:, y, x].astype(np.float64).reshape(3, 2) * about["unit_px"] + cell
        place = (place + 0.5) / np.array(scale) - 0.5
        if plausible(place, about["min_face_px"]):
            found.append((place, float(heat[y, x])))
    return found


def two_passes(levels: list, candidates: list, landmarks: Graph) -> tuple[np.ndarray, np.ndarray]:
    """points68 [K,68,2] in photo pixels and scores [K]; the second pass sees the face upright, plainly and mirrored."""
    about = landmarks.about
    places, heat = (np.array(each) for each in zip(*candidates, strict=True))
    first, seen = one_pass(levels, places, landmarks, mirrored=False)
    promising = seen >= about["first_look_share"] * MIN_SCORE
    if not promising.any():
        return first[promising], seen[promising]
    first, places, heat = first[promising], places[promising], heat[promising]
    better = eyes_and_mouth(first)
    usable = np.array([plausible(place, about["min_face_px"]) for place in better])
    better[~usable] = places[~usable]
    second, score = one_pass(levels, better, landmarks, mirrored=True)
    apart = np.linalg.norm(better[:, 0] - better[:, 1], axis=-1).clip(1e-6)
    moved = np.linalg.norm(second - first, axis=-1).mean(-1) / apart
    return second, (score * np.sqrt(heat)) ** 0.78 * np.clip(1.5 - 2 * moved, 0, 1) * usable


def one_pass(levels: list, places: np.ndarray, landmarks: Graph, mirrored: bool) -> tuple[np.ndarray, np.ndarray]:
    about = landmarks.about
    size = about["crop_px"]
    moves = [square_transform(place, size, about["crop_share"], about["crop_shift"]) for place in places]
    crops = np.stack([landmark_crop(levels, move, size) for move in moves])
    crops = crops.transpose(0, 3, 1, 2) / 127.5 - 1
    points, logit = landmarks(crop=crops)
    if mirrored:
        other, other_logit = landmarks(crop=crops[..., ::-1])
        other = other[:, about["mirror"]]
        other[..., 0] = size - 1 - other[..., 0]
        points, logit = (points + other) / 2, (logit + other_logit) / 2
    back = [cv2.invertAffineTransform(move) for move in moves]
    points = np.stack([moved_points(*each) for each in zip(back, points.astype(np.float64), strict=True)])
    return points, 1 / (1 + np.exp(-logit.astype(np.float64)))


def landmark_crop(levels: list, move: np.ndarray, size: int) -> np.ndarray:
    """The crop under `move` (from the photo), read from the smallest level with twice its resolution."""
    least = 2 * scale_of(move)
    level, scale = next((each for each in reversed(levels) if min(each[1]) >= least), levels[0])
    larger = 1 / np.array(scale)
    offset = move[:, 2] + move[:, :2] @ (0.5 * larger - 0.5)
    return warp(level, np.column_stack([move[:, :2] * larger, offset]), size, cv2.BORDER_REPLICATE)


def eyes_and_mouth(points68: np.ndarray) -> np.ndarray:
    """[...,68,2] -> [...,3,2]: centres of the right eye, the left eye, the mouth's corners."""
    points = np.asarray(points68, np.float64)
    return np.stack([points[..., part, :].mean(-2) for part in (range(36, 42), range(42, 48), (48, 54))], -2)


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


def area(points: np.ndarray) -> float:
    return float(np.prod(np.ptp(points, 0)))


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """How much of the smaller face's box the other's covers."""
    shared = np.minimum(a.max(0), b.max(0)) - np.maximum(a.min(0), b.min(0))
    return float(np.prod(shared.clip(0))) / max(min(area(a), area(b)), 1e-6)


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


def scale_of(transform: np.ndarray) -> float:
    return float(np.sqrt(abs(np.linalg.det(transform[:, :2]))))


def resized(values: np.ndarray, side: int, how: Image.Resampling) -> np.ndarray:
    """A float map [S,S] at another size."""
    return np.array(Image.fromarray(values.astype(np.float32)).resize((side, side), how))


def warp(image: np.ndarray, transform: np.ndarray, size: int, border: int = cv2.BORDER_REFLECT_101) -> np.ndarray:
    """An uint8 picture [H,W,3] as the square sees it, antialiased; beyond its border by its edge or its reflection."""
    image, transform = cut(image, transform, size)
    scale = scale_of(transform)
    if scale < 0.75:
        h, w = image.shape[:2]
        height, width = max(round(h * scale), 1), max(round(w * scale), 1)
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
        small_to_large = np.array([w / width, h / height])
        linear = transform[:, :2] * small_to_large
        offset = transform[:, 2] + transform[:, :2] @ (0.5 * small_to_large - 0.5)
        transform = np.concatenate([linear, offset[:, None]], 1)
    how = cv2.INTER_CUBIC if scale_of(transform) > 1 else cv2.INTER_LINEAR
    return cv2.warpAffine(image, transform, (size, size), flags=how, borderMode=border)


def cut(image: np.ndarray, transform: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The part of the photo that the square sees, where it lies inside."""
    corners = np.array([[-0.5, -0.5], [size, -0.5], [-0.5, size], [size, size]])
    corners = moved_points(cv2.invertAffineTransform(transform), corners)
    h, w = image.shape[:2]
    low, high = np.floor(corners.min(0)).astype(int), np.ceil(corners.max(0)).astype(int)
    margin = int(np.ceil(4 + 4 / max(scale_of(transform), 1e-3)))
    if low[0] < 0 or low[1] < 0 or high[0] >= w or high[1] >= h:
        return image, transform
    x0, y0 = np.maximum(low - margin, 0)
    part = image[y0 : min(high[1] + margin + 1, h), x0 : min(high[0] + margin + 1, w)]
    return part, np.concatenate([transform[:, :2], (transform[:, 2] + transform[:, :2] @ [x0, y0])[:, None]], 1)


def crop_aligned(photo: np.ndarray, transform: np.ndarray, size: int) -> np.ndarray:
    """The photo's square; what lies outside the photo is its reflection, blurred and faded to the median colour."""
    smaller, move = photo, transform
    while scale_of(move) < 0.25:  # by halves first, which is quick
        h, w = smaller.shape[:2]
        smaller = cv2.resize(smaller, (round(w / 2), round(h / 2)), interpolation=cv2.INTER_AREA)
        larger = np.array([w, h]) / smaller.shape[1::-1]
        move = np.column_stack([move[:, :2] * larger, move[:, 2] + move[:, :2] @ (0.5 * larger - 0.5)])
    crop = warp(smaller, move, size)
    grid = np.stack(np.meshgrid(np.arange(size), np.arange(size)), -1).astype(np.float64)
    at = moved_points(cv2.invertAffineTransform(transform), grid)
    h, w = photo.shape[:2]
    inside = np.minimum(at + 0.5, np.array([w, h]) - 0.5 - at).min(-1) * scale_of(transform)
    if inside.min() >= 0:
        return crop
    weight = np.clip(-inside / (0.3 * size), 0, 1)[..., None]
    pixels = crop.astype(np.float64)
    pixels += (cv2.GaussianBlur(pixels, (0, 0), 0.02 * size) - pixels) * np.clip(weight * 3, 0, 1)
    visible = inside >= 0
    median = np.median(crop[visible], axis=0) if visible.any() else np.median(crop, axis=(0, 1))
    return np.clip(np.rint(pixels + (median - pixels) * weight), 0, 255).astype(np.uint8)


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
    inside, mask = np.pad(border_fade(side), margin), np.pad(maps[..., 6], margin)
    crop = np.pad(np.ones((side, side)), margin)
    reaching = carried(maps[..., 6:], np.ones((side, side)), margin)[..., 0]
    wide = inside * mask + (1 - inside) * (crop * np.minimum(mask, region) + met((1 - crop) * region, reaching, margin))
    padded = np.pad(maps[..., :6], ((margin, margin), (margin, margin), (0, 0)))
    outside = carried(maps[..., :6], maps[..., 6] * border_fade(side), margin)
    values = inside[..., None] * padded + (1 - inside)[..., None] * outside
    return np.dstack([values, wide * border_fade(len(wide))])


def carried(values: np.ndarray, weight: np.ndarray, margin: int) -> np.ndarray:
    """values [S,S,C] as known where weight is high, smoothly continued over the wider square."""
    edge = ((margin, margin), (margin, margin), (0, 0))
    known = np.pad(np.concatenate([values * weight[..., None], weight[..., None]], 2), edge)
    result, left = np.zeros((*known.shape[:2], values.shape[2])), np.ones(known.shape[:2])
    for reach in REACHES:
        spread = blurred(known, reach * weight.shape[0])
        share = left * np.clip(spread[..., -1] / 0.05, 0, 1)
        result += share[..., None] * spread[..., :-1] / np.maximum(spread[..., -1:], 1e-6)
        left -= share
    return result


def blurred(maps: np.ndarray, sigma: float) -> np.ndarray:
    """Maps [W,W,C] under a Gaussian, 0 beyond; a wide one is taken of smaller maps, which is quick."""
    width, less = len(maps), max(int(sigma / 10), 1)
    small = width // less
    result = []
    for plane in np.moveaxis(maps, 2, 0):
        plane = cv2.resize(plane, (small, small), interpolation=cv2.INTER_AREA)
        plane = cv2.GaussianBlur(plane, (0, 0), sigma * small / width, borderType=cv2.BORDER_CONSTANT)
        result.append(cv2.resize(plane, (width, width), interpolation=cv2.INTER_CUBIC))
    return np.dstack(result)


def met(region: np.ndarray, edit: np.ndarray, margin: int) -> np.ndarray:
    """The pieces of a region beyond the crop that the edit meets along their border."""
    place = np.arange(region.shape[0])
    beyond = np.maximum(margin - place, place - (len(place) - 1 - margin)).clip(0)
    beyond = np.maximum.outer(beyond, beyond)
    _, pieces = cv2.connectedComponents((region > 0.3).astype(np.uint8), connectivity=8)
    along = (beyond == 1) & (pieces > 0)
    area_of = np.bincount(pieces[along], minlength=pieces.max() + 1)
    share = np.bincount(pieces[along], edit[along], len(area_of)) / np.maximum(area_of, 1)
    solid = np.isin(pieces, np.flatnonzero(share > 0.6))
    reach = max(2, round(0.01 * len(place)))
    near = cv2.dilate(solid.astype(float), np.ones(2 * [2 * reach + 1], np.uint8))
    passage = np.maximum(smooth_step(2 * edit), smooth_step(beyond / (FADE * len(place)) - 0.5))
    return region * near * passage


def paste(result: np.ndarray, photo: np.ndarray, edited: np.ndarray, maps: np.ndarray, transform: np.ndarray) -> None:
    """moved + mask * (gain * (moved + 1) + bias) at the photo's own size, in place, where moved is the photo, or what
    lies mask * flow away in it; edited: what earlier faces took."""
    maps, side, scale = maps.astype(np.float32), len(maps), scale_of(transform)  # OpenCV moves doubles less exactly
    moves = maps.shape[2] > 7
    if moves:
        maps[..., 7:] = maps[..., 7:] @ np.linalg.inv(transform[:, :2]).T.astype(np.float32)
    if scale > 1:
        maps = cv2.GaussianBlur(maps, (0, 0), 0.5 * scale)
    corners = np.array([[0, 0], [side - 1, 0], [0, side - 1], [side - 1, side - 1]], float)
    corners = moved_points(cv2.invertAffineTransform(transform), corners)
    x0, y0 = np.maximum(np.floor(corners.min(0)).astype(int), 0)
    x1, y1 = np.minimum(np.ceil(corners.max(0)).astype(int) + 1, photo.shape[1::-1])
    for top in range(y0, y1, 512):
        bottom = min(top + 512, y1)
        here, size = np.s_[top:bottom, x0:x1], (x1 - x0, bottom - top)
        part = np.column_stack([transform[:, :2], moved_points(transform, np.array([x0, top]))])
        weight = enlarged(maps[..., 6], part, size, cv2.INTER_LINEAR).clip(0, 1)
        gain, bias = (enlarged(maps[..., at : at + 3], part, size, cv2.INTER_CUBIC) for at in (0, 3))
        before = edited[here].astype(np.float32)
        share, own = weight * (1 - before), result[here].astype(np.float32)
        if not moves:
            own += (gain * photo[here] + bias) * share[..., None]
        else:  # what two faces move lies between their two edits
            pixels = moved(photo, x0, top, weight[..., None] * enlarged(maps[..., 7:], part, size, cv2.INTER_CUBIC))
            pixels += weight[..., None] * (gain * pixels + bias)
            own += (share / np.maximum(share + before, 1e-6))[..., None] * (pixels - own)
        result[here] = np.where((share > 0)[..., None], np.rint(own).clip(0, 255).astype(np.uint8), result[here])
        edited[here] = np.maximum(edited[here], weight)


def moved(photo: np.ndarray, x0: int, y0: int, flow: np.ndarray) -> np.ndarray:
    """The photo's part that begins at (x0, y0), each pixel from flow [h,w,2] (x, y) pixels away."""
    y, x = np.mgrid[y0 : y0 + flow.shape[0], x0 : x0 + flow.shape[1]].astype(np.float32)
    at = np.dstack([x, y]) + flow
    low, high = np.floor(at.min((0, 1))).astype(int) - 2, np.ceil(at.max((0, 1))).astype(int) + 2
    (left, top), (right, bottom) = (np.clip(end, 0, np.array(photo.shape[1::-1]) - 1) for end in (low, high))
    part = photo[top : bottom + 1, left : right + 1].astype(np.float32)  # OpenCV reads sides of 32 767 px at most
    return cv2.remap(part, at - np.float32([left, top]), None, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)


def enlarged(values: np.ndarray, transform: np.ndarray, size: tuple[int, int], how: int) -> np.ndarray:
    """The square's map as a part of the photo of `size` (width, height) sees it; 0 beyond the square."""
    return cv2.warpAffine(values, transform, size, flags=how | cv2.WARP_INVERSE_MAP)


# Files.


def load(path: Path) -> tuple[np.ndarray, Image.Image]:
    """The photo uint8 [H,W,3] sRGB, upright, and Pillow's image of it."""
    image = Image.open(path)
    image.load()
    turned, exif = read_exif(image)
    image = image.transpose(TURNS[turned]) if turned in TURNS else image
    image.info["exif"] = exif
    if image.mode.startswith(("I", "F")):
        raise OSError("more than 8 bits; convert it first")
    if "transparency" in image.info:  # of one colour, or of a palette's
        image = image.convert("RGBA")
    profile = image.info.get("icc_profile")
    plain = image.convert("RGB")
    if profile and image.mode in ("RGB", "RGBA"):
        source, target = ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB")
        plain = ImageCms.profileToProfile(plain, source, target)
    return np.array(plain), image


def read_exif(image: Image.Image) -> tuple[int, bytes]:
    """How the photo is turned, and the EXIF without it; damaged EXIF costs the photo nothing but itself."""
    turned = 1
    try:
        exif = image.getexif()
        turned = exif.pop(0x0112, 1)
        return turned, exif.tobytes()
    except Exception:  # noqa: BLE001 - Pillow reads more than it can write, and raises anything
        return turned, b""


def save(path: Path, pixels: np.ndarray, image: Image.Image, edited: bool) -> None:
    """Write sRGB pixels with the photo's EXIF and, in a PNG, its transparency; what was edited says so, in XMP and in
    EXIF's software tag."""
    result, exif, mark = Image.fromarray(pixels), Image.Exif(), Image.Exif()
    exif.load(image.info["exif"])
    if edited:
        exif[0x0131] = mark[0x0131] = "onnx_edit.py"
    written = exif.tobytes()
    options: dict = {"exif": written if len(written) <= MOST_EXIF_BYTES else mark.tobytes()}
    if path.suffix.lower() == ".png":
        if "A" in image.getbands():
            result.putalpha(image.getchannel("A"))
        options["pnginfo"] = PngImagePlugin.PngInfo()
        if edited:
            options["pnginfo"].add_itxt("XML:com.adobe.xmp", XMP)
    else:
        segment = b"http://ns.adobe.com/xap/1.0/\0" + XMP.encode()
        mark = b"\xff\xe1" + (len(segment) + 2).to_bytes(2, "big") + segment
        options |= {"extra": mark if edited else b"", "quality": 95, "subsampling": 0}
    result.save(path, **options)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("editor", type=Path)
    parser.add_argument("photo", type=Path)
    parser.add_argument("out", type=Path, help=".png or .jpg")
    parser.add_argument("--style", default="", help="the style code, numbers with commas; none for a model without")
    parser.add_argument("--degree", type=float, default=1.0)
    arguments = parser.parse_args()
    if not 0 <= arguments.degree <= 1:
        parser.error(f"--degree {arguments.degree:g}: must be a number from 0 to 1")
    try:
        style = np.array([float(value) for value in arguments.style.split(",") if value])
    except ValueError:
        style = np.array([np.nan])
    if not np.isfinite(style).all():
        parser.error(f"--style {arguments.style}: must be numbers with commas, a code that docs/export.md describes")
    if arguments.out.suffix.lower() not in (".png", ".jpg", ".jpeg") or not arguments.out.parent.is_dir():
        parser.error(
            f"{arguments.out}: must be a .png or .jpg, which can say that they were edited, in a folder there is"
        )
    finder = [arguments.editor.parent / name for name in ("face_finder.onnx", "face_landmarks.onnx")]
    for path in (arguments.editor, *finder, arguments.photo):
        if not path.is_file():
            parser.error(f"{path}: no such file")
    try:
        editor = OnnxEditor(arguments.editor)
    except Exception as error:  # noqa: BLE001 - onnxruntime's errors have no class in common
        parser.error(f"{arguments.editor}: cannot be read as a model, or the two beside it ({error})")
    wanted = editor.editor.about.get("style_channels", 0)
    if len(style) != wanted:
        parser.error(f"--style: this model takes {wanted} numbers, {len(style)} are given")
    try:
        pixels, image = load(arguments.photo)
    except (OSError, ImageCms.PyCMSError, Image.DecompressionBombError) as error:
        parser.error(f"{arguments.photo}: cannot be read as a photo ({error})")
    result, edited = editor(pixels, style, arguments.degree)
    if arguments.degree and not edited.any():
        parser.error(f"{arguments.photo}: no face found, or none that the edit applies to; nothing is written")
    save(arguments.out, result, image, bool(edited.any()))


if __name__ == "__main__":
    main()
