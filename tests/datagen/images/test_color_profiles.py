"""Photos of every colour space are read as the colours that they show."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from stylepairs.datagen.images.color_profiles import to_srgb
from stylepairs.datagen.images.files import holds_more, load_photo, read_image
from stylepairs.datagen.images.stored import load_stored, srgb_of, with_edit
from stylepairs.datagen.shell.errors import InputError

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
# Primaries (x, y) and gamma.
DISPLAY_P3 = ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060)), 2.2
ADOBE_RGB = ((0.640, 0.330), (0.210, 0.710), (0.150, 0.060)), 2.2
PROPHOTO = ((0.7347, 0.2653), (0.1596, 0.8404), (0.0366, 0.0001)), 1.8


def matrix_profile(primaries, gamma: float) -> bytes:
    """An RGB profile of version 2 with these primaries, adapted from D65 (ProPhoto's error is of no meaning) to D50."""
    bradford = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
    white, d50 = np.array([0.9505, 1.0, 1.0891]), np.array([0.9642, 1.0, 0.8249])
    columns = np.array([[x / y, 1, (1 - x - y) / y] for x, y in primaries]).T
    matrix = columns * np.linalg.solve(columns, white)
    adapted = np.linalg.inv(bradford) @ np.diag((bradford @ d50) / (bradford @ white)) @ bradford @ matrix
    return _profile(b"RGB ", {b"rXYZ": adapted[:, 0], b"gXYZ": adapted[:, 1], b"bXYZ": adapted[:, 2]},
                    (b"rTRC", b"gTRC", b"bTRC"), gamma)  # fmt: skip


def grey_profile(gamma: float) -> bytes:
    return _profile(b"GRAY", {}, (b"kTRC",), gamma)


def _profile(space: bytes, colorants: dict[bytes, np.ndarray], curves: tuple[bytes, ...], gamma: float) -> bytes:
    def fixed(value: float) -> bytes:
        return struct.pack(">i", round(value * 65536))

    def xyz(values) -> bytes:
        return b"XYZ \0\0\0\0" + b"".join(fixed(float(value)) for value in values)

    tags = {b"wtpt": xyz((0.9642, 1.0, 0.8249))} | {name: xyz(values) for name, values in colorants.items()}
    tags |= {name: b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0" for name in curves}
    return _icc(b"mntr", space, b"XYZ ", tags)


def _icc(kind: bytes, space: bytes, connection: bytes, tags: dict[bytes, bytes]) -> bytes:
    """A profile's bytes: header, table of tags, tags."""
    named = {b"desc": b"desc\0\0\0\0" + struct.pack(">I", 5) + b"test\0" + bytes(78), b"cprt": b"text\0\0\0\0test\0"}
    tags = named | tags
    table, data, offset = struct.pack(">I", len(tags)), b"", 132 + 12 * len(tags)
    for name, value in tags.items():
        padded = value + bytes(-len(value) % 4)
        table += name + struct.pack(">II", offset + len(data), len(padded))
        data += padded
    head = struct.pack(">I4sI4s4s4s", offset + len(data), b"lcms", 0x02400000, kind, space, connection)
    head += struct.pack(">6H4s", 2026, 1, 1, 0, 0, 0, b"acsp") + bytes(28) + struct.pack(">3i", 63190, 65536, 54061)
    return head.ljust(128, b"\0") + table + data


def skin() -> np.ndarray:
    """A patch of skin beside one of blue, as sRGB."""
    image = np.empty((16, 16, 3), np.uint8)
    image[:, :8], image[:, 8:] = (214, 160, 136), (60, 90, 150)
    return image


@pytest.mark.parametrize("space", [DISPLAY_P3, ADOBE_RGB, PROPHOTO], ids=["P3", "AdobeRGB", "ProPhoto"])
@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "webp"])
def test_a_photo_in_a_wide_rgb_space_is_read_as_the_colours_it_shows(tmp_path: Path, space, suffix: str) -> None:
    profile = matrix_profile(*space)
    wide = ImageCms.profileToProfile(Image.fromarray(skin()), SRGB, ImageCms.ImageCmsProfile(io.BytesIO(profile)))
    assert np.abs(np.asarray(wide).astype(int) - skin()).max() > 8, "the spaces differ"
    path = tmp_path / f"photo.{suffix}"
    wide.save(path, icc_profile=profile, quality=98)
    off = np.abs(read_image(path).astype(int) - skin())[:, [2, 3, 12, 13]]
    assert off.max() <= (3 if suffix in ("png", "tif") else 8)
    photo = load_photo(path)
    assert photo.icc_profile == profile
    np.testing.assert_array_equal(to_srgb(photo.pixels, profile), read_image(path))


