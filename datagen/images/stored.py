"""A photo as its file stores it, grey, RGB or CMYK, of 8 or 16 bits, in its own profile: seen in sRGB, and edited
there, without a loss to what was not edited.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageCms
from scipy.ndimage import map_coordinates

from stylepairs.datagen.images.color_profiles import known_profile, opened_profile, transform_between
from stylepairs.datagen.images.deep import MULTIPLIED_ALPHA, PLAIN_ALPHA, fourth_channel, is_deep, read_deep
from stylepairs.datagen.images.files import MAX_PIXELS, UPRIGHT, Photo, decode_photo, read_exif, read_xmp

_SPACES = {1: b"GRAY", 3: b"RGB ", 4: b"CMYK"}  # of a profile, by the pixels' channels
_MODES = {1: "L", 3: "RGB", 4: "CMYK"}
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
_GRID = 33  # nodes a side of the table through which 16-bit colours go
_ROWS = 256  # of a photo that go through it at a time
_MOST_TEXTS, _MOST_TEXT = 64, 1 << 16
Convert = Callable[[np.ndarray], np.ndarray]


def load_stored(path: str | Path, max_pixels: float = MAX_PIXELS) -> Photo:
    """The photo upright, its pixels and alpha in the file's own depth and mode where `with_edit` knows them.

    pixels: uint8 or uint16; [H,W] grey, [H,W,3] RGB, [H,W,4] CMYK. Palettes and rarer modes come as RGB; `notes` says
    it. Raises InputError as `read_image`.
    """
    return decode_photo(path, partial(_decode, Path(path)), max_pixels)


def srgb_of(photo: Photo) -> np.ndarray:
    """uint8 or uint16 [H,W,3] sRGB of a photo's pixels, through its profile."""
    return _to_srgb(photo)(photo.pixels)


def with_edit(photo: Photo, before: np.ndarray, after: np.ndarray) -> Photo:
    """The photo with the change from `before` (of `srgb_of`) to `after`; pixels that did not change keep their bits."""
    if before is photo.pixels:  # they are sRGB already
        return replace(photo, pixels=after)
    differs = before != after
    changed = differs[..., 0] | differs[..., 1] | differs[..., 2]  # three times faster than any(-1)
    rows, columns = (np.flatnonzero(changed.any(axis)) for axis in (1, 0))
    if not len(rows):
        return photo
    box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    back = _from_srgb(photo)
    changed = changed[box]
    pixels = photo.pixels.copy()
    if back is None:
        moved = _inks(after[box], pixels[box][..., 3])
    else:
        change = back(after[box]).astype(np.int32) - back(before[box])
        moved = np.clip(pixels[box] + change, 0, np.iinfo(pixels.dtype).max).astype(pixels.dtype)
    pixels[box] = np.where(changed if pixels.ndim == 2 else changed[..., None], moved, pixels[box])
    return replace(photo, pixels=pixels)


def fitting(photo: Photo, suffix: str) -> Photo:
    """The photo as a file of this suffix can hold it; `notes` says what that costs."""
    notes = list(photo.notes)
    pixels, alpha, profile = photo.pixels, photo.alpha, photo.icc_profile
    tiff, jpeg = suffix in (".tif", ".tiff"), suffix in (".jpg", ".jpeg")
    channels = 1 if pixels.ndim == 2 else pixels.shape[2]
    if (channels == 4 and not (tiff or jpeg)) or (channels == 1 and suffix == ".webp"):
        pixels, profile = srgb_of(photo), None
        notes.append(f"{'CMYK' if channels == 4 else 'grey'} became RGB")
    elif channels == 4 and alpha is not None:
        alpha = None
    if pixels.dtype == np.uint16 and not (tiff or suffix == ".png"):
        pixels = eight_bits(pixels)
        alpha = None if alpha is None else eight_bits(alpha)
        notes.append("16 bits became 8")
    if pixels.dtype == np.uint16 and pixels.ndim == 2 and alpha is not None:
        pixels, profile = np.repeat(pixels[..., None], 3, 2), None
        notes.append("grey became RGB")
    if photo.alpha is not None and (alpha is None or jpeg):
        alpha = None
        notes.append("transparency went")
    return replace(photo, pixels=pixels, alpha=alpha, icc_profile=profile, notes=tuple(notes))


def eight_bits(values: np.ndarray) -> np.ndarray:
    """uint16 -> uint8, rounded; uint8 as it is."""
    if values.dtype == np.uint8:
        return values
    eight: np.ndarray = ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
    return eight


