"""Paths at URLs, against a real S3 server that fails as networks and stores do."""

from __future__ import annotations

import errno
import os
import pickle
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers.s3_server import BUCKET

from stylepairs.datagen.shell.durable import replace_file
from stylepairs.datagen.shell.errors import InputError
from stylepairs.datagen.shell.lock import folder_lock, is_held
from stylepairs.datagen.shell.regular import is_regular, read_regular
from stylepairs.datagen.shell.storage import lease, staged, transfer
from stylepairs.datagen.shell.storage.staged import Staged, drop, fetched, place


@pytest.fixture
def folder(s3):
    return place(f"s3://{BUCKET}/some/{time.monotonic_ns()}")


def key(path: Staged) -> str:
    return path.url.removeprefix(f"s3://{BUCKET}/")


def write(path: Path, data: bytes) -> None:
    replace_file(path, lambda file: file.write(data))


def test_local_paths_and_file_urls_stay_what_they_are(tmp_path):
    assert place("a/b") == Path("a/b")
    assert place("C:/x://y") == Path("C:/x://y")
    assert place(f"file://{tmp_path}/x") == tmp_path / "x"
    assert type(place(f"file://{tmp_path}/x")) is type(tmp_path)
    assert place(f"file://localhost{tmp_path}/x") == tmp_path / "x"


def test_a_url_that_is_no_utf_8_is_refused_in_a_line():
    with pytest.raises(InputError, match=r"s3://b/\\udcff: no address of a folder"):
        place("s3://b/\udcff")


def test_a_scheme_may_be_written_in_capitals():
    assert f"{place('S3://bucket/pairs')}" == "s3://bucket/pairs"
    assert place("FILE:///x") == Path("/x")


@pytest.mark.parametrize(
    "url", ("s3://bucket", "s3://bucket/", "s3://", "s3://b/../x", "s3://b//x", "http://host/x", "zip://a::s3://b/c")
)
def test_urls_that_no_folder_can_be_at_are_refused_in_a_line(url):
    with pytest.raises(InputError) as refused:
        place(url)
    assert "\n" not in str(refused.value)
    assert url in str(refused.value)


def test_what_is_written_is_at_the_url_and_what_is_read_comes_from_it(s3, folder):
    path = folder / "a" / "x.bin"
    assert not path.exists()
    write(path, b"written")
    assert s3.objects() == {key(path): b"written"}
    s3.put(key(path), b"by another")
    assert read_regular(path, 100) == b"written"  # a command's own copy
    drop(path)
    assert read_regular(path, 100) == b"by another"
    assert (path.is_file(), path.is_dir(), path.stat().st_size) == (True, False, 10)
    assert abs(path.stat().st_mtime_ns / 1e9 - time.time()) < 60
    assert ((folder / "a").is_dir(), (folder / "a").is_file()) == (True, False)
    path.unlink()
    assert (s3.objects(), path.exists(), is_regular(path)) == ({}, False, False)
    path.unlink(missing_ok=True)


def test_it_is_a_url_in_text_and_in_another_process(folder):
    path = folder / "x"
    assert f"{path}: wrong" == f"{path.url}: wrong"
    assert f"{path.relative_to(folder)}" == "x"
    other = pickle.loads(pickle.dumps(path))
    assert (type(other), other.url) == (Staged, path.url)
    assert os.fspath(path).startswith(str(staged._scratch()))
    assert path.resolve().url == path.url


def test_a_listing_asks_once_for_all(s3, folder):
    for number in range(3):
        s3.put(key(folder / f"{number}.tar"), b"x" * number)
    s3.put(key(folder / "deep" / "y"), b"y")
    s3.seen.clear()
    found = {path.name: (path.stat().st_size, path.is_file()) for path in folder.iterdir()}
    assert found == {"0.tar": (0, True), "1.tar": (1, True), "2.tar": (2, True), "deep": (0, False)}
    assert len(s3.seen) == 1
    assert [path.name for path in folder.glob("*.tar")] == ["0.tar", "1.tar", "2.tar"]
    assert [path.relative_to(folder).as_posix() for path in folder.rglob("*")] == ["0.tar", "1.tar", "2.tar", "deep/y"]
    assert list((folder / "nothing").iterdir()) == list((folder / "nothing").rglob("*")) == []


