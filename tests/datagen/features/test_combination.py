"""Several features in one pair: each is made on what the one before left, and judged by itself."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from stylepairs.datagen.build.combined_recipe import load_combined_recipe
from stylepairs.datagen.build.draws import combinations
from stylepairs.datagen.compositing.compose import compose
from stylepairs.datagen.features import hair_color, load_feature
from stylepairs.datagen.features.combination import combine
from stylepairs.datagen.features.feature import Feature
from stylepairs.datagen.portraits.portrait import CLASS, Portrait
from stylepairs.datagen.portraits.sketch import AnalysedPair, Sketch, SketchRefused
from stylepairs.datagen.reconstruction.settings import NEAR
from stylepairs.datagen.shell.errors import InputError

SIZE = 32


class FringeParams(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    rows: int = 4
    intensity: float = 1.0


def fringe_sketch(portrait: Portrait, params: FringeParams) -> Sketch:
    """Copies the hair's colour into the rows below it."""
    if portrait.hair.sum() == 0:
        raise SketchRefused(f"{portrait.name}: no hair")
    mask = torch.zeros(1, SIZE, SIZE)
    mask[:, 8 : 8 + params.rows, 8:24] = 1
    color = portrait.image[:, 0, 0].view(3, 1, 1)
    hair = torch.maximum(portrait.hair, mask)
    image = torch.where(mask > 0, color, portrait.image)
    return Sketch(image, mask, 1 - mask, reference_px=16, sketch_detail=1.0, hair=hair)


def fringe_measure(portrait: Portrait, seen: AnalysedPair, params: FringeParams) -> dict[str, float]:
    wanted = fringe_sketch(portrait, params)
    now, before = (
        (look.image - wanted.image).abs().mean(0) * wanted.edit_mask[0] for look in (seen.after, seen.before)
    )
    missing = float(now.sum() / before.sum())
    return {"missing": missing, "degree": 1 - missing}


FRINGE = Feature(FringeParams, fringe_sketch, fringe_measure)


@pytest.fixture
def portrait() -> Portrait:
    label = torch.full((SIZE, SIZE), CLASS["skin"], dtype=torch.uint8)
    label[:8] = CLASS["hair"]
    image = torch.full((3, SIZE, SIZE), 0.5)
    image[:, :8] = -0.6
    image[2, -8:] = -0.5  # in black and white no hair is recoloured
    points = torch.rand(68, 2, generator=torch.Generator().manual_seed(0)) * 8 + 20
    return Portrait("portrait_001", image, label, (label == CLASS["hair"])[None].float(), points, "a" * 64)


@pytest.fixture
def both():
    return combine({"fringe": FRINGE, "hair_color": Feature.of(hair_color)})


def test_the_second_sketch_is_made_on_what_the_first_left(portrait, both):
    sketch = both.sketch(portrait, both.Params(hair_color={"color": "blond"}))
    blond, fringe = sketch.image[:, 0, 0], sketch.image[:, 9, 16]
    assert (fringe - blond).abs().max() < 0.02, "the fringe is recoloured with the hair"
    assert (blond - portrait.image[:, 0, 0]).abs().max() > 0.3
    assert len(sketch.parts) == 2
    assert torch.equal(sketch.hair, sketch.parts[0].hair)


def test_masks_are_united_and_the_finer_reference_holds(portrait, both):
    sketch = both.sketch(portrait, both.Params())
    for part in sketch.parts:
        assert (sketch.edit_mask >= part.edit_mask).all()
        assert (sketch.keep_mask <= part.keep_mask).all()
    assert sketch.reference_px == 16
    assert sketch.space == "rgb"
    assert torch.equal(sketch.image[:, 30], portrait.image[:, 30])


def test_a_pair_that_meets_the_sketch_is_composed_with_both_edits(portrait, both):
    sketch = both.sketch(portrait, both.Params(hair_color={"color": "blond"}))
    result = SimpleNamespace(generated_before=portrait.image, generated_after=sketch.image)
    composed = compose(portrait, result, sketch)
    assert (composed.after - sketch.image).abs().mean() < 0.05
    outside = (composed.mask == 0).expand(3, -1, -1)
    assert torch.equal(composed.after[outside], portrait.image[outside])


