"""The `i2i` command: train an editor on pairs, edit photos with it, judge it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stylepairs.datagen.shell.command_line import add_version, advice_if_interrupted, at_urls, run_app
from stylepairs.datagen.shell.errors import InputError
from stylepairs.datagen.shell.storage.staged import local_place
from stylepairs.i2i.edit.photo_files import VIDEO_SUFFIXES, checked_suffix, edit_files, jobs_of

if TYPE_CHECKING:
    from stylepairs.datagen.portraits.folders import PortraitFile
    from stylepairs.datagen.portraits.portrait import Portrait

app = typer.Typer(
    add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, help="Single-pass photo editing."
)
add_version(app)

SetOption = Annotated[list[str] | None, typer.Option("--set", help="key=value, may be repeated", metavar="KEY=VALUE")]
OwnFeatureOption = Annotated[
    Path | None, typer.Option(help="the .py file of your own feature that the model is for; it is run")
]


def main() -> None:
    """Run the command that the arguments name."""
    run_app(app)


@app.command()
@at_urls
def train(
    recipe: Annotated[str, typer.Argument(help="an installed recipe's name (hair_color) or a YAML file")],
    out: Annotated[Path, typer.Option(help="run folder; a run that is there already is continued")],
    pairs: Annotated[Path | None, typer.Option(help="folder of pairs that `datagen build` made")] = None,
    portraits: Annotated[
        list[Path] | None,
        typer.Option(
            help="prepared portraits, may be repeated: where to edit is learnt of them too; without pairs: for a recipe"
            " that degrades them and learns to restore"
        ),
    ] = None,
    overrides: SetOption = None,
    own_feature: OwnFeatureOption = None,
) -> None:
    """Train on accepted pairs; on several devices start it with `accelerate launch -m stylepairs.i2i` or torchrun."""
    from stylepairs.datagen.recipe import load_recipe
    from stylepairs.i2i.train.settings import TrainingSettings
    from stylepairs.kernels.memory import keep_freed_memory

    keep_freed_memory()
    settings = load_recipe(recipe, "i2i", TrainingSettings, overrides or [])
    feature = recipe_feature(recipe)
    run_own_feature(own_feature)
    data, portraits = pairs, portraits or []
    if settings.degradation:
        if pairs is not None or len(portraits) != 1:
            raise InputError(f"{recipe}: learns from a folder of portraits; give --portraits FOLDER alone")
        data, portraits = portraits[0], []
    if data is None:
        raise InputError(f"{recipe}: learns from a folder of pairs; give --pairs FOLDER")
    from stylepairs.i2i.train.training import train as run_training

    with advice_if_interrupted("the last checkpoint is kept: run the same command again to go on"):
        run_training(settings, data, out, print_on_main, feature, portraits)


@app.command()
@at_urls
def edit(
    photos: Annotated[
        list[Path],
        typer.Argument(
            metavar="[RUN] PHOTO...",
            help="run folder, .safetensors file, or a shipped model (embedded: hair colour, embedded:bangs, ...), left "
            "out where --run says it; then photos, any size, any number of faces, or folders of them",
        ),
    ],
    out: Annotated[Path, typer.Option(help="folder for the edited photos; the same command goes on after a stop")],
    runs: Annotated[
        list[str] | None,
        typer.Option("--run", help="a model; several make their edits in turn, in one pass over files"),
    ] = None,
    overrides: SetOption = None,
    format: Annotated[str, typer.Option(help="png (lossless), jpg, webp, tif, or same (as each photo)")] = "png",
    video: Annotated[
        bool, typer.Option("--video", help="the files are videos, of folders those that are; steady edits, sound kept")
    ] = False,
    provenance: Annotated[bool, typer.Option(help="say in each file that it was edited by a generative model")] = True,
    min_score: Annotated[float, typer.Option(min=0, max=1, help="least score of a face")] = 0.5,
    strict: Annotated[
        bool, typer.Option("--strict", help="parse each face, and leave those that the feature itself refuses")
    ] = False,
    landmarks: Annotated[str, typer.Option(help="embedded or face-alignment")] = "embedded",
    device: Annotated[str, typer.Option(help="cpu, cuda, or auto")] = "auto",
    own_feature: OwnFeatureOption = None,
) -> None:
    """Edit photos, e.g. --set color=blond --set degree=0.7; a photo that fails gets one line, exit code 2 follows.

    With several runs a parameter begins with its feature: --run A --run B --set bangs.style=full.
    """
    from stylepairs.datagen.recipe import nested_overrides

    params, suffix = nested_overrides(overrides or []), checked_suffix(format)
    runs, photos = (runs, photos) if runs else ([f"{photos[0]}"], photos[1:])
    if not photos:
        raise InputError("no photos; name a run, then photos or folders of them")
    if video and suffix != ".png":
        raise InputError(f"--format {format}: is for photos; a video becomes an MP4")
    if video and strict:
        raise InputError("--strict: is for photos; a video's frames are not parsed")
    for each in (*photos, out):  # of these a journal is kept by their places on this machine
        local_place(f"{each}")
    jobs = jobs_of(photos, out, ".mp4", VIDEO_SUFFIXES) if video else jobs_of(photos, out, suffix)
    from stylepairs.datagen.features import code_digest
    from stylepairs.datagen.shell.durable import file_digest, make_folder
    from stylepairs.i2i.edit.editor import Editor
    from stylepairs.i2i.edit.journal import Journal
    from stylepairs.i2i.edit.several import SeveralEditors
    from stylepairs.i2i.models.checkpoints import model_path

    run_own_feature(own_feature)
    editors = [Editor.load(run, device=device, landmarks=landmarks, strict=strict) for run in runs]
    editor = editors[0] if len(editors) == 1 else SeveralEditors(editors)
    editor.asked(params)
    make_folder(out)  # before the work: nothing may be written there
    models = [file_digest(model_path(run)) for run in runs]
    own = [code_digest(f"{own_feature}")] if own_feature else []  # what is refused, and what colours mean
    journal = Journal(out, [models, params, provenance, min_score, landmarks, strict, *own])
    if video and not isinstance(editor, Editor):
        raise InputError("--video: takes one run; edit the result with the next")
    work = video_work(editor, params, min_score, provenance) if isinstance(editor, Editor) and video else None
    if edit_files(editor, jobs, params, min_score, provenance, journal, work):
        raise typer.Exit(2)


def video_work(editor: Any, params: dict[str, Any], min_score: float, provenance: bool) -> Any:
    """What is done to each file of --video, and what is said of it."""
    from stylepairs.datagen.shell.command_line import progress
    from stylepairs.i2i.edit.video import edit_video, frame_count

    def work(path: Path, target: Path) -> str:
        with progress(frame_count(path), "frames") as shown:
            done = edit_video(editor, path, target, params, min_score, provenance, shown.reach)
        left = [*(f"some faces left: {reason}" for reason in done.refused), *done.notes]
        return "; ".join([f"a face edited in {done.edited} of {done.frames} frames", *left])

    return work


@app.command()
def demo(
    runs: Annotated[
        list[str] | None, typer.Argument(metavar="[RUN]...", help="run folders or files; none: the shipped weights")
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free")] = 7860,
    device: Annotated[str, typer.Option(help="cpu, cuda, or auto")] = "auto",
    own_feature: OwnFeatureOption = None,
) -> None:
    """Serve a local page: drop a photo, choose edit and degree, paint where, compare, download."""
    from stylepairs.i2i.page import serve

    run_own_feature(own_feature)
    serve(runs or [], port, device)


@app.command()
def export(
    run: Annotated[str, typer.Argument(help="run folder, .safetensors file, or embedded:bangs")],
    out: Annotated[Path, typer.Option(help="editor.onnx (needs the export extra) or editor.pt2")],
    int8: Annotated[
        Path | None,
        typer.Option(help="folder of pairs: also write OUT.int8.onnx, convolutions in 8 bits, scaled by them"),
    ] = None,
    own_feature: OwnFeatureOption = None,
) -> None:
    """Write the network as one graph that runs without this package; beside an .onnx also the face finder's two."""
    if int8 is not None and out.suffix != ".onnx":
        raise InputError(f"--int8: is for ONNX files; choose an --out that ends in .onnx, not {out.name}")
    from stylepairs.i2i.models.checkpoints import load_model
    from stylepairs.i2i.models.export import export as write_graph
    from stylepairs.i2i.models.quantized import quantize, require_onnxruntime
    from stylepairs.i2i.models.restoration import RESTORATION

    run_own_feature(own_feature)
    model, info = load_model(run)
    if int8 is not None and info.feature == RESTORATION:
        raise InputError(f"--int8: scales come of pairs, and {run} restores, which needs none; leave --int8 out")
    samples, small = [], out.with_suffix(".int8.onnx")
    if int8 is not None:  # whatever is wrong with it is said before anything is written
        from stylepairs.i2i.train.data import calibration_inputs
        from stylepairs.i2i.train.sides import one_feature, read_records

        require_onnxruntime(small)
        one_feature(read_records(int8, "train"), int8, info.feature)
        samples = list(calibration_inputs(int8, model.size_px, info.style, info.kinds))
    write_graph(model, info, out)
    print(f"{out}: {info.feature}, {model.size_px} px, any batch size, float32")
    if int8 is not None:
        quantize(out, small, samples)
        print(f"{small}: the same in 8 bits")
    if out.suffix == ".onnx":
        from stylepairs.i2i.models.face_export import export_faces

        finder, landmarks = export_faces(out.parent)
        print(f"{finder}: faces of a photo; {landmarks}: 68 landmarks of each; examples/onnx_edit.py uses the three")


