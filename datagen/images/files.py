"""Pictures in and out: photos read upright whatever a file holds, written whole or not at all, and turned into
tensors.
"""

from __future__ import annotations

import io
import os
import re
import stat
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, PngImagePlugin, UnidentifiedImageError

from stylepairs.datagen.images.color_profiles import rgb_of, to_srgb
from stylepairs.datagen.images.deep import write_deep
from stylepairs.datagen.shell.durable import make_folder, replace_file, write_bytes
from stylepairs.datagen.shell.errors import InputError, one_line
from stylepairs.datagen.shell.storage.staged import Staged, fetch, place

if TYPE_CHECKING:
    import torch

WRITTEN_SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".gif")
PHOTO_SUFFIXES = (*WRITTEN_SUFFIXES, ".heic", ".heif", ".avif")
MAX_PIXELS = 100e6  # 300 MB of RGB; phones reach 50 to 108 million, larger ones are stitched panoramas
_MAX_SIDE_PX = 65_535  # of a JPEG; a line of millions of pixels costs a decoder far more than its area
_MAX_BYTES = 2**30
# Decoders written for these only: others (EPS, FITS, ...) call programs or are no photos.
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "PPM", "GIF", "AVIF", "HEIF")
# Brands of ISO media files that hold a picture; the first four letters after "ftyp".
_AVIF_BRANDS, _HEIF_BRANDS = (b"avif", b"avis"), (b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1")
_LOSSLESS_SUFFIXES = (".png", ".tif", ".tiff", ".bmp", ".ppm", ".pgm")
_EXIF_ORIENTATION = 0x0112
# What of EXIF's first directory tells of the photo: description, camera, resolution, software, date, author, rating,
# copyright, Windows' texts, and where the camera's and the place's own directories are. A TIFF keeps there, too, how
# its pixels are stored (sizes, strips, colour maps), which is wrong of any other file.
_DESCRIPTIVE = {270, 271, 272, 282, 283, 296, 305, 306, 315, 316, 18246, 18249, 33432, 34665, 34853}
_DESCRIPTIVE |= set(range(40091, 40096))
_EXIF_IFD, _EXIF_SIZE = 34665, (40962, 40963)
MAX_JPEG_EXIF_BYTES = 65_500  # one segment of a JPEG
MAX_JPEG_XMP_BYTES = 65_500  # the same, less the name that begins it
_JPEG_XMP = b"http://ns.adobe.com/xap/1.0/\0"
_TIFF_XMP = 700
# EXIF orientation -> what turns the stored pixels upright.
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class Photo:
    """A photo as stored, upright: pixels uint8 [H,W,3] RGB in the file's own colour space.

    Of `stylepairs.datagen.images.stored` they may be uint16, too, and grey [H,W] or CMYK [H,W,4].
    alpha: [H,W] of their type, None for an opaque file. icc_profile: the profile that the pixels are in, None for sRGB.
    exif: the file's EXIF block with its orientation removed, None where there is none or it cannot be written again.
    xmp: its XMP packet, upright, None where there is none. dpi: across and down, None where it is not said. texts: a
    PNG's texts by keyword, and a JPEG's comment. notes: what of the file is not in here, in words.
    """

    pixels: np.ndarray
    alpha: np.ndarray | None = None
    icc_profile: bytes | None = None
    exif: bytes | None = None
    xmp: bytes | None = None
    dpi: tuple[float, float] | None = None
    texts: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()


def read_image(path: str | Path, max_pixels: float = MAX_PIXELS) -> np.ndarray:
    """uint8 [H,W,3] sRGB, turned upright by its EXIF orientation; transparent parts lie over white.

    Colours are converted from the embedded profile, deeper pixels come to 8 bits, of several pictures in a file it is
    the first.

    Raises InputError (one line, with the file's name) for a missing, empty, truncated, oversized or non-image file.
    """
    photo = load_photo(path, max_pixels)
    pixels = to_srgb(photo.pixels, photo.icc_profile)
    if photo.alpha is None:
        return pixels
    alpha = photo.alpha[..., None].astype(np.uint16)
    return ((pixels * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)


def load_photo(path: str | Path, max_pixels: float = MAX_PIXELS) -> Photo:
    """As `read_image`, with alpha, colour profile, EXIF and XMP."""
    return decode_photo(path, _decode, max_pixels)


def decode_photo(path: str | Path, decode: Callable[[Image.Image], Photo], max_pixels: float = MAX_PIXELS) -> Photo:
    """The photo that `decode` makes of a file that Pillow has opened; raises InputError as `read_image`."""
    path = place(path)
    check_photo_file(path)
    fetch(path)
    # Decoders meet hostile bytes with exceptions of every kind, from SyntaxError to struct.error: all mean "not a
    # photo".
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # By file, not by name: of a name Pillow maps the pixels of a plain TIFF by its size after turning.
            with path.open("rb") as file, Image.open(file, formats=_known_formats()) as image:
                _check_size(path, image.width * image.height, max_pixels, max(image.size))
                return decode(image)
    except InputError:
        raise
    except Image.DecompressionBombError as error:
        found = re.search(r"\d+", str(error))
        _check_size(path, int(found[0]) if found else 2**40, max_pixels)
        raise InputError(f"{path}: {error}; make it smaller") from None
    except UnidentifiedImageError:
        raise InputError(f"{path}: {_why_unknown(path)}") from None
    except MemoryError:
        raise InputError(f"{path}: does not fit into memory; make it smaller") from None
    except Exception as error:  # noqa: BLE001 - Pillow's decoders raise anything on damaged bytes
        raise InputError(f"{path}: damaged image ({one_line(error)}); copy it again") from None


def holds_more(path: str | Path) -> bool:
    """Whether a photo's file holds more pictures than the one that is read: an animation, or pages."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path, formats=_known_formats()) as image:
                if image.format == "MPO" or image.format == "JPEG":
                    return False
                image.seek(1)
    except Exception:  # noqa: BLE001 - EOFError for one picture; decoders raise anything on damaged bytes
        return False
    return True


def check_photo_file(path: Path) -> None:
    """Raises InputError for what cannot be a photo, before anything is read: no file, a pipe or device, nothing in it,
    or more than any photo holds.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error}); check the path") from None
    if not stat.S_ISREG(status.st_mode):
        raise InputError(f"{path}: a folder, pipe or device, no photo file; name a photo")
    if status.st_size == 0:
        raise InputError(f"{path}: the file is empty (0 bytes); copy it again")
    if status.st_size > _MAX_BYTES:
        raise InputError(f"{path}: {status.st_size / 2**30:.0f} GB, more than a photo holds; convert it")


