"""Reading and writing pictures: hostile files give one line, photos come upright, nothing is half-written."""

from __future__ import annotations

import errno
import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from stylepairs.datagen.images import files
from stylepairs.datagen.images.files import (
    WRITTEN_SUFFIXES,
    Photo,
    load_photo,
    read_image,
    save_photo,
    to_float,
    to_uint8,
    visible_files,
    write_png,
)
from stylepairs.datagen.images.stored import eight_bits, load_stored
from stylepairs.datagen.shell import durable
from stylepairs.datagen.shell.errors import InputError


def _picture(height: int = 24, width: int = 36) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def _huge_png(path: Path, width: int, height: int) -> Path:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    )
    return path


def _one_line(error: pytest.ExceptionInfo[InputError], path: Path) -> str:
    message = str(error.value)
    assert "\n" not in message
    assert message.startswith(str(path))
    return message


@pytest.mark.parametrize("megapixels", [(20_000, 10_000), (12_000, 9_000), (60_000, 60_000)])
def test_oversized_images_are_refused_before_they_are_decoded(tmp_path: Path, megapixels: tuple[int, int]) -> None:
    path = _huge_png(tmp_path / "huge.png", *megapixels)
    with pytest.raises(InputError) as error:
        read_image(path)
    assert f"{megapixels[0] * megapixels[1] / 1e6:.0f} megapixels" in _one_line(error, path)


