"""Training samples: the same on every run and for every number of workers, and true to their pair."""

from __future__ import annotations

import re
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from stylepairs.datagen.compositing.compose import tightened
from stylepairs.datagen.images.colors import lab_in_light
from stylepairs.datagen.pairs.shards import read_index, read_pairs, write_manifest, write_shard
from stylepairs.datagen.shell.errors import InputError
from stylepairs.i2i.models.conditions import asks_for_color, decode_color, style_of, wanted_lab
from stylepairs.i2i.train import augment
from stylepairs.i2i.train.data import PairDataset, Sample, augmented_sample, batches, calibration_inputs, plain_sample
from stylepairs.i2i.train.settings import DataSettings, TrainingSettings
from stylepairs.i2i.train.sides import one_feature, pair_sides, read_records, read_refused, told_sides

LATENTS = (6, 8)
NONE = {name: 0.0 for name in DataSettings.model_fields if name.endswith("_share")}


def dataset(pairs: Path, settings: DataSettings | None = None, digest: str = "0" * 64) -> PairDataset:
    return PairDataset(pairs, read_records(pairs, "train"), 32, "color", LATENTS, digest, settings)


def augmented(pairs: Path, **settings: float) -> tuple[Sample, Sample]:
    plain = dataset(pairs)[0]
    return plain, augmented_sample(plain, DataSettings(**(NONE | settings)), "color", np.random.default_rng(5))


def test_only_accepted_pairs_of_the_train_side_are_read(pairs: Path) -> None:
    records = read_records(pairs, "train")
    assert records
    assert all(r.accepted and r.split == "train" for r in records)
    held_out = {r.portrait_digest for r in read_records(pairs, "val")}
    assert held_out
    assert not held_out & {r.portrait_digest for r in records}


def test_wanted_colour_of_a_dark_pair_is_the_colour_as_it_looks_there(tmp_path: Path, synthetic_pairs) -> None:
    synthetic_pairs(tmp_path, size_px=32, figures={"light": 0.2})
    dark = decode_color(dataset(tmp_path)[0]["style"])
    torch.testing.assert_close(dark, lab_in_light(wanted_lab("blond"), 0.2), atol=1e-3, rtol=0)
    assert dark[0] < 0.7 * wanted_lab("blond")[0]
    told = next(calibration_inputs(tmp_path, 32, "color", {}, count=1))["style"][0]
    torch.testing.assert_close(decode_color(torch.from_numpy(told)), dark)


def test_no_accepted_pair_is_one_clear_line(tmp_path: Path, synthetic_pairs) -> None:
    synthetic_pairs(tmp_path / "pairs", count=2, reject_every=1)
    with pytest.raises(InputError, match="no accepted pair"):
        read_records(tmp_path / "pairs", "train")


def test_pairs_of_two_features_are_refused(pairs: Path) -> None:
    first, second = read_index(pairs)[:2]
    object.__setattr__(second, "feature", "bangs")
    with pytest.raises(InputError, match="bangs, hair_color"):
        one_feature([first, second], pairs)


def test_sample_depends_on_epoch_and_index_only(pairs: Path) -> None:
    data = dataset(pairs, DataSettings(blend_share=0.3))
    again = dataset(pairs, DataSettings(blend_share=0.3))
    _ = again[3, 4]
    for name, tensor in data[1, 2].items():
        assert torch.equal(tensor, again[1, 2][name]), name
    assert not torch.equal(data[1, 2]["photo"], data[2, 2]["photo"])


def test_workers_make_the_same_batches(pairs: Path) -> None:
    data = dataset(pairs, DataSettings())
    plan = list(batches(len(data), 4, 0, 0, 3, 0, 1))
    alone = torch.utils.data.DataLoader(data, batch_sampler=plan)
    shared = torch.utils.data.DataLoader(data, batch_sampler=plan, num_workers=2)
    for one, two in zip(alone, shared, strict=True):
        assert all(torch.equal(one[name], two[name]) for name in one)


def test_batches_cover_each_epoch_once_over_all_processes() -> None:
    parts = [list(batches(10, 3, 1, 0, 5, rank, 2)) for rank in (0, 1)]
    drawn = [key for step in zip(*parts, strict=True) for batch in step for key in batch]
    for epoch in range(3):
        assert sorted(index for e, index in drawn if e == epoch) == list(range(10))


