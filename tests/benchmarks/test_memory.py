"""What the memory benchmark counts: tensors as they come and go, a step's own, less where blocks are recomputed."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from stylepairs.datagen.images.perceptual import load_perceptual
from stylepairs.datagen.stylegan.generator import Generator, GeneratorConfig


@pytest.fixture(scope="module")
def memory(import_script):
    return import_script("memory")


def test_tensors_count_while_they_exist_and_views_once(memory):
    with memory.LiveBytes("cpu") as live:
        x = torch.zeros(1000)
        y = x + 1
        view = y.view(10, 100)
        assert live.now == 8000
        del x, y
        assert live.now == 4000  # the view holds y's
        del view
        x = torch.zeros(500)
    assert (live.now, live.peak) == (2000, 8000)
    assert len(x) == 500


def test_a_processes_peak_is_its_own_and_not_that_of_what_started_it(memory):
    import measure

    held = np.ones(1 << 27)  # 1 GiB
    code = f"import sys; sys.path.insert(0, {str(measure.__file__).rpartition('/')[0]!r}); import measure; "
    code += "print(measure.peak_memory_mb())"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert float(done.stdout) < 900 < held.nbytes / 2**20 < measure.peak_memory_mb()


@pytest.fixture
def small(memory, monkeypatch):
    """32 px and few channels, in place of FFHQ's."""
    config = GeneratorConfig(z_dim=8, w_dim=16, img_resolution=32, channel_base=1024, channel_max=64, mapping_layers=1)
    monkeypatch.setattr(memory, "ffhq_like", lambda _: Generator(config).eval().requires_grad_(False))
    monkeypatch.setattr(memory, "load_perceptual", lambda: load_perceptual("pyramid"))


@pytest.mark.slow
def test_a_steps_tensors_grow_with_the_batch_and_shrink_where_they_are_bounded(memory, small):
    keep = {"recompute_from_px": memory.KEEP_ALL, "pixels_at_once": memory.NO_BOUND}
    one, two, recomputed, parts = (
        memory.counted(memory.Case(1, 32, batch, precision="fp32", **(keep | changed)))
        for batch, changed in ((1, {}), (2, {}), (2, {"recompute_from_px": 16}), (2, {"pixels_at_once": 32**2}))
    )
    assert one["kept"] > 4 * 4 * 32 * 32 * 32  # what the convolutions of the last block read and write, float32
    assert 1.5 * one["kept"] < two["kept"] < 2.01 * one["kept"]
    assert recomputed["kept"] < 0.75 * two["kept"]
    assert recomputed["peak"] < two["peak"]
    assert parts["kept"] == pytest.approx(one["kept"], rel=0.01)
    assert one["peak"] < parts["peak"] < two["peak"]


@pytest.mark.slow
def test_the_counted_step_is_the_one_that_is_run(memory, small):
    case = memory.Case(0, 32, 1, memory.KEEP_ALL, precision="fp32")
    with memory.LiveBytes("cpu") as live:
        memory.run(case, memory.ffhq_like(32), memory.load_perceptual())
    # With content it goes through the fused layer, whose tensors are others.
    assert 0.3 * memory.counted(case)["peak"] < live.peak < 3 * memory.counted(case)["peak"]
