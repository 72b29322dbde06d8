"""The figures of `latent_methods.py`: of each method on each attribute, with intervals, and against each other."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

CHANGE, TOLERANCE = 1.0, 0.2  # deviations: wanted of the attribute, and how far from it is near enough
PAIRED_WITH = "interfacegan"


def line(result: dict[str, Any]) -> str:
    """A result in a line."""
    figures = summary(result)
    return f"{result['method']:14} {result['attribute']:16} " + "  ".join(f"{k} {v}" for k, v in figures.items())


def summary(result: dict[str, Any]) -> dict[str, str]:
    """The figures of a result as text."""
    rows = [row for row in result["rows"] if arrived(row)]
    figures = {"success": f"{100 * len(rows) / len(result['rows']):.0f} %"}
    for name, digits in (("others", 2), ("apart", 2), ("identity", 3), ("outside_db", 1)):
        values = np.array([row[name] for row in rows], float)
        figures[name] = interval(values[np.isfinite(values)], digits)
    return figures | {"seconds": f"{result['seconds']:.2f}"}


def arrived(row: dict[str, Any]) -> bool:
    """Whether a person's change is the wanted one."""
    return bool(abs(row["reached"] - CHANGE) <= TOLERANCE)


def against(result: dict[str, Any], reference: dict[str, Any] | None) -> str:
    """How much less the others change than in the reference, on the people who reach the change in both."""
    if reference is None or reference is result:
        return "-"
    pairs = zip(result["rows"], reference["rows"], strict=False)  # the first people are the same
    return interval([a["others"] - b["others"] for a, b in pairs if arrived(a) and arrived(b)], 2)


def interval(values: Sequence[float], digits: int) -> str:
    """Mean and 95 % of a bootstrap: "0.41 (0.36 to 0.47)"."""
    if len(values) == 0:
        return "-"
    draws = np.random.default_rng(0).choice(values, (2000, len(values))).mean(1)
    low, high = np.percentile(draws, [2.5, 97.5])
    return f"{np.mean(values):.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def table(folder: Path, attributes: Sequence[str], methods: Sequence[str], watched: Sequence[str]) -> str:
    """The table of all results in a folder, in the order of attributes and methods; watched: of which changes are."""
    results = [json.loads(path.read_text()) for path in sorted(folder.glob("*-*.json"))]
    lines = []
    for attribute in attributes:
        chosen = [result for result in results if result["attribute"] == attribute]
        if not chosen:
            continue
        chosen.sort(key=lambda result: methods.index(result["method"]))
        base = next((result for result in chosen if result["method"] == PAIRED_WITH), None)
        columns = ["method", "people", "success", "others", "apart", "identity", "outside, dB", "s", "against"]
        lines += [f"### {attribute}", "| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
        for result in chosen:
            cells = [result["method"], str(result["people"]), *summary(result).values(), against(result, base)]
            lines.append("| " + " | ".join(cells) + " |")
        lines += ["", "Mean change of each attribute where it was reached, in deviations:", ""]
        lines += ["| method | " + " | ".join(watched) + " |", "|---" * (len(watched) + 1) + "|"]
        for result in chosen:
            known = [row["changes"] for row in result["rows"] if arrived(row)]
            means = np.mean(known, 0) if known else np.full(len(watched), np.nan)
            lines.append(f"| {result['method']} | " + " | ".join(f"{value:+.1f}" for value in means) + " |")
        lines.append("")
    return "\n".join(lines)
