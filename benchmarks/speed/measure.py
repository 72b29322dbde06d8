"""Interleaved timing: every contestant once per round, so that what else the machine does falls on all alike."""

from __future__ import annotations

import os
import platform
import resource
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True)
class Timed:
    """seconds[name][round]: wall clock; cpu_seconds likewise, of all threads of this process and finished children."""

    seconds: dict[str, list[float]]
    cpu_seconds: dict[str, list[float]]


def interleaved(runs: Mapping[str, Callable[[], object]], rounds: int, warmup: int = 1) -> Timed:
    """Time every run once per round, in the same order in each (A B C A B C ...), after `warmup` rounds untimed."""
    for _ in range(warmup):
        for run in runs.values():
            run()
    wall: dict[str, list[float]] = {name: [] for name in runs}
    cpu: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            start, start_cpu = time.perf_counter(), cpu_seconds()
            run()
            cpu[name].append(cpu_seconds() - start_cpu)
            wall[name].append(time.perf_counter() - start)
    return Timed(wall, cpu)


def cpu_seconds() -> float:
    """Processor time of this process and of its children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Lower quartile, median, upper quartile (of one value: itself)."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def row(seconds: Sequence[float], cpu: Sequence[float], per: float, **more: Any) -> dict[str, Any]:
    """A result: seconds per unit of work (`per` units a run), spread, rate, and what else is known of it."""
    low, middle, high = quartiles([one / per for one in seconds])
    return {
        "seconds": middle,
        "seconds_low": low,
        "seconds_high": high,
        "rate": 1 / middle,
        "cpu_seconds": statistics.median(cpu) / per,
        "rounds": [one / per for one in seconds],
        **more,
    }


def rows_of(timed: Timed, per: float, more: Mapping[str, Mapping[str, Any]] | None = None) -> dict[str, dict[str, Any]]:
    """A row for each contestant; more: what else is known of it."""
    return {
        name: row(timed.seconds[name], timed.cpu_seconds[name], per, **dict((more or {}).get(name, {})))
        for name in timed.seconds
    }


def ratio(slow: Mapping[str, Any], fast: Mapping[str, Any]) -> tuple[float, float, float]:
    """How many times faster: quartiles of the ratios within each round."""
    return quartiles([a / b for a, b in zip(slow["rounds"], fast["rounds"], strict=True)])


def counted_gflop(run: Callable[[], object]) -> float:
    """10^9 floating-point operations (2 per multiply-add) of convolutions and matrix products, as torch counts them."""
    from torch.utils.flop_counter import FlopCounterMode  # 70 MB, which `memory.py` would weigh too

    with FlopCounterMode(display=False) as counter:
        run()
    return float(counter.get_total_flops()) / 1e9


def peak_memory_mb() -> float:
    """Largest resident size of this process so far, on Linux. Not by getrusage, which counts what started the process,
    too: a small one begun by a large one would be as large."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def machine() -> dict[str, str]:
    """What a figure depends on: processor, cores, threads, load, versions."""
    return {
        "processor": processor(),
        "bf16 instructions": "yes" if "avx512_bf16" in _cpuinfo().get("flags", "") else "no",
        "cores": str(len(os.sched_getaffinity(0))),
        "threads": str(torch.get_num_threads()),
        "load before": f"{os.getloadavg()[0]:.1f}",
        "torch": torch.__version__,
        "Python": platform.python_version(),
    }


def processor() -> str:
    """Its name, or its architecture where the system does not say."""
    return _cpuinfo().get("model name", platform.machine())


def _cpuinfo() -> dict[str, str]:
    """Fields of the last core."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    return {line.partition(":")[0].strip(): line.partition(":")[2].strip() for line in lines}
