"""Editing whole photos: several faces, any size, upright, original pixels wherever nothing was edited."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.faked_faces import FakeAnalyser, photo_of
from PIL import Image, ImageCms

from stylepairs.datagen.images.files import to_float
from stylepairs.datagen.portraits.alignment import crop_aligned, ffhq_transform
from stylepairs.datagen.portraits.analysis import analyser
from stylepairs.datagen.portraits.portrait import Portrait
from stylepairs.datagen.portraits.sketch import SketchRefused
from stylepairs.datagen.shell.errors import InputError
from stylepairs.i2i.edit.beyond_crop import border_fade
from stylepairs.i2i.edit.editor import Editor
from stylepairs.i2i.edit.photo_files import edit_file
from stylepairs.i2i.models.checkpoints import ModelInfo
from stylepairs.i2i.models.conditions import CROP_PX
from stylepairs.i2i.models.glean import Edit, Glean, moved_by

INFO = ModelInfo("hair_color", "color", {})
BLOND = {"color": "blond"}
PLAIN = ModelInfo("hair_color", "none", {})


def edit(photo: np.ndarray, model: Glean, analyser: Any, **params: Any) -> np.ndarray:
    return Editor(model, INFO, analyser)(photo, BLOND | params).pixels


def test_only_the_hair_changes_and_everything_else_keeps_its_bits(brightening: Glean) -> None:
    photo = photo_of(200, 300)
    result = edit(photo, brightening, FakeAnalyser([(150, 100)]))
    assert result.shape == photo.shape
    assert np.array_equal(result[115:], photo[115:])  # the lower half of the crop, beyond the dilated mask
    assert np.array_equal(result[:, :85], photo[:, :85])  # left of the widened crop
    hair = np.s_[80:90, 130:170]
    difference = result[hair].astype(int) - photo[hair]
    assert np.median(difference) == 51


def test_edit_fades_out_before_the_border_of_the_widened_crop(brightening: Glean) -> None:
    photo = np.full((300, 300, 3), 100, np.uint8)
    result = edit(photo, brightening, FakeAnalyser([(150, 150)]))
    steps = np.abs(np.diff(result[130, :, 0].astype(int)))
    assert result.max() == 151
    assert steps.max() <= 20


def test_two_faces_whose_crops_overlap_are_not_edited_twice(brightening: Glean) -> None:
    photo = np.full((200, 300, 3), 100, np.uint8)
    one = edit(photo, brightening, FakeAnalyser([(130, 100)]))
    both = edit(photo, brightening, FakeAnalyser([(130, 100), (160, 100)]))
    assert one.max() == 151
    assert both.max() <= 152
    assert (both > photo).sum() > (one > photo).sum() * 1.2


@pytest.mark.parametrize("eye_distance", [6.0, 60.0])
def test_faces_smaller_and_larger_than_the_model(brightening: Glean, eye_distance: float) -> None:
    photo = np.full((400, 400, 3), 100, np.uint8)
    result = edit(photo, brightening, FakeAnalyser([(200, 200)], eye_distance))
    changed = np.flatnonzero((result != photo).any((0, 2)))
    width = 4 * 1.6 * eye_distance  # of the widened crop: this hair runs on beyond the aligned one
    assert result.max() == 151
    assert 0.8 * width < changed[-1] - changed[0] < 1.05 * width


@pytest.mark.parametrize("size_px", [32, 512])
def test_the_network_is_shown_no_less_than_its_own_resolution(model: Glean, size_px: int) -> None:
    shown: list[torch.Tensor] = []

    class Looking(Glean):
        size_px = 0

        def forward(self, photo: torch.Tensor, *_: torch.Tensor) -> Edit:
            shown.append(photo)
            nothing = torch.zeros_like(photo)
            maps = nothing[:, :1], nothing[:, :1], nothing, nothing, nothing[:, :2]
            return Edit(photo, photo, *maps, photo, nothing, torch.ones(1))

    model.__class__, Looking.size_px = Looking, size_px
    photo, face = photo_of(700, 700), FakeAnalyser([(350, 350)], 160.0)
    Editor(model, PLAIN, face)(photo)
    taken_px = max(size_px, CROP_PX)
    crop = to_float(crop_aligned(photo, ffhq_transform(face.faces[0].points68, taken_px), taken_px))
    wanted = F.interpolate(crop[None], size=(size_px, size_px), mode="bicubic", antialias=True).clamp(-1, 1)
    assert torch.equal(shown[0], wanted if size_px < taken_px else crop[None])


def test_face_cut_by_the_edge_of_the_photo(brightening: Glean) -> None:
    photo = np.full((120, 120, 3), 100, np.uint8)
    result = edit(photo, brightening, FakeAnalyser([(5, 40)]))
    assert result[30, 0, 0] > 140  # hair is edited up to the photo's edge


def test_shift_is_where_the_face_is(brightening: Glean) -> None:
    analyser = FakeAnalyser([(150, 100)])
    photo = np.full((200, 300, 3), 100, np.uint8)
    result = edit(photo, brightening, analyser)
    rows = np.flatnonzero(result[:, 150, 0] > 125)
    transform = ffhq_transform(analyser.faces[0].points68, 32)
    middle = (15.5 - transform[1, 2]) / transform[1, 1]
    assert rows[-1] == pytest.approx(middle, abs=4)


@pytest.mark.parametrize(
    ("info", "params", "message"),
    [
        (
            ModelInfo("eyes", "params", {}, {"size": [-0.1, 0.2]}),
            {"crease": 1.0},
            "crease: .* told size and degree alone",
        ),
        (INFO, BLOND | {"reference_px": 16}, "reference_px: .* told color and degree alone"),
        (PLAIN, BLOND, "color: .* told degree alone"),
        (
            ModelInfo("bangs+lips", "params", {}, {"bangs.length": [0.5, 1.0]}),
            {"bangs": {"length": 0.7, "intensity": 0.5}},
            r"bangs\.intensity: .* told bangs\.length and degree alone",
        ),
    ],
)
def test_what_the_network_is_not_told_is_refused_and_not_passed_over(
    model: Glean, info: ModelInfo, params: dict[str, Any], message: str
) -> None:
    editor = Editor(model, info, FakeAnalyser([(100, 100)]))
    editor.wanted(params)  # what is measured may be asked for
    with pytest.raises(InputError, match=message):
        editor(photo_of(200, 200), params)


def test_degree_zero_of_an_untrained_model_returns_the_photo(model: Glean) -> None:
    photo = photo_of(200, 200)
    assert np.array_equal(edit(photo, model, FakeAnalyser([(100, 100)]), degree=0), photo)


def test_an_edit_fades_out_with_its_degree_and_of_none_the_photo_keeps_its_bits(brightening: Glean) -> None:
    photo, changed = photo_of(200, 200), []
    for degree in (0.0, 0.02, 0.06, 0.1, 1.0):
        result = edit(photo, brightening, FakeAnalyser([(100, 100)]), degree=degree)
        changed.append(np.abs(result.astype(int) - photo).sum())
    assert changed[0] == 0
    assert changed[0] < changed[1] < changed[2] < changed[3] <= changed[4]


def test_photo_without_a_face_is_one_clear_line(model: Glean) -> None:
    with pytest.raises(InputError, match="no face found"):
        edit(photo_of(50, 50), model, FakeAnalyser([]))


def test_file_comes_out_upright_with_its_profile(tmp_path: Path, brightening: Glean) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its side
    source, target = tmp_path / "photo.jpg", tmp_path / "out" / "photo.png"
    Image.fromarray(photo_of(300, 200)).save(source, exif=exif, icc_profile=profile)
    edited = edit_file(Editor(brightening, INFO, FakeAnalyser([(150, 100)])), source, target, BLOND)
    with Image.open(target) as result:
        assert result.size == (300, 200)
        assert result.info["icc_profile"] == profile
        assert result.getexif().get(0x0112, 1) == 1
    assert [face.refused for face in edited.faces] == [None]


def test_unreadable_file_is_one_line_with_its_name(tmp_path: Path, model: Glean) -> None:
    (tmp_path / "empty.jpg").touch()
    with pytest.raises(InputError, match=r"empty\.jpg: .*0 bytes"):
        edit_file(Editor(model, INFO, FakeAnalyser([])), tmp_path / "empty.jpg", tmp_path / "out.png", BLOND)


def test_an_editor_loads_its_parser_only_where_edits_are_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, load = [], analyser.embedded_network
    monkeypatch.setattr(analyser, "embedded_network", lambda name: (loaded.append(name), load(name))[1])
    editor = Editor.load("embedded", device="cpu")
    assert loaded == ["detector", "landmarks"]
    with pytest.raises(InputError, match="no face"):
        editor.find(np.zeros((64, 64, 3), np.uint8))
    editor.analyser.parse(np.zeros((1, 64, 64, 3), np.uint8))
    assert loaded == ["detector", "landmarks", "parser"]


def test_parameters_are_checked(model: Glean) -> None:
    editor = Editor(model, INFO)
    wanted = editor.wanted({"color": "red", "degree": 0.4})
    assert (wanted.params.color, wanted.degree) == ("red", 0.4)
    assert editor.wanted(BLOND | {"intensity": 0.3}).degree == 0.3
    assert editor.wanted(BLOND | {"intensity": 0.3}, degree=0.5).degree == 0.5
    for bad, message in (({"degree": 2}, "degree 2"), ({"colour": "red"}, "colour"), ({"color": "blnd"}, "blond")):
        with pytest.raises(InputError, match=message):
            editor.wanted(bad)


def test_result_says_which_pixels_were_edited_and_what_was_done_to_each_face(brightening: Glean) -> None:
    photo = photo_of(200, 300)
    edited = Editor(brightening, INFO, FakeAnalyser([(150, 100)]))(photo, BLOND)
    assert edited.mask.shape == photo.shape[:2]
    assert edited.mask.max() == 1
    changed = (edited.pixels != photo).any(-1)
    assert changed.any()
    assert not changed[edited.mask == 0].any()
    assert [(face.refused, face.score) for face in edited.faces] == [(None, 0.9)]


@pytest.mark.parametrize(
    "region, said",
    [
        (np.full((60, 80), 255, np.uint8), "from 255 to 255: must be shares"),
        (np.full((60, 80), np.nan), "must be shares"),
        (np.ones((80, 60)), "as the photo's"),
        (np.ones((60, 80, 1)), "as the photo's"),
    ],
)
def test_a_region_that_is_no_share_of_this_photo_is_one_line(brightening: Glean, region: np.ndarray, said: str) -> None:
    with pytest.raises(InputError, match=said):
        Editor(brightening, INFO, FakeAnalyser([(40, 30)]))(photo_of(60, 80), BLOND, region=region)


def test_a_region_may_miss_one_by_a_rounding(brightening: Glean) -> None:
    region = np.full((60, 80), 1 + 1e-6, np.float32)
    assert Editor(brightening, INFO, FakeAnalyser([(40, 30)]))(photo_of(60, 80), BLOND, region=region).mask.any()


def test_no_face_given_and_numpy_degrees(brightening: Glean) -> None:
    editor = Editor(brightening, INFO, FakeAnalyser([(40, 30)]))
    with pytest.raises(InputError, match="no face is given"):
        editor(photo_of(60, 80), BLOND, faces=[])
    assert editor.wanted(BLOND, np.float32(0.5)).degree == 0.5


def test_region_bounds_what_is_edited_and_by_how_much(brightening: Glean) -> None:
    photo = np.full((200, 300, 3), 100, np.uint8)
    region = np.zeros((200, 300), np.float32)
    region[:, :150], region[:, 150:160] = 1, 0.5
    edited = Editor(brightening, INFO, FakeAnalyser([(150, 100)]))(photo, BLOND, region=region)
    assert np.array_equal(edited.pixels[:, 160:], photo[:, 160:])
    assert np.median(edited.pixels[80:90, 135:150]) == 151
    assert np.median(edited.pixels[80:90, 150:160]) == pytest.approx(125, abs=1)


def test_a_wider_square_is_looked_at_where_the_edit_goes_on_beyond_the_crop(brightening: Glean) -> None:
    """Only an edit that recolours is continued; what is drawn ends with the crop."""
    seen, forward = [], brightening.forward

    def counting(photo: torch.Tensor, *rest: torch.Tensor) -> Edit:
        seen.append(len(photo))
        return forward(photo, *rest)

    brightening.forward = counting
    photo = photo_of(200, 300)
    wide = edit(photo, brightening, FakeAnalyser([(150, 100)]))
    assert seen == [1, 1]
    brightening.config = replace(brightening.config, draws=True)
    narrow = edit(photo, brightening, FakeAnalyser([(150, 100)]))
    assert seen == [1, 1, 1]
    assert (wide != photo).any(-1).sum() > 1.2 * (narrow != photo).any(-1).sum()


def test_a_face_that_the_model_is_unsure_of_is_left_as_it_is_and_said(brightening: Glean) -> None:
    photo = np.full((200, 300, 3), 150, np.uint8)
    photo[:, 150:] = 20
    edited = Editor(brightening, PLAIN, FakeAnalyser([(60, 100), (240, 100)]))(photo)
    assert np.array_equal(edited.pixels[:, 160:], photo[:, 160:])
    assert edited.pixels[100, 60, 0] == 201
    sure, unsure = edited.faces
    assert sure.refused is None
    assert unsure.confidence < 0.005
    assert unsure.refused == "confidence 0.00 that hair_color can be applied, at least 0.5 is needed"
    with pytest.raises(InputError, match=r"confidence 0\.00 that hair_color can be applied"):
        Editor(brightening, PLAIN, FakeAnalyser([(240, 100)]))(photo)


def test_border_fade_is_smooth_and_zero_at_the_border() -> None:
    fade = border_fade(64)
    assert fade[0].max() == fade[:, -1].max() == 0
    assert fade[32, 32] == 1
    assert np.abs(np.diff(fade, axis=0)).max() < 0.45


def test_a_faint_edit_of_what_moves_shows_what_its_maps_say(moving: Glean) -> None:
    with torch.no_grad():
        for parameter in moving.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
        moving.applies.bias.fill_(10)
    editor = Editor(moving.eval(), ModelInfo("hair_color", "color", {}))
    photo, region = torch.rand(3, 32, 32) * 2 - 1, torch.ones(1, 32, 32)
    edit = editor.edit_crop(photo, region, torch.tensor(0.05), torch.zeros(3))
    said = moved_by(photo[None], edit.mask, edit.flow, edit.gain, edit.bias).clamp(-1, 1)
    torch.testing.assert_close(edit.output, said)
    assert (edit.output - photo).abs().max() > 0.01


def test_a_strict_editor_leaves_the_faces_that_the_feature_refuses(brightening: Glean) -> None:
    photo = np.full((200, 300, 3), 100, np.uint8)
    photo[:, 150:] = 120
    faces = FakeAnalyser([(75, 100), (225, 100)])

    def parse(aligned: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.zeros(len(aligned), *aligned.shape[2:], dtype=torch.uint8), torch.zeros_like(aligned[:, :1])

    faces.parser = SimpleNamespace(parse=parse)
    editor = Editor(brightening, PLAIN, faces, strict=True)

    def sketch(portrait: Portrait, _params: object) -> SimpleNamespace:
        if float(portrait.image.mean()) > 100 / 127.5 - 1 + 0.05:
            raise SketchRefused(f"{portrait.name}: too light")
        assert portrait.size_px == 32
        return SimpleNamespace(backwards=False)

    editor.feature = replace(editor.feature, sketch=sketch)
    edited = editor(photo)
    assert [face.refused for face in edited.faces] == [None, "too light"]
    changed = (edited.pixels != photo).any((0, 2))
    assert changed[:150].any()
    assert not changed[190:].any()
    assert np.array_equal(edited.pixels, Editor(brightening, PLAIN, FakeAnalyser([(75, 100)]))(photo).pixels)
    with pytest.raises(InputError, match="too light"):
        editor(photo, faces=faces.faces[1:])
