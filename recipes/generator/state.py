"""The training state of the generator's recipe: built, started from weights, saved and resumed as one safetensors file
with JSON in its metadata."""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from codes import Offsets
from growth import can_grow, grow_generator, grow_offsets
from moments import Moments
from safetensors import safe_open
from torch import nn

from stylepairs.datagen.images.trunk import LEAST_PX, LEVEL_CHANNELS, LEVEL_STRIDES
from stylepairs.datagen.shell.decode import Damaged, finite, read_safetensors
from stylepairs.datagen.shell.durable import safetensors_bytes, write_bytes
from stylepairs.datagen.shell.errors import InputError, one_line
from stylepairs.datagen.stylegan.generator import Generator, GeneratorConfig
from stylepairs.datagen.stylegan.projected import MIXED_CHANNELS, Heads, Mixing

MODULES = ("generator", "ema", "mixing", "heads", "face_heads", "offsets", "moments")
OPTIMIZERS = ("g_optimizer", "d_optimizer")
EMA_RAMPUP = 0.05  # of the images seen: the longest half-life early on


@dataclass(frozen=True)
class Rates:
    """Of Adam (Kingma & Ba 2015)."""

    generator: float = 0.0
    heads: float = 0.0
    offsets: float = 0.0


@dataclass
class TrainingState:
    generator: Generator
    ema: Generator
    mixing: Mixing
    heads: Heads
    face_heads: Heads  # of the enlarged face
    offsets: Offsets
    moments: Moments
    g_optimizer: torch.optim.Adam
    d_optimizer: torch.optim.Adam
    codes: torch.Tensor  # [2 M, z_dim]; no rows: not assigned yet
    images_seen: int = 0
    measured: bool = False  # whether mixing and moments know the portraits' features
    weights: dict[str, torch.Tensor] = field(default_factory=dict)  # of the losses, on the device

    def to(self, device: torch.device) -> None:
        for name in MODULES:
            module: nn.Module = getattr(self, name)
            module.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]


def build_state(args: argparse.Namespace, rates: Rates, resolution: int) -> TrainingState:
    """A fresh state, its generator grown from --start-from where that is given."""
    torch.manual_seed(args.seed)
    state = _assemble(config_of(args, resolution), rates)
    if args.start_from is not None:
        start_from(state, args.start_from)
    return state


def config_of(args: argparse.Namespace, resolution: int) -> GeneratorConfig:
    """The generator that the options ask for."""
    return GeneratorConfig(
        args.latent_dim, args.latent_dim, resolution, mapping_layers=args.mapping_layers,
        channel_base=args.channel_base, channel_max=args.channel_max,
    )  # fmt: skip


def start_from(state: TrainingState, folder: Path) -> None:
    """Weights of `folder`: generator and generator_ema, discriminator and codes where they are there. Raises
    InputError."""
    generator, ema = (_weights(folder / f"{name}.safetensors") for name in ("generator", "generator_ema"))
    if not (can_grow(generator, state.generator) and can_grow(ema, state.generator)):
        raise InputError(
            f"{folder}: weights of a larger generator, or of other latents; give the --latent-dim, --mapping-layers, "
            "--channel-base, --channel-max and the resolution that they were trained with, or larger layers"
        )
    _grow(state, generator, ema)
    with safe_open(folder / "generator.safetensors", "pt") as file:
        state.images_seen = int((file.metadata() or {}).get("images_seen", 0))
    if (path := folder / "discriminator.safetensors").exists():
        tensors = _weights(path)
        with fitting(path, "leave it out, and heads begin anew"):
            state.mixing.load_state_dict(under(tensors, "mixing"))
            for name in ("heads", "face_heads"):
                getattr(state, name).load_state_dict(under(tensors, name) or under(tensors, "heads"))
    if (path := folder / "codes.safetensors").exists():
        tensors = _weights(path)
        with fitting(path, "leave it out, and latents are assigned anew"):
            state.codes = tensors["z"]
            offsets = under(tensors, "offsets")
            if offsets:
                grow_offsets(offsets, state.offsets)


