"""The editor as one file that runs without this package: an ONNX model, or PyTorch's exported program (.pt2)."""

from __future__ import annotations

import importlib.util
import io
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from stylepairs.datagen.features import load_feature
from stylepairs.datagen.shell.durable import make_folder, replace_file
from stylepairs.datagen.shell.errors import InputError
from stylepairs.i2i.models.checkpoints import ModelInfo
from stylepairs.i2i.models.conditions import crop_px_of
from stylepairs.i2i.models.glean import Glean
from stylepairs.i2i.models.plain import Plain, makes_anew
from stylepairs.i2i.models.prepared_glean import PreparedGlean, prepare

# Under this name the description lies in the ONNX file's metadata and, as a file, in a .pt2.
METADATA_NAME = "stylepairs.json"
EXPORT_FORMAT = "stylepairs-export-1"
OUTPUTS = ("output", "mask", "gain", "bias", "confidence")
MOVES = "flow"  # the last output of a model that moves


class ExportedEditor(nn.Module):
    """What is exported: float32 inputs as `Glean.forward` takes them, `style` left out where it is empty. A region of 1
    everywhere leaves it to the network where to edit.

    Gives output [N,3,H,W] clamped to [-1,1], mask [N,1,H,W], gain and bias [N,3,H,W], with which the edit is brought to
    the photo's own resolution: output = photo + mask * (gain * (photo + 1) + bias), and confidence [N] in [0,1] that
    the feature applies. A model that moves gives flow [N,2,H,W], too: x and y, as shares of the side, of where each
    pixel of the photo is taken from, mask * flow away, before it is scaled and shifted.
    """

    def __init__(self, prepared: PreparedGlean | Plain):
        super().__init__()
        self.prepared = prepared

    def forward(
        self, photo: torch.Tensor, region: torch.Tensor, degree: torch.Tensor, style: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, ...]:
        style = degree.new_zeros(degree.shape[0], 0) if style is None else style
        edit = self.prepared(photo, region, degree, style)
        said = edit.output.clamp(-1, 1), edit.mask, edit.gain, edit.bias, edit.confidence
        return (*said, edit.flow) if self.prepared.config.moves else said


def export(model: Glean | Plain, info: ModelInfo, path: Path) -> None:
    """Write the editor as a graph with its description inside, float32, any batch size; the suffix says the format.

    path: .onnx (needs the `export` extra) or .pt2. Raises InputError for another suffix or a missing extra.
    """
    if path.suffix not in (".onnx", ".pt2"):
        raise InputError(f"{path}: unknown format; choose a name that ends in .onnx or .pt2")
    missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if path.suffix == ".onnx" and missing:
        raise InputError(f"{path}: needs {' and '.join(missing)}; pip install 'stylepairs[export]', or choose .pt2")
    size, channels = model.size_px, model.config.style_channels
    # Two of each: a batch of one would be taken for a constant.
    inputs: dict[str, torch.Tensor] = {
        "photo": torch.zeros(2, 3, size, size),
        "region": torch.zeros(2, 1, size, size),
        "degree": torch.ones(2),
    }
    if channels:
        inputs["style"] = torch.zeros(2, channels)
    editor = ExportedEditor(prepare(model.cpu(), torch.float32)).eval()
    batch = torch.export.Dim("batch", min=1)
    description = json.dumps(described(model, info, list(inputs)), indent=1, sort_keys=True)
    make_folder(path.parent)
    with without_warnings(), torch.no_grad():
        shapes = tuple({0: batch} for _ in inputs)
        program = torch.export.export(editor, tuple(inputs.values()), dynamic_shapes=shapes)
        if path.suffix == ".pt2":
            # By way of memory: on a full disk torch's own writer ends the process.
            data = io.BytesIO()
            torch.export.save(program, data, extra_files={METADATA_NAME: description})
            replace_file(path, lambda file: file.write(data.getbuffer()))
            return
    save_onnx(program, list(inputs), outputs_of(model), description, path)


def outputs_of(model: Glean | Plain) -> list[str]:
    """The names of what the exported graph gives."""
    return [*OUTPUTS, MOVES] if model.config.moves else list(OUTPUTS)


def save_onnx(program: Any, inputs: list[str], outputs: list[str], description: str, path: Path) -> None:
    """Write an exported program as an ONNX file with its description in the metadata."""
    with without_warnings():
        exported = torch.onnx.export(program, input_names=inputs, output_names=outputs, verbose=False)
    assert exported is not None
    proto = exported.model_proto
    entry = proto.metadata_props.add()
    entry.key, entry.value = METADATA_NAME, description
    replace_file(path, lambda file: file.write(proto.SerializeToString()))


@contextmanager
def without_warnings(logged_by: str = "torch.onnx") -> Iterator[None]:
    """The exporters warn of their own internals, and of torchvision not being there; logged_by "": whoever it is."""
    logger = logging.getLogger(logged_by)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _keeps_texture(name: str) -> bool:
    """Whether the edit may be carried on beyond the crop, as its feature says; no for a restoration, which is none, and
    for a file that was not run."""
    try:
        return load_feature(name).keeps_texture
    except InputError:
        return False


def described(model: Glean | Plain, info: ModelInfo, inputs: list[str]) -> dict[str, Any]:
    """What a program that runs the graph has to know."""
    from importlib.metadata import version

    return {
        "format": EXPORT_FORMAT,
        "code_version": version("stylepairs"),
        "size_px": model.size_px,
        "inputs": inputs,
        "outputs": outputs_of(model),
        "style_channels": model.config.style_channels,
        "crop_px": crop_px_of(model.size_px),
        "draws": makes_anew(model.config),
        "keeps_texture": _keeps_texture(info.feature),
        **asdict(info),
    }
