"""Edits videos frame by frame, steadily: faces are followed and their places smoothed over time, and so is each edit,
from one cut to the next.

Frames pass one after the other through a short window, so the memory does not grow with the length. Sound is copied.
By PyAV (extra `video`).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

import cv2
import numpy as np

from stylepairs.datagen.portraits.landmarks import eyes_and_mouth
from stylepairs.datagen.shell.durable import make_folder, remove_stale, replace_file
from stylepairs.datagen.shell.errors import InputError, one_line
from stylepairs.i2i.edit.beyond_crop import EditMaps
from stylepairs.i2i.edit.editor import MIN_SCORE, Editor, Unsure, Wanted
from stylepairs.i2i.edit.paste import paste
from stylepairs.i2i.edit.provenance import SOURCE_TYPE

# Frames on each side whose landmarks are averaged with a frame's own, by a Gaussian of half as many.
WINDOW = 4
# Weight of a frame's own edit against that of the frames before: new enough for hair that moves.
NEW_SHARE = 0.4
# Frames that a face may be lost for: a hand before it, a blink of the finder.
HELD_FRAMES = 6
# Levels of 255 by which frames differ on the whole, seen at so many pixels a side, where another shot begins. Any two
# of 40 photos of people differ by 29 and more, a pan by 3 % of the width from frame to frame by 16 (median).
_CUT_LEVELS, _CUT_PX = 24, 32
# Of the distance between eyes and mouth: two places further apart are two faces.
_SAME_FACE = 1.0
_BITS = 8  # of what is written, a colour
# Of a video, that may be missing at its end: containers round.
_MISSING_S = 0.5
MAX_PIXELS = 3840 * 2160
# FFmpeg's names of containers.
_FORMATS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska", ".webm": "webm", ".avi": "avi"}
_QUALITY = {"crf": "16", "preset": "medium"}


@dataclass(frozen=True)
class VideoEdit:
    """frames: how many; edited: in how many of them a face was edited; refused: why faces were left as they are; notes:
    what the new file does not have."""

    frames: int
    edited: int
    refused: tuple[str, ...]
    notes: tuple[str, ...] = ()


@dataclass
class _Track:
    """A face followed over frames: points68 by frame number, and its last edit."""

    points: dict[int, np.ndarray] = field(default_factory=dict)
    maps: EditMaps | None = None

    def near(self, points68: np.ndarray) -> float:
        last = eyes_and_mouth(self.points[max(self.points)])
        size = max(float(np.linalg.norm(last[0] - last[2])), 1e-6)
        return float(np.linalg.norm(eyes_and_mouth(points68).mean(0) - last.mean(0))) / size

    def smoothed(self, frame: int, window: int) -> np.ndarray | None:
        """The landmarks at a frame, averaged over those around it; None where the face is not (yet, any longer)."""
        held = [each for each in self.points if abs(each - frame) <= max(window, HELD_FRAMES)]
        if not held or not min(self.points) <= frame <= max(self.points) + HELD_FRAMES:
            return None
        chosen = [each for each in held if abs(each - frame) <= window] or [
            min(held, key=lambda each: abs(each - frame))
        ]
        weights = np.exp(-0.5 * (np.array([each - frame for each in chosen]) / max(window / 2, 0.25)) ** 2)
        average: np.ndarray = np.average(np.stack([self.points[each] for each in chosen]), axis=0, weights=weights)
        return average


def edit_frames(
    editor: Editor,
    frames: Iterable[np.ndarray],
    wanted: Wanted,
    min_score: float = MIN_SCORE,
    steady: bool = True,
    refused: set[str] | None = None,
) -> Iterator[tuple[np.ndarray, bool]]:
    """Edited frames uint8 [H,W,3], each with whether a face was edited in it, as many as came and in their order.

    steady False: each frame by itself, as a photo; else nothing passes over a cut. refused: reasons for which faces are
    left are added to it.
    """
    tracks: list[_Track] = []
    waiting: deque[tuple[int, np.ndarray]] = deque()
    window, shown = WINDOW if steady else 0, None
    for number, frame in enumerate(frames):
        before, shown = shown, cv2.resize(frame, (_CUT_PX, _CUT_PX), interpolation=cv2.INTER_AREA).astype(np.float32)
        if before is not None and np.abs(shown - before).mean() > _CUT_LEVELS:
            while waiting:
                yield _edit_frame(editor, *waiting.popleft(), tracks, wanted, steady, refused)
            tracks.clear()
        _follow(tracks, number, [face.points68 for face in _faces(editor, frame, min_score)], steady)
        waiting.append((number, frame))
        if len(waiting) > window:
            yield _edit_frame(editor, *waiting.popleft(), tracks, wanted, steady, refused)
        tracks[:] = [track for track in tracks if number - max(track.points) <= window + HELD_FRAMES]
        for track in tracks:
            track.points = {n: points for n, points in track.points.items() if number - n <= 2 * (window + HELD_FRAMES)}
    while waiting:
        yield _edit_frame(editor, *waiting.popleft(), tracks, wanted, steady, refused)


def edit_video(
    editor: Editor,
    path: Path,
    target: Path,
    params: Mapping[str, Any],
    min_score: float = MIN_SCORE,
    provenance: bool = True,
    progress: Callable[[int], None] = lambda frames: None,
) -> VideoEdit:
    """Edit a video file into `target` (its suffix says the container), whole or not at all; sound is copied.

    provenance: the container's comment says that it was edited. progress is told how many frames are done. Raises
    InputError for what is no video, is too large, or has no face that can be edited, and where it cannot be written.
    """
    try:
        import av
    except ImportError:
        raise InputError("--video: needs PyAV; pip install 'stylepairs[video]'") from None
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    wanted, refused, counts, notes = editor.asked(params), set[str](), [0, 0], list[str]()

    def write(file: IO[bytes]) -> None:
        try:
            with av.open(str(path)) as source, av.open(file, "w", format=_FORMATS[target.suffix.lower()]) as made:
                reader = _Reader(path, source, made)
                notes.extend(reader.left_out())
                if provenance:
                    made.metadata["comment"] = SOURCE_TYPE
                for frame, edited in edit_frames(editor, reader.frames(), wanted, min_score, refused=refused):
                    reader.write(frame)
                    counts[0], counts[1] = counts[0] + 1, counts[1] + edited
                    progress(counts[0])
                reader.close()
                notes.extend(reader.cut_off())
        # What the disk refuses is no such error, though some of these are OSErrors.
        except av.error.FFmpegError as error:
            raise InputError(
                f"{path}: cannot be read or written as a video ({one_line(error)}); convert it to MP4"
            ) from None
        if not counts[1]:
            why = "; ".join(sorted(refused)) or f"no face found with a score of at least {min_score:g}"
            raise InputError(f"{path}: {why}")

    make_folder(target.parent)
    remove_stale(target.parent)
    replace_file(target, write)
    return VideoEdit(counts[0], counts[1], tuple(sorted(refused)), tuple(notes))


def frame_count(path: Path) -> int:
    """About how many frames a video has, as its container says; 0 where that is not said, or it cannot be read."""
    try:
        import av
    except ImportError:
        return 0
    try:
        with av.open(str(path)) as source:
            video = source.streams.video[0]
            return int(video.frames or _seconds(source) * (video.average_rate or 0))
    except (av.error.FFmpegError, IndexError):  # IndexError: of sound alone
        return 0


class _Reader:
    """Frames of a source upright, and what becomes of them: written with their times, sound copied as it comes."""

    def __init__(self, path: Path, source: Any, made: Any) -> None:
        import av

        if not source.streams.video:
            raise InputError(f"{path}: no picture in it; name a video")
        self.path, self.source, self.made, self.video = path, source, made, source.streams.video[0]
        if self.video.width * self.video.height > MAX_PIXELS:
            raise InputError(f"{path}: {self.video.width} x {self.video.height} pixels, more than 4K; make it smaller")
        self.video.thread_type = "AUTO"
        try:
            self.sound = [(stream, made.add_stream_from_template(stream)) for stream in source.streams.audio[:1]]
        except ValueError as error:  # of a codec that this container does not hold
            raise InputError(f"{path}: its sound cannot be copied ({one_line(error)}); convert it to MP4") from None
        # All streams have to be there before anything is written, and sound may come before the first picture, which
        # alone says how it is turned.
        height, width = _first_picture(path).shape[:2]
        codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
        rate = self.video.average_rate or 25
        self.stream = made.add_stream(codec, rate=rate, options=_QUALITY if codec == "libx264" else {})
        self.stream.width, self.stream.height = width, height
        self.stream.pix_fmt = "yuv420p" if width % 2 == height % 2 == 0 else "yuv444p"
        self.stream.codec_context.time_base = self.video.time_base
        self._show_alike(turned=height != self.video.height)
        self.times: deque[int | None] = deque()
        self.reached_s = 0.0

    def cut_off(self) -> Iterator[str]:
        """That the file ended before its container says, once all frames are read."""
        said_s = _seconds(self.source)
        if self.reached_s + _MISSING_S < said_s:
            yield f"the file is cut off: it holds {self.reached_s:.1f} of {said_s:.1f} s"

    def left_out(self) -> Iterator[str]:
        """What of the source is not in the new file."""
        tracks, subtitles = len(self.source.streams.audio) - len(self.sound), len(self.source.streams.subtitles)
        if tracks:
            yield f"without {tracks} further sound track{'s' * (tracks > 1)}"
        if subtitles:
            yield f"without {subtitles} track{'s' * (subtitles > 1)} of subtitles"
        parts = self.video.format.components
        if parts[0].bits > _BITS:
            yield f"{_BITS} bits of {parts[0].bits}"
        if any(part.is_alpha for part in parts) and self.video.codec_context.name != "gif":  # which always has it
            yield "without its transparency"

    def _show_alike(self, turned: bool) -> None:
        """Have the new stream say what the source's does of the shape of its pixels and of its colours."""
        source, made = self.video.codec_context, self.stream.codec_context
        for tag in ("colorspace", "color_range", "color_primaries", "color_trc"):
            setattr(made, tag, getattr(source, tag))
        shape = self.video.sample_aspect_ratio
        if shape:
            made.sample_aspect_ratio = 1 / shape if turned else shape

    def frames(self) -> Iterator[np.ndarray]:
        outs = dict(self.sound)
        for packet in self.source.demux(self.video, *outs):
            if packet.pts is not None:
                end = (packet.pts + (packet.duration or 0)) * packet.time_base
                self.reached_s = max(self.reached_s, float(end) - (self.source.start_time or 0) / 1e6)
            if packet.stream is not self.video:
                if packet.dts is not None:
                    packet.stream = outs[packet.stream]
                    self.made.mux(packet)
                continue
            for frame in packet.decode():
                self.times.append(frame.pts)
                pixels = _upright(frame)
                height, width = pixels.shape[:2]
                if (width, height) != (self.stream.width, self.stream.height):
                    sizes = f"{self.stream.width} x {self.stream.height} to {width} x {height}"
                    raise InputError(f"{self.path}: its pictures change from {sizes} pixels; cut it there")
                yield pixels

    def write(self, pixels: np.ndarray) -> None:
        import av

        said = self.stream.codec_context
        frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(
            format=said.pix_fmt,
            dst_colorspace=said.colorspace,
            dst_color_range=said.color_range,
            interpolation=_rounded(),
        )
        frame.pts, frame.time_base = self.times.popleft(), self.video.time_base
        self.made.mux(self.stream.encode(frame))

    def close(self) -> None:
        self.made.mux(self.stream.encode(None))


