"""Triton's kernels run in its interpreter where there is no GPU, and compiled on the GPU where there is one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(scope="module")
def on_triton_device() -> Iterator[None]:
    """New tensors are made where the Triton tests run; a GPU's convolutions are of float32 in full."""
    if not torch.cuda.is_available():
        yield
        return
    allowed, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
    with torch.device("cuda"):
        yield
    torch.backends.cudnn.allow_tf32 = allowed