def test_a_grey_photo_with_its_own_curve_is_read_by_it(tmp_path: Path) -> None:
    grey = np.full((8, 8), 100, np.uint8)
    Image.fromarray(grey).save(tmp_path / "linear.png", icc_profile=grey_profile(1.0))
    Image.fromarray(grey).save(tmp_path / "plain.png")
    linear, plain = read_image(tmp_path / "linear.png"), read_image(tmp_path / "plain.png")
    assert (plain == 100).all()
    assert abs(int(linear[0, 0, 0]) - 168) <= 3  # (100 / 255) of the light is 168 in sRGB
    Image.fromarray(np.stack([grey, np.full_like(grey, 255)], -1), "LA").save(
        tmp_path / "alpha.png", icc_profile=grey_profile(1.0)
    )
    np.testing.assert_array_equal(read_image(tmp_path / "alpha.png"), linear)


def test_a_lab_photo_is_read_in_its_colours(tmp_path: Path) -> None:
    lab = ImageCms.profileToProfile(Image.fromarray(skin()), SRGB, ImageCms.createProfile("LAB"), outputMode="LAB")
    lab.save(tmp_path / "photo.tif")
    assert np.abs(read_image(tmp_path / "photo.tif").astype(int) - skin()).max() <= 4


@pytest.mark.parametrize(
    "profile", [b"", b"x" * 200, matrix_profile(*DISPLAY_P3)[:200], grey_profile(2.2), b"\0" * 128]
)
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK", "LA", "P", "1"])
def test_profiles_that_are_damaged_or_of_another_space_cost_only_themselves(
    tmp_path: Path, mode: str, profile: bytes
) -> None:
    image = Image.fromarray(skin()).convert("RGB").convert(mode)
    path = tmp_path / ("photo.tif" if mode == "CMYK" else "photo.png")
    image.save(path, icc_profile=profile)
    plain = tmp_path / f"plain{path.suffix}"
    image.save(plain)
    if mode in ("L", "LA") and profile == grey_profile(2.2):
        return
    np.testing.assert_array_equal(read_image(path), read_image(plain))


def test_a_cmyk_photo_is_read_through_its_profile(tmp_path: Path) -> None:
    """Without it the inks are guessed, and skin comes out red."""
    profile = _cmyk_profile()
    image = Image.merge("CMYK", [Image.new("L", (8, 8), value) for value in (20, 90, 80, 0)])
    image.save(tmp_path / "with.tif", icc_profile=profile)
    image.save(tmp_path / "without.tif")
    through = ImageCms.profileToProfile(
        image, ImageCms.ImageCmsProfile(io.BytesIO(profile)), SRGB, 1, "RGB", flags=0x2000
    )
    got = read_image(tmp_path / "with.tif")
    np.testing.assert_array_equal(got, np.asarray(through))
    assert np.abs(got.astype(int) - read_image(tmp_path / "without.tif")).max() > 20
    assert load_photo(tmp_path / "with.tif").icc_profile is None


@pytest.mark.parametrize("black", [0, 120, 200])
def test_an_edit_of_inks_without_a_profile_keeps_their_black(tmp_path: Path, black: int) -> None:
    """Inks of a separation without black were added to those with much of it: hair stayed as dark as it was."""
    rng = np.random.default_rng(0)
    inks = np.dstack([rng.integers(0, 255, (8, 8, 3)), np.full((8, 8), black)]).astype(np.uint8)
    Image.fromarray(inks, "CMYK").save(tmp_path / "photo.tif")
    photo = load_stored(tmp_path / "photo.tif")
    before = srgb_of(photo)
    after = before.copy()
    after[:4] = rng.integers(0, 255, (4, 8, 3))
    edited = with_edit(photo, before, after)
    np.testing.assert_allclose(srgb_of(edited)[:4].astype(int), after[:4], atol=2)
    np.testing.assert_array_equal(edited.pixels[4:], photo.pixels[4:])
    dark = after[:4].max(-1) <= 255 - black
    assert (edited.pixels[:4][dark][:, 3] == black).all()


