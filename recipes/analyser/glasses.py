"""Marks the frames of glasses, which the label maps lack: `glasses.py --portraits TRAIN --out FOLDER` proposes.

For each portrait that may wear glasses it writes NAME.png, a mask of the thin dark lines around the eyes, and sheets
(sheet_N.jpg) to look at. Then by hand: move masks that are wrong to FOLDER/wrong (their photos are left out of the
training), delete those of bare faces. What stays becomes class 6 in `train.py parser --frames FOLDER`.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import torch
from photos import Labelled, read_grey, read_split

from stylepairs.datagen.portraits.alignment import apply_transform
from stylepairs.datagen.portraits.landmarks import eyes_and_mouth
from stylepairs.datagen.portraits.portrait import CLASS, Portrait
from stylepairs.datagen.shell.errors import InputError, exit_on_bad_input
from stylepairs.datagen.sketching.face.glasses import frame_score, wears_glasses

NEARLY = -1.5  # frame_score from here on is worth a look
COVERED = [CLASS[name] for name in ("background", "skin", "l_ear", "r_ear", "nose", "hair")]  # what frames may cover
LINE_PX = 11  # of 256: what is thinner and darker than its surroundings is a line
WEAK, STRONG = 0.11, 0.22  # of the skin's lightness: a line, and the line of a frame
LONG, SURE = 0.45, 0.3  # in eye distances: how wide a line must reach, and how much of it must be strong
SHEET_COLUMNS, SHEET_TILES = 9, 54


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--portraits", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    (arguments.out / "wrong").mkdir(parents=True, exist_ok=True)
    tiles = []
    for photo in read_split(arguments.portraits):
        portrait = _portrait(photo)
        if not wears_glasses(portrait) and frame_score(portrait) < NEARLY:
            continue
        mask = frames(photo)
        cv2.imwrite(str(arguments.out / f"{photo.name}.png"), mask.astype(np.uint8) * 255)
        tiles.append(_tile(photo, mask))
    for start in range(0, len(tiles), SHEET_TILES):
        page = tiles[start : start + SHEET_TILES]
        page += [np.zeros_like(page[0])] * (-len(page) % SHEET_COLUMNS)
        rows = [np.hstack(page[i : i + SHEET_COLUMNS]) for i in range(0, len(page), SHEET_COLUMNS)]
        cv2.imwrite(str(arguments.out / f"sheet_{start // SHEET_TILES}.jpg"), np.vstack(rows)[..., ::-1])
    print(f"{arguments.out}: {len(tiles)} proposals; look at the sheets")


def frames(photo: Labelled) -> np.ndarray:
    """Where the aligned crop shows long thin dark lines around the eyes, bool [256,256]."""
    light = cv2.cvtColor(photo.aligned, cv2.COLOR_RGB2LAB)[..., 0]
    right, left, _ = eyes_and_mouth(apply_transform(photo.raw_to_aligned, photo.points68))
    across = left - right
    unit = float(np.hypot(*across))
    ys, xs = np.mgrid[: light.shape[0], : light.shape[1]]
    dx, dy = xs - (right + left)[0] / 2, ys - (right + left)[1] / 2
    a, b = (dx * across[0] + dy * across[1]) / unit**2, (dy * across[0] - dx * across[1]) / unit**2
    place = (np.abs(a) < 1.15) & (b > -0.42) & (b < 0.62) & ~((np.abs(a) < 0.28) & (b > 0.3))
    eyes = np.isin(photo.label, [CLASS["l_eye"], CLASS["r_eye"]]).astype(np.uint8)
    place &= np.isin(photo.label, COVERED) & (cv2.dilate(eyes, np.ones((5, 7), np.uint8)) == 0)
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (LINE_PX, LINE_PX))
    line = cv2.morphologyEx(light, cv2.MORPH_BLACKHAT, disc) / max(float(np.median(light[photo.label == 1])), 1.0)
    count, part, stats, _ = cv2.connectedComponentsWithStats((place & (line > WEAK)).astype(np.uint8), connectivity=8)
    sure = np.bincount(part[line > STRONG], minlength=count)
    kept = (stats[:, cv2.CC_STAT_WIDTH] > LONG * unit) & (sure > SURE * unit)
    kept[0] = False
    return np.asarray(kept[part])


def with_frames(split: list[Labelled], folder: Path) -> list[Labelled]:
    """The split with the masks of `folder` as class 6, without the photos whose masks lie in folder/wrong. Raises
    InputError for a folder that marks none."""
    if not any((folder / place / f"{photo.name}.png").is_file() for photo in split for place in (".", "wrong")):
        raise InputError(f"{folder}: no mask of any of these portraits; make some with glasses.py")
    wrong = {path.stem for path in (folder / "wrong").glob("*.png")}
    return [_marked(photo, folder / f"{photo.name}.png") for photo in split if photo.name not in wrong]


def _marked(photo: Labelled, path: Path) -> Labelled:
    if not path.is_file():
        return photo
    label = photo.label.copy()
    label[read_grey(path) > 127] = CLASS["eye_g"]
    return replace(photo, label=label)


def _portrait(photo: Labelled) -> Portrait:
    image = torch.from_numpy(photo.aligned).permute(2, 0, 1).float() / 127.5 - 1
    points = torch.from_numpy(apply_transform(photo.raw_to_aligned, photo.points68)).float()
    hair = torch.from_numpy(photo.hair)[None].float() / 255
    return Portrait(photo.name, image, torch.from_numpy(photo.label), hair, points, "")


def _tile(photo: Labelled, mask: np.ndarray) -> np.ndarray:
    shown = photo.aligned.copy()
    shown[mask] = (255, 0, 0)
    tile = np.ascontiguousarray(np.vstack([photo.aligned[70:180, 28:228], shown[70:180, 28:228]]))
    cv2.putText(tile, photo.name, (2, 12), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (255, 255, 0), 1)
    return tile


if __name__ == "__main__":
    with exit_on_bad_input():
        main()
