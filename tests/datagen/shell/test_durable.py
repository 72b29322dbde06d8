"""Files of tensors: equal contents are equal bytes, in every process."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load

from stylepairs.datagen.shell.durable import keep_rows, safetensors_bytes
from stylepairs.datagen.shell.errors import InputError

CODE = (
    "import hashlib, torch; from stylepairs.datagen.shell.durable import safetensors_bytes as save;"
    "data = save({'a': torch.arange(5.0), 'b': torch.ones(3)}, {k: k * 2 for k in 'abcdef'});"
    "print(hashlib.sha256(data).hexdigest())"
)


@pytest.mark.slow
def test_tensors_and_metadata_are_the_same_bytes_in_every_process() -> None:
    """A run that was killed ended with other bytes: the library keeps metadata in an order of its process."""
    found = subprocess.run([sys.executable, "-c", CODE], capture_output=True, check=True).stdout
    tensors, metadata = {"a": torch.arange(5.0), "b": torch.ones(3)}, {k: k * 2 for k in "fedcba"}
    data = safetensors_bytes(tensors, metadata)
    assert found == hashlib.sha256(data).hexdigest().encode() + b"\n"
    again = load(data)
    assert again.keys() == tensors.keys()
    assert all(torch.equal(again[name], tensors[name]) for name in tensors)
    assert int.from_bytes(data[:8], "little") % 8 == 0


def test_a_log_keeps_its_whole_rows_up_to_a_step(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    keep_rows(log, "step", 2)
    assert not log.exists()
    log.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st')
    keep_rows(log, "step", 2)
    assert log.read_text() == '{"step": 1}\n{"step": 2}\n'
    log.write_text('{"step": 1}\n{"other": 2}\n')
    with pytest.raises(InputError, match=r"log\.jsonl: has a line that is no row with step; take it out"):
        keep_rows(log, "step", 2)
