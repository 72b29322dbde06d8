"""Strips and animations: what is in the files, and that a loop closes."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from helpers.tiny_build import tiny_generator
from PIL import Image

from stylepairs.datagen.latent.directions import Direction, DirectionInfo, direction_in_w
from stylepairs.datagen.latent.people import noise_fixed, sampled_people
from stylepairs.datagen.latent.pictures import Motion, frames, write_animation, write_strip
from stylepairs.datagen.latent.styles import style_layers
from stylepairs.datagen.shell.errors import InputError


@pytest.fixture(scope="module")
def direction() -> Direction:
    return direction_in_w(torch.full((16,), 0.3), tiny_generator(), None, DirectionInfo(method="test"))


def test_a_loop_is_slow_at_its_ends_and_its_last_frame_leads_into_the_first(direction):
    strengths = Motion(direction, -1.0, 2.0).strengths(20)
    assert (float(strengths.min()), float(strengths.max())) == pytest.approx((-1, 2), abs=1e-5)
    steps = strengths.roll(-1).sub(strengths).abs()
    assert float(steps[0]) < 0.3 * float(steps.max())
    assert float(steps[-1]) == pytest.approx(float(steps[0]), abs=1e-5)
    assert torch.allclose(Motion(direction, -1.0, 2.0, 0.25).strengths(20), strengths.roll(5), atol=1e-5)


def test_frames_show_all_motions_at_once(direction):
    generator = tiny_generator()
    layer = style_layers(generator)[3]
    styled = Direction(torch.zeros(8, 16), DirectionInfo(method="s"), {layer.name: torch.ones(layer.channels)})
    people = sampled_people(generator, 2)
    made = list(frames(generator, people, [Motion(direction, 0, 2), Motion(styled, 0, 1)], 10))
    assert len(made) == 10
    assert made[0].shape == (32, 64, 3)
    plain = list(frames(generator, people, [Motion(direction, 0, 2)], 10))
    assert np.array_equal(made[0], plain[0])  # both begin at nothing
    assert not np.array_equal(made[5], plain[5])


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".mp4"])
def test_an_animation_is_read_back_by_others(suffix, tmp_path):
    pictures = [np.full((32, 64, 3), 20 * index, np.uint8) for index in range(10)]
    path = tmp_path / f"loop{suffix}"
    write_animation(path, pictures, 10)
    if suffix == ".mp4":
        film = cv2.VideoCapture(str(path))
        read = [film.read()[1] for _ in range(10)]
    else:
        with Image.open(path) as image:
            assert image.n_frames == 10
            assert image.info["loop"] == 0
            read = []
            for index in range(10):
                image.seek(index)
                read.append(np.asarray(image.convert("RGB")))
    for one, two in zip(pictures, read, strict=True):
        assert abs(float(one.mean()) - float(two.mean())) < 6


def test_a_gif_takes_as_long_as_it_was_asked_to(tmp_path):
    pictures = [np.full((32, 64, 3), 5 * index, np.uint8) for index in range(45)]
    for fps in (15, 30, 50):
        write_animation(tmp_path / "loop.gif", pictures, fps)
        with Image.open(tmp_path / "loop.gif") as image:
            times = []
            for index in range(image.n_frames):
                image.seek(index)
                times.append(image.info["duration"])
        assert sum(times) == pytest.approx(1000 * len(pictures) / fps, abs=10)
        assert min(times) >= 20
    with pytest.raises(InputError, match="50 frames a second at most"):
        write_animation(tmp_path / "loop.gif", pictures, 60)


def test_too_many_pixels_for_memory_are_refused_where_frames_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr("stylepairs.datagen.latent.pictures.MAX_PIXELS", 3 * 32 * 64)
    endless = (np.zeros((32, 64, 3), np.uint8) for _ in range(10**9))
    with pytest.raises(InputError, match=r"write an .mp4"):
        write_animation(tmp_path / "loop.gif", endless, 10)


def test_a_strip_holds_people_below_each_other(tmp_path):
    rows = [torch.linspace(-1, 1, 2 * 3 * 8 * 8).reshape(2, 3, 8, 8)] * 3
    write_strip(tmp_path / "a" / "s.png", rows)
    with Image.open(tmp_path / "a" / "s.png") as image:
        assert image.size == (16, 24)
    for name, write in (("s.bmp", write_strip), ("s.avi", lambda path, _: write_animation(path, [], 1))):
        with pytest.raises(InputError, match="must end in"):
            write(tmp_path / name, rows)


def test_noise_is_put_back():
    generator = tiny_generator()
    before = [level.clone() for level in generator.noise_maps()]
    with noise_fixed(generator, [torch.zeros_like(level[0, 0]) for level in before]):
        assert not any(level.any() for level in generator.noise_maps())
    assert all(torch.equal(a, b) for a, b in zip(before, generator.noise_maps(), strict=True))


@pytest.mark.parametrize(("suffix", "most"), [(".webp", 16_383), (".jpg", 65_500)])
def test_pictures_longer_than_their_format_holds_are_told(suffix, most, tmp_path):
    row = torch.zeros(1, 3, 2, most + 1)
    with pytest.raises(InputError, match=rf"{most + 1} x 2 pixels are more than a {suffix} holds"):
        write_strip(tmp_path / f"strip{suffix}", [row])
    write_strip(tmp_path / f"strip{suffix}", [row[..., :most]])


def test_frames_wider_than_their_format_holds_are_told(tmp_path):
    for suffix, most in ((".gif", 65_535), (".webp", 16_383), (".mp4", 16_384)):
        with pytest.raises(InputError, match="show fewer people"):
            write_animation(tmp_path / f"loop{suffix}", [np.zeros((2, most + 1, 3), np.uint8)], 10)
