"""The recipe of the embedded generator: resume is exact, what is frozen stays, growth keeps what was learned, figures
and data are what they claim."""

import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.recipe_scripts import scripts_on_path
from PIL import Image
from safetensors.torch import load_file

from stylepairs.datagen.shell.errors import InputError
from stylepairs.datagen.stylegan.generator import Generator, GeneratorConfig

FOLDER = Path(__file__).parents[2] / "recipes" / "generator"
NAMES = (
    "augment", "codes", "data", "draws", "figures", "growth", "losses", "moments", "pack", "state",
    "train",
)  # fmt: skip
TINY = ["--channel-base", "128", "--channel-max", "8", "--latent-dim", "16", "--batch", "4", "--rebuilt-share", "0.5"]
TINY += ["--measure-images", "4"]


@pytest.fixture(scope="module", autouse=True)
def recipe_on_path():
    with scripts_on_path(FOLDER, NAMES):
        yield


@pytest.fixture(scope="module")
def portraits(tmp_path_factory) -> Path:
    return write_portraits(tmp_path_factory.mktemp("portraits") / "data")


def write_portraits(folder: Path, count: int = 5) -> Path:
    draw = np.random.RandomState(0)
    for sub in ("aligned", "hair"):
        (folder / sub).mkdir(parents=True)
    for index in range(count):
        Image.fromarray(draw.randint(0, 255, (64, 64, 3), np.uint8)).save(folder / f"aligned/{index}.png")
        Image.fromarray(np.full((64, 64), 255 * (index % 2), np.uint8)).save(folder / f"hair/{index}.png")
    return folder


def run(monkeypatch, portraits: Path, trunk: Path, out: Path, *extra: str) -> dict[str, torch.Tensor]:
    import train

    monkeypatch.setattr(train, "MEASURE_BATCH", 4)
    arguments = ["--portraits", str(portraits), "--trunk", str(trunk), "--out", str(out), *TINY]
    monkeypatch.setattr(sys, "argv", ["train.py", *arguments, "--precision", "no", "--save-every", "8", *extra])
    train.main()
    return load_file(out / "state.safetensors")


@pytest.fixture(scope="module")
def first_run(portraits, trunk_file, tmp_path_factory) -> Path:
    """A run of eight images at 32 px."""
    out = tmp_path_factory.mktemp("first") / "run"
    with pytest.MonkeyPatch.context() as patch:
        run(patch, portraits, trunk_file, out, "--stages", "32:8")
    return out


@pytest.fixture
def begun(first_run, tmp_path) -> Path:
    """That run in a folder of the test's own."""
    return Path(shutil.copytree(first_run, tmp_path / "run"))


@pytest.mark.parametrize("bf16, precision", [(True, "bf16"), (False, "no")])
def test_the_precision_is_the_machines_own_unless_it_is_named(monkeypatch, bf16, precision):
    import train

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bf16)
    monkeypatch.setattr(sys, "argv", ["train.py", "--portraits", "p", "--out", "o"])
    assert train.parse_args().precision == precision


@pytest.mark.slow
def test_resumed_training_equals_unbroken_training(portraits, trunk_file, tmp_path, monkeypatch):
    whole = run(monkeypatch, portraits, trunk_file, tmp_path / "whole", "--stages", "32:8", "64:16")
    for stages in (["32:8"], ["32:8", "64:12"], ["32:8", "64:16"]):  # stopped between stages and within one
        torch.manual_seed(len(stages[-1]))  # a new process has another random state
        parts = run(monkeypatch, portraits, trunk_file, tmp_path / "parts", "--stages", *stages)
    assert whole.keys() == parts.keys()
    assert not [key for key in whole if not torch.equal(whole[key], parts[key])]
    assert (tmp_path / "whole" / "generator_ema.safetensors").exists()


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_state(portraits, trunk_file, begun, monkeypatch):
    import train

    before = load_file(begun / "state.safetensors")
    monkeypatch.setattr(train, "generator_loss", lambda logits: logits[0].mean() * float("nan"))
    with pytest.raises(SystemExit, match="not finite after 12 images"):
        run(monkeypatch, portraits, trunk_file, begun, "--stages", "32:16")
    after = load_file(begun / "state.safetensors")
    assert all(torch.equal(before[key], after[key]) for key in before)


