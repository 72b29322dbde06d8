"""The example without this package does what the package does: the same geometry, and the same pixels."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import pytest
import torch
from helpers.faked_faces import face_points
from PIL import Image, ImageCms

from stylepairs.datagen.images.files import load_photo, to_float
from stylepairs.datagen.portraits import alignment
from stylepairs.datagen.portraits.light import light_of
from stylepairs.datagen.portraits.portrait import bare_portrait
from stylepairs.i2i.edit import beyond_crop, paste
from stylepairs.i2i.edit.beyond_crop import EditMaps
from stylepairs.i2i.models.conditions import style_in_light, style_of

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "onnx_edit.py"
PHOTOS = [ROOT / "recipes" / "photos" / "heldout" / f"portrait_0{n}.jpg" for n in (47, 43, 45)]


@pytest.fixture(scope="module")
def example() -> ModuleType:
    pytest.importorskip("onnxruntime")
    spec = importlib.util.spec_from_file_location("onnx_edit", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    return np.array(Image.open(PHOTOS[0]).convert("RGB"))


@pytest.mark.parametrize("share", [0.4, 1.0, 2.5], ids=["inside", "near", "beyond"])
@pytest.mark.parametrize("size", [64, 256, 700])
def test_crops_are_the_packages(example: ModuleType, photo: np.ndarray, share: float, size: int) -> None:
    face = np.array([[105.0, 110], [160, 113], [131, 165]])
    transform = alignment.square_transform(face, size, share)
    np.testing.assert_allclose(example.square_transform(face, size, share), transform)
    found = example.crop_aligned(photo, transform, size).astype(int)
    np.testing.assert_allclose(found, alignment.crop_aligned(photo, transform, size), atol=1)


def maps_of(side: int) -> np.ndarray:
    """A smooth edit whose mask reaches three borders."""
    rng = np.random.default_rng(2)
    maps = cv2.resize(rng.normal(size=(6, 6, 7)).astype(np.float32), (side, side), interpolation=cv2.INTER_CUBIC)
    maps[..., 3:6] *= 40
    maps[..., 6] = np.clip(1.5 - np.linspace(0, 2, side), 0, 1)[:, None]
    return maps


def test_edits_go_on_beyond_the_crop_as_the_packages(example: ModuleType) -> None:
    side, maps = 64, maps_of(64)
    margin = beyond_crop.margin_px(side)
    region = np.zeros((side + 2 * margin, side + 2 * margin), np.float32)
    region[5:60, 10:90] = 1
    region[80:95, 3:9] = 1
    wanted = beyond_crop.extended(EditMaps(maps[..., :3], maps[..., 3:6], maps[..., 6]), region)
    found = example.extended(maps.astype(np.float64), region, margin)
    np.testing.assert_allclose(found[..., :3], wanted.gain, atol=2e-3)
    np.testing.assert_allclose(found[..., 3:6], wanted.bias, atol=5e-2)
    np.testing.assert_allclose(found[..., 6], wanted.mask, atol=2e-3)


@pytest.mark.parametrize("shade", [0.15, 0.5, 1.0, 1.35])
def test_light_is_the_packages(example: ModuleType, photo: np.ndarray, shade: float) -> None:
    points = face_points(130, 98, 45.0)
    lit = (photo[:263] * shade).clip(0, 255).astype(np.uint8)
    portrait = replace(bare_portrait("", to_float(lit)), points68=torch.from_numpy(points).float())
    lightness = cv2.cvtColor(lit.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)[..., 0]
    assert example.light_of(lightness, points) == pytest.approx(light_of(portrait), rel=0.01)
    assert (light_of(portrait) < 1) == (shade < 1)
    crop = lit.astype(np.float32) / 127.5 - 1
    for color in ("berry", "own"):
        code = style_of("color_and_params", {"color": color, "fullness": 0.2}, {"fullness": [0.0, 0.4]}, "lips")
        wanted = style_in_light("color_and_params", code, light_of(portrait))
        np.testing.assert_allclose(example.in_light(code.numpy(), crop, points), wanted, atol=0.01)


@pytest.mark.parametrize("moves", [False, True])
@pytest.mark.parametrize("scale", [0.2, 1.7])
def test_pasting_is_the_packages(example: ModuleType, photo: np.ndarray, scale: float, moves: bool) -> None:
    maps, turn = maps_of(64), np.array([[0.96, 0.28], [-0.28, 0.96]])
    flow = 3 * maps[..., :2].copy() if moves else None
    if flow is not None:
        maps = np.dstack([maps, flow])
    transform = np.concatenate([scale * turn, np.array([[4.0], [9.0]])], 1)
    results = []
    for way in (paste.paste, example.paste):
        result, edited = photo.copy(), np.zeros(photo.shape[:2], np.float16)
        own = EditMaps(maps[..., :3], maps[..., 3:6], maps[..., 6], flow)
        given = own if way is paste.paste else maps.astype(float)
        for face in (transform, transform + [[0, 0, 20], [0, 0, 6]]):  # two that overlap
            way(result, photo, edited, given, face)
        results.append(result.astype(int))
    assert (results[0] != photo).mean() > 0.01
    np.testing.assert_allclose(results[0], results[1], atol=1)


def test_how_sure_the_network_is_of_the_wider_square_does_not_count(example: ModuleType, photo: np.ndarray) -> None:
    """As in the package: whether there is anything to edit is asked of the face's own square."""

    class Unsure:
        def __init__(self, *confidences: float) -> None:
            self.about = {"size_px": 32, "crop_px": 32, "keeps_texture": True, "draws": False, "outputs": []}
            self.confidences = iter(confidences)

        def __call__(self, photo: np.ndarray, **_: np.ndarray) -> list[np.ndarray]:
            whole = np.ones_like(photo)
            return [whole, whole[:, :1], whole, whole, np.array([next(self.confidences)])]

    def mask_of(*confidences: float) -> np.ndarray:
        editor = example.OnnxEditor.__new__(example.OnnxEditor)
        editor.editor = Unsure(*confidences)
        return editor.maps(photo, face_points(130, 98, 45.0), np.zeros(0), 1.0)[0][..., 6]

    assert mask_of(0.9, 0.9).max() > 0.9
    np.testing.assert_array_equal(mask_of(0.9, 0.1), mask_of(0.9, 0.9))
    assert not mask_of(0.1, 0.9).any()