@pytest.mark.parametrize(
    "content", [b"", b"hello", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0" + bytes(40), b"%!PS-Adobe", bytes(1000)]
)
def test_files_that_are_no_images_give_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "photo.jpg"
    path.write_bytes(content)
    with pytest.raises(InputError) as error:
        read_image(path)
    _one_line(error, path)


@pytest.mark.parametrize("kind", ["jpeg", "png", "webp", "tiff", "bmp"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_truncated_images_give_one_line(tmp_path: Path, kind: str, share: float) -> None:
    buffer = io.BytesIO()
    Image.fromarray(_picture(60, 80)).save(buffer, kind)
    path = tmp_path / f"photo.{kind}"
    path.write_bytes(buffer.getvalue()[: int(len(buffer.getvalue()) * share)])
    with pytest.raises(InputError) as error:
        read_image(path)
    _one_line(error, path)


@settings(max_examples=40, deadline=None)
@given(kind=st.sampled_from(["jpeg", "png", "webp", "tiff", "gif"]), seed=st.integers(0, 10_000))
def test_damaged_bytes_never_do_more_than_raise_input_error(
    tmp_path_factory: pytest.TempPathFactory, kind: str, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    buffer = io.BytesIO()
    Image.fromarray(_picture()).save(buffer, kind)
    data = np.frombuffer(buffer.getvalue(), np.uint8).copy()
    data[rng.integers(0, len(data), 12)] = rng.integers(0, 256, 12)
    path = tmp_path_factory.mktemp("damaged") / f"photo.{kind}"
    path.write_bytes(data.tobytes())
    try:
        image = read_image(path, max_pixels=1e6)
    except InputError:
        return
    assert image.dtype == np.uint8
    assert image.shape[2] == 3


def test_a_line_of_pixels_is_refused_before_it_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "line.png"
    Image.new("RGB", (8, 8)).save(path)
    data = bytearray(path.read_bytes())
    data[16:24] = struct.pack(">II", 1, 90_000_000)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    path.write_bytes(data)
    monkeypatch.setattr(Image.Image, "load", None)
    with pytest.raises(InputError, match=r"line\.png: a side of 90000000 pixels, more than 65535"):
        read_image(path)


def test_missing_files_and_folders_give_one_line(tmp_path: Path) -> None:
    for path in (tmp_path / "none.jpg", tmp_path):
        with pytest.raises(InputError) as error:
            read_image(path)
        _one_line(error, path)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation_comes_upright(tmp_path: Path, orientation: int) -> None:
    upright = Image.fromarray(np.kron(_picture(4, 6), np.ones((8, 8, 1), np.uint8)))
    stored = {
        1: [],
        2: [Image.Transpose.FLIP_LEFT_RIGHT],
        3: [Image.Transpose.ROTATE_180],
        4: [Image.Transpose.FLIP_TOP_BOTTOM],
        5: [Image.Transpose.TRANSPOSE],
        6: [Image.Transpose.ROTATE_90],
        7: [Image.Transpose.TRANSVERSE],
        8: [Image.Transpose.ROTATE_270],
    }[orientation]
    image = upright
    for step in stored:
        image = image.transpose(step)
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif[0x010F] = "a camera"
    image.save(tmp_path / "photo.png", exif=exif)
    photo = load_photo(tmp_path / "photo.png")
    np.testing.assert_array_equal(photo.pixels, np.asarray(upright))
    assert photo.exif is not None
    kept = Image.Exif()
    kept.load(photo.exif)
    assert 0x0112 not in kept
    assert kept[0x010F] == "a camera"


@pytest.mark.parametrize(
    ("kind", "value"), [(10, struct.pack("<ii", -72, 1)), (5, b""), (2, b"seventytwo\0"), (99, b"")]
)
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_exif_that_cannot_be_written_again_costs_only_itself(
    tmp_path: Path, suffix: str, kind: int, value: bytes
) -> None:
    # Orientation 6, and a resolution of the wrong kind: what Pillow reads and then refuses to write.
    tags = struct.pack("<HHHI4s", 2, 0x0112, 3, 1, b"\6\0\0\0") + struct.pack("<HHII", 0x011A, kind, 1, 38)
    exif = b"Exif\0\0II*\0\x08\0\0\0" + tags + bytes(4) + value
    stored = np.kron(_picture(4, 6), np.ones((8, 8, 1), np.uint8))
    path = tmp_path / f"photo.{suffix}"
    Image.fromarray(stored).save(path, exif=exif, quality=100)
    photo = load_photo(path)
    assert photo.pixels.shape == (48, 32, 3)
    assert np.abs(photo.pixels.astype(int) - np.rot90(stored, -1)).mean() < 10
    save_photo(tmp_path / f"again.{suffix}", photo)


def test_a_photo_with_unreadable_exif_is_read(tmp_path: Path) -> None:
    Image.fromarray(_picture()).save(tmp_path / "photo.png", exif=b"Exif\0\0no tags at all")
    photo = load_photo(tmp_path / "photo.png")
    np.testing.assert_array_equal(photo.pixels, _picture())
    assert photo.exif is None


def test_exif_too_long_for_a_jpeg_is_left_out(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x010F] = "x" * 70_000
    save_photo(tmp_path / "photo.jpg", Photo(_picture(), exif=exif.tobytes()))
    assert load_photo(tmp_path / "photo.jpg").exif is None


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA", "CMYK", "YCbCr", "I;16"])
def test_every_colour_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    grey = Image.fromarray(np.linspace(0, 255, 32 * 32).reshape(32, 32).astype(np.uint8))
    if mode == "I;16":
        image = Image.fromarray(np.linspace(0, 65535, 32 * 32).reshape(32, 32).astype(np.uint16))
    else:
        image = grey.convert("RGB").convert(mode)
    path = tmp_path / "photo.tif"
    if mode == "P":
        path = tmp_path / "photo.png"
    # Pillow before 13 does not read its own plain YCbCr.
    image.save(path, **({"compression": "tiff_lzw"} if mode == "YCbCr" else {}))
    pixels = read_image(path)
    assert pixels.shape == (32, 32, 3)
    tolerance = 130 if mode == "1" else 30
    assert abs(float(pixels.mean()) - 127) < tolerance
    assert pixels[-1, -1, 0] > pixels[0, 0, 0]


def test_transparent_parts_lie_over_white_and_the_alpha_is_kept(tmp_path: Path) -> None:
    image = np.zeros((8, 8, 4), np.uint8)
    image[:, 4:, 3] = 255
    Image.fromarray(image).save(tmp_path / "photo.png")
    pixels = read_image(tmp_path / "photo.png")
    assert (pixels[:, :4] == 255).all()
    assert (pixels[:, 4:] == 0).all()
    photo = load_photo(tmp_path / "photo.png")
    save_photo(tmp_path / "again.png", photo)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "again.png")), image)


def test_a_saved_photo_keeps_its_profile_and_pixels(tmp_path: Path) -> None:
    from PIL import ImageCms

    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    save_photo(tmp_path / "a.png", Photo(_picture(), icc_profile=profile))
    again = load_photo(tmp_path / "a.png")
    np.testing.assert_array_equal(again.pixels, _picture())
    assert again.icc_profile == profile
    save_photo(tmp_path / "a.jpg", again)
    assert load_photo(tmp_path / "a.jpg").icc_profile == profile


def test_an_unknown_suffix_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="unknown image suffix"):
        save_photo(tmp_path / "a.xyz", Photo(_picture()))


def test_a_full_disk_leaves_the_old_file_and_no_remains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    write_png(path, _picture())
    before = path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(durable.os, "fsync", full)
    with pytest.raises(InputError, match=r"a\.png: no space left"):
        write_png(path, _picture(8, 8))
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


@settings(max_examples=20, deadline=None)
@given(height=st.integers(1, 20), width=st.integers(1, 20), seed=st.integers(0, 99))
def test_floats_and_bytes_round_trip(height: int, width: int, seed: int) -> None:
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    tensor = to_float(image)
    assert tensor.shape == (3, height, width)
    assert float(tensor.abs().max()) <= 1
    np.testing.assert_array_equal(to_uint8(tensor), image)
    mask = torch.from_numpy(image[..., 0]).float()[None] / 255
    np.testing.assert_array_equal(to_uint8(mask), image[..., 0])


