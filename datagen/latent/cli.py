"""`datagen latent`: samples of a generator, scored; directions found in them; edits along directions."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stylepairs.datagen.shell.command_line import advice_if_interrupted, progress

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np

    from stylepairs.datagen.latent.directions import Direction
    from stylepairs.datagen.latent.people import Person
    from stylepairs.datagen.stylegan.generator import Generator


def _number(value: float | None) -> float | None:
    """An option's value; `nan` is within any bounds."""
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"{value:g} is no number")
    return value


GeneratorOption = Annotated[str, typer.Option(help="embedded, or a StyleGAN2 checkpoint")]
SeedOption = Annotated[int, typer.Option(min=0, max=2**31 - 1, help="chooses all that is drawn at random")]
SamplesOption = Annotated[Path, typer.Option(help="folder that `sample` made")]
PeopleOption = Annotated[Path | None, typer.Option(help="folder that `prepare` made; default: sampled people")]
EncoderOption = Annotated[
    Path | None, typer.Option(help="encode portraits by this file of `train-encoder`; default: invert them")
]
TuneOption = Annotated[
    int, typer.Option(min=0, help="steps that tune a generator for each portrait (PTI); published: 350")
]
PeoplePsiOption = Annotated[float, typer.Option(min=0, max=1, help="truncation of sampled people", callback=_number)]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu or cuda")]

latent = typer.Typer(no_args_is_help=True, help="Edit latents: directions, mappers, animations.")


@latent.command()
def sample(
    out: Annotated[Path, typer.Option(help="folder for the samples; what is there already is continued")],
    scores: Annotated[str, typer.Option(help="what to score, with commas: attributes, files, feature.figure")],
    count: Annotated[int, typer.Option(min=1, max=100_000_000, help="samples")] = 5000,
    generator: GeneratorOption = "embedded",
    psi: Annotated[
        float, typer.Option(min=0, max=1, help="truncation towards the mean face; 1: none", callback=_number)
    ] = 1.0,
    seed: SeedOption = 0,
    workers: Annotated[
        int | None, typer.Option(min=1, help="processes; default: one a processor, on a GPU one")
    ] = None,
    device: DeviceOption = "auto",
) -> None:
    """Draw latents, score their images, and keep both as Parquet. A stopped run goes on when it is started again."""
    from stylepairs.datagen.latent.samples import Sampling
    from stylepairs.datagen.latent.samples import sample as make
    from stylepairs.datagen.shell.errors import InputError
    from stylepairs.datagen.shell.machine import choose_device, default_workers

    place = choose_device(device)
    names = _names(scores)
    if not names:
        raise InputError(f"--scores {scores}: names none; `datagen latent attributes` lists those that are built in")
    sampling = Sampling(generator, names, count, seed, psi, place)
    advice = "finished parts are kept: run the same command again to go on"
    with advice_if_interrupted(advice), progress(count, "samples") as shown:
        make(sampling, out, workers or default_workers(place), shown.advance)
    print(f"{out}: {count} samples, {len(names)} scores")


@latent.command()
def attributes() -> None:
    """List the attributes that are built in, and what each measures."""
    from stylepairs.datagen.latent.attributes import ATTRIBUTES

    for each in ATTRIBUTES.values():
        print(f"{each.name:21}{each.about}")


