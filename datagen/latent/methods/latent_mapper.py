"""Latent-to-latent mapper (Khodadadeh and others, WACV 2022): one network that edits any of K attributes in one pass,
by a vector of wanted changes, trained end to end through the frozen generator.

Published: attribute regression, identity and "nothing asked, nothing changed" losses on triplets without labels (a
latent, another whose attributes are wanted, what comes out); weights and steps are not. Here the regression is the
scorer itself, wanted are changes in deviations of each score, 0 for what is to stay; the map is f(w, t) - f(w, 0), so
nothing asked is nothing changed exactly; it starts at the linear solution (the smallest move that a linear regression
of the scores on w says makes the wanted changes and no other), which a CPU's few steps then improve on; identity is the
cosine of deep features, and a plain norm holds the latent near.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import nn

from stylepairs.datagen.encoders.run_file import RunFile
from stylepairs.datagen.images.perceptual import Perceptual
from stylepairs.datagen.latent.directions import EditInfo, read_described
from stylepairs.datagen.latent.samples import Samples
from stylepairs.datagen.latent.scorers import Scorer
from stylepairs.datagen.portraits.portrait import CLASS
from stylepairs.datagen.shell.decode import Damaged, finite, read_safetensors
from stylepairs.datagen.shell.durable import safetensors_bytes, write_bytes
from stylepairs.datagen.shell.errors import InputError, nearest
from stylepairs.datagen.shell.randomness import random_number
from stylepairs.datagen.stylegan.generator import Generator

HELD = 0.1  # of the samples are kept to check
RIDGE = 0.05  # of the samples' number, for the linear start
# Of the scores' own products: without it attributes that go together are parted at any price. At 0.001 a fringe that
# leaves the hairline where it is (they correlate by -0.9) takes 9 deviations of the latents, at 0.03 it takes 4.
COUPLED = 0.03
MOST_ASKED = 2.5  # deviations; farther targets are cut
_SAVE_EVERY = 50


class MapperInfo(EditInfo):
    """What is known of a mapper. deviations: of each attribute's score over the samples, the unit of changes; frozen:
    classes of the picture that it learned to leave."""

    attributes: tuple[str, ...] = Field(min_length=1, max_length=1000)
    deviations: tuple[float, ...]
    width: int = Field(gt=0, le=8192)
    frozen: tuple[str, ...] = ()
    steps: int = Field(default=0, ge=0)


class MapperSettings(BaseModel):
    """How a mapper is trained. asked: how many attributes a triplet changes at most; identity, near: weights."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    steps: int = Field(default=400, ge=1)
    batch: int = Field(default=6, ge=1)
    learning_rate: float = Field(default=3e-4, gt=0)
    width: int = Field(default=256, ge=8)
    asked: int = Field(default=2, ge=1)
    identity: float = Field(default=1.0, ge=0)
    near: float = Field(default=0.05, ge=0)
    frozen: tuple[str, ...] = ()
    frozen_weight: float = Field(default=5.0, ge=0)
    seed: int = 0


class LatentMapper(nn.Module):
    """(w [N,C], changes [N,K] in deviations) -> w [N,C]."""

    mean: torch.Tensor
    deviation: torch.Tensor

    def __init__(self, w_dim: int, attributes: int, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(w_dim))
        self.register_buffer("deviation", torch.ones(w_dim))
        self.linear = nn.Linear(attributes, w_dim, bias=False)
        layers = nn.Linear(w_dim + attributes, width), nn.LeakyReLU(0.2), nn.Linear(width, width), nn.LeakyReLU(0.2)
        last = nn.Linear(width, w_dim)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.body = nn.Sequential(*layers, last)

    def shift(self, w: torch.Tensor, change: torch.Tensor) -> torch.Tensor:
        """What is added to w [N,C], in deviations of W's entries."""
        place = (w - self.mean) / self.deviation
        with_it, without = (self.body(torch.cat([place, t], 1)) for t in (change, torch.zeros_like(change)))
        moved: torch.Tensor = self.linear(change) + with_it - without
        return moved

    def forward(self, w: torch.Tensor, change: torch.Tensor) -> torch.Tensor:
        moved: torch.Tensor = w + self.shift(w, change) * self.deviation
        return moved


