"""Photos in and edits out: which files, where they go, and a batch that no photo ends."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stylepairs.datagen.shell.errors import InputError
from stylepairs.i2i.edit.editor import EditedPhoto, FaceEdit
from stylepairs.i2i.edit.photo_files import VIDEO_SUFFIXES, checked_suffix, edit_files, jobs_of, outcome


def inverting(photo: np.ndarray, params: object, min_score: float) -> EditedPhoto:
    """An editor that refuses black photos and has a fault on white ones."""
    if photo.max() == 0:
        raise InputError("no face found")
    if photo.min() == 255:
        raise ZeroDivisionError("division by zero")
    return EditedPhoto(255 - photo, np.ones(photo.shape[:2], np.float16), [FaceEdit((0, 0, 1, 1), 1.0)])


def write(path: Path, grey: int = 100) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8, 3), grey, np.uint8)).save(path)
    return path


def test_one_odd_photo_does_not_end_the_batch(tmp_path: Path, capsys, monkeypatch) -> None:
    photos = [write(tmp_path / f"{name}.png", grey) for name, grey in (("black", 0), ("white", 255), ("grey", 9))]
    out = tmp_path / "out"
    assert edit_files(inverting, jobs_of([*photos, tmp_path / "none.png"], out, ".png"), {}, 0.5) == 3
    printed = capsys.readouterr()
    assert printed.out == f"{photos[2]} -> {out / 'grey.png'}: 1 of 1 face edited\n"
    lines = printed.err.splitlines()
    assert lines[0] == f"{photos[0]}: no face found"
    assert "white.png: not edited, a fault of this program (ZeroDivisionError: division by zero; test_photo" in lines[1]
    assert "none.png: cannot be read" in lines[2]
    assert [path.name for path in out.iterdir()] == ["grey.png"]


def test_error_in_saving_does_not_end_the_batch(tmp_path: Path, capsys, monkeypatch) -> None:
    from stylepairs.datagen.images import files

    real = files.save_photo

    def fail_once(path: Path, photo: object) -> None:
        monkeypatch.setattr(files, "save_photo", real)
        raise OSError("no such codec")

    monkeypatch.setattr(files, "save_photo", fail_once)
    jobs = jobs_of([write(tmp_path / "a.png"), write(tmp_path / "b.png")], tmp_path / "out", ".png")
    assert edit_files(inverting, jobs, {}, 0.5) == 1
    assert "a.png: not edited" in capsys.readouterr().err
    assert (tmp_path / "out" / "b.png").is_file()


def test_names_that_cannot_be_printed_are_escaped_on_printable(tmp_path: Path, capsys) -> None:
    photos = [write(tmp_path / "two\nlines.png"), write(tmp_path / "caf\udce9.png"), write(tmp_path / "größe.png")]
    assert edit_files(inverting, jobs_of(photos, tmp_path / "out", ".png"), {}, 0.5) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert r"two\nlines.png" in lines[0]
    assert r"caf\udce9.png" in lines[1]
    assert "größe.png" in lines[2]


def test_faces_that_were_not_looked_at_are_said() -> None:
    faces = [FaceEdit((0, 0, 1, 1), 1.0), FaceEdit((0, 0, 1, 1), 1.0, "no hair")]
    nothing = np.zeros((1, 1, 3), np.uint8)
    assert outcome(EditedPhoto(nothing, nothing[..., 0], faces[:1])) == "1 of 1 face edited"
    many = outcome(EditedPhoto(nothing, nothing[..., 0], faces, passed_over=30))
    assert many.startswith("1 of 2 faces edited; left: no hair; up to 30 more, too many for one photo, were not")


def test_of_faces_that_were_left_each_reason_is_said_once() -> None:
    faces = [FaceEdit((0, 0, 1, 1), 1.0, reason) for reason in (None, "no hair", "a hat", "no hair")]
    nothing = np.zeros((1, 1, 3), np.uint8)
    assert outcome(EditedPhoto(nothing, nothing[..., 0], faces)) == "1 of 4 faces edited; left: a hat; left: no hair"
    noted = outcome(EditedPhoto(nothing, nothing[..., 0], faces[:2], notes=("without bangs, of some faces: no hair",)))
    assert noted == "1 of 2 faces edited; without bangs, of some faces: no hair"


def test_folders_are_searched_and_their_sub_folders_kept(tmp_path: Path) -> None:
    folder, out = tmp_path / "photos", tmp_path / "photos" / "out"
    for name in ("a.jpg", "sub/a.jpg", "sub/deep/b.png", "out/a.png"):
        write(folder / name)
    single = write(tmp_path / "single.webp")
    jobs = jobs_of([folder, single], out, ".png")
    assert [target for _, target in jobs] == [
        out / "a.png", out / "sub" / "a.png", out / "sub" / "deep" / "b.png", out / "single.png",
    ]  # fmt: skip
    assert edit_files(inverting, jobs, {}, 0.5) == 0
    assert (out / "sub" / "deep" / "b.png").is_file()


def test_of_a_folder_of_videos_the_other_files_are_passed_over(tmp_path: Path) -> None:
    for name in ("notes.txt", "still.jpg", "a.MOV", "sub/b.mp4"):
        (tmp_path / "clips" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "clips" / name).touch()
    jobs = jobs_of([tmp_path / "clips", Path("named.ts")], tmp_path / "out", ".mp4", VIDEO_SUFFIXES)
    assert [path.name for path, _ in jobs] == ["a.MOV", "b.mp4", "named.ts"]
    (tmp_path / "stills").mkdir()
    (tmp_path / "stills" / "still.jpg").touch()
    with pytest.raises(InputError, match=r"stills: no file in it ends in \.mp4, "):
        jobs_of([tmp_path / "stills"], tmp_path / "out", ".mp4", VIDEO_SUFFIXES)


def test_a_folder_whose_photos_all_lie_where_edits_go_is_said(tmp_path: Path) -> None:
    write(tmp_path / "photos" / "a.png")
    for out in (tmp_path / "photos", tmp_path):
        with pytest.raises(InputError, match="choose another --out"):
            jobs_of([tmp_path / "photos"], out, None)


def test_link_to_itself_and_missing_photo_are_printable(tmp_path: Path, capsys) -> None:
    loop = tmp_path / "loop.jpg"
    loop.symlink_to(loop)
    assert edit_files(inverting, jobs_of([loop, tmp_path / "none.jpg"], tmp_path / "out", None), {}, 0.5) == 2
    assert len(capsys.readouterr().err.splitlines()) == 2


def test_files_of_one_name_do_not_overwrite_each_other() -> None:
    photos = [Path("a/one.jpg"), Path("b/one.JPG"), Path("c/two.webp")]
    names = [target.name for _, target in jobs_of(photos, Path("out"), ".png")]
    assert names == ["one.png", "one_2.png", "two.png"]
    assert [target.name for _, target in jobs_of(photos, Path("out"), None)] == ["one.jpg", "one_2.jpg", "two.webp"]


def test_no_two_photos_share_a_file_however_they_are_named() -> None:
    photos = [Path("a.png"), Path("a_2.png"), Path("b/a.jpg"), Path("c/a.webp")]
    found = [target for _, target in jobs_of(photos, Path("out"), ".png")]
    assert len(set(found)) == len(photos)


def test_a_photo_is_never_overwritten(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="would be overwritten"):
        jobs_of([tmp_path / "a.png"], tmp_path / "sub" / "..", ".png")


def test_formats() -> None:
    assert checked_suffix("same") is None
    assert checked_suffix("png") == ".png"


@pytest.mark.parametrize("named", ["run", "embedded:bangs", "embedded", "run/model.safetensors"])
def test_a_second_model_among_the_photos_is_told_from_them(tmp_path, monkeypatch, named):
    monkeypatch.chdir(tmp_path)
    write(Path("photo.png"))
    Path("run/samples").mkdir(parents=True)
    write(Path("run/samples/00000004.png"))
    Path("run/model.safetensors").touch()
    with pytest.raises(InputError, match=rf"^{named}: is a model, not a photo; give each of several models by --run"):
        jobs_of([Path("photo.png"), Path(named)], Path("out"), ".png")
