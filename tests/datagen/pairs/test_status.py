"""The status of a folder of pairs, however many there are."""

from __future__ import annotations

import weakref

from stylepairs.datagen.pairs import manifest, shards
from stylepairs.datagen.pairs.status import status_of


def test_the_status_of_a_folder_holds_one_record_at_a_time(tmp_path, synthetic_pairs, monkeypatch):
    synthetic_pairs(tmp_path, count=40, shard_size=10)
    accepted, made, alive = len(shards.read_index(tmp_path)), manifest.record_of_row, []

    def noted(*arguments):
        record = made(*arguments)
        alive.append(weakref.ref(record))
        assert sum(each() is not None for each in alive) < 5
        return record

    monkeypatch.setattr(manifest, "record_of_row", noted)
    found = status_of(tmp_path)
    assert (found.done, found.accepted, len(alive)) == (40, accepted, 40)