def _cmyk_profile() -> bytes:
    """A printer's profile with a table of 2^4 points, whose magenta is a pale one."""
    corners = []
    for c in (0, 1):
        for m in (0, 1):
            for y in (0, 1):
                for k in (0, 1):
                    light = 100 * (1 - k) * (1 - 0.4 * c) * (1 - 0.3 * m) * (1 - 0.1 * y)
                    corners.append((light, 25 * m * (1 - k) - 30 * c * (1 - k), 60 * y * (1 - k) - 35 * c * (1 - k)))
    points = b"".join(bytes((round(light * 2.55), round(a + 128), round(b + 128))) for light, a, b in corners)
    table = bytes(range(256))
    lut = b"mft1\0\0\0\0" + bytes((4, 3, 2, 0)) + b"".join(
        struct.pack(">i", value) for value in (65536, 0, 0, 0, 65536, 0, 0, 0, 65536)
    ) + table * 4 + points + table * 3  # fmt: skip
    white = b"XYZ \0\0\0\0" + struct.pack(">3i", 63190, 65536, 54061)
    return _icc(b"prtr", b"CMYK", b"Lab ", {b"A2B0": lut, b"A2B1": lut, b"A2B2": lut, b"wtpt": white})


@pytest.mark.parametrize("kind", ["avif", "heif"])
def test_photos_of_phones_are_read(tmp_path: Path, kind: str) -> None:
    if kind == "heif":
        pytest.importorskip("pillow_heif").register_heif_opener()
    elif "AVIF" not in (Image.init(), Image.SAVE)[1]:
        pytest.skip("this Pillow has no AVIF")
    path = tmp_path / f"photo.{'heic' if kind == 'heif' else kind}"
    Image.fromarray(skin()).resize((64, 64)).save(path, kind.upper(), quality=95)
    assert np.abs(read_image(path).astype(int)[:, ::60] - skin()[:1, [0, 15]]).max() < 12


def test_a_phones_photo_that_cannot_be_read_says_what_to_install(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("stylepairs.datagen.images.files._known_formats", lambda: ["PNG"])
    monkeypatch.delitem(Image.OPEN, "HEIF", raising=False)
    for brand, advice in ((b"heic", r"stylepairs\[heif\]"), (b"avif", "pillow>=11.3")):
        path = tmp_path / "photo.heic"
        path.write_bytes(b"\0\0\0\x18ftyp" + brand + bytes(100))
        with pytest.raises(InputError, match=advice):
            read_image(path)


def test_a_tiff_of_floats_is_called_a_tiff(tmp_path: Path) -> None:
    path = tmp_path / "float.tif"
    entries = [(256, 3, 1, 2), (257, 3, 1, 2), (258, 3, 1, 64), (259, 3, 1, 1), (262, 3, 1, 2), (273, 4, 1, 200),
               (277, 3, 1, 5), (279, 4, 1, 160), (339, 3, 1, 3)]  # fmt: skip
    directory = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *entry) for entry in entries)
    path.write_bytes((b"II*\0\x08\0\0\0" + directory).ljust(400, b"\0"))
    with pytest.raises(InputError, match="a TIFF of a kind that is not read"):
        read_image(path)


def test_a_file_of_several_pictures_is_noticed(tmp_path: Path) -> None:
    frames = [Image.fromarray(np.full((8, 8, 3), value, np.uint8)) for value in (10, 200, 90)]
    for suffix in ("gif", "tif", "webp", "png"):
        path = tmp_path / f"many.{suffix}"
        frames[0].save(path, save_all=True, append_images=frames[1:])
        assert holds_more(path), suffix
        assert abs(int(read_image(path)[0, 0, 0]) - 10) <= 6, suffix
        frames[0].save(tmp_path / f"one.{suffix}")
        assert not holds_more(tmp_path / f"one.{suffix}"), suffix
    assert not holds_more(tmp_path / "none.gif")