def _decode(path: Path, image: Image.Image) -> Photo:
    profile, notes = image.info.get("icc_profile"), []
    deep = read_deep(path.read_bytes()) if is_deep(image) else None
    fourth = fourth_channel(image) if deep is not None and deep.shape[2] == 4 else PLAIN_ALPHA
    if deep is not None and fourth not in (PLAIN_ALPHA, MULTIPLIED_ALPHA):
        deep = np.ascontiguousarray(deep[..., :3])
    unusable = deep is None or deep.shape[:2] != (image.height, image.width) or fourth == MULTIPLIED_ALPHA
    if is_deep(image) and unusable:
        deep = None
        notes.append("16 bits became 8")
    more = getattr(image, "n_frames", 1)
    if more > 1:
        notes.append(f"the first of {more} pictures in the file")
    image.load()
    orientation, exif = read_exif(image)
    turn = UPRIGHT.get(orientation)
    pixels, alpha, kept = _deep_parts(deep, turn) if deep is not None else _parts(image, turn)
    if not kept:
        notes.append(f"{image.mode} became RGB")
    channels = 1 if pixels.ndim == 2 else pixels.shape[2]
    fits = isinstance(profile, bytes) and profile[16:20] == _SPACES[channels]
    found = image.info.get("dpi")
    dpi = (float(found[0]), float(found[1])) if isinstance(found, tuple) and min(found) > 0 else None
    texts = _texts(image)
    return Photo(pixels, alpha, profile if fits else None, exif, read_xmp(image), dpi, texts, tuple(notes))


def _deep_parts(deep: np.ndarray, turn: Any) -> tuple[np.ndarray, np.ndarray | None, bool]:
    deep = _turned(deep, turn)
    alpha = deep[..., 3].copy() if deep.shape[2] == 4 and deep[..., 3].min() < 65535 else None
    return np.ascontiguousarray(deep[..., :3]), alpha, True


def _turned(values: np.ndarray, turn: Any) -> np.ndarray:
    """As Image.transpose, for any type of values."""
    if turn is None:
        return values
    if turn in (Image.Transpose.TRANSPOSE, Image.Transpose.TRANSVERSE):
        values = values.swapaxes(0, 1)
        return values if turn == Image.Transpose.TRANSPOSE else values[::-1, ::-1]
    if turn in (Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.FLIP_TOP_BOTTOM):
        return values[:, ::-1] if turn == Image.Transpose.FLIP_LEFT_RIGHT else values[::-1]
    quarters = {Image.Transpose.ROTATE_90: 1, Image.Transpose.ROTATE_180: 2, Image.Transpose.ROTATE_270: 3}
    return np.rot90(values, quarters[turn])


def _parts(image: Image.Image, turn: Any) -> tuple[np.ndarray, np.ndarray | None, bool]:
    """Pixels, alpha, and whether the mode was kept, of a loaded picture."""
    upright = image if turn is None else image.transpose(turn)
    if upright.mode.startswith("I") or upright.mode == "F":
        values = np.asarray(upright)
        if upright.mode.startswith("I") and values.min() >= 0 and values.max() <= 65535:
            return values.astype(np.uint16), None, True
        values = np.nan_to_num(values.astype(np.float32))
        scaled = np.clip(values * (255 / max(float(values.max()), 1e-6)), 0, 255)
        return scaled.astype(np.uint8), None, False
    grey, alpha = upright.mode in ("1", "L", "LA", "La"), None
    plain = upright
    if upright.has_transparency_data:
        plain = upright.convert("LA" if grey else "RGBA")
        alpha = np.array(plain.getchannel("A"))
        alpha = None if alpha.min() == 255 else alpha
    mode = "L" if grey else "CMYK" if upright.mode == "CMYK" else "RGB"
    kept = upright.mode in ("1", "L", "LA", "CMYK", "RGB", "RGBA", "RGBX")
    if upright.mode == "LAB":
        ends = known_profile("LAB"), known_profile("sRGB")
        converted = ImageCms.profileToProfile(upright, *ends, outputMode="RGB")
        assert converted is not None
        plain = converted
    # Pillow copies a picture that is converted to what it is.
    return np.array(plain if plain.mode == mode else plain.convert(mode)), alpha, kept


