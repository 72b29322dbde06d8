"""Marks an edited photo as edited: IPTC's digital source type in its XMP, this program in its EXIF software tag.

The term is IPTC's for media that a generative model has altered in part:
https://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia. What the file said before is kept,
apart from what is no longer true of it.
"""

from __future__ import annotations

from dataclasses import replace
from importlib.metadata import version
from xml.dom import DOMException, minidom
from xml.parsers.expat import ExpatError

from PIL import Image

from stylepairs.datagen.images.files import MAX_JPEG_EXIF_BYTES, MAX_JPEG_XMP_BYTES, Photo

SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia"
SOFTWARE_TAG = 0x0131
_OWN = "stylepairs"
_EXTENSION = "http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
_RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
# An earlier source type; how the pixels were stored before they were turned upright; pictures of the unedited photo;
# parts of the packet that were stored elsewhere.
_NO_LONGER_TRUE = {
    (_EXTENSION, "DigitalSourceType"),
    ("http://ns.adobe.com/tiff/1.0/", "Orientation"),
    ("http://ns.adobe.com/tiff/1.0/", "ImageWidth"),
    ("http://ns.adobe.com/tiff/1.0/", "ImageLength"),
    ("http://ns.adobe.com/exif/1.0/", "PixelXDimension"),
    ("http://ns.adobe.com/exif/1.0/", "PixelYDimension"),
    ("http://ns.adobe.com/xap/1.0/", "Thumbnails"),
    ("http://ns.adobe.com/xmp/note/", "HasExtendedXMP"),
}
_MARK = (
    f'<rdf:Description xmlns:rdf="{_RDF}" rdf:about="" xmlns:Iptc4xmpExt="{_EXTENSION}">'
    f"<Iptc4xmpExt:DigitalSourceType>{SOURCE_TYPE}</Iptc4xmpExt:DigitalSourceType></rdf:Description>"
)
_EMPTY = (
    '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
    f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="{_RDF}"/></x:xmpmeta><?xpacket end="w"?>'
)


def marked(photo: Photo) -> Photo:
    """The photo with the mark in its XMP and EXIF, which go into JPEG, PNG, WebP and TIFF files.

    XMP or EXIF that cannot be read, or is too long for a JPEG with the mark in it, is replaced by the mark alone.
    """
    return replace(photo, xmp=_marked_xmp(photo.xmp), exif=_marked_exif(photo.exif))


def _marked_xmp(packet: bytes | None) -> bytes:
    alone = _with_mark(_EMPTY)
    try:
        text = (packet or b"").decode("utf-8-sig").strip("\0 \r\n\t")
        # A packet has no document type; entities could make a short one long.
        whole = _with_mark(text) if text and "<!DOCTYPE" not in text else alone
    except (ExpatError, DOMException, ValueError, RecursionError, LookupError):  # LookupError: of an encoding, too
        return alone
    return whole if len(whole) <= MAX_JPEG_XMP_BYTES else alone


def _with_mark(packet: str) -> bytes:
    """Raises ExpatError, DOMException, ValueError, RecursionError or LookupError for what is no XMP packet."""
    document = minidom.parseString(packet.encode())
    for description in list(document.getElementsByTagNameNS(_RDF, "Description")):
        for attribute in list((description.attributes or {}).values()):
            if (attribute.namespaceURI, attribute.localName) in _NO_LONGER_TRUE:
                description.removeAttributeNode(attribute)
        for child in list(description.childNodes):
            if (child.namespaceURI, child.localName) in _NO_LONGER_TRUE:
                description.removeChild(child)
        left = [attribute for attribute in (description.attributes or {}).values() if attribute.prefix != "xmlns"]
        if not description.childNodes and all(attribute.localName == "about" for attribute in left):
            assert description.parentNode is not None
            description.parentNode.removeChild(description)
    mark = minidom.parseString(_MARK).documentElement
    assert mark is not None
    document.getElementsByTagNameNS(_RDF, "RDF")[0].appendChild(document.importNode(mark, True))
    return "".join(node.toxml() for node in document.childNodes).encode()


def _marked_exif(exif: bytes | None) -> bytes:
    """With this program as the first of the software tag's; those before it stay behind it."""
    block = Image.Exif()
    own = f"{_OWN} {version(_OWN)}"
    if exif is not None:
        block.load(exif)
    earlier = [part.strip("\0 ") for part in str(block.get(SOFTWARE_TAG, "")).split(";")]
    block[SOFTWARE_TAG] = "; ".join([own, *(part for part in earlier if part and not part.startswith(_OWN))])
    written = block.tobytes()
    if len(written) <= MAX_JPEG_EXIF_BYTES:
        return written
    block = Image.Exif()
    block[SOFTWARE_TAG] = own
    return block.tobytes()
