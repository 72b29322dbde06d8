"""A build's result depends on its plan alone: not on workers, ranks, kills, the cache, or what was there before."""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers import fake_backend

from stylepairs.datagen.build import models as backend
from stylepairs.datagen.build import pair_maker
from stylepairs.datagen.build import plan as pipeline
from stylepairs.datagen.build.draws import combinations, draw
from stylepairs.datagen.build.inversion_cache import InversionCache
from stylepairs.datagen.build.settings import BuildRecipe
from stylepairs.datagen.pairs import shards
from stylepairs.datagen.pairs.record import split_of
from stylepairs.datagen.reconstruction.settings import InversionSettings
from stylepairs.datagen.shell import machine
from stylepairs.datagen.shell.errors import InputError

RECIPE = {
    "feature": "hair_color",
    "params": {"color": ["blond", "black", "red"], "intensity": 1.0},
    "perceptual": "pyramid",
    "gate": {"color_delta_e": {"max": 40}, "outside_psnr_db": {"min": 10}},
}


def plan(tmp_path: Path, out: str = "pairs", recipe: dict | None = None, **settings) -> pipeline.BuildPlan:
    settings = {"shard_size": 4, "backend": fake_backend.BACKEND, "cache": tmp_path / f"cache-{out}"} | settings
    checked = BuildRecipe.model_validate(RECIPE | (recipe or {}))
    return pipeline.plan_build(checked, tmp_path, tmp_path / out, **settings)


def build(the_plan: pipeline.BuildPlan, **settings) -> pipeline.BuildResult:
    return pipeline.build_pairs(the_plan, backend=fake_backend.BACKEND, **settings)


def digests(folder: Path) -> dict[str, str]:
    files = [path for path in folder.iterdir() if path.suffix in (".tar", ".parquet", ".json")]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(files)}


def test_a_build_makes_every_combination_of_every_portrait(tmp_path):
    result = build(plan(tmp_path))
    records = shards.read_index(tmp_path / "pairs", accepted_only=False)
    assert result == pipeline.BuildResult(18, sum(r.accepted for r in records), complete=True)
    assert [r.id for r in records] == [f"{i:06d}" for i in range(18)]
    assert [r.params["color"] for r in records[:6]] == ["blond", "black", "red"] * 2
    assert {r.portrait for r in records} == set(fake_backend.list_portraits(tmp_path))
    assert (tmp_path / "pairs" / "manifest.parquet").is_file()


def test_pairs_are_identical_outside_the_mask_and_carry_what_made_them(tmp_path):
    build(plan(tmp_path))
    for pair in shards.read_pairs(tmp_path / "pairs", accepted_only=False):
        if pair.after is None:
            continue
        np.testing.assert_array_equal(pair.after[pair.mask == 0], pair.before[pair.mask == 0])
        assert (pair.after != pair.before).any()
        assert pair.w_before.dtype == pair.noise[0].dtype == np.float16
        assert pair.record.generator_digest == "f" * 64
        assert pair.record.split == split_of(f"photo of {pair.record.portrait}")
        assert {
            "color_delta_e",
            "outside_psnr_db",
            "inversion_psnr_db",
            "reconstruction_steps",
        } <= pair.record.figures.keys()


def test_a_portrait_that_the_feature_refuses_is_a_rejected_pair_with_the_reason(tmp_path):
    build(plan(tmp_path))
    bald = [r for r in shards.read_index(tmp_path / "pairs", False) if r.portrait == "portrait_005"]
    assert len(bald) == 3
    assert all("no hair to colour" in r.reasons[0] for r in bald)
    assert shards.read_pair(tmp_path / "pairs", bald[0].id).after is None


