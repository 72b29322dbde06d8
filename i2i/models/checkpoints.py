"""Files of a trained editor and of an interrupted training run: safetensors with JSON in the metadata, no pickle.

A model file is self-contained: it carries the frozen generator that the model was trained around, so a later embedded
generator does not break it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialised

from stylepairs.datagen.shell.durable import make_folder, replace_file
from stylepairs.datagen.shell.errors import InputError
from stylepairs.datagen.stylegan.generator import Generator, GeneratorConfig
from stylepairs.i2i.models.conditions import Kinds, Style
from stylepairs.i2i.models.glean import Glean, GleanConfig

MODEL_FILE = "model.safetensors"
STATE_FILE = "state.safetensors"
MODEL_FORMAT = "stylepairs-i2i-1"
STATE_FORMAT = "stylepairs-i2i-state-1"


@dataclass(frozen=True)
class ModelInfo:
    """What a model file says of itself: the feature and style it edits, and how it was made (free text to numbers);
    kinds: what a style "params" tells apart."""

    feature: str
    style: Style
    training: dict[str, Any]
    kinds: Kinds = field(default_factory=dict)


def save_model(path: Path, model: Glean, info: ModelInfo, half: bool = False) -> None:
    """Write a self-contained model file, whole or not at all; half stores float16 (for weights that are shipped)."""
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    if half:
        state = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    metadata = {
        "format": MODEL_FORMAT,
        "generator": json.dumps(asdict(model.generator.config)),
        "model": json.dumps(asdict(model.config)),
        "info": json.dumps(asdict(info), sort_keys=True),
    }
    _write(path, state, metadata)


def load_model(source: str | Path, feature: str = "hair_color") -> tuple[Glean, ModelInfo]:
    """The model, in eval mode, float32, and what its file says.

    source: "embedded" (the shipped weights of `feature`), a training run's folder, or a .safetensors file.
    Raises InputError when there is none or it is something else.
    """
    path = model_path(source, feature)
    state, metadata = _read(path, MODEL_FORMAT, "weights of an editor; `i2i train` writes them as model.safetensors")
    try:
        generator = Generator(GeneratorConfig(**json.loads(metadata["generator"])))
        model = Glean(generator, GleanConfig(**json.loads(metadata["model"])))
        info = ModelInfo(**json.loads(metadata["info"]))
        model.load_state_dict({name: tensor.float() for name, tensor in state.items()})
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"{path}: its tensors and its description do not fit together; train or download it again"
        ) from error
    return model.eval(), info


def model_path(source: str | Path, feature: str = "hair_color") -> Path:
    """The model file that `load_model` reads for a source; InputError when there is none."""
    if str(source) == "embedded":
        path = Path(str(files("stylepairs.i2i") / "weights" / f"{feature}.safetensors"))
        if not path.is_file():
            raise InputError(f"embedded: no weights are shipped for {feature}; train some with `i2i train {feature}`")
        return path
    path = Path(source)
    if path.is_dir():
        path = path / MODEL_FILE
        if not path.is_file():
            raise InputError(f"{path.parent}: no {MODEL_FILE} yet; `i2i train` writes it at its first checkpoint")
    if not path.is_file():
        raise InputError(f"{path}: no such run folder or weights file")
    return path


def save_state(path: Path, tensors: Mapping[str, torch.Tensor], details: dict[str, Any]) -> None:
    """Write a training state, whole or not at all."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    _write(path, tensors, {"format": STATE_FORMAT, "details": json.dumps(details, sort_keys=True)})


def load_state(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """What `save_state` wrote. Raises InputError."""
    tensors, metadata = _read(path, STATE_FORMAT, "the state of a training run; remove it to start again")
    return tensors, json.loads(metadata["details"])


def optimizer_tensors(optimizer: torch.optim.Optimizer, prefix: str) -> dict[str, torch.Tensor]:
    """The optimiser's state as flat named tensors."""
    return {
        f"{prefix}{index}.{name}": torch.as_tensor(value)
        for index, values in optimizer.state_dict()["state"].items()
        for name, value in values.items()
    }


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, torch.Tensor], prefix: str) -> None:
    """Put back what `optimizer_tensors` gave."""
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in with_prefix(tensors, prefix):
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def with_prefix(tensors: Mapping[str, torch.Tensor], prefix: str) -> Iterator[tuple[str, torch.Tensor]]:
    """The entries under a prefix, without it."""
    for name, tensor in tensors.items():
        if name.startswith(prefix):
            yield name.removeprefix(prefix), tensor


def _write(path: Path, tensors: Mapping[str, torch.Tensor], metadata: dict[str, str]) -> None:
    make_folder(path.parent)
    data = serialised(dict(tensors), metadata)
    replace_file(path, lambda file: file.write(data))


def _read(path: Path, wanted_format: str, what: str) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != wanted_format:
                raise InputError(f"{path}: not {what}")
            return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: damaged or not {what}") from error
