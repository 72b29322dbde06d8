"""The whole path in minutes: photos -> portraits -> pairs -> trained model -> edited photos -> one HTML page.

Runs the same commands as a user would, shows each, and keeps what is finished: run it again after an interruption and
it goes on. Pairs are made of recipes/photos/train only; the edits are shown on recipes/photos/heldout.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import report
from PIL import Image

PHOTOS = Path(__file__).parents[1] / "photos"
RECIPE = "hair_color"
# Every portrait is made in each of these colours.
PAIR_COLORS = ("blond", "auburn")
# What is edited in the end: held-out photos, and three of them side by side as a group photo.
EDITED = ("portrait_041", "portrait_042", "portrait_045", "portrait_047", "portrait_052")
GROUP = ("portrait_044", "portrait_053", "portrait_055")
# Pairs a shard: small, so that the processors share them out and little is lost on an interruption.
SHARD_SIZE = "10"
EDIT_COLORS = ("blond", "auburn", "black", "blue")
# What the shipped models of the other features show on the same photos: a name for folder and page, and the settings.
SHIPPED = {
    "full fringe": ("embedded:bangs", "style=full"),
    "swept fringe": ("embedded:bangs", "style=side_left"),
    "lower hairline": ("embedded:hairline", "shift=-0.3"),
    "fluffier": ("embedded:fluffiness", "volume=0.12"),
    "smile": ("embedded:smile", "smile=0.8"),
}
TRAINING = (
    "init=embedded",
    "learning_rate=0.0002",
    "warmup_steps=5",
    "log_every_steps=1",
    "checkpoint_every_steps=20",
    "sample_every_steps=1000",
)


@dataclass(frozen=True)
class Stage:
    """A step of the demo. planned_s: seconds on two processor cores, for the estimate of what is left. may_refuse:
    whether it goes on where a command has left out a photo (exit code 2)."""

    name: str
    title: str
    planned_s: float
    commands: list[list[str]]
    may_refuse: bool = False


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out/demo"), help="folder for everything the demo makes")
    parser.add_argument("--portraits", type=int, default=10, help="how many portraits make pairs")
    parser.add_argument("--steps", type=int, default=60, help="training steps")
    options = parser.parse_args()
    try:
        return run(options.out, options.portraits, options.steps)
    except KeyboardInterrupt:
        print("\nStopped. Run the same command again to go on from here.", file=sys.stderr)
        return 130


def run(out: Path, portrait_count: int, steps: int) -> int:
    started = time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    make_group_photo(out / "group.png")
    stages = list(plan(out, portrait_count, steps))
    pace = 1.0
    for i, stage in enumerate(stages):
        so_far = stages[: i + 1]
        left_s = pace * sum(s.planned_s for n, s in enumerate(stages) if n >= i and not is_done(out, stages[: n + 1]))
        print(f"\n[{i + 1}/{len(stages) + 1}] {stage.title}", flush=True)
        if is_done(out, so_far):
            print("    done before", flush=True)
            continue
        print(f"    about {duration(pace * stage.planned_s)}, {duration(left_s)} left in all", flush=True)
        stage_started = time.monotonic()
        for command in stage.commands:
            code = call(command)
            if code and not (code == 2 and stage.may_refuse):
                print(f"The demo stops here: the command above ended with code {code}.", file=sys.stderr)
                return code
        taken_s = time.monotonic() - stage_started
        mark_done(out, so_far, taken_s)
        pace = taken_s / stage.planned_s if i == 0 else 0.5 * (pace + taken_s / stage.planned_s)
    print(f"\n[{len(stages) + 1}/{len(stages) + 1}] Drawing the page", flush=True)
    report.write(out, PHOTOS, EDITED, EDIT_COLORS, tuple(SHIPPED))
    print(f"\n{out / 'index.html'} is ready ({duration(time.monotonic() - started)}).")
    return 0


def plan(out: Path, portrait_count: int, steps: int) -> Iterator[Stage]:
    portraits, pairs, trained = str(out / "portraits"), str(out / "pairs"), str(out / "run")
    yield Stage(
        "prepare",
        "Finding the faces, aligning and parsing them",
        30,
        [["datagen", "prepare", str(PHOTOS / "train"), "--out", portraits]],
    )
    colors = ",".join(PAIR_COLORS)
    yield Stage(
        "build",
        f"Making before/after pairs: {portrait_count} portraits, {' and '.join(PAIR_COLORS)} hair",
        240,
        [
            ["datagen", "build", RECIPE, "--portraits", portraits, "--out", pairs]
            + [
                "--limit",
                str(portrait_count),
                "--set",
                f"color=[{colors}]",
                "--set",
                "pairs_per_portrait=all",
                "--shard-size",
                SHARD_SIZE,
            ],
            ["datagen", "inspect", pairs, "--out", str(out / "pairs.html")],
        ],
    )
    yield Stage(
        "train",
        f"Training the model on them for {steps} steps, from the shipped weights",
        120,
        [
            ["i2i", "train", RECIPE, "--pairs", pairs, "--out", trained]
            + [part for setting in (*TRAINING, f"steps={steps}") for part in ("--set", setting)]
        ],
    )
    photos = [str(PHOTOS / "heldout" / f"{name}.jpg") for name in EDITED] + [str(out / "group.png")]
    yield Stage(
        "edit",
        "Editing held-out photos",
        60,
        [
            ["i2i", "edit", trained, *photos, "--out", str(out / "edited" / color), "--set", f"color={color}"]
            for color in EDIT_COLORS
        ],
        may_refuse=True,
    )
    yield Stage(
        "shipped",
        "Editing them with the shipped models of fringe, hairline, volume and smile",
        60,
        [
            ["i2i", "edit", model, *photos, "--out", str(out / "edited" / name), "--set", setting]
            for name, (model, setting) in SHIPPED.items()
        ],
        may_refuse=True,
    )


def call(command: list[str]) -> int:
    """Run a command of the package, shown as a user would type it; returns its exit code."""
    print(f"    $ {shlex.join(command)}", flush=True)
    package, *arguments = command
    line = [sys.executable, "-m", f"stylepairs.{package}", *arguments]
    return subprocess.run(line, check=False).returncode


def make_group_photo(path: Path) -> None:
    """Three held-out photos side by side, as one photo with several faces."""
    photos = [Image.open(PHOTOS / "heldout" / f"{name}.jpg").convert("RGB") for name in GROUP]
    height = min(photo.height for photo in photos)
    photos = [photo.resize((round(photo.width * height / photo.height), height)) for photo in photos]
    group = Image.new("RGB", (sum(photo.width for photo in photos), height))
    x = 0
    for photo in photos:
        group.paste(photo, (x, 0))
        x += photo.width
    group.save(path)


def is_done(out: Path, stages: Sequence[Stage]) -> bool:
    """Whether the last of these stages was run with its commands, after the others with theirs."""
    stamp = out / f".{stages[-1].name}.done"
    return stamp.is_file() and json.loads(stamp.read_text()).get("commands") == fingerprint(stages)


def mark_done(out: Path, stages: Sequence[Stage], seconds: float) -> None:
    stamp = {"commands": fingerprint(stages), "seconds": round(seconds, 1)}
    (out / f".{stages[-1].name}.done").write_text(json.dumps(stamp))


def fingerprint(stages: Sequence[Stage]) -> str:
    return hashlib.sha256(json.dumps([stage.commands for stage in stages]).encode()).hexdigest()


def duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.1f} min"


if __name__ == "__main__":
    sys.exit(main())