def test_what_is_not_finite_is_rejected_and_its_pixels_are_not_kept(tmp_path, monkeypatch):
    monkeypatch.setenv(fake_backend.NOT_FINITE, "portrait_001")
    build(plan(tmp_path))
    broken = [p for p in shards.read_pairs(tmp_path / "pairs", False) if p.record.portrait == "portrait_001"]
    assert [p.record.reasons for p in broken] == [["not finite"]] * 3
    assert all(p.after is None and p.generated_after is None and p.w_after is None for p in broken)
    assert all(p.before is not None for p in broken)


def test_the_number_of_workers_does_not_show(tmp_path):
    build(plan(tmp_path, "one"))
    build(plan(tmp_path, "many"), workers=2)
    assert digests(tmp_path / "many") == digests(tmp_path / "one")


def test_the_number_of_pairs_in_the_making_together_does_not_show(tmp_path, monkeypatch):
    build(plan(tmp_path, "all"))
    together, reconstructed = set(), pair_maker._reconstruct

    def noted(task, drafts, *others):
        together.add(len(drafts))
        reconstructed(task, drafts, *others)

    monkeypatch.setattr(pair_maker, "PIXELS_IN_HAND", 1)
    monkeypatch.setattr(pair_maker, "_reconstruct", noted)
    build(plan(tmp_path, "one"))
    assert together == {1}
    assert digests(tmp_path / "all") == digests(tmp_path / "one")


def test_ranks_share_the_shards_and_the_last_writes_the_manifest(tmp_path):
    build(plan(tmp_path, "one"))
    first = build(plan(tmp_path, "ranks"), rank=1, world=2)
    assert not first.complete
    assert not (tmp_path / "ranks" / "manifest.parquet").exists()
    assert sorted(path.name for path in shards.shard_paths(tmp_path / "ranks")) == [
        "pairs-00001.tar",
        "pairs-00003.tar",
    ]
    assert build(plan(tmp_path, "ranks"), rank=0, world=2).complete
    assert digests(tmp_path / "ranks") == digests(tmp_path / "one")


def test_neither_an_empty_nor_a_partly_filled_nor_a_damaged_cache_shows(tmp_path):
    cache = tmp_path / "cache"
    build(plan(tmp_path, "one", cache=cache))
    kept = sorted(cache.rglob("*.safetensors"))
    assert len(kept) == 5
    kept[0].unlink()
    kept[1].write_bytes(kept[1].read_bytes()[:100])
    kept[2].write_bytes(b"")
    flipped = bytearray(kept[3].read_bytes())
    flipped[-5] ^= 1
    kept[3].write_bytes(flipped)
    build(plan(tmp_path, "two", cache=cache))
    assert digests(tmp_path / "two") == digests(tmp_path / "one")
    assert sorted(cache.rglob("*.safetensors")) == kept


def test_an_encoder_gives_stage_0_its_start_few_steps_and_cached_inversions_of_its_own(tmp_path):
    called = []

    def invert(generator, perceptual, portraits, settings, prior, progress, start):
        called.append((settings.steps, start and start(portraits[0].image)))
        return fake_backend.invert(generator, perceptual, portraits, settings, prior, progress)

    def load_models(*arguments):
        models = fake_backend.load_models(*arguments)
        if arguments[-1] == "none":
            return models
        return replace(models, start=lambda photo, precision: precision, digests={"encoder": arguments[-1]})

    steps = replace(fake_backend.BACKEND, invert=invert, load_models=load_models)
    for name in ("none", "some", "other"):
        settings = plan(tmp_path, name, cache=tmp_path / "cache", recipe={"encoder": name}, limit=1)
        pipeline.build_pairs(settings, backend=steps)
        identity = json.loads((tmp_path / name / "build.json").read_text())
        assert identity["instruments"].get("encoder", "none") == name
        assert "encoder" not in identity["recipe"]
    usual = InversionSettings.model_validate({})
    assert called == [(usual.steps, None), (usual.near().steps, "auto"), (usual.near().steps, "auto")]


