"""Chooses the implementation of an operation: auto takes the first that fits, an explicit choice is honoured or
raises."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
from collections.abc import Mapping
from contextlib import AbstractContextManager

import torch

# Whether an implementation can run here and now: True, or False, or the reason why not.
Fits = bool | str

_TRITON_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
_TRITON_CAPABILITY = (8, 0)  # NVIDIA's Ampere; Triton supports nothing older
_MOST_ELEMENTS = 2**31  # of a sample: the kernels count them in 32 bits
_MOST_SAMPLES = 65_535  # a CUDA grid's third side


def choose(op: str, impl: str, usable: Mapping[str, Fits]) -> str:
    """Name of the implementation to run.

    usable maps names, fastest first, to whether each can run here and now. "auto" takes the first usable one; a name
    that is unknown or not usable raises ValueError, so a benchmark never measures something else than it says.
    """
    if impl == "auto":
        return next(name for name, fits in usable.items() if fits is True)
    if impl not in usable:
        raise ValueError(f"{op}: no implementation {impl!r}; there are: auto, {', '.join(usable)}")
    if usable[impl] is not True:
        reason = f": {usable[impl]}" if usable[impl] else ""
        raise ValueError(f"{op}: implementation {impl!r} cannot run on this input or machine{reason}")
    return impl


def with_triton(usable: Mapping[str, Fits], fits: Fits, device: torch.device) -> dict[str, Fits]:
    """`usable` and "triton", where `fits` says whether it can run: first on a GPU, last where auto is to pass it over.

    The environment's STYLEPAIRS_TRITON=0 makes auto pass Triton over on a GPU, =1 makes it take Triton's interpreter
    too, which is for tests alone.
    """
    wanted = os.environ.get("STYLEPAIRS_TRITON")
    first = wanted == "1" or (wanted != "0" and device.type == "cuda" and not _interpreting())
    return {"triton": fits, **usable} if first else {**usable, "triton": fits}


def triton_fits(x: torch.Tensor, dtype: torch.dtype, sample_elements: int, taps: torch.Tensor | None = None) -> Fits:
    """Whether the Triton kernels can run on a batch like x, in `dtype`, sample_elements being the most elements of a
    sample of what they read or write, and taps their FIR filter. Triton itself is not imported."""
    if x.device.type != "cuda" and not (x.device.type == "cpu" and _interpreting()):
        return f"it needs a CUDA device, or TRITON_INTERPRET=1 in the environment on a CPU; this is {x.device.type}"
    if is_traced():
        return "it cannot be traced"
    if not _triton_installed():
        return "triton is not installed; pip install 'stylepairs[triton]'"
    if x.device.type == "cuda" and torch.cuda.get_device_capability(x.device) < _TRITON_CAPABILITY:
        return "Triton needs a GPU of compute capability 8.0 or higher"
    if dtype not in _TRITON_DTYPES:
        return f"it computes in float16, bfloat16 or float32, not in {dtype}"
    if sample_elements >= _MOST_ELEMENTS or x.shape[0] > _MOST_SAMPLES:
        return "the batch is too large for its 32-bit indices"
    if taps is not None and taps.requires_grad and torch.is_grad_enabled():
        return "it has no gradient to the filter's taps"
    return True


def is_traced() -> bool:
    """Whether an export looks on: it must see plain operations, no autograd function, no cache, no question about a
    size."""
    return torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None


def apply(function: type[torch.autograd.Function], *arguments: object) -> torch.Tensor:
    """function.apply, for a function of one result."""
    out: torch.Tensor = function.apply(*arguments)
    return out


def _interpreting() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


@functools.cache
def _triton_installed() -> bool:
    return importlib.util.find_spec("triton") is not None


def autocast_dtype(x: torch.Tensor) -> torch.dtype:
    """The dtype in which convolutions of x run: autocast's where it is on."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


def without_autocast(device: str) -> AbstractContextManager[None]:
    """A block in which operations on this kind of device ("cpu", "cuda") keep the dtypes they are given."""
    enabled = torch.is_autocast_enabled(device)
    return torch.autocast(device, enabled=False) if enabled else contextlib.nullcontext()