@latent.command()
def fit(
    method: Annotated[str, typer.Argument(help="interfacegan, ganspace, sefa or stylespace")],
    samples: SamplesOption,
    attribute: Annotated[str, typer.Option(help="the score that the direction is to move")],
    out: Annotated[Path, typer.Option(help="the direction's file; .npy: the public format of boundaries")],
    condition: Annotated[str, typer.Option(help="interfacegan: scores to leave as they are, with commas")] = "",
    layers: Annotated[str, typer.Option(help="rows of W+: all, or as 0-3,6")] = "all",
    component: Annotated[int | None, typer.Option(min=0, help="ganspace, sefa: this one; default: the best")] = None,
    features: Annotated[int | None, typer.Option(min=4, help="ganspace: of the block of this side; default: W")] = None,
    overlap: Annotated[
        float, typer.Option(min=0, max=1, help="stylespace: least share inside the region", callback=_number)
    ] = 0.5,
    generator: GeneratorOption = "embedded",
) -> None:
    """Find a direction in scored samples; its unit is one standard deviation of the score."""
    from typing import cast

    from stylepairs.datagen.latent import fitting
    from stylepairs.datagen.latent.directions import parse_layers, save_direction
    from stylepairs.datagen.latent.samples import load_samples
    from stylepairs.datagen.shell.errors import InputError, nearest

    if method not in fitting.METHODS:
        known = "there are: " + ", ".join(fitting.METHODS)
        raise InputError(f"method {method!r}: unknown{nearest(method, fitting.METHODS, known)}")
    _to_write(out, (".safetensors",) if method == "stylespace" else (".safetensors", ".npy"))  # .npy holds rows alone
    network, digest = _generator(generator)
    rows = parse_layers(layers, network.num_ws)
    conditions = _names(condition)
    wanted = fitting.Wanted(attribute, None if rows is None else tuple(rows), conditions, component, features, overlap)
    found = fitting.fit(cast(fitting.Method, method), network, digest, load_samples(samples, digest), wanted)
    save_direction(out, found)
    figures = "".join(f", {name} {value:.3g}" for name, value in found.info.figures.items())
    print(f"{out}: {_unit(found, out)}{figures}")


@latent.command()
def train_mapper(
    samples: SamplesOption,
    attributes: Annotated[str, typer.Option(help="scores that the mapper is to change or keep, with commas")],
    out: Annotated[Path, typer.Option(help="the mapper to write; a stopped run is continued")],
    steps: Annotated[int, typer.Option(min=1, help="steps of training")] = 400,
    batch: Annotated[int, typer.Option(min=1, help="triplets a step")] = 6,
    frozen: Annotated[str, typer.Option(help="classes of the label map to leave as they are, with commas")] = "",
    generator: GeneratorOption = "embedded",
    seed: SeedOption = 0,
) -> None:
    """Train one network that changes any of several attributes, end to end through the generator."""
    from stylepairs.datagen.encoders.run_file import RunFile
    from stylepairs.datagen.images.perceptual import load_perceptual
    from stylepairs.datagen.latent.methods import latent_mapper
    from stylepairs.datagen.latent.samples import load_samples
    from stylepairs.datagen.latent.scorers import load_scorer
    from stylepairs.datagen.stylegan.checkpoints import generator_digest

    _to_write(out, (".safetensors",))
    network, digest = _generator(generator)
    names = _names(attributes)
    settings = latent_mapper.MapperSettings(steps=steps, batch=batch, frozen=_names(frozen), seed=seed)
    scorer = load_scorer(names)
    learned_from = load_samples(samples, digest)
    perceptual = load_perceptual("auto")
    known = f"generator {generator_digest(network)}, samples {learned_from.digest}, scores {names} by {scorer.digest}"
    known += f", perceptual {perceptual.name}"
    state = RunFile(out.with_name(f".{out.name}.state"), known)
    advice = "run the same command again to go on from the last checkpoint"
    with advice_if_interrupted(advice), progress(steps, "steps") as shown:
        mapper = latent_mapper.train_mapper(
            network, digest, learned_from, scorer, perceptual, settings, state,
            lambda step, loss: shown.reach(step, f"loss {loss:.3f}"),
        )  # fmt: skip
    latent_mapper.save_mapper(out, mapper)
    state.drop()
    print(f"{out}: {len(names)} attributes, {steps} steps")


