"""The generator alone: forward, and forward and backward to the latent, ours beside our plain reference and peers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import measure
import peers
import torch
from drawn import random_generator

from stylepairs.datagen.reconstruction.rendering import synthesise, use_channels_last
from stylepairs.datagen.stylegan.generator import Generator, SynthesisLayer, ToRGB
from stylepairs.kernels.bias_act import bias_act
from stylepairs.kernels.modulated_conv2d import modulated_conv2d
from stylepairs.kernels.upfirdn2d import upsample2d

Rows = dict[str, dict[str, Any]]
PLAIN, FP32, BF16 = "ours, plain fp32 reference", "ours, fp32", "ours, bf16"
Render = Callable[[torch.Tensor], torch.Tensor]


def plain_synthesis(generator: Generator, ws: torch.Tensor) -> torch.Tensor:
    """The synthesis network as the papers write it: a weight per sample, the FIR filter in two dimensions, nothing
    fused, default memory layout. The reference that speed is counted from."""
    x = image = None
    index = 0
    for block in generator.synthesis.blocks():
        if x is None:
            x = block.const.expand(len(ws), -1, -1, -1)
        for layer in block.convs():
            x = _plain_layer(layer, x, ws[:, index])
            index += 1
        rgb = _plain_rgb(block.torgb, x, ws[:, index])
        # A kernel of two dimensions takes the unseparated path.
        image = rgb if image is None else rgb + upsample2d(image, block.resample_filter, impl="reference")
    assert image is not None
    return image


def _plain_layer(layer: SynthesisLayer, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    x = modulated_conv2d(x, layer.weight, layer.affine(w), layer.up, layer.resample_filter, impl="grouped")
    x = x + layer.noise_const * layer.noise_strength
    return bias_act(x, layer.bias, act="lrelu", clamp=layer.clamp, impl="reference")


def _plain_rgb(layer: ToRGB, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    styles = layer.affine(w) * layer.weight_gain
    x = modulated_conv2d(x, layer.weight, styles, demodulate=False, impl="grouped")
    return bias_act(x, layer.bias, clamp=layer.clamp, impl="reference")


def our_renders(resolution: int, channel_base: int) -> tuple[dict[str, Render], Generator]:
    """The three ways, all with the same weights; the plain one has its own copy in the default layout."""
    plain = random_generator(resolution, channel_base)
    fast = random_generator(resolution, channel_base)
    use_channels_last(fast)
    maps = fast.noise_maps()

    def render(precision: str) -> Render:
        return lambda ws: synthesise(fast, ws, [level.expand(len(ws), -1, -1, -1) for level in maps], precision)

    return {PLAIN: lambda ws: plain_synthesis(plain, ws), FP32: render("fp32"), BF16: render("bf16")}, fast


def contestants(
    resolution: int, channel_base: int, batch: int, with_peers: bool
) -> tuple[dict[str, Render], dict[str, torch.Tensor], dict[str, dict[str, Any]]]:
    """Renderers, the latents each starts from, and what is known of each: parameters, note."""
    renders, generator = our_renders(resolution, channel_base)
    torch.manual_seed(1)
    ws = torch.randn(batch, generator.num_ws, generator.config.w_dim)
    latents = dict.fromkeys(renders, ws)
    millions = sum(p.numel() for p in generator.parameters()) / 1e6
    known: dict[str, dict[str, Any]] = {name: {"parameters_millions": millions, "note": ""} for name in renders}
    for name in peers.installed() if with_peers else []:
        peer = peers.load_generator(name, resolution, channel_base)
        renders[name], latents[name] = peer.render, peer.latents(batch)
        count = sum(p.numel() for p in peer.module.parameters()) / 1e6
        known[name] = {"parameters_millions": count, "note": peer.note}
    if "basicsr" in renders:
        renders["basicsr, bf16 autocast"] = autocast(renders["basicsr"])
        latents["basicsr, bf16 autocast"] = latents["basicsr"]
        known["basicsr, bf16 autocast"] = {**known["basicsr"], "note": "not a setting of the package: torch's autocast"}
    return renders, latents, known


def autocast(render: Render) -> Render:
    def run(ws: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return render(ws)

    return run


def forward(render: Render, ws: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return render(ws)


def forward_backward(render: Render, ws: torch.Tensor) -> torch.Tensor:
    """The gradient of the image's mean square to the latent."""
    ws = ws.detach().requires_grad_()
    # A view, as torch's operation counter cannot follow a leaf.
    gradient: torch.Tensor = torch.autograd.grad(render(ws.view_as(ws)).float().square().mean(), ws)[0]
    return gradient


def parity(renders: dict[str, Render], ws: torch.Tensor) -> dict[str, dict[str, float]]:
    """Largest difference from the plain reference, image and gradient, over the reference's largest value."""
    found = {}
    image, gradient = forward(renders[PLAIN], ws), forward_backward(renders[PLAIN], ws)
    for name in (FP32, BF16):
        off = (forward(renders[name], ws) - image).abs().max() / image.abs().max()
        off_gradient = (forward_backward(renders[name], ws) - gradient).abs().max() / gradient.abs().max()
        found[name] = {"image_error": float(off), "gradient_error": float(off_gradient)}
    return found


def compare(work: str, resolution: int, channel_base: int, batch: int, rounds: int, with_peers: bool = True) -> Rows:
    """Rows of one comparison; work is "forward" or "forward_backward"; per image."""
    renders, latents, known = contestants(resolution, channel_base, batch, with_peers)
    run = {"forward": forward, "forward_backward": forward_backward}[work]
    counted = {**renders, BF16: renders[FP32]}
    for name in renders:
        known[name]["gflop"] = measure.counted_gflop(partial(run, counted[name], latents[name][:1]))
    for name, errors in parity(renders, latents[PLAIN][:1]).items():
        known[name] |= errors
    runs = {name: partial(run, renders[name], latents[name]) for name in renders}
    return measure.rows_of(measure.interleaved(runs, rounds), batch, known)


def sweep_resolution(resolutions: list[int], channel_base: int, rounds: int) -> dict[str, dict[str, Any]]:
    """Forward and backward of one image at each resolution, ours three ways."""
    return {str(size): compare("forward_backward", size, channel_base, 1, rounds, False) for size in resolutions}


def sweep_batch(resolution: int, batches: list[int], channel_base: int, rounds: int) -> dict[str, dict[str, Any]]:
    """The same per image at each batch."""
    return {str(n): compare("forward_backward", resolution, channel_base, n, rounds, False) for n in batches}
