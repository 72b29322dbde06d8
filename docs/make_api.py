"""Writes api.md, the reference of all public functions and classes, from the docstrings: `python docs/make_api.py`.

The sources are read, not imported, so the page does not depend on what is installed. A test compares it with the code.
"""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = Path(__file__).with_name("api.md")
# Modules for users of the packages, in the order of the work: photos, features, pairs, models, edits, operations.
MODULES = (
    "datagen/portraits/analysis/prepare.py",
    "datagen/portraits/analysis/analyser.py",
    "datagen/portraits/folders.py",
    "datagen/portraits/portrait.py",
    "datagen/portraits/alignment.py",
    "datagen/portraits/regions.py",
    "datagen/portraits/sketch.py",
    "datagen/sketching/tools/texture.py",
    "datagen/sketching/tools/warp.py",
    "datagen/sketching/tools/matching.py",
    "datagen/sketching/tools/regions_given.py",
    "datagen/sketching/hair/hair_matte.py",
    "datagen/sketching/hair/foreheads.py",
    "datagen/sketching/hair/hairline_curve.py",
    "datagen/sketching/hair/strands.py",
    "datagen/sketching/hair/strokes.py",
    "datagen/features/__init__.py",
    "datagen/features/feature.py",
    "datagen/recipe.py",
    "datagen/build/plan.py",
    "datagen/build/shard_runner.py",
    "datagen/build/quality.py",
    "datagen/importing/plan.py",
    "datagen/augment/plan.py",
    "datagen/latent/scorers.py",
    "datagen/latent/samples.py",
    "datagen/latent/fitting.py",
    "datagen/latent/directions.py",
    "datagen/pairs/shards.py",
    "datagen/pairs/export.py",
    "datagen/pairs/inspection.py",
    "datagen/stylegan/checkpoints.py",
    "datagen/stylegan/generator.py",
    "datagen/stylegan/discriminator.py",
    "datagen/reconstruction/settings.py",
    "datagen/reconstruction/inversion.py",
    "datagen/reconstruction/reconstruct.py",
    "datagen/reconstruction/prior.py",
    "datagen/encoders/network.py",
    "datagen/encoders/files.py",
    "datagen/encoders/settings.py",
    "datagen/encoders/training.py",
    "datagen/compositing/compose.py",
    "datagen/images/files.py",
    "datagen/images/colors.py",
    "datagen/images/filters.py",
    "datagen/images/tones.py",
    "datagen/images/perceptual.py",
    "datagen/shell/errors.py",
    "datagen/shell/randomness.py",
    "i2i/edit/editor.py",
    "i2i/models/checkpoints.py",
    "i2i/models/glean.py",
    "i2i/models/prepared_glean.py",
    "i2i/models/plain.py",
    "i2i/models/light.py",
    "i2i/models/published.py",
    "i2i/models/export.py",
    "i2i/evaluation.py",
    "i2i/train/settings.py",
    "i2i/train/training.py",
    "i2i/train/start.py",
    "kernels/modulated_conv2d.py",
    "kernels/modulated_layer.py",
    "kernels/upfirdn2d.py",
    "kernels/bias_act.py",
)
INTRODUCTION = """# API
Every public function and class of the modules that users import. Made from the docstrings by `python docs/make_api.py`.

Images are float32 RGB [N,3,H,W] in [-1,1] unless a docstring says otherwise. More conventions:
[architecture](architecture.md#conventions).
"""


def page() -> str:
    """The whole page as Markdown."""
    return "\n".join([INTRODUCTION, *(_module(name) for name in MODULES)])


def _module(path: str) -> str:
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    name = "stylepairs." + path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    parts = [f"## {name}\n", _doc(tree), ""]
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and _is_public(node):
            parts += [f"### {node.name}\n", _signature(node.name, node), _doc(node), ""]
        elif isinstance(node, ast.ClassDef) and _is_public(node):
            parts += [f"### {node.name}\n", _signature(f"class {node.name}", _init(node)), _doc(node), ""]
            if methods := _methods(node):
                parts += [*(f"- {line}" for line in methods), ""]
    return "\n".join(parts).rstrip() + "\n"


def _is_public(node: ast.FunctionDef | ast.ClassDef) -> bool:
    return not node.name.startswith("_") and ast.get_docstring(node) is not None


def _doc(node: ast.Module | ast.ClassDef | ast.FunctionDef) -> str:
    return ast.get_docstring(node) or ""


def _init(node: ast.ClassDef) -> ast.FunctionDef | ast.ClassDef:
    """What is called to make one: `__init__`, or the class with its fields."""
    made = [item for item in node.body if isinstance(item, ast.FunctionDef) and item.name == "__init__"]
    return made[0] if made else node


def _signature(shown: str, node: ast.FunctionDef | ast.ClassDef) -> str:
    if isinstance(node, ast.ClassDef):
        fields = [ast.unparse(item) for item in node.body if isinstance(item, ast.AnnAssign) and item.simple]
        lines = [f"{shown}:", *(f"    {field}" for field in fields)] if fields else [shown]
        return "```text\n" + "\n".join(lines) + "\n```\n"
    arguments = ast.unparse(node.args).removeprefix("self, ").removeprefix("self")
    returns = f" -> {ast.unparse(node.returns)}" if node.returns and node.name != "__init__" else ""
    line = f"{shown}({arguments}){returns}"
    if len(line) > 100:
        line = "\n".join([f"{shown}(", *(f"    {argument}," for argument in _split(arguments)), f"){returns}"])
    return f"```text\n{line}\n```\n"


def _split(arguments: str) -> list[str]:
    """The arguments one by one: commas inside brackets do not count."""
    parts, depth, begin = [], 0, 0
    for index, letter in enumerate(arguments):
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and depth == 0:
            parts.append(arguments[begin:index].strip())
            begin = index + 1
    return [*parts, arguments[begin:].strip()]


def _methods(node: ast.ClassDef) -> list[str]:
    """Public methods and properties with the first paragraph of their docstrings."""
    found = []
    for item in node.body:
        if isinstance(item, ast.FunctionDef) and _is_public(item):
            first = " ".join(_doc(item).split("\n\n")[0].split())
            decorators = {ast.unparse(decorator) for decorator in item.decorator_list}
            arguments = ast.unparse(item.args).removeprefix("self").removeprefix("cls").removeprefix(", ")
            returns = f" -> {ast.unparse(item.returns)}" if item.returns else ""
            shown = item.name if decorators & {"property", "cached_property"} else f"{item.name}({arguments}){returns}"
            found.append(f"`{shown}`: {first}")
    return found


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE)
