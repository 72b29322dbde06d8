"""Thirty odd photos, made here, are edited as promised: depth, mode, profile, transparency and what was not edited
stay, as far as the format can hold them, and what it cannot is said.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageCms

from stylepairs.datagen.images.files import load_photo
from stylepairs.datagen.images.stored import load_stored, srgb_of
from stylepairs.i2i.edit.editor import EditedPhoto, FaceEdit
from stylepairs.i2i.edit.photo_files import edit_file, outcome

SIDE = (40, 56)
EDITED = np.s_[10:20, 10:30]  # of the upright photo
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def darkening(photo: np.ndarray, params: object, min_score: float) -> EditedPhoto:
    """Halves a rectangle of the upright photo, in whatever depth it comes."""
    result, mask = photo.copy(), np.zeros(photo.shape[:2], np.float16)
    result[EDITED] //= 2
    mask[EDITED] = 1
    return EditedPhoto(result, mask, [FaceEdit((0, 0, 1, 1), 1.0)])


def colours(dtype: type = np.uint8) -> np.ndarray:
    """Soft colours that are never dark, [H,W,3]."""
    top = np.iinfo(dtype).max
    few = np.random.default_rng(5).uniform(top / 3, top * 0.8, (6, 8, 3)).astype(np.float32)
    return cv2.resize(few, SIDE[::-1], interpolation=cv2.INTER_LINEAR).astype(dtype)


P3 = ((0.515, 0.241, -0.001), (0.292, 0.692, 0.042), (0.157, 0.067, 0.784))


def profile_of(gamma: float, primaries: tuple[tuple[float, float, float], ...] = P3) -> bytes:
    """A small ICC v2 display profile: matrix and one gamma (ICC.1:2001-04)."""

    def fixed(value: float) -> bytes:
        return round(value * 65536).to_bytes(4, "big", signed=True)

    tags = {
        b"desc": b"desc" + bytes(4) + (5).to_bytes(4, "big") + b"wide\0" + bytes(78),
        b"cprt": b"text" + bytes(4) + b"none\0",
        b"wtpt": b"XYZ " + bytes(4) + fixed(0.9642) + fixed(1.0) + fixed(0.8249),
        **{
            name: b"XYZ " + bytes(4) + b"".join(map(fixed, xyz))
            for name, xyz in zip((b"rXYZ", b"gXYZ", b"bXYZ"), primaries, strict=True)
        },
        **{name: curve(gamma) for name in (b"rTRC", b"gTRC", b"bTRC")},
    }
    return packed(tags, b"RGB ")


def curve(gamma: float) -> bytes:
    return b"curv" + bytes(4) + (1).to_bytes(4, "big") + round(gamma * 256).to_bytes(2, "big")


def packed(tags: dict[bytes, bytes], space: bytes) -> bytes:
    table, data = len(tags).to_bytes(4, "big"), b""
    start = 128 + 4 + 12 * len(tags)
    for name, value in tags.items():
        value += bytes(-len(value) % 4)
        table += name + (start + len(data)).to_bytes(4, "big") + len(value).to_bytes(4, "big")
        data += value
    white = b"\x00\x00\xf6\xd6\x00\x01\x00\x00\x00\x00\xd3-"
    head = bytes(4) + bytes(4) + b"\x02\x10\0\0" + b"mntr" + space + b"XYZ " + bytes(12) + b"acsp" + bytes(28) + white
    head += bytes(128 - len(head))
    return (start + len(data)).to_bytes(4, "big") + head[4:] + table + data


def grey_profile() -> bytes:
    white = b"XYZ " + bytes(4) + b"\x00\x00\xf6\xd6\x00\x01\x00\x00\x00\x00\xd3-"
    tags = {b"desc": b"desc" + bytes(4) + (5).to_bytes(4, "big") + b"grey\0" + bytes(78), b"cprt": b"text" + bytes(4)
            + b"none\0", b"wtpt": white, b"kTRC": curve(1.8)}  # fmt: skip
    return packed(tags, b"GRAY")


def plain(mode: str = "RGB") -> Image.Image:
    return Image.fromarray(colours()).convert(mode)


def with_alpha() -> Image.Image:
    image = plain("RGBA")
    image.putalpha(Image.fromarray(np.tile(np.arange(SIDE[1], dtype=np.uint8) * 4, (SIDE[0], 1))))
    return image


def pillow(image: Image.Image, suffix: str, **options: object) -> Callable[[Path], None]:
    return lambda path: image.save(path, **({"quality": 95} if suffix in ("jpg", "webp") else {}) | options)


def deep(suffix: str, channels: int = 3) -> Callable[[Path], None]:
    values = np.dstack([colours(np.uint16), np.full(SIDE, 40_000, np.uint16)])[..., :channels]
    return lambda path: cv2.imwrite(str(path), values)


def deep_wide(suffix: str) -> Callable[[Path], None]:
    """16 bits in a wide space."""
    from stylepairs.datagen.images.files import Photo, save_photo

    return lambda path: save_photo(path, Photo(colours(np.uint16), icc_profile=profile_of(1.8)))


def turned(orientation: int) -> Callable[[Path], None]:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(colours())
    if orientation >= 5:
        stored = stored.transpose(Image.Transpose.TRANSPOSE)
    return lambda path: stored.save(path, exif=exif)


@dataclass(frozen=True)
class Odd:
    """A photo, the file that its edit goes to, and what that file is to be: its mode, and what is said."""

    name: str
    write: Callable[[Path], None]
    suffix: str
    target: str
    mode: str
    said: str = ""
    dtype: type = np.uint8


GREY16 = Image.fromarray(np.ascontiguousarray(colours(np.uint16)[..., 0]))
ODD = [
    *(Odd(f"turned_{n}", turned(n), "png", "png", "RGB") for n in range(2, 9)),
    Odd("turned_tiff", turned(6), "tif", "tif", "RGB"),
    Odd("deep_png", deep("png"), "png", "png", "RGB", dtype=np.uint16),
    Odd("deep_tiff", deep("tif"), "tif", "tif", "RGB", dtype=np.uint16),
    Odd("deep_png_to_tiff", deep("png"), "png", "tif", "RGB", dtype=np.uint16),
    Odd("deep_tiff_to_png", deep("tif"), "tif", "png", "RGB", dtype=np.uint16),
    Odd("deep_alpha", deep("png", 4), "png", "png", "RGBA", dtype=np.uint16),
    Odd("deep_alpha_tiff", deep("tif", 4), "tif", "tif", "RGBA", dtype=np.uint16),
    Odd("deep_to_jpeg", deep("png"), "png", "jpg", "RGB", "16 bits became 8"),
    Odd("deep_wide", deep_wide("tif"), "tif", "tif", "RGB", dtype=np.uint16),
    Odd("deep_wide_png", deep_wide("png"), "png", "png", "RGB", dtype=np.uint16),
    Odd("grey16", pillow(GREY16, "png"), "png", "png", "I;16", dtype=np.uint16),
    Odd("grey16_tiff", pillow(GREY16, "tif"), "tif", "tif", "I;16", dtype=np.uint16),
    Odd("grey", pillow(plain("L"), "png"), "png", "png", "L"),
    Odd("grey_jpeg", pillow(plain("L"), "jpg"), "jpg", "jpg", "L"),
    Odd("grey_profile", pillow(plain("L"), "png", icc_profile=grey_profile()), "png", "png", "L"),
    Odd("grey_alpha", pillow(with_alpha().convert("LA"), "png"), "png", "png", "LA"),
    Odd("grey_to_webp", pillow(plain("L"), "png"), "png", "webp", "RGB", "grey became RGB"),
    Odd("cmyk_jpeg", pillow(plain("CMYK"), "jpg"), "jpg", "jpg", "CMYK"),
    Odd("cmyk_tiff", pillow(plain("CMYK"), "tif"), "tif", "tif", "CMYK"),
    Odd("cmyk_to_png", pillow(plain("CMYK"), "tif"), "tif", "png", "RGB", "CMYK became RGB"),
    Odd("alpha", pillow(with_alpha(), "png"), "png", "png", "RGBA"),
    Odd("alpha_webp", pillow(with_alpha(), "webp", lossless=True), "webp", "webp", "RGBA"),
    Odd("alpha_to_jpeg", pillow(with_alpha(), "png"), "png", "jpg", "RGB", "transparency went"),
    Odd("palette", pillow(plain("P"), "gif"), "gif", "png", "RGB", "P became RGB"),
    Odd("bilevel", pillow(plain("1"), "png"), "png", "png", "L"),
    Odd("lab", pillow(plain().convert("RGB"), "tif"), "tif", "tif", "RGB"),
    Odd("float", pillow(plain("F"), "tif"), "tif", "tif", "L", "F became RGB"),
    Odd("wide", pillow(plain(), "png", icc_profile=profile_of(2.2)), "png", "png", "RGB"),
    Odd("wide_jpeg", pillow(plain(), "jpg", icc_profile=profile_of(2.2)), "jpg", "jpg", "RGB"),
    Odd("srgb_profile", pillow(plain(), "png", icc_profile=SRGB), "png", "png", "RGB"),
    Odd("pages", pillow(plain(), "tif", save_all=True, append_images=[plain()]), "tif", "tif", "RGB",
        "the first of 2 pictures"),
]  # fmt: skip
LOSSY = (".jpg", ".webp")


@pytest.mark.parametrize("odd", ODD, ids=lambda odd: odd.name)
def test_odd_photos_are_edited_as_promised(tmp_path: Path, odd: Odd) -> None:
    photo, target = tmp_path / f"photo.{odd.suffix}", tmp_path / f"edited.{odd.target}"
    odd.write(photo)
    said = outcome(edit_file(darkening, photo, target, {}))
    assert odd.said in said
    assert (odd.said != "") == (";" in said), said
    before, after = load_stored(photo), load_stored(target)
    assert after.pixels.dtype == odd.dtype
    with Image.open(target) as image:
        assert image.mode in (odd.mode, "I" if odd.mode == "I;16" else odd.mode)
        assert image.getexif().get(0x0112, 1) == 1
    if not odd.said:
        assert after.icc_profile == before.icc_profile
        assert (after.alpha is None) == (before.alpha is None)
        assert after.alpha is None or np.array_equal(after.alpha, before.alpha)
    same = odd.dtype(0) == 0 and after.pixels.shape == before.pixels.shape and target.suffix not in LOSSY
    outside = np.ones(SIDE, bool)
    outside[EDITED] = False
    if same:
        assert np.array_equal(after.pixels[outside], before.pixels[outside])
    # What is seen: half as bright inside, the same outside, through whatever profile and mode.
    top = np.iinfo(after.pixels.dtype).max
    seen, was = srgb_of(after) / top, srgb_of(before) / np.iinfo(before.pixels.dtype).max
    slack = 0.06 if target.suffix in LOSSY else 0.02
    assert np.abs(seen[outside] - was[outside]).mean() < slack / 2
    wanted = was[EDITED] / 2 if was.shape == seen.shape else None
    found = np.abs(seen[EDITED] - wanted)
    assert np.median(found) < (0.12 if "cmyk" in odd.name else slack), np.median(found)


def test_sixteen_bits_keep_what_eight_cannot_hold(tmp_path: Path) -> None:
    """A smooth gradient stays one: no step of 257."""
    row = np.linspace(20_000, 24_000, SIDE[1]).astype(np.uint16)
    cv2.imwrite(str(tmp_path / "a.png"), np.repeat(np.tile(row, (SIDE[0], 1))[..., None], 3, 2))
    edit_file(darkening, tmp_path / "a.png", tmp_path / "b.png", {})
    after = load_stored(tmp_path / "b.png").pixels
    assert np.abs(after[15, 10:30, 0] - row[10:30] / 2).max() <= 1


def test_the_same_colour_is_asked_for_in_every_profile(tmp_path: Path) -> None:
    """A photo in a wide space is edited in sRGB: what an editor paints red is that red, whatever the file's space."""

    def red(photo: np.ndarray, params: object, min_score: float) -> EditedPhoto:
        result = photo.copy()
        result[EDITED] = (180, 40, 40)
        return EditedPhoto(result, np.ones(photo.shape[:2], np.float16), [FaceEdit((0, 0, 1, 1), 1.0)])

    plain().save(tmp_path / "a.png", icc_profile=profile_of(2.2))
    edit_file(red, tmp_path / "a.png", tmp_path / "b.png", {})
    after = load_stored(tmp_path / "b.png")
    assert np.abs(np.median(srgb_of(after)[EDITED], (0, 1)) - (180, 40, 40)).max() <= 3
    assert np.abs(np.median(after.pixels[EDITED], (0, 1)) - (180, 40, 40)).max() > 8


