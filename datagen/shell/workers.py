"""Work shared by processes of this machine: each takes the next item, and all end with the one that started them.

Built on `concurrent.futures`, not on `torch.multiprocessing.spawn`: that hands errors on as text, and its processes
answer Ctrl-C themselves.
"""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from stylepairs.datagen.shell.errors import InputError
from stylepairs.kernels.memory import keep_freed_memory

Report = Callable[[Any], None]
# Called once in each process, given `report`; what it returns is called with each item.
Prepare = Callable[[Report], Callable[[Any], None]]

# What shares work out: (prepare, items, workers, on_event), see `run_workers`.
Engine = Callable[[Prepare, Sequence[Any], "int | None", Report], None]

# A worker whose report is larger than a pipe holds waits until it is read: at 0.1 s, items of 50 ms that report 200 kB
# took 1.6 times as long.
_POLL_S = 0.01
# Items handed to each worker ahead: every look at those that wait costs time for each of them.
_WAITING_EACH = 4


def run_workers(
    prepare: Prepare, items: Sequence[Any], workers: int | None, on_event: Report, *, gpus: int = 0
) -> None:
    """Handle all items in `workers` processes; on_event receives, in this process, what the work reports.

    prepare(report) is called once in each process and returns the function that handles an item; it must be picklable
    (a module-level function, a dataclass with __call__, a functools.partial). One worker, None too, runs in this very
    process. gpus: how many the machine has, if the workers are to take them in turn, each seeing one alone. Raises what
    a worker raised, with its traceback as the cause; InputError for a worker that was killed. Whatever is raised,
    KeyboardInterrupt included, all workers have ended by then.
    """
    if workers is None or workers <= 1 or len(items) <= 1:
        handle = prepare(on_event)
        for item in items:
            handle(item)
        return
    context = multiprocessing.get_context("spawn")  # forked children deadlock in OpenMP once the parent used torch
    events = context.SimpleQueue()  # without a thread: what an item reported is there when the item is done
    others = set(multiprocessing.active_children())
    turn = context.Value("i", 0)
    pool = ProcessPoolExecutor(min(workers, len(items)), context, _begin, (prepare, events, turn, gpus))
    todo, room = iter(items), workers * _WAITING_EACH
    try:
        with _interrupts_ignored():
            waiting = {pool.submit(_work, item) for item in itertools.islice(todo, room)}
        while waiting:
            done, waiting = wait(waiting, _POLL_S, FIRST_COMPLETED)
            while not events.empty():
                on_event(events.get())
            for future in done:
                future.result()
            waiting |= {pool.submit(_work, item) for item in itertools.islice(todo, room - len(waiting))}
    except BaseException as error:
        for process in set(multiprocessing.active_children()) - others:
            process.kill()
        if isinstance(error, BrokenProcessPool):
            raise InputError(
                "a worker process was killed (was the memory full?); run the same command again, with fewer --workers "
                "if it repeats: what is finished is kept"
            ) from error
        raise
    finally:
        pool.shutdown(cancel_futures=True)


_handle: Callable[[Any], None] | None = None  # in a worker: what handles an item, once it is prepared
_prepare: Callable[[], Callable[[Any], None]]


def _begin(prepare: Prepare, events: Any, turn: Any, gpus: int) -> None:
    global _prepare
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a process that a later item started
    threading.Thread(target=_die_with_parent, daemon=True).start()
    if gpus:
        with turn.get_lock():
            place, turn.value = turn.value, turn.value + 1
        _see_one_gpu(place, gpus)
    keep_freed_memory()
    _prepare = lambda: prepare(events.put)  # noqa: E731 - not called here, where an error would only be logged


def _work(item: Any) -> None:
    global _handle
    _handle = _handle or _prepare()
    _handle(item)


def _see_one_gpu(place: int, gpus: int) -> None:
    """Hide all GPUs but one from this process, which has not touched any yet: it is "cuda:0" then, whichever it is."""
    shown = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(gpus)))
    os.environ["CUDA_VISIBLE_DEVICES"] = shown.split(",")[place % gpus]


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


def _die_with_parent() -> None:
    """A worker whose parent was killed must not go on writing beside the run that resumes."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