@dataclass(frozen=True)
class Mapper:
    """A trained mapper and what it is of."""

    network: LatentMapper
    info: MapperInfo

    def move(self, ws: torch.Tensor, change: torch.Tensor) -> torch.Tensor:
        """ws [N,L,C] with the attributes changed by change [N,K] or [K], in deviations: every row moves as the mean row
        would."""
        mean = ws.mean(1)
        asked = change.to(ws).expand(len(ws), -1)
        moved: torch.Tensor = ws + (self.network(mean, asked) - mean)[:, None]
        return moved

    def change(self, **wanted: float) -> torch.Tensor:
        """The vector [K] of the wanted changes by name. Raises InputError for an attribute that it does not know."""
        unknown = [name for name in wanted if name not in self.info.attributes]
        if unknown:
            raise InputError(f"{unknown[0]}: the mapper changes {', '.join(self.info.attributes)}")
        return torch.tensor([wanted.get(name, 0.0) for name in self.info.attributes])


@dataclass(frozen=True)
class AttributeEdit:
    """One attribute of a mapper as an edit with a strength, as a Direction is one."""

    mapper: Mapper
    attribute: str

    @torch.no_grad()
    def move(self, ws: torch.Tensor, strength: torch.Tensor | float) -> torch.Tensor:
        """See Direction.move."""
        one = self.mapper.change(**{self.attribute: 1.0})
        return self.mapper.move(ws, torch.as_tensor(strength).reshape(-1, 1) * one)

    def render(self, generator: Generator, ws: torch.Tensor, strength: torch.Tensor | float) -> torch.Tensor:
        """See Direction.render."""
        image: torch.Tensor = generator.synthesis(self.move(ws, strength))
        return image


def linear_start(samples: Samples, attributes: tuple[str, ...]) -> tuple[LatentMapper, torch.Tensor]:
    """A mapper that is the linear solution alone, of width 1, and the deviations [K] of the scores."""
    scores = torch.stack([samples.scores[name] for name in attributes], 1)
    known = scores.isfinite().all(1)
    if int(known.sum()) < 4 * samples.w.shape[1]:
        raise InputError(f"{int(known.sum())} samples have all scores; at least {4 * samples.w.shape[1]} are needed")
    w, scores = samples.w[known], scores[known]
    deviations = scores.std(0)
    if bool((deviations < 1e-6).any()):
        name = attributes[int(deviations.argmin())]
        raise InputError(f"{name}: is the same in all samples, so that nothing can be learned of it; leave it out")
    mapper = LatentMapper(w.shape[1], len(attributes), 1)
    mapper.mean.copy_(w.mean(0))
    mapper.deviation.copy_(w.std(0).clamp_min(1e-4))
    place = ((w - mapper.mean) / mapper.deviation).double()
    wanted = ((scores - scores.mean(0)) / deviations).double()
    gram = place.T @ place + RIDGE * len(w) * torch.eye(w.shape[1], dtype=torch.float64)
    slopes = torch.linalg.solve(gram, place.T @ wanted)  # [C,K]: score = place @ slopes
    # Smallest by the samples' own spread: directions in which faces vary are cheap.
    cheap = place.T @ place / len(w)
    across = cheap @ slopes
    ridge = COUPLED * torch.eye(len(attributes), dtype=torch.float64)
    mapper.linear.weight.data.copy_(across @ torch.linalg.inv(slopes.T @ across + ridge))
    return mapper, deviations


