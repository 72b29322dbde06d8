"""Which floating-point type is fastest on a device."""

from __future__ import annotations

import torch


def fastest_dtype(device: torch.device | str) -> torch.dtype:
    """bfloat16 on a CPU with instructions for it, float32 otherwise (on a GPU the choice was not measured)."""
    native = torch.device(device).type == "cpu" and torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if native else torch.float32


def training_precision() -> str:
    """What accelerate is to train in on this machine: "bf16" where there are instructions for it, else "no".

    Without them a convolution in bfloat16 takes five times as long as in float32 (a Xeon with AVX-512 alone)."""
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported() else "no"
    return "bf16" if fastest_dtype("cpu") == torch.bfloat16 else "no"


def in_precision(precision: str, device: torch.device) -> torch.autocast:
    """A context for convolutions in `precision`: "fp32", "bf16", or "auto" for the device's fastest."""
    bf16 = precision == "bf16" or (precision == "auto" and fastest_dtype(device) == torch.bfloat16)
    return torch.autocast(device.type, torch.bfloat16, enabled=bf16)
