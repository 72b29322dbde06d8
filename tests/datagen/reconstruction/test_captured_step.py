"""The step as a GPU's graph sees it: what it does to tensors is recorded once and done again, and nothing is asked of
the host. A recorder on the CPU stands for the graph, meta tensors for a device that cannot be read."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from stylepairs.datagen.images import colors
from stylepairs.datagen.images.perceptual import load_perceptual
from stylepairs.datagen.portraits.sketch import Sketch
from stylepairs.datagen.reconstruction import batch, in_hand, inversion, phases, reconstruct
from stylepairs.datagen.reconstruction import settings as reconstruction_settings
from stylepairs.datagen.reconstruction.batch import optimise
from stylepairs.datagen.reconstruction.in_hand import Job, State, Verdict
from stylepairs.datagen.reconstruction.inversion import Inversion
from stylepairs.datagen.reconstruction.prior import WPrior
from stylepairs.datagen.reconstruction.settings import InversionSettings, OptimiserSettings, ReconstructionSettings
from stylepairs.datagen.stylegan.generator import Generator, GeneratorConfig
from stylepairs.kernels.gpu.cuda_graph import WARM_UP_STEPS, GraphedStep

META = torch.device("meta")
aten = torch.ops.aten
# Each reads a value on the host, or takes one from there: a GPU would be waited for, and a graph cannot hold it.
ASKS_THE_HOST = {
    aten._local_scalar_dense.default, aten.nonzero.default, aten.masked_select.default, aten.equal.default,
    aten.is_nonzero.default, aten.lift_fresh.default,
}  # fmt: skip


class NoHost(TorchDispatchMode):
    """Raises where an operation asks the host, or copies between devices."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in ASKS_THE_HOST:
            raise RuntimeError(f"asks the host: {func}")
        if func is aten._to_copy.default and kwargs.get("device") not in (None, args[0].device):
            raise RuntimeError("copies between devices")
        if func is aten.copy_.default and args[0].device != args[1].device:
            raise RuntimeError("copies between devices")
        return self.seen(func, args, kwargs, func(*args, **kwargs))

    def seen(self, func, args, kwargs, result):
        return result


class Recorder(NoHost):
    """A graph: records a step's operations without effect on what it reads, and does them again on the same tensors."""

    def __init__(self):
        super().__init__()
        self.operations, self.written = [], {}

    def warm_up(self, step):
        step()

    def capture(self, step):
        with self:
            step()
        for storage, before in self.written.values():
            storage.copy_(before)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        for argument, value in zip(func._schema.arguments, args, strict=False):
            if argument.alias_info is not None and argument.alias_info.is_write and isinstance(value, torch.Tensor):
                storage = value.untyped_storage()
                self.written.setdefault(storage.data_ptr(), (storage, storage.clone()))
        return super().__torch_dispatch__(func, types, args, kwargs)

    def seen(self, func, args, kwargs, result):
        self.operations.append((func, args, kwargs, result))
        return result

    @torch.no_grad()
    def replay(self):
        for func, args, kwargs, recorded in self.operations:
            again = func(*args, **kwargs)
            results = zip(
                *((one if isinstance(one, (tuple, list)) else [one]) for one in (recorded, again)), strict=True
            )
            for old, new in results:
                if (
                    isinstance(old, torch.Tensor)
                    and old.untyped_storage().data_ptr() != new.untyped_storage().data_ptr()
                ):
                    old.copy_(new)


SETTINGS = OptimiserSettings(
    steps=30, decay_steps=6, warmup_steps=3, learning_rate=0.2, noise_learning_rate=0.05, batch=3
)


def quadratic(state: State) -> Verdict:
    """Each portrait runs to its own goal, and has met it when near; one breaks down at its tenth step."""
    error = (state.u - state.targets["goal"]).square().mean((1, 2))
    loss = error + 0.1 * sum(maps.diff(dim=-1).square().mean((1, 2, 3)) for maps in state.noise)
    loss = loss + torch.where((state.step > 9) & state.targets["breaks"], float("nan"), 0.0)
    return Verdict(loss, error < state.targets["near"], error - 0.5, {"error": error.detach()})


