"""A pair's record: its JSON is the same text every time, older ones load, and what cannot be is refused."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import Any

import pytest
from pydantic import ValidationError

from stylepairs.datagen.pairs.record import PairRecord, Parent, decode_record, encode_record, parent_of

RECORD = PairRecord(
    id="000007", feature="hair_color", params={"color": "é", "bangs": {"length": [1, 0.5, None]}}, degree=0.25,
    accepted=False, reasons=["not finite"], figures={"b": 3, "a": float("inf"), "c": float("nan")}, portrait="p",
    portrait_digest="d", generator_digest="g", seed=2**63 - 1, code_version="v", split="val", source_digest="s",
    shard="pairs-00001.tar", parts={"before": (512, 100)},
)  # fmt: skip
TEXT = (
    b'{"accepted": false, "degree": 0.25, "feature": "hair_color", "figures": {"a": null, "b": 3.0, "c": null}, '
    b'"params": {"bangs": {"length": [1, 0.5, null]}, "color": "\\u00e9"}, "provenance": {"code_version": "v", '
    b'"generator_digest": "g", "portrait": "p", "portrait_digest": "d", "seed": 9223372036854775807, '
    b'"source_digest": "s", "split": "val"}, "reasons": ["not finite"]}'
)


def test_the_json_of_a_pair_is_the_same_text_and_reads_back() -> None:
    assert encode_record(RECORD) == TEXT
    assert decode_record(TEXT, "000007", "pairs-00001.tar", {"before": (512, 100)}) == RECORD
    child = replace(RECORD, parents=[parent_of(RECORD), Parent("000008", "x", "")])
    assert child.parents[0] == Parent("000007", "d", "s")
    assert json.loads(encode_record(child))["provenance"]["parents"] == [asdict(parent) for parent in child.parents]
    assert decode_record(encode_record(child), "000007", child.shard, child.parts) == child
    turned = replace(RECORD, backwards=True)
    assert json.loads(encode_record(turned))["provenance"]["backwards"] is True
    assert decode_record(encode_record(turned), "000007", turned.shard, turned.parts) == turned


def test_json_of_older_and_newer_versions_loads() -> None:
    stored = json.loads(TEXT)
    del stored["provenance"]["source_digest"]
    stored |= {"news": 1, "id": "000009", "shard": "pairs-99999.tar"}
    found = decode_record(json.dumps(stored).encode(), "000007", "pairs-00001.tar", {})
    assert found == replace(RECORD, source_digest="", parts={})


@pytest.mark.parametrize(
    "change",
    [
        {"degree": 1.01}, {"degree": -0.01}, {"degree": None}, {"degree": float("nan")}, {"reasons": "x"},
        {"figures": {"a": "x"}}, {"params": []}, {"accepted": 2}, {"feature": "x" * 5000}, {"feature": 1},
        {"provenance": None}, {"provenance": {}},
    ],
)  # fmt: skip
def test_details_that_cannot_be_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        decode_record(json.dumps(json.loads(TEXT) | change).encode(), "000007", "", {})


@pytest.mark.parametrize(
    "change",
    [
        {"split": "both"}, {"seed": 2**63}, {"seed": -1}, {"parents": [{"id": "../x"}]}, {"parents": None},
        {"portrait": None},
    ],
)  # fmt: skip
def test_provenance_that_cannot_be_is_refused(change: dict[str, Any]) -> None:
    stored = json.loads(TEXT)
    stored["provenance"] |= change
    with pytest.raises(ValidationError):
        decode_record(json.dumps(stored).encode(), "000007", "", {})


@pytest.mark.parametrize(
    "change",
    [
        {"id": "7"}, {"id": "0000007\n"}, {"shard": "../pairs-00001.tar"}, {"shard": "pairs-00001.tar\n"},
        {"parts": {"before": (-1, 5)}}, {"parts": {"before": (1, 2, 3)}},
    ],
)  # fmt: skip
def test_places_outside_the_folder_or_the_shard_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        replace(RECORD, **change)
