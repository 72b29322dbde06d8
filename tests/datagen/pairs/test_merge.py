"""Folders of pairs put together: every pair once and to the bit, numbered anew, going on after a stop."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from stylepairs.datagen.augment.plan import plan_augmentation
from stylepairs.datagen.pairs import merge, shards
from stylepairs.datagen.pairs.merge import plan_merge, run_merge
from stylepairs.datagen.pairs.status import status_of
from stylepairs.datagen.shell.errors import InputError
from stylepairs.i2i.train.sides import pair_sides


@pytest.fixture
def folders(tmp_path: Path, synthetic_pairs) -> list[Path]:
    synthetic_pairs(tmp_path / "a", count=6)
    synthetic_pairs(tmp_path / "b", count=9, params=({"color": "red", "intensity": 1.0},), refuse_every=4)
    return [tmp_path / "a", tmp_path / "b"]


def test_every_pair_is_there_once_to_the_bit_under_a_new_id(tmp_path: Path, folders: list[Path]) -> None:
    run_merge(plan_merge(folders, tmp_path / "all", shard_size=5))
    assert [path.name for path in shards.shard_paths(tmp_path / "all")] == [shards.shard_name(i) for i in range(3)]
    wanted = [pair for folder in folders for pair in shards.read_pairs(folder, accepted_only=False)]
    found = list(shards.read_pairs(tmp_path / "all", accepted_only=False))
    assert [pair.record.id for pair in found] == [shards.pair_id(index) for index in range(15)]
    # Written from their pixels they make the same shard, so nothing of them was lost.
    shards.write_shard(
        tmp_path / shards.shard_name(0),
        [replace(pair, record=replace(pair.record, id=shards.pair_id(i))) for i, pair in enumerate(wanted[:5])],
    )
    assert (tmp_path / shards.shard_name(0)).read_bytes() == (tmp_path / "all" / shards.shard_name(0)).read_bytes()
    assert [pair.record.params for pair in found] == [pair.record.params for pair in wanted]
    assert len(pair_sides(tmp_path / "all").records) == sum(pair.record.accepted for pair in wanted)


def test_pairs_that_two_folders_hold_are_taken_once(tmp_path: Path, folders: list[Path], synthetic_pairs) -> None:
    synthetic_pairs(tmp_path / "longer", count=8)
    plan = plan_merge([folders[0], tmp_path / "longer"], tmp_path / "all")
    assert (len(plan.pairs), plan.twice) == (8, 6)


def test_the_bytes_do_not_depend_on_manifests(tmp_path: Path, folders: list[Path]) -> None:
    """They give every pair all columns, also a portrait that was refused, of which nothing was measured."""
    refused = [replace(pair, record=replace(pair.record, figures={})) for pair in shards.read_pairs(folders[1], False)]
    shards.write_shard(folders[1] / shards.shard_name(0), refused[:4])
    shards.write_manifest(folders[1])
    run_merge(plan_merge(folders, tmp_path / "with"))
    (folders[1] / shards.MANIFEST).unlink()
    run_merge(plan_merge(folders, tmp_path / "without"))
    assert shards.shard_paths(tmp_path / "with")
    for path in shards.shard_paths(tmp_path / "with"):
        assert path.read_bytes() == (tmp_path / "without" / path.name).read_bytes()


def test_a_stopped_merge_goes_on_and_another_is_refused(tmp_path: Path, folders: list[Path], monkeypatch) -> None:
    plan, whole = plan_merge(folders, tmp_path / "all", shard_size=4), merge.copy_pairs

    def stopping(path: Path, copies) -> None:
        if path.name == shards.shard_name(2):
            raise KeyboardInterrupt
        whole(path, copies)

    monkeypatch.setattr(merge, "copy_pairs", stopping)
    with pytest.raises(KeyboardInterrupt):
        run_merge(plan)
    assert status_of(tmp_path / "all").lines(tmp_path / "all")[0].endswith("8 of 15 pairs, 5 accepted; stopped")
    monkeypatch.setattr(merge, "copy_pairs", whole)
    written = {path: path.stat().st_mtime_ns for path in shards.shard_paths(tmp_path / "all")}
    done: list[int] = []
    run_merge(plan, done.append)
    assert done == [4, 8, 12, 15]
    assert all(path.stat().st_mtime_ns == when for path, when in written.items())
    assert len(shards.read_index(tmp_path / "all", accepted_only=False)) == 15
    with pytest.raises(InputError, match=r"merge.json: is of a merge of other pairs; choose another --out"):
        run_merge(plan_merge(folders[::-1], tmp_path / "all", shard_size=4))


def test_what_cannot_be_put_together_is_refused(tmp_path: Path, folders: list[Path], synthetic_pairs) -> None:
    with pytest.raises(InputError, match="two folders of pairs or more, each once"):
        plan_merge(folders[:1], tmp_path / "all")
    with pytest.raises(InputError, match="each once"):
        plan_merge([folders[0], folders[0] / ".." / "a"], tmp_path / "all")
    with pytest.raises(InputError, match=r"b: holds pairs; choose another --out"):
        run_merge(plan_merge(folders, folders[1]))
    other = [
        replace(pair, record=replace(pair.record, feature="bangs"))
        for pair in shards.read_pairs(folders[1], accepted_only=False)
    ]
    (tmp_path / "bangs").mkdir()
    shards.write_shard(tmp_path / "bangs" / shards.shard_name(0), other)
    with pytest.raises(InputError, match=r"bangs: holds pairs of bangs, .*a of hair_color; keep them apart"):
        plan_merge([folders[0], tmp_path / "bangs"], tmp_path / "all")


def test_merged_pairs_are_augmented_before(tmp_path: Path, folders: list[Path]) -> None:
    run_merge(plan_merge(folders, tmp_path / "all"))
    assert json.loads((tmp_path / "all" / shards.MERGE_FILE).read_text())["pairs"] == 15
    with pytest.raises(InputError, match=r"all: holds pairs of several builds; augment each, then merge"):
        plan_augmentation(tmp_path / "all", tmp_path / "more")
