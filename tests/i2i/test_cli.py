"""The `i2i` command: one line and exit code 2 for bad input."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from stylepairs.datagen import __version__, features
from stylepairs.datagen.recipe import nested_overrides
from stylepairs.datagen.shell.errors import InputError
from stylepairs.datagen.stylegan.generator import Generator
from stylepairs.i2i import cli
from stylepairs.i2i.cli import main
from stylepairs.i2i.edit.editor import Editor
from stylepairs.i2i.models.checkpoints import ModelInfo, save_model
from stylepairs.i2i.models.conditions import decode_color, style_channels, style_of
from stylepairs.i2i.models.glean import Glean, GleanConfig
from stylepairs.i2i.train import training


@pytest.mark.slow
def test_networks_are_loaded_without_torchs_compiler_and_a_cpu_works_without_triton() -> None:
    """Networks are built on the meta device, where some of torch's functions import the compiler, for seconds."""
    code = """
import sys, torch
from stylepairs.datagen.encoders.files import load_encoder
from stylepairs.datagen.stylegan.checkpoints import generator_digest
from stylepairs.i2i.models.checkpoints import load_model
model, _ = load_model("embedded")
load_encoder("embedded", model.generator, generator_digest(model.generator))
heavy = {"torch._dynamo", "sympy"} & set(sys.modules)
assert not heavy, heavy
model.generator(torch.zeros(1, model.generator.config.z_dim).requires_grad_()).sum().backward()
triton = {"triton", "stylepairs.kernels.gpu.triton_layer"} & set(sys.modules)
assert not triton, triton
"""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "nothing.yaml", "--pairs", "p", "--out", "o"], "nothing.yaml"),
        (["edit", "nowhere", "photo.jpg", "--out", "o"], "nowhere: no such run folder"),
        (["edit", "embedded", "photo.jpg", "--out", "o", "--set", "color"], "must be key=value"),
        (["edit", "embedded", "photo.jpg", "--out", "o", "--format", "doc"], "--format doc"),
        (["evaluate", "nowhere", "--portraits", "p"], "nowhere: no such run folder"),
        (["edit", "--nope"], "--nope"),
        (
            ["evaluate", "embedded", "--portraits", "p", "--perceptual", "vgg16", "--perceptual-weights", "vgg.pth"],
            "vgg.pth: no such file",
        ),
        (
            ["evaluate", "embedded", "embedded:bangs", "--portraits", "p", "--set", "color=auburn"],
            "bangs: params.color: unknown",
        ),
        (["edit", "embeded:bangs", "photo.jpg", "--out", "o"], "did you mean 'embedded:bangs'?"),
        (["edit", "bangs", "photo.jpg", "--out", "o"], "did you mean 'embedded:bangs'? shipped are embedded:bangs, "),
        (["export", "embedded:hair_colour", "--out", "o.onnx"], "did you mean 'embedded:hair_color'? shipped are "),
        (
            ["evaluate", "embedded", "--portraits", "p", "--set", "color=red", "--pairs", "q"],
            "q: no such folder of pairs",
        ),
        (["evaluate", "embedded", "--pairs", "q", "--set", "color=red"], "--set: is for --portraits"),
        (["edit", "embedded", "film.mp4", "--out", "o", "--video", "--format", "jpg"], "--format jpg: is for photos"),
        (["edit", "embedded", "photo.jpg", "--out", "o", "--own-feature", "mine.txt"], "mine.txt: must end in .py"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments: list[str], message: str, monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["i2i", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert len(printed.strip().splitlines()) == 1


@pytest.mark.parametrize("command", ["i2i", "datagen"])
def test_the_version_is_said_without_heavy_libraries(command: str) -> None:
    code = f"""
import sys
from stylepairs.{command}.cli import main
sys.argv = ["{command}", "--version"]
try:
    main()
finally:
    assert not {{"torch", "numpy"}} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, f"stylepairs {__version__}\n"), done.stderr


def test_training_asks_a_feature_file_for_its_colours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(features, "_own_files", {})
    example = Path(__file__).parents[2] / "docs" / "examples" / "blush.py"
    Path("mine.py").write_text(f"{example.read_text()}\ncolor_of = {{'rouge': (180, 60, 60)}}.get\n")
    Path("mine.yaml").write_text("datagen: {feature: mine.py}\ni2i: {style: color}\n")
    told: list[torch.Tensor] = []
    monkeypatch.setattr(
        training, "train", lambda *given: told.append(style_of("color", {"color": "rouge"}, feature=given[4]))
    )
    arguments = ["i2i", "train", "mine.yaml", "--pairs", "p", "--out", "o"]
    for more in ([], ["--own-feature", "mine.py"]):
        assert not told
        monkeypatch.setattr(sys, "argv", [*arguments, *more])
        with pytest.raises(SystemExit):
            main()
    torch.testing.assert_close(decode_color(told[0])[:1], torch.tensor([44.0]), rtol=0, atol=5)


def test_by_another_version_of_a_feature_file_photos_are_edited_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(features, "_own_files", {})
    monkeypatch.setattr(Editor, "load", lambda *_given, **_how: SimpleNamespace(asked=lambda _params: None))
    journals: list[str] = []
    monkeypatch.setattr(cli, "edit_files", lambda *given: journals.append(given[5].wanted))
    text = (Path(__file__).parents[2] / "docs" / "examples" / "blush.py").read_text()
    for name in ("run.safetensors", "photo.png"):
        Path(name).write_bytes(b"x")
    for version in (text, text, f"{text}# changed\n"):
        Path("mine.py").write_text(version)
        arguments = ["edit", "run.safetensors", "photo.png", "--out", "o", "--own-feature", "mine.py"]
        monkeypatch.setattr(sys, "argv", ["i2i", *arguments])
        with pytest.raises(SystemExit):
            main()
    assert journals[0] == journals[1] != journals[2]


def test_export_reads_the_pairs_of_int8_before_it_writes(
    generator: Generator, pairs: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    pytest.importorskip("onnxruntime")
    info = ModelInfo("hair_color", "params", {}, {"shine": [0.0, 1.0]})
    arguments = ["export", str(tmp_path / "model.safetensors"), "--out", str(tmp_path / "made" / "editor.onnx")]
    monkeypatch.setattr(sys, "argv", ["i2i", *arguments, "--int8", str(pairs)])
    restoring = ModelInfo("restoration", "none", {})
    for kept, said in ((info, "shine"), (restoring, "restores, which needs none; leave --int8 out")):
        config = GleanConfig(style_channels=style_channels(kept.style, kept.kinds), channel_base=256, channel_max=16)
        save_model(tmp_path / "model.safetensors", Glean(generator, config), kept)
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 2
        assert said in capsys.readouterr().err
        assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("name", "file"), [("portraits", "landmarks.npz"), ("pairs", "build.json"), ("", "build.json")]
)
def test_evaluate_does_not_write_into_portraits_or_pairs(
    name: str, file: str, tmp_path: Path, monkeypatch, capsys
) -> None:
    folder = tmp_path / name
    folder.mkdir(exist_ok=True)
    (folder / file).touch()
    arguments = ["evaluate", "embedded", "--portraits", "p", "--set", "color=red", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["i2i", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert (ended.value.code, [path.name for path in folder.iterdir()]) == (2, [file])
    assert f"{folder}: holds " in capsys.readouterr().err


@pytest.mark.parametrize("file", ["landmarks.npz", "build.json"])
def test_a_run_is_not_put_among_portraits_or_pairs(file: str, pairs: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    out = tmp_path / "run"
    out.mkdir()
    (out / file).touch()
    monkeypatch.setattr(sys, "argv", ["i2i", "train", "hair_color", "--pairs", str(pairs), "--out", str(out)])
    monkeypatch.setattr(training, "take_steps", lambda *_: None)
    with pytest.raises(SystemExit) as ended:
        main()
    assert (ended.value.code, [path.name for path in out.iterdir()]) == (2, [file])
    assert f"{out}: holds " in capsys.readouterr().err


def test_parameters_from_the_command_line() -> None:
    assert nested_overrides(["color=blond", "degree=0.7"]) == {"color": "blond", "degree": 0.7}
    assert nested_overrides(["color=#aabbcc"]) == {"color": "#aabbcc"}
    with pytest.raises(InputError, match="not YAML"):
        nested_overrides(["color=[a"])
    assert nested_overrides(["bangs.length=0.5", "bangs.style=full"]) == {"bangs": {"length": 0.5, "style": "full"}}
    with pytest.raises(InputError, match="bangs has a value already"):
        nested_overrides(["bangs=1", "bangs.length=0.5"])
