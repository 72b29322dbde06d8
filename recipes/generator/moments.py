"""Feature moments: the mean and the mean square of generated features drawn to the portraits' own (GFMN, dos Santos
et al. 2019), per place and channel, and of each image's mean per channel."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import nn

LEAST_DEVIATION = 1e-3
Maps = list[torch.Tensor]


class Moments(nn.Module):
    """Running moments of generated maps against the fixed ones of portraits.

    Those per place can be met by images that vary within and hardly differ from each other; those of images' means
    cannot. These are standardised, so the portraits' own are 0 and 1.
    """

    def __init__(self, shapes: Sequence[tuple[int, int, int]], window_images: float = 4000):
        """shapes: [C,h,w] of each map; window_images: over how many images the generated moments are averaged."""
        super().__init__()
        self.count, self.window_images = len(shapes), window_images
        for index, (channels, height, width) in enumerate(shapes):
            for name in ("real", "fake"):
                self.register_buffer(f"{name}{index}", torch.zeros(2, channels, height, width))
            for name, value in (("centre", 0.0), ("deviation", 1.0)):
                self.register_buffer(f"{name}{index}", torch.full((channels,), value))
            self.register_buffer(f"means{index}", torch.tensor([0.0, 1.0])[:, None].repeat(1, channels))

    def fit(self, batches: Iterable[Maps]) -> None:
        """Take the portraits' moments from batches of maps; the generated ones start there."""
        sums: Maps = []
        means: list[Maps] = [[] for _ in range(self.count)]
        images = 0
        for maps in batches:
            new = [_moments(x) * len(x) for x in maps]
            sums = [a + b for a, b in zip(sums, new, strict=True)] if sums else new
            for kept, x in zip(means, maps, strict=True):
                kept.append(x.float().mean((2, 3)))
            images += len(maps[0])
        for index, (total, kept) in enumerate(zip(sums, means, strict=True)):
            values = torch.cat(kept)
            for name, value in (("real", total / images), ("fake", total / images), ("centre", values.mean(0))):
                getattr(self, f"{name}{index}").copy_(value)
            deviation = values.std(0, unbiased=False).clamp_min(LEAST_DEVIATION)
            getattr(self, f"deviation{index}").copy_(deviation)

    def forward(
        self, maps: Maps, all_images: int, mean: Callable[[torch.Tensor], torch.Tensor] = lambda x: x
    ) -> torch.Tensor:
        """Squared distance of the running moments, this batch included, mean over places and channels, summed over
        maps; all_images: images of this step in all processes, over which `mean` averages. Moves the running ones."""
        weight = min(all_images / self.window_images, 1.0)
        total = torch.zeros((), device=maps[0].device)
        for index, x in enumerate(maps):
            centre, deviation, real = (getattr(self, f"{name}{index}") for name in ("centre", "deviation", "real"))
            standard = (x.float().mean((2, 3)) - centre) / deviation
            wanted = torch.arange(2.0, device=x.device)[:, None]  # made there: a copy cannot be part of a CUDA graph
            for name, new, target in (("fake", _moments(x), real), ("means", _moments(standard), wanted)):
                kept = getattr(self, f"{name}{index}")
                running = kept.lerp(new, weight)
                total = total + (running - target).square().mean()
                kept.copy_(mean(running.detach()))
        return total


def _moments(x: torch.Tensor) -> torch.Tensor:
    """[N,...] -> [2,...]: mean and mean square over the batch."""
    x = x.float()
    return torch.stack([x.mean(0), x.square().mean(0)])
