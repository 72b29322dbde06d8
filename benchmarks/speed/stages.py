"""The stages of the product around the generator: reconstruction, the single-pass editor, building pairs."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import generators
import measure
import peers
import torch
from drawn import drawn, exactly, patch, random_generator

from stylepairs.datagen.compositing.compose import region_mask
from stylepairs.datagen.images.perceptual import Perceptual, load_perceptual
from stylepairs.datagen.pairs.shards import read_index
from stylepairs.datagen.portraits.sketch import Sketch
from stylepairs.datagen.reconstruction.prior import WPrior
from stylepairs.datagen.reconstruction.reconstruct import Problem, reconstruct
from stylepairs.datagen.reconstruction.rendering import synthesise
from stylepairs.datagen.reconstruction.settings import ReconstructionSettings
from stylepairs.datagen.stylegan.checkpoints import load_generator
from stylepairs.datagen.stylegan.generator import Generator

Rows = dict[str, dict[str, Any]]


class Bench:
    """A generator with portraits that it drew itself, ready to be reconstructed for a sketch each."""

    def __init__(self, generator: Generator, count: int, perceptual: Perceptual):
        self.generator, self.perceptual = generator, perceptual
        self.prior = WPrior.fit(generator, samples=2000)
        z = torch.randn(count, generator.config.z_dim, generator=torch.Generator().manual_seed(2))
        with torch.no_grad():
            ws = generator.mapping(z)
        self.portraits, self.inversions = drawn(generator, ws)
        self.sketches = [sketch_of(portrait.image) for portrait in self.portraits]

    def reconstruct(self, count: int, steps: int, batch: int, precision: Any) -> object:
        """Reconstruct the first `count` portraits in exactly `steps` steps each."""
        settings = ReconstructionSettings(**exactly(steps), batch=batch, precision=precision)
        lists = (self.portraits[:count], self.inversions[:count], self.sketches[:count])
        return reconstruct(Problem(self.generator, self.perceptual, self.prior, *lists, settings))


def sketch_of(image: torch.Tensor) -> Sketch:
    """A reddish patch, compared in Lab as hair colour is."""
    mask = patch(image)
    color = torch.tensor([0.3, -0.4, -0.4])[:, None, None]
    return Sketch(image.lerp(color, 0.7 * mask), mask, 1 - region_mask(mask), 16, "lab")


def reconstruction_step(generator: Generator, precision: str, batch: int, steps: int, rounds: int) -> Rows:
    """One step of one portrait in the full loop, beside the generator's own forward and backward pass.

    The step is the difference of a longer and a shorter call, so that setting up and rendering the result are left out.
    """
    bench = Bench(generator, batch, load_perceptual())
    ws = torch.stack([one.ws for one in bench.inversions])
    maps = [torch.stack([level] * batch)[:, None] for level in bench.inversions[0].noise]

    def render(latents: torch.Tensor) -> torch.Tensor:
        return synthesise(generator, latents, maps, precision)

    timed = measure.interleaved(
        {
            "short": lambda: bench.reconstruct(batch, 2, batch, precision),
            "long": lambda: bench.reconstruct(batch, 2 + steps, batch, precision),
            "generator": lambda: [generators.forward_backward(render, ws) for _ in range(steps)],
        },
        rounds,
    )
    loop = measure.Timed(
        {"loop": [a - b for a, b in zip(timed.seconds["long"], timed.seconds["short"], strict=True)]},
        {"loop": [a - b for a, b in zip(timed.cpu_seconds["long"], timed.cpu_seconds["short"], strict=True)]},
    )
    names = {"loop": f"whole step, {precision}", "generator": f"generator alone, {precision}"}
    both = measure.Timed(
        {names["loop"]: loop.seconds["loop"], names["generator"]: timed.seconds["generator"]},
        {names["loop"]: loop.cpu_seconds["loop"], names["generator"]: timed.cpu_seconds["generator"]},
    )
    return measure.rows_of(both, batch * steps)


def sweep_portraits(counts: list[int], steps: int, rounds: int) -> dict[str, Rows]:
    """A portrait's share of reconstructing 1, 2, ... portraits with the embedded generator in batches of 4."""
    bench = Bench(load_generator("embedded"), max(counts), load_perceptual())
    found: dict[str, Rows] = {}
    runs = {
        f"{precision} {count}": (lambda count=count, precision=precision: bench.reconstruct(count, steps, 4, precision))
        for precision in ("fp32", "bf16")
        for count in counts
    }
    timed = measure.interleaved(runs, rounds, warmup=0)
    for name in runs:
        precision, count = name.split()
        row = measure.row(timed.seconds[name], timed.cpu_seconds[name], int(count) * steps)
        found.setdefault(count, {})[f"ours, {precision}"] = row
    return found


