"""Trains the single-pass editor on pairs, through accelerate: build, resume, loop, evaluate, save, in that order.

A run folder holds run.json (settings, code version, digest of the data), state.safetensors (all that resuming needs,
replaced as a whole), model.safetensors (the averaged weights, self-contained), metrics.jsonl, samples/, tensorboard/.
The run that is killed and started again equals the one that was not: randomness comes from (seed, epoch, index).
"""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from torch import nn

from stylepairs.datagen.compositing.compose import tightened
from stylepairs.datagen.images.perceptual import Perceptual, load_perceptual
from stylepairs.datagen.shell.durable import replace_file
from stylepairs.datagen.shell.errors import InputError
from stylepairs.datagen.stylegan.checkpoints import generator_digest, load_generator
from stylepairs.datagen.stylegan.discriminator import Discriminator, DiscriminatorConfig
from stylepairs.i2i.models import checkpoints
from stylepairs.i2i.models.conditions import decode_color, is_of_kinds, kinds_of, style_channels
from stylepairs.i2i.models.glean import Edit, Glean, GleanConfig
from stylepairs.i2i.train import losses
from stylepairs.i2i.train.data import PairDataset, batches, data_digest, evenly, one_feature, read_records
from stylepairs.i2i.train.held_out import pair_figures, sample_sheet
from stylepairs.i2i.train.run_folder import RunLog, claim_folder, describe, line_of
from stylepairs.i2i.train.settings import TrainingSettings

ADAM_BETAS = (0.9, 0.99)
DISCRIMINATOR_BETAS = (0.0, 0.99)
# Bound what one bad batch can do. Adam divides by the usual size of a gradient, so the exact numbers matter little.
MAX_GRADIENT_NORM = 2.0
MAX_DISCRIMINATOR_NORM = 10.0
SHEET_ROWS = 6
# Of one training process: loaders, and batches that each of them holds ready.
MOST_WORKERS = 8
BATCHES_AHEAD = 4

Batch = dict[str, torch.Tensor]


@dataclass
class Run:
    """All that changes while training; `net` and `critic` are what accelerate wrapped."""

    settings: TrainingSettings
    accelerator: Accelerator
    model: Glean
    average: Glean
    net: nn.Module
    discriminator: Discriminator
    critic: nn.Module
    optimizer: Any
    critic_optimizer: Any
    perceptual: Perceptual
    step: int = 0


def train(settings: TrainingSettings, pairs: Path, out: Path, say: Callable[[str], None] = lambda line: None) -> Path:
    """Train on the accepted pairs of a folder; returns the run folder. A run that is there already is continued.

    say receives a line now and then (main process only). Raises InputError for unusable pairs, weights or run folders,
    and when a loss stops being finite.
    """
    records, held_out = read_records(pairs, "train"), evenly(read_records(pairs, "val"), settings.val_pairs)
    feature = one_feature(records, pairs)
    kinds = kinds_of([record.params for record in records]) if settings.style == "params" else {}
    held_out = [record for record in held_out if is_of_kinds(record.params, kinds)]
    run = build(settings, feature, style_channels(settings.style, kinds))
    digest = generator_digest(run.model.generator)
    shape = (run.model.generator.num_ws, run.model.generator.config.w_dim)
    dataset = PairDataset(
        pairs, records, run.model.size_px, settings.style, shape, digest, settings.data, settings.seed, kinds
    )
    val = PairDataset(pairs, held_out, run.model.size_px, settings.style, shape, digest, kinds=kinds)
    if settings.losses.latent and all(record.generator_digest != digest for record in records):
        say("the pairs' latents belong to another generator: losses.latent has no effect in this run")

    identity = describe(settings.model_dump(exclude={"workers"}), feature, digest, data_digest(records))
    claim_folder(out, identity, run.accelerator)
    resume(run, out)
    info = checkpoints.ModelInfo(feature, settings.style, identity, kinds)
    log = RunLog(out, run.step, enabled=run.accelerator.is_main_process)
    world = run.accelerator.num_processes
    say(f"{feature}: {len(records)} pairs, {len(held_out)} held out; {world} processes; step {run.step}")
    for batch in batch_stream(run, dataset):
        figures = training_step(run, batch)
        run.step += 1
        if run.step % settings.log_every_steps == 0 or run.step == settings.steps:
            stop_unless_finite(run.step, figures, out)
            log.write(run.step, "train", figures)
            say(line_of(run.step, settings.steps, figures))
        if run.step % settings.sample_every_steps == 0 or run.step == settings.steps:
            write_samples(run, val if held_out else dataset, out)
        if run.step % settings.checkpoint_every_steps == 0 or run.step == settings.steps:
            stop_unless_finite(run.step, figures, out)
            if held_out and run.accelerator.is_main_process:
                measured = pair_figures(run.average, val, run.perceptual, run.accelerator.device)
                log.write(run.step, "val", measured)
                say(line_of(run.step, settings.steps, measured, "held out"))
            save(run, out, info)
    log.close()
    run.accelerator.end_training()
    return out