def test_each_part_is_judged_against_the_portrait_with_the_other_edits_made(portrait, both):
    params = both.Params(hair_color={"color": "blond"})
    sketch = both.sketch(portrait, params)
    reached = both.measure(portrait, AnalysedPair(portrait, sketch.applied_to(portrait)), params)
    assert reached["fringe_missing"] < 0.05, "a fringe in the new colour is a fringe"
    assert reached["hair_color_color_delta_e"] < 2
    assert reached["degree"] > 0.9
    only_fringe = sketch.parts[0].applied_to(portrait)
    half = both.measure(portrait, AnalysedPair(portrait, only_fringe), params)
    assert half["hair_color_color_delta_e"] > 15
    only_color = sketch.parts[1]
    mask = (portrait.hair > 0).float()
    recoloured = replace(portrait, image=torch.lerp(portrait.image, only_color.image, mask))
    other_half = both.measure(portrait, AnalysedPair(portrait, recoloured), params)
    assert other_half["hair_color_color_delta_e"] < 8
    assert other_half["fringe_missing"] == pytest.approx(1, abs=0.05)
    nothing = both.measure(portrait, AnalysedPair(portrait, portrait), params)
    assert nothing["fringe_missing"] == pytest.approx(1, abs=0.05)
    assert nothing["degree"] < 0.2


def test_a_part_that_does_not_apply_refuses_the_pair(portrait, both):
    bald = Portrait(**{**vars(portrait), "hair": torch.zeros_like(portrait.hair)})
    with pytest.raises(SketchRefused, match="no hair"):
        both.sketch(bald, both.Params())


def test_params_are_nested_and_checked(both):
    assert both.Params().hair_color.color == "blond"
    with pytest.raises(ValidationError, match="blnd"):
        both.Params(hair_color={"color": "blnd"})
    with pytest.raises(ValidationError):
        both.Params(bangs={})


def test_a_feature_cannot_be_combined_with_itself():
    with pytest.raises(InputError, match="hair_color is named twice"):
        load_feature("hair_color+hair_color")
    with pytest.raises(InputError, match="unknown"):
        load_feature("hair_color+hiar")


def test_choices_of_nested_params_are_all_combined():
    found = combinations({"a": {"x": [1, 2], "y": 3}, "b": {"z": ["u", "v"]}})
    assert len(found) == 4
    assert found[1] == {"a": {"x": 1, "y": 3}, "b": {"z": "v"}}


def test_recipes_are_combined_with_their_gates(tmp_path):
    other = {
        "feature": "bangs",
        "params": {"length": [0.5, 1.0]},
        "gate": {"coverage": {"min": 0.7}, "prior_after": {"max": 2.5}, "outside_psnr_db": {"max": 90.0}},
    }
    path = tmp_path / "bangs.yaml"
    path.write_text(yaml.safe_dump({"datagen": other}))
    combined = load_combined_recipe([str(path), "hair_color"], ["bangs.length=0.5"])
    assert combined.feature == "bangs+hair_color"
    assert combined.params["bangs"] == {"length": 0.5}
    assert combined.pairs_per_portrait == 8, "that of the recipe with the most choices"
    assert combined.gate["bangs_coverage"].min == 0.7
    assert combined.gate["hair_color_color_delta_e"].max == 8.0
    assert combined.gate["prior_after"].max == 2.5, "the wider bound holds"
    assert "outside_psnr_db" not in combined.gate, "one bounds it below, the other above: nothing holds for both"
    with pytest.raises(InputError, match="'hair_color' is there already"):
        load_combined_recipe(["hair_color", "hair_color"])


def test_a_feature_s_own_figure_keeps_its_name_though_it_begins_as_one_of_every_pair_does():
    gate = load_combined_recipe(["hair_color", "facial_features"]).gate
    assert gate["facial_features_outside_delta_e"].max == 0.5
    assert "outside_delta_e" not in gate, "nothing measures it: the build would stop"
    assert {"outside_psnr_db", "identity_efficientnet_lite0", "prior_after"} <= gate.keys()


def test_a_recipe_may_leave_the_detail_of_all_parts_to_the_generator(portrait, both):
    sketch = both.sketch(portrait, both.Params())
    assert [part.sketch_detail for part in sketch.parts] == [1.0, 0.0]
    assert [part.sketch_detail for part in sketch.with_detail(0.25).parts] == [0.25, 0.0]
    assert [part.photo_detail for part in sketch.with_detail(0.0).parts] == [0.0, 1.0]


def test_what_no_recipe_set_stays_unset_so_that_an_encoders_start_is_near():
    combined = load_combined_recipe(["hair_color", "bangs"])
    alone = load_combined_recipe(["hair_color"])
    assert combined.inversion.near().steps == alone.inversion.near().steps == NEAR["steps"]
    assert combined.reconstruction.near() == alone.reconstruction.near() != alone.reconstruction
    assert load_combined_recipe(["hair_color", "bangs"], ["inversion.steps=77"]).inversion.near().steps == 77


def test_a_recipe_that_does_without_an_encoder_decides_for_all_of_them():
    assert load_combined_recipe(["hair_color", "bangs"]).encoder == "auto"
    assert load_combined_recipe(["hair_color", "brows"]).encoder == "none"
    assert load_combined_recipe(["hair_color", "brows"], ["encoder=auto"]).encoder == "auto"
