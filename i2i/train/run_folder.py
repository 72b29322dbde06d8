"""A training run's folder: whose it is (run.json), its log (metrics.jsonl, tensorboard) and its checkpoints.

model.safetensors and state.safetensors are the newest checkpoint, previous/ holds the one before it, best/ the model
with the lowest perceptual distance on held-out pairs. Each of the three can be given to `i2i edit`.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from stylepairs.datagen import __version__
from stylepairs.datagen.shell import events
from stylepairs.datagen.shell.durable import make_folder, replace_file
from stylepairs.datagen.shell.errors import InputError
from stylepairs.datagen.shell.regular import open_regular, read_regular
from stylepairs.datagen.shell.storage.staged import Staged, publish, publish_folder
from stylepairs.i2i.models import checkpoints
from stylepairs.i2i.models.adapters import is_attached

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

# Raised whenever the same run would learn something else, as with other augmentation; such runs are not gone on with.
TRAINING_VERSION = 8
RUN_FILE = "run.json"
METRICS_FILE, BOARD_FOLDER = "metrics.jsonl", "tensorboard"
_MAX_BYTES = 256 << 20  # of run.json, and of a log of a million lines
PREVIOUS, BEST = "previous", "best"
# Settings that say how long a run goes on and how often it reports. Of them only `steps` has a say in what is learnt:
# the learning rate falls by it, and a prolonged run goes on at the rates of its new length.
FREE_SETTINGS = ("steps", "log_every_steps", "sample_every_steps", "checkpoint_every_steps")

Typed = TypeVar("Typed", bound=BaseModel)


class RunDescription(BaseModel):
    """What fixes a run's result: goes into run.json and the model file."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    feature: str
    settings: dict[str, Any]
    generator_digest: str
    data_digest: str
    code_version: str


class MetricsLine(BaseModel):
    """One line of metrics.jsonl; all that is not declared is a figure."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)
    __pydantic_extra__: dict[str, float] = Field(init=False)

    step: int = Field(ge=0)
    kind: Literal["train", "val"]


class RunLog:
    """Writes figures by step; does nothing when not enabled (other processes than the main one)."""

    def __init__(self, out: Path, step: int, enabled: bool = True):
        self.enabled, self.path = enabled, out / METRICS_FILE
        if not enabled:
            return
        kept = [line for line in read_metrics(self.path) if line["step"] <= step]
        text = "".join(json.dumps(line) + "\n" for line in kept)
        replace_file(self.path, lambda file: file.write(text.encode()))
        self.board = _board(out / BOARD_FOLDER, step + 1)

    def write(self, step: int, kind: str, figures: Mapping[str, Any]) -> None:
        """Append one line {"step", "kind", figures...}; kind is "train" or "val"."""
        if not self.enabled:
            return
        values = {name: float(value) for name, value in figures.items()}
        events.event(kind, step=step, **values)
        with _writing(self.path), self.path.open("a") as file:
            file.write(json.dumps({"step": step, "kind": kind, **values}) + "\n")
        with _writing(self.path.with_name(BOARD_FOLDER)):
            for name, value in values.items():
                self.board.add_scalar(f"{kind}/{name}", value, step)

    def publish(self) -> None:
        """Put all that was written so far where the run's URL is; before a checkpoint, which is gone on from."""
        if self.enabled and isinstance(self.path, Staged):
            with _writing(self.path.with_name(BOARD_FOLDER)):
                self.board.flush()
            publish(self.path)
            publish_folder(self.path.parent / BOARD_FOLDER)

    def close(self) -> None:
        """Write what tensorboard still holds back."""
        if self.enabled:
            with _writing(self.path.with_name(BOARD_FOLDER)):
                self.board.close()
            self.publish()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl; a last line that was cut off by a kill is left out. Raises InputError."""
    lines = _read(path).splitlines(keepends=True) if path.is_file() else []
    if lines and not lines[-1].endswith(b"\n"):
        lines.pop()
    wanted = 'a line {"step": 1, "kind": "train", figures}; remove it'
    return [
        _read_typed(MetricsLine, line, f"{path}: line {number} is not {wanted}").model_dump()
        for number, line in enumerate(lines, 1)
    ]


def describe(settings: dict[str, Any], feature: str, digest: str, data: str) -> RunDescription:
    """The description of a run with these settings; digests of its generator and its pairs."""
    return RunDescription(
        feature=feature,
        settings=settings,
        generator_digest=digest,
        data_digest=data,
        code_version=f"{__version__}+train{TRAINING_VERSION}",
    )


def claim_folder(
    out: Path, run: RunDescription, wait: Callable[[], None], main: bool, say: Callable[[str], None]
) -> None:
    """Make the run folder, or check that the run in it is this one; it may be prolonged and report at other steps.

    wait: until all processes have come here; main: whether this is the one that writes. Raises InputError that names
    what differs.
    """
    path = out / RUN_FILE
    make_folder(out / "samples")
    wait()
    found = read_description(path) if path.is_file() else None
    if found is not None:
        differing = list(_differences(found, run))
        if differing:
            raise InputError(f"{out}: holds another run ({'; '.join(differing)}); choose another --out")
        refuse_fewer_steps(out, run.settings["steps"])
        steps = found.settings.get("steps"), run.settings["steps"]
        if steps[0] != steps[1]:
            say(f"{out}: was to end at step {steps[0]}, now ends at step {steps[1]}")
    wait()
    if main:
        text = json.dumps(run.model_dump(), indent=2)
        replace_file(path, lambda file: file.write(text.encode()))


def refuse_fewer_steps(out: Path, steps: int) -> None:
    """Raises InputError where the folder's run has made more steps than these."""
    path = newest_state(out)
    if path is None:
        return
    done = checkpoints.step_of_state(path)
    if done > steps:
        raise InputError(f"{path}: is at step {done}, further than steps {steps}; raise steps")


