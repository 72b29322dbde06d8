"""The latent methods' benchmark: the search for a strength, intervals, and the table."""

from __future__ import annotations

import json
import types

import latent_methods
import pytest
import torch
from latent_methods import CHANGE, EDITS, WATCHED, interval, searched, table


class Linear:
    """A bench whose score is the picture's mean, in deviations of a tenth."""

    def scores(self, images: torch.Tensor) -> torch.Tensor:
        return (images.mean((1, 2, 3)) / 0.1)[:, None].expand(-1, len(WATCHED))


@pytest.mark.parametrize("attribute", ["smile", "hairline_height"])
@pytest.mark.parametrize("gain", [0.07, 0.1, 0.31])
def test_the_strength_is_found_at_which_the_score_changed_as_wanted(attribute, gain):
    before, sign = torch.zeros(3, 4, 4), EDITS[attribute][0]
    person = types.SimpleNamespace()
    strength, after = searched(
        Linear(), attribute, person, before, lambda _, s: torch.full((3, 4, 4), gain * s), once=False
    )
    assert float(after.mean()) / 0.1 * sign == pytest.approx(CHANGE, rel=0.25)
    assert strength == pytest.approx(sign * 0.1 / gain, rel=0.25)


def test_an_edit_that_does_not_reach_it_is_taken_where_it_comes_nearest():
    before = torch.zeros(3, 4, 4)
    _, after = searched(Linear(), "smile", None, before, lambda _, s: torch.full((3, 4, 4), 0.01 * s), once=False)
    assert float(after.mean()) == pytest.approx(0.03)


def test_intervals_hold_the_mean():
    assert interval([0.5] * 10, 2) == "0.50 (0.50 to 0.50)"
    assert interval([], 2) == "-"
    low_to_high = interval([0.0, 1.0] * 20, 1)
    assert low_to_high.startswith("0.5 (0.")


def test_the_table_has_a_row_for_each_method_and_attribute(tmp_path):
    rows = [
        {"reached": 1.1, "others": 0.3, "identity": 0.9, "outside_db": float("nan"), "changes": [0.1] * len(WATCHED)}
    ]
    for method in ("interfacegan", "mapper"):
        result = {"method": method, "attribute": "yaw", "people": 1, "fit_s": 1.0, "seconds": 0.1, "rows": rows}
        (tmp_path / f"{method}-yaw.json").write_text(json.dumps(result))
    text = table(tmp_path)
    assert text.count("| interfacegan |") == text.count("| mapper |") == 2
    assert "100 %" in text
    assert set(EDITS) <= set(WATCHED)
    assert set(latent_methods.METHODS) >= {"interfacegan", "mapper", "fine_boundary"}