def write_weights(folder: Path, state: TrainingState) -> None:
    """What `start_from` reads, in float16: all that was learned but the optimisers' moments, in about 12 MB."""
    folder.mkdir(parents=True, exist_ok=True)
    write_generator(folder / "generator.safetensors", state.generator, state.images_seen, torch.float16)
    write_generator(folder / "generator_ema.safetensors", state.ema, state.images_seen, torch.float16)
    parts = {name: getattr(state, name).state_dict() for name in ("mixing", "heads", "face_heads", "offsets")}
    tensors = {f"{name}/{key}": value.half() for name, part in parts.items() for key, value in part.items()}
    codes = {key: tensors.pop(key) for key in list(tensors) if key.startswith("offsets/")}
    write(folder / "discriminator.safetensors", tensors)
    write(folder / "codes.safetensors", codes | {"z": state.codes.half()})


def start_stage(previous: TrainingState, rates: Rates, resolution: int, seed: int) -> TrainingState:
    """The next resolution: generator grown, the rest taken over, optimisers and moments fresh."""
    torch.manual_seed(seed + resolution)
    state = _assemble(dataclasses.replace(previous.generator.config, img_resolution=resolution), rates)
    _grow(state, previous.generator.state_dict(), previous.ema.state_dict())
    for name in ("mixing", "heads", "face_heads"):
        getattr(state, name).load_state_dict(getattr(previous, name).state_dict())
    grow_offsets(previous.offsets.state_dict(), state.offsets)
    state.codes, state.images_seen = previous.codes, previous.images_seen
    return state


def save_state(path: Path, state: TrainingState) -> None:
    """Write the whole state, as `write`."""
    tensors = {"codes": state.codes} | tensors_of(state, MODULES, OPTIMIZERS)
    weights = {name: float(value) for name, value in state.weights.items()}
    progress = {"images_seen": state.images_seen, "measured": state.measured, "weights": weights}
    progress["generator"] = dataclasses.asdict(state.generator.config)
    write(path, tensors, {"progress": json.dumps(progress)})


def tensors_of(run: object, modules: Sequence[str], optimizers: Sequence[str]) -> dict[str, torch.Tensor]:
    """The tensors of a run's modules as NAME/KEY, the moments of its optimisers as NAME/INDEX/KEY."""
    tensors: dict[str, torch.Tensor] = {}
    for name in modules:
        tensors |= {f"{name}/{key}": value for key, value in getattr(run, name).state_dict().items()}
    for name in optimizers:
        for index, moments in getattr(run, name).state_dict()["state"].items():
            tensors |= {f"{name}/{index}/{key}": torch.as_tensor(value) for key, value in moments.items()}
    return tensors


@torch.no_grad()
def move_average(average: nn.Module, learned: nn.Module, batch: int, images_seen: int, half_life: float) -> None:
    """One step of an average of weights; half_life: in images, shorter early on. Buffers are taken over."""
    half_life = min(half_life, max(images_seen * EMA_RAMPUP, 1))
    averages: list[torch.Tensor] = list(average.parameters())
    values: list[torch.Tensor] = list(learned.parameters())
    torch._foreach_lerp_(averages, values, 1 - 0.5 ** (batch / half_life))
    for kept, value in zip(average.buffers(), learned.buffers(), strict=True):
        kept.copy_(value)


def append(path: Path, row: dict[str, float]) -> None:
    """A row of a log. Raises InputError."""
    try:
        with path.open("a") as file:
            file.write(json.dumps(row) + "\n")
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error}); free some space and go on") from error
    print(row, flush=True)


def load_state(path: Path, rates: Rates, device: torch.device) -> TrainingState | None:
    """The saved state on the device, or None where there is none yet. Raises InputError."""
    if not path.exists():
        return None
    tensors, metadata = read_state(path, "the state cannot be continued; remove it to start over")
    with fitting(path, "remove it to start over"):
        progress = json.loads(metadata["progress"])
        state = _assemble(GeneratorConfig(**progress["generator"]), rates)
        for name in MODULES:
            # Runs begun before the enlarged face had heads of its own go on with those of the whole picture.
            parts = under(tensors, name) or under(tensors, "heads")
            getattr(state, name).load_state_dict(parts)
        state.to(device)
        for name in OPTIMIZERS:
            load_optimizer(getattr(state, name), under(tensors, name))
        state.codes, state.images_seen = tensors["codes"], progress["images_seen"]
        state.measured = progress["measured"]
        state.weights = {name: torch.tensor(value, device=device) for name, value in progress["weights"].items()}
    return state


