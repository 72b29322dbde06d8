"""A manifest as columns says what its records say, and refuses what lies."""

from __future__ import annotations

import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stylepairs.datagen.pairs import shards
from stylepairs.datagen.pairs.index import KEPT_FIGURES, PairIndex, distinct
from stylepairs.datagen.shell.errors import InputError
from stylepairs.i2i.train.sides import data_digest, read_records


@pytest.fixture
def folder(tmp_path, synthetic_pairs):
    kinds = ({"color": "blond", "intensity": 1.0}, {"color": "red", "intensity": 0.5})
    synthetic_pairs(tmp_path, count=40, shard_size=7, params=kinds, figures={"light": 0.5})
    return tmp_path


def with_few_figures(records):
    kept = [{name: value for name, value in each.figures.items() if name in KEPT_FIGURES} for each in records]
    return [vars(record) | {"figures": figures} for record, figures in zip(records, kept, strict=True)]


def test_records_are_those_of_the_shards_one_by_one_and_in_order(folder):
    index, records = shards.open_index(folder), shards.read_index(folder, accepted_only=False)
    assert isinstance(index, PairIndex)
    assert with_few_figures(index) == with_few_figures(records)
    for place in (0, 17, -1):
        assert with_few_figures([index[place]]) == with_few_figures([records[place]])
    assert with_few_figures(index[5:9]) == with_few_figures(records[5:9])


def test_the_light_of_photos_is_kept_and_other_figures_are_not(folder):
    assert [record.figures for record in shards.open_index(folder)[:2]] == [{"light": 0.5}] * 2


def test_rows_are_chosen_by_what_they_are(folder):
    index, records = shards.open_index(folder), shards.read_index(folder, accepted_only=False)
    for accepted in (True, False):
        for split in ("train", "val"):
            wanted = [r.id for r in records if r.accepted == accepted and r.split == split]
            assert [r.id for r in index.where(accepted=accepted, split=split)] == wanted
            assert [r.id for r in index.where(accepted=accepted).where(split=split)] == wanted
    assert len(index.where(having="before")) == 40
    assert len(index.where(having="before", lacking="after")) == 0
    assert len(index.where(having="nothing")) == 0
    with pytest.raises(IndexError):
        index.where(having="nothing")[0]


def test_rows_are_chosen_by_their_parameters(folder):
    index, records = shards.open_index(folder), shards.read_index(folder, accepted_only=False)
    asked = []

    def is_red(params):
        asked.append(params)
        return params["color"] == "red"

    assert [r.id for r in index.with_params(is_red)] == [r.id for r in records if r.params["color"] == "red"]
    assert len(asked) == 2
    assert len(index.with_params(is_red).with_params(lambda params: False)) == 0
    assert len(index.where(having="nothing").with_params(is_red)) == 0


def test_a_training_set_has_the_same_name_by_manifest_and_by_shards(folder):
    records = read_records(folder, "train")
    by_columns = data_digest(records), sorted(map(str, distinct(records, "params")))
    (folder / "manifest.parquet").unlink()
    records = read_records(folder, "train")
    assert isinstance(records, list)
    assert by_columns == (data_digest(records), sorted({str(value) for value in distinct(records, "params")}))


def changed(folder, name, values):
    path = folder / "manifest.parquet"
    table = pq.read_table(path)
    pq.write_table(table.set_column(table.schema.names.index(name), name, values(table[name])), path)


@pytest.mark.parametrize(
    "name, values",
    [
        ("parts", lambda column: pa.array([3] * len(column))),
        ("accepted", lambda column: pa.array(["yes"] * len(column))),
        ("degree", lambda column: pa.array([7.0] * len(column))),
        ("params", lambda column: pa.array(["["] * len(column))),
        ("split", lambda column: pa.array(["test"] * len(column))),
    ],
)
def test_a_manifest_of_other_values_is_refused_in_one_line(folder, name, values):
    changed(folder, name, values)
    with pytest.raises(InputError, match="damaged manifest") as caught:
        list(shards.open_index(folder))
    assert "\n" not in str(caught.value)


def test_a_manifest_of_more_rows_than_its_shards_could_hold_is_refused(folder):
    path = folder / "manifest.parquet"
    table = pq.read_table(path)
    many = table.take(np.zeros(10_000, np.int64))
    pq.write_table(many, path)
    with pytest.raises(InputError, match="10000 rows of"):
        shards.open_index(folder)


def test_builds_that_were_put_together_are_refused_as_without_a_manifest(folder):
    shutil.copy(folder / "pairs-00001.tar", folder / "pairs-00009.tar")
    said = "pairs-00001.tar and pairs-00009.tar both hold a pair 000007; keep builds apart"
    for _ in range(2):
        with pytest.raises(InputError, match=said):
            shards.open_index(folder)
        shards.update_manifest(folder)
