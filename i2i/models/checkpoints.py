"""Files of a trained editor and of an interrupted training run: safetensors with JSON in the metadata, no pickle.

A model file is self-contained: it carries the frozen generator that the model was trained around, so a later embedded
generator does not break it. Both kinds of file carry a digest of all that they hold, so that a flipped bit is noticed.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter
from safetensors import SafetensorError, safe_open

from stylepairs.datagen.shell.durable import (
    file_digest,
    make_folder,
    replace_file,
    safetensors_bytes,
    tensors_digest,
)
from stylepairs.datagen.shell.errors import InputError, nearest
from stylepairs.datagen.shell.storage.staged import fetch, fetched, place
from stylepairs.datagen.stylegan.generator import Generator, GeneratorConfig
from stylepairs.i2i.models.adapters import folded, on_base
from stylepairs.i2i.models.conditions import Kinds, Style, style_channels, tells_apart
from stylepairs.i2i.models.glean import Glean, GleanConfig
from stylepairs.i2i.models.plain import Plain, PlainConfig

MODEL_FILE = "model.safetensors"
STATE_FILE = "state.safetensors"
ADAPTER_FILE = "adapter.safetensors"
BASE_FILE = "base.safetensors"  # what an adapter belongs to, where that is not shipped: lies beside it
MODEL_FORMAT = "stylepairs-i2i-2"
ADAPTER_FORMAT = "stylepairs-i2i-adapter-1"
STATE_FORMAT = "stylepairs-i2i-state-2"

# Of tensors in these files; with others (floats of 8 bits, complex numbers) nothing here could go on.
_TYPES = {torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64}
ADVICE = "remove it; `i2i train` goes on from the checkpoint before it"

Tensors = dict[str, torch.Tensor]
Trained = Glean | Plain


@dataclass(frozen=True)
class ModelInfo:
    """What a model file says of itself: the feature and style it edits, and how it was made (free text to numbers);
    kinds: what a style "params" tells apart."""

    feature: str
    style: Style
    training: dict[str, Any]
    kinds: Kinds = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not all(map(tells_apart, self.kinds.values())):
            raise ValueError(f"kinds that tell nothing apart: {self.kinds}")


@dataclass(frozen=True)
class Base:
    """The editor that an adapter belongs to: embedded:FEATURE or BASE_FILE, and its file's sha256."""

    source: str
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class StateDetails(BaseModel):
    """How far a run was when its state was saved; best: the lowest perceptual distance on held-out pairs so far;
    processes: how many trained it, None in states of earlier versions."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    step: int = Field(ge=0)
    best: float | None = None
    processes: int | None = None


def save_model(path: Path, model: Trained, info: ModelInfo, half: bool = False) -> None:
    """Write a self-contained model file, whole or not at all; half stores float16 (for weights that are shipped)."""
    state = folded(model.state_dict())
    if half:
        state = _halved(state)
    metadata = {
        "format": MODEL_FORMAT,
        "model": json.dumps(asdict(model.config)),
        "info": json.dumps(asdict(info), sort_keys=True),
    }
    if isinstance(model, Glean):
        metadata["generator"] = json.dumps(asdict(model.generator.config))
    _write(path, state, metadata)


def save_adapter(path: Path, model: Trained, info: ModelInfo) -> None:
    """Write what a model with deltas adds to its base, which `info.training` names; float16."""
    metadata = {
        "format": ADAPTER_FORMAT,
        "model": json.dumps(asdict(model.config)),
        "info": json.dumps(asdict(info), sort_keys=True),
        "base": json.dumps(info.training["base"]),
    }
    _write(path, _halved(model.trainable_state()), metadata)


def load_model(source: str | Path, feature: str = "hair_color") -> tuple[Trained, ModelInfo]:
    """The model, in eval mode, float32, and what its file says.

    source: "embedded" (the shipped weights of `feature`), "embedded:FEATURE", a training run's folder, or a
    .safetensors file, of a model or of an adapter.
    Raises InputError when there is none, it is something else, or it is damaged.
    """
    path = model_path(source, feature)
    state, metadata = _read_weights(path)
    try:
        shapes = json.loads(metadata["model"])
        model = _empty_model(metadata.get("generator"), shapes, len(state))
        model.load_state_dict(state, assign=True)
        info = TypeAdapter(ModelInfo).validate_json(metadata["info"])
        if style_channels(info.style, info.kinds) != model.config.style_channels:
            raise ValueError("a style code of another length")
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"{path}: its tensors and its description do not fit together; train or download it again"
        ) from error
    return model.eval(), info


def _halved(state: Mapping[str, torch.Tensor]) -> Tensors:
    return {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in state.items()}


def _read_weights(path: Path) -> tuple[Tensors, dict[str, str]]:
    """State and metadata of a model's file, or of an adapter's with those of its base; float32."""
    what = "weights of an editor; `i2i train` writes them as model.safetensors"
    state, metadata = _read(path, (MODEL_FORMAT, ADAPTER_FORMAT), what)
    state = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    if metadata["format"] == MODEL_FORMAT:
        return state, metadata
    try:
        base = TypeAdapter(Base).validate_json(metadata["base"])
        # Nothing else of this machine is opened for an adapter; and a file cannot hold its own digest.
        places = [path.with_name(BASE_FILE), *(model_path(each) for each in shipped_models() if each == base.source)]
        found = [each for each in fetched(places) if each.is_file() and file_digest(each) == base.sha256]
        if not found:
            raise InputError(
                f"{path}: its base, the editor with sha256 {base.sha256}, is not here; lay it beside as {BASE_FILE}, or"
                f" use the run's {MODEL_FILE}"
            )
        base_state, base_metadata = _read_weights(found[0])
        return on_base(base_state, state), base_metadata | metadata
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{path}: does not fit its base; train or download it again") from error


def _empty_model(generator: str | None, shapes: dict[str, Any], most_layers: int) -> Trained:
    """A network without memory: what a file claims takes none before its tensors bear it out. generator: its
    description, None: the model has none. Raises ValueError."""
    with torch.device("meta"):
        if generator is None:
            return Plain(TypeAdapter(PlainConfig).validate_python(shapes))
        config = TypeAdapter(GeneratorConfig).validate_json(generator)
        if config.mapping_layers > most_layers:  # none of them has none
            raise ValueError("more layers than tensors")
        return Glean(Generator(config), TypeAdapter(GleanConfig).validate_python(shapes))


def model_path(source: str | Path, feature: str = "hair_color") -> Path:
    """The model file that `load_model` reads for a source; InputError when there is none."""
    kind, _, named = str(source).partition(":")
    if kind == "embedded":
        if named and not named.isidentifier():
            raise InputError(f"{source}: after the colon stands a feature's name, as in embedded:bangs")
        feature = named or feature
        if not feature.isidentifier():  # a combination, a file of the user's
            raise InputError(f"{source}: no weights are shipped for {feature}; name others, or none to start from")
        path = Path(str(files("stylepairs.i2i") / "weights" / f"{feature}.safetensors"))
        if not path.is_file():
            raise InputError(
                f"{source}: no weights are shipped for {feature}; train some with `i2i train {feature}`"
                f"{_meant(f'{source}')}"
            )
        return path
    path = place(source)
    if path.is_dir():
        path = path / MODEL_FILE
        if not path.is_file():
            raise InputError(f"{path.parent}: no {MODEL_FILE} yet; `i2i train` writes it at its first checkpoint")
    if not path.is_file():
        raise InputError(f"{path}: no such run folder or weights file{_meant(f'{source}')}")
    return path


def _meant(source: str) -> str:
    """The shipped models and the nearest of them, for a source that looks as if one was meant; "" for others."""
    shipped = shipped_models()
    names = [each.removeprefix("embedded:") for each in shipped]
    kind, _, name = source.partition(":")
    if kind == "embedded":
        near = nearest(name, names) and nearest(source, shipped)
    else:
        bare = nearest(source, names) and nearest(f"embedded:{source}", shipped)
        near = bare or nearest(source, ["embedded", *shipped])
        if not near or "/" in source:
            return ""
    return f"{near or ';'} shipped are {', '.join(shipped)}"


def shipped_models() -> list[str]:
    """The sources, as `load_model` takes them, of all models that the package carries."""
    names = sorted(each.name for each in (files("stylepairs.i2i") / "weights").iterdir())
    return [f"embedded:{name.removesuffix('.safetensors')}" for name in names if name.endswith(".safetensors")]


def save_state(path: Path, tensors: Mapping[str, torch.Tensor], details: StateDetails) -> None:
    """Write a training state, whole or not at all."""
    _write(path, tensors, {"format": STATE_FORMAT, "details": details.model_dump_json()})


_STATE = f"the state of a training run of this version; {ADVICE}"


def load_state(path: Path) -> tuple[Tensors, StateDetails]:
    """What `save_state` wrote. Raises InputError where it is something else or damaged."""
    tensors, metadata = _read(path, (STATE_FORMAT,), _STATE)
    return tensors, _details(path, metadata)


def step_of_state(path: Path) -> int:
    """The step of a state, of which no tensor is read. Raises InputError as `load_state`."""
    with _opened(path, (STATE_FORMAT,), _STATE) as (_, metadata):
        return _details(path, metadata).step


def _details(path: Path, metadata: Mapping[str, str]) -> StateDetails:
    try:
        return StateDetails.model_validate_json(metadata.get("details", ""))
    except ValueError as error:
        raise InputError(f"{path}: damaged, it does not say its step; {ADVICE}") from error


def optimizer_tensors(optimizer: torch.optim.Optimizer, prefix: str) -> Tensors:
    """The optimiser's state as flat named tensors."""
    return {
        f"{prefix}{index}.{name}": torch.as_tensor(value)
        for index, values in optimizer.state_dict()["state"].items()
        for name, value in values.items()
    }


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, torch.Tensor]) -> None:
    """Put back what `optimizer_tensors` gave of an Adam; ValueError unless it is of all parameters, shape by shape."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    expected = {f"{index}.{name}": p.shape for index, p in enumerate(parameters) for name in ("exp_avg", "exp_avg_sq")}
    expected |= {f"{index}.step": torch.Size() for index in range(len(parameters))}
    if {name: tensor.shape for name, tensor in tensors.items()} != expected:
        raise ValueError("not the state of this optimiser")
    state: dict[int, Tensors] = {}
    for key, value in tensors.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def with_prefix(tensors: Mapping[str, torch.Tensor], prefix: str) -> Iterator[tuple[str, torch.Tensor]]:
    """The entries under a prefix, without it."""
    for name, tensor in tensors.items():
        if name.startswith(prefix):
            yield name.removeprefix(prefix), tensor


def not_finite(tensors: Mapping[str, torch.Tensor]) -> list[str]:
    """The names of the tensors that hold an infinity or NaN."""
    return [name for name, tensor in tensors.items() if not tensor.isfinite().all()]


def _write(path: Path, tensors: Mapping[str, torch.Tensor], metadata: dict[str, str]) -> None:
    make_folder(path.parent)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    data = safetensors_bytes(tensors, metadata | {"digest": tensors_digest(tensors, metadata)})
    replace_file(path, lambda file: file.write(data))


@contextlib.contextmanager
def _opened(path: Path, formats: tuple[str, ...], what: str) -> Iterator[tuple[Any, dict[str, str]]]:
    """The open file and its metadata. Raises InputError, also for what is found damaged while it is read."""
    try:
        fetch(path)
        with safe_open(path, framework="pt") as file:
            metadata: dict[str, str] = file.metadata() or {}
            if metadata.get("format") not in formats:
                raise InputError(f"{path}: not {what}")
            yield file, metadata
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: damaged or not {what}") from error


def _read(path: Path, formats: tuple[str, ...], what: str) -> tuple[Tensors, dict[str, str]]:
    with _opened(path, formats, what) as (file, metadata):
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    if not {tensor.dtype for tensor in tensors.values()} <= _TYPES:
        raise InputError(f"{path}: damaged or not {what}")
    # Files of earlier versions have no digest.
    digest = metadata.pop("digest", None)
    if digest is not None and digest != tensors_digest(tensors, metadata):
        raise InputError(f"{path}: damaged, it is not what was written; {ADVICE}")
    bad = not_finite(tensors)
    if bad:
        raise InputError(f"{path}: numbers that are not finite in {bad[0]}; the training that wrote it had failed")
    return tensors, metadata
