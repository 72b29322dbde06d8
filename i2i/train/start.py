"""The networks that a run starts from: fresh, or with trained weights, of this edit or of another; and its teacher."""

from __future__ import annotations

from typing import Any

import torch

from stylepairs.datagen.shell.durable import file_digest
from stylepairs.datagen.shell.errors import InputError
from stylepairs.datagen.stylegan.checkpoints import generator_digest, load_generator
from stylepairs.datagen.stylegan.generator import Generator
from stylepairs.i2i.models.adapters import attach, is_attached
from stylepairs.i2i.models.checkpoints import BASE_FILE, Base, ModelInfo, Trained, load_model, model_path
from stylepairs.i2i.models.conditions import Kinds, Style
from stylepairs.i2i.models.glean import Glean, GleanConfig
from stylepairs.i2i.models.plain import Plain, PlainConfig
from stylepairs.i2i.train.settings import TrainingSettings

# What an encoder is told of a photo before the style: its three colours, region and degree.
_BEFORE_STYLE = 5


def initial_model(settings: TrainingSettings, feature: str, channels: int, generator: Generator | None) -> Trained:
    """The model that a run starts from; channels: length of its style code; generator: a teacher's, if there is one.

    Trained weights come with their generator. Of a model of the same shape all are taken over, what reads the style
    too; of another shape all but what reads the style and, where one draws and the other recolours, what says the
    colours. Raises InputError where they do not fit.
    """
    if settings.init == "none":
        return fresh_model(settings, channels, generator)
    trained, _ = load_model(settings.init, feature)
    model = fresh_model(settings, channels, trained.generator if isinstance(trained, Glean) else generator)
    if trained.config == model.config:
        model = trained
    elif not _taken_over(model, trained):
        raise InputError(
            f"init {settings.init}: is {trained.config}, the recipe asks for {model.config}; change one of them"
        )
    if settings.adapter_rank:
        attach(model, settings.adapter_rank, trained.state_dict())
        if not is_attached(model):
            raise InputError(f"adapter_rank {settings.adapter_rank}: the layers are smaller; choose a lower one")
    return model.train()


def base_of(settings: TrainingSettings, feature: str) -> Base | None:
    """Where an adapter finds what it belongs to; None for a run that learns all weights."""
    if not settings.adapter_rank:
        return None
    kind, _, named = settings.init.partition(":")
    source = f"embedded:{named or feature}" if kind == "embedded" else BASE_FILE
    return Base(source, file_digest(model_path(settings.init, feature)))


def fresh_model(settings: TrainingSettings, channels: int, generator: Generator | None = None) -> Trained:
    """The network that the settings ask for, untrained; generator None: the settings' own."""
    shapes = settings.model
    generator = generator or load_generator(settings.generator)
    if shapes.kind == "glean" or shapes.kind == "thawed":
        sizes = channels, shapes.channel_base, shapes.channel_max
        return Glean(generator, GleanConfig(*sizes, draws=shapes.draws, thawed=shapes.kind == "thawed"))
    side, rest = generator.config.img_resolution, (shapes.width, shapes.channel_base, shapes.channel_max)
    plain = Plain(PlainConfig(shapes.kind, side, channels, shapes.draws, *rest))
    plain.noise.copy_(generator.noise_maps()[-1])
    return plain


def load_teacher(settings: TrainingSettings, feature: str, style: Style) -> tuple[Trained, Kinds] | None:
    """The model that takes the pairs' place, and the kinds that it tells apart; None where the settings name none."""
    if settings.teacher == "none":
        return None
    info: ModelInfo
    teacher, info = load_model(settings.teacher, feature)
    if (info.feature, info.style) != (feature, style):
        taught = f"edits {info.feature} by style {info.style}"
        raise InputError(f"teacher {settings.teacher}: {taught}, this run {feature} by style {style}")
    return teacher, info.kinds


def latents_of(model: Trained) -> tuple[tuple[int, int], str]:
    """Shape of the model's latents and its generator's digest, by which pairs' latents are known to fit; none where it
    has no generator."""
    if not isinstance(model, Glean):
        return (1, 1), ""
    return (model.generator.num_ws, model.generator.config.w_dim), generator_digest(model.generator)


def teacher_told(settings: TrainingSettings, feature: str) -> str:
    """The teacher as a run's description names it: with the file's digest, as a run that goes on replaces its own."""
    if settings.teacher.partition(":")[0] in ("none", "embedded"):
        return settings.teacher
    return f"{settings.teacher} (sha256 {file_digest(model_path(settings.teacher, feature))})"


def settings_told(settings: TrainingSettings, feature: str) -> dict[str, Any]:
    """The settings as a model file tells them to others: files of this machine by their digests, not their paths."""
    told = settings.model_dump(mode="json", exclude={"workers"})
    for name in ("init", "teacher"):
        if told[name].partition(":")[0] not in ("none", "embedded"):
            told[name] = f"sha256:{file_digest(model_path(told[name], feature))}"
    if told["generator"] != "embedded":
        told["generator"] = "see generator_digest"
    return told


@torch.no_grad()
def _taken_over(model: Trained, trained: Trained) -> bool:
    """Give a model another's weights; whether they fit."""
    given, drawn = trained.state_dict(), (model.config.draws, trained.config.draws)
    for name, tensor in model.state_dict().items():
        source = given.get(name)
        if source is not None and source.shape == tensor.shape and (drawn[0] == drawn[1] or "decoder.out." not in name):
            tensor.copy_(source)
        elif source is not None and name == "encoder.stem.weight" and source.shape[0] == tensor.shape[0]:
            tensor.zero_()  # what reads the style starts silent
            tensor[:, :_BEFORE_STYLE] = source[:, :_BEFORE_STYLE]
            if all(drawn):
                tensor[:, -1] = source[:, -1]
        elif source is not None and "decoder.out." in name and source.shape[1:] == tensor.shape[1:]:
            tensor.zero_()
            tensor[-1] = source[-1]  # the mask's
        else:
            return False
    return True