def test_names_of_a_hostile_listing_lead_nowhere(s3, folder, monkeypatch):
    hostile = ("../up", "a/../../up", "/etc/passwd", "..", "a/./b", "x\\..\\y", "n" * 300, "bad\0name")
    bucket = f"{BUCKET}/{key(folder)}"

    class Store:
        def ls(self, path, **_):
            return [{"name": f"{bucket}/{name}", "size": 1, "type": "file"} for name in (*hostile, "good")] + [
                {"name": "elsewhere/x", "size": 1, "type": "file"}
            ]

        def find(self, path):
            return [f"{bucket}/{name}" for name in (*hostile, "deep/good")]

    monkeypatch.setattr(transfer, "_opened", lambda *_: Store())
    assert [path.name for path in folder.iterdir()] == ["good"]
    assert [path.relative_to(folder).as_posix() for path in folder.rglob("*")] == ["deep/good"]


@pytest.mark.parametrize("fault", ("500", "truncated", "dropped", "slow"))
def test_reads_outlast_faults(s3, folder, fault):
    path, data = folder / "x", os.urandom(300_000)
    s3.put(key(path), data)
    s3.fail_first(fault, 1 if fault == "slow" else 2)
    assert read_regular(path, 1 << 20) == data
    s3.fail_first(fault, 1 if fault == "slow" else 2)
    assert staged.read_ranges(path, [(5, 10), (200_000, 100_000)]) == [data[5:15], data[200_000:300_000]]


def test_neighbours_are_read_in_one_request_and_each_is_its_own(s3, folder):
    path, data = folder / "x", os.urandom(300_000)
    s3.put(key(path), data)
    s3.seen.clear()
    places = [(9_000, 700), (5, 10), (1_000, 2_000), (1_500, 100), (200_000, 100_000), (20, 0)]
    assert staged.read_ranges(path, places) == [data[start : start + size] for start, size in places]
    assert len(s3.seen) == 3


@pytest.mark.parametrize("fault", ("500", "dropped"))
def test_writes_outlast_faults(s3, folder, fault):
    s3.fail_first(fault, 2, "PUT")
    write(folder / "x", b"data")
    assert list(s3.objects().values()) == [b"data"]


@pytest.mark.parametrize("fault", ("500", "truncated", "dropped"))
def test_a_store_that_stays_broken_is_told_in_a_line_after_a_bounded_number_of_tries(s3, folder, fault):
    s3.put(key(folder / "x"), b"12345678")
    s3.seen.clear()
    s3.fail_first(fault, 1000)
    with pytest.raises(InputError, match="cannot be reached, 5 times") as told:
        read_regular(folder / "x", 100)
    assert "\n" not in str(told.value)
    assert len(s3.seen) <= 2 * transfer.ATTEMPTS
    assert list(Path(folder).iterdir()) == []  # nothing half-fetched is left


def test_an_upload_that_fails_leaves_what_was_there_and_no_parts(s3, folder, monkeypatch):
    monkeypatch.setattr(transfer, "_PART_BYTES", 5 << 20)
    path = folder / "big"
    s3.put(key(path), b"before")
    s3.fail_first("500", 1000, "PUT", "partNumber=3")
    with pytest.raises(InputError, match="cannot be reached"):
        write(path, b"x" * (11 << 20))
    assert s3.objects() == {key(path): b"before"}
    s3.fails = lambda *_: None
    with folder_lock(folder, "test"):  # an upload's own abort may be overtaken by a part that is still on its way
        assert "Uploads" not in s3.client.list_multipart_uploads(Bucket=BUCKET)
    write(path, b"x" * (11 << 20))
    assert s3.objects() == {key(path): b"x" * (11 << 20)}


