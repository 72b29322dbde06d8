"""Videos: steady edits, sound and times kept, memory that does not grow."""

from __future__ import annotations

import os
import resource
import struct
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.faked_faces import Brightening, FakeAnalyser, face_box, face_points

from stylepairs.datagen.portraits.analysis.detection import Face
from stylepairs.datagen.shell.errors import InputError
from stylepairs.datagen.shell.machine import host_name
from stylepairs.i2i.edit.editor import Editor
from stylepairs.i2i.edit.video import WINDOW, edit_frames, edit_video, frame_count
from stylepairs.i2i.models.checkpoints import ModelInfo
from stylepairs.i2i.models.glean import Edit, Glean

INFO = ModelInfo("hair_color", "color", {})
BLOND = {"color": "blond"}


class Restless(FakeAnalyser):
    """Finds the face a few pixels aside each time, and now and then not at all."""

    def __init__(self) -> None:
        super().__init__([(80, 60)])
        self.rng, self.looks = np.random.default_rng(1), 0

    def find(self, photo: np.ndarray, min_score: float = 0.5) -> list[Face]:
        self.looks += 1
        x, y = np.array((80.0, 60.0)) + self.rng.normal(0, 2, 2)
        return [] if self.looks % 7 == 6 else [Face(face_box(x, y), 0.9, face_points(x, y, 20.0))]


class Flickering(Brightening):
    """Brightens by another amount each time."""

    def amount(self) -> float:
        return 0.2 + 0.2 * float(torch.rand(()))


def clip(count: int, size: tuple[int, int] = (120, 160)) -> list[np.ndarray]:
    """A still picture with the noise of a camera."""
    rng = np.random.default_rng(0)
    still = np.full((*size, 3), 110.0)
    return [np.clip(still + rng.normal(0, 2, still.shape), 0, 255).astype(np.uint8) for _ in range(count)]


def editor_of(model: Glean, kind: type[Glean] = Flickering) -> Editor:
    torch.manual_seed(0)
    model.__class__ = kind
    return Editor(model, INFO, Restless())


def flicker(before: list[np.ndarray], after: list[np.ndarray]) -> float:
    """How much the edit itself changes from frame to frame, mean over the pixels that are ever edited, of 255."""
    edits = np.stack(after).astype(float) - np.stack(before)
    ever = np.abs(edits).max((0, 3)) > 8
    return float(np.abs(np.diff(edits, axis=0))[:, ever].mean())


@pytest.mark.slow
def test_steady_edits_flicker_less_than_frames_by_themselves(brightening: Glean) -> None:
    frames = clip(24)
    editor = editor_of(brightening)
    figures = {}
    for steady in (True, False):
        after = [frame for frame, _ in edit_frames(editor, frames, editor.wanted(BLOND), steady=steady)]
        assert len(after) == len(frames)
        figures[steady] = flicker(frames, after)
    print(figures)
    assert figures[True] < 0.35 * figures[False]


def test_a_face_that_is_lost_for_a_moment_keeps_its_edit(brightening: Glean) -> None:
    editor = editor_of(brightening)
    done = [edited for _, edited in edit_frames(editor, clip(14), editor.wanted(BLOND))]
    assert all(done)
    assert not all(edited for _, edited in edit_frames(editor, clip(14), editor.wanted(BLOND), steady=False))


def test_of_a_still_clip_what_moves_is_moved_alike_in_every_frame(moving: Glean) -> None:
    torch.manual_seed(7)
    with torch.no_grad():
        for parameter in moving.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
        moving.applies.bias.fill_(10)
    still = np.random.default_rng(3).integers(0, 256, (120, 160, 3), np.uint8)
    editor = Editor(moving.eval(), INFO, FakeAnalyser([(80, 60)]))
    alone = editor(still, BLOND).pixels
    assert (alone != still).mean() > 0.05
    for frame, edited in edit_frames(editor, [still] * 5, editor.wanted(BLOND)):
        assert edited
        np.testing.assert_allclose(frame.astype(int), alone, atol=2)


class InItsLight(Brightening):
    """Brightens a light photo more."""

    def forward(self, photo: torch.Tensor, region: torch.Tensor, *told: torch.Tensor) -> Edit:
        self.light = float(photo.mean())
        return super().forward(photo, region, *told)

    def amount(self) -> float:
        return 0.4 + 0.4 * self.light


