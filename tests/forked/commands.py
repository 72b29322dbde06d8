"""`datagen ARGUMENTS` and `i2i ARGUMENTS` as processes of their own, forked from one that has imported all: to begin
each takes a moment, where Python and PyTorch take seconds."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path
from unittest.mock import patch


def forked(target: Callable[..., None], *arguments: object) -> BaseProcess:
    """A process that calls a module's function, begun."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["forked.imports"])
    # Before Python 3.11.9 the server has another path than this process, and passes over what it does not find.
    with patch.dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, sys.path))):
        forkserver.ensure_running()
    process = context.Process(target=target, args=arguments)
    process.start()
    return process


def begun(arguments: list[str], folder: Path, environment: Mapping[str, str] = os.environ) -> BaseProcess:
    """The command, begun; what it says goes to `out` and `err` in the folder."""
    return forked(_run, arguments, dict(environment), str(folder))


def ended(arguments: list[str], environment: Mapping[str, str] = os.environ) -> subprocess.CompletedProcess[str]:
    """What came of the command."""
    with tempfile.TemporaryDirectory() as folder:
        process = begun(arguments, Path(folder), environment)
        process.join(500)
        assert process.exitcode is not None, f"{arguments}: it does not end"
        said = ((Path(folder) / name).read_text() for name in ("out", "err"))
        return subprocess.CompletedProcess(arguments, process.exitcode, *said)


def _run(arguments: list[str], environment: dict[str, str], folder: str) -> None:
    os.environ.clear()
    os.environ.update(environment)
    # A test run in the background of a shell inherits an ignored Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for name, number in (("out", 1), ("err", 2)):
        os.dup2(os.open(Path(folder) / name, os.O_WRONLY | os.O_CREAT), number)
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", 1, closefd=False)
    sys.argv = arguments
    importlib.import_module(f"stylepairs.{arguments[0]}.cli").main()
