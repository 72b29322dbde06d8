"""How good a generator is: kernel distance (KID, Binkowski et al. 2018) of its samples to held-out portraits, and how
well it brings those back: by stage 0 of a build, and with the generator's own noise maps left as they are.

    python recipes/generator/figures.py WEIGHTS... --portraits DIR... [--trained-on DIR... --shares SHARE...]

prints a row of a table for each WEIGHTS (safetensors in the embedded format), and, with --trained-on, one for photos of
these folders in these shares, which no generator of them can be expected to be nearer than. Kernel distances are on
EfficientNet-Lite0 features, which the training's losses see too, and on those of the embedded landmark network, which
no loss sees.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from data import Portraits, check_shares

from stylepairs.datagen.images.files import write_png
from stylepairs.datagen.images.perceptual import load_perceptual
from stylepairs.datagen.portraits.analysis.analyser import WEIGHTS, load_network
from stylepairs.datagen.portraits.analysis.networks import LandmarkNet
from stylepairs.datagen.portraits.portrait import bare_portrait
from stylepairs.datagen.reconstruction.inversion import invert
from stylepairs.datagen.reconstruction.settings import InversionSettings
from stylepairs.datagen.shell.errors import InputError, exit_on_bad_input
from stylepairs.datagen.stylegan.checkpoints import load_generator
from stylepairs.datagen.stylegan.generator import Generator

SAMPLES = 512
PHOTO_PX = 128  # of the photos drawn
BROUGHT_BACK = 12  # portraits, evenly over a folder
HOW = {
    "W+ and noise": InversionSettings.model_validate({}),
    "W+ alone": InversionSettings.model_validate({"noise_learning_rate": 0.0}),
}

Pooled = Callable[[torch.Tensor], torch.Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path, nargs="*", help="generators in the embedded format")
    parser.add_argument("--portraits", type=Path, nargs="+", required=True, help="held-out folders with aligned/")
    parser.add_argument(
        "--trained-on", type=Path, nargs="+", default=[], help="folders with aligned/ to draw photos of"
    )
    parser.add_argument("--shares", type=float, nargs="+", help="how often each of them is drawn")
    parser.add_argument("--count", type=int, default=BROUGHT_BACK, help="portraits of each folder to bring back")
    args = parser.parse_args()
    check_shares(parser, args.shares, args.trained_on, "--trained-on")
    if args.count < 0:
        parser.error(f"--count {args.count}: must be 0 or more")
    with exit_on_bad_input():
        print_table(args)


def print_table(args: argparse.Namespace) -> None:
    """Raises InputError."""
    folders = [f"{folder.parent.name}/{folder.name}" for folder in args.portraits]
    figures = [f"kernel distance {name}: features, landmarks" for name in ("all", *folders)]
    brought = [f"{name}: {how}" for name in folders for how in HOW] if args.count else []
    figures += brought
    print("| generator | " + " | ".join(figures) + " |\n" + "|---" * (len(figures) + 1) + "|")
    both = {"features": pooled_features(), "landmarks": pooled_landmarks()}
    if args.trained_on:
        sets = held_out(args.portraits, PHOTO_PX)
        photos = drawn([Portraits([folder], PHOTO_PX).images for folder in args.trained_on], args.shares)
        cells = _cells(distances_of(photos, sets, both)) + ["" for _ in brought]
        print("| photos | " + " | ".join(cells) + " |", flush=True)
    for path in args.weights:
        generator = load_generator(path).eval().requires_grad_(False)
        sets = held_out(args.portraits, generator.config.img_resolution)
        cells = _cells(kernel_distances(generator, sets, both))
        for images in sets.values() if args.count else []:
            chosen = images[torch.linspace(0, len(images) - 1, args.count).long()]
            cells += ["{:.1f} dB, {:.3f}".format(*bring_back(generator, chosen, how)) for how in HOW.values()]
        print(f"| {path.parent.name}/{path.stem} | " + " | ".join(cells) + " |", flush=True)


def held_out(folders: Sequence[Path], resolution: int) -> dict[Path, torch.Tensor]:
    """Each folder's portraits, uint8 [M,3,R,R]. Raises InputError where there are too few to measure a distance to."""
    sets = {folder: Portraits([folder], resolution).images for folder in folders}
    for folder, images in sets.items():
        if len(images) < 2:
            raise InputError(f"{folder}: one portrait, whose distribution has no width; give two or more")
    return sets


def kernel_distances(
    generator: Generator, sets: Mapping[Path, torch.Tensor], features: Mapping[str, Pooled] | None = None
) -> dict[str, float]:
    """Times 1000, to all sets (uint8 [M,3,R,R]) together and to each alone: {"all: features": ..., ...}.

    features None: `pooled_features` alone.
    """
    return distances_of(samples(generator), sets, {"features": pooled_features()} if features is None else features)


def distances_of(
    fakes: torch.Tensor, sets: Mapping[Path, torch.Tensor], features: Mapping[str, Pooled]
) -> dict[str, float]:
    """As `kernel_distances`, of images [N,3,R,R] in [-1,1]."""
    named = {"all": torch.cat(list(sets.values()))}
    named |= {f"{folder.parent.name}/{folder.name}": images for folder, images in sets.items()}
    return {
        f"{which}: {name}": kernel_distance(fakes, images, pooled)
        for which, images in named.items()
        for name, pooled in features.items()
    }


