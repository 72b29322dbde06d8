"""Sampling: the same bytes whatever interrupts it and however many work on it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import small_parts
from helpers.tiny_build import generator_file, tiny_generator

from stylepairs.datagen.latent import samples
from stylepairs.datagen.latent.samples import Sampling, load_samples, sample
from stylepairs.datagen.shell.errors import InputError

SCORES = ("brightness", "skin_lightness")


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch):
    monkeypatch.setattr(samples, "PART_SIZE", 4)
    monkeypatch.setattr(samples, "BATCH", 3)
    monkeypatch.setattr(samples, "LEAST_FACE", 0.0)  # random generators draw none


def sampling(count: int = 10, **changes) -> Sampling:
    return replace(Sampling(generator_file(), SCORES, count, seed=5, psi=0.8), **changes)


def parts(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.parquet")}


def test_samples_are_the_generators_latents_and_their_images_scores(tmp_path):
    seen: list[int] = []
    sample(sampling(), tmp_path, on_part=seen.append)
    found, generator = load_samples(tmp_path), tiny_generator()
    assert sum(seen) == 10
    assert found.w.shape == (10, 16)
    image = generator.synthesis(found.w[7][None, None].expand(1, generator.num_ws, -1))
    light = samples.load_scorer(SCORES)(image)[0, 0]
    assert float(found.scores["brightness"][7]) == pytest.approx(float(light), abs=1e-3)
    assert len(found.w.unique(dim=0)) == 10


@pytest.mark.slow
def test_an_interrupted_run_goes_on_to_the_same_bytes(tmp_path, monkeypatch):
    sample(sampling(), tmp_path / "whole")
    replace_file, calls = samples.replace_file, []

    def killed(path, write):
        calls.append(path)
        if len(calls) == 2:
            raise KeyboardInterrupt
        replace_file(path, write)

    monkeypatch.setattr(samples, "replace_file", killed)
    with pytest.raises(KeyboardInterrupt):
        sample(sampling(), tmp_path / "cut")
    assert len(parts(tmp_path / "cut")) == 1
    sample(sampling(), tmp_path / "cut")
    assert parts(tmp_path / "cut") == parts(tmp_path / "whole")


def test_more_samples_keep_the_first_ones(tmp_path):
    sample(sampling(6), tmp_path)
    first = load_samples(tmp_path)
    sample(sampling(10), tmp_path)
    more = load_samples(tmp_path)
    assert torch.equal(more.w[:6], first.w)
    assert torch.equal(more.scores["brightness"][:4], first.scores["brightness"][:4])


def test_fewer_samples_leave_those_that_are_there(tmp_path):
    sample(sampling(10), tmp_path)
    before = parts(tmp_path)
    sample(sampling(3), tmp_path)
    assert parts(tmp_path) == before


def test_samples_know_whose_latents_they_are_and_which_scores_say_nothing(tmp_path):
    sample(sampling(6), tmp_path)
    found = load_samples(tmp_path)
    assert torch.equal(load_samples(tmp_path, found.generator_digest).w, found.w)
    with pytest.raises(InputError, match="of another generator"):
        load_samples(tmp_path, "0" * 64)
    with pytest.raises(InputError, match="'smile': the samples have none; sample with it among --scores, into another"):
        found.scored("smile")
    with pytest.raises(InputError, match="'brihtness': the samples have none; did you mean 'brightness'"):
        found.scored("brihtness")
    with pytest.raises(InputError, match="'yawning': the samples have none; there are: brightness, skin_lightness"):
        found.scored("yawning")
    found.scores["brightness"].fill_(0.5)
    with pytest.raises(InputError, match="does not vary"):
        found.scored("brightness")


@pytest.mark.slow
def test_two_workers_write_the_same_bytes_as_one(tmp_path, monkeypatch):
    monkeypatch.setattr(samples, "_prepare", small_parts.prepare)
    for workers in (1, 2):
        sample(sampling(), tmp_path / str(workers), workers)
    assert len(parts(tmp_path / "1")) == 3
    assert parts(tmp_path / "1") == parts(tmp_path / "2")


@pytest.mark.parametrize("changes", [{"seed": 6}, {"scores": ("brightness",)}, {"psi": 0.5}])
def test_a_folder_of_another_sampling_is_refused(changes, tmp_path):
    sample(sampling(4), tmp_path)
    with pytest.raises(InputError, match="choose another --out"):
        sample(sampling(8, **changes), tmp_path)


def test_damaged_parts_are_one_line(tmp_path):
    sample(sampling(4), tmp_path)
    (path,) = tmp_path.glob("*.parquet")
    whole = path.read_bytes()
    for data in (b"", whole[:-20], b"PAR1" + bytes(100) + b"PAR1"):
        path.write_bytes(data)
        with pytest.raises(InputError, match="damaged samples"):
            load_samples(tmp_path)
    with pytest.raises(InputError, match="holds no samples"):
        load_samples(tmp_path / "none")
