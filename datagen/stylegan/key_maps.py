"""Names and shapes of StyleGAN2 checkpoints: other releases' names for NVIDIA's, and configurations from shapes."""

from __future__ import annotations

from collections.abc import Mapping

Shapes = Mapping[str, tuple[int, ...]]

# The parts of one modulated layer: (ours, rosinality, OpenMMLab).
_PARTS = (
    ("weight", "conv.weight", "conv.weight_orig"),
    ("affine.weight", "conv.modulation.weight", "conv.style_modulation.linear.weight_orig"),
    ("affine.bias", "conv.modulation.bias", "conv.style_modulation.bias"),
)
_CONV_PARTS = (
    *_PARTS,
    ("bias", "activate.bias", "activate.bias"),
    ("noise_strength", "noise.weight", "noise_injector.weight"),
)
_RGB_PARTS = (*_PARTS, ("bias", "bias", "bias"))
ROSINALITY, OPENMMLAB = 1, 2
_RESOLUTIONS: list[int] = [2**k for k in range(2, 13)]


def generator_names(resolution: int, mapping_layers: int, layout: int) -> dict[str, str]:
    """NVIDIA's generator names -> those of a layout (ROSINALITY or OPENMMLAB); w_avg lies elsewhere in both."""
    mapping, weight = ("style", "weight") if layout == ROSINALITY else ("style_mapping", "linear.weight_orig")
    noise = "noises.noise_" if layout == ROSINALITY else "injected_noise_"
    names = {"synthesis.b4.const": "input.input" if layout == ROSINALITY else "constant_input.input"}
    for index in range(mapping_layers):
        names[f"mapping.fc{index}.weight"] = f"{mapping}.{index + 1}.{weight}"
        names[f"mapping.fc{index}.bias"] = f"{mapping}.{index + 1}.bias"
    for k in range(2, resolution.bit_length()):
        ours, first = f"synthesis.b{2**k}", 2 * (k - 3)
        convs = {"conv1": "conv1"} if k == 2 else {"conv0": f"convs.{first}", "conv1": f"convs.{first + 1}"}
        for position, (conv, theirs) in enumerate(convs.items()):
            names |= {f"{ours}.{conv}.{part[0]}": f"{theirs}.{part[layout]}" for part in _CONV_PARTS}
            names[f"{ours}.{conv}.noise_const"] = f"{noise}{0 if k == 2 else first + 1 + position}"
        to_rgb = "to_rgb1" if k == 2 else f"to_rgbs.{k - 3}"
        names |= {f"{ours}.torgb.{part[0]}": f"{to_rgb}.{part[layout]}" for part in _RGB_PARTS}
    return names


def discriminator_names(resolution: int) -> dict[str, str]:
    """NVIDIA's discriminator names -> rosinality's."""
    top = resolution.bit_length() - 1
    names = {f"b{resolution}.fromrgb.weight": "convs.0.0.weight", f"b{resolution}.fromrgb.bias": "convs.0.1.bias"}
    for k in range(top, 2, -1):
        ours, theirs = f"b{2**k}", f"convs.{top - k + 1}"
        names |= {
            f"{ours}.conv0.weight": f"{theirs}.conv1.0.weight",
            f"{ours}.conv0.bias": f"{theirs}.conv1.1.bias",
            f"{ours}.conv1.weight": f"{theirs}.conv2.1.weight",
            f"{ours}.conv1.bias": f"{theirs}.conv2.2.bias",
            f"{ours}.skip.weight": f"{theirs}.skip.1.weight",
        }
    names |= {"b4.conv.weight": "final_conv.0.weight", "b4.conv.bias": "final_conv.1.bias"}
    for ours, theirs in (("fc", "final_linear.0"), ("out", "final_linear.1")):
        names |= {f"b4.{ours}.{part}": f"{theirs}.{part}" for part in ("weight", "bias")}
    return names


def generator_layout(keys: Mapping[str, object]) -> str | None:
    """Whose names these are: "nvidia", "rosinality", "openmmlab", or None for neither."""
    signs = {"nvidia": "synthesis.b4.const", "rosinality": "input.input", "openmmlab": "constant_input.input"}
    return next((layout for layout, sign in signs.items() if sign in keys), None)


def count_indexed(keys: Mapping[str, object], pattern: str, first: int = 0, limit: int = 64) -> int:
    """How many of pattern.format(first), pattern.format(first + 1), ... are keys before one is missing."""
    indices = range(first, first + limit + 1)
    return next((index - first for index in indices if pattern.format(index) not in keys), limit)


def generator_config(shapes: Shapes) -> dict[str, int]:
    """Configuration from the shapes of NVIDIA-named tensors; KeyError or ValueError (why) where there is none."""
    resolution = _largest(shapes, "synthesis.b{}.torgb.weight")
    channels = {r: shapes[f"synthesis.b{r}.torgb.weight"][1] for r in _RESOLUTIONS if r <= resolution}
    base, maximum = channel_formula(channels)
    w_dim = shapes["synthesis.b4.conv1.affine.weight"][1]
    layers = count_indexed(shapes, "mapping.fc{}.weight")
    return {
        "z_dim": shapes["mapping.fc0.weight"][1] if layers else w_dim,
        "w_dim": w_dim,
        "img_resolution": resolution,
        "img_channels": shapes["synthesis.b4.torgb.weight"][0],
        "channel_base": base,
        "channel_max": maximum,
        "mapping_layers": layers,
    }


def discriminator_config(shapes: Shapes) -> dict[str, int]:
    """Configuration from the shapes of NVIDIA-named tensors; image and condition channels are counted together."""
    resolution = _largest(shapes, "b{}.fromrgb.weight")
    channels = {r: shapes[f"b{r}.conv0.weight"][1] for r in _RESOLUTIONS if 4 < r <= resolution}
    base, maximum = channel_formula(channels | {4: shapes["b4.conv.weight"][0]})
    return {
        "img_resolution": resolution,
        "img_channels": shapes[f"b{resolution}.fromrgb.weight"][1],
        "channel_base": base,
        "channel_max": maximum,
    }


def channel_formula(channels: Mapping[int, int]) -> tuple[int, int]:
    """(channel_base, channel_max) such that channels[r] is min(channel_base // r, channel_max); else ValueError."""
    maximum = max(channels.values())
    low = max(r * c for r, c in channels.items())
    if any(min(low // r, maximum) != c for r, c in channels.items()):
        listed = ", ".join(f"{r} px: {c}" for r, c in sorted(channels.items()))
        raise ValueError(f"channel counts ({listed}) do not follow min(channel_base / resolution, channel_max)")
    return low, maximum


def _largest(keys: Mapping[str, object], pattern: str) -> int:
    """The largest resolution whose name is among the keys; KeyError where there is none of at least 8."""
    found = [r for r in _RESOLUTIONS if r >= 8 and pattern.format(r) in keys]
    if not found:
        raise KeyError(pattern.format("8"))
    return found[-1]
