"""Figures of the embedded analyser by group: `groups.py --portraits VAL --groups groups.csv` prints a table.

groups.csv names each photo and, by eye, what it shows: skin (light, medium, dark), age (child, adult, old), sex (as it
seems; empty for small children) and hair (short, long, curly, dyed, bald).
"""

from __future__ import annotations

import argparse
import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from evaluate import MIN_SCORE, eye_errors, iou
from photos import Labelled, read_split

from stylepairs.datagen.portraits.analysis.analyser import FaceAnalyser, load_analyser
from stylepairs.datagen.portraits.portrait import CLASS
from stylepairs.datagen.shell.errors import exit_on_bad_input


@dataclass(frozen=True)
class Served:
    """Eye errors of one photo in eye distances (none: not found), and where hair was found and is."""

    eye: list[float]
    hair: tuple[np.ndarray, np.ndarray]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--portraits", type=Path, required=True, help="a split that was not trained on")
    parser.add_argument("--groups", type=Path, default=Path(__file__).with_name("groups.csv"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    analyser = load_analyser()
    served = {photo.name: serve(analyser, photo) for photo in read_split(arguments.portraits)}
    with arguments.groups.open() as stream:
        rows = [row for row in csv.DictReader(stream) if row["name"] in served]
    print("| group | photos | found | eyes, median error | hair, IoU |\n|---|---|---|---|---|")
    print(_line("all", list(served.values())))
    for kind in ("skin", "age", "sex", "hair"):
        for value in dict.fromkeys(row[kind] for row in rows if row[kind]):
            print(_line(f"{kind}: {value}", [served[row["name"]] for row in rows if row[kind] == value]))


def serve(analyser: FaceAnalyser, photo: Labelled) -> Served:
    """Finds the photo's face, and parses its given aligned crop."""
    label, _ = analyser.parse(photo.aligned[None])
    hair = label[0].numpy() == CLASS["hair"], photo.label == CLASS["hair"]
    return Served(eye_errors(analyser.find(photo.raw, MIN_SCORE), photo.points68), hair)


def _line(name: str, served: list[Served]) -> str:
    found = sum(bool(one.eye) for one in served)
    eye = 100 * float(np.median([error for one in served for error in one.eye] or [np.nan]))
    return f"| {name} | {len(served)} | {found} | {eye:.1f} % | {iou([one.hair for one in served]):.2f} |"


if __name__ == "__main__":
    with exit_on_bad_input():
        main()
