"""Pairs that run backwards: the edit comes first and the portrait last, in all that is stored and made of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import tiny_pairs
from helpers.tiny_build import generator_file, plan

from stylepairs.datagen.augment.plan import plan_augmentation
from stylepairs.datagen.build import models
from stylepairs.datagen.build.settings import BuildRecipe
from stylepairs.datagen.build.shard_runner import build_pairs
from stylepairs.datagen.features import hair_color
from stylepairs.datagen.features.combination import combine
from stylepairs.datagen.features.feature import Feature
from stylepairs.datagen.images.files import read_image, to_uint8, write_png
from stylepairs.datagen.importing.plan import merged, open_choices, plan_import
from stylepairs.datagen.pairs import shards
from stylepairs.datagen.pairs.export import export_pairs
from stylepairs.datagen.pairs.record import Pair
from stylepairs.datagen.portraits.analysis.analyser import load_analyser, portrait_of
from stylepairs.datagen.portraits.folders import load_portrait
from stylepairs.datagen.portraits.sketch import SketchRefused
from stylepairs.datagen.recipe import load_recipe
from stylepairs.datagen.shell.errors import InputError

FEATURE = """
from dataclasses import replace
from stylepairs.datagen.features.hair_color import Params, measure
from stylepairs.datagen.features.hair_color import sketch as forwards

def sketch(portrait, params):
    return replace(forwards(portrait, params), backwards=True)
"""


REAL_ANALYSER = models._analyser


def load_portrait_of(photo: Path) -> torch.Tensor:
    """The largest face of a photo, [3,256,256], with room around it."""
    pixels, analyser = read_image(photo), load_analyser()
    return portrait_of("x", pixels, analyser.find(pixels, 0.5)[0].points68, 256, analyser)[0].image


def plan_import_of(params: Mapping[str, Any]) -> object:
    photo = Path(__file__).parents[3] / "recipes" / "photos" / "train" / "portrait_005.jpg"
    return plan_import(load_recipe("hair_color", "datagen", BuildRecipe), photo, photo, Path("nowhere"), params=params)


@pytest.fixture(autouse=True)
def tiny_analyser(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "_analyser", lambda: (tiny_pairs.Analyser(), {}))


def own_feature(folder: Path) -> Path:
    path = folder / "faded.py"
    path.write_text(FEATURE)
    return path


def built(folder: Path, feature: str, out: str) -> list[Pair]:
    made = plan(folder, out, {"feature": feature, "gate": {}})
    assert build_pairs(made).complete
    return list(shards.read_pairs(folder / out, accepted_only=False))


def test_the_edit_is_the_before_half_and_the_portrait_the_after_half(tmp_path: Path) -> None:
    usual = built(tmp_path, "hair_color", "usual")
    turned = built(tmp_path, str(own_feature(tmp_path)), "turned")
    made = 0
    for one, other in zip(usual, turned, strict=True):
        if one.after is None:  # refused: the portrait as it is
            assert not other.record.backwards
            np.testing.assert_array_equal(other.before, one.before)
            continue
        made += 1
        assert other.record.backwards
        assert not one.record.backwards
        assert other.record.degree == 1.0
        assert other.record.figures == one.record.figures
        halves = [("before", "after"), ("generated_before", "generated_after"), ("w_before", "w_after")]
        for first, second in halves:
            np.testing.assert_array_equal(getattr(other, first), getattr(one, second))
            np.testing.assert_array_equal(getattr(other, second), getattr(one, first))
        np.testing.assert_array_equal(other.mask, one.mask)
        photo = read_image(tmp_path / "portraits" / "aligned" / f"{other.record.portrait}.png")
        np.testing.assert_array_equal(other.after, photo)
        back = other.portrait_first()
        np.testing.assert_array_equal(back.before, photo)
        assert not back.record.backwards
    assert made > 4
    manifest = shards.read_index(tmp_path / "turned", accepted_only=False)
    assert [record.backwards for record in manifest] == [pair.record.backwards for pair in turned]


def test_augmented_pairs_run_backwards_too(tmp_path: Path) -> None:
    feature = own_feature(tmp_path)
    parents = {pair.record.id: pair for pair in built(tmp_path, str(feature), "pairs")}
    more = plan_augmentation(
        tmp_path / "pairs",
        tmp_path / "more",
        steps=[0.0, 0.5, 1.0],
        generator=generator_file(),
        own_feature=feature,
    )
    assert build_pairs(more).complete
    children = list(shards.read_pairs(tmp_path / "more", accepted_only=False))
    assert len(children) == 3 * sum(pair.after is not None for pair in parents.values())
    for child in children:
        assert child.record.backwards
        t = child.record.figures["augmentation_t"]
        parent = parents[child.record.parents[0].id]
        np.testing.assert_array_equal(child.after, parent.after)
        assert child.record.degree == 1.0
        w0, w1 = (w.astype(np.float32) for w in (parent.w_after, parent.w_before))
        np.testing.assert_allclose(child.w_before.astype(np.float32), w0 + t * (w1 - w0), atol=2e-3)


def test_a_part_of_a_combination_cannot_run_backwards(tmp_path: Path) -> None:
    plan(tmp_path)  # writes the portraits
    portrait = load_portrait(tmp_path / "portraits", "portrait_000")

    def sketch(portrait, params):
        return replace(hair_color.sketch(portrait, params), backwards=True)

    forwards = Feature.of(hair_color)
    both = combine({"hair_color": forwards, "faded": replace(forwards, sketch=sketch)})
    with pytest.raises(SketchRefused, match="faded that runs backwards cannot be combined"):
        both.sketch(portrait, both.Params())


@pytest.mark.slow
def test_exported_pairs_are_imported_as_they_ran(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a real face: the importer looks for one."""
    monkeypatch.setattr(models, "_analyser", REAL_ANALYSER)
    photos, feature = Path(__file__).parents[3] / "recipes" / "photos" / "train", own_feature(tmp_path)
    portrait = to_uint8(load_portrait_of(photos / "portrait_005.jpg"))
    recipe = BuildRecipe.model_validate({"feature": str(feature), "params": {"color": "auburn"}, "gate": {}})
    edited = portrait.astype(int)
    edited[:40] = (edited[:40] * 0.6).astype(int)
    for kind, image in (("before", edited.astype(np.uint8)), ("after", portrait)):
        write_png(tmp_path / kind / "000001.png", image)
    row = {"id": "000001", "params": {"color": "auburn"}, "backwards": True}
    (tmp_path / "index.jsonl").write_text(json.dumps(row))
    made = {}
    for name, listed in (("turned", tmp_path / "index.jsonl"), ("plain", None)):
        found, _ = plan_import(recipe, tmp_path / "before", tmp_path / "after", tmp_path / name, listed=listed)
        assert build_pairs(found).complete
        (made[name],) = shards.read_pairs(tmp_path / name, accepted_only=False)
    pair = made["turned"]
    assert pair.record.backwards
    assert pair.record.degree == 1.0
    np.testing.assert_array_equal(pair.before[pair.mask == 0], pair.after[pair.mask == 0])
    assert pair.before[pair.mask > 200].mean() < pair.after[pair.mask > 200].mean() - 10
    assert "shows nothing for" in made["plain"].record.reasons[0]
    # Listed as running backwards, of a feature whose own pairs never do.
    recipe = recipe.model_copy(update={"feature": "hair_color"})
    listed = tmp_path / "index.jsonl"
    found, _ = plan_import(recipe, tmp_path / "before", tmp_path / "after", tmp_path / "listed", listed=listed)
    assert build_pairs(found).complete
    (record,) = shards.read_index(tmp_path / "listed", accepted_only=False)
    assert record.backwards
    assert record.figures["degree"] < 0.99
    assert record.degree == 1.0


