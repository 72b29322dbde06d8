"""Compares folders of pictures with a folder of what was wanted, name by name.

    python recipes/judging/evaluate.py WANTED FOUND... --out DIR [--masks DIR] [--perceptual NAME] [--identity FILE]

The pictures of any method will do: pix2pix, another package, an earlier run. Pictures pair by name without suffix; a
mask (grey, white where the edit is) splits the figures into inside and outside. Writes figures.json, figures.md,
sheet.png and, with matplotlib, figures.png.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F

from stylepairs.datagen.images.files import PHOTO_SUFFIXES, read_image, to_float
from stylepairs.datagen.shell.errors import InputError, exit_on_bad_input
from stylepairs.i2i.identity import load_instruments
from stylepairs.i2i.judging import SHEET_ROWS, judged_of, write_report

LEAST_PX = 6  # SSIM's window of 11 pixels reflects what it sees at the borders


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wanted", type=Path)
    parser.add_argument("found", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--masks", type=Path, help="none: everything is inside")
    parser.add_argument("--perceptual", default="auto", help="efficientnet-lite0, vgg16 (LPIPS), pyramid or auto")
    parser.add_argument("--weights", type=Path, help="of vgg16: a local file")
    parser.add_argument("--identity", default="embedded", help="embedded, or an .onnx of a face-recognition network")
    arguments = parser.parse_args()
    with exit_on_bad_input():
        compare(arguments)


def compare(arguments: argparse.Namespace) -> None:
    by = load_instruments(arguments.perceptual, arguments.identity, arguments.weights)
    wanted = pictures(arguments.wanted)
    folders = {str(folder): pictures(folder) for folder in arguments.found}
    names = sorted(wanted.keys() & set.intersection(*(set(found) for found in folders.values())))
    if not names:
        raise InputError(f"{arguments.wanted}: no picture has the name of one in each of the other folders")
    masks = pictures(arguments.masks) if arguments.masks else {}
    bare = [name for name in names if name not in masks] if arguments.masks else []
    if bare:
        raise InputError(f"{arguments.masks}: no mask of {bare[0]} (of {len(bare)} pictures there is none)")
    print(f"{len(names)} pictures of {len(wanted)}")

    def compared(found: dict[str, Path]) -> Iterator[tuple[dict[str, str], torch.Tensor, dict[str, torch.Tensor]]]:
        for name in names:
            target = picture(wanted[name])
            image = fitted(picture(found[name]), target)
            yield {"picture": name}, image, {"target": target, "mask": mask_of(masks.get(name), target)}

    judged = {folder: judged_of(compared(found), by) for folder, found in folders.items()}
    targets = [to_float(read_image(wanted[name])) for name in names[:SHEET_ROWS]]
    write_report(arguments.out, judged, sheet=[*(one.pictures for one in judged.values()), targets])
    print((arguments.out / "figures.md").read_text())


def pictures(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in PHOTO_SUFFIXES and found.setdefault(path.stem, path) != path:
            raise InputError(f"{path}: {found[path.stem].name} has the same name; leave one of them")
    return found


def picture(path: Path) -> torch.Tensor:
    image = to_float(read_image(path))
    height, width = image.shape[1:]
    if min(height, width) < LEAST_PX:
        raise InputError(f"{path}: {width} x {height} pixels; pictures need {LEAST_PX} on each side to be compared")
    return image


def mask_of(path: Path | None, target: torch.Tensor) -> torch.Tensor:
    return torch.ones_like(target[:1]) if path is None else (fitted(to_float(read_image(path))[:1], target) + 1) / 2


def fitted(image: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    if image.shape[1:] == target.shape[1:]:
        return image
    return F.interpolate(image[None], size=target.shape[1:], mode="bicubic", antialias=True)[0].clamp(-1, 1)


if __name__ == "__main__":
    main()
