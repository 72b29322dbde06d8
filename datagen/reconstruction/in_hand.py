"""The portraits that are optimised together, as tensors that stay where they are: a step moves all of them, each by
itself (Adam, Kingma & Ba 2015)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from stylepairs.datagen.reconstruction.settings import OptimiserSettings

EPS = 1e-8
Targets = dict[str, torch.Tensor]
Moments = list[tuple[torch.Tensor, torch.Tensor]]  # Adam's first and second, of u and of each noise map that moves


@dataclass
class Job:
    """One portrait's start and fixed targets (tensors without batch dimension).

    targets may be a function: it is called, without gradients, when the portrait enters the batch, so that large
    targets are in memory for a batch of portraits and not for all of them. step and moments go on from an outcome that
    was paused; moments None: none yet.
    """

    u: torch.Tensor  # [L,C], whitened latent
    noise: list[torch.Tensor]  # maps [r,r]
    targets: Targets | Callable[[], Targets]
    multiplier: float = 1.0
    step: int = 0
    moments: Moments | None = None

    @torch.no_grad()
    def made_targets(self) -> Targets:
        """The targets, made now where they are a function."""
        return self.targets() if callable(self.targets) else self.targets


@dataclass
class Outcome:
    """What a portrait has come to, without batch dimension; moments of one that was paused, else None."""

    u: torch.Tensor
    noise: list[torch.Tensor]
    steps: int
    figures: dict[str, float]
    moments: Moments | None = None


@dataclass
class State:
    """What the objective sees: leading dimension N, the width of the batch, all on one device. The tensors are moved in
    place, never exchanged."""

    u: torch.Tensor  # [N,L,C]
    noise: list[torch.Tensor]  # [N,1,r,r]
    targets: Targets
    step: torch.Tensor  # [N] steps taken
    multiplier: torch.Tensor  # [N] of the keep constraint

    def rows(self, rows: slice) -> State:
        """These portraits of the batch, sharing its memory."""
        return State(
            self.u[rows].detach().requires_grad_(),
            [maps[rows].detach().requires_grad_() for maps in self.noise],
            {key: value[rows] for key, value in self.targets.items()},
            self.step[rows],
            self.multiplier[rows],
        )

    def moving(self, settings: OptimiserSettings) -> list[torch.Tensor]:
        """What the optimiser moves: the latents, and the noise maps unless they are frozen."""
        return [self.u, *(self.noise if settings.noise_learning_rate else [])]


@dataclass
class Verdict:
    """What the objective returns, each [N]; `met` lets a portrait leave early; `violation` > 0 raises its
    multiplier."""

    loss: torch.Tensor
    met: torch.Tensor
    violation: torch.Tensor
    figures: dict[str, torch.Tensor] = field(default_factory=dict)


Objective = Callable[[State], Verdict]
AfterStep = Callable[[State], None]


@dataclass
class Kept:
    """What every portrait had when it left, [N,...] each; moments only where portraits pause."""

    u: torch.Tensor
    noise: list[torch.Tensor]
    step: torch.Tensor
    figures: dict[str, torch.Tensor]
    moments: Moments

    def tensors(self) -> list[torch.Tensor]:
        """All of them, in one order."""
        return [self.u, *self.noise, self.step, *self.figures.values(), *(x for pair in self.moments for x in pair)]

    def zeros(self) -> Kept:
        """The same, of zeros."""
        return Kept(
            torch.zeros_like(self.u),
            [torch.zeros_like(maps) for maps in self.noise],
            torch.zeros_like(self.step),
            {name: torch.zeros_like(figure) for name, figure in self.figures.items()},
            [(torch.zeros_like(first), torch.zeros_like(second)) for first, second in self.moments],
        )

    def outcome(self, place: int) -> Outcome:
        """That of one portrait."""
        return Outcome(
            self.u[place].clone(),
            [maps[place, 0].clone() for maps in self.noise],
            int(self.step[place]),
            {name: float(figure[place]) for name, figure in self.figures.items()},
            [(first[place].clone(), second[place].clone()) for first, second in self.moments] or None,
        )


class InHand:
    """`settings.batch` portraits in their places; a place whose portrait has left goes on with what it holds."""

    def __init__(self, first: Job, settings: OptimiserSettings, multiplier_rate: float, pause_at: int | None):
        """All places hold `first`; the other arguments as in `optimise`."""
        width, device = settings.batch, first.u.device
        self.settings, self.multiplier_rate, self.pause_at = settings, multiplier_rate, pause_at
        self.state = State(
            torch.stack([first.u] * width).requires_grad_(),
            [torch.stack([level] * width)[:, None].requires_grad_() for level in first.noise],
            {key: torch.stack([value] * width) for key, value in first.made_targets().items()},
            torch.zeros(width, device=device),
            torch.ones(width, device=device),
        )
        self.betas = [torch.tensor(beta, device=device) for beta in (settings.momentum, settings.second_momentum)]
        self.moments = [(torch.zeros_like(x), torch.zeros_like(x)) for x in self.state.moving(settings)]
        self.decay_from = torch.zeros(width, device=device)
        self.left = torch.zeros(width, dtype=torch.bool, device=device)
        self.kept: Kept | None = None
        self.waits = waits(device)
        self._begin(slice(None), first)

    @torch.no_grad()
    def put(self, place: int, job: Job) -> None:
        """Let a job begin in this place."""
        state = self.state
        state.u[place] = job.u
        for maps, start in zip(state.noise, job.noise, strict=True):
            maps[place, 0] = start
        for key, value in job.made_targets().items():
            state.targets[key][place] = value
        self._begin(place, job)

    @torch.no_grad()
    def _begin(self, place: int | slice, job: Job) -> None:
        self.state.step[place], self.state.multiplier[place] = job.step, job.multiplier
        self.decay_from[place] = float(self.settings.steps)
        self.left[place] = False
        for index, (first, second) in enumerate(self.moments):
            first[place], second[place] = job.moments[index] if job.moments else (0.0, 0.0)

    @torch.no_grad()
    def advance(self, verdict: Verdict, gradients: Sequence[torch.Tensor], after_step: AfterStep | None) -> None:
        """One step for every portrait; what those that leave have come to is kept."""
        state, finite = self.state, verdict.loss.isfinite()
        for gradient in gradients:
            finite &= gradient.flatten(1).isfinite().all(1)
        state.step += 1
        self._adam(gradients, finite)
        if after_step is not None:
            after_step(state)
        growth = (self.multiplier_rate * verdict.violation.clamp(-1, 1)).exp()
        state.multiplier.mul_(torch.where(finite, growth, 1.0)).clamp_(0.1, 100.0)
        leaves = self._due(verdict.met) | ~finite
        if self.waits or leaves.any():
            self._keep(leaves & ~self.left, verdict, finite)
        self.left |= leaves

    def _adam(self, gradients: Sequence[torch.Tensor], finite: torch.Tensor) -> None:
        settings, step, rate = self.settings, self.state.step, self._rate()
        correct = [1 - beta.pow(step) for beta in self.betas]
        for index, (x, gradient) in enumerate(zip(self.state.moving(settings), gradients, strict=True)):
            first, second = self.moments[index]
            shape = [-1] + [1] * (x.ndim - 1)
            gradient = torch.where(finite.view(shape), gradient, 0.0)
            first.lerp_(gradient, 1 - settings.momentum)
            second.lerp_(gradient.square(), 1 - settings.second_momentum)
            base = settings.learning_rate if index == 0 else settings.noise_learning_rate
            scale = (base * rate / correct[0]).view(shape)
            moved = x - scale * first / ((second / correct[1].view(shape)).sqrt() + EPS)
            if index > 0:  # noise maps keep zero mean and unit variance (StyleGAN2's projector)
                moved -= moved.mean((1, 2, 3), keepdim=True)
                moved *= moved.square().mean((1, 2, 3), keepdim=True).clamp_min(1e-8).rsqrt()
            x.copy_(torch.where(finite.view(shape), moved, x))  # its momentum moves no one that breaks down

    def _rate(self) -> torch.Tensor:
        """Share of the learning rate [N] at each portrait's own step: linear warm-up, cosine decay."""
        step, settings = self.state.step, self.settings
        warm = (step / settings.warmup_steps).clamp(max=1)
        decayed = ((step - self.decay_from) / settings.decay_steps).clamp(0, 1)
        return warm * (1 + (decayed * math.pi).cos()) / 2

    def _due(self, met: torch.Tensor) -> torch.Tensor:
        """Who has taken all steps [N]; the decay of those that are met begins now."""
        step = self.state.step
        if self.pause_at is not None:
            return step >= self.pause_at
        met = met & (step > self.settings.warmup_steps)
        self.decay_from.copy_(torch.where(met, torch.minimum(self.decay_from, step), self.decay_from))
        return step >= self.decay_from + self.settings.decay_steps

    def _keep(self, places: torch.Tensor, verdict: Verdict, finite: torch.Tensor) -> None:
        state = self.state
        figures = verdict.figures | {"finite": finite.float(), "multiplier": state.multiplier}
        now = Kept(state.u, state.noise, state.step, figures, [] if self.pause_at is None else self.moments)
        if self.kept is None:
            self.kept = now.zeros()
        for kept, value in zip(self.kept.tensors(), now.tensors(), strict=True):
            kept.copy_(torch.where(places.view([-1] + [1] * (kept.ndim - 1)), value, kept))


def waits(device: torch.device) -> bool:
    """Whether asking for a value would hold up the device. A CPU is asked after every step: none is in vain then, and
    portraits that are not finite leave at once."""
    return device.type != "cpu"
