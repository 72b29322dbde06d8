"""What a step and a stored pair cost at 1024 px, for the cost model (benchmarks/scale_model.py)."""

from __future__ import annotations

import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import measure
import stages
import torch
import torch.nn.functional as F
from drawn import random_generator

from stylepairs.datagen.images.files import to_uint8
from stylepairs.datagen.images.perceptual import load_perceptual
from stylepairs.datagen.pairs.record import Pair, PairRecord
from stylepairs.datagen.pairs.shards import write_shard
from stylepairs.datagen.stylegan.checkpoints import load_generator
from stylepairs.datagen.stylegan.generator import Generator


def measured(resolution: int, channel_base: int) -> dict[str, dict[str, Any]]:
    """Operations, activations and processor time of a step; bytes and encoding time of a pair of two kinds of
    images."""
    generator = random_generator(resolution, channel_base)
    bench = stages.Bench(generator, 1, load_perceptual())
    gflop, seconds = {}, {}
    for steps in (2, 3):
        gflop[steps] = measure.counted_gflop(partial(bench.reconstruct, 1, steps, 1, "fp32"))
        start = measure.cpu_seconds()
        bench.reconstruct(1, steps, 1, "bf16")
        seconds[steps] = measure.cpu_seconds() - start
    faces = smooth_faces(resolution)
    return {
        "step": {
            "resolution": resolution,
            "gflop": gflop[3] - gflop[2],
            "activations_millions": activations_millions(generator),
            "cpu_seconds_bf16": seconds[3] - seconds[2],
            "peak_memory_mb": measure.peak_memory_mb(),
        },
        "noise_images": stored(generator, bench.portraits[0].image[None].expand(6, -1, -1, -1)),
        "smooth_images": stored(generator, faces),
    }


def activations_millions(generator: Generator) -> float:
    """Elements that the convolutions of one image write, in millions."""
    found = [layer.weight.shape[0] * layer.resolution**2 for layer in generator.synthesis.noisy_layers()]
    return sum(found) / 1e6


def smooth_faces(resolution: int) -> torch.Tensor:
    """Six faces of the embedded generator, enlarged: as smooth as images of that size can be."""
    embedded = load_generator("embedded")
    z = torch.randn(6, embedded.config.z_dim, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        faces: torch.Tensor = embedded(z, truncation_psi=0.7)
    return F.interpolate(faces, size=(resolution, resolution), mode="bicubic").clamp(-1, 1)


def stored(generator: Generator, images: torch.Tensor) -> dict[str, float]:
    """Bytes and encoding seconds of one pair with these images and a mask, the generator's latents and noise."""
    before, after, sketch, generated_before, generated_after, _ = (to_uint8(image) for image in images)
    resolution = images.shape[-1]
    mask = (stages.sketch_of(images[0]).edit_mask[0] * 255).to(torch.uint8).numpy()
    latents = torch.zeros(generator.num_ws, generator.config.w_dim).half().numpy()
    noise = [level[0, 0].half().numpy() for level in generator.noise_maps()]
    record = PairRecord("000000", "hair_color", {}, 1.0, True, [], {"degree": 1.0}, "0", "0", "0", 0, "0", "train")
    pair = Pair(record, before, after, mask, sketch, generated_before, generated_after, latents, latents, noise)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pairs-00000.tar"
        start = time.process_time()
        write_shard(path, [pair])
        seconds = time.process_time() - start
        return {"bytes_per_pair": path.stat().st_size, "noise_bytes": sum(x.nbytes for x in noise),
                "encode_seconds": seconds, "resolution": resolution}  # fmt: skip
