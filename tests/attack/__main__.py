"""`python -m tests.attack --tries 10000 --seed 0`: hostile inputs to the commands, then kills; prints what failed.

Every try must end with exit code 0 or 2, with one line for the latter, within 2 GB and 20 s of processor, and nothing
outside its folder touched. A try is told apart by its group and number: `--only images:17` repeats one.
"""

from __future__ import annotations

import argparse
import random
import re
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from attack.commands import command_of, preload
from attack.groups import GROUPS
from attack.kills import killed_and_resumed, made_apart
from attack.trial import Trial, attempted, attempted_together

# Tries that one process makes, one after the other.
TOGETHER = 70
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
    preload()
    with tempfile.TemporaryDirectory(prefix="attack-") as temporary:
        seeds = Path(temporary) / "seeds"
        made_apart(seeds)
        faults = attack(seeds, options.tries, options.seed, options.start, options.groups.split(","), options.only)
        if options.kills:
            faults += killed_and_resumed(seeds, options.kills, options.seed)
    sys.exit(1 if faults else 0)


def attack(seeds: Path, tries: int, seed: int, start: int, groups: list[str], only: str | None = None) -> list[str]:
    """Make the tries on whole inputs; prints and returns one line for each that failed."""
    faults, codes, seconds, began = [], Counter(), Counter(), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="attack-") as temporary:
        here = Path(temporary) / "tries"
        here.mkdir()
        chosen = [
            Try(groups[number % len(groups)], number, seed, seeds, here) for number in range(start, start + tries)
        ]
        if only:
            group, _, number = only.partition(":")
            chosen = [Try(group, int(number), seed, seeds, here)]
        for first in range(0, len(chosen), TOGETHER):
            for each, (trial, fault) in made(chosen[first : first + TOGETHER], shows=bool(only)):
                codes[each.group, trial.code] += 1
                seconds[each.group] += trial.seconds
                if fault:
                    faults.append(f"{each.group}:{each.number} {fault}")
                    print(faults[-1], flush=True)
    table = "; ".join(f"{group} {code}: {count}" for (group, code), count in sorted(codes.items()))
    print("processor: " + ", ".join(f"{group} {spent:.0f} s" for group, spent in sorted(seconds.items())))
    print(f"{len(chosen)} tries, seed {seed}, {len(faults)} faults, {time.monotonic() - began:.0f} s ({table})")
    return faults


@dataclass(frozen=True)
class Try:
    """One damaged input, the same for the same group, number and seed."""

    group: str
    number: int
    seed: int
    seeds: Path
    here: Path

    @property
    def folder(self) -> Path:
        return self.here / f"{self.number}"

    def written(self) -> list[str]:
        """The command on it, which is written anew."""
        self.remove()
        self.folder.mkdir()
        return GROUPS[self.group](random.Random(f"{self.seed} {self.group} {self.number}"), self.seeds, self.folder)

    def remove(self) -> None:
        for path in self._own:
            _remove(path)

    def remove_strays(self) -> None:
        for name in self.strays():
            _remove(self.here / name)

    def strays(self) -> list[str]:
        """What lies beside the folders of tries."""
        return [path.name for path in self.here.iterdir() if not re.fullmatch(r"[0-9]+(\.out|\.err)?", path.name)]

    @property
    def _own(self) -> list[Path]:
        return [self.folder, *(self.here / f"{self.number}.{kind}" for kind in ("out", "err"))]

    def alone(self, shows: bool = False) -> tuple[Trial, str | None]:
        """What came of it in a process of its own, and what is wrong with it."""
        arguments = self.written()
        trial = attempted(command_of(arguments), self.folder)
        fault = trial.fault(batch=arguments[1] in BATCH_COMMANDS)
        if fault is None and self.strays():
            fault = "a file outside of its folder"
        if shows:
            print(arguments, trial, self.folder.with_name(f"{self.number}.out").read_text(errors="replace"), sep="\n")
        self.remove_strays()
        self.remove()
        return trial, None if fault is None else f"{fault} ({' '.join(arguments)[:300]})"


def _remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


Outcome = tuple[Try, tuple[Trial, str | None]]


def made(tries: list[Try], shows: bool = False) -> Iterator[Outcome]:
    """The outcome of each try: together in one process, and what fails there alone."""
    commands = {each: each.written() for each in tries}
    together = [] if shows else list(tries)
    trials: dict[Try, Trial] = {}
    while rest := [each for each in together if each not in trials]:
        actions = [(command_of(commands[each]), each.folder) for each in rest]
        found = attempted_together(actions, rest[0].here / f"{rest[0].number}")
        trials.update(zip(rest, found, strict=False))
        if len(found) < len(rest):  # ended by the one that it had come to
            together.remove(rest[len(found)])
    clean = not tries[0].strays()
    for each in tries:
        trial = trials.get(each)
        if clean and trial is not None and trial.fault(batch=commands[each][1] in BATCH_COMMANDS) is None:
            each.remove()
            yield each, (trial, None)
    tries[0].remove_strays()
    for each in tries:
        if each.folder.exists():
            yield each, each.alone(shows)


if __name__ == "__main__":
    main()
