"""Decoding keeps its bounds and tells damage apart from bugs: any decoder's error is Damaged, anything else itself."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from stylepairs.datagen.images.files import png_bytes
from stylepairs.datagen.shell import decode
from stylepairs.datagen.shell.decode import Damaged


@pytest.mark.parametrize("text", ["[" * 100_000, "{", "", "9" * 5000, b"\xff\xfe\x00", b"\x00"])
def test_text_that_is_no_json_is_damaged_in_one_line(text: str | bytes) -> None:
    with pytest.raises(Damaged) as caught:
        decode.decode_json(text)
    assert str(caught.value)
    assert "\n" not in str(caught.value)


def test_json_files_are_read_within_bounds(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(json.dumps({"a": [1, None]}))
    assert decode.read_json(path) == {"a": [1, None]}
    assert decode.read_json(path, max_bytes=path.stat().st_size) == {"a": [1, None]}
    with pytest.raises(Damaged, match=f"more than {path.stat().st_size - 1} bytes"):
        decode.read_json(path, max_bytes=path.stat().st_size - 1)
    with pytest.raises(Damaged, match="No such file"):
        decode.read_json(tmp_path / "none.json")
    with pytest.raises(Damaged, match="a folder"):
        decode.read_json(tmp_path)


def test_json_lines_are_read_one_by_one_within_bounds(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"a": 1}\n[2]\n3')
    assert list(decode.read_json_lines(path)) == [{"a": 1}, [2], 3]
    assert list(decode.read_json_lines(path, max_bytes=9)) == [{"a": 1}, [2], 3]
    with pytest.raises(Damaged, match="a line of more than 8 bytes"):
        list(decode.read_json_lines(path, max_bytes=8))
    with pytest.raises(Damaged, match="No such file"):
        list(decode.read_json_lines(tmp_path / "none.jsonl"))
    path.write_text('{"a": 1}\n\n')
    rows = decode.read_json_lines(path)
    assert next(rows) == {"a": 1}
    with pytest.raises(Damaged):
        next(rows)


def test_members_are_read_at_their_place_and_nowhere_else() -> None:
    file = io.BytesIO(b"0123456789")
    assert decode.read_at(file, 2, 3, max_bytes=3) == b"234"
    assert decode.read_at(file, 10, 0, max_bytes=3) == b""
    for offset, size, problem in (
        (8, 3, "truncated"),
        (0, 4, "member of 4 bytes"),
        (0, -1, "member"),
        (-1, 1, "member"),
    ):
        with pytest.raises(Damaged, match=problem):
            decode.read_at(file, offset, size, max_bytes=3)


def test_pictures_read_back_and_cut_ones_are_damaged() -> None:
    image = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    data = png_bytes(image)
    np.testing.assert_array_equal(decode.decode_png(data, "RGB"), image)
    assert decode.decode_png(data, "L").shape == (4, 4)
    for kept in (0, 10, 30, len(data) // 2):
        with pytest.raises(Damaged):
            decode.decode_png(data[:kept], "RGB")


def test_tensors_read_back_with_their_metadata_and_cut_files_are_damaged(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.arange(3.0)}, path, {"kind": "test"})
    tensors, metadata = decode.read_safetensors(path)
    assert torch.equal(tensors["a"], torch.arange(3.0))
    assert metadata == {"kind": "test"}
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(Damaged):
        decode.read_safetensors(path)


@pytest.mark.parametrize(
    "error", [AttributeError("x"), SyntaxError("x"), MemoryError(), RecursionError("x"), OSError()]
)
def test_whatever_a_decoder_raises_is_damage_and_ctrl_c_is_not(error: Exception) -> None:
    with pytest.raises(Damaged), decode.decoding():
        raise error
    with pytest.raises(KeyboardInterrupt), decode.decoding():
        raise KeyboardInterrupt
