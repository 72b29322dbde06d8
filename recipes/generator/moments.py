"""Feature moments: the mean and the mean square of generated features drawn to the portraits' own (GFMN, dos Santos
et al. 2019), per place and channel."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import nn


class Moments(nn.Module):
    """Running moments of generated maps against the fixed ones of portraits."""

    def __init__(self, shapes: Sequence[tuple[int, int, int]], window_images: float = 4000):
        """shapes: [C,h,w] of each map; window_images: over how many images the generated moments are averaged."""
        super().__init__()
        self.window_images = window_images
        for index, shape in enumerate(shapes):
            for name in ("real", "fake"):
                self.register_buffer(f"{name}{index}", torch.zeros(2, *shape))

    def fit(self, batches: Iterable[list[torch.Tensor]]) -> None:
        """Take the portraits' moments from batches of maps; the generated ones start there."""
        count, sums = 0, None
        for maps in batches:
            new = [_moments(x) * len(x) for x in maps]
            sums = new if sums is None else [a + b for a, b in zip(sums, new, strict=True)]
            count += len(maps[0])
        assert sums is not None
        for index, total in enumerate(sums):
            getattr(self, f"real{index}").copy_(total / count)
            getattr(self, f"fake{index}").copy_(total / count)

    def forward(
        self, maps: list[torch.Tensor], all_images: int, mean: Callable[[torch.Tensor], torch.Tensor] = lambda x: x
    ) -> torch.Tensor:
        """Squared distance of the running moments, this batch included, mean over places and channels, summed over
        maps; all_images: images of this step in all processes, over which `mean` averages. Moves the running ones."""
        weight = min(all_images / self.window_images, 1.0)
        total = torch.zeros((), device=maps[0].device)
        for index, x in enumerate(maps):
            real, fake = getattr(self, f"real{index}"), getattr(self, f"fake{index}")
            running = fake.lerp(_moments(x), weight)
            total = total + (running - real).square().mean()
            fake.copy_(mean(running.detach()))
        return total

    @torch.no_grad()
    def gap(self) -> float:
        """The same distance as it stands, to log."""
        buffers = dict(self.named_buffers())
        return float(sum((buffers[f"fake{i}"] - buffers[f"real{i}"]).square().mean() for i in range(len(buffers) // 2)))


def _moments(x: torch.Tensor) -> torch.Tensor:
    """[N,C,h,w] -> [2,C,h,w]: mean and mean square over the batch."""
    x = x.float()
    return torch.stack([x.mean(0), x.square().mean(0)])
