"""The inspection page is whole in itself, bounded in size, and safe against names from outside."""

from __future__ import annotations

import html.parser
import re
from dataclasses import replace

import numpy as np
import pytest
from pydantic import ValidationError

from stylepairs.datagen.pairs import inspection, shards
from stylepairs.datagen.pairs.record import Pair, PairRecord, reason_kind
from stylepairs.datagen.shell.errors import InputError


class Checker(html.parser.HTMLParser):
    """Collects tags and attributes, and the tags left open."""

    VOID = frozenset({"meta", "img", "input", "rect", "br", "link"})

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))


@pytest.fixture
def page(tmp_path, synthetic_pairs):
    def make(count: int = 6, **settings) -> str:
        synthetic_pairs(tmp_path / "pairs", count=count)
        inspection.write_report(tmp_path / "pairs", tmp_path / "report.html", **settings)
        return (tmp_path / "report.html").read_text()

    return make


def test_the_page_is_well_formed_and_refers_to_nothing_outside(page):
    checked = Checker(page())
    assert checked.open == []
    for _, attributes in checked.tags:
        for name in ("src", "href", "action"):
            assert attributes.get(name, "data:image/").startswith("data:image/")
    assert not re.search(r"https?://|url\(|@import", page())


def test_all_pairs_are_counted_and_rejections_explained(page):
    text = page(9)
    assert "6 (67 %)" in text
    assert "hair_delta_e &gt; 8" in text
    assert text.count("<article") == 9
    assert text.count('<article class="rejected"') == 3
    assert text.count('alt="difference"') == 9
    assert text.count("<svg") == 1
    assert "The same for all pairs: outside_psnr_db 25." in text


def test_the_page_is_bounded(page):
    text = page(30, max_pairs=8, thumbnail_px=64)
    assert text.count("<article") == 8
    assert "8 of 30 pairs are shown" in text
    assert len(text) < 8 * 30_000 + 20_000


def test_both_accepted_and_rejected_pairs_are_chosen():
    record = PairRecord("000000", "f", {}, 1.0, True, [], {}, "p", "d", "g", 0, "v", "train")
    records = [replace(record, id=f"{i:06d}", accepted=i % 50 != 0) for i in range(1000)]
    chosen = inspection.choose(records, 100)
    assert len(chosen) == 100
    assert sum(not r.accepted for r in chosen) == 20
    assert [r.id for r in chosen] == sorted(r.id for r in chosen)
    many_rejected = [replace(r, accepted=not r.accepted) for r in records]
    assert sum(r.accepted for r in inspection.choose(many_rejected, 100)) == 20
    half = [replace(r, accepted=i % 2 == 0) for i, r in enumerate(records)]
    assert sum(r.accepted for r in inspection.choose(half, 100)) == 50
    assert inspection.choose(records[:5], 100) == records[:5]


