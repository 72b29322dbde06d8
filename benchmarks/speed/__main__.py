"""Times the generator, reconstruction, the editor and building pairs, beside other packages' networks.

    pip install --no-deps --target build/peers -r benchmarks/speed/peers.txt     (once; without it, no peers)
    python benchmarks/speed --out out/speed --portraits FOLDER [--docs docs/notes] [--only NAME ...] [--quick]

FOLDER is one that `datagen prepare` or benchmarks/generated_portraits.py wrote; without it, building pairs is left out.
Contestants take turns within each round and ratios are of one round. Results are kept in OUT/speed.json as they are
found, each with its machine, so that --only renews some; OUT/speed.md has the tables, OUT/*.png the plots (which need
the bench extra).
--docs docs/notes puts them into speed.md, speed.json (which benchmarks/scale_model.py reads) and images/speed there.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import generators
import large
import measure
import pages
import report
import stages
import torch
from drawn import random_generator

from stylepairs.datagen.stylegan.checkpoints import load_generator
from stylepairs.kernels.memory import keep_freed_memory

CHANNEL_BASE, SIZE_PX, BATCH = 16384, 256, 4
# What runs in builds, whose processes keep freed memory; the others run as in a program that only imports the package.
KEPT = {"reconstruction_256", "reconstruction_embedded", "by_portraits", "pairs"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--portraits", type=Path)
    parser.add_argument("--docs", type=Path, help="the folder of speed.md; None: leave it alone")
    parser.add_argument(
        "--only",
        nargs="+",
        choices=[*report.TITLES, *report.SWEEPS, "scale_inputs", "none"],
        help="default: all; none: only write tables and plots again",
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="small networks, two rounds: shows that all of it runs")
    options = parser.parse_args()
    if "pairs" in (options.only or ()) and options.portraits is None:
        parser.error("--only pairs: needs --portraits FOLDER, of which pairs are built")
    torch.set_num_threads(options.threads)
    path = options.out / "speed.json"
    options.out.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    for name, case in sorted(cases(options).items(), key=lambda item: item[0] in KEPT):
        if options.only is None or name in options.only:
            print(f"{name} ...", file=sys.stderr, flush=True)
            kept = name in KEPT and keep_freed_memory()  # from here on: there is no way back
            machine = measure.machine() | {"date": datetime.date.today().isoformat()}
            machine |= {"freed memory": "kept" if kept else "returned"}
            machine |= {"quick": "yes"} if options.quick else {}
            results[name] = {"machine": machine, "rows": case()}
            path.write_text(json.dumps(results, indent=1) + "\n")
            print("\n".join(show(name, results[name])), flush=True)
    write(results, options.out, options.docs)
    return 0


def cases(options: argparse.Namespace) -> dict[str, Callable[[], Any]]:
    """What can be measured, by name."""
    quick, rounds = options.quick, 2 if options.quick else options.rounds
    size, few = (64, 2) if quick else (SIZE_PX, max(2, rounds // 2))

    def steps(generator: Any) -> Any:
        found: dict[str, Any] = {}
        for precision in ("fp32", "bf16"):
            found |= stages.reconstruction_step(generator, precision, BATCH, 1 if quick else 5, rounds)
        return found

    chosen: dict[str, Callable[[], Any]] = {
        "forward": lambda: generators.compare("forward", size, CHANNEL_BASE, BATCH, rounds),
        "forward_backward": lambda: generators.compare("forward_backward", size, CHANNEL_BASE, BATCH, rounds),
        "reconstruction_256": lambda: steps(random_generator(size, CHANNEL_BASE)),
        "reconstruction_embedded": lambda: steps(load_generator("embedded")),
        "editor_256": lambda: stages.editor_inference(size, CHANNEL_BASE, 1, rounds),
        "editor_512": lambda: stages.editor_inference(64 if quick else 512, 2 * CHANNEL_BASE, 1, rounds),
        "training": lambda: stages.training_step(rounds, 2 if quick else 6),
        "by_resolution": lambda: generators.sweep_resolution([32, 64] if quick else [64, 128, 256, 512, 1024],
                                                             CHANNEL_BASE, few),
        "by_batch": lambda: generators.sweep_batch(size, [1, 2] if quick else [1, 2, 4, 8], CHANNEL_BASE, few),
        "by_portraits": lambda: stages.sweep_portraits([1, 2] if quick else [1, 2, 4, 8, 16], 2 if quick else 12, few),
    }  # fmt: skip
    chosen["scale_inputs"] = lambda: large.measured(128 if quick else 1024, 2 * CHANNEL_BASE)
    if options.portraits is not None:
        limit, each = (2, 1) if quick else (8, 2)
        chosen["pairs"] = lambda: stages.pairs_per_hour(
            options.portraits, limit, each, [1, 2], 1 if quick else min(rounds, 3)
        )
    return chosen


def show(name: str, result: Any) -> list[str]:
    if name in report.SWEEPS:
        return report.sweep(name, result)
    return report.comparison(name, result) if name in report.TITLES else [json.dumps(result["rows"], indent=1)]


def write(results: dict[str, Any], out: Path, docs: Path | None) -> None:
    """Tables and plots; into the documentation too, where asked for."""
    table = report.markdown(results)
    (out / "speed.md").write_text(table + "\n")
    with pages.plotting():
        report.plots(results, out)
        if docs is not None:
            report.plots(results, docs / "images" / "speed")
    if docs is not None:
        (docs / "speed.json").write_text(json.dumps(results, indent=1) + "\n")
        pages.put_into(docs / "speed.md", table)


if __name__ == "__main__":
    sys.exit(main())