def _texts(image: Image.Image) -> tuple[tuple[str, str], ...]:
    found: dict[str, str] = {}
    if image.format == "PNG":
        found = {keyword: str(text) for keyword, text in getattr(image, "text", {}).items() if "xmp" not in keyword}
    elif isinstance(image.info.get("comment"), bytes):
        found = {"Comment": image.info["comment"].decode("utf-8", "replace")}
    short = [(keyword, text) for keyword, text in found.items() if 0 < len(keyword) < 80 and len(text) < _MOST_TEXT]
    return tuple(short[:_MOST_TEXTS])


def _to_srgb(photo: Photo) -> Convert:
    """From the photo's pixels to sRGB of the same depth."""
    grey = photo.pixels.ndim == 2
    if not grey and photo.pixels.shape[2] == 3 and photo.icc_profile is None:
        return lambda pixels: pixels
    managed = _by_profile(photo, to_srgb=True)
    if managed is not None:
        return managed
    if grey:
        return lambda pixels: np.repeat(pixels[..., None], 3, 2)
    return lambda pixels: pixels if pixels.shape[2] == 3 else np.array(_cmyk(pixels).convert("RGB"))


def _from_srgb(photo: Photo) -> Convert | None:
    """From sRGB to the photo's pixels; None for inks without a usable profile (see `_inks`)."""
    if photo.pixels.ndim == 2:  # of its own profile the curve alone is left out: what is brought back is a change
        return lambda srgb: np.rint(srgb.astype(np.float32) @ _LUMA)
    managed = _by_profile(photo, to_srgb=False)
    if managed is not None:
        return managed
    return None if photo.pixels.shape[2] == 4 else lambda srgb: srgb


def _inks(srgb: np.ndarray, black: np.ndarray) -> np.ndarray:
    """sRGB uint8 [H,W,3] in inks without a profile [H,W,4], as Pillow reads them, with as much black [H,W] as there
    was; less where that would be too dark."""
    light = np.maximum(255 - black.astype(np.float32), srgb.max(-1))
    inks = 255 * (1 - srgb / np.maximum(light, 1)[..., None])
    return np.dstack([inks, 255 - light]).round().astype(np.uint8)


def _by_profile(photo: Photo, to_srgb: bool) -> Convert | None:
    """The conversion through the photo's profile; None where it has none, one that cannot be used, or sRGB itself."""
    if photo.icc_profile is None:
        return None
    own = opened_profile(photo.icc_profile)
    if own is None:  # a damaged profile counts as sRGB, as in viewers
        return None
    mode, srgb = _MODES[1 if photo.pixels.ndim == 2 else photo.pixels.shape[2]], known_profile("sRGB")
    transform = transform_between(own, srgb, (mode, "RGB")) if to_srgb else transform_between(srgb, own, ("RGB", mode))
    if transform is None:
        return None

    def convert(pixels: np.ndarray) -> np.ndarray:
        image = _cmyk(pixels) if pixels.ndim == 3 and pixels.shape[2] == 4 else Image.fromarray(pixels)
        applied = ImageCms.applyTransform(image, transform)
        assert applied is not None
        return np.array(applied)

    if mode == "RGB":
        ends_of_grid = np.minimum(np.arange(_GRID) * 8, 255).astype(np.uint8)
        nodes = np.stack(np.meshgrid(ends_of_grid, ends_of_grid, ends_of_grid, indexing="ij"), -1)
        table = convert(nodes.reshape(_GRID, -1, 3)).reshape(nodes.shape)
        if np.abs(table.astype(int) - nodes).max() <= 1:
            return None
        if photo.pixels.dtype == np.uint16:
            return partial(_through_table, table.astype(np.float32) * 257)
    elif photo.pixels.dtype == np.uint16:
        return None  # 16-bit grey: LittleCMS is not asked
    return convert


def _through_table(table: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """uint16 [H,W,3] through a table [G,G,G,3] of its colours, linear between the nodes."""
    result = np.empty_like(pixels)
    for top in range(0, len(pixels), _ROWS):
        part = pixels[top : top + _ROWS].reshape(-1, 3).T.astype(np.float32) / 257
        place = np.where(part > 248, 31 + (part - 248) / 7, part / 8)  # the last node lies at 255
        values = [map_coordinates(table[..., channel], place, order=1, mode="nearest") for channel in range(3)]
        result[top : top + _ROWS] = np.rint(np.stack(values, -1)).reshape(result[top : top + _ROWS].shape)
    return result


def _cmyk(pixels: np.ndarray) -> Image.Image:
    return Image.frombytes("CMYK", (pixels.shape[1], pixels.shape[0]), pixels.tobytes())
