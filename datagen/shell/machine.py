"""What a command runs on: its device, the processors, and its place among the processes of a launcher."""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import re
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from stylepairs.datagen.shell.errors import InputError

# On a CPU each worker computes with one thread: sums split over threads round differently, and the bytes would show it.
THREADS = 1


def choose_device(name: str) -> str:
    """ "cpu" or "cuda:N" for "auto", "cpu" or "cuda"; N is this process's place on its machine. Raises InputError."""
    import torch

    if name not in ("auto", "cpu", "cuda"):
        raise InputError(f"--device {name}: unknown; choose auto, cpu or cuda")
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return "cpu"
    if not torch.cuda.is_available():
        raise InputError("--device cuda: no CUDA device is to be had here; choose cpu or auto")
    return f"cuda:{_of_launcher('LOCAL_RANK', 0) % torch.cuda.device_count()}"


def own_gpus(device: str) -> int:
    """How many GPUs are this process's to share out: all of the machine, none under a launcher, which does it."""
    import torch

    return 0 if device == "cpu" or "LOCAL_RANK" in os.environ else torch.cuda.device_count()


def default_workers(device: str) -> int:
    """One a GPU; on a CPU one a processor, shared with the other ranks of this machine."""
    if device != "cpu":
        return max(1, own_gpus(device))
    return max(1, available_cpus() // max(1, _of_launcher("LOCAL_WORLD_SIZE", 1)))


def rank_and_world() -> tuple[int, int]:
    """This process's place among those that torchrun or accelerate started; (0, 1) when it is alone."""
    rank, world = _of_launcher("RANK", 0), _of_launcher("WORLD_SIZE", 1)
    if not 0 <= rank < world:
        raise InputError(f"RANK {rank} is not below WORLD_SIZE {world}")
    return rank, world


def _of_launcher(name: str, alone: int) -> int:
    """A number that a launcher puts into the environment; where there is none, `alone`."""
    text = os.environ.get(name, str(alone))
    if not text.strip().isdecimal():
        raise InputError(f"{name} in the environment must be a whole number, not {text!r}")
    return int(text)


def refuse_launched(precision: str | None) -> None:
    """Raises InputError where accelerate was launched with what a training here would not do, or not go on from.

    precision: what the training chooses itself; None: what accelerate was launched with counts.
    """
    launched = os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower()
    if precision is None and launched not in ("no", "bf16"):
        raise InputError(
            f"mixed precision {launched}, of accelerate's launch: its loss scale is not kept for a run that goes on;"
            " launch with bf16 or no"
        )
    if _of_launcher("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", 1) > 1:
        raise InputError(
            "ACCELERATE_GRADIENT_ACCUMULATION_STEPS: gradients are not accumulated here, each batch is a step; leave it"
            " out"
        )


def available_cpus() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def peak_memory_mb(call: Callable[[], object]) -> float:
    """MiB that a call takes at most, beyond what this process held before; NaN where the system does not tell (it does
    on Linux)."""
    try:
        ctypes.CDLL(None).malloc_trim(0)  # what was freed before would hide what is taken now
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        before = _resident_mb("VmRSS")
    except (AttributeError, OSError):
        call()
        return math.nan
    call()
    return max(_resident_mb("VmHWM") - before, 0.0)


def _resident_mb(name: str) -> float:
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[name].split()[0]) / 1024


def host_name() -> str:
    """This machine's name, as it can be part of a file's."""
    return re.sub(r"[^A-Za-z0-9-]", "-", socket.gethostname())[:64]


def is_alive(process: int) -> bool:
    """Whether a process of this number runs on this machine."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def _fixed_switches() -> list[tuple[Any, str, bool]]:
    """What a build sets for CUDA, (owner, name, value): float32 is float32, and convolutions repeat."""
    from torch import backends

    return [
        (backends.cuda.matmul, "allow_tf32", False),
        (backends.cudnn, "allow_tf32", False),
        (backends.cudnn, "deterministic", True),
        (backends.cudnn, "benchmark", False),
    ]


def fix_settings() -> None:
    """Set the number of threads and CUDA's switches, so that results repeat."""
    import cv2
    import torch

    torch.set_num_threads(THREADS)
    cv2.setNumThreads(THREADS)
    for owner, name, value in _fixed_switches():
        setattr(owner, name, value)


@contextlib.contextmanager
def settings_put_back() -> Iterator[None]:
    """What `fix_settings` sets inside the block is put back after it."""
    import torch

    threads = torch.get_num_threads()
    switches = [(owner, name, getattr(owner, name)) for owner, name, _ in _fixed_switches()]
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        for owner, name, value in switches:
            setattr(owner, name, value)
