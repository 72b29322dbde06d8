"""Ships trained networks: `export.py --run parser=DIR --figures figures.json --out datagen/weights` writes
analyser_NAME.safetensors.

The files carry what they are: network, configuration, how they were trained, and the figures that evaluate.py printed.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from training import fill, read_weights, save_average

from stylepairs.datagen.portraits.analysis.analyser import NETWORKS
from stylepairs.datagen.shell.errors import InputError, exit_on_bad_input

Weights = dict[str, torch.Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", action="append", required=True, help="NETWORK=DIR of train.py; repeat for several")
    parser.add_argument("--figures", type=Path, help="JSON that evaluate.py wrote")
    parser.add_argument("--keep", type=float, default=0.0, help="share of the weights there that stays (see average)")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    figures = json.loads(arguments.figures.read_text()) if arguments.figures else {}
    arguments.out.mkdir(parents=True, exist_ok=True)
    for run in arguments.run:
        name, _, folder = run.partition("=")
        if not folder or name not in NETWORKS:
            raise InputError(f"--run {name}=...: must be NETWORK=DIR, NETWORK one of {', '.join(NETWORKS)}")
        if not all((Path(folder) / file).is_file() for file in ("ema.safetensors", "log.jsonl")):
            raise InputError(f"{folder}: no ema.safetensors or log.jsonl; train first")
        net = NETWORKS[name]()
        path = arguments.out / f"analyser_{name}.safetensors"
        weights = read_weights(Path(folder) / "ema.safetensors")
        fill(net, weights, folder)
        if arguments.keep:
            fill(net, average(weights, read_weights(path), arguments.keep), str(path))
        log = [json.loads(line) for line in (Path(folder) / "log.jsonl").read_text().splitlines()]
        metadata = {
            "network": name,
            "config": "{}",
            "trained": f"recipes/analyser/train.py, {log[-1]['step']} steps, portraits of docs/limits.md",
            "last_losses": json.dumps(log[-1]),
            "figures": json.dumps(figures),
        }
        save_average(net, path, metadata)
        print(f"{path}: {path.stat().st_size / 1e6:.2f} MB")


def average(trained: Weights, shipped: Weights, keep: float) -> Weights:
    """Weights between those trained on and those they started from, which keep more of what these knew (Wortsman et
    al., 2022, "Robust fine-tuning of zero-shot models").
    """
    return {key: keep * shipped[key].float() + (1 - keep) * value.float() for key, value in trained.items()}


if __name__ == "__main__":
    with exit_on_bad_input():
        main()
