"""Makes pairs of pictures that others edited: outside the edit the before to the bit, judged by the recipe's gate and
by bounds on what came."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from pydantic import BaseModel

from stylepairs.datagen.build import quality
from stylepairs.datagen.build.models import Models
from stylepairs.datagen.build.pair_maker import invert_pairs, reconstruct_pairs
from stylepairs.datagen.build.settings import BuildRecipe, GateSettings, Threshold
from stylepairs.datagen.build.unfinished_pair import (
    PairAnalyser,
    UnfinishedPair,
    WantedPair,
    figures_of,
    mask_pixels,
    record_of,
    stage_figures,
    with_latents,
)
from stylepairs.datagen.compositing.compose import region_mask, with_part
from stylepairs.datagen.features.feature import Feature
from stylepairs.datagen.images.files import to_uint8
from stylepairs.datagen.importing.difference import CLEAR, changed, difference, noise_level
from stylepairs.datagen.importing.laying import (
    Laid,
    Pictures,
    largest_face,
    lay_over,
    mask_in_crop,
    read_pair,
)
from stylepairs.datagen.pairs import shards
from stylepairs.datagen.pairs.record import Pair
from stylepairs.datagen.portraits.landmarks import eye_distance
from stylepairs.datagen.portraits.portrait import CLASS, bare_portrait
from stylepairs.datagen.portraits.regions import feather
from stylepairs.datagen.portraits.sketch import Sketch, SketchRefused
from stylepairs.datagen.shell.durable import file_digest
from stylepairs.datagen.shell.errors import as_text

# Bounds on the pictures as they came, besides the recipe's; `gate.import_...` of a recipe replaces them.
IMPORT_GATE: GateSettings = {
    "import_shift": Threshold(max=0.05, optional=True),
    "import_landmark_shift": Threshold(max=0.08, optional=True),
    "import_person_changed": Threshold(max=0.1, optional=True),
    "import_background_changed": Threshold(max=0.1, optional=True),
    "import_cast": Threshold(max=50.0, optional=True),
}
# What a bound that is missed means.
_MEANS = {
    "import_shift": "moved too far",
    "import_landmark_shift": "another face or pose",
    "import_person_changed": "the person differs outside the edit",
    "import_background_changed": "the background differs",
    "import_cast": "another light",
}
# Figures of latents and of their optimisation, which the pictures do not depend on.
_OF_LATENTS = ("prior_", "inversion_", "reconstruction_")
_INNER_POINTS = slice(17, 68)
# Fewer landmarks that no edit moves say nothing of the pose; of the crop, less area nothing of what changed there.
_LEAST_POINTS, _LEAST_AREA = 8, 0.01
_TOGETHER = 16  # pairs whose latents are sought together


@dataclass(frozen=True)
class Importer:
    """Makes pairs of pictures, `size_px` a side; with_latents: the generator's latents of both halves are sought, too,
    for those that are accepted, so that they can be augmented."""

    recipe: BuildRecipe
    seed: int
    feature: Feature
    models: Models
    size_px: int
    with_latents: bool
    cache: Path
    made_by: str

    def make(self, pictures: Sequence[Pictures], first: int, advance: Callable[[float], None]) -> Iterator[Pair]:
        """The pairs, in order, whose numbers begin at `first`, accepted or not."""
        analyser = PairAnalyser(self.models.instruments.analyser)
        together = _TOGETHER if self.with_latents else 1
        for start in range(0, len(pictures), together):
            group = enumerate(pictures[start : start + together], first + start)
            made = [self._pair(shards.pair_id(number), one, analyser) for number, one in group]
            self._find_latents([unfinished for pair, unfinished in made if pair.record.accepted], advance)
            for one, (pair, unfinished) in zip(pictures[start : start + together], made, strict=True):
                if unfinished.reconstruction is None:
                    advance(1)
                finished = self._finished(pair, unfinished)
                yield finished.turned() if one.backwards and finished.after is not None else finished

    def _pair(self, id: str, pictures: Pictures, analyser: PairAnalyser) -> tuple[Pair, UnfinishedPair]:
        params = self.feature.Params.model_validate(pictures.params)
        blank = bare_portrait(pictures.name, torch.zeros(3, 1, 1))  # as long as the before shows no face
        unfinished = UnfinishedPair(WantedPair(id, blank, pictures.params, ""), params)
        try:
            laid, unfinished = self._laid(id, pictures, params, unfinished)
        except SketchRefused as refusal:
            unfinished.refused = str(refusal)
            before = None if unfinished.portrait.size_px == 1 else to_uint8(unfinished.portrait.image)
            return Pair(record_of(unfinished, self.recipe, self.seed, "", [unfinished.refused]), before), unfinished
        return self._judged(laid, unfinished, pictures, analyser), unfinished

    def _laid(
        self, id: str, pictures: Pictures, params: BaseModel, unfinished: UnfinishedPair
    ) -> tuple[Laid, UnfinishedPair]:
        analyser = self.models.instruments.analyser
        assert analyser is not None  # the plan asked for it
        before, after, mask, source = read_pair(pictures)
        portrait, move = largest_face(pictures.name, before, self.size_px, analyser)
        portrait = portrait.to(self.models.device)
        unfinished.wanted = WantedPair(id, portrait, pictures.params, source)
        unfinished.params = self.feature.settled(portrait, params)
        sketch = self.feature.sketch(portrait, unfinished.params)
        if sketch.backwards and not pictures.backwards:
            raise SketchRefused(f"{pictures.name}: its before shows nothing for {self.recipe.feature} to change")
        given = None if mask is None else mask_in_crop(mask, before, move, self.size_px).to(self.models.device)
        return lay_over(portrait, move, (before, after), given, sketch, analyser), unfinished

    def _judged(self, laid: Laid, unfinished: UnfinishedPair, pictures: Pictures, analyser: PairAnalyser) -> Pair:
        portrait = laid.portrait
        distance = difference(portrait.image, laid.after).cpu().numpy()
        edit = _edit_mask(laid, distance)
        sketch = replace(
            laid.sketch, image=laid.after, edit_mask=edit, keep_mask=1 - region_mask(edit), space="rgb",
            reference_px=self.size_px, photo_detail=0.0, sketch_detail=0.0, parts=(), backwards=pictures.backwards,
        )  # fmt: skip
        after = with_part(portrait.image, portrait.image, laid.after, sketch).clamp(-1, 1)
        images = quality.Images(portrait.image, laid.after, after, region_mask(edit))
        unfinished.sketch = replace(sketch, image=after, sketch_detail=1.0)
        unfinished.figures = import_figures(laid, distance) | {"import_region": float((edit > 0.5).float().mean())}
        unfinished.figures |= figures_of(unfinished, sketch, images, None, self.feature, self.models, analyser)
        reasons = self._reasons(unfinished.figures)
        if not bool((edit > 0.5).any()):
            reasons.append("no difference can be seen where the edit was to be")
        record = record_of(unfinished, self.recipe, self.seed, "", reasons)
        record = replace(record, origin=self._origin(laid, pictures))
        return Pair(
            record,
            before=to_uint8(portrait.image),
            after=to_uint8(after),
            mask=mask_pixels(images.mask),
            sketch=to_uint8(laid.after),
            edit_mask=mask_pixels(edit),
        )

    def _reasons(self, figures: dict[str, float]) -> list[str]:
        gate = IMPORT_GATE | {name: b for name, b in self.recipe.gate.items() if not name.startswith(_OF_LATENTS)}
        _, reasons = quality.judge(figures, gate)
        return [f"{_MEANS[name]}: {why}" if (name := why.split()[0]) in _MEANS else why for why in reasons]

    def _origin(self, laid: Laid, pictures: Pictures) -> dict[str, str]:
        """How the pair came to be, as text."""
        found = {
            "before": as_text(pictures.before.name),
            "after": as_text(pictures.after.name),
            "after_sha256": file_digest(pictures.after),
            "shift_px": _text(laid.shift_px),
            "gain": _text(laid.gain),
            "offset": _text(laid.offset),
            "mask": "found" if pictures.mask is None else as_text(pictures.mask.name),
        }
        return found | ({"made_by": self.made_by} if self.made_by else {})

    def _find_latents(self, accepted: list[UnfinishedPair], advance: Callable[[float], None]) -> None:
        if self.with_latents and accepted:
            invert_pairs(self.recipe.inversion, accepted, self.models, self.cache, advance)
            reconstruct_pairs(self.recipe, accepted, self.models, advance)

    def _finished(self, pair: Pair, unfinished: UnfinishedPair) -> Pair:
        """The pair with the latents that were found; rejected where none were."""
        if not self.with_latents or not pair.record.accepted:
            return pair
        reasons = [unfinished.refused] if unfinished.refused else []
        result, models = unfinished.reconstruction, self.models
        figures = pair.record.figures | stage_figures(unfinished)
        if result is not None and not reasons:
            latents = torch.stack([result.ws_before, result.ws_after])
            before, after = models.instruments.prior.distance(latents).tolist()
            figures |= {"prior_before": before, "prior_after": after}
            pair = with_latents(pair, result)
        record = replace(
            pair.record, accepted=not reasons, reasons=reasons, figures=figures, generator_digest=models.digest
        )
        return replace(pair, record=record)


def import_figures(laid: Laid, distance: np.ndarray) -> dict[str, float]:
    """How well two pictures go together; distance [S,S]: of `difference`.

    import_shift: how far the after lay from the before, as a share of the crop. import_correlation: of both where they
    are alike. import_cast: largest change, 0..255, of a middle grey by the cast. import_noise: distance in Lab that is
    left outside the edit. import_person_changed, import_background_changed: shares of the person and of the background
    outside the edit that clearly differ. import_landmark_shift: mean shift of the landmarks that the edit does not
    move, in eye distances.
    """
    background = (laid.portrait.label == CLASS["background"]).cpu().numpy()
    figures = {
        "import_shift": laid.shift_share,
        "import_correlation": laid.correlation,
        "import_cast": float(np.abs(127.5 * (laid.gain - 1) + laid.offset).max()),
        "import_noise": noise_level(distance, laid.outside),
    }
    for name, where in (("person", ~background), ("background", background)):
        area = laid.outside & where
        share = float((distance[area] > CLEAR).mean()) if area.mean() > _LEAST_AREA else 0.0
        figures[f"import_{name}_changed"] = share
    points = laid.portrait.points68.cpu().numpy()
    still = _untouched(points, laid.sketch)
    if still.sum() >= _LEAST_POINTS:
        shift = np.linalg.norm(laid.points68 - points, axis=1)[still].mean()
        figures["import_landmark_shift"] = float(shift / eye_distance(laid.portrait.points68))
    return figures


def _untouched(points: np.ndarray, sketch: Sketch) -> np.ndarray:
    """Which of the inner landmarks [68] lie where the feature changes nothing."""
    edited = sketch.edit_mask[0].cpu().numpy()
    x, y = np.clip(np.rint(points).astype(int), 0, edited.shape[0] - 1).T
    inner = np.zeros(68, bool)
    inner[_INNER_POINTS] = True
    still: np.ndarray = inner & (edited[y, x] < 0.1)
    return still


def _edit_mask(laid: Laid, distance: np.ndarray) -> torch.Tensor:
    """The edit [1,S,S] in [0,1]: as it was given, else where the pictures differ, within the feature's reach."""
    if laid.given is not None:
        return laid.given
    noise = noise_level(distance, laid.outside)
    found = changed(distance, noise) & ~laid.outside
    return feather(torch.from_numpy(found).float()[None].to(laid.after.device), 0.004)


def _text(values: Sequence[float] | np.ndarray) -> str:
    return " ".join(f"{value:.4f}" for value in values)
