"""Colours of photos: whatever a file's colour space and embedded ICC profile are, the same colours in sRGB."""

from __future__ import annotations

import io
from functools import lru_cache
from typing import Literal

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
    source = opened_profile(profile) if fits and profile is not None else None
    if source is None and plain.mode == "LAB":
        source = known_profile("LAB")
    converted = None if source is None else _converted(plain, source)
    return (plain.convert("RGB") if converted is None else converted), None


def to_srgb(pixels: np.ndarray, profile: bytes | None) -> np.ndarray:
    """pixels uint8 [H,W,3] in the colour space of an RGB profile (None: sRGB) as sRGB; what sRGB has not is clipped.

    A profile that cannot be read counts as sRGB, as viewers take it.
    """
    source = None if profile is None else opened_profile(profile)
    converted = None if source is None else _converted(Image.fromarray(pixels), source)
    return pixels if converted is None else np.array(converted)


def transform_between(
    source: ImageCms.ImageCmsProfile, target: ImageCms.ImageCmsProfile, modes: tuple[str, str]
) -> ImageCms.ImageCmsTransform | None:
    """The conversion of images of the first mode to the second, as viewers make it; None where there is none, as of a
    profile that is damaged inside."""
    try:
        return ImageCms.buildTransform(
            source,
            target,
            *modes,
            renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
            flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None


def opened_profile(profile: bytes) -> ImageCms.ImageCmsProfile | None:
    """The profile, None for one that cannot be read."""
    try:
        return ImageCms.ImageCmsProfile(io.BytesIO(profile))
    except (OSError, ValueError, TypeError):
        return None


@lru_cache(maxsize=2)
def known_profile(space: Literal["sRGB", "LAB"]) -> ImageCms.ImageCmsProfile:
    """The profile of a space that needs no file."""
    return ImageCms.ImageCmsProfile(ImageCms.createProfile(space))


def _converted(image: Image.Image, source: ImageCms.ImageCmsProfile) -> Image.Image | None:
    transform = transform_between(source, known_profile("sRGB"), (image.mode, "RGB"))
    try:
        return None if transform is None else ImageCms.applyTransform(image, transform)
    except (ImageCms.PyCMSError, ValueError, OSError):  # of a space without a way
        return None


def _space(profile: bytes) -> bytes:
    return profile[16:20]
