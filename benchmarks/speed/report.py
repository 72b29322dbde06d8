"""The results as Markdown tables and plots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import measure

Rows = Mapping[str, Mapping[str, Any]]
PLAIN, FASTEST = "ours, plain fp32 reference", "ours, bf16"
# Title, unit of the work that seconds are of, and the row that ratios are counted from.
TITLES = {
    "forward": ("Generator, forward, 256 px, batch 4", "image", PLAIN),
    "forward_backward": ("Generator, forward and backward to W+, 256 px, batch 4", "image", PLAIN),
    "reconstruction_256": ("Reconstruction step, 256 px, batch 4", "portrait's step", None),
    "reconstruction_embedded": ("Reconstruction step, embedded generator, 128 px, batch 4", "portrait's step", None),
    "editor_256": ("Editor, one pass, 256 px", "photo", "GFPGANv1Clean, fp32"),
    "editor_512": ("Editor, one pass, 512 px", "photo", "GFPGANv1Clean, fp32"),
    "training": ("Editor, training step, 128 px, batch 6, discriminator included", "pair", "training step, fp32"),
    "pairs": ("`datagen build hair_color`, 128 px, from nothing", "pair", "1 workers"),
}  # fmt: skip
SWEEPS = {
    "by_resolution": ("resolution in pixels", "seconds per image, forward and backward, batch 1"),
    "by_batch": ("batch", "seconds per image, forward and backward, 256 px"),
    "by_portraits": ("portraits in one call", "seconds per portrait and step, embedded 128 px"),
}


def markdown(results: Mapping[str, Any]) -> str:
    """Every result that is there, with the machine it was measured on."""
    parts = [part for name in TITLES if name in results for part in comparison(name, results[name])]
    parts += [part for name in SWEEPS if name in results for part in sweep(name, results[name])]
    return "\n".join(parts)


def comparison(name: str, result: Mapping[str, Any]) -> list[str]:
    title, unit, base = TITLES[name]
    rows: Rows = result["rows"]
    base = base if base in rows else None
    extra = [key for key in ("gflop", "parameters_millions", "image_error", "gradient_error", "bytes_per_pair",
                             "accepted_share") if any(key in row for row in rows.values())]  # fmt: skip
    heads = ["", f"s per {unit}, median (quartiles)", f"{unit}s per hour" if name == "pairs" else f"{unit}s/s"]
    heads += [f"against {base}"] if base else []
    heads += [f"{FASTEST}, against it"] if FASTEST in rows else []
    lines = [f"### {title}", "", f"{len(next(iter(rows.values()))['rounds'])} rounds, {on(result['machine'])}.", ""]
    lines += ["| " + " | ".join([*heads, *(HEADS[key] for key in extra)]) + " |", "|---" * (len(heads + extra)) + "|"]
    for label, row in rows.items():
        rate = f"{3600 * row['rate']:.0f}" if name == "pairs" else f"{row['rate']:.2f}"
        cells = [label, f"{row['seconds']:.3g} ({row['seconds_low']:.3g} to {row['seconds_high']:.3g})", rate]
        cells += [times(measure.ratio(rows[base], row))] if base else []
        cells += [times(measure.ratio(row, rows[FASTEST]))] if FASTEST in rows else []
        lines.append(
            "| " + " | ".join([*cells, *(FORMATS[key].format(row[key]) if key in row else "" for key in extra)]) + " |"
        )
    notes = sorted({f"{label}: {row['note']}." for label, row in rows.items() if row.get("note")})
    return [*lines, "", *(f"- {note}" for note in notes), *([""] if notes else []), *overheads(rows)]


HEADS = {
    "gflop": "GFLOP", "parameters_millions": "parameters, M", "image_error": "image off by",
    "bytes_per_pair": "bytes a pair", "gradient_error": "gradient off by", "accepted_share": "accepted",
}  # fmt: skip
FORMATS = {
    "gflop": "{:.1f}", "parameters_millions": "{:.1f}", "image_error": "{:.1e}", "bytes_per_pair": "{:,.0f}",
    "gradient_error": "{:.1e}", "accepted_share": "{:.0%}",
}  # fmt: skip


def overheads(rows: Rows) -> list[str]:
    """What the loop adds to the generator's own time, where both were measured."""
    lines = []
    for precision in ("fp32", "bf16"):
        whole, alone = rows.get(f"whole step, {precision}"), rows.get(f"generator alone, {precision}")
        if whole and alone:
            low, middle, high = (100 * (value - 1) for value in measure.ratio(whole, alone))
            lines.append(f"Overhead over the generator, {precision}: {middle:.0f} % ({low:.0f} to {high:.0f}).")
    return [*lines, ""] if lines else []


def sweep(name: str, result: Mapping[str, Any]) -> list[str]:
    across, what = SWEEPS[name]
    points: Mapping[str, Rows] = result["rows"]
    labels = list(next(iter(points.values())))
    lines = [f"### {what[0].upper()}{what[1:]}, by {across}", "", f"{on(result['machine'])}.", ""]
    lines += ["| " + " | ".join([across, *labels]) + " |", "|---" * (1 + len(labels)) + "|"]
    for point, rows in points.items():
        lines.append("| " + " | ".join([point, *(f"{rows[label]['seconds']:.3g}" for label in labels)]) + " |")
    return [*lines, "", f"![{what}](images/speed/{name}.png)", ""]


def on(machine: Mapping[str, str]) -> str:
    quick = "A quick run, of smaller sizes than it says: " if "quick" in machine else ""
    parts = [
        f"{quick}{machine['cores']} cores of {machine['processor']}",
        f"bf16 instructions: {machine['bf16 instructions']}",
        f"{machine['threads']} threads",
        f"load {machine['load before']} at the start",
        f"torch {machine['torch']}, Python {machine['Python']}",
        *([f"freed memory {machine['freed memory']}"] if "freed memory" in machine else []),
        machine["date"],
    ]
    return ", ".join(parts)


def times(values: Sequence[float]) -> str:
    low, middle, high = values
    return f"{middle:.2f}x ({low:.2f} to {high:.2f})"


def plots(results: Mapping[str, Any], folder: Path) -> list[Path]:
    """A PNG for each sweep that is there; needs matplotlib (the bench extra)."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name in (name for name in SWEEPS if name in results):
        across, what = SWEEPS[name]
        points: Mapping[str, Rows] = results[name]["rows"]
        figure, axes = pyplot.subplots(figsize=(5.2, 3.4), dpi=100)
        for label in next(iter(points.values())):
            rows = [points[point][label] for point in points]
            middle = [row["seconds"] for row in rows]
            spread = [[row["seconds"] - row["seconds_low"] for row in rows],
                      [row["seconds_high"] - row["seconds"] for row in rows]]  # fmt: skip
            axes.errorbar([int(point) for point in points], middle, yerr=spread, marker="o", capsize=3, label=label)
        axes.set_xscale("log", base=2)
        axes.set_xticks([int(point) for point in points], list(points))
        if name == "by_resolution":
            axes.set_yscale("log")
        else:
            axes.set_ylim(bottom=0)
        axes.set(xlabel=across, title=what)
        axes.title.set_fontsize(9)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
        figure.tight_layout()
        written.append(folder / f"{name}.png")
        figure.savefig(written[-1])
        pyplot.close(figure)
    return written
