"""Ships trained networks: `export.py --run parser=DIR --figures figures.json --out datagen/weights` writes
analyser_NAME.safetensors.

The files carry what they are: network, configuration, how they were trained, and the figures that evaluate.py printed.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from safetensors.torch import load_file
from training import save_average

from stylepairs.datagen.portraits.analysis.analyser import NETWORKS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", action="append", required=True, help="NETWORK=DIR of train.py; repeat for several")
    parser.add_argument("--figures", type=Path, help="JSON that evaluate.py wrote")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    figures = json.loads(arguments.figures.read_text()) if arguments.figures else {}
    arguments.out.mkdir(parents=True, exist_ok=True)
    for run in arguments.run:
        name, folder = run.split("=", 1)
        net = NETWORKS[name]()
        net.load_state_dict(
            {k: v.float() for k, v in load_file(Path(folder) / "ema.safetensors").items()}, strict=False
        )
        log = [json.loads(line) for line in (Path(folder) / "log.jsonl").read_text().splitlines()]
        metadata = {
            "network": name,
            "config": "{}",
            "trained": f"recipes/analyser/train.py, {log[-1]['step']} steps, moving average, portraits of docs/limits.md",
            "last_losses": json.dumps(log[-1]),
            "figures": json.dumps(figures),
        }
        path = arguments.out / f"analyser_{name}.safetensors"
        save_average(net, path, metadata)
        print(f"{path}: {path.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
