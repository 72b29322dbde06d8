"""Directions: what is added to a latent for one unit of an edit, their files, and how strong a unit is.

A unit is one standard deviation of the direction's score over the generator's samples, so that a strength means the
same for every method.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from stylepairs.datagen.latent.styles import styles_moved
from stylepairs.datagen.shell.decode import Damaged, decode_npy, finite, read_safetensors
from stylepairs.datagen.shell.durable import replace_file, safetensors_bytes, write_bytes
from stylepairs.datagen.shell.errors import InputError, one_line
from stylepairs.datagen.stylegan.generator import Generator

MAX_NPY_BYTES = 64 << 20
NEAR = 0.03  # of a deviation: a unit that is so near to one is taken for it
Score = Callable[[torch.Tensor], torch.Tensor]  # images [N,3,H,W] -> [N]


class EditInfo(BaseModel):
    """What the metadata of an edit's file say; `generator_digest`: of the generator that it was found in."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    generator_digest: str = Field(max_length=100)


Info = TypeVar("Info", bound=EditInfo)


class DirectionInfo(EditInfo):
    """What is known of a direction.

    attribute: the score that it moves, "" for none. layers: rows of W+ that it moves. deviation: what one unit changes
    the score by, its standard deviation over samples; None: the unit is the latent's own. figures: of the fit.
    """

    method: str = Field(max_length=100)
    attribute: str = Field(default="", max_length=500)
    space: Literal["w", "w+", "s"] = "w"
    layers: tuple[int, ...] = ()
    generator_digest: str = Field(default="", max_length=100)
    deviation: float | None = Field(default=None, gt=0)
    figures: dict[str, float] = {}


@dataclass(frozen=True)
class Direction:
    """offsets [L,C]: added to W+ for a strength of 1; styles: added to StyleSpace instead, where it is not empty."""

    offsets: torch.Tensor
    info: DirectionInfo
    styles: dict[str, torch.Tensor] = field(default_factory=dict)

    def times(self, factor: float) -> Direction:
        """The direction with another unit, `factor` of this one's."""
        styles = {name: factor * style for name, style in self.styles.items()}
        return replace(self, offsets=factor * self.offsets, styles=styles)

    def move(self, ws: torch.Tensor, strength: torch.Tensor | float) -> torch.Tensor:
        """ws [N,L,C] moved by strength ([N] or one for all)."""
        return ws + torch.as_tensor(strength, device=ws.device).reshape(-1, 1, 1) * self.offsets.to(ws)

    def render(self, generator: Generator, ws: torch.Tensor, strength: torch.Tensor | float) -> torch.Tensor:
        """Images [N,3,H,W] of ws [N,L,C] edited by strength ([N] or one for all)."""
        if not self.styles:
            plain: torch.Tensor = generator.synthesis(self.move(ws, strength))
            return plain
        by = torch.as_tensor(strength, device=ws.device).reshape(-1, 1)
        with styles_moved(generator, {name: by * style.to(ws) for name, style in self.styles.items()}):
            image: torch.Tensor = generator.synthesis(ws)
        return image


def direction_in_w(
    normal: torch.Tensor, generator: Generator, layers: Sequence[int] | None, info: DirectionInfo
) -> Direction:
    """A direction normal [C], the same for the rows `layers` of W+; None: all of them."""
    rows = tuple(range(generator.num_ws)) if layers is None else tuple(layers)
    offsets = torch.zeros(generator.num_ws, len(normal))
    offsets[list(rows)] = normal.float()
    space: Literal["w", "w+"] = "w" if layers is None else "w+"
    return Direction(offsets, info.model_copy(update={"layers": rows, "space": space}))


def parse_layers(text: str, num_ws: int) -> list[int] | None:
    """Rows of W+ from "all", "0-3" or "0-2,5"; None for all. Raises InputError."""
    if text == "all":
        return None
    try:
        ends = [
            (int(low), int(high if dash else low))
            for low, dash, high in (part.partition("-") for part in text.split(","))
        ]
    except ValueError:
        raise InputError(f"--layers {text}: must be all, or rows as 0-3,5") from None
    if any(not 0 <= low <= high < num_ws for low, high in ends):
        raise InputError(f"--layers {text}: the generator has rows 0 to {num_ws - 1}, ranges go upwards")
    return sorted({row for low, high in ends for row in range(low, high + 1)})