@contextmanager
def fitting(path: Path, advice: str) -> Iterator[None]:
    """Raises InputError where the file's tensors are not those that its name says."""
    try:
        yield
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(f"{path}: is not what this recipe writes there ({one_line(error)}); {advice}") from error


def export_ema(path: Path, state: TrainingState) -> None:
    """The averaged generator alone, its configuration in the metadata: what the package embeds."""
    write_generator(path, state.ema, state.images_seen)


def write_generator(path: Path, generator: Generator, images_seen: int, dtype: torch.dtype = torch.float32) -> None:
    config = {key: str(value) for key, value in dataclasses.asdict(generator.config).items() if value is not None}
    tensors = {key: value.to(dtype) for key, value in generator.state_dict().items() if "resample_filter" not in key}
    write(path, tensors, config | {"images_seen": str(images_seen)})


def write(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None = None) -> None:
    """Whole or not at all. Raises InputError, and leaves what was there, where numbers are not finite."""
    tensors = {key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}
    if not finite(tensors.values()):
        raise InputError(f"{path}: what is to be written is not finite; the last one is kept, resume with lower rates")
    write_bytes(path, safetensors_bytes(tensors, metadata or {}))


def _assemble(config: GeneratorConfig, rates: Rates) -> TrainingState:
    generator, heads, face_heads = Generator(config), Heads(), Heads()
    offsets = Offsets(config.num_ws, config.w_dim)
    groups: list[dict[str, Any]] = [
        {"params": list(generator.parameters()), "full_rate": rates.generator},
        {"params": list(offsets.parameters()), "full_rate": rates.offsets},
    ]
    both = [*heads.parameters(), *face_heads.parameters()]
    return TrainingState(
        generator,
        copy.deepcopy(generator).requires_grad_(False),
        Mixing(),
        heads,
        face_heads,
        offsets,
        Moments(moment_shapes(config.img_resolution)),
        torch.optim.Adam(groups, betas=(0.5, 0.99), eps=1e-8, fused=True),
        torch.optim.Adam([{"params": both, "full_rate": rates.heads}], betas=(0.0, 0.99), eps=1e-8, fused=True),
        torch.zeros(0, config.z_dim),
    )


def moment_shapes(resolution: int) -> list[tuple[int, int, int]]:
    """Of the normalised features, then of their mixtures."""
    channels, px = (*LEVEL_CHANNELS, *MIXED_CHANNELS), max(resolution, LEAST_PX)
    return [(c, px // s, px // s) for c, s in zip(channels, LEVEL_STRIDES * 2, strict=True)]


def _grow(state: TrainingState, generator: dict[str, torch.Tensor], ema: dict[str, torch.Tensor]) -> None:
    grow_generator(generator, state.generator)
    # The average starts from the same new random parts, or its new layers would be averaged with others' noise.
    state.ema.load_state_dict(state.generator.state_dict())
    grow_generator(ema, state.ema)


def load_optimizer(optimizer: torch.optim.Adam, tensors: dict[str, torch.Tensor]) -> None:
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    moments: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in tensors.items():
        index, name = key.split("/")
        if value.ndim:  # in the parameter's own memory format: the fused step reads both as they lie
            value = torch.empty_like(parameters[int(index)]).copy_(value)
        moments.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})


def _weights(path: Path) -> dict[str, torch.Tensor]:
    if not path.exists():
        raise InputError(f"{path}: no such file; a folder to start from has generator and generator_ema .safetensors")
    return {key: value.float() for key, value in read_state(path, "write the weights anew")[0].items()}


def read_state(path: Path, advice: str) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    try:
        return read_safetensors(path)
    except Damaged as error:
        raise InputError(f"{path}: damaged ({error}); {advice}") from error


def under(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {key[len(prefix) + 1 :]: value for key, value in tensors.items() if key.startswith(prefix + "/")}