def _seconds(source: Any) -> float:
    """The length of a source's pictures as its container says it; 0 where it does not."""
    video = source.streams.video[0]
    return float(video.duration * video.time_base) if video.duration else (source.duration or 0) / 1e6


def _first_picture(path: Path) -> np.ndarray:
    import av

    with av.open(str(path)) as source:
        for frame in source.decode(video=0):
            return _upright(frame)
    raise InputError(f"{path}: no picture in it; name a video")


def _upright(frame: Any) -> np.ndarray:
    turns = round(getattr(frame, "rotation", 0) / 90) % 4
    pixels = frame.reformat(format="rgb24", interpolation=_rounded()).to_ndarray()
    return np.ascontiguousarray(np.rot90(pixels, turns))


def _rounded() -> Any:
    """How colours are converted: FFmpeg's quick way cuts off fractions, which darkens a video by 1.2 levels of 255 each
    time that it is edited."""
    from av.video.reformatter import Interpolation as How

    return How.BILINEAR | How.FULL_CHR_H_INT | How.FULL_CHR_H_INP | How.ACCURATE_RND


def _faces(editor: Editor, frame: np.ndarray, min_score: float) -> Sequence[Any]:
    try:
        return editor.find(frame, min_score)
    except InputError:
        return []


def _follow(tracks: list[_Track], number: int, found: Sequence[np.ndarray], steady: bool) -> None:
    """Give each found face to the nearest track that has none yet in this frame, or begin one."""
    if not steady:
        tracks.clear()
    for points in found:
        free = [track for track in tracks if number not in track.points]
        nearest = min(free, key=lambda track: track.near(points), default=None)
        if nearest is None or nearest.near(points) > _SAME_FACE:
            nearest = _Track()
            tracks.append(nearest)
        nearest.points[number] = np.asarray(points, np.float64)


