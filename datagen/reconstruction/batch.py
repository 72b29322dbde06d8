"""A batch of portraits optimised together, each on its own: those that have converged leave, new ones take their place.

The batch keeps its width; free places go on idly and their results are dropped. Convolutions give the same bits for a
sample whatever the others in a batch of one width hold, so a portrait's result does not depend on its neighbours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch

from stylepairs.datagen.reconstruction.settings import OptimiserSettings
from stylepairs.kernels.cuda_graph import graphed

SECOND_MOMENTUM = 0.99
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
Progress = Callable[[int, int], None]


def optimise(
    jobs: Sequence[Job],
    objective: Objective,
    settings: OptimiserSettings,
    multiplier_rate: float = 0.0,
    after_step: AfterStep | None = None,
    capturable: bool = True,
    pause_at: int | None = None,
) -> Iterator[tuple[int, Outcome]]:
    """Yield (job index, outcome) as portraits leave, in order of leaving.

    A portrait leaves `decay_steps` after it was met or has used up `steps`; one whose loss is not finite leaves at
    once, with the figure `finite` = 0 and the last state that was finite. after_step may move the state in place after
    each step (back onto a sphere, ...), each portrait for itself. capturable False: objective or after_step read
    values on the host, or do other operations from step to step, so that no CUDA graph can replay them. pause_at: all
    leave after this step, at their full rate and whether met or not; jobs made of their outcomes go on from there.
    """
    if not jobs:
        return
    batch = _Batch(jobs, settings, multiplier_rate, pause_at)

    at_once = settings.at_once(jobs[0].noise[-1].shape[-1])

    def step() -> None:
        batch.advance(*_evaluated(objective, batch.state, settings, at_once), after_step)

    run = graphed(step, batch.state.u.device) if capturable else step
    while batch.alive():
        for _ in range(batch.steps_until_one_may_leave()):
            run()
        yield from batch.leaving()


def optimise_all(
    jobs: Sequence[Job],
    objective: Objective,
    settings: OptimiserSettings,
    multiplier_rate: float = 0.0,
    progress: Progress | None = None,
    after_step: AfterStep | None = None,
    capturable: bool = True,
    pause_at: int | None = None,
) -> list[Outcome]:
    """The outcomes of `optimise` in the order of the jobs; progress(done, all) is called as portraits leave."""
    outcomes: dict[int, Outcome] = {}
    for index, outcome in optimise(jobs, objective, settings, multiplier_rate, after_step, capturable, pause_at):
        outcomes[index] = outcome
        if progress is not None:
            progress(len(outcomes), len(jobs))
    return [outcomes[index] for index in range(len(jobs))]


def _evaluated(
    objective: Objective, state: State, settings: OptimiserSettings, at_once: int
) -> tuple[Verdict, list[torch.Tensor]]:
    """The objective's verdict and its gradients by what moves, `at_once` portraits at a time to bound the memory."""
    width = state.u.shape[0]
    verdicts, gradients = [], []
    for start in range(0, width, at_once):
        part = state if at_once == width else _rows(state, slice(start, start + at_once))
        verdict = objective(part)
        gradients.append(torch.autograd.grad(verdict.loss.sum(), _moving(part, settings)))
        figures = {key: value.detach() for key, value in verdict.figures.items()}
        verdicts.append(Verdict(verdict.loss.detach(), verdict.met, verdict.violation.detach(), figures))
    if len(verdicts) == 1:
        return verdicts[0], list(gradients[0])
    whole = Verdict(
        torch.cat([one.loss for one in verdicts]),
        torch.cat([one.met for one in verdicts]),
        torch.cat([one.violation for one in verdicts]),
        {key: torch.cat([one.figures[key] for one in verdicts]) for key in verdicts[0].figures},
    )
    return whole, [torch.cat(parts) for parts in zip(*gradients, strict=True)]


def _rows(state: State, rows: slice) -> State:
    """These portraits of a batch, sharing its memory."""
    return State(
        state.u[rows].detach().requires_grad_(),
        [maps[rows].detach().requires_grad_() for maps in state.noise],
        {key: value[rows] for key, value in state.targets.items()},
        state.step[rows],
        state.multiplier[rows],
    )


def _moving(state: State, settings: OptimiserSettings) -> list[torch.Tensor]:
    return [state.u, *(state.noise if settings.noise_learning_rate else [])]


