"""The Triton kernels beside plain PyTorch on a GPU, each with the least time that its bytes and operations take.

    python benchmarks/gpu_kernels.py [--gpu h100] [--resolutions 256 512 1024] [--dtype bf16] [--docs docs/notes/gpu.md]
    python benchmarks/gpu_kernels.py --floors [--docs docs/notes/gpu.md]    (the floors alone, on any machine)

A floor is the larger of bytes / bandwidth and operations / peak, when every input is read once, every output written
once, and nothing else. Contestants take turns (A B A B ...), the L2 cache overwritten before each turn.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "speed"))

import torch
from pages import put_into

from stylepairs.datagen.reconstruction.rendering import use_channels_last
from stylepairs.datagen.stylegan.generator import Generator, GeneratorConfig
from stylepairs.kernels import plain
from stylepairs.kernels.gpu.cuda_graph import graphed
from stylepairs.kernels.modulated_layer import modulated_layer
from stylepairs.kernels.upfirdn2d import setup_filter, upsample2d

TAPS = 4  # of StyleGAN2's resampling filter, along each axis
POINTWISE = 6  # operations of an output beside the filter: demodulation, noise, bias, leaky ReLU (2), gain
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
FLUSH_BYTES = 256 * 2**20  # more than any L2 cache


@dataclass(frozen=True)
class Gpu:
    """Published peaks: memory in TB/s; dense matrix products and plain float32 operations in TFLOP/s."""

    name: str
    bandwidth: float
    bf16: float
    fp32: float  # matrix products of float32 in full, not TF32, and everything that is no matrix product


GPUS = {
    "a100": Gpu("A100 80 GB SXM", 2.039, 312.0, 19.5),
    "h100": Gpu("H100 SXM", 3.35, 989.0, 67.0),
    "h200": Gpu("H200 SXM", 4.8, 989.0, 67.0),
}


@dataclass(frozen=True)
class Work:
    """The least that must be done: bytes moved, operations of matrix products, other operations."""

    bytes: float
    matrix: float
    plain: float

    def __add__(self, other: Work) -> Work:
        return Work(self.bytes + other.bytes, self.matrix + other.matrix, self.plain + other.plain)

    def seconds(self, gpu: Gpu, dtype: str) -> float:
        """The floor: what takes longest of the three, as if it hid the others."""
        peak = gpu.bf16 if dtype == "bf16" else gpu.fp32
        return max(self.bytes / gpu.bandwidth, self.matrix / peak, self.plain / gpu.fp32) / 1e12


@dataclass(frozen=True)
class Layer:
    """A synthesis layer's sizes: batch, channels, side of its output in pixels, and whether it doubles the side."""

    batch: int
    channels_in: int
    channels_out: int
    side: int
    up: int

    @property
    def inputs(self) -> int:
        return self.batch * self.channels_in * (self.side // self.up) ** 2

    @property
    def outputs(self) -> int:
        return self.batch * self.channels_out * self.side**2

    @property
    def convolved(self) -> int:
        """Elements between the convolution and the filter; without a filter those of the output."""
        return self.batch * self.channels_out * (self.side + 1) ** 2 if self.up == 2 else self.outputs

    @property
    def pixels(self) -> int:
        return self.batch * self.side**2


def tail_forward(layer: Layer, width: int) -> Work:
    """What follows the convolution: filter, demodulation, noise (float32, a map per sample), bias, activation; elements
    of `width` bytes."""
    small = 4 * (layer.pixels + layer.batch * layer.channels_out + layer.channels_out)
    return Work(width * (layer.convolved + layer.outputs) + small, 0, layer.outputs * (_filter(layer) + POINTWISE))


def tail_backward(layer: Layer, width: int) -> Work:
    """Gradients to the convolution's result, demodulation and noise from those to the output; the filter is run again
    and its adjoint once."""
    small = 4 * (2 * layer.pixels + 2 * layer.batch * layer.channels_out + layer.channels_out)
    plain = layer.outputs * (_filter(layer) + 2 * POINTWISE) + layer.convolved * _filter(layer)
    return Work(width * (2 * layer.convolved + layer.outputs) + small, 0, plain)


def _filter(layer: Layer) -> int:
    return 2 * 2 * TAPS if layer.up == 2 else 0  # two passes of one dimension, an operation each to multiply and add


def convolution(layer: Layer, width: int) -> Work:
    """The 3x3 convolution of scaled inputs, the scaling included; backward to its input it is the same again."""
    weights = 9 * layer.channels_in * layer.channels_out
    matrix = 2 * weights * layer.batch * (layer.side // layer.up) ** 2
    return Work(width * (layer.inputs + layer.convolved + weights), matrix, layer.inputs)


def upsampling(batch: int, side: int) -> Work:
    """The float32 image, 3 channels, from half of `side`; forward and backward alike."""
    outputs = 3 * batch * side**2
    return Work(4 * (outputs + outputs // 4), 0, outputs * 2 * TAPS)


def layers_of(config: GeneratorConfig, batch: int, from_px: int = 4) -> list[Layer]:
    """The synthesis layers of a generator, those with an output of from_px or more."""
    found = []
    for side in config.resolutions:
        if side > 4:
            found.append(Layer(batch, config.channels(side // 2), config.channels(side), side, 2))
        found.append(Layer(batch, config.channels(side), config.channels(side), side, 1))
    return [layer for layer in found if layer.side >= from_px]


def gradients(forward: Callable[[], torch.Tensor], inputs: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    y = forward()
    return torch.autograd.grad(y, inputs, torch.ones_like(y))


def both_ways(layer: Layer, width: int) -> Work:
    """Forward, and backward to the layer's input, styles and noise, each convolution's result kept in memory."""
    convolved = convolution(layer, width)
    return convolved + tail_forward(layer, width) + tail_backward(layer, width) + convolved


def floors_table(gpus: Sequence[Gpu], resolutions: Sequence[int], batch: int, dtype: str) -> str:
    """Markdown: each part of each layer with what it moves and does, and its floor on each GPU in microseconds."""
    width = DTYPES[dtype].itemsize
    head = f"| {dtype}, batch {batch} | MB | GFLOP | " + " | ".join(f"{gpu.name}, us" for gpu in gpus) + " |"
    lines = [head, "|---|" + "---|" * (2 + len(gpus))]
    for name, work in _rows(resolutions, batch, width):
        floors = " | ".join(f"{work.seconds(gpu, dtype) * 1e6:,.0f}" for gpu in gpus)
        lines.append(f"| {name} | {work.bytes / 1e6:,.0f} | {(work.matrix + work.plain) / 1e9:,.1f} | {floors} |")
    return "\n".join(lines)


def _rows(resolutions: Sequence[int], batch: int, width: int) -> Iterator[tuple[str, Work]]:
    for side in resolutions:
        config = GeneratorConfig(img_resolution=side)
        for layer in layers_of(config, batch, side):
            name = f"{side} px, {layer.channels_in} to {layer.channels_out}" + (", up 2" if layer.up == 2 else "")
            yield f"{name}: convolution", convolution(layer, width)
            yield f"{name}: tail, forward", tail_forward(layer, width)
            yield f"{name}: tail, backward", tail_backward(layer, width)
        yield f"{side} px: image upsampled", upsampling(batch, side)
        yield f"{side} px: all layers, forward and backward", whole(config, batch, width)


def whole(config: GeneratorConfig, batch: int, width: int) -> Work:
    """All layers forward and backward; ToRGB, under 1 % of the operations, is left out."""
    total = Work(0, 0, 0)
    for layer in layers_of(config, batch):
        total += both_ways(layer, width)
    return total


@dataclass(frozen=True)
class Case:
    """Something to time, on either path, and its floor; plain None: the same run with Triton passed over."""

    name: str
    run: Callable[[], object]
    work: Work
    plain: Callable[[], object] | None = None


@contextlib.contextmanager
def triton(on: bool) -> Iterator[None]:
    """Within: auto takes Triton, or passes it over."""
    before = os.environ.get("STYLEPAIRS_TRITON")
    os.environ["STYLEPAIRS_TRITON"] = "1" if on else "0"
    try:
        yield
    finally:
        if before is None:
            del os.environ["STYLEPAIRS_TRITON"]
        else:
            os.environ["STYLEPAIRS_TRITON"] = before


def cases(config: GeneratorConfig, batch: int, dtype: str, device: str) -> Iterator[Case]:
    """The layers of a generator's last block, the image's upsampling, and the whole generator to W+ and noise."""
    side, width, kind = config.img_resolution, DTYPES[dtype].itemsize, DTYPES[dtype]
    for layer in layers_of(config, batch, side):
        x = torch.randn(batch, layer.channels_in, side // layer.up, side // layer.up, device=device, dtype=kind)
        x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
        weight = torch.randn(layer.channels_out, layer.channels_in, 3, 3, device=device, dtype=kind)
        weight = weight.contiguous(memory_format=torch.channels_last)
        styles = torch.randn(batch, layer.channels_in, device=device).requires_grad_()
        noise = torch.randn(batch, 1, side, side, device=device).requires_grad_()
        bias, taps = torch.randn(layer.channels_out, device=device), setup_filter().sum(0).to(device)

        forward = partial(modulated_layer, x, weight, styles, bias, noise, layer.up, taps, clamp=256.0)
        backward = partial(gradients, forward, (x, styles, noise))

        name = f"{side} px, {layer.channels_in} to {layer.channels_out}" + (", up 2" if layer.up == 2 else "")
        yield from tail_cases(name, layer, noise, bias, kind)
        yield Case(f"{name}: layer, forward", forward, convolution(layer, width) + tail_forward(layer, width))
        yield Case(f"{name}: layer, both ways", backward, both_ways(layer, width))
    image, square = torch.randn(batch, 3, side // 2, side // 2, device=device), setup_filter().sum(0).to(device)
    yield Case(f"{side} px: image upsampled", lambda: upsample2d(image, square), upsampling(batch, side))
    step = generator_step(config, batch, dtype, device)
    yield Case(f"{side} px: generator, both ways", step, whole(config, batch, width))


def tail_cases(name: str, layer: Layer, noise: torch.Tensor, bias: torch.Tensor, kind: torch.dtype) -> Iterator[Case]:
    """What follows the convolution, alone: forward, and both ways."""
    from stylepairs.kernels.gpu.triton_layer import layer_tail

    side = layer.side + layer.up - 1
    device = noise.device
    u = torch.randn(layer.batch, layer.channels_out, side, side, device=device, dtype=kind)
    u = u.contiguous(memory_format=torch.channels_last).requires_grad_()
    demod = torch.rand(layer.batch, layer.channels_out, device=device).requires_grad_()
    taps, padding = (setup_filter().sum(0).to(device) * 2, (1, 1, 1, 1)) if layer.up == 2 else (None, (0, 0, 0, 0))

    def fast() -> torch.Tensor:
        return layer_tail(u, demod, noise, bias, clamp=256.0, taps=taps, padding=padding)

    def reference() -> torch.Tensor:
        return plain.layer_tail(u, demod, noise, bias, taps, (0.2, math.sqrt(2), 256.0, padding))

    def back(forward: Callable[[], torch.Tensor]) -> Callable[[], object]:
        def run() -> object:
            y = forward()
            return torch.autograd.grad(y, (u, demod, noise), torch.ones_like(y))

        return run

    width = kind.itemsize
    yield Case(f"{name}: tail, forward", fast, tail_forward(layer, width), reference)
    both = tail_forward(layer, width) + tail_backward(layer, width)
    yield Case(f"{name}: tail, both ways", back(fast), both, back(reference))


def generator_step(config: GeneratorConfig, batch: int, dtype: str, device: str) -> Callable[[], None]:
    """Forward and backward to W+ and noise of a frozen random generator, both moved a little in place."""
    generator = Generator(config).to(device).requires_grad_(False)
    use_channels_last(generator)
    ws = torch.randn(batch, config.num_ws, config.w_dim, device=device).requires_grad_()
    noise = [level.repeat(batch, 1, 1, 1).requires_grad_() for level in generator.noise_maps()]

    def step() -> None:
        with torch.autocast(device, torch.bfloat16, enabled=dtype == "bf16"):
            image = generator.synthesis(ws, noise)
        gradients = torch.autograd.grad(image.square().mean(), [ws, *noise])
        with torch.no_grad():
            for value, gradient in zip([ws, *noise], gradients, strict=True):
                value -= 1e-3 * gradient

    return step


def timed(runs: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each, in turns, after two rounds that are not counted."""
    flush = torch.empty(FLUSH_BYTES, dtype=torch.int8, device="cuda")
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for index in range(rounds + 2):
        for name, run in runs.items():
            flush.zero_()
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            run()
            end.record()
            torch.cuda.synchronize()
            if index >= 2:
                taken[name].append(start.elapsed_time(end) / 1e3)
    return {name: statistics.median(values) for name, values in taken.items()}


def contestants(case: Case) -> dict[str, Callable[[], object]]:
    """Plain PyTorch, Triton, and Triton as a CUDA graph: what is captured is what ran under the switch."""

    def by_torch() -> None:
        with triton(False):
            (case.plain or case.run)()

    def fast() -> None:
        with triton(True):
            case.run()

    return {"plain": by_torch, "triton": fast, "graph": graphed(fast, torch.device("cuda"))}


def measured_table(gpu: Gpu, resolutions: Sequence[int], batch: int, dtype: str, rounds: int) -> str:
    """Markdown: microseconds of each contestant beside the floor."""
    lines = [
        f"{torch.cuda.get_device_name()}, torch {torch.__version__}, median of {rounds} rounds, floor of {gpu.name}.\n",
        f"| {dtype}, batch {batch} | plain, us | Triton, us | Triton in a CUDA graph, us | floor, us | floor / best |",
        "|---|---|---|---|---|---|",
    ]
    for side in resolutions:
        for case in cases(GeneratorConfig(img_resolution=side), batch, dtype, "cuda"):
            took, floor = timed(contestants(case), rounds), case.work.seconds(gpu, dtype)
            cells = " | ".join(f"{took[name] * 1e6:,.0f}" for name in ("plain", "triton", "graph"))
            share = floor / min(took.values())
            lines.append(f"| {case.name} | {cells} | {floor * 1e6:,.0f} | {share:.0%} |")
    return "\n".join(lines)


def gpu_at_hand(options: argparse.Namespace) -> Gpu:
    """The GPU whose peaks count: the one named, or found by its name; single peaks may be given."""
    name = torch.cuda.get_device_name().lower()
    key = options.gpu or next((key for key in GPUS if key in name), None)
    if key is None and not (options.bandwidth and options.tflops):
        raise SystemExit(f"{name}: peaks not known; pass --bandwidth TB_S and --tflops TFLOP_S")
    known = GPUS.get(key or "", Gpu(name, math.inf, math.inf, math.inf))
    bf16, fp32 = known.bf16, known.fp32
    if options.tflops:
        bf16, fp32 = (options.tflops, fp32) if options.dtype == "bf16" else (bf16, options.tflops)
    return Gpu(known.name, options.bandwidth or known.bandwidth, bf16, fp32)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--floors", action="store_true", help="print the floors and measure nothing")
    parser.add_argument("--gpu", choices=GPUS, help="whose peaks the floors count with (default: found by name)")
    parser.add_argument("--bandwidth", type=float, help="TB/s, in place of the published figure")
    parser.add_argument("--tflops", type=float, help="of dense matrix products in the dtype, likewise")
    parser.add_argument("--resolutions", type=int, nargs="+", default=[256, 512, 1024])
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--dtype", choices=DTYPES, default="bf16")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--docs", type=Path, help="page to put the table into")
    options = parser.parse_args(arguments)
    if options.floors:
        chosen = [GPUS[options.gpu]] if options.gpu else list(GPUS.values())
        mark, table = "floors", floors_table(chosen, options.resolutions, options.batch, options.dtype)
    elif not torch.cuda.is_available():
        print("gpu_kernels: no CUDA device here; --floors prints what the kernels would have to reach", file=sys.stderr)
        return 2
    else:
        gpu = gpu_at_hand(options)
        mark, table = "times", measured_table(gpu, options.resolutions, options.batch, options.dtype, options.rounds)
    print(table)
    if options.docs is not None:
        put_into(options.docs, table, mark)
    return 0


if __name__ == "__main__":
    sys.exit(main())
