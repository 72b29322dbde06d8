"""Draws the demo's page: one HTML file with every picture and plot inside, nothing loaded from elsewhere."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

# One colour for each of the 19 classes of the label map: skin warm, hair brown, eyes blue, lips red, cloth green.
LABEL_COLORS = np.array(
    [
        (26, 28, 34), (232, 190, 160), (120, 84, 52), (140, 98, 60), (66, 133, 244), (100, 160, 250), (90, 90, 110),
        (222, 160, 130), (212, 150, 120), (250, 210, 70), (244, 168, 128), (150, 30, 50), (214, 60, 90), (236, 96, 110),
        (206, 150, 116), (250, 230, 150), (70, 140, 100), (110, 62, 30), (150, 110, 190),
    ],
    np.uint8,
)  # fmt: skip
LEGEND_LINE_PX, LEGEND_LETTER_PX = 20, 8  # as wide as the widest fonts draw 13 px
LINE_COLORS = ("#2f6fde", "#d9480f", "#2b8a3e", "#862e9c", "#c2255c", "#0b7285")

STYLE = """
:root{color-scheme:light dark;--ink:#1b1d22;--soft:#646a75;--paper:#fbfaf8;--card:#fff;--line:#e4e2dd}
@media(prefers-color-scheme:dark){:root{--ink:#eceae6;--soft:#a3a7b0;--paper:#16181c;--card:#1f2227;--line:#33373f}}
*{box-sizing:border-box}body{margin:0;background:var(--paper);color:var(--ink);
font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
main{max-width:1120px;margin:0 auto;padding:32px 20px 64px}
h1{font-size:30px;margin:0 0 4px}h2{font-size:21px;margin:40px 0 4px}
p{margin:4px 0 14px;max-width:78ch;color:var(--soft)}
.grid{display:flex;flex-wrap:wrap;gap:12px}.card{background:var(--card);border:1px solid var(--line);border-radius:10px;
padding:8px;display:flex;flex-direction:column;gap:6px}.row{display:flex;flex-wrap:wrap;gap:4px;align-items:flex-start}
figure{margin:0}figure img{display:block;border-radius:5px}
figcaption,.note{font-size:12px;color:var(--soft);text-align:center}.note{text-align:left;max-width:520px}
.bad{color:#d9480f}
svg{background:var(--card);border:1px solid var(--line);border-radius:10px;max-width:100%;height:auto}
table{border-collapse:collapse;font-size:14px;display:block;overflow-x:auto}
td,th{padding:4px 12px 4px 0;text-align:left;border-bottom:1px solid var(--line)}
"""


def picture(source: Path | np.ndarray, width_px: int, caption: str = "") -> str:
    """A figure with the picture inside it, at most 2 width_px wide. source: a file, or uint8 [H,W,3] or [H,W]."""
    image = Image.open(source) if isinstance(source, Path) else Image.fromarray(source)
    image = image.convert("RGB")
    height_px = round(image.height * width_px / image.width)
    if image.width > 2 * width_px:
        image = image.resize((2 * width_px, 2 * height_px), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90)
    data = base64.b64encode(buffer.getvalue()).decode()
    note = f"<figcaption>{html.escape(caption)}</figcaption>" if caption else ""
    alt = html.escape(caption or "picture", quote=True)
    tag = f'<img alt="{alt}" width="{width_px}" height="{height_px}" src="data:image/jpeg;base64,{data}">'
    return f"<figure>{tag}{note}</figure>"


def card(pictures: Sequence[str], note: str = "", bad: bool = False) -> str:
    """Pictures in a row with a line of text below."""
    line = f'<div class="note{" bad" if bad else ""}">{html.escape(note)}</div>' if note else ""
    return f'<div class="card"><div class="row">{"".join(pictures)}</div>{line}</div>'


def section(title: str, text: str, cards: Sequence[str]) -> str:
    return f'<h2>{html.escape(title)}</h2><p>{html.escape(text)}</p><div class="grid">{"".join(cards)}</div>'


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def cells(kind: str, row: Sequence[str]) -> str:
        return "".join(f"<{kind}>{html.escape(cell)}</{kind}>" for cell in row)

    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    return f"<table><tr>{cells('th', header)}</tr>{body}</table>"


def label_picture(label: np.ndarray) -> np.ndarray:
    """label [H,W] uint8 classes -> [H,W,3] uint8."""
    return np.asarray(LABEL_COLORS[np.minimum(label, len(LABEL_COLORS) - 1)])


def line_plot(series: Mapping[str, Sequence[tuple[float, float]]], x_title: str, width: int = 520) -> str:
    """An SVG of the series [(x, y)], each scaled to its own range; the legend has its first and last value."""
    left, bottom, top = 16, 34, 14
    drawn = {name: points for name, points in series.items() if len(points) > 1}
    if not drawn:
        return ""
    height = max(260, 2 * top + LEGEND_LINE_PX * len(drawn))
    x_min = min(points[0][0] for points in drawn.values())
    x_max = max(points[-1][0] for points in drawn.values())
    parts, legend_px = [], 0
    for i, (name, points) in enumerate(drawn.items()):
        color = LINE_COLORS[i % len(LINE_COLORS)]
        low, high = min(y for _, y in points), max(y for _, y in points)
        path = " ".join(
            f"{left + (x - x_min) / max(x_max - x_min, 1e-9) * (width - 2 * left):.1f},"
            f"{top + (high - y) / max(high - low, 1e-12) * (height - top - bottom):.1f}"
            for x, y in points
        )
        parts.append(f'<polyline fill="none" stroke="{color}" stroke-width="1.6" points="{path}"/>')
        legend = f"{name}: {points[0][1]:.3g} → {points[-1][1]:.3g}"
        legend_px = max(legend_px, LEGEND_LETTER_PX * len(legend))
        parts.append(
            f'<text x="{width + 8}" y="{top + 14 + LEGEND_LINE_PX * i}" font-size="13" fill="{color}">'
            f"{html.escape(legend)}</text>"
        )
    axis = f'<line x1="{left}" x2="{width - left}" y1="{height - bottom}" y2="{height - bottom}" stroke="#8888"/>'
    ends = "".join(
        f'<text x="{x}" y="{height - bottom + 18}" font-size="12" fill="#888" text-anchor="{anchor}">{text}</text>'
        for x, anchor, text in (
            (left, "start", f"{x_min:.0f}"),
            (width / 2, "middle", html.escape(x_title)),
            (width - left, "end", f"{x_max:.0f}"),
        )
    )
    whole = width + 8 + legend_px
    box = f'viewBox="0 0 {whole} {height}" width="{whole}" height="{height}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {box} role="img">{axis}{ends}{"".join(parts)}</svg>'


def write_page(path: Path, title: str, text: str, body: Sequence[str]) -> None:
    """The whole page, written under a temporary name first."""
    head = (
        f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{html.escape(title)}</title>'
    )
    page = (
        f'<!doctype html><html lang="en"><head>{head}<style>{STYLE}</style></head><body><main>'
        f"<h1>{html.escape(title)}</h1><p>{html.escape(text)}</p>{''.join(body)}</main></body></html>"
    )
    temporary = path.with_suffix(".partial")
    temporary.write_text(page, encoding="utf-8")
    temporary.replace(path)