def visible_files(folder: Path) -> Iterator[Path]:
    """All files below a folder, sorted, but hidden ones and those in hidden folders.

    Raises InputError for a folder that cannot be read, whose files would be passed over in silence.
    """
    _check_readable(folder)
    for path in sorted(folder.rglob("*")):
        if any(part.startswith(".") for part in path.relative_to(folder).parts):
            continue
        # A store lists files alone, and each question takes its time.
        if isinstance(path, Staged) or path.is_file():
            yield path
        else:
            _check_readable(path)


def _check_readable(path: Path) -> None:
    """Raises InputError for a folder that cannot be read; links to folders are not followed."""
    if (
        not isinstance(path, Staged)
        and path.is_dir()
        and not path.is_symlink()
        and not os.access(path, os.R_OK | os.X_OK)
    ):
        raise InputError(f"{path}: cannot be read (Permission denied); mend its permissions, or name others")


def save_photo(path: str | Path, photo: Photo) -> None:
    """Writes `photo` whole or not at all, with its profile and EXIF; the suffix names the format.

    Raises InputError for a suffix that is no photo format or a disk that refuses.
    """
    path = place(path)
    suffix = path.suffix.lower()
    if suffix not in WRITTEN_SUFFIXES:
        raise InputError(f"{path}: unknown image suffix {suffix!r}; use .png, .jpg, .webp or .tif")
    if photo.pixels.dtype == np.uint16 and suffix not in (".png", ".tif", ".tiff"):
        raise ValueError(f"{suffix} holds 8 bits, not 16")
    suffix = ".jpg" if suffix == ".jfif" else suffix
    options = _metadata_options(photo, suffix)
    if suffix not in _LOSSLESS_SUFFIXES:
        options |= {"quality": 95}
    if suffix in (".jpg", ".jpeg"):
        options |= {"subsampling": 0}
    kind = Image.registered_extensions()[suffix]
    make_folder(path.parent)
    alpha = photo.alpha if suffix in (".png", ".webp", ".tif", ".tiff") else None
    if photo.pixels.dtype == np.uint16 and photo.pixels.ndim == 3:
        deep = photo.pixels if alpha is None else np.dstack([photo.pixels, alpha])
        replace_file(path, lambda file: write_deep(file, deep, kind, options))
        return
    image = _pillow_image(photo.pixels)
    if alpha is not None:
        image.putalpha(Image.fromarray(alpha))
    replace_file(path, lambda file: image.save(file, format=kind, **options))


