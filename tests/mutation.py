"""Mutation testing of one module: small faults are put into it, one at a time, and its tests must notice.

    python tests/mutation.py datagen/build/quality.py -- tests/datagen/build/test_quality.py

Prints the faults that no test noticed and the share that was; exits with 1 below `--least`. Each fault is tried in a
forked child of one process that has the libraries loaded, so that a try costs what the tests cost. Faults are put into
comparisons, arithmetic, conditions, numbers, min and max, and whole statements are left out; strings, annotations and
asserts are left alone. A line that ends with `# any value will do` is passed over: its numbers are free by design.
"""

from __future__ import annotations

import argparse
import ast
import copy
import importlib
import importlib.abc
import importlib.machinery
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[1]
FREE = "# any value will do"
SWAPS: dict[type[ast.AST], type[ast.AST]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.And: ast.Or, ast.Or: ast.And,
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.Pow: ast.Mult,
    ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
}  # fmt: skip
TWINS = {"min": "max", "max": "min", "amin": "amax", "amax": "amin", "any": "all", "all": "any", "sum": "mean",
         "mean": "sum", "zeros_like": "ones_like", "ones_like": "zeros_like"}  # fmt: skip


@dataclass(frozen=True)
class Fault:
    """One change: what it is, for people, and the whole changed module."""

    line: int
    what: str
    tree: ast.Module


def faults(source: str) -> Iterator[Fault]:
    """Every fault that can be put into a module."""
    tree = ast.parse(source)
    lines = source.splitlines()
    skipped = _skipped(tree)
    for index, node in enumerate(ast.walk(tree)):
        if index in skipped or (hasattr(node, "lineno") and lines[node.lineno - 1].rstrip().endswith(FREE)):
            continue
        for what, change in _changes(node):
            changed = copy.deepcopy(tree)
            twin = next(candidate for i, candidate in enumerate(ast.walk(changed)) if i == index)
            change(twin)
            yield Fault(getattr(node, "lineno", 0), what, ast.fix_missing_locations(changed))


def _skipped(tree: ast.Module) -> set[int]:
    """Places in the walk of what decides nothing: annotations, docstrings, asserts, messages, decorators."""
    dull: set[int] = set()
    for node in ast.walk(tree):
        parts: list[ast.AST | None] = []
        if isinstance(node, ast.FunctionDef):
            annotations = [inner.annotation for inner in ast.walk(node.args) if isinstance(inner, ast.arg)]
            parts += [node.returns, *node.decorator_list, *annotations]
        if isinstance(node, ast.ClassDef):
            parts += node.decorator_list
        if isinstance(node, ast.AnnAssign):
            parts.append(node.annotation)
        if isinstance(node, ast.Assert | ast.Raise | ast.Import | ast.ImportFrom | ast.JoinedStr):
            parts.append(node)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            parts.append(node)
        dull.update(id(inner) for part in parts if part is not None for inner in ast.walk(part))
    return {index for index, node in enumerate(ast.walk(tree)) if id(node) in dull}


def _changes(node: ast.AST) -> Iterator[tuple[str, Callable[[ast.AST], None]]]:
    if isinstance(node, ast.Compare):
        for place, operator in enumerate(node.ops):
            if type(operator) in SWAPS:
                yield _told(node, SWAPS[type(operator)]), _with_item("ops", place, SWAPS[type(operator)]())
    if isinstance(node, ast.BoolOp | ast.BinOp | ast.AugAssign) and type(node.op) in SWAPS:
        yield _told(node, SWAPS[type(node.op)]), _with("op", SWAPS[type(node.op)]())
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        yield f"sign dropped: {ast.unparse(node)[:60]}", _with("op", ast.UAdd())
    if isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield f"{node.value} -> {not node.value}", _with("value", not node.value)
    elif isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        yield f"{node.value} -> {node.value * 2 + 1}", _with("value", node.value * 2 + 1)
    if isinstance(node, ast.If | ast.While | ast.IfExp):
        yield f"condition turned: {ast.unparse(node.test)[:60]}", _turned
    called = "attr" if isinstance(node, ast.Attribute) else "id"
    if getattr(node, called, None) in TWINS and isinstance(getattr(node, "ctx", None), ast.Load):
        name = getattr(node, called)
        yield f"{name} -> {TWINS[name]}", _with(called, TWINS[name])
    for field in ("body", "orelse", "finalbody"):
        statements = getattr(node, field, None)
        for place, statement in enumerate(statements if isinstance(statements, list) else []):
            call = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call)
            if call or isinstance(statement, ast.AugAssign):
                yield f"left out: {ast.unparse(statement)[:60]}", _with_item(field, place, ast.Pass())