@torch.no_grad()
def calibrated(
    direction: Direction, generator: Generator, score: Score, ws: torch.Tensor, deviation: float, rounds: int = 4
) -> Direction:
    """The direction with a unit that moves the score of ws [N,L,C] by `deviation` on average, from -1 to 1 as a half.

    Where longer steps move the score no farther, since the faces come apart, a unit is the most that they reach, and
    the figure `reached` says what share of the deviation that is. Raises InputError where it does not move at all.
    """
    best, reached, lengthened = direction, math.inf, False
    for _ in range(rounds):
        up, down = (score(direction.render(generator, ws, sign).clamp(-1, 1)) for sign in (1.0, -1.0))
        response = float((up - down)[(up - down).isfinite()].mean()) / 2 / deviation
        share, sign = abs(response), math.copysign(1, response)
        if not share > 1e-3:
            raise InputError(f"{direction.info.attribute}: the direction does not move it; fit it on more samples")
        missed, least = abs(share - 1), abs(reached - 1)
        if lengthened and missed >= least:
            break
        if missed <= least:
            best, reached = direction.times(sign), share
        if missed < NEAR:
            break
        # Not all at once: the score saturates where the step is far too long.
        factor = min(max(1 / share, 0.2), 5.0)
        direction, lengthened = direction.times(factor * sign), factor > 1
    changed: dict[str, Any] = {"deviation": deviation}
    if abs(reached - 1) >= NEAR:
        changed = {"deviation": reached * deviation, "figures": best.info.figures | {"reached": reached}}
    return replace(best, info=best.info.model_copy(update=changed))


def save_direction(path: Path, direction: Direction) -> None:
    """Write `.safetensors` with the metadata inside; a `.npy` in the public format of boundaries, [1,C] or [1,L,C], of
    unit length in the root mean square over the rows. Raises InputError."""
    if path.suffix.lower() == ".npy":
        _save_boundary(path, direction)
        return
    tensors = {"offsets": direction.offsets.contiguous()}
    tensors |= {f"styles.{name}": style.contiguous() for name, style in direction.styles.items()}
    content = safetensors_bytes(tensors, metadata={"direction": direction.info.model_dump_json()})
    write_bytes(path, content)


def boundary_length(direction: Direction) -> float:
    """Root mean square over the rows of a direction's length: what its unit is of that of its boundary file."""
    return float(direction.offsets.norm(dim=1).square().mean().sqrt())


def load_direction(path: Path, generator: Generator, digest: str) -> Direction:
    """The direction in a file that `save_direction` or another project wrote, for this generator.

    A `.npy` boundary of shape [1,C], [C], [1,L,C] or [L,C] has its own unit. Raises InputError: no such file, damaged,
    of another generator.
    """
    shape = (generator.num_ws, generator.config.w_dim)
    if path.suffix.lower() == ".npy":
        try:
            return _read_boundary(path, shape)
        except Damaged as error:
            raise InputError(f"{path}: cannot be read as a direction ({one_line(error)})") from None
    tensors, info = read_described(path, "direction", DirectionInfo, digest)
    offsets = tensors.pop("offsets", torch.zeros(0))
    known = {name: value.shape for name, value in generator.synthesis.state_dict().items()}
    styles = {name.removeprefix("styles."): value.float() for name, value in tensors.items()}
    sound = tuple(offsets.shape) == shape and all(
        known.get(f"{name}.affine.bias") == style.shape for name, style in styles.items()
    )
    if not sound or not finite((offsets, *styles.values())):
        raise InputError(f"{path}: its numbers do not fit the generator it names; fit it again")
    return Direction(offsets.float(), info, styles)


def read_described(path: Path, kind: str, description: type[Info], digest: str) -> tuple[dict[str, torch.Tensor], Info]:
    """Tensors of a safetensors file and what its metadata says of them under `kind`. Raises InputError: no such file,
    damaged, of a generator with another digest."""
    try:
        tensors, metadata = read_safetensors(path)
        info = description.model_validate_json(metadata.get(kind, ""))
    except (Damaged, ValidationError) as error:
        raise InputError(f"{path}: cannot be read as a {kind} ({one_line(error)})") from None
    if info.generator_digest != digest:
        raise InputError(f"{path}: is of another generator; name that one with --generator")
    return tensors, info


def _save_boundary(path: Path, direction: Direction) -> None:
    if direction.styles:
        raise InputError(f"{path}: channels of styles are no boundary; write a .safetensors")
    rows = direction.offsets / max(boundary_length(direction), 1e-12)
    alike = bool(torch.allclose(rows, rows[:1].expand_as(rows), atol=1e-6))
    array = (rows[:1] if alike else rows[None]).numpy()
    replace_file(path, lambda file: np.save(file, array, allow_pickle=False))


def _read_boundary(path: Path, shape: tuple[int, int]) -> Direction:
    """Raises Damaged."""
    array = decode_npy(path, MAX_NPY_BYTES)
    known = array.shape in {(*ahead, *own) for own in (shape, (1, shape[1]), (shape[1],)) for ahead in ((), (1,))}
    rows = array.reshape(-1, shape[1]) if known else np.zeros((0, 0))
    if not len(rows) or not np.issubdtype(array.dtype, np.floating) or not np.isfinite(array).all():
        raise Damaged(f"of shape {list(array.shape)}, the generator's latents are {list(shape)}")
    offsets = torch.from_numpy(rows.astype(np.float32)).expand(shape).clone()
    space: Literal["w", "w+"] = "w" if len(rows) == 1 else "w+"
    return Direction(offsets, DirectionInfo(method="boundary file", space=space, layers=tuple(range(shape[0]))))
