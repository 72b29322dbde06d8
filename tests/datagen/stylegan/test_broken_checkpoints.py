"""Files that are no checkpoints, damaged ones, and networks of other kinds: one clear line each."""

from __future__ import annotations

import io
import os
import struct
import tracemalloc
import zipfile

import pytest
import torch
from safetensors.torch import save_file

from stylepairs.datagen.stylegan.checkpoints import (
    load_discriminator,
    save_generator,
)
from stylepairs.datagen.stylegan.generator import Generator, GeneratorConfig


def zip_with(path, records: dict[str, bytes], compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in records.items():
            archive.writestr(name, content)


def test_a_zip_bomb_is_refused_before_it_is_unpacked(tmp_path, refusal):
    path = tmp_path / "a.pt"
    zip_with(path, {"a/data.pkl": b"\0" * 50_000_000}, zipfile.ZIP_DEFLATED)
    tracemalloc.start()
    assert "compressed" in refusal(path)
    assert tracemalloc.get_traced_memory()[1] < 10_000_000
    tracemalloc.stop()


def test_records_that_claim_more_than_the_file_holds_are_refused(tmp_path, refusal):
    path = tmp_path / "a.pt"
    torch.save({"g_ema": torch.ones(4)}, path)
    content = bytearray(path.read_bytes())
    entry = content.index(b"PK\x01\x02")
    content[entry + 20 : entry + 28] = (2**32 - 2).to_bytes(4, "little") * 2  # its sizes, in the directory
    path.write_bytes(content)
    assert "damaged" in refusal(path)


def test_one_record_listed_again_and_again_is_refused(tmp_path, refusal):
    path = tmp_path / "a.pt"
    torch.save({"g_ema": torch.ones(4000)}, path)
    content = path.read_bytes()
    start, end = content.index(b"PK\x01\x02"), content.index(b"PK\x06\x06")
    directory = content[start:end] * 20
    count, size = content.count(b"PK\x01\x02") * 20, len(directory)
    close = struct.pack("<4sHHHHIIH", b"PK\5\6", 0, 0, count, count, size, start, 0)
    path.write_bytes(content[:start] + directory + close)
    assert "claim more bytes than the file has" in refusal(path)


def test_a_storage_larger_than_its_record_is_refused(tmp_path, refusal):
    path = tmp_path / "a.pt"
    torch.save({"g_ema": torch.ones(4)}, path)
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    pickled = next(name for name in records if name.endswith("data.pkl"))
    wanted = (b"X\x03\x00\x00\x00cpuq\x06K\x04", b"X\x03\x00\x00\x00cpuq\x06K\x05")
    assert wanted[0] in records[pickled]
    zip_with(path, records | {pickled: records[pickled].replace(*wanted)})
    assert "truncated" in refusal(path)


def test_a_record_that_fails_its_checksum_is_refused(tmp_path, refusal):
    path = tmp_path / "a.pt"
    torch.save({"g_ema": torch.full((64,), 0.3)}, path)
    content = path.read_bytes()
    number = struct.pack("<f", 0.3)
    path.write_bytes(content.replace(number * 8, number * 7 + b"\0\0\0\0", 1))
    assert "fails its checksum" in refusal(path)


def test_other_zip_archives_are_refused(tmp_path, refusal):
    path = tmp_path / "a.pt"
    zip_with(path, {"photo.png": b"x"})
    assert "not one of torch.save's" in refusal(path)
    zip_with(path, {"a/data.pkl": b"\x80\x02}.", "a/constants.pkl": b"\x80\x02).", "a/code/x.py": b"import os"})
    assert "TorchScript holds code" in refusal(path)


def test_a_zip_directory_of_millions_of_records_is_refused_unread(tmp_path, refusal):
    path = tmp_path / "a.pt"
    end = struct.pack("<4sHHHHIIH", b"PK\5\6", 0, 0, 65535, 65535, 2**31, 100, 0)
    path.write_bytes(b"PK\3\4" + b"\0" * 200 + end)
    assert "too many records" in refusal(path)


def tensor_program(size: tuple[int, ...], stride: tuple[int, ...], offset: int = 0) -> bytes:
    """A legacy torch file of one tensor over a storage of 4 numbers."""
    saved = io.BytesIO()
    torch.save({"g_ema": torch.ones(4)}, saved, _use_new_zipfile_serialization=False)
    start = saved.getvalue().find(b"K\x00K\x04\x85")
    end = saved.getvalue().find(b"\x89ccollections")
    assert start > 0
    assert end > start

    def number(value: int) -> bytes:
        return b"\x8a\x08" + value.to_bytes(8, "little", signed=True)

    def numbers(values: tuple[int, ...]) -> bytes:
        return b"(" + b"".join(number(value) for value in values) + b"t"

    return saved.getvalue()[:start] + number(offset) + numbers(size) + numbers(stride) + saved.getvalue()[end:]


@pytest.mark.parametrize(
    "size, stride, offset",
    [
        ((2**40,), (0,), 0),
        ((5,), (1,), 0),
        ((2, 2), (2, 2), 0),
        ((4,), (1,), 1),
        ((4,), (1,), -1),
        ((-1,), (1,), 0),
        ((2,), (-1,), 1),
        ((2**47, 2**47), (1, 1), 0),
        ((1,) * 9, (1,) * 9, 0),
    ],
)
def test_tensors_beyond_their_storage_are_refused(size, stride, offset, refusal_of):
    assert "damaged" in refusal_of(tensor_program(size, stride, offset))


def test_tensors_that_share_one_storage_to_claim_more_than_the_file_are_refused(tmp_path, refusal):
    torch.manual_seed(0)
    config = GeneratorConfig(z_dim=64, w_dim=64, img_resolution=8, channel_base=512, channel_max=64, mapping_layers=8)
    state = Generator(config).state_dict()
    shared = torch.ones(64 * 64 * 9)
    state = {key: shared[: value.numel()].view(value.shape) for key, value in state.items() if "resample" not in key}
    torch.save(state, tmp_path / "a.pt")
    assert "more numbers than the file holds" in refusal(tmp_path / "a.pt")


def test_a_configuration_that_would_not_fit_in_memory_is_refused(tmp_path, refusal):
    """Small tensors can imply enormous ones."""
    state = {f"synthesis.b{r}.torgb.weight": torch.zeros(3, 100_000, 1, 1) for r in (4, 8)}
    state |= {"synthesis.b4.const": torch.zeros(1), "synthesis.b4.conv1.affine.weight": torch.zeros(1, 100_000)}
    save_file({**state, "mapping.fc0.weight": torch.zeros(1, 100_000)}, tmp_path / "a.safetensors")
    assert "mapping.fc0.weight of shape 1x100000" in refusal(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    "changed, words",
    [
        ({"mapping.fc0.weight": (8, 0)}, "z_dim must be at least 1"),
        ({f"synthesis.b{r}.torgb.weight": (3, 0, 1, 1) for r in (4, 8)}, "channel_max must be at least 1"),
        ({f"synthesis.b{r}.torgb.weight": (3, 4 // r, 1, 1) for r in (4, 8)}, "channel_base must be at least"),
    ],
)
def test_layers_without_a_number_are_refused(changed, words, tmp_path, refusal):
    state = Generator(GeneratorConfig(8, 8, 8, 3, 64, 8, 2)).state_dict()
    state |= {key: torch.zeros(shape) for key, shape in changed.items()}
    save_file(state, tmp_path / "a.safetensors")
    assert words in refusal(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    "content, words",
    [
        (b"", "is empty"),
        (b"x", "is not a StyleGAN2 checkpoint"),
        (b"\x80", "is not a StyleGAN2 checkpoint"),
        (b"\x80\x04", "damaged or truncated"),
        (b"\x80\x04N.", "holds no StyleGAN2 generator"),
        (b"\x80\x04}.", "holds no StyleGAN2 generator"),
        (b"cos\nsystem\n(S'touch x'\ntR.", "is not a StyleGAN2 checkpoint"),
        (b"<!DOCTYPE html><html>", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        (b"\x1f\x8b\x08", "compressed archive"),
        (b"PK\3\4", "truncated"),
        (struct.pack("<Q", 2) + b"{}", "holds no StyleGAN2 generator"),
        (struct.pack("<Q", 40) + b"{" + b" " * 60, "damaged"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 40, "is not a StyleGAN2 checkpoint"),
    ],
)
def test_files_that_are_no_checkpoints_say_what_they_are(content, words, refusal_of):
    assert words in refusal_of(content)


def test_paths_that_are_no_files(tmp_path, refusal):
    assert "is not a file" in refusal(tmp_path)
    assert "no such file" in refusal(tmp_path / "missing.pkl")
    os.mkfifo(tmp_path / "pipe")
    assert "is not a file" in refusal(tmp_path / "pipe")
    assert "no such file" in refusal("a\nb")
    assert "null byte" in refusal("a\0b")


def test_tensorflow_pickles_are_told_to_be_converted(refusal_of):
    network = b"cdnnlib.tflib.network\nNetwork\n)\x81"
    message = refusal_of(b"\x80\x03" + network * 3 + b"\x87.")
    assert "TensorFlow" in message
    assert "legacy.py" in message


def test_stylegan3_generators_are_told_apart(small_generator, official_bytes, refusal_of):
    small_generator.synthesis.add_module("input", torch.nn.Linear(2, 2))
    message = refusal_of(official_bytes({"G_ema": small_generator}))
    assert "StyleGAN3" in message


def test_conditional_networks_are_refused(small_generator, official_bytes, refusal_of):
    small_generator.mapping.add_module("embed", torch.nn.Linear(2, 2))
    assert "conditional" in refusal_of(official_bytes({"G_ema": small_generator}))


HUGE = 10**5000  # more digits than Python prints


def _clamped(clamp) -> dict[str, dict[str, object]]:
    layers = [f"synthesis.{name}." for name in ("b4.conv1", "b4.torgb", "b8.conv0", "b8.conv1", "b8.torgb")]
    return {layer: {"conv_clamp": clamp} for layer in layers}


@pytest.mark.parametrize(
    "attributes, words",
    [
        ({"synthesis.b8.": {"architecture": "resnet"}}, "architecture resnet"),
        ({"synthesis.b8.conv1.": {"activation": "relu"}}, "activation relu"),
        ({"mapping.fc0.": {"bias_gain": 1.0}}, "lr_multiplier"),
        ({"mapping.fc0.": {"bias_gain": 1}}, "lr_multiplier of 1,"),
        ({"mapping.fc0.": {"bias_gain": HUGE}}, "lr_multiplier of a huge number"),
        ({"synthesis.b8.": {"architecture": HUGE}}, "architecture a huge number"),
        (_clamped(HUGE), "conv_clamp 'a huge number'"),
        (_clamped(10**400), "conv_clamp '1000"),
        (_clamped(True), "conv_clamp 'True'"),
        (_clamped(0), "conv_clamp must be above 0"),
        ({"synthesis.b8.conv1.": {"conv_clamp": 128}}, "differently"),
        (
            {"synthesis.b4.conv1.": {"conv_clamp": "x"}, "synthesis.b8.conv1.": {"conv_clamp": "x"}},
            "conv_clamp|differently",
        ),
    ],
)
def test_settings_that_shapes_do_not_show_are_refused(small_generator, official_bytes, attributes, words, refusal_of):
    message = refusal_of(official_bytes({"G_ema": small_generator}, attributes=attributes))
    assert any(word in message for word in words.split("|"))


def test_generators_of_other_than_three_channels_are_refused(renamed_state, tmp_path, refusal):
    generator = Generator(GeneratorConfig(8, 8, 8, img_channels=4, channel_base=64, channel_max=8, mapping_layers=2))
    save_generator(tmp_path / "g.safetensors", generator)
    torch.save({"g_ema": renamed_state(generator)}, tmp_path / "g.pt")
    for name in ("g.safetensors", "g.pt"):
        assert "makes images of 4 channels, only RGB is supported" in refusal(tmp_path / name)


@pytest.mark.parametrize(
    "metadata, words",
    [
        ({"cond_channels": "3"}, "img_channels must be at least 1, got 0"),
        ({"cond_channels": "9"}, "img_channels must be at least 1, got -6"),
        ({"mbstd_group_size": "0"}, "mbstd_group_size must be at least 1, got 0"),
        ({"conv_clamp": "0"}, "conv_clamp must be above 0"),
    ],
)
def test_senseless_discriminators_are_refused(ada_discriminator, tmp_path, metadata, words, refusal):
    save_file(dict(ada_discriminator.state_dict()), tmp_path / "d.safetensors", metadata)
    assert words in refusal(tmp_path / "d.safetensors", load_discriminator)


def test_another_resampling_filter_is_refused(small_generator, official_bytes, refusal_of):
    small_generator.synthesis.b8.resample_filter.fill_(1 / 16)
    assert "another filter" in refusal_of(official_bytes({"G_ema": small_generator}))


def test_missing_and_misshapen_tensors_are_named(small_generator, tmp_path, refusal):
    state = dict(small_generator.state_dict())
    missing = {key: value for key, value in state.items() if key != "synthesis.b8.conv1.bias"}
    save_file(missing, tmp_path / "a.safetensors")
    assert "lacks synthesis.b8.conv1.bias" in refusal(tmp_path / "a.safetensors")
    save_file(state | {"synthesis.b8.conv1.bias": torch.zeros(3)}, tmp_path / "a.safetensors")
    assert "synthesis.b8.conv1.bias of shape 3, not 8" in refusal(tmp_path / "a.safetensors")
    save_file(state | {"synthesis.b8.extra": torch.zeros(3)}, tmp_path / "a.safetensors")
    assert "synthesis.b8.extra" in refusal(tmp_path / "a.safetensors")
    save_file(state | {"synthesis.b8.conv1.bias": torch.full((8,), torch.nan)}, tmp_path / "a.safetensors")
    assert "undefined numbers in synthesis.b8.conv1.bias" in refusal(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    "metadata",
    [
        {"img_resolution": "16"},
        {"z_dim": "many"},
        {"conv_clamp": "nan"},
        {"w_dim": "-5"},
        {"mapping_layers": "10000000"},
    ],
)
def test_metadata_that_contradicts_the_tensors_is_refused(small_generator, tmp_path, metadata, refusal):
    save_file(dict(small_generator.state_dict()), tmp_path / "a.safetensors", metadata)
    assert "declares" in refusal(tmp_path / "a.safetensors")


def test_a_file_without_the_wanted_network_says_what_it_holds(small_generator, ada_discriminator, tmp_path, refusal):
    save_generator(tmp_path / "g.safetensors", small_generator)
    assert "holds no StyleGAN2 discriminator" in refusal(tmp_path / "g.safetensors", load_discriminator)
    torch.save({"weights": {"a": torch.ones(1)}, "epoch": 3}, tmp_path / "a.pt")
    assert "it holds weights, epoch" in refusal(tmp_path / "a.pt")
    torch.save(torch.ones(3), tmp_path / "a.pt")
    assert "holds no StyleGAN2 generator" in refusal(tmp_path / "a.pt")


def test_whole_models_saved_with_their_class_are_refused(small_generator, tmp_path, refusal):
    torch.save(small_generator, tmp_path / "a.pt")
    assert "stylepairs.datagen.stylegan.generator.Generator" in refusal(tmp_path / "a.pt")


@pytest.mark.parametrize("width", [2**20, 2**47])
def test_widths_that_only_empty_tensors_bear_out_are_refused(tmp_path, refusal, width):
    wide = {f"synthesis.b{r}.torgb.weight": torch.empty(0, width, 1, 1) for r in (4, 8)}
    wide |= {"synthesis.b4.const": torch.empty(0, 4, 4), "synthesis.b4.conv1.affine.weight": torch.empty(0, width)}
    save_file(wide, tmp_path / "a.safetensors")
    assert "unknown variant" in refusal(tmp_path / "a.safetensors")
