"""Makes the reference portraits that `facial_features` carries: of prepared portraits those named, in a small form.

    datagen prepare PHOTOS --out PORTRAITS
    python recipes/photos/references.py PORTRAITS [NAME ...]

Without names all are taken. Left out, with a line, are portraits of which no part of the face is seen plainly enough to
be given to another face.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from stylepairs.datagen.features.facial_features import can_give
from stylepairs.datagen.images.files import to_uint8
from stylepairs.datagen.portraits.folders import PortraitFile, load_portraits
from stylepairs.datagen.shell.errors import InputError, exit_on_bad_input, nearest
from stylepairs.datagen.sketching.face.face_parts import PARTS
from stylepairs.datagen.sketching.face.references import BUNDLED_FOLDER

SIDE_PX = 256
QUALITY = 88
MATTE_STEP = 17  # sixteen levels: a matte of half the size, which no figure tells from the whole


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("portraits", type=Path)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--out", type=Path, default=BUNDLED_FOLDER)
    options = parser.parse_args()
    with exit_on_bad_input():
        write_references(chosen(options.portraits, options.names, options.out), options.out)


def chosen(folder: Path, names: Sequence[str], out: Path) -> list[PortraitFile]:
    """The portraits of those names, none: of all, that can give a part. Raises InputError where there is none."""
    if out.resolve() == folder.resolve():
        raise InputError(
            f"{out}: is where the references go; give the portraits that they are made of, or another --out"
        )
    files = {file.name: file for file in load_portraits(folder)}
    for name in names:
        if name not in files:
            raise InputError(f"{folder}: no portrait {name}{nearest(name, files)}")
    kept = []
    for file in [file for name, file in files.items() if not names or name in names]:
        if any(can_give(file.load(), (part,)) for part in PARTS):
            kept.append(file)
        else:
            print(f"{file.name}: left out")
    if not kept:
        raise InputError(f"{folder}: no part of a face that is seen plainly enough; the references stay as they are")
    return kept


def write_references(files: list[PortraitFile], out: Path) -> None:
    """Replace what `out` holds by the portraits, in the layout that `load_portraits` reads."""
    for kind in ("aligned", "label", "hair"):
        shutil.rmtree(out / kind, ignore_errors=True)
        (out / kind).mkdir(parents=True)
    scales = []
    for file in files:
        portrait = file.load()
        scales.append(SIDE_PX / portrait.size_px)
        portrait = portrait.resized(SIDE_PX)
        Image.fromarray(to_uint8(portrait.image)).save(out / "aligned" / f"{file.name}.jpg", quality=QUALITY)
        matte = to_uint8((portrait.hair * (255 / MATTE_STEP)).round() * (MATTE_STEP / 255))
        for kind, plane in (("label", portrait.label.numpy()), ("hair", matte)):
            Image.fromarray(plane).save(out / kind / f"{file.name}.png", optimize=True)
    np.savez_compressed(
        out / "landmarks.npz",
        name=np.array([file.name for file in files]),
        points68=np.stack([file.points68 for file in files]),
        source_to_aligned=np.stack([resized(file.source_to_aligned, s) for file, s in zip(files, scales, strict=True)]),
    )


def resized(transform: np.ndarray, scale: float) -> np.ndarray:
    """A transform [2,3] onto pixels of a crop, onto those of the crop resized by `scale`; pixel centres at integers."""
    moved = scale * transform
    moved[:, 2] += (scale - 1) / 2
    return moved


if __name__ == "__main__":
    main()
