"""What commands share: one line and exit code 2 for a bad input or option, 130 after Ctrl-C, progress on stderr."""

from __future__ import annotations

import functools
import inspect
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TypeVar, get_args, get_origin

from stylepairs.datagen import __version__
from stylepairs.datagen.shell import events
from stylepairs.datagen.shell.errors import InputError, printable, without_middle
from stylepairs.datagen.shell.storage.staged import local_place, place

if TYPE_CHECKING:
    import typer
    from typer.core import TyperCommand

Command = TypeVar("Command", bound=Callable[..., Any])

INTERRUPTED = 130
_PLAIN_INTERVAL_S = 10.0


def run_app(app: typer.Typer) -> NoReturn:
    """Run the command that the arguments name and exit: 0, 2 with one line on stderr, or 130 when interrupted.

    Every command of the app takes `--log`, text or json (see `events`).
    """
    _complete_commands(app)
    if "--log=json" in sys.argv or ("--log", "json") in zip(sys.argv, sys.argv[1:], strict=False):
        events.choose_log("json")  # wrong options, too, are told in JSON
    try:
        code = app(standalone_mode=False)
    except InputError as error:
        _fail(str(error))
    except KeyboardInterrupt:
        code = INTERRUPTED
    except BrokenPipeError:  # whoever read the output has gone, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except OSError as error:
        # What the system refuses of a named file (no permission, a name too long, a link to itself) is no bug.
        if error.filename is None or error.errno is None:
            raise
        _fail(printable(f"{error.filename}: {error.strerror}; check the path and its permissions"))
    except Exception as error:
        # Wrong options: typer's own classes, which its versions keep in different places.
        describe = getattr(error, "format_message", None)
        if describe is None:
            events.event("error", message=f"{type(error).__name__}: {error}", exit_code=1)
            raise
        _fail(describe(), whole=type(error).__name__ == "NoArgsIsHelpError")
    code = code if isinstance(code, int) else 0
    if code == INTERRUPTED:
        events.tell("interrupted", kind="interrupted")
    events.event("end", exit_code=code)
    sys.exit(code)


def add_version(app: typer.Typer) -> None:
    """Let an app take --version in the place of a command."""
    import typer

    def said(asked: bool) -> None:
        if asked:
            print(f"stylepairs {__version__}")
            raise typer.Exit

    option = typer.Option(False, "--version", callback=said, is_eager=True, help="say the version and end")

    @app.callback()
    def options(version: bool = option) -> None: ...


@contextmanager
def advice_if_interrupted(advice: str) -> Iterator[None]:
    """Say what is kept and how to go on where Ctrl-C ends the work inside, and exit with 130."""
    try:
        yield
    except KeyboardInterrupt:
        events.tell(f"interrupted; {advice}", "interrupted")
        sys.exit(INTERRUPTED)


def _fail(message: str, whole: bool = False) -> NoReturn:
    line = without_middle(" ".join(message.split()))
    if events.is_json():
        events.event("error", message=line, exit_code=2)
    else:
        print(message if whole else printable(line), file=sys.stderr)
    sys.exit(2)


def _complete_commands(app: typer.Typer) -> None:
    """Let each command of the app, and of the apps in it, take --log, and options of one value but once."""
    for command in app.registered_commands:
        command.cls = _single_options_once()
        if command.callback is not None and not hasattr(command.callback, "takes_log"):
            command.callback = _with_log(command.callback, command.name)
    for group in app.registered_groups:
        if group.typer_instance is not None:
            _complete_commands(group.typer_instance)


@functools.cache
def _single_options_once() -> type[TyperCommand]:
    """The class of commands that refuse an option of one value where it is given twice: the first would be lost."""
    from typer.core import TyperCommand

    class SingleOptionsOnce(TyperCommand):
        def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
            _, _, given = self.make_parser(ctx).parse_args(list(args))
            for option in given:
                if option.param_type_name == "option" and not (option.multiple or option.is_flag):  # type: ignore[attr-defined]
                    times = sum(each is option for each in given)
                    if times > 1:
                        raise InputError(f"{option.opts[0]}: given {times} times; it takes one value")
            return super().parse_args(ctx, args)

    return SingleOptionsOnce


