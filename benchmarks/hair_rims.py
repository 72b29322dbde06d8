"""How near editors of hair colour come to the edit that the hair's own matte gives, at the hair's rim and elsewhere.

python benchmarks/hair_rims.py PORTRAITS EDITOR... [--limit 40] [--sheet rims.png]

Of each portrait one colour, in turn: medians over the portraits. mask: difference of the editor's mask and the matte,
as a share of the hair. rim, inside: CIEDE2000 from the edit computed with the matte (`model.tints`), where the matte is
soft and 2 px around, and where it is hair alone. covered: share of the hair that the mask holds. Editors of other sides
see the portrait at theirs, and their maps are enlarged, as on a photo.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator
from contextlib import suppress
from itertools import cycle, islice
from pathlib import Path

import torch
import torch.nn.functional as F

from stylepairs.datagen.features import hair_color
from stylepairs.datagen.images.colors import delta_e_2000, srgb_to_lab
from stylepairs.datagen.images.files import to_uint8, write_png
from stylepairs.datagen.images.filters import grown, mean_of
from stylepairs.datagen.portraits.folders import load_portraits
from stylepairs.datagen.portraits.light import light_of
from stylepairs.datagen.portraits.portrait import Portrait
from stylepairs.datagen.portraits.sketch import SketchRefused
from stylepairs.datagen.shell.errors import exit_on_bad_input
from stylepairs.i2i.models.checkpoints import load_model
from stylepairs.i2i.models.conditions import style_in_light, style_of
from stylepairs.i2i.models.glean import Asked, tint
from stylepairs.i2i.models.prepared_glean import Network, prepare

SIDE_PX = 256
COLORS = ("blond", "auburn", "black", "pink")
FIGURES = ("mask", "rim", "inside", "covered")
SHOWN = 8  # rows of the sheet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("portraits", type=Path)
    parser.add_argument("editors", nargs="+", help="as for `i2i edit`")
    parser.add_argument("--limit", type=int, default=40, help="portraits of 256 px or more, by name")
    parser.add_argument("--sheet", type=Path, help="PNG: portrait, computed edit, each editor's")
    args = parser.parse_args()
    editors = {name: prepare(load_model(name, "hair_color")[0]) for name in args.editors}
    figures: dict[str, list[dict[str, float]]] = {name: [] for name in editors}
    rows = []
    for (portrait, matte), color in zip(islice(with_hair(args.portraits), args.limit), cycle(COLORS), strict=False):
        asked = wanted(portrait, color)
        computed = tinted(asked, matte)
        edits = {name: edited(editor, asked) for name, editor in editors.items()}
        for name, (mask, image) in edits.items():
            figures[name].append(compared(mask, image, matte, computed))
        rows.append(torch.cat([portrait.image, computed, *(image for _, image in edits.values())], dim=2))
    for name, found in figures.items():
        medians = (f"{figure} {statistics.median(row[figure] for row in found):.3f}" for figure in FIGURES)
        print(f"{name}: {len(found)} portraits  " + "  ".join(medians))
    if args.sheet:
        write_png(args.sheet, to_uint8(torch.cat(rows[:: max(1, len(rows) // SHOWN)][:SHOWN], dim=1)))


def with_hair(folder: Path) -> Iterator[tuple[Portrait, torch.Tensor]]:
    """The portraits of 256 px or more whose hair can be coloured, at that side, and their hair's matte [1,H,W]."""
    for portrait in (file.load() for file in load_portraits(folder)):
        if portrait.size_px >= SIDE_PX:
            portrait = portrait.resized(SIDE_PX)
            with suppress(SketchRefused):
                yield portrait, hair_color.sketch(portrait, hair_color.Params.model_validate({})).edit_mask


def wanted(portrait: Portrait, color: str) -> Asked:
    """What an editor is told of a portrait that is to have this colour all over its hair."""
    style = style_in_light("color", style_of("color", {"color": color}, None, "hair_color"), light_of(portrait))
    return Asked(portrait.image[None], torch.ones_like(portrait.image[None, :1]), torch.ones(1), style[None])


@torch.no_grad()
def tinted(asked: Asked, matte: torch.Tensor) -> torch.Tensor:
    """The edit [3,H,W] that an editor would make whose mask is the matte [1,H,W]."""
    return shown(asked.photo, matte[None], *tint(asked.photo, torch.ones_like(asked.region), matte[None], asked))


@torch.no_grad()
def edited(editor: Network, asked: Asked) -> tuple[torch.Tensor, torch.Tensor]:
    """An editor's mask [1,H,W] and edit [3,H,W], by maps of its own side."""
    side, photo = editor.size_px, asked.photo
    seen = F.interpolate(photo, size=(side, side), mode="area")
    edit = editor(seen, torch.ones_like(seen[:, :1]), asked.degree, asked.style)
    mask, gain, bias = (
        F.interpolate(maps, size=photo.shape[2:], mode="bilinear") for maps in (edit.mask, edit.gain, edit.bias)
    )
    return mask[0], shown(photo, mask, gain, bias)


def shown(photo: torch.Tensor, mask: torch.Tensor, gain: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """What an edit's maps make of a photo, a batch of one [3,H,W]: `Edit.output` of what moves nothing."""
    return (photo + mask * (gain * (photo + 1) + bias))[0].clamp(-1, 1)


def compared(mask: torch.Tensor, image: torch.Tensor, matte: torch.Tensor, computed: torch.Tensor) -> dict[str, float]:
    """The figures of one edit: see the file's docstring."""
    apart = delta_e_2000(srgb_to_lab(image), srgb_to_lab(computed))[None]
    hair, touched = (matte > 0.98).float(), (matte > 0.02).float()
    rim = grown(touched, 2) + grown(-hair, 2)  # less the hair that is further from it
    found = {
        "mask": (mask - matte).abs().sum() / matte.sum(),
        "rim": mean_of(apart, rim),
        "inside": mean_of(apart, hair),
        "covered": mean_of(mask, matte),
    }
    return {name: float(value) for name, value in found.items()}


if __name__ == "__main__":
    with exit_on_bad_input():
        main()