def test_hostile_names_are_text_and_nothing_else(tmp_path, synthetic_pairs):
    attack = '"><script>alert(1)</script><img src=x onerror=alert(2)>$title${summary}'
    folder = tmp_path / '"><script>x'
    synthetic_pairs(folder, count=1)
    pair = shards.read_pair(folder, "000000")
    record = replace(
        pair.record, portrait=attack, feature=attack, params={attack: attack}, reasons=[attack], accepted=False,
        figures={attack: 1.0}, code_version=attack, generator_digest=attack,
    )  # fmt: skip
    shards.write_shard(folder / "pairs-00000.tar", [replace(pair, record=record)])
    inspection.write_report(folder, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    checked = Checker(text)
    assert checked.open == []
    assert sum(tag == "script" for tag, _ in checked.tags) == 1
    assert not [attributes for _, attributes in checked.tags if "onerror" in attributes]
    assert "<script>alert" not in text
    with pytest.raises(ValidationError, match="split"):
        replace(record, split=attack)


def test_pairs_without_an_after_image_and_figures_that_are_not_finite_are_shown(tmp_path, synthetic_pairs):
    synthetic_pairs(tmp_path, count=2)
    pairs = list(shards.read_pairs(tmp_path))
    record = replace(pairs[0].record, accepted=False, reasons=["not finite"], figures={"hair_delta_e": float("nan")})
    shards.write_shard(tmp_path / "pairs-00000.tar", [Pair(record, before=pairs[0].before), pairs[1]])
    assert inspection.write_report(tmp_path, tmp_path / "report.html") == 2
    text = (tmp_path / "report.html").read_text()
    assert "no after" in text
    assert "not finite" in text


def test_reasons_are_grouped_by_what_they_have_in_common():
    assert reason_kind("color_delta_e 12.3 > 8", "p") == "color_delta_e > 8"
    assert reason_kind("psnr -1.5e+01 < 20", "p") == "psnr < 20"
    a = reason_kind("p_1: hair covers only 1.3 % of the crop", "p_1")
    assert a == reason_kind("p_22: hair covers only 0.4 % of the crop", "p_22")


def test_large_pictures_become_thumbnails():
    image = np.zeros((512, 512, 3), np.uint8)
    assert len(inspection._data_uri(image, 64)) < 2000


def test_a_folder_without_pairs_is_one_clear_line(tmp_path):
    with pytest.raises(InputError, match="no finished shard"):
        inspection.write_report(tmp_path, tmp_path / "report.html")


def test_pairs_can_be_filtered_by_feature_parameter_and_degree(tmp_path, synthetic_pairs):
    synthetic_pairs(tmp_path / "pairs", count=4, shard_size=4)
    pairs = list(shards.read_pairs(tmp_path / "pairs", accepted_only=False))
    changes = [
        {"feature": "bangs", "params": {"style": "full", "length": 0.5}, "degree": 0.25},
        {"params": {"color": "red", "intensity": 1.0}},
        {"params": {"bangs": {"length": 0.5}, "hair_color": {"color": "<i>"}}, "feature": "bangs+hair_color"},
        {"parents": [{"id": "000007", "portrait_digest": "", "source_digest": ""}]},
    ]
    changed = [replace(p, record=replace(p.record, **change)) for p, change in zip(pairs, changes, strict=True)]
    shards.write_shard(tmp_path / "pairs" / "pairs-00000.tar", changed)
    inspection.write_report(tmp_path / "pairs", tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    options = re.findall(r"<option>(.*?)</option>", text)
    assert {"bangs", "bangs+hair_color", "hair_color"} <= set(options)
    assert {"style full", "length 0.5", "color red", "bangs.length 0.5", "hair_color.color &lt;i&gt;"} <= set(options)
    cards = [attributes for tag, attributes in Checker(text).tags if tag == "article"]
    assert [card["data-degree"] for card in cards] == ["0.2500", "1.0000", "1.0000", "1.0000"]
    assert [card["data-feature"] for card in cards] == ["bangs", "hair_color", "bangs+hair_color", "hair_color"]
    assert cards[2]["data-params"].splitlines() == ["bangs.length 0.5", "hair_color.color <i>"]
    assert "made of 000007" in text


def test_parameters_that_are_the_same_everywhere_are_no_choice():
    record = PairRecord("000000", "f", {"color": "red"}, 1.0, True, [], {}, "p", "d", "g", 0, "v", "train")
    records = [replace(record, params={"color": "red", "length": i / 1000}) for i in range(1000)]
    assert len(inspection.varying_params(records)) <= inspection.MOST_OPTIONS
    assert not any("color" in value for value in inspection.varying_params(records))


def test_a_histogram_stacks_rejected_on_accepted_and_fills_its_height():
    drawn = inspection._histogram("a", [0.0, 1.0, 1.0], [1.0, 0.5])
    bars = re.findall(r'class="(yes|no)" x="([\d.]+)" y="([\d.]+)" width="9.0" height="([\d.]+)"', drawn)
    assert bars == [
        ("yes", "0.0", "42.7", "21.3"),
        ("no", "120.0", "42.7", "21.3"),
        ("yes", "230.0", "21.3", "42.7"),
        ("no", "230.0", "0.0", "21.3"),
    ]
    assert "<b>1</b>" in drawn
    assert inspection._histogram("close", [1.0], [1.0 + 2**-52]).count("<rect") == 2
