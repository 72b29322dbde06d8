"""A local page to try editors on: drop a photo, choose the edit, paint where, slide between before and after, download.

By gradio (extra `page`), which serves everything from this machine; nothing leaves it.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import tempfile
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from stylepairs.datagen.features import load_feature
from stylepairs.datagen.images import stored
from stylepairs.datagen.images.colors import PALETTE
from stylepairs.datagen.images.files import save_photo
from stylepairs.datagen.shell.errors import InputError
from stylepairs.i2i.edit.editor import EditedPhoto, Editor
from stylepairs.i2i.edit.photo_files import SAME_FORMAT, edited_photo, outcome
from stylepairs.i2i.models.checkpoints import ModelInfo, shipped_models
from stylepairs.i2i.models.conditions import COLOR, WITH_COLOR

if TYPE_CHECKING:
    import gradio

KEPT_DOWNLOADS = 50  # the oldest goes when another is made
SHOWN_PX = 1024  # longest side of what the page shows; the download has the photo's own size
MAX_STYLES = 60
# Seconds between two looks at gradio's copies of photos, and the age at which they go while the page is served.
LOOKED_EVERY, OLDEST_COPY = 3600, 86400
NOTHING = "Nothing changed: the degree is 0, or the edit goes where nothing is painted."
AS_TRAINED = "as trained"  # the style of a model that knows no kinds


class Page:
    """What the page's buttons do, apart from gradio."""

    def __init__(self, editors: Mapping[str, Editor], out: Path) -> None:
        """editors by the names that the page shows; out: a folder for the downloads."""
        self.editors, self.out, self.count = dict(editors), out, itertools.count()
        self.kept: deque[Path] = deque()

    def shown(self, path: str | None) -> np.ndarray | None:
        """A dropped photo uint8 [H,W,3] sRGB at the page's size; None where there is none. Raises InputError."""
        return None if path is None else small(stored.eight_bits(stored.srgb_of(stored.load_stored(path))))

    def edit(
        self, path: str, name: str, style: str | None, degree: float, painted: Sequence[np.ndarray] = ()
    ) -> tuple[np.ndarray, np.ndarray, Path, str]:
        """Before and after at the page's size, the file to download, and a line of what was done.

        style: one of `styles_of`, or a colour; painted: layers [h,w,4] whose alpha says where the edit may go, none or
        nothing painted: everywhere. Raises InputError.
        """
        editor, suffix = self.editors[name], SAME_FORMAT.get(Path(path).suffix.lower(), ".png")
        params = params_of(editor.info, style)

        def made(photo: np.ndarray) -> EditedPhoto:
            return editor(photo, params, degree=degree, region=region_of_layers(painted, photo.shape[:2]))

        before, edited, result = edited_photo(Path(path), suffix, made)
        stem = Path(path).stem.encode()[:80].decode(errors="ignore")  # file names are counted in bytes
        target = self.out / f"{stem}_{Path(name).name}_{next(self.count)}{suffix}"  # a feature may be named by its file
        save_photo(target, result)
        self.kept.append(target)
        if len(self.kept) > KEPT_DOWNLOADS:
            self.kept.popleft().unlink(missing_ok=True)
        eight = [small(stored.eight_bits(pixels)) for pixels in (before, edited.pixels)]
        return eight[0], eight[1], target, outcome(edited) if edited.mask.any() else NOTHING


def styles_of(info: ModelInfo) -> list[str]:
    """The kinds of edit that a model knows, as the page lists them: colours by name, "length=0.5, style=full", or one
    that says nothing.
    """
    colors = list(load_feature(info.feature).colors or PALETTE) if info.style in WITH_COLOR else []
    if not info.kinds:
        return colors or [AS_TRAINED]
    choices = [[f"{COLOR}={name}" for name in colors]] if colors else []
    for name, values in info.kinds.items():
        chosen = list(values)
        if isinstance(values[0], float):
            low, high = values
            # Beside a colour, which is an edit by itself, nothing else need be asked for.
            chosen = [0.0, low, high] if colors and low < 0 < high else [low, (low + high) / 2, high]
        choices.append([f"{name}={_as_yaml(value)}" for value in chosen])
    return [", ".join(each) for each in itertools.islice(itertools.product(*choices), MAX_STYLES)]


def _as_yaml(value: Any) -> str:
    """A number or name as `params_of` takes it; quoted where YAML reads something else: "no" is false to it."""
    if not isinstance(value, str):
        return f"{value:g}" if isinstance(value, float) else f"{value}"
    from stylepairs.datagen.recipe import parse_yaml

    try:
        return value if parse_yaml(value) == value else json.dumps(value, ensure_ascii=False)
    except ValueError:
        return json.dumps(value, ensure_ascii=False)


def params_of(info: ModelInfo, style: str | None) -> dict[str, Any]:
    """The feature's parameters of one of `styles_of`, or of what was typed in its place. Raises InputError."""
    if not style:
        raise InputError("Style: choose one.")
    if info.style in WITH_COLOR and "=" not in style:
        return {COLOR: style}
    if style == AS_TRAINED:
        return {}
    from stylepairs.datagen.recipe import nested_overrides

    parts = re.split(r",(?=[^,]*=)", style)  # a value may hold commas: "parts=brows,eyes"
    return nested_overrides((part.strip() for part in parts), "Style")


