"""Makes the README's picture: pairs of generated people (nobody real), through the same commands as everything else.

People are drawn from the embedded generator with truncation, saved as photos, prepared and built into pairs. Seeds are
chosen by eye when the generator changes.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path

import numpy as np
from demo import call
from PIL import Image

from stylepairs.datagen.pairs.record import Pair
from stylepairs.datagen.pairs.shards import read_pairs

COLORS = ("black", "auburn", "blond", "blue")
# Truncation (Karras et al. 2019): nearer to the mean face there is less variety and less that went wrong.
TRUNCATION_PSI = 0.7
CELL_PX = 160
GAP_PX = 6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out/pictures"), help="working folder")
    parser.add_argument("--picture", type=Path, default=Path("docs/images/pairs.png"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[43, 9, 39, 0], help="a person each")
    options = parser.parse_args()
    photos, portraits, pairs = (options.out / name for name in ("photos", "portraits", "pairs"))
    draw_people(photos, options.seeds)
    for command in (
        ["datagen", "prepare", str(photos), "--out", str(portraits)],
        ["datagen", "build", "hair_color", "--portraits", str(portraits), "--out", str(pairs)]
        + ["--set", f"color=[{','.join(COLORS)}]", "--set", "pairs_per_portrait=all", "--shard-size", "8"],
    ):
        if call(command):
            raise SystemExit(1)
    options.picture.parent.mkdir(parents=True, exist_ok=True)
    sheet(list(read_pairs(pairs, accepted_only=False, parts=("before", "after")))).save(options.picture, optimize=True)
    print(options.picture)


def draw_people(folder: Path, seeds: list[int]) -> None:
    """Save a generated face for each seed as a PNG photo, twice as large as it was made."""
    import torch

    from stylepairs.datagen.images.files import to_uint8
    from stylepairs.datagen.stylegan.checkpoints import load_generator

    folder.mkdir(parents=True, exist_ok=True)
    generator = load_generator("embedded")
    z = torch.cat([torch.randn(1, generator.config.z_dim, generator=torch.Generator().manual_seed(s)) for s in seeds])
    with torch.no_grad():
        ws = generator.mapping(z, truncation_psi=TRUNCATION_PSI)
        images = generator.synthesis(ws, noise_mode="none")
    for i, image in enumerate(images):
        person = Image.fromarray(to_uint8(image.clamp(-1, 1)))
        person.resize((2 * person.width, 2 * person.height), Image.Resampling.BICUBIC).save(
            folder / f"person_{i:03d}.png"
        )


def sheet(pairs: list[Pair]) -> Image.Image:
    """A row for each person: before, then after in every colour."""
    people: dict[str, list[Pair]] = defaultdict(list)
    for pair in pairs:
        people[pair.record.portrait].append(pair)
    step = CELL_PX + GAP_PX
    picture = Image.new("RGB", (step * (len(COLORS) + 1) - GAP_PX, step * len(people) - GAP_PX), "white")
    for row, found in enumerate(people.values()):
        by_color = {pair.record.params["color"]: pair for pair in found}
        cells = [found[0].before, *(by_color[color].after for color in COLORS)]
        for column, cell in enumerate(cells):
            picture.paste(enlarged(cell), (column * step, row * step))
    return picture


def enlarged(image: np.ndarray | None) -> Image.Image:
    """[H,W,3] uint8, or None for a pair that could not be made, as a cell of the picture."""
    if image is None:
        return Image.new("RGB", (CELL_PX, CELL_PX), "lightgrey")
    return Image.fromarray(image).resize((CELL_PX, CELL_PX), Image.Resampling.LANCZOS)


if __name__ == "__main__":
    main()
