"""Finished shards of noise, as a build leaves them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from stylepairs.datagen.pairs import shards
from stylepairs.datagen.pairs.record import Pair, PairRecord, split_of


def write_synthetic_pairs(
    directory: Path,
    count: int = 6,
    size_px: int = 16,
    shard_size: int = 4,
    reject_every: int = 3,
    refuse_every: int | None = None,
    params: Sequence[dict[str, Any]] = ({"color": "blond", "intensity": 1.0},),
    figures: dict[str, float] | None = None,
) -> None:
    """A folder of finished shards and their manifest: noise images, the mask a square, every third pair rejected,
    `params` in turn, with `figures` beside their own; of every `refuse_every`-th portrait nothing is made."""
    directory.mkdir(parents=True, exist_ok=True)
    pairs = [
        _synthetic_pair(i, size_px, i % reject_every != reject_every - 1, params[i % len(params)]) for i in range(count)
    ]
    if figures:
        pairs = [replace(p, record=replace(p.record, figures=p.record.figures | figures)) for p in pairs]
    if refuse_every:
        for index in range(0, count, refuse_every):
            record = replace(pairs[index].record, accepted=False, reasons=["no hair"])
            pairs[index] = Pair(record, before=pairs[index].before)
    for start in range(0, count, shard_size):
        shards.write_shard(directory / shards.shard_name(start // shard_size), pairs[start : start + shard_size])
    shards.write_manifest(directory)


def _synthetic_pair(index: int, size_px: int, accepted: bool, params: dict[str, Any]) -> Pair:
    generator = np.random.default_rng(index)
    digest = f"{index:064x}"
    record = PairRecord(
        id=shards.pair_id(index),
        feature="hair_color",
        params=params,
        degree=1.0,
        accepted=accepted,
        reasons=[] if accepted else ["hair_delta_e 20 > 8"],
        figures={"hair_delta_e": 4.0 if accepted else 20.0, "outside_psnr_db": 25.0},
        portrait=f"portrait_{index:03d}",
        portrait_digest=digest,
        generator_digest="0" * 64,
        seed=0,
        code_version="test",
        split=split_of(digest),
    )
    mask = np.zeros((size_px, size_px), np.uint8)
    mask[size_px // 4 : size_px // 2, size_px // 4 : size_px // 2] = 255
    before = generator.integers(0, 256, (size_px, size_px, 3), np.uint8)
    after = np.where(mask[..., None] > 0, 255 - before, before)
    return Pair(
        record, before, after, mask, sketch=after, generated_before=before, generated_after=after,
        w_before=generator.normal(size=(6, 8)).astype(np.float16),
        w_after=generator.normal(size=(6, 8)).astype(np.float16),
        noise=[generator.normal(size=(r, r)).astype(np.float16) for r in (4, 8, 8)],
    )  # fmt: skip
