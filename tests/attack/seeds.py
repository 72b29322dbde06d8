"""Whole inputs of every kind, made once: what the attacks damage."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from helpers import tiny_build, tiny_pairs
from PIL import Image

from stylepairs.datagen.portraits.analysis.prepare import prepare_photos
from stylepairs.i2i.train.settings import TrainingSettings
from stylepairs.i2i.train.training import train

PHOTO = Path(__file__).parents[2] / "recipes" / "photos" / "train" / "portrait_001.jpg"
TRAINING: dict[str, Any] = {
    "style": "color",
    "perceptual": "pyramid",
    "model": {"channel_base": 256, "channel_max": 16},
    "losses": {"color": 0.5, "adversarial": 0.05},
    "discriminator": {"channel_base": 128, "channel_max": 16, "r1_every": 2},
    "steps": 4,
    "batch_size": 2,
    "warmup_steps": 1,
    "log_every_steps": 1,
    "sample_every_steps": 2,
    "checkpoint_every_steps": 2,
    "val_pairs": 1,
}


def write_seeds(folder: Path) -> None:
    """photos/, faces/ (tiny portraits), prepared/, pairs/, run/, recipe.yaml, generator.safetensors and .pt."""
    torch.set_num_threads(1)
    _write_photos(folder / "photos")
    prepare_photos([folder / "photos" / "photo.png"], folder / "prepared", 64)
    tiny_build.write_portraits(folder / "faces")
    generator = Path(tiny_build.generator_file())
    (folder / "generator.safetensors").write_bytes(generator.read_bytes())
    torch.save({"g_ema": tiny_build.tiny_generator().state_dict()}, folder / "generator.pt")
    torch.save({"x": torch.zeros(3)}, folder / "weights.pth")
    tiny_pairs.write_pairs(folder / "pairs", people=6)
    training = TRAINING | {"generator": str(folder / "generator.safetensors")}
    recipe = {"datagen": tiny_build.RECIPE, "i2i": training}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    train(TrainingSettings.model_validate(training), folder / "pairs", folder / "run", feature="hair_color")


def _write_photos(folder: Path) -> None:
    """One face in every format and some of their variants, small."""
    folder.mkdir()
    with Image.open(PHOTO) as opened:
        photo = opened.convert("RGB").resize((160, 160))
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "a camera"
    photo.save(folder / "photo.png")
    photo.save(folder / "photo.jpg", exif=exif, quality=90)
    photo.save(folder / "progressive.jpg", progressive=True)
    photo.save(folder / "photo.webp")
    photo.save(folder / "photo.tif", compression="tiff_lzw")
    photo.save(folder / "photo.gif")
    photo.save(folder / "photo.bmp")
    photo.save(folder / "photo.ppm")
    photo.convert("CMYK").save(folder / "cmyk.jpg")
    photo.convert("P").save(folder / "palette.png")
    photo.convert("RGBA").save(folder / "alpha.png")
    photo.convert("L").save(folder / "grey.png")
    Image.fromarray(np.asarray(photo.convert("L")).astype(np.uint16) * 257).save(folder / "deep.png")
    photo.save(folder / "several.gif", save_all=True, append_images=[photo.rotate(90)])
    buffer = io.BytesIO()
    Image.init()
    if "AVIF" in Image.SAVE:
        photo.save(buffer, "AVIF")
        (folder / "photo.avif").write_bytes(buffer.getvalue())
