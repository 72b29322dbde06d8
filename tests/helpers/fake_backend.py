"""Steps of a build that cost nothing, for tests of what is around them; a module, so that worker processes find it."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path
from types import SimpleNamespace

import torch

from stylepairs.datagen.build.models import Backend, Models
from stylepairs.datagen.build.quality import Instruments
from stylepairs.datagen.images.perceptual import load_perceptual
from stylepairs.datagen.portraits.portrait import CLASS, Portrait
from stylepairs.datagen.reconstruction.inversion import Inversion

SIZE_PX = 32
COUNT = 6
# Environment variables, so that they reach worker processes.
PAUSE = "FAKE_PAUSE_S"
NOT_FINITE = "FAKE_NOT_FINITE"
DIGEST = "FAKE_DIGEST"
PORTRAITS = "FAKE_PORTRAITS"
# The largest file that `fake_build` may write, in bytes; Python ignores SIGXFSZ, so that writing more is an error.
FILE_LIMIT = "FAKE_FILE_LIMIT"


class FakePrior:
    def distance(self, ws: torch.Tensor) -> torch.Tensor:
        return ws.flatten(1).norm(dim=1)


def list_portraits(folder: Path) -> list[str]:
    return [f"portrait_{index:03d}" for index in range(COUNT)]


def load_portrait(folder: Path, name: str) -> tuple[Portrait, str]:
    number = int(name.rpartition("_")[2])
    image = torch.rand(3, SIZE_PX, SIZE_PX, generator=torch.Generator().manual_seed(number)) * 2 - 1
    label = torch.full((SIZE_PX, SIZE_PX), CLASS["skin"], dtype=torch.uint8)
    label[:12] = CLASS["hair"]
    hair = (label == CLASS["hair"])[None].float()
    if number == 5:  # a bald one, whom the feature refuses
        hair = torch.zeros_like(hair)
    points = torch.rand(68, 2, generator=torch.Generator().manual_seed(number)) * SIZE_PX
    points[:, 1] = points[:, 1] / 2 + SIZE_PX / 2  # the face is below the hair
    return Portrait(name, image, label, hair, points, f"{number:064x}"), f"photo of {name}"


def digest_portraits(folder: Path, names) -> str:
    return hashlib.sha256(f"{names} {os.environ.get(PORTRAITS)}".encode()).hexdigest()


def load_models(
    generator: str, perceptual: str, perceptual_weights: str | None, device: str, encoder: str = "none"
) -> Models:
    instruments = Instruments(load_perceptual("pyramid"), FakePrior())
    digests = {} if perceptual_weights is None else {"perceptual_weights": Path(perceptual_weights).read_text()}
    return Models(None, os.environ.get(DIGEST, "f" * 64), SIZE_PX, instruments, device, None, digests)


def invert(generator, perceptual, portraits, settings, prior, progress, start=None) -> list[Inversion]:
    made = []
    for done, portrait in enumerate(portraits, 1):
        time.sleep(float(os.environ.get(PAUSE, "0")))
        draw = torch.Generator().manual_seed(int(portrait.digest, 16))
        ws = torch.randn(6, 8, generator=draw)
        noise = [torch.randn(r, r, generator=draw) for r in (4, 8, 8)]
        made.append(Inversion(ws, noise, portrait.image * 0.9, {"psnr_db": 25.0}))
        progress(done, len(portraits))
    return made


def reconstruct(problem, progress):
    made = []
    for done, case in enumerate(problem.cases, 1):
        made.append(_reconstruct(*case))
        progress(done, len(problem.cases))
    return made


def _reconstruct(portrait, inversion, sketch):
    time.sleep(float(os.environ.get(PAUSE, "0")))
    after = sketch.image + 0.05 * torch.randn(3, SIZE_PX, SIZE_PX, generator=torch.Generator().manual_seed(1))
    if portrait.name == os.environ.get(NOT_FINITE):
        after = after * float("nan")
    return SimpleNamespace(
        ws_before=inversion.ws.half().float(),
        ws_after=(inversion.ws + 0.1).half().float(),
        noise=[noise.half().float() for noise in inversion.noise],
        generated_before=inversion.image,
        generated_after=after,
        figures={"steps": 3.0},
    )


def compose(portrait, reconstruction, sketch):
    mask = sketch.edit_mask
    after = torch.where(mask > 0, reconstruction.generated_after, portrait.image)
    return SimpleNamespace(after=after, mask=mask)


BACKEND = Backend(list_portraits, load_portrait, digest_portraits, load_models, invert, reconstruct, compose)