def test_a_graph_of_another_version_is_one_line(example: ModuleType, photo: np.ndarray, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    ends = [onnx.helper.make_tensor_value_info(name, 1, [1]) for name in ("image", "heat")]
    node = onnx.helper.make_node("Identity", ["image"], ["heat"])
    graph = onnx.helper.make_graph([node], "finder", ends[:1], ends[1:])
    opset = [onnx.helper.make_opsetid("", 13)]
    onnx.save(onnx.helper.make_model(graph, ir_version=8, opset_imports=opset), tmp_path / "face_finder.onnx")
    finder = example.Graph(tmp_path / "face_finder.onnx")
    with pytest.raises(SystemExit, match=r"face_finder\.onnx: does not say largest_level_px; write it again"):
        example.find_faces(photo, finder, finder)


@pytest.fixture(scope="module")
def face_files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The face finder's two graphs."""
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name)
    from stylepairs.i2i.models.face_export import export_faces

    return export_faces(tmp_path_factory.mktemp("faces"))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("source", "params"),
    [("embedded", {"color": "auburn"}), ("embedded:fluffiness", {"volume": 0.12, "where": "both"})],
)
def test_the_example_makes_the_pixels_that_the_editor_makes(
    tmp_path: Path, face_files: tuple[Path, Path], source: str, params: dict[str, object]
) -> None:
    """Photo file to photo file in an interpreter that may not import this package or PyTorch."""
    from stylepairs.datagen.images.files import read_image
    from stylepairs.datagen.portraits.analysis.analyser import load_analyser
    from stylepairs.i2i.edit.editor import Editor
    from stylepairs.i2i.models.checkpoints import load_model
    from stylepairs.i2i.models.export import export
    from stylepairs.i2i.models.prepared_glean import prepare

    model, info = load_model(source)
    export(model, info, tmp_path / "editor.onnx")
    for path in face_files:
        (tmp_path / path.name).symlink_to(path)
    editor = Editor(prepare(model, torch.float32), info, load_analyser())
    style = editor.wanted(params).style.tolist()
    crowd = np.hstack([np.array(Image.open(path).convert("RGB").resize((400, 400))) for path in PHOTOS[:2]])
    Image.fromarray(crowd).save(tmp_path / "crowd.png")
    large = Image.open(PHOTOS[2]).convert("RGB")
    large.resize((4 * large.width, 4 * large.height), Image.Resampling.BICUBIC).save(tmp_path / "large.png")
    Image.fromarray(np.array(Image.open(PHOTOS[0]).convert("RGB")) // 3).save(tmp_path / "dark.png")
    block = "import sys; sys.modules['stylepairs'] = sys.modules['torch'] = None; import runpy; "
    for path, faces in (
        (PHOTOS[0], 1),
        (tmp_path / "crowd.png", 2),
        (tmp_path / "large.png", 1),
        (tmp_path / "dark.png", 1),
    ):
        arguments = ["onnx_edit.py", "editor.onnx", str(path), "out.png", f"--style={','.join(map(str, style))}"]
        run = f"sys.argv = {arguments!r}; "
        done = subprocess.run(
            [sys.executable, "-c", block + run + f"runpy.run_path({str(EXAMPLE)!r}, run_name='__main__')"],
            cwd=tmp_path, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
        photo, found = read_image(path), read_image(tmp_path / "out.png")
        wanted = editor(photo, params)
        assert len(wanted.faces) == faces
        difference = np.abs(found.astype(int) - wanted.pixels)
        changed = wanted.mask > 0
        assert changed.mean() > 0.05
        assert difference[changed].mean() < 0.5
        assert np.percentile(difference[changed], 99) <= 4
        assert (difference[~changed] > 0).sum() < 3e-3 * photo.size


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--degree", "5"], "--degree 5: must be a number from 0 to 1"),
        (["--style=red"], "--style red: must be numbers with commas"),
        (["--style=nan"], "--style nan: must be numbers with commas"),
        ([], "editor.onnx: no such file"),
    ],
)
def test_what_is_wrong_is_told_in_a_line(options: list[str], message: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    arguments = [str(tmp_path / "editor.onnx"), str(tmp_path / "photo.jpg"), str(tmp_path / "out.png"), *options]
    done = subprocess.run([sys.executable, str(EXAMPLE), *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


class Fake:
    """An editor that edits the photo's lower half, as much as it is told."""

    edits = 1.0

    def __init__(self, path: Path) -> None:
        self.editor = self
        self.about: dict[str, int] = {}

    def __call__(self, photo: np.ndarray, style: np.ndarray, degree: float) -> tuple[np.ndarray, np.ndarray]:
        edited = np.zeros(photo.shape[:2])
        edited[len(edited) // 2 :] = self.edits * degree
        return photo, edited


@pytest.fixture
def run(example: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Edits a photo of `folder` by the fake editor into a file there."""
    for name in ("editor.onnx", "face_finder.onnx", "face_landmarks.onnx"):
        (tmp_path / name).touch()
    monkeypatch.setattr(example, "OnnxEditor", Fake)

    def edit(photo: str, out: str, *options: str) -> Path:
        monkeypatch.setattr(sys, "argv", ["x", *(str(tmp_path / n) for n in ("editor.onnx", photo, out)), *options])
        example.main()
        return tmp_path / out

    return edit


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_what_was_edited_says_so_and_nothing_else_does(run, photo: np.ndarray, tmp_path: Path, suffix: str) -> None:
    Image.fromarray(photo).save(tmp_path / "photo.jpg")
    term = b"compositeWithTrainedAlgorithmicMedia"
    assert term in run("photo.jpg", f"edited{suffix}").read_bytes()
    untouched = run("photo.jpg", f"untouched{suffix}", "--degree=0").read_bytes()
    assert term not in untouched
    assert b"onnx_edit" not in untouched


@pytest.mark.parametrize("turned", range(1, 9))
def test_a_photo_is_turned_upright_as_by_the_package(
    example: ModuleType, photo: np.ndarray, tmp_path: Path, turned: int
) -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = turned, "Maker"
    Image.fromarray(photo).save(tmp_path / "photo.png", exif=exif)
    pixels, image = example.load(tmp_path / "photo.png")
    assert np.array_equal(pixels, load_photo(tmp_path / "photo.png").pixels)
    example.save(tmp_path / "out.jpg", pixels, image, True)
    with Image.open(tmp_path / "out.jpg") as written:
        assert dict(written.getexif()) == {0x010F: "Maker", 0x0131: "onnx_edit.py"}


@pytest.mark.parametrize("exif", [b"MM\0*\0\0\0\x08\0\x01\1\0\0\x03\0\0\0\x05", b"no EXIF", None])
@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_or_endless_exif_costs_the_photo_nothing(run, photo, tmp_path, exif: bytes | None) -> None:
    long = Image.Exif()
    long[0x010E] = 70_000 * "x"
    Image.fromarray(photo).save(tmp_path / "photo.png", exif=long.tobytes() if exif is None else exif)
    with Image.open(run("photo.png", "out.jpg")) as written:
        assert dict(written.getexif()) == {0x0131: "onnx_edit.py"}


def test_a_photo_without_a_face_is_an_error_and_not_a_marked_copy(run, photo, tmp_path, monkeypatch, capsys) -> None:
    Image.fromarray(photo).save(tmp_path / "photo.jpg")
    monkeypatch.setattr(Fake, "edits", 0.0)
    with pytest.raises(SystemExit, match="2"):
        run("photo.jpg", "out.png")
    assert "photo.jpg: no face found, or none that the edit applies to" in capsys.readouterr().err
    assert not (tmp_path / "out.png").exists()


def test_transparency_stays(run, photo: np.ndarray, tmp_path: Path) -> None:
    Image.fromarray(np.dstack([photo, photo[..., 0]])).save(tmp_path / "photo.png")
    np.testing.assert_array_equal(np.array(Image.open(run("photo.png", "out.png")))[..., 3], photo[..., 0])


def test_one_transparent_colour_stays_transparent(run, photo: np.ndarray, tmp_path: Path) -> None:
    Image.fromarray(photo).quantize(16).save(tmp_path / "palette.png", transparency=3)
    Image.fromarray(photo).save(tmp_path / "colour.png", transparency=tuple(map(int, photo[0, 0])))
    for name in ("palette.png", "colour.png"):
        wanted = np.array(Image.open(tmp_path / name).convert("RGBA"))[..., 3]
        assert wanted.min() == 0
        np.testing.assert_array_equal(np.array(Image.open(run(name, "out.png")))[..., 3], wanted)


@pytest.mark.parametrize(
    ("photo", "out", "message"),
    [
        ("profile.png", "out.png", "profile.png: cannot be read as a photo (cannot build transform)"),
        ("huge.png", "out.png", "huge.png: cannot be read as a photo (Image size (100 pixels) exceeds limit"),
        ("deep.png", "out.png", "deep.png: cannot be read as a photo (more than 8 bits; convert it first)"),
        ("plain.png", "out.webp", "out.webp: must be a .png or .jpg"),
        (
            "plain.png",
            "none/out.png",
            "none/out.png: must be a .png or .jpg, which can say that they were edited, in a f",
        ),
    ],
)
def test_what_would_lose_the_photo_or_the_mark_is_refused(
    run, tmp_path, monkeypatch, capsys, photo, out, message
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 49)
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    profile[200:400] = bytes(200)
    Image.new("RGB", (2, 2)).save(tmp_path / "profile.png", icc_profile=bytes(profile))
    Image.new("RGB", (10, 10)).save(tmp_path / "huge.png")
    Image.fromarray(np.full((7, 7), 30000, np.uint16)).save(tmp_path / "deep.png")
    Image.new("RGB", (7, 7)).save(tmp_path / "plain.png")
    with pytest.raises(SystemExit, match="2"):
        run(photo, out)
    assert message in capsys.readouterr().err


def test_a_file_that_is_no_model_is_one_line(example, tmp_path, monkeypatch, capsys) -> None:
    for name in ("editor.onnx", "face_finder.onnx", "face_landmarks.onnx", "photo.jpg"):
        (tmp_path / name).write_text("no model")
    arguments = ["x", *(str(tmp_path / name) for name in ("editor.onnx", "photo.jpg", "out.png"))]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit, match="2"):
        example.main()
    assert "editor.onnx: cannot be read as a model" in capsys.readouterr().err
