"""The latent methods' benchmark: the search for strengths, figures, intervals, and the table."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace

import latent_methods
import pytest
import torch
from latent_bench import BATCH, EDITS, WATCHED, Look, apart_from, searched
from latent_table import CHANGE, against, interval, summary, table


class Linear:
    """A bench whose score is the picture's mean, in deviations of a tenth."""

    def scores(self, images: torch.Tensor) -> torch.Tensor:
        return (images.mean((1, 2, 3)) / 0.1)[:, None].expand(-1, len(WATCHED))


def found(attribute: str, gains: list[float], bend: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Strengths and scores of people whose picture rises by their gain, and bends by a share of the strength."""

    def render(people, strengths):
        values = torch.tensor(people) * strengths * (1 + bend * strengths.abs())
        return values[:, None, None, None].expand(-1, 3, 4, 4)

    nothing = torch.zeros(len(gains), 3, 4, 4)
    before = Look(nothing, Linear().scores(nothing), nothing, nothing)
    strengths, after = searched(Linear(), attribute, gains, before, render)
    return strengths, after.mean((1, 2, 3)) / 0.1


@pytest.mark.parametrize("attribute", ["smile", "hairline_height"])
@pytest.mark.parametrize("bend", [0.0, 0.4])
def test_each_persons_strength_is_found_at_which_the_score_changed_as_wanted(attribute, bend):
    gains = [0.04 + 0.01 * index for index in range(BATCH + 5)]
    strengths, changes = found(attribute, gains, bend)
    assert changes.tolist() == pytest.approx([CHANGE * EDITS[attribute][0]] * len(gains), rel=0.05)
    if not bend:
        wanted = [EDITS[attribute][0] * 0.1 / gain for gain in gains]
        assert strengths.tolist() == pytest.approx(wanted, rel=0.05)


def test_nothing_more_is_tried_when_all_have_reached_it():
    strengths, _ = found("smile", [0.1, 0.1])
    assert strengths.tolist() == pytest.approx([1.0, 1.0])


def test_an_edit_that_does_not_reach_it_is_taken_where_it_comes_nearest():
    strengths, changes = found("smile", [0.01, 0.1, -0.1, float("nan")])
    assert strengths.tolist() == pytest.approx([3.0, 1.0, 0.0, 0.0])
    assert changes.tolist() == pytest.approx([0.3, 1.0, 0.0, 0.0])


def test_intervals_hold_the_mean():
    assert interval([0.5] * 10, 2) == "0.50 (0.50 to 0.50)"
    assert interval([], 2) == "-"
    low_to_high = interval([0.0, 1.0] * 20, 1)
    assert low_to_high.startswith("0.5 (0.")


def result(method: str, others: list[float], reached: list[float]) -> dict:
    rows = [
        {
            "reached": r,
            "others": o,
            "apart": o / 2,
            "identity": 0.9,
            "outside_db": float("nan"),
            "changes": [0.1] * len(WATCHED),
        }
        for o, r in zip(others, reached, strict=True)
    ]
    return {"method": method, "attribute": "yaw", "people": len(rows), "fit_s": 1.0, "seconds": 0.1, "rows": rows}


def test_figures_are_of_the_people_who_were_changed_as_wanted():
    figures = summary(result("mapper", [0.2, 0.4, 0.0, 9.0], [1.1, 0.9, 0.1, 1.5]))
    assert figures["success"] == "50 %"
    assert figures["others"].startswith("0.30 (")
    assert figures["apart"].startswith("0.15 (")


def test_attributes_of_other_places_are_those_that_share_no_class():
    assert apart_from("fringe") == ["smile", "mouth_open", "eye_opening", "yaw", "pitch", "background_lightness"]
    assert {"skin_lightness", "face_width"} <= set(apart_from("hair_lightness"))


def test_methods_are_compared_on_the_people_whom_both_changed_as_wanted():
    base = result("interfacegan", [0.5, 0.5, 0.5, 0.5], [1.0, 1.0, 0.2, 1.0])
    assert against(result("mapper", [0.3, 9.0, 9.0], [1.0, 0.2, 1.0]), base) == "-0.20 (-0.20 to -0.20)"
    assert against(base, base) == against(result("mapper", [0.3], [1.0]), None) == "-"


def test_the_table_has_a_row_for_each_method_and_attribute(tmp_path: Path):
    for method in ("interfacegan", "mapper"):
        (tmp_path / f"{method}-yaw.json").write_text(json.dumps(result(method, [0.3], [1.1])))
    text = table(tmp_path, list(EDITS), list(latent_methods.METHODS), WATCHED)
    assert text.count("| interfacegan |") == text.count("| mapper |") == 2
    assert "100 %" in text
    assert set(EDITS) <= set(WATCHED)
    assert set(latent_methods.METHODS) >= {"interfacegan", "mapper", "fine_boundary"}


def test_all_people_whom_an_optimisation_edits_are_measured(tmp_path, monkeypatch):
    count = BATCH + 3
    nothing = torch.zeros(count, 3, 4, 4)
    bench = SimpleNamespace(people=list(range(count)), before=Look(nothing, nothing, nothing, nothing))
    monkeypatch.setitem(latent_methods.METHODS, "mask_face_gan", lambda *_: lambda people, _: nothing[: len(people)])
    monkeypatch.setattr(
        latent_methods, "measured", lambda _bench, _attribute, before, after: [len(before.images), len(after)]
    )
    monkeypatch.setattr(latent_methods, "asdict", lambda row: row)
    result = latent_methods.run(bench, "mask_face_gan", "smile", Namespace(out=tmp_path, optimised=count))
    assert result["rows"] == [count, count]


@pytest.mark.parametrize(
    ("option", "said"),
    [
        (["--only", "interfacegan,sefaa"], "--only sefaa: unknown; choose of interfacegan,"),
        (["--attributes", "grin"], "--attributes grin: unknown; choose of fringe,"),
        (["--portraits", "p"], "give both or none"),
    ],
)
def test_unknown_methods_and_attributes_are_named_before_any_work(tmp_path, monkeypatch, capsys, option, said):
    monkeypatch.setattr("sys.argv", ["latent_methods.py", str(tmp_path), "--out", str(tmp_path), *option])
    with pytest.raises(SystemExit, match="2"):
        latent_methods.main()
    assert said in capsys.readouterr().err
