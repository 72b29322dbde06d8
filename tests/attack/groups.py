"""What is attacked: for each group a function that writes one damaged input and names the command on it."""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from attack.mutations import NASTY, damaged_bytes, damaged_json, damaged_lines, damaged_value

Group = Callable[[random.Random, Path, Path], list[str]]

_KEYS = (
    "inversion.steps", "inversion.batch", "inversion.precision", "reconstruction.learning_rate", "color",
    "params.color", "gate.degree.min", "gate.x", "pairs_per_portrait", "perceptual", "perceptual_weights", "encoder",
    "sketch_detail", "feature", "", "params", "intensity", "inversion", "a.b.c.d", "color.x", "gate", "params.region",
)  # fmt: skip
_TRAINING_KEYS = (
    "steps", "style", "init", "generator", "perceptual", "model.channel_base", "losses.color", "seed", "batch_size",
    "data.flip_share", "discriminator", "learning_rate", "mixed_precision", "workers", "val_pairs", "x", "model",
)  # fmt: skip
_TEXTS = (
    "[", "]", "{", "}", "&a [*a]", "*x", "!!python/object:os.system x", "2020-13-45", "!!timestamp x", "!!float a",
    "0x" + "f" * 400, "1" * 5000, "? ", "- ", "<<: {a: 1}", '"\\ud800"', "~", ".nan", "-.inf", "1_0", "'", '"\\x00"',
    "!!binary x", "|", "%YAML 9.9", "--- ", "# ", "\t", "1:30:00", "[" * 400, "{a: " * 60, "=", "@", "`", "é: \u202e",
)  # fmt: skip
MODELS = "generator.safetensors"
# A store in memory, which `commands` fills with the try's folder.
STORE = "memory://store/"
_ADDRESSES = (
    "memory://", "memory://store/../", "s3://", "s3:///", "s3://../", "x://store/", "http://127.0.0.1:9/", "://",
    "memory://nothing/", "memory://store//", "zip://x::memory://store/", "memory://store/\u202e/", "file://deep/", "gs://a/",
    "memory://store/" + "x" * 300 + "/", "memory://" + "x/" * 90,
)  # fmt: skip


def images(rng: random.Random, seeds: Path, folder: Path) -> list[str]:
    """A damaged photo, or a special file, to prepare and sometimes to edit."""
    source = rng.choice(sorted((seeds / "photos").iterdir()))
    suffix = source.suffix if rng.random() < 0.9 else rng.choice((".jpg", ".png", "", ".pgm", ".heic"))
    path = folder / (rng.choice(("photo", "a b", "é", "x" * 200, "new\nline")) + suffix)
    kind = rng.random()
    if kind < 0.02:
        os.mkfifo(path)
    elif kind < 0.04:
        path.symlink_to(rng.choice(("/dev/zero", path.name, "/", "nowhere")))
    else:
        path.write_bytes(damaged_bytes(rng, source.read_bytes()))
    if rng.random() < 0.5:
        return [
            "i2i",
            "edit",
            str(seeds / "run"),
            str(path),
            "--out",
            "edited",
            "--format",
            rng.choice(("png", "same")),
        ]
    return ["datagen", "prepare", str(path), "--out", "portraits", "--size", "64"]


def recipes(rng: random.Random, seeds: Path, folder: Path) -> list[str]:
    """A recipe with a damaged value or damaged text, to build from or to train from."""
    text = (seeds / "recipe.yaml").read_text()
    kind = rng.random()
    if kind < 0.4:
        text = yaml.safe_dump(damaged_value(rng, yaml.safe_load(text)), allow_unicode=True)
        data = text.encode("utf-8", "surrogatepass")
    elif kind < 0.7:
        lines = text.splitlines()
        place = rng.randrange(len(lines))
        lines[place] = lines[place].partition(":")[0] + ": " + rng.choice(_TEXTS)
        data = "\n".join(lines).encode("utf-8", "surrogatepass")
    else:
        data = damaged_bytes(rng, text.encode())
    path = folder / "mine.yaml"
    if kind > 0.98:
        os.mkfifo(path)
    else:
        path.write_bytes(data)
    return _train(seeds, path) if rng.random() < 0.4 else _build(seeds, path)


def overrides(rng: random.Random, seeds: Path, folder: Path) -> list[str]:
    """One to three --set of build, train or edit."""
    edits = rng.random() < 0.2
    training = not edits and rng.random() < 0.5
    keys = ("color", "degree", "intensity", "x", "color.x") if edits else _TRAINING_KEYS if training else _KEYS
    settings = []
    for _ in range(rng.choice((1, 1, 2, 3))):
        value = rng.choice((*_TEXTS, *(json.dumps(each)[:2000] for each in NASTY)))
        settings += ["--set", f"{rng.choice(keys)}{rng.choice(('=', '=', '=', '', ' = '))}{value}".replace("\0", "")]
    if edits:
        photo = str(seeds / "photos" / "photo.png")
        return ["i2i", "edit", str(seeds / "run"), photo, "--out", "edited", *settings]
    recipe = seeds / "recipe.yaml"
    return [*(_train(seeds, recipe) if training else _build(seeds, recipe)), *settings]


