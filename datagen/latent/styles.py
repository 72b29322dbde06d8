"""StyleSpace (Wu, Lischinski, Shechtman 2021): the channels by which a generator's layers are modulated, read and moved
at run time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from stylepairs.datagen.stylegan.generator import Generator
from stylepairs.datagen.stylegan.layers import FullyConnected

Styles = dict[str, torch.Tensor]  # layer's name -> [C] or [N,C], C channels that the layer modulates


@dataclass(frozen=True)
class StyleLayer:
    """A modulated layer: its name as in the state dict ("b8.conv0"), row of W+ and affine map from that row."""

    name: str
    row: int
    affine: FullyConnected

    @property
    def channels(self) -> int:
        return self.affine.weight.shape[0]


def style_layers(generator: Generator) -> list[StyleLayer]:
    """All modulated layers, in the order of the pyramid; a ToRGB shares its row with the next block's first layer."""
    layers, row = [], 0
    for block in generator.synthesis.blocks():
        convs = block.convs()
        names = ["conv1"] if len(convs) == 1 else ["conv0", "conv1"]
        for index, (name, conv) in enumerate(zip(names, convs, strict=True)):
            layers.append(StyleLayer(f"b{block.resolution}.{name}", row + index, conv.affine))
        row += len(convs)
        layers.append(StyleLayer(f"b{block.resolution}.torgb", row, block.torgb.affine))
    return layers


def styles_of_latents(generator: Generator, ws: torch.Tensor) -> Styles:
    """The styles of latents ws [N,L,C], [N,channels] each."""
    return {layer.name: layer.affine(ws[:, layer.row]) for layer in style_layers(generator)}


@contextmanager
def styles_moved(generator: Generator, offsets: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """Inside the block `offsets` ([channels] or [N,channels]) are added to the styles of their layers."""
    layers = {layer.name: layer.affine for layer in style_layers(generator)}
    handles = [
        layers[name].register_forward_hook(lambda _module, _inputs, styles, offset=offset: styles + offset)
        for name, offset in offsets.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def rows_for_styles(generator: Generator, offsets: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, float]:
    """The smallest rows [L,C] whose addition to W+ moves the styles by `offsets`, and what of them it misses, a share.

    Exact where a row of W+ has no fewer entries than its layers have channels together; the official generators' rows
    have half of that.
    """
    missed = wanted = 0.0
    rows = torch.zeros(generator.num_ws, generator.config.w_dim, dtype=torch.float64)
    for row in range(generator.num_ws):
        layers = [layer for layer in style_layers(generator) if layer.row == row]
        if not any(layer.name in offsets for layer in layers):
            continue
        gains = torch.cat([layer.affine.weight.double().cpu() * layer.affine.weight_gain for layer in layers])
        zero = [torch.zeros(layer.channels) for layer in layers]
        moved = [offsets.get(layer.name, nothing) for layer, nothing in zip(layers, zero, strict=True)]
        target = torch.cat([part.double().cpu() for part in moved])
        rows[row] = torch.linalg.pinv(gains) @ target
        missed += float((gains @ rows[row] - target).square().sum())
        wanted += float(target.square().sum())
    return rows.float(), (missed / max(wanted, 1e-30)) ** 0.5
