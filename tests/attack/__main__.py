"""`python -m tests.attack --tries 10000 --seed 0`: hostile inputs to the commands, then kills; prints what failed.

Every try must end with exit code 0 or 2, with one line for the latter, within 2 GB and 20 s of processor, and nothing
outside its folder touched. A try is told apart by its group and number: `--only images:17` repeats one.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from attack.commands import command_of, preload
from attack.groups import GROUPS
from attack.kills import killed_and_resumed, made_apart
from attack.trial import attempted

BATCH_COMMANDS = {"prepare", "edit", "build", "augment", "train"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tries", type=int, default=10_000, help="inputs in all")
    parser.add_argument("--kills", type=int, default=0, help="SIGKILLs in all, over prepare, build, augment and train")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start", type=int, default=0, help="the number of the first try: to go on in portions")
    parser.add_argument("--groups", default=",".join(GROUPS))
    parser.add_argument("--only", help="one try again, as GROUP:NUMBER; its texts are shown")
    options = parser.parse_args()
    faults = attack(options.tries, options.seed, options.start, options.groups.split(","), options.only)
    if options.kills:
        faults += killed_and_resumed(options.kills, options.seed)
    sys.exit(1 if faults else 0)


def attack(tries: int, seed: int, start: int, groups: list[str], only: str | None = None) -> list[str]:
    """Make the tries; prints and returns one line for each that failed."""
    faults, codes, began = [], Counter(), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="attack-") as temporary:
        seeds, here = Path(temporary) / "seeds", Path(temporary) / "tries"
        here.mkdir()
        made_apart(seeds)
        preload()
        chosen = [(groups[number % len(groups)], number) for number in range(start, start + tries)]
        if only:
            chosen = [(only.partition(":")[0], int(only.partition(":")[2]))]
        for group, number in chosen:
            outcome, fault = one_try(group, number, seed, seeds, here, shows=bool(only))
            codes[group, outcome] += 1
            if fault:
                faults.append(f"{group}:{number} {fault}")
                print(faults[-1], flush=True)
    table = "; ".join(f"{group} {code}: {count}" for (group, code), count in sorted(codes.items()))
    print(f"{len(chosen)} tries, seed {seed}, {len(faults)} faults, {time.monotonic() - began:.0f} s ({table})")
    return faults


def one_try(group: str, number: int, seed: int, seeds: Path, here: Path, shows: bool = False) -> tuple[int, str | None]:
    """Its exit code, and what is wrong with it."""
    rng, folder = random.Random(f"{seed} {group} {number}"), here / f"{number}"
    folder.mkdir()
    arguments = GROUPS[group](rng, seeds, folder)
    listed = sorted(path.name for path in here.iterdir())
    trial = attempted(command_of(arguments), folder)
    fault = trial.fault(batch=arguments[1] in BATCH_COMMANDS)
    texts = {f"{number}.out", f"{number}.err"}
    if fault is None and {path.name for path in here.iterdir()} - texts != set(listed):
        fault = "a file outside of its folder"
    if shows:
        print(arguments, trial, (here / f"{number}.out").read_text(errors="replace"), sep="\n")
    for path in [folder, *(here / name for name in texts)]:
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    return trial.code, None if fault is None else f"{fault} ({' '.join(arguments)[:300]})"


if __name__ == "__main__":
    main()
