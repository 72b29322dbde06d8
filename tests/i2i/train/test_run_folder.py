"""A run folder's files: typed readers, one clear line for what was edited by hand, what differs is named."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from tensorboard.summary.writer.record_writer import RecordWriter

from stylepairs.datagen.shell.errors import InputError
from stylepairs.i2i.train.run_folder import RunLog, claim_folder, describe, read_metrics

RUN = describe({"steps": 4, "losses": {"l1": 4.0}, "seed": 0}, "hair_color", "a" * 64, "b" * 64)


def claim(out: Path, run=RUN, say=lambda line: None) -> None:
    claim_folder(out, run, wait=lambda: None, main=True, say=say)


@pytest.mark.parametrize("text", ["[]", "3", "null", "", "{", '{"feature": 3}', b"\xff", '{"settings": {}}'])
def test_hand_edited_run_description_is_one_line(tmp_path: Path, text: str | bytes) -> None:
    (tmp_path / "run.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=r"run\.json: not the description of a run; put it back") as caught:
        claim(tmp_path)
    assert "\n" not in str(caught.value)


def test_what_differs_is_named_with_both_values(tmp_path: Path) -> None:
    claim(tmp_path)
    other = describe({"steps": 4, "losses": {"l1": 2.0, "new": 1}, "seed": 0}, "bangs", "c" * 64, "b" * 64)
    with pytest.raises(InputError) as caught:
        claim(tmp_path, other)
    assert str(caught.value) == (
        f"{tmp_path}: holds another run (feature hair_color there, bangs here; generator_digest aaaaaaaaaaaa there,"
        " cccccccccccc here; settings differ: losses.l1 4.0 there, 2.0 here, losses.new unset there, 1 here);"
        " choose another --out"
    )


@pytest.mark.parametrize(
    "line", ["[]", "null", '{"step": "x", "kind": "train"}', '{"step": 1, "kind": "train", "l1": "a"}']
)
def test_hand_edited_metrics_are_one_line(tmp_path: Path, line: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "kind": "train", "l1": 0.5}\n' + line + "\n")
    with pytest.raises(InputError, match=r"metrics\.jsonl: line 2 is not a line"):
        read_metrics(path)


def test_line_that_a_kill_cut_off_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "kind": "train", "l1": 0.5}\n{"step": 2, "ki')
    assert read_metrics(path) == [{"step": 1, "kind": "train", "l1": 0.5}]
    assert read_metrics(tmp_path / "none.jsonl") == []


def test_full_disk_is_one_line(tmp_path: Path) -> None:
    log = RunLog(tmp_path, 0)
    log.path = tmp_path / "gone" / "metrics.jsonl"
    with pytest.raises(InputError, match=r"metrics\.jsonl: cannot be written \(No such file"):
        log.write(1, "train", {"l1": 0.5})
    log.close()


@pytest.mark.parametrize("call", ["write", "close"])
def test_full_disk_that_tensorboard_meets_is_one_line(tmp_path: Path, monkeypatch, capsys, call: str) -> None:
    log = RunLog(tmp_path, 0)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    for name in ("write", "flush"):
        monkeypatch.setattr(RecordWriter, name, full)

    def use() -> None:
        for step in range(3 if call == "close" else 2000):
            log.write(step, "train", {"l1": 0.5})
        log.close()

    with pytest.raises(InputError, match=r"tensorboard: cannot be written \(No space left.*free some space"):
        use()
    assert "Traceback" not in capsys.readouterr().err
