"""What is fastest on a device: told by what it has, never tried."""

from __future__ import annotations

import pytest
import torch

from stylepairs.kernels.precision import training_precision


@pytest.mark.parametrize(
    "gpu, gpu_bf16, cpu_bf16, wanted",
    [(True, True, False, "bf16"), (True, False, True, "no"), (False, False, True, "bf16"), (False, False, False, "no")],
)
def test_training_is_in_bf16_where_there_are_instructions_for_it(
    monkeypatch: pytest.MonkeyPatch, gpu: bool, gpu_bf16: bool, cpu_bf16: bool, wanted: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: gpu_bf16)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: cpu_bf16)
    assert training_precision() == wanted