def train_mapper(
    generator: Generator,
    digest: str,
    samples: Samples,
    scorer: Scorer,
    perceptual: Perceptual,
    settings: MapperSettings,
    state: RunFile | None = None,
    on_step: Callable[[int, float], None] = lambda step, loss: None,
) -> Mapper:
    """Train a mapper of the scorer's attributes on 90 % of the samples, end to end through the generator.

    state: a file that a stopped run goes on from, and that is gone at the end. Each step's triplets depend on the seed
    and the step alone. Raises InputError: a state of another run, scores that the samples have not, or that no sample
    varies in, no scores, unknown classes.
    """
    attributes = tuple(scorer.names)
    if not attributes:
        raise InputError("no attributes; name the scores that the mapper is to change")
    for name in attributes:
        samples.scored(name)
    for name in settings.frozen:
        if name not in CLASS:
            raise InputError(f"frozen {name!r}: no class of the label map{nearest(name, CLASS, ', '.join(CLASS))}")
    start, deviations = linear_start(samples, attributes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        network = LatentMapper(generator.config.w_dim, len(attributes), settings.width)
    for name in ("mean", "deviation"):
        getattr(network, name).copy_(getattr(start, name))
    network.linear.weight.data.copy_(start.linear.weight.data)
    known = tuple(deviations.tolist())
    info = MapperInfo(
        attributes=attributes, deviations=known, generator_digest=digest, width=settings.width, frozen=settings.frozen,
        steps=settings.steps,
    )  # fmt: skip
    optimiser = torch.optim.Adam(network.parameters(), settings.learning_rate, betas=(0.9, 0.99))
    fit_on, _ = split(samples)
    run = {"mapper": network}, {"adam": optimiser}, settings.model_dump_json(), settings.steps
    for step in range(settings.steps) if state is None else state.steps(*run, _SAVE_EVERY):
        for group in optimiser.param_groups:
            group["lr"] = settings.learning_rate * min(1.0, 2 * (1 - step / settings.steps))
        w, change = triplets(samples, fit_on, attributes, deviations, settings, step)
        loss = _loss(generator, scorer, perceptual, network, w, change, deviations, settings)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        on_step(step + 1, float(loss.detach()))
    return Mapper(network.eval().requires_grad_(False), info)


def split(samples: Samples) -> tuple[torch.Tensor, torch.Tensor]:
    """Indices of the samples to fit on, and of the last tenth, kept to check."""
    count = len(samples.w)
    cut = count - max(1, round(HELD * count))
    return torch.arange(cut), torch.arange(cut, count)


def triplets(
    samples: Samples,
    rows: torch.Tensor,
    attributes: tuple[str, ...],
    deviations: torch.Tensor,
    settings: MapperSettings,
    step: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents [N,C] and changes [N,K] in deviations: towards the attributes of other samples, for a few of them."""
    draw = torch.Generator().manual_seed(random_number("mapper", settings.seed, step) >> 1)
    here, there = (rows[torch.randint(len(rows), (settings.batch,), generator=draw)] for _ in range(2))
    scores = torch.stack([samples.scores[name] for name in attributes], 1)
    change = ((scores[there] - scores[here]) / deviations).nan_to_num(0.0).clamp(-MOST_ASKED, MOST_ASKED)
    order = torch.rand(settings.batch, len(attributes), generator=draw).argsort(1)
    count = torch.randint(1, settings.asked + 1, (settings.batch, 1), generator=draw)
    return samples.w[here], change * (order < count)


def _loss(
    generator: Generator,
    scorer: Scorer,
    perceptual: Perceptual,
    network: LatentMapper,
    w: torch.Tensor,
    change: torch.Tensor,
    deviations: torch.Tensor,
    settings: MapperSettings,
) -> torch.Tensor:
    with torch.no_grad():
        before = generator.synthesis(w[:, None].expand(-1, generator.num_ws, -1)).clamp(-1, 1)
        scores = scorer(before)
        features = perceptual.features(before)[-1]
    shift = network.shift(w, change)
    moved = w + shift * network.deviation
    after = generator.synthesis(moved[:, None].expand(-1, generator.num_ws, -1)).clamp(-1, 1)
    error = (scorer(after) - scores) / deviations - change
    error = error[error.isfinite()].clamp(-5, 5).square().sum() / len(w)
    same = 1 - F.cosine_similarity(perceptual.features(after)[-1], features, dim=1).mean()
    loss = error + settings.identity * same + settings.near * shift.square().mean(1).mean()
    if settings.frozen:
        kept = scorer.reader.read(before).labelled(*settings.frozen).detach()
        kept = F.interpolate(kept, size=before.shape[-2:], mode="bilinear", align_corners=False)
        difference = (after - before).abs().mean(1, keepdim=True) * kept
        loss = loss + settings.frozen_weight * difference.sum() / kept.sum().clamp_min(1)
    return loss


def save_mapper(path: Path, mapper: Mapper) -> None:
    """Write `.safetensors` with the metadata inside. Raises InputError."""
    tensors = {name: value.contiguous() for name, value in mapper.network.state_dict().items()}
    content = safetensors_bytes(tensors, metadata={"mapper": mapper.info.model_dump_json()})
    write_bytes(path, content)


def is_mapper(path: Path) -> bool:
    """Whether a file holds a mapper. Raises InputError where it cannot be read."""
    if path.suffix.lower() != ".safetensors":
        return False
    try:
        return "mapper" in read_safetensors(path)[1]
    except Damaged as error:
        raise InputError(f"{path}: cannot be read ({error})") from None


def load_mapper(path: Path, generator: Generator, digest: str) -> Mapper:
    """The mapper in a file, for this generator. Raises InputError: damaged, or of another generator."""
    tensors, info = read_described(path, "mapper", MapperInfo, digest)
    unknown = [name for name in info.frozen if name not in CLASS]
    network = LatentMapper(generator.config.w_dim, len(info.attributes), info.width)
    shapes = {name: value.shape for name, value in network.state_dict().items()}
    sound = shapes == {name: value.shape for name, value in tensors.items()} and finite(tensors.values())
    if unknown or not sound:
        raise InputError(f"{path}: its numbers do not fit the generator it names; train it again")
    network.load_state_dict({name: value.float() for name, value in tensors.items()})
    return Mapper(network.eval().requires_grad_(False), info)