def test_batches_of_a_resumed_run_continue() -> None:
    assert list(batches(7, 4, 2, 3, 9, 0, 1)) == list(batches(7, 4, 2, 0, 9, 0, 1))[3:]


def test_the_mask_that_is_learnt_is_the_sketchs_own(tmp_path: Path, pairs: Path) -> None:
    """The dilated one, brought back, was too wide by strands and gaps: colours had soft rims."""
    pair = next(read_pairs(pairs, split="train"))
    soft = np.zeros_like(pair.mask)
    soft[:, 5:9], soft[3, 3] = (0, 40, 200, 255), 90
    write_shard(tmp_path / "pairs-00000.tar", [replace(pair, edit_mask=soft)])
    sample = dataset(tmp_path)[0]
    assert torch.equal(sample["edit_mask"][0], torch.from_numpy(soft) / 255)
    assert (sample["region"] >= sample["edit_mask"]).all()
    settings = DataSettings(**(NONE | {"flip_share": 1.0}))
    moved = augmented_sample(sample, settings, "color", np.random.default_rng(0))
    assert torch.equal(moved["edit_mask"], sample["edit_mask"].flip(-1))


def test_of_a_pair_without_an_edit_mask_it_is_the_mask_without_its_dilation(pairs: Path) -> None:
    sample = dataset(pairs)[0]
    assert torch.equal(sample["edit_mask"], tightened(sample["mask"]))


def test_without_augmentation_the_sample_is_the_pair(pairs: Path) -> None:
    plain, sample = augmented(pairs)
    for name in ("photo", "mask", "edit_mask", "region", "degree", "style", "ws", "ws_valid"):
        assert torch.equal(sample[name], plain[name]), name
    torch.testing.assert_close(sample["target"], plain["target"], rtol=0, atol=1e-6)
    assert sample["ws_valid"] == 1


def blob(side: int = 32) -> torch.Tensor:
    mask = torch.zeros(1, side, side)
    mask[:, 10:16, 8:22] = 1
    return mask


def test_region_is_dropped_rough_or_analysed_in_its_shares_and_the_same_for_the_same_seed() -> None:
    settings = DataSettings(region_dropped_share=0.5, region_rough_share=0.25, region_share=1.0)
    regions = [augment.region(blob(), settings, np.random.default_rng(seed)) for seed in range(120)]
    again = [augment.region(blob(), settings, np.random.default_rng(seed)) for seed in range(120)]
    assert all(torch.equal(one, two) for one, two in zip(regions, again, strict=True))
    dropped = sum(bool((region == 1).all()) for region in regions)
    rough = sum(bool(((region == 0) | (region == 1)).all()) for region in regions) - dropped
    assert 45 <= dropped <= 75
    assert 18 <= rough <= 42


def test_rough_region_of_a_large_picture_takes_no_time() -> None:
    mask = torch.zeros(1, 512, 512)
    mask[:, 100:300, 200:400] = 1
    started = time.process_time()
    for seed in range(4):
        augment.rough_region(mask, np.random.default_rng(seed))
    assert time.process_time() - started < 0.4


def test_rough_region_is_wider_than_the_mask_and_cuts_nothing_off() -> None:
    mask = blob()
    for seed in range(40):
        region = augment.rough_region(mask, np.random.default_rng(seed))
        assert (region >= mask).all()
        assert mask.sum() < region.sum() < 0.6 * region.numel()
    assert not augment.rough_region(torch.zeros(1, 8, 8), np.random.default_rng(0)).any()


def test_portraits_that_the_feature_refused_are_their_own_target(tmp_path: Path, synthetic_pairs) -> None:
    synthetic_pairs(tmp_path, count=24, size_px=32, shard_size=12, refuse_every=3)
    refused = read_refused(tmp_path, "train")
    records = read_records(tmp_path, "train")
    assert refused
    settings = DataSettings(refused_share=0.5, identity_share=0.0)
    data = PairDataset(tmp_path, records, 32, "color", LATENTS, "0" * 64, settings, refused=refused)
    samples = [data[epoch, index] for epoch in range(16) for index in range(len(records))]
    kept = [sample for sample in samples if sample["applies"] == 0]
    assert 0.3 < len(kept) / len(samples) < 0.7
    for sample in kept:
        assert torch.equal(sample["target"], sample["photo"])
        assert not sample["mask"].any()
        assert sample["ws_valid"] == 0
    # By the region they are not to be told from pairs: as often as those they have none.
    none = [
        float(np.mean([bool(s["region"].all()) for s in part])) for part in (kept, [s for s in samples if s["applies"]])
    ]
    assert none[0] == pytest.approx(none[1], abs=0.2)
    assert 0.2 < none[0] < 0.8


