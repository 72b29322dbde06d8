"""Hair of another colour in both pictures: what it keeps, what it leaves alone, and the pairs that come of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import tiny_build, tiny_pairs

from stylepairs.datagen.augment import plan as plan_module
from stylepairs.datagen.augment.plan import plan_augmentation
from stylepairs.datagen.augment.recoloring import drawn_color, recolored
from stylepairs.datagen.build import models
from stylepairs.datagen.build.shard_runner import build_pairs
from stylepairs.datagen.images.colors import color_to_lab, lab_to_srgb, parse_color, srgb_to_lab
from stylepairs.datagen.pairs import shards
from stylepairs.datagen.portraits.portrait import CLASS, Portrait
from stylepairs.datagen.portraits.sketch import Sketch
from stylepairs.datagen.reconstruction.reconstruct import Reconstruction
from stylepairs.datagen.shell.errors import InputError

SIZE = 64
SKIN, TOP, FRINGE = color_to_lab((210, 170, 150)), slice(0, 20), slice(20, 28)


def head_of(color: str, hair_rows: int) -> tuple[Portrait, torch.Tensor]:
    """Strands of the colour over the first rows, skin below; and the image alone."""
    lab = SKIN.expand(3, SIZE, SIZE).clone()
    strands = 5 * torch.randn(1, 1, SIZE, generator=torch.Generator().manual_seed(0)).expand(1, hair_rows, SIZE)
    lab[:, :hair_rows] = color_to_lab(parse_color(color)) + torch.cat([strands, torch.zeros(2, hair_rows, SIZE)])
    label = torch.full((SIZE, SIZE), CLASS["skin"], dtype=torch.uint8)
    label[:hair_rows] = CLASS["hair"]
    hair = (label == CLASS["hair"]).float()[None]
    image = lab_to_srgb(lab).clamp(-1, 1)
    return Portrait("head", image, label, hair, torch.full((68, 2), 40.0), "0" * 64), image


def edited(color: str) -> tuple[Portrait, Sketch, Reconstruction]:
    """A head, and the same with a fringe."""
    before, image = head_of(color, TOP.stop)
    after, image_after = head_of(color, FRINGE.stop)
    mask = after.hair - before.hair
    sketch = Sketch(image_after, mask, 1 - mask, 16, label=after.label, hair=after.hair)
    nothing = torch.zeros(1, 1)
    return before, sketch, Reconstruction(nothing, nothing, [], image, image_after, {})


def mean_lab(image: torch.Tensor, rows: slice) -> torch.Tensor:
    return srgb_to_lab(image)[:, rows].mean((1, 2))


def test_skin_from_which_the_edit_took_the_hair_keeps_its_color():
    fringed, image = head_of("brown", FRINGE.stop)
    bare, image_bare = head_of("brown", TOP.stop)
    mask = fringed.hair - bare.hair
    sketch = Sketch(image_bare, mask, 1 - mask, 16, label=bare.label, hair=bare.hair)
    nothing = torch.zeros(1, 1)
    _, after = recolored(fringed, sketch, Reconstruction(nothing, nothing, [], image, image_bare, {}), "blond")
    inside = slice(FRINGE.start + 2, FRINGE.stop)
    torch.testing.assert_close(after.generated_after[:, inside], image_bare[:, inside], rtol=0, atol=0.02)
    assert float(mean_lab(after.generated_after, slice(0, 16))[0]) > float(mean_lab(image_bare, slice(0, 16))[0]) + 15


@pytest.mark.parametrize("color", ["grey", "auburn"])
def test_hair_of_both_pictures_has_the_color_and_all_else_stays(color):
    portrait, sketch, result = edited("brown")
    before, after = recolored(portrait, sketch, result, color)
    wanted = color_to_lab(parse_color(color)).flatten()
    for image, rows in ((before.image, slice(0, 16)), (after.generated_after, FRINGE)):
        torch.testing.assert_close(mean_lab(image, slice(rows.start, rows.stop - 3)), wanted, atol=3.0, rtol=0)
    torch.testing.assert_close(before.image[:, TOP.stop + 4 :], portrait.image[:, TOP.stop + 4 :])
    torch.testing.assert_close(after.generated_before, before.image)
    below = FRINGE.stop + 4
    torch.testing.assert_close(after.generated_after[:, below:], result.generated_after[:, below:])


def test_strands_stay_where_they_are():
    portrait, sketch, result = edited("brown")
    before, _ = recolored(portrait, sketch, result, "blond")
    light = [srgb_to_lab(image)[0, 4:16].flatten() for image in (portrait.image, before.image)]
    assert float(torch.corrcoef(torch.stack(light))[0, 1]) > 0.98


def test_black_hair_becomes_no_white_paint():
    portrait, sketch, result = edited("black")
    before, _ = recolored(portrait, sketch, result, "#ffffff")
    lighter = mean_lab(before.image, slice(4, 16)) - mean_lab(portrait.image, slice(4, 16))
    assert 52 < float(lighter[0]) < 64


def test_black_hair_becomes_blond_and_not_olive():
    """Under a limit that stopped it half way it had blond's hue and brown's lightness."""
    portrait, sketch, result = edited("black")
    before, _ = recolored(portrait, sketch, result, "blond")
    wanted = color_to_lab(parse_color("blond"), like=portrait.image)[:, 0, 0]
    assert (mean_lab(before.image, slice(4, 16)) - wanted).abs().max() < 6


def test_the_color_is_drawn_by_seed_and_pair():
    colors = ["grey", "blond", "red"]
    drawn = [drawn_color(colors, 1, f"{number:06}") for number in range(60)]
    assert drawn == [drawn_color(colors, 1, f"{number:06}") for number in range(60)]
    assert set(drawn) == set(colors)
    assert drawn != [drawn_color(colors, 2, f"{number:06}") for number in range(60)]


@pytest.fixture
def pairs(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(models, "_analyser", lambda: (tiny_pairs.Analyser(), {}))
    tiny_pairs.write_pairs(tmp_path / "pairs")
    return tmp_path / "pairs"


def planned(pairs: Path, out: Path, colors: tuple[str, ...]):
    return plan_augmentation(pairs, out, steps=(), colors=colors, generator=tiny_build.generator_file())


def test_each_pair_comes_once_more_without_latents(pairs, tmp_path, monkeypatch):
    monkeypatch.setattr(plan_module, "_COLORS_HAIR", "none")  # the tiny pairs are of that feature
    assert build_pairs(planned(pairs, tmp_path / "more", ("grey", "#804020"))).complete
    made = list(shards.read_pairs(tmp_path / "more", accepted_only=False))
    assert len(made) == 6
    assert {pair.record.origin["hair"] for pair in made} <= {"grey", "#804020"}
    for pair in made:
        parent = shards.read_pair(pairs, pair.record.parents[0].id)
        hair = slice(0, parent.before.shape[0] // 3 - 2)
        assert np.abs(pair.before[hair].astype(int) - parent.before[hair]).mean() > 2
        np.testing.assert_array_equal(pair.before[-4:], parent.before[-4:])
        np.testing.assert_array_equal(pair.after[pair.mask == 0], pair.before[pair.mask == 0])
        assert (pair.w_before, pair.w_after, pair.noise, pair.record.generator_digest) == (None, None, None, "")
        assert (pair.record.split, pair.record.params) == (parent.record.split, pair.record.params)
        assert pair.record.portrait_digest == parent.record.portrait_digest


@pytest.mark.parametrize(("colors", "problem"), [(("grey",), "colours the hair itself"), (("gery",), "unknown")])
def test_colors_that_cannot_be_are_one_clear_line(pairs, tmp_path, monkeypatch, colors, problem):
    if problem == "unknown":
        monkeypatch.setattr(plan_module, "_COLORS_HAIR", "none")
    with pytest.raises(InputError, match=problem):
        planned(pairs, tmp_path / "more", colors)


def test_a_portrait_keeps_its_name_and_label():
    portrait, sketch, result = edited("brown")
    before, _ = recolored(portrait, sketch, result, "grey")
    assert replace(before, image=portrait.image) == portrait
