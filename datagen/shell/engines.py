"""Where a command's work runs: processes of this machine, or a Ray cluster (Moritz et al., 2018). Both take a function
that prepares each worker, items, and somewhere to report to.

On a cluster an item is a task. Ray places it where a processor or GPU is free and gives it to another worker when its
own, or the whole machine, dies; that is safe as an item's files are written whole or not at all, with the same bytes
every time.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from stylepairs.datagen.shell.errors import InputError, one_line
from stylepairs.datagen.shell.machine import choose_device, default_workers, own_gpus
from stylepairs.datagen.shell.workers import Engine, Prepare, Report, run_workers
from stylepairs.kernels.memory import keep_freed_memory

# Times that an item's worker or machine may die before the item itself is to blame.
MOST_DEATHS = 8
# Tasks that wait in the cluster for each place that is free: enough that none idles, few enough to hold in memory.
_WAITING_EACH = 2
_POLL_S = 1.0
_ANSWER_S = 10.0


@dataclass(frozen=True)
class Place:
    """run: as `run_workers`. device: of the workers. workers: how many; None: as many as there is room for."""

    run: Engine
    device: str
    workers: int | None


@contextlib.contextmanager
def engine(name: str, address: str | None, device: str, workers: int | None) -> Iterator[Place]:
    """The engine "local" or "ray" while the block runs; device "auto", "cpu" or "cuda"; address as in `connected`.

    workers None: one a processor or GPU. Raises InputError.
    """
    if name == "local":
        if address is not None:
            raise InputError(f"--address {address}: is of --engine ray")
        place = choose_device(device)
        gpus = own_gpus(place)
        run = functools.partial(run_workers, gpus=gpus) if gpus else run_workers
        yield Place(run, place, workers or default_workers(place))
    elif name == "ray":
        with connected(address):
            # Of the machines of the cluster, not of this one; Ray shows each task the GPU that is its own.
            gpu = device == "cuda" or (device == "auto" and has_gpus())
            if gpu and not has_gpus():
                raise InputError("--device cuda: no machine of the cluster has a GPU; choose cpu or auto")
            yield Place(functools.partial(run_on_ray, gpu=gpu), "cuda:0" if gpu else "cpu", workers)
    else:
        raise InputError(f"--engine {name}: unknown; choose local or ray")


def run_on_ray(
    prepare: Prepare, items: Sequence[Any], workers: int | None, on_event: Report, *, gpu: bool = False
) -> None:
    """Handle all items on the cluster of `connected`; arguments and errors are those of `run_workers`.

    workers: items in hand at once; None: as many as the cluster has processors, or GPUs with `gpu`, also of machines
    that join later. What an item reports arrives when it is done, of one that was done twice once.
    """
    import ray
    from ray.exceptions import NodeDiedError, OutOfMemoryError, RayTaskError, WorkerCrashedError

    shared = ray.put(prepare)
    task = ray.remote(num_cpus=1, num_gpus=int(gpu), max_retries=MOST_DEATHS)(_work)
    todo = iter(items)
    waiting: set[Any] = set()
    try:
        while True:
            for item in itertools.islice(todo, max(0, _room(workers, gpu) - len(waiting))):
                waiting.add(task.remote([shared], item))  # in a list: the reference itself, read once in each worker
            if not waiting:
                return
            done, _ = ray.wait(list(waiting), timeout=_POLL_S)
            for reference in done:
                waiting.remove(reference)
                for event in ray.get(reference):
                    on_event(event)
    except BaseException as error:
        for reference in waiting:
            with contextlib.suppress(Exception):
                ray.cancel(reference, force=True)
        if isinstance(error, RayTaskError):
            raise error.cause from error
        if isinstance(error, (WorkerCrashedError, NodeDiedError, OutOfMemoryError)):
            raise InputError(
                f"workers died {MOST_DEATHS + 1} times over one item ({one_line(error, 120)}); finished shards are "
                "kept: run the same command again on machines with more memory"
            ) from error
        raise


@contextlib.contextmanager
def connected(address: str | None) -> Iterator[None]:
    """In the block this process drives a cluster; address None: the one that RAY_ADDRESS names, else this machine.

    Raises InputError: ray is not installed, or there is no cluster.
    """
    try:
        import ray
    except ImportError:
        raise InputError("--engine ray: needs ray; pip install 'stylepairs[ray]'") from None
    if ray.is_initialized():
        yield
        return
    try:
        _knock(address)
        ray.init(address=address, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(f"--address {address}: no Ray cluster to be reached ({one_line(error, 160)})") from error
    try:
        yield
    finally:
        ray.shutdown()


def _knock(address: str | None) -> None:
    """Raises OSError or ValueError where nobody answers at "host:port", which Ray would try for a minute."""
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if host:
        socket.create_connection((host, int(port)), _ANSWER_S).close()


def has_gpus() -> bool:
    """Whether a machine of the cluster has a GPU."""
    return _places(gpu=True) > 0


def _room(workers: int | None, gpu: bool) -> int:
    """How many items may be in the cluster's hands now."""
    return workers or max(1, _places(gpu)) * _WAITING_EACH


def _places(gpu: bool) -> int:
    import ray

    resources: dict[str, float] = ray.cluster_resources()
    return int(resources.get("GPU" if gpu else "CPU", 0))


_handles: dict[str, tuple[Callable[[Any], None], list[Any]]] = {}  # in a worker: what handles items, and their reports


def _work(shared: list[Any], item: Any) -> list[Any]:
    """In a worker: handle an item; returns what it reported."""
    import ray

    key = shared[0].hex()
    if key not in _handles:
        _handles.clear()  # of another command: its networks need not stay
        keep_freed_memory()
        reported: list[Any] = []
        _handles[key] = ray.get(shared[0])(reported.append), reported
    handle, reported = _handles[key]
    handle(item)
    found = list(reported)
    reported.clear()
    return found