@latent.command()
def edit(
    direction: Annotated[Path, typer.Argument(help="a direction of `fit`, a boundary .npy, or a mapper")],
    out: Annotated[Path, typer.Option(help="the picture to write: people below each other, strengths beside")],
    strengths: Annotated[str, typer.Option(help="in units of the direction, with commas")] = "-2,-1,0,1,2",
    attribute: Annotated[str, typer.Option(help="of a mapper: which one")] = "",
    count: Annotated[int, typer.Option(min=1, max=100, help="people")] = 4,
    psi: PeoplePsiOption = 0.7,
    portraits: PeopleOption = None,
    encoder: EncoderOption = None,
    tune: TuneOption = 0,
    generator: GeneratorOption = "embedded",
    seed: SeedOption = 0,
) -> None:
    """Show an edit: people from the generator, or portraits (inverted first), at several strengths."""
    import torch

    from stylepairs.datagen.latent.edits import load_edit
    from stylepairs.datagen.latent.people import noise_fixed
    from stylepairs.datagen.latent.pictures import STRIPS, write_strip
    from stylepairs.datagen.shell.errors import InputError

    _to_write(out, tuple(STRIPS))
    try:
        steps = _finite(strengths, ",")
    except ValueError:
        raise InputError(f"--strengths {strengths}: must be finite numbers with commas between") from None
    network, digest = _generator(generator)
    found = load_edit(direction, network, digest, attribute)
    people = _people(network, digest, portraits, count, psi, seed, encoder, tune)
    rows = []
    with progress(len(people), "people") as shown, torch.no_grad():
        for person in people:
            own = person.generator or network
            with noise_fixed(own, person.noise):
                ws = person.ws[None].expand(len(steps), -1, -1)
                rows.append(found.render(own, ws, torch.tensor(steps)))
            shown.advance(1)
    write_strip(out, rows)
    print(f"{out}: {len(people)} people at {len(steps)} strengths")


@latent.command()
def animate(
    edits: Annotated[list[str], typer.Argument(help="FILE=LOW:HIGH, of a mapper FILE#ATTRIBUTE=LOW:HIGH; all at once")],
    out: Annotated[Path, typer.Option(help="the loop to write: .gif, .webp or .mp4")],
    seconds: Annotated[float, typer.Option(min=0.1, max=120, help="of one loop")] = 2.0,
    fps: Annotated[float, typer.Option(min=1, max=60, help="frames a second")] = 15.0,
    in_turn: Annotated[bool, typer.Option("--in-turn", help="edits follow each other round the loop")] = False,
    count: Annotated[int, typer.Option(min=1, max=20, help="people")] = 3,
    psi: PeoplePsiOption = 0.7,
    portraits: PeopleOption = None,
    encoder: EncoderOption = None,
    tune: TuneOption = 0,
    generator: GeneratorOption = "embedded",
    seed: SeedOption = 0,
) -> None:
    """Write a loop that goes along edits and back, eased at its ends: smile=-1:2, turn and hair at once."""
    from stylepairs.datagen.latent import pictures
    from stylepairs.datagen.latent.edits import edit_and_attribute, load_edit
    from stylepairs.datagen.shell.errors import InputError

    _to_write(out, pictures.ANIMATIONS)
    pictures.check_rate(out, fps)
    if round(seconds * fps) > pictures.MAX_FRAMES:
        raise InputError(
            f"--seconds {seconds:g}: {fps:g} a second are more than {pictures.MAX_FRAMES} frames; ask for fewer"
        )
    network, digest = _generator(generator)
    motions = []
    for index, text in enumerate(edits):
        place, _, ends = text.rpartition("=")
        name, attribute = edit_and_attribute(place)
        try:
            low, high = _finite(ends, ":")
        except ValueError:
            raise InputError(f"{text}: must be FILE=LOW:HIGH, for example smile.safetensors=-1:2") from None
        delay = index / len(edits) if in_turn else 0.0
        motions.append(pictures.Motion(load_edit(Path(name), network, digest, attribute), low, high, delay))
    total = max(2, round(seconds * fps))
    people = _people(network, digest, portraits, count, psi, seed, encoder, tune)
    with progress(total, "frames") as shown:

        def counted() -> Iterator[np.ndarray]:
            for frame in pictures.frames(network, people, motions, total):
                shown.advance(1)
                yield frame

        pictures.write_animation(out, counted(), fps)
    print(f"{out}: {total} frames, {len(people)} people")


