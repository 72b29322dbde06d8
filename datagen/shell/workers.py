"""Work shared by processes of this machine: each claims the next item, and all end with the one that started them."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import queue
import signal
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.context import SpawnContext
from typing import Any, Generic, TypeVar

from stylepairs.datagen.shell.errors import InputError
from stylepairs.kernels.memory import keep_freed_memory

Item = TypeVar("Item")
Event = TypeVar("Event")
Report = Callable[[Event], None]
# Made once in each process, given `report`, and called with each item claimed.
Prepare = Callable[[Report[Any]], Callable[[Any], None]]

_POLL_S = 0.2


def run_workers(prepare: Prepare, items: Sequence[Any], workers: int, on_event: Report[Any]) -> None:
    """Handle all items in `workers` processes; on_event receives, in this process, what the work reports.

    prepare(report) is called once in each process and returns the function that handles an item; it must be picklable
    (a module-level function, a dataclass with __call__, a functools.partial). One worker runs in this very process.
    Raises InputError as a worker raised it, or for a worker that was killed; RuntimeError with the traceback otherwise.
    Whatever is raised, KeyboardInterrupt included, all workers have ended by then.
    """
    if workers <= 1 or len(items) <= 1:
        handle = prepare(on_event)
        for item in items:
            handle(item)
        return
    context = multiprocessing.get_context("spawn")  # forked children deadlock in OpenMP once the parent used torch
    pool: _Pool[Any] = _Pool(context, prepare, items, min(workers, len(items)))
    try:
        pool.drain(on_event)
    finally:
        pool.stop()


class _Pool(Generic[Event]):
    def __init__(self, context: SpawnContext, prepare: Prepare, items: Sequence[Any], count: int) -> None:
        self.messages: Any = context.Queue()
        self.claimed = context.Value("q", 0)  # kept: its semaphore is unlinked with it, before slow children open it
        self.processes = [
            context.Process(target=_work, args=(prepare, list(items), self.claimed, self.messages), daemon=True)
            for _ in range(count)
        ]
        with _interrupts_ignored():
            for process in self.processes:
                process.start()

    def drain(self, on_event: Report[Any]) -> None:
        """Pass events on until every worker has said that it is done."""
        running = len(self.processes)
        while running:
            try:
                kind, content = self.messages.get(timeout=_POLL_S)
            except queue.Empty:
                self._check_alive()
                continue
            if kind == "done":
                running -= 1
            elif kind == "event":
                on_event(content)
            elif kind == "input":
                raise InputError(content)
            else:
                raise RuntimeError(f"a worker failed:\n{content}")

    def stop(self) -> None:
        for process in self.processes:
            process.join(timeout=_POLL_S)
            if process.is_alive():
                process.kill()
                process.join()

    def _check_alive(self) -> None:
        for process in self.processes:
            if process.exitcode not in (None, 0):
                raise InputError(
                    f"a worker process was killed (exit code {process.exitcode}; was the memory full?); "
                    "run the same command again, with fewer --workers if it repeats: finished shards are kept"
                )


@contextlib.contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """Processes started here ignore Ctrl-C from birth: it reaches the whole group, but the parent alone decides."""
    if threading.current_thread() is not threading.main_thread():  # elsewhere Python sets no signal handlers
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _work(prepare: Prepare, items: list[Any], claimed: Any, messages: Any) -> None:
    threading.Thread(target=_die_with_parent, daemon=True).start()
    keep_freed_memory()
    try:
        handle = prepare(lambda event: messages.put(("event", event)))
        while (index := _claim(claimed)) < len(items):
            handle(items[index])
        messages.put(("done", None))
    except InputError as error:
        messages.put(("input", str(error)))
    except Exception:
        messages.put(("crash", traceback.format_exc()))


def _claim(claimed: Any) -> int:
    with claimed.get_lock():
        index = claimed.value
        claimed.value = index + 1
        return index


def _die_with_parent() -> None:
    """A worker whose parent was killed must not go on writing beside the run that resumes."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