class _Batch:
    def __init__(
        self,
        jobs: Sequence[Job],
        settings: OptimiserSettings,
        multiplier_rate: float,
        pause_at: int | None = None,
    ):
        self.jobs, self.settings, self.multiplier_rate, self.pause_at = jobs, settings, multiplier_rate, pause_at
        width, first, targets = settings.batch, jobs[0], _made(jobs[0])
        self.slots: list[int | None] = [0, *[None] * (width - 1)]
        self.next_job = 1
        device = first.u.device
        self.waits = _waits(device)
        self.state = State(
            torch.stack([first.u] * width).requires_grad_(),
            [torch.stack([level] * width)[:, None].requires_grad_() for level in first.noise],
            {key: torch.stack([value] * width) for key, value in targets.items()},
            torch.zeros(width, device=device),
            torch.ones(width, device=device),
        )
        self.decay_from = torch.zeros(width, device=device)
        momenta = (settings.momentum, SECOND_MOMENTUM)
        self.betas = [torch.tensor(beta, device=device) for beta in momenta]
        self.moments = [(torch.zeros_like(x), torch.zeros_like(x)) for x in self.parameters()]
        self.left = torch.zeros(width, dtype=torch.bool, device=device)
        self.kept: dict[str, torch.Tensor] = {}  # of each portrait that has left: its state and figures as it left
        for place in range(width):
            self._begin(place, first)
        for place in range(1, width):
            self._enter(place)
        begun = [0 if slot is None else jobs[slot].step for slot in self.slots]
        self.wait = self._fewest_steps(begun, [float(settings.steps)] * width)

    def alive(self) -> bool:
        return any(slot is not None for slot in self.slots)

    def steps_until_one_may_leave(self) -> int:
        return self.wait if self.waits else 1

    def advance(self, verdict: Verdict, gradients: Sequence[torch.Tensor], after_step: AfterStep | None) -> None:
        """One step for every portrait; what those that leave have come to is kept."""
        state, settings = self.state, self.settings
        finite = verdict.loss.detach().isfinite()
        for gradient in gradients:
            finite &= gradient.flatten(1).isfinite().all(1)
        with torch.no_grad():
            state.step += 1
            self._adam(gradients, finite)
            if after_step is not None:
                after_step(state)
            growth = (self.multiplier_rate * verdict.violation.detach().clamp(-1, 1)).exp()
            state.multiplier.mul_(torch.where(finite, growth, 1.0)).clamp_(0.1, 100.0)
            if self.pause_at is None:
                met = verdict.met.detach() & (state.step > settings.warmup_steps)
                self.decay_from.copy_(torch.where(met, torch.minimum(self.decay_from, state.step), self.decay_from))
                leaves = (state.step >= self.decay_from + settings.decay_steps) | ~finite
            else:
                leaves = (state.step >= self.pause_at) | ~finite
            if self.waits or leaves.any():
                self._keep(leaves & ~self.left, self._outcomes(verdict, finite))
            self.left |= leaves

    def leaving(self) -> Iterator[tuple[int, Outcome]]:
        """The outcomes of those that have left; the next jobs take their places."""
        rows = torch.stack([self.left.float(), self.state.step, self.decay_from]).tolist()
        places = [place for place, left in enumerate(rows[0]) if left]
        for place in places:
            index = self.slots[place]
            if index is not None:
                yield index, self._outcome(place)
            self._enter(place)
            entered = self.slots[place]
            rows[1][place] = 0.0 if entered is None else float(self.jobs[entered].step)
            rows[2][place] = float(self.settings.steps)
        self.wait = self._fewest_steps(rows[1], rows[2])

    def _fewest_steps(self, steps: Sequence[float], decay_from: Sequence[float]) -> int:
        """Steps after which the first finite portrait may leave: it could be met in the very next one."""
        if self.pause_at is None:
            decays = [min(start, step + 1) for step, start in zip(steps, decay_from, strict=True)]
            ends = [start + self.settings.decay_steps for start in decays]
        else:
            ends = [float(self.pause_at)] * len(steps)
        left = [end - step for end, step, slot in zip(ends, steps, self.slots, strict=True) if slot is not None]
        return max(1, int(min(left, default=0)))

    def _rate(self) -> torch.Tensor:
        """Share of the learning rate [N] at each portrait's own step: linear warm-up, cosine decay."""
        step, settings = self.state.step, self.settings
        warm = (step / settings.warmup_steps).clamp(max=1)
        decayed = ((step - self.decay_from) / settings.decay_steps).clamp(0, 1)
        return warm * (1 + (decayed * math.pi).cos()) / 2

    def _adam(self, gradients: Sequence[torch.Tensor], finite: torch.Tensor) -> None:
        step, rate = self.state.step, self._rate()
        correct = [1 - beta.pow(step) for beta in self.betas]
        for index, (x, gradient) in enumerate(zip(self.parameters(), gradients, strict=True)):
            first, second = self.moments[index]
            shape = [-1] + [1] * (x.ndim - 1)
            gradient = torch.where(finite.view(shape), gradient, 0.0)
            first.lerp_(gradient, 1 - self.settings.momentum)
            second.lerp_(gradient.square(), 1 - SECOND_MOMENTUM)
            base = self.settings.learning_rate if index == 0 else self.settings.noise_learning_rate
            scale = (base * rate / correct[0]).view(shape)
            x -= scale * first / ((second / correct[1].view(shape)).sqrt() + EPS)
            if index > 0:  # noise maps keep zero mean and unit variance (StyleGAN2's projector)
                x -= x.mean((1, 2, 3), keepdim=True)
                x *= x.square().mean((1, 2, 3), keepdim=True).clamp_min(1e-8).rsqrt()

    def _outcomes(self, verdict: Verdict, finite: torch.Tensor) -> dict[str, torch.Tensor]:
        """What a portrait would leave with now, [N,...] each; figures by their own names, the rest with a dot."""
        state = self.state
        own = {".u": state.u, ".step": state.step, "finite": finite.float(), "multiplier": state.multiplier}
        own |= {f".noise{level}": maps for level, maps in enumerate(state.noise)}
        if self.pause_at is not None:
            own |= {f".moment{i}.{order}": self.moments[i][order] for i in range(len(self.moments)) for order in (0, 1)}
        return {key: value.detach() for key, value in (verdict.figures | own).items()}

    def _keep(self, places: torch.Tensor, outcomes: dict[str, torch.Tensor]) -> None:
        for key, value in outcomes.items():
            if key not in self.kept:
                self.kept[key] = torch.zeros_like(value)
            kept = self.kept[key]
            kept.copy_(torch.where(places.view([-1] + [1] * (kept.ndim - 1)), value, kept))

    def _outcome(self, place: int) -> Outcome:
        figures = {key: float(value[place]) for key, value in self.kept.items() if not key.startswith(".")}
        noise = [self.kept[f".noise{level}"][place, 0].clone() for level in range(len(self.state.noise))]
        moments = None
        if self.pause_at is not None:
            one = {key: value[place].clone() for key, value in self.kept.items() if key.startswith(".moment")}
            moments = [(one[f".moment{i}.0"], one[f".moment{i}.1"]) for i in range(len(self.moments))]
        return Outcome(self.kept[".u"][place].clone(), noise, int(self.kept[".step"][place]), figures, moments)

    def _enter(self, place: int) -> None:
        """Put the next job in this place; without one, the place goes on with what it holds."""
        if self.next_job == len(self.jobs):
            self.slots[place] = None
            return
        job, self.slots[place] = self.jobs[self.next_job], self.next_job
        self.next_job += 1
        state = self.state
        with torch.no_grad():
            state.u[place] = job.u
            for maps, start in zip(state.noise, job.noise, strict=True):
                maps[place, 0] = start
            for key, value in _made(job).items():
                state.targets[key][place] = value
            self._begin(place, job)

    @torch.no_grad()
    def _begin(self, place: int, job: Job) -> None:
        self.state.step[place], self.state.multiplier[place] = job.step, job.multiplier
        self.decay_from[place] = float(self.settings.steps)
        self.left[place] = False
        for index, (first, second) in enumerate(self.moments):
            first[place], second[place] = job.moments[index] if job.moments else (0.0, 0.0)

    def parameters(self) -> list[torch.Tensor]:
        return _moving(self.state, self.settings)


def _waits(device: torch.device) -> bool:
    """Whether asking for a value would hold up the device. A CPU is asked after every step: none is in vain then, and
    portraits that are not finite leave at once."""
    return device.type != "cpu"


@torch.no_grad()
def _made(job: Job) -> Targets:
    return job.targets() if callable(job.targets) else job.targets
