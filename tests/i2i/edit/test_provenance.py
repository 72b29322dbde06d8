"""Edited files say that they were edited, and keep what they said before."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from xml.dom import minidom

import numpy as np
import pytest
from PIL import Image

from stylepairs.datagen.images.files import MAX_JPEG_XMP_BYTES, Photo, load_photo, save_photo
from stylepairs.i2i.edit.editor import EditedPhoto, FaceEdit
from stylepairs.i2i.edit.photo_files import edit_file
from stylepairs.i2i.edit.provenance import SOFTWARE_TAG, SOURCE_TYPE, marked

RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
EXT = "http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
EARLIER = f"""<?xpacket begin="" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/">
<r:RDF xmlns:r="{RDF}"><r:Description r:about="" xmlns:dc="http://purl.org/dc/elements/1.1/" xmlns:e="{EXT}"
 xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6" e:DigitalSourceType="{"digitalCapture"}"
 dc:format="image/jpeg"><dc:creator><r:Seq><r:li>Zoë &amp; Co</r:li></r:Seq></dc:creator></r:Description></r:RDF>
</x:xmpmeta><?xpacket end="w"?>""".encode()
FORMATS = ["jpg", "png", "webp", "tif"]


def brighter(photo: np.ndarray, params: object, min_score: float) -> EditedPhoto:
    return EditedPhoto(photo + 1, np.ones(photo.shape[:2], np.float16), [FaceEdit((0, 0, 1, 1), 1.0)])


def write(path: Path, suffix: str, xmp: bytes | None = EARLIER) -> Path:
    """A photo that lies on its side, with EXIF, GPS and XMP."""
    exif = Image.Exif()
    exif[0x0112], exif[0x010F], exif[SOFTWARE_TAG] = 6, "Camera", "HDR+ 1.0"
    exif.get_ifd(0x8769)[0x9003] = "2024:01:02 03:04:05"
    exif.get_ifd(0x8825)[1] = "N"
    target = path.with_suffix(f".{suffix}")
    save_photo(target, Photo(np.full((8, 12, 3), 90, np.uint8), exif=exif.tobytes(), xmp=xmp))
    return target


def source_types(xmp: bytes) -> list[str]:
    found = minidom.parseString(xmp).getElementsByTagNameNS(EXT, "DigitalSourceType")
    return [node.firstChild.data for node in found]


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("source", FORMATS)
def test_every_format_carries_the_mark_and_what_was_there_before(tmp_path: Path, source: str, suffix: str) -> None:
    photo, target = write(tmp_path / "photo", source), tmp_path / "out" / f"photo.{suffix}"
    edit_file(brighter, photo, target, {})
    with Image.open(target) as image:
        assert image.size == (8, 12)
        exif = image.getexif()
        assert exif[SOFTWARE_TAG].startswith("stylepairs 0")
        assert exif[SOFTWARE_TAG].endswith("; HDR+ 1.0")
        assert (exif[0x010F], exif.get(0x0112, 1)) == ("Camera", 1)
        assert exif.get_ifd(0x8769)[0x9003] == "2024:01:02 03:04:05"
        assert exif.get_ifd(0x8825)[1] == "N"
    again = load_photo(target)
    assert again.pixels.shape == (12, 8, 3)
    xmp = again.xmp
    assert source_types(xmp) == [SOURCE_TYPE]
    assert "Zoë &amp; Co" in xmp.decode()
    assert b"Orientation" not in xmp
    assert b"digitalCapture" not in xmp
    assert b'xmlns:dc="http://purl.org/dc/elements/1.1/"' in xmp


@pytest.mark.parametrize("suffix", FORMATS)
def test_photos_without_metadata_get_the_mark_alone(tmp_path: Path, suffix: str) -> None:
    photo, target = tmp_path / "plain.png", tmp_path / f"out.{suffix}"
    Image.fromarray(np.full((8, 12, 3), 90, np.uint8)).save(photo)
    edit_file(brighter, photo, target, {})
    assert source_types(load_photo(target).xmp) == [SOURCE_TYPE]
    with Image.open(target) as image:
        assert image.getexif()[SOFTWARE_TAG].startswith("stylepairs 0")


def test_only_an_explicit_option_leaves_it_out(tmp_path: Path) -> None:
    photo, target = write(tmp_path / "photo", "jpg"), tmp_path / "out.jpg"
    edit_file(brighter, photo, target, {}, provenance=False)
    assert b"digitalCapture" in load_photo(target).xmp
    with Image.open(target) as image:
        assert image.getexif()[SOFTWARE_TAG] == "HDR+ 1.0"


def test_a_packet_of_attributes_alone_keeps_them(tmp_path: Path) -> None:
    packet = EARLIER.split(b"<dc:creator>")[0] + b"</r:Description></r:RDF></x:xmpmeta>"
    xmp = marked(load_photo(write(tmp_path / "p", "png", packet))).xmp
    assert b'dc:format="image/jpeg"' in xmp
    assert source_types(xmp) == [SOURCE_TYPE]


BOMB = b'<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;">]><x>&b;&b;</x>'


UNKNOWN = b'<?xml version="1.0" encoding="klingon"?>' + EARLIER.partition(b"?>")[2]


@pytest.mark.parametrize(
    "xmp",
    [b"", b"\xff\xfe\0", b"<x", BOMB, b"<x/>", b"<a>" * 3000 + b"</a>" * 3000, b"\0" * 9, UNKNOWN],
    ids=range(8),
)
def test_broken_packets_are_replaced(tmp_path: Path, xmp: bytes) -> None:
    assert source_types(marked(load_photo(write(tmp_path / "p", "png", xmp))).xmp) == [SOURCE_TYPE]


def test_packet_too_long_for_a_jpeg_is_replaced(tmp_path: Path) -> None:
    photo = load_photo(write(tmp_path / "p", "png", EARLIER.replace(b"Zo", b"Z" + b"o" * MAX_JPEG_XMP_BYTES)))
    assert len(photo.xmp) > MAX_JPEG_XMP_BYTES
    assert len(marked(photo).xmp) < 1000


def test_a_second_edit_adds_no_second_mark(tmp_path: Path) -> None:
    photo = marked(load_photo(write(tmp_path / "p", "png")))
    again = marked(photo)
    assert (again.xmp, again.exif) == (photo.xmp, photo.exif)


def test_a_photo_of_which_nothing_was_changed_is_not_marked(tmp_path: Path) -> None:
    def untouched(photo: np.ndarray, params: object, min_score: float) -> EditedPhoto:
        return replace(brighter(photo, params, min_score), pixels=photo, mask=np.zeros(photo.shape[:2], np.float16))

    photo, target = write(tmp_path / "photo", "jpg"), tmp_path / "out.jpg"
    edit_file(untouched, photo, target, {})
    assert b"digitalCapture" in load_photo(target).xmp
