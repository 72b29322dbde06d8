"""Finished shards are known without reading them, as long as they are as they were."""

from __future__ import annotations

import os
import shutil

import pytest
from helpers.tiny_build import plan

from stylepairs.datagen.build.finished import read_finished
from stylepairs.datagen.build.shard_runner import BuildEvent, build_pairs
from stylepairs.datagen.pairs import shards
from stylepairs.datagen.shell.errors import InputError


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("built")
    assert build_pairs(plan(folder)).complete
    return folder


def test_a_resumed_build_reads_no_shard_that_was_noted(built, monkeypatch):
    monkeypatch.setattr(shards, "scan_shard", lambda path: pytest.fail(f"{path} was read"))
    events: list[BuildEvent] = []
    result = build_pairs(plan(built), on_event=events.append)
    assert result.complete
    assert sum(event.work for event in events if event.resumed) == plan(built).job_count
    assert sum(event.accepted for event in events) == result.accepted


def test_a_shard_that_was_changed_since_is_read_again(built, monkeypatch):
    path = plan(built).shard_path(1)
    os.utime(path)
    read = []
    scan = shards.scan_shard
    monkeypatch.setattr(shards, "scan_shard", lambda path: read.append(path.name) or scan(path))
    build_pairs(plan(built))
    assert read.count(path.name) >= 1
    assert read_finished(built / "pairs")[path.name].is_of(path)


def test_older_notes_of_another_rank_hide_no_newer_ones(built, monkeypatch):
    """As of a folder that 16 ranks built, that was copied since, and that one process goes on with."""
    other = built / "pairs" / ".finished-1.jsonl"
    shutil.copy(built / "pairs" / ".finished-0.jsonl", other)
    os.utime(plan(built).shard_path(0))
    build_pairs(plan(built))
    monkeypatch.setattr(shards, "scan_shard", lambda path: pytest.fail(f"{path} was read"))
    assert build_pairs(plan(built)).complete
    other.unlink()


def test_lines_that_killed_processes_left_are_passed_over(built):
    notes = next((built / "pairs").glob(".finished-*.jsonl"))
    whole = read_finished(built / "pairs")
    notes.write_bytes(notes.read_bytes() + b'\n{"shard": "pairs-000\nnull\n[' + b"\xff")
    assert read_finished(built / "pairs") == whole
    notes.unlink()
    assert read_finished(built / "pairs") == {}
    assert build_pairs(plan(built)).complete


def test_a_build_of_other_shards_is_refused_as_before(built):
    with pytest.raises(InputError, match=r"other pairs than this build's|shard_size was 3, now 2"):
        build_pairs(plan(built, shard_size=2))