def checkpoints(rng: random.Random, seeds: Path, folder: Path) -> list[str]:
    """A damaged generator, editor or file of weights, wherever one may be named."""
    kind = rng.randrange(5)
    source = (MODELS, "generator.pt", "weights.pth", "run/model.safetensors", MODELS)[kind]
    path = folder / Path(source).name
    path.write_bytes(_damaged_tensors(rng, (seeds / source).read_bytes()))
    if kind in (0, 1):
        return [*_build(seeds, seeds / "recipe.yaml")[:-1], str(path)]
    if kind == 2:
        photo = str(seeds / "photos" / "photo.png")
        return ["datagen", "prepare", photo, "--out", "portraits", "--parser", str(path)]
    if kind == 3:
        return ["i2i", "export", str(path), "--out", "editor.none"]
    return [*_build(seeds, seeds / "recipe.yaml"), "--set", f"encoder={path}"]


def pairs(rng: random.Random, seeds: Path, folder: Path) -> list[str]:
    """A folder of pairs with a damaged tar, manifest or build.json."""
    shutil.copytree(seeds / "pairs", folder / "pairs")
    kind = rng.random()
    shard, manifest, note = (folder / "pairs" / name for name in ("pairs-00000.tar", "manifest.parquet", "build.json"))
    if kind < 0.3:
        shard.write_bytes(damaged_bytes(rng, shard.read_bytes()))
    elif kind < 0.6:
        _damage_member(rng, shard)
    elif kind < 0.85:
        _damage_table(rng, manifest)
    else:
        note.write_bytes(damaged_json(rng, note.read_text()))
    commands = (
        ["datagen", "inspect", "pairs", "--out", "page.html"],
        ["datagen", "export", "pairs", "--out", "plain", "--all"],
        ["datagen", "status", "pairs"],
        ["datagen", "augment", "pairs", "--out", "more", "--generator", str(seeds / MODELS), "--workers", "1"],
        ["i2i", "train", str(seeds / "recipe.yaml"), "--pairs", "pairs", "--out", "run"],
    )
    return rng.choice(commands)


def runs(rng: random.Random, seeds: Path, folder: Path) -> list[str]:
    """A run folder with a damaged description, log or state, to be gone on with."""
    shutil.copytree(seeds / "run", folder / "run")
    name = rng.choice(
        ("run.json", "run.json", "metrics.jsonl", "metrics.jsonl", "state.safetensors", "model.safetensors")
    )
    path = folder / "run" / name
    if name.endswith(".jsonl"):
        path.write_bytes(damaged_lines(rng, path.read_text()))
    elif name.endswith(".json"):
        path.write_bytes(damaged_json(rng, path.read_text()))
    else:
        path.write_bytes(_damaged_tensors(rng, path.read_bytes()))
    if rng.random() < 0.2:
        return ["i2i", "edit", "run", str(seeds / "photos" / "photo.png"), "--out", "edited"]
    return [*_train(seeds, seeds / "recipe.yaml")[:-1], "run"]


def portraits(rng: random.Random, seeds: Path, folder: Path) -> list[str]:
    """A folder of portraits with a damaged list, picture or journal."""
    prepared = rng.random() < 0.4
    shutil.copytree(seeds / ("prepared" if prepared else "faces"), folder / "faces")
    files = [path for path in (folder / "faces").rglob("*") if path.is_file()]
    path = rng.choice([*files, *[each for each in files if each.suffix != ".png"] * 4])
    if path.suffix == ".jsonl":
        path.write_bytes(damaged_lines(rng, path.read_text()))
    elif path.suffix == ".npz" and rng.random() < 0.6:
        _damage_arrays(rng, path)
    else:
        path.write_bytes(damaged_bytes(rng, path.read_bytes()))
    if prepared and rng.random() < 0.7:
        return ["datagen", "prepare", str(seeds / "photos" / "photo.png"), "--out", "faces", "--size", "64"]
    if rng.random() < 0.1:
        return ["datagen", "status", "faces"]
    command = _build(seeds, seeds / "recipe.yaml")
    command[command.index("--portraits") + 1] = "faces"
    return command


