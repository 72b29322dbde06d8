"""What a run starts from: networks, fresh or with trained weights, of this edit or of another, and its teacher; or, to
go on, all that it is made of at a step, as named tensors."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from stylepairs.datagen.build.plan import digest_portraits
from stylepairs.datagen.images.perceptual import Perceptual
from stylepairs.datagen.shell.durable import file_digest
from stylepairs.datagen.shell.errors import InputError
from stylepairs.datagen.stylegan.checkpoints import EMBEDDED, generator_digest, load_generator
from stylepairs.datagen.stylegan.generator import Generator
from stylepairs.i2i.models import checkpoints
from stylepairs.i2i.models.adapters import attach, is_attached
from stylepairs.i2i.models.checkpoints import BASE_FILE, Base, ModelInfo, Trained, load_model, model_path
from stylepairs.i2i.models.conditions import Kinds, Style, style_channels
from stylepairs.i2i.models.glean import Glean, GleanConfig
from stylepairs.i2i.models.plain import Plain, PlainConfig
from stylepairs.i2i.models.prepared_glean import Network
from stylepairs.i2i.train.frozen import FrozenFeatures
from stylepairs.i2i.train.run_folder import RunDescription, describe, newest_state
from stylepairs.i2i.train.settings import TrainingSettings
from stylepairs.i2i.train.sides import Sides, Unpaired, data_digest

# Of a state: by what the names of its tensors begin.
PARTS = ("model", "average", "discriminator", "mixing", "optimizer", "critic_optimizer")
# What a network's first layer is told of a photo before the style: its three colours, region and degree.
_BEFORE_STYLE = 5


@dataclass
class Run:
    """All that changes while training; `net` and `critic` are what accelerate wrapped."""

    settings: TrainingSettings
    accelerator: Accelerator
    model: Trained
    average: Trained
    net: nn.Module
    discriminator: nn.Module
    critic: nn.Module
    optimizer: Any
    critic_optimizer: Any
    perceptual: Perceptual
    features: FrozenFeatures | None = None
    teacher: Network | None = None
    portraits: int = 0  # samples of a batch, its last, that are of portraits without pairs
    has_refused: bool = True  # the folder of pairs holds portraits that the feature refused
    step: int = 0
    best: float | None = None

    def due(self, every_steps: int) -> bool:
        """Whether something that is done every so many steps, and at the end, is to be done now."""
        return self.step % every_steps == 0 or self.step == self.settings.steps


def run_state(run: Run) -> checkpoints.Tensors:
    """All that resuming needs, by name: the opposite of `resume`."""
    tensors = {f"model.{name}": value for name, value in run.model.trainable_state().items()}
    tensors |= {f"average.{name}": value for name, value in run.average.trainable_state().items()}
    tensors |= {f"discriminator.{name}": value for name, value in run.discriminator.state_dict().items()}
    if run.features is not None:
        tensors |= {f"mixing.{name}": value for name, value in run.features.mixing.state_dict().items()}
    tensors |= checkpoints.optimizer_tensors(run.optimizer, "optimizer.")
    return tensors | checkpoints.optimizer_tensors(run.critic_optimizer, "critic_optimizer.")


def refuse_divided(run: Run, identity: RunDescription, out: Path) -> None:
    """Raises InputError where the processes would not go on from one state of one run: where each machine has a folder
    of its own, say."""
    digest = hashlib.sha256(identity.model_dump_json().encode())
    for name, tensor in run_state(run).items() if run.step else ():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    own = torch.tensor([[run.step, int.from_bytes(digest.digest()[:7])]], device=run.accelerator.device)
    steps, digests = run.accelerator.gather(own).T.tolist()
    if len(set(digests)) > 1:
        raise InputError(
            f"{out}: the processes are at steps {', '.join(map(str, steps))} of runs or states that differ; give all"
            " machines the same pairs and settings, and one --out that all of them see"
        )


def resume(run: Run, out: Path, say: Callable[[str], None]) -> None:
    """Continue from the folder's state, where there is one. Raises InputError where it is not a state of this run."""
    path = newest_state(out)
    if path is None:
        return
    tensors, details = checkpoints.load_state(path)
    parts = {part: dict(checkpoints.with_prefix(tensors, f"{part}.")) for part in PARTS}
    try:
        if sum(map(len, parts.values())) != len(tensors):
            raise ValueError("tensors of no part")
        for module, part in ((run.model, "model"), (run.average, "average")):
            learns = module.trainable_state()
            frozen = {name: value for name, value in module.state_dict().items() if name not in learns}
            module.load_state_dict(frozen | parts[part])
        run.discriminator.load_state_dict(parts["discriminator"])
        if run.features is not None:
            run.features.mixing.load_state_dict(parts["mixing"])
        checkpoints.load_optimizer(run.optimizer, parts["optimizer"])
        if parts["critic_optimizer"]:  # empty before adversarial training has begun
            checkpoints.load_optimizer(run.critic_optimizer, parts["critic_optimizer"])
    except (ValueError, RuntimeError) as error:
        raise InputError(f"{path}: not the whole state of this run; {checkpoints.ADVICE}") from error
    run.step, run.best = details.step, details.best
    before, now = details.processes or run.accelerator.num_processes, run.accelerator.num_processes
    if before != now:
        say(f"{out}: processes {before} so far, {now} now: it goes on with other batches than it would have had")