def region_of_layers(layers: Sequence[np.ndarray], shape: tuple[int, ...]) -> np.ndarray | None:
    """The painted part [H,W] in [0,1] of a photo of this shape; None where nothing is painted."""
    painted = [np.asarray(layer)[..., 3] for layer in layers if np.asarray(layer).ndim == 3]
    if not any(layer.any() for layer in painted):
        return None
    alpha = np.max(painted, axis=0).astype(np.float32) / 255
    region: np.ndarray = cv2.resize((alpha > 0).astype(np.float32), shape[1::-1], interpolation=cv2.INTER_LINEAR)
    return region


def small(pixels: np.ndarray) -> np.ndarray:
    """uint8 [H,W,3] at the page's size."""
    height, width = pixels.shape[:2]
    share = SHOWN_PX / max(height, width)
    if share >= 1:
        return pixels
    size = max(round(width * share), 1), max(round(height * share), 1)
    reduced: np.ndarray = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    return reduced


def make_page(page: Page) -> gradio.Blocks:
    """The page as gradio's blocks, not yet started. Raises InputError where the extra is missing."""
    try:
        import gradio as gr
    except ImportError:
        raise InputError("i2i demo: needs gradio; pip install 'stylepairs[page]'") from None
    names = list(page.editors)

    def drop(path: str | None) -> Any:
        try:
            return page.shown(path), None, None, "" if path is None else "Choose an edit."
        except InputError as error:
            return None, None, None, str(error)

    def choose(name: str) -> Any:
        styles = styles_of(page.editors[name].info)
        return gr.Dropdown(choices=styles, value=styles[0])

    def edit(path: str | None, name: str, style: str | None, degree: float, painted: Any) -> Any:
        if path is None:
            return None, None, "Drop a photo first."
        try:
            before, after, file, line = page.edit(path, name, style, degree, (painted or {}).get("layers") or ())
        except InputError as error:
            return None, None, str(error)
        return (before, after), str(file), line

    with gr.Blocks(title="stylepairs", analytics_enabled=False, delete_cache=(LOOKED_EVERY, OLDEST_COPY)) as blocks:
        gr.Markdown("# stylepairs\nDrop a photo, choose an edit. Paint where it may go, or leave it to the model.")
        with gr.Row():
            with gr.Column():
                photo = gr.File(label="Photo", file_types=["image"], elem_id="photo", height=90)
                region = gr.ImageEditor(
                    label="Paint where the edit may go",
                    sources=(),
                    transforms=(),
                    brush=gr.Brush(colors=["#ff3060"], default_size=40, color_mode="fixed"),
                    layers=False,
                    elem_id="region",
                )
                feature = gr.Dropdown(names, value=names[0], label="Edit", elem_id="feature")
                first = styles_of(page.editors[names[0]].info)
                style = gr.Dropdown(first, value=first[0], label="Style", allow_custom_value=True, elem_id="style")
                degree = gr.Slider(0, 1, 1, step=0.05, label="Degree", elem_id="degree")
                button = gr.Button("Edit", variant="primary", elem_id="edit")
            with gr.Column():
                result = gr.ImageSlider(label="Before and after", format="png", elem_id="result", max_height=700)
                line = gr.Markdown(elem_id="line")
                download = gr.DownloadButton("Download at full size", elem_id="download")
        photo.change(drop, photo, [region, result, download, line])
        feature.change(choose, feature, style)
        asked = [photo, feature, style, degree, region]
        gr.on([button.click, degree.release], edit, asked, [result, download, line], concurrency_limit=1)
    made: gradio.Blocks = blocks
    return made


def serve(runs: Sequence[str], port: int, device: str = "auto") -> None:
    """Load the runs and serve the page to this machine alone, until interrupted. Raises InputError.

    runs: as `Editor.load` takes them; none: all that the package ships.
    """
    editors = {}
    for run in runs or shipped_models():
        editor = Editor.load(run, device=device)
        name, count = editor.info.feature, 1
        while name in editors:
            count += 1
            name = f"{editor.info.feature} {count}"
        editors[name] = editor
    with tempfile.TemporaryDirectory(prefix="stylepairs_page_") as folder:
        out, copies = Path(folder) / "made", Path(folder) / "gradio"
        os.environ["GRADIO_TEMP_DIR"] = str(copies)  # its own place would keep dropped photos when the page has ended
        blocks = make_page(Page(editors, out))
        try:
            _, address, _ = blocks.launch(
                server_name="127.0.0.1", server_port=port or None, share=False, quiet=True, prevent_thread_lock=True,
                allowed_paths=[str(out)], ssr_mode=False, show_error=True, footer_links=[],
            )  # fmt: skip
        except OSError as error:
            raise InputError(f"--port {port}: {error}; choose another") from None
        print(f"{address} (only this machine sees it; Ctrl-C ends it)", flush=True)
        blocks.block_thread()
