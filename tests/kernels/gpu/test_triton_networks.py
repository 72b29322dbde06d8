"""The networks on Triton's kernels against the same networks on the references."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed: pip install 'stylepairs[triton]' (Linux only)")

from stylepairs.datagen.stylegan.discriminator import Discriminator, DiscriminatorConfig
from stylepairs.datagen.stylegan.generator import Generator, GeneratorConfig
from stylepairs.kernels.gpu import triton_layer
from stylepairs.kernels.modulated_layer import modulated_layer
from stylepairs.kernels.upfirdn2d import setup_filter

pytestmark = pytest.mark.usefixtures("on_triton_device")

TOLERANCE = 2e-5  # in float32: largest difference over largest value
# In bfloat16 values near the activation's kink fall on either side: root mean squares, against the reference in
# float32. The reference in bfloat16 is 0.11 off.
HALF_TOLERANCE = 0.12
LAYERS, RGB_LAYERS, RESAMPLINGS = 5, 3, 2  # of a generator of 16 px


@pytest.fixture
def launches(monkeypatch):
    """Names of the kernels launched since the fixture was set up."""
    names: list[str] = []
    run = triton_layer._run
    monkeypatch.setattr(
        triton_layer, "_run", lambda kernel, *args, **more: (names.append(kernel.__name__), run(kernel, *args, **more))
    )
    return names


@pytest.fixture(scope="module")
def generator() -> Generator:
    torch.manual_seed(0)
    network = Generator(GeneratorConfig(img_resolution=16, channel_base=128, w_dim=16, z_dim=16, conv_clamp=256.0))
    for layer in network.synthesis.noisy_layers():
        layer.noise_strength.data.fill_(0.3)
    return network.eval().requires_grad_(False).to(memory_format=torch.channels_last)


def errors(found, wanted) -> list[float]:
    return [float((a - b).detach().abs().max() / b.detach().abs().max()) for a, b in zip(found, wanted, strict=True)]


def image_and_gradients(generator, precision, triton, monkeypatch, second=False):
    """The image and the gradients to the latents and the noise maps of two portraits."""
    monkeypatch.setenv("STYLEPAIRS_TRITON", "1" if triton else "0")
    torch.manual_seed(1)
    ws = torch.randn(2, generator.num_ws, 16).requires_grad_()
    noise = [torch.randn(2, 1, *level.shape[2:]).requires_grad_() for level in generator.noise_maps()]
    with torch.autocast(ws.device.type, torch.bfloat16, enabled=precision == torch.bfloat16):
        image = generator.synthesis(ws, noise)
    direction = torch.linspace(-1, 1, image.numel()).reshape(image.shape)
    if not second:
        return [image, *torch.autograd.grad(image, [ws, *noise], direction)]
    # The path length (Karras et al. 2020): the gradient's norm, to be differentiated by the latents again.
    (first,) = torch.autograd.grad((image * direction).sum(), ws, create_graph=True)
    return [first, torch.autograd.grad(first.square().sum(2).mean(1).sqrt().sum(), ws)[0]]


def test_generators_image_and_gradients(generator, launches, monkeypatch):
    wanted = image_and_gradients(generator, torch.float32, False, monkeypatch)
    assert launches == []
    found = image_and_gradients(generator, torch.float32, True, monkeypatch)
    assert launches.count("tail_backward_kernel") == LAYERS + RGB_LAYERS
    assert launches.count("tail_kernel") == LAYERS + RGB_LAYERS + RESAMPLINGS  # forward, and the filters' adjoints
    assert launches.count("upfirdn_kernel") == 2 * RESAMPLINGS  # the image, both ways
    assert max(errors(found, wanted)) <= TOLERANCE


def test_generators_image_and_gradients_in_bfloat16(generator, launches, monkeypatch):
    wanted = image_and_gradients(generator, torch.float32, False, monkeypatch)
    found = image_and_gradients(generator, torch.bfloat16, True, monkeypatch)
    assert launches
    for value, exact in zip(found, wanted, strict=True):
        assert (value - exact).square().mean().sqrt() <= HALF_TOLERANCE * exact.square().mean().sqrt()


def test_generators_path_length_gradient(generator, launches, monkeypatch):
    found = image_and_gradients(generator, torch.float32, True, monkeypatch, second=True)
    assert launches
    wanted = image_and_gradients(generator, torch.float32, False, monkeypatch, second=True)
    assert max(errors(found, wanted)) <= TOLERANCE


def test_generators_weights_train(generator, launches, monkeypatch):
    """Gradients to every weight, which the CPU's fused layer does not give."""
    gradients = []
    for triton in ("1", "0"):
        monkeypatch.setenv("STYLEPAIRS_TRITON", triton)
        layers = [generator.synthesis.b8.conv0, generator.synthesis.b8.torgb]
        weights = [p for layer in layers for p in (layer.weight, layer.bias, layer.affine.weight)]
        weights.append(layers[0].noise_strength)
        for weight in weights:
            weight.requires_grad_()
        image = generator.synthesis(torch.ones(1, generator.num_ws, 16))
        gradients.append(torch.autograd.grad(image.square().sum(), weights))
        for weight in weights:
            weight.requires_grad_(False)
    assert "tail_backward_kernel" in launches
    assert max(errors(*gradients)) <= TOLERANCE


