"""Likeness of faces: by embedded features, or by a face-recognition network that a user's file holds."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from stylepairs.datagen.images.perceptual import load_perceptual
from stylepairs.datagen.shell.errors import InputError
from stylepairs.datagen.shell.machine import peak_memory_mb
from stylepairs.i2i.identity import FACE_PX, load_identity


def write_network(path: Path, side: int = FACE_PX) -> None:
    """Takes one face, gives its colours in a grid of 4 x 4: who is lit alike is the same person."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    pool = helper.make_node("AveragePool", ["face"], ["grid"], kernel_shape=[side // 4] * 2, strides=[side // 4] * 2)
    ends = [helper.make_tensor_value_info("face", kind, [1, 3, side, side])]
    graph = helper.make_graph([pool, helper.make_node("Flatten", ["grid"], ["vector"])], "tiny", ends,
                              [helper.make_tensor_value_info("vector", kind, [1, 48])])  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)


def faces(count: int) -> torch.Tensor:
    torch.manual_seed(0)
    return torch.nn.functional.interpolate(torch.rand(count, 3, 8, 8) * 2 - 1, size=(64, 64), mode="bilinear")


@pytest.mark.parametrize("kind", ["embedded", "file"])
def test_a_face_is_most_like_itself_and_the_figure_says_by_what(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "tiny_arcface.onnx"
    if kind == "file":
        write_network(path)
    identity = load_identity("embedded" if kind == "embedded" else path, load_perceptual("pyramid"))
    digest = hashlib.sha256(path.read_bytes()).hexdigest() if kind == "file" else ""
    assert identity.name == ("pyramid-pooled" if kind == "embedded" else f"tiny_arcface-{digest[:8]}")
    one, two = faces(2)
    noisy = one + 0.05 * torch.randn_like(one)
    assert identity.likeness(one, one) == pytest.approx(1, abs=1e-5)
    assert identity.likeness(one, two) < identity.likeness(one, noisy) < 1
    border = one.clone()
    border[:, :4] = border[:, -4:] = -1  # hair and chest, which recognition networks are not shown
    assert identity.likeness(one, border) == pytest.approx(1, abs=1e-5)


def test_a_file_that_is_no_recognition_network_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    write_network(tmp_path / "small.onnx", side=64)
    (tmp_path / "broken.onnx").write_bytes(b"no network")
    monkeypatch.setattr("stylepairs.i2i.identity.MAX_NETWORK_BYTES", 2000)
    (tmp_path / "large.onnx").write_bytes(bytes(2001))
    for name, said in (
        ("small.onnx", "takes a face of 112 px"),
        ("broken.onnx", "takes a face"),
        ("no.onnx", "No such file"),
        ("large.onnx", "more than 2000 bytes"),
        ("no.txt", "no .onnx file"),
    ):
        with pytest.raises(InputError, match=said) as error:
            load_identity(tmp_path / name, load_perceptual("pyramid"))
        assert "\n" not in str(error.value)


def test_peak_memory_is_that_of_the_call() -> None:
    taken = peak_memory_mb(lambda: np.ones((64 << 20) // 8))
    assert math.isnan(taken) or 60 < taken < 90
    nothing = peak_memory_mb(lambda: None)
    assert math.isnan(nothing) or nothing < 8