def test_parts_that_a_killed_command_left_are_forgotten_by_the_next(s3, folder):
    other = s3.client.create_multipart_upload(Bucket=BUCKET, Key="other/x")
    s3.client.create_multipart_upload(Bucket=BUCKET, Key=key(folder / "x"))
    with folder_lock(folder, "test"):
        assert [each["Key"] for each in s3.client.list_multipart_uploads(Bucket=BUCKET)["Uploads"]] == ["other/x"]
    s3.client.abort_multipart_upload(Bucket=BUCKET, Key="other/x", UploadId=other["UploadId"])


def test_missing_buckets_credentials_and_libraries_are_told_in_a_line(s3, monkeypatch):
    nowhere = place("s3://no-such-bucket/x")
    with pytest.raises(InputError, match=r"^s3://no-such-bucket/x.*no such bucket"):
        write(nowhere / "y", b"")
    with pytest.raises(InputError, match="no such bucket"):
        list(nowhere.iterdir())
    with pytest.raises(InputError, match="pip install gcsfs"):
        place("gs://bucket/x").exists()
    monkeypatch.setattr(transfer, "_opened", lambda *_: (_ for _ in ()).throw(ImportError("No module named 's3fs'")))
    with pytest.raises(InputError, match=r"pip install 'stylepairs\[storage\]'"):
        nowhere.exists()


