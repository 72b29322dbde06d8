"""`datagen latent`: samples of a generator, scored; directions found in them; edits along directions."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from stylepairs.datagen.shell.command_line import INTERRUPTED, progress

GeneratorOption = Annotated[str, typer.Option(help="embedded, or a StyleGAN2 checkpoint")]
SeedOption = Annotated[int, typer.Option(min=0, max=2**31 - 1, help="chooses all that is drawn at random")]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu or cuda")]

latent = typer.Typer(no_args_is_help=True, help="Edit latents: directions, mappers, animations.")


@latent.command()
def sample(
    out: Annotated[Path, typer.Option(help="folder for the samples; what is there already is continued")],
    scores: Annotated[str, typer.Option(help="what to score, with commas: attributes, files, feature.figure")],
    count: Annotated[int, typer.Option(min=1, max=100_000_000, help="samples")] = 5000,
    generator: GeneratorOption = "embedded",
    psi: Annotated[float, typer.Option(min=0, max=1, help="truncation towards the mean face; 1: none")] = 1.0,
    seed: SeedOption = 0,
    workers: Annotated[
        int | None, typer.Option(min=1, help="processes; default: one a processor, or one a GPU")
    ] = None,
    device: DeviceOption = "auto",
) -> None:
    """Draw latents, score their images, and keep both as Parquet. A stopped run goes on when it is started again."""
    from stylepairs.datagen.latent.samples import Sampling
    from stylepairs.datagen.latent.samples import sample as make
    from stylepairs.datagen.shell.machine import choose_device, default_workers

    place = choose_device(device)
    names = tuple(name.strip() for name in scores.split(",") if name.strip())
    sampling = Sampling(generator, names, count, seed, psi, place)
    try:
        with progress(count, "samples") as shown:
            make(sampling, out, workers or default_workers(place), shown.advance)
    except KeyboardInterrupt:
        print("interrupted; finished parts are kept: run the same command again to go on", file=sys.stderr)
        sys.exit(INTERRUPTED)
    print(f"{out}: {count} samples, {len(names)} scores")


@latent.command()
def attributes() -> None:
    """List the attributes that are built in, and what each measures."""
    from stylepairs.datagen.latent.attributes import ATTRIBUTES

    for each in ATTRIBUTES.values():
        print(f"{each.name:21}{each.about}")