class InTheDark(FakeAnalyser):
    """Finds the face in dark frames alone."""

    def find(self, photo: np.ndarray, min_score: float = 0.5) -> list[Face]:
        return self.faces if photo.mean() < 150 else []


@pytest.mark.parametrize("other_shot", [60, 200])  # another face at the same place; none
def test_nothing_passes_over_a_cut(brightening: Glean, other_shot: int) -> None:
    editor = editor_of(brightening, InItsLight)
    editor.analyser = InTheDark([(80, 60)])
    first, then = clip(8), [frame - np.uint8(110) + np.uint8(other_shot) for frame in clip(8)]
    whole = list(edit_frames(editor, first + then, editor.wanted(BLOND)))
    apart = [*edit_frames(editor, first, editor.wanted(BLOND)), *edit_frames(editor, then, editor.wanted(BLOND))]
    for (frame, edited), (expected, expected_edited) in zip(whole, apart, strict=True):
        assert edited == expected_edited
        np.testing.assert_array_equal(frame, expected)


def test_no_more_than_a_window_of_frames_is_held(brightening: Glean) -> None:
    read = 0

    def frames() -> Any:
        nonlocal read
        for frame in clip(2 * WINDOW):
            read += 1
            yield frame

    editor = editor_of(brightening)
    for number, _ in enumerate(edit_frames(editor, frames(), editor.wanted(BLOND))):
        assert read - number <= WINDOW + 1


