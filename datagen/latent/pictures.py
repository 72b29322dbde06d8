"""Pictures of edits: people below each other, degrees beside each other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from stylepairs.datagen.images.files import to_uint8
from stylepairs.datagen.shell.durable import make_folder, replace_file
from stylepairs.datagen.shell.errors import InputError

KINDS = {".png": "PNG", ".jpg": "JPEG", ".webp": "WEBP"}


def write_strip(path: Path, rows: Sequence[torch.Tensor]) -> None:
    """Write rows of images, [N,3,H,W] each, as one picture (.png, .jpg or .webp). Raises InputError."""
    from PIL import Image

    kind = KINDS.get(path.suffix.lower())
    if kind is None:
        raise InputError(f"{path}: must end in {', '.join(KINDS)}")
    whole = torch.cat([torch.cat(list(row.clamp(-1, 1)), 2) for row in rows], 1)
    make_folder(path.parent)
    replace_file(path, lambda file: Image.fromarray(to_uint8(whole)).save(file, format=kind, quality=90))