def test_identity_sample_asks_for_the_photo(pairs: Path) -> None:
    _, sample = augmented(pairs, identity_share=1.0)
    assert sample["degree"] == 0
    assert sample["ws_valid"] == 0
    torch.testing.assert_close(sample["target"], sample["photo"], rtol=0, atol=1e-6)


def test_identity_sample_of_a_poor_photo_asks_for_that_photo(pairs: Path) -> None:
    _, sample = augmented(pairs, identity_share=1.0, degrade_share=1.0)
    assert sample["mask"].any()
    assert torch.equal(sample["target"], sample["photo"])


def test_latents_fit_no_sample_of_other_colours(pairs: Path) -> None:
    for name in ("photometric_share", "dyed_share"):
        assert augmented(pairs, **{name: 1.0})[1]["ws_valid"] == 0


def test_sizes_change_and_shapes_do_not() -> None:
    """Width and height drawn apart made faces up to a sixth wider than they are."""
    settings = DataSettings(**(NONE | {"affine_share": 1.0, "scale_share": 0.4}), rotation_degrees=0)
    square, found = np.zeros((64, 64), np.uint8), set()
    square[20:44, 20:44] = 255
    for seed in range(8):
        image = square[..., None].repeat(3, -1)
        rng = np.random.default_rng(seed)
        moved, _ = augment.applied(augment.transforms_of(settings).moving, rng, image=image, target=image, mask=square)
        rows, columns = (int((moved["mask"] > 127).any(axis).sum()) for axis in (1, 0))
        assert abs(rows - columns) <= 1
        found.add(rows)
    assert len(found) > 3


def test_region_that_is_a_pixel_off_does_not_come_back_on_the_other_side() -> None:
    mask = torch.zeros(1, 16, 16)
    mask[:, 12:] = 1
    for seed in range(20):
        assert augment.analysed_region(mask, 1.0, np.random.default_rng(seed))[:, 0].max() < 0.01


def test_shares_of_one_draw_may_not_exceed_one_together() -> None:
    with pytest.raises(ValueError, match=r"data\.identity_share and data\.blend_share: must not exceed 1 together"):
        TrainingSettings(data={"identity_share": 0.5, "blend_share": 0.6})


def test_blended_sample_lies_between_photo_and_target(pairs: Path) -> None:
    plain, sample = augmented(pairs, blend_share=1.0)
    share = sample["degree"] / plain["degree"]
    expected = plain["photo"].lerp(plain["target"], share)
    assert 0.1 <= share < 1
    torch.testing.assert_close(sample["target"], expected, rtol=0, atol=1e-5)


def test_geometry_moves_photo_target_and_mask_alike(pairs: Path) -> None:
    plain, sample = augmented(pairs, flip_share=1.0)
    assert torch.equal(sample["photo"], plain["photo"].flip(-1))
    assert torch.equal(sample["mask"], plain["mask"].flip(-1))
    assert sample["ws_valid"] == 0


def test_photo_and_target_stay_equal_outside_the_mask_whatever_is_augmented(pairs: Path) -> None:
    sizes = {"affine_share": 1.0, "photometric_share": 1.0, "degrade_share": 1.0, "flip_share": 1.0}
    _, sample = augmented(pairs, **sizes)
    outside = (sample["mask"] == 0).expand_as(sample["photo"])
    assert outside.any()
    assert torch.equal(sample["photo"][outside], sample["target"][outside])


def test_recolouring_moves_the_wanted_colour_along(pairs: Path) -> None:
    plain, sample = augmented(pairs, photometric_share=1.0)
    assert not torch.equal(sample["style"], plain["style"])
    plain_lightness, lightness = decode_color(plain["style"])[0], decode_color(sample["style"])[0]
    inside = plain["mask"].expand_as(plain["target"]) == 1
    assert (lightness > plain_lightness) == (sample["target"][inside].mean() > plain["target"][inside].mean())