def test_without_credentials_one_line_says_so(s3, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    monkeypatch.setattr(transfer, "_opened", transfer._opened.__wrapped__)
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(InputError, match="no credentials"):
        place(f"s3://{BUCKET}/x/y").exists()
    s3fs.S3FileSystem.clear_instance_cache()


def test_the_next_few_are_fetched_meanwhile_and_come_in_order(s3, folder):
    paths = [folder / f"{number}" for number in range(40)]
    for number, path in enumerate(paths[:-1]):
        s3.put(key(path), b"%d" % number)
    coming = fetched(paths)
    assert next(coming) == paths[0]
    for _ in range(100):
        if Path(paths[staged.AHEAD]).exists():
            break
        time.sleep(0.05)
    assert Path(paths[staged.AHEAD]).exists()
    assert not Path(paths[-2]).exists()
    assert [path.name for path in coming] == [f"{number}" for number in range(1, 40)]
    assert Path(paths[-2]).read_bytes() == b"38"


def test_one_command_at_a_time_holds_a_folder_and_one_that_lapsed_is_taken_over(s3, folder, monkeypatch):
    with folder_lock(folder, "datagen build"):
        assert is_held(folder)
        with (
            pytest.raises(InputError, match=r"datagen build .* is working in it"),
            folder_lock(folder, "datagen other"),
        ):
            pass
    assert not is_held(folder)
    assert s3.objects() == {}
    left = lease._Lease(command="killed", process=1, host="elsewhere", renewed=time.time() - lease.LAPSES_S - 1)
    s3.put(key(folder / lease.LEASE_NAME), left.model_dump_json().encode())
    with folder_lock(folder, "next"):
        assert is_held(folder)
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    here = left.model_copy(update={"process": dead.pid, "host": lease.host_name(), "renewed": time.time()})
    s3.put(key(folder / lease.LEASE_NAME), here.model_dump_json().encode())
    with folder_lock(folder, "next"):
        pass


def test_an_empty_lock_as_of_a_folder_copied_from_a_disk_holds_nothing(s3, folder):
    write(folder / lease.LEASE_NAME, b"")
    assert not is_held(folder)
    with folder_lock(folder, "datagen build"):
        assert is_held(folder)


def test_a_lease_that_was_made_without_an_answer_is_held_by_the_command_itself(s3, folder):
    s3.fail_first("unanswered", method="PUT", part=lease.LEASE_NAME)
    with folder_lock(folder, "datagen build"):
        assert is_held(folder)
    assert s3.objects() == {}


def test_of_two_that_find_a_lapsed_lease_one_gets_it(s3, folder, monkeypatch):
    place_of = key(folder / lease.LEASE_NAME)
    left = lease._Lease(command="killed", process=1, host="elsewhere", renewed=time.time() - lease.LAPSES_S - 1)
    s3.put(place_of, left.model_dump_json().encode())
    read, other = lease._read, []

    def meanwhile(url):
        found = read(url)
        if not other:  # another command takes it just after this one has looked
            other.append(left.model_copy(update={"command": "faster", "renewed": time.time(), "token": "t"}))
            s3.put(place_of, other[0].model_dump_json().encode())
        return found

    monkeypatch.setattr(lease, "_read", meanwhile)
    with pytest.raises(InputError, match=r"faster .* is working in it"), folder_lock(folder, "slower"):
        pass
    assert b"faster" in s3.objects()[place_of]


def test_a_lease_that_another_command_took_over_is_left_to_it(s3, folder, monkeypatch):
    monkeypatch.setattr(lease, "RENEWED_S", 1.0)  # the other has it before the first renewal
    place_of = key(folder / lease.LEASE_NAME)
    with folder_lock(folder, "sleeper"):
        other = lease._Lease(command="next", process=1, host="elsewhere", renewed=time.time(), token="t")
        s3.put(place_of, other.model_dump_json().encode())
        s3.seen.clear()
        for _ in range(200):
            if any(method == "GET" for method, _ in s3.seen):
                break
            time.sleep(0.05)
        time.sleep(0.2)
        assert [method for method, _ in s3.seen] == ["GET"], "it looks, and does not write"
    assert s3.objects()[place_of] == other.model_dump_json().encode()


def test_a_lease_is_renewed_while_it_is_held(s3, folder, monkeypatch):
    monkeypatch.setattr(lease, "RENEWED_S", 0.05)
    with folder_lock(folder, "test"):
        first = s3.objects()[key(folder / lease.LEASE_NAME)]
        for _ in range(100):
            if s3.objects()[key(folder / lease.LEASE_NAME)] != first:
                return
            time.sleep(0.05)
    raise AssertionError("never renewed")


def test_local_commands_import_nothing_of_it():
    code = (
        "import sys, stylepairs.datagen.cli, stylepairs.i2i.cli\n"
        "assert not {'fsspec', 's3fs', 'aiohttp', 'botocore'} & sys.modules.keys(), sys.modules.keys()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_scratch_folders_end_with_their_process_and_those_of_killed_ones_with_the_next(tmp_path):
    code = (
        "import os, sys\nfrom stylepairs.datagen.shell.storage.staged import place\n"
        "print(os.fspath(place('s3://b/x')))\nif sys.argv[1:]: os._exit(1)\n"
    )
    environment = os.environ | {staged.SCRATCH_VARIABLE: str(tmp_path)}
    subprocess.run([sys.executable, "-c", code, "killed"], env=environment, check=False, timeout=60)
    assert len(list(tmp_path.iterdir())) == 1
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=60)
    assert list(tmp_path.iterdir()) == []


def test_a_full_scratch_disk_is_no_fault_of_the_network(monkeypatch, tmp_path):
    tries = []

    class Store:
        def get_file(self, path, target, **_options):
            tries.append(target)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(transfer, "_opened", lambda *_: Store())
    with pytest.raises(InputError, match=r"memory://b/x: .* is full; .*STYLEPAIRS_SCRATCH") as told:
        transfer.download("memory://b/x", tmp_path / "x")
    assert "network" not in str(told.value)
    assert len(tries) == 1

    def full(file):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(InputError, match=r"memory://b/x: .* is full; .*STYLEPAIRS_SCRATCH"):
        replace_file(place("memory://b/x"), full)


def test_a_store_that_cannot_make_an_object_only_where_there_is_none_is_asked_first(monkeypatch):
    held = {}

    class Store:
        def pipe_file(self, path, data, mode="overwrite"):
            if mode == "create":
                raise OSError("A header you provided implies functionality that is not implemented.")
            held[path] = data

        def exists(self, path):
            return path in held

    monkeypatch.setattr(transfer, "_opened", lambda *_: Store())
    assert (transfer.create("s3://b/x", b"1"), transfer.create("s3://b/x", b"2")) == (True, False)
    assert held == {"b/x": b"1"}
