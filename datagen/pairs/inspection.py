"""One HTML page that shows what a build made: counts, rejection reasons, distributions of figures, and the pairs.

The page holds its pictures and needs nothing else: no network, no second file. Names and parameters that come from
outside are escaped, and a content security policy forbids the page to load anything.
"""

from __future__ import annotations

import base64
import html
import io
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any

import numpy as np

from stylepairs.datagen.pairs.record import PairRecord
from stylepairs.datagen.pairs.shards import load_pair, read_index
from stylepairs.datagen.shell.durable import make_folder, write_bytes

SHOWN_PARTS = ("before", "sketch", "after")
DIFFERENCE_GAIN = 3
# Of a list to choose a parameter's value from.
MOST_OPTIONS = 200
_BINS = 24
_CHART_WIDTH, _CHART_HEIGHT = 240, 64


def write_report(pairs: Path, out: Path, max_pairs: int = 200, thumbnail_px: int = 128) -> int:
    """Write the page for a folder of pairs; returns how many pairs it shows.

    max_pairs bounds the page (about 20 KB a pair at 128 px): of more pairs some accepted and some rejected ones are
    shown (see `choose`); counts and distributions are of all. Raises InputError for damaged shards and a full disk.
    """
    records = read_index(pairs, accepted_only=False)
    shown = choose(records, max_pairs)
    histograms, constants = _distributions(records)
    template = Template(Path(__file__).with_name("inspection.html").read_text(encoding="utf-8"))
    page = template.substitute(
        title=html.escape(pairs.resolve().name),
        summary=_summary(records),
        reasons=_reasons(records),
        histograms="\n".join(histograms),
        constants=html.escape(f"The same for all pairs: {', '.join(constants)}.") if constants else "",
        figures=_options(_figure_names(records)),
        features=_options(sorted({record.feature for record in records})),
        params=_options(varying_params(records)),
        shown=f"{len(shown)} of {len(records)} pairs are shown" if len(shown) < len(records) else "All pairs are shown",
        gain=DIFFERENCE_GAIN,
        cards="\n".join(_card(pairs, record, thumbnail_px) for record in shown),
    )
    make_folder(out.parent)
    write_bytes(out, page.encode("utf-8", "replace"))
    return len(shown)


