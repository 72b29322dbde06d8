"""Trains one network of the embedded face analyser: `python recipes/analyser/train.py parser --portraits DIR --out
DIR`.

--portraits is a split with raw/, aligned/, label/, hair/, landmarks.npz and index.jsonl. Stopped runs resume where
they were.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from glasses import with_frames
from photos import Labelled, read_rgb, read_split
from samples import detector_sample, landmark_sample, parser_sample
from torch import nn
from training import Batch, fill, read_weights, to_input, train

from stylepairs.datagen.portraits.analysis.networks import PARSER_BLOCK_PX, DetectorNet, LandmarkNet, ParserNet
from stylepairs.datagen.portraits.landmarks import NOSE_TIP, eyes_and_mouth
from stylepairs.datagen.portraits.portrait import CLASS
from stylepairs.datagen.shell.errors import InputError, exit_on_bad_input

SETTINGS = {  # steps, batch, learning rate
    "detector": (3000, 48, 2e-3),
    "landmarks": (4000, 48, 2e-3),
    "parser": (4000, 24, 2e-3),
}
TURNED, DARK = 0.1, 0.4  # of an eye distance, and grey in [0,1]: beyond these a photo counts twice
SMALL_CLASSES = (2, 3, 4, 5, 6, 7, 8, 11, 12, 13)  # thin parts, which a plain mean over pixels would give up


def detector_loss(net: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
    """Penalty-reduced focal loss of the centres (Zhou et al., eq. 1) and L1 of the points where a face is."""
    heat, points = net(to_input(batch["image"]))
    logit, target = heat.float()[:, 0], batch["heat"]
    p = torch.sigmoid(logit)
    hit, centre = (1 - p) ** 2 * F.logsigmoid(logit), target > 0.99
    miss = (1 - target) ** 4 * p**2 * F.logsigmoid(-logit) * ~batch["ignored"]
    count = centre.sum().clamp(min=1)
    away = (points.float().permute(0, 2, 3, 1) - batch["points"]).abs().mean(-1) * batch["weight"]
    return {
        "heat": -(hit * centre + miss * ~centre).sum() / count,
        "points": 5 * away.sum() / batch["weight"].sum().clamp(min=1),
    }


def landmark_loss(net: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
    """Mean distance of the points (in pixels, of 96), a pull of each map towards a blob there, and the face score."""
    points, score, heat = net(to_input(batch["image"]))
    face = batch["face"] > 0
    wanted = batch["points"][face]
    distance = F.smooth_l1_loss(points[face], wanted, beta=1.0)
    cells = (torch.arange(heat.shape[-1], device=heat.device) + 0.5) * 4 - 0.5
    bump = (
        torch.exp(-((cells - wanted[..., :1]) ** 2) / 32)[..., None, :]
        * torch.exp(-((cells - wanted[..., 1:]) ** 2) / 32)[..., :, None]
    )
    bump = bump / bump.sum((-1, -2), keepdim=True).clamp(min=1e-6)
    shape = -(bump * torch.log(heat[face] + 1e-8)).sum((-1, -2)).mean()
    return {
        "distance": distance,
        "shape": 0.1 * shape,
        "score": F.binary_cross_entropy_with_logits(score, batch["face"]),
    }


def parser_loss(net: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
    """Cross entropy and soft Dice of the classes, binary cross entropy of the matte.

    Counted on two of the sixteen pixels of each 4x4 block, drawn anew each step: cheaper, the same in the mean.
    """
    chosen = torch.randperm(PARSER_BLOCK_PX**2, device=batch["image"].device)[:2]
    out = net(to_input(batch["image"]), chosen=chosen).transpose(1, 2).flatten(0, 1)
    label = _blocks(batch["label"])[:, chosen].flatten(0, 1).long()
    matte = _blocks(batch["hair"])[:, chosen].flatten(0, 1).float() / 255
    logits, hair = out[:, :-1], out[:, -1]
    weights = torch.ones(logits.shape[1], device=logits.device)
    weights[list(SMALL_CLASSES)] = 2.0
    log_chance = logits.log_softmax(1)
    entropy = F.nll_loss(log_chance, label, weight=weights)
    chance, truth = log_chance.exp(), torch.zeros_like(logits).scatter_(1, label[:, None], 1.0)
    both, total = (chance * truth).sum((0, 2, 3)), (chance + truth).sum((0, 2, 3))
    seen = truth.sum((0, 2, 3)) > 0
    dice = (1 - (2 * both + 1) / (total + 1))[seen].mean()
    return {"entropy": entropy, "dice": dice, "matte": F.binary_cross_entropy_with_logits(hair, matte)}


def _blocks(plane: torch.Tensor) -> torch.Tensor:
    """[N,H,W] -> [N,16,H/4,W/4]: the pixels of each block, row by row."""
    b = PARSER_BLOCK_PX
    n, h, w = plane.shape
    return plane.view(n, h // b, b, w // b, b).permute(0, 2, 4, 1, 3).reshape(n, b * b, h // b, w // b)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("network", choices=list(SETTINGS))
    parser.add_argument("--portraits", type=Path, nargs="+", required=True, help="training splits")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--negatives", type=Path, help="folder of pictures without faces (detector and landmarks)")
    parser.add_argument("--frames", type=Path, help="folder that glasses.py wrote, looked through (parser)")
    parser.add_argument("--without", type=Path, help="names of portraits to leave out, one a line (wrong_labels.txt)")
    parser.add_argument("--mined", type=Path, help="folder that mine.py wrote (landmarks)")
    parser.add_argument("--steps", type=positive)
    parser.add_argument("--batch", type=positive)
    parser.add_argument("--learning-rate", type=float)
    parser.add_argument("--init", type=Path, help="start from these weights (an earlier stage's ema.safetensors)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    steps, batch, rate = SETTINGS[arguments.network]
    left_out = read_names(arguments.without) if arguments.without else set()
    whole = [photo for folder in arguments.portraits for photo in read_split(folder) if photo.name not in left_out]
    split = balanced(with_frames(whole, arguments.frames) if arguments.frames else whole)
    hard, mined = read_negatives(arguments.negatives), read_negatives(arguments.mined)
    build, make, loss = {
        "detector": (DetectorNet, partial(detector_sample, split, hard), detector_loss),
        "landmarks": (LandmarkNet, partial(landmark_sample, split, hard, mined), landmark_loss),
        "parser": (ParserNet, partial(parser_sample, split), parser_loss),
    }[arguments.network]
    net = build()
    if arguments.init:
        fill(net, read_weights(arguments.init), str(arguments.init))
    amounts = arguments.steps or steps, arguments.batch or batch, arguments.learning_rate or rate
    train(net, make, loss, arguments.out, *amounts, arguments.seed)


def positive(text: str) -> int:
    if not (text.isdecimal() and int(text)):
        raise argparse.ArgumentTypeError(f"{text}: must be a whole number above 0")
    return int(text)


def balanced(split: list[Labelled]) -> list[Labelled]:
    """The split with its rare kinds counted twice: heads turned away, and faces in dark skin or poor light."""
    return split + [photo for photo in split if _turned(photo) > TURNED or _lightness(photo) < DARK]


def _turned(photo: Labelled) -> float:
    """How far the tip of the nose lies beside the middle of the eyes, in eye distances: 0 from the front."""
    right, left, _ = eyes_and_mouth(photo.points68)
    across = left - right
    return float(abs((photo.points68[NOSE_TIP] - (right + left) / 2) @ across / (across @ across)))


def _lightness(photo: Labelled) -> float:
    """The mean of the skin's grey in [0,1]."""
    skin = photo.aligned[photo.label == CLASS["skin"]]
    return float(skin.mean()) / 255 if len(skin) else 1.0


def read_names(path: Path) -> set[str]:
    """The names in a file, one a line; what cannot be read ends the program with a line."""
    try:
        return set(path.read_text().split())
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: no names can be read ({error})") from error


def read_negatives(folder: Path | None) -> list[np.ndarray]:
    """The pictures of a folder, RGB; None gives none. Raises InputError where it has none."""
    if folder is None:
        return []
    files = sorted(p for p in folder.glob("*") if p.suffix.lower() in {".jpg", ".jpeg", ".png"})
    if not files:
        raise InputError(f"{folder}: no pictures in it (.jpg, .jpeg, .png)")
    return [read_rgb(p) for p in files]


if __name__ == "__main__":
    with exit_on_bad_input():
        main()
