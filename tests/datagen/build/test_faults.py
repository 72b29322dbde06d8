"""Whatever happens to a build - kills, a full disk - nothing finished is lost and the result is the same in the end."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import random
import signal
import stat
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
from helpers import tiny_build
from helpers.tiny_build import Command, plan

from stylepairs.datagen.build.shard_runner import build_pairs
from stylepairs.datagen.pairs import shards
from stylepairs.datagen.shell import durable
from stylepairs.datagen.shell.errors import InputError
from stylepairs.datagen.shell.lock import LOCK_NAME, folder_lock
from stylepairs.datagen.shell.machine import host_name

RECIPE = """
datagen:
  feature: hair_color
  params: {color: [blond, black]}
  gate: {color_delta_e: {max: 40}}
  perceptual: pyramid
  inversion: {steps: 1, decay_steps: 1, warmup_steps: 1}
  reconstruction: {steps: 1, decay_steps: 1, warmup_steps: 1, coarse_to_fine_steps: 1}
i2i: {}
"""
PAIRS = 2 * tiny_build.COUNT


def arguments(folder: Path, out: str = "pairs", *more: str, workers: int = 1) -> list[str]:
    """Of a build of 10 pairs in 10 shards."""
    recipe, portraits = folder / "mine.yaml", folder / "portraits"
    recipe.write_text(RECIPE)
    if not portraits.exists():
        tiny_build.write_portraits(portraits)
    settings = ["--portraits", str(portraits), "--out", str(folder / out), "--shard-size", "1"]
    settings += ["--workers", str(workers)]
    settings += ["--cache", str(folder / f"cache-{out}"), "--generator", tiny_build.generator_file(), "--device", "cpu"]
    return ["build", str(recipe), *settings, *more]


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob("[!.]*"))}


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_is_one_clear_line_and_loses_nothing(tmp_path, monkeypatch, call, code):
    the_plan = plan(tmp_path, limit=2, shard_size=2)
    whole = build_pairs(the_plan)
    before = digests(the_plan.out)
    (the_plan.out / "pairs-00001.tar").unlink()

    def fail(*arguments):
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(durable.os, call, fail)
        with pytest.raises(InputError, match="no space left") as caught:
            build_pairs(the_plan)
    assert "pairs-00001.tar" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert sorted(path.name for path in the_plan.out.glob("[!.]*")) == sorted(before.keys() - {"pairs-00001.tar"})
    assert build_pairs(the_plan) == whole
    assert digests(the_plan.out) == before


def test_a_write_that_fails_midway_leaves_the_old_file(tmp_path):
    path = tmp_path / "manifest.parquet"
    path.write_bytes(b"old")

    def write(file):
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(InputError, match="no space left"):
        durable.replace_file(path, write)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_may_not_be_written_is_one_clear_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        durable.make_folder(tmp_path / "file" / "pairs")
    with pytest.raises(InputError, match="cannot be written"):
        durable.replace_file(tmp_path / "none" / "x", lambda file: None)


def test_a_file_is_written_where_folders_cannot_be_synced_and_under_a_long_name(tmp_path, monkeypatch):
    path = tmp_path / f"{'a' * 250}.png"
    durable.replace_file(path, lambda file: file.write(b"whole"))
    assert path.read_bytes() == b"whole"

    def refuse(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(durable.os, "fsync", refuse)
    durable.replace_file(path, lambda file: file.write(b"again"))
    assert path.read_bytes() == b"again"
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_temporary_files_of_the_dead_are_removed_and_those_of_the_living_are_not(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    names = {pid: f".pairs-00001.tar.{host_name()}.{pid}.0a1b.tmp" for pid in (dead.pid, os.getpid())}
    inner = tmp_path / "aligned"
    inner.mkdir()
    for folder in (tmp_path, inner):
        for name in (*names.values(), ".hidden", f".pairs-00001.tar.elsewhere.{dead.pid}.0a1b.tmp"):
            (folder / name).touch()
    with folder_lock(tmp_path, "a test"):
        for folder in (tmp_path, inner):
            assert not (folder / names[dead.pid]).exists()
            assert len([path for path in folder.iterdir() if path.name != LOCK_NAME and path.is_file()]) == 3


def test_a_temporary_file_is_never_opened_through_a_link(tmp_path, monkeypatch):
    """In a shared folder whoever foresees its name could have us write over a file of ours."""
    victim = tmp_path / "victim"
    victim.write_bytes(b"mine")
    monkeypatch.setattr(durable.secrets, "token_hex", lambda count: "0" * 12)
    for target in (victim, tmp_path / "nowhere"):
        link = tmp_path / f".out.{host_name()}.{os.getpid()}.{'0' * 12}.tmp"
        link.symlink_to(target)
        with pytest.raises(InputError, match="cannot be written"):
            durable.replace_file(tmp_path / "out", lambda file: file.write(b"theirs"))
        link.unlink(missing_ok=True)
    assert victim.read_bytes() == b"mine"
    assert not (tmp_path / "nowhere").exists()
    monkeypatch.undo()
    names = set()
    for _ in range(2):
        durable.replace_file(tmp_path / "out", lambda file: names.add(file.name))
    assert len(names) == 2


def test_a_process_that_can_write_no_more_says_so_and_goes_on_later(tmp_path):
    starved = Command(arguments(tmp_path), file_limit=8_000)
    assert starved.wait() == 2
    assert starved.err.strip().splitlines()[-1].endswith("finished files are kept")
    assert "Traceback" not in starved.err
    assert not [path for path in (tmp_path / "pairs").iterdir() if path.suffix in (".tar", ".tmp")]
    assert Command(arguments(tmp_path)).wait() == 0
    assert len(shards.read_index(tmp_path / "pairs", accepted_only=False)) == PAIRS


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_a_disk_that_is_really_full_is_one_clear_line(tmp_path):
    disk = tmp_path / "pairs"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=180k", "none", str(disk)], check=False)
    if mounted.returncode:
        pytest.skip("mounting is not allowed here")
    try:
        full = Command(arguments(tmp_path))
        assert full.wait() == 2
        kept = [path.name for path in shards.shard_paths(disk)]
        assert "no space left" in full.err.strip().splitlines()[-1]
        assert kept
        assert not list(disk.glob(".*.tmp"))
        assert all(shards.scan_shard(disk / name) for name in kept)
        subprocess.run(["mount", "-o", "remount,size=50m", str(disk)], check=True)
        assert Command(arguments(tmp_path)).wait() == 0
        assert len(shards.read_index(disk, accepted_only=False)) == PAIRS
    finally:
        subprocess.run(["umount", str(disk)], check=False)


def kill_and_resume(folder: Path, kills: int, pause_s: float) -> None:
    """Build in one go, and with SIGKILLs at random moments; the folders must be equal."""
    assert Command(arguments(folder, "whole")).wait() == 0
    moments = random.Random(0)
    for _ in range(kills):
        build = Command(arguments(folder, "killed"), pause_s=pause_s)
        wait_for_work(folder / "killed", build)
        time.sleep(moments.uniform(0, 5 * pause_s))
        os.kill(build.pid, signal.SIGKILL)
        assert build.wait() == -signal.SIGKILL, "finished before it was killed: raise the pause"
    assert len(shards.shard_paths(folder / "killed")) < 10, "everything was finished before the last kill"
    assert Command(arguments(folder, "killed")).wait() == 0
    assert digests(folder / "killed") == digests(folder / "whole")


def wait_for_work(out: Path, build: Command) -> None:
    """Until a new shard was begun: its temporary file is there."""
    end = time.monotonic() + 300
    before = set(out.glob(".pairs-*.tmp"))
    while not set(out.glob(".pairs-*.tmp")) - before:
        assert build.process.exitcode is None, "the build ended by itself"
        assert time.monotonic() < end, "the build began no shard"
        time.sleep(0.01)


def test_a_killed_and_resumed_build_is_byte_identical(tmp_path):
    kill_and_resume(tmp_path, kills=1, pause_s=0.2)


def test_ctrl_c_is_one_line_and_leaves_neither_workers_nor_half_files(tmp_path):
    build = Command(arguments(tmp_path, "pairs", "--set", "inversion.steps=1000000", workers=2))
    wait_for_work(tmp_path / "pairs", build)
    os.killpg(build.pid, signal.SIGINT)  # what a terminal does: the whole group gets it
    assert build.wait(60) == 130
    assert build.out == ""
    assert build.err == "interrupted; finished shards are kept: run the same command again to go on\n"
    assert [path.name for path in (tmp_path / "pairs").glob(".*")] == [".progress-0.json"]  # for `datagen status`
    end = time.monotonic() + 60
    while living(build.pid):
        assert time.monotonic() < end, "workers are left"
        time.sleep(0.1)


def living(group: int) -> list[str]:
    """The processes of a group, zombies aside (Linux; elsewhere none are seen)."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, pgrp = path.read_text().rpartition(")")[2].split()[:3]
            if int(pgrp) == group and state != "Z":
                found.append(path.parent.name)
    return found


@pytest.mark.slow
def test_a_build_killed_ten_times_is_byte_identical(tmp_path):
    kill_and_resume(tmp_path, kills=10, pause_s=0.1)


def test_what_was_built_is_plain_tar(tmp_path):
    the_plan = plan(tmp_path, limit=1)
    build_pairs(the_plan)
    with tarfile.open(the_plan.shard_path(0)) as tar:
        members = tar.getmembers()
    assert {(m.mtime, m.uid, m.gid, m.uname, m.mode) for m in members} == {(0, 0, 0, "", 0o644)}
    assert members[0].name == "000000.before.png"