@app.command()
@at_urls
def evaluate(
    runs: Annotated[
        list[str],
        typer.Argument(metavar="RUN...", help="run folders, .safetensors files, or embedded:bangs"),
    ],
    portraits: Annotated[
        Path | None, typer.Option(help="prepared portraits that were not trained on: edited and measured")
    ] = None,
    pairs: Annotated[
        Path | None, typer.Option(help="folder of pairs: the held-out ones are compared with, run beside run")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="folder for JSON, Markdown, plots and a sheet; or a .json of one run's portraits"),
    ] = None,
    overrides: SetOption = None,
    limit: Annotated[int | None, typer.Option(min=1, help="first portraits or pairs only")] = None,
    perceptual: Annotated[
        str,
        typer.Option(help="features of the perceptual and FID-style figures: auto, efficientnet-lite0, vgg16 (LPIPS)"),
    ] = "auto",
    perceptual_weights: Annotated[str | None, typer.Option(help="file of their weights; vgg16 needs one")] = None,
    identity: Annotated[
        str, typer.Option(help="embedded, or an .onnx of a face-recognition network (ArcFace): is it the same person?")
    ] = "embedded",
    device: Annotated[str, typer.Option(help="of the models that are judged: cpu, cuda, or auto")] = "auto",
    own_feature: OwnFeatureOption = None,
) -> None:
    r"""Judge models, side by side where there are several; a list gives several edits: --set color=\[black,blond,red].

    Models that restore are judged on portraits that are degraded as in their training.
    """
    from stylepairs.datagen.build.draws import combinations
    from stylepairs.datagen.recipe import nested_overrides
    from stylepairs.i2i.edit.editor import Editor
    from stylepairs.i2i.identity import load_instruments
    from stylepairs.i2i.judging import judge_pairs, judge_restored
    from stylepairs.i2i.models.restoration import RESTORATION

    if portraits is None and pairs is None:
        raise InputError("nothing to judge on; give --portraits, --pairs or both")
    if portraits is None and overrides:
        raise InputError("--set: is for --portraits; pairs say themselves what was done")
    folder = out if out is not None and out.suffix != ".json" else None
    if out is not None and folder is None and (len(runs) > 1 or pairs is not None):
        raise InputError(f"--out {out}: several runs, or pairs, need a folder")
    params = combinations(nested_overrides(overrides or []))
    by = load_instruments(perceptual, identity, perceptual_weights)
    run_own_feature(own_feature)
    editors = {run: Editor.load(run, device=device) for run in runs}
    restores = {editor.info.feature == RESTORATION for editor in editors.values()}
    if restores != {False}:
        if portraits is None or len(restores) > 1:
            raise InputError("models that restore are judged by themselves, on --portraits")
        if pairs is not None or overrides or (out is not None and folder is None):
            raise InputError("models that restore are judged without --pairs and --set, --out is a folder")
    check_before_judging(editors, params if portraits is not None else [], pairs, out)
    if restores == {True} and portraits is not None:
        show_compared(judge_restored(editors, portraits, by, limit), folder and folder / "portraits")
    elif portraits is not None:
        judge_on_portraits(editors, portraits, params, by, limit, out)
    if pairs is not None:
        show_compared(judge_pairs(editors, pairs, by, limit), folder and folder / "pairs")


