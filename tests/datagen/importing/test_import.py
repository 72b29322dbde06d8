"""Pairs of pictures that others made: laid over each other, the before to the bit outside the edit, refused where they
are no pair."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from pathlib import Path
from unittest import mock

import import_report
import numpy as np
import pytest
from helpers import tiny_build
from PIL import Image

from stylepairs.datagen import cli
from stylepairs.datagen.augment.plan import plan_augmentation
from stylepairs.datagen.build.settings import BuildRecipe
from stylepairs.datagen.build.shard_runner import build_pairs
from stylepairs.datagen.images.files import read_image, write_png
from stylepairs.datagen.importing.laying import read_mask
from stylepairs.datagen.importing.plan import ImportPlan, pictures_in, plan_import
from stylepairs.datagen.pairs import shards
from stylepairs.datagen.pairs.record import Pair, split_of
from stylepairs.datagen.portraits.analysis.analyser import load_analyser
from stylepairs.datagen.recipe import load_recipe
from stylepairs.datagen.shell.errors import InputError
from stylepairs.i2i.train.data import PairDataset
from stylepairs.i2i.train.sides import read_records

PHOTOS = Path(__file__).parents[3] / "recipes" / "photos" / "train"
PEOPLE = ("portrait_005", "portrait_008", "portrait_009")
PARAMS = {"color": "auburn"}
SHIFTS = ((0.0, 0.0), (2.3, -1.4), (-2.9, 0.7))


@pytest.fixture(scope="module")
def people(tmp_path_factory) -> list[import_report.Scene]:
    folder = tmp_path_factory.mktemp("photos")
    for name in PEOPLE:
        shutil.copy(PHOTOS / f"{name}.jpg", folder)
    return import_report.scenes(folder, load_analyser())


@pytest.fixture(scope="module")
def pictures(people, tmp_path_factory) -> Path:
    """before, after and wrong: good afters, each moved, tinted and compressed in its own way, and three wrong ones."""
    folder, draw = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    spoiled = (import_report.other_face, import_report.other_pose, import_report.other_background)
    for scene, (x, y), spoil, other in zip(people, SHIFTS, spoiled, people[1:] + people[:1], strict=True):
        after = import_report.edited(scene, "hair_color", PARAMS)
        write_png(folder / "before" / f"{scene.name}.png", scene.photo)
        import_report.sent(import_report.moved(after, x, y), folder / "after" / f"{scene.name}.jpg", draw)
        source = import_report.Scene(scene.name, after, scene.portrait, scene.move)
        import_report.sent(spoil(source, other, draw), folder / "wrong" / f"{scene.name}.jpg", draw)
    return folder


def plan(pictures: Path, out: Path, afters: str = "after", **settings) -> ImportPlan:
    recipe = settings.pop("recipe", load_recipe("hair_color", "datagen", BuildRecipe))
    settings = {"params": PARAMS, "shard_size": 2} | settings
    return plan_import(recipe, pictures / "before", pictures / afters, out, **settings)[0]


def made(plan: ImportPlan) -> list[Pair]:
    assert build_pairs(plan).complete
    return list(shards.read_pairs(plan.out, accepted_only=False))


@pytest.fixture(scope="module")
def imported(pictures, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("imported") / "pairs"
    made(plan(pictures, out, made_by="a retoucher"))
    return out


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob("*.tar"))}


@pytest.mark.slow
def test_shifts_are_found_to_a_fifth_of_a_pixel_and_the_pairs_accepted(imported):
    records = shards.read_index(imported, accepted_only=False)
    assert [record.portrait for record in records] == list(PEOPLE)
    assert [record.reasons for record in records] == [[]] * len(PEOPLE)
    for record, (x, y) in zip(records, SHIFTS, strict=True):
        found = [float(value) for value in record.origin["shift_px"].split()]
        assert np.hypot(found[0] - x, found[1] - y) < 0.2


@pytest.mark.slow
def test_outside_the_mask_the_after_is_the_before_to_the_bit_and_inside_it_is_edited(imported):
    for pair in shards.read_pairs(imported):
        np.testing.assert_array_equal(pair.after[pair.mask == 0], pair.before[pair.mask == 0])
        tiny_build.check_edit_mask(pair)
        assert 0.03 < (pair.mask > 127).mean() < 0.7
        assert np.abs(pair.after[pair.mask > 127].astype(int) - pair.before[pair.mask > 127]).mean() > 5
        assert pair.record.figures["color_delta_e"] < 8


@pytest.mark.slow
def test_the_record_says_where_a_pair_is_from(imported, pictures):
    for record in shards.read_index(imported):
        before, after = (pictures / kind / record.origin[kind] for kind in ("before", "after"))
        assert record.source_digest == hashlib.sha256(before.read_bytes()).hexdigest()
        assert record.origin["after_sha256"] == hashlib.sha256(after.read_bytes()).hexdigest()
        assert record.origin["made_by"] == "a retoucher"
        assert record.split == split_of(record.source_digest)
        assert record.generator_digest == ""
    scanned = [record for path in shards.shard_paths(imported) for record in shards.scan_shard(path)]
    assert scanned == shards.read_index(imported, accepted_only=False)  # the manifest says the same


@pytest.mark.slow
def test_another_face_pose_or_background_is_refused_with_the_reason(pictures, tmp_path):
    face, pose, background = made(plan(pictures, tmp_path / "pairs", "wrong"))
    assert not any(pair.record.accepted for pair in (face, pose, background))
    assert any("face" in reason or "another picture" in reason for reason in face.record.reasons)
    assert any("pose" in reason or "another picture" in reason for reason in pose.record.reasons)
    assert background.record.reasons[0].startswith("the background differs: import_background_changed")


@pytest.mark.slow
def test_an_import_goes_on_where_it_stopped_with_the_same_bytes(imported, pictures, tmp_path):
    out = shutil.copytree(imported, tmp_path / "pairs")
    (out / shards.shard_name(1)).unlink()
    made(plan(pictures, out, made_by="a retoucher"))
    assert digests(out) == digests(imported)
    with pytest.raises(InputError, match="made_by was"):
        build_pairs(plan(pictures, out, made_by="somebody else"))


@pytest.mark.slow
def test_the_number_of_workers_does_not_show(imported, pictures, tmp_path):
    assert build_pairs(plan(pictures, tmp_path / "pairs", made_by="a retoucher"), workers=2).complete
    assert digests(tmp_path / "pairs") == digests(imported)


@pytest.mark.slow
def test_a_mask_that_is_given_is_the_region(pictures, people, tmp_path):
    scene = people[1]
    for kind, suffix in (("before", "png"), ("after", "jpg")):
        (tmp_path / kind).mkdir()
        shutil.copy(pictures / kind / f"{scene.name}.{suffix}", tmp_path / kind)
    mask = np.zeros(scene.photo.shape[:2], np.uint8)
    mask[: len(mask) // 4] = 255
    write_png(tmp_path / "masks" / f"{scene.name}.png", mask)
    pair = made(plan(tmp_path, tmp_path / "pairs", masks=tmp_path / "masks"))[0]
    assert pair.record.origin["mask"] == f"{scene.name}.png"
    assert (pair.mask[:40] > 0).any()
    assert not pair.mask[128:].any()


@pytest.mark.slow
def test_an_after_of_another_size_is_laid_over_its_before(pictures, people, tmp_path):
    scene = people[2]
    after = Image.fromarray(import_report.edited(scene, "hair_color", PARAMS))
    write_png(tmp_path / "before" / f"{scene.name}.png", scene.photo)
    (tmp_path / "after").mkdir()
    after.resize((after.width * 2, after.height * 2), Image.Resampling.LANCZOS).save(
        tmp_path / "after" / f"{scene.name}.png"
    )
    pair = made(plan(tmp_path, tmp_path / "pairs"))[0]
    assert pair.record.accepted
    assert np.abs([float(value) for value in pair.record.origin["shift_px"].split()]).max() < 0.1


def test_files_that_are_no_pair_of_faces_are_refused_and_the_rest_goes_on(pictures, tmp_path):
    shutil.copytree(pictures / "before", tmp_path / "before")
    shutil.copytree(pictures / "after", tmp_path / "after")
    (tmp_path / "after" / f"{PEOPLE[0]}.jpg").write_bytes(b"no picture")
    grey = np.full((64, 64, 3), 128, np.uint8)
    write_png(tmp_path / "before" / f"{PEOPLE[1]}.png", grey)
    damaged, faceless, good = (pair.record for pair in made(plan(tmp_path, tmp_path / "pairs")))
    assert "not an image" in damaged.reasons[0]
    assert faceless.reasons == ["no face found in the before"]
    assert good.accepted


@pytest.mark.slow
def test_a_model_trains_on_imported_pairs(imported):
    records = [*read_records(imported, "train"), *read_records(imported, "val")]
    dataset = PairDataset(imported, records, 64, "color", (4, 8), "")
    for index in range(len(records)):
        sample = dataset[index]
        assert sample["ws_valid"] == 0
        assert sample["photo"].shape == sample["target"].shape == (3, 64, 64)
        assert sample["mask"].max() > 0.9


@pytest.mark.slow
def test_with_a_generator_both_halves_get_latents_and_can_be_augmented(pictures, tmp_path):
    quick = [f"{stage}.{key}=2" for stage in ("inversion", "reconstruction") for key in ("steps", "decay_steps")]
    quick += ["inversion.warmup_steps=1", "reconstruction.warmup_steps=1", "reconstruction.coarse_to_fine_steps=1"]
    recipe = load_recipe("hair_color", "datagen", BuildRecipe, quick)
    for kind in ("before", "after"):
        shutil.copytree(pictures / kind, tmp_path / kind, ignore=shutil.ignore_patterns(f"{PEOPLE[2]}.*"))
    pairs = made(plan(tmp_path, tmp_path / "pairs", recipe=recipe, generator="embedded"))
    accepted = [pair for pair in pairs if pair.record.accepted]
    assert len(accepted) == 2
    for pair in accepted:
        assert pair.w_before.shape == pair.w_after.shape
        assert pair.generated_after.shape == pair.before.shape == (128, 128, 3)
        np.testing.assert_array_equal(pair.after[pair.mask == 0], pair.before[pair.mask == 0])
    plan_more = plan_augmentation(tmp_path / "pairs", tmp_path / "more", steps=(0.5,))
    assert build_pairs(plan_more).pairs == len(accepted)


def run(capsys, *arguments: object) -> tuple[int, str]:
    with mock.patch.object(sys, "argv", ["datagen", *map(str, arguments)]), pytest.raises(SystemExit) as stopped:
        cli.main()
    captured = capsys.readouterr()
    return stopped.value.code, captured.out + captured.err


def test_the_command_says_what_is_wrong_in_one_line(pictures, tmp_path, capsys):
    common = ("import", pictures / "before", pictures / "after", "--out", tmp_path / "pairs", "--feature")
    for arguments, said in (
        ((*common, "hair_color"), "leaves color open"),
        ((*common, "hair_color", "--params", "color"), "--params color: must be key=value"),
        ((*common, "hair_color", "--params", "color=blont"), "color 'blont': unknown"),
        ((*common, "hair_color", "--params", "color=red", "--size", "10"), "--size 10"),
        ((*common, "hair_color", "--params", "color=red", "--masks", tmp_path), "no picture in it"),
        ((*common, "hair_color", "--params", "color=red", "--made-by", "x" * 5000), "--made-by: 5000 characters"),
        (("import", pictures / "before", tmp_path / "none", *common[3:], "lips"), "no such file or folder"),
    ):
        code, text = run(capsys, *arguments)
        assert (code, text.count("\n")) == (2, 1), text
        assert said in text


def test_a_list_says_what_was_done_to_each(pictures, tmp_path):
    colors = ("red", "blue", "black")
    rows = [{"name": name, "params": {"color": color}} for name, color in zip(PEOPLE, colors, strict=True)]
    (tmp_path / "list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    planned = plan(pictures, tmp_path / "pairs", params=None, listed=tmp_path / "list.jsonl")
    assert [one.params["color"] for one in planned.pictures] == list(colors)
    (tmp_path / "list.jsonl").write_text('{"name": "portrait_4", "params": {}}\n')
    with pytest.raises(InputError, match="names no pair, the first is 'portrait_4'; did you mean 'portrait_00"):
        plan(pictures, tmp_path / "pairs", listed=tmp_path / "list.jsonl")


@pytest.mark.parametrize(
    ("row", "said"),
    [({"name": PEOPLE[0], "params": {"color": "blue"}}, f"'{PEOPLE[0]}' twice"), ({"params": {}}, "line 2 .* no name")],
)
def test_a_list_that_says_two_things_of_a_pair_or_of_nobody_is_refused(pictures, tmp_path, row, said):
    rows = [{"name": PEOPLE[0], "params": {"color": "red"}}, row]
    (tmp_path / "list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(InputError, match=said):
        plan(pictures, tmp_path / "pairs", listed=tmp_path / "list.jsonl")


def test_names_of_a_list_that_no_pair_has_are_told(pictures, tmp_path):
    rows = [{"name": name, "params": {"color": "red"}} for name in (PEOPLE[0], f"{PEOPLE[1]}.png")]
    (tmp_path / "list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = load_recipe("hair_color", "datagen", BuildRecipe)
    _, told = plan_import(
        recipe, pictures / "before", pictures / "after", tmp_path / "pairs",
        params=PARAMS, listed=tmp_path / "list.jsonl",
    )  # fmt: skip
    assert told == [f"{tmp_path / 'list.jsonl'}: names 1 that no pair has, such as '{PEOPLE[1]}.png'"]


def test_pictures_whose_names_are_no_text_are_imported_and_kept_as_escapes(people, tmp_path):
    for kind in ("before", "after"):
        write_png(tmp_path / kind / os.fsdecode(b"anna-\xe9.png"), people[0].photo)
    (pair,) = made(plan(tmp_path, tmp_path / "pairs", made_by=os.fsdecode(b"Ren\xe9")))
    assert pair.record.portrait == "anna-\\xe9"
    assert pair.record.origin["before"] == "anna-\\xe9.png"
    assert pair.record.origin["made_by"] == "Ren\\xe9"


@pytest.mark.slow
def test_imported_pairs_without_latents_are_not_augmented(imported, tmp_path):
    with pytest.raises(InputError, match="imported without latents; import into another --out with --generator"):
        plan_augmentation(imported, tmp_path / "more")


def test_pictures_of_one_name_and_files_without_a_partner_are_told(pictures, tmp_path):
    shutil.copytree(pictures / "before", tmp_path / "before")
    write_png(tmp_path / "before" / "more" / "alone.png", read_image(tmp_path / "before" / f"{PEOPLE[0]}.png"))
    recipe = load_recipe("hair_color", "datagen", BuildRecipe)
    planned, lone = plan_import(recipe, tmp_path / "before", pictures / "after", tmp_path / "pairs", params=PARAMS)
    assert planned.job_count == len(PEOPLE)
    assert lone == [f"{tmp_path / 'before' / 'more' / 'alone.png'}: has no partner"]
    (tmp_path / "before" / f"{PEOPLE[0]}.jpg").write_bytes(b"")
    with pytest.raises(InputError, match="has the name of"):
        pictures_in(tmp_path / "before")


def test_two_single_files_may_have_a_single_mask_whatever_its_name(pictures, tmp_path):
    write_png(tmp_path / "drawn.png", np.zeros((8, 8), np.uint8))
    recipe = load_recipe("hair_color", "datagen", BuildRecipe)
    before, after = (next(iter(pictures_in(pictures / kind).values())) for kind in ("before", "after"))
    planned, _ = plan_import(
        recipe, before, after, tmp_path / "pairs", params=PARAMS, masks=tmp_path / "drawn.png"
    )  # fmt: skip
    assert [one.mask for one in planned.pictures] == [tmp_path / "drawn.png"]


@pytest.mark.parametrize("beneath", [0, 255])
def test_what_is_transparent_in_a_mask_was_not_edited(tmp_path, beneath):
    drawn = np.full((40, 60, 4), beneath, np.uint8)
    drawn[..., 3] = 0
    drawn[:10] = 255
    Image.fromarray(drawn).save(tmp_path / "mask.png")
    mask = read_mask(tmp_path / "mask.png")
    assert (mask[:10] == 255).all()
    assert not mask[10:].any()