def write_png(path: str | Path, image: np.ndarray) -> None:
    """uint8 [H,W] or [H,W,3] -> a PNG file, whole or not at all; InputError where the disk refuses."""
    path = place(path)
    make_folder(path.parent)
    write_bytes(path, png_bytes(image))


def png_bytes(image: np.ndarray) -> bytes:
    """uint8 [H,W] or [H,W,3] as the bytes of a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG", compress_level=4)
    return buffer.getvalue()


def through_jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    """An image uint8 [H,W,3] as a JPEG of this quality gives it back."""
    import cv2

    # OpenCV's order is BGR: JPEG weighs and thins out the colours by what they are.
    _, coded = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    return np.ascontiguousarray(np.asarray(cv2.imdecode(coded, cv2.IMREAD_COLOR))[..., ::-1])


def to_float(image: np.ndarray) -> torch.Tensor:
    """uint8 [H,W,3] -> float32 [3,H,W] in [-1,1]."""
    import torch

    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))).float() / 127.5 - 1


def to_uint8(image: torch.Tensor) -> np.ndarray:
    """[3,H,W] in [-1,1] -> uint8 [H,W,3], the inverse of `to_float`; a mask [1,H,W] in [0,1] -> uint8 [H,W]."""
    pixels = image.detach().float().cpu()
    if pixels.shape[0] == 1:
        return (pixels[0] * 255).round().clamp(0, 255).byte().numpy()
    return ((pixels + 1) * 127.5).round().clamp(0, 255).byte().permute(1, 2, 0).contiguous().numpy()


def _known_formats() -> list[str]:
    """The formats that can be read here: HEIF with the extra, AVIF with Pillow's own decoder or the extra's."""
    if not Image.EXTENSION:
        Image.init()
    if find_spec("pillow_heif") is not None and "HEIF" not in Image.OPEN:
        import pillow_heif

        pillow_heif.register_heif_opener()
    Image.init()
    return [name for name in _FORMATS if name in Image.OPEN]


def _why_unknown(path: Path) -> str:
    """What a file is that no decoder took, and what to do."""
    try:
        with path.open("rb") as file:
            start = file.read(32)
    except OSError:
        start = b""
    brand = start[8:12] if start[4:8] == b"ftyp" else b""
    if brand in (*_HEIF_BRANDS, *_AVIF_BRANDS):
        if "HEIF" in Image.OPEN and "AVIF" in Image.OPEN:
            return "damaged image (HEIC or AVIF); copy it again"
        need = "pip install 'stylepairs[heif]'" if brand in _HEIF_BRANDS else "pip install 'pillow>=11.3'"
        return f"a HEIC or AVIF photo; {need}, or convert it to JPEG"
    if start[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return (
            "a TIFF of a kind that is not read (its pixels or compression); convert it to PNG or an 8- or 16-bit TIFF"
        )
    return "not an image this program reads (JPEG, PNG, WebP, TIFF, BMP, GIF, PPM, AVIF, HEIC)"


def _check_size(path: Path, pixels: int, max_pixels: float, longest_px: int = 0) -> None:
    if longest_px > _MAX_SIDE_PX:
        raise InputError(f"{path}: a side of {longest_px} pixels, more than {_MAX_SIDE_PX}; cut it into parts")
    if pixels > max_pixels:
        raise InputError(f"{path}: {pixels / 1e6:.0f} megapixels, more than {max_pixels / 1e6:.0f}; make it smaller")


def _decode(image: Image.Image) -> Photo:
    profile = image.info.get("icc_profile")
    image.load()
    orientation, exif = read_exif(image)
    upright = image.transpose(UPRIGHT[orientation]) if orientation in UPRIGHT else image
    alpha = None
    own = upright
    if upright.has_transparency_data:
        upright = upright.convert("RGBA")
        alpha = np.asarray(upright.getchannel("A"))
        alpha = None if alpha.min() == 255 else alpha
    rgb, profile = rgb_of(_eight_bits(own), profile if isinstance(profile, bytes) else None)
    return Photo(np.array(rgb), alpha, profile, exif, read_xmp(image))


def _pillow_image(pixels: np.ndarray) -> Image.Image:
    if pixels.ndim == 3 and pixels.shape[2] == 4:
        return Image.frombytes("CMYK", (pixels.shape[1], pixels.shape[0]), pixels.tobytes())
    return Image.fromarray(pixels)


def read_exif(image: Image.Image) -> tuple[int, bytes | None]:
    """(orientation, the EXIF block without it) of a loaded image; broken EXIF never costs the photo, only itself."""
    orientation = 1
    # Pillow reads more than it can write: signed or missing numbers, unknown types, raise anything from struct.error
    # to AttributeError.
    try:
        exif = image.getexif()
        stored = exif.pop(_EXIF_ORIENTATION, 1)
        orientation = stored if isinstance(stored, int) else 1
        for tag in set(exif) - _DESCRIPTIVE:
            del exif[tag]
        for tag in _EXIF_SIZE:  # as stored, before it was turned upright
            exif.get_ifd(_EXIF_IFD).pop(tag, None)
        return orientation, exif.tobytes() if len(exif) else None
    except Exception:  # noqa: BLE001 - see above
        return orientation, None


def read_xmp(image: Image.Image) -> bytes | None:
    """The XMP packet of a loaded image, wherever its format and Pillow's version put it; it says upright, too."""
    found = image.info.get("xmp") or image.info.get("XML:com.adobe.xmp")
    if found is None and image.format == "TIFF":
        found = image.tag_v2.get(_TIFF_XMP)  # type: ignore[attr-defined]
    for name, data in getattr(image, "applist", None) or ():
        if found is None and name == "APP1" and data.startswith(_JPEG_XMP):
            found = data[len(_JPEG_XMP) :]
    if not isinstance(found, str | bytes):
        return None
    packet = found.encode("utf-8", "replace") if isinstance(found, str) else found
    return re.sub(rb"(tiff:Orientation(?:=[\"']|>))\d", rb"\g<1>1", packet)


