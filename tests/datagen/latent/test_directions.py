"""Directions: their files, public and hostile, layer ranges, units, and styles beside rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.tiny_build import tiny_generator
from safetensors.torch import save_file

from stylepairs.datagen.latent.directions import (
    Direction,
    DirectionInfo,
    calibrated,
    direction_in_w,
    load_direction,
    parse_layers,
    save_direction,
)
from stylepairs.datagen.latent.styles import rows_for_styles, style_layers, styles_moved, styles_of_latents
from stylepairs.datagen.shell.errors import InputError
from stylepairs.datagen.stylegan.generator import Generator, GeneratorConfig

INFO = DirectionInfo(method="interfacegan", attribute="smile", generator_digest="d", deviation=0.1)


@pytest.fixture(scope="module")
def generator() -> Generator:
    return tiny_generator()


@pytest.fixture(scope="module")
def ws(generator) -> torch.Tensor:
    return generator.mapping(torch.randn(3, 16, generator=torch.Generator().manual_seed(1)))


def normal() -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(16, generator=torch.Generator().manual_seed(4)), dim=0)


def test_a_direction_comes_back_from_its_file(generator, ws, tmp_path):
    styles = {"b8.conv0": torch.randn(generator.synthesis.b8.conv0.affine.weight.shape[0])}
    direction = direction_in_w(normal(), generator, [1, 2], INFO)
    direction = Direction(direction.offsets, direction.info, styles)
    save_direction(tmp_path / "d.safetensors", direction)
    back = load_direction(tmp_path / "d.safetensors", generator, "d")
    assert (back.info, back.info.layers) == (direction.info, (1, 2))
    assert torch.equal(back.offsets, direction.offsets)
    assert torch.equal(back.render(generator, ws, 2.0), direction.render(generator, ws, 2.0))
    with pytest.raises(InputError, match="of another generator"):
        load_direction(tmp_path / "d.safetensors", generator, "other")


def test_rows_outside_the_layers_stay(generator, ws):
    moved = direction_in_w(normal(), generator, [3], INFO).move(ws, torch.tensor([0.0, 1.0, -2.0]))
    change = (moved - ws).norm(dim=-1)
    assert torch.allclose(change[:, 3], torch.tensor([0.0, 1.0, 2.0]), atol=1e-5)
    assert not change[:, [0, 1, 2, 4]].any()


@pytest.mark.parametrize("shape", [(1, 16), (16,), (1, 8, 16), (8, 16)])
def test_public_boundaries_are_read(shape, generator, tmp_path):
    rows = np.random.default_rng(0).normal(size=shape)
    np.save(tmp_path / "b.npy", rows)
    found = load_direction(tmp_path / "b.npy", generator, "d")
    assert torch.allclose(found.offsets, torch.from_numpy(np.broadcast_to(rows.reshape(-1, 16), (8, 16))).float())


@pytest.mark.parametrize("shape", [(16, 8), (128,), (16, 1), ()])
def test_boundaries_whose_rows_are_not_latents_are_refused(shape, generator, tmp_path):
    np.save(tmp_path / "b.npy", np.ones(shape))
    with pytest.raises(InputError, match=r"b.npy: cannot be read as a direction \(of shape \["):
        load_direction(tmp_path / "b.npy", generator, "d")


def test_boundaries_are_written_in_the_public_format(generator, tmp_path):
    save_direction(tmp_path / "w.npy", direction_in_w(3 * normal(), generator, None, INFO))
    array = np.load(tmp_path / "w.npy", allow_pickle=False)
    assert array.shape == (1, 16)
    assert np.allclose(array[0], normal().numpy(), atol=1e-6)
    save_direction(tmp_path / "w.NPY", direction_in_w(3 * normal(), generator, None, INFO))
    assert (tmp_path / "w.NPY").read_bytes() == (tmp_path / "w.npy").read_bytes()
    assert load_direction(tmp_path / "w.NPY", generator, "d").info.method == "boundary file"
    save_direction(tmp_path / "wp.npy", direction_in_w(3 * normal(), generator, [2], INFO))
    assert np.load(tmp_path / "wp.npy").shape == (1, 8, 16)


def test_hostile_files_are_one_line(generator, tmp_path):
    path = tmp_path / "b.npy"
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match=r"b.npy: cannot be read as a direction"):
        load_direction(path, generator, "d")
    np.save(path, np.full((1, 16), np.nan))
    with pytest.raises(InputError, match="cannot be read"):
        load_direction(path, generator, "d")
    data = bytearray(path.read_bytes())
    path.write_bytes(bytes(data).replace(b"(1, 16)", b"(9**9,)"[:7]))
    with pytest.raises(InputError, match="cannot be read"):
        load_direction(path, generator, "d")
    broken = tmp_path / "d.safetensors"
    for tensors in (
        {"offsets": torch.zeros(2, 16)},
        {"offsets": torch.zeros(8, 16), "styles.b8.conv9": torch.zeros(3)},
    ):
        save_file(tensors, broken, {"direction": INFO.model_dump_json()})
        with pytest.raises(InputError, match="do not fit"):
            load_direction(broken, generator, "d")
    save_file({"offsets": torch.zeros(8, 16)}, broken, {"direction": '{"method": 3}'})
    with pytest.raises(InputError, match="cannot be read as a direction"):
        load_direction(broken, generator, "d")


def test_layer_ranges_are_parsed():
    assert parse_layers("all", 8) is None
    assert parse_layers("0-2,5", 8) == [0, 1, 2, 5]
    for wrong in ("0-9", "a", "", "5-3", "-1", "4-", "0-99999999999"):
        with pytest.raises(InputError, match="--layers"):
            parse_layers(wrong, 8)


def test_a_unit_moves_the_score_by_its_deviation_and_points_upwards(generator, ws):
    def score(image: torch.Tensor) -> torch.Tensor:
        return 7 * image.mean((1, 2, 3))

    for sign in (1, -1):
        direction = calibrated(direction_in_w(sign * normal(), generator, None, INFO), generator, score, ws, 0.2)
        up, down = (score(direction.render(generator, ws, s).clamp(-1, 1)).mean() for s in (1.0, -1.0))
        assert float(up - down) / 2 == pytest.approx(0.2, rel=0.05)
        assert direction.info.deviation == 0.2
    with pytest.raises(InputError, match="does not move it"):
        calibrated(direction, generator, lambda image: 0 * score(image), ws, 0.2)


def test_a_unit_is_no_longer_than_steps_that_still_move_the_score(generator, ws):
    """Where faces come apart the score falls back: a unit made longer and longer would only break them."""
    direction = direction_in_w(normal(), generator, None, INFO)
    middle = generator.synthesis(ws).clamp(-1, 1).mean((1, 2, 3))

    def score(image: torch.Tensor) -> torch.Tensor:
        moved = image.mean((1, 2, 3)) - middle
        return 7 * moved * torch.exp(-((moved / 0.02) ** 2))  # at most 0.06

    found = calibrated(direction.times(0.1), generator, score, ws, 0.2)
    up, down = (score(found.render(generator, ws, s).clamp(-1, 1)).mean() for s in (1.0, -1.0))
    assert 0.01 < found.info.deviation < 0.061
    assert float(up - down) / 2 == pytest.approx(found.info.deviation, rel=0.01)
    assert found.info.figures["reached"] == pytest.approx(found.info.deviation / 0.2)


def test_moved_styles_are_those_of_the_rows_that_stand_for_them():
    # 16 channels and 40 entries of a row: it can stand for both layers that share it.
    torch.manual_seed(0)
    generator = Generator(GeneratorConfig(40, 40, 16, 3, 128, 8, 2)).eval().requires_grad_(False)
    ws = generator.mapping(torch.randn(2, 40))
    offsets = {layer.name: torch.randn(layer.channels) for layer in style_layers(generator) if "conv0" in layer.name}
    rows, missed = rows_for_styles(generator, offsets)
    assert missed < 1e-5
    with styles_moved(generator, offsets):
        wanted = generator.synthesis(ws)
    assert torch.allclose(generator.synthesis(ws + rows), wanted, atol=1e-4)
    assert not torch.allclose(generator.synthesis(ws), wanted, atol=1e-2)


def test_rows_too_narrow_for_their_styles_say_what_they_miss():
    torch.manual_seed(0)
    generator = Generator(GeneratorConfig(4, 4, 16, 3, 128, 8, 2)).eval().requires_grad_(False)
    _, missed = rows_for_styles(generator, {"b8.conv1": torch.randn(8)})
    assert 0.2 < missed < 1


def test_styles_are_what_the_layers_get(generator, ws):
    styles, seen = styles_of_latents(generator, ws), {}
    layers = style_layers(generator)
    assert len({layer.name for layer in layers}) == len(layers) == 3 * len(generator.config.resolutions) - 1
    handles = [
        layer.affine.register_forward_hook(lambda _m, _i, out, name=layer.name: seen.update({name: out}))
        for layer in layers
    ]
    generator.synthesis(ws)
    for handle in handles:
        handle.remove()
    assert all(torch.equal(styles[name], seen[name]) for name in styles)


def test_a_boundary_file_keeps_what_rows_are_to_each_other(tmp_path):
    generator = tiny_generator()
    offsets = torch.zeros(8, 16)
    offsets[0, 0], offsets[1, 1] = 5.0, 0.5
    save_direction(tmp_path / "fine.npy", Direction(offsets, DirectionInfo(method="coarse_to_fine", space="w+")))
    found = load_direction(tmp_path / "fine.npy", generator, "any").offsets
    assert torch.allclose(found * (5.0 / found[0, 0]), offsets, atol=1e-5)
    assert float(found.norm(dim=1).square().mean()) == pytest.approx(1)
    styled = Direction(torch.zeros(8, 16), DirectionInfo(method="stylespace"), {"a": torch.ones(3)})
    with pytest.raises(InputError, match=r"no boundary; write a \.safetensors"):
        save_direction(tmp_path / "styles.npy", styled)