@pytest.mark.parametrize("figures", ["[" * 100_000, "[]", "null", '{"psnr_db": []}'])
def test_a_cached_inversion_with_hostile_figures_counts_as_absent(tmp_path, figures):
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    portrait, _ = fake_backend.load_portrait(tmp_path, "portrait_000")
    cache = InversionCache(tmp_path, "f" * 64, {}, {})
    cache.store(portrait, fake_backend.invert(None, None, [portrait], None, None, lambda done, total: None)[0])
    path = cache.path(portrait)
    assert cache.load(portrait) is not None
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    save_file(load_file(path), path, metadata | {"figures": figures})
    assert cache.load(portrait) is None


@pytest.mark.parametrize("text", ["[" * 100_000, "1", '{"photo_sha256": "x"}', '{"name": [], "photo_sha256"', "\x00"])
def test_a_hostile_index_of_portraits_is_one_clear_line(tmp_path, text):
    (tmp_path / "index.jsonl").write_text(text)
    with pytest.raises(InputError, match=r"index\.jsonl: damaged .*prepare the photos again") as caught:
        backend._photo_digests(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_second_build_with_the_same_cache_inverts_nothing(tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    build(plan(tmp_path, "one", cache=cache))

    def fail(*arguments):
        raise AssertionError("inverted again")

    steps = replace(fake_backend.BACKEND, invert=fail)
    other = plan(tmp_path, "two", recipe={"params": {"color": "grey"}}, cache=cache)
    assert pipeline.build_pairs(other, backend=steps).complete


def test_finished_shards_are_skipped_and_missing_or_damaged_ones_made_again(tmp_path):
    build(plan(tmp_path))
    before = digests(tmp_path / "pairs")
    (tmp_path / "pairs" / "pairs-00001.tar").unlink()
    damaged = tmp_path / "pairs" / "pairs-00002.tar"
    damaged.write_bytes(damaged.read_bytes()[:3000])
    untouched = (tmp_path / "pairs" / "pairs-00000.tar").stat().st_mtime_ns
    events: list[pipeline.BuildEvent] = []
    assert build(plan(tmp_path), on_event=events.append).complete
    assert digests(tmp_path / "pairs") == before
    assert (tmp_path / "pairs" / "pairs-00000.tar").stat().st_mtime_ns == untouched
    assert [event.shard for event in events if event.shard] == ["pairs-00001.tar", "pairs-00002.tar"]
    assert any("damaged shard" in event.note for event in events)
    assert sum(event.work for event in events) == pytest.approx(18)


def test_a_bug_in_reading_records_surfaces_and_remakes_no_finished_shard(tmp_path, monkeypatch):
    build(plan(tmp_path))
    times = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "pairs").iterdir()}

    def bug(*arguments):
        raise AttributeError("a bug")

    monkeypatch.setattr(shards, "decode_record", bug)
    with pytest.raises(AttributeError, match="a bug"):
        build(plan(tmp_path))
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "pairs").iterdir()} == times


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"seed": 1}, "seed was 0, now 1"),
        ({"shard_size": 5}, "shard_size was 4, now 5"),
        ({"limit": 2}, "pairs was 18, now 6"),
        ({"recipe": {"inversion": {"steps": 7}}}, "recipe.inversion.steps was"),
        ({"recipe": {"params": {"color": "grey"}}}, "recipe.params"),
    ],
)
def test_a_folder_with_a_build_of_other_settings_is_refused(tmp_path, changed, expected):
    build(plan(tmp_path))
    before = digests(tmp_path / "pairs")
    with pytest.raises(InputError, match="choose another --out") as caught:
        build(plan(tmp_path, **changed))
    assert expected in str(caught.value) or "holds other pairs" in str(caught.value)
    assert digests(tmp_path / "pairs") == before


def test_another_generator_is_refused_even_when_all_is_finished(tmp_path, monkeypatch):
    build(plan(tmp_path))
    monkeypatch.setenv(fake_backend.DIGEST, "e" * 64)
    with pytest.raises(InputError, match="generator_digest was"):
        build(plan(tmp_path))