def drawn(folders: Sequence[torch.Tensor], shares: Sequence[float] | None, count: int = SAMPLES) -> torch.Tensor:
    """Photos [count,3,R,R] in [-1,1] of folders uint8 [M,3,R,R], in these shares (None: by their sizes), none twice."""
    generator = torch.Generator().manual_seed(2)
    wanted = torch.tensor([len(images) for images in folders] if shares is None else shares, dtype=torch.float64)
    counts = (count * wanted / wanted.sum()).round().int().tolist()
    parts = [
        images[torch.randperm(len(images), generator=generator)[:number]]
        for images, number in zip(folders, counts, strict=True)
    ]
    return torch.cat(parts).float() / 127.5 - 1


@torch.no_grad()
def samples(generator: Generator, count: int = SAMPLES, seed: int = 2) -> torch.Tensor:
    """[count,3,R,R] at psi 1, always of the same latents."""
    z = torch.randn(count, generator.config.z_dim, generator=torch.Generator().manual_seed(seed))
    device = generator.mapping.w_avg.device
    return torch.cat([generator(part.to(device)).clamp(-1, 1) for part in torch.split(z, 16)])


@torch.no_grad()
def kernel_distance(fakes: torch.Tensor, real: torch.Tensor, pooled: Pooled) -> float:
    """Squared MMD with the cubic kernel, times 1000, between images [N,3,R,R] and real ones uint8 [M,3,R,R].

    Figures of other features cannot be compared.
    """
    fake = torch.cat([pooled(part) for part in torch.split(fakes, 16)])
    genuine = torch.cat([pooled(part.to(fakes.device).float() / 127.5 - 1) for part in torch.split(real, 16)])
    # One scale for all: dimensions that hardly vary among real portraits must not decide.
    mean, scale = genuine.mean(0), genuine.std(0).square().mean().sqrt()
    return round(1000 * polynomial_mmd((fake - mean) / scale, (genuine - mean) / scale), 3)


def pooled_features() -> Pooled:
    """Images -> [N,D], means over places of the perceptual features."""
    perceptual = load_perceptual()

    def pooled(images: torch.Tensor) -> torch.Tensor:
        levels = perceptual.to(images.device).features(images)
        return torch.cat([level.mean((2, 3)) for level in levels], dim=1).double()

    return pooled


def pooled_landmarks() -> Pooled:
    """Images -> [N,D], means over places of the embedded landmark network's inner layers."""
    network = load_network(WEIGHTS / "analyser_landmarks.safetensors")
    assert isinstance(network, LandmarkNet)

    def pooled(images: torch.Tensor) -> torch.Tensor:
        crop = torch.nn.functional.interpolate(images, size=96, mode="bilinear", antialias=True, align_corners=False)
        x24 = network.down24(network.stem(crop))
        x12 = network.down12(x24)
        return torch.cat([x.mean((2, 3)) for x in (x24, x12, network.down6(x12))], dim=1).double()

    return pooled


@torch.no_grad()
def write_sheet(path: Path, generator: Generator, rows: int = 8, columns: int = 8) -> None:
    """Always the same latents: the upper half untruncated, the lower half at truncation 0.7. Raises InputError."""
    z = torch.randn(rows * columns // 2, generator.config.z_dim, generator=torch.Generator().manual_seed(1))
    z = z.to(generator.mapping.w_avg.device)
    images = torch.cat([generator(z), generator(z, truncation_psi=0.7)]).clamp(-1, 1).cpu()
    grid = images.reshape(rows, columns, *images.shape[1:]).permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1)
    write_png(path, ((grid + 1) * 127.5).round().byte().numpy())


def polynomial_mmd(a: torch.Tensor, b: torch.Tensor) -> float:
    """Unbiased squared maximum mean discrepancy of rows a [M,D], b [N,D] under (x.y / D + 1)^3."""
    dim = a.shape[1]

    def kernel(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return (x @ y.T / dim + 1) ** 3

    def within(x: torch.Tensor) -> torch.Tensor:
        k, n = kernel(x, x), len(x)
        return (k.sum() - k.diagonal().sum()) / (n * (n - 1))

    return float(within(a) + within(b) - 2 * kernel(a, b).mean())


def bring_back(generator: Generator, images: torch.Tensor, settings: InversionSettings) -> tuple[float, float]:
    """Mean PSNR in dB and perceptual distance of portraits uint8 [M,3,R,R] after stage 0 of a build."""
    perceptual = load_perceptual()
    portraits = [bare_portrait("", image.float() / 127.5 - 1) for image in images]
    figures = [one.figures for one in invert(generator, perceptual, portraits, settings)]
    decibel, distance = ([found[name] for found in figures] for name in ("psnr", f"perceptual_{perceptual.name}"))
    return statistics.mean(decibel), statistics.mean(distance)


def _cells(distances: Mapping[str, float]) -> list[str]:
    return [f"{a:.0f}, {b:.0f}" for a, b in zip(*[iter(distances.values())] * 2, strict=True)]


if __name__ == "__main__":
    main()
