"""Augmented pairs: rendered from the stored latents, judged by the same gate, on their parents' side, repeatable."""

from __future__ import annotations

import hashlib
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import tiny_build, tiny_pairs
from hypothesis import given, settings
from hypothesis import strategies as st

from stylepairs.datagen import cli
from stylepairs.datagen.augment import interpolation, likeness
from stylepairs.datagen.augment import plan as augment_plan
from stylepairs.datagen.augment.likeness import Likeness, choose_couples, distances, stacked
from stylepairs.datagen.augment.making import Child
from stylepairs.datagen.augment.plan import AugmentPlan, plan_augmentation
from stylepairs.datagen.build import models
from stylepairs.datagen.build.settings import Threshold
from stylepairs.datagen.build.shard_runner import BuildEvent, build_pairs
from stylepairs.datagen.features import load_feature
from stylepairs.datagen.pairs import shards
from stylepairs.datagen.pairs.record import Pair, PairRecord
from stylepairs.datagen.portraits.sketch import SketchRefused
from stylepairs.datagen.reconstruction.rendering import render
from stylepairs.datagen.shell.errors import InputError
from stylepairs.i2i.train.sides import read_records

STEPS = (0.0, 0.5, 1.0)


@pytest.fixture(scope="module", autouse=True)
def tiny_analyser():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "_analyser", lambda: (tiny_pairs.Analyser(), {}))
        yield


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tiny") / "pairs"
    tiny_pairs.write_pairs(folder)
    return folder


def plan(pairs: Path, out: Path, **settings) -> AugmentPlan:
    settings = {"steps": STEPS, "generator": tiny_build.generator_file(), "shard_size": 5} | settings
    return plan_augmentation(pairs, out, **settings)


@pytest.fixture(scope="module")
def augmented(pairs, tmp_path_factory) -> Path:
    """All degrees of every pair, and a person between each and another."""
    out = tmp_path_factory.mktemp("augmented") / "more"
    assert build_pairs(plan(pairs, out, grid=1)).complete
    return out


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob("*.tar"))}


def children(folder: Path, people: int) -> list[Pair]:
    return [pair for pair in shards.read_pairs(folder, accepted_only=False) if len(pair.record.parents) == people]


def test_every_accepted_pair_gets_every_degree(pairs, augmented):
    made = children(augmented, people=1)
    assert len(made) == 6 * len(STEPS)
    for pair in made:
        parent = shards.read_pair(pairs, pair.record.parents[0].id)
        t = pair.record.figures["augmentation_t"]
        assert pair.record.params.items() >= (parent.record.params | {"intensity": t}).items()
        assert pair.record.portrait_digest == parent.record.portrait_digest
        assert pair.record.source_digest == parent.record.source_digest == pair.record.parents[0].source_digest
        np.testing.assert_array_equal(pair.before, parent.before)
        np.testing.assert_array_equal(pair.after[pair.mask == 0], pair.before[pair.mask == 0])
        tiny_build.check_edit_mask(pair)
        w = parent.w_before.astype(np.float32)
        w = w + t * (parent.w_after.astype(np.float32) - w)
        np.testing.assert_allclose(pair.w_after.astype(np.float32), w, atol=2e-3)


def test_stored_latents_and_noise_render_to_the_stored_images_to_the_bit(pairs, augmented):
    network = tiny_pairs.load_models().generator
    for folder in (pairs, augmented):
        for pair in shards.read_pairs(folder, accepted_only=False):
            noise = [torch.from_numpy(level).float() for level in pair.noise]
            ws = [torch.from_numpy(w).float() for w in (pair.w_before, pair.w_after)]
            images = render(network, ws, [noise, noise], tiny_pairs.RENDER_WIDTH)
            for image, stored in zip(images, (pair.generated_before, pair.generated_after), strict=True):
                np.testing.assert_array_equal(tiny_pairs.to_uint8(image), stored)


def test_no_edit_changes_less_than_half_of_it_and_half_less_than_all(augmented):
    by_parent: dict[str, list[Pair]] = {}
    for pair in children(augmented, people=1):
        by_parent.setdefault(pair.record.parents[0].id, []).append(pair)
    for made in by_parent.values():
        change = [np.abs(pair.generated_after.astype(int) - pair.generated_before).mean() for pair in made]
        assert change[0] == 0 < change[1] < change[2]


