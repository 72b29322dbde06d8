"""Files of tensors: equal contents are equal bytes, in every process."""

from __future__ import annotations

import hashlib
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load

from stylepairs.datagen.shell.durable import safetensors_bytes

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
