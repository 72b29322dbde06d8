"""Malicious checkpoints: refused in one clear line that names what they ask for, and nothing of theirs is run."""

from __future__ import annotations

import io
import os
import pickle
import struct
import tracemalloc

import numpy as np
import pytest
import torch


class Call:
    """Pickles as a call of function(*arguments)."""

    def __init__(self, function, *arguments):
        self.reduced = (function, arguments)

    def __reduce__(self):
        return self.reduced


@pytest.fixture
def canary(tmp_path):
    """A path that hostile code would create; the test fails if it does."""
    path = tmp_path / "executed"
    yield path
    assert not path.exists(), "code from a checkpoint was executed"


GADGETS = {
    "os.system": lambda canary: Call(os.system, f"touch {canary}"),
    "builtins.eval": lambda canary: Call(eval, f"open({str(canary)!r}, 'w')"),
    "builtins.exec": lambda canary: Call(exec, f"open({str(canary)!r}, 'w')"),
    "builtins.getattr": lambda canary: Call(getattr, "text", "upper"),
    "io.open": lambda canary: Call(open, str(canary), "w"),
    "torch.load": lambda canary: Call(torch.load, str(canary)),
    "torch.hub.load": lambda canary: Call(torch.hub.load, str(canary), "x"),
    "numpy.load": lambda canary: Call(np.load, str(canary)),
    "torch.jit._script.script": lambda canary: Call(torch.jit.script, str(canary)),
}


@pytest.mark.parametrize("gadget", GADGETS)
@pytest.mark.parametrize("protocol", [2, 4])
def test_a_pickle_that_calls_code_is_refused_by_name(canary, gadget, protocol, refusal_of):
    message = refusal_of(pickle.dumps({"G_ema": GADGETS[gadget](canary)}, protocol=protocol))
    name = gadget.rpartition(".")[2] if gadget != "os.system" else "system"
    assert f"{name}," in message
    assert "no StyleGAN2 checkpoint needs" in message


@pytest.mark.parametrize("gadget", GADGETS)
@pytest.mark.parametrize("zipped", [True, False])
def test_a_torch_file_that_calls_code_is_refused_by_name(tmp_path, canary, gadget, zipped, refusal):
    path = tmp_path / "a.pt"
    torch.save({"g_ema": GADGETS[gadget](canary)}, path, _use_new_zipfile_serialization=zipped)
    assert "no StyleGAN2 checkpoint needs" in refusal(path)


def test_code_beside_a_good_network_is_refused(small_generator, official_bytes, canary, refusal_of):
    extra = {"augment_pipe": Call(os.system, f"touch {canary}")}
    message = refusal_of(official_bytes({"G_ema": small_generator}, extra=extra))
    assert "system" in message


def test_code_nested_in_the_bytes_of_a_storage_is_refused(small_generator, official_bytes, canary, refusal_of):
    inner = io.BytesIO()
    torch.save(Call(os.system, f"touch {canary}"), inner, _use_new_zipfile_serialization=False)
    extra = {"D": Call(torch.storage._load_from_bytes, inner.getvalue())}
    assert "system" in refusal_of(official_bytes({"G_ema": small_generator}, extra=extra))


def test_storage_bytes_within_storage_bytes_are_refused(small_generator, official_bytes, refusal_of):
    inner = io.BytesIO()
    torch.save(Call(torch.storage._load_from_bytes, b""), inner, _use_new_zipfile_serialization=False)
    extra = {"D": Call(torch.storage._load_from_bytes, inner.getvalue())}
    assert "_load_from_bytes" in refusal_of(official_bytes({"G_ema": small_generator}, extra=extra))


def test_a_zip_inside_storage_bytes_is_refused(small_generator, official_bytes, refusal_of):
    inner = io.BytesIO()
    torch.save(torch.ones(3), inner)
    extra = {"D": Call(torch.storage._load_from_bytes, inner.getvalue())}
    assert refusal_of(official_bytes({"G_ema": small_generator}, extra=extra))


