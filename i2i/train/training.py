"""Trains the single-pass editor on pairs, through accelerate: build, resume, loop, evaluate, save, in that order.

The run that is killed and started again equals the one that was not: randomness comes from (seed, epoch, index), and
what a checkpoint holds is checked when it is written and when it is read. Its files: see `run_folder`.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import nn

from stylepairs.datagen.images.perceptual import load_perceptual
from stylepairs.datagen.images.trunk import load_trunk
from stylepairs.datagen.pairs.index import distinct
from stylepairs.datagen.pairs.shards import refuse_pairs
from stylepairs.datagen.portraits.folders import refuse_portraits
from stylepairs.datagen.shell.errors import InputError
from stylepairs.datagen.shell.lock import folder_lock
from stylepairs.datagen.shell.machine import refuse_launched
from stylepairs.datagen.stylegan.projected import Maps
from stylepairs.i2i.models import checkpoints
from stylepairs.i2i.models.conditions import Kinds, color_or, kinds_for
from stylepairs.i2i.models.glean import Edit, Glean
from stylepairs.i2i.models.prepared_glean import prepare
from stylepairs.i2i.train import losses
from stylepairs.i2i.train.adversary import discriminator_step, generator_terms, initial_discriminator
from stylepairs.i2i.train.data import PairDataset, Sample, killed_loader_is_told, load_batches, mixed_batches
from stylepairs.i2i.train.degraded import DegradedPortraits
from stylepairs.i2i.train.frozen import FrozenFeatures, edited_squares
from stylepairs.i2i.train.held_out import pair_figures, sample_sheet
from stylepairs.i2i.train.run_folder import RunLog, claim_folder, line_of, save_checkpoint, save_sample
from stylepairs.i2i.train.settings import TrainingSettings
from stylepairs.i2i.train.sides import (
    Sides,
    Unpaired,
    one_feature,
    pair_sides,
    portrait_sides,
    told_sides,
    unpaired_portraits,
)
from stylepairs.i2i.train.start import (
    Run,
    identity_of,
    info_of,
    initial_model,
    latents_of,
    load_teacher,
    refuse_divided,
    resume,
    run_state,
)
from stylepairs.kernels.precision import training_precision

ADAM_BETAS, DISCRIMINATOR_BETAS = (0.9, 0.99), (0.0, 0.99)
PATCHES_BETAS = (0.5, 0.999)  # of both sides, as pix2pixHD has them
# Bound what one bad batch can do. Adam divides by the usual size of a gradient, so the exact numbers matter little.
MAX_GRADIENT_NORM = 2.0
# The finest frozen features at which another strand than the pair's is no fault, and the cells of those below.
COARSE_LEVEL, CELL_PX = 3, 16
# A pair must hold what is as bright or as dark as its edit within the side divided by this.
HALO_REACH = 32
SHEET_ROWS = 6

Say = Callable[[str], None]


def train(
    settings: TrainingSettings,
    pairs: Path,
    out: Path,
    say: Say = lambda _: None,
    feature: str | None = None,
    portraits: Sequence[Path] = (),
) -> Path:
    """Train on the accepted pairs of a folder; returns the run folder. A run that is there already is continued.

    pairs: with `settings.degradation` a folder of prepared portraits in their place. say receives a line now and then
    (main process only). feature: what the pairs have to be of, None: whatever they are of. portraits: prepared folders,
    of which `settings.data.portraits_share` of each batch is: where to edit is learnt of them, and nothing else, unless
    there is a teacher. Raises InputError for unusable data, weights or run folders, and when a loss or a weight stops
    being finite.
    """
    refuse_portraits(out)
    refuse_pairs(out)
    sides = portrait_sides(pairs) if settings.degradation else pair_sides(pairs)
    feature = one_feature(sides.records, pairs, feature)
    teacher = load_teacher(settings, feature, settings.style)
    own_kinds = kinds_for(settings.style, distinct(sides.records, "params"))
    network, kinds = teacher or (None, own_kinds)
    sides = told_sides(sides, pairs, feature, settings.style, kinds, settings.val_pairs, say)
    unpaired = unpaired_portraits(portraits, feature)
    beside = portraits_in_batch(settings) if unpaired else 0
    run = build(settings, feature, kinds, network, beside, has_refused=bool(sides.refused))
    dataset, val = datasets(run, pairs, sides, kinds, unpaired)
    begun = settings.init != "none" and isinstance(run.model, Glean)
    brings = "init" if begun else "teacher" if isinstance(network, Glean) else ""
    if brings and settings.generator != "embedded":
        source = f"{brings} {getattr(settings, brings)}"
        say(f"the generator comes with {source}: generator {settings.generator} is used by {brings}=none only")
    _, generator = latents_of(run.model)
    if settings.losses.latent and generator and generator not in distinct(sides.records, "generator_digest"):
        say("the pairs' latents belong to another generator: losses.latent has no effect in this run")

    identity = identity_of(settings, feature, generator, sides, unpaired)
    info, accelerator = info_of(settings, identity, kinds), run.accelerator
    main = accelerator.is_main_process
    with folder_lock(out, "i2i train") if main else nullcontext():
        claim_folder(out, identity, accelerator.wait_for_everyone, main, say)
        resume(run, out, say)
        refuse_divided(run, identity, out)
        if run.features is not None and not run.step:
            run.features.measure(dataset)
        what = "portraits" if settings.degradation else "pairs"
        counts = f"{len(sides.records)} {what}, {len(sides.held_out)} held out, {len(sides.refused)} refused"
        counts += f", {len(unpaired.records)} portraits without pairs" if unpaired else ""
        say(f"{feature}: {counts}; {accelerator.num_processes} processes; step {run.step}")
        with killed_loader_is_told():
            take_steps(run, dataset, val, out, info, say)
    accelerator.end_training()
    return out


def datasets(
    run: Run, pairs: Path, sides: Sides, kinds: Kinds, unpaired: Unpaired | None
) -> tuple[PairDataset, PairDataset]:
    """What a run learns from, and what it is measured on."""
    settings, size_px, (latents, generator) = run.settings, run.model.size_px, latents_of(run.model)
    if settings.degradation:
        shape = size_px, latents, settings.degradation
        return (
            DegradedPortraits(pairs, sides.records, *shape, settings.data, settings.seed),
            DegradedPortraits(pairs, sides.held_out, *shape),
        )
    about, augmented = (size_px, settings.style, latents, generator), (settings.data, settings.seed)
    return (
        PairDataset(pairs, sides.records, *about, *augmented, kinds, sides.refused, unpaired),
        PairDataset(pairs, sides.held_out, *about, kinds=kinds, refused=sides.unseen),
    )


def take_steps(
    run: Run, dataset: PairDataset, val: PairDataset, out: Path, info: checkpoints.ModelInfo, say: Say
) -> None:
    """The run's steps from where it is to its end, with all that is written on the way."""
    settings, accelerator = run.settings, run.accelerator
    main, rank, world = accelerator.is_main_process, accelerator.process_index, accelerator.num_processes
    log = RunLog(out, run.step, enabled=main)
    shown = val if len(val) else dataset
    unpaired = len(dataset.unpaired.records) if dataset.unpaired else 0
    sizes = (settings.batch_size - run.portraits, run.portraits)
    ahead = (settings.seed, run.step, settings.steps, rank, world)
    plan = mixed_batches((len(dataset), unpaired), sizes, *ahead)
    for batch in load_batches(dataset, plan, accelerator.device, settings.workers):
        figures: Mapping[str, float | torch.Tensor] = training_step(run, batch)
        run.step += 1
        logs, saves = run.due(settings.log_every_steps), run.due(settings.checkpoint_every_steps)
        if logs or saves:
            figures = over_processes(run, figures)
            stop_unless_finite(run, figures)
        if logs:
            log.write(run.step, "train", figures)
            say(line_of(run.step, settings.steps, figures))
        if run.due(settings.sample_every_steps) and main:
            png = sample_sheet(run.average, shown, min(SHEET_ROWS, len(shown)), accelerator.device)
            save_sample(out, run.step, png)
        if saves:
            if main:
                evaluate_and_save(run, val, out, info, log, say)
            accelerator.wait_for_everyone()
    log.close()