def test_other_portraits_of_the_same_names_are_refused(tmp_path, monkeypatch):
    build(plan(tmp_path))
    monkeypatch.setenv(fake_backend.PORTRAITS, "others")
    with pytest.raises(InputError, match="portraits was"):
        build(plan(tmp_path))


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
        found = backend.list_portraits(tmp_path)
        assert found == ["a", "b"]
        return backend.digest_portraits(tmp_path, names)

    write()
    before, other = digest("a", "b"), digest("b")
    assert digest("a", "b") == before
    write(changed)
    assert digest("a", "b") != before
    assert digest("b") == other  # of the planned portraits alone
    (tmp_path / "hair" / "a.png").unlink()
    with pytest.raises(InputError, match=r"hair/a\.png: cannot be read"):
        digest("a")


def test_weights_of_perceptual_features_count_by_their_content(tmp_path):
    (tmp_path / "x.pth").write_text("one")
    (tmp_path / "y.pth").write_text("one")
    cache = tmp_path / "cache"
    build(plan(tmp_path, recipe={"perceptual_weights": str(tmp_path / "x.pth")}, cache=cache, limit=1))
    build(plan(tmp_path, recipe={"perceptual_weights": str(tmp_path / "y.pth")}, cache=cache, limit=1))
    assert len(list(cache.rglob("*.safetensors"))) == 1
    (tmp_path / "y.pth").write_text("two")
    changed = {"perceptual_weights": str(tmp_path / "y.pth")}
    with pytest.raises(InputError, match=r"instruments\.perceptual_weights was"):
        build(plan(tmp_path, recipe=changed, cache=cache, limit=1))
    build(plan(tmp_path, "other", recipe=changed, cache=cache, limit=1))
    assert len(list(cache.rglob("*.safetensors"))) == 2


def test_the_embedded_analyser_counts_by_its_weights(monkeypatch):
    analyser, digests = backend._analyser()
    assert analyser is not None
    assert re.fullmatch("[0-9a-f]{64}", digests["analyser"])
    monkeypatch.setattr(backend, "file_digest", lambda path, advice: f"another {path.name}")
    assert backend._analyser()[1] != digests


def test_two_builds_started_into_one_folder_do_not_mix(tmp_path):
    def overtaken(*arguments):
        (tmp_path / "pairs" / "build.json").write_text(json.dumps(json.loads(text()) | {"seed": 7}))
        return fake_backend.invert(*arguments)

    def text() -> str:
        return (tmp_path / "pairs" / "build.json").read_text()

    with pytest.raises(InputError, match=r"another build was started in it meanwhile \(seed was 7, now 0\)"):
        pipeline.build_pairs(plan(tmp_path), backend=replace(fake_backend.BACKEND, invert=overtaken))
    assert [path.name for path in (tmp_path / "pairs").iterdir()] == ["build.json"]


def test_shards_that_no_build_made_are_not_touched(tmp_path, synthetic_pairs):
    synthetic_pairs(tmp_path / "pairs", count=18)
    with pytest.raises(InputError, match=r"shards but no build\.json"):
        build(plan(tmp_path))


def test_what_is_recomputed_to_save_memory_makes_no_other_build(tmp_path):
    cache = tmp_path / "cache"
    build(plan(tmp_path, cache=cache))
    kept = sorted(cache.rglob("*.safetensors"))
    less = {"recompute_from_px": 16}
    changed = plan(tmp_path, recipe={"inversion": less, "reconstruction": less}, cache=cache)
    build(changed)  # a build of other settings in the same folder would be refused
    build(replace(changed, out=tmp_path / "other"))  # and other inversions would be missed
    assert sorted(cache.rglob("*.safetensors")) == kept
    for name in ("batch", "precision", "pixels_at_once"):  # these round differently
        value = "bf16" if name == "precision" else 1
        with pytest.raises(InputError, match=rf"recipe\.inversion\.{name} was"):
            build(plan(tmp_path, recipe={"inversion": {name: value}}, cache=cache))


