"""Editors that move and that tint: what is to be learnt by the flow, or by computing, is learnt so."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from stylepairs.datagen.images.colors import lab_to_srgb, srgb_to_lab
from stylepairs.i2i.models import glean
from stylepairs.i2i.models.conditions import encode_color
from stylepairs.i2i.train.losses import mean_color
from stylepairs.i2i.train.settings import TrainingSettings
from stylepairs.i2i.train.training import build, training_step

Make = Callable[..., TrainingSettings]


def test_what_moves_learns_a_shift_of_strands_by_its_flow(settings: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(glean, "SHADE_CELLS", 4)  # of 32 px
    terms = dict.fromkeys(("perceptual", "generated", "latent", "adversarial"), 0.0) | {"l1": 10.0, "mask": 1.0}
    shapes = {"channel_base": 256, "channel_max": 16, "moves": True}
    run = build(settings(style="none", losses=terms, model=shapes, warmup_steps=0, learning_rate=3e-3), "smile", {})

    def batch_of(seed: int) -> dict[str, torch.Tensor]:
        noise = torch.randn(8, 3, 36, generator=torch.Generator().manual_seed(seed))
        strands = torch.nn.functional.avg_pool1d(noise, 5, stride=1)[:, :, None].clamp(-1, 1)
        photo, target = strands.expand(-1, -1, 32, -1), strands.roll(-2, -1).expand(-1, -1, 32, -1)
        mask = torch.zeros(8, 1, 32, 32)
        mask[..., 8:24, 8:24] = 1
        told = {"region": torch.ones(8, 1, 32, 32), "degree": torch.ones(8), "style": torch.zeros(8, 0)}
        masks = {"mask": mask, "edit_mask": mask}
        return {"photo": photo, "target": photo.lerp(target, mask), "applies": torch.ones(8), **masks, **told}

    for step in range(60):
        training_step(run, batch_of(step))
    batch = batch_of(1000)
    with torch.no_grad():
        found = run.model(batch["photo"], batch["region"], batch["degree"], batch["style"])
    inner = (..., slice(12, 20), slice(12, 20))
    left, had = ((image - batch["target"])[inner].abs().mean() for image in (found.output, batch["photo"]))
    assert left < 0.5 * had
    across, down = (32 * found.mask * found.flow)[inner].mean((0, 2, 3)).tolist()
    assert across == pytest.approx(2, abs=0.5)
    assert down == pytest.approx(0, abs=0.5)


def test_what_tints_learns_where_and_computes_how_much(settings: Make) -> None:
    silent = dict.fromkeys(("perceptual", "generated", "latent", "adversarial", "color"), 0.0)
    terms = silent | {"l1": 20.0, "mask": 1.0}
    shapes = {"channel_base": 256, "channel_max": 16, "tints": True}
    run = build(settings(style="color", losses=terms, model=shapes, warmup_steps=0, learning_rate=2e-3), "lips", {})
    mask, part = torch.zeros(8, 1, 32, 32), torch.zeros(8, 1, 32, 32)
    mask[..., 6:26, 6:26], part[..., 10:22, 10:22] = 1, 1

    def batch_of(seed: int) -> dict[str, torch.Tensor]:
        rng = torch.Generator().manual_seed(seed)
        lab = torch.tensor([55.0, 10, 10])[:, None, None] + 6 * torch.randn(8, 3, 1, 1, generator=rng)
        wanted = torch.tensor([50.0, 20, 5]) + 12 * torch.randn(8, 3, generator=rng)
        photo = lab_to_srgb(lab - part * lab.new_tensor([12.0, -10, 0])[:, None, None])
        way = wanted - mean_color(photo, part)
        target = lab_to_srgb(srgb_to_lab(photo) + part * way[:, :, None, None])
        told = {"region": mask, "degree": torch.ones(8), "style": encode_color(wanted), "applies": torch.ones(8)}
        return {"photo": photo, "target": target, "mask": mask, "edit_mask": mask, **told}

    for step in range(110):
        training_step(run, batch_of(step))
    batch = batch_of(1000)
    with torch.no_grad():
        found = run.model(batch["photo"], batch["region"], batch["degree"], batch["style"]).output
    inner = torch.zeros_like(part)
    inner[..., 12:20, 12:20] = 1
    found, had, wanted = (mean_color(image, inner) for image in (found, batch["photo"], batch["target"]))
    # By recolouring alone 0.7 are left.
    assert (found - wanted).norm(dim=1).mean() < 0.4 * (had - wanted).norm(dim=1).mean()