def build(settings: TrainingSettings, feature: str, channels: int) -> Run:
    """Networks, optimisers and their wrapping, before any step."""
    accelerator = Accelerator(
        mixed_precision=settings.mixed_precision,
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
        step_scheduler_with_optimizer=False,
    )
    torch.manual_seed(settings.seed)
    model = initial_model(settings, feature, channels)
    channels_last(model)
    average = copy.deepcopy(model).eval().requires_grad_(False)
    average.generator = model.generator.to(accelerator.device)
    discriminator = Discriminator(
        DiscriminatorConfig(
            img_resolution=model.size_px,
            channel_base=settings.discriminator.channel_base,
            channel_max=settings.discriminator.channel_max,
            cond_channels=1 + channels,
            mbstd_group_size=math.gcd(settings.batch_size, 4),
        )
    )
    channels_last(discriminator)
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trainable, settings.learning_rate, ADAM_BETAS)
    critic_optimizer = torch.optim.Adam(
        discriminator.parameters(), settings.discriminator.learning_rate, DISCRIMINATOR_BETAS
    )
    net, critic, wrapped, critic_wrapped = accelerator.prepare(model, discriminator, optimizer, critic_optimizer)
    perceptual = load_perceptual(settings.perceptual).to(accelerator.device)
    channels_last(perceptual)
    average = average.to(accelerator.device)
    return Run(settings, accelerator, model, average, net, discriminator, critic, wrapped, critic_wrapped, perceptual)


def channels_last(module: nn.Module) -> None:
    """Lay weights out for the convolutions' fast paths: a step is 1.2 times faster with it (1 core, bf16)."""
    for parameter in module.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)


def initial_model(settings: TrainingSettings, feature: str, channels: int) -> Glean:
    """The model that a run starts from: trained weights, or a fresh encoder and decoder around a generator."""
    config = GleanConfig(channels, settings.model.channel_base, settings.model.channel_max)
    if settings.init == "none":
        return Glean(load_generator(settings.generator), config)
    model, _ = checkpoints.load_model(settings.init, feature)
    if model.config != config:
        raise InputError(f"init {settings.init}: is {model.config}, the recipe asks for {config}; change one of them")
    return model.train()


def batch_stream(run: Run, dataset: PairDataset) -> Iterator[Batch]:
    """This process's batches from the run's next step to its last, on its device."""
    settings, accelerator = run.settings, run.accelerator
    plan = batches(
        len(dataset), settings.batch_size, settings.seed, run.step, settings.steps,
        accelerator.process_index, accelerator.num_processes,
    )  # fmt: skip
    on_gpu = accelerator.device.type == "cuda"
    workers = loader_workers(settings, accelerator)
    loader = torch.utils.data.DataLoader(
        dataset,
        batch_sampler=list(plan),
        num_workers=workers,
        prefetch_factor=BATCHES_AHEAD if workers else None,
        pin_memory=on_gpu,
    )
    try:
        for batch in loader:
            yield {name: moved(tensor, accelerator.device) for name, tensor in batch.items()}
    except InputError as error:  # a worker's comes with its traceback before the message
        raise InputError(str(error).rpartition(f"{InputError.__name__}: ")[2].strip()) from None


