"""One command on one input, in a process forked from one that has everything imported: a trial takes what the command
takes, not what importing torch takes.

The process may use 2 GB more than it was born with and 20 s of processor, and has 300 s by the clock: a
command that waits uses no processor, and a machine that is busy with other work must not look like one that hangs.
"""

from __future__ import annotations

import gc
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable
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
        for name, number in (("out", 1), ("err", 2)):
            os.dup2(os.open(folder.with_name(f"{folder.name}.{name}"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w", 1)
        os.chdir(folder)
        action()
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    except BaseException:  # noqa: BLE001 - what ends a command is what is looked for
        traceback.print_exc()
        code = 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def attempted(action: Callable[[], object], folder: Path) -> Trial:
    """The trial of an action (see `forked`) under the limits."""

    def limited() -> None:
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY_BYTES, size + MEMORY_BYTES))
        resource.setrlimit(resource.RLIMIT_CPU, (PROCESSOR_S + 1, PROCESSOR_S + 2))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        action()

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    pid = forked(limited, folder)
    end = time.monotonic() + CLOCK_S
    while True:
        ended, status, usage = os.wait4(pid, os.WNOHANG)
        if ended:
            break
        if time.monotonic() > end:
            os.killpg(pid, signal.SIGKILL)
            _, status, usage = os.wait4(pid, 0)
            break
        time.sleep(0.002)
    err = folder.with_name(f"{folder.name}.err").read_text(errors="replace")
    seconds = usage.ru_utime + usage.ru_stime
    return Trial(os.waitstatus_to_exitcode(status), err, seconds, max(usage.ru_maxrss * 1024 - before, 0))