def _told(node: ast.AST, new: type[ast.AST]) -> str:
    return f"{ast.unparse(node)[:60]}: {new.__name__}"


def _with(field: str, value: object) -> Callable[[ast.AST], None]:
    return lambda node: setattr(node, field, value)


def _with_item(field: str, place: int, value: ast.AST) -> Callable[[ast.AST], None]:
    def change(node: ast.AST) -> None:
        getattr(node, field)[place] = value

    return change


def _turned(node: ast.AST) -> None:
    assert isinstance(node, ast.If | ast.While | ast.IfExp)
    node.test = ast.UnaryOp(ast.Not(), node.test)


class _Changed(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Gives the changed module in place of the file's."""

    def __init__(self, name: str, path: Path, tree: ast.Module) -> None:
        self.name, self.path, self.code = name, path, compile(tree, str(path), "exec")

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != self.name:
            return None
        spec = importlib.machinery.ModuleSpec(fullname, self, origin=str(self.path))
        spec.has_location = True
        return spec

    def exec_module(self, module: ModuleType) -> None:
        exec(self.code, module.__dict__)


def run_tests(name: str, path: Path, tree: ast.Module, tests: Sequence[str]) -> int:
    """Exit code of the tests with the module so changed; for a forked child."""
    import pytest

    sys.meta_path.insert(0, _Changed(name, path, tree))
    sink = os.open(os.devnull, os.O_WRONLY)
    os.dup2(sink, 1)
    os.dup2(sink, 2)
    return int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", "-p", "no:randomly", "--no-header", *tests]))


def in_child(work: Callable[[], int], limit_s: float) -> tuple[int, float]:
    """Exit code and seconds of `work` in a forked child; -1 where it took longer than the limit."""
    started = time.monotonic()
    pid = os.fork()
    if pid == 0:
        code = 70
        try:
            os.setsid()
            code = work()
        finally:
            os._exit(code)
    while time.monotonic() - started < limit_s:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            code = os.waitstatus_to_exitcode(status)
            return code, time.monotonic() - started
        time.sleep(0.02)
    os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return -1, time.monotonic() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("module", type=Path, help="for example datagen/build/quality.py")
    parser.add_argument("tests", nargs="+", help="test files or anything else that pytest takes")
    parser.add_argument("--sample", type=int, help="try so many faults, drawn by --seed; default all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--least", type=float, default=0.9, help="exit with 1 when a smaller share is noticed")
    parser.add_argument("--lines", help="FIRST-LAST: only faults of these lines")
    options = parser.parse_args()
    path = (ROOT / options.module).resolve()
    name = "stylepairs." + ".".join(path.relative_to(ROOT).with_suffix("").parts)
    source = path.read_text(encoding="utf-8")
    os.chdir(ROOT)
    for library in ("torch", "numpy", "kornia", "cv2", "pydantic", "PIL.Image", "pyarrow.parquet", "hypothesis",
                    "pytest", "yaml", "safetensors.torch", "accelerate"):  # fmt: skip
        importlib.import_module(library)
    found = list(faults(source))
    if options.lines:
        first, last = map(int, options.lines.split("-"))
        found = [fault for fault in found if first <= fault.line <= last]
    if options.sample and options.sample < len(found):
        found = sorted(random.Random(options.seed).sample(found, options.sample), key=lambda fault: fault.line)
    code, seconds = in_child(lambda: run_tests(name, path, ast.parse(source), options.tests), 1200)
    if code != 0:
        raise SystemExit(f"the tests fail without a fault (exit code {code})")
    print(f"{len(found)} faults, {seconds:.1f} s a try", flush=True)
    unnoticed = []
    for number, fault in enumerate(found, 1):
        code, _ = in_child(partial(run_tests, name, path, fault.tree, options.tests), 5 * seconds + 20)
        if code == 0:
            unnoticed.append(fault)
            print(f"{options.module}:{fault.line}: unnoticed: {fault.what}", flush=True)
        if number % 25 == 0:
            print(f"  {number} of {len(found)} tried, {len(unnoticed)} unnoticed", flush=True)
    share = 1 - len(unnoticed) / max(len(found), 1)
    print(f"{options.module}: {share:.1%} of {len(found)} faults noticed")
    raise SystemExit(share < options.least)


if __name__ == "__main__":
    main()
