"""Runs at URLs: trained from pairs there, interrupted, gone on with, and the bytes of a run on a disk."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.s3_server import BUCKET, s3_server

from stylepairs.datagen.shell.storage.staged import place
from stylepairs.i2i.models import checkpoints
from stylepairs.i2i.train.training import train


@pytest.mark.slow
def test_a_run_at_a_url_goes_on_where_it_was_stopped_and_has_the_bytes_of_one_on_a_disk(
    tmp_path: Path, settings, synthetic_pairs, monkeypatch
) -> None:
    synthetic_pairs(tmp_path / "pairs", count=24, size_px=32, shard_size=12, refuse_every=4)
    chosen = settings(steps=4, sample_every_steps=4)
    train(chosen, tmp_path / "pairs", tmp_path / "run")
    wanted = {path.relative_to(tmp_path / "run").as_posix(): path for path in (tmp_path / "run").rglob("*.*")}

    def interrupt(line: str) -> None:
        if "step 3/" in line:
            raise KeyboardInterrupt

    with s3_server(monkeypatch) as s3:
        for path in (tmp_path / "pairs").iterdir():
            if path.is_file():
                s3.put(f"training/pairs/{path.name}", path.read_bytes())
        pairs, out = (place(f"s3://{BUCKET}/training/{name}") for name in ("pairs", "run"))
        with pytest.raises(KeyboardInterrupt):
            train(chosen, pairs, out, say=interrupt)
        for path in Path(out).rglob("*.*"):  # another machine goes on
            path.unlink()
        train(chosen, pairs, out)
        found = {name.removeprefix("training/run/"): data for name, data in s3.objects("training/run/").items()}
        assert any("tensorboard" in name for name in found)
        assert {name: data for name, data in found.items() if "tensorboard" not in name} == {
            name: path.read_bytes() for name, path in wanted.items() if "tensorboard" not in name
        }
        assert {checkpoints.MODEL_FILE, checkpoints.STATE_FILE, f"previous/{checkpoints.MODEL_FILE}"} <= found.keys()
        _, info = checkpoints.load_model(f"s3://{BUCKET}/training/run")
        assert info.feature == "hair_color"