def portraits_in_batch(settings: TrainingSettings) -> int:
    """How many samples of a batch are portraits without pairs. Raises InputError where that leaves none of a kind."""
    count = round(settings.data.portraits_share * settings.batch_size)
    if not 0 < count < settings.batch_size:
        share, kind = settings.data.portraits_share, "pair" if count else "portrait"
        raise InputError(
            f"data.portraits_share {share:g} of batch_size {settings.batch_size} leaves no {kind} in a batch; change"
            " one of them, or give no --portraits"
        )
    return count


def build(
    settings: TrainingSettings,
    feature: str,
    kinds: Kinds,
    teacher: checkpoints.Trained | None = None,
    portraits: int = 0,
    has_refused: bool = True,
) -> Run:
    """Networks, optimisers and their wrapping, before any step; kinds: what the style tells apart; teacher: whose edits
    take the place of the pairs'; portraits: how many samples of each batch, its last, have no pair; has_refused: see
    Run."""
    refuse_launched(settings.mixed_precision)
    accelerator = Accelerator(
        mixed_precision=training_precision() if settings.mixed_precision == "auto" else settings.mixed_precision
    )
    torch.manual_seed(settings.seed)
    model = initial_model(settings, feature, kinds, teacher.generator if isinstance(teacher, Glean) else None)
    if teacher is not None and teacher.size_px != model.size_px:
        raise InputError(
            f"teacher {settings.teacher}: works at {teacher.size_px} px, this run's network at {model.size_px} px; give"
            " a generator, or an init, of the teacher's size"
        )
    judged = settings.batch_size - (0 if teacher else portraits)
    discriminator = initial_discriminator(settings, model.size_px, model.config.style_channels, judged)
    perceptual, features = load_perceptual(settings.perceptual, settings.perceptual_weights), None
    modules: list[nn.Module] = [model, discriminator, perceptual]
    if settings.discriminator.kind == "projected" or settings.losses.texture or settings.losses.matching:
        half = accelerator.mixed_precision == "bf16"
        features = FrozenFeatures(load_trunk(dtype=torch.bfloat16 if half else torch.float32))
        modules.append(features)
    for module in modules:  # a step is 1.2 times faster with it (1 core, bf16)
        module.to(device=accelerator.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    average = copy.deepcopy(model).eval().requires_grad_(False)
    if isinstance(average, Glean) and isinstance(model, Glean) and not model.config.thawed:
        average.generator = model.generator
    patches = settings.discriminator.kind == "patches"
    optimizer = torch.optim.Adam(trained(model), settings.learning_rate, PATCHES_BETAS if patches else ADAM_BETAS)
    critic_rate, critic_betas = settings.discriminator.learning_rate, PATCHES_BETAS if patches else DISCRIMINATOR_BETAS
    critic_optimizer = torch.optim.Adam(discriminator.parameters(), critic_rate, critic_betas)
    net, critic, wrapped, critic_wrapped = accelerator.prepare(model, discriminator, optimizer, critic_optimizer)
    for wrapped_net in (net, critic):  # buffers stay each process's own; the keyword for that is deprecated
        if isinstance(wrapped_net, nn.parallel.DistributedDataParallel):
            wrapped_net.broadcast_buffers = False
    networks = (model, average, net, discriminator, critic)
    knowing = None if teacher is None else prepare(teacher.to(accelerator.device))
    frozen = perceptual, features, knowing
    return Run(settings, accelerator, *networks, wrapped, critic_wrapped, *frozen, portraits, has_refused=has_refused)


def trained(model: checkpoints.Trained) -> list[nn.Parameter]:
    """All but a frozen generator's parameters."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def training_step(run: Run, batch: Sample) -> dict[str, float | torch.Tensor]:
    """One step of the editor and, once adversarial training has begun, one of the discriminator."""
    settings, accelerator = run.settings, run.accelerator
    rate = schedule(run.step, settings)
    for group in run.optimizer.param_groups:
        group["lr"] = settings.learning_rate * rate
    adversarial = settings.losses.adversarial > 0 and run.step >= settings.discriminator.start_step

    batch = lesson(run, batch)
    run.net.train()
    edit = run.net(batch["photo"], batch["region"], batch["degree"], batch["style"])
    terms = placing_losses(run, edit, batch)
    if run.portraits and run.teacher is None:  # portraits without pairs have no target to be compared with
        edit, batch = without_last(run.portraits, edit, batch)
    if settings.model.draws:  # shown as the pair's mask has it: through a mask of its own, half of it would do
        photo = batch["photo"]
        edit = edit._replace(output=photo + batch["edit_mask"] * (edit.edit - photo))
    terms |= editing_losses(run, edit, batch)
    image = edit.output.clamp(-1, 1)
    maps = frozen_maps(run, edit.output, batch)
    if maps is not None:
        terms |= feature_losses(run, *maps, batch)
    if adversarial:
        terms |= generator_terms(run, image, batch, None if maps is None else maps[0])
    total = torch.stack(list(terms.values())).sum()
    accelerator.backward(total)
    norm = accelerator.clip_grad_norm_(trained(run.model), MAX_GRADIENT_NORM)
    run.optimizer.step()
    run.optimizer.zero_grad(set_to_none=True)
    update_average(run)
    figures: dict[str, float | torch.Tensor] = {"total": total.detach(), "gradient_norm": norm, "rate": rate}
    figures |= {name: term.detach() for name, term in terms.items()}
    if adversarial:
        for group in run.critic_optimizer.param_groups:
            group["lr"] = settings.discriminator.learning_rate * rate
        figures |= discriminator_step(run, image.detach(), batch, maps)
    return figures


@torch.no_grad()
def lesson(run: Run, batch: Sample) -> Sample:
    """The batch; its target and masks are the teacher's, where there is one and the feature applies."""
    if run.teacher is None:
        return batch
    edit: Edit = run.teacher(batch["photo"], batch["region"], batch["degree"], batch["style"])
    applies = batch["applies"][:, None, None, None]
    mask, target = edit.mask * applies, batch["target"].lerp(edit.output.clamp(-1, 1), applies)
    return batch | {"target": target, "mask": mask, "edit_mask": mask}


def without_last(count: int, edit: Edit, batch: Sample) -> tuple[Edit, Sample]:
    """All but so many samples."""
    return Edit(*(tensor[:-count] for tensor in edit)), {name: tensor[:-count] for name, tensor in batch.items()}


def placing_losses(run: Run, edit: Edit, batch: Sample) -> dict[str, torch.Tensor]:
    """The weighted terms that say where an edit belongs, and whether; of weight 0 the last alone."""
    weights, edit_mask, applies, terms = run.settings.losses, batch["edit_mask"], batch["applies"], {}
    if weights.mask:
        terms["mask"] = weights.mask * losses.mask_cross_entropy(edit.mask_logits, edit_mask, applies)
    if weights.spill:
        terms["spill"] = weights.spill * losses.spill_l1(edit.output, batch["photo"], edit_mask, applies)
    # At weight 0, too: processes wait for each other's gradients of every parameter, and the head has no others.
    sure = losses.confidence_cross_entropy(edit.confidence_logits, batch["applies"], refused_in_batch(run))
    return terms | {"confidence": weights.confidence * sure}


def refused_in_batch(run: Run) -> float:
    """The share of a batch that shows refused portraits, on average: pairs that hold none leave them to the portraits
    without pairs. Where nothing is refused at all, as if something were, or nothing would teach the confidence."""
    data, size = run.settings.data, run.settings.batch_size
    among = size if run.has_refused or not run.portraits else run.portraits
    return data.refused_share * among / size


def editing_losses(run: Run, edit: Edit, batch: Sample) -> dict[str, torch.Tensor]:
    """The weighted terms that compare an edit with its pair; terms of weight 0 are left out."""
    weights, target, mask, edit_mask = run.settings.losses, batch["target"], batch["mask"], batch["edit_mask"]
    if weights.l1_cells:
        terms = {"l1": weights.l1 * losses.smoothed_l1(edit.output, target, mask, weights.l1_cells)}
    else:
        terms = {"l1": weights.l1 * losses.pixel_l1(edit.output, target, mask, weights.region_weight)}
    if weights.halo:
        terms["halo"] = weights.halo * losses.halo_l1(edit.output, target, mask, max(1, target.shape[-1] // HALO_REACH))
    if weights.perceptual:
        with torch.no_grad():
            wanted = run.perceptual.features(target)
        terms["perceptual"] = weights.perceptual * losses.perceptual_l2(run.perceptual.features(edit.output), wanted)
    if weights.color:
        region = (edit_mask > 0.5).float()
        own = losses.mean_color(batch["photo"], region)
        wanted_color = own.lerp(color_or(batch["style"], own), batch["degree"][:, None])
        terms["color"] = weights.color * losses.color_distance(edit.output, wanted_color, region)
    if weights.generated:
        terms["generated"] = weights.generated * losses.pixel_l1(edit.generated, target, mask, 0.0)
    if weights.latent:
        terms["latent"] = weights.latent * losses.latent_l2(edit.ws, batch["ws"], batch["ws_valid"])
    return terms


def frozen_maps(run: Run, image: torch.Tensor, batch: Sample) -> tuple[Maps, Maps] | None:
    """Frozen features of the squares around the edits, of an image and of the pairs; None where nothing needs them."""
    if run.features is None:
        return None
    mask = batch["edit_mask"]
    with torch.no_grad():
        wanted = run.features(batch["target"], mask)
    return run.features(image.clamp(-1, 1), mask), wanted


def feature_losses(run: Run, maps: Maps, wanted: Maps, batch: Sample) -> dict[str, torch.Tensor]:
    """The weighted terms that compare frozen features with the pair's: fine ones by their local statistics, coarse ones
    place by place."""
    weights, terms = run.settings.losses, {}
    if weights.texture:
        squares = edited_squares(batch["mask"], batch["edit_mask"])
        distance = losses.texture_distance(maps[:COARSE_LEVEL], wanted[:COARSE_LEVEL], squares, CELL_PX)
        terms["texture"] = weights.texture * distance
    if weights.matching:
        coarse = zip(maps[COARSE_LEVEL:], wanted[COARSE_LEVEL:], strict=True)
        levels = [(a.float() - b.float()).abs().mean() for a, b in coarse]
        terms["matching"] = weights.matching * torch.stack(levels).mean()
    return terms


def over_processes(run: Run, figures: Mapping[str, float | torch.Tensor]) -> Mapping[str, float | torch.Tensor]:
    """The means of a step's figures over all processes, the same in each, so that all stop where one is not finite."""
    if run.accelerator.num_processes == 1:
        return figures
    own = torch.stack([torch.as_tensor(value, device=run.accelerator.device).double() for value in figures.values()])
    return dict(zip(figures, run.accelerator.reduce(own, "mean").tolist(), strict=True))


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
        if value.is_floating_point():
            average[name].lerp_(value, 1 - keep)
        else:  # batches that a norm has seen
            average[name].copy_(value)


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
        # Of drawn hair, the perceptual distance would choose what is smeared.
        kind = "texture" if run.settings.model.draws and not run.settings.degradation else "perceptual"
        distance = measured[f"{kind}_{run.perceptual.name}"]
        is_best = run.best is None or distance < run.best
        run.best = distance if is_best else run.best
    log.publish()
    details = checkpoints.StateDetails(step=run.step, best=run.best, processes=run.accelerator.num_processes)
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