def test_what_was_done_to_imported_pairs_is_merged_part_by_part_and_checked() -> None:
    recipe = {"bangs": {"style": ["full", "wispy"], "length": [0.7, 0.9]}, "hair_color": {"color": ["red"]}}
    told = merged(recipe, {"bangs": {"style": "full"}})
    assert told == {"bangs": {"style": "full", "length": [0.7, 0.9]}, "hair_color": {"color": ["red"]}}
    assert recipe["bangs"]["style"] == ["full", "wispy"]
    assert open_choices(told) == ["bangs.length"]
    with pytest.raises(InputError, match="colour: unknown key; did you mean 'color'"):
        plan_import_of({"colour": "auburn"})


def test_folders_that_hold_something_else_are_not_written_into(tmp_path: Path) -> None:
    pairs = tmp_path / "pairs"
    assert build_pairs(plan(tmp_path)).complete
    held = (tmp_path / "portraits" / "index.jsonl").read_bytes()
    for out, what in ((tmp_path / "portraits", "prepared portraits"), (pairs, "pairs")):
        with pytest.raises(InputError, match=f"holds {what}; choose another --out"):
            export_pairs(pairs, out)
    with pytest.raises(InputError, match="holds prepared portraits; choose another --out"):
        plan(tmp_path, "portraits")
    with pytest.raises(InputError, match="holds prepared portraits; choose another --out"):
        plan_augmentation(pairs, tmp_path / "portraits")
    with pytest.raises(InputError, match="holds prepared portraits; choose another --out"):
        plan_import(BuildRecipe(feature="bangs"), tmp_path, tmp_path, tmp_path / "portraits")
    assert (tmp_path / "portraits" / "index.jsonl").read_bytes() == held
