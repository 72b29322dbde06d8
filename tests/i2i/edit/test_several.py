"""Several edits in one pass over a file, and a stopped command that goes on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.faked_faces import FakeAnalyser, photo_of
from PIL import Image

from stylepairs.datagen.features import load_feature
from stylepairs.datagen.recipe import nested_overrides
from stylepairs.datagen.shell.errors import InputError
from stylepairs.i2i.edit.editor import EditedPhoto, Editor, FaceEdit
from stylepairs.i2i.edit.journal import JOURNAL, Journal
from stylepairs.i2i.edit.photo_files import edit_files, jobs_of
from stylepairs.i2i.edit.several import SeveralEditors
from stylepairs.i2i.models.checkpoints import ModelInfo
from stylepairs.i2i.models.glean import Edit, Glean


@pytest.fixture
def analyser() -> FakeAnalyser:
    finder = FakeAnalyser([(150, 100)])
    finder.looks = 0
    find = finder.find

    def counted(photo: np.ndarray, min_score: float = 0.5) -> list:
        finder.looks += 1
        return find(photo, min_score)

    finder.find = counted
    return finder


def two(model: Glean, analyser: FakeAnalyser) -> SeveralEditors:
    """Both edit the hair, as the stand-in has no lips."""
    hair, lips = (Editor(model, ModelInfo(feature, "color", {}), analyser) for feature in ("hair_color", "lips"))
    lips.feature = hair.feature
    return SeveralEditors([hair, lips])


BLOND = {"color": "blond"}
PARAMS = {"hair_color": {"color": "blond"}, "lips": {"color": "red"}}


def test_the_second_edit_goes_on_from_the_first_and_faces_are_found_once(brightening: Glean, analyser) -> None:
    photo = np.full((200, 300, 3), 100, np.uint8)
    editors = two(brightening, analyser)
    hair = editors.editors["hair_color"]
    both = editors(photo, PARAMS, min_score=0.5)
    assert analyser.looks == 1
    first = hair(photo, BLOND)
    second = editors.editors["lips"](first.pixels, {"color": "red"}, faces=analyser.faces)
    assert np.array_equal(both.pixels, second.pixels)
    assert np.array_equal(both.mask, np.maximum(first.mask, second.mask))


def test_an_edit_that_does_not_apply_leaves_the_others(brightening: Glean, analyser, monkeypatch) -> None:
    editors = two(brightening, analyser)
    hair = editors.editors["hair_color"]
    monkeypatch.setattr(hair, "model", Sure(hair.model, -9.0))
    done = editors(np.full((200, 300, 3), 100, np.uint8), PARAMS | {"hair_color": {"color": "blond"}})
    assert done.faces[0].refused is None
    assert done.notes == ("without hair_color: confidence 0.00 that hair_color can be applied, at least 0.5 is needed",)


class Sure(torch.nn.Module):
    """A model with a confidence of its own."""

    def __init__(self, model: Glean, logit: float) -> None:
        super().__init__()
        self.model, self.config, self.size_px, self.logit = model, model.config, model.size_px, logit

    def forward(self, *inputs: torch.Tensor) -> Edit:
        edit = self.model(*inputs)
        return edit._replace(confidence_logits=torch.full_like(edit.confidence_logits, self.logit))


def test_parameters_begin_with_the_feature(brightening: Glean, analyser) -> None:
    editors = two(brightening, analyser)
    with pytest.raises(InputError, match=r"begin with the feature, as in --set hair_color\.degree=0\.5"):
        editors.asked({"color": "red"})
    with pytest.raises(InputError, match="did you mean 'lips'"):
        editors.asked({"lip": {"color": "red"}})
    with pytest.raises(InputError, match="two runs of one feature"):
        SeveralEditors([editors.editors["lips"], editors.editors["lips"]])


def test_parameters_of_a_users_own_feature_begin_with_its_files_stem(brightening: Glean, analyser) -> None:
    load_feature(str(Path(__file__).parents[3] / "docs" / "examples" / "blush.py"), run_files=True)
    own = Editor(brightening, ModelInfo("docs/examples/blush.py", "params", {}, {"size": [0.4, 0.5]}), analyser)
    both = SeveralEditors([own, Editor(brightening, ModelInfo("hair_color", "color", {}), analyser)])
    params = nested_overrides(["blush.size=0.45", "hair_color.color=blond"])
    assert both(np.full((200, 300, 3), 100, np.uint8), params).faces[0].refused is None
    with pytest.raises(InputError, match=r"size .* 0\.4 to 0\.5"):
        both.asked(nested_overrides(["blush.size=0.3"]))


def test_faces_go_through_the_network_together(brightening: Glean) -> None:
    sizes = []
    brightening.config = replace(brightening.config, draws=True)  # no second look beyond the crop

    def counting(*inputs: torch.Tensor) -> object:
        sizes.append(len(inputs[0]))
        return forward(*inputs)

    forward, brightening.forward = brightening.forward, counting
    faces = FakeAnalyser([(100 * n + 60, 100) for n in range(11)], eye_distance=12)
    editor = Editor(brightening, ModelInfo("hair_color", "color", {}), faces)
    photo = photo_of(200, 1200)
    together = editor(photo, BLOND).pixels
    assert sizes == [8, 3]
    alone = photo.copy()
    for face in faces.faces:
        alone = np.where(alone == photo, editor(photo, BLOND, faces=[face]).pixels, alone)
    assert np.abs(together.astype(int) - alone).max() <= 1


def inverting(photo: np.ndarray, params: object, min_score: float) -> EditedPhoto:
    return EditedPhoto(255 - photo, np.ones(photo.shape[:2], np.float16), [FaceEdit((0, 0, 1, 1), 1.0, None, 1.0)])


def write(path: Path, grey: int) -> Path:
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(np.full((8, 8, 3), grey, np.uint8)).save(path)
    return path


def test_a_file_that_another_edit_has_written_since_is_written_again(tmp_path: Path, capsys) -> None:
    jobs = jobs_of([write(tmp_path / "photos" / "a.png", 9)], tmp_path / "out", ".png")
    for degree in (1.0, 0.5, 1.0, 1.0):
        assert edit_files(inverting, jobs, {}, 0.5, journal=Journal(tmp_path / "out", ["run", degree])) == 0
    said = [line.rpartition(": ")[2] for line in capsys.readouterr().out.splitlines()]
    assert said == 3 * ["1 of 1 face edited"] + ["edited before"]


def test_a_stopped_command_goes_on_and_another_edit_begins_anew(tmp_path: Path, capsys) -> None:
    out = tmp_path / "out"
    photos = [write(tmp_path / "photos" / f"{name}.png", 9) for name in "abc"]
    jobs = jobs_of([tmp_path / "photos"], out, ".png")
    assert edit_files(inverting, jobs[:2], {}, 0.5, journal=Journal(out, ["run", {}])) == 0
    (out / "b.png").unlink()
    with (out / JOURNAL).open("ab") as file:
        file.write(b"cut off")
    capsys.readouterr()
    assert edit_files(inverting, jobs, {}, 0.5, journal=Journal(out, ["run", {}])) == 0
    assert [line.rpartition(": ")[2] for line in capsys.readouterr().out.splitlines()] == [
        "edited before", "1 of 1 face edited", "1 of 1 face edited",
    ]  # fmt: skip
    write(photos[0], 77)
    assert edit_files(inverting, jobs, {}, 0.5, journal=Journal(out, ["run", {}])) == 0
    assert capsys.readouterr().out.count("edited before") == 2
    assert edit_files(inverting, jobs, {}, 0.5, journal=Journal(out, ["run", {"degree": 0.5}])) == 0
    assert "edited before" not in capsys.readouterr().out