def _with_log(command: Callable[..., Any], name: str | None) -> Callable[..., Any]:
    """The command with one option more, which chooses the log before anything else is done."""
    import typer

    option = Annotated[str, typer.Option("--log", help="text, or json: one event a line on stderr")]

    @functools.wraps(command)
    def logged(*args: Any, log: str = "text", **options: Any) -> Any:
        if log not in events.LOGS:
            raise InputError(f"--log {log}: unknown; choose {' or '.join(events.LOGS)}")
        events.choose_log(log)
        events.event("begin", command=name or command.__name__.replace("_", "-"))
        return command(*args, **options)

    signature = inspect.signature(command, eval_str=True)
    for each in signature.parameters.values():
        _set_parser(each.annotation, place if hasattr(command, "takes_urls") else local_place)
    added = inspect.Parameter("log", inspect.Parameter.KEYWORD_ONLY, default="text", annotation=option)
    logged.__signature__ = signature.replace(parameters=[*signature.parameters.values(), added])  # type: ignore[attr-defined]
    logged.__annotations__ = {name: each.annotation for name, each in signature.parameters.items()} | {"log": option}
    logged.takes_log = True  # type: ignore[attr-defined]
    return logged


def at_urls(command: Command) -> Command:
    """Marks a command whose folders may lie at URLs (see `staged`); paths of others are local."""
    command.takes_urls = True  # type: ignore[attr-defined]
    return command


def _set_parser(annotation: Any, parser: Callable[[str], Path]) -> None:
    """Have an option or argument of typer's that takes a path read by `parser`."""
    kind, *details = get_args(annotation) if get_origin(annotation) is Annotated else (annotation,)
    kinds = {kind, *get_args(kind), *(inner for each in get_args(kind) for inner in get_args(each))}
    for detail in details if Path in kinds else ():
        detail.parser, detail.metavar = parser, detail.metavar or "PATH"


class Progress:
    """Counts work on stderr: a bar with the time left on a terminal, now and then a line elsewhere.

    total: how much there is, 0 where that is not known, and then no time left is told.
    quiet: notes only, for all but one of several processes that share a terminal.
    """

    def __init__(self, total: float, unit: str, quiet: bool = False) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.total, self.unit, self.done, self.found = total, unit, 0.0, 0.0
        self.started = self.printed = time.monotonic()
        self.quiet, self.console = quiet, Console(stderr=True)
        columns = (
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn(unit),
            TimeRemainingColumn(),
            TextColumn("{task.description}"),
        )
        shows_bar = self.console.is_terminal and not quiet and not events.is_json()
        self.bar = Progress(*columns, console=self.console) if shows_bar else None
        self.task = self.bar.add_task("", total=round(total) or None) if self.bar else None

    def advance(self, work: float, status: str = "", now: bool = True) -> None:
        """Count `work` more as done; status is shown beside it. now False: an earlier run did it, it tells no speed."""
        self.done += work
        self.found += 0.0 if now else work
        if self.bar is not None and self.task is not None:
            # Whole numbers: rich would print 3.6999 of 20.
            self.bar.update(self.task, completed=int(self.done + 1e-6), description=status or None)
        elif work and not self.quiet and time.monotonic() - self.printed > _PLAIN_INTERVAL_S:
            self.printed = time.monotonic()
            of = f" of {self.total:.0f}" if self.total else ""
            text = f"{self.done:.0f}{of} {self.unit}{self._left()}{f'; {status}' if status else ''}"
            fields = {"done": self.done, "total": self.total, "unit": self.unit, "left_s": self.left_s()}
            events.tell(text, kind="progress", **fields)

    def reach(self, done: float, status: str = "", now: bool = True) -> None:
        """Say how much is done in all; the rest as in `advance`."""
        self.advance(done - self.done, status, now)

    def note(self, line: str) -> None:
        """A line of its own, above the bar."""
        if self.bar is not None:
            self.console.print(line, markup=False, highlight=False)
        else:
            events.tell(line)

    def left_s(self) -> float | None:
        """Seconds that the rest will take, at the speed so far; None where that cannot be told yet."""
        elapsed = time.monotonic() - self.started
        if not self.total or self.done <= self.found or elapsed < 1:
            return None
        return max(elapsed * (self.total - self.done) / (self.done - self.found), 0.0)

    def _left(self) -> str:
        left_s = self.left_s()
        if left_s is None:
            return ""
        return f", about {left_s / 60:.0f} min left" if left_s >= 90 else f", about {left_s:.0f} s left"


@contextmanager
def progress(total: float, unit: str, quiet: bool = False) -> Iterator[Progress]:
    """A Progress that is on screen while the block runs."""
    shown = Progress(total, unit, quiet)
    if shown.bar is None:
        yield shown
    else:
        with shown.bar:
            yield shown
