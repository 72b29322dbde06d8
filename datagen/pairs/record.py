"""What is known of a pair, and its JSON in a shard: checked where it comes from outside, the same text every time."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
from dataclasses import asdict, field
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import AfterValidator, Field, NonNegativeInt, TypeAdapter
from pydantic.dataclasses import dataclass

IMAGES = ("before", "after", "mask", "edit_mask", "sketch", "generated_before", "generated_after")
GREY = ("mask", "edit_mask")
PARTS = (*IMAGES, "latents", "noise")
VAL_PERCENT = 10
# Of a record in a shard's JSON: how the pair was made, nested there under this name.
PROVENANCE = (
    "portrait", "portrait_digest", "source_digest", "generator_digest", "seed", "code_version", "split", "method",
    "backwards", "parents", "origin",
)  # fmt: skip
# Of a record, but not in the JSON: where the pair lies.
_PLACE = ("id", "shard", "parts")

PairId = Annotated[str, Field(pattern=r"^[0-9]{6,12}$")]
ShardName = Annotated[str, Field(pattern=r"^(pairs-[0-9]{5,9}\.tar)?$")]
MAX_TEXT = 4096
_Text = Annotated[str, Field(max_length=MAX_TEXT)]
_Figure = Annotated[float | None, AfterValidator(lambda value: value if math.isfinite(value or 0.0) else None)]


@dataclass(frozen=True)
class Parent:
    """A pair that an augmented pair was made from."""

    id: PairId
    portrait_digest: _Text
    source_digest: _Text


@dataclass(frozen=True)
class PairRecord:
    """What is known of a pair besides its pixels; pydantic's ValidationError where a value cannot be.

    figures: None where a figure was not finite. source_digest: of the photo that the portrait was cut from; "" where it
    is not known; of several, "a+b". method: how the edit was made in the generator, "" for reconstruction. backwards:
    the before half was edited, and the after half is the portrait. parents: of an augmented pair, those that it was
    made from. origin: of an imported one, its files and what was done to lay them over each other; of one whose hair
    was recoloured, the colour. parts: name -> (offset, bytes) in the shard.
    """

    id: PairId
    feature: _Text
    params: dict[str, Any]
    degree: Annotated[float, Field(ge=0, le=1)]
    accepted: bool
    reasons: list[str]
    figures: dict[str, _Figure]
    portrait: _Text
    portrait_digest: _Text
    generator_digest: _Text
    seed: Annotated[int, Field(ge=0, lt=2**63)]
    code_version: _Text
    split: Literal["train", "val"]
    source_digest: _Text = ""
    method: _Text = ""
    backwards: bool = False
    parents: list[Parent] = field(default_factory=list)
    origin: Annotated[dict[_Text, _Text], Field(max_length=32)] = field(default_factory=dict)
    shard: ShardName = ""
    parts: dict[str, tuple[NonNegativeInt, NonNegativeInt]] = field(default_factory=dict)

    @property
    def reason_kinds(self) -> list[str]:
        """Why it was rejected, by what the reasons have in common with those of other pairs."""
        return [reason_kind(reason, self.portrait) for reason in self.reasons]


@dataclasses.dataclass(frozen=True)
class Pair:
    """A pair's pixels and latents; what was not asked for, or does not exist for a rejected pair, is None.

    before, after, sketch, generated_before, generated_after [H,W,3] uint8 RGB; mask [H,W] uint8, 0 where both halves
    are the same to the bit; edit_mask [H,W] uint8, how far each pixel is edited, as the sketch has it; w_before,
    w_after [L,C] float16; noise: list of [r,r] float16 maps, in the order of the generator's layers.
    """

    record: PairRecord
    before: np.ndarray | None = None
    after: np.ndarray | None = None
    mask: np.ndarray | None = None
    sketch: np.ndarray | None = None
    generated_before: np.ndarray | None = None
    generated_after: np.ndarray | None = None
    w_before: np.ndarray | None = None
    w_after: np.ndarray | None = None
    noise: list[np.ndarray] | None = None
    edit_mask: np.ndarray | None = None

    def turned(self) -> Pair:
        """The pair the other way round."""
        record = dataclasses.replace(self.record, backwards=not self.record.backwards)
        return dataclasses.replace(
            self,
            record=record,
            before=self.after,
            after=self.before,
            generated_before=self.generated_after,
            generated_after=self.generated_before,
            w_before=self.w_after,
            w_after=self.w_before,
        )

    def portrait_first(self) -> Pair:
        """The pair with its portrait as the before half, as it was made."""
        return self.turned() if self.record.backwards else self


RECORD = TypeAdapter(PairRecord)
OBJECT = TypeAdapter(dict[str, Any])


def reason_kind(reason: str, portrait: str) -> str:
    """What a reason has in common with others: "color_delta_e 12.3 > 8" is of the kind "color_delta_e > 8"."""
    match = re.fullmatch(r"(\w+) \S+ ([<>] \S+)", reason)
    if match:
        return f"{match[1]} {match[2]}"
    return re.sub(r"\d+(\.\d+)?", "…", reason.removeprefix(f"{portrait}: "))


def encode_record(record: PairRecord) -> bytes:
    """The JSON that a shard holds of a pair."""
    known = {name: value for name, value in asdict(record).items() if name not in _PLACE}
    provenance = {name: known.pop(name) for name in PROVENANCE}
    for name in ("method", "backwards", "parents", "origin"):  # most pairs have none
        if not provenance[name]:
            del provenance[name]
    return json.dumps(known | {"provenance": provenance}, sort_keys=True, allow_nan=False).encode()


def decode_record(text: bytes, id: str, shard: str, parts: dict[str, tuple[int, int]]) -> PairRecord:
    """The record whose JSON a shard holds. Raises pydantic's ValidationError."""
    known = OBJECT.validate_json(text)
    known |= OBJECT.validate_python(known.pop("provenance", None))
    return RECORD.validate_python(known | {"id": id, "shard": shard, "parts": parts})


def as_measured(record: PairRecord) -> PairRecord:
    """A record without figures that are not finite: manifests tell them no more from those that were not measured."""
    figures: dict[str, float | None] = {name: value for name, value in record.figures.items() if value is not None}
    return dataclasses.replace(record, figures=figures)


def parent_of(record: PairRecord) -> Parent:
    """What an augmented pair notes of a pair that it was made from."""
    return Parent(id=record.id, portrait_digest=record.portrait_digest, source_digest=record.source_digest)


def split_of(source_digest: str) -> Literal["train", "val"]:
    """ "train" or "val" (about 10 %), by source photo alone: all that is made from a photo stays on one side."""
    bucket = int.from_bytes(hashlib.sha256(f"split:{source_digest}".encode()).digest()[:8], "big") % 100
    return "val" if bucket < VAL_PERCENT else "train"
