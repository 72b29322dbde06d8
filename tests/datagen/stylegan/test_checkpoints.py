"""Every checkpoint format gives the same generator, whatever the file is called."""

from __future__ import annotations

import argparse
import errno
import struct
import sys
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from stylepairs.datagen.shell import durable
from stylepairs.datagen.shell.errors import InputError
from stylepairs.datagen.stylegan import checkpoints
from stylepairs.datagen.stylegan.checkpoints import (
    export_rosinality,
    generator_digest,
    load_discriminator,
    load_generator,
    save_generator,
)
from stylepairs.datagen.stylegan.discriminator import Discriminator, DiscriminatorConfig
from stylepairs.datagen.stylegan.generator import Generator, GeneratorConfig
from stylepairs.datagen.stylegan.key_maps import (
    OPENMMLAB,
    channel_formula,
    discriminator_names,
)


def same_tensors(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    one, two = a.state_dict(), b.state_dict()
    return one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


@pytest.fixture
def small_square() -> Generator:
    """As rosinality's code has them: z as wide as w."""
    torch.manual_seed(1)
    config = GeneratorConfig(z_dim=6, w_dim=6, img_resolution=8, channel_base=64, channel_max=8, mapping_layers=2)
    return Generator(config).eval().requires_grad_(False)


def rosinality_discriminator(discriminator: Discriminator) -> dict[str, torch.Tensor]:
    names = discriminator_names(discriminator.config.img_resolution)
    state = {theirs: discriminator.state_dict()[ours].clone() for ours, theirs in names.items()}
    kernel = torch.outer(*[torch.tensor([1.0, 3.0, 3.0, 1.0])] * 2) / 64
    for index in range(1, len(discriminator.config.resolutions) + 1):
        state[f"convs.{index}.conv2.0.kernel"] = state[f"convs.{index}.skip.0.kernel"] = kernel.clone()
    return state


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("layout", ["ada", "stylegan3"])
def test_official_pickle_gives_its_networks(
    ada_generator, ada_discriminator, official_bytes, tmp_path, layout, protocol
):
    networks = {"G": ada_generator, "D": ada_discriminator, "G_ema": ada_generator}
    path = tmp_path / "network-snapshot.pkl"
    path.write_bytes(official_bytes(networks, protocol, layout=layout))
    generator = load_generator(path)
    assert same_tensors(generator, ada_generator)
    assert generator.config == ada_generator.config
    assert same_tensors(load_discriminator(path), ada_discriminator)


def test_loaded_networks_are_frozen_and_in_evaluation_mode(ada_generator, official_bytes, tmp_path):
    path = tmp_path / "a.pkl"
    path.write_bytes(official_bytes({"G_ema": ada_generator}))
    generator = load_generator(path)
    assert not generator.training
    assert not any(parameter.requires_grad for parameter in generator.parameters())


def test_the_averaged_generator_is_taken_not_the_trained_one(small_generator, official_bytes, tmp_path):
    trained = Generator(small_generator.config)
    path = tmp_path / "a.pkl"
    path.write_bytes(official_bytes({"G": trained, "G_ema": small_generator}))
    assert same_tensors(load_generator(path), small_generator)


def test_conv_clamp_comes_from_the_pickle(small_generator, official_bytes, tmp_path):
    path = tmp_path / "a.pkl"
    path.write_bytes(official_bytes({"G_ema": small_generator}, conv_clamp=256))
    assert load_generator(path).config.conv_clamp == 256
    path.write_bytes(official_bytes({"G_ema": small_generator}, conv_clamp=None))
    assert load_generator(path).config.conv_clamp is None


def test_conv_clamp_changes_the_image_and_survives_a_round_trip(small_generator, official_bytes, tmp_path):
    path = tmp_path / "a.pkl"
    path.write_bytes(official_bytes({"G_ema": small_generator}, conv_clamp=0.5))
    clamped = load_generator(path)
    z = torch.randn(2, 6, generator=torch.Generator().manual_seed(1))
    assert not torch.allclose(clamped(z), small_generator(z))
    save_generator(tmp_path / "a.safetensors", clamped)
    assert torch.equal(load_generator(tmp_path / "a.safetensors")(z), clamped(z))


@pytest.mark.parametrize("zipped", [True, False])
def test_rosinality_image_matches_the_fixture(rosinality_state, reference, tmp_path, zipped):
    path = tmp_path / "550000.pt"
    checkpoint = {"g_ema": rosinality_state, "latent_avg": torch.zeros(48)}
    torch.save(checkpoint, path, _use_new_zipfile_serialization=zipped)
    generator = load_generator(path)
    expected = reference["rosinality"]
    ws = generator.mapping(expected["z"])
    assert (ws - expected["latent"]).abs().max() <= 1e-4 * expected["latent"].abs().max()
    image = generator.synthesis(ws)
    assert (image - expected["image_const_noise"]).abs().max() <= 1e-4 * expected["image_const_noise"].abs().max()
    assert [generator.synthesis.channels(r) for r in (4, 8, 16, 32)] == [512] * 4


def test_rosinality_export_comes_back_the_same(rosinality_state, tmp_path):
    torch.save({"g_ema": rosinality_state, "latent_avg": torch.ones(48)}, tmp_path / "a.pt")
    generator = load_generator(tmp_path / "a.pt")
    export_rosinality(tmp_path / "b.pt", generator)
    exported = torch.load(tmp_path / "b.pt", weights_only=True)
    assert exported["g_ema"].keys() == rosinality_state.keys()
    assert all(torch.equal(exported["g_ema"][key], value) for key, value in rosinality_state.items())
    assert torch.equal(exported["latent_avg"], torch.ones(48))


def test_export_of_other_widths_to_rosinality_is_refused(small_generator, tmp_path):
    with pytest.raises(InputError, match="does not exist in rosinality's code"):
        export_rosinality(tmp_path / "b.pt", small_generator)
    assert list(tmp_path.iterdir()) == []


def test_rosinality_training_checkpoint_with_settings_and_optimiser(small_square, renamed_state, tmp_path):
    discriminator = Discriminator(DiscriminatorConfig(img_resolution=8, channel_base=64, channel_max=8))
    state = renamed_state(small_square)
    moments = {"step": torch.tensor(3.0), "exp_avg": torch.zeros(2), "exp_avg_sq": torch.zeros(2)}
    checkpoint = {
        "g": {key: value + 1 for key, value in state.items()},
        "g_ema": state,
        "d": rosinality_discriminator(discriminator),
        "g_optim": {"state": {0: moments}, "param_groups": [{"lr": 0.002, "betas": (0.0, 0.99), "params": [0]}]},
        "args": argparse.Namespace(size=8, path=Path("data"), lr=0.002),
        "ada_aug_p": np.float64(0.3),
    }
    torch.save(checkpoint, tmp_path / "010000.pt")
    loaded = load_generator(tmp_path / "010000.pt")
    assert torch.equal(loaded.synthesis.b8.conv0.weight, small_square.synthesis.b8.conv0.weight)
    assert same_tensors(load_discriminator(tmp_path / "010000.pt"), discriminator)


def test_missing_mean_latent_is_estimated_the_same_every_time(small_square, renamed_state, tmp_path):
    torch.save({"g_ema": renamed_state(small_square)}, tmp_path / "a.pt")
    loaded = load_generator(tmp_path / "a.pt")
    w = loaded.mapping.to_w(torch.randn(50_000, 6, generator=torch.Generator().manual_seed(9)))
    assert (loaded.mapping.w_avg - w.mean(0)).norm() < 0.05 * w.std(0).norm()
    assert torch.equal(load_generator(tmp_path / "a.pt").mapping.w_avg, loaded.mapping.w_avg)


def test_the_digest_leaves_out_an_estimated_mean_latent(small_square, renamed_state, tmp_path):
    torch.save({"g_ema": renamed_state(small_square)}, tmp_path / "a.pt")
    loaded = load_generator(tmp_path / "a.pt")
    digest = generator_digest(loaded)
    save_generator(tmp_path / "b.safetensors", loaded)
    assert generator_digest(load_generator(tmp_path / "b.safetensors")) == digest
    loaded.mapping.w_avg *= 1 + 1e-6  # as another processor rounds
    assert generator_digest(loaded) == digest
    small_square.mapping.w_avg.copy_(loaded.mapping.w_avg)
    assert generator_digest(small_square) != digest  # a mean that the file gives counts


def test_missing_noise_maps_are_drawn_the_same_every_time(small_square, renamed_state, tmp_path):
    state = {key: value for key, value in renamed_state(small_square).items() if not key.startswith("noises.")}
    torch.save({"g_ema": state}, tmp_path / "a.pt")
    torch.manual_seed(5)
    one = load_generator(tmp_path / "a.pt")
    assert same_tensors(one, load_generator(tmp_path / "a.pt"))
    assert one.synthesis.b8.conv1.noise_const.std() > 0.5


def test_pixel2style2pixel_checkpoint_gives_its_decoder(small_square, renamed_state, tmp_path):
    whole = renamed_state(small_square, prefix="decoder.") | {"encoder.input_layer.0.weight": torch.zeros(1)}
    torch.save({"state_dict": whole, "latent_avg": torch.full((4, 6), 0.5), "opts": {"n_styles": 4}}, tmp_path / "p.pt")
    loaded = load_generator(tmp_path / "p.pt")
    assert torch.equal(loaded.synthesis.b4.const, small_square.synthesis.b4.const)
    assert torch.equal(loaded.mapping.w_avg, torch.full((6,), 0.5))


@pytest.mark.parametrize("prefix", ["generator_ema.", "generator_ema.module.", "generator."])
def test_openmmlab_checkpoint(ada_generator, renamed_state, tmp_path, prefix):
    state = OrderedDict(renamed_state(ada_generator, OPENMMLAB, prefix))
    state[f"{prefix}w_avg"] = ada_generator.mapping.w_avg
    state["discriminator.convs.0.0.bias"] = torch.zeros(1)
    if prefix.endswith("module."):
        state["generator_ema.steps"] = torch.zeros((), dtype=torch.int64)
    torch.save({"meta": {"epoch": 3, "time": "today"}, "state_dict": state}, tmp_path / "a.pth")
    assert same_tensors(load_generator(tmp_path / "a.pth"), ada_generator)


def test_safetensors_round_trip_is_exact(ada_generator, tmp_path):
    path = tmp_path / "g.safetensors"
    save_generator(path, ada_generator, {"images_seen": "1000"})
    loaded = load_generator(path)
    assert same_tensors(loaded, ada_generator)
    assert loaded.config == ada_generator.config
    z = torch.randn(2, 32)
    assert torch.equal(loaded(z), ada_generator(z))
    with safe_open(path, "pt") as file:
        assert file.metadata()["images_seen"] == "1000"
        assert file.metadata()["img_resolution"] == "32"


def test_saving_leaves_only_the_file(small_generator, tmp_path):
    save_generator(tmp_path / "g.safetensors", small_generator)
    assert [path.name for path in tmp_path.iterdir()] == ["g.safetensors"]


def test_saving_where_nothing_can_be_written_is_one_clear_line(small_generator, tmp_path):
    with pytest.raises(InputError, match="cannot be written"):
        save_generator(tmp_path / "no folder" / "g.safetensors", small_generator)


def test_a_full_disk_leaves_the_old_file_and_no_rest(small_generator, tmp_path, monkeypatch):
    save_generator(tmp_path / "g.safetensors", small_generator)
    before = (tmp_path / "g.safetensors").read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(durable.os, "fsync", full)
    with pytest.raises(InputError, match="no space left"):
        save_generator(tmp_path / "g.safetensors", small_generator)
    assert [path.name for path in tmp_path.iterdir()] == ["g.safetensors"]
    assert (tmp_path / "g.safetensors").read_bytes() == before


def test_metadata_may_not_contradict_the_configuration(small_generator, tmp_path):
    with pytest.raises(ValueError, match="z_dim"):
        save_generator(tmp_path / "g.safetensors", small_generator, {"z_dim": "3"})


def test_configuration_is_inferred_where_the_metadata_lacks_it(small_generator, tmp_path):
    save_file(dict(small_generator.state_dict()), tmp_path / "g.safetensors")
    loaded = load_generator(tmp_path / "g.safetensors")
    assert same_tensors(loaded, small_generator)
    assert loaded.config == small_generator.config


def test_embedded_is_the_file_that_the_package_carries(small_generator, tmp_path, monkeypatch):
    (tmp_path / "weights").mkdir()
    monkeypatch.setattr(checkpoints.resources, "files", lambda package: tmp_path)
    for name in ("embedded", "embedded:256"):
        with pytest.raises(InputError, match=rf"{name}: .*reinstall"):
            load_generator(name)
    with pytest.raises(InputError, match="embedded:512: there is no such file; the package has embedded and emb"):
        load_generator("embedded:512")
    save_generator(tmp_path / "weights" / "generator.safetensors", small_generator)
    assert same_tensors(load_generator("embedded"), small_generator)


def test_half_precision_weights_become_float32(small_generator, tmp_path):
    halves = {key: value.half() for key, value in small_generator.state_dict().items()}
    save_file(halves, tmp_path / "g.safetensors")
    loaded = load_generator(tmp_path / "g.safetensors")
    assert all(value.dtype == torch.float32 for value in loaded.state_dict().values())


def test_bootstrap_style_discriminator_with_metadata(ada_discriminator, tmp_path):
    metadata = {
        "img_resolution": "32",
        "img_channels": "3",
        "channel_base": "1024",
        "channel_max": "64",
        "z_dim": "256",
    }
    state = {key: value for key, value in ada_discriminator.state_dict().items() if "resample" not in key}
    save_file(state, tmp_path / "d.safetensors", metadata)
    loaded = load_discriminator(tmp_path / "d.safetensors")
    assert same_tensors(loaded, ada_discriminator)
    assert loaded.config == ada_discriminator.config


def test_condition_channels_of_a_discriminator_are_declared(tmp_path):
    config = DiscriminatorConfig(img_resolution=8, channel_base=64, channel_max=8, cond_channels=2)
    save_file(dict(Discriminator(config).state_dict()), tmp_path / "d.safetensors", {"cond_channels": "2"})
    assert load_discriminator(tmp_path / "d.safetensors").config == config


def test_the_content_decides_not_the_extension(small_generator, official_bytes, tmp_path):
    save_generator(tmp_path / "a.pkl", small_generator)
    (tmp_path / "b.safetensors").write_bytes(official_bytes({"G_ema": small_generator}))
    torch.save(small_generator.state_dict(), tmp_path / "c")
    digests = {generator_digest(load_generator(path)) for path in tmp_path.iterdir()}
    assert digests == {generator_digest(small_generator)}


def test_a_safetensors_header_whose_length_looks_like_a_pickle_is_read(small_generator, tmp_path):
    path = tmp_path / "g.safetensors"
    save_generator(path, small_generator, {"note": ""})
    (length,) = struct.unpack("<Q", path.read_bytes()[:8])
    save_generator(path, small_generator, {"note": "a" * (0x10280 - length)})
    assert path.read_bytes()[:2] == b"\x80\x02"  # as a pickle of protocol 2 begins
    assert same_tensors(load_generator(path), small_generator)


def test_the_digest_is_that_of_the_saved_file_for_a_clamp_that_is_a_whole_number(small_generator, tmp_path):
    clamped = Generator(GeneratorConfig(**{**vars(small_generator.config), "conv_clamp": 256}))
    clamped.load_state_dict(small_generator.state_dict())
    save_generator(tmp_path / "g.safetensors", clamped)
    assert generator_digest(load_generator(tmp_path / "g.safetensors")) == generator_digest(clamped)


def test_digest_changes_with_any_weight_and_with_the_clamp(small_generator):
    before = generator_digest(small_generator)
    assert len(before) == 64
    small_generator.synthesis.b8.conv1.noise_const[0, 0] += 1e-6
    changed = generator_digest(small_generator)
    assert changed != before
    clamped = Generator(GeneratorConfig(**{**vars(small_generator.config), "conv_clamp": 256.0}))
    clamped.load_state_dict(small_generator.state_dict())
    assert generator_digest(clamped) != changed


def test_loading_leaves_the_random_state_alone(small_generator, tmp_path):
    save_generator(tmp_path / "g.safetensors", small_generator)
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    load_generator(tmp_path / "g.safetensors")
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("base, maximum", [(32768, 512), (16384, 512), (1000, 128), (2048, 128), (64, 8)])
def test_channel_formula_is_found_from_the_counts(base, maximum):
    counts = {2**k: min(base // 2**k, maximum) for k in range(2, 9) if base // 2**k}
    found = channel_formula(counts)
    assert {r: min(found[0] // r, found[1]) for r in counts} == counts


def test_channel_counts_without_a_formula_are_refused():
    with pytest.raises(ValueError, match="do not follow"):
        channel_formula({4: 64, 8: 32, 16: 64})


@pytest.mark.parametrize("kind", ["official", "zip", "legacy", "safetensors"])
def test_a_network_does_not_hang_on_its_file(small_generator, official_bytes, tmp_path, kind):
    path = tmp_path / "file"
    if kind == "official":
        path.write_bytes(official_bytes({"G_ema": small_generator}))
    elif kind == "safetensors":
        save_generator(path, small_generator)
    else:
        torch.save(small_generator.state_dict(), path, _use_new_zipfile_serialization=kind == "zip")
    loaded = load_generator(path)
    with path.open("rb+") as file:
        file.write(bytes(path.stat().st_size))
    assert same_tensors(loaded, small_generator)


def test_reading_a_checkpoint_does_not_import_what_it_names(small_generator, official_bytes, tmp_path):
    (tmp_path / "a.pkl").write_bytes(official_bytes({"G_ema": small_generator}))
    load_generator(tmp_path / "a.pkl")
    assert not {"torch_utils", "dnnlib"} & set(sys.modules)
