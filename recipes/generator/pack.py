"""Portraits, weights and frozen features in a small folder, to train where there is no network and no package index.

python recipes/generator/pack.py data --portraits DIR... --to FOLDER     (FOLDER/000, FOLDER/001, ..., trunk.pth)
python recipes/generator/pack.py weights --run RUN --to FOLDER           (what --start-from reads)
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from data import aligned_files, matte_file, open_image
from PIL import Image
from state import Rates, load_state, write_weights

from stylepairs.datagen.images.perceptual import efficientnet_state
from stylepairs.datagen.shell.durable import make_folder
from stylepairs.datagen.shell.errors import InputError, exit_on_bad_input

ALIGNED_PX, ALIGNED_QUALITY = 256, 80  # WebP: 6 KB a portrait, half of a JPEG file that looks the same
MATTE_PX, MATTE_QUALITY = 128, 70  # mattes are soft


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["data", "weights"])
    parser.add_argument("--portraits", type=Path, nargs="+", default=[])
    parser.add_argument("--trunk", type=Path, help="EfficientNet-Lite0 weights; default: those installed")
    parser.add_argument("--run", type=Path, help="folder with a state.safetensors")
    parser.add_argument("--to", type=Path, required=True)
    args = parser.parse_args()
    needed = "portraits" if args.what == "data" else "run"
    if not getattr(args, needed):
        parser.error(f"{args.what}: takes --{needed}")
    with exit_on_bad_input():
        pack(args)


def pack(args: argparse.Namespace) -> None:
    """Raises InputError."""
    make_folder(args.to)
    if args.what == "data":
        for index, folder in enumerate(args.portraits):
            pack_portraits(folder, args.to / f"{index:03}")  # sorted as they were given, and so are the codes
        pack_trunk(args.trunk, args.to / "trunk.pth")
        return
    state = load_state(args.run / "state.safetensors", Rates(), torch.device("cpu"))
    if state is None:
        raise InputError(f"{args.run}: no state.safetensors; train first")
    write_weights(args.to, state)


def pack_portraits(source: Path, to: Path) -> None:
    """The same folder with smaller files, under the same names, so that latents stay with their portraits."""
    for sub in ("aligned", "hair"):
        (to / sub).mkdir(parents=True, exist_ok=True)
    for path in aligned_files(source):
        _write(path, "RGB", ALIGNED_PX, to / "aligned" / f"{path.stem}.webp", ALIGNED_QUALITY)
        matte = matte_file(path)
        if matte is not None:
            _write(matte, "L", MATTE_PX, to / "hair" / f"{path.stem}.webp", MATTE_QUALITY)


def pack_trunk(source: Path | None, to: Path) -> None:
    """The weights (None: those installed) without the classifier, in float16. Raises InputError."""
    state = efficientnet_state(source)
    kept = {key: value for key, value in state.items() if not key.startswith(("_conv_head", "_bn1", "_fc"))}
    torch.save({key: value.half() if value.is_floating_point() else value for key, value in kept.items()}, to)


def _write(source: Path, mode: str, most_px: int, to: Path, quality: int) -> None:
    image = open_image(source, mode)
    px = min(most_px, image.width)
    image.resize((px, px), Image.Resampling.LANCZOS).save(to, quality=quality)


if __name__ == "__main__":
    main()
