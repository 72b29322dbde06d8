"""The latent discriminator of e4e: it learns, its pool is part of its state, rows become free as published."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from stylepairs.datagen.encoders.critic import (
    POOL,
    LatentCritic,
    critic_loss,
    encoder_term,
    free_rows,
    offset_lengths,
)


def test_it_learns_to_tell_and_its_term_draws_the_encoder_to_real_rows():
    torch.manual_seed(0)
    critic, draw = LatentCritic(8), torch.Generator().manual_seed(1)
    adam = torch.optim.Adam(critic.parameters(), 1e-2)

    def rows(shift):
        return torch.randn(64, 8, generator=draw) + shift

    for step in range(60):
        adam.zero_grad()
        critic_loss(critic, rows(0.0), rows(2.0), step).backward()
        adam.step()
    u = torch.full((3, 4, 8), 2.0, requires_grad=True)
    terms = encoder_term(critic, u)
    assert terms.shape == (3,)
    (gradient,) = torch.autograd.grad(terms.sum(), u)
    assert float((u.detach() - 0.5 * gradient / gradient.abs().max()).mean()) < 2.0
    assert encoder_term(critic, torch.zeros(3, 4, 8)).mean() < terms.mean()


def test_the_penalty_comes_every_sixteen_steps_alone():
    torch.manual_seed(0)
    critic, real, fake = LatentCritic(8), torch.randn(4, 8), torch.randn(4, 8)
    plain, also = critic_loss(critic, real, fake, 1), critic_loss(critic, real, fake, 17)
    assert torch.equal(plain, also)
    assert critic_loss(critic, real, fake, 16) > plain


def test_the_pool_fills_then_gives_back_earlier_rows_and_is_saved():
    critic, draw = LatentCritic(2), torch.Generator().manual_seed(0)
    first = torch.arange(2.0 * POOL).view(POOL, 2)
    assert torch.equal(critic.pooled(first, draw), first)
    found = critic.pooled(-1 - first, draw)
    earlier = (found >= 0).all(1)
    assert 0.2 < float(earlier.float().mean()) < 0.8
    again = LatentCritic(2)
    again.load_state_dict(critic.state_dict())
    assert torch.equal(again.pool, critic.pool)
    assert int(again.held) == POOL


@pytest.mark.parametrize(
    ("share", "rows"), [(0, 0), (0.066, 0), (0.067, 1), (0.075, 2), (0.14, 11), (0.2, 11), (1, 11)]
)
def test_rows_become_free_one_by_one(share, rows):
    assert free_rows(share, 12) == rows


def test_offsets_are_measured_from_the_first_row_and_have_a_gradient_at_zero():
    u = torch.zeros(2, 3, 4)
    u[0, 1, 0], u[0, 2, 1] = 3.0, -4.0
    assert torch.allclose(offset_lengths(u), torch.tensor([7.0, 0.0]), atol=1e-4)
    still = torch.zeros(1, 3, 4, requires_grad=True)
    (gradient,) = torch.autograd.grad(offset_lengths(still).sum(), still)
    assert bool(gradient.isfinite().all())


RESUMED = """
import sys
from pathlib import Path
import torch
from accelerate import PartialState
from stylepairs.datagen.encoders.photos import draw_samples
from stylepairs.datagen.encoders.run_file import RunFile
from stylepairs.datagen.encoders.settings import METHODS, EncoderTraining
from stylepairs.datagen.encoders.training import Teachers, train_encoder
from stylepairs.datagen.images.perceptual import load_perceptual
from stylepairs.datagen.reconstruction.prior import WPrior
from stylepairs.datagen.stylegan.generator import Generator, GeneratorConfig

PartialState(cpu=True)
torch.manual_seed(0)
generator = Generator(GeneratorConfig(16, 16, 32, 3, 512, 16, 2)).eval().requires_grad_(False)
prior = WPrior.fit(generator, 500)
photos = draw_samples(generator, prior, 8, torch.Generator().manual_seed(5)).add(1).mul(127.5).to(torch.uint8)
teachers = Teachers(generator, load_perceptual("pyramid"), prior, photos)
sizes = {"steps": 24, "checkpoint_every": 16, "probes": 8, "width": 8, "deep": 16, "critic_rate": 1e-3}
settings, folder = EncoderTraining(**METHODS["e4e"] | sizes), Path(sys.argv[1])

def stop(step, loss):
    if step == 17:
        raise KeyboardInterrupt

whole = train_encoder(teachers, settings, RunFile(folder / "whole", "")).state_dict()
try:
    train_encoder(teachers, settings, RunFile(folder / "parts", ""), report=stop)
except KeyboardInterrupt:
    parts = train_encoder(teachers, settings, RunFile(folder / "parts", "")).state_dict()
print("differing", [name for name in whole if not torch.equal(whole[name], parts[name])], flush=True)
"""


@pytest.mark.slow
def test_two_processes_with_a_critic_go_on_as_if_they_had_not_been_stopped(tmp_path: Path) -> None:
    """The pool of earlier rows was each process's own, and all went on with the first one's."""
    (tmp_path / "resumed.py").write_text(RESUMED)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*torchrun, str(tmp_path / "resumed.py"), str(tmp_path)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
        check=False, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.stdout.count("differing []") == 2, done.stdout + done.stderr[-2000:]
