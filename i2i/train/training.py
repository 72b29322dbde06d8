"""Trains the single-pass editor on pairs, through accelerate: build, resume, loop, evaluate, save, in that order.

The run that is killed and started again equals the one that was not: randomness comes from (seed, epoch, index), and
what a checkpoint holds is checked when it is written and when it is read. Its files: see `run_folder`.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from torch import nn

from stylepairs.datagen.compositing.compose import tightened
from stylepairs.datagen.images.perceptual import load_perceptual
from stylepairs.datagen.shell.errors import InputError
from stylepairs.datagen.shell.lock import folder_lock
from stylepairs.datagen.stylegan.checkpoints import generator_digest, load_generator
from stylepairs.datagen.stylegan.discriminator import Discriminator, DiscriminatorConfig
from stylepairs.i2i.models import checkpoints
from stylepairs.i2i.models.conditions import decode_color, style_channels
from stylepairs.i2i.models.glean import Edit, Glean, GleanConfig
from stylepairs.i2i.train import losses
from stylepairs.i2i.train.data import PairDataset, Sample, batches, data_digest, load_batches, one_feature, read_pairs
from stylepairs.i2i.train.held_out import pair_figures, sample_sheet
from stylepairs.i2i.train.run_folder import RunLog, claim_folder, describe, line_of, save_checkpoint, save_sample
from stylepairs.i2i.train.settings import TrainingSettings
from stylepairs.i2i.train.state import Run, resume, run_state

ADAM_BETAS = (0.9, 0.99)
DISCRIMINATOR_BETAS = (0.0, 0.99)
# Bound what one bad batch can do. Adam divides by the usual size of a gradient, so the exact numbers matter little.
MAX_GRADIENT_NORM = 2.0
MAX_DISCRIMINATOR_NORM = 10.0
SHEET_ROWS = 6

Say = Callable[[str], None]


def train(
    settings: TrainingSettings, pairs: Path, out: Path, say: Say = lambda _: None, feature: str | None = None
) -> Path:
    """Train on the accepted pairs of a folder; returns the run folder. A run that is there already is continued.

    say receives a line now and then (main process only). feature: what the pairs have to be of, None: whatever they
    are of. Raises InputError for unusable pairs, weights or run folders, and when a loss or a weight stops being
    finite.
    """
    records, held_out, kinds = read_pairs(pairs, settings.style, settings.val_pairs)
    feature = one_feature(records, pairs, feature)
    run = build(settings, feature, style_channels(settings.style, kinds))
    generator, accelerator = run.model.generator, run.accelerator
    digest = generator_digest(generator)
    about = (run.model.size_px, settings.style, (generator.num_ws, generator.config.w_dim), digest)
    dataset = PairDataset(pairs, records, *about, settings.data, settings.seed, kinds)
    val = PairDataset(pairs, held_out, *about, kinds=kinds)
    if settings.losses.latent and all(record.generator_digest != digest for record in records):
        say("the pairs' latents belong to another generator: losses.latent has no effect in this run")

    identity = describe(settings.model_dump(exclude={"workers"}), feature, digest, data_digest(records))
    info = checkpoints.ModelInfo(feature, settings.style, identity.model_dump(), kinds)
    main = accelerator.is_main_process
    with folder_lock(out, "i2i train") if main else nullcontext():
        claim_folder(out, identity, accelerator.wait_for_everyone, main, say)
        resume(run, out)
        held, world = len(held_out), accelerator.num_processes
        say(f"{feature}: {len(records)} pairs, {held} held out; {world} processes; step {run.step}")
        take_steps(run, dataset, val, out, info, say)
    accelerator.end_training()
    return out


def take_steps(
    run: Run, dataset: PairDataset, val: PairDataset, out: Path, info: checkpoints.ModelInfo, say: Say
) -> None:
    """The run's steps from where it is to its end, with all that is written on the way."""
    settings, accelerator = run.settings, run.accelerator
    main, rank, world = accelerator.is_main_process, accelerator.process_index, accelerator.num_processes
    log = RunLog(out, run.step, enabled=main)
    shown = val if len(val) else dataset
    plan = batches(len(dataset), settings.batch_size, settings.seed, run.step, settings.steps, rank, world)
    for batch in load_batches(dataset, plan, accelerator.device, settings.workers):
        figures = training_step(run, batch)
        run.step += 1
        if run.due(settings.log_every_steps):
            stop_unless_finite(run, figures)
            log.write(run.step, "train", figures)
            say(line_of(run.step, settings.steps, figures))
        if run.due(settings.sample_every_steps) and main:
            png = sample_sheet(run.average, shown, min(SHEET_ROWS, len(shown)), accelerator.device)
            save_sample(out, run.step, png)
        if run.due(settings.checkpoint_every_steps):
            stop_unless_finite(run, figures)
            if main:
                evaluate_and_save(run, val, out, info, log, say)
            accelerator.wait_for_everyone()
    log.close()


