"""What the speed benchmark claims: its reference is the generator, its turns alternate, its cost model adds up."""

import runpy
import sys
from dataclasses import replace

import pytest
import torch

from stylepairs.datagen.reconstruction.rendering import use_channels_last

NAMES = ("drawn", "generators", "measure", "pages", "peers", "report", "scale_model", "stages")


@pytest.fixture(scope="module")
def scripts(import_script):
    return {name: import_script(name) for name in NAMES}


def test_plain_reference_gives_the_generators_images_and_gradients(scripts):
    generators = scripts["generators"]
    plain, fast = (scripts["drawn"].random_generator(32, 1024) for _ in range(2))
    use_channels_last(fast)
    ws = torch.randn(2, fast.num_ws, fast.config.w_dim)
    renders = [lambda ws: generators.plain_synthesis(plain, ws), fast.synthesis]
    for run in (generators.forward, generators.forward_backward):
        wanted, found = (run(render, ws) for render in renders)
        assert wanted.abs().max() > 0
        assert (found - wanted).abs().max() <= 1e-4 * wanted.abs().max()


def test_contestants_take_turns(scripts):
    turns = []
    timed = scripts["measure"].interleaved({"a": lambda: turns.append("a"), "b": lambda: turns.append("b")}, rounds=3)
    assert turns == list("ab" * 4)
    assert [len(timed.seconds[name]) for name in "ab"] == [3, 3]


def test_ratios_are_of_one_round(scripts):
    # The machine was ten times slower in the second round; the ratio does not notice.
    slow, fast = {"rounds": [4.0, 40.0, 4.0]}, {"rounds": [1.0, 10.0, 1.0]}
    assert scripts["measure"].ratio(slow, fast) == (4.0, 4.0, 4.0)


def test_counted_operations_of_a_convolution(scripts):
    x, weight = torch.zeros(1, 3, 10, 10), torch.zeros(5, 3, 3, 3)
    counted = scripts["measure"].counted_gflop(lambda: torch.nn.functional.conv2d(x, weight))
    assert counted * 1e9 == pytest.approx(2 * 3 * 5 * 9 * 8 * 8)


def test_table_shows_ratio_and_overhead_and_replaces_only_what_is_marked(scripts):
    row, report = scripts["measure"].row, scripts["report"]
    machine = dict.fromkeys(
        ("cores", "processor", "bf16 instructions", "threads", "load before", "torch", "Python", "date"), "2"
    )
    rows = {report.PLAIN: row([8.0], [8.0], 4), "ours, bf16": row([2.0], [2.0], 4, image_error=0.01)}
    step = {"whole step, bf16": row([1.2], [1.2], 1), "generator alone, bf16": row([1.0], [1.0], 1)}
    text = report.markdown(
        {"forward": {"machine": machine, "rows": rows}, "reconstruction_256": {"machine": machine, "rows": step}}
    )
    assert "| ours, bf16 | 0.5 (0.5 to 0.5) | 2.00 | 4.00x (4.00 to 4.00) | 1.00x (1.00 to 1.00) | 1.0e-02 |" in text
    assert "bf16: 20 % (20 to 20)" in text
    page = "before\n<!-- figures -->\nold\n<!-- end of figures -->\nafter\n"
    put_between = scripts["pages"].put_between
    assert put_between(page, "new") == "before\n<!-- figures -->\nnew\n<!-- end of figures -->\nafter\n"
    with pytest.raises(ValueError, match="lacks"):
        put_between("no marks", "new")


def test_peers_that_are_not_installed_are_none(scripts, tmp_path):
    assert scripts["peers"].installed(tmp_path) == {}


def test_scale_model_by_hand(scripts):
    model = scripts["scale_model"]
    measured = model.Measured(1000.0, 100.0, 2e6, 0.5, 80.0, 90.0)
    assumed = model.Assumptions(
        pairs=1_000_000, pairs_per_portrait=8, accepted_share=0.5, peak_tflops=100, peak_share=0.5, bandwidth_tb_s=1,
        bandwidth_share=0.5, passes=10, other_share=0.0, price=2, efficiency=1.0, storage_price=20, shard_pairs=1000,
    )  # fmt: skip
    # 1 TFLOP at 50 TFLOP/s: 20 ms. 100 M activations of 2 bytes, 10 times: 2 GB at 0.5 TB/s: 4 ms.
    assert model.step_seconds(measured, assumed) == pytest.approx((0.02, 0.004))
    # 80 / 8 + 90 = 100 steps of 20 ms: 2 s a pair.
    assert model.pairs_per_gpu_hour(measured, assumed) == pytest.approx(1800)
    found = model.cost(measured, assumed, 8)
    assert found.gpu_hours == pytest.approx(2_000_000 / 1800)
    assert found.days == pytest.approx(2_000_000 / 1800 / 8 / 24)
    assert found.money == pytest.approx(2 * 2_000_000 / 1800)
    assert found.gigabytes_per_s == pytest.approx(8 * 0.5 * 2e6 / 1e9)  # each of 8 GPUs writes half a pair a second
    assert found.encoder_cores == pytest.approx(8 * 0.5 * 0.5)
    kept = model.storage(measured, assumed)
    assert (kept["terabytes"], kept["shards"], kept["money_per_month"]) == pytest.approx((4.0, 2000, 80))


def test_scale_model_efficiency_and_measured_rate(scripts):
    model = scripts["scale_model"]
    measured = model.Measured(1000.0, 100.0, 2e6, 0.5, 80.0, 90.0)
    assumed = replace(model.Assumptions(), efficiency=0.8, pairs_per_gpu_hour=500.0)
    one, many = (model.cost(measured, assumed, gpus) for gpus in (1, 256))
    assert one.gpu_hours == pytest.approx(assumed.pairs / assumed.accepted_share / 500)
    assert many.money == pytest.approx(one.money / 0.8)


def test_scale_model_counts_coarse_steps_by_their_cost(scripts):
    model = scripts["scale_model"]
    settings = model.ReconstructionSettings(steps=80, decay_steps=20, coarse_share=0.5)
    assert model.whole_steps(settings, model.Assumptions(coarse_cost=0.7)) == pytest.approx(100 - 40 * 0.3)


@pytest.mark.slow
def test_a_training_step_can_be_timed(scripts):
    from accelerate.state import AcceleratorState

    rows = scripts["stages"].training_step(1, 2)
    AcceleratorState._reset_state()  # or its precision would be that of all trainings after it in this process
    assert all(row["seconds"] > 0 for row in rows.values())


def test_without_matplotlib_a_line_says_what_is_missing(import_script, tmp_path, monkeypatch, capsys):
    pages, encoder_report = import_script("pages"), import_script("encoder_report")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pages.plotting():
        encoder_report.plot({"mean face, 4": {}}, tmp_path / "steps.png")
    assert "no plots: " in (told := capsys.readouterr().err)
    assert "pip install 'stylepairs[bench]'" in told


def test_a_script_of_wrong_portraits_ends_with_a_line(import_script, tmp_path, monkeypatch, capsys):
    path = import_script("stage0_report").__file__
    monkeypatch.setattr(sys, "argv", [path, str(tmp_path)])
    with pytest.raises(SystemExit, match="2"):
        runpy.run_path(path, run_name="__main__")
    assert capsys.readouterr().err.startswith(f"{tmp_path}: no prepared portraits")
