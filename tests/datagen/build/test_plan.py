"""A build's result depends on its plan alone: not on workers, ranks, kills, the cache, or what was there before."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import tiny_build
from helpers.tiny_build import BALD, COUNT, RECIPE, plan

from stylepairs.datagen.build import inversion_cache, models, pair_maker
from stylepairs.datagen.build import plan as build_plan
from stylepairs.datagen.build.inversion_cache import InversionCache
from stylepairs.datagen.build.shard_runner import BuildEvent, BuildResult, build_pairs
from stylepairs.datagen.images.files import read_image, write_png
from stylepairs.datagen.pairs import shards
from stylepairs.datagen.pairs.record import split_of
from stylepairs.datagen.portraits.folders import load_portrait, load_portraits, photo_digests
from stylepairs.datagen.reconstruction.inversion import Inversion
from stylepairs.datagen.reconstruction.settings import InversionSettings
from stylepairs.datagen.shell import machine
from stylepairs.datagen.shell.errors import InputError

PAIRS = 2 * COUNT


@pytest.fixture(scope="module")
def reference(tmp_path_factory) -> Path:
    """A folder with portraits, a finished build of them in `pairs`, and its cache."""
    folder = tmp_path_factory.mktemp("reference")
    assert build_pairs(plan(folder)).complete
    return folder


@pytest.fixture
def built(reference, tmp_path) -> Path:
    """The same, to do with as a test likes."""
    return shutil.copytree(reference, tmp_path, dirs_exist_ok=True)


def digests(folder: Path) -> dict[str, str]:
    files = [path for path in folder.glob("[!.]*") if path.suffix in (".tar", ".parquet", ".json")]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(files)}


def test_a_build_makes_every_combination_of_every_portrait(built):
    result = build_pairs(plan(built))
    records = shards.read_index(built / "pairs", accepted_only=False)
    assert result == BuildResult(PAIRS, sum(r.accepted for r in records), complete=True)
    assert [r.id for r in records] == [f"{i:06d}" for i in range(PAIRS)]
    assert [r.params["color"] for r in records[:4]] == ["blond", "black"] * 2
    assert {r.portrait for r in records} == {file.name for file in load_portraits(built / "portraits")}
    assert (built / "pairs" / "manifest.parquet").is_file()


def test_pairs_are_identical_outside_the_mask_and_carry_what_made_them(reference):
    digest = models.generator_digest(tiny_build.tiny_generator())
    made = [pair for pair in shards.read_pairs(reference / "pairs", accepted_only=False) if pair.after is not None]
    assert len(made) == PAIRS - 2
    for pair in made:
        np.testing.assert_array_equal(pair.after[pair.mask == 0], pair.before[pair.mask == 0])
        tiny_build.check_edit_mask(pair)
        assert (pair.after != pair.before).any()
        assert pair.w_before.dtype == pair.noise[0].dtype == np.float16
        assert pair.record.generator_digest == digest
        assert pair.record.source_digest == tiny_build.photo_digest(pair.record.portrait)
        assert pair.record.split == split_of(pair.record.source_digest)
        figures = {"color_delta_e", "outside_psnr_db", "inversion_psnr", "reconstruction_steps"}
        assert figures <= pair.record.figures.keys()


def test_a_portrait_that_the_feature_refuses_is_a_rejected_pair_with_the_reason(reference):
    bald = [r for r in shards.read_index(reference / "pairs", False) if r.portrait == BALD]
    assert len(bald) == 2
    assert all("no hair to colour" in r.reasons[0] for r in bald)
    assert shards.read_pair(reference / "pairs", bald[0].id).after is None


def test_what_is_not_finite_is_rejected_and_its_pixels_are_not_kept(tmp_path, monkeypatch):
    def broken(problem, progress):
        found = real(problem, progress)
        return [
            replace(one, generated_after=one.generated_after * float("nan")) if portrait.name == "portrait_001" else one
            for portrait, one in zip(problem.portraits, found, strict=True)
        ]

    real = pair_maker.reconstruct
    monkeypatch.setattr(pair_maker, "reconstruct", broken)
    build_pairs(plan(tmp_path, limit=2))
    pairs = list(shards.read_pairs(tmp_path / "pairs", False))
    assert [p.after is None for p in pairs] == [False, False, True, True]
    assert [p.record.reasons for p in pairs[2:]] == [["not finite"]] * 2
    assert all(p.after is None and p.generated_after is None and p.w_after is None for p in pairs[2:])
    assert all(p.before is not None for p in pairs)


def test_the_number_of_workers_does_not_show(built):
    build_pairs(plan(built, "many"), workers=2)
    assert digests(built / "many") == digests(built / "pairs")


def test_the_number_of_pairs_in_the_making_together_does_not_show(built, monkeypatch):
    together, reconstructed = set(), pair_maker.reconstruct_pairs

    def noted(recipe, pairs, *others):
        together.add(len(pairs))
        reconstructed(recipe, pairs, *others)

    monkeypatch.setattr(pair_maker, "PIXELS_IN_HAND", 1)
    monkeypatch.setattr(pair_maker, "reconstruct_pairs", noted)
    build_pairs(plan(built, "one"))
    assert together == {1}
    assert digests(built / "one") == digests(built / "pairs")


def test_ranks_share_the_shards_and_the_last_writes_the_manifest(built):
    first = build_pairs(plan(built, "ranks"), rank=1, world=2)
    assert not first.complete
    assert not (built / "ranks" / "manifest.parquet").exists()
    assert [path.name for path in shards.shard_paths(built / "ranks")] == ["pairs-00001.tar", "pairs-00003.tar"]
    assert build_pairs(plan(built, "ranks"), rank=0, world=2).complete
    assert digests(built / "ranks") == digests(built / "pairs")


def test_neither_an_empty_nor_a_partly_filled_nor_a_damaged_cache_shows(built):
    cache = built / "cache-pairs"
    kept = sorted(cache.rglob("*.safetensors"))
    assert len(kept) == COUNT - 1
    kept[0].unlink()
    kept[1].write_bytes(kept[1].read_bytes()[:100])
    kept[2].write_bytes(b"")
    flipped = bytearray(kept[3].read_bytes())
    flipped[-5] ^= 1
    kept[3].write_bytes(flipped)
    build_pairs(plan(built, "two", cache=cache))
    assert digests(built / "two") == digests(built / "pairs")
    assert sorted(cache.rglob("*.safetensors")) == kept


def test_an_encoder_gives_stage_0_its_start_few_steps_and_cached_inversions_of_its_own(tmp_path, monkeypatch):
    called = []

    def invert(generator, perceptual, portraits, settings, prior, progress, start):
        called.append((settings.steps, start and start(portraits[0].image)))
        return real_invert(generator, perceptual, portraits, settings.model_copy(update={"steps": 1}), prior, progress)

    def load(*arguments):
        loaded, encoder = real_load(*arguments[:4]), arguments[4]
        if encoder == "none":
            return loaded
        return replace(loaded, start=lambda photo, precision: precision, digests={"encoder": encoder})

    real_invert, real_load = pair_maker.invert, build_plan.load_models
    monkeypatch.setattr(pair_maker, "invert", invert)
    monkeypatch.setattr(build_plan, "load_models", load)
    for name in ("none", "some", "other"):
        changes = {"encoder": name, "inversion": {}}
        build_pairs(plan(tmp_path, name, cache=tmp_path / "cache", recipe=changes, limit=1))
        identity = json.loads((tmp_path / name / "build.json").read_text())
        assert identity["instruments"].get("encoder", "none") == name
        assert "encoder" not in identity["recipe"]
    usual = InversionSettings.model_validate({})
    assert called == [(usual.steps, None), (usual.near().steps, "auto"), (usual.near().steps, "auto")]


def test_a_cache_that_cannot_be_written_is_told_before_anything_is_inverted(tmp_path, monkeypatch):
    tiny_build.write_portraits(tmp_path / "portraits", 1)
    (tmp_path / "cache").write_text("a file")
    monkeypatch.setattr(pair_maker, "invert", lambda *_: pytest.fail("inverted for nothing"))
    with pytest.raises(InputError, match=r"cache: cannot be written"):
        build_pairs(plan(tmp_path, cache=tmp_path / "cache"))


@pytest.mark.parametrize("figures", ["[" * 100_000, "[]", "null", '{"psnr_db": []}'])
def test_a_cached_inversion_with_hostile_figures_counts_as_absent(tmp_path, figures):
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    tiny_build.write_portraits(tmp_path, 1)
    portrait = load_portrait(tmp_path, "portrait_000")
    cache = InversionCache(tmp_path, "f" * 64, {}, {})
    cache.store(portrait, Inversion(torch.zeros(8, 16), [torch.zeros(4, 4)], portrait.image, {"psnr": 25.0}))
    path = cache.path(portrait)
    assert cache.load(portrait) is not None
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    save_file(load_file(path), path, metadata | {"figures": figures})
    assert cache.load(portrait) is None


@pytest.mark.parametrize("numbers", [torch.float32, torch.bfloat16])
def test_a_cached_inversion_without_a_latent_or_of_foreign_numbers_counts_as_absent(tmp_path, numbers):
    from safetensors.torch import save_file

    tiny_build.write_portraits(tmp_path, 1)
    portrait = load_portrait(tmp_path, "portrait_000")
    cache, tensors = InversionCache(tmp_path, "f" * 64, {}, {}), {"image": torch.zeros(3, 4, 4)}
    path = cache.path(portrait)
    path.parent.mkdir()
    stored = {"figures": '{"psnr": 25.0}', "sha256": inversion_cache._digest(tensors)}
    save_file({name: tensor.to(numbers) for name, tensor in tensors.items()}, path, stored)
    assert cache.load(portrait) is None


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        "1",
        '{"photo_sha256": "x"}',
        '{"name": [], "photo_sha256"',
        "\x00",
        f'{{"name": "a", "photo_sha256": "{"x" * 9000}"}}',
    ],
)
def test_a_hostile_index_of_portraits_is_one_clear_line(tmp_path, text):
    (tmp_path / "index.jsonl").write_text(text)
    with pytest.raises(InputError, match=r"index\.jsonl: damaged .*prepare the photos again") as caught:
        photo_digests(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_second_build_with_the_same_cache_inverts_nothing(built, monkeypatch):
    def fail(*arguments):
        raise AssertionError("inverted again")

    monkeypatch.setattr(pair_maker, "invert", fail)
    other = plan(built, "two", recipe={"params": {"color": "grey"}}, cache=built / "cache-pairs", limit=2)
    assert build_pairs(other).complete


def test_finished_shards_are_skipped_and_missing_or_damaged_ones_made_again(built):
    before = digests(built / "pairs")
    (built / "pairs" / "pairs-00001.tar").unlink()
    damaged = built / "pairs" / "pairs-00002.tar"
    damaged.write_bytes(damaged.read_bytes()[:3000])
    untouched = (built / "pairs" / "pairs-00000.tar").stat().st_mtime_ns
    events: list[BuildEvent] = []
    assert build_pairs(plan(built), on_event=events.append).complete
    assert digests(built / "pairs") == before
    assert (built / "pairs" / "pairs-00000.tar").stat().st_mtime_ns == untouched
    assert [event.shard for event in events if event.shard] == ["pairs-00001.tar", "pairs-00002.tar"]
    assert any("damaged shard" in event.note for event in events)
    assert sum(event.work for event in events) == pytest.approx(PAIRS)


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"seed": 1}, "seed was 0, now 1"),
        ({"shard_size": 5}, "pairs-00000.tar: holds other pairs than this build's"),
        ({"limit": 3}, "pairs was 10, now 6"),
        ({"recipe": {"inversion": {"steps": 7}}}, "recipe.inversion.steps was"),
        ({"recipe": {"params": {"color": ["grey", "red"]}}}, "recipe.params.color was"),
    ],
)
def test_a_folder_with_a_build_of_other_settings_is_refused(built, changed, expected):
    before = digests(built / "pairs")
    with pytest.raises(InputError, match="choose another --out") as caught:
        build_pairs(plan(built, **changed))
    assert expected in str(caught.value)
    assert digests(built / "pairs") == before


def test_another_generator_is_refused_even_when_all_is_finished(built):
    with pytest.raises(InputError, match="generator_digest was"):
        build_pairs(plan(built, generator=tiny_build.generator_file(seed=1)))


def test_other_portraits_of_the_same_names_are_refused(built):
    path = built / "portraits" / "aligned" / "portrait_001.png"
    write_png(path, read_image(path)[::-1].copy())
    with pytest.raises(InputError, match="portraits was"):
        build_pairs(plan(built))


@pytest.mark.parametrize(
    "changed", ["aligned/a.png", "label/a.png", "hair/a.png", "index.jsonl", "points68", "source_to_aligned"]
)
def test_the_digest_of_portraits_tells_every_change_of_what_is_read(tmp_path, changed):
    def write(change: str = "") -> None:
        for kind in ("aligned", "label", "hair"):
            (tmp_path / kind).mkdir(exist_ok=True)
            for name in ("a", "b"):
                path = tmp_path / kind / f"{name}.png"
                path.write_text(f"{path} {path.relative_to(tmp_path).as_posix() == change}")
        photo = "ef" if change == "index.jsonl" else "cd"
        (tmp_path / "index.jsonl").write_text(json.dumps({"name": "a", "photo_sha256": photo * 32}))
        points, moves = np.zeros((2, 68, 2)), np.zeros((2, 2, 3))
        points[0, 0] += change == "points68"
        moves[0, 0] += change == "source_to_aligned"
        np.savez(tmp_path / "landmarks.npz", name=np.array(["a", "b"]), points68=points, source_to_aligned=moves)

    def digest(*names: str) -> str:
        files = load_portraits(tmp_path)
        assert [file.name for file in files] == ["a", "b"]
        wanted = [file for file in files if file.name in names]
        return build_plan.digest_portraits(wanted, photo_digests(tmp_path))

    write()
    before, other = digest("a", "b"), digest("b")
    assert digest("a", "b") == before
    write(changed)
    assert digest("a", "b") != before
    assert digest("b") == other  # of the planned portraits alone
    (tmp_path / "hair" / "a.png").unlink()
    with pytest.raises(InputError, match=r"hair/a\.png: cannot be read"):
        digest("a")


def test_weights_of_perceptual_features_count_by_their_content(tmp_path, monkeypatch):
    def load(generator, perceptual, weights, device, *others):
        loaded = real(generator, perceptual, None, device, *others)
        return replace(loaded, digests={"perceptual_weights": Path(weights).read_text()})

    def changed(name: str) -> dict:
        return {"perceptual_weights": str(tmp_path / name)}

    real = build_plan.load_models
    monkeypatch.setattr(build_plan, "load_models", load)
    (tmp_path / "x.pth").write_text("one")
    (tmp_path / "y.pth").write_text("one")
    cache = tmp_path / "cache"
    for name in ("x.pth", "y.pth"):
        build_pairs(plan(tmp_path, recipe=changed(name), cache=cache, limit=1))
        assert len(list(cache.rglob("*.safetensors"))) == 1
    (tmp_path / "y.pth").write_text("two")
    with pytest.raises(InputError, match=r"instruments\.perceptual_weights was"):
        build_pairs(plan(tmp_path, recipe=changed("y.pth"), cache=cache, limit=1))
    build_pairs(plan(tmp_path, "other", recipe=changed("y.pth"), cache=cache, limit=1))
    assert len(list(cache.rglob("*.safetensors"))) == 2


def test_the_embedded_analyser_counts_by_its_weights(monkeypatch):
    analyser, digests = models._analyser()
    assert analyser is not None
    assert re.fullmatch("[0-9a-f]{64}", digests["analyser"])
    monkeypatch.setattr(models, "file_digest", lambda path, advice: f"another {path.name}")
    assert models._analyser()[1] != digests


def test_shards_that_no_build_made_are_not_touched(tmp_path, synthetic_pairs):
    synthetic_pairs(tmp_path / "pairs", count=PAIRS, shard_size=3)
    with pytest.raises(InputError, match=r"shards but no build\.json"):
        build_pairs(plan(tmp_path))


def test_what_is_recomputed_to_save_memory_makes_no_other_build(built):
    cache = built / "cache-pairs"
    kept = sorted(cache.rglob("*.safetensors"))

    def changed(**settings) -> dict:
        return {stage: RECIPE[stage] | settings for stage in ("inversion", "reconstruction")}

    less = plan(built, recipe=changed(recompute_from_px=16), cache=cache)
    build_pairs(less)  # a build of other settings in the same folder would be refused
    build_pairs(replace(less, out=built / "other"))  # and other inversions would be missed
    assert sorted(cache.rglob("*.safetensors")) == kept
    assert digests(built / "other").keys() == digests(built / "pairs").keys()
    for path in shards.shard_paths(built / "pairs"):
        assert (built / "other" / path.name).read_bytes() == path.read_bytes()
    for name in ("batch", "precision", "pixels_at_once"):  # these round differently
        value = "bf16" if name == "precision" else 1
        with pytest.raises(InputError, match=rf"recipe\.inversion\.{name} was"):
            build_pairs(plan(built, recipe={"inversion": RECIPE["inversion"] | {name: value}}, cache=cache))


def test_limit_takes_the_first_portraits_by_name(tmp_path):
    assert plan(tmp_path, limit=2).names == ("portrait_000", "portrait_001")


def test_wrong_parameters_are_found_before_anything_is_loaded(tmp_path):
    with pytest.raises(InputError, match=r"params\.colr: unknown key; did you mean 'color'"):
        plan(tmp_path, recipe={"params": {"colr": "red"}})
    with pytest.raises(InputError, match=r"params\.color.*mauvish"):
        plan(tmp_path, recipe={"params": {"color": ["red", "mauvish"]}})
    with pytest.raises(InputError, match="have only 2 combinations"):
        plan(tmp_path, recipe={"pairs_per_portrait": 4})
    with pytest.raises(InputError, match="feature 'hair_colour': unknown"):
        plan(tmp_path, recipe={"feature": "hair_colour"})


def test_pairs_per_portrait_draws_that_many(tmp_path):
    colors = {"params": {"color": ["blond", "black", "red"]}, "pairs_per_portrait": 2}
    build_pairs(plan(tmp_path, recipe=colors, limit=3))
    records = shards.read_index(tmp_path / "pairs", accepted_only=False)
    assert len(records) == 6
    by_portrait: dict[str, list[str]] = {}
    for record in records:
        by_portrait.setdefault(record.portrait, []).append(record.params["color"])
    assert all(len(set(colors)) == 2 for colors in by_portrait.values())


def test_a_gate_on_an_unknown_figure_stops_the_build_and_leaves_nothing_half_written(tmp_path, monkeypatch):
    def fail(*arguments):
        raise AssertionError("worked before the gate was checked")

    with monkeypatch.context() as patch:
        patch.setattr(pair_maker, "invert", fail)
        with pytest.raises(InputError, match="did you mean 'color_delta_e'"):
            build_pairs(plan(tmp_path, recipe={"gate": {"colour_delta_e": {"max": 8}}}))
    with pytest.raises(InputError, match="did you mean 'inversion_psnr'"):
        build_pairs(plan(tmp_path, recipe={"gate": {"inversion_psn": {"min": 20}}}, limit=1))
    assert [path.name for path in (tmp_path / "pairs").glob("[!.]*")] == ["build.json"]


def test_rank_comes_from_the_launcher(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert machine.rank_and_world() == (0, 1)
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert machine.rank_and_world() == (2, 4)
    monkeypatch.setenv("RANK", "4")
    with pytest.raises(InputError, match="not below"):
        machine.rank_and_world()
    monkeypatch.setenv("RANK", "two")
    with pytest.raises(InputError, match="RANK in the environment must be a whole number"):
        machine.rank_and_world()
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "0")
    assert machine.default_workers("cpu") >= 1


def test_threads_and_cuda_switches_are_fixed_for_the_build_and_put_back(tmp_path, monkeypatch):
    from torch.backends import cuda, cudnn

    def switches() -> tuple:
        return cuda.matmul.allow_tf32, cudnn.allow_tf32, cudnn.deterministic, cudnn.benchmark

    seen = []

    def invert(*arguments):
        seen.append((torch.get_num_threads(), switches()))
        return real(*arguments)

    real = pair_maker.invert
    monkeypatch.setattr(pair_maker, "invert", invert)
    before = torch.get_num_threads(), switches()
    build_pairs(plan(tmp_path, limit=1))
    assert seen == [(1, (False, False, True, False))]
    assert (torch.get_num_threads(), switches()) == before
    assert os.environ.get("RANK") is None
