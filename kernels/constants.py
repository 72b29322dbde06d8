"""Fixed numbers that operations need as tensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch


class Constant:
    """A fixed tensor, taken to a device once for each of its types, so that no call makes the device wait for it."""

    def __init__(self, values: Sequence[object]):
        self.values = torch.tensor(values, dtype=torch.float64)
        self.kept: dict[tuple[torch.device, torch.dtype], torch.Tensor] = {}

    def like(self, x: torch.Tensor) -> torch.Tensor:
        """On x's device, in its type."""
        # A CPU waits for nothing, and a mode in force (fake tensors) would be kept with the result.
        if x.device.type == "cpu":
            return self.values.to(x.dtype)
        key = (x.device, x.dtype)
        if key not in self.kept:
            with torch.inference_mode(False):  # kept for calls that need gradients
                self.kept[key] = self.values.to(x.device, x.dtype)
        return self.kept[key]
