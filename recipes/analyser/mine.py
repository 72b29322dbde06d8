"""Hard negatives: `mine.py --portraits TRAIN --out FOLDER` saves what the shipped analyser wrongly takes for a face.

It looks at training photos, at some with the face painted over, at textures and at --negatives, and cuts out every
false detection with its surroundings (192 px; the middle half is what the landmark network saw). Train on with
`train.py landmarks --mined FOLDER --init ...`.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import torch
from photos import read_split
from samples import CROP_SHARE, CROP_SHIFT, MINED_PX, without_face
from textures import PAINTERS, paint
from train import read_negatives

from stylepairs.datagen.portraits.alignment import square_transform, warp
from stylepairs.datagen.portraits.analysis.analyser import load_analyser
from stylepairs.datagen.portraits.landmarks import eyes_and_mouth
from stylepairs.datagen.shell.errors import exit_on_bad_input


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--portraits", type=Path, required=True)
    parser.add_argument("--negatives", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--photos", type=int, default=697, help="how many training photos to look at")
    parser.add_argument("--min-score", type=float, default=0.15)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.out.mkdir(parents=True, exist_ok=True)
    analyser = load_analyser()
    count = 0
    for image, truth in pictures(arguments.portraits, arguments.negatives, arguments.photos):
        for face in analyser.find(image, arguments.min_score):
            place = eyes_and_mouth(face.points68.astype(np.float64))
            if truth is not None and np.linalg.norm(place - truth) < np.linalg.norm(truth[0] - truth[1]):
                continue
            crop = warp(image, square_transform(place, MINED_PX, 2 * CROP_SHARE, CROP_SHIFT), MINED_PX)
            cv2.imwrite(str(arguments.out / f"{count:05d}.png"), cv2.cvtColor(crop, cv2.COLOR_RGB2BGR))
            count += 1
    print(f"{arguments.out}: {count} false detections")


def pictures(portraits: Path, negatives: Path | None, photos: int) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    """Pictures, each with the eyes and mouth [3,2] of its one face, or None."""
    split = read_split(portraits)
    rng = np.random.default_rng(99)
    for image in read_negatives(negatives):
        yield image, None
        for _ in range(4):
            move = cv2.getRotationMatrix2D(
                (image.shape[1] / 2, image.shape[0] / 2), rng.uniform(0, 360), rng.uniform(0.5, 1.2)
            )
            yield cv2.warpAffine(image, move, image.shape[1::-1], borderMode=cv2.BORDER_REFLECT_101), None
    for i in rng.permutation(len(split))[:photos]:
        yield split[i].raw, eyes_and_mouth(split[i].points68)
        if i % 2:
            yield without_face(split[i], rng, 320), None
        else:
            yield paint(int(rng.choice([160, 320, 500])), rng, str(rng.choice(list(PAINTERS)))), None


if __name__ == "__main__":
    with exit_on_bad_input():
        main()