def _edit_frame(
    editor: Editor,
    number: int,
    frame: np.ndarray,
    tracks: Sequence[_Track],
    wanted: Wanted,
    steady: bool,
    refused: set[str] | None,
) -> tuple[np.ndarray, bool]:
    placed = [(track, track.smoothed(number, WINDOW if steady else 0)) for track in tracks]
    here = [(track, points) for track, points in placed if points is not None]
    result, mask, edited = frame.copy(), np.zeros(frame.shape[:2], np.float16), False
    edits = editor.placed_faces(frame, [points for _, points in here], wanted)
    for (track, _), edit in zip(here, edits, strict=True):
        if isinstance(edit, Unsure):
            if refused is not None:
                refused.add(edit.why)
            continue
        maps, transform = edit.maps, edit.transform.copy()
        if steady:
            maps, transform = _steadied(track, maps, transform)
        paste(result, frame, mask, maps, transform)
        edited = True
    return result, edited


def _steadied(track: _Track, maps: EditMaps, transform: np.ndarray) -> tuple[EditMaps, np.ndarray]:
    """The edit mixed with those of the frames before, in the face's own square, where a steady face lies still."""
    side = max(maps.side, track.maps.side if track.maps is not None else 0)
    transform = transform.copy()
    transform[:, 2] += (side - maps.side) // 2
    new = _padded(maps, side)
    if track.maps is not None:
        old, told = vars(_padded(track.maps, side)), {name: x for name, x in vars(new).items() if x is not None}
        mixed = {name: ((1 - NEW_SHARE) * old[name] + NEW_SHARE * x).astype(np.float32) for name, x in told.items()}
        new = replace(new, **mixed)
    track.maps = new
    return new, transform


def _padded(maps: EditMaps, side: int) -> EditMaps:
    """The same edit in a wider square, in which there is nothing around it; what moves is never wider."""
    margin = math.ceil((side - maps.side) / 2)
    if not margin:
        return maps
    edge = ((margin, margin), (margin, margin), (0, 0))
    gain, bias = (np.pad(values, edge, mode="edge") for values in (maps.gain, maps.bias))
    return replace(maps, gain=gain, bias=bias, mask=np.pad(maps.mask, margin))
