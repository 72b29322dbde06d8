"""Finds the generator or discriminator in what a checkpoint holds: whose names it has, and its configuration."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from stylepairs.datagen.stylegan import key_maps
from stylepairs.datagen.stylegan.checkpoint_files import Content
from stylepairs.datagen.stylegan.official_pickle import Module, state_dict, walk
from stylepairs.datagen.stylegan.safe_pickle import CheckpointError, printable
from stylepairs.kernels.upfirdn2d import setup_filter

Tensors = Mapping[str, torch.Tensor]

_MAPPING_LR = 0.01
_OPTIONAL = ("mapping.w_avg", "noise_const")  # what a generator's file may lack, by the ends of the names
_LARGEST_SIZE = 2**22  # the widest base of channels is 2**16
_UNCONDITIONAL = (
    "is a conditional StyleGAN2 (it wants class labels), which is not supported; use an unconditional checkpoint"
)
# Where releases keep a network inside a checkpoint's dictionary, the averaged (EMA) one first.
_GENERATOR_PLACES = ("g_ema", "G_ema", "params_ema", "state_dict", "g", "G")
_DISCRIMINATOR_PLACES = ("d", "D", "state_dict")
_GENERATOR_PREFIXES = (
    "",
    "generator_ema.module.",
    "generator_ema.",
    "generator.module.",
    "generator.",
    "decoder.",
    "module.",
)
_DISCRIMINATOR_PREFIXES = ("", "discriminator.module.", "discriminator.", "module.")


@dataclass(frozen=True)
class Network:
    """A network found: its tensors by NVIDIA's names (FIR filters left out) and what fixes its shapes.

    optional: ends of names that may be absent; prefix, theirs: what the file itself calls its tensors, for messages.
    """

    tensors: Tensors
    config: dict[str, Any]
    optional: tuple[str, ...] = ()
    prefix: str = ""
    theirs: Mapping[str, str] = field(default_factory=dict)

    def name_of(self, key: str) -> str:
        return printable(self.prefix + self.theirs.get(key, key))


def find_generator(content: Content) -> Network:
    """The generator in a file. Raises CheckpointError where there is none that this package can run."""
    network = _any_generator(content)
    if network.config["img_channels"] != 3:
        raise CheckpointError(
            f"makes images of {network.config['img_channels']} channels, only RGB is supported; use another checkpoint"
        )
    return network


def find_discriminator(content: Content) -> Network:
    """The discriminator in a file. Raises CheckpointError where there is none that this package can run."""
    module = _official(content.root, ("D",), "b4")
    if module is not None:
        _check_official(module, r"b\d+\.(conv[01]|fromrgb)\.$", r"b\d+\.$", "resnet")
        config = {"conv_clamp": _conv_clamp(module, r"b\d+\.(conv[01]?|fromrgb)\.$")} | _minibatch_stddev(module)
        return _nvidia_discriminator(state_dict(module), config)
    tensors, prefix = _search(
        content.root, _DISCRIMINATOR_PLACES, _DISCRIMINATOR_PREFIXES, ("b4.out.weight", "final_linear.1.weight")
    )
    if "b4.out.weight" in tensors:
        return _nvidia_discriminator(tensors, content.metadata, prefix)
    if "final_linear.1.weight" not in tensors:
        raise CheckpointError(_nothing_found(content.root, "discriminator"))
    resolution = 4 * 2 ** key_maps.count_indexed(tensors, "convs.{}.conv1.0.weight", first=1, limit=10)
    return _nvidia_discriminator(_rename(tensors, key_maps.discriminator_names(resolution)), {}, prefix)


def _any_generator(content: Content) -> Network:
    root = content.root
    if isinstance(root, tuple) and len(root) == 3:
        raise CheckpointError(
            "is a pickle of three objects, as StyleGAN's TensorFlow code writes; convert it to PyTorch first"
        )
    module = _official(root, ("G_ema", "G"), "synthesis")
    if module is not None:
        tensors: Tensors = state_dict(module)
        _refuse_other_generators(tensors)
        _check_official(module, r"synthesis\.b\d+\.conv[01]\.$|mapping\.fc\d+\.$", r"synthesis\.b\d+\.$", "skip")
        clamp = _conv_clamp(module, r"synthesis\.b\d+\.(conv[01]|torgb)\.$")
        return _nvidia_generator(tensors, {"conv_clamp": clamp})
    signs = ("synthesis.b4.const", "input.input", "constant_input.input", "synthesis.input.freqs")
    tensors, prefix = _search(root, _GENERATOR_PLACES, _GENERATOR_PREFIXES, signs)
    layout = key_maps.generator_layout(tensors)
    _refuse_other_generators(tensors)
    if layout is None:
        raise CheckpointError(_nothing_found(root, "generator"))
    if layout == "nvidia":
        return _nvidia_generator(tensors, content.metadata, prefix)
    return _renamed_generator(tensors, layout, prefix, root.get("latent_avg"))


def _official(root: Any, places: tuple[str, ...], child: str) -> Module | None:
    candidates = [root.get(place) for place in places] if isinstance(root, dict) else [root]
    return next((found for found in candidates if isinstance(found, Module) and child in found.children()), None)


def _search(
    root: Any, places: tuple[str, ...], prefixes: tuple[str, ...], signs: tuple[str, ...]
) -> tuple[Tensors, str]:
    """The first state dict, at the root or in a place, that has a sign under a prefix; without it, and the prefix."""
    tables = [root, *(root.get(place) for place in places)] if isinstance(root, dict) else []
    for table in tables:
        if isinstance(table, Module):
            table = state_dict(table)
        if not isinstance(table, dict):
            continue
        for prefix in prefixes:
            if any(prefix + sign in table for sign in signs):
                inside = {key: value for key, value in table.items() if isinstance(key, str) and key.startswith(prefix)}
                return {k.removeprefix(prefix): v for k, v in inside.items() if isinstance(v, torch.Tensor)}, prefix
    return {}, ""


def _nvidia_generator(tensors: Tensors, declared: Mapping[str, Any], prefix: str = "") -> Network:
    if "mapping.embed.weight" in tensors:
        raise CheckpointError(_UNCONDITIONAL)
    kept = _without_filters(tensors)
    config = _inferred(key_maps.generator_config, kept)
    with_noise = any(key.endswith("noise_strength") for key in kept)
    optional = _OPTIONAL if with_noise else (*_OPTIONAL, "noise_strength")
    return Network(kept, _with_declared(config, declared), optional, prefix)


def _renamed_generator(tensors: Tensors, layout: str, prefix: str, latent_avg: object) -> Network:
    if "embed.weight_orig" in tensors or "embed.linear.weight_orig" in tensors:
        raise CheckpointError(_UNCONDITIONAL)
    column = key_maps.ROSINALITY if layout == "rosinality" else key_maps.OPENMMLAB
    mapping = "style.{}.weight" if layout == "rosinality" else "style_mapping.{}.linear.weight_orig"
    layers = key_maps.count_indexed(tensors, mapping, first=1)
    rgb = "to_rgbs.{}.conv.weight" if layout == "rosinality" else "to_rgbs.{}.conv.weight_orig"
    resolution = 4 * 2 ** key_maps.count_indexed(tensors, rgb, limit=10)
    names = key_maps.generator_names(resolution, layers, column) | {"mapping.w_avg": "w_avg"}
    renamed = _rename(_without_filters(tensors), names)
    config = _inferred(key_maps.generator_config, renamed)
    if isinstance(latent_avg, torch.Tensor) and "mapping.w_avg" not in renamed:
        renamed["mapping.w_avg"] = _mean_row(latent_avg, config["w_dim"])
    return Network(renamed, config, _OPTIONAL, prefix, names)


def _nvidia_discriminator(tensors: Tensors, declared: Mapping[str, Any], prefix: str = "") -> Network:
    if any(key.startswith("mapping.") for key in tensors):
        raise CheckpointError(_UNCONDITIONAL)
    kept = _without_filters(tensors)
    config = _inferred(key_maps.discriminator_config, kept)
    conditions = _number(declared, "cond_channels") or 0
    config |= {"cond_channels": conditions, "img_channels": config["img_channels"] - conditions}
    return Network(kept, _with_declared(config, declared), prefix=prefix)


def _rename(tensors: Tensors, names: Mapping[str, str]) -> dict[str, torch.Tensor]:
    """Tensors under NVIDIA's names and shapes; those without a counterpart keep their own name."""
    ours = {theirs: key for key, theirs in names.items()}
    renamed = {ours.get(key, key): tensor for key, tensor in tensors.items()}
    return {key: tensor.reshape(_our_shape(key, tuple(tensor.shape))) for key, tensor in renamed.items()}


