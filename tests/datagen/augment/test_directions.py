"""Children run in the direction of their parents, whatever their own picture would say."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import tiny_build, tiny_pairs

from stylepairs.datagen.augment import interpolation
from stylepairs.datagen.augment import plan as augment_plan
from stylepairs.datagen.augment.plan import plan_augmentation
from stylepairs.datagen.build import models
from stylepairs.datagen.build.shard_runner import build_pairs
from stylepairs.datagen.features import bangs, load_feature
from stylepairs.datagen.pairs import shards
from stylepairs.datagen.pairs.record import Pair


@pytest.fixture(autouse=True)
def tiny_analyser(monkeypatch):
    monkeypatch.setattr(models, "_analyser", lambda: (tiny_pairs.Analyser(), {}))


def degrees(folder: Path, out: Path, t: float = 0.5) -> Iterator[Pair]:
    plan = plan_augmentation(folder, out, steps=(t,), generator=tiny_build.generator_file())
    assert build_pairs(plan).complete
    return shards.read_pairs(out, accepted_only=False)


def written(tmp_path: Path, **changes) -> Path:
    """Pairs whose records say something else."""
    folder = tmp_path / "pairs"
    tiny_pairs.write_pairs(folder)
    changed = [replace(pair, record=replace(pair.record, **changes)) for pair in shards.read_pairs(folder)]
    shards.write_shard(folder / shards.shard_name(0), changed)
    shards.write_manifest(folder)
    return folder


def test_children_of_a_pair_that_was_imported_backwards_run_backwards(tmp_path):
    folder = written(tmp_path, backwards=True, origin={"before": "a.png", "after": "b.png"})
    parents = {pair.record.id: pair for pair in shards.read_pairs(folder)}
    for pair in degrees(folder, tmp_path / "more"):
        assert (pair.record.backwards, pair.record.degree) == (True, 1)
        parent = parents[pair.record.parents[0].id]
        np.testing.assert_array_equal(pair.after, parent.after)
        np.testing.assert_array_equal(pair.w_after, parent.w_after)


def test_a_child_whose_edit_would_run_the_other_way_is_refused(tmp_path, monkeypatch):
    own, whole = load_feature("hair_color"), augment_plan.load_feature
    turned = {"sketch": lambda portrait, params: replace(own.sketch(portrait, params), backwards=True)}
    monkeypatch.setattr(augment_plan, "load_feature", lambda *a, **k: replace(whole(*a, **k), **turned))
    folder = written(tmp_path)
    for pair in degrees(folder, tmp_path / "more"):
        assert "runs the other way than that of pair" in pair.record.reasons[0]
        assert not pair.record.backwards


def test_backwards_is_taken_on_trust_of_imported_parents_alone(tmp_path):
    folder = written(tmp_path, backwards=True)
    for pair in degrees(folder, tmp_path / "more"):
        assert "runs the other way than that of pair" in pair.record.reasons[0]


def test_what_a_limit_says_of_the_direction_holds_where_it_is_loosened():
    asked = bangs.Params(made_from="either").model_dump()
    for made_from in ("fringe", "bare"):
        directed = load_feature("bangs").directed(bangs.Params.model_validate(asked), made_from == "fringe")
        loose = bangs.Params.model_validate(interpolation.without_limits(directed.model_dump(), bangs.Params))
        assert (loose.made_from, loose.min_worn) == (made_from, 0)
    combined = load_feature("bangs+hair_color")
    both = combined.Params.model_validate({"bangs": asked})
    assert combined.directed(both, False).bangs.made_from == "bare"


@pytest.mark.parametrize("imported", [False, True])
def test_a_child_of_an_imported_pair_shows_its_edit_not_the_feature_s_own(tmp_path, monkeypatch, imported):
    own, whole = load_feature("hair_color"), augment_plan.load_feature

    def painted(portrait, params):
        made = own.sketch(portrait, params)
        red = torch.tensor([1.0, -1.0, -1.0])[:, None, None].expand_as(made.image)
        image = torch.where(made.edit_mask > 0, red, portrait.image)
        return replace(made, image=image, sketch_detail=1.0, photo_detail=0.0, harmony=0.0)

    monkeypatch.setattr(augment_plan, "load_feature", lambda *a, **k: replace(whole(*a, **k), sketch=painted))
    folder = written(tmp_path, origin={"before": "a.png", "after": "b.png"} if imported else {})
    for pair in degrees(folder, tmp_path / "more"):
        inside = pair.mask == 255
        assert inside.any()
        generated = np.abs(pair.after.astype(int) - pair.generated_after)[inside].mean()
        sketch = np.abs(pair.after.astype(int) - pair.sketch)[inside].mean()
        assert (generated < sketch) == imported


@pytest.mark.parametrize("changes", [{"photo_detail": 0.0}, {"photo_detail": 0.0, "sketch_detail": 1.0}])
def test_where_no_edit_was_asked_for_the_photo_stays(tmp_path, monkeypatch, changes):
    own, whole = load_feature("hair_color"), augment_plan.load_feature
    turned = {"sketch": lambda portrait, params: replace(own.sketch(portrait, params), **changes)}
    monkeypatch.setattr(augment_plan, "load_feature", lambda *a, **k: replace(whole(*a, **k), **turned))
    for pair in degrees(written(tmp_path), tmp_path / "more", t=0.0):
        np.testing.assert_array_equal(pair.after, pair.before)
