"""Trains an encoder, through accelerate: each of its passes must bring the render nearer to portraits, and to the
generator's own samples, by stage 0's own objective; e4e's terms hold it where edits work."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import PartialState
from accelerate.utils import broadcast, gather, reduce

from stylepairs.datagen.encoders.critic import (
    LatentCritic,
    critic_loss,
    encoder_term,
    free_rows,
    offset_lengths,
)
from stylepairs.datagen.encoders.curvature import fit_curvature
from stylepairs.datagen.encoders.files import encoder_digest, load_encoder, save_encoder
from stylepairs.datagen.encoders.network import Encoder, EncoderConfig, empty_start
from stylepairs.datagen.encoders.photos import draw_samples, load_photos, photos_digest, varied
from stylepairs.datagen.encoders.run_file import RunFile
from stylepairs.datagen.encoders.settings import EncoderTraining
from stylepairs.datagen.images.perceptual import Perceptual, load_perceptual
from stylepairs.datagen.reconstruction.inversion import inversion_loss
from stylepairs.datagen.reconstruction.prior import WPrior
from stylepairs.datagen.reconstruction.rendering import synthesise, use_channels_last
from stylepairs.datagen.reconstruction.settings import InversionSettings
from stylepairs.datagen.shell.durable import make_folder, refuse_folder
from stylepairs.datagen.shell.errors import InputError
from stylepairs.datagen.stylegan.checkpoints import generator_digest, load_generator
from stylepairs.datagen.stylegan.generator import Generator

# A network would rather put a face's edges into a few huge values of a map than spread them; edits then fight these.
TAILS_WEIGHT = 0.01
MOST_KURTOSIS = 4.0  # 3 is Gaussian; stage 0 from the mean face ends at 4
BETAS, CRITIC_BETAS = (0.9, 0.99), (0.9, 0.999)
# Where published encoders look for the person, of an aligned face's 256 px: rows, columns.
IDENTITY_BOX = ((35, 223), (32, 220))

Report = Callable[[int, float], None]
Identity = Callable[[torch.Tensor], torch.Tensor]  # aligned faces [N,3,H,W] in [-1,1] -> embeddings [N,K]


@dataclass(frozen=True)
class Teachers:
    """What an encoder learns from and by; portraits: uint8 [M,3,R,R] at the generator's resolution; identity: a face
    recognition network, None: the perceptual features alone say who it is."""

    generator: Generator
    perceptual: Perceptual
    prior: WPrior
    portraits: torch.Tensor
    identity: Identity | None = None


@dataclass
class Run:
    """Networks and optimisers of a training, as they are after some steps."""

    encoder: Encoder
    critic: LatentCritic | None
    modules: dict[str, torch.nn.Module] = field(default_factory=dict)
    optimizers: dict[str, torch.optim.Adam] = field(default_factory=dict)

    @staticmethod
    def begin(teachers: Teachers, training: EncoderTraining, device: torch.device) -> Run:
        """Fresh networks; the encoder does not know the generator's curvature yet."""
        w_dim = teachers.generator.config.w_dim
        torch.manual_seed(training.seed)
        encoder = Encoder(EncoderConfig.of(teachers.generator, training)).to(device)
        run = Run(encoder, None, {"encoder": encoder})
        run.optimizers["adam"] = torch.optim.Adam(encoder.parameters(), training.learning_rate, betas=BETAS)
        if training.critic_weight:
            run.critic = run.modules["critic"] = LatentCritic(w_dim).to(device)
            rate = training.critic_rate
            run.optimizers["critic_adam"] = torch.optim.Adam(run.critic.parameters(), rate, betas=CRITIC_BETAS)
        return run


def train_to_file(
    generator: str,
    portraits: Sequence[Path],
    out: Path,
    training: EncoderTraining,
    device: str = "cpu",
    begin: Path | None = None,
    identity: tuple[Identity, str] | None = None,
    report: Report = lambda step, loss: None,
) -> None:
    """Train an encoder for a checkpoint (or "embedded") on prepared folders, and write it to `out`.

    begin: an encoder of the same generator and shape to go on from, in place of random weights. identity: see Teachers,
    and the digest of its file. The state lies beside `out` until the encoder is written. Raises InputError.
    """
    refuse_folder(out)
    network = load_generator(generator)
    photos = load_photos(portraits, network.config.img_resolution)
    digest = generator_digest(network)
    make_folder(out.parent)
    earlier = None if begin is None else load_encoder(begin, network, digest)
    if earlier is not None:
        _refuse_other_shape(str(begin), earlier.config, EncoderConfig.of(network, training))
    place = PartialState(cpu=device == "cpu")
    prior = WPrior.fit(network).to(place.device)
    features = load_perceptual(training.perceptual, training.perceptual_weights).to(place.device)
    about = f"generator {digest}, portraits {photos_digest(photos)}, perceptual {features.name}"
    about += f", processes {place.num_processes}, identity {identity and identity[1]}"
    if earlier is not None:
        about += f", from encoder {encoder_digest(earlier)}"
    state = RunFile(out.with_name(f"{out.name}.checkpoint"), about)
    network.to(place.device)
    teachers = Teachers(network, features, prior, photos, identity and identity[0])
    encoder = train_encoder(teachers, training, state, earlier, report)
    if place.is_main_process:
        save_encoder(out, encoder, digest)
        state.path.unlink(missing_ok=True)


