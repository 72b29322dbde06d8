"""What 1 000 000 pairs at 1024 px cost on 8 to 256 GPUs: time, money, storage (docs/notes/scale.md).

    python benchmarks/scale_model.py docs/notes/speed.json [--docs PAGE] [--price 2.0] [--efficiency 0.9] ...

Operations per step and bytes per pair are measured, by `benchmarks/speed --portraits FOLDER --only scale_inputs pairs`.
The time of a step on a GPU is an estimate, unless --pairs-per-gpu-hour gives a measured rate: the larger of operations
/ (peak * share reached) and bytes moved / (bandwidth * share reached).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent / "speed"))

from pages import put_into

from stylepairs.datagen.reconstruction.settings import InversionSettings, PhasedSettings, ReconstructionSettings

GPU_COUNTS = (8, 32, 64, 128, 256)
BYTES_PER_ELEMENT = 2  # bf16


@dataclass(frozen=True)
class Assumptions:
    """What is not measured here; every one is a parameter of the command."""

    pairs: int = 1_000_000  # accepted ones wanted
    pairs_per_portrait: float = 8.0  # that share one stage 0
    accepted_share: float = 0.85
    peak_tflops: float = 312.0  # dense bf16 of an A100
    peak_share: float = 0.4
    bandwidth_tb_s: float = 2.0  # of the same
    bandwidth_share: float = 0.6
    # Reads and writes of each activation in a step: 6 forward (convolution, filter, epilogue), twice that backward.
    passes: float = 18.0
    coarse_cost: float = 0.66  # of a step at half the side, in whole steps: measured at 512 px on a CPU
    encoder: int = 0  # 1: stage 0 starts at an encoder's prediction
    other_share: float = 0.25  # of the step's time on top: sketch, gate, composition, rendering
    price: float = 2.0  # per GPU-hour, any currency
    efficiency: float = 0.9  # of many GPUs: stragglers, starts, the last shards
    storage_price: float = 20.0  # per TB and month
    shard_pairs: int = 256
    pairs_per_gpu_hour: float = 0.0  # measured on the GPU in question; 0: estimate


@dataclass(frozen=True)
class Measured:
    """What the benchmark found at the target resolution."""

    gflop_per_step: float
    activations_millions: float
    bytes_per_pair: float
    encode_seconds: float
    steps_per_portrait: float
    steps_per_pair: float


@dataclass(frozen=True)
class Cost:
    gpus: int
    days: float
    gpu_hours: float
    money: float
    gigabytes_per_s: float  # written, all together
    encoder_cores: float  # busy with PNG, all together


def measured_of(results: Mapping[str, Any], assumed: Assumptions, images: str = "noise_images") -> Measured:
    """From speed.json; images: which of the two kinds the bytes are of. Steps are those that the settings allow."""
    rows = results["scale_inputs"]["rows"]
    stage0 = InversionSettings.model_validate({})
    stage0 = stage0.near() if assumed.encoder else stage0
    return Measured(
        rows["step"]["gflop"],
        rows["step"]["activations_millions"],
        rows[images]["bytes_per_pair"],
        rows[images]["encode_seconds"],
        whole_steps(stage0, assumed),
        whole_steps(ReconstructionSettings.model_validate({}), assumed),
    )


def whole_steps(settings: PhasedSettings, assumed: Assumptions) -> float:
    """Steps at the generator's side that take as long as all of them."""
    coarse = settings.coarse_share * settings.steps
    return settings.steps + settings.decay_steps - coarse * (1 - assumed.coarse_cost)


def step_seconds(measured: Measured, assumed: Assumptions) -> tuple[float, float]:
    """Seconds of one portrait's step on one GPU, by operations and by memory traffic; the larger one counts."""
    by_operations = measured.gflop_per_step / 1e3 / (assumed.peak_tflops * assumed.peak_share)
    moved_tb = measured.activations_millions * BYTES_PER_ELEMENT * assumed.passes / 1e6
    return by_operations, moved_tb / (assumed.bandwidth_tb_s * assumed.bandwidth_share)


def pairs_per_gpu_hour(measured: Measured, assumed: Assumptions) -> float:
    """Pairs made, accepted or not."""
    if assumed.pairs_per_gpu_hour:
        return assumed.pairs_per_gpu_hour
    steps = measured.steps_per_portrait / assumed.pairs_per_portrait + measured.steps_per_pair
    return 3600 / (steps * max(step_seconds(measured, assumed)) * (1 + assumed.other_share))


def cost(measured: Measured, assumed: Assumptions, gpus: int) -> Cost:
    """Of `assumed.pairs` accepted pairs; one GPU alone wastes nothing, more reach `efficiency` of their sum."""
    efficiency = assumed.efficiency if gpus > 1 else 1.0
    made = assumed.pairs / assumed.accepted_share
    hours = made / (pairs_per_gpu_hour(measured, assumed) * gpus * efficiency)
    written = made / (hours * 3600)
    return Cost(gpus, hours / 24, hours * gpus, hours * gpus * assumed.price,
                written * measured.bytes_per_pair / 1e9, written * measured.encode_seconds)  # fmt: skip