@pytest.mark.slow
def test_training_goes_on_from_written_weights(portraits, trunk_file, first_run, tmp_path, monkeypatch):
    import state

    loaded = state.load_state(first_run / "state.safetensors", state.Rates(), torch.device("cpu"))
    state.write_weights(tmp_path / "weights", loaded)
    start = ["--start-from", str(tmp_path / "weights"), "--learning-rate", "0", "--offsets-rate", "0"]
    again = run(monkeypatch, portraits, trunk_file, tmp_path / "again", *start, "--stages", "32:12")
    assert again["codes"].equal(loaded.codes.half().float())
    assert again["generator/synthesis.b4.const"].equal(loaded.generator.synthesis.b4.const.half().float())
    assert again["offsets/hidden.weight"].equal(loaded.offsets.hidden.weight.half().float())


@pytest.mark.slow
def test_mixing_stays_as_it_was_while_heads_and_generator_learn(portraits, trunk_file, begun, monkeypatch):
    before = load_file(begun / "state.safetensors")
    after = run(monkeypatch, portraits, trunk_file, begun, "--stages", "32:12")
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert not [key for key in changed if key.startswith("mixing/")]
    assert "heads/levels.0.0.parametrizations.weight.original" in changed
    assert "generator/synthesis.b32.conv0.weight" in changed


