"""The `datagen` command: from photos to portraits to pairs, and ways to look at them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stylepairs.datagen.latent.cli import DeviceOption, GeneratorOption, SeedOption, latent
from stylepairs.datagen.shell import events
from stylepairs.datagen.shell.command_line import add_version, advice_if_interrupted, at_urls, progress, run_app
from stylepairs.kernels.memory import keep_freed_memory

if TYPE_CHECKING:
    from stylepairs.datagen.build.settings import BuildRecipe
    from stylepairs.datagen.build.shard_runner import BuildResult, ShardedPlan
    from stylepairs.datagen.shell.engines import Place

PortraitsOption = Annotated[Path, typer.Option(help="folder that `prepare` made")]
OverridesOption = Annotated[
    list[str] | None, typer.Option("--set", help="change a key of the recipe, may be repeated", metavar="KEY=VALUE")
]
WorkersOption = Annotated[
    int | None,
    typer.Option(min=1, max=4096, help="processes; default: one a processor, or one a GPU"),
]
ShardSizeOption = Annotated[int, typer.Option(min=1, max=10_000, help="pairs a shard: what a killed run may lose")]
EngineOption = Annotated[str, typer.Option(help="local: processes of this machine; ray: a Ray cluster")]
AddressOption = Annotated[
    str | None, typer.Option(help="the cluster's head for --engine ray; default: RAY_ADDRESS, else this machine")
]
CacheOption = Annotated[Path | None, typer.Option(help="folder of inversions; default: .stylepairs-cache beside OUT")]
LONE_SHOWN = 20  # files without a partner
PairsArgument = Annotated[Path, typer.Argument(help="folder of pairs, finished or not")]

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Before/after pairs from rough edits of portraits.",
)
app.add_typer(latent, name="latent")
add_version(app)


def main() -> None:
    """Run the command; ends the process with its exit code."""
    keep_freed_memory()
    run_app(app)


@app.command()
@at_urls
def prepare(
    photos: Annotated[list[Path], typer.Argument(help="photos, or folders of photos")],
    out: Annotated[Path, typer.Option(help="folder for the portraits; one that is there already is added to")],
    size: Annotated[int, typer.Option(help="side of the aligned crop in pixels")] = 256,
    min_score: Annotated[float, typer.Option(min=0, max=1, help="least score of a face")] = 0.5,
    landmarks: Annotated[str, typer.Option(help="embedded or face-alignment")] = "embedded",
    parser: Annotated[str, typer.Option(help="embedded, or a BiSeNet file such as 79999_iter.pth")] = "embedded",
    workers: Annotated[
        int | None, typer.Option(min=1, max=4096, help="processes; default: 1, with --engine ray as many as there are")
    ] = None,
    engine: EngineOption = "local",
    address: AddressOption = None,
) -> None:
    """Find the faces in photos, align and parse them: the portraits that `build` starts from."""
    import torch

    from stylepairs.datagen.pairs.shards import refuse_pairs
    from stylepairs.datagen.portraits.analysis.prepare import list_photos, prepare_photos
    from stylepairs.datagen.shell.engines import engine as engine_of
    from stylepairs.datagen.shell.errors import printable

    refuse_pairs(out)
    # The networks are small: more threads gain nothing, and beside other work they waited for each other (12 s became
    # 75 s for 24 photos on 2 busy cores).
    torch.set_num_threads(1)
    # On a CPU everywhere, as the bytes depend on it.
    here = 1 if engine == "local" and workers is None else workers
    with (
        advice_if_interrupted("what is prepared is kept: run the same command again to go on"),
        engine_of(engine, address, "cpu", here) as place,
        progress(len(list_photos(photos, out)), "photos") as shown,
    ):

        def report(done: int, _total: int, photo: str) -> None:
            shown.reach(done)
            events.event("photo", photo=photo)

        result = prepare_photos(
            photos, out, size, min_score, landmarks, parser, report, workers=place.workers, run=place.run
        )
        for photo, reason in result.skipped:
            if events.is_json():
                events.event("skipped", photo=photo, reason=reason)
            else:
                shown.note(printable(f"skipped {photo}: {reason}"))
        for note in result.notes:
            shown.note(note)
    print(f"{out}: {len(result.portraits)} portraits; {result.photos} photos, {len(result.skipped)} skipped")
    if result.unreadable:
        raise typer.Exit(2)


@app.command()
@at_urls
def build(
    portraits: PortraitsOption,
    out: Annotated[Path, typer.Option(help="folder for the pairs; a build that is there already is continued")],
    recipe: Annotated[
        str | None, typer.Argument(help="an installed recipe's name (hair_color) or a YAML file", show_default=False)
    ] = None,
    features: Annotated[
        str | None, typer.Option(help="several recipes in each pair instead, such as bangs,hair_color")
    ] = None,
    generator: GeneratorOption = "embedded",
    method: Annotated[
        str | None, typer.Option(help="reconstruction, or latent:FILE along a direction of `datagen latent fit`")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="the first portraits by name only")] = None,
    seed: SeedOption = 0,
    overrides: OverridesOption = None,
    workers: WorkersOption = None,
    shard_size: ShardSizeOption = 32,
    cache: CacheOption = None,
    device: DeviceOption = "auto",
    engine: EngineOption = "local",
    address: AddressOption = None,
) -> None:
    """Make pairs. A stopped build goes on where it was when the same command is run again; torchrun shares it out."""
    from stylepairs.datagen.build.plan import plan_build
    from stylepairs.datagen.shell.engines import engine as engine_of

    settings = _recipe(recipe, features, [*(overrides or []), *([f"method={method}"] if method else [])])
    with engine_of(engine, address, device, workers) as place:
        plan = plan_build(
            settings, portraits, out,
            generator=generator, limit=limit, seed=seed, shard_size=shard_size, cache=cache, device=place.device,
        )  # fmt: skip
        _run(plan, place)


def _recipe(recipe: str | None, features: str | None, overrides: list[str]) -> BuildRecipe:
    """The recipe that a build's arguments name, one or several as one."""
    from stylepairs.datagen.build.settings import BuildRecipe
    from stylepairs.datagen.recipe import load_recipe
    from stylepairs.datagen.shell.errors import InputError

    if recipe is not None and features is None:
        return load_recipe(recipe, "datagen", BuildRecipe, overrides)
    if recipe is None and features is not None:
        from stylepairs.datagen.build.combined_recipe import load_combined_recipe

        names = [name.strip() for name in features.split(",") if name.strip()]
        if len(names) > 1:
            return load_combined_recipe(names, overrides)
        if names:
            return load_recipe(names[0], "datagen", BuildRecipe, overrides)
    raise InputError("name either a recipe (build bangs) or several (build --features bangs,hair_color)")


