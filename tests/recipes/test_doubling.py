"""Doubling a side: what is below the new block stays, a resumed run is the unbroken one, bad input is told."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.recipe_scripts import scripts_on_path
from PIL import Image
from safetensors.torch import load_file

from stylepairs.datagen.encoders.files import save_encoder
from stylepairs.datagen.encoders.network import Encoder, EncoderConfig
from stylepairs.datagen.encoders.settings import METHODS, EncoderTraining
from stylepairs.datagen.shell.errors import InputError
from stylepairs.datagen.stylegan.checkpoints import generator_digest, load_generator, save_generator
from stylepairs.datagen.stylegan.generator import Generator, GeneratorConfig

FOLDER = Path(__file__).parents[2] / "recipes" / "generator"
SIDE = 128


@pytest.fixture(scope="module", autouse=True)
def recipe_on_path():
    with scripts_on_path(FOLDER, ("data", "double", "figures", "growth", "losses", "starts", "state")):
        yield


@pytest.fixture(scope="module")
def networks(tmp_path_factory) -> Path:
    """A folder with a generator of 128 px and an encoder for it."""
    folder = tmp_path_factory.mktemp("networks")
    torch.manual_seed(0)
    generator = Generator(GeneratorConfig(16, 16, SIDE, 3, 512, 8, 2)).eval().requires_grad_(False)
    save_generator(folder / "generator.safetensors", generator)
    settings = EncoderTraining(**METHODS["start"] | {"width": 4, "deep": 8, "passes": 1})
    encoder = Encoder(EncoderConfig.of(generator, settings))
    save_encoder(folder / "encoder.safetensors", encoder, generator_digest(generator))
    return folder


@pytest.fixture
def portraits(tmp_path) -> Path:
    folder, draw = tmp_path / "portraits", np.random.RandomState(0)
    (folder / "aligned").mkdir(parents=True)
    rows = []
    for name, native in (("blurred", 200), ("other", 256), ("sharp", 300)):
        Image.fromarray(draw.randint(0, 255, (256, 256, 3), np.uint8)).save(folder / f"aligned/{name}.png")
        rows.append({"name": name, "native_crop_px": native})
    (folder / "index.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def asked(networks, portraits, trunk_file, tmp_path, monkeypatch):
    """The options of a run in a folder of this name, as the command line gives them."""
    import double

    monkeypatch.setattr(double, "MEASURED", 4)

    def options(name: str, *more: str):
        arguments = ["--generator", str(networks / "generator.safetensors"), "--portraits", str(portraits)]
        arguments += ["--encoder", str(networks / "encoder.safetensors"), "--trunk", str(trunk_file), "--batch", "4"]
        monkeypatch.setattr(sys, "argv", ["double.py", *arguments, "--out", str(tmp_path / name), *more])
        return double.parse_args()

    return options


@pytest.fixture
def run(asked, tmp_path):
    import double

    def doubled(name: str, *more: str) -> Path:
        asked(name, *more)
        double.main()
        return tmp_path / name

    return doubled


@pytest.mark.slow
def test_a_resumed_run_is_the_unbroken_one_and_nothing_below_moves(run, networks, monkeypatch):
    import double

    options = ("--images", "16", "--save-every", "8")
    whole = run("whole", *options)
    kept, save = [], double.Doubling.save

    def stop_after_the_first(self: double.Doubling) -> None:
        save(self)
        kept.append(self.images_seen)
        if kept == [8]:
            raise KeyboardInterrupt

    monkeypatch.setattr(double.Doubling, "save", stop_after_the_first)
    with pytest.raises(KeyboardInterrupt):
        run("parts", *options)
    torch.manual_seed(5)  # a new process has another random state
    parts = run("parts", *options)
    ours, theirs = (load_file(folder / "state.safetensors") for folder in (whole, parts))
    assert not [key for key in ours if not torch.equal(ours[key], theirs[key])]
    old, new = load_generator(networks / "generator.safetensors"), load_generator(whole / "generator.safetensors")
    assert new.config.img_resolution == 2 * SIDE
    state = new.state_dict()
    assert not [key for key, value in old.state_dict().items() if not torch.equal(value, state[key])]
    assert state["synthesis.b256.torgb.weight"].abs().sum() > 0  # which began at nothing


def test_before_it_learns_the_larger_generator_renders_the_old_picture_enlarged(networks):
    import double

    old = load_generator(networks / "generator.safetensors")
    new = double.grown(old)
    z = torch.randn(2, 16, generator=torch.Generator().manual_seed(1))
    small, large = old(z), new(z)
    assert torch.allclose(torch.nn.functional.avg_pool2d(large, 2), small, atol=0.15)
    assert torch.equal(large, new.synthesis(new.mapping(z), max_resolution=2 * SIDE))


@pytest.mark.parametrize("top, left", [(0, 0), (64, 64), (2, 61), (31, 17)])
def test_a_crop_is_rendered_as_the_whole_is(asked, top, left):
    import double

    made = double.Doubling(asked("out"))
    with torch.no_grad():
        torch.nn.init.normal_(made.block.torgb.weight)  # noise alone would differ: a crop draws its own
    made.average.load_state_dict(made.block.state_dict())
    draw = torch.Generator().manual_seed(3)
    ws, noise = made.latents(torch.tensor([0, 3]), 1, draw)
    crop, before = made.render(ws, noise, top, left, draw)
    rows = torch.cat([ws, ws[:, -1:].expand(-1, 2, -1)], 1)
    whole = made.new.synthesis(rows, [*noise, *made.new.noise_maps()[-2:]])
    wanted = whole[:, :, 2 * top : 2 * top + double.CROP_PX, 2 * left : 2 * left + double.CROP_PX]
    torch.testing.assert_close(crop, wanted, rtol=0, atol=1e-4)
    old = made.old.synthesis(ws, noise)
    assert torch.equal(before, old[:, :, top : top + double.CROP_PX // 2, left : left + double.CROP_PX // 2])


def test_photos_that_had_the_pixels_are_learned_from(asked):
    import double

    starts = double.Doubling(asked("out")).starts
    assert len(starts.images) == len(starts.ws) == 2 * 2  # with their mirror images
    assert torch.equal(starts.images[2:], starts.images[:2].flip(-1))


@pytest.mark.parametrize("change, message", [
    (lambda folder: (folder / "index.jsonl").write_text('{"name": "sharp"}\n'), "no index of prepared portraits"),
    (lambda folder: (folder / "index.jsonl").write_text(""), "no portrait there had 256 px"),
])  # fmt: skip
def test_portraits_that_cannot_be_learned_from_are_told(asked, portraits, change, message):
    import double

    change(portraits)
    with pytest.raises(InputError, match=message):
        double.Doubling(asked("out"))


def test_a_run_that_begins_anew_has_no_rows_of_the_one_before(asked, tmp_path):
    import double

    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "log.jsonl").write_text('{"images": 400}\n{"images": 800, "lik')
    double.Doubling(asked("out"))
    assert (tmp_path / "out" / "log.jsonl").read_text() == ""


def test_another_generators_state_is_not_gone_on_with(asked, tmp_path, networks):
    import double

    made = double.Doubling(asked("out"))
    (tmp_path / "out").mkdir()
    made.step()
    made.save()
    double.Doubling(asked("out"))
    made.digest = "another"
    made.save()
    with pytest.raises(InputError, match="is of another generator"):
        double.Doubling(asked("out"))


@pytest.mark.parametrize("option", ["--images", "--save-every"])
def test_what_is_counted_is_above_0(asked, option, capsys):
    with pytest.raises(SystemExit, match="2"):
        asked("out", option, "0")
    assert f"{option}: must be above 0" in capsys.readouterr().err


def test_a_generator_too_small_for_crops_is_told(asked, tmp_path):
    import double

    save_generator(tmp_path / "tiny.safetensors", Generator(GeneratorConfig(4, 4, 32, 3, 64, 4, 1)))
    with pytest.raises(InputError, match=r"tiny.safetensors: is of 32 px; .* from 64 px"):
        double.Doubling(asked("out", "--generator", str(tmp_path / "tiny.safetensors")))
