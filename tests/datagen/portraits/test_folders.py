"""Portrait folders: the training layout is read too, and broken folders give one line."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stylepairs.datagen.portraits.folders import load_portrait, load_portraits
from stylepairs.datagen.portraits.landmarks import MESH_TO_68
from stylepairs.datagen.shell.errors import InputError


def write_training_layout(folder: Path, size: int = 256) -> None:
    rng = np.random.default_rng(0)
    for kind in ("aligned", "label", "hair"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    for name in ("b", "a"):
        Image.fromarray(rng.integers(0, 256, (size, size, 3), np.uint8)).save(folder / "aligned" / f"{name}.jpg")
        Image.fromarray(rng.integers(0, 19, (size, size), np.uint8)).save(folder / "label" / f"{name}.png")
        Image.fromarray(rng.integers(0, 256, (size, size), np.uint8)).save(folder / "hair" / f"{name}.png")
    mesh = rng.uniform(0, 100, (2, 468, 2)).astype(np.float32)
    move = np.array([[2.0, 0, 1], [0, 2, 3]])
    np.savez(folder / "landmarks.npz", name=["b", "a"], mesh468=mesh, raw_to_aligned256=[move, move])


def test_the_training_layout_is_read(tmp_path: Path) -> None:
    write_training_layout(tmp_path)
    assert [p.name for p in load_portraits(tmp_path)] == ["a", "b"]
    portrait = load_portrait(tmp_path, "a")
    with np.load(tmp_path / "landmarks.npz") as stored:
        expected = stored["mesh468"][1, MESH_TO_68] * 2 + [1, 3]
    np.testing.assert_allclose(portrait.points68.numpy(), expected, rtol=1e-5)
    assert portrait.size_px == 256


def test_folders_that_hold_no_portraits_give_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="datagen prepare"):
        load_portraits(tmp_path)
    for content in (b"", b"PK\x03\x04 but no archive", b"\x93NUMPY"):
        (tmp_path / "landmarks.npz").write_bytes(content)
        with pytest.raises(InputError, match="damaged"):
            load_portraits(tmp_path)


def test_a_folder_of_photos_is_told_to_be_prepared_into_another(tmp_path: Path) -> None:
    (tmp_path / "anna.JPG").touch()
    with pytest.raises(InputError, match=rf"run datagen prepare {tmp_path} --out PORTRAITS, and name PORTRAITS here$"):
        load_portraits(tmp_path)


def test_an_archive_with_pickled_objects_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "landmarks.npz", name=np.array([{"a": 1}], object), points68=1, source_to_aligned=1)
    with pytest.raises(InputError, match="damaged"):
        load_portraits(tmp_path)


def test_missing_and_unequal_files_are_named(tmp_path: Path) -> None:
    write_training_layout(tmp_path)
    with pytest.raises(InputError, match="no portrait named c"):
        load_portrait(tmp_path, "c")
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "hair" / "a.png")
    with pytest.raises(InputError, match=r"hair/a\.png"):
        load_portrait(tmp_path, "a")
    (tmp_path / "label" / "a.png").unlink()
    with pytest.raises(InputError, match=r"label/a\.png"):
        load_portrait(tmp_path, "a")
    Image.fromarray(np.full((256, 256), 77, np.uint8)).save(tmp_path / "label" / "b.png")
    with pytest.raises(InputError, match="class 77"):
        load_portrait(tmp_path, "b")


@pytest.mark.parametrize("name", ["../../secret", "/etc/secret", "..", ".hidden", "a/b", "a\nb", "a\\b", "", "x" * 300])
def test_names_cannot_lead_out_of_the_folder(tmp_path: Path, name: str) -> None:
    write_training_layout(tmp_path)
    points, move = np.zeros((1, 68, 2)), np.zeros((1, 2, 3))
    np.savez(tmp_path / "landmarks.npz", name=[name], points68=points, source_to_aligned=move)
    with pytest.raises(InputError, match=r"landmarks\.npz: .*no portrait's name") as error:
        load_portraits(tmp_path)
    assert "\n" not in str(error.value)


def test_a_name_that_is_there_twice_is_refused_as_its_files_are_one_portrait_s(tmp_path: Path) -> None:
    points, move = np.zeros((3, 68, 2)), np.zeros((3, 2, 3))
    np.savez(tmp_path / "landmarks.npz", name=["b", "a", "b"], points68=points, source_to_aligned=move)
    with pytest.raises(InputError, match=r"landmarks\.npz: holds b twice; prepare it again"):
        load_portraits(tmp_path)


@pytest.mark.parametrize("arrays", [{"points68": np.array(["x"] * 136).reshape(1, 68, 2)}, {"name": np.array(5)}])
def test_arrays_of_wrong_types_give_one_line(tmp_path: Path, arrays: dict[str, np.ndarray]) -> None:
    sound = {"name": ["a"], "points68": np.zeros((1, 68, 2)), "source_to_aligned": np.zeros((1, 2, 3))}
    np.savez(tmp_path / "landmarks.npz", **(sound | arrays))
    with pytest.raises(InputError, match=r"landmarks\.npz"):
        load_portraits(tmp_path)


@pytest.mark.parametrize("items", [2**33, 2**45])
def test_a_header_that_claims_more_than_memory_holds_gives_one_line(tmp_path: Path, items: int) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": (items,)})
    with zipfile.ZipFile(tmp_path / "landmarks.npz", "w") as archive:
        for name in ("name", "points68", "source_to_aligned"):
            archive.writestr(f"{name}.npy", header.getvalue())
    with pytest.raises(InputError, match="damaged"):
        load_portraits(tmp_path)


def test_an_archive_that_unpacks_to_gigabytes_is_refused_unread(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "landmarks.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("name.npy", bytes(1000))
    content = bytearray((tmp_path / "landmarks.npz").read_bytes())
    entry = content.index(b"PK\x01\x02")
    content[entry + 24 : entry + 28] = (2**32 - 2).to_bytes(4, "little")  # its size unpacked, in the directory
    (tmp_path / "landmarks.npz").write_bytes(content)
    with pytest.raises(InputError, match="oversized"):
        load_portraits(tmp_path)
