"""Reads StyleGAN2 generators and discriminators from every common checkpoint format, and writes our own.

Checkpoints are data, never code: nothing that a file names is imported or called (see safe_pickle).
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, fields, replace
from importlib import resources
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from stylepairs.datagen.shell.decode import Damaged, read_safetensors_metadata
from stylepairs.datagen.shell.durable import safetensors_bytes, write_bytes
from stylepairs.datagen.shell.errors import InputError
from stylepairs.datagen.stylegan.checkpoint_files import read_content
from stylepairs.datagen.stylegan.discriminator import Discriminator, DiscriminatorConfig
from stylepairs.datagen.stylegan.generator import Generator, GeneratorConfig
from stylepairs.datagen.stylegan.key_maps import ROSINALITY, generator_names
from stylepairs.datagen.stylegan.network_search import Network, find_discriminator, find_generator
from stylepairs.datagen.stylegan.safe_pickle import CheckpointError, printable
from stylepairs.kernels.upfirdn2d import setup_filter

# What the package carries: that of 128 px, and the same with a block more.
EMBEDDED = {"embedded": "generator.safetensors", "embedded:256": "generator_256.safetensors"}
ADAPTED_FROM = "adapted_from"  # in a file's metadata: the digest of the generator whose latents it takes
# The mean latent of a checkpoint without one: enough draws for an error of 1 % of W's spread, the same ones every time.
MEAN_LATENT_SAMPLES = 10_000
MEAN_LATENT_SEED = 123
NOISE_SEED = 0

Net = TypeVar("Net", Generator, Discriminator)
Config = TypeVar("Config", GeneratorConfig, DiscriminatorConfig)


def load_generator(source: str | Path) -> Generator:
    """The generator of a checkpoint, on the CPU, in float32, in evaluation mode, without gradients for its weights.

    source: "embedded" or "embedded:256" for those that the package carries, or a file: an official pickle
    (stylegan2-ada-pytorch, stylegan3 with config stylegan2; G_ema), a rosinality `.pt` (g_ema; also inside pSp and e4e
    checkpoints), an OpenMMLab `.pth` (generator_ema) or `.safetensors`; the content decides, not the extension. What
    the file lacks is inferred from its tensors' shapes; a missing mean latent is estimated from the mapping network, a
    missing noise map drawn, with fixed seeds. Raises InputError where the file holds no such generator or asks for
    code.
    """
    with _as_input_error(source):
        content = read_content(_path(source))
        network = find_generator(content)
        estimated = "mapping.w_avg" not in network.tensors
        config = replace(_configured(GeneratorConfig, network), mean_is_estimated=estimated)
        generator = _shapes_only(Generator, config)
        values = _read_values(network, generator, content.size)
    # Fixed maps for a file without noise buffers, and strength 0 for a network trained without noise.
    random = torch.Generator().manual_seed(NOISE_SEED)
    for key, empty in generator.state_dict().items():
        if key.endswith("noise_const"):
            values.setdefault(key, torch.randn(empty.shape, generator=random))
            values.setdefault(key.replace("noise_const", "noise_strength"), torch.zeros([]))
    values.setdefault("mapping.w_avg", torch.zeros(generator.config.w_dim))
    _fill(generator, values)
    if estimated:
        generator.mapping.w_avg.copy_(estimate_mean_latent(generator))
    return generator


def load_discriminator(source: str | Path) -> Discriminator:
    """The discriminator of an official pickle (D), a rosinality `.pt` (d), `.safetensors`; else as `load_generator`."""
    with _as_input_error(source):
        content = read_content(_path(source))
        network = find_discriminator(content)
        discriminator = _shapes_only(Discriminator, _configured(DiscriminatorConfig, network))
        values = _read_values(network, discriminator, content.size)
    return _fill(discriminator, values)


def save_generator(path: str | Path, generator: Generator, metadata: Mapping[str, str] | None = None) -> None:
    """Write `.safetensors` with the configuration, and `metadata`, as text in its metadata; whole or not at all. An
    estimated mean latent is left out, and estimated again when the file is loaded.

    Raises ValueError where metadata has a key of the configuration, InputError where the file cannot be written.
    """
    config = {key: str(value) for key, value in asdict(generator.config).items() if value is not None}
    del config["mean_is_estimated"]  # the file shows it: there is no mean in it
    clash = sorted(set(config) & set(metadata or {}))
    if clash:
        raise ValueError(f"save_generator: metadata may not set {', '.join(clash)}, the configuration does")
    tensors = {key: value.detach().cpu().contiguous() for key, value in _own_tensors(generator).items()}
    content = safetensors_bytes(tensors, metadata={**(metadata or {}), **config})
    write_bytes(Path(path), content)


def export_rosinality(path: str | Path, generator: Generator) -> None:
    """Write a `.pt` with {g_ema, latent_avg} for rosinality/stylegan2-pytorch and the encoders built on it.

    Raises InputError where that code cannot express the generator: it has one width for z and w, RGB, no activation
    clamp, and channels 512 to 32 px, then halving from 256 or 512 at 64 px.
    """
    config = generator.config
    state = {key: value.detach().cpu() for key, value in generator.state_dict().items()}
    widths = [{r: min(512, 32768 * multiplier // 2 // r) for r in config.resolutions} for multiplier in (1, 2)]
    widths = [{r: 512 if r <= 32 else c for r, c in width.items()} for width in widths]
    channels = {r: config.channels(r) for r in config.resolutions}
    if config.z_dim != config.w_dim or config.img_channels != 3 or config.conv_clamp or channels not in widths:
        raise InputError(
            f"{path}: this generator's configuration does not exist in rosinality's code; save it as .safetensors"
        )
    theirs = {}
    for ours, name in generator_names(config.img_resolution, config.mapping_layers, ROSINALITY).items():
        theirs[name] = _rosinality_shape(ours, state[ours])
    # Their kernels include the gain of upsampling: 4 in sum.
    kernel = setup_filter(gain=4.0)
    for index in range(len(config.resolutions) - 1):
        theirs[f"convs.{2 * index}.conv.blur.kernel"] = kernel.clone()
        theirs[f"to_rgbs.{index}.upsample.kernel"] = kernel.clone()
    content = io.BytesIO()
    torch.save({"g_ema": theirs, "latent_avg": state["mapping.w_avg"]}, content)
    write_bytes(Path(path), content.getbuffer())


def generator_digest(generator: Generator) -> str:
    """SHA-256 (hex) over everything that shapes an image, the same whichever format the generator came from. An
    estimated mean latent does not count: its last bits depend on the processor, and the weights say it already."""
    clamp = generator.config.conv_clamp
    digest = hashlib.sha256(f"conv_clamp={clamp if clamp is None else float(clamp)}".encode())
    for key, value in sorted(_own_tensors(generator).items()):
        if not key.endswith("resample_filter"):
            digest.update(f"{key} {tuple(value.shape)} ".encode())
            digest.update(value.detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
    return digest.hexdigest()


def _own_tensors(generator: Generator) -> dict[str, torch.Tensor]:
    """The state that the generator's file gave."""
    state: dict[str, torch.Tensor] = generator.state_dict()
    if generator.config.mean_is_estimated:
        del state["mapping.w_avg"]
    return state


