"""SIGKILLs at random moments over prepare, build, augment and train: after resuming, the same bytes as without them."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from attack.commands import command_of
from attack.seeds import write_seeds
from attack.trial import forked

CLOCK_S = 300


def killed_and_resumed(seeds: Path, kills: int, seed: int) -> list[str]:
    """Kill each of the four commands in turn; prints and returns one line for each that did not end the same."""
    faults = []
    with tempfile.TemporaryDirectory(prefix="kills-") as temporary:
        for number, (name, arguments) in enumerate(_commands(seeds).items()):
            share = kills // 4 + (number < kills % 4)
            fault = _attack(name, arguments, share, random.Random(f"{seed} {name}"), Path(temporary))
            if fault:
                faults.append(fault)
            print(fault or f"{name}: {share} kills, the same bytes", flush=True)
    return faults


def made_apart(seeds: Path) -> None:
    """Write the seeds from a process of its own: one that has trained cannot be forked (autograd's threads)."""
    seeds.mkdir()
    if _run(lambda: write_seeds(seeds), seeds) != 0:
        raise RuntimeError(seeds.with_name(f"{seeds.name}.err").read_text())


def _commands(seeds: Path) -> dict[str, list[str]]:
    generator = ["--generator", str(seeds / "generator.safetensors"), "--workers", "1", "--shard-size", "1"]
    photos, recipe = [str(path) for path in sorted((seeds / "photos").iterdir())], str(seeds / "recipe.yaml")
    return {
        "prepare": ["datagen", "prepare", *photos, "--out", "out", "--size", "64"],
        "build": ["datagen", "build", recipe, "--portraits", str(seeds / "faces"), "--out", "out", *generator],
        "augment": ["datagen", "augment", str(seeds / "pairs"), "--out", "out", *generator],
        "train": ["i2i", "train", recipe, "--pairs", str(seeds / "pairs"), "--out", "out",
                  "--set", "steps=10", "--set", "checkpoint_every_steps=1"],
    }  # fmt: skip


def _attack(name: str, arguments: list[str], kills: int, rng: random.Random, folder: Path) -> str | None:
    """What went wrong, None for nothing. A round ends when the command does, before its kill or after several."""
    action = command_of(arguments)
    whole, began = folder / f"{name}-whole", time.monotonic()
    whole.mkdir()
    if _run(action, whole) != 0:
        return f"{name}: exit code not 0 without a kill: {(folder / f'{name}-whole.err').read_text()[-300:]}"
    lasts_s, wanted = time.monotonic() - began, _digests(whole / "out")
    done = 0
    while done < kills:
        killed = folder / f"{name}-killed"
        shutil.rmtree(killed, ignore_errors=True)
        killed.mkdir()
        while done < kills:
            code = _run(action, killed, rng.uniform(0.02, 0.7) * lasts_s)
            if code != -signal.SIGKILL:
                break
            done += 1
        if _run(action, killed) != 0:
            said = killed.with_name(f"{killed.name}.err").read_text()[-300:]
            return f"{name}: cannot be gone on with after {done} kills: {said}"
        found = _digests(killed / "out")
        if found != wanted:
            differing = sorted(key for key in found.keys() | wanted.keys() if found.get(key) != wanted.get(key))
            return f"{name}: other bytes after {done} kills: {', '.join(differing[:5])}"
    return None


def _run(action: Callable[[], None], folder: Path, kill_after_s: float | None = None) -> int:
    """The exit code of the command in `folder`, killed after so many seconds."""
    pid, end = forked(action, folder), time.monotonic() + (CLOCK_S if kill_after_s is None else kill_after_s)
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > end:
            os.killpg(pid, signal.SIGKILL)
            return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        time.sleep(0.001)


def _digests(out: Path) -> dict[str, str]:
    """Of all files but tensorboard's and the notes of finished shards, which hold the time."""
    files = [path for path in out.rglob("*") if path.is_file() and "tensorboard" not in path.parts]
    files = [path for path in files if not path.name.startswith(".finished-")]
    return {str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