def test_texts_and_resolution_are_kept(tmp_path: Path) -> None:
    from PIL import PngImagePlugin

    texts = PngImagePlugin.PngInfo()
    texts.add_text("Author", "Zoë")
    plain().save(tmp_path / "a.png", pnginfo=texts, dpi=(300, 300))
    edit_file(darkening, tmp_path / "a.png", tmp_path / "b.png", {})
    plain().save(tmp_path / "a.jpg", comment=b"hello", dpi=(72, 72))
    edit_file(darkening, tmp_path / "a.jpg", tmp_path / "b.jpg", {})
    with Image.open(tmp_path / "b.png") as image:
        assert image.text["Author"] == "Zoë"
        assert image.info["dpi"] == pytest.approx((300, 300), abs=1)
    with Image.open(tmp_path / "b.jpg") as image:
        assert (image.info["comment"], image.info["dpi"]) == (b"hello", (72, 72))


def test_every_file_can_be_read_by_others(tmp_path: Path) -> None:
    """The directory that is patched into 16-bit TIFFs, and the chunks of PNGs: OpenCV and Pillow read them alike."""
    for suffix in ("png", "tif"):
        deep_wide(suffix)(tmp_path / f"a.{suffix}")
        found = cv2.imread(str(tmp_path / f"a.{suffix}"), cv2.IMREAD_UNCHANGED)
        assert np.array_equal(found[..., ::-1], colours(np.uint16))
        eight = load_photo(tmp_path / f"a.{suffix}").pixels
        assert np.abs(eight.astype(int) - colours(np.uint16) // 257).max() <= 1
        with Image.open(tmp_path / f"a.{suffix}") as image:
            assert ImageCms.getProfileName(ImageCms.ImageCmsProfile(io.BytesIO(image.info["icc_profile"])))


PHOTOS = sorted((Path(__file__).parents[3] / "recipes" / "photos" / "heldout").glob("*.jpg"))


def crowd(path: Path) -> None:
    """Four people in one picture."""
    people = [np.asarray(Image.open(photo).convert("RGB").resize((256, 256))) for photo in PHOTOS[:4]]
    Image.fromarray(np.vstack([np.hstack(people[:2]), np.hstack(people[2:])])).save(path)


def at_the_border(path: Path) -> None:
    """The left third of a head is not in the picture."""
    photo = Image.open(PHOTOS[1]).convert("RGB").resize((512, 512))
    photo.crop((140, 0, 512, 512)).save(path)


def huge(path: Path) -> None:
    """99 megapixels."""
    photo = np.asarray(Image.open(PHOTOS[1]).convert("RGB"))
    Image.fromarray(cv2.resize(photo, (9_950, 9_950), interpolation=cv2.INTER_CUBIC)).save(path, quality=90)


@pytest.mark.slow
@pytest.mark.parametrize(("make", "faces"), [(crowd, 4), (at_the_border, 1), (huge, 1)])
def test_people_in_odd_photos_are_edited(tmp_path: Path, make: Callable[[Path], None], faces: int) -> None:
    from stylepairs.i2i.edit.editor import Editor

    make(tmp_path / "photo.jpg")
    edited = edit_file(
        Editor.load("embedded", device="cpu"), tmp_path / "photo.jpg", tmp_path / "out.jpg", {"color": "auburn"}
    )
    assert sum(face.refused is None for face in edited.faces) >= faces - 1
    assert load_photo(tmp_path / "out.jpg").pixels.shape == load_photo(tmp_path / "photo.jpg").pixels.shape
    assert edited.mask.max() > 0.9