def train_encoder(
    teachers: Teachers,
    training: EncoderTraining,
    state: RunFile,
    earlier: Encoder | None = None,
    report: Report = lambda step, loss: None,
) -> Encoder:
    """Train to the end, from `state` where it is there, else from `earlier`; report(step, loss) after each step.

    earlier: of the shape that the settings ask for. A state of another run, or of other settings, raises InputError. A
    step's draws follow from (seed, step, process) alone, so a resumed run ends as an unbroken one.
    """
    generator, place = teachers.generator, PartialState()
    use_channels_last(generator)
    run = Run.begin(teachers, training, generator.mapping.w_avg.device)
    shape = json.dumps(training.model_dump(exclude_none=True), sort_keys=True)
    begun = state.path.exists()
    first = state.resume(run.modules, run.optimizers, shape) if begun else 0
    _refuse_divided(state.path, first)
    if not begun and earlier is not None:
        run.encoder.load_state_dict(earlier.state_dict())
    elif not begun:
        run.encoder.know(fit_curvature(generator, teachers.perceptual, teachers.prior, training.probes, training.seed))
    for step in range(first, training.steps):
        run.optimizers["adam"].param_groups[0]["lr"] = training.learning_rate * _rate(step, training.steps)
        loss = training_step(run, teachers, training, step)
        report(step + 1, loss)
        if place.is_main_process and ((step + 1) % training.checkpoint_every == 0 or step + 1 == training.steps):
            state.write(run.modules, run.optimizers, shape, step + 1)
    return run.encoder.eval().requires_grad_(False)


def training_step(run: Run, teachers: Teachers, training: EncoderTraining, step: int) -> float:
    """One step of the encoder, and of the critic where there is one; the mean loss of the passes."""
    draw = torch.Generator().manual_seed((training.seed * 1_000_003 + step) * 64 + PartialState().process_index)
    photo = _photos(teachers, training, draw)
    adam = run.optimizers["adam"]
    adam.zero_grad()
    free = free_rows(step / training.steps, run.encoder.config.num_ws)
    loss, u = _accumulate(run, teachers, training, photo, free, draw)
    _reduce_gradients(run.encoder)
    torch.nn.utils.clip_grad_norm_(run.encoder.parameters(), 1.0)
    adam.step()
    if run.critic is not None:
        _critic_step(run.critic, run.optimizers["critic_adam"], teachers, u.flatten(0, 1), step, draw)
    return loss


def _accumulate(
    run: Run,
    teachers: Teachers,
    training: EncoderTraining,
    photo: torch.Tensor,
    free: int,
    draw: torch.Generator,
) -> tuple[float, torch.Tensor]:
    """Add the gradients of each pass, each by itself, to the encoder's; their mean loss, and the last latents."""
    generator, perceptual, prior, encoder = teachers.generator, teachers.perceptual, teachers.prior, run.encoder
    with torch.no_grad():
        wanted = perceptual.guiding(photo)
        person = None if teachers.identity is None else teachers.identity(identity_crop(photo))
        u, noise = empty_start(encoder, generator, len(photo))
        render = synthesise(generator, prior.unwhiten(u), noise, "auto")
    objective = InversionSettings.model_validate(
        {"prior_weight": training.prior_weight, "row_weight": training.row_weight}
        | ({} if training.noise else {"noise_learning_rate": 0.0})
    )
    total = 0.0
    for _ in range(encoder.config.passes):
        u, noise = encoder(photo, render, u, noise, free_rows=free)
        judged = _judged(encoder, u, free)
        if training.jitter:
            u = u + training.jitter * torch.randn(u.shape, generator=draw).to(u.device)
        render = synthesise(generator, prior.unwhiten(u), noise, "auto")
        loss = inversion_loss(perceptual, render, photo, wanted, u, noise, objective)
        if training.noise:
            loss = loss + TAILS_WEIGHT * noise_tails(noise)
        if training.offset_weight:
            loss = loss + training.offset_weight * offset_lengths(u)
        if run.critic is not None:
            loss = loss + training.critic_weight * encoder_term(run.critic, judged)
        if teachers.identity is not None and person is not None:
            same = F.cosine_similarity(teachers.identity(identity_crop(render)), person, dim=1)
            loss = loss + training.identity_weight * (1 - same)
        loss.mean().backward()
        total += float(loss.detach().mean()) / encoder.config.passes
        u, noise, render = u.detach(), [level.detach() for level in noise], render.detach()
    return total, judged.detach()