def latents_digest(source: str | Path, generator: Generator) -> str:
    """The digest of the generator whose latents a checkpoint takes: that which it was adapted from, else its own."""
    try:
        known = read_safetensors_metadata(_path(source)).get(ADAPTED_FROM, "")
    except Damaged:  # of another format
        known = ""
    return known if re.fullmatch("[0-9a-f]{64}", known) else generator_digest(generator)


@torch.no_grad()
def estimate_mean_latent(generator: Generator) -> torch.Tensor:
    """Mean of w over seeded z, [w_dim], for checkpoints that keep none."""
    z = torch.randn(
        MEAN_LATENT_SAMPLES, generator.config.z_dim, generator=torch.Generator().manual_seed(MEAN_LATENT_SEED)
    )
    return torch.stack([generator.mapping.to_w(part).mean(0) for part in z.split(1000)]).mean(0)


def _path(source: str | Path) -> Path:
    if str(source) in EMBEDDED:
        return Path(str(resources.files("stylepairs.datagen") / "weights" / EMBEDDED[str(source)]))
    return Path(source)


@contextmanager
def _as_input_error(source: str | Path) -> Iterator[None]:
    shown = printable(source, limit=1000)
    try:
        yield
    except CheckpointError as error:
        raise InputError(f"{shown}: {error}") from None
    except FileNotFoundError:
        advice = "check the path"
        if str(source) in EMBEDDED:
            advice = "reinstall the package"
        elif str(source).startswith("embedded:"):
            advice = f"the package has {' and '.join(EMBEDDED)}"
        raise InputError(f"{shown}: there is no such file; {advice}") from None
    except OSError as error:
        raise InputError(f"{shown}: cannot be read ({error.strerror}); check the path and its permissions") from None