def initial_model(settings: TrainingSettings, feature: str, kinds: Kinds, generator: Generator | None) -> Trained:
    """The model that a run starts from; kinds: what its style tells apart; generator: a teacher's, if there is one.

    Trained weights come with their generator. Of a model of the same edit and shape all are taken over (a light
    network's at another side, too), of another edit all but what reads the style and, where one draws, moves or tints
    and the other does not, what says the edit but its mask. Raises InputError where they do not fit.
    """
    channels = style_channels(settings.style, kinds)
    if settings.init == "none":
        return fresh_model(settings, channels, generator)
    trained, info = load_model(settings.init, feature)
    is_same_edit = (info.feature, info.style, _told(info.kinds)) == (feature, settings.style, _told(kinds))
    model = fresh_model(settings, channels, trained.generator if isinstance(trained, Glean) else generator)
    if is_same_edit and trained.config == model.config:
        model = trained
    elif not _taken_over(model, trained, is_same_edit):
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
        how = {"draws": shapes.draws, "moves": shapes.moves, "tints": shapes.tints}
        return Glean(generator, GleanConfig(*sizes, **how, thawed=shapes.kind == "thawed"))
    side, rest = generator.config.img_resolution, (shapes.width, shapes.channel_base, shapes.channel_max)
    plain = Plain(PlainConfig(shapes.kind, side, channels, shapes.draws, *rest, moves=shapes.moves, tints=shapes.tints))
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


def identity_of(
    settings: TrainingSettings, feature: str, generator: str, sides: Sides, unpaired: Unpaired | None
) -> RunDescription:
    """What a run is told from others by; generator: its digest."""
    chosen, learnt = settings.model_dump(mode="json", exclude={"workers"}), [sides.records, sides.refused]
    if unpaired:
        learnt.append(unpaired.records)
        chosen["portraits"] = digest_portraits(unpaired.files, {})  # parsed anew, they are others
    else:
        chosen["data"].pop("portraits_share")
    chosen["teacher"] = teacher_told(settings, feature)
    base = base_of(settings, feature)
    if base is None:
        chosen.pop("adapter_rank")
    else:
        chosen["base"] = asdict(base)
    return describe(chosen, feature, generator, data_digest(*learnt))


def info_of(settings: TrainingSettings, identity: RunDescription, kinds: Kinds) -> ModelInfo:
    """What the run's model files say of themselves."""
    told = identity.model_dump() | {"settings": settings_told(settings, identity.feature)}
    if "base" in identity.settings:
        told["base"] = identity.settings["base"]
    return ModelInfo(identity.feature, settings.style, told, kinds)


def settings_told(settings: TrainingSettings, feature: str) -> dict[str, Any]:
    """The settings as a model file tells them to others: files of this machine by their digests, not their paths."""
    told = settings.model_dump(mode="json", exclude={"workers"})
    for name in ("init", "teacher"):
        if told[name].partition(":")[0] not in ("none", "embedded"):
            told[name] = f"sha256:{file_digest(model_path(told[name], feature))}"
    if told["generator"] not in EMBEDDED:
        told["generator"] = "see generator_digest"
    return told


def _told(kinds: Kinds) -> list[tuple[str, list[Any]]]:
    """What the numbers of a style code stand for; a range may be another, its ends are -1 and 1 all the same."""
    return [(name, choices if isinstance(choices[0], str | bool) else []) for name, choices in kinds.items()]


@torch.no_grad()
def _taken_over(model: Trained, trained: Trained, with_style: bool) -> bool:
    """Give a model another's weights, with what reads the style or without; whether they fit."""
    given, same_drawn = trained.state_dict(), model.config.draws == trained.config.draws
    for name, tensor in model.state_dict().items():
        source, mask = given.get(name), _of_mask(name)
        (before, here), (_, there) = (_style_in(name, each.config.style_channels) for each in (model, trained))
        if source is None:
            return False
        if name == "noise" and source.shape != tensor.shape:
            continue  # of another side: a light network's layers suit any, and what strands grow from is its own
        if before and source[:, 0].shape == tensor[:, 0].shape:
            kept = here if with_style else before
            tensor.zero_()  # what reads another style starts silent
            tensor[:, :kept] = source[:, :kept]
            if same_drawn:  # what follows the style: the noise that strands grow from
                tensor[:, here:] = source[:, there:]
        elif source.shape == tensor.shape and (same_drawn or not mask):
            tensor.copy_(source)
        elif mask and source.shape[1:] == tensor.shape[1:]:
            tensor.zero_()
            tensor[-mask:] = source[-mask:]
        else:
            return False
    return True


def _of_mask(name: str) -> int:
    """How many of a layer's last channels say the mask; 0 unless it is what says the edit."""
    if name.startswith("network.out."):
        return 4  # a light network's unfolds to four pixels
    return 1 if "decoder.out." in name else 0


def _style_in(name: str, channels: int) -> tuple[int, int]:
    """Where the style begins and ends in what a layer's weight reads of a photo; 0, 0 for those that read none."""
    layer = name.removeprefix("network.")
    if layer in ("encoder.stem.weight", "downs.0.weight", "layers.1.weight"):
        return _BEFORE_STYLE, _BEFORE_STYLE + channels
    if layer == "stem.0.weight":  # a light network's: it is told degree and style further on
        return _BEFORE_STYLE - 1, _BEFORE_STYLE - 1
    return (1, 1 + channels) if layer.startswith("told.") and layer.endswith(".weight") else (0, 0)
