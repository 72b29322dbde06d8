"""Judges an editor: on held-out pairs against their after images, on portraits by what the feature itself measures.

Which features a perceptual or FID-style figure was computed with is part of its name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from stylepairs.datagen.build.quality import PSNR_IDENTICAL_DB, Analyser, look_at, psnr_db
from stylepairs.datagen.compositing.compose import region_mask
from stylepairs.datagen.features import load_feature
from stylepairs.datagen.images.colors import delta_e_2000
from stylepairs.datagen.images.perceptual import Perceptual, perceptual_distance
from stylepairs.datagen.pairs.codec import encode_png
from stylepairs.datagen.portraits.portrait import Portrait
from stylepairs.i2i.models.checkpoints import ModelInfo
from stylepairs.i2i.models.conditions import decode_color
from stylepairs.i2i.models.glean import Edit
from stylepairs.i2i.models.prepared_glean import Editor
from stylepairs.i2i.train.data import PairDataset, Sample
from stylepairs.i2i.train.losses import mean_color, tightened


@torch.no_grad()
def pair_figures(model: Editor, dataset: PairDataset, perceptual: Perceptual, device: torch.device) -> dict[str, float]:
    """Medians over a set of held-out pairs, the model's output against the pair's after image.

    l1_inside, psnr_outside_db: inside and outside the pair's mask; mask_l1: predicted against the pair's mask;
    delta_e_to_pair, delta_e_to_wanted: CIEDE2000 of the mean colour inside against the pair's, and (style color)
    against the wanted one; perceptual_NAME: masked LPIPS-like distance.
    """
    rows = []
    for index in range(len(dataset)):
        sample = {name: tensor[None].to(device) for name, tensor in dataset[index].items()}
        edit = run_sample(model, sample)
        output, target, mask = edit.output.clamp(-1, 1), sample["target"], sample["mask"]
        colors = [mean_color(image, (tightened(mask) > 0.5).float())[0] for image in (output, target)]
        wanted = {}
        if dataset.style == "color":
            code = decode_color(sample["style"][0])
            wanted = {"delta_e_to_wanted": float(delta_e_2000(colors[0], code, dim=0))}
        distance = perceptual_distance(perceptual.features(output), perceptual.features(target), mask)
        rows.append(
            {
                "l1_inside": float(((output - target).abs() * mask).sum() / (3 * mask.sum()).clamp_min(1e-6)),
                "psnr_outside_db": psnr_outside_db(output[0], sample["photo"][0], mask[0]),
                "mask_l1": float((edit.mask - tightened(mask)).abs().mean()),
                "delta_e_to_pair": float(delta_e_2000(colors[0], colors[1], dim=0)),
                **wanted,
                f"perceptual_{perceptual.name}": float(distance[0]),
            }
        )
    return {name: float(np.median([row[name] for row in rows])) for name in rows[0]}


@torch.no_grad()
def portrait_figures(
    model: Editor,
    info: ModelInfo,
    portraits: Iterable[Portrait],
    params: Sequence[Mapping[str, Any]],
    perceptual: Perceptual,
    say: Callable[[str], None] = lambda line: None,
    analyser: Analyser | None = None,
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Edit every portrait with every set of parameters; one row each, and the summary.

    Rows: portrait, params, the figures of the feature's `measure`, psnr_outside_db and changed_outside (largest
    absolute change; 0 is untouched), both outside the region that composing a pair may touch, whatever the model's mask
    says. Summary: median of each figure, and fid_NAME (photos against edits; NAME says the features). Portraits to
    which the feature does not apply are said and left out. analyser: looks at photos and edits, for features that are
    measured by label maps or landmarks; None: those of the portrait are taken for both.
    """
    from stylepairs.datagen.portraits.sketch import Seen, SketchRefused
    from stylepairs.i2i.edit.editor import edit_portrait, split_params

    feature = load_feature(info.feature)
    fid = frechet_distance(perceptual)
    rows: list[dict[str, Any]] = []
    for portrait in portraits:
        before = portrait.resized(model.size_px)
        fid.update(before.image[None], real=True)
        for chosen in params:
            try:
                edit = edit_portrait(model, info, before, chosen)
            except SketchRefused as refused:
                say(str(refused))
                break
            own, degree = split_params(info.feature, chosen)
            if "intensity" in type(own).model_fields:  # what is measured is what was asked for, by either name
                own = own.model_copy(update={"intensity": degree})
            after = edit.output[0]
            allowed = region_mask(feature.sketch(before, own).edit_mask).to(after.device)
            fid.update(after[None], real=False)
            seen = Seen(*(look_at(before, image, analyser).portrait for image in (before.image, after)))
            rows.append(
                {
                    "portrait": portrait.name,
                    "params": dict(chosen),
                    **feature.measure(before, seen, own),
                    "psnr_outside_db": psnr_outside_db(after, before.image, allowed),
                    "changed_outside": float(((after - before.image).abs() * (allowed == 0)).max()),
                }
            )
    names = [name for name, value in rows[0].items() if isinstance(value, float)] if rows else []
    summary = {name: float(np.median([row[name] for row in rows])) for name in names}
    if len(rows) > 1:
        summary[f"fid_{perceptual.name}"] = float(fid.compute())
    return rows, summary


