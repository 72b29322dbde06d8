"""The training state of the generator's recipe: built, grown, saved and resumed as safetensors and JSON, never as
pickle."""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from growth import grow_discriminator, grow_generator
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from stylepairs.datagen.stylegan.discriminator import Discriminator, DiscriminatorConfig
from stylepairs.datagen.stylegan.generator import Generator, GeneratorConfig

R1_EVERY = 16  # the discriminator's rate is corrected for its extra steps, as in the paper's appendix B


@dataclass
class TrainingState:
    generator: Generator
    ema: Generator
    discriminator: Discriminator
    g_optimizer: torch.optim.Adam
    d_optimizer: torch.optim.Adam
    images_seen: int = 0
    augment_p: float = 0.0

    def to(self, device: torch.device) -> None:
        for module in (self.generator, self.ema, self.discriminator):
            # channels_last: 22 against 15 images/s at 128 px, bf16, 2 cores of an EPYC 9004
            module.to(device=device, memory_format=torch.channels_last)


def build_state(args: argparse.Namespace, resolution: int) -> TrainingState:
    """A fresh state, or one grown from the weights in --start-from (then images_seen continues theirs)."""
    torch.manual_seed(args.seed)
    state = _assemble(args, resolution)
    if args.start_from is None:
        return state
    old, old_ema, old_d = (
        load_file(_find(args.start_from, name)) for name in ("generator", "generator_ema", "discriminator")
    )
    _grow(state, old, old_ema, old_d)
    with safe_open(_find(args.start_from, "generator"), "pt") as file:
        state.images_seen = int(file.metadata().get("images_seen", 0))
    return state


def start_stage(previous: TrainingState, args: argparse.Namespace, resolution: int) -> TrainingState:
    """The next resolution: everything grown, optimisers fresh, progress kept; the same whether resumed or not."""
    torch.manual_seed(args.seed + resolution)
    state = _assemble(args, resolution)
    _grow(state, previous.generator.state_dict(), previous.ema.state_dict(), previous.discriminator.state_dict())
    state.images_seen, state.augment_p = previous.images_seen, previous.augment_p
    return state


def save_state(folder: Path, state: TrainingState) -> None:
    """Write state.safetensors whole, then the JSON that names its progress; each under a temporary name, then
    renamed."""
    tensors: dict[str, torch.Tensor] = {}
    for name in ("generator", "ema", "discriminator"):
        tensors |= {f"{name}/{key}": value for key, value in getattr(state, name).state_dict().items()}
    for name in ("g_optimizer", "d_optimizer"):
        for index, moments in getattr(state, name).state_dict()["state"].items():
            tensors |= {f"{name}/{index}/{key}": torch.as_tensor(value) for key, value in moments.items()}
    progress: dict = {
        "images_seen": state.images_seen,
        "augment_p": state.augment_p,
    }
    progress["generator"] = dataclasses.asdict(state.generator.config)
    progress["discriminator"] = dataclasses.asdict(state.discriminator.config)
    temporary = folder / "state.safetensors.tmp"
    tensors = {key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}
    save_file(tensors, temporary, metadata={"progress": json.dumps(progress)})
    os.replace(temporary, folder / "state.safetensors")


def load_state(folder: Path, learning_rate: float) -> TrainingState | None:
    """The saved state, to go on at `learning_rate`, or None where there is none yet."""
    path = folder / "state.safetensors"
    if not path.exists():
        return None
    with safe_open(path, "pt") as file:
        progress = json.loads(file.metadata()["progress"])
    tensors = load_file(path)
    state = _build(
        GeneratorConfig(**progress["generator"]),
        DiscriminatorConfig(**progress["discriminator"]),
        learning_rate,
    )
    for name in ("generator", "ema", "discriminator"):
        getattr(state, name).load_state_dict(_under(tensors, name))
    for name in ("g_optimizer", "d_optimizer"):
        _load_optimizer(getattr(state, name), _under(tensors, name))
    state.images_seen, state.augment_p = progress["images_seen"], progress["augment_p"]
    return state


def export_ema(path: Path, state: TrainingState) -> None:
    """The averaged generator alone, its configuration in the metadata: what the package embeds."""
    config = {key: str(value) for key, value in dataclasses.asdict(state.ema.config).items() if value is not None}
    tensors = {
        key: value.detach().cpu().contiguous()
        for key, value in state.ema.state_dict().items()
        if not key.endswith("resample_filter")
    }
    temporary = path.with_suffix(".tmp")
    save_file(tensors, temporary, metadata=config | {"images_seen": str(state.images_seen)})
    os.replace(temporary, path)


def _assemble(args: argparse.Namespace, resolution: int) -> TrainingState:
    width = {"channel_base": args.channel_base, "channel_max": args.channel_max}
    config = GeneratorConfig(args.latent_dim, args.latent_dim, resolution, mapping_layers=args.mapping_layers, **width)
    return _build(config, DiscriminatorConfig(resolution, **width), args.learning_rate)


def _build(g_config: GeneratorConfig, d_config: DiscriminatorConfig, learning_rate: float) -> TrainingState:
    generator, discriminator = Generator(g_config), Discriminator(d_config)
    correction = R1_EVERY / (R1_EVERY + 1)
    return TrainingState(
        generator,
        copy.deepcopy(generator).requires_grad_(False),
        discriminator,
        torch.optim.Adam(generator.parameters(), lr=learning_rate, betas=(0.0, 0.99), eps=1e-8),
        torch.optim.Adam(
            discriminator.parameters(), lr=learning_rate * correction, betas=(0.0, 0.99**correction), eps=1e-8
        ),
    )


def _grow(state: TrainingState, generator: dict, ema: dict, discriminator: dict) -> None:
    grow_generator(generator, state.generator)
    grow_discriminator(discriminator, state.discriminator)
    # The average starts from the same new random parts, or its new layers would be averaged with others' noise.
    state.ema.load_state_dict(state.generator.state_dict())
    grow_generator(ema, state.ema)


def _load_optimizer(optimizer: torch.optim.Adam, tensors: dict[str, torch.Tensor]) -> None:
    saved = optimizer.state_dict()
    moments: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in tensors.items():
        index, name = key.split("/")
        moments.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": moments, "param_groups": saved["param_groups"]})


def _under(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {key[len(prefix) + 1 :]: value for key, value in tensors.items() if key.startswith(prefix + "/")}


def _find(folder: Path, name: str) -> Path:
    """FOLDER/name.safetensors, or the one file there that ends in _name.safetensors."""
    exact = folder / f"{name}.safetensors"
    found = [exact] if exact.exists() else sorted(folder.glob(f"*_{name}.safetensors"))
    if len(found) != 1:
        raise SystemExit(f"{folder}: {len(found)} files named {name}.safetensors; one is needed to start from")
    return found[0]
