"""What a build is given besides portraits that are right: files that its parameters name, and what refuses late."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from helpers import tiny_build
from helpers.tiny_build import plan

from stylepairs.datagen.build import pair_maker
from stylepairs.datagen.build.plan import named_files
from stylepairs.datagen.build.settings import BuildRecipe
from stylepairs.datagen.build.shard_runner import build_pairs
from stylepairs.datagen.features import load_feature
from stylepairs.datagen.images.files import read_image, write_png
from stylepairs.datagen.pairs import shards
from stylepairs.datagen.portraits.sketch import SketchRefused
from stylepairs.datagen.shell.errors import InputError


def test_files_that_parameters_name_count_by_what_they_hold(tmp_path):
    references, mask = tmp_path / "references", tmp_path / "mask.png"
    tiny_build.write_portraits(references, 2)
    write_png(mask, np.eye(32, dtype=np.uint8) * 255)

    def named(feature: str, **params: object) -> dict[str, str]:
        return named_files(BuildRecipe(feature=feature, params=params))

    parts = named("facial_features", references=["bundled", str(references)])
    assert list(parts) == [str(references)]
    one = named("facial_features", reference=f"{references}/portrait_000")
    other = named("facial_features", reference=f"{references}/portrait_001")
    both = named("facial_features+bangs", facial_features={"references": str(references)}, bangs={"region": str(mask)})
    assert both == parts | named("bangs", region=[str(mask), "0.3,0.2 0.7,0.2 0.5,0.4", None])
    aligned = references / "aligned" / "portrait_001.png"
    write_png(aligned, read_image(aligned)[::-1].copy())
    write_png(mask, 255 - np.eye(32, dtype=np.uint8) * 255)
    assert named("facial_features", references=str(references)) != parts
    assert named("bangs", region=str(mask)).items().isdisjoint(both.items())
    assert named("facial_features", reference=f"{references}/portrait_000") == one
    assert named("facial_features", reference=f"{references}/portrait_001") != other
    assert named("hair_color", color="blond") == {}


def test_a_pair_whose_measuring_refuses_it_does_not_end_the_build(tmp_path, monkeypatch):
    own = load_feature("hair_color")

    def refusing(portrait, seen, params):
        if portrait.name == "portrait_001":
            raise SketchRefused("portrait_001: not with that edit")
        return own.measure(portrait, seen, params)

    monkeypatch.setattr(pair_maker, "load_feature", lambda *_, **__: replace(own, measure=refusing))
    assert build_pairs(plan(tmp_path)).complete
    records = shards.read_index(tmp_path / "pairs", accepted_only=False)
    refused = [record for record in records if list(record.reasons) == ["portrait_001: not with that edit"]]
    assert [record.portrait for record in refused] == ["portrait_001"] * 2


@pytest.mark.parametrize("which", ["points68", "source_to_aligned"])
def test_points_that_are_no_numbers_are_one_clear_line(tmp_path, which):
    tiny_build.write_portraits(tmp_path / "portraits")
    path = tmp_path / "portraits" / "landmarks.npz"
    with np.load(path) as stored:
        held = dict(stored)
    held[which][0, 0] = np.nan
    np.savez(path, **held)
    with pytest.raises(InputError, match=r"landmarks.npz: a point or transform is no number"):
        plan(tmp_path)
