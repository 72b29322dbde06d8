"""Folders at URLs: every command there writes what it writes on a disk, to the byte, and goes on after kills."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from forked import commands
from helpers import tiny_build, tiny_pairs
from helpers.s3_server import BUCKET
from PIL import Image

from stylepairs.datagen.augment.plan import plan_augmentation
from stylepairs.datagen.build.shard_runner import build_pairs
from stylepairs.datagen.pairs import shards
from stylepairs.datagen.pairs.merge import plan_merge, run_merge
from stylepairs.datagen.pairs.status import status_of
from stylepairs.datagen.portraits.analysis import looking
from stylepairs.datagen.portraits.analysis.prepare import prepare_photos
from stylepairs.datagen.shell.errors import InputError
from stylepairs.datagen.shell.storage.staged import place
from stylepairs.i2i.train.data import PairDataset, load_batches
from stylepairs.i2i.train.sides import read_records

URL = f"s3://{BUCKET}"


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """A build on disk, of portraits on disk."""
    folder = tmp_path_factory.mktemp("local")
    build_pairs(tiny_build.plan(folder))
    return folder


def files_of(folder: Path) -> dict[str, bytes]:
    found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {name: data for name, data in found.items() if not name.startswith(".finished")}


def put_folder(s3, folder: Path, key: str) -> None:
    for name, data in files_of(folder).items():
        s3.put(f"{key}/{name}", data)


def at(s3, key: str) -> dict[str, bytes]:
    found = s3.objects(f"{key}/")
    return {name.removeprefix(f"{key}/"): data for name, data in found.items() if shards.NOTES not in name}


def plan_at(s3, local: Path, **settings) -> tiny_build.TinyPlan:
    """The build of `local`, all of it at URLs."""
    put_folder(s3, local / "portraits", "portraits")
    there = tiny_build.plan(local, **settings)
    places = {name: place(f"{URL}/{name}") for name in ("portraits", "cache")}
    return dataclasses.replace(there, out=place(f"{URL}/pairs"), **places)


@pytest.mark.slow
def test_a_build_at_a_url_killed_before_its_manifest_goes_on_to_the_bytes_of_one_on_disk(s3, local, monkeypatch):
    plan = plan_at(s3, local)
    with monkeypatch.context() as patch:
        patch.setattr(shards, "update_manifest", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            build_pairs(plan)
    assert shards.MANIFEST not in at(s3, "pairs")
    s3.client.delete_object(Bucket=BUCKET, Key=f"pairs/{shards.NOTES}/pairs-00000.tar.json")  # lost, too
    s3.put(f"pairs/{shards.NOTES}/pairs-00001.tar.json", b"{damaged")
    s3.seen.clear()
    result = build_pairs(plan)
    assert result.complete
    assert at(s3, "pairs") == files_of(local / "pairs")
    assert at(s3, "cache") == files_of(local / "cache-pairs")
    assert not [path for method, path in s3.seen if method == "PUT" and path.endswith(".tar")]  # nothing is made again
    assert not list(Path(plan.out).rglob("*.tar"))  # nothing is kept here
    assert list(shards.read_index(plan.out)) == list(shards.read_index(local / "pairs"))
    pair, same = (next(shards.read_pairs(folder)) for folder in (plan.out, local / "pairs"))
    assert np.array_equal(pair.after, same.after)
    assert np.array_equal(pair.w_after, same.w_after)
    assert status_of(plan.out).lines(Path("x")) == status_of(local / "pairs").lines(Path("x"))
    assert build_pairs(plan) == result


@pytest.mark.slow
def test_a_build_outlasts_faults_of_all_kinds(s3, local):
    plan = plan_at(s3, local)
    count = [0]

    def fails(method: str, path: str) -> str | None:
        count[0] += 1
        return {3: "500", 5: "truncated", 8: "dropped"}.get(count[0] % 9) if method in ("GET", "PUT", "HEAD") else None

    s3.fails = fails
    assert build_pairs(plan).complete
    s3.fails = lambda *_: None
    assert at(s3, "pairs") == files_of(local / "pairs")


@pytest.mark.slow
def test_a_build_of_other_settings_is_refused(s3, local):
    build_pairs(plan_at(s3, local))
    with pytest.raises(InputError, match=rf"^{URL}/pairs: holds a build of other settings \(seed was 0, now 1"):
        build_pairs(plan_at(s3, local, seed=1))


@pytest.mark.slow
def test_pairs_are_augmented_from_url_to_url(s3, local, tmp_path):
    put_folder(s3, local / "pairs", "pairs")
    settings = {"steps": [0.0, 0.5], "generator": tiny_build.generator_file(), "shard_size": 3}
    build_pairs(plan_augmentation(local / "pairs", tmp_path / "more", **settings))
    build_pairs(plan_augmentation(place(f"{URL}/pairs"), place(f"{URL}/more"), **settings))
    assert at(s3, "more") == files_of(tmp_path / "more")


@pytest.mark.slow
def test_pairs_are_merged_from_urls_to_a_url(s3, local, tmp_path):
    build_pairs(tiny_build.plan(tmp_path, seed=1))
    put_folder(s3, local / "pairs", "pairs")
    put_folder(s3, tmp_path / "pairs", "others")
    run_merge(plan_merge([local / "pairs", tmp_path / "pairs"], tmp_path / "all", shard_size=3))
    run_merge(plan_merge([place(f"{URL}/pairs"), place(f"{URL}/others")], place(f"{URL}/all"), shard_size=3))
    assert at(s3, "all") == files_of(tmp_path / "all")


@pytest.mark.parametrize("manifest", (True, False))
@pytest.mark.slow
def test_training_reads_the_same_samples_a_request_a_pair(s3, local, manifest):
    put_folder(s3, local / "pairs", "pairs")
    if not manifest:
        s3.client.delete_object(Bucket=BUCKET, Key="pairs/manifest.parquet")
    pairs, wanted = place(f"{URL}/pairs"), None
    for folder in (local / "pairs", pairs):
        records = read_records(folder, "train")
        data = PairDataset(folder, records, 32, "color", (8, 16), "x")
        s3.seen.clear()
        samples = [data[index] for index in range(len(data))]
        wanted = wanted or samples
        assert all(np.array_equal(a[name], b[name]) for a, b in zip(samples, wanted, strict=True) for name in a)
    runs = 2  # of neighbours in the tar: pictures and masks, latents
    assert len([path for _, path in s3.seen if path.endswith(".tar")]) <= runs * len(data)


@pytest.mark.slow
def test_loaders_read_ahead_of_a_url(s3, local):
    import torch

    put_folder(s3, local / "pairs", "pairs")
    pairs = place(f"{URL}/pairs")
    data = PairDataset(pairs, read_records(pairs, "train"), 32, "color", (8, 16), "x")
    plan = [[(0, 0), (0, 1)], [(0, 1), (0, 0)]] * 4
    batches = load_batches(data, iter(plan), torch.device("cpu"), None)
    first = next(batches)
    assert torch.equal(first["photo"][0], data[0]["photo"])
    assert len(list(batches)) == 7


def backwards(prepare, items, workers, on_event) -> None:
    """An engine that is done with the last item first."""
    handle = prepare(on_event)
    for item in reversed(items):
        handle(item)


@pytest.mark.slow
def test_portraits_are_prepared_at_a_url_as_on_disk_in_whatever_order(s3, tmp_path, monkeypatch):
    analyser = tiny_pairs.Analyser()
    monkeypatch.setattr(looking, "load_analyser", lambda *_: analyser)
    for number, name in enumerate(("b/same.png", "a/same.png", "c.png")):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(number).integers(0, 255, (96, 96, 3), np.uint8)).save(path)
    prepare_photos([tmp_path / "photos"], tmp_path / "out", 32)
    wanted, out = files_of(tmp_path / "out"), place(f"{URL}/out")
    done = prepare_photos([tmp_path / "photos"], out, 32, run=backwards)
    assert len(done.portraits) == 3
    assert at(s3, "out") == wanted
    s3.client.delete_object(Bucket=BUCKET, Key="out/index.jsonl")  # as a kill before the lists leaves it
    s3.client.delete_object(Bucket=BUCKET, Key="out/landmarks.npz")
    s3.client.delete_object(Bucket=BUCKET, Key="out/hair/c.png")
    s3.seen.clear()
    prepare_photos([tmp_path / "photos"], out, 32)
    assert at(s3, "out") | {".prepared.jsonl": b""} == wanted | {".prepared.jsonl": b""}  # c.png was noted twice
    assert len([path for method, path in s3.seen if method == "PUT" and path.endswith(".png")]) == 3
    put_folder(s3, tmp_path / "photos", "photos")
    prepare_photos([place(f"{URL}/photos")], place(f"{URL}/again"), 32)
    there = at(s3, "again")
    assert {name for name in there if wanted[name] != there[name]} <= {"index.jsonl", ".prepared.jsonl"}
    assert f'"{URL}/photos/c.png"'.encode() in there["index.jsonl"]
    assert os.fspath(out).split("/s3/")[0].encode() not in b"".join(there.values())


def command(*arguments: object, check: bool = True, **environment: str) -> subprocess.CompletedProcess[str]:
    done = commands.ended([*map(str, arguments)], os.environ | environment)
    assert done.returncode == 0 or not check, done.stderr
    return done


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_whole_path_from_url_to_url_in_worker_processes_and_killed(s3, local, tmp_path):
    put_folder(s3, local / "portraits", "portraits")
    recipe = tmp_path / "recipe.yaml"
    training = {
        "steps": 4, "batch_size": 2, "val_pairs": 2, "checkpoint_every_steps": 2, "sample_every_steps": 4,
        "log_every_steps": 1, "perceptual": "pyramid", "generator": tiny_build.generator_file(), "init": "none",
        "model": {"channel_base": 256, "channel_max": 16}, "style": "color",
    }  # fmt: skip
    datagen = tiny_build.RECIPE | {"gate": {}}
    recipe.write_text(yaml.safe_dump({"datagen": datagen, "i2i": training}))
    generator = ("--generator", tiny_build.generator_file(), "--shard-size", 3)

    def build(portraits, out, *more):
        return ("datagen", "build", recipe, "--portraits", portraits, "--out", out, *generator, *more)

    command(*build(local / "portraits", tmp_path / "pairs", "--workers", 1))
    killed = commands.begun([*map(str, build(f"{URL}/portraits", f"{URL}/pairs"))], tmp_path)
    for _ in range(600):
        if s3.client.list_objects_v2(Bucket=BUCKET, Prefix="pairs/pairs-")["KeyCount"] or not killed.is_alive():
            break
        time.sleep(0.1)
    killed.kill()
    killed.join()
    command(*build(f"{URL}/portraits", f"{URL}/pairs", "--workers", 2))
    assert at(s3, "pairs") == files_of(tmp_path / "pairs")
    assert f"{URL}/pairs: 10 of 10 pairs" in command("datagen", "status", f"{URL}/pairs").stdout

    for pairs, out in ((tmp_path / "pairs", tmp_path / "run"), (f"{URL}/pairs", f"{URL}/run")):
        command("i2i", "train", recipe, "--pairs", pairs, "--out", out, ACCELERATE_USE_CPU="true")
    names = ("model.safetensors", "state.safetensors", "metrics.jsonl", "run.json", "samples/00000004.png")
    there = at(s3, "run")
    assert {name: there[name] for name in names} == {name: (tmp_path / "run" / name).read_bytes() for name in names}
    command("i2i", "train", recipe, "--pairs", f"{URL}/pairs", "--out", f"{URL}/run", "--set", "steps=6",
            ACCELERATE_USE_CPU="true")  # fmt: skip
    assert b'"step": 6' in at(s3, "run")["metrics.jsonl"]
    judged = command("i2i", "evaluate", f"{URL}/run", "--pairs", f"{URL}/pairs", "--out", f"{URL}/judged",
                     "--perceptual", "pyramid", check=False)  # fmt: skip
    assert judged.returncode in (0, 2), judged.stderr  # so few pairs may have none held out
    refused = command("i2i", "edit", f"{URL}/run", f"{URL}/photo.png", "--out", tmp_path / "e", check=False)
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