def test_the_person_between_is_generated_and_carries_both_parents(pairs, augmented):
    prior = tiny_pairs.load_models().instruments.prior
    made = children(augmented, people=2)
    assert made
    assert sorted({pair.record.figures["augmentation_t"] for pair in made}) == [0.5, 1.0]
    for pair in made:
        a, b = (shards.read_pair(pairs, parent.id) for parent in pair.record.parents)
        np.testing.assert_array_equal(pair.before, pair.generated_before)
        between, *parents = (prior.whiten(torch.from_numpy(p.w_before).float()) for p in (pair, a, b))
        torch.testing.assert_close(between, (parents[0] + parents[1]) / 2, atol=0.05, rtol=0)
        for level in pair.noise[1:]:
            assert np.sqrt(np.square(level.astype(float)).mean()) == pytest.approx(1, abs=1e-2)
        assert a.record.params["color"] == b.record.params["color"] == pair.record.params["color"]
        assert a.record.source_digest != b.record.source_digest
        assert pair.record.split == a.record.split == b.record.split
        assert pair.record.source_digest == f"{a.record.source_digest}+{b.record.source_digest}"


def test_both_sides_of_the_split_stay_apart(augmented):
    """The last person alone is on the val side: nobody is mixed with it, and its degrees stay there."""
    for pair in shards.read_pairs(augmented, accepted_only=False, parts=()):
        assert pair.record.split == ("val" if pair.record.portrait == "portrait_2" else "train")
        assert len(pair.record.parents) == 1 or "portrait_2" not in pair.record.portrait


def test_the_degree_is_the_measured_one(augmented):
    measured = [pair.record for pair in children(augmented, people=1)]
    for record in measured:
        assert record.degree == pytest.approx(min(max(record.figures["degree"], 0), 1))
    assert any(abs(record.degree - record.params["intensity"]) > 0.02 for record in measured)


@pytest.mark.slow
def test_the_number_of_workers_does_not_show(pairs, augmented, tmp_path):
    planned = plan(pairs, tmp_path / "more", grid=1)
    parents = tiny_pairs.TinyParents(**vars(planned.parents))
    assert parents.likenesses(2, lambda event: None).keys() == {
        record.portrait_digest for record in parents.records.values()
    }
    assert build_pairs(replace(planned, parents=parents), workers=2).complete
    assert digests(tmp_path / "more") == digests(augmented)


@pytest.mark.slow
def test_an_interrupted_augmentation_goes_on_and_ends_with_the_same_bytes(pairs, augmented, tmp_path):
    class Killed(Exception):
        pass

    def stop(event: BuildEvent) -> None:
        if event.shard:
            raise Killed

    out = tmp_path / "more"
    with pytest.raises(Killed):
        build_pairs(plan(pairs, out, grid=1), on_event=stop)
    first = out / "pairs-00000.tar"
    written = first.stat().st_mtime_ns
    assert build_pairs(plan(pairs, out, grid=1)).complete
    assert digests(out) == digests(augmented)
    assert first.stat().st_mtime_ns == written


@pytest.mark.parametrize("changed", [{"steps": (0.5, 1.0)}, {"seed": 5}, {"grid": 0}, {"shard_size": 6}])
def test_a_folder_with_another_augmentation_is_refused(pairs, augmented, changed):
    before = digests(augmented)
    with pytest.raises(InputError, match="choose another --out"):
        build_pairs(plan(pairs, augmented, **({"grid": 1} | changed)))
    assert digests(augmented) == before


def test_only_accepted_pairs_are_parents(tmp_path):
    tiny_pairs.write_pairs(tmp_path / "pairs", accepted=lambda number: number == 3)
    assert plan(tmp_path / "pairs", tmp_path / "more", grid=3).children == tuple(Child(("000003",), t) for t in STEPS)


def test_the_gate_of_the_recipe_judges_and_what_is_no_face_is_refused(tmp_path):
    gate = {"color_delta_e": {"max": 0.0}, "reconstruction_steps": {"max": 1}}
    tiny_pairs.write_pairs(tmp_path / "pairs", recipe=tiny_pairs.RECIPE | {"gate": gate})
    out = tmp_path / "more"
    build_pairs(plan(tmp_path / "pairs", out, steps=[1.0]))
    reasons = [record.reasons for record in shards.read_index(out, accepted_only=False)]
    assert all(len(found) == 1 and found[0].startswith("color_delta_e") for found in reasons)

    parent = next(shards.read_pairs(tmp_path / "pairs"))
    black = replace(parent, before=np.zeros_like(parent.before))
    shards.write_shard(tmp_path / "pairs" / "pairs-00000.tar", [black])
    build_pairs(plan(tmp_path / "pairs", tmp_path / "black", steps=[1.0]))
    (record,) = shards.read_index(tmp_path / "black", accepted_only=False)
    assert record.reasons == ["portrait_0: no face found"]


