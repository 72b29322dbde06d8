"""One command on one input, in a process forked from one that has everything imported: a trial takes what the command
takes, not what importing torch takes. Several go one after the other in one process, where that is safe.

The process may use 2 GB more than it was born with and 20 s of processor, and has 300 s by the clock: a
command that waits uses no processor, and a machine that is busy with other work must not look like one that hangs.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

MEMORY_BYTES = 2 << 30
PROCESSOR_S = 20
CLOCK_S = 300


@dataclass(frozen=True)
class Trial:
    """What came of a command: its exit code (negative: a signal), what it said, processor seconds, memory gained."""

    code: int
    err: str
    seconds: float
    gained_bytes: int

    def fault(self, batch: bool = False) -> str | None:
        """What is wrong with it, None for nothing. batch: the command may say more lines before the last one."""
        if "Traceback" in self.err:
            return f"traceback: {self.err.strip().splitlines()[-1][:160]}"
        if self.code not in (0, 2):
            return f"exit code {self.code}"
        if self.seconds > PROCESSOR_S or self.gained_bytes > MEMORY_BYTES:
            return f"{self.seconds:.0f} s, {self.gained_bytes >> 20} MB"
        lines = self.err.splitlines()
        if self.code == 2 and (not lines or (len(lines) != 1 and not batch)):
            return f"{len(lines)} lines"
        if any(not line.isprintable() or len(line) > 4000 for line in lines):
            return "a line that cannot be printed"
        return None


def forked(action: Callable[[], object], folder: Path) -> int:
    """The id of a new process group that does `action` with `folder` as its working folder, its texts in out and err
    beside it, and exits with its code."""
    gc.collect()
    gc.freeze()
    pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        os.setpgid(0, 0)
        code = _code_of(action, folder)
    finally:
        os._exit(code)


def _code_of(action: Callable[[], object], folder: Path) -> int:
    """The exit code of an action in this process, with the working folder and the texts of `forked`."""
    for name, number in (("out", 1), ("err", 2)):
        texts = os.open(folder.with_name(f"{folder.name}.{name}"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(texts, number)
        os.close(texts)
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", 1, closefd=False)
    os.chdir(folder)
    try:
        action()
        return 0
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else 1
    except BaseException:  # noqa: BLE001 - what ends a command is what is looked for
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def attempted(action: Callable[[], object], folder: Path) -> Trial:
    """The trial of an action (see `forked`) under the limits."""

    def limited() -> None:
        _limit_memory()
        _limit_processor()
        action()

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    status, usage = _waited(forked(limited, folder), CLOCK_S)
    err = folder.with_name(f"{folder.name}.err").read_text(errors="replace")
    seconds = usage.ru_utime + usage.ru_stime
    return Trial(os.waitstatus_to_exitcode(status), err, seconds, max(usage.ru_maxrss * 1024 - before, 0))


def attempted_together(trials: Sequence[tuple[Callable[[], object], Path]], folder: Path) -> list[Trial]:
    """The trials of actions one after the other in one process, as many as it came to the end of.

    What one leaves behind the next one meets, so that a fault here is to be tried again alone.
    """
    results = folder.with_name(f"{folder.name}.results")

    def all_of_them() -> None:
        _limit_memory()
        with results.open("w", buffering=1) as file:
            for action, own in trials:
                seconds, peak = _used()
                _limit_processor()
                code = _code_of(action, own)
                used, top = _used()
                file.write(json.dumps([code, used - seconds, top - peak]) + "\n")

    _waited(forked(all_of_them, folder), CLOCK_S)
    found = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    results.unlink(missing_ok=True)
    texts = (own.with_name(f"{own.name}.err").read_text(errors="replace") for _, own in trials[: len(found)])
    return [Trial(code, err, seconds, gained) for (code, seconds, gained), err in zip(found, texts, strict=True)]


def _waited(pid: int, clock_s: float) -> tuple[int, resource.struct_rusage]:
    """How a process group of `forked` ended, killed after so many seconds."""
    end = time.monotonic() + clock_s
    while True:
        ended, status, usage = os.wait4(pid, os.WNOHANG)
        if ended:
            return status, usage
        if time.monotonic() > end:
            os.killpg(pid, signal.SIGKILL)
            _, status, usage = os.wait4(pid, 0)
            return status, usage
        time.sleep(0.002)


def _limit_memory() -> None:
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY_BYTES, size + MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _limit_processor() -> None:
    """From now on; the hard limit stays, so that it can be raised again."""
    used = int(_used()[0])
    resource.setrlimit(resource.RLIMIT_CPU, (used + PROCESSOR_S + 1, resource.RLIM_INFINITY))


def _used() -> tuple[float, int]:
    """Processor seconds of this process, and the most memory it has had."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024
