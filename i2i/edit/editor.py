"""Edits whole photos: faces found and aligned, each edited in one pass, and only what changed pasted back.

The network sees an aligned crop at its own size and says, pixel by pixel, how the photo's colours are to be scaled and
shifted, and of an edit that moves also where in the photo they are taken from.
These maps are brought to the photo's resolution and applied to the photo itself, so its own fine detail stays; pixels
where the predicted mask is zero keep their bits.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from stylepairs.datagen.features import load_feature
from stylepairs.datagen.images.files import to_float
from stylepairs.datagen.images.stored import eight_bits
from stylepairs.datagen.portraits.alignment import apply_transform, crop_aligned, square_transform
from stylepairs.datagen.portraits.analysis.detection import Face, Faces
from stylepairs.datagen.portraits.landmarks import eyes_and_mouth
from stylepairs.datagen.portraits.light import light_of
from stylepairs.datagen.portraits.portrait import Portrait, bare_portrait
from stylepairs.datagen.portraits.sketch import Sketch, SketchRefused
from stylepairs.datagen.recipe import validate_params
from stylepairs.datagen.shell.errors import InputError
from stylepairs.i2i.edit.beyond_crop import EditMaps, cut_off, extended, margin_px, reaches_border
from stylepairs.i2i.edit.paste import paste
from stylepairs.i2i.models.conditions import WITH_COLOR, crop_px_of, style_in_light, style_of, told_names, untold
from stylepairs.i2i.models.glean import moved_by
from stylepairs.i2i.models.plain import makes_anew
from stylepairs.i2i.models.restoration import FEATURE, RESTORATION

if TYPE_CHECKING:
    from pydantic import BaseModel

    from stylepairs.datagen.portraits.analysis.analyser import FaceAnalyser
    from stylepairs.i2i.models.checkpoints import ModelInfo
    from stylepairs.i2i.models.glean import Edit
    from stylepairs.i2i.models.prepared_glean import Network

MIN_SCORE = 0.5
# A face of which the network is less sure is left as it is; 0.5 is what training divides at.
LEAST_CONFIDENCE = 0.5
# Below this degree an edit fades out, so that none is nothing: to networks the degree is one hint among others.
FADES_BELOW = 0.1
# Faces of one photo that go through the network together: bounds the memory.
_BATCH = 8
# How far beyond [0,1] a region's shares may lie: blurring and resizing do not end at 1 exactly.
_ROUNDING = 1e-3


@dataclass(frozen=True)
class FaceEdit:
    """What was done to one face: its box (x0, y0, x1, y1) in photo pixels, the detector's score; refused: why not;
    confidence in [0,1] that the feature applies to it."""

    box: tuple[float, float, float, float]
    score: float
    refused: str | None = None
    confidence: float = 1.0


@dataclass(frozen=True)
class EditedPhoto:
    """pixels [H,W,3] RGB of the photo's type; mask [H,W] float16 in [0,1], how much of each pixel was edited (0: it
    kept its bits); faces: what was done to each face that was found, the largest first; passed_over: how many more
    places that may hold one were too many to be looked at; notes: what else is to be said."""

    pixels: np.ndarray
    mask: np.ndarray
    faces: list[FaceEdit]
    passed_over: int = 0
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Wanted:
    """A checked edit: the feature's parameters, the degree in [0,1], and the network's style code [S] of them."""

    params: BaseModel
    degree: float
    style: torch.Tensor


class Placed(NamedTuple):
    """An edit as maps over a square of the photo, the transform [2,3] of the photo onto it, and the confidence."""

    maps: EditMaps
    transform: np.ndarray
    confidence: float


class Unsure(NamedTuple):
    """Of a face that is left as it is: the confidence, too low, and what to say of it."""

    confidence: float
    why: str


class Editor:
    """A trained network with all that it needs to edit photos: made once, called for each photo.

    >>> editor = Editor.load("embedded")  # doctest: +SKIP
    >>> edited = editor(photo, {"color": "blond"}, degree=0.7)  # doctest: +SKIP
    >>> [face.refused for face in edited.faces]  # doctest: +SKIP
    [None]
    """

    def __init__(self, model: Network, info: ModelInfo, analyser: FaceAnalyser | None = None, strict: bool = False):
        """model: fastest as `prepared_glean.prepare` gives it, on the device that is to be used; info: what its file
        says of it. analyser: finds faces, and parses them where edits are judged; None does for `edit_portrait`.
        strict: faces of photos that the feature refuses are left, however sure the network is; each is parsed for
        that, a video's are not."""
        self.model, self.info, self.analyser, self.strict = model, info, analyser, strict
        self.feature = FEATURE if info.feature == RESTORATION else load_feature(info.feature)

    @classmethod
    def load(
        cls, source: str | Path, *, device: str = "auto", landmarks: str = "embedded", strict: bool = False
    ) -> Editor:
        """The editor of a run folder, a .safetensors file, or "embedded" (the shipped weights), ready for use.

        device: "cpu", "cuda" or "auto"; landmarks: as in `load_analyser`; strict: as in `Editor`. Raises InputError for
        what cannot be loaded.
        """
        from stylepairs.datagen.portraits.analysis.analyser import load_analyser
        from stylepairs.datagen.shell.machine import choose_device
        from stylepairs.i2i.models.checkpoints import load_model
        from stylepairs.i2i.models.prepared_glean import prepare

        model, info = load_model(source)
        return cls(prepare(model.to(choose_device(device))), info, load_analyser(landmarks), strict)

    def __call__(
        self,
        photo: np.ndarray,
        params: Mapping[str, Any] | None = None,
        *,
        degree: float | None = None,
        region: np.ndarray | None = None,
        min_score: float = MIN_SCORE,
        faces: Sequence[Face] | None = None,
    ) -> EditedPhoto:
        """Edit every face of a photo of any size; the photo itself is left as it is.

        photo uint8 or uint16 [H,W,3] sRGB, upright; params: the feature's parameters, say which kind of edit, for
        example {"color": "blond"}; degree in [0,1]: how much of it (None: what params say, else 1); region [H,W] in
        [0,1]: how much of each pixel may be edited (None: all of it); min_score: least score of a face; faces: those of
        `find`, where they are known. Raises InputError for parameters that the feature does not know or the network is
        not told, for a photo without a face, and when the feature applies to none.
        """
        wanted = self.asked(params or {}, degree)
        _check_region(region, photo)
        found = self.find(photo, min_score) if faces is None else faces
        result, mask, done = photo.copy(), np.zeros(photo.shape[:2], np.float16), []
        eight = eight_bits(photo)
        left = [self._refusal(eight, face.points68, wanted) if self.strict else None for face in found]
        asked = [face.points68 for face, why in zip(found, left, strict=True) if why is None]
        edits = self.placed_faces(eight, asked, wanted)
        for face, why in zip(found, left, strict=True):
            edit = next(edits) if why is None else Unsure(0.0, why)
            refused = edit.why if isinstance(edit, Unsure) else None
            if isinstance(edit, Placed):
                paste(result, photo, mask, edit.maps, edit.transform, region)
            x0, y0, x1, y1 = (float(value) for value in face.box)
            done.append(FaceEdit((x0, y0, x1, y1), float(face.score), refused, edit.confidence))
        if all(face.refused for face in done):
            raise InputError("; ".join(sorted({str(face.refused) for face in done})) or "no face is given to be edited")
        return EditedPhoto(result, mask, done, found.passed_over if isinstance(found, Faces) else 0)

    def find(self, photo: np.ndarray, min_score: float = MIN_SCORE) -> Sequence[Face]:
        """The faces of a photo uint8 or uint16 [H,W,3], the largest first; InputError where there is none."""
        assert self.analyser is not None, "made without an analyser, which finds the faces"
        found = self.analyser.find(eight_bits(photo), min_score)
        if not found:
            raise InputError(
                f"no face found with a score of at least {min_score:g}; pass a lower --min-score or crop closer"
            )
        return found

    def wanted(self, params: Mapping[str, Any], degree: float | None = None) -> Wanted:
        """The edit that parameters ask for, checked before any photo is touched; raises InputError.

        degree None: the parameters' "degree", else the feature's "intensity", else 1.
        """
        own = {name: value for name, value in params.items() if name != "degree"}
        if degree is None:
            degree = params.get("degree", params.get("intensity", 1.0))
        if isinstance(degree, bool) or not isinstance(degree, int | float | np.floating) or not 0 <= degree <= 1:
            raise InputError(f"degree {degree!r}: must be a number from 0 (nothing) to 1 (all of it)")
        checked = validate_params(self.feature.Params, own, self.info.feature)
        style = style_of(self.info.style, checked.model_dump(), self.info.kinds, self.info.feature)
        return Wanted(checked, float(degree), style)

    def asked(self, params: Mapping[str, Any], degree: float | None = None) -> Wanted:
        """As `wanted`, for an edit that is not measured: what the network is not told would change nothing, and is
        refused."""
        wanted, info = self.wanted(params, degree), self.info
        for name in untold(info.style, params, info.kinds):
            told = " and ".join([*told_names(info.style, info.kinds), "degree"])
            raise InputError(f"{name}: changes nothing, as this model is told {told} alone; leave it out")
        return wanted

    def edit_portrait(self, portrait: Portrait, wanted: Wanted) -> tuple[Edit, Sketch]:
        """One pass over an aligned portrait of the network's size: the edit (batch of one, output clamped to [-1,1])
        and the feature's sketch. Raises SketchRefused (an InputError) when the feature does not apply to it.
        """
        sketch = self._sketch(portrait, wanted)
        return self.edit_crop(*self._inputs(portrait, wanted)), sketch

    def _sketch(self, portrait: Portrait, wanted: Wanted) -> Sketch:
        """The feature's sketch. Raises SketchRefused, also where it would run backwards."""
        sketch: Sketch = self.feature.sketch(portrait, wanted.params)
        if sketch.backwards:
            raise SketchRefused(f"{portrait.name}: {self.info.feature} makes a before half of it; nothing to edit")
        return sketch

    def _refusal(self, photo: np.ndarray, points68: np.ndarray, wanted: Wanted) -> str | None:
        """Why the feature refuses a face of a photo uint8 [H,W,3]; None: it does not."""
        from stylepairs.datagen.portraits.analysis.analyser import portrait_of

        assert self.analyser is not None, "made without an analyser, which parses the faces"
        size_px = self.model.size_px
        portrait, _ = portrait_of(self.info.feature, photo, points68, crop_px_of(size_px), self.analyser.parser)
        try:
            self._sketch(portrait.resized(size_px), wanted)
        except SketchRefused as refused:
            return str(refused).removeprefix(f"{portrait.name}: ")
        return None

    def edit_crop(self, photo: torch.Tensor, region: torch.Tensor, degree: torch.Tensor, style: torch.Tensor) -> Edit:
        """What `edit` does to an aligned crop of the network's size, a batch of one, output clamped to [-1,1]: fainter
        below a degree of 0.1, nothing where the network is unsure that the feature applies.

        photo [3,S,S] in [-1,1]; region [1,S,S] in [0,1]; degree: a number; style [C], in the photo's light.
        """
        edit = self._pass([(photo, region, degree, style)])[0]
        if float(edit.confidence) < LEAST_CONFIDENCE:
            edit = edit._replace(mask=torch.zeros_like(edit.mask), output=photo[None].to(edit.output))
        return edit

    def _inputs(self, face: Portrait, wanted: Wanted) -> tuple[torch.Tensor, ...]:
        """What the network is given of one face, whose light says how a colour looks in it; it decides alone where."""
        image, style = face.image, wanted.style
        if self.info.style in WITH_COLOR:
            style = style_in_light(self.info.style, style, light_of(face))
        return image, torch.ones_like(image[:1]), torch.tensor(wanted.degree), style

    @torch.no_grad()
    def _pass(self, inputs: Sequence[tuple[torch.Tensor, ...]]) -> list[Edit]:
        """Faces through the network together: the edit of each, a batch of one."""
        device = next(self.model.parameters()).device
        photo, region, degree, style = (torch.stack(each).to(device) for each in zip(*inputs, strict=True))
        edit: Edit = self.model(photo, region, degree, style)
        share = (degree / FADES_BELOW).clamp(max=1)[:, None, None, None]
        mask, output = share * edit.mask, photo.lerp(edit.output.clamp(-1, 1), share)
        if self.model.config.moves:  # half an edit moves half as far; between two pictures there are both
            output = moved_by(photo, mask, edit.flow, edit.gain, edit.bias).clamp(-1, 1)
        edit = edit._replace(mask=mask, output=output)
        return [type(edit)(*(tensor[index : index + 1] for tensor in edit)) for index in range(len(inputs))]

    def placed_faces(
        self, photo: np.ndarray, points68: Sequence[np.ndarray], wanted: Wanted
    ) -> Iterator[Placed | Unsure]:
        """Of each face the edit and where it goes (see `_placed`), or why there is none."""
        for start in range(0, len(points68), _BATCH):
            batch = points68[start : start + _BATCH]
            inputs = [self._inputs(self._portrait(photo, points), wanted) for points in batch]
            for points, edit in zip(batch, self._pass(inputs), strict=True):
                yield self._placed(photo, points, wanted, edit)

    def _placed(self, photo: np.ndarray, points68: np.ndarray, wanted: Wanted, edit: Edit) -> Placed | Unsure:
        """The edit as maps over a square of the photo, and the transform [2,3] of the photo onto that square.

        It is the aligned crop's, or, where the edit recolours and is cut off by the crop, a wider one.
        """
        confidence = float(edit.confidence)
        if confidence < LEAST_CONFIDENCE:
            asked = f"confidence {confidence:.2f} that {self.info.feature} can be applied"
            return Unsure(confidence, f"{asked}, at least {LEAST_CONFIDENCE:g} is needed")
        side = self.model.size_px
        gain, bias = (x[0].permute(1, 2, 0).cpu().numpy() for x in (edit.gain, edit.bias * 127.5))
        moves = self.model.config.moves
        flow = (edit.flow[0] * side).permute(1, 2, 0).cpu().numpy() if moves else None
        maps = EditMaps(gain, bias, edit.mask[0, 0].cpu().numpy(), flow)
        transform = square_transform(eyes_and_mouth(np.asarray(points68, np.float64)), side)
        # What is drawn anew, or moved, cannot be continued by scaling and shifting the photo.
        if reaches_border(maps) and self.feature.keeps_texture and not makes_anew(self.model.config) and not moves:
            margin = margin_px(side)
            transform[:, 2] += margin
            wide = self._wide_mask(photo, points68, wanted, side + 2 * margin)
            return Placed(extended(maps, wide), transform, confidence)
        return Placed(cut_off(maps), transform, confidence)

    def _wide_mask(self, photo: np.ndarray, points68: np.ndarray, wanted: Wanted, wide_px: int) -> np.ndarray:
        """Where the network edits in a wider square, [W,W], by a second look."""
        seen = self._inputs(self._portrait(photo, points68, wide_px / self.model.size_px), wanted)
        mask = F.interpolate(self._pass([seen])[0].mask.cpu(), size=(wide_px, wide_px), mode="bilinear")
        region: np.ndarray = mask[0, 0].numpy()
        return region

    def _portrait(self, photo: np.ndarray, points68: np.ndarray, share: float = 1.0) -> Portrait:
        """A face's crop, not parsed, `share` times FFHQ's square, at the network's size."""
        points, taken_px = np.asarray(points68, np.float64), crop_px_of(self.model.size_px)
        transform = square_transform(eyes_and_mouth(points), taken_px, share)
        portrait = bare_portrait("face", to_float(crop_aligned(photo, transform, taken_px)))
        moved = torch.from_numpy(apply_transform(transform, points)).float()
        return replace(portrait, points68=moved).resized(self.model.size_px)


def _check_region(region: np.ndarray | None, photo: np.ndarray) -> None:
    """Raises InputError for a region of another shape than the photo's, or with values beyond [0,1]."""
    if region is None:
        return
    if region.shape != photo.shape[:2]:
        raise InputError(f"region of shape {region.shape}: must be as the photo's, {photo.shape[:2]}")
    if not (region.min() >= -_ROUNDING and region.max() <= 1 + _ROUNDING):
        raise InputError(f"region from {region.min():g} to {region.max():g}: must be shares from 0 to 1")