def editor_inference(size_px: int, channel_base: int, batch: int, rounds: int) -> Rows:
    """One photo through the editor, as trained and as prepared for production, beside GFPGAN's network."""
    from stylepairs.i2i.models.glean import Glean, GleanConfig
    from stylepairs.i2i.models.prepared_glean import prepare

    model = Glean(random_generator(size_px, channel_base), GleanConfig()).eval()
    roughened(model)
    inputs = [torch.rand(batch, 3, size_px, size_px) * 2 - 1, torch.ones(batch, 1, size_px, size_px)]
    inputs += [torch.ones(batch), torch.zeros(batch, model.config.style_channels)]
    prepared = {name: prepare(model, dtype) for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16))}
    calls: dict[str, Callable[[], Any]] = {"editor, as trained, fp32": lambda: model(*inputs)}
    for name, network in prepared.items():
        calls[f"editor, prepared, {name}"] = partial(network, *inputs)
    if {"basicsr", "gfpgan"} <= peers.installed().keys():
        gfpgan = peers.load_gfpgan(size_px, channel_base // 16384)
        calls["GFPGANv1Clean, fp32"] = lambda: gfpgan(inputs[0], return_rgb=False, randomize_noise=False)
    with torch.no_grad():
        more: dict[str, dict[str, Any]] = {}
        wanted = model(*inputs).output
        gflop = measure.counted_gflop(calls["editor, as trained, fp32"]) / batch
        for name, call in calls.items():
            ours = name.startswith("editor")
            more[name] = {"gflop": gflop if ours else measure.counted_gflop(call) / batch}
            if "prepared" in name:
                error = (call().output.clamp(-1, 1) - wanted.clamp(-1, 1)).abs().max() / 2
                more[name]["image_error"] = float(error)
        return measure.rows_of(measure.interleaved(calls, rounds), batch, more)


def roughened(model: torch.nn.Module) -> None:
    """Give the layers that start at zero small weights, so that every branch shows in the result."""
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad and not parameter.any():
                parameter.normal_(std=0.01)


def training_step(rounds: int, batch_size: int) -> Rows:
    """One pair of a training step of the hair-colour recipe, discriminator included, on made-up pairs."""
    from stylepairs.datagen.recipe import load_recipe
    from stylepairs.i2i.train import training
    from stylepairs.i2i.train.settings import TrainingSettings

    recipe = load_recipe("hair_color", "i2i", TrainingSettings, [])
    runs: dict[str, Callable[[], Any]] = {}
    for name, precision in (("fp32", "no"), ("bf16", "bf16")):
        changed = {"mixed_precision": precision, "batch_size": batch_size, "init": "none"}
        changed |= {"discriminator": recipe.discriminator.model_copy(update={"start_step": 0})}
        with fresh_accelerator():
            run = training.build(recipe.model_copy(update=changed), "hair_color", {})
        run.step = 1  # step 0 has the R1 penalty, every sixteenth after it
        batch = made_up_batch(batch_size, run.model)
        runs[f"training step, {name}"] = partial(training.training_step, run, batch)
    return measure.rows_of(measure.interleaved(runs, rounds), batch_size)


@contextmanager
def fresh_accelerator() -> Iterator[None]:
    """accelerate keeps one precision a process; each run was wrapped with its own when it was built."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    yield


def made_up_batch(n: int, model: Any) -> dict[str, torch.Tensor]:
    """All that a training step of an edit takes of n pairs."""
    size, generator = model.size_px, model.generator
    torch.manual_seed(4)
    photo = torch.rand(n, 3, size, size) * 2 - 1
    mask = torch.zeros(n, 1, size, size)
    mask[..., : size // 2, :] = 1
    return {
        "photo": photo, "target": photo.lerp(photo.flip(1), mask), "region": mask, "mask": mask,
        "edit_mask": mask,
        "degree": torch.ones(n), "style": torch.rand(n, 3) - 0.5, "applies": torch.ones(n),
        "ws": torch.randn(n, generator.num_ws, generator.config.w_dim), "ws_valid": torch.ones(n),
    }  # fmt: skip


def pairs_per_hour(portraits: Path, limit: int, pairs_per_portrait: int, workers: list[int], rounds: int) -> Rows:
    """`datagen build hair_color` from nothing, start of the program and stage 0 included; per pair made, accepted or
    not (those of portraits that the feature refuses do not count)."""
    more: dict[str, dict[str, Any]] = {}
    made = 1

    def build(count: int) -> None:
        nonlocal made
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "pairs"
            command = [sys.executable, "-m", "stylepairs.datagen", "build", "hair_color", "--portraits", str(portraits)]
            command += ["--out", str(out), "--cache", f"{folder}/cache", "--limit", str(limit)]
            command += ["--workers", str(count), "--set", f"pairs_per_portrait={pairs_per_portrait}"]
            command += ["--shard-size", str(4 * pairs_per_portrait)]  # a shard fills one batch of portraits
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            records = [record for record in read_index(out, accepted_only=False) if record.figures]
            made = len(records)
            if not made:
                raise SystemExit(f"{portraits}: hair_color refuses the first {limit} portraits; nothing to measure")
            size = sum(length for record in records for _, length in record.parts.values()) / made
            share = sum(record.accepted for record in records) / made
            more[f"{count} workers"] = {"bytes_per_pair": size, "accepted_share": share}

    runs = {f"{count} workers": (lambda count=count: build(count)) for count in workers}
    timed = measure.interleaved(runs, rounds, warmup=0)
    return measure.rows_of(timed, made, more)