def make_jobs() -> list[Job]:
    jobs = []
    for seed in range(8):
        draw = torch.Generator().manual_seed(seed)
        targets = {"near": torch.tensor(0.06 * seed), "breaks": torch.tensor(seed == 4)}
        targets["goal"] = torch.randn(4, 5, generator=draw)
        jobs.append(Job(torch.zeros(4, 5), [torch.randn(4, 4, generator=draw)], targets))
    return jobs


def after_step(state: State) -> None:
    state.u.mul_(0.999)


def run(capturable: bool = True):
    return dict(optimise(make_jobs(), quadratic, SETTINGS, 0.05, after_step, capturable))


def assert_same_bits(found, wanted):
    assert found.keys() == wanted.keys()
    for index, outcome in wanted.items():
        assert torch.equal(found[index].u, outcome.u)
        assert torch.equal(found[index].noise[0], outcome.noise[0])
        assert found[index].steps == outcome.steps
        assert repr(found[index].figures) == repr(outcome.figures)


def test_a_device_that_is_seldom_asked_gives_the_same_bits(monkeypatch):
    asked_each_step, calls = run(), []
    monkeypatch.setattr(in_hand, "waits", lambda device: True)
    fetch = batch.Batch.leaving
    monkeypatch.setattr(batch.Batch, "leaving", lambda self: (calls.append(1), fetch(self))[1])
    assert_same_bits(run(), asked_each_step)
    assert len({outcome.steps for outcome in asked_each_step.values()}) > 3
    assert asked_each_step[4].figures["finite"] == 0
    steps = sum(outcome.steps for outcome in asked_each_step.values()) / SETTINGS.batch
    assert len(calls) < steps / 2


@pytest.mark.parametrize("at_once", [1, 3])
def test_a_recorded_step_gives_the_same_bits(monkeypatch, at_once):
    monkeypatch.setattr(OptimiserSettings, "at_once", lambda self, resolution: at_once)
    wanted, recorders = run(), []

    def recorded(step, device):
        recorders.append(Recorder())
        return GraphedStep(step, recorders[-1])

    monkeypatch.setattr(in_hand, "waits", lambda device: True)
    monkeypatch.setattr(batch, "graphed", recorded)
    assert_same_bits(run(), wanted)
    assert len(recorders[0].operations) > 50
    assert run(capturable=False).keys() == wanted.keys()
    assert len(recorders) == 1


@pytest.mark.parametrize("coarse_share", [pytest.param(0.0, marks=pytest.mark.slow), 0.5])
def test_a_recorded_inversion_gives_the_same_bits(monkeypatch, coarse_share):
    """Stage 0 on real networks: its objective too does the same operations on the same tensors each time."""
    torch.manual_seed(0)
    generator = Generator(GeneratorConfig(img_resolution=32, channel_base=64, w_dim=8, z_dim=8)).requires_grad_(False)
    prior, perceptual = WPrior(torch.zeros(8), torch.eye(8), torch.ones(8)), load_perceptual("efficientnet-lite0")
    photos = [SimpleNamespace(image=torch.rand(3, 32, 32) * 2 - 1, size_px=32, name=str(i)) for i in range(3)]
    settings = InversionSettings(batch=2, steps=6, decay_steps=2, warmup_steps=2, coarse_share=coarse_share)
    monkeypatch.setattr(reconstruction_settings, "LEAST_COARSE_PX", 16)
    wanted = inversion.invert(generator, perceptual, photos, settings, prior)
    monkeypatch.setattr(in_hand, "waits", lambda device: True)
    monkeypatch.setattr(batch, "graphed", lambda step, device: GraphedStep(step, Recorder()))
    found = inversion.invert(generator, perceptual, photos, settings, prior)
    for one, other in zip(found, wanted, strict=True):
        assert torch.equal(one.ws, other.ws)
        assert one.figures == other.figures
        assert all(torch.equal(*maps) for maps in zip(one.noise, other.noise, strict=True))


