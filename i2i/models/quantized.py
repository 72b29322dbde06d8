"""An exported editor whose convolutions count in 8-bit integers, for phones: scales are taken from what they give on
pairs (onnxruntime's static quantisation), weights channel by channel."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from stylepairs.datagen.shell.durable import replace_file
from stylepairs.datagen.shell.errors import InputError
from stylepairs.i2i.models.export import without_warnings

# What follows the last of them are the edit's own pixels, which 8 bits of a wider range would band.
_EXACT_LAST = 1


def quantize(path: Path, out: Path, samples: Iterable[dict[str, np.ndarray]]) -> None:
    """Write the ONNX editor at `path` as one of 8-bit convolutions; its description is kept.

    samples: inputs by name, as the graph takes them, by which the scales are chosen. The first and the last convolution
    stay float32. Raises InputError where onnxruntime or samples are missing.
    """
    require_onnxruntime(out)
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.samples = iter(samples)

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.samples, None)

    with without_warnings(""), tempfile.TemporaryDirectory() as folder:
        whole, small = Path(folder) / "whole.onnx", Path(folder) / "small.onnx"
        quant_pre_process(str(path), str(whole), skip_symbolic_shape=True)
        graph = onnx.load(str(whole))
        convolutions = [node.name for node in graph.graph.node if node.op_type == "Conv"]
        quantize_static(
            str(whole), str(small), Reader(), quant_format=QuantFormat.QDQ, per_channel=True,
            activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8, op_types_to_quantize=["Conv", "Clip", "Add"],
            nodes_to_exclude=[convolutions[0], *convolutions[-_EXACT_LAST:], *_after(graph, convolutions[-1])],
        )  # fmt: skip
        result = onnx.load(str(small))
    del result.metadata_props[:]
    result.metadata_props.extend(onnx.load(str(path), load_external_data=False).metadata_props)
    replace_file(out, lambda file: file.write(result.SerializeToString()))


def require_onnxruntime(out: Path) -> None:
    """Raises InputError where `out` cannot be made, for want of onnxruntime."""
    if importlib.util.find_spec("onnxruntime") is None:
        raise InputError(f"{out}: 8 bits need onnxruntime; pip install 'stylepairs[export]'")


def _after(graph: Any, last: str) -> list[str]:
    """The nodes after the one of this name: blending with the photo."""
    names = [node.name for node in graph.graph.node]
    return names[names.index(last) + 1 :]