@pytest.mark.slow
def test_i2i_and_inspect_read_what_augment_wrote(pairs, tmp_path, monkeypatch, capsys):
    def run(arguments: str) -> tuple[int, str, str]:
        generator = (
            []
            if "--generator" in arguments or "augment" not in arguments
            else ["--generator", tiny_build.generator_file()]
        )
        monkeypatch.setattr(sys, "argv", ["datagen", *arguments.split(), *generator])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        return (int(caught.value.code or 0), *capsys.readouterr())

    more, one, other = tmp_path / "more", tiny_build.generator_file(), tiny_build.generator_file(seed=1)
    code, out, _ = run(f"augment {pairs} --generator {one} --out {more} --steps .25 --grid 1 --workers 1 --device cpu")
    records = shards.read_index(more, accepted_only=False)
    assert (code, out.split(" pairs")[0]) == (0, f"{more}: {len(records)}")
    assert {r.id for r in read_records(more, "train")} | {r.id for r in read_records(more, "val")} == {
        r.id for r in records if r.accepted
    }
    assert run(f"inspect {more} --out {tmp_path}/page.html")[0] == 0
    assert run(f"export {more} --out {tmp_path}/plain")[0] == 0
    for arguments, problem in {
        f"augment {more} --out {tmp_path}/x": "holds augmented pairs; augment the build",
        f"augment {pairs} --out {pairs}": "choose another --out",
        f"augment {pairs} --out {tmp_path}/x --steps half": "--steps half: must be numbers between 0 and 1",
        f"augment {pairs} --out {tmp_path}/x --steps 2": "must lie between 0 and 1",
        f"augment {pairs} --out {tmp_path}/x --steps none": "nothing to make",
        f"augment {pairs} --out {tmp_path}/x --generator {other}": "is not the one that the pairs were made with",
    }.items():
        code, _, err = run(
            f"{arguments} --workers 1 --device cpu" + ("" if other in arguments else f" --generator {one}")
        )
        assert code == 2
        assert problem in err
        assert err.count("\n") == 1


def test_a_folder_without_a_build_is_one_clear_line(pairs, tmp_path):
    copy = tmp_path / "pairs"
    copy.mkdir()
    (copy / "pairs-00000.tar").write_bytes((pairs / "pairs-00000.tar").read_bytes())
    with pytest.raises(InputError, match=r"build\.json: cannot be read .* build them again"):
        plan(copy, tmp_path / "more")
    noted = {"recipe": {"feature": "hair_color"}, "instruments": {"perceptual_weights": "0" * 64}}
    (copy / "build.json").write_text(json.dumps(noted))
    (tmp_path / "other.pth").write_bytes(b"other weights")
    with pytest.raises(InputError, match=r"other\.pth: are not the perceptual weights that"):
        plan(copy, tmp_path / "more", perceptual_weights=str(tmp_path / "other.pth"))
    (copy / "build.json").write_text(json.dumps({"recipe": {"feature": "hair_color"}, "instruments": {}}))
    assert plan(copy, tmp_path / "more").job_count == 18


def test_bounds_that_ask_for_the_change_move_with_its_share_and_others_stay():
    gate = {
        "degree": Threshold(min=0.8, max=1.2),
        "left": Threshold(max=0.1),
        "detail_kept": Threshold(min=0.5),
        "face_score": Threshold(min=0.7),
        "inversion_psnr": Threshold(min=20),
    }
    unchanged = {"degree": 0.0, "left": 1.0, "detail_kept": 1.0}
    half = interpolation.gate_for_share(gate, 0.5, unchanged)
    assert half["degree"].min == pytest.approx(0.36)
    assert half["left"].max == pytest.approx(1 - 0.45 * 0.9)
    assert (half["degree"].max, half["detail_kept"].min, half["face_score"].min) == (1.2, 0.5, 0.7)
    assert "inversion_psnr" not in half
    whole = interpolation.gate_for_share(gate, 1.0, unchanged)
    assert whole["degree"].min == pytest.approx(0.8)
    assert whole["left"].max == pytest.approx(0.1)
    none = interpolation.gate_for_share(gate, 0.0, unchanged)
    assert set(none) == {"detail_kept", "face_score"}
    broken = interpolation.gate_for_share(gate, 0.5, {"degree": float("nan")})
    assert set(interpolation.gate_for_share(gate, 0.0, {"degree": float("nan")})) == {
        "left",
        "detail_kept",
        "face_score",
    }
    assert broken["degree"].min == 0.8


