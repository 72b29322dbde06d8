"""Frozen features of random weights, which the generator's recipes train against in a moment."""

from pathlib import Path

import pytest
import torch


@pytest.fixture(scope="module")
def trunk_state() -> dict[str, torch.Tensor]:
    """Random weights under the package's names and in its shapes."""
    draw = torch.Generator().manual_seed(0)
    state: dict[str, torch.Tensor] = {}

    def add(conv: str, norm: str, *shape: int) -> None:
        fan_in = shape[1] * shape[2] * shape[3]
        state[f"{conv}.weight"] = torch.randn(*shape, generator=draw) * (2 / fan_in) ** 0.5
        for name, value in (("weight", 1.0), ("bias", 0.1), ("running_mean", 0.0), ("running_var", 1.0)):
            state[f"{norm}.{name}"] = torch.full((shape[0],), value)

    add("_conv_stem", "_bn0", 32, 3, 3, 3)
    index, channels = 0, 32
    stages = (
        (1, 3, 16, 1),
        (2, 3, 24, 6),
        (2, 5, 40, 6),
        (3, 3, 80, 6),
        (3, 5, 112, 6),
        (4, 5, 192, 6),
        (1, 3, 320, 6),
    )
    for blocks, kernel, out, ratio in stages:
        for _ in range(blocks):
            name, wide = f"_blocks.{index}", channels * ratio
            if ratio > 1:
                add(f"{name}._expand_conv", f"{name}._bn0", wide, channels, 1, 1)
            add(f"{name}._depthwise_conv", f"{name}._bn1", wide, 1, kernel, kernel)
            add(f"{name}._project_conv", f"{name}._bn2", out, wide, 1, 1)
            index, channels = index + 1, out
    return state


@pytest.fixture(scope="module")
def trunk_file(trunk_state, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("trunk") / "trunk.pth"
    torch.save(trunk_state, path)
    return path