def check_before_judging(editors: dict[str, Any], params: Any, pairs: Path | None, out: Path | None) -> None:
    """Raises InputError for what is wrong with parameters, pairs or --out, before any work; makes the folder."""
    from stylepairs.datagen.pairs.shards import refuse_pairs
    from stylepairs.datagen.portraits.folders import refuse_portraits
    from stylepairs.datagen.shell.durable import make_folder
    from stylepairs.i2i.judging import known_pairs

    for chosen in params:
        for editor in editors.values():
            editor.wanted(chosen)
    if pairs is not None:
        known_pairs(editors, pairs)
    if out is not None and out.suffix != ".json":
        for written in (out, out / "portraits", out / "pairs"):
            refuse_portraits(written)
            refuse_pairs(written)
    if out is not None:
        make_folder(out if out.suffix != ".json" else out.parent)


def show_compared(compared: Any, folder: Path | None) -> None:
    """Print the table of what was judged; into a folder, where there is one, all the rest."""
    from stylepairs.i2i.judging import markdown, write_report

    judged, photos, targets = compared
    print(markdown(judged, {}))
    if folder is not None:
        pictures = [one.pictures for name, one in judged.items() if name != "degraded"]
        write_report(folder, judged, None, [photos, *pictures, targets])


def judge_on_portraits(
    editors: dict[str, Any], portraits: Path, params: Any, by: Any, limit: int | None, out: Path | None
) -> None:
    """Edit portraits with every run, print the medians; into a folder also what else each edit changed."""
    from stylepairs.datagen.portraits.folders import load_portraits
    from stylepairs.datagen.shell.durable import write_bytes
    from stylepairs.i2i.evaluation import finite
    from stylepairs.i2i.judging import entanglement, judge_portraits, write_report

    judged, _, _ = judge_portraits(editors, portraits, params, by, limit)
    for run, one in judged.items():
        summary = {name: each.value for name, each in one.figures.items() if each.value == each.value}
        named = f"{run}: " if len(editors) > 1 else ""
        medians = "  ".join(f"{name} {value:.4g}" for name, value in summary.items())
        print(f"{named}{len(one.rows)} edits, medians: {medians}")
        if out is not None and out.suffix == ".json":  # of one run
            edits = [finite(row) for row in one.rows]
            write_bytes(out, json.dumps({"summary": summary, "edits": edits}, indent=1, allow_nan=False).encode())
    if out is not None and out.suffix != ".json":
        files = load_portraits(portraits)[:limit]
        entangled = {run: entanglement(editor, readable(files), params[0]) for run, editor in editors.items()}
        write_report(out / "portraits", judged, entangled)


def readable(files: Iterable[PortraitFile]) -> Iterator[Portrait]:
    """The portraits of files that can be read; the others are left out, whoever measured them before has said so."""
    for file in files:
        with contextlib.suppress(InputError):
            yield file.load()


def recipe_feature(recipe: str) -> str | None:
    """The feature that a recipe makes pairs of; None where it makes none."""
    from pydantic import BaseModel

    from stylepairs.datagen.recipe import load_recipe

    class Datagen(BaseModel):
        feature: str | None = None

    try:
        return load_recipe(recipe, "datagen", Datagen).feature
    except InputError:  # its i2i section is all that it has
        return None


def run_own_feature(path: Path | None) -> None:
    """Run the user's feature file, so that a model trained on its pairs finds it; None: there is none."""
    if path is not None:
        from stylepairs.datagen.features import is_own_file, load_feature

        if not is_own_file(str(path)):
            raise InputError(f"--own-feature {path}: must end in .py")
        load_feature(str(path), run_files=True)


def print_on_main(line: str) -> None:
    """Print from one process only, whoever started the processes."""
    import os

    if os.environ.get("RANK", "0") == "0":
        print(line, flush=True)
