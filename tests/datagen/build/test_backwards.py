"""Pairs that run backwards: the edit comes first and the portrait last, in all that is stored and made of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers import tiny_pairs
from helpers.tiny_build import generator_file, plan

from stylepairs.datagen.augment.plan import plan_augmentation
from stylepairs.datagen.build import models
from stylepairs.datagen.build.shard_runner import build_pairs
from stylepairs.datagen.features import hair_color
from stylepairs.datagen.features.combination import combine
from stylepairs.datagen.features.feature import Feature
from stylepairs.datagen.images.files import read_image
from stylepairs.datagen.pairs import shards
from stylepairs.datagen.pairs.record import Pair
from stylepairs.datagen.portraits.sketch import SketchRefused

FEATURE = """
from dataclasses import replace
from stylepairs.datagen.features.hair_color import Params, measure
from stylepairs.datagen.features.hair_color import sketch as forwards

def sketch(portrait, params):
    return replace(forwards(portrait, params), backwards=True)
"""


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
    from stylepairs.datagen.portraits.folders import load_portrait

    portrait = load_portrait(tmp_path / "portraits", "portrait_000")

    def sketch(portrait, params):
        return replace(hair_color.sketch(portrait, params), backwards=True)

    forwards = Feature.of(hair_color)
    both = combine({"hair_color": forwards, "faded": replace(forwards, sketch=sketch)})
    with pytest.raises(SketchRefused, match="faded that runs backwards cannot be combined"):
        both.sketch(portrait, both.Params())