@app.command(name="import")
@at_urls
def import_pairs(
    before: Annotated[Path, typer.Argument(help="folder of pictures as they were, or one picture")],
    after: Annotated[Path, typer.Argument(help="folder of the same pictures edited, under the same names, or one")],
    feature: Annotated[str, typer.Option(help="the recipe of what was edited: hair_color, a YAML file; several: a,b")],
    out: Annotated[Path, typer.Option(help="folder for the pairs; an import that is there already is continued")],
    params: Annotated[
        list[str] | None, typer.Option(help="what was done to all of them, may be repeated", metavar="KEY=VALUE")
    ] = None,
    listed: Annotated[Path | None, typer.Option(help="what was done to each: JSON lines with name and params")] = None,
    masks: Annotated[
        Path | None,
        typer.Option(help="folder of masks, or one, white where edited; default: where the pictures differ"),
    ] = None,
    size: Annotated[int, typer.Option(help="side of the aligned crops in pixels, without --generator")] = 256,
    generator: Annotated[
        str | None, typer.Option(help="find latents of both halves by this generator, for augment; default: none")
    ] = None,
    made_by: Annotated[str, typer.Option(help="what made the afters, kept with each pair")] = "",
    overrides: OverridesOption = None,
    seed: SeedOption = 0,
    workers: WorkersOption = None,
    shard_size: ShardSizeOption = 32,
    cache: CacheOption = None,
    device: DeviceOption = "auto",
    engine: EngineOption = "local",
    address: AddressOption = None,
) -> None:
    """Take in before/after pictures that others made: registered, judged and stored as those of `build`."""
    from stylepairs.datagen.importing.plan import plan_import
    from stylepairs.datagen.recipe import nested_overrides
    from stylepairs.datagen.shell.engines import engine as engine_of
    from stylepairs.datagen.shell.errors import InputError

    if not feature.strip(" ,"):
        raise InputError(f"--feature {feature}: names no recipe; give the one of what was edited, such as hair_color")
    several = "," in feature
    recipe = _recipe(None if several else feature, feature if several else None, overrides or [])
    with engine_of(engine, address, device, workers) as place:
        plan, lone = plan_import(
            recipe, before, after, out,
            params=nested_overrides(params or [], "--params"), listed=listed, masks=masks, size_px=size,
            generator=generator, made_by=made_by, seed=seed, shard_size=shard_size, cache=cache, device=place.device,
        )  # fmt: skip
        for line in lone[:LONE_SHOWN]:
            events.tell(line)
        if len(lone) > LONE_SHOWN:
            events.tell(f"and {len(lone) - LONE_SHOWN} more without a partner")
        _run(plan, place)