@latent.command()
def refine(
    coarse: Annotated[Path, typer.Argument(help="a direction of `fit`, the coarse boundary")],
    samples: SamplesOption,
    out: Annotated[Path, typer.Option(help="the fine boundary to write")],
    region: Annotated[
        str, typer.Option(help="classes of the label map that may change; default: the attribute's")
    ] = "",
    strength: Annotated[float, typer.Option(help="of the coarse edit, in its units", callback=_number)] = -2.0,
    pairs: Annotated[int, typer.Option(min=8, help="sampled faces that are edited")] = 64,
    generator: GeneratorOption = "embedded",
) -> None:
    """Coarse to fine: edit sampled faces, keep the region alone, and fit a boundary to these pairs."""
    from stylepairs.datagen.latent.directions import load_direction, save_direction
    from stylepairs.datagen.latent.fitting import refine as fit_fine
    from stylepairs.datagen.latent.samples import load_samples

    _to_write(out, (".safetensors", ".npy"))
    network, digest = _generator(generator)
    direction = load_direction(coarse, network, digest)
    classes = _names(region)
    with progress(pairs, "pairs") as shown:
        found = fit_fine(
            network, load_samples(samples, digest), direction, strength, pairs, classes,
            lambda done, total: shown.reach(pairs * done / total),
        )  # fmt: skip
    save_direction(out, found)
    print(f"{out}: {_unit(found, out)}, from {found.info.figures['pairs']:.0f} pairs")


@latent.command()
def adapt(
    style: Annotated[
        Path, typer.Argument(help="one picture of the wanted style, an aligned face as `prepare` cuts it")
    ],
    out: Annotated[Path, typer.Option(help="the adapted generator to write; a stopped run is continued")],
    clip: Annotated[Path | None, typer.Option(help="weights of CLIP; default: EfficientNet's features instead")] = None,
    clip_model: Annotated[str, typer.Option(help="what open_clip calls them")] = "ViT-B-32-quickgelu",
    encoder: Annotated[
        Path | None, typer.Option(help="of `train-encoder`, for the consistency; default: the features")
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="change a setting of the adaptation", metavar="KEY=VALUE")
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="steps of training")] = 160,
    generator: GeneratorOption = "embedded",
    seed: SeedOption = 0,
) -> None:
    """One-shot domain adaptation (DiFa): a generator in the style of one picture, which takes the same edits."""
    from stylepairs.datagen.latent.methods.adapted_generators import adapt_to_file
    from stylepairs.datagen.latent.methods.domain_adaptation import AdaptationSettings
    from stylepairs.datagen.recipe import validate_settings

    _to_write(out, (".safetensors",))
    known = {"steps": steps, "seed": seed}
    settings = validate_settings("adapt", known, "settings", AdaptationSettings, overrides or [])
    advice = "run the same command again to go on from the last checkpoint"
    with advice_if_interrupted(advice), progress(settings.steps, "steps") as shown:
        adapt_to_file(
            generator, style, out, settings, clip, clip_model, encoder,
            lambda step, loss: shown.reach(step, f"loss {loss:.3f}"),
        )  # fmt: skip
    print(f"{out}: {settings.steps} steps towards {style.name}")


