"""datagen prepare's core: what it writes, what it skips, and that stopping, repeating and adding never lose
anything.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from stylepairs.datagen.portraits.alignment import apply_transform, ffhq_transform
from stylepairs.datagen.portraits.analysis import looking
from stylepairs.datagen.portraits.analysis.analyser import FaceAnalyser, load_analyser
from stylepairs.datagen.portraits.analysis.detection import Face, Faces, make_face
from stylepairs.datagen.portraits.analysis.prepare import list_photos, prepare_photos
from stylepairs.datagen.portraits.folders import load_portrait, load_portraits
from stylepairs.datagen.shell.errors import InputError
from stylepairs.datagen.shell.lock import folder_lock


class MarkerFinder:
    """Finds a "face" on every pure red pixel: 40 px of points around it, score from the green beside it."""

    def find(self, photo: np.ndarray, min_score: float = 0.5) -> list[Face]:
        ys, xs = np.nonzero((photo == [255, 0, 0]).all(-1))
        shape = np.random.default_rng(0).normal(0, 2, (68, 2))
        shape[36:42] += [-10, -8]
        shape[42:48] += [10, -8]
        shape[48:] += [0, 12]
        return [make_face(shape * (1 + 0.2 * i) + [x, y], 0.95) for i, (x, y) in enumerate(zip(xs, ys, strict=True))][
            ::-1
        ]


class GreyParser:
    def parse(self, aligned: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        grey = aligned.mean(1)
        return (grey > 0).to(torch.uint8) * 17, grey[:, None] / 2 + 0.5


@pytest.fixture(autouse=True)
def _fake_analyser(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(looking, "load_analyser", lambda *_: FaceAnalyser(MarkerFinder(), GreyParser()))


def write_photo(path: Path, faces: int = 1, seed: int = 0) -> Path:
    pixels = np.random.default_rng(seed).integers(0, 200, (120, 200, 3), np.uint8)
    for i in range(faces):
        pixels[60, 40 + 60 * i] = [255, 0, 0]
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def snapshot(folder: Path) -> dict[str, str]:
    files = [p for p in folder.rglob("*") if p.is_file() and not p.name.startswith(".")]
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_folder_holds_what_was_promised(tmp_path: Path) -> None:
    write_photo(tmp_path / "photos" / "anna.png")
    write_photo(tmp_path / "photos" / "group.png", faces=2)
    seen: list[tuple[int, int, str]] = []
    done = prepare_photos([tmp_path / "photos"], tmp_path / "out", size_px=64, progress=lambda *a: seen.append(a))
    assert done.portraits == ["anna", "group_0", "group_1"]
    assert [s[:2] for s in seen] == [(1, 2), (2, 2)]
    for kind in ("aligned", "label", "hair"):
        sizes = {Image.open(tmp_path / "out" / kind / f"{name}.png").size for name in done.portraits}
        assert sizes == {(64, 64)}
    with np.load(tmp_path / "out" / "landmarks.npz") as stored:
        assert stored["name"].tolist() == done.portraits
        assert stored["points68"].shape == (3, 68, 2)
        for points, move in zip(stored["points68"], stored["source_to_aligned"], strict=True):
            np.testing.assert_allclose(move, ffhq_transform(points, 64), atol=1e-3)
    index = rows(tmp_path / "out" / "index.jsonl")
    assert [row["name"] for row in index] == done.portraits
    assert index[0]["photo"].endswith("anna.png")
    assert (tmp_path / "out" / "skipped.jsonl").read_text() == ""


def test_bad_photos_are_skipped_with_their_reason_and_the_rest_goes_on(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    write_photo(photos / "good.png")
    write_photo(photos / "nobody.png", faces=0)
    (photos / "empty.jpg").write_bytes(b"")
    (photos / "notes.txt").write_text("not an image")
    (photos / "cut.png").write_bytes((photos / "good.png").read_bytes()[:3000])
    Image.new("RGB", (5, 5)).save(photos / "tiny.png")
    done = prepare_photos([photos], tmp_path / "out", size_px=64)
    assert done.portraits == ["good"]
    reasons = {Path(row["photo"]).name: row["reason"] for row in rows(tmp_path / "out" / "skipped.jsonl")}
    assert sorted(reasons) == ["cut.png", "empty.jpg", "nobody.png", "notes.txt", "tiny.png"]
    assert "0 bytes" in reasons["empty.jpg"]
    assert "no face found" in reasons["nobody.png"]
    assert "not an image" in reasons["notes.txt"]
    assert all("\n" not in reason for reason in reasons.values())


def test_no_usable_photo_is_an_error_of_one_line(tmp_path: Path) -> None:
    path = write_photo(tmp_path / "nobody.png", faces=0)
    with pytest.raises(InputError, match=r"nobody\.png: no face found") as error:
        prepare_photos([path], tmp_path / "out")
    assert "\n" not in str(error.value)
    prepare_photos([write_photo(tmp_path / "somebody.png")], tmp_path / "out", size_px=64)  # nothing holds it to 256


@pytest.mark.parametrize("bad", ["missing", "folder"])
def test_paths_without_photos_are_errors(tmp_path: Path, bad: str) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match=bad):
        prepare_photos([tmp_path / bad], tmp_path / "out")


@pytest.mark.parametrize("options", [{"size_px": 4}, {"size_px": 100_000}, {"min_score": 1.5}, {"landmarks": "x"}])
def test_impossible_settings_are_errors_and_hold_nobody_to_them(tmp_path: Path, options: dict, monkeypatch) -> None:
    path, out = write_photo(tmp_path / "a.png"), tmp_path / "out"
    with monkeypatch.context() as patched:
        patched.setattr(looking, "load_analyser", load_analyser)
        with pytest.raises(InputError):
            prepare_photos([path], out, **options)
    assert prepare_photos([path], out, size_px=64).portraits == ["a"]


def test_equal_names_in_different_folders_do_not_collide(tmp_path: Path) -> None:
    for index, name in enumerate(["a/x.png", "b/x.png", "b/X.png", "c/x_0.png"]):
        write_photo(tmp_path / name, seed=index)
    write_photo(tmp_path / "d" / "x.png", faces=2, seed=9)
    done = prepare_photos([tmp_path / d for d in "abcd"], tmp_path / "out", size_px=64)
    assert len(done.portraits) == 6
    assert len({name.casefold() for name in done.portraits}) == 6
    index = {row["name"]: row["photo"] for row in rows(tmp_path / "out" / "index.jsonl")}
    assert index["x"] == str(tmp_path / "a" / "x.png")
    assert len(snapshot(tmp_path / "out" / "aligned")) == 6


def test_odd_file_names_become_plain_ones(tmp_path: Path) -> None:
    write_photo(tmp_path / "photos" / "my photo (1).png")
    write_photo(tmp_path / "photos" / "дом.png", seed=1)
    done = prepare_photos([tmp_path / "photos"], tmp_path / "out", size_px=64)
    assert done.portraits == ["my_photo_1_", "дом"]


def test_a_stopped_run_goes_on_and_ends_the_same(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    for i in range(5):
        write_photo(photos / f"p{i}.png", faces=1 + i % 2, seed=i)
    whole = tmp_path / "whole"
    prepare_photos([photos], whole, size_px=64)

    class Stop(Exception):
        pass

    def stop_after(count: int):
        def stop(done: int, total: int, photo: str) -> None:
            if done == count:
                raise Stop

        return stop

    broken = tmp_path / "broken"
    for count in (1, 3):
        with pytest.raises(Stop):
            prepare_photos([photos], broken, size_px=64, progress=stop_after(count))
        with (broken / ".prepared.jsonl").open("a") as journal:
            journal.write('{"photo": "half a li')
    prepare_photos([photos], broken, size_px=64)
    assert snapshot(broken) == snapshot(whole)


def test_a_second_run_looks_at_nothing_twice_and_adds_new_photos(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = tmp_path / "photos"
    write_photo(photos / "a.png")
    prepare_photos([photos], tmp_path / "out", size_px=64)
    before = snapshot(tmp_path / "out")
    looked: list[int] = []
    find = MarkerFinder.find
    monkeypatch.setattr(MarkerFinder, "find", lambda self, photo, min_score: looked.append(1) or find(self, photo))
    prepare_photos([photos], tmp_path / "out", size_px=64)
    assert not looked
    assert snapshot(tmp_path / "out") == before
    write_photo(photos / "b.png", seed=3)
    assert prepare_photos([photos], tmp_path / "out", size_px=64).portraits == ["a", "b"]
    assert len(looked) == 1


def test_a_changed_photo_replaces_its_portraits(tmp_path: Path) -> None:
    path = write_photo(tmp_path / "a.png", faces=2)
    prepare_photos([path], tmp_path / "out", size_px=64)
    write_photo(path, faces=1, seed=4)
    assert prepare_photos([path], tmp_path / "out", size_px=64).portraits == ["a"]
    assert sorted(snapshot(tmp_path / "out" / "aligned")) == ["a.png"]


def test_a_photo_that_became_unusable_is_gone_for_every_later_run(tmp_path: Path) -> None:
    paths = [write_photo(tmp_path / name, seed=i) for i, name in enumerate(["a.png", "b.png"])]
    out = tmp_path / "out"
    prepare_photos(paths, out, size_px=64)
    write_photo(paths[0], faces=0)
    assert prepare_photos(paths, out, size_px=64).portraits == ["b"]
    assert prepare_photos(paths[1:], out, size_px=64).portraits == ["b"]
    assert [row["name"] for row in rows(out / "index.jsonl")] == ["b"]
    assert sorted(snapshot(out / "aligned")) == ["b.png"]


def test_lists_name_no_removed_files_where_the_last_photo_became_unusable(tmp_path: Path) -> None:
    path, out = write_photo(tmp_path / "a.png"), tmp_path / "out"
    prepare_photos([path], out, size_px=64)
    write_photo(path, faces=0)
    with pytest.raises(InputError, match="no face found"):
        prepare_photos([path], out, size_px=64)
    assert rows(out / "index.jsonl") == []
    with pytest.raises(InputError, match="0 names"):
        load_portraits(out)
    assert prepare_photos([write_photo(path)], out, size_px=128).portraits == ["a"]


def test_the_threads_of_the_caller_do_not_show_and_are_put_back(tmp_path: Path) -> None:
    path, threads, made = write_photo(tmp_path / "a.png"), torch.get_num_threads(), []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            prepare_photos([path], tmp_path / str(count), size_px=64)
            assert torch.get_num_threads() == count
            made.append({file.name: file.read_bytes() for file in (tmp_path / str(count)).rglob("*.png")})
    finally:
        torch.set_num_threads(threads)
    assert made[0] == made[1]


def test_portraits_that_no_journal_knows_are_not_written_over(tmp_path: Path) -> None:
    path, out = write_photo(tmp_path / "a.png"), tmp_path / "out"
    prepare_photos([path], out, size_px=64)
    copy = tmp_path / "copy"
    shutil.copytree(out, copy, ignore=shutil.ignore_patterns(".*"))
    before = {file: file.read_bytes() for file in copy.rglob("*") if file.is_file()}
    with pytest.raises(InputError, match=r"no \.prepared\.jsonl knows"):
        prepare_photos([write_photo(tmp_path / "other" / "a.png")], copy, size_px=64)
    assert {file: file.read_bytes() for file in before} == before


def test_a_photo_is_the_same_from_wherever_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    for place, faces in (("one", 1), ("two", 2)):
        write_photo(tmp_path / place / "photos" / "x.png", faces=faces)
        monkeypatch.chdir(tmp_path / place)
        found = prepare_photos([Path("photos")], out, size_px=64)
    assert len(found.portraits) == 3
    again = prepare_photos([tmp_path / "one" / "photos", Path("photos")], out, size_px=64)
    assert again.portraits == found.portraits
    journal = out / ".prepared.jsonl"
    journal.write_text(journal.read_text().replace(str(tmp_path / "two") + "/", ""))  # as it was kept once
    assert prepare_photos([Path("photos")], out, size_px=64).portraits == found.portraits


def test_a_journal_cannot_name_files_outside_its_folder(tmp_path: Path) -> None:
    path, out = write_photo(tmp_path / "a.png"), tmp_path / "out"
    prepare_photos([path], out, size_px=64)
    victim = write_photo(tmp_path / "victim.png")
    journal = out / ".prepared.jsonl"
    journal.write_text(journal.read_text().replace('"name": "a"', '"name": "../../victim"'))
    write_photo(path, faces=0)
    with pytest.raises(InputError, match=r"\.prepared\.jsonl: '\.\./\.\./victim' is no portrait's name"):
        prepare_photos([path], out, size_px=64)
    assert victim.is_file()


@pytest.mark.parametrize(
    "line",
    [
        '{"portraits": []}',
        '{"photo": "b.png"}',
        '{"photo": 5, "portraits": []}',
        '{"photo": "b.png", "portraits": [{"name": "b"}]}',
        '{"photo": "b.png", "portraits": [5]}',
        '{"photo": "b.png", "portraits": [{"name": "b", "photo_sha256": "", "points68": [1, [2]]}]}',
        "[]",
        '{"a":' * 100_000,
    ],
)
def test_damaged_journals_are_named(tmp_path: Path, line: str) -> None:
    path, out = write_photo(tmp_path / "a.png"), tmp_path / "out"
    prepare_photos([path], out, size_px=64)
    with (out / ".prepared.jsonl").open("a") as journal:
        journal.write(line + "\n")
    with pytest.raises(InputError, match=r"\.prepared\.jsonl: damaged") as error:
        prepare_photos([path], out, size_px=64)
    assert "\n" not in str(error.value)


def test_a_journal_without_settings_is_named(tmp_path: Path) -> None:
    path, out = write_photo(tmp_path / "a.png"), tmp_path / "out"
    out.mkdir()
    (out / ".prepared.jsonl").write_text('{"settings": [1]}\n')
    with pytest.raises(InputError, match=r"\.prepared\.jsonl: damaged"):
        prepare_photos([path], out, size_px=64)


def test_a_lost_file_is_made_again(tmp_path: Path) -> None:
    path = write_photo(tmp_path / "a.png")
    prepare_photos([path], tmp_path / "out", size_px=64)
    before = snapshot(tmp_path / "out")
    (tmp_path / "out" / "label" / "a.png").unlink()
    prepare_photos([path], tmp_path / "out", size_px=64)
    assert snapshot(tmp_path / "out") == before


def test_other_settings_are_refused_by_name(tmp_path: Path) -> None:
    path = write_photo(tmp_path / "a.png")
    prepare_photos([path], tmp_path / "out", size_px=64)
    with pytest.raises(InputError, match="size_px=64"):
        prepare_photos([path], tmp_path / "out", size_px=128)


def test_photos_are_listed_once_and_without_the_output(tmp_path: Path) -> None:
    a = write_photo(tmp_path / "a.png")
    write_photo(tmp_path / "out" / "aligned" / "b.png")
    write_photo(tmp_path / ".hidden" / "c.png")
    assert list_photos([tmp_path, a], tmp_path / "out") == [a]


def test_photos_may_lie_under_the_output(tmp_path: Path) -> None:
    write_photo(tmp_path / "photos" / "a.png")
    b = write_photo(tmp_path / "b.png", seed=1)
    assert prepare_photos([tmp_path / "photos"], tmp_path, size_px=64).portraits == ["a"]
    assert prepare_photos([tmp_path], tmp_path, size_px=64).portraits == ["a", "b"]
    assert list_photos([tmp_path], tmp_path) == [b, tmp_path / "photos" / "a.png"]
    assert list_photos([tmp_path]) == [b, tmp_path / "photos" / "a.png"], "nor are crops and maps photos to an editor"
    assert list_photos([tmp_path / "aligned"]) == [tmp_path / "aligned" / "a.png", tmp_path / "aligned" / "b.png"]


def test_prepared_portraits_load_with_points_in_aligned_pixels(tmp_path: Path) -> None:
    prepare_photos([write_photo(tmp_path / "a.png")], tmp_path / "out", size_px=64)
    (file,) = load_portraits(tmp_path / "out")
    portrait = load_portrait(tmp_path / "out", "a")
    assert portrait.image.shape == (3, 64, 64)
    assert portrait.label.shape == (64, 64)
    assert portrait.label.dtype == torch.uint8
    assert portrait.hair.shape == (1, 64, 64)
    expected = apply_transform(file.source_to_aligned, file.points68.astype(float))
    np.testing.assert_allclose(portrait.points68.numpy(), expected, atol=1e-3)
    pixels = np.asarray(Image.open(tmp_path / "out" / "aligned" / "a.png"))
    assert portrait.digest == hashlib.sha256(pixels.tobytes()).hexdigest()


def test_photos_of_one_name_from_folders_given_in_turn_keep_their_own_portraits(tmp_path: Path) -> None:
    first, second = (write_photo(tmp_path / folder / "same.png", seed=i) for i, folder in enumerate("ab"))
    prepare_photos([first.parent], tmp_path / "out", size_px=64)
    kept = (tmp_path / "out" / "aligned" / "same.png").read_bytes()
    done = prepare_photos([second.parent], tmp_path / "out", size_px=64)
    assert len(done.portraits) == 2
    assert (tmp_path / "out" / "aligned" / "same.png").read_bytes() == kept
    by_photo = {row["photo"]: row["name"] for row in rows(tmp_path / "out" / "index.jsonl")}
    assert by_photo[str(first)] == "same"
    assert by_photo[str(second)].startswith("same-")


def test_a_folder_that_another_process_works_in_is_refused_with_its_holder(tmp_path: Path) -> None:
    path, out = write_photo(tmp_path / "a.png"), tmp_path / "out"
    with (
        folder_lock(out, "datagen prepare"),
        pytest.raises(InputError, match=r"out: datagen prepare \(process \d+ on .*\) is working in it") as error,
    ):
        prepare_photos([path], out, size_px=64)
    assert "\n" not in str(error.value)
    assert prepare_photos([path], out, size_px=64).portraits == ["a"]


def test_pipes_devices_and_loops_of_links_are_told_in_a_line_and_end_nothing(tmp_path: Path) -> None:
    write_photo(tmp_path / "a.png")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    (tmp_path / "device.png").symlink_to("/dev/zero")
    named = [tmp_path / name for name in ("a.png", "pipe.png", "device.png")]
    done = prepare_photos(named, tmp_path / "out", size_px=64)
    assert done.portraits == ["a"]
    assert done.unreadable == 2
    assert all("pipe or device" in reason for _, reason in done.skipped)
    with pytest.raises(InputError, match=r"loop\.png: no such file or folder"):
        prepare_photos([tmp_path / "loop.png"], tmp_path / "out", size_px=64)
    assert list_photos([tmp_path], tmp_path / "out") == [tmp_path / "a.png"]


def test_names_that_are_no_text_or_hold_line_breaks_are_prepared_and_told_in_one_line(tmp_path: Path) -> None:
    odd = [tmp_path / "photos" / os.fsdecode(name) for name in (b"caf\xe9.png", b"two\nlines.png")]
    for index, path in enumerate(odd):
        write_photo(path, seed=index)
    done = prepare_photos([tmp_path / "photos"], tmp_path / "out", size_px=64)
    assert done.portraits == ["caf_", "two_lines"]
    assert len(load_portraits(tmp_path / "out")) == 2
    before = snapshot(tmp_path / "out")
    assert prepare_photos([tmp_path / "photos"], tmp_path / "out", size_px=64).portraits == done.portraits
    assert snapshot(tmp_path / "out") == before
    for path in odd:
        write_photo(path, faces=0)
        with pytest.raises(InputError, match="no face found") as error:
            prepare_photos([path], tmp_path / "out", size_px=64)
        assert str(error.value).isprintable()


def test_only_what_should_have_been_read_counts_as_unreadable(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    write_photo(photos / "good.png")
    write_photo(photos / "nobody.png", faces=0)
    (photos / "notes.txt").write_text("not an image")
    assert prepare_photos([photos], tmp_path / "out", size_px=64).unreadable == 0
    (photos / "cut.png").write_bytes((photos / "good.png").read_bytes()[:3000])
    assert prepare_photos([photos], tmp_path / "out", size_px=64).unreadable == 1


def test_a_face_folded_into_a_point_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    faces = [make_face(np.zeros((68, 2)), 0.9)]
    monkeypatch.setattr(MarkerFinder, "find", lambda self, photo, min_score: faces)
    with pytest.raises(InputError, match="no face found"):
        prepare_photos([write_photo(tmp_path / "a.png")], tmp_path / "out", size_px=64)


def test_faces_that_were_not_looked_at_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = MarkerFinder.find

    def find_some(self: MarkerFinder, photo: np.ndarray, min_score: float) -> Faces:
        faces = Faces(find(self, photo))
        faces.passed_over = 7
        return faces

    monkeypatch.setattr(MarkerFinder, "find", find_some)
    done = prepare_photos([write_photo(tmp_path / "a.png", faces=2)], tmp_path / "out", size_px=64)
    assert done.notes == (f"{tmp_path / 'a.png'}: 2 faces prepared; up to 7 more, too many for one photo, were not "
                          "looked at; cut it into parts",)  # fmt: skip
