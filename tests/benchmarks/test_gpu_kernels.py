"""The floors of the GPU benchmark: bytes and operations counted as the reference moves and does them."""

from __future__ import annotations

import os

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from stylepairs.datagen.stylegan.generator import Generator, GeneratorConfig
from stylepairs.kernels.modulated_conv2d import filter_padding, stretch
from stylepairs.kernels.upfirdn2d import setup_filter, upfirdn2d, upsample2d


@pytest.fixture(scope="module")
def script(import_script):
    return import_script("gpu_kernels")


def size(*tensors: torch.Tensor) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@pytest.mark.parametrize("up", [1, 2])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_layers_floor_is_of_the_tensors_that_it_reads_and_writes(script, up, dtype):
    layer = script.Layer(batch=2, channels_in=6, channels_out=4, side=16, up=up)
    x, weight = torch.zeros(2, 6, 16 // up, 16 // up, dtype=dtype), torch.zeros(4, 6, 3, 3, dtype=dtype)
    taps = setup_filter().sum(0)
    with FlopCounterMode(display=False) as counter:
        u = torch.nn.functional.conv2d(x, weight, padding=1) if up == 1 else stretch(x, weight)
    found = script.convolution(layer, dtype.itemsize)
    assert found.matrix == counter.get_total_flops()
    assert found.bytes == size(x, weight, u)
    y = u if up == 1 else upfirdn2d(u, taps, padding=filter_padding(weight, taps), gain=4)
    noise, demod, bias = torch.zeros(2, 1, 16, 16), torch.zeros(2, 4), torch.zeros(4)
    assert y.shape == (2, 4, 16, 16)
    assert script.tail_forward(layer, dtype.itemsize).bytes == size(u, y, noise, demod, bias)
    # Reads u, the gradient to y, noise, demodulation, bias; writes gradients to u, noise, demodulation.
    assert script.tail_backward(layer, dtype.itemsize).bytes == size(u, y, noise, demod, bias, u, noise, demod)


def test_the_filter_counts_as_two_passes(script):
    plain, filtered = (script.Layer(1, 1, 1, 8, up) for up in (1, 2))
    assert script.tail_forward(filtered, 4).plain - script.tail_forward(plain, 4).plain == 64 * 2 * (4 + 4)


def test_an_upsampled_image(script):
    image = torch.zeros(2, 3, 8, 8)
    assert script.upsampling(2, 16).bytes == size(image, upsample2d(image, setup_filter().sum(0)))


def test_a_whole_generator(script):
    config = GeneratorConfig(img_resolution=32, channel_base=256, w_dim=8, z_dim=8)
    layers = script.layers_of(config, 3)
    generator = Generator(config).requires_grad_(False)
    weights = [layer.weight for layer in generator.synthesis.noisy_layers()]
    assert [(layer.channels_out, layer.channels_in) for layer in layers] == [weight.shape[:2] for weight in weights]
    ws = torch.zeros(3, generator.num_ws, 8, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        generator.synthesis(ws.view_as(ws)).sum().backward()
    counted = counter.get_flop_counts()["Global"]
    convolutions = sum(n for op, n in counted.items() if "convolution" in str(op) or "bmm" in str(op))
    found = script.whole(config, 3, 4).matrix
    # torch counts ToRGB too, and the filters as convolutions; not the first layer's gradient, of a constant.
    assert found == sum(2 * script.convolution(layer, 4).matrix for layer in layers)
    assert 0.6 * convolutions < found < 1.1 * convolutions


def test_a_floor_is_what_takes_longest(script):
    gpu = script.Gpu("test", bandwidth=2.0, bf16=100.0, fp32=10.0)
    assert script.Work(4e12, 1e12, 1e12).seconds(gpu, "bf16") == 2
    assert script.Work(1e12, 500e12, 1e12).seconds(gpu, "bf16") == 5
    assert script.Work(1e12, 500e12, 1e12).seconds(gpu, "fp32") == 50
    assert script.Work(1e12, 0, 30e12).seconds(gpu, "bf16") == 3


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_what_would_be_timed_runs_alike_on_both_paths(script, dtype):
    pytest.importorskip("triton", reason="triton is not installed: pip install 'stylepairs[triton]' (Linux only)")
    config = GeneratorConfig(img_resolution=8, channel_base=32, w_dim=8, z_dim=8)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    seen = list(script.cases(config, 1, dtype, device))
    assert len(seen) == 10
    for case in seen[:-1]:
        with script.triton(False):
            wanted = (case.plain or case.run)()
        with script.triton(True):
            found = case.run()
        for a, b in zip(*(one if isinstance(one, tuple) else (one,) for one in (found, wanted)), strict=True):
            error = (a.float() - b.float()).square().mean().sqrt() / b.float().square().mean().sqrt()
            assert error < {"fp32": 1e-5, "bf16": 0.15}[dtype]
    with script.triton(True):
        seen[-1].run()
    assert "STYLEPAIRS_TRITON" not in os.environ


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to measure on")
def test_without_a_gpu_it_says_so_in_one_line_and_exits_2(script, capsys):
    assert script.main([]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_floors_go_into_a_page(script, tmp_path, capsys):
    page = tmp_path / "gpu.md"
    page.write_text("before\n<!-- floors -->\nold\n<!-- end of floors -->\nafter\n")
    assert script.main(["--floors", "--resolutions", "64", "--gpu", "h100", "--docs", str(page)]) == 0
    text = page.read_text()
    assert "64 px, 512 to 512: convolution" in text
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
