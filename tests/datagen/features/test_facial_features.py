"""Facial features: whose they are, what stays of the face, how they are lit, and what is refused."""

from __future__ import annotations

import itertools
import tomllib
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.warped_faces import face
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from stylepairs.datagen.build.quality import judge
from stylepairs.datagen.build.settings import BuildRecipe
from stylepairs.datagen.features import facial_features, load_feature
from stylepairs.datagen.images.colors import lab_to_srgb, srgb_to_lab
from stylepairs.datagen.images.files import to_uint8, write_png
from stylepairs.datagen.portraits.portrait import CLASS, Portrait
from stylepairs.datagen.portraits.sketch import AnalysedPair, SketchRefused
from stylepairs.datagen.recipe import load_recipe
from stylepairs.datagen.shell.errors import InputError
from stylepairs.datagen.sketching.face import references
from stylepairs.datagen.sketching.tools.warp import point_flow, warp_image, warp_label

SIZE = 96
PHOTO = Path(__file__).parents[3] / "recipes/photos/train/portrait_001.jpg"
OWN_GATE = ("degree", "appearance_gain", "seam_delta_e", "outside_delta_e")


def other_face(name: str, lips=(-0.2, -0.7, 0.2), wall=0.5, light: float = 0.0) -> Portrait:
    """Another person: larger eyes and mouth, lips and wall of other colours, `light` more lightness all over."""
    drawn = face(SIZE, seed=3)
    points = drawn.points68.clone()
    for rows, factor in ((slice(36, 42), 1.25), (slice(42, 48), 1.25), (slice(48, 68), 1.2)):
        middle = points[rows].mean(0)
        points[rows] = middle + factor * (points[rows] - middle)
    flow = point_flow(SIZE, drawn.points68[17:], points[17:])
    image, label = warp_image(drawn.image, flow), warp_label(drawn.label, flow)
    image = torch.where(label == CLASS["u_lip"], torch.tensor(lips)[:, None, None] + 0 * image, image)
    image = torch.where(label == CLASS["background"], wall + 0 * image, image)
    lab = srgb_to_lab(image)
    lab[0] += light
    image = lab_to_srgb(lab).clamp(-1, 1)
    return Portrait(name, image, label, drawn.hair, points, name.ljust(64, "0"))


def write_folder(folder: Path, portraits: list[Portrait]) -> str:
    for portrait in portraits:
        write_png(folder / "aligned" / f"{portrait.name}.png", to_uint8(portrait.image))
        write_png(folder / "label" / f"{portrait.name}.png", portrait.label.numpy())
        write_png(folder / "hair" / f"{portrait.name}.png", to_uint8(portrait.hair))
    np.savez(
        folder / "landmarks.npz",
        name=np.array([portrait.name for portrait in portraits]),
        points68=np.stack([portrait.points68.numpy() for portrait in portraits]),
        source_to_aligned=np.stack([np.eye(2, 3)] * len(portraits)),
    )
    return str(folder)


@pytest.fixture(scope="module")
def portrait():
    return face(SIZE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, portrait):
    """Three others, and the portrait itself: once as it is, once under another name."""
    others = [other_face("red", (0.5, -0.8, -0.8)), other_face("blue"), other_face("dim", wall=-0.6, light=-14)]
    mine = [portrait, replace(portrait, name="again")]
    return write_folder(tmp_path_factory.mktemp("references"), [*others, *mine])


def params(folder, name="blue", **changes):
    return facial_features.Params(reference=f"{folder}/{name}", **{"parts": "mouth", **changes})


def measured(portrait, image, wanted, points=None):
    after = replace(portrait, image=image, points68=portrait.points68 if points is None else points)
    return facial_features.measure(portrait, AnalysedPair(portrait, after), wanted)


@settings(max_examples=8, deadline=None)
@given(
    parts=st.sets(st.sampled_from(facial_features.PARTS), min_size=1).map(sorted),
    adopt=st.floats(0, 1),
    intensity=st.floats(0.05, 1),
)
def test_nothing_changes_outside_the_edit_mask(portrait, folder, parts, adopt, intensity):
    wanted = params(folder, parts=tuple(parts), adopt=adopt, intensity=intensity)
    sketch = facial_features.sketch(portrait, wanted)
    outside = (sketch.edit_mask == 0).expand(3, -1, -1)
    assert torch.equal(sketch.image[outside], portrait.image[outside])
    assert 0.01 < float((sketch.edit_mask > 0.5).float().mean()) < 0.25
    assert (sketch.edit_mask + sketch.keep_mask).max() <= 1 + 1e-6
    assert sketch.image.isfinite().all()
    assert sketch.sketch_detail == 1
    untouched = [row for part in set(facial_features.PARTS) - set(parts) for piece, _ in facial_features.PIECES[part]
                 for row in piece]  # fmt: skip
    assert torch.equal(sketch.points68[untouched], portrait.points68[untouched])


