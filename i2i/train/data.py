"""Training samples from the shards of pairs: accepted pairs only, split by source photo, augmented alike on every run.

All randomness of a sample comes from (seed, epoch, index), so it depends neither on the number of loader workers nor on
where a run was interrupted.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
import torch.nn.functional as F

from stylepairs.datagen.compositing.compose import region_mask, tightened
from stylepairs.datagen.images.files import to_float, to_uint8
from stylepairs.datagen.pairs.index import distinct, run_backwards, with_params
from stylepairs.datagen.pairs.record import Pair, PairRecord
from stylepairs.datagen.pairs.shards import load_pair
from stylepairs.datagen.portraits.light import light_of
from stylepairs.datagen.portraits.sketch import SketchRefused
from stylepairs.datagen.recipe import validate_params
from stylepairs.datagen.shell.errors import InputError
from stylepairs.datagen.shell.machine import available_cpus
from stylepairs.datagen.shell.storage.staged import Staged
from stylepairs.i2i.models.conditions import (
    BLACK,
    WITH_COLOR,
    Kinds,
    Style,
    asks_for_color,
    decode_color,
    encode_color,
    has_sides,
    is_told,
    style_in_light,
    style_of,
)
from stylepairs.i2i.train import augment
from stylepairs.i2i.train.losses import mean_color
from stylepairs.i2i.train.sides import Siblings, Unpaired, evenly_spaced, read_records

if TYPE_CHECKING:
    from stylepairs.i2i.train.settings import DataSettings

_PIXELS = ("before", "after", "mask", "edit_mask")
# Of one training process: loaders, and batches that each of them holds ready.
MOST_WORKERS = 8
BATCHES_AHEAD = 4
LEAST_WORKERS_AT_URL = 2
# Portraits without pairs are drawn again so often while they do not refuse, or do, as refused_share has it.
PORTRAIT_DRAWS = 4
TELLABLE = 25.0  # squared distance in Lab: over a shorter way the degree fades, as in `hair_color`

Sample = dict[str, torch.Tensor]


def calibration_inputs(
    pairs: Path, size_px: int, style: Style, kinds: Kinds, count: int = 48
) -> Iterator[dict[str, np.ndarray]]:
    """What an exported editor is given of so many training pairs, by its inputs' names, without a region.

    Pairs of kinds that it does not know are left out, as in training; InputError where it knows none.
    """
    records = read_records(pairs, "train")
    known = with_params(records, lambda params: is_told(style, params, kinds, records[0].feature))
    for record in evenly_spaced(known or records, count):
        sample = plain_sample(load_pair(pairs, record, _PIXELS), size_px, style, kinds)
        sample["region"] = torch.ones_like(sample["region"])
        names = ("photo", "region", "degree", *(("style",) if len(sample["style"]) else ()))
        yield {name: sample[name][None].numpy() for name in names}


class PairDataset(torch.utils.data.Dataset[Sample]):
    """Samples of records, addressed by (epoch, index); `settings` None leaves augmentation out (evaluation).

    A sample: photo, target [3,H,W] in [-1,1]; mask, edit_mask, region [1,H,W] in [0,1] (where the pair may differ; what
    the model's mask is to be; what it is told of it); degree [] in [0,1]; style [S]; ws [L,C], the edited face's
    latent; ws_valid [], 1 where that fits; applies [], 0 where the feature does not apply to the photo: it is then its
    own target. `refused`: such portraits, which settings.refused_share of the augmented samples are of. The indices
    beyond the records' are of `unpaired`.
    """

    def __init__(  # noqa: PLR0913 - what a sample is made of
        self,
        pairs: Path,
        records: Sequence[PairRecord],
        size_px: int,
        style: Style,
        latent_shape: tuple[int, int],
        generator_digest: str,
        settings: DataSettings | None = None,
        seed: int = 0,
        kinds: Kinds | None = None,
        refused: Sequence[PairRecord] = (),
        unpaired: Unpaired | None = None,
    ):
        self.pairs, self.records, self.refused, self.size_px = pairs, records, refused, size_px
        self.unpaired = unpaired
        # Of a pair that runs backwards the portrait is the outcome: it tells nothing of where to edit another.
        self.told = np.arange(0) if unpaired is None else np.flatnonzero(~run_backwards(records))
        if unpaired is not None and not len(self.told):
            raise InputError(
                f"{pairs}: all pairs run backwards, so that portraits without pairs cannot be asked for what they "
                "were; leave --portraits out"
            )
        if unpaired is not None:
            for params in distinct(records, "params"):
                validate_params(unpaired.feature.Params, params, f"{pairs}")
        self.style, self.kinds = style, kinds
        self.latent_shape, self.generator_digest = latent_shape, generator_digest
        if settings is not None and settings.flip_share and has_sides(distinct(records, "params")):
            settings = settings.model_copy(update={"flip_share": 0.0})
        self.settings, self.seed = settings, seed
        self.siblings = Siblings(records) if settings is not None and settings.from_after_share else None

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, key: tuple[int, int] | int) -> Sample:
        epoch, index = key if isinstance(key, tuple) else (0, key)
        rng = np.random.default_rng([self.seed, epoch, index])
        if index >= len(self.records):
            assert self.settings is not None
            sample = self.unpaired_sample(index - len(self.records), self.settings.refused_share, rng)
            return augmented_sample(sample, self.settings, self.style, rng)
        record = self.records[index]
        if self.settings is not None and self.refused and rng.random() < self.settings.refused_share:
            sample = self.refused_sample(int(rng.integers(len(self.refused))), record)
        else:
            sample = self.pair_sample(record)
            if self.settings is not None:
                photo = self.other_start(sample, index, self.settings, rng)
                if self.style == "color" and photo is not sample["photo"]:
                    sample["degree"] = degree_from(photo, sample)
                sample["photo"] = photo
        return sample if self.settings is None else augmented_sample(sample, self.settings, self.style, rng)

    def pair_sample(self, record: PairRecord) -> Sample:
        """A pair as it is, with its latent where it is this generator's."""
        pair = load_pair(self.pairs, record, (*_PIXELS, "latents"))
        sample = plain_sample(pair, self.size_px, self.style, self.kinds)
        sample["ws"] = torch.zeros(self.latent_shape)
        fits = pair.w_after is not None and pair.w_after.shape == self.latent_shape
        if fits and record.generator_digest == self.generator_digest:
            sample["ws"], sample["ws_valid"] = torch.from_numpy(pair.w_after).float(), torch.ones(())
        return sample

    def other_start(self, sample: Sample, index: int, settings: DataSettings, rng: np.random.Generator) -> torch.Tensor:
        """The photo of a pair's sample as another of the portrait's pairs made it, and painted in any colour inside the
        mask, in the shares that settings ask for, as the pair's edit covers both; its own where it is neither, or
        where its colour is to stay."""
        photo = sample["photo"]
        if self.style in WITH_COLOR and not asks_for_color(sample["style"]):
            return photo
        if self.siblings is not None and rng.random() < settings.from_after_share:
            photo = self.edited_before(sample, self.siblings.of(index), rng)
        if settings.painted_share and rng.random() < settings.painted_share:
            photo = augment.painted(photo, sample["edit_mask"], rng)
        return photo

    def edited_before(self, sample: Sample, siblings: np.ndarray, rng: np.random.Generator) -> torch.Tensor:
        """The after half of one of a sample's siblings; its own photo where there is none of the same mask."""
        if not len(siblings):
            return sample["photo"]
        record = self.records[int(rng.choice(siblings))]
        pair = load_pair(self.pairs, record, ("after", "mask"))
        if pair.after is None or pair.mask is None or not torch.equal(_mask(pair.mask, self.size_px), sample["mask"]):
            return sample["photo"]
        return _image(pair.after, self.size_px)

    def refused_sample(self, index: int, asked: PairRecord) -> Sample:
        """A portrait that the feature refused, with another pair's parameters and region, by which it is not to be told
        from the pairs: nothing of it is to change."""
        record = self.refused[index]
        before = load_pair(self.pairs, record, ("before",)).before
        if before is None:
            raise InputError(f"{record.shard}: pair {record.id} has no before; build it again")
        return self._refusal(_image(before, self.size_px), asked)

    def _refusal(self, photo: torch.Tensor, asked: PairRecord) -> Sample:
        nothing = {"ws_valid": torch.zeros(()), "applies": torch.zeros(())}
        return self.pair_sample(asked) | {"photo": photo, "target": photo} | nothing

    def unpaired_sample(self, index: int, refused_share: float, rng: np.random.Generator) -> Sample:
        """A portrait without a pair, asked for what some pair was, as far as it has room for it: its mask is where the
        feature's sketch would edit, its target stays the photo. It is this portrait, or one drawn in its place, so that
        as good as refused_share are refused by the sketch."""
        assert self.unpaired is not None
        feature, wants_refusal = self.unpaired.feature, rng.random() < refused_share
        for _ in range(PORTRAIT_DRAWS):
            record = self.records[self.told[int(rng.integers(len(self.told)))]]
            portrait = self.unpaired.files[index].load().resized(self.size_px)
            params = validate_params(feature.Params, record.params, f"{self.pairs}")
            try:
                params = feature.settled(portrait, params)
                told, sketch = params.model_dump(mode="json"), feature.sketch(portrait, params)
                # Of a pair that would run backwards the photo is the outcome: nothing is to be done to it.
                is_refused = sketch.backwards or not is_told(self.style, told, self.kinds or {}, record.feature)
                edit_mask = None if is_refused else sketch.edit_mask
            except SketchRefused:
                edit_mask = None
            if (edit_mask is None) == wants_refusal:
                break
            index = int(rng.integers(len(self.unpaired.files)))
        if edit_mask is None:
            return self._refusal(portrait.image, record)
        code = style_of(self.style, told, self.kinds, record.feature)
        style = style_in_light(self.style, code, light_of(portrait))
        masks = region_mask(edit_mask), edit_mask
        sample = _sample(portrait.image, portrait.image, masks, record.degree, style)
        return sample | {"ws": torch.zeros(self.latent_shape)}


def plain_sample(pair: Pair, size_px: int, style: Style, kinds: Kinds | None = None) -> Sample:
    """A pair as it is, at the model's size. Raises InputError when it lacks pixels or its style."""
    record = pair.record
    if pair.before is None or pair.after is None or pair.mask is None:
        raise InputError(f"{record.shard}: pair {record.id} has no before, after or mask; build it again")
    mask = _mask(pair.mask, size_px)
    masks = mask, tightened(mask) if pair.edit_mask is None else _mask(pair.edit_mask, size_px)
    code = style_of(style, record.params, kinds, record.feature)
    code = style_in_light(style, code, record.figures.get("light") or 1.0)
    return _sample(_image(pair.before, size_px), _image(pair.after, size_px), masks, record.degree, code)


def _sample(
    photo: torch.Tensor,
    target: torch.Tensor,
    masks: tuple[torch.Tensor, torch.Tensor],
    degree: float,
    style: torch.Tensor,
) -> Sample:
    """A sample of a photo that the feature applies to, but for its latent; masks: of where it changes, of the edit."""
    mask, edit_mask = masks
    return {
        "photo": photo,
        "target": target,
        "mask": mask,
        "edit_mask": edit_mask,
        "region": region_of(mask, edit_mask),
        "degree": torch.tensor(degree, dtype=torch.float32),
        "style": style,
        "ws_valid": torch.zeros(()),
        "applies": torch.ones(()),
    }


def region_of(mask: torch.Tensor, edit_mask: torch.Tensor) -> torch.Tensor:
    """What a model is told of a pair's masks [1,H,W]: as rough as an analyser is, and nothing of the edit cut off."""
    return torch.maximum(tightened(mask), edit_mask)


def augmented_sample(sample: Sample, settings: DataSettings, style: Style, rng: np.random.Generator) -> Sample:
    """The sample moved, recoloured and degraded, sometimes of a lower degree; every decision is drawn from rng."""
    kind, share = rng.random(), float(rng.uniform(0.1, 1.0))
    steps = augment.transforms_of(settings)
    pixels = {
        "image": to_uint8(sample["photo"]),
        "target": to_uint8(sample["target"]),
        "mask": to_uint8(sample["mask"]),
        "edit_mask": to_uint8(sample["edit_mask"]),
    }
    pixels, moved = augment.applied(steps.moving, rng, **pixels)
    mask, edit_mask = (torch.from_numpy(pixels.pop(name))[None].float() / 255 for name in ("mask", "edit_mask"))
    recoloured, changed = augment.applied(steps.recolouring, rng, **pixels)
    code = sample["style"]
    if style in WITH_COLOR and changed and asks_for_color(code):
        # The wanted colour follows what the recolouring did to the colour that was reached.
        before, after = (_inner_color(to_float(each["target"]), edit_mask) for each in (pixels, recoloured))
        color = code[:3] + encode_color(after) - encode_color(before)
        color[0] = color[0].clamp_min(BLACK)  # what is far below means the photo's own
        code = torch.cat([color, code[3:]])
    degraded, _ = augment.applied(steps.degrading, rng, image=recoloured["image"])
    clean, photo = to_float(recoloured["image"]), to_float(degraded["image"])
    # Some targets are the photo itself (degree 0), or blended towards it.
    if kind >= settings.identity_share + settings.blend_share:
        share = 1.0
    elif kind < settings.identity_share:
        share = 0.0
    target = clean.lerp(to_float(recoloured["target"]), share) if share else photo
    edited = mask * sample["applies"]
    return {
        "photo": photo,
        "target": photo + edited * (target - photo),  # outside the mask the photo stays as it came, degraded or not
        "mask": edited,
        "edit_mask": edit_mask * sample["applies"],
        "region": augment.region(region_of(mask, edit_mask), settings, rng),
        "degree": sample["degree"] * share,
        "style": code,
        "ws": sample["ws"],
        "ws_valid": sample["ws_valid"] * float(share == 1 and not (moved or changed)),
        "applies": sample["applies"],
    }


def degree_from(photo: torch.Tensor, sample: Sample) -> torch.Tensor:
    """How much of the way from a photo [3,H,W] to the wanted colour a sample's target goes, [] in [0,1], as the feature
    measures it; the pair's own degree is that from its own photo, and stays where too little is edited to tell."""
    if not (sample["edit_mask"] > 0.5).any():
        return sample["degree"]
    own, reached = (_inner_color(image, sample["edit_mask"]) for image in (photo, sample["target"]))
    way = decode_color(sample["style"]) - own
    return (torch.dot(reached - own, way) / way.square().sum().clamp_min(TELLABLE)).clamp(0, 1)


def mixed_batches(
    counts: tuple[int, int], sizes: tuple[int, int], seed: int, first_step: int, steps: int, rank: int, world: int
) -> Iterator[list[tuple[int, int]]]:
    """As `batches`, of two sets: so many samples of the first, then so many of the second, whose indices go on from the
    first's."""
    pairs, portraits = (
        batches(count, size, seed, first_step, steps, rank, world) for count, size in zip(counts, sizes, strict=True)
    )
    for first, second in zip(pairs, portraits, strict=True):
        yield first + [(epoch, counts[0] + index) for epoch, index in second]


def batches(
    count: int, batch_size: int, seed: int, first_step: int, steps: int, rank: int, world: int
) -> Iterator[list[tuple[int, int]]]:
    """(epoch, index) of every sample of this process's batches, for steps first_step..steps-1.

    Each epoch is one permutation drawn from (seed, epoch), dealt out to the processes in turn; batches run across
    epochs, so that small sets fill them. A step's batch is the same whether or not the run was interrupted before it.
    """
    epoch, order = -1, np.arange(0)
    for step in range(first_step, steps):
        batch = []
        for slot in range(batch_size):
            position = (step * world + rank) * batch_size + slot
            if position // count != epoch:
                epoch = position // count
                order = np.random.default_rng([seed, epoch]).permutation(count)
            batch.append((epoch, int(order[position % count])))
        yield batch


def load_batches(
    dataset: PairDataset, plan: Iterable[list[tuple[int, int]]], device: torch.device, workers: int | None
) -> Iterator[Sample]:
    """The planned batches on a device, loaded by `workers` processes beside the computation (None: see
    `loader_workers`); what they load does not depend on their number."""
    count = loader_workers(device) if workers is None else workers
    if isinstance(dataset.pairs, Staged):  # what comes over a network is read ahead, also beside a CPU
        count = max(count, LEAST_WORKERS_AT_URL)
    loader: torch.utils.data.DataLoader[Sample] = torch.utils.data.DataLoader(
        dataset,
        batch_sampler=cast("torch.utils.data.Sampler[list[int]]", plan),
        num_workers=count,
        prefetch_factor=BATCHES_AHEAD if count else None,
        pin_memory=device.type == "cuda",
    )
    try:
        for batch in loader:
            yield {name: _moved(tensor, device) for name, tensor in batch.items()}
    except InputError as error:  # a worker's comes with its traceback before the message
        raise InputError(str(error).rpartition(f"{InputError.__name__}: ")[2].strip()) from None


@contextlib.contextmanager
def killed_loader_is_told() -> Iterator[None]:
    """Around what takes batches: a loader that was killed is one line. torch raises wherever this process just is."""
    try:
        yield
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker"):
            raise
        raise InputError(
            "a loader process was killed (was the memory, or /dev/shm, full?); run the same command again, with fewer"
            " workers if it repeats: it goes on from the last checkpoint"
        ) from error


def loader_workers(device: torch.device) -> int:
    """Loaders of each training process: the cores that each GPU has to itself; none on a CPU, which has none to
    spare."""
    if device.type != "cuda":
        return 0
    return min(MOST_WORKERS, max(1, available_cpus() // max(torch.cuda.device_count(), 1) - 1))


def _moved(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """On the device, images in the layout of the convolutions; the copy runs beside the computation where it can."""
    layout = torch.channels_last if tensor.ndim == 4 else torch.preserve_format
    return tensor.to(device, non_blocking=True, memory_format=layout)


def _inner_color(image: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean Lab [3] over the region that was edited."""
    return mean_color(image[None], (mask[None] > 0.5).float())[0]


def _image(pixels: np.ndarray, size_px: int) -> torch.Tensor:
    image = torch.from_numpy(pixels).permute(2, 0, 1).float() / 127.5 - 1
    return _resized(image, size_px).clamp(-1, 1)


def _mask(pixels: np.ndarray, size_px: int) -> torch.Tensor:
    return _resized(torch.from_numpy(pixels)[None].float() / 255, size_px).clamp(0, 1)


def _resized(image: torch.Tensor, size_px: int) -> torch.Tensor:
    if image.shape[-1] == size_px and image.shape[-2] == size_px:
        return image
    return F.interpolate(image[None], size=(size_px, size_px), mode="bicubic", antialias=True)[0]