def write_video(path: Path, frames: list[np.ndarray], rate: int = 25, codec: str = "aac", tracks: int = 1) -> None:
    av = pytest.importorskip("av")
    with av.open(str(path), "w") as made:
        video = made.add_stream("mpeg4", rate=rate)
        video.width, video.height, video.pix_fmt = frames[0].shape[1], frames[0].shape[0], "yuv420p"
        sounds = [made.add_stream(codec, rate=16000, layout="mono") for _ in range(tracks)]
        for frame in frames:
            made.mux(video.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        made.mux(video.encode(None))
        tone = (0.3 * np.sin(np.arange(16000 * len(frames) // rate) * 0.2)).astype(np.float32)[None]
        block = av.AudioFrame.from_ndarray(tone, format="fltp", layout="mono")
        block.sample_rate, block.pts = 16000, 0
        for sound in sounds:
            made.mux(sound.encode(block))
            made.mux(sound.encode(None))


def contents(path: Path) -> tuple[list[float], list[np.ndarray], bytes, dict[str, str]]:
    import av

    with av.open(str(path)) as source:
        sound = b"".join(bytes(p) for p in source.demux(source.streams.audio[0]))
    with av.open(str(path)) as source:
        frames = list(source.decode(video=0))
        return [f.time for f in frames], [f.to_ndarray(format="rgb24") for f in frames], sound, dict(source.metadata)


def test_times_and_sound_are_kept_and_the_file_is_marked(brightening: Glean, tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", clip(20))
    told: list[int] = []
    done = edit_video(
        editor_of(brightening), tmp_path / "a.mp4", tmp_path / "out" / "b.mp4", BLOND, progress=told.append
    )
    assert (done.frames, done.edited, told[-1]) == (20, 20, 20)
    before, after = contents(tmp_path / "a.mp4"), contents(tmp_path / "out" / "b.mp4")
    assert after[0] == pytest.approx(before[0], abs=1e-3)
    assert after[2] == before[2]
    assert "compositeWithTrainedAlgorithmicMedia" in after[3]["comment"]
    assert np.mean(after[1][10][40:50, 70:90]) - np.mean(before[1][10][40:50, 70:90]) > 20
    assert np.abs(np.mean(after[1][10][100:]) - np.mean(before[1][10][100:])) < 3
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["b.mp4"]


@pytest.mark.parametrize("colors", [(1, 1), (5, 1), (1, 2)], ids=["bt709", "bt601", "bt709, full range"])
def test_colours_and_shape_of_pixels_are_kept_and_said(
    brightening: Glean, tmp_path: Path, colors: tuple[int, int]
) -> None:
    av = pytest.importorskip("av")
    matrix, range_ = colors
    with av.open(str(tmp_path / "a.mp4"), "w") as made:
        video = made.add_stream("mpeg4", rate=25)
        video.width, video.height, video.pix_fmt = 160, 120, "yuv420p"
        said = video.codec_context
        said.colorspace = said.color_primaries = said.color_trc = matrix
        said.color_range, said.sample_aspect_ratio = range_, Fraction(4, 3)
        for picture in clip(8):
            picture[:40] = (60, 120, 200)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            made.mux(video.encode(frame.reformat(format="yuv420p", dst_colorspace=matrix, dst_color_range=range_)))
        made.mux(video.encode(None))
    edit_video(editor_of(brightening), tmp_path / "a.mp4", tmp_path / "b.mp4", BLOND)
    seen = []
    for name in ("a.mp4", "b.mp4"):
        with av.open(str(tmp_path / name)) as source:
            frame = list(source.decode(video=0))[4]
            planes = [np.frombuffer(plane, np.uint8).reshape(plane.height, -1)[2, 2:8].mean() for plane in frame.planes]
            shape = source.streams.video[0].sample_aspect_ratio
            seen.append((frame.colorspace, frame.color_range, shape, planes))
    assert seen[0][:3] == seen[1][:3]
    np.testing.assert_allclose(seen[0][3], seen[1][3], atol=2.5)


def test_what_is_not_edited_keeps_its_brightness_edit_after_edit(brightening: Glean, tmp_path: Path) -> None:
    frames = clip(6)
    for frame in frames:
        frame[100:] = (180, 140, 120)
    write_video(tmp_path / "0.mp4", frames)
    for again in range(3):
        edit_video(editor_of(brightening), tmp_path / f"{again}.mp4", tmp_path / f"{again + 1}.mp4", BLOND)
    first, last = (np.mean(contents(tmp_path / name)[1][3][100:]) for name in ("0.mp4", "3.mp4"))
    assert abs(last - first) < 0.5


def turn_on_its_side(path: Path) -> None:
    """Have the file say that it is shown turned right, as phones that are held upright do."""
    data = bytearray(path.read_bytes())
    matrix = data.index(b"tkhd") + 44  # of the first track, the video's
    data[matrix : matrix + 36] = struct.pack(">9i", 0, 1 << 16, 0, -1 << 16, 0, 0, 0, 0, 1 << 30)
    path.write_bytes(data)


def test_a_turned_video_with_sound_is_upright(brightening: Glean, tmp_path: Path) -> None:
    frames = clip(8)
    for frame in frames:
        frame[:60, :80] = 230
    write_video(tmp_path / "a.mp4", frames)
    turn_on_its_side(tmp_path / "a.mp4")
    edit_video(editor_of(brightening), tmp_path / "a.mp4", tmp_path / "b.mp4", BLOND)
    _, after, sound, _ = contents(tmp_path / "b.mp4")
    assert after[4].shape == (160, 120, 3)
    assert after[4][10, 100].mean() > 200  # what was at the left above
    assert after[4][150, 100].mean() < 150
    assert sound


def test_what_lies_under_foreseeable_names_is_not_written_into(brightening: Glean, tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", clip(5))
    (tmp_path / "out").mkdir()
    (tmp_path / "precious").write_text("kept")
    for name in (f".b.{os.getpid()}.part.mp4", f".b.mp4.{host_name()}.{os.getpid()}.tmp"):
        (tmp_path / "out" / name).symlink_to(tmp_path / "precious")
    stale = tmp_path / "out" / f".b.mp4.{host_name()}.999999999.0123456789ab.tmp"
    stale.touch()
    edit_video(editor_of(brightening), tmp_path / "a.mp4", tmp_path / "out" / "b.mp4", BLOND)
    assert (tmp_path / "precious").read_text() == "kept"
    assert not stale.exists()
    assert (tmp_path / "out" / "b.mp4").stat().st_size > 1000


def test_a_full_disk_is_said_as_such(brightening: Glean, tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", clip(5))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))  # Python ignores SIGXFSZ: an error
    try:
        with pytest.raises(InputError, match=r"b\.mp4: no space left to write it"):
            edit_video(editor_of(brightening), tmp_path / "a.mp4", tmp_path / "b.mp4", BLOND)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


def test_sound_and_subtitles_that_are_left_out_are_said(brightening: Glean, tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", clip(5), tracks=3)
    done = edit_video(editor_of(brightening), tmp_path / "a.mp4", tmp_path / "b.mp4", BLOND)
    assert done.notes == ("without 2 further sound tracks",)


@pytest.mark.parametrize(
    ("pixels", "said"), [("yuv420p10le", ("8 bits of 10",)), ("yuva420p", ("without its transparency",))]
)
def test_depth_and_transparency_that_are_left_out_are_said(
    brightening: Glean, tmp_path: Path, pixels: str, said: tuple[str, ...]
) -> None:
    av = pytest.importorskip("av")
    with av.open(str(tmp_path / "a.mkv"), "w") as made:
        video = made.add_stream("ffv1", rate=25)
        video.width, video.height, video.pix_fmt = 160, 120, pixels
        for frame in clip(5):
            made.mux(video.encode(av.VideoFrame.from_ndarray(frame, format="rgb24").reformat(format=pixels)))
        made.mux(video.encode(None))
    assert edit_video(editor_of(brightening), tmp_path / "a.mkv", tmp_path / "b.mp4", BLOND).notes == said


def test_pictures_that_change_their_size_are_one_line(brightening: Glean, tmp_path: Path) -> None:
    for name, size in (("a.ts", (120, 160)), ("b.ts", (96, 160))):
        write_video(tmp_path / name, clip(5, size), tracks=0)
    (tmp_path / "c.ts").write_bytes(b"".join((tmp_path / name).read_bytes() for name in ("a.ts", "b.ts")))
    with pytest.raises(InputError, match=r"c\.ts: its pictures change from 160 x 120 to 160 x 96 pixels"):
        edit_video(editor_of(brightening), tmp_path / "c.ts", tmp_path / "d.mp4", BLOND)
    assert not (tmp_path / "d.mp4").exists()


def test_of_a_file_that_is_cut_off_it_is_said_how_much_there_is(brightening: Glean, tmp_path: Path) -> None:
    write_video(tmp_path / "a.mkv", clip(50))
    whole = (tmp_path / "a.mkv").read_bytes()
    (tmp_path / "half.mkv").write_bytes(whole[: len(whole) // 2])
    assert not edit_video(editor_of(brightening), tmp_path / "a.mkv", tmp_path / "b.mp4", BLOND).notes
    done = edit_video(editor_of(brightening), tmp_path / "half.mkv", tmp_path / "c.mp4", BLOND)
    assert 15 < done.frames < 35
    assert done.notes == (
        f"the file is cut off: it holds {done.frames / 25:.1f} of 2.1 s",
    )  # its sound is a block longer


def test_how_many_frames_there_are_is_known_before(tmp_path: Path) -> None:
    for name in ("a.mp4", "a.mkv"):
        write_video(tmp_path / name, clip(10))
        assert 10 <= frame_count(tmp_path / name) <= 12  # a container's length may be that of its sound
    (tmp_path / "b.mp4").write_bytes(b"no video at all")
    assert frame_count(tmp_path / "b.mp4") == frame_count(tmp_path / "none.mp4") == 0


def test_what_is_no_video_is_one_line_and_leaves_nothing(brightening: Glean, tmp_path: Path) -> None:
    pytest.importorskip("av")
    with pytest.raises(InputError, match=r"none\.mp4: no such file"):
        edit_video(editor_of(brightening), tmp_path / "none.mp4", tmp_path / "b.mp4", BLOND)
    (tmp_path / "a.mp4").write_bytes(b"no video at all")
    with pytest.raises(InputError, match=r"a\.mp4: cannot be read or written as a video"):
        edit_video(editor_of(brightening), tmp_path / "a.mp4", tmp_path / "b.mp4", BLOND)
    editor = editor_of(brightening)
    editor.analyser.find = lambda *_: []
    write_video(tmp_path / "c.mp4", clip(5))
    with pytest.raises(InputError, match=r"c\.mp4: no face found"):
        edit_video(editor, tmp_path / "c.mp4", tmp_path / "b.mp4", BLOND)
    write_video(tmp_path / "d.avi", clip(5), codec="pcm_alaw")
    with pytest.raises(InputError, match=r"d\.avi: its sound cannot be copied \(.* .pcm_alaw.*\); convert it to MP4"):
        edit_video(editor_of(brightening), tmp_path / "d.avi", tmp_path / "b.mp4", BLOND)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mp4", "c.mp4", "d.avi"]