def test_parts_that_were_not_asked_for_stay(portrait, folder):
    sketch = facial_features.sketch(portrait, params(folder, parts="mouth"))
    for name in ("l_eye", "r_eye", "l_brow", "r_brow"):
        assert float(sketch.edit_mask[0][portrait.label == CLASS[name]].max()) == 0


def test_intensity_zero_is_the_portrait(portrait, folder):
    sketch = facial_features.sketch(portrait, params(folder, intensity=0.0))
    assert torch.equal(sketch.image, portrait.image)
    assert torch.equal(sketch.points68, portrait.points68)


def test_mouth_gets_the_references_shape_and_colour(portrait, folder):
    wanted = params(folder)
    sketch = facial_features.sketch(portrait, wanted)
    figures = measured(portrait, sketch.image, wanted, sketch.points68)
    assert figures["shape_after"] < 0.1 * figures["shape_before"]
    assert figures["appearance_gain"] > 0.95
    assert figures["degree"] == pytest.approx(1, abs=0.01)
    assert figures["others_shift"] == 0
    lips = sketch.image[:, sketch.label == CLASS["u_lip"]].mean(1)
    assert lips[2] > lips[1] + 0.4  # the reference's are violet, its own are red
    width = [float((points[54] - points[48]).norm()) for points in (portrait.points68, sketch.points68)]
    assert width[1] == pytest.approx(1.2 * width[0], rel=0.04)


def test_adopt_zero_keeps_the_shape_and_takes_the_look(portrait, folder):
    sketch = facial_features.sketch(portrait, params(folder, adopt=0.0))
    assert torch.allclose(sketch.points68, portrait.points68)
    lips = sketch.image[:, portrait.label == CLASS["u_lip"]].mean(1)
    assert lips[2] > lips[1] + 0.4