@app.command()
def train_encoder(
    generator: Annotated[str, typer.Argument(help="embedded, or a StyleGAN2 checkpoint")],
    portraits: Annotated[
        list[Path], typer.Option(help="folder that `prepare` made, may be repeated; keep out what you measure on")
    ],
    out: Annotated[Path, typer.Option(help="the encoder to write; what a stopped run left beside it is continued")],
    method: Annotated[str, typer.Option(help="start (for stage 0), psp, e4e, restyle-psp, restyle-e4e")] = "start",
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="change a setting of the method", metavar="KEY=VALUE")
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="steps of training")] = 9000,
    begin: Annotated[Path | None, typer.Option(help="an encoder of this generator to go on from")] = None,
    identity: Annotated[
        Path | None, typer.Option(help="a face recognition network as TorchScript: holds who the person is")
    ] = None,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
) -> None:
    """Train an encoder from photos to latents, and by `start` to noise maps: stage 0 then needs few steps."""
    from stylepairs.datagen.encoders.settings import METHODS, EncoderTraining
    from stylepairs.datagen.encoders.training import train_to_file
    from stylepairs.datagen.latent.classifier_files import load_embedding
    from stylepairs.datagen.recipe import validate_settings
    from stylepairs.datagen.shell.errors import InputError, nearest
    from stylepairs.datagen.shell.machine import choose_device

    if method not in METHODS:
        raise InputError(f"--method {method}: unknown{nearest(method, METHODS, 'there are: ' + ', '.join(METHODS))}")
    known = METHODS[method] | {"steps": steps, "seed": seed}
    training = validate_settings(f"--method {method}", known, "encoder", EncoderTraining, overrides or [])
    person = None if identity is None else load_embedding(identity)
    advice = "run the same command again to go on from the last checkpoint"
    with advice_if_interrupted(advice), progress(training.steps, "steps") as shown:

        def report(step: int, loss: float) -> None:
            if not shown.done:  # of an earlier run
                shown.reach(step - 1, now=False)
            shown.reach(step, f"loss {loss:.3f}")

        train_to_file(generator, portraits, out, training, choose_device(device), begin, person, report)
    print(f"{out}: trained for {training.steps} steps")


@app.command()
@at_urls
def augment(
    pairs: Annotated[Path, typer.Argument(help="folder of pairs that `build` made")],
    out: Annotated[Path, typer.Option(help="folder for the new pairs; what is there already is continued")],
    steps: Annotated[
        str, typer.Option(help="degrees of each pair, as shares of its edit; none: no further degrees")
    ] = "0,0.25,0.5,0.75,1",
    grid: Annotated[int, typer.Option(min=0, max=100, help="people between each pair and others like it")] = 0,
    colors: Annotated[
        str | None, typer.Option(help="each pair once more, hair in both pictures of one of these: grey,blond,#b5b2ae")
    ] = None,
    generator: Annotated[str, typer.Option(help="that of the pairs: embedded, or a StyleGAN2 checkpoint")] = "embedded",
    perceptual_weights: Annotated[
        str | None, typer.Option(help="the file that the pairs were built with, where there was one")
    ] = None,
    own_feature: Annotated[
        Path | None, typer.Option(help="the .py file of your own feature that the pairs were built with; it is run")
    ] = None,
    seed: SeedOption = 0,
    workers: WorkersOption = None,
    shard_size: ShardSizeOption = 32,
    device: DeviceOption = "auto",
    engine: EngineOption = "local",
    address: AddressOption = None,
) -> None:
    """Make more pairs of accepted ones: degrees of the edit, people between two, hair of other colours; goes on as
    `build` does."""
    from stylepairs.datagen.augment.plan import plan_augmentation
    from stylepairs.datagen.shell.engines import engine as engine_of

    with engine_of(engine, address, device, workers) as place:
        plan = plan_augmentation(
            pairs, out, steps=_shares(steps), grid=grid, colors=colors.split(",") if colors else (),
            generator=generator, seed=seed, shard_size=shard_size, device=place.device,
            perceptual_weights=perceptual_weights, own_feature=own_feature,
            workers=place.workers, run=place.run,
        )  # fmt: skip
        _run(plan, place)


