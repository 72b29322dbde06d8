"""Pictures of edits: strips, people below each other and degrees beside each other; animations, eased and looped."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from stylepairs.datagen.images.files import to_uint8
from stylepairs.datagen.latent.directions import Direction
from stylepairs.datagen.latent.edits import Edit
from stylepairs.datagen.latent.people import Person, noise_fixed
from stylepairs.datagen.latent.styles import styles_moved
from stylepairs.datagen.shell.durable import make_folder, replace_file, write_bytes
from stylepairs.datagen.shell.errors import InputError
from stylepairs.datagen.stylegan.generator import Generator

STRIPS = {".png": "PNG", ".jpg": "JPEG", ".webp": "WEBP"}
SIDES = {".png": 2**31 - 1, ".jpg": 65_500, ".webp": 16_383, ".gif": 65_535, ".mp4": 16_384}  # the longest, in pixels
ANIMATIONS = (".gif", ".webp", ".mp4")
MAX_FRAMES = 3000
GIF_TICKS = 100  # a second: its frames last whole ones, and browsers slow down those of a single one
MAX_PIXELS = 400_000_000  # of all frames of a GIF or WebP, which are in memory together; an MP4 is written as it comes
_BATCH = 8
_FEWER = "show fewer people"


@dataclass(frozen=True)
class Motion:
    """An edit that goes from `low` to `high` and back, in units of the edit, `delay` of the loop after the others."""

    edit: Edit
    low: float
    high: float
    delay: float = 0.0

    def strengths(self, count: int) -> torch.Tensor:
        """The strength [count] at each frame of a loop: slow at both ends, the last frame leads into the first."""
        phase = torch.arange(count, dtype=torch.float64) / count - self.delay
        share = (1 - (2 * math.pi * phase).cos()) / 2
        return (self.low + (self.high - self.low) * share).float()


def write_strip(path: Path, rows: Sequence[torch.Tensor]) -> None:
    """Write rows of images, [N,3,H,W] each, as one picture (.png, .jpg or .webp). Raises InputError."""
    kind = STRIPS.get(path.suffix.lower())
    if kind is None:
        raise InputError(f"{path}: must end in {', '.join(STRIPS)}")
    picture = Image.fromarray(to_uint8(beside(rows)))
    _check_sides(path, picture.size, "take a .png, or show less")
    make_folder(path.parent)
    replace_file(path, lambda file: picture.save(file, format=kind, quality=90))


def beside(rows: Sequence[torch.Tensor]) -> torch.Tensor:
    """Rows of images [N,3,H,W] as one image [3,rows*H,N*W]."""
    return torch.cat([torch.cat(list(row.clamp(-1, 1)), 2) for row in rows], 1)


@torch.no_grad()
def frames(
    generator: Generator, people: Sequence[Person], motions: Sequence[Motion], count: int
) -> Iterator[np.ndarray]:
    """`count` frames uint8 [H,W,3] of a loop, the people beside each other, all motions at once."""
    for start in range(0, count, _BATCH):
        at = torch.arange(start, min(start + _BATCH, count))
        images = [_moved(generator, person, motions, at, count) for person in people]
        for index in range(len(at)):
            yield to_uint8(beside([torch.stack([image[index] for image in images])]))


def check_rate(path: Path, fps: float) -> None:
    """Raises InputError for more frames a second than the file can show."""
    if path.suffix.lower() == ".gif" and fps > GIF_TICKS / 2:
        raise InputError(f"{path}: a .gif shows {GIF_TICKS // 2} frames a second at most; write a .webp or .mp4")


def write_animation(path: Path, pictures: Iterable[np.ndarray], fps: float) -> None:
    """Write frames uint8 [H,W,3] as a loop: .gif (of 50 a second at most), .webp or .mp4. Raises InputError."""
    check_rate(path, fps)
    if path.suffix.lower() not in ANIMATIONS:
        raise InputError(f"{path}: must end in {', '.join(ANIMATIONS)}")
    make_folder(path.parent)
    if path.suffix.lower() == ".mp4":
        _write_mp4(path, pictures, fps)
        return
    kept: list[Image.Image] = []
    for picture in pictures:
        _check_sides(path, picture.shape[1::-1], _FEWER)
        kept.append(Image.fromarray(picture))
        if len(kept) * picture.shape[0] * picture.shape[1] > MAX_PIXELS:
            raise InputError(f"{path}: more than {MAX_PIXELS / 1e6:.0f} megapixels of frames; write an .mp4, or less")
    first, *others = kept
    tick = 1000 // GIF_TICKS if path.suffix.lower() == ".gif" else 1
    ends = [round(1000 / tick * number / fps) * tick for number in range(len(kept) + 1)]
    times = [end - begin for begin, end in itertools.pairwise(ends)]
    options = {"save_all": True, "append_images": others, "duration": times, "loop": 0}
    kind = path.suffix[1:].upper()
    options |= {"quality": 85} if kind == "WEBP" else {}
    replace_file(path, lambda file: first.save(file, format=kind, **options))


def _check_sides(path: Path, size: Sequence[int], advice: str) -> None:
    """size: width and height."""
    if max(size) > SIDES[path.suffix.lower()]:
        raise InputError(f"{path}: {size[0]} x {size[1]} pixels are more than a {path.suffix} holds; {advice}")


def _moved(
    generator: Generator, person: Person, motions: Sequence[Motion], at: torch.Tensor, count: int
) -> torch.Tensor:
    """The person [len(at),3,H,W] at these frames; rows of W+ and styles of all motions are added up."""
    generator = person.generator or generator
    ws = person.ws[None].expand(len(at), -1, -1)
    styles: dict[str, torch.Tensor] = {}
    for motion in motions:
        strength = motion.strengths(count)[at]
        if isinstance(motion.edit, Direction) and motion.edit.styles:
            for name, style in motion.edit.styles.items():
                styles[name] = styles.get(name, 0) + strength[:, None] * style
        else:
            ws = motion.edit.move(ws, strength)
    with noise_fixed(generator, person.noise), styles_moved(generator, styles):
        image: torch.Tensor = generator.synthesis(ws)
    return image


def _write_mp4(path: Path, pictures: Iterable[np.ndarray], fps: float) -> None:
    """By OpenCV, which writes to a path of its own: a file beside, renamed when it is whole."""
    import tempfile

    import cv2

    frames_left = iter(pictures)
    first = next(frames_left)
    _check_sides(path, first.shape[1::-1], _FEWER)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".animation-") as folder:
        made = Path(folder) / "animation.mp4"
        writer = cv2.VideoWriter(str(made), cv2.VideoWriter.fourcc(*"mp4v"), fps, first.shape[1::-1])
        if not writer.isOpened():
            raise InputError(f"{path}: this OpenCV writes no MP4; take .webp or .gif")
        for picture in itertools.chain([first], frames_left):
            writer.write(cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
        writer.release()
        content = made.read_bytes()
    write_bytes(path, content)