def _judged(encoder: Encoder, u: torch.Tensor, free: int) -> torch.Tensor:
    """The rows of u [N,L,C] that the critic sees: those with an offset of their own, and the first."""
    return u[:, : free + 1] if encoder.config.from_first_row else u


def _critic_step(
    critic: LatentCritic,
    optimizer: torch.optim.Adam,
    teachers: Teachers,
    fake: torch.Tensor,
    step: int,
    draw: torch.Generator,
) -> None:
    mapping = teachers.generator.mapping
    with torch.no_grad():
        z = torch.randn(len(fake), teachers.generator.config.z_dim, generator=draw).to(fake.device)
        real = teachers.prior.whiten(mapping.to_w(z))
    optimizer.zero_grad()
    critic_loss(critic, real, _pooled_alike(critic, fake, draw), step).backward()
    _reduce_gradients(critic)
    optimizer.step()


def _pooled_alike(critic: LatentCritic, fake: torch.Tensor, draw: torch.Generator) -> torch.Tensor:
    """This process's rows, half of them exchanged for earlier ones of any process: one pool, the same in all, as a run
    that goes on has it."""
    place = PartialState()
    if place.num_processes == 1:
        return critic.pooled(fake, draw)
    seed = broadcast(torch.randint(2**62, (1,), generator=draw).to(fake.device))
    rows = critic.pooled(gather(fake), torch.Generator().manual_seed(int(seed)))
    own: torch.Tensor = rows.chunk(place.num_processes)[place.process_index]
    return own


def _refuse_divided(path: Path, first: int) -> None:
    """Raises InputError where the processes would not go on from one step: where each machine has a disk of its own,
    say. They would wait for each other at the end."""
    steps = gather(torch.tensor([first], device=PartialState().device)).tolist()
    if len(set(steps)) > 1:
        raise InputError(
            f"{path}: the processes are at steps {', '.join(map(str, steps))}; give all machines one --out that all of"
            " them see"
        )


def _reduce_gradients(module: torch.nn.Module) -> None:
    """Each gradient's mean over the processes."""
    if PartialState().num_processes > 1:
        for parameter in module.parameters():
            if parameter.grad is not None:
                parameter.grad = reduce(parameter.grad, "mean")


def identity_crop(image: torch.Tensor) -> torch.Tensor:
    """The face [N,3,h,w] of aligned images [N,3,R,R], as published encoders crop it."""
    (top, bottom), (left, right) = (
        (round(low * image.shape[-1] / 256), round(high * image.shape[-1] / 256)) for low, high in IDENTITY_BOX
    )
    return image[..., top:bottom, left:right].clamp(-1, 1)


def _photos(teachers: Teachers, training: EncoderTraining, draw: torch.Generator) -> torch.Tensor:
    """What a step learns from: portraits, varied a little, and samples [N,3,R,R]."""
    rows = torch.randint(len(teachers.portraits), (training.portraits,), generator=draw)
    device = teachers.generator.mapping.w_avg.device
    photo = varied(teachers.portraits[rows].float() / 127.5 - 1, draw).to(device)
    if not training.samples:
        return photo
    return torch.cat([photo, draw_samples(teachers.generator, teachers.prior, training.samples, draw)])


def noise_tails(noise: Sequence[torch.Tensor]) -> torch.Tensor:
    """How far the kurtosis of each map [N,1,r,r] of unit variance exceeds what noise has, summed over the maps, [N]."""
    return torch.stack([F.relu(level.pow(4).mean((1, 2, 3)) - MOST_KURTOSIS) for level in noise]).sum(0)


def _rate(step: int, steps: int) -> float:
    """Share of the learning rate: a short linear warm-up, cosine decay to a fiftieth."""
    warm = min(1.0, (step + 1) / min(50, -(-steps // 10)))
    return warm * (0.02 + 0.98 * (1 + math.cos(math.pi * step / steps)) / 2)


def _refuse_other_shape(source: str, found: EncoderConfig, wanted: EncoderConfig) -> None:
    """Raises InputError, with what differs, where an encoder to go on from is of another shape than the settings'."""
    differing = {
        key: (value, getattr(wanted, key)) for key, value in asdict(found).items() if value != getattr(wanted, key)
    }
    if differing:
        has, asked = (", ".join(f"{key} {values[i]}" for key, values in differing.items()) for i in (0, 1))
        raise InputError(
            f"{source}: has {has}, the settings ask for {asked}; give the --method and --set that it was trained with"
        )