def urls(rng: random.Random, seeds: Path, folder: Path) -> list[str]:
    """A damaged folder in a store that lists names which lead out of it, or an address that is none."""
    command = rng.choice((pairs, pairs, runs, portraits))(rng, seeds, folder)
    if command[1] == "export" and command[0] == "i2i":
        return command
    address = STORE if rng.random() < 0.8 else rng.choice(_ADDRESSES)
    local = ("pairs", "more", "plain", "page.html", "run", "faces", "portraits")
    return [f"{address}{each}" if each in local else each for each in command]


GROUPS: dict[str, Group] = {
    each.__name__: each for each in (images, recipes, overrides, checkpoints, pairs, runs, portraits, urls)
}


def _build(seeds: Path, recipe: Path) -> list[str]:
    return [
        "datagen", "build", str(recipe), "--portraits", str(seeds / "faces"), "--out", "pairs", "--workers", "1",
        "--device", "cpu", "--generator", str(seeds / MODELS),
    ]  # fmt: skip


def _train(seeds: Path, recipe: Path) -> list[str]:
    return ["i2i", "train", str(recipe), "--pairs", str(seeds / "pairs"), "--out", "run"]


def _damaged_tensors(rng: random.Random, data: bytes) -> bytes:
    """A file of tensors with damaged bytes, or, of a safetensors file, a damaged header of the right length."""
    size = int.from_bytes(data[:8], "little")
    if rng.random() < 0.5 or size > len(data):
        return damaged_bytes(rng, data)
    header = json.loads(data[8 : 8 + size])
    if "__metadata__" in header and rng.random() < 0.6:
        name = rng.choice(list(header["__metadata__"]))
        try:
            inner: Any = json.dumps(damaged_value(rng, json.loads(header["__metadata__"][name])))
        except ValueError:
            inner = str(rng.choice(NASTY))
        header["__metadata__"][name] = inner
    else:
        header = damaged_value(rng, header)
    text = json.dumps(header).encode("utf-8", "surrogatepass")
    return len(text).to_bytes(8, "little") + text + data[8 + size :]


def _damage_member(rng: random.Random, path: Path) -> None:
    """Write a tar anew with one member damaged, renamed, doubled or of another type."""
    with tarfile.open(path) as tar:
        members = [(info, tar.extractfile(info).read()) for info in tar]  # type: ignore[union-attr]
    place = rng.randrange(len(members))
    info, data = members[place]
    kind = rng.random()
    if kind < 0.6:
        data = damaged_json(rng, data.decode()) if info.name.endswith(".json") else damaged_bytes(rng, data)
    elif kind < 0.8:
        info.name = rng.choice(("../x", "/etc/x", "000000.json", "x" * 90, "é.png", "999999.json", "000000.before.PNG"))
    elif kind < 0.9:
        members.append((info, data))
    else:
        info.type, info.linkname, data = (
            rng.choice((tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE)),
            "/etc/passwd",
            b"",
        )
    info.size = len(data)
    members[place] = (info, data)
    with tarfile.open(path, "w") as tar:
        for each, content in members:
            tar.addfile(each, io.BytesIO(content))


def _damage_table(rng: random.Random, path: Path) -> None:
    """A manifest with a column of another type, another value, or without one; or damaged bytes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if rng.random() < 0.4:
        path.write_bytes(damaged_bytes(rng, path.read_bytes()))
    else:
        table = pq.read_table(path)
        name = rng.choice(table.column_names)
        rows = table.column(name).to_pylist()
        kept = table.drop_columns([name])
        column: Any = rng.choice((
            [None] * len(rows), [1] * len(rows), ["x"] * len(rows), [[1]] * len(rows), [{"a": 1}] * len(rows),
            [2**62] * len(rows), [-1.5] * len(rows), ["../x"] * len(rows), ['{"color": 3}'] * len(rows), rows[::-1],
        ))  # fmt: skip
        if rng.random() < 0.9:
            kept = kept.append_column(name, pa.array(column))
        pq.write_table(kept.replace_schema_metadata(table.schema.metadata), path)
    shard = path.with_name("pairs-00000.tar").stat().st_mtime_ns
    os.utime(path, ns=(shard + 10**9, shard + 10**9))


def _damage_arrays(rng: random.Random, path: Path) -> None:
    with np.load(path) as stored:
        arrays = dict(stored)
    name = rng.choice(list(arrays))
    array = arrays[name]
    wrong = (
        array[:0], array[:1], array.astype(str), np.zeros((2, 2)), np.array(3), np.full(array.shape, np.nan)
        if array.dtype.kind == "f" else np.array(["../x"] * len(array)), array[..., None], np.array(["é" * 300] * 5),
        np.full(array.shape, 1e30) if array.dtype.kind == "f" else np.array(["a"] * len(array)),
    )  # fmt: skip
    if rng.random() < 0.15:
        del arrays[name]
    else:
        arrays[name] = rng.choice(wrong)
    np.savez(path, **arrays)
