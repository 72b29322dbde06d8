"""How long `i2i edit` takes of a 12-megapixel photo with one face, after loading, stage by stage; and of a video.

    python benchmarks/edit_speed.py [--runs embedded embedded:bangs] [--shares 0.3 0.6] [--rounds 5] [--threads 2]
        [--video SECONDS]

The photo is a bundled portrait, its aligned square enlarged to a share of the photo's height, a blurred background
around it. Times are the processors' (all threads added up, so that other work on the machine does not count), and the
least time on the clock beside them. The video is 720p, 25 frames a second, of a portrait that sways.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from stylepairs.datagen.images import stored
from stylepairs.datagen.images.files import read_image, save_photo
from stylepairs.datagen.shell.errors import exit_on_bad_input
from stylepairs.datagen.shell.machine import peak_memory_mb
from stylepairs.i2i.edit.editor import Editor
from stylepairs.i2i.edit.provenance import marked
from stylepairs.i2i.edit.video import VideoEdit, edit_video

PORTRAIT = Path(__file__).parents[1] / "recipes" / "photos" / "heldout" / "portrait_041.jpg"
PHOTO_SIZE, VIDEO_SIZE, RATE = (4000, 3000), (1280, 720), 25  # width, height
# What is asked for, by feature; of others what they do by themselves.
PARAMS: dict[str, dict[str, Any]] = {"hair_color": {"color": "auburn"}, "bangs": {"style": "full", "length": 0.8}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", nargs="+", default=["embedded", "embedded:bangs"])
    parser.add_argument("--shares", nargs="*", type=float, default=[0.3, 0.6], help="the face's square / the height")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--video", type=float, default=0, metavar="SECONDS")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    cv2.setNumThreads(arguments.threads)
    for run in arguments.runs:
        editor = Editor.load(run, device="cpu")
        print(run, flush=True)
        with tempfile.TemporaryDirectory() as folder:
            for share in arguments.shares:
                photo = Path(folder) / "photo.jpg"
                cv2.imwrite(str(photo), scene(PHOTO_SIZE, share)[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 92])
                print(f"  {PHOTO_SIZE[0]} x {PHOTO_SIZE[1]}, square {share:g} of the height", flush=True)
                time_photo(editor, photo, arguments.rounds)
            if arguments.video:
                time_video(editor, Path(folder), arguments.video)


def time_photo(editor: Editor, path: Path, rounds: int) -> None:
    """What `photo_files.edit_file` does, stage by stage; the first round is not counted."""
    spent: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for _ in range(1 + rounds):
        with timed(spent, "all"):
            with timed(spent, "read"):
                photo = stored.load_stored(path)
                before = stored.srgb_of(photo)
            with timed(spent, "find"):
                faces = editor.find(before)
            with timed(spent, "edit, paste"):
                edited = editor(before, PARAMS.get(editor.info.feature, {}), faces=faces)
            with timed(spent, "back to the file's values"):
                result = stored.fitting(stored.with_edit(photo, before, edited.pixels), ".jpg")
            with timed(spent, "write"):
                save_photo(path.with_name("edited.jpg"), marked(result))
    assert any(face.refused is None for face in edited.faces)
    for name, rows in spent.items():
        processor, clock = zip(*rows[1:], strict=True)
        print(f"    {name:26} {statistics.median(processor):6.3f} s of processors, {min(clock):6.3f} s on the clock")


@contextmanager
def timed(spent: dict[str, list[tuple[float, float]]], name: str) -> Iterator[None]:
    processor, clock = time.process_time(), time.perf_counter()
    yield
    spent[name].append((time.process_time() - processor, time.perf_counter() - clock))


def time_video(editor: Editor, folder: Path, seconds: float) -> None:
    import av

    clip, frames = folder / "clip.mp4", round(seconds * RATE)
    with av.open(str(clip), "w") as made:
        stream = made.add_stream("libx264", rate=RATE)
        stream.width, stream.height, stream.pix_fmt = *VIDEO_SIZE, "yuv420p"
        still = scene(VIDEO_SIZE, 0.6)
        for number in range(frames):
            shift = np.array([[1, 0, 40 * np.sin(number / 20)], [0, 1, 10 * np.sin(number / 9)]], np.float32)
            moved = cv2.warpAffine(still, shift, VIDEO_SIZE, borderMode=cv2.BORDER_REFLECT).astype(np.uint8)
            made.mux(stream.encode(av.VideoFrame.from_ndarray(moved, format="rgb24")))
        made.mux(stream.encode(None))
    processor, done = time.process_time(), list[VideoEdit]()
    memory = peak_memory_mb(
        lambda: done.append(edit_video(editor, clip, folder / "edited.mp4", PARAMS.get(editor.info.feature, {})))
    )
    took = time.process_time() - processor
    print(f"  video {VIDEO_SIZE[0]} x {VIDEO_SIZE[1]}, {seconds:g} s: {took:.1f} s of processors "
          f"({1000 * took / frames:.0f} ms a frame), {done[0].edited} of {frames} frames edited, "
          f"{memory:.0f} MiB beyond the loaded model", flush=True)  # fmt: skip


def scene(size: tuple[int, int], share: float) -> np.ndarray:
    """uint8 [H,W,3]: the portrait in the middle, `share` of the height wide, on what is left of it when blurred."""
    width, height = size
    portrait, side = np.asarray(read_image(PORTRAIT)), round(share * height)
    background = cv2.resize(cv2.blur(portrait[:40], (25, 25)), size, interpolation=cv2.INTER_CUBIC)
    face = cv2.resize(portrait, (side, side), interpolation=cv2.INTER_CUBIC)
    ramp = np.minimum(np.arange(side), np.arange(side)[::-1]) / (0.08 * side)
    weight = np.clip(np.minimum.outer(ramp, ramp), 0, 1)[..., None]
    left, top = (width - side) // 2, (height - side) // 2
    place = np.s_[top : top + side, left : left + side]
    background[place] = np.rint(background[place] * (1 - weight) + face * weight)
    noise = np.random.default_rng(0).normal(0, 2, background.shape[:2])[..., None]  # a camera's
    pixels: np.ndarray = np.clip(background + noise, 0, 255).astype(np.uint8)
    return pixels


if __name__ == "__main__":
    with exit_on_bad_input():
        main()
