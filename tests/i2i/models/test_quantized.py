"""8-bit editors: about the same pictures, the same description, a smaller file."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch

from stylepairs.i2i.models.checkpoints import ModelInfo
from stylepairs.i2i.models.export import METADATA_NAME, export
from stylepairs.i2i.models.plain import Plain, PlainConfig
from stylepairs.i2i.models.quantized import quantize

pytest.importorskip("onnxruntime")


def sample(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    photo = np.repeat(np.repeat(rng.uniform(-1, 1, (1, 3, 8, 8)), 4, 2), 4, 3).astype(np.float32)
    style = rng.uniform(-1, 1, (1, 3)).astype(np.float32)
    return {"photo": photo, "region": np.ones((1, 1, 32, 32), np.float32), "degree": np.ones(1, np.float32),
            "style": style}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("ways", [("draws",), ("moves", "tints")])
def test_quantized_editor_edits_nearly_alike_in_a_smaller_file(tmp_path: Path, ways: tuple[str, ...]) -> None:
    import onnxruntime

    torch.manual_seed(1)
    model = Plain(PlainConfig("light", 32, 3, **dict.fromkeys(ways, True))).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.03 * torch.randn_like(parameter))
    whole, small = tmp_path / "light.onnx", tmp_path / "light.int8.onnx"
    export(model, ModelInfo("hair_color", "color", {"steps": 6}), whole)
    level = logging.getLogger().level
    quantize(whole, small, (sample(seed) for seed in range(8)))
    assert logging.getLogger().level == level, "the caller's own log stays as it was"
    one, two = (onnxruntime.InferenceSession(str(each), providers=["CPUExecutionProvider"]) for each in (whole, small))
    about = [each.get_modelmeta().custom_metadata_map[METADATA_NAME] for each in (one, two)]
    assert about[0] == about[1]
    assert small.stat().st_size < 0.5 * whole.stat().st_size
    given = sample(20)
    (exact, *_), (coarse, *_) = one.run(None, given), two.run(None, given)
    changed = np.abs(exact - given["photo"]).mean()
    assert np.abs(exact - coarse).mean() < 0.2 * changed