def frechet_distance(perceptual: Perceptual) -> Any:
    """A torchmetrics FID over the deepest perceptual features, meaned over pixels; takes [N,3,H,W] in [-1,1]."""
    from torchmetrics.image.fid import FrechetInceptionDistance

    return FrechetInceptionDistance(feature=PooledFeatures(perceptual))


class PooledFeatures(nn.Module):
    """image [N,3,H,W] in [-1,1] -> [N,C]: mean and deviation of the deepest level, for FID-style figures."""

    def __init__(self, perceptual: Perceptual):
        super().__init__()
        self.perceptual = perceptual
        # torchmetrics asks for this; it hands the images on as they are.
        self.num_features = 2 * int(perceptual.features(torch.zeros(1, 3, 64, 64))[-1].shape[1])

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        deepest = self.perceptual.features(image.clamp(-1, 1))[-1]
        return torch.cat([deepest.mean((2, 3)), deepest.std((2, 3))], dim=1)


@torch.no_grad()
def sample_sheet(model: Editor, dataset: PairDataset, rows: int, device: torch.device) -> bytes:
    """PNG of pairs, one a row: photo, region, generator's own image, edit, predicted mask, output, target."""
    lines = []
    for index in np.linspace(0, len(dataset) - 1, rows).round().astype(int):
        sample = {name: tensor[None].to(device) for name, tensor in dataset[int(index)].items()}
        edit = run_sample(model, sample)
        cells = [sample["photo"], sample["region"] * 2 - 1, edit.generated, edit.edit, edit.mask * 2 - 1, edit.output]
        lines.append(torch.cat([cell.expand(-1, 3, -1, -1) for cell in [*cells, sample["target"]]], dim=3))
    sheet = F.pad(torch.cat(lines, dim=2), (2, 2, 2, 2), value=1.0)[0]
    return encode_png(((sheet.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).cpu().numpy())


def run_sample(model: Editor, sample: Sample) -> Edit:
    """One pass over a batch of samples."""
    edit: Edit = model(sample["photo"], sample["region"], sample["degree"], sample["style"])
    return edit


def psnr_outside_db(edited: torch.Tensor, photo: torch.Tensor, region: torch.Tensor) -> float:
    """PSNR of images [3,H,W] in [-1,1] where region [1,H,W] is 0; where it leaves nothing over, nothing has changed."""
    outside = (region == 0).float()
    return psnr_db(edited, photo, outside) if outside.any() else PSNR_IDENTICAL_DB