def table(measured: Measured, assumed: Assumptions) -> list[str]:
    lines = [
        "| GPUs | days | GPU-hours | money | written, GB/s | cores for PNG |",
        "|---|---|---|---|---|---|",
    ]
    for one in (cost(measured, assumed, gpus) for gpus in GPU_COUNTS):
        lines.append(
            f"| {one.gpus} | {one.days:.2f} | {one.gpu_hours:,.0f} | {one.money:,.0f} | {one.gigabytes_per_s:.3f} "
            f"| {one.encoder_cores:.1f} |"
        )
    return lines


def storage(measured: Measured, assumed: Assumptions) -> dict[str, float]:
    """Shards and bytes of all pairs made: rejected ones are stored too, with their reasons."""
    made = assumed.pairs / assumed.accepted_share
    terabytes = made * measured.bytes_per_pair / 1e12
    return {
        "terabytes": terabytes,
        "shards": -(-made // assumed.shard_pairs),
        "gigabytes_per_shard": assumed.shard_pairs * measured.bytes_per_pair / 1e9,
        "money_per_month": terabytes * assumed.storage_price,
    }


def markdown(results: Mapping[str, Any], assumed: Assumptions) -> str:
    """The page's tables: inputs with where they come from, cost, storage."""
    rows, by_images = results["scale_inputs"]["rows"], {}
    for images in ("noise_images", "smooth_images"):
        by_images[images] = measured_of(results, assumed, images)
    measured = by_images["noise_images"]
    operations, traffic = (1e3 * seconds for seconds in step_seconds(measured, assumed))
    estimate = "given" if assumed.pairs_per_gpu_hour else "**estimate, not measured**"
    size = f"{rows['step']['resolution']} px"
    lines = ["| input | value | from |", "|---|---|---|"]
    lines += [
        f"| operations of a step, {size} | {measured.gflop_per_step:.0f} GFLOP | counted |",
        f"| activations written by the convolutions, forward | {measured.activations_millions:.0f} M | counted |",
        f"| processor time of the same step, bf16 | {rows['step']['cpu_seconds_bf16']:.1f} core-s | measured |",
        f"| bytes of a pair, noise-like images | {measured.bytes_per_pair / 1e6:.1f} MB | measured |",
        f"| ... enlarged smooth faces | {by_images['smooth_images'].bytes_per_pair / 1e6:.1f} MB | measured |",
        f"| ... of these, noise maps | {rows['noise_images']['noise_bytes'] / 1e6:.1f} MB | measured |",
        f"| encoding a pair | {measured.encode_seconds:.2f} core-s | measured |",
        f"| steps of stage 0, of a pair | {measured.steps_per_portrait:.0f}, {measured.steps_per_pair:.0f} "
        "| settings: the most that are taken, in whole steps |",
        f"| a step on the GPU, by operations | {operations:.1f} ms | **estimate, not measured** |",
        f"| ... by memory traffic (the larger counts) | {traffic:.1f} ms | **estimate, not measured** |",
        f"| pairs per GPU-hour | {pairs_per_gpu_hour(measured, assumed):,.0f} | {estimate} |",
    ]
    if "pairs" in results:
        fast = results["pairs"]["rows"]["1 workers"]
        lines.append(f"| pairs per core-hour at 128 px | {3600 * fast['rate']:,.0f} | measured, embedded generator |")
        lines.append(f"| bytes of a pair at 128 px | {fast['bytes_per_pair'] / 1e6:.2f} MB | measured, the same |")
    lines += ["", "Assumed: " + ", ".join(f"{f.name} {getattr(assumed, f.name):g}" for f in fields(assumed)) + ".", ""]
    lines += table(measured, assumed) + [
        "",
        "| images | TB | shards | GB a shard | storage a month |",
        "|---|---|---|---|---|",
    ]
    for images, one in by_images.items():
        found = storage(one, assumed)
        lines.append(
            f"| {images.replace('_', ' ')} | {found['terabytes']:.1f} | {found['shards']:,.0f} "
            f"| {found['gigabytes_per_shard']:.2f} | {found['money_per_month']:,.0f} |"
        )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="speed.json of benchmarks/speed")
    parser.add_argument("--docs", type=Path, help="page whose figures are replaced")
    for field in fields(Assumptions):
        name = "--" + field.name.replace("_", "-")
        parser.add_argument(name, type=type(field.default), default=field.default, dest=field.name)
    options = parser.parse_args()
    results = json.loads(options.results.read_text())
    if "scale_inputs" not in results:
        parser.error(f"{options.results}: has no scale_inputs; run benchmarks/speed --only scale_inputs")
    assumed = Assumptions(**{field.name: getattr(options, field.name) for field in fields(Assumptions)})
    found = markdown(results, assumed)
    print(found)
    if options.docs is not None:
        put_into(options.docs, found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