@pytest.mark.parametrize(
    "program",
    [
        b"\x80\x04cos\nsystem\n(S'touch x'\ntR.",
        b"\x80\x02(S'touch x'\nios\nsystem\n.",
        b"\x80\x02(cos\nsystem\nS'touch x'\no.",
        b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x01x\x85R.",
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(NNNNtR.",
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n).",
        b"\x80\x02ctorch_utils.persistence\n_reconstruct_persistent_obj\n}\x85R.",
        b"\x80\x02ccollections\nOrderedDict\nX\x01\x00\x00\x00a\x85R.",
        b"\x80\x02ctorch\nfloat32\n)R.",
        b"\x80\x02ctorch\nfloat32\n}b.",
        b"\x80\x02\x82\x01.",
        b"\x80\x02X\x01\x00\x00\x00aQ.",
        b"\x80\x05\x97.",
        b"\x80\x02c__builtin__\neval\nX\x01\x00\x00\x001\x85R.",
    ],
)
def test_hand_written_programs_are_refused(program, refusal_of):
    assert refusal_of(program)


@pytest.mark.parametrize(
    "program",
    [
        b"\x80\x04\x8e" + struct.pack("<Q", 2**62),  # BINBYTES8 of 4 EiB
        b"\x80\x04\x8d" + struct.pack("<Q", 2**40),  # BINUNICODE8
        b"\x80\x04B" + struct.pack("<I", 2**32 - 1) + b"ab",
        b"\x80\x05\x96" + struct.pack("<Q", 2**50),  # BYTEARRAY8
        b"\x80\x02\x8b" + struct.pack("<i", 2**31 - 1) + b"\1",  # LONG4
        b"\x80\x02Nr" + struct.pack("<I", 2**32 - 1) + b".",  # a memo index that Python's unpickler allocates for
        b"\x80\x04\x95" + struct.pack("<Q", 2**63) + b"N.",  # FRAME
        b"\x80\x02L" + b"9" * 10_000_000 + b"L\n.",
    ],
)
def test_declared_sizes_cost_neither_time_nor_memory(program, refusal_of):
    tracemalloc.start()
    refusal_of(program)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 60 * len(program) + 20_000_000


@pytest.mark.parametrize(
    "program, words",
    [
        (b"(" * 400_000, "too many instructions"),
        (b"]" + b"\x85" * 50_000, "holds no StyleGAN2 generator"),  # tuples nested 50 000 deep
        (b"]" + b"2\x86" * 20_000, "holds no StyleGAN2 generator"),  # 2^20000 elements, if anyone walked them
        (b"}]" + b"2\x86" * 200 + b"Ns", "a dictionary key is a tuple"),  # the same, to be hashed
    ],
)
def test_programs_that_build_monsters_end(program, words, refusal_of):
    assert words in refusal_of(b"\x80\x02" + program + b".")


def test_modules_that_contain_themselves_are_refused(official_bytes, refusal_of):
    reconstruct = b"ctorch_utils.persistence\n_reconstruct_persistent_obj\n"
    # A module among its own children: the table of children is memoised before the module exists.
    program = pickle.PROTO + b"\x02" + b"}q\x00" + b"0" + b"}X\x05\x00\x00\x00G_ema" + reconstruct
    program += b"}(X\x04\x00\x00\x00typeX\x05\x00\x00\x00classX\x0a\x00\x00\x00class_nameX\x01\x00\x00\x00M"
    program += b"X\x05\x00\x00\x00state}X\x08\x00\x00\x00_modulesh\x00su\x85Rq\x01"
    program += b"h\x00X\x09\x00\x00\x00synthesish\x01s0s."
    assert "nest" in refusal_of(program)


def test_names_in_messages_cannot_break_the_line(refusal_of):
    name = ("x\ny\x1b[31m" * 50).encode()
    message = refusal_of(b"\x80\x04\x8c\x02os\x8d" + struct.pack("<Q", len(name)) + name + b"\x93.")
    assert "\x1b" not in message
