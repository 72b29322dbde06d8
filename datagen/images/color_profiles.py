"""Colours of photos: whatever a file's colour space and embedded ICC profile are, the same colours in sRGB."""

from __future__ import annotations

import io
from functools import lru_cache

import numpy as np
from PIL import Image, ImageCms

_SPACES = {"RGB": b"RGB ", "L": b"GRAY", "CMYK": b"CMYK", "LAB": b"Lab "}


def rgb_of(image: Image.Image, profile: bytes | None) -> tuple[Image.Image, bytes | None]:
    """A loaded image of any mode with 8 bits as RGB, and the RGB profile that it is in then, None for sRGB.

    RGB stays as it is, with its profile. Anything else becomes sRGB, through the profile where it fits the mode: else
    inks and greys would be guessed.
    """
    if image.mode in ("RGB", "RGBA", "P"):
        return image.convert("RGB"), profile if profile is not None and _space(profile) == b"RGB " else None
    plain = image.convert("L") if image.mode == "LA" else image
    fits = profile is not None and _SPACES.get(plain.mode) == _space(profile)
    source = _opened(profile) if fits and profile is not None else None
    if source is None and plain.mode == "LAB":
        source = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))
    converted = None if source is None else _converted(plain, source)
    return (plain.convert("RGB") if converted is None else converted), None


def to_srgb(pixels: np.ndarray, profile: bytes | None) -> np.ndarray:
    """pixels uint8 [H,W,3] in the colour space of an RGB profile (None: sRGB) as sRGB; what sRGB has not is clipped.

    A profile that cannot be read counts as sRGB, as viewers take it.
    """
    source = None if profile is None else _opened(profile)
    converted = None if source is None else _converted(Image.fromarray(pixels), source)
    return pixels if converted is None else np.array(converted)


def _converted(image: Image.Image, source: ImageCms.ImageCmsProfile) -> Image.Image | None:
    try:
        return ImageCms.profileToProfile(
            image,
            source,
            _srgb(),
            ImageCms.Intent.RELATIVE_COLORIMETRIC,
            "RGB",
            flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
    except (ImageCms.PyCMSError, ValueError, OSError):  # a profile that is damaged inside, or of a space without a way
        return None


def _opened(profile: bytes) -> ImageCms.ImageCmsProfile | None:
    try:
        return ImageCms.ImageCmsProfile(io.BytesIO(profile))
    except (OSError, ValueError, TypeError):
        return None


def _space(profile: bytes) -> bytes:
    return profile[16:20]


@lru_cache(maxsize=1)
def _srgb() -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