def _our_shape(key: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Without the axes of length 1 that other releases keep, where NVIDIA's has none."""
    if key.endswith(".weight") and len(shape) == 5 and shape[0] == 1:
        return shape[1:]
    if key.endswith(".noise_strength") and shape == (1,):
        return ()
    if key.endswith(".noise_const") and len(shape) == 4 and shape[:2] == (1, 1):
        return shape[2:]
    if key.endswith(".const") and len(shape) == 4 and shape[0] == 1:
        return shape[1:]
    if key.endswith(".torgb.bias") and len(shape) == 4 and shape[0] == shape[2] == shape[3] == 1:
        return (shape[1],)
    return shape


def _mean_row(latent_avg: torch.Tensor, w_dim: int) -> torch.Tensor:
    """A mean latent kept once, or repeated for every layer (pSp)."""
    if latent_avg.numel() == 0 or latent_avg.numel() % w_dim:
        raise CheckpointError("has a latent_avg of another width than its latents; it is of an unknown variant")
    return latent_avg.float().reshape(-1, w_dim).mean(0)


def _inferred(infer: Callable[[key_maps.Shapes], dict[str, int]], tensors: Tensors) -> dict[str, Any]:
    try:
        found = infer({key: tuple(tensor.shape) for key, tensor in tensors.items()})
        if max(found.values()) > _LARGEST_SIZE:
            raise ValueError("its layers are wider than any network's")
        return dict(found)
    except KeyError as error:
        raise CheckpointError(f"lacks {printable(error.args[0])}; it is damaged or of an unknown variant") from None
    except IndexError:
        raise CheckpointError("has tensors of unexpected rank; it is damaged or of an unknown variant") from None
    except ValueError as error:
        raise CheckpointError(
            f"is of an unknown variant ({error}); use a checkpoint of the common configurations"
        ) from None


def _with_declared(config: dict[str, Any], declared: Mapping[str, Any]) -> dict[str, Any]:
    """Configuration from shapes, with what only the file can say; CheckpointError where the two disagree."""
    for key in ("z_dim", "w_dim", "img_resolution", "img_channels", "mapping_layers"):
        said = _number(declared, key)
        if key in config and said is not None and said != config[key]:
            raise CheckpointError(
                f"declares {key} {printable(said)}, but its tensors have {config[key]}; export it again"
            )
    extra = {key: _number(declared, key) for key in ("conv_clamp", "mbstd_group_size")}
    return config | {key: value for key, value in extra.items() if value is not None}


def _number(declared: Mapping[str, Any], key: str) -> Any:
    """An integer (or conv_clamp's float) from a declaration of numbers or text; None if it is absent."""
    value = declared.get(key)
    if value is None or value == "None":
        return None
    try:
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise TypeError
        number = float(value)
        if not math.isfinite(number) or number < 0 or (key != "conv_clamp" and not number.is_integer()):
            raise ValueError
    except (OverflowError, TypeError, ValueError):
        raise CheckpointError(
            f"declares {key} {printable(value)!r}, which is no usable number; export it again"
        ) from None
    return number if key == "conv_clamp" else int(number)


def _check_official(module: Module, layers: str, blocks: str, architecture: str) -> None:
    """Refuse settings that this package's networks do not have; shapes alone would not show them."""
    for prefix, part in walk(module):
        said = part.attribute("architecture")
        if re.fullmatch(blocks, prefix) and said not in (None, architecture):
            raise CheckpointError(
                f"has the architecture {printable(said)}, only {architecture} is supported; use another one"
            )
        activation = part.attribute("activation")
        if re.fullmatch(layers, prefix) and activation not in (None, "lrelu"):
            raise CheckpointError(
                f"has the activation {printable(activation)}, only lrelu is supported; use another checkpoint"
            )
        gain = part.attribute("bias_gain")
        is_usual = gain is None or (isinstance(gain, float) and math.isclose(gain, _MAPPING_LR))
        if re.fullmatch(r"mapping\.fc\d+\.", prefix) and not is_usual:
            raise CheckpointError(
                f"has a mapping lr_multiplier of {printable(gain)}, only {_MAPPING_LR} is supported; use another one"
            )


def _conv_clamp(module: Module, layers: str) -> float | None:
    """The clamp that the layers were built with; constructor arguments where the layers do not keep it."""
    parts = [part for prefix, part in walk(module) if re.fullmatch(layers, prefix)]
    clamps = {part.attribute("conv_clamp") for part in parts if "conv_clamp" in part.state}
    if not clamps:
        arguments = module.state.get("_init_kwargs")
        arguments = arguments if isinstance(arguments, dict) else {}
        inner = arguments.get("synthesis_kwargs")
        return _clamp(inner if isinstance(inner, dict) else arguments)
    clamp = clamps.pop()
    if clamps:
        raise CheckpointError(
            "clamps its layers differently from each other, which is not supported; use another checkpoint"
        )
    return _clamp({"conv_clamp": clamp})


def _clamp(declared: Mapping[str, Any]) -> float | None:
    clamp: float | None = _number(declared, "conv_clamp")
    return clamp


def _minibatch_stddev(module: Module) -> dict[str, int]:
    epilogue = module.children().get("b4")
    layer = epilogue.children().get("mbstd") if epilogue is not None else None
    if layer is None or layer.attribute("num_channels") not in (None, 1):
        raise CheckpointError("has another minibatch standard deviation than one channel; use another checkpoint")
    group = layer.state.get("group_size", 4)
    # None means the whole batch: a group that no batch exceeds.
    return {"mbstd_group_size": 2**30 if group is None else _number({"group": group}, "group")}


def _refuse_other_generators(tensors: Tensors) -> None:
    if any(key.startswith("synthesis.input.") for key in tensors):
        raise CheckpointError(
            "is a StyleGAN3 generator (config T or R), which has no StyleGAN2 layers; use config stylegan2"
        )
    if "synthesis.b8.skip.weight" in tensors or "mapping.embed.weight" in tensors:
        is_conditional = "mapping.embed.weight" in tensors
        raise CheckpointError(
            _UNCONDITIONAL if is_conditional else "has the architecture resnet; only skip is supported"
        )


def _without_filters(tensors: Tensors) -> dict[str, torch.Tensor]:
    """Leave out the FIR filters, which are built anew, after a look whether they are the usual [1, 3, 3, 1]."""
    usual = setup_filter()
    kept = {}
    for key, tensor in tensors.items():
        if not key.endswith((".resample_filter", ".blur.kernel", ".upsample.kernel", ".0.kernel")):
            kept[key] = tensor
        elif tensor.shape != (4, 4) or not torch.allclose(tensor.float() / tensor.float().sum(), usual, atol=1e-4):
            raise CheckpointError(
                f"resamples with another filter than [1, 3, 3, 1] ({printable(key)}); use another checkpoint"
            )
    return kept


def _nothing_found(root: Any, what: str) -> str:
    keys = [printable(key, 30) for key in root if isinstance(key, str)][:4] if isinstance(root, dict) else []
    inside = f" (it holds {', '.join(keys)}, ...)" if keys else ""
    return f"holds no StyleGAN2 {what}{inside}; give a checkpoint of a StyleGAN2 {what}"
