"""How much light a photo was taken in, and what a colour looks like in it: hair asked to be blond in a dark photo is to
be blond in the dark.

Judged by pixels and landmarks alone, so that it is the same for pairs, whose portraits are parsed, and for photos that
are edited, which are not.
"""

from __future__ import annotations

import torch

from stylepairs.datagen.images.colors import lab_in_light, lightness_in_light, srgb_to_lab
from stylepairs.datagen.images.filters import mean_of
from stylepairs.datagen.portraits.landmarks import FACE_OUTLINE, LEFT_EYE, RIGHT_EYE
from stylepairs.datagen.portraits.portrait import Portrait
from stylepairs.datagen.portraits.regions import labelled, polygon
from stylepairs.datagen.portraits.sketch import SketchRefused

# L*: of 180 portraits' brightest parts (the face's, the eyes' whites, the whole crop's) 5 % are darker than the first;
# the middle one is the second. Cheeks and nose are lighter than the third in none of the 60 bundled photos.
_LEAST_WHITE, _USUAL_WHITE, _LIGHTEST_SKIN = 66.0, 80.0, 78.0
_MOST_LIGHT = 2.0  # more than that has clipped what could tell
# Landmarks around cheeks and nose, between eyes, jaw and mouth: skin, whatever hair, beard and glasses there are.
_CHEEKS = [1, 2, 3, 48, 31, 33, 35, 54, 13, 14, 15, 45, 46, 47, 42, 27, 39, 40, 41, 36]


def light_of(portrait: Portrait) -> float:
    """Light on the portrait, as a factor to that of a well exposed one: 1 for most, less in dark photos, more in
    overexposed ones.

    Judged by what is brightest in it, whatever the skin's tone: the face's highlights, the whites of the eyes, a collar
    or wall; and, of too much light, by skin that is lighter than skin can be.
    """
    lightness = srgb_to_lab(portrait.image)[0]
    skin = lightness[_inside(portrait, _CHEEKS)]
    if len(skin) and float(skin.median()) > _LIGHTEST_SKIN:
        return min(_MOST_LIGHT, lightness_in_light(float(skin.median()), _LIGHTEST_SKIN))
    brightest = float(torch.quantile(lightness.flatten(), 0.995))
    for part, share in ((_inside(portrait, FACE_OUTLINE), 0.98), (_inside(portrait, LEFT_EYE, RIGHT_EYE), 0.9)):
        if part.any():
            brightest = max(brightest, float(torch.quantile(lightness[part], share)))
    if brightest >= _LEAST_WHITE:
        return 1.0
    # Between a dim photo and a dark one the white that is expected rises to the usual one.
    span = _USUAL_WHITE - _LEAST_WHITE
    expected = _LEAST_WHITE + min(_LEAST_WHITE - brightest, span)
    return lightness_in_light(brightest, expected)


def refuse_print(portrait: Portrait, min_redness: float, why: str) -> None:
    """Raises SketchRefused, with why, where the face is less red than min_redness, as in a print in one colour."""
    redness = face_redness(portrait)
    if redness < min_redness:
        raise SketchRefused(
            f"{portrait.name}: the face has the colour of a print (redness a* {redness:.1f}, "
            f"min_redness {min_redness:g}); {why}"
        )


def face_redness(portrait: Portrait) -> float:
    """Mean a* of the face's skin as it would look in full light: of 260 portraits, 13 prints in one colour have 3.7 and
    less, all others 5.7 and more; infinite where no skin is labelled."""
    skin = labelled(portrait, "skin")
    if not bool(skin.any()):
        return float("inf")
    return float(lab_in_light(mean_of(srgb_to_lab(portrait.image), skin), 1 / light_of(portrait))[1])


def _inside(portrait: Portrait, *outlines: slice | list[int]) -> torch.Tensor:
    """Where the polygon of one of these rows of landmarks lies, bool [H,W]."""
    points = portrait.points68.cpu().numpy()
    return torch.stack([polygon(portrait, points[outline])[0] for outline in outlines]).amax(0) > 0.5