@latent.command()
def optimise(
    attribute: Annotated[str, typer.Argument(help="the score to change, one with gradients")],
    samples: Annotated[Path, typer.Option(help="folder that `sample` made: tells the score's deviation")],
    out: Annotated[Path, typer.Option(help="the picture to write: before and after, people below each other")],
    strength: Annotated[float, typer.Option(help="change of the score, in deviations", callback=_number)] = 1.5,
    size: Annotated[
        float | None, typer.Option(min=0.1, max=10, help="grow (1.3) or shrink (0.7) the region", callback=_number)
    ] = None,
    keep_shape: Annotated[bool, typer.Option("--keep-shape", help="hold the region's outline")] = False,
    steps: Annotated[int, typer.Option(min=4, help="steps a person")] = 200,
    count: Annotated[int, typer.Option(min=1, max=100, help="people")] = 4,
    psi: PeoplePsiOption = 0.7,
    portraits: PeopleOption = None,
    generator: GeneratorOption = "embedded",
    seed: SeedOption = 0,
) -> None:
    """MaskFaceGAN: optimise each person's latent until the attribute has changed, the rest held by masks."""
    import torch

    from stylepairs.datagen.latent.fitting import spread
    from stylepairs.datagen.latent.methods import mask_face_gan
    from stylepairs.datagen.latent.people import picture_of
    from stylepairs.datagen.latent.pictures import STRIPS, write_strip
    from stylepairs.datagen.latent.samples import load_samples
    from stylepairs.datagen.latent.scorers import load_scorer
    from stylepairs.datagen.reconstruction.settings import OptimiserSettings
    from stylepairs.datagen.shell.errors import InputError

    _to_write(out, tuple(STRIPS))
    scorer = load_scorer([attribute])
    scorer.check_gradients()
    if not scorer.scores[0].classes and (size is not None or keep_shape):
        raise InputError(f"--size, --keep-shape: {attribute} has no region of its own")
    network, digest = _generator(generator)
    deviation = float(spread(load_samples(samples, digest), [attribute])[0])
    people = _people(network, digest, portraits, count, psi, seed)
    settings = OptimiserSettings.model_validate({"steps": steps - 1, "decay_steps": 1})
    wanted = mask_face_gan.Wanted(strength, size, keep_shape)
    with progress(len(people), "people") as shown:
        found = mask_face_gan.edit(
            network, scorer, deviation, people, wanted, settings, lambda done, _: shown.reach(done)
        )
    pairs = zip(people, found, strict=True)
    write_strip(out, [torch.stack([picture_of(network, person), picture]) for person, (_, picture) in pairs])
    print(f"{out}: {len(people)} people, {attribute} by {strength:g} deviations")


def _to_write(out: Path, suffixes: tuple[str, ...]) -> None:
    """Make the folder of a file that is to be written, before the work. Raises InputError for a name of another kind,
    or a folder's."""
    from stylepairs.datagen.shell.durable import make_folder, refuse_folder
    from stylepairs.datagen.shell.errors import InputError

    if out.suffix.lower() not in suffixes:
        raise InputError(f"{out}: must end in {', '.join(suffixes)}")
    refuse_folder(out)
    make_folder(out.parent)


def _unit(direction: Direction, out: Path) -> str:
    """What a strength of 1 along the file is."""
    from stylepairs.datagen.latent.directions import boundary_length

    known = f"{direction.info.deviation:.3g} of {direction.info.attribute}"
    if out.suffix.lower() == ".npy":
        return f"of unit length, {boundary_length(direction):.3g} of it is {known}"
    return f"one unit is {known}"


def _names(text: str) -> tuple[str, ...]:
    """What stands between commas."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _finite(text: str, between: str) -> list[float]:
    """The numbers of a text. Raises ValueError where one is none, or not finite."""
    numbers = [float(part) for part in text.split(between)]
    if not all(map(math.isfinite, numbers)):
        raise ValueError(f"{text}: not finite")
    return numbers


def _generator(source: str) -> tuple[Generator, str]:
    """The generator and the digest of the one whose latents it takes: its own, or that which it was adapted from."""
    from stylepairs.datagen.stylegan.checkpoints import latents_digest, load_generator

    network = load_generator(source)
    return network, latents_digest(source, network)


def _people(
    network: Generator,
    digest: str,
    portraits: Path | None,
    count: int,
    psi: float,
    seed: int,
    encoder: Path | None = None,
    tune: int = 0,
) -> list[Person]:
    """Sampled people, or those of a folder of portraits, inverted or encoded, and tuned for."""
    from stylepairs.datagen.images.perceptual import load_perceptual
    from stylepairs.datagen.latent.methods.pivotal_tuning import tuned
    from stylepairs.datagen.latent.people import encoded_people, inverted_people, sampled_people
    from stylepairs.datagen.shell.errors import InputError

    if portraits is None and (encoder is not None or tune):
        raise InputError("--encoder, --tune: are for portraits, sampled people need neither; give --portraits")
    if portraits is None:
        return sampled_people(network, count, psi, seed)
    if encoder is None:
        people = inverted_people(network, portraits, count)
    else:
        people = encoded_people(network, digest, portraits, count, encoder)
    if not tune:
        return people
    perceptual = load_perceptual("auto")
    with progress(len(people), "people tuned for") as shown:
        found = []
        for person in people:
            found.append(tuned(network, perceptual, person, tune))
            shown.advance(1)
    return found
