"""Phases of an optimisation: its first steps render only the generator's lower blocks and read their losses there, then
the full resolution goes on from where it came to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from stylepairs.datagen.reconstruction.batch import Progress, optimise_all
from stylepairs.datagen.reconstruction.in_hand import Job, Objective, Outcome, State, Targets
from stylepairs.datagen.reconstruction.objective import downsample
from stylepairs.datagen.reconstruction.settings import PhasedSettings

Render = Callable[[torch.Tensor, list[torch.Tensor], int], torch.Tensor]  # u [L,C], noise maps [r,r], size -> [3,r,r]


@dataclass(frozen=True)
class Phase:
    """Steps that render at size_px; end: the step at which the next phase takes over, None in the last one."""

    size_px: int
    end: int | None = None

    @property
    def rows(self) -> int:
        """Rows of W+ that a render of this size reads."""
        return 2 * (self.size_px.bit_length() - 1) - 2

    @property
    def maps(self) -> int:
        """Noise maps that it reads."""
        return self.rows - 1


@dataclass(frozen=True)
class Start:
    """A portrait's whole latent u [L,C] and noise maps [r,r], and what makes its targets for a phase when it enters."""

    u: torch.Tensor
    noise: list[torch.Tensor]
    targets: Callable[[Phase], Targets]


def phases_of(settings: PhasedSettings, size_px: int) -> list[Phase]:
    """The phases of a generator of this size; only the last where there are no coarse steps or it is too small."""
    coarse_px, end = settings.coarse_px(size_px), round(settings.coarse_share * settings.steps)
    if coarse_px == size_px or end == 0:
        return [Phase(size_px)]
    return [Phase(coarse_px, end), Phase(size_px)]


def optimise_in_phases(
    starts: Sequence[Start],
    phases: Sequence[Phase],
    objective: Callable[[Phase], Objective],
    render: Render,
    settings: PhasedSettings,
    multiplier_rate: float = 0.0,
    progress: Progress | None = None,
) -> list[Outcome]:
    """What `optimise_all` finds when its steps are spread over phases, whole latents and noise maps, in their order.

    Step count, multiplier and Adam's moments go on from phase to phase. In each only those rows of u and those maps
    move that its render reads; the others keep their bits, and the objective finds the rows in `whole_latent`. A
    portrait that breaks down in one phase (`finite` = 0) does not enter the next. progress(done, all) counts every
    phase of every portrait.
    """
    outcomes = [Outcome(start.u, start.noise, 0, {}) for start in starts]
    for done, phase in enumerate(phases):
        sound = [i for i, outcome in enumerate(outcomes) if outcome.figures.get("finite", 1.0) > 0]
        jobs = [_narrowed(outcomes[i], starts[i], phase, render) for i in sound]
        behind = len(starts) * (done + 1) - len(jobs)

        def report(left: int, _: int, behind: int = behind) -> None:
            if progress is not None:
                progress(behind + left, len(starts) * len(phases))

        found = optimise_all(jobs, objective(phase), settings, multiplier_rate, report, pause_at=phase.end)
        for i, outcome in zip(sound, found, strict=True):
            outcomes[i] = _widened(outcome, outcomes[i])
    return outcomes


def whole_latent(state: State) -> torch.Tensor:
    """u [N,L,C] with the rows that the phase does not move."""
    rest = state.targets.get("rest")
    return state.u if rest is None else torch.cat([state.u, rest], 1)


def _narrowed(so_far: Outcome, start: Start, phase: Phase, render: Render) -> Job:
    """The job of a portrait in a phase: those rows and maps that its render reads."""
    multiplier, moments = so_far.figures.get("multiplier", 1.0), so_far.moments
    if moments is not None:
        first, second = moments[0]
        moments = [(first[: phase.rows], second[: phase.rows]), *moments[1 : 1 + phase.maps]]
    targets = partial(_targets, start, so_far, phase, render)
    return Job(so_far.u[: phase.rows], so_far.noise[: phase.maps], targets, multiplier, so_far.steps, moments)


def _targets(start: Start, so_far: Outcome, phase: Phase, render: Render) -> Targets:
    """The portrait's own, and what a coarse phase holds fixed: `rest`, the rows that its render does not read, and
    `finer`, what the blocks above it add to its size."""
    targets, rest = start.targets(phase), so_far.u[phase.rows :]
    if len(rest) == 0:
        return targets
    full_px = so_far.noise[-1].shape[-1]
    whole, coarse = (render(so_far.u, so_far.noise, size_px) for size_px in (full_px, phase.size_px))
    return targets | {"rest": rest, "finer": downsample(whole, phase.size_px) - coarse}


def _widened(outcome: Outcome, before: Outcome) -> Outcome:
    """The whole outcome of a phase: what it did not move is as before, with moments of zero."""
    rest, maps = before.u[len(outcome.u) :], before.noise[len(outcome.noise) :]
    moments = outcome.moments
    if moments is not None:
        first, second = moments[0]
        still = torch.zeros_like(rest)
        moments = [(torch.cat([first, still]), torch.cat([second, still])), *moments[1:]]
        if len(moments) > 1:  # noise maps move too
            moments += [(torch.zeros_like(level[None]), torch.zeros_like(level[None])) for level in maps]
    return Outcome(torch.cat([outcome.u, rest]), outcome.noise + maps, outcome.steps, outcome.figures, moments)
