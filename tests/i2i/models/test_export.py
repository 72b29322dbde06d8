"""Exported graphs equal the model, take any batch, say what they are, and run without this package."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from stylepairs.datagen.shell.errors import InputError
from stylepairs.i2i.models.checkpoints import ModelInfo
from stylepairs.i2i.models.export import METADATA_NAME, described, export, outputs_of
from stylepairs.i2i.models.glean import Glean, GleanConfig

INFO = ModelInfo("hair_color", "color", {"steps": 6})
DOCS = Path(__file__).parents[3] / "docs" / "export.md"


@pytest.fixture(params=["model", "tinting"])
def trained(request: pytest.FixtureRequest) -> Glean:
    model: Glean = request.getfixturevalue(request.param)
    torch.manual_seed(5)
    for parameter in model.parameters():
        parameter.requires_grad_(False).add_(0.05 * torch.randn(parameter.shape))
    return model.eval()


def inputs_of(count: int, style_channels: int = 3) -> list[torch.Tensor]:
    torch.manual_seed(6)
    photo, region = torch.rand(count, 3, 32, 32) * 2 - 1, torch.rand(count, 1, 32, 32)
    return [photo, region, torch.rand(count), torch.rand(count, style_channels)]


def expected_of(model: Glean, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    with torch.no_grad():
        edit = model(*inputs)
    said = [edit.output.clamp(-1, 1), edit.mask, edit.gain, edit.bias, edit.confidence]
    return [*said, edit.flow] if model.config.moves else said


def example_of(library: str) -> str:
    """The example in the docs that imports this library."""
    return next(block for block in re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.S) if library in block)


def test_the_description_says_whether_an_edit_goes_on_beyond_the_crop(model: Glean) -> None:
    found = {
        feature: described(model, ModelInfo(feature, "color", {}), [])["keeps_texture"]
        for feature in ("hair_color", "bangs", "restoration", "freckles.py")
    }
    assert found == {"hair_color": True, "bangs": True, "restoration": False, "freckles.py": False}


@pytest.mark.slow
def test_exported_program_equals_the_model_at_any_batch_size(tmp_path: Path, trained: Glean) -> None:
    path = tmp_path / "out" / "editor.pt2"
    export(trained, INFO, path)
    extra = {METADATA_NAME: ""}
    program = torch.export.load(path, extra_files=extra).module()
    for count in (1, 3):
        inputs = inputs_of(count)
        for found, wanted in zip(program(*inputs), expected_of(trained, inputs), strict=True):
            torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)
    about = json.loads(extra[METADATA_NAME])
    assert about["feature"] == "hair_color"
    assert about["size_px"] == 32
    assert about["training"] == {"steps": 6}
    assert (about["inputs"], about["outputs"]) == (["photo", "region", "degree", "style"], outputs_of(trained))
    # The example in the docs runs with PyTorch alone.
    code = (
        example_of("torch.export") + "\nimport sys\nassert output.shape == photo.shape\nassert float(mask.max()) > 0\n"
    )
    code += "assert not any(name.startswith('stylepairs') for name in sys.modules)\n"
    done = subprocess.run([sys.executable, "-c", code], cwd=path.parent, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.slow
def test_model_without_a_style_has_no_such_input(tmp_path: Path, generator) -> None:
    plain = Glean(generator, GleanConfig(style_channels=0, channel_base=256, channel_max=16)).eval()
    export(plain, ModelInfo("bangs", "none", {}), tmp_path / "editor.pt2")
    inputs = inputs_of(2, 0)
    output = torch.export.load(tmp_path / "editor.pt2").module()(*inputs[:3])[0]
    torch.testing.assert_close(output, expected_of(plain, inputs)[0], rtol=0, atol=1e-4)


@pytest.mark.slow
def test_onnx_equals_the_model_and_the_example_in_the_docs_runs(tmp_path: Path, trained: Glean, monkeypatch) -> None:
    for name in ("onnx", "onnxscript"):
        pytest.importorskip(name)
    runtime = pytest.importorskip("onnxruntime")
    export(trained, INFO, tmp_path / "editor.onnx")
    session = runtime.InferenceSession(str(tmp_path / "editor.onnx"), providers=["CPUExecutionProvider"])
    for count in (1, 3):
        inputs = inputs_of(count)
        found = session.run(None, {i.name: x.numpy() for i, x in zip(session.get_inputs(), inputs, strict=True)})
        for values, wanted in zip(found, expected_of(trained, inputs), strict=True):
            np.testing.assert_allclose(values, wanted.numpy(), rtol=0, atol=1e-4)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(example_of("onnxruntime"), names)
    assert names["about"]["feature"] == "hair_color"  # type: ignore[index]


def test_other_formats_and_a_missing_extra_are_one_line(tmp_path: Path, trained: Glean, monkeypatch) -> None:
    with pytest.raises(InputError, match=r"editor\.pkl: unknown format"):
        export(trained, INFO, tmp_path / "editor.pkl")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'stylepairs\[export\]', or choose \.pt2"):
        export(trained, INFO, tmp_path / "editor.onnx")