def _metadata_options(photo: Photo, suffix: str) -> dict[str, object]:
    """What Pillow's `save` takes to write profile and metadata; what the format cannot hold is left out."""
    options: dict[str, object] = {"icc_profile": photo.icc_profile} if photo.icc_profile else {}
    if photo.dpi is not None and suffix in (".jpg", ".jpeg", ".png", ".tif", ".tiff"):
        options["dpi"] = photo.dpi
    exif, xmp = photo.exif, photo.xmp
    if suffix in (".jpg", ".jpeg"):
        if "Comment" in dict(photo.texts):
            options["comment"] = dict(photo.texts)["Comment"].encode()
        exif = exif if exif is None or len(exif) <= MAX_JPEG_EXIF_BYTES else None
        if xmp is not None and len(xmp) <= MAX_JPEG_XMP_BYTES:
            options["extra"] = b"\xff\xe1" + (len(_JPEG_XMP) + len(xmp) + 2).to_bytes(2, "big") + _JPEG_XMP + xmp
    elif suffix == ".png":
        chunks = PngImagePlugin.PngInfo()
        for keyword, text in photo.texts:
            chunks.add_itxt(keyword, text)
        if xmp is not None:
            chunks.add_itxt("XML:com.adobe.xmp", xmp.decode("utf-8", "replace"))
        options["pnginfo"] = chunks
    elif suffix == ".webp" and xmp is not None:
        options["xmp"] = xmp
    elif suffix in (".tif", ".tiff") and (exif is not None or xmp is not None):
        tags = Image.Exif()
        if exif is not None:
            tags.load(exif)
        if xmp is not None:
            tags[_TIFF_XMP] = xmp
        return options | {"exif": tags}
    if exif is not None and suffix in (".jpg", ".jpeg", ".png", ".webp"):
        options["exif"] = exif
    return options


def _eight_bits(image: Image.Image) -> Image.Image:
    """16- and 32-bit greys are scaled: Pillow alone would clip them to white."""
    if not (image.mode.startswith("I") or image.mode == "F"):
        return image
    values = np.asarray(image, np.float32)
    brightest = float(np.nan_to_num(values).max())
    top = max(brightest, 1e-6) if image.mode == "F" else max(brightest, 65535.0)
    return Image.fromarray(np.clip(np.rint(np.nan_to_num(values) * (255 / top)), 0, 255).astype(np.uint8))