def read_description(path: Path) -> RunDescription:
    """A run.json; InputError, one line, where it is anything else."""
    wanted = "not the description of a run; put it back, or choose another --out"
    return _read_typed(RunDescription, _read(path), f"{path}: {wanted}")


def save_checkpoint(
    out: Path,
    model: checkpoints.Trained,
    info: checkpoints.ModelInfo,
    tensors: checkpoints.Tensors,
    details: checkpoints.StateDetails,
    is_best: bool,
) -> None:
    """Replace the folder's model and state, each whole or not at all; the checkpoint before is kept."""
    for name in (checkpoints.MODEL_FILE, checkpoints.ADAPTER_FILE, checkpoints.STATE_FILE):
        if (out / name).is_file():
            _copy(out / name, out / PREVIOUS / name)
    written = [checkpoints.MODEL_FILE]
    checkpoints.save_model(out / checkpoints.MODEL_FILE, model, info)
    if is_attached(model):
        written.append(checkpoints.ADAPTER_FILE)
        checkpoints.save_adapter(out / checkpoints.ADAPTER_FILE, model, info)
    for name in written if is_best else ():
        _copy(out / name, out / BEST / name)
    checkpoints.save_state(out / checkpoints.STATE_FILE, tensors, details)


def save_sample(out: Path, step: int, png: bytes) -> None:
    """Write a sheet of samples, named by its step."""
    replace_file(out / "samples" / f"{step:08d}.png", lambda file: file.write(png))


def newest_state(out: Path) -> Path | None:
    """The state to go on from: the last one, or where it was removed the one before; None for a new run."""
    candidates = (out / checkpoints.STATE_FILE, out / PREVIOUS / checkpoints.STATE_FILE)
    return next((path for path in candidates if path.is_file()), None)


def line_of(step: int, steps: int, figures: Mapping[str, Any], what: str = "") -> str:
    """ "step 3/10  l1 0.25", what is measured between the two."""
    shown = "  ".join(f"{name} {float(value):.4g}" for name, value in figures.items())
    return f"step {step}/{steps}  {what + '  ' if what else ''}{shown}"


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Raises InputError where something cannot be written there."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{path}: cannot be written ({error.strerror or error}); free some space and run the same command again, it"
            " goes on from the last checkpoint"
        ) from error


def _board(folder: Path, first_step: int) -> SummaryWriter:
    """tensorboard's writer. What its thread meets on the disk is raised by the next call; it prints no traceback."""
    from torch.utils.tensorboard import SummaryWriter

    usual = threading.excepthook

    def hook(met: threading.ExceptHookArgs) -> None:
        of_writer = type(met.thread).__module__.startswith("tensorboard.")
        if not (of_writer and issubclass(met.exc_type, OSError)):
            usual(met)

    threading.excepthook = hook
    with _writing(folder):
        return SummaryWriter(str(folder), purge_step=first_step)


def _differences(found: RunDescription, run: RunDescription) -> Iterator[str]:
    """What tells two runs apart, one phrase each."""
    for name in ("feature", "generator_digest", "data_digest", "code_version"):
        there, here = getattr(found, name), getattr(run, name)
        if there != here:
            yield f"{name} {there[:12]} there, {here[:12]} here"
    there, here = dict(_flat(found.settings)), dict(_flat(run.settings))
    names = [name for name in {**there, **here} if there.get(name) != here.get(name) and name not in FREE_SETTINGS]
    if names:
        phrases = (f"{name} {there.get(name, 'unset')} there, {here.get(name, 'unset')} here" for name in names)
        yield f"settings differ: {', '.join(phrases)}"


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _read_typed(model: type[Typed], data: bytes, problem: str) -> Typed:
    try:
        return model.model_validate_json(data)
    except ValidationError as error:
        raise InputError(problem) from error


def _read(path: Path) -> bytes:
    try:
        return read_regular(path, _MAX_BYTES)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); mend it, or choose another --out") from None


def _copy(source: Path, target: Path) -> None:
    make_folder(target.parent)
    with open_regular(source) as file:
        replace_file(target, lambda copy: shutil.copyfileobj(file, copy))