@pytest.mark.parametrize("full", [0.25, 0.35, 0.4])
def test_what_an_edit_must_explain_grows_with_the_square_of_its_share(full):
    edit = np.sin(np.arange(4000) * 0.7)
    rest = np.cos(np.arange(4000) * 1.3) * np.sqrt((1 - full) / full)
    for t in (0.1, 0.25, 0.5, 1.0):
        change = t * edit + rest
        explained = 1 - np.square(change - t * edit).sum() / np.square(change).sum()
        bound = interpolation.gate_for_share({"brows_explained": Threshold(min=full)}, t, {"brows_explained": 0.0})
        assert bound["brows_explained"].min == pytest.approx(explained, rel=0.1)
    assert interpolation.share_explained(full, 1.0) == pytest.approx(full)
    assert 0 < interpolation.share_explained(full, 0.1) < 0.012


def test_an_accepted_parent_s_child_is_not_refused_for_whom_the_feature_applies_to(tmp_path):
    folder = tmp_path / "pairs"
    tiny_pairs.write_pairs(folder, limits={"min_hair_share": 0.9})
    assert build_pairs(plan(folder, tmp_path / "more", steps=(0.5,))).complete
    made = children(tmp_path / "more", people=1)
    assert made
    assert all(pair.after is not None for pair in made)
    assert {pair.record.params["min_hair_share"] for pair in made} == {0.9}


def test_limits_are_loosened_to_the_end_of_their_range_and_nothing_else():
    from stylepairs.datagen.features import density, load_feature, smile

    asked = density.Params(strength=0.5).model_dump()
    loose = density.Params.model_validate(interpolation.without_limits(asked, density.Params))
    assert (loose.min_scalp, loose.max_scalp, loose.strength) == (0, 1, 0.5)
    assert 0 < loose.min_found < 1e-300  # it must be above 0
    loose = smile.Params.model_validate(interpolation.without_limits(smile.Params().model_dump(), smile.Params))
    assert loose.min_curve < -1e9 < 1e9 < loose.max_curve
    both = load_feature("bangs+hair_color").Params
    loose = both.model_validate(interpolation.without_limits(both().model_dump(), both))
    assert (loose.bangs.max_hat, loose.bangs.style) == (1, "full")
    assert loose.hair_color.min_hair_share == 0


def test_mixed_parameters_average_fractions_and_keep_the_rest():
    one = {"hair_color": {"color": "red", "intensity": 1.0}, "bangs": {"length": 0.2, "seed": 3, "intensity": 0.5}}
    other = {"hair_color": {"color": "red", "intensity": 0.5}, "bangs": {"length": 0.6, "seed": 3, "intensity": 0.5}}
    mixed = interpolation.mixed_params([one, other])
    assert mixed == {
        "hair_color": {"color": "red", "intensity": 0.75},
        "bangs": {"length": pytest.approx(0.4), "seed": 3, "intensity": 0.5},
    }
    assert interpolation.with_share(mixed, 0.5)["bangs"]["intensity"] == 0.25
    assert interpolation.kind_of(one) == interpolation.kind_of(other)
    assert interpolation.kind_of(one) != interpolation.kind_of(one | {"bangs": {"length": 0.2, "seed": 4}})


@pytest.mark.parametrize(
    ("name", "param"), [("hairline", "shift"), ("eyes", "size"), ("smile", "smile"), ("face_shape", "jaw")]
)
def test_half_of_a_raising_and_half_of_a_lowering_are_not_mixed(name, param):
    model = load_feature(name).Params
    more, less, half = (model(**{param: value}).model_dump(mode="json") for value in (0.1, -0.1, 0.05))
    assert interpolation.kind_of(more) == interpolation.kind_of(half) != interpolation.kind_of(less)
    model.model_validate(interpolation.mixed_params([more, half]))


