"""Chooses the implementation of an operation: auto takes the first that fits, an explicit choice is honoured or
raises."""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager

import torch


def choose(op: str, impl: str, usable: dict[str, bool]) -> str:
    """Name of the implementation to run.

    usable maps names, fastest first, to whether each can run here and now. "auto" takes the first usable one; a name
    that is unknown or not usable raises ValueError, so a benchmark never measures something else than it says.
    """
    if impl == "auto":
        return next(name for name, can_run in usable.items() if can_run)
    if impl not in usable:
        raise ValueError(f"{op}: no implementation {impl!r}; there are: auto, {', '.join(usable)}")
    if not usable[impl]:
        raise ValueError(f"{op}: implementation {impl!r} cannot run on this input or machine")
    return impl


def without_autocast(device: str) -> AbstractContextManager[None]:
    """A block in which operations on this kind of device ("cpu", "cuda") keep the dtypes they are given."""
    enabled = torch.is_autocast_enabled(device)
    return torch.autocast(device, enabled=False) if enabled else contextlib.nullcontext()
