"""`datagen latent`: its commands on a tiny generator, and wrong options on one line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers.latent_commands import run
from helpers.tiny_build import generator_file
from PIL import Image

from stylepairs.datagen.shell.errors import InputError


@pytest.mark.slow
def test_from_samples_to_a_direction_to_pictures(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("stylepairs.datagen.latent.samples.LEAST_FACE", 0.0)  # a random generator draws no faces
    generator = ("--generator", generator_file())
    samples, file = tmp_path / "samples", tmp_path / "brightness.safetensors"
    run("sample", "--out", samples, "--scores", "brightness,skin_lightness", "--count", 160, "--workers", 1, *generator)
    chosen = ("--samples", samples, "--attribute", "brightness", *generator)
    assert "one unit is" in run("fit", "interfacegan", *chosen, "--condition", "skin_lightness", "--out", file)
    said = run("fit", "sefa", *chosen, "--component", 0, "--layers", "0-3", "--out", tmp_path / "sefa.npy")
    assert "sefa.npy: of unit length, " in said  # it has not the unit of a .safetensors
    run("edit", file, "--out", tmp_path / "strip.png", "--count", 2, *generator)
    run("edit", tmp_path / "sefa.npy", "--out", tmp_path / "sefa.jpg", "--strengths", "0,1", *generator)
    run(
        "animate",
        f"{file}=-1:1",
        f"{tmp_path / 'sefa.npy'}=0:2",
        "--in-turn",
        "--out",
        tmp_path / "loop.gif",
        *generator,
    )
    names = ("--attributes", "brightness,skin_lightness", "--samples", samples)
    run("train-mapper", *names, "--steps", 2, "--batch", 2, "--out", tmp_path / "m.safetensors", *generator)
    run("edit", tmp_path / "m.safetensors", "--attribute", "brightness", "--out", tmp_path / "m.png", *generator)
    with Image.open(tmp_path / "strip.png") as strip, Image.open(tmp_path / "loop.gif") as loop:
        assert strip.size == (5 * 32, 2 * 32)
        assert loop.n_frames == 30


def test_attributes_are_listed_with_what_they_measure():
    listed = run("attributes")
    assert "hair_lightness" in listed
    assert "eye distances" in listed


@pytest.mark.parametrize("arguments", [("--tune", 5), ("--encoder", "e.safetensors")])
def test_what_is_for_portraits_alone_is_refused_for_sampled_people(arguments, tmp_path):
    np.save(tmp_path / "b.npy", np.ones((1, 16), np.float32))
    with pytest.raises(InputError, match="--encoder, --tune: are for portraits"):
        run("edit", tmp_path / "b.npy", "--out", tmp_path / "x.png", *arguments, "--generator", generator_file())


@pytest.mark.parametrize(
    "arguments, message",
    [
        (
            ("fit", "interfacegna", "--samples", "x", "--attribute", "smile", "--out", "d"),
            "did you mean 'interfacegan'",
        ),
        (
            ("fit", "stylespace", "--samples", "x", "--attribute", "smile", "--out", "d.npy"),
            r"d.npy: must end in .safetensors$",
        ),
        (("sample", "--scores", " , ", "--out", "x"), "--scores  , : names none"),
        (("edit", "none.safetensors", "--out", "x.png"), r"none.safetensors: cannot be read"),
        (("edit", "none.npy", "--out", "x.png"), r"none.npy: cannot be read as a direction"),
        (("edit", "none.npy", "--out", "x.png", "--strengths", "0,nan"), "--strengths 0,nan: must be finite numbers"),
        (("edit", "none.npy", "--out", "x.tiff"), r"x.tiff: must end in .png, .jpg, .webp"),
        (("edit", "none.npy", "--out", "."), "must end in"),
        (("animate", "none.npy=0:1", "--out", "x.gif", "--fps", "60"), "50 frames a second at most"),
        (("animate", "none.npy=0:1", "--out", "x.mp4", "--fps", "60", "--seconds", "120"), "more than 3000 frames"),
        (("animate", "a#b/none.npy=0:1", "--out", "x.gif"), r"a#b/none.npy: cannot be read"),
        (("train-mapper", "--attributes", "smile", "--samples", "x", "--out", "m.pt"), "must end in .safetensors"),
        (("optimise", "yaw", "--samples", "x", "--out", "x.png", "--size", "1.3"), "yaw has no region of its own"),
        (("animate", "none.npy=1", "--out", "x.gif"), "must be FILE=LOW:HIGH"),
        (("animate", "none.npy=nan:1", "--out", "x.gif"), "must be FILE=LOW:HIGH"),
    ],
)
def test_wrong_options_are_one_line(arguments, message):
    with pytest.raises(InputError, match=message):
        run(*arguments, "--generator", generator_file())
