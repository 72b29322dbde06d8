"""Several editors as one: the photo is read once, its faces are found once, each edit goes on from the one before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from stylepairs.datagen.features import is_own_file
from stylepairs.datagen.portraits.analysis.detection import Faces
from stylepairs.datagen.shell.errors import InputError, nearest
from stylepairs.i2i.edit.editor import MIN_SCORE, EditedPhoto, Editor

Params = Mapping[str, Any]


class SeveralEditors:
    """Called as an Editor is, with parameters by feature: {"bangs": {"style": "full"}, "hair_color": {...}}.

    Of one edit that does not apply to a face the others are still made, and `notes` of the result says it.
    """

    def __init__(self, editors: Sequence[Editor]) -> None:
        """Raises InputError for two editors of one feature."""
        self.editors = {_told_as(editor.info.feature): editor for editor in editors}
        if len(self.editors) < len(editors):
            raise InputError("--run: two runs of one feature; give one of each")

    def asked(self, params: Params) -> None:
        """Check the parameters before any photo is touched. Raises InputError."""
        for name in params:
            if name not in self.editors:
                raise InputError(
                    f"--set {name}: with several runs begin with the feature, as in "
                    f"--set {next(iter(self.editors))}.degree=0.5{nearest(name, self.editors)}"
                )
        for feature, editor in self.editors.items():
            editor.asked(_of(params, feature))

    def __call__(self, photo: np.ndarray, params: Params, *, min_score: float = MIN_SCORE) -> EditedPhoto:
        """As `Editor.__call__`; the largest face comes first. Raises InputError where nothing applies."""
        self.asked(params)
        faces = next(iter(self.editors.values())).find(photo, min_score)
        mask, done, refused = np.zeros(photo.shape[:2], np.float16), None, []
        for feature, editor in self.editors.items():
            try:
                edited = editor(photo, _of(params, feature), min_score=min_score, faces=faces)
            except InputError as error:
                refused.append(f"{feature}: {error}")
                continue
            photo, mask = edited.pixels, np.maximum(mask, edited.mask)
            left_out = sorted({face.refused for face in edited.faces if face.refused})
            refused += [f"{feature}, of some faces: {reason}" for reason in left_out]
            both = zip(done or edited.faces, edited.faces, strict=True)
            done = [replace(new, refused=old.refused and new.refused) for old, new in both]
        if done is None:
            raise InputError("; ".join(refused))
        passed_over = faces.passed_over if isinstance(faces, Faces) else 0
        return EditedPhoto(photo, mask, done, passed_over, tuple(f"without {line}" for line in refused))


def _told_as(feature: str) -> str:
    """What a feature's parameters begin with: dots part keys, so a file of the user's goes by its stem."""
    return Path(feature).stem if is_own_file(feature) else feature


def _of(params: Params, feature: str) -> Params:
    own = params.get(feature, {})
    if not isinstance(own, Mapping):
        raise InputError(f"--set {feature}={own}: give its parameters, as in --set {feature}.degree=0.5")
    return own
