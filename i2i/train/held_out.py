"""How near the model comes to held-out pairs while it trains: their figures, and a sheet of them to look at.

Which features a perceptual figure was computed with is part of its name.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from stylepairs.datagen.images.colors import delta_e_2000
from stylepairs.datagen.images.files import png_bytes
from stylepairs.datagen.images.filters import PSNR_IDENTICAL_DB, psnr_db
from stylepairs.datagen.images.perceptual import Perceptual, perceptual_distance
from stylepairs.i2i.models.conditions import color_or
from stylepairs.i2i.models.glean import Edit
from stylepairs.i2i.models.prepared_glean import Network
from stylepairs.i2i.train.data import PairDataset, Sample
from stylepairs.i2i.train.losses import mean_color, texture_distance

# Of the model's pixels: over so wide cells textures are compared.
TEXTURE_CELL_PX = 8


@torch.no_grad()
def pair_figures(
    model: Network, dataset: PairDataset, perceptual: Perceptual, device: torch.device
) -> dict[str, float]:
    """Medians over a set of held-out pairs, the model's output against the pair's after image.

    l1_inside, psnr_outside_db: inside and outside the pair's mask; mask_l1: predicted against the pair's mask;
    delta_e_to_pair, delta_e_to_wanted: CIEDE2000 of the mean colour inside against the pair's, and (style color)
    against the wanted one; perceptual_NAME: masked LPIPS-like distance; texture_NAME: that of the features' local
    statistics. All with the pair's region, and once more without, as NAME_alone. confidence_pairs, confidence_refused:
    mean over the pairs, and over portraits that the feature refused, where there are any.
    """
    rows = []
    for index in range(len(dataset)):
        sample = {name: tensor[None].to(device) for name, tensor in dataset[index].items()}
        told, confidence = figures_of(model, sample, dataset.style, perceptual)
        alone, _ = figures_of(model, sample | {"region": torch.ones_like(sample["region"])}, dataset.style, perceptual)
        rows.append(told | {f"{name}_alone": value for name, value in alone.items()} | {"confidence": confidence})
    confidences = [row.pop("confidence") for row in rows]
    figures = {name: float(np.median([row[name] for row in rows])) for name in rows[0]}
    figures["confidence_pairs"] = float(np.mean(confidences))
    if dataset.refused:
        record = dataset.records[0]
        samples = (dataset.refused_sample(index, record) for index in range(len(dataset.refused)))
        batches = ({name: tensor[None].to(device) for name, tensor in sample.items()} for sample in samples)
        figures["confidence_refused"] = float(
            np.mean([float(run_sample(model, batch).confidence) for batch in batches])
        )
    return figures


def figures_of(model: Network, sample: Sample, style: str, perceptual: Perceptual) -> tuple[dict[str, float], float]:
    """The figures of one held-out pair, a batch of one, and the model's confidence."""
    edit = run_sample(model, sample)
    output, target, mask = edit.output.clamp(-1, 1), sample["target"], sample["mask"]
    edit_mask = sample["edit_mask"]
    colors = [mean_color(image, (edit_mask > 0.5).float())[0] for image in (output, target)]
    wanted = {}
    if style == "color":  # with more than it, what is edited is more than what is coloured
        wanted = {"delta_e_to_wanted": float(delta_e_2000(colors[0], color_or(sample["style"][0], colors[1]), dim=0))}
    features = perceptual.features(output), perceptual.features(target)
    return {
        "l1_inside": float(((output - target).abs() * mask).sum() / (3 * mask.sum()).clamp_min(1e-6)),
        "psnr_outside_db": psnr_outside_db(output[0], sample["photo"][0], mask[0]),
        "mask_l1": float((edit.mask - edit_mask).abs().mean()),
        "delta_e_to_pair": float(delta_e_2000(colors[0], colors[1], dim=0)),
        **wanted,
        f"perceptual_{perceptual.name}": float(perceptual_distance(*features, mask)[0]),
        f"texture_{perceptual.name}": float(texture_distance(*features, edit_mask, TEXTURE_CELL_PX)),
    }, float(edit.confidence)


@torch.no_grad()
def sample_sheet(model: Network, dataset: PairDataset, rows: int, device: torch.device) -> bytes:
    """PNG of pairs, one a row: photo, region, generator's own image, edit, predicted mask, output, target."""
    lines = []
    for index in np.linspace(0, len(dataset) - 1, rows).round().astype(int):
        sample = {name: tensor[None].to(device) for name, tensor in dataset[int(index)].items()}
        edit = run_sample(model, sample)
        cells = [sample["photo"], sample["region"] * 2 - 1, edit.generated, edit.edit, edit.mask * 2 - 1, edit.output]
        lines.append(torch.cat([cell.expand(-1, 3, -1, -1) for cell in [*cells, sample["target"]]], dim=3))
    sheet = F.pad(torch.cat(lines, dim=2), (2, 2, 2, 2), value=1.0)[0]
    return png_bytes(((sheet.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).cpu().numpy())


def run_sample(model: Network, sample: Sample) -> Edit:
    """One pass over a batch of samples."""
    edit: Edit = model(sample["photo"], sample["region"], sample["degree"], sample["style"])
    return edit


def psnr_outside_db(edited: torch.Tensor, photo: torch.Tensor, region: torch.Tensor) -> float:
    """PSNR of images [3,H,W] in [-1,1] where region [1,H,W] is 0; where it leaves nothing over, nothing has changed."""
    outside = (region == 0).float()
    return psnr_db(edited, photo, outside) if outside.any() else PSNR_IDENTICAL_DB