def test_degree_is_none_without_an_edit_and_rises_with_intensity(portrait, folder):
    steps = [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    images = [facial_features.sketch(portrait, params(folder, parts="eyes,mouth", intensity=t)).image for t in steps]
    figures = [measured(portrait, image, params(folder, parts="eyes,mouth")) for image in images]
    degrees = [figure["degree"] for figure in figures]
    assert degrees[0] == pytest.approx(0, abs=1e-6)
    assert figures[0]["appearance_gain"] == pytest.approx(0, abs=1e-3)
    assert all(later > earlier + 0.05 for earlier, later in itertools.pairwise(degrees))
    assert degrees[-1] == pytest.approx(1, abs=0.01)


def test_gate_passes_the_edit_and_fails_none_the_wrong_and_the_unlit_one(portrait, folder):
    gate = load_recipe("facial_features", "datagen", BuildRecipe).gate
    gate = {name: gate[name] for name in OWN_GATE}
    wanted = params(folder, "dim", parts="all")
    good = facial_features.sketch(portrait, wanted)
    reference = facial_features.chosen_reference(portrait, wanted)
    unlit = facial_features._laid_over(portrait, reference, good.points68).image
    wrong = facial_features.sketch(portrait, params(folder, "red", parts="all")).image
    spilt = (good.image + 0.12 * (good.edit_mask == 0)).clamp(-1, 1)
    assert judge(measured(portrait, good.image, wanted), gate)[0]
    for image in (portrait.image, portrait.image.lerp(unlit, good.edit_mask), wrong, spilt):
        assert not judge(measured(portrait, image, wanted), gate)[0]


def test_parts_are_lit_as_the_face_is(portrait, folder):
    sketch = facial_features.sketch(portrait, params(folder, "dim", parts="nose"))
    inside = sketch.edit_mask > 0.9
    own, made = (srgb_to_lab(image)[:1][inside].mean() for image in (portrait.image, sketch.image))
    assert abs(float(own - made)) < 2.5  # the reference is 14 darker
    assert measured(portrait, sketch.image, params(folder, "dim", parts="nose"))["seam_delta_e"] < 1


def test_drawn_reference_is_another_person_and_always_the_same(portrait, folder):
    wanted = [facial_features.Params(references=folder, parts="mouth", seed=seed) for seed in range(12)]
    drawn = [facial_features.chosen_reference(portrait, each).name for each in wanted]
    assert set(drawn) <= {"red", "blue", "dim"}
    assert len(set(drawn)) > 1
    assert drawn == [facial_features.chosen_reference(portrait, each).name for each in wanted]


def test_settled_parameters_name_what_was_drawn(portrait, folder):
    wanted = facial_features.Params(references=folder, parts="mouth", seed=2)
    settled = facial_features.settled(portrait, wanted)
    assert settled.reference == f"{folder}/{facial_features.chosen_reference(portrait, wanted).name}"
    sketches = [facial_features.sketch(portrait, each).image for each in (wanted, settled)]
    assert torch.equal(*sketches)
    both = load_feature("hair_color+facial_features")
    combined = both.Params.model_validate({"facial_features": wanted.model_dump()})
    assert both.settled(portrait, combined).facial_features == settled
    assert facial_features.settled(portrait, settled) is settled


def test_references_near_in_pose_and_tone_rank_first(portrait):
    own = references.likeness(portrait)
    turned = portrait.points68.clone()
    turned[27:36, 0] += 0.03 * SIZE
    near, dim, aside = (
        references.distance(own, references.likeness(other))
        for other in (other_face("x"), other_face("y", light=-14), replace(portrait, points68=turned))
    )
    assert near < dim
    assert near < aside


def test_where_no_reference_is_near_the_nearest_alone_may_be_farther(portrait, folder):
    draw = partial(references.draw_reference, portrait, folder, usable=lambda candidate: True)
    nearest = draw(seed=0, max_distance=0.0, farthest=np.inf)
    assert nearest is not None
    own = references.likeness(portrait)
    apart = {name: references.distance(own, references._likeness_of(folder, name)) for name in ranked(folder, portrait)}
    assert apart[nearest.name] == min(apart.values())
    assert all(draw(seed=seed, max_distance=0.0, farthest=np.inf) is nearest for seed in range(8))
    assert draw(seed=0, max_distance=0.0) is None


def ranked(folder, portrait):
    """Who may be drawn for the portrait: neither itself nor its picture under another name."""
    alone = (references.draw_reference(portrait, folder, seed, lambda candidate: True) for seed in range(40))
    return {one.name for one in alone if one is not None}


def test_successive_seeds_draw_different_references_as_long_as_there_are_some(portrait, folder):
    count = len(ranked(folder, portrait))
    drawn = [
        references.draw_reference(portrait, folder, seed, lambda candidate: True).name for seed in range(count + 1)
    ]
    assert count > 1
    assert len(set(drawn[:count])) == count
    assert drawn[count] == drawn[0]


def test_reference_of_a_pair_can_be_told(portrait, folder):
    figures = [measured(portrait, portrait.image, params(folder, name)) for name in ("blue", "red")]
    ids = [int(figure["reference_id"]) for figure in figures]
    digest = facial_features.chosen_reference(portrait, params(folder)).digest
    assert ids[0] == int(digest[:12], 16) != ids[1]


def test_hidden_parts_are_left_out_where_others_are_seen(portrait, folder):
    hair = portrait.hair.clone()
    left, right = portrait.points68[36:48, 0].min(), portrait.points68[36:48, 0].max()
    top, bottom = portrait.points68[36:48, 1].min(), portrait.points68[36:48, 1].max()
    hair[:, int(top) - 2 : int(bottom) + 3, int(left) - 2 : int(right) + 3] = 1
    over = replace(portrait, hair=hair, digest="over")
    asked = facial_features.Params(parts="eyes,mouth", references=folder)
    with pytest.raises(SketchRefused, match="eyes are hidden"):
        facial_features.settled(over, asked)
    lenient = asked.model_copy(update={"hidden": "leave_out"})
    settled = facial_features.settled(over, lenient)
    assert (settled.parts, settled.hidden) == ("mouth", "refuse")
    alone = facial_features.sketch(over, settled)
    assert torch.equal(facial_features.sketch(over, lenient).image, alone.image)
    kept = AnalysedPair(over, alone.applied_to(over))
    assert facial_features.measure(over, kept, lenient) == facial_features.measure(over, kept, settled)
    assert facial_features.settled(portrait, lenient).parts == "eyes,mouth"
    with pytest.raises(SketchRefused, match="eyes are hidden"):
        facial_features.settled(over, lenient.model_copy(update={"parts": "eyes"}))


def test_hidden_parts_are_refused(portrait, folder):
    fringe = torch.zeros(1, SIZE, SIZE)
    fringe[:, : int(portrait.points68[37, 1]) + 3] = 1
    covered = replace(portrait, hair=fringe)
    with pytest.raises(SketchRefused, match=r"drawn: \d+ % of the eyes are hidden"):
        facial_features.sketch(covered, params(folder, parts="eyes"))
    facial_features.sketch(covered, params(folder, parts="mouth"))
    framed = portrait.image.clone()
    row = int(portrait.points68[36:48, 1].mean())
    framed[:, row - 1 : row + 2, int(portrait.points68[36, 0]) : int(portrait.points68[45, 0])] = -0.9
    with pytest.raises(SketchRefused, match="glasses, or shadows that look like them, hide the nose"):
        facial_features.sketch(replace(portrait, image=framed), params(folder, parts="nose"))


def test_no_reference_that_is_like_the_portrait_is_a_refusal(portrait, tmp_path):
    folder = write_folder(tmp_path, [other_face("night", light=-60)])
    with pytest.raises(SketchRefused, match=r"no portrait of .* is like it and shows its mouth"):
        facial_features.sketch(portrait, facial_features.Params(references=folder, parts="mouth"))


def test_wrong_references_are_one_line(portrait, folder, tmp_path):
    for wrong, problem in (
        ({"reference": f"{folder}/nobody"}, "has no portrait named nobody"),
        ({"reference": str(tmp_path / "missing.jpg")}, "no such photo"),
        ({"references": str(tmp_path)}, "no prepared portraits"),
    ):
        with pytest.raises(InputError, match=problem) as raised:
            facial_features.sketch(portrait, facial_features.Params(**wrong))
        assert "\n" not in str(raised.value)
    blank = tmp_path / "blank.png"
    write_png(blank, np.full((200, 200, 3), 128, np.uint8))
    with pytest.raises(InputError, match="no face found"):
        facial_features.sketch(portrait, facial_features.Params(reference=str(blank)))


def test_reference_photo_is_found_aligned_and_parsed(portrait):
    reference = references.named_reference(str(PHOTO))
    assert reference.size_px == 256
    assert (reference.label == CLASS["nose"]).any()
    assert reference is references.named_reference(str(PHOTO))
    sketch = facial_features.sketch(portrait, facial_features.Params(parts="mouth", reference=str(PHOTO)))
    assert sketch.image.isfinite().all()


def test_params_name_the_parts():
    assert facial_features.Params(parts="mouth, Eyes").parts == "eyes,mouth"
    assert facial_features.Params(parts=("nose",)).names == ("nose",)
    for everything in ("all", "all,eyes"):
        assert facial_features.Params(parts=everything).names == facial_features.PARTS
    for wrong, problem in (("mouht", "did you mean 'mouth'"), ("", "no part is named"), (3, "string")):
        with pytest.raises(ValidationError, match=problem):
            facial_features.Params(parts=wrong)


def test_references_lie_in_the_package_with_their_licence_and_are_small():
    folder = references.BUNDLED_FOLDER
    names = references.reference_names(references.BUNDLED)
    assert len(names) >= 60
    assert {path.stem for path in folder.glob("*/*")} == set(names)
    assert "MIT License" in (folder / "LICENSE").read_text()
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    assert size < 3e6
    portrait = references.named_reference(f"bundled/{names[0]}")
    assert portrait is references.reference_portrait(references.BUNDLED, names[0])
    assert facial_features.can_give(portrait, ("mouth",))


def test_a_wheel_holds_the_references():
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())
    globs = project["tool"]["setuptools"]["package-data"]["stylepairs.datagen"]
    package = references.BUNDLED_FOLDER.parents[1]
    packed = {path for pattern in globs for path in package.glob(pattern) if path.is_file()}
    assert {path for path in references.BUNDLED_FOLDER.rglob("*") if path.is_file()} <= packed