def test_a_wanted_colour_is_never_darker_than_black_which_would_leave_the_photos_own(pairs: Path) -> None:
    grey, settings = torch.full((3, 32, 32), 0.2), DataSettings(**(NONE | {"photometric_share": 1.0}), brightness=0.95)
    code = style_of("color", {"color": "0,0,0"})
    plain = dataset(pairs)[0] | {"photo": grey, "target": grey, "style": code}
    codes = [augmented_sample(plain, settings, "color", np.random.default_rng(seed))["style"] for seed in range(20)]
    assert asks_for_color(torch.stack(codes)).all()


def test_calibration_gives_the_inputs_of_an_exported_editor_without_a_region(pairs: Path) -> None:
    found = list(calibration_inputs(pairs, 32, "color", {}, count=3))
    assert len(found) == 3
    shapes = {name: value.shape for name, value in found[0].items()}
    assert shapes == {"photo": (1, 3, 32, 32), "region": (1, 1, 32, 32), "degree": (1,), "style": (1, 3)}
    assert found[0]["region"].min() == 1
    assert not np.array_equal(found[0]["photo"], found[2]["photo"])


def test_calibration_leaves_out_pairs_of_kinds_that_the_editor_does_not_know(tmp_path: Path, synthetic_pairs) -> None:
    params = [{"color": color} for color in ("red", "blond", "grey", "grey")]
    synthetic_pairs(tmp_path, count=24, size_px=32, params=params)
    kinds = {"color": ["blond", "red"]}
    styles = {tuple(found["style"][0]) for found in calibration_inputs(tmp_path, 32, "params", kinds)}
    assert styles == {(1.0, 0.0), (0.0, 1.0)}
    with pytest.raises(InputError, match="this model was trained on pink, teal"):
        list(calibration_inputs(tmp_path, 32, "params", {"color": ["pink", "teal"]}))


def test_dyed_sample_has_other_hues_in_photo_and_target_alike(pairs: Path) -> None:
    plain, dyed = augmented(pairs, dyed_share=1.0)
    outside = (dyed["mask"] == 0).expand(3, -1, -1)
    assert outside.any()
    assert torch.equal(dyed["photo"][outside], dyed["target"][outside])
    assert (dyed["target"] - plain["target"]).abs().mean() > 0.02
    assert (dyed["style"] - plain["style"]).abs().max() > 0.02  # the wanted colour went along


def test_latents_of_another_generator_are_not_used(pairs: Path) -> None:
    assert dataset(pairs, digest="1" * 64)[0]["ws_valid"] == 0


def test_pairs_are_brought_to_the_models_size(pairs: Path) -> None:
    from stylepairs.datagen.pairs.shards import load_pair

    sample = plain_sample(load_pair(pairs, read_records(pairs, "train")[0]), 16, "color")
    assert sample["photo"].shape == (3, 16, 16)
    assert sample["mask"].shape == (1, 16, 16)


@pytest.mark.parametrize("has_manifest", [True, False])
def test_pairs_that_a_model_cannot_be_told_are_left_out_and_said(
    tmp_path: Path, synthetic_pairs, has_manifest: bool
) -> None:
    synthetic_pairs(tmp_path, 48, 32, 48, params=({"length": 0.5}, {"length": 1.0}, {}, {"length": 0.7}, {"length": 3}))
    if not has_manifest:
        (tmp_path / "manifest.parquet").unlink()
    sides, said = pair_sides(tmp_path), []
    told = told_sides(sides, tmp_path, "hair_color", "params", {"length": [0.5, 1.0]}, 2, said.append)
    assert {record.params.get("length") for record in told.records} == {0.5, 0.7, 1.0}
    assert {record.params.get("length") for record in told.held_out} <= {0.5, 0.7, 1.0}
    assert len(told.held_out) <= 2
    left_out = len(sides.records) - len(told.records)
    assert len(said) == 1
    assert re.search(rf"{left_out} of {len(sides.records)} training pairs.*\(length (None|3): .* 0.5 to 1\)$", said[0])
    with pytest.raises(InputError, match=r"none of its \d+ training pairs can be learnt from \(length .*change style"):
        told_sides(sides, tmp_path, "hair_color", "params", {"length": [7, 8]}, 2, said.append)
    with pytest.raises(InputError, match="params: no color"):
        told_sides(sides, tmp_path, "hair_color", "color", {}, 2, said.append)