def _configured(kind: type[Config], network: Network) -> Config:
    known = {field.name for field in fields(kind)}
    try:
        return kind(**{key: value for key, value in network.config.items() if key in known})
    except ValueError as error:
        raise CheckpointError(f"is of an unknown variant ({error}); use another checkpoint") from None


def _shapes_only(kind: Callable[[Config], Net], config: Config) -> Net:
    """A module without numbers, as hostile files may claim any size."""
    with torch.device("meta"):
        return kind(config)


def _read_values(network: Network, module: nn.Module, file_size: int) -> dict[str, torch.Tensor]:
    """Float32 values for the module, FIR filters left out, read only after every shape, and their sum against the
    file's size, is as expected."""
    expected = {key: value.shape for key, value in module.state_dict().items() if not key.endswith("resample_filter")}
    for key, shape in expected.items():
        if key not in network.tensors and not key.endswith(network.optional):
            raise CheckpointError(f"lacks {network.name_of(key)}; it is damaged or of an unknown variant")
        if key in network.tensors and network.tensors[key].shape != shape:
            found = "x".join(map(str, network.tensors[key].shape))
            wanted = "x".join(map(str, shape))
            raise CheckpointError(
                f"has {network.name_of(key)} of shape {found}, not {wanted}; it is of an unknown variant"
            )
    extra = sorted(set(network.tensors) - set(expected))
    if extra:
        raise CheckpointError(
            f"has {printable(network.name_of(extra[0]))}, which StyleGAN2 has not; it is of an unknown variant"
        )
    if sum(tensor.nbytes for tensor in network.tensors.values()) > file_size:
        raise CheckpointError("claims more numbers than the file holds; copy or download it again")
    # Copies: what is loaded does not hang on the file any more.
    values = {key: tensor.to(torch.float32, copy=True).contiguous() for key, tensor in network.tensors.items()}
    broken = [key for key, value in values.items() if not torch.isfinite(value).all()]
    if broken:
        raise CheckpointError(
            f"has infinite or undefined numbers in {network.name_of(broken[0])}; take an earlier checkpoint"
        )
    return values


def _fill(module: Net, values: dict[str, torch.Tensor]) -> Net:
    filters = {key: setup_filter() for key in module.state_dict() if key.endswith("resample_filter")}
    module.load_state_dict(values | filters, assign=True)
    return module.eval().requires_grad_(False)


def _rosinality_shape(ours: str, value: torch.Tensor) -> torch.Tensor:
    if ours.endswith("noise_const"):
        return value[None, None].clone()
    if ours.endswith("noise_strength"):
        return value.reshape(1).clone()
    if ours.endswith("torgb.bias"):
        return value.reshape(1, -1, 1, 1).clone()
    is_modulated = value.ndim == 4 and ours.endswith(".weight")
    return value[None].clone() if is_modulated or ours.endswith(".const") else value.clone()
