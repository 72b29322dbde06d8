"""Samples that start from another photo than their pair's: one that was edited already, or was painted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from stylepairs.datagen.images.colors import srgb_to_lab
from stylepairs.datagen.images.files import to_float
from stylepairs.datagen.pairs.record import Pair, PairRecord
from stylepairs.datagen.pairs.shards import write_manifest, write_shard
from stylepairs.i2i.models.conditions import decode_color
from stylepairs.i2i.train import augment
from stylepairs.i2i.train.data import PairDataset, degree_from
from stylepairs.i2i.train.settings import DataSettings
from stylepairs.i2i.train.sides import read_records

LATENTS = (6, 8)
NONE = {name: 0.0 for name in DataSettings.model_fields if name.endswith("_share")}


def dataset(pairs: Path, **shares: float) -> PairDataset:
    """Of pairs of 32 px; without shares as they are."""
    settings = DataSettings(**(NONE | shares)) if shares else None
    return PairDataset(pairs, read_records(pairs, "train"), 32, "color", LATENTS, "0" * 64, settings)


def edited_twice(
    directory: Path, turn: bool = False, colors: tuple[str, str] = ("black", "red"), feature: str = "hair_color"
) -> list[Pair]:
    """Two pairs of each of two portraits, one of them black and one red inside, with the first's mask a part of the
    other's for the second portrait; and one of a third."""
    rng, made = np.random.default_rng(0), []
    for number in range(5):
        before = np.random.default_rng(number // 2).integers(0, 256, (32, 32, 3), np.uint8)
        mask = np.zeros((32, 32), np.uint8)
        mask[8 : 20 - 4 * (number == 3), 8:20] = 255
        after = np.where(mask[..., None] > 0, np.uint8((255, 0, 0) if number % 2 else (0, 0, 0)), before)
        record = PairRecord(
            id=f"{number:06d}", feature=feature, params={"color": colors[number % 2]}, degree=1.0,
            accepted=True, reasons=[], figures={}, portrait=f"p{number // 2}", portrait_digest=f"{number // 2:064x}",
            generator_digest="0" * 64, seed=0, code_version="test", split="train",
        )  # fmt: skip
        latents = rng.normal(size=(2, *LATENTS)).astype(np.float16)
        pair = Pair(record, before, after, mask, w_before=latents[0], w_after=latents[1])
        made.append(pair.turned() if turn else pair)
    write_shard(directory / "pairs-00000.tar", made)
    return made


@pytest.mark.parametrize("with_manifest", [True, False])
def test_a_photo_that_was_edited_is_edited_again(tmp_path: Path, with_manifest: bool) -> None:
    made = edited_twice(tmp_path)
    if with_manifest:
        write_manifest(tmp_path)
    plain = dataset(tmp_path)
    again = dataset(tmp_path, from_after_share=1.0)
    # Of the second portrait the masks differ, of the third there is one pair.
    for index, other in enumerate((1, 0, None, None, None)):
        photo = made[index].before if other is None else made[other].after
        assert photo is not None
        torch.testing.assert_close(again[index]["photo"], to_float(photo), rtol=0, atol=1e-6)
        for name in ("target", "mask", "style", "ws", "ws_valid"):
            torch.testing.assert_close(again[index][name], plain[index][name], rtol=0, atol=1e-6)
    some = dataset(tmp_path, from_after_share=0.3)
    edited = [not torch.equal(some[epoch, 0]["photo"], plain[0]["photo"]) for epoch in range(60)]
    assert 5 < sum(edited) < 55


def test_of_pairs_that_run_backwards_the_outcome_is_no_photo(tmp_path: Path) -> None:
    edited_twice(tmp_path, turn=True)
    again = dataset(tmp_path, from_after_share=1.0)
    for index in range(5):
        assert torch.equal(again[index]["photo"], dataset(tmp_path)[index]["photo"])


@pytest.mark.parametrize("share", ["from_after_share", "painted_share"])
def test_a_photo_whose_own_colour_is_to_stay_has_that_colour(tmp_path: Path, share: str) -> None:
    edited_twice(tmp_path, colors=("own", "red"), feature="lips")
    plain, other = dataset(tmp_path), dataset(tmp_path, **{share: 1.0})
    changes = [float((other[index]["photo"] - plain[index]["photo"]).abs().max()) for index in range(2)]
    assert changes[0] < 1e-6
    assert changes[1] > 0.1


def test_of_another_start_the_degree_is_how_far_it_is_from_there(tmp_path: Path) -> None:
    """Black hair that is to be black is hardly edited, but it is what black of red hair looks like."""
    made = edited_twice(tmp_path)
    black, red = (srgb_to_lab(to_float(pixels))[:, 10, 10] for pixels in (made[0].after, made[1].after))
    again, plain = dataset(tmp_path, from_after_share=1.0), dataset(tmp_path)
    for record in (plain.records[0], again.records[0]):
        object.__setattr__(record, "degree", 0.3)
    assert plain[0]["degree"] == pytest.approx(0.3)
    way = decode_color(plain[0]["style"]) - red
    share = torch.dot(black - red, way) / way.square().sum()
    assert again[0]["degree"] == pytest.approx(float(share.clamp(0, 1)), abs=0.02)
    assert again[0]["degree"] > 0.9
    torch.testing.assert_close(again[4]["degree"], plain[4]["degree"])  # of one pair alone
    faint = plain[0] | {"edit_mask": 0.1 * plain[0]["edit_mask"]}
    assert degree_from(again[0]["photo"], faint) == plain[0]["degree"]


def test_photo_alone_is_painted_inside_the_mask(pairs: Path) -> None:
    plain = dataset(pairs)[0]
    painted = dataset(pairs, painted_share=1.0)[0]
    inside = (painted["mask"] > 0).expand(3, -1, -1)
    assert (painted["photo"] - plain["photo"])[inside].abs().mean() > 0.05
    torch.testing.assert_close(painted["photo"][~inside], plain["photo"][~inside], rtol=0, atol=1e-6)
    for name in ("target", "mask", "style", "ws_valid"):
        torch.testing.assert_close(painted[name], plain[name], rtol=0, atol=1e-6)
    identity = dataset(pairs, painted_share=1.0, identity_share=1.0)[0]
    torch.testing.assert_close(identity["target"], identity["photo"], rtol=0, atol=1e-6)


def test_paint_is_of_any_colour_vivid_ones_too_in_the_own_light() -> None:
    image = torch.rand(1, 24, 24, generator=torch.Generator().manual_seed(0)).expand(3, -1, -1) * 0.6 - 0.6
    mask = torch.zeros(1, 24, 24)
    mask[:, 4:20] = 1
    inside, colors = mask[0] == 1, []
    for seed in range(60):
        lab = srgb_to_lab(augment.painted(image, mask, np.random.default_rng(seed)))
        assert np.corrcoef(srgb_to_lab(image)[0, inside], lab[0, inside])[0, 1] > 0.9
        colors.append(lab[1:, inside].mean(1))
    a, b = torch.stack(colors).T
    assert torch.hypot(a, b).max() > 40
    assert min(a.min(), b.min()) < -15
    assert min(a.max(), b.max()) > 15