def choose(records: Sequence[PairRecord], count: int) -> list[PairRecord]:
    """At most `count` records, evenly spaced, in their order; half of them rejected ones, where there are so many."""
    if len(records) <= count:
        return list(records)
    sides = {flag: [record for record in records if record.accepted == flag] for flag in (True, False)}
    rejected = min(len(sides[False]), max(count // 2, count - len(sides[True])))
    kept = _evenly(sides[False], rejected) + _evenly(sides[True], count - rejected)
    return sorted(kept, key=lambda record: int(record.id))


def param_values(params: Mapping[str, Any], path: str = "") -> list[str]:
    """ "color blond" for every parameter; "bangs.length 0.5" for those of a combination's parts."""
    found: list[str] = []
    for name, value in sorted(params.items()):
        found += param_values(value, f"{path}{name}.") if isinstance(value, Mapping) else [f"{path}{name} {value}"]
    return found


def varying_params(records: Sequence[PairRecord]) -> list[str]:
    """The values of all parameters that are not the same in all pairs, at most MOST_OPTIONS."""
    counts = Counter(value for record in records for value in param_values(record.params))
    return sorted(value for value, count in counts.most_common(MOST_OPTIONS) if count < len(records))


def _options(values: Iterable[str]) -> str:
    return "".join(f"<option>{html.escape(value)}</option>" for value in values)


def _evenly(records: list[PairRecord], count: int) -> list[PairRecord]:
    count = min(count, len(records))
    return [records[index * len(records) // count] for index in range(count)]


def _summary(records: Sequence[PairRecord]) -> str:
    accepted = sum(record.accepted for record in records)
    facts = {
        "pairs": f"{len(records)}",
        "accepted": f"{accepted} ({100 * accepted / max(len(records), 1):.0f} %)",
        "photos": f"{len({record.source_digest or record.portrait_digest for record in records})}",
        "feature": _joined(record.feature for record in records),
        "train / val": " / ".join(str(sum(record.split == side for record in records)) for side in ("train", "val")),
        "generator": _joined(record.generator_digest[:12] for record in records),
        "seed": _joined(str(record.seed) for record in records),
        "code": _joined(record.code_version for record in records),
    }
    return "".join(f"<div><dt>{name}</dt><dd>{html.escape(value)}</dd></div>" for name, value in facts.items())


def _joined(values: Iterable[str]) -> str:
    found = sorted(set(values))
    return ", ".join(found[:4]) + (f" and {len(found) - 4} more" if len(found) > 4 else "")


def _reasons(records: Sequence[PairRecord]) -> str:
    counts = Counter(kind for record in records for kind in record.reason_kinds)
    if not counts:
        return "<p>No pair was rejected.</p>"
    most = max(counts.values())
    rows = (
        f'<tr><td>{count}</td><td><span class="bar" style="width:{120 * count / most:.0f}px"></span></td>'
        f"<td>{html.escape(kind)}</td></tr>"
        for kind, count in counts.most_common(30)
    )
    return f'<table class="reasons">{"".join(rows)}</table>'


def _figure_names(records: Sequence[PairRecord]) -> list[str]:
    """All figures' names, those of the optimisation last."""
    names = {name for record in records for name, value in record.figures.items() if value is not None}
    return sorted(names, key=lambda name: (name.startswith(("inversion_", "reconstruction_")), name))


def _distributions(records: Sequence[PairRecord]) -> tuple[list[str], list[str]]:
    """A histogram of every figure, and in words those that are the same for all pairs."""
    histograms, constants = [], []
    for name in _figure_names(records):
        sides: dict[bool, list[float]] = {True: [], False: []}
        for record in records:
            value = record.figures.get(name)
            if value is not None:
                sides[record.accepted].append(value)
        if len({*sides[True], *sides[False]}) > 1:
            histograms.append(_histogram(name, sides[True], sides[False]))
        else:
            constants.append(f"{name} {(sides[True] + sides[False])[0]:.4g}")
    return histograms, constants


def _histogram(name: str, accepted: list[float], rejected: list[float]) -> str:
    """Stacked bars of a figure's distribution, accepted below rejected, as SVG."""
    everything = accepted + rejected
    low, high = min(everything), max(everything)
    # Not np.histogram: it refuses values that differ by less than its bins can.
    places = [((np.array(side) - low) / (high - low) * _BINS).astype(int) for side in (accepted, rejected)]
    counts = np.stack([np.bincount(place.clip(0, _BINS - 1), minlength=_BINS) for place in places])
    unit = _CHART_HEIGHT / int(counts.sum(0).max())
    step = _CHART_WIDTH / _BINS
    bars = []
    for index, (kept, dropped) in enumerate(counts.T):
        top = _CHART_HEIGHT - kept * unit
        for kind, y, count in (("yes", top, kept), ("no", top - dropped * unit, dropped)):
            if count:
                place = f'x="{index * step:.1f}" y="{y:.1f}" width="{step - 1:.1f}" height="{count * unit:.1f}"'
                bars.append(f'<rect class="{kind}" {place}/>')
    box = f'viewBox="0 0 {_CHART_WIDTH} {_CHART_HEIGHT}" role="img" aria-label="{html.escape(name)}"'
    return (
        f"<figure><figcaption><span>{html.escape(name)}</span> <b>{statistics.median(everything):.4g}</b></figcaption>"
        f"<svg {box}>{''.join(bars)}</svg>"
        f'<div class="ends"><span>{low:.4g}</span><span>{high:.4g}</span></div></figure>'
    )


def _card(pairs: Path, record: PairRecord, thumbnail_px: int) -> str:
    pair = load_pair(pairs, record, SHOWN_PARTS)
    images = {name: getattr(pair, name) for name in SHOWN_PARTS}
    before, after = images["before"], images["after"]
    if before is not None and after is not None and before.shape == after.shape:
        difference = np.abs(after.astype(int) - before.astype(int)) * DIFFERENCE_GAIN
        images["difference"] = difference.clip(0, 255).astype(np.uint8)
    pictures = "".join(_picture(name, images.get(name), thumbnail_px) for name in (*SHOWN_PARTS, "difference"))
    values = param_values(record.params)
    params = ", ".join(values)
    reasons = "".join(f"<li>{html.escape(reason)}</li>" for reason in record.reasons)
    figures = "".join(_figure_row(html.escape(name), value) for name, value in sorted(record.figures.items()))
    text = html.escape(f"{record.id} {record.portrait} {params} {' '.join(record.reasons)}".lower())
    facts = f"{params}; degree {record.degree:.2f}; {record.split}"
    if record.backwards:
        facts += "; runs backwards, from the edit (whose sketch this is) to the portrait"
    if record.parents:
        facts += f"; made of {' and '.join(parent.id for parent in record.parents)}"
    state = "accepted" if record.accepted else "rejected"
    return (
        f'<article class="{state}" data-state="{state}" data-split="{html.escape(record.split)}" data-text="{text}" '
        f'data-feature="{html.escape(record.feature)}" data-degree="{record.degree:.4f}" '
        f'data-params="{html.escape(chr(10).join(values))}">'
        f'<h3>{record.id} <small>{html.escape(record.portrait)}</small></h3><div class="row">{pictures}</div>'
        f"<p>{html.escape(facts)}</p><ul>{reasons}</ul>"
        f"<details><summary>figures</summary><table>{figures}</table></details></article>"
    )


def _figure_row(name: str, value: float | None) -> str:
    return f'<tr><td>{name}</td><td data-figure="{name}">{"" if value is None else f"{value:.4g}"}</td></tr>'


def _picture(name: str, image: np.ndarray | None, size_px: int) -> str:
    if image is None:
        return f'<div class="none">no {name}</div>'
    return f'<img src="{_data_uri(image, size_px)}" alt="{name}" title="{name}" loading="lazy">'


def _data_uri(image: np.ndarray, size_px: int) -> str:
    from PIL import Image

    picture = Image.fromarray(image)
    picture.thumbnail((size_px, size_px), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