def _shares(text: str) -> list[float]:
    """ "0,.5,1" as numbers."""
    from stylepairs.datagen.shell.errors import InputError

    try:
        return [] if text.strip() == "none" else [float(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"--steps {text}: must be numbers between 0 and 1 with commas between, or none") from None


def _run(plan: ShardedPlan, place: Place) -> None:
    """Make the shards of a plan with progress on stderr, and say what there is now."""
    from stylepairs.datagen.shell.machine import rank_and_world

    with advice_if_interrupted("finished shards are kept: run the same command again to go on"):
        result = _made(plan, place, *rank_and_world())
    share = f"{result.pairs} pairs, {result.accepted} accepted ({100 * result.accepted / max(result.pairs, 1):.0f} %)"
    if result.complete:
        print(f"{plan.out}: {share}")
    else:
        print(f"{plan.out}: {share} so far; the shards of other processes are not finished yet")


def _made(plan: ShardedPlan, place: Place, rank: int, world: int) -> BuildResult:
    from stylepairs.datagen.build.shard_runner import BuildEvent, build_pairs

    accepted = rejected = 0
    mine = sum(len(plan.shard_jobs(index)) for index in range(rank, plan.shard_count, world))
    with progress(mine, "pairs", quiet=rank > 0) as shown:

        def show(event: BuildEvent) -> None:
            nonlocal accepted, rejected
            accepted, rejected = accepted + event.accepted, rejected + event.rejected
            status = f"{accepted} accepted, {rejected} rejected" if accepted + rejected else ""
            shown.advance(event.work, status, now=not event.resumed)
            if event.note:
                shown.note(event.note)
            if event.pair:
                accepted_now = not event.reason
                events.event("pair", pair=event.pair, accepted=accepted_now, reason=event.reason, seconds=event.seconds)
            if event.shard:
                events.event(
                    "shard", shard=event.shard, accepted=event.accepted, rejected=event.rejected, seconds=event.seconds
                )

        return build_pairs(plan, workers=place.workers, rank=rank, world=world, on_event=show, run=place.run)


@app.command()
@at_urls
def status(
    folder: Annotated[Path, typer.Argument(help="folder that prepare, build, import or augment makes or made")],
) -> None:
    """Say how far a folder is: what is done and refused and why, how fast it goes, and the last error."""
    from stylepairs.datagen.pairs.status import status_of

    found = status_of(folder)
    events.event("status", **found.fields())
    for line in found.lines(folder) if not events.is_json() else ():
        print(line)


@app.command()
@at_urls
def inspect(
    pairs: PairsArgument,
    out: Annotated[Path, typer.Option(help="the HTML page to write")],
    max_pairs: Annotated[int, typer.Option(min=1, max=5000, help="pairs shown at most")] = 200,
    thumbnail: Annotated[int, typer.Option(min=32, max=512, help="side of a picture in pixels")] = 128,
) -> None:
    """Show pairs, rejections and figures on one HTML page that needs no network; brings the manifest up to date."""
    from stylepairs.datagen.pairs import inspection, shards
    from stylepairs.datagen.shell.errors import InputError

    note = ""
    try:
        shards.update_manifest(pairs)
    except InputError as error:  # in a folder that may only be read; the tars say as much
        note = f"the manifest stays as it is: {error}"
    shown = inspection.write_report(pairs, out, max_pairs, thumbnail)
    if note:
        events.tell(note)
    print(f"{out}: {shown} pairs shown")


@app.command()
@at_urls
def merge(
    pairs: Annotated[list[Path], typer.Argument(help="folders of pairs of one feature, two or more")],
    out: Annotated[Path, typer.Option(help="folder for all of them; the same command goes on after a stop")],
    shard_size: ShardSizeOption = 32,
) -> None:
    """Put the pairs of several folders into one, to train on: they are numbered anew, those held twice taken once."""
    from stylepairs.datagen.pairs.merge import plan_merge, run_merge

    plan = plan_merge(pairs, out, shard_size)
    with advice_if_interrupted("run the same command again to go on"), progress(len(plan.pairs), "pairs") as shown:
        run_merge(plan, shown.reach)
    print(f"{out}: {len(plan.pairs)} pairs" + (f", {plan.twice} left out that were there twice" if plan.twice else ""))


@app.command()
@at_urls
def export(
    pairs: PairsArgument,
    out: Annotated[Path, typer.Option(help="folder for before/ID.png, after/ID.png, mask/ID.png and index.jsonl")],
    everything: Annotated[bool, typer.Option("--all", help="rejected pairs too")] = False,
    split: Annotated[str | None, typer.Option(help="train or val; default: both")] = None,
) -> None:
    """Write accepted pairs as plain PNG files."""
    from stylepairs.datagen.pairs.export import export_pairs
    from stylepairs.datagen.shell.errors import InputError

    if split not in (None, "train", "val"):
        raise InputError(f"--split {split}: unknown; choose train or val")
    count = export_pairs(pairs, out, everything, split)
    print(f"{out}: {count} pairs")
