"""What holds an encoder where edits work (e4e, Tov et al. 2021): a discriminator that tells rows of the generator's own
W from the encoder's, short offsets between rows, and rows that are set free one after the other."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

POOL = 50  # earlier rows that half of the encoder's are exchanged for, as published
GRADIENT_PENALTY, PENALTY_EVERY = 10.0, 16
LAYERS = 4


class LatentCritic(nn.Module):
    """Whitened rows [M,C] -> [M], larger for what the mapping network makes."""

    pool: torch.Tensor
    held: torch.Tensor

    def __init__(self, w_dim: int):
        super().__init__()
        layers = [part for _ in range(LAYERS) for part in (nn.Linear(w_dim, w_dim), nn.LeakyReLU(0.2))]
        self.body = nn.Sequential(*layers, nn.Linear(w_dim, 1))
        # Part of the state, so that a run that goes on draws the rows that it would have drawn.
        self.register_buffer("pool", torch.zeros(POOL, w_dim))
        self.register_buffer("held", torch.zeros((), dtype=torch.long))

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.body(rows)[:, 0]
        return found

    @torch.no_grad()
    def pooled(self, rows: torch.Tensor, draw: torch.Generator) -> torch.Tensor:
        """rows [M,C], half of them exchanged for earlier ones once the pool is full."""
        found = rows.clone()
        for index, row in enumerate(rows):
            if int(self.held) < POOL:
                self.pool[int(self.held)] = row
                self.held += 1
            elif float(torch.rand((), generator=draw)) < 0.5:
                place = int(torch.randint(POOL, (), generator=draw))
                found[index] = self.pool[place]
                self.pool[place] = row
        return found


def encoder_term(critic: LatentCritic, rows: torch.Tensor) -> torch.Tensor:
    """What the encoder minimises for its rows [N,L,C], [N]: non-saturating, the mean over rows."""
    found: torch.Tensor = F.softplus(-critic(rows.flatten(0, 1))).unflatten(0, rows.shape[:2]).mean(1)
    return found


def critic_loss(critic: LatentCritic, real: torch.Tensor, fake: torch.Tensor, step: int) -> torch.Tensor:
    """Logistic loss of rows [M,C] each; every PENALTY_EVERY steps R1 (Mescheder et al. 2018) at as many times its
    weight."""
    loss = F.softplus(-critic(real)).mean() + F.softplus(critic(fake)).mean()
    if step % PENALTY_EVERY == 0:
        real = real.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(critic(real).sum(), real, create_graph=True)
        loss = loss + PENALTY_EVERY * GRADIENT_PENALTY / 2 * gradient.square().sum(1).mean()
    return loss


def offset_lengths(u: torch.Tensor) -> torch.Tensor:
    """Lengths of the rows' offsets from the first row, summed over rows; u [N,L,C] -> [N] (e4e's delta)."""
    return (u[:, 1:] - u[:, :1]).square().sum(2).add(1e-12).sqrt().sum(1)


def free_rows(share: float, num_ws: int) -> int:
    """Rows with an offset of their own when `share` of the training is over, as published: none until 1/15 of it, then
    one more every 1/150."""
    return min(num_ws - 1, max(0, int(150 * (share - 1 / 15)) + 1)) if share >= 1 / 15 else 0