def test_discriminators_penalty_on_its_gradient(launches, monkeypatch):
    """R1 (Mescheder et al. 2018): the gradient to the weights of a gradient's square."""
    torch.manual_seed(0)
    network = Discriminator(DiscriminatorConfig(img_resolution=8, channel_base=32, conv_clamp=256.0))
    photo = torch.randn(2, 3, 8, 8)
    results = []
    for triton in ("1", "0"):
        monkeypatch.setenv("STYLEPAIRS_TRITON", triton)
        leaf = photo.clone().requires_grad_()
        logits = network(leaf)
        (by_image,) = torch.autograd.grad(logits.sum(), leaf, create_graph=True)
        weights = [p for p in network.parameters() if p.ndim > 1]
        results.append([logits, by_image, *torch.autograd.grad(by_image.square().sum(), weights)])
    assert "tail_kernel" in launches
    assert max(errors(*results)) <= TOLERANCE


@pytest.mark.parametrize("shape", [(8, 8), (1, 1, 8, 8), (3, 1, 8, 8), (3, 1, 1, 1), ()])
@pytest.mark.parametrize("up, size", [(1, 8), (2, 4)])
def test_noise_of_any_shape_that_broadcasts(shape, up, size):
    torch.manual_seed(0)
    x, weight, styles, bias = torch.randn(3, 5, size, size), torch.randn(4, 5, 3, 3), torch.rand(3, 5), torch.randn(4)
    results = []
    for impl in ("triton", "reference"):
        noise = torch.linspace(-1, 1, 3 * 64)[: max(1, torch.Size(shape).numel())].reshape(shape).requires_grad_()
        y = modulated_layer(x, weight, styles, bias, noise, up, setup_filter().sum(0), impl=impl)
        results.append([y, *torch.autograd.grad(y.square().sum(), noise)])
    assert results[0][1].shape == shape
    assert max(errors(*results)) <= TOLERANCE


def test_a_trained_filter_takes_the_reference(monkeypatch):
    monkeypatch.setenv("STYLEPAIRS_TRITON", "1")
    taps = setup_filter().sum(0).requires_grad_()
    arguments = (torch.ones(1, 2, 4, 4), torch.ones(2, 2, 3, 3), torch.ones(1, 2), torch.zeros(2), None, 2, taps)
    modulated_layer(*arguments).sum().backward()
    assert taps.grad is not None
    with pytest.raises(ValueError, match="no gradient to the filter"):
        modulated_layer(*arguments, impl="triton")


def test_kernels_compile_for_gpus_that_are_not_there():
    """To machine code, without spilling registers: what the interpreter cannot tell. In a process of its own, as the
    kernels are declared interpreted in this one."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    run = subprocess.run([sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr


def test_a_tail_takes_no_more_instructions_than_memory_leaves_time_for():
    script = Path(__file__).parents[3] / "benchmarks" / "gpu_instructions.py"
    run = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in run.stdout.splitlines()[2:]]
    assert len(rows) == 4
    for name, instructions, _, spilled, issued, memory in rows:
        assert 0.1 < float(instructions) < 1.5, name
        assert spilled == "0"
        assert float(issued) < float(memory)


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from stylepairs.kernels.gpu import triton_kernels

FLAGS = {"FIR": True, "DEMOD": True, "NOISE": True, "BIAS": True, "CLAMP": True, "SUM_CHANNELS": True,
         "SUM_PIXELS": True, "ROWS": 16, "BLOCK_C": 64, "BLOCK_X": 16,
         "UP": 2, "DOWN": 1, "KH": 4, "KW": 4, "BLOCK_P": 16}
TYPES = {"x": "*bf16", "out": "*bf16", "g": "*bf16", "inner": "*bf16", "taps": "*fp32", "demod": "*fp32",
         "noise": "*fp32", "bias": "*fp32", "by_channel": "*fp32", "by_pixel": "*fp32", "slope": "fp32",
         "gain": "fp32", "clamp": "fp32"}
ONE = {"xc", "oc", "gc"}  # channels_last
for kernel in (triton_kernels.tail_kernel, triton_kernels.tail_backward_kernel, triton_kernels.upfirdn_kernel):
    names = kernel.arg_names
    constants = {(i,): FLAGS.get(name, 1) for i, name in enumerate(names) if name in FLAGS or name in ONE}
    signature = {name: "constexpr" if (i,) in constants else TYPES.get(name, "i32") for i, name in enumerate(names)}
    for capability in (80,) if "tail" in kernel.__name__ else (80, 90):  # the next test compiles the tails for 90
        source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
        built = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"enable_fp_fusion": True})
        assert len(built.asm["cubin"]) > 1000
        assert ".local" not in built.asm["ptx"]
"""
