"""What an image is scored by: built-in attributes, figures of product features, users' classifier files.

One name is one figure: "smile", "hair_color.color_delta_e?color=blond", "my/beauty.pt", "my/ages.onnx#3@112" (the
fourth output, at 112 px).
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from stylepairs.datagen.features import load_feature
from stylepairs.datagen.latent.attributes import ATTRIBUTES
from stylepairs.datagen.latent.classifier_files import SUFFIXES, Classifier, load_classifier
from stylepairs.datagen.latent.faces import FaceReader, SeenFaces, load_reader
from stylepairs.datagen.portraits.portrait import Portrait
from stylepairs.datagen.portraits.sketch import AnalysedPair, SketchRefused
from stylepairs.datagen.recipe import parse_yaml, validate_params
from stylepairs.datagen.shell.errors import InputError, nearest

FACE = "face_score"  # comes with every scoring: how sure it is that the image is a face
LEAST_FACE = 0.5  # below it a sample is out of distribution, and no method learns from it
_FILE = re.compile(r"(?P<path>.+?\.(?:pt|ts|onnx))(?:#(?P<output>\d{1,4}))?(?:@(?P<side>\d{2,4}))?")
_FIGURE = re.compile(r"(?P<feature>[a-z_]+)\.(?P<figure>[a-z_]+)(?:\?(?P<params>.+))?")

# Both halves of a batch's look: the image as generated [N,3,H,W], and what is seen in it.
Read = Callable[[torch.Tensor, SeenFaces], torch.Tensor]


@dataclass(frozen=True)
class Score:
    """One figure of an image; classes: where in the picture it lies, () everywhere."""

    name: str
    read: Read
    differentiable: bool
    classes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Scorer:
    """Several figures of images at once; digest: of all networks that they are read by."""

    scores: tuple[Score, ...]
    reader: FaceReader
    digest: str

    @property
    def names(self) -> list[str]:
        return [score.name for score in self.scores]

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        """image [N,3,H,W] in [-1,1] -> figures [N,K], NaN where a face has no such figure, with gradients.

        Raises InputError for a score that has none, where gradients are asked for.
        """
        seen = self.reader.read(image)
        if torch.is_grad_enabled() and image.requires_grad:
            self.check_gradients()
        return self.of_seen(image, seen)

    def check_gradients(self) -> None:
        """Raises InputError for a score that has none."""
        for score in self.scores:
            if not score.differentiable:
                raise InputError(f"{score.name}: has no gradient, which this method needs; give it as TorchScript")

    def of_seen(self, image: torch.Tensor, seen: SeenFaces) -> torch.Tensor:
        """The same figures [N,K] of what `reader` has seen in the images."""
        return torch.stack([score.read(image, seen) for score in self.scores], 1)

    @torch.no_grad()
    def with_face(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Figures [N,K], and how sure it is that each image is a face [N]."""
        seen = self.reader.read(image)
        figures = self.of_seen(image, seen) if self.scores else image.new_zeros(len(image), 0)
        return figures, seen.score


def load_scorer(names: Sequence[str], device: str = "cpu") -> Scorer:
    """The scorer of these names, see the file's docstring. Raises InputError."""
    twice = sorted({name for name in names if list(names).count(name) > 1})
    if twice:
        raise InputError(f"{twice[0]}: is named twice; name each score once")
    reader = load_reader().to(device)
    files: dict[tuple[str, int | None], Classifier] = {}
    scores = tuple(_score(name, files) for name in names)
    digests = [reader.digest, *(classifier.digest for classifier in files.values())]
    return Scorer(scores, reader, hashlib.sha256("".join(digests).encode()).hexdigest())


def _score(name: str, files: dict[tuple[str, int | None], Classifier]) -> Score:
    if name in ATTRIBUTES:
        each = ATTRIBUTES[name]
        return Score(name, lambda _image, seen: each.read(seen), True, each.classes)
    if match := _FILE.fullmatch(name):
        side = int(match["side"]) if match["side"] else None
        key = (match["path"], side)
        if key not in files:
            files[key] = load_classifier(Path(match["path"]), side)
        return _of_file(name, files[key], int(match["output"] or 0))
    if match := _FIGURE.fullmatch(name):
        return _of_feature(name, match["feature"], match["figure"], match["params"] or "")
    kinds = f"an attribute, a file ({', '.join(SUFFIXES)}) or feature.figure"
    raise InputError(
        f"score {name!r}: is not {kinds}{nearest(name, ATTRIBUTES, 'attributes: ' + ', '.join(ATTRIBUTES))}"
    )


def _of_file(name: str, classifier: Classifier, output: int) -> Score:
    if output >= classifier.outputs:
        raise InputError(f"{name}: the file gives {classifier.outputs} outputs, the first is #0")
    return Score(name, lambda image, _seen: classifier.score(image)[:, output].to(image), classifier.differentiable)


def _of_feature(name: str, feature_name: str, figure: str, text: str) -> Score:
    """A figure of a product feature's `measure`, of the image beside itself: "how far is it from blond"."""
    feature = load_feature(feature_name)
    try:
        given = {key: parse_yaml(value) for key, _, value in (part.partition("=") for part in text.split("&") if part)}
    except ValueError as error:
        raise InputError(f"{name}: {error}") from None
    params = validate_params(feature.Params, given, name)

    def read(image: torch.Tensor, seen: SeenFaces) -> torch.Tensor:
        found = []
        for index in range(len(image)):
            portrait = _portrait(seen, index)
            try:
                figures = feature.measure(portrait, AnalysedPair(portrait, portrait), params)
            except SketchRefused:
                figures = {figure: math.nan}
            if figure not in figures:
                known = f"{feature_name} measures {', '.join(figures)}"
                raise InputError(f"{name}: no such figure{nearest(figure, figures, known)}")
            found.append(figures[figure])
        return image.new_tensor(found)

    return Score(name, read, False)


def _portrait(seen: SeenFaces, index: int) -> Portrait:
    image = seen.image[index].detach()
    label = seen.classes[index].argmax(0).to(torch.uint8)
    points = seen.points68[index].detach() * image.shape[-1] - 0.5
    return Portrait(f"sample {index}", image, label, seen.hair[index].detach(), points, "")
