"""Stage 0 results kept on disk: an inversion depends on the portrait, the generator and the settings, on no feature.

A file is named by the digest of all that it depends on, so a file that exists is the right one; a damaged one counts
as absent. Nothing is rounded: a cached inversion leads to the same bits as a fresh one.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError

from stylepairs.datagen.portraits.portrait import Portrait
from stylepairs.datagen.reconstruction.inversion import Inversion
from stylepairs.datagen.shell.decode import Damaged, read_safetensors
from stylepairs.datagen.shell.durable import make_folder, remove_stale, safetensors_bytes, write_bytes
from stylepairs.datagen.shell.regular import is_regular
from stylepairs.datagen.shell.storage.staged import drop

# Raised whenever the same inputs would be inverted differently.
INVERSION_VERSION = 2
# Settings of inversion and reconstruction that take memory or time and change no bit of the result.
SAME_BITS = {"recompute_from_px"}
_FIGURES = TypeAdapter(dict[str, float])


@dataclass(frozen=True)
class InversionCache:
    """A folder of inversions by one generator with the same settings; `context` is all else that they depend on."""

    folder: Path
    generator_digest: str
    settings: dict[str, Any]
    context: dict[str, str]

    def path(self, portrait: Portrait) -> Path:
        """Where the portrait's inversion is kept, whether it exists or not."""
        identity = {
            "portrait": portrait_key(portrait),
            "generator": self.generator_digest,
            "settings": {name: value for name, value in self.settings.items() if name not in SAME_BITS},
            "context": self.context,
            "version": INVERSION_VERSION,
        }
        name = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
        return self.folder / name[:2] / f"{name}.safetensors"

    def load(self, portrait: Portrait) -> Inversion | None:
        """The portrait's inversion as it was stored; None when it is absent or damaged."""
        path = self.path(portrait)
        if not is_regular(path):
            return None
        try:
            stored, metadata = read_safetensors(path)
            figures = _FIGURES.validate_json(metadata.get("figures", ""))
        except (Damaged, ValidationError):
            return None
        finally:
            drop(path)
        known = all(tensor.dtype in (torch.float16, torch.float32) for tensor in stored.values())
        if not known or metadata.get("sha256") != _digest(stored) or not {"ws", "image"} <= set(stored):
            return None
        tensors = {name: tensor.float().to(portrait.image.device) for name, tensor in stored.items()}
        noise = [tensors[name] for name in sorted(tensors) if name.startswith("noise.")]
        return Inversion(tensors["ws"], noise, tensors["image"], figures)

    def store(self, portrait: Portrait, inversion: Inversion) -> None:
        """Keep an inversion. Raises InputError when the disk is full."""
        tensors = {"ws": inversion.ws, "image": inversion.image}
        tensors |= {f"noise.{index:02d}": level for index, level in enumerate(inversion.noise)}
        tensors = {name: _smallest(tensor) for name, tensor in tensors.items()}
        data = safetensors_bytes(tensors, {"figures": json.dumps(inversion.figures), "sha256": _digest(tensors)})
        path = self.path(portrait)
        make_folder(path.parent)
        remove_stale(path.parent)
        write_bytes(path, data)
        drop(path)


def _digest(tensors: dict[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {list(tensors[name].shape)}".encode())
        digest.update(tensors[name].numpy().tobytes())
    return digest.hexdigest()


def _smallest(tensor: torch.Tensor) -> torch.Tensor:
    """As float16 where that loses nothing (latents and noise are rounded already), else float32."""
    tensor = tensor.detach().float().cpu().contiguous()
    half = tensor.half()
    return half if torch.equal(half.float(), tensor) else tensor


def portrait_key(portrait: Portrait) -> str:
    """sha256 over all that a portrait holds: its digest names the image only, but labels and points may be redone."""
    digest = hashlib.sha256(portrait.digest.encode())
    for tensor in (portrait.label, portrait.hair.float(), portrait.points68.float()):
        digest.update(tensor.contiguous().cpu().numpy().tobytes())
    return digest.hexdigest()