def test_no_edit_of_a_parent_at_its_limit_does_not_end_the_augmentation(tmp_path, monkeypatch):
    folder = tmp_path / "pairs"
    tiny_pairs.write_pairs(folder, limits={"min_hair_share": 0.9})
    measured = []

    def strict(portrait, seen, params):
        measured.append(params.min_hair_share)
        if params.min_hair_share > 0:
            raise SketchRefused(f"{portrait.name}: too little hair")
        return own.measure(portrait, seen, params)

    own, whole = load_feature("hair_color"), augment_plan.load_feature
    monkeypatch.setattr(augment_plan, "load_feature", lambda *a, **k: replace(whole(*a, **k), measure=strict))
    assert build_pairs(plan(folder, tmp_path / "more", steps=(0.0,))).complete
    assert measured
    assert set(measured) == {0.0}


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 3), st.integers(0, 2**31))
def test_mixed_noise_has_unit_variance_or_is_the_noise_itself(count, seed):
    draw = torch.Generator().manual_seed(seed)
    maps = [torch.randn(8, 8, generator=draw) for _ in range(count)]
    mixed = interpolation.mixed_noise(maps)
    if count == 1:
        assert mixed is maps[0]
    else:
        assert float(mixed.square().mean()) == pytest.approx(1, rel=1e-4)


def person(position: float) -> Likeness:
    return Likeness(*(np.full(size, position, np.float32) for size in (136, 3, 256, 8)))


def record(number: int, **changes) -> PairRecord:
    made = PairRecord(
        id=shards.pair_id(number), feature="hair_color", params={"color": "red", "intensity": 1.0}, degree=1.0,
        accepted=True, reasons=[], figures={}, portrait=f"p{number}", portrait_digest=f"{number}", generator_digest="",
        seed=0, code_version="", split="train", source_digest=f"photo {number}",
    )  # fmt: skip
    return replace(made, **changes)


def test_likeness_is_zero_for_the_same_and_grows():
    (far,) = distances(stacked([person(0.5)]), stacked([person(0.5), person(0.6), person(0.9)]))
    assert far[0] == pytest.approx(0, abs=1e-6)
    assert far[0] < far[1] < far[2]


def test_likeness_of_many_is_that_of_each():
    draw = np.random.default_rng(0)
    people = [
        Likeness(*(draw.uniform(0.1, 1, size).astype(np.float32) for size in (136, 3, 256, 8))) for _ in range(300)
    ]
    far = distances(stacked(people[:7]), stacked(people))
    for row, one in zip(far, people, strict=False):
        alone = [distances(stacked([one]), stacked([other]))[0, 0] for other in people]
        np.testing.assert_allclose(row, alone, atol=1e-6)
    latents = np.stack([one.latent for one in people])
    apart = np.sqrt(np.square(latents[:, None] - latents).mean(-1))
    np.testing.assert_allclose(likeness._root_mean_square(latents, latents), apart, atol=1e-6)


def test_partners_are_the_most_alike_of_the_same_kind_side_and_another_photo():
    records = [
        record(0),
        record(1, source_digest="photo 0"),
        record(2, params={"color": "black", "intensity": 1.0}),
        record(3, split="val"),
        *(record(number) for number in range(4, 14)),
    ]
    found = {r.portrait_digest: person(0.3 + int(r.id) / 50) for r in records}
    couples = choose_couples(records, found, 1, seed=0)
    assert choose_couples(records[::-1], found, 1, seed=0) == couples
    assert not {"000002", "000003"} & {id for couple in couples for id in couple}
    assert ("000000", "000001") not in couples
    assert all(abs(int(a) - int(b)) <= 6 for a, b in couples)  # the nearest three of a row
    assert {id for couple in couples for id in couple} == {r.id for r in records} - {"000002", "000003"}
    assert choose_couples(records, found, 1, seed=1) != couples
    assert len(choose_couples(records, found, 2, seed=0)) > len(couples)


def test_pairs_of_both_directions_are_not_mixed():
    records = [record(number, backwards=number % 2 == 0) for number in range(8)]
    found = {r.portrait_digest: person(0.3 + int(r.id) / 50) for r in records}
    couples = choose_couples(records, found, 2, seed=0)
    assert couples
    assert all((int(a) - int(b)) % 2 == 0 for a, b in couples)


def test_a_folder_is_the_same_parents_with_and_without_its_manifest(tmp_path):
    folder = tmp_path / "pairs"
    tiny_pairs.write_pairs(folder)
    pairs = list(shards.read_pairs(folder))
    pairs[0].record.figures["seen_in_one"] = 1.0
    shards.write_shard(folder / shards.shard_name(0), pairs)
    shards.write_manifest(folder)
    planned = plan(folder, tmp_path / "more")
    (folder / shards.MANIFEST).unlink()
    assert plan(folder, tmp_path / "more").inputs == planned.inputs