def test_the_recorder_notices_what_a_graph_cannot_hold():
    x = torch.zeros(3)
    steps = {"asks the host": [lambda: x.add_(float(x.sum())), lambda: x.add_(torch.tensor([1.0, 2.0, 3.0]))]}
    for message, wrong in steps.items():
        for step in wrong:
            with pytest.raises(RuntimeError, match=message):
                Recorder().capture(step)
    count = [0]

    def counts() -> None:
        count[0] += 1
        x.add_(count[0])

    recorded = GraphedStep(counts, Recorder())
    for _ in range(WARM_UP_STEPS + 3):
        recorded()
    assert x[0] != sum(range(1, WARM_UP_STEPS + 4))


class Checked(Exception):
    """The step was taken; there is nothing to render."""


def checks_a_step(jobs, objective, settings, *args, pause_at):
    """In place of optimise_all: one step that may ask nothing."""
    hand = batch.Batch(jobs, settings, 0.03, pause_at).hand
    # A dispatch mode does not see how torch.tensor takes a constant to a device.
    with NoHost(), mock.patch.object(torch, "tensor", side_effect=RuntimeError("takes a constant from the host")):
        hand.advance(*batch.evaluated(objective, hand.state, settings, settings.batch), None)
    raise Checked


@pytest.fixture
def on_meta(monkeypatch):
    """A generator, features, a prior and a portrait on the meta device, where nothing can be read and which knows no
    autocast."""
    monkeypatch.setattr(torch, "autocast", lambda *args, **settings: contextlib.nullcontext())
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: False)
    colors.srgb_to_lab(torch.zeros(3, 1, 1, device=META))
    monkeypatch.setattr(phases, "optimise_all", checks_a_step)
    monkeypatch.setattr(reconstruction_settings, "LEAST_COARSE_PX", 16)
    generator = Generator(GeneratorConfig(img_resolution=32, channel_base=64, w_dim=8, z_dim=8)).requires_grad_(False)
    prior = WPrior(torch.zeros(8), torch.eye(8), torch.ones(8)).to(META)
    portrait = SimpleNamespace(image=torch.zeros(3, 32, 32, device=META), size_px=32, name="portrait")
    return generator.to(META), load_perceptual("efficientnet-lite0").to(META), prior, portrait


@pytest.mark.parametrize("coarse_share", [0.0, 0.5])
def test_stage_0_asks_nothing_of_the_host(on_meta, coarse_share):
    generator, perceptual, prior, portrait = on_meta
    settings = InversionSettings(batch=2, coarse_share=coarse_share)
    with pytest.raises(Checked):
        inversion.invert(generator, perceptual, [portrait], settings, prior)


@pytest.mark.slow
@pytest.mark.parametrize("noise_rate, detail, space", [(0.0, 0.3, "lab"), (0.1, 0.0, "rgb")])
@pytest.mark.parametrize("coarse_share", [0.0, 0.5])
def test_stage_1_asks_nothing_of_the_host(on_meta, noise_rate, detail, space, coarse_share):
    generator, perceptual, prior, portrait = on_meta
    settings = ReconstructionSettings(
        batch=2, noise_learning_rate=noise_rate, detail_weight=detail, coarse_share=coarse_share
    )
    mask = torch.zeros(1, 32, 32, device=META)
    noise = [level[0, 0] for level in generator.noise_maps()]
    inverted = Inversion(torch.zeros(generator.num_ws, 8, device=META), noise, portrait.image, {})
    sketch = Sketch(portrait.image, mask, mask, reference_px=16, space=space, sketch_detail=1.0)
    problem = reconstruct.Problem(generator, perceptual, prior, [portrait], [inverted], [sketch], settings)
    with pytest.raises(Checked):
        reconstruct.reconstruct(problem)