@pytest.mark.parametrize(("side", "flips"), [("side_left", 0), ("full", 1)])
def test_pairs_that_all_name_one_side_are_not_flipped(tmp_path: Path, synthetic_pairs, side: str, flips: int) -> None:
    synthetic_pairs(tmp_path, size_px=32, params=({"style": side},))
    settings, records = DataSettings(**(NONE | {"flip_share": 1.0})), read_records(tmp_path, "train")
    plain, sample = (PairDataset(tmp_path, records, 32, "none", LATENTS, "", each)[0] for each in (None, settings))
    assert torch.equal(sample["photo"], plain["photo"].flip(-1) if flips else plain["photo"])


def test_photo_and_target_are_moved_and_recoloured_alike(pairs: Path) -> None:
    plain = dataset(pairs)[0]
    twins = plain | {"target": plain["photo"], "mask": torch.ones(1, 32, 32)}
    settings = DataSettings(**(NONE | {"flip_share": 0.5, "affine_share": 1.0, "photometric_share": 1.0}))
    for seed in range(4):
        sample = augmented_sample(twins, settings, "color", np.random.default_rng(seed))
        assert not torch.equal(sample["photo"], plain["photo"])
        torch.testing.assert_close(sample["photo"], sample["target"], rtol=0, atol=1e-6)


def test_mask_goes_where_its_picture_goes_and_stays_in_range(pairs: Path) -> None:
    plain = dataset(pairs)[0]
    soft = torch.nn.functional.avg_pool2d(plain["mask"][None], 5, 1, 2)[0]
    drawn = plain | {"photo": soft.expand(3, -1, -1) * 2 - 1, "mask": soft}
    settings = DataSettings(**(NONE | {"affine_share": 1.0, "region_share": 1.0}))
    for seed in range(8):
        sample = augmented_sample(drawn, settings, "color", np.random.default_rng(seed))
        for name in ("mask", "region"):
            assert 0 <= sample[name].min() <= sample[name].max() <= 1
        assert not torch.equal(sample["mask"], soft)
        torch.testing.assert_close(sample["photo"][:1] / 2 + 0.5, sample["mask"], rtol=0, atol=0.08)


def test_degradations_touch_the_photo_alone(pairs: Path) -> None:
    _, clean = augmented(pairs)
    _, poor = augmented(pairs, degrade_share=1.0)
    assert not torch.equal(poor["photo"], clean["photo"])
    inside = (clean["mask"] == 1).expand_as(clean["photo"])
    torch.testing.assert_close(poor["target"][inside], clean["target"][inside], rtol=0, atol=1e-6)
    for name in ("mask", "region", "degree", "style", "ws", "ws_valid"):
        assert torch.equal(poor[name], clean[name]), name


def test_transforms_decide_on_their_own(pairs: Path) -> None:
    """With one seed for each, albumentations flips exactly those that it also rotates."""
    steps = augment.transforms_of(DataSettings())
    image = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    pictures = {"image": image, "target": image, "mask": image[..., 0]}
    found = set()
    for seed in range(40):
        moved, _ = augment.applied(steps.moving, np.random.default_rng(seed), **pictures)
        found.add(steps_of(moved["image"], image))
    assert found == {"none", "flip", "affine"}


def steps_of(moved: np.ndarray, image: np.ndarray) -> str:
    if np.array_equal(moved, image):
        return "none"
    return "flip" if np.array_equal(moved, image[:, ::-1]) else "affine"


def test_shares_are_kept(pairs: Path) -> None:
    plain, settings = dataset(pairs)[0], DataSettings(**(NONE | {"identity_share": 0.25, "blend_share": 0.25}))
    samples = [augmented_sample(plain, settings, "color", np.random.default_rng(seed)) for seed in range(80)]
    degrees = [float(sample["degree"]) for sample in samples]
    assert 10 <= degrees.count(0.0) <= 32
    assert 28 <= degrees.count(1.0) <= 52
    assert all(sample["ws_valid"] == (sample["degree"] == 1) for sample in samples)


def test_pairs_that_are_all_held_out_are_told(pairs: Path, tmp_path: Path) -> None:
    kept = [replace(pair, record=replace(pair.record, split="val")) for pair in read_pairs(pairs)]
    held = tmp_path / "held"
    held.mkdir()
    write_shard(held / "pairs-00000.tar", kept)
    write_manifest(held)
    with pytest.raises(InputError, match=rf"all {len(kept)} accepted pairs are of photos that are held out"):
        read_records(held, "train")
