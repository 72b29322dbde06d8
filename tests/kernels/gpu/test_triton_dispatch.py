"""When Triton is taken: by auto on a GPU alone, by an explicit choice or not at all, and never imported before."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from stylepairs.kernels import dispatch
from stylepairs.kernels.bias_act import bias_act
from stylepairs.kernels.dispatch import choose, triton_fits, with_triton
from stylepairs.kernels.modulated_layer import modulated_layer
from stylepairs.kernels.upfirdn2d import setup_filter, upfirdn2d

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def on_gpu(samples: int = 4) -> SimpleNamespace:
    """What triton_fits looks at in a batch."""
    return SimpleNamespace(device=GPU, shape=(samples, 3, 8, 8))


@pytest.fixture(autouse=True)
def compiled(monkeypatch):
    """A machine with a recent GPU and Triton, its compiler in use."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.delenv("STYLEPAIRS_TRITON", raising=False)
    monkeypatch.setattr(dispatch, "_triton_installed", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))


@pytest.mark.parametrize(
    "device, environment, taken",
    [
        (GPU, {}, "triton"),
        (GPU, {"STYLEPAIRS_TRITON": "0"}, "reference"),
        (GPU, {"TRITON_INTERPRET": "1"}, "reference"),
        (CPU, {}, "reference"),
        (CPU, {"TRITON_INTERPRET": "1"}, "reference"),
        (CPU, {"TRITON_INTERPRET": "1", "STYLEPAIRS_TRITON": "1"}, "triton"),
    ],
)
def test_auto_takes_triton_on_a_gpu_alone(device, environment, taken, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert choose("op", "auto", with_triton({"reference": True}, True, device)) == taken


def test_auto_passes_over_what_triton_cannot_do():
    assert choose("op", "auto", with_triton({"reference": True}, "too large", GPU)) == "reference"


def test_what_fits():
    assert triton_fits(on_gpu(), torch.bfloat16, 2**31 - 1, setup_filter()) is True
    trained = setup_filter().requires_grad_()
    assert "gradient" in triton_fits(on_gpu(), torch.float32, 192, trained)
    with torch.no_grad():
        assert triton_fits(on_gpu(), torch.float32, 192, trained) is True
    assert "float64" in triton_fits(on_gpu(), torch.float64, 192)
    assert "32-bit" in triton_fits(on_gpu(), torch.float32, 2**31)
    assert "32-bit" in triton_fits(on_gpu(samples=65_536), torch.float32, 192)


def test_an_older_gpu_and_a_missing_package_are_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert "capability 8.0" in triton_fits(on_gpu(), torch.float32, 192)
    monkeypatch.setattr(dispatch, "_triton_installed", lambda: False)
    assert "pip install 'stylepairs[triton]'" in triton_fits(on_gpu(), torch.float32, 192)


def test_a_traced_call_sees_plain_operations(monkeypatch):
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert "traced" in triton_fits(SimpleNamespace(device=GPU), torch.float32, 192)


def test_an_explicit_choice_that_cannot_run_says_why(monkeypatch):
    x, styles = torch.zeros(1, 3, 4, 4), torch.ones(1, 3)
    calls = [
        lambda: upfirdn2d(x, setup_filter(), padding=(1, 2, 1, 2), impl="triton"),
        lambda: bias_act(x, torch.zeros(3), impl="triton"),
        lambda: modulated_layer(x, torch.zeros(3, 3, 3, 3), styles, torch.zeros(3), impl="triton"),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="'triton' cannot run on this input or machine: it needs a CUDA device"):
            call()
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(dispatch, "_triton_installed", lambda: False)
    for call in calls:
        with pytest.raises(ValueError, match=r"pip install 'stylepairs\[triton\]'"):
            call()