def loader_workers(settings: TrainingSettings, accelerator: Accelerator) -> int:
    """Processes that load beside the computation, for each training process; what they load does not depend on it.

    Where the setting leaves it open: the cores that each GPU has to itself, none on a CPU, which has none to spare.
    """
    if settings.workers is not None:
        return settings.workers
    if accelerator.device.type != "cuda":
        return 0
    return min(MOST_WORKERS, max(1, (os.cpu_count() or 1) // max(torch.cuda.device_count(), 1) - 1))


def moved(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """On the device, images in the layout of the convolutions; the copy runs beside the computation where it can."""
    if tensor.ndim == 4:
        return tensor.to(device, non_blocking=True, memory_format=torch.channels_last)
    return tensor.to(device, non_blocking=True)


def training_step(run: Run, batch: Batch) -> dict[str, float | torch.Tensor]:
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
    norm = accelerator.clip_grad_norm_([p for p in run.model.parameters() if p.requires_grad], MAX_GRADIENT_NORM)
    run.optimizer.step()
    run.optimizer.zero_grad(set_to_none=True)
    update_average(run)
    figures: dict[str, float | torch.Tensor] = {"total": total.detach(), "gradient_norm": norm, "rate": rate}
    figures |= {name: term.detach() for name, term in terms.items()}
    if adversarial:
        figures |= discriminator_step(run, edit.output.detach().clamp(-1, 1), batch, rate)
    return figures


def editing_losses(run: Run, edit: Edit, batch: Batch) -> dict[str, torch.Tensor]:
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


def discriminator_step(run: Run, fake: torch.Tensor, batch: Batch, rate: float) -> dict[str, torch.Tensor]:
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


def judged(image: torch.Tensor, batch: Batch) -> torch.Tensor:
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


def resume(run: Run, out: Path) -> None:
    """Continue from the folder's state, where there is one."""
    path = out / checkpoints.STATE_FILE
    if not path.is_file():
        return
    tensors, details = checkpoints.load_state(path)
    for module, prefix in ((run.model, "model."), (run.average, "average."), (run.discriminator, "discriminator.")):
        module.load_state_dict(dict(checkpoints.with_prefix(tensors, prefix)), strict=prefix == "discriminator.")
    checkpoints.load_optimizer(run.optimizer, tensors, "optimizer.")
    checkpoints.load_optimizer(run.critic_optimizer, tensors, "critic_optimizer.")
    run.step = details["step"]


def save(run: Run, out: Path, info: checkpoints.ModelInfo) -> None:
    """Replace the folder's model and state."""
    if run.accelerator.is_main_process:
        tensors = {f"model.{name}": value for name, value in run.model.trainable_state().items()}
        tensors |= {f"average.{name}": value for name, value in run.average.trainable_state().items()}
        tensors |= {f"discriminator.{name}": value for name, value in run.discriminator.state_dict().items()}
        tensors |= checkpoints.optimizer_tensors(run.optimizer, "optimizer.")
        tensors |= checkpoints.optimizer_tensors(run.critic_optimizer, "critic_optimizer.")
        checkpoints.save_model(out / checkpoints.MODEL_FILE, run.average, info)
        checkpoints.save_state(out / checkpoints.STATE_FILE, tensors, {"step": run.step})
    run.accelerator.wait_for_everyone()


def write_samples(run: Run, dataset: PairDataset, out: Path) -> None:
    """A PNG of some pairs as the averaged model sees them."""
    if run.accelerator.is_main_process:
        png = sample_sheet(run.average, dataset, min(SHEET_ROWS, len(dataset)), run.accelerator.device)
        replace_file(out / "samples" / f"{run.step:08d}.png", lambda file: file.write(png))


def stop_unless_finite(step: int, figures: dict[str, float | torch.Tensor], out: Path) -> None:
    """Raises InputError that names the terms which are not finite; nothing of such a step is ever saved."""
    bad = [name for name, value in figures.items() if not math.isfinite(float(value))]
    if bad:
        raise InputError(
            f"{out}: step {step}: {', '.join(bad)} not finite; lower learning_rate or use mixed_precision no,"
            " the last checkpoint is whole"
        )