def build(settings: TrainingSettings, feature: str, channels: int) -> Run:
    """Networks, optimisers and their wrapping, before any step."""
    accelerator = Accelerator(
        mixed_precision=settings.mixed_precision,
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
        step_scheduler_with_optimizer=False,
    )
    torch.manual_seed(settings.seed)
    model = initial_model(settings, feature, channels)
    adversary = settings.discriminator
    config = DiscriminatorConfig(
        img_resolution=model.size_px,
        channel_base=adversary.channel_base,
        channel_max=adversary.channel_max,
        cond_channels=1 + channels,
        mbstd_group_size=math.gcd(settings.batch_size, 4),
    )
    discriminator, perceptual = Discriminator(config), load_perceptual(settings.perceptual)
    for module in (model, discriminator, perceptual):  # a step is 1.2 times faster with it (1 core, bf16)
        module.to(device=accelerator.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    average = copy.deepcopy(model).eval().requires_grad_(False)
    average.generator = model.generator
    optimizer = torch.optim.Adam(trained(model), settings.learning_rate, ADAM_BETAS)
    critic_optimizer = torch.optim.Adam(discriminator.parameters(), adversary.learning_rate, DISCRIMINATOR_BETAS)
    net, critic, wrapped, critic_wrapped = accelerator.prepare(model, discriminator, optimizer, critic_optimizer)
    return Run(settings, accelerator, model, average, net, discriminator, critic, wrapped, critic_wrapped, perceptual)


def trained(model: Glean) -> list[nn.Parameter]:
    """All but the frozen generator's parameters."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def initial_model(settings: TrainingSettings, feature: str, channels: int) -> Glean:
    """The model that a run starts from: trained weights, or a fresh encoder and decoder around a generator."""
    config = GleanConfig(channels, settings.model.channel_base, settings.model.channel_max)
    if settings.init == "none":
        return Glean(load_generator(settings.generator), config)
    model, _ = checkpoints.load_model(settings.init, feature)
    if model.config != config:
        raise InputError(f"init {settings.init}: is {model.config}, the recipe asks for {config}; change one of them")
    return model.train()


def training_step(run: Run, batch: Sample) -> dict[str, float | torch.Tensor]:
    """One step of the editor and, once adversarial training has begun, one of the discriminator."""
    settings, accelerator = run.settings, run.accelerator
    rate = schedule(run.step, settings)
    for group in run.optimizer.param_groups:
        group["lr"] = settings.learning_rate * rate
    adversarial = settings.losses.adversarial > 0 and run.step >= settings.discriminator.start_step

    run.net.train()
    edit = run.net(batch["photo"], batch["region"], batch["degree"], batch["style"])
    terms = editing_losses(run, edit, batch)
    if adversarial:
        run.discriminator.requires_grad_(False)
        logits = run.discriminator(judged(edit.output.clamp(-1, 1), batch))
        terms["adversarial"] = settings.losses.adversarial * losses.generator_adversarial(logits)
    total = torch.stack(list(terms.values())).sum()
    accelerator.backward(total)
    norm = accelerator.clip_grad_norm_(trained(run.model), MAX_GRADIENT_NORM)
    run.optimizer.step()
    run.optimizer.zero_grad(set_to_none=True)
    update_average(run)
    figures: dict[str, float | torch.Tensor] = {"total": total.detach(), "gradient_norm": norm, "rate": rate}
    figures |= {name: term.detach() for name, term in terms.items()}
    if adversarial:
        figures |= discriminator_step(run, edit.output.detach().clamp(-1, 1), batch, rate)
    return figures


def editing_losses(run: Run, edit: Edit, batch: Sample) -> dict[str, torch.Tensor]:
    """The weighted terms that compare an edit with its pair; terms of weight 0 are left out."""
    weights, target, mask = run.settings.losses, batch["target"], batch["mask"]
    tight = tightened(mask)
    terms = {"l1": weights.l1 * losses.pixel_l1(edit.output, target, mask, weights.region_weight)}
    if weights.perceptual:
        with torch.no_grad():
            wanted = run.perceptual.features(target)
        terms["perceptual"] = weights.perceptual * losses.perceptual_l2(run.perceptual.features(edit.output), wanted)
    if weights.mask:
        terms["mask"] = weights.mask * losses.mask_cross_entropy(edit.mask_logits, tight)
    if weights.color:
        region, code = (tight > 0.5).float(), decode_color(batch["style"])
        wanted_color = losses.mean_color(batch["photo"], region).lerp(code, batch["degree"][:, None])
        terms["color"] = weights.color * losses.color_distance(edit.output, wanted_color, region)
    if weights.generated:
        terms["generated"] = weights.generated * losses.pixel_l1(edit.generated, target, mask, 0.0)
    if weights.latent:
        terms["latent"] = weights.latent * losses.latent_l2(edit.ws, batch["ws"], batch["ws_valid"])
    return terms


def discriminator_step(run: Run, fake: torch.Tensor, batch: Sample, rate: float) -> dict[str, torch.Tensor]:
    """One step of the discriminator on the same batch, with R1 now and then."""
    settings = run.settings
    for group in run.critic_optimizer.param_groups:
        group["lr"] = settings.discriminator.learning_rate * rate
    run.discriminator.requires_grad_(True)
    real_logits, fake_logits = run.critic(judged(batch["target"], batch)), run.critic(judged(fake, batch))
    loss = losses.discriminator_adversarial(real_logits, fake_logits)
    figures = {
        "discriminator": loss.detach(),
        "real_logit": real_logits.detach().mean(),
        "fake_logit": fake_logits.detach().mean(),
    }
    run.accelerator.backward(loss)
    if run.step % settings.discriminator.r1_every == 0:
        real = judged(batch["target"], batch).requires_grad_(True)
        logits = run.critic(real)
        penalty = losses.r1_penalty(real, logits)
        # The logits join with weight 0: the last bias is not in the penalty, and every parameter must get a gradient.
        run.accelerator.backward(settings.losses.r1 * settings.discriminator.r1_every * penalty + 0 * logits.sum())
        figures["r1"] = penalty.detach()
    parameters = run.discriminator.parameters()
    figures["discriminator_norm"] = run.accelerator.clip_grad_norm_(parameters, MAX_DISCRIMINATOR_NORM)
    run.critic_optimizer.step()
    run.critic_optimizer.zero_grad(set_to_none=True)
    return figures


def judged(image: torch.Tensor, batch: Sample) -> torch.Tensor:
    """What the discriminator sees: the image, where it may differ from the photo, and which kind of edit is wanted."""
    style = batch["style"][:, :, None, None].expand(-1, -1, *image.shape[2:])
    return torch.cat([image, batch["mask"] * 2 - 1, style], dim=1)


def schedule(step: int, settings: TrainingSettings) -> float:
    """Factor on the learning rates: linear warm-up, constant, half a cosine to 0."""
    warm = min(1.0, (step + 1) / max(settings.warmup_steps, 1))
    start = settings.decay_from_share * settings.steps
    gone = max(0.0, (step - start) / max(settings.steps - start, 1))
    return warm * 0.5 * (1 + math.cos(math.pi * gone))


@torch.no_grad()
def update_average(run: Run) -> None:
    """Exponential moving average of the trained weights; short at first, so that it follows the start."""
    images = run.settings.batch_size * run.accelerator.num_processes
    halflife = min(run.settings.ema_halflife_images, 0.1 * (run.step + 1) * images)
    keep = 0.5 ** (images / max(halflife, 1e-8))
    average = run.average.trainable_state()
    for name, value in run.model.trainable_state().items():
        average[name].lerp_(value, 1 - keep)


def evaluate_and_save(
    run: Run, val: PairDataset, out: Path, info: checkpoints.ModelInfo, log: RunLog, say: Say
) -> None:
    """Measure the averaged model on held-out pairs and replace the folder's checkpoint, if all of it is finite."""
    tensors = run_state(run)
    stop_unless_finite(run, tensors)
    is_best = False
    if len(val):
        measured = pair_figures(run.average, val, run.perceptual, run.accelerator.device)
        stop_unless_finite(run, measured)
        log.write(run.step, "val", measured)
        say(line_of(run.step, run.settings.steps, measured, "held out"))
        distance = measured[f"perceptual_{run.perceptual.name}"]
        is_best = run.best is None or distance < run.best
        run.best = distance if is_best else run.best
    details = checkpoints.StateDetails(step=run.step, best=run.best)
    save_checkpoint(out, run.average, info, tensors, details, is_best)


def stop_unless_finite(run: Run, values: Mapping[str, float | torch.Tensor]) -> None:
    """Raises InputError that names what is not finite; nothing of such a step is ever saved."""
    bad = checkpoints.not_finite({name: torch.as_tensor(value) for name, value in values.items()})
    if bad:
        more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
        raise InputError(
            f"step {run.step}: {', '.join(bad[:3])}{more} not finite; lower learning_rate or use mixed_precision no,"
            " the last checkpoint is whole"
        )