def _modes() -> dict[str, Image.Image]:
    """A smooth picture in every mode that a TIFF stores."""
    ys, xs = np.mgrid[:45, :60]
    picture = Image.fromarray(np.stack([xs * 4, ys * 5, 2 * (xs + ys)], -1).astype(np.uint8))
    grey = np.asarray(picture.convert("L"))
    plain = {mode: picture.convert(mode) for mode in ("RGB", "RGBA", "L", "LA", "1", "CMYK", "YCbCr")}
    lab = ImageCms.profileToProfile(
        picture, ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
    )
    deep = {"I;16": grey.astype(np.uint16) * 256, "I": grey.astype(np.int32) * 256, "F": grey.astype(np.float32)}
    return plain | {"P": picture.quantize(64), "LAB": lab} | {mode: Image.fromarray(x) for mode, x in deep.items()}


@pytest.mark.parametrize("brightest", [40_000, 65_535, 2**31 - 2**8])
def test_integer_greys_are_scaled_by_sixteen_bits_or_what_they_hold(tmp_path: Path, brightest: int) -> None:
    values = np.linspace(0, brightest, 256).reshape(16, 16).astype(np.int32)
    Image.fromarray(values).save(tmp_path / "grey.tif")
    wanted = np.linspace(0, 255 * min(1, brightest / 65535), 256).reshape(16, 16)
    assert np.abs(load_photo(tmp_path / "grey.tif").pixels[..., 0] - wanted).max() <= 1.01


@pytest.mark.parametrize(("fourth", "depth"), [(0, np.uint16), (1, np.uint8), (2, np.uint16)])
def test_the_fourth_channel_of_a_deep_tiff_is_transparency_only_where_the_file_says_so(tmp_path, fourth, depth) -> None:
    path = tmp_path / "photo.tif"
    pixels = np.full((4, 6, 3), 20000, np.uint16)
    alpha = np.full((4, 6), 32768, np.uint16)
    save_photo(path, Photo(pixels, alpha))
    data = bytearray(path.read_bytes())
    place = data.index(struct.pack("<HHIH", 338, 3, 1, 2))
    data[place + 8] = fourth
    path.write_bytes(data)
    stored, read = load_stored(path), read_image(path)
    assert stored.pixels.dtype == depth
    assert (stored.alpha is None) == (fourth == 0)
    if fourth == 0:
        np.testing.assert_array_equal(stored.pixels, pixels)
        np.testing.assert_array_equal(read, eight_bits(pixels))
    if fourth == 1:  # the colours are multiplied already
        assert 150 < stored.pixels.min() <= stored.pixels.max() < 160
        assert stored.notes == ("16 bits became 8",)


def test_greys_of_16_bits_are_rounded(tmp_path: Path) -> None:
    deep = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    Image.fromarray(deep).save(tmp_path / "grey.png")
    assert np.array_equal(load_photo(tmp_path / "grey.png").pixels[..., 0], eight_bits(deep))


@pytest.mark.parametrize("mode", sorted(set(_modes()) - {"YCbCr"}))
def test_a_turned_tiff_reads_alike_whether_packed_or_not(tmp_path: Path, mode: str) -> None:
    photos = []
    for packing in ("raw", "tiff_adobe_deflate"):
        path = tmp_path / f"{packing}.tif"
        _modes()[mode].save(path, tiffinfo={274: 6}, compression=packing)
        photos.append(load_photo(path).pixels)
    assert np.array_equal(*photos)


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("mode", sorted(_modes()))
def test_a_tiff_of_any_mode_is_saved_in_any_format_as_it_was_read(tmp_path: Path, mode: str, orientation: int) -> None:
    """Its tags that say how pixels are stored would override the new file's: all but what describes is left out."""
    source = tmp_path / "source.tif"
    _modes()[mode].save(source, tiffinfo={274: orientation, 270: "described"}, compression="tiff_adobe_deflate")
    photo = load_photo(source)
    for suffix in WRITTEN_SUFFIXES:
        target = tmp_path / f"target{suffix}"
        save_photo(target, photo)
        again = load_photo(target)
        lossless = suffix in (".png", ".tif", ".tiff", ".bmp", ".ppm", ".pgm")
        assert again.pixels.shape == photo.pixels.shape, suffix
        assert np.abs(again.pixels.astype(int) - photo.pixels).mean() <= (0 if lossless else 6), suffix
        if suffix in (".png", ".jpg", ".webp", ".tif"):
            with Image.open(target) as image:
                assert image.getexif().get(270) == "described", suffix
                assert image.getexif().get(274, 1) == 1, suffix


def test_a_folder_that_cannot_be_read_is_told_unless_it_is_hidden(tmp_path, monkeypatch):
    for name in ("a.png", "sub/b.png", ".hidden/c.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "link").symlink_to(tmp_path / "sub")
    locked = {tmp_path / ".hidden", tmp_path / "link"}
    monkeypatch.setattr(files.os, "access", lambda path, mode: path not in locked)  # root may read everything
    assert [path.name for path in visible_files(tmp_path)] == ["a.png", "b.png"]
    locked.add(tmp_path / "sub")
    with pytest.raises(InputError, match=r"sub: cannot be read"):
        list(visible_files(tmp_path))
    locked.add(tmp_path)
    with pytest.raises(InputError, match=rf"^{tmp_path}: cannot be read"):
        list(visible_files(tmp_path))
