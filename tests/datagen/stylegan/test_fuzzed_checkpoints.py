"""Cut, altered and random files: a network or one clear line, never another error."""

from __future__ import annotations

import random
import struct

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save as save_safetensors

from stylepairs.datagen.shell.errors import InputError
from stylepairs.datagen.stylegan.checkpoints import load_generator, save_generator
from stylepairs.datagen.stylegan.generator import Generator, GeneratorConfig

FUZZ = settings(
    max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(scope="module")
def small_files(tmp_path_factory) -> dict[str, bytes]:
    """A valid file of every format, all of one small generator."""
    torch.manual_seed(0)
    tiny = GeneratorConfig(z_dim=4, w_dim=4, img_resolution=8, channel_base=32, channel_max=4, mapping_layers=1)
    network = Generator(tiny).eval()
    folder = tmp_path_factory.mktemp("files")
    torch.save(network.state_dict(), folder / "zip")
    torch.save(network.state_dict(), folder / "legacy", _use_new_zipfile_serialization=False)
    save_generator(folder / "safetensors", network)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def files(small_files, small_generator, official_bytes) -> dict[str, bytes]:
    return small_files | {"official": official_bytes({"G_ema": small_generator}, protocol=3)}


@pytest.mark.parametrize("kind", ["official", "zip", "legacy", "safetensors"])
@FUZZ
@given(where=st.floats(0, 1, exclude_max=True))
def test_a_file_cut_anywhere_is_refused(files, kind, where, refusal_of):
    content = files[kind]
    assert refusal_of(content[: int(len(content) * where)])


@pytest.mark.parametrize("kind", ["official", "zip", "legacy", "safetensors"])
@FUZZ
@given(seed=st.integers(0, 2**32), flips=st.integers(1, 20))
def test_flipped_bytes_give_a_network_or_one_clear_line(files, tmp_path, kind, seed, flips):
    content = bytearray(files[kind])
    rng = random.Random(seed)
    for _ in range(flips):
        # Half of the flips hit the beginning, where the structure is.
        position = rng.randrange(len(content) if rng.random() < 0.5 else min(len(content), 2000))
        content[position] = rng.randrange(256)
    path = tmp_path / "file"
    path.write_bytes(content)
    message = ""
    try:
        load_generator(path)
    except InputError as error:
        message = str(error)
    assert "\n" not in message


@FUZZ
@given(content=st.binary(max_size=300), start=st.sampled_from([b"", b"\x80\x02", b"\x80\x04", b"PK\3\4", b"PK\5\6"]))
def test_random_bytes_are_refused(content, start, refusal_of):
    assert refusal_of(start + content)


OPCODES = b"(.012FGIJKLMNQRSTUVXabcdeghijlopqrstu}]\x85\x86\x87\x88\x89\x8a\x8c\x8f\x90\x91\x92\x93\x94\x81\x82"


@FUZZ
@given(program=st.lists(st.sampled_from(list(OPCODES)), max_size=60), tail=st.binary(max_size=20))
def test_random_programs_are_refused(program, tail, refusal_of):
    assert refusal_of(b"\x80\x04" + bytes(program) + tail + b".")


def test_safetensors_with_hostile_headers_are_refused(refusal_of):
    assert refusal_of(struct.pack("<Q", 2**63) + b"{" + b" " * 100)
    deep = b'{"a":' * 100_000
    assert refusal_of(struct.pack("<Q", len(deep)) + deep)
    good = save_safetensors({"synthesis.b4.const": torch.ones(2)})
    assert refusal_of(good.replace(b'"shape":[2]', b'"shape":[9]'))
