"""What an editor is told: its style code, a colour by its feature's names, and the kinds of edit that pairs show."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from stylepairs.datagen.shell.errors import InputError
from stylepairs.i2i.models.conditions import (
    asks_for_color,
    color_or,
    decode_color,
    has_sides,
    is_told,
    kinds_for,
    kinds_of,
    style_channels,
    style_in_light,
    style_of,
    wanted_lab,
)


def test_style_code_is_the_wanted_colour() -> None:
    torch.testing.assert_close(decode_color(style_of("color", {"color": "blond"})), wanted_lab("blond"))
    assert style_of("none", {}).shape == (0,)
    with pytest.raises(InputError, match="no color"):
        style_of("color", {})
    for feature in ("hair_color", "lips"):  # as damaged pairs may have it
        assert not is_told("color", {"color": None}, {}, feature)


def test_a_colour_is_told_as_its_feature_names_it_and_beside_it_what_else_differs() -> None:
    rows = [{"color": "red", "fullness": 0.5}, {"color": "own", "fullness": -0.1}]
    assert kinds_for("color", rows) == {}
    kinds = kinds_for("color_and_params", rows)
    assert kinds == {"fullness": [-0.1, 0.5]}
    assert style_channels("color_and_params", kinds) == 4
    red, own = (style_of("color_and_params", row, kinds, "lips") for row in rows)
    lips, hair = (style_of("color", rows[0], feature=feature) for feature in ("lips", None))
    torch.testing.assert_close(red, torch.cat([lips, torch.ones(1)]))
    assert (lips - hair).abs().max() > 0.1
    assert (bool(asks_for_color(red)), bool(asks_for_color(own))) == (True, False)
    stays = torch.tensor([40.0, 20.0, 5.0])
    assert torch.equal(color_or(torch.stack([red, own]), stays)[1], stays)
    assert torch.equal(style_in_light("color_and_params", own, 0.5), own)
    dark = style_in_light("color_and_params", red, 0.5)
    assert dark[0] < red[0]
    assert dark[3] == red[3]
    told = {**rows[0], "fullness": 0.7}, {"fullness": 0.1}, rows[1]
    assert [is_told("color_and_params", each, kinds, "lips") for each in told] == [False, False, True]


def test_kinds_are_what_differs_between_pairs() -> None:
    rows = [
        {"style": "full", "length": 0.5, "seed": 1, "intensity": 1.0, "deep": {"soft": True}},
        {"style": "side_left", "length": 1.0, "seed": 1, "intensity": 0.5, "deep": {"soft": False}},
    ]
    kinds = kinds_of(rows)
    assert kinds == {"deep.soft": [False, True], "length": [0.5, 1.0], "style": ["full", "side_left"]}
    assert style_channels("params", kinds) == 5
    assert style_of("params", rows[1], kinds).tolist() == [1, 0, 1, 0, 1]
    assert style_of("params", rows[0] | {"length": 0.75}, kinds).tolist() == [0, 1, 0, 1, 0]
    assert has_sides(rows)
    assert not has_sides([{"style": "full", "length": 0.5}, {"style": "wispy"}])
    with pytest.raises(InputError, match="style 'curtain': this model was trained on full, side_left"):
        style_of("params", rows[0] | {"style": "curtain"}, kinds)
    with pytest.raises(InputError, match=r"length 2: this model was trained on 0\.5 to 1"):
        style_of("params", rows[0] | {"length": 2}, kinds)


def test_the_ends_of_a_range_are_taken_as_they_are_told() -> None:
    kinds = kinds_of([{"shift": -0.28372619}, {"shift": 2 / 3}])
    for told, code in (("-0.283726", -1), ("0.666667", 1)):
        with pytest.raises(InputError, match=r"trained on -0\.283726 to 0\.666667"):
            style_of("params", {"shift": 2 * float(told)}, kinds)
        assert style_of("params", {"shift": float(told)}, kinds) == pytest.approx(code, abs=1e-5)


@pytest.mark.parametrize("named", [{"part": "Left brow"}, {"part": "nose,left_eye"}, {"deep": {"right_px": 3}}])
def test_a_side_may_be_named_in_any_words_and_by_a_parameter_itself(named: dict[str, Any]) -> None:
    assert has_sides([{}, named])
    assert not has_sides([{"part": "leftover", "bright": 1.0}])


def test_a_region_of_the_users_lies_where_it_lies() -> None:
    assert has_sides([{"region": None}, {"bangs": {"region": [[0.2, 0.2], [0.4, 0.2], [0.3, 0.3]]}}])
    assert not has_sides([{"region": None, "region_share": 0.5}])


def test_names_and_truth_values_of_one_parameter_are_told_apart() -> None:
    rows = [{"soft": value} for value in ("very", True, False, "True")]
    assert kinds_of(rows) == kinds_of(rows[::-1]) == {"soft": [False, True, "True", "very"]}


def test_pairs_of_one_kind_have_an_empty_code() -> None:
    kinds = kinds_of([{"style": "full", "note": None}] * 3)
    assert kinds == {}
    assert style_of("params", {"style": "anything"}, kinds).shape == (0,)
    assert style_channels("params", kinds) == 0
