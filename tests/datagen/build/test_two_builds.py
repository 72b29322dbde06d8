"""Several builds into one folder: refused with who holds it, but the ranks of one launcher."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest
from helpers.tiny_build import plan

from stylepairs.datagen.build import pair_maker
from stylepairs.datagen.build.shard_runner import build_pairs
from stylepairs.datagen.shell.errors import InputError


def test_two_builds_started_into_one_folder_do_not_mix(tmp_path, monkeypatch):
    """Where the file system has no locks, say."""

    def overtaken(*arguments):
        path = tmp_path / "pairs" / "build.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"seed": 7}))
        return real(*arguments)

    real = pair_maker.invert
    monkeypatch.setattr(pair_maker, "invert", overtaken)
    with pytest.raises(InputError, match=r"another build was started in it meanwhile \(seed was 7, now 0\)"):
        build_pairs(plan(tmp_path, limit=2))
    assert [path.name for path in (tmp_path / "pairs").glob("[!.]*")] == ["build.json"]


def test_a_folder_that_another_build_writes_to_is_refused_and_says_who_holds_it(tmp_path, monkeypatch):
    the_plan, said = plan(tmp_path, limit=2), []

    def meanwhile(*arguments):
        for rank, world in ((0, 1), (1, 2)):
            with pytest.raises(InputError) as caught:
                build_pairs(the_plan, rank=rank, world=world)
            said.append(str(caught.value))
        return real(*arguments)

    real = pair_maker.invert
    monkeypatch.setattr(pair_maker, "invert", meanwhile)
    assert build_pairs(the_plan).complete
    assert len(set(said)) == 1
    holder = rf"datagen build \(process {os.getpid()} on .+\)"
    assert re.fullmatch(rf".*pairs: {holder} is working in it; wait for it, or choose another --out", said[0])
    assert [path.name for path in the_plan.out.glob(".*")] == [".finished-0.jsonl"]


def test_the_ranks_of_a_launcher_share_a_folder_each_once(tmp_path, monkeypatch):
    the_plan, said = plan(tmp_path, limit=2, shard_size=2), []

    def meanwhile(*arguments):
        monkeypatch.setattr(pair_maker, "invert", real)
        for rank, world in ((1, 2), (0, 1)):
            with pytest.raises(InputError) as caught:
                build_pairs(the_plan, rank=rank, world=world)
            said.append(str(caught.value))
        assert build_pairs(the_plan, rank=0, world=2).pairs == 2
        return real(*arguments)

    real = pair_maker.invert
    monkeypatch.setattr(pair_maker, "invert", meanwhile)
    assert build_pairs(the_plan, rank=1, world=2).complete
    assert "rank 1 of datagen build (process" in said[0]
    assert "datagen build (process" in said[1]


def test_the_lock_of_a_killed_process_holds_nothing_and_a_link_in_its_place_is_not_followed(tmp_path):
    the_plan = plan(tmp_path, limit=1)
    code = (
        "import os, pathlib, sys; from stylepairs.datagen.shell.lock import folder_lock\n"
        "with folder_lock(pathlib.Path(sys.argv[1]), 'datagen build'): os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, str(the_plan.out)], check=False)
    assert (the_plan.out / ".lock").exists()
    assert build_pairs(the_plan).complete
    assert not (the_plan.out / ".lock").exists()
    (tmp_path / "precious").write_text("kept")
    (the_plan.out / ".lock").symlink_to(tmp_path / "precious")
    with pytest.raises(InputError, match=r"\.lock: cannot be written"):
        build_pairs(the_plan)
    assert (tmp_path / "precious").read_text() == "kept"