def test_trunk_gives_five_levels_as_its_blocks_one_by_one_do(trunk_state):
    from stylepairs.datagen.images.trunk import LEVEL_CHANNELS, LEVEL_STRIDES, Trunk

    trunk = Trunk(trunk_state)
    image = torch.rand(2, 3, 128, 128, generator=torch.Generator().manual_seed(0)) * 2 - 1
    maps = trunk(image)
    expected = [(2, c, 128 // s, 128 // s) for c, s in zip(LEVEL_CHANNELS, LEVEL_STRIDES, strict=True)]
    assert [tuple(x.shape) for x in maps] == expected
    slow = trunk(image.clone().requires_grad_())
    for a, b in zip(maps, slow, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_every_portrait_gets_a_latent_of_its_own(trunk_state):
    from codes import assign_codes

    from stylepairs.datagen.images.trunk import Trunk

    torch.manual_seed(0)
    generator = Generator(GeneratorConfig(16, 16, 32, 3, 128, 8, 2))
    images = torch.randint(0, 255, (9, 3, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        codes = assign_codes(generator, Trunk(trunk_state), images, seed=0)
    assert codes.shape == (9, 16)
    assert len({tuple(code.tolist()) for code in codes}) == 9


def test_what_is_rebuilt_has_its_own_latent_and_is_augmented_as_its_portrait(portraits):
    from data import Portraits
    from draws import JITTER, draw_step

    generator = Generator(GeneratorConfig(16, 16, 32, 3, 128, 8, 2))
    data = Portraits([portraits], 32)
    codes = torch.eye(10, 16) * 100
    draws = draw_step((0, 8, 0), data, codes, generator, 6, 2, augment_p=1.0, recolour_share=0.0)
    nearest = draws.z[0, :2].argmax(1)
    assert ((draws.z[0, :2] - codes[nearest] * (1 - JITTER**2) ** 0.5).abs() < 10 * JITTER).all()
    shown = data.with_mirrored()[nearest].float() / 127.5 - 1
    torch.testing.assert_close(draws.portraits[:2], shown, atol=1e-5, rtol=0)
    change = (draws.augment(draws.portraits) - draws.portraits).abs().mean((1, 2, 3))
    assert change.min() > 1e-3


def test_shares_decide_how_often_a_folder_is_drawn_from(tmp_path):
    from data import Portraits

    folders = [write_portraits(tmp_path / "a", 2), write_portraits(tmp_path / "b", 6)]
    data = Portraits(folders, 16, shares=[0.9, 0.1])
    rows = data.batch(400, 0.0, torch.Generator().manual_seed(0)).codes % len(data)
    assert 0.8 < (rows < 2).float().mean() < 0.97


def test_a_resumed_run_logs_no_step_twice(portraits, trunk_file, begun, monkeypatch):
    import train

    monkeypatch.setattr(train, "LOG_EVERY", 1)
    # Killed after the state at 8, while a row was written.
    (begun / "log.jsonl").write_text('{"images": 8}\n{"images": 12}\n{"images": 16, "adv')
    run(monkeypatch, portraits, trunk_file, begun, "--stages", "32:12")
    rows = [json.loads(line) for line in (begun / "log.jsonl").read_text().splitlines()]
    assert [(row["images"], "likeness" in row) for row in rows] == [(8, False), (12, True)]


def test_a_run_that_begins_anew_has_no_rows_of_the_one_before(portraits, trunk_file, begun, monkeypatch):
    import train

    monkeypatch.setattr(train, "LOG_EVERY", 1)
    (begun / "state.safetensors").unlink()  # or killed before there was one
    (begun / "log.jsonl").write_text('{"images": 4}\n{"images": 8, "adv')
    run(monkeypatch, portraits, trunk_file, begun, "--stages", "32:8")
    rows = [json.loads(line) for line in (begun / "log.jsonl").read_text().splitlines()]
    assert [(row["images"], "likeness" in row) for row in rows] == [(4, True), (8, True)]


def test_weights_that_are_not_finite_do_not_take_the_place_of_the_last_state(begun):
    import state

    before = (begun / "state.safetensors").read_bytes()
    astray = state.load_state(begun / "state.safetensors", state.Rates(), torch.device("cpu"))
    astray.generator.synthesis.b4.const.data.fill_(math.nan)
    with pytest.raises(InputError, match=r"state\.safetensors: what is to be written is not finite; the last one"):
        state.save_state(begun / "state.safetensors", astray)
    assert (begun / "state.safetensors").read_bytes() == before


def test_two_runs_do_not_write_one_folder(portraits, trunk_file, begun, monkeypatch, capsys):
    from stylepairs.datagen.shell.lock import folder_lock

    with folder_lock(begun, "train.py"), pytest.raises(SystemExit, match="2"):
        run(monkeypatch, portraits, trunk_file, begun, "--stages", "32:12")
    assert "is working in it" in capsys.readouterr().err


LAUNCHED = """
import json, sys
from pathlib import Path
sys.path.insert(0, sys.argv.pop(1))
import train

class Told(train.Stage):
    def values(self):
        with Path(f"{self.args.out}-{self.accelerator.process_index}").open("a") as file:
            file.write(json.dumps({key: float(value) for key, value in self.row.items()}) + "\\n")
        return super().values()

train.MEASURE_BATCH, train.LOG_EVERY, train.Stage = 4, 1, Told
train.main()
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_processes_go_on_as_one_unbroken_run_and_log_the_mean_of_all(portraits, trunk_file, tmp_path):
    (tmp_path / "launched.py").write_text(LAUNCHED)

    def rows_of(path: Path) -> list[dict[str, float]]:
        return [json.loads(line) for line in path.read_text().splitlines()]

    def launched(out: Path, until: int) -> list[dict[str, float]]:
        asked = ["--portraits", portraits, "--trunk", trunk_file, "--out", out, *TINY, "--precision", "no"]
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
        words = [*launch, tmp_path / "launched.py", FOLDER, *asked, "--stages", f"32:{until}", "--save-every", "8"]
        subprocess.run(list(map(str, words)), env=os.environ | {"OMP_NUM_THREADS": "1"}, check=True)
        return [row | {"rate": 0} for row in rows_of(out / "log.jsonl")]

    rows = launched(tmp_path / "whole", 16)
    one, other = (rows_of(tmp_path / f"whole-{process}")[0]["likeness"] for process in (0, 1))
    assert abs(one - other) > 1e-3
    assert rows[0]["likeness"] == pytest.approx((one + other) / 2, abs=1e-4)
    launched(tmp_path / "parts", 8)
    assert launched(tmp_path / "parts", 16) == rows
    whole, parts = (load_file(tmp_path / name / "state.safetensors") for name in ("whole", "parts"))
    assert not [key for key in whole if not torch.equal(whole[key], parts[key])]


def test_stages_end_by_the_first_processes_clock_alone(portraits, trunk_file, begun, monkeypatch):
    import train

    left = iter([1.0, 0.0])  # after a step the first process's time is up, by the clock here there are minutes
    monkeypatch.setattr(train.Stage, "seconds_until", lambda stage, deadline: next(left))
    asked = ("--stages", "32:16", "64:24", "--minutes", "5")
    assert "generator/synthesis.b64.conv0.weight" not in run(monkeypatch, portraits, trunk_file, begun, *asked)


def test_codes_stay_with_their_portraits_whatever_the_endings(tmp_path):
    from data import aligned_files
    from pack import pack_portraits

    folder = write_portraits(tmp_path / "data", 3)
    for path in ((folder / "aligned" / "0.png"), (folder / "aligned" / "1.png")):
        Image.open(path).save(path.with_name(f"{path.stem}-b.jpg"))
    pack_portraits(folder, tmp_path / "packed")
    names = [path.stem for path in aligned_files(folder)]
    assert names == [path.stem for path in aligned_files(tmp_path / "packed")] == ["0-b", "0", "1-b", "1", "2"]
    Image.open(folder / "aligned" / "2.png").save(folder / "aligned" / "2.jpg")
    with pytest.raises(InputError, match=r"2\.png: 2\.jpg has the same name"):
        aligned_files(folder)


def test_portraits_that_are_not_there_or_damaged_are_named(tmp_path):
    from data import Portraits

    with pytest.raises(InputError, match="no aligned"):
        Portraits([tmp_path], 16)
    folder = write_portraits(tmp_path / "data", 2)
    (folder / "hair" / "1.png").write_text("no picture")
    with pytest.raises(InputError, match=r"hair/1\.png: cannot be read as an image"):
        Portraits([folder], 16)


def test_portraits_that_cannot_be_packed_or_measured_are_named(tmp_path):
    from figures import held_out
    from pack import pack_portraits

    folder = write_portraits(tmp_path / "data", 1)
    with pytest.raises(InputError, match="data: one portrait, whose distribution has no width; give two or more"):
        held_out([folder], 16)
    (folder / "aligned" / "1.png").write_text("no picture")
    with pytest.raises(InputError, match=r"aligned/1\.png: cannot be read as an image"):
        pack_portraits(folder, tmp_path / "packed")


def test_a_run_that_cannot_be_what_was_asked_is_one_line(portraits, trunk_file, begun, tmp_path, monkeypatch, capsys):
    import state

    def refusal(out: Path, *options: str) -> str:
        with pytest.raises(SystemExit, match="2"):
            run(monkeypatch, portraits, trunk_file, out, *options)
        return capsys.readouterr().err

    asked, new, start = ("--stages", "32:16"), tmp_path / "new", tmp_path / "start"
    assert re.match(r"--stages 16:16: .*state\.safetensors is at 32 px already", refusal(begun, "--stages", "16:16"))
    assert "a run keeps its sizes" in refusal(begun, *asked, "--channel-base", "256")
    assert "must be a portrait rebuilt and one must not" in refusal(new, *asked, "--rebuilt-share", "0")
    assert "start from" in refusal(new, *asked, "--start-from", str(tmp_path))
    state.write_weights(start, state.load_state(begun / "state.safetensors", state.Rates(), torch.device("cpu")))
    past = refusal(new, "--stages", "32:4", "--start-from", str(start))
    assert past == "--stages: ends at 4 images, of which 8 were seen; give a later end\n"
    run(monkeypatch, portraits, trunk_file, begun, "--stages", "32:4")
    assert past in capsys.readouterr().out
    for smaller in (("--latent-dim", "8"), ("--channel-max", "4"), ("--mapping-layers", "3"), ("--stages", "16:16")):
        assert "of a larger generator" in refusal(new, *asked, "--start-from", str(start), *smaller)
    shutil.copy(start / "codes.safetensors", start / "discriminator.safetensors")
    other = refusal(new, *asked, "--start-from", str(start))
    assert re.search(r"discriminator\.safetensors: is not what this recipe writes there .*; leave it out", other)
    shutil.copy(start / "generator.safetensors", begun / "state.safetensors")
    assert "is not what this recipe writes there ('progress'); remove it" in refusal(begun, *asked)
    (begun / "state.safetensors").write_bytes(b"cut off")
    assert "state.safetensors: damaged" in refusal(begun, *asked)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--stages", "32:many"], "argument --stages: 32:many: must be RESOLUTION:UNTIL_IMAGES, as 128:400000"),
        (["--stages", "32"], "argument --stages: 32: must be RESOLUTION:UNTIL_IMAGES"),
        (["--stages", "33:8"], "argument --stages: 33:8: the resolution must be a power of two, at least 8"),
        (["--portraits", "a", "b", "--shares", "1"], "--shares: 1 for 2 folders of --portraits; give one of each"),
        (["--shares", "0"], "--shares: none may be below 0, and one must be above"),
        (["--save-every", "0"], "argument --save-every: 0: must be a whole number above 0"),
        (["--ema-images", "0"], "argument --ema-images: 0: must be a whole number above 0"),
        (["--learning-rate", "-0.1"], "argument --learning-rate: -0.1: must be a number of at least 0"),
        (["--heads-rate", "nan"], "argument --heads-rate: nan: must be a number of at least 0"),
        (["--rebuilt-share", "nan"], "argument --rebuilt-share: nan: must be between 0 and 1"),
        (["--stages", "256:8"], "--channel-base 128: must be at least the side of --stages, 256"),
        (["--cool-minutes", "2"], "--cool-minutes: the end that rates are lowered towards is that of --minutes"),
    ],
)
def test_what_is_asked_wrongly_is_one_line(portraits, trunk_file, tmp_path, monkeypatch, capsys, options, message):
    with pytest.raises(SystemExit, match="2"):
        run(monkeypatch, portraits, trunk_file, tmp_path / "run", *options)
    assert message in capsys.readouterr().err


def test_latents_of_other_portraits_are_named_with_the_way_out(portraits, trunk_file, tmp_path, monkeypatch, capsys):
    start, others = tmp_path / "start", write_portraits(tmp_path / "others", 2)
    import state

    run(monkeypatch, portraits, trunk_file, tmp_path / "first", "--stages", "32:8")
    state.write_weights(
        start, state.load_state(tmp_path / "first" / "state.safetensors", state.Rates(), torch.device("cpu"))
    )
    asked = ["--start-from", str(start), "--stages", "32:16"]
    with pytest.raises(SystemExit, match="2"):
        run(monkeypatch, others, trunk_file, tmp_path / "run", *asked)
    assert re.search(r"10 codes for 2 portraits.*folder without codes\.safetensors", capsys.readouterr().err)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_run_on_a_gpu_machine_is_rehearsed_on_the_cpu(portraits, trunk_file, tmp_path, monkeypatch):
    run(monkeypatch, portraits, trunk_file, tmp_path / "run", "--stages", "32:8")
    tiny = "--channel-base 128 --channel-max 8 --latent-dim 16 --precision no --measure-images 1"
    limits = {"SMALL": "32", "LARGE": "64", "SECONDS_SMALL": "4", "SECONDS_LARGE": "4", "BATCH": "4", "EXTRA": tiny}
    places = {"PACK": str(tmp_path / "pack"), "TRUNK": str(trunk_file), "PYTHON": sys.executable}

    def gpu(*arguments: object) -> None:
        words = ["bash", str(FOLDER / "gpu.sh"), *map(str, arguments)]
        subprocess.run(words, env=os.environ | limits | places, check=True)

    gpu("pack", tmp_path / "run", portraits)
    (tmp_path / "pack" / "run").mkdir()
    (tmp_path / "pack" / "run" / "state.safetensors").write_text("of a rehearsal: not to be gone on from")
    gpu("train", tmp_path / "out")
    gpu("unpack", tmp_path / "out", tmp_path / "run")
    gpu("pack", tmp_path / "run", portraits)  # once more, before going on here
    for brought in (tmp_path / "run" / "from_gpu").iterdir():
        assert (tmp_path / "pack" / "weights" / brought.name).read_bytes() == brought.read_bytes()
    start = ["--start-from", str(tmp_path / "run" / "from_gpu"), "--stages", "64:1000000000", "--minutes", "0.05"]
    after = run(monkeypatch, portraits, trunk_file, tmp_path / "run", *start)
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {"generator_ema.safetensors", "samples.png"}
    assert after["generator/synthesis.b64.conv0.weight"].isfinite().all()
    assert len(after["codes"]) == 10
