"""StyleSpace (Wu, Lischinski, Shechtman 2021): single channels of the layers' styles that move one attribute, in one
region.

Published: channels ranked by how far a few dozen positive samples stand out in them, or found local by gradient maps
against a segmentation, on 9088 channels. Here the attribute's own gradient ranks them (the scorer has one), and what a
channel changes in the picture is measured by moving it: `overlap` is the share of that change inside the region.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

from stylepairs.datagen.images.filters import grown
from stylepairs.datagen.latent.directions import Direction, DirectionInfo
from stylepairs.datagen.latent.faces import FaceReader
from stylepairs.datagen.latent.scorers import Scorer
from stylepairs.datagen.latent.styles import rows_for_styles, style_layers, styles_moved, styles_of_latents
from stylepairs.datagen.shell.errors import InputError
from stylepairs.datagen.stylegan.generator import Generator

CANDIDATES = 48
KEPT = 12
LEAST_OVERLAP = 0.5
STEP = 2.0  # standard deviations by which a channel is moved to see what it changes
_OVERLAP_SAMPLES = 6
_GROWN_PX = 4  # of SEEN_PX, by which a region is grown: what an edit moves over its edge still belongs to it


@dataclass(frozen=True)
class Channel:
    """layer and index of a channel; effect: change of the attribute, in its deviations, for one deviation of the
    channel; overlap: share of the picture's change inside the region, NaN where not measured."""

    layer: str
    index: int
    effect: float
    overlap: float = float("nan")


def rank_channels(generator: Generator, scorer: Scorer, ws: torch.Tensor, batch: int = 8) -> list[Channel]:
    """All channels by the size of their effect on the scorer's one attribute, largest first; ws [N,L,C] are samples."""
    deviations = style_deviations(generator, ws)
    gradients: dict[str, list[torch.Tensor]] = {name: [] for name in deviations}
    values = []
    for part in ws.split(batch):
        zero = {name: torch.zeros(len(part), len(d), requires_grad=True) for name, d in deviations.items()}
        with torch.enable_grad(), styles_moved(generator, zero):
            score = scorer(generator.synthesis(part))[:, 0]
            found = torch.autograd.grad(score[score.isfinite()].sum(), list(zero.values()))
        values.append(score.detach())
        for name, gradient in zip(zero, found, strict=True):
            gradients[name].append(gradient * deviations[name])
    known = torch.cat(values)
    spread = known[known.isfinite()].std().clamp_min(1e-9)
    channels = []
    for name, parts in gradients.items():
        effects = torch.cat(parts).mean(0) / spread
        channels += [Channel(name, index, effect) for index, effect in enumerate(effects.tolist())]
    return sorted(channels, key=lambda channel: -abs(channel.effect))


@torch.no_grad()
def measure_overlap(generator: Generator, region: torch.Tensor, direction: Direction, ws: torch.Tensor) -> float:
    """Share of the picture's change inside the region [N,1,H,W] when ws [N,L,C] are moved by +1 and -1."""
    up, down = (direction.render(generator, ws, sign).clamp(-1, 1) for sign in (1.0, -1.0))
    change = (up - down).abs().mean(1, keepdim=True)
    return float((change * region).sum() / change.sum().clamp_min(1e-9))


def fit_channels(
    generator: Generator,
    scorer: Scorer,
    ws: torch.Tensor,
    digest: str,
    least_overlap: float = LEAST_OVERLAP,
    kept: int = KEPT,
) -> tuple[Direction, list[Channel]]:
    """A direction of the `kept` strongest channels that move the attribute and, if it has a region, mostly that region.

    scorer: of one attribute. ws [N,L,C]: samples, a few dozen. Raises InputError where no channel is local enough.
    """
    score, deviations = scorer.scores[0], style_deviations(generator, ws)
    chosen = rank_channels(generator, scorer, ws)[:CANDIDATES]
    if score.classes:
        measured, around = [], ws[:_OVERLAP_SAMPLES]
        with torch.no_grad():
            region = grown_region(scorer.reader, generator.synthesis(around).clamp(-1, 1), score.classes)
        for channel in chosen:
            styles = _styles([channel], deviations)
            alone = Direction(torch.zeros(ws.shape[1:]), DirectionInfo(method="stylespace"), styles)
            overlap = measure_overlap(generator, region, alone, around)
            measured.append(replace(channel, overlap=overlap))
        chosen = [channel for channel in measured if channel.overlap >= least_overlap]
        if not chosen:
            best = max(channel.overlap for channel in measured)
            raise InputError(f"{score.name}: no channel moves mostly its region (best {best:.2f}); lower --overlap")
    styles = _styles(chosen[:kept], deviations, by_effect=True)
    rows, missed = rows_for_styles(generator, styles)
    layers = tuple(layer.row for layer in style_layers(generator) if layer.name in styles)
    info = DirectionInfo(
        method="stylespace",
        attribute=score.name,
        space="s",
        layers=tuple(sorted(set(layers))),
        generator_digest=digest,
        figures={"channels": float(min(kept, len(chosen))), "missed_in_w_plus": missed},
    )
    return Direction(rows, info, styles), chosen[:kept]


def _styles(
    channels: Sequence[Channel], deviations: Mapping[str, torch.Tensor], by_effect: bool = False
) -> dict[str, torch.Tensor]:
    """Offsets of styles: STEP deviations of each channel, or, by its effect, as much as the gradient says: most change
    of the attribute for the least movement."""
    styles = {channel.layer: torch.zeros_like(deviations[channel.layer]) for channel in channels}
    for channel in channels:
        share = channel.effect if by_effect else STEP
        styles[channel.layer][channel.index] = share * deviations[channel.layer][channel.index]
    return styles


@torch.no_grad()
def style_deviations(generator: Generator, ws: torch.Tensor) -> dict[str, torch.Tensor]:
    """Standard deviation [channels] of every layer's styles over ws [N,L,C]."""
    return {name: styles.std(0) for name, styles in styles_of_latents(generator, ws).items()}


def grown_region(reader: FaceReader, image: torch.Tensor, classes: Sequence[str]) -> torch.Tensor:
    """Where the classes are in images [N,3,H,W], grown a little, [N,1,H,W]."""
    wide = grown(reader.read(image).labelled(*classes), _GROWN_PX)
    return F.interpolate(wide, size=image.shape[-2:], mode="bilinear")