def test_limit_takes_the_first_portraits_by_name(tmp_path):
    assert plan(tmp_path, limit=2).names == ("portrait_000", "portrait_001")


def test_wrong_parameters_are_found_before_anything_is_loaded(tmp_path):
    with pytest.raises(InputError, match=r"params\.colr: unknown key; did you mean 'color'"):
        plan(tmp_path, recipe={"params": {"colr": "red"}})
    with pytest.raises(InputError, match=r"params\.color.*mauvish"):
        plan(tmp_path, recipe={"params": {"color": ["red", "mauvish"]}})
    with pytest.raises(InputError, match="have only 3 combinations"):
        plan(tmp_path, recipe={"pairs_per_portrait": 4})
    with pytest.raises(InputError, match="feature 'hair_colour': unknown"):
        plan(tmp_path, recipe={"feature": "hair_colour"})


def test_draws_depend_on_portrait_and_seed_and_repeat_no_choice():
    choices = combinations({"color": list("abcdef"), "intensity": [0.5, 1.0]})
    assert len(choices) == 12
    first = draw(choices, 5, seed=0, digest="p")
    assert first == draw(choices, 5, seed=0, digest="p")
    assert first != draw(choices, 5, seed=1, digest="p")
    assert first != draw(choices, 5, seed=0, digest="q")
    assert len({json.dumps(params) for params in first}) == 5
    assert draw(choices, "all", 0, "p") == choices


def test_pairs_per_portrait_draws_that_many(tmp_path):
    build(plan(tmp_path, recipe={"pairs_per_portrait": 2}))
    records = shards.read_index(tmp_path / "pairs", accepted_only=False)
    assert len(records) == 12
    by_portrait: dict[str, list[str]] = {}
    for record in records:
        by_portrait.setdefault(record.portrait, []).append(record.params["color"])
    assert all(len(set(colors)) == 2 for colors in by_portrait.values())


def test_too_many_combinations_are_refused():
    with pytest.raises(InputError, match="combinations"):
        combinations({"a": list(range(1000)), "b": list(range(1000))})
    with pytest.raises(InputError, match="empty list"):
        combinations({"a": []})


def test_a_gate_on_an_unknown_figure_stops_the_build_and_leaves_nothing_half_written(tmp_path):
    def fail(*arguments):
        raise AssertionError("worked before the gate was checked")

    steps = replace(fake_backend.BACKEND, invert=fail)
    with pytest.raises(InputError, match="did you mean 'color_delta_e'"):
        pipeline.build_pairs(plan(tmp_path, recipe={"gate": {"colour_delta_e": {"max": 8}}}), backend=steps)
    with pytest.raises(InputError, match="did you mean 'inversion_psnr_db'"):
        build(plan(tmp_path, recipe={"gate": {"inversion_psnr": {"min": 20}}}))
    assert [path.name for path in (tmp_path / "pairs").iterdir()] == ["build.json"]


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


def test_threads_and_cuda_switches_are_fixed_for_the_build_and_put_back(tmp_path):
    import torch
    from torch.backends import cuda, cudnn

    def switches() -> tuple:
        return cuda.matmul.allow_tf32, cudnn.allow_tf32, cudnn.deterministic, cudnn.benchmark

    seen = []

    def invert(*arguments):
        seen.append((torch.get_num_threads(), switches()))
        return fake_backend.invert(*arguments)

    before = torch.get_num_threads(), switches()
    pipeline.build_pairs(plan(tmp_path, limit=1), backend=replace(fake_backend.BACKEND, invert=invert))
    assert seen == [(1, (False, False, True, False))]
    assert (torch.get_num_threads(), switches()) == before
    assert os.environ.get("RANK") is None
