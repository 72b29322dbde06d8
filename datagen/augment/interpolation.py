"""Between pairs: latents, noise maps, parameters and the gate's bounds, for a share of an edit or for the person half
way between two."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel

from stylepairs.datagen.build.settings import GateSettings, Threshold
from stylepairs.datagen.pairs.record import Pair
from stylepairs.datagen.reconstruction.prior import WPrior
from stylepairs.datagen.reconstruction.rendering import half
from stylepairs.datagen.shell.errors import InputError

# Figures that are shares of the picture's squared change, and parameters that are limits of whom a feature applies to.
_POWER_SHARES = "explained"
_LIMITS = ("min_", "max_")
# Of the way from no change to a bound: what measuring may be off by.
_SLACK = 0.1


@dataclass(frozen=True)
class Person:
    """Latents w0, w1 [L,C] and noise maps, as stored; photo [H,W,3] uint8, None for one who is on no photo."""

    w0: torch.Tensor
    w1: torch.Tensor
    noise: list[torch.Tensor]
    photo: np.ndarray | None


def person_between(pairs: Sequence[Pair], prior: WPrior, device: str) -> Person:
    """The person of one pair, or the one half way between several, as the portrait shows them. Raises InputError for
    pairs without latents."""
    pairs = [pair.portrait_first() for pair in pairs]
    for pair in pairs:
        if pair.before is None or pair.w_before is None or pair.w_after is None or pair.noise is None:
            raise InputError(f"{pair.record.shard}: pair {pair.record.id} has no latents; build it again")
    before, after = (
        [torch.from_numpy(getattr(pair, name)).float().to(device) for pair in pairs] for name in ("w_before", "w_after")
    )
    levels = zip(*([torch.from_numpy(level).float() for level in pair.noise or []] for pair in pairs), strict=True)
    noise = [half(mixed_noise(level)).to(device) for level in levels]
    photo = pairs[0].before if len(pairs) == 1 else None
    return Person(mixed_latents(before, prior), mixed_latents(after, prior), noise, photo)


def mixed_latents(ws: Sequence[torch.Tensor], prior: WPrior) -> torch.Tensor:
    """The mean of latents [L,C], taken where they are Gaussian, in float16 values; one stays as it is.

    The mean in W itself lies outside the generator's distribution (1.6 to 2.4 by the prior's distance, for parents of
    1.0): W is skewed, and two of its samples meet where it is empty.
    """
    return half(ws[0] if len(ws) == 1 else prior.unwhiten(torch.stack([prior.whiten(w) for w in ws]).mean(0)))


def mixed_noise(maps: Sequence[torch.Tensor]) -> torch.Tensor:
    """The mean of noise maps [r,r], of unit variance again; one map stays as it is."""
    if len(maps) == 1:
        return maps[0]
    mean = torch.stack(list(maps)).mean(0)
    return mean / mean.square().mean().sqrt().clamp_min(1e-6)


def mixed_params(params: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The parameters between: fractions are averaged, nested ones too; all else is the first's (see `kind_of`)."""
    found: dict[str, Any] = {}
    for name, value in params[0].items():
        values = [other[name] for other in params]
        if isinstance(value, Mapping):
            found[name] = mixed_params(values)
        else:
            found[name] = sum(values) / len(values) if isinstance(value, float) else value
    return found


def with_share(params: Mapping[str, Any], t: float) -> dict[str, Any]:
    """The parameters with every intensity, nested ones too, multiplied by t."""
    nested = {name: with_share(value, t) for name, value in params.items() if isinstance(value, Mapping)}
    return {**params, **nested} | ({"intensity": params["intensity"] * t} if "intensity" in params else {})


def without_limits(params: Mapping[str, Any], model: type[BaseModel]) -> dict[str, Any]:
    """The parameters with every limit that decides whom a feature refuses (min_..., max_..., nested ones too) as loose
    as the model allows."""
    found = dict(params)
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            found[name] = without_limits(found.get(name, {}), kind)
        elif name.startswith(_LIMITS):
            found[name] = _loosest(name, field.metadata)
    return found


def kind_of(params: Mapping[str, Any]) -> str:
    """What two pairs' parameters must have in common to be mixed: all that is no fraction, and of fractions
    whether they take away: half of a raising and half of a lowering is no edit."""
    return json.dumps(_without_fractions(params), sort_keys=True)


def gate_for_share(gate: GateSettings, t: float, unchanged: Mapping[str, float]) -> GateSettings:
    """The gate for a share t of the edit. unchanged: the feature's own figures of a pair in which nothing was edited.

    A bound that such a pair would miss asks for the change itself: it moves to t of the way from that pair's figure to
    the bound, less a tenth that measuring may be off by; for what is a share of the picture's squared change see
    `share_explained`. At t = 0 nothing is asked for, and such figures, which may be
    shares of nothing, are not judged. All other bounds stay; those on figures of an optimisation go, for there was
    none.
    """
    moved = {}
    for name, bounds in gate.items():
        own = unchanged.get(name)
        asks = own is not None and _misses(own, bounds)
        if name.startswith(("inversion_", "reconstruction_")) or (asks and t == 0):
            continue
        if name.endswith(_POWER_SHARES) and bounds.min is not None:
            moved[name] = Threshold(min=share_explained(bounds.min, t), max=bounds.max, optional=bounds.optional)
        else:
            moved[name] = bounds if own is None else _moved(bounds, t * (1 + _SLACK) - _SLACK, own)
    return moved


def share_explained(full: float, t: float) -> float:
    """The share of a picture's squared change that an edit done by t has to explain, if the whole edit explains `full`.

    The edit's own change is c t (in root mean square), so c^2 t^2 in square, while the rest, what generator and
    resampling err by, stays: r^2. From full = c^2 / (c^2 + r^2) follows c^2 t^2 / (c^2 t^2 + r^2), about t^2 full for
    small t.
    """
    return full * t * t / (full * t * t + 1 - full) if 0 < full < 1 else full * t * t


def _loosest(name: str, metadata: Sequence[Any]) -> float:
    """The end of a limit's range at which it refuses nobody, infinite where the range is open."""
    inclusive, exclusive, step = ("ge", "gt", math.inf) if name.startswith("min_") else ("le", "lt", -math.inf)
    for bound in metadata:
        if getattr(bound, inclusive, None) is not None:
            return float(getattr(bound, inclusive))
        if getattr(bound, exclusive, None) is not None:
            return math.nextafter(float(getattr(bound, exclusive)), step)
    return -step


def _misses(value: float, bounds: Threshold) -> bool:
    too_low = bounds.min is not None and not value >= bounds.min  # not a number misses, too
    return too_low or (bounds.max is not None and not value <= bounds.max)


def _moved(bounds: Threshold, share: float, own: float) -> Threshold:
    low, high = bounds.min, bounds.max
    if low is not None and own < low:
        low = own + share * (low - own)
    if high is not None and own > high:
        high = own + share * (high - own)
    return Threshold(min=low, max=high, optional=bounds.optional)


def _without_fractions(params: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _kind(value) for name, value in params.items()}


def _kind(value: Any) -> Any:
    if isinstance(value, Mapping):
        return _without_fractions(value)
    return value if not isinstance(value, float) else "less" if value < 0 else ""
