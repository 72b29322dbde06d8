"""Train the embedded portrait StyleGAN2 (Karras et al. 2020) on a few thousand aligned portraits.

    python recipes/generator/train.py --portraits DIR... --out RUN --start-from recipes/generator/weights
    accelerate launch recipes/generator/train.py ...        (several GPUs)

Each DIR holds aligned/ and hair/ as `datagen prepare` writes them. RUN keeps the state (resumed when it exists), log,
figures, sample sheets and `generator_ema.safetensors`. The losses: heads on frozen features
(stylepairs.datagen.stylegan.projected), of the whole and of the enlarged face, moments of features (moments.py), and
portraits rendered from their own latents (codes.py).
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import broadcast
from augment import draw_augmentation
from codes import assign_codes
from data import Portraits, check_shares
from draws import Draws, draw_step
from figures import held_out, kernel_distances, write_sheet
from losses import accuracy, balanced, decibel, likeness_loss
from state import (
    Rates,
    TrainingState,
    append,
    build_state,
    config_of,
    export_ema,
    load_state,
    move_average,
    save_state,
    start_stage,
)

from stylepairs.datagen.images.trunk import load_trunk
from stylepairs.datagen.shell.durable import keep_rows, make_folder
from stylepairs.datagen.shell.errors import InputError, exit_on_bad_input
from stylepairs.datagen.shell.lock import folder_lock
from stylepairs.datagen.shell.machine import refuse_launched
from stylepairs.datagen.stylegan.projected import generator_loss, heads_loss
from stylepairs.kernels.gpu.cuda_graph import graphed
from stylepairs.kernels.precision import training_precision

W_AVG_BETA = 0.998
BALANCE_EVERY, LOG_EVERY = 50, 50  # steps
LEAST_STAGE_PX = 8  # of a generator
COOLING = 3  # how often the rates are halved, evenly spread over --cool-minutes
MEASURE_BATCH, DEVIATION_BATCHES = 32, 16  # of portraits, from which channels' deviations are taken
FACE_TOP, FACE_LEFT, FACE_SIDE = 0.34, 0.25, 0.5  # of an aligned portrait's side: brows to chin
Maps = list[torch.Tensor]
Row = dict[str, torch.Tensor]
Seen = dict[str, tuple[Maps, Maps]]  # by group of heads: mixed features, generated and real


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--portraits", type=Path, nargs="+", required=True, help="folders with aligned/ and hair/ (training only)")
    add("--shares", type=float, nargs="+", help="how often each folder is drawn from; default: by its size")
    add("--validation", type=Path, nargs="*", default=[], help="folders of the same form, for the logged figures")
    add("--out", type=Path, required=True)
    add("--start-from", type=Path, help="folder with generator, generator_ema and, if there, discriminator, codes")
    add("--trunk", type=Path, help="EfficientNet-Lite0 weights; default: those installed")
    add("--stages", type=stage, nargs="+", default=[(128, 1_000_000)], help="RESOLUTION:UNTIL_IMAGES")
    add("--channel-base", type=positive, default=2048)
    add("--channel-max", type=positive, default=128)
    add("--latent-dim", type=positive, default=256, help="both z and w")
    add("--mapping-layers", type=positive, default=2)
    add("--batch", type=positive, default=8, help="images per step, all processes together")
    add("--learning-rate", type=amount, default=0.001)
    add("--heads-rate", type=amount, default=0.0003)
    add("--offsets-rate", type=amount, default=0.0005)
    add("--rebuilt-share", type=share, default=0.25, help="share of a batch rendered from portraits' latents")
    add("--likeness", type=amount, default=0.4, help="its gradient on the images by the heads'")
    add("--moments", type=amount, default=0.6, help="the moments' gradient by the heads', likewise")
    add("--offsets-decay", type=amount, default=0.1, help="weight of the offsets' mean square beside the likeness")
    add("--measure-images", type=positive, default=8192, help="draws of portraits from which their moments are taken")
    add("--augment-p", type=share, default=0.3)
    add("--face-weight", type=amount, default=0.5, help="of heads that see brows to chin alone, enlarged; 0: none")
    add("--ema-images", type=positive, default=5_000, help="half-life of the weight average, in images")
    add("--recolour-share", type=share, default=0.2, help="share of real images with recoloured hair")
    add("--precision", choices=["no", "bf16"], default=training_precision(), help="default: this machine's fastest")
    add("--save-every", type=positive, default=2_000, help="images between saved states")
    add("--sheet-every", type=positive, default=10_000, help="images between sample sheets and figures")
    add("--minutes", type=amount, help="stop (with the state saved) after so many minutes")
    add("--cool-minutes", type=amount, default=0.0, help="lower the rates in the last so many of --minutes")
    add("--seed", type=int, default=0)
    args = parser.parse_args()
    check_shares(parser, args.shares, args.portraits, "--portraits")
    if args.channel_base < (largest := max(px for px, _ in args.stages)):
        parser.error(f"--channel-base {args.channel_base}: must be at least the side of --stages, {largest}")
    if args.cool_minutes and args.minutes is None:
        parser.error("--cool-minutes: the end that rates are lowered towards is that of --minutes; give it too")
    return args


def positive(text: str) -> int:
    if not (text.isdecimal() and int(text)):
        raise argparse.ArgumentTypeError(f"{text}: must be a whole number above 0")
    return int(text)


def amount(text: str) -> float:
    if not 0 <= (value := float(text)) < math.inf:
        raise argparse.ArgumentTypeError(f"{text}: must be a number of at least 0")
    return value


def share(text: str) -> float:
    if not 0 <= (value := float(text)) <= 1:
        raise argparse.ArgumentTypeError(f"{text}: must be between 0 and 1")
    return value


def stage(text: str) -> tuple[int, int]:
    """RESOLUTION:UNTIL_IMAGES."""
    resolution, _, until = text.partition(":")
    if not (resolution.isdecimal() and until.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text}: must be RESOLUTION:UNTIL_IMAGES, as 128:400000")
    px = int(resolution)
    if px < LEAST_STAGE_PX or px & (px - 1):
        raise argparse.ArgumentTypeError(f"{text}: the resolution must be a power of two, at least {LEAST_STAGE_PX}")
    return px, int(until)


def main() -> None:
    with exit_on_bad_input():
        run(parse_args())


def run(args: argparse.Namespace) -> None:
    """All stages, in a folder that no other run writes. Raises InputError."""
    torch.backends.cudnn.benchmark = True  # all steps have the same shapes
    refuse_launched(args.precision)
    accelerator = Accelerator(mixed_precision=args.precision, cpu=not torch.cuda.is_available())
    if args.batch % accelerator.num_processes:
        raise InputError(f"--batch {args.batch}: must be a multiple of the {accelerator.num_processes} processes")
    count = args.batch // accelerator.num_processes
    if not 0 < round(count * args.rebuilt_share) < count:
        raise InputError(
            f"--rebuilt-share {args.rebuilt_share:g}: of a process's {count} images at least one must be a portrait "
            "rebuilt and one must not; change it, or give a larger --batch"
        )
    make_folder(args.out)
    with folder_lock(args.out, "train.py") if accelerator.is_main_process else nullcontext():
        run_stages(args, accelerator)


def run_stages(args: argparse.Namespace, accelerator: Accelerator) -> None:
    """From where --out is. Raises InputError."""
    deadline = time.time() + 60 * args.minutes if args.minutes is not None else float("inf")
    rates = Rates(args.learning_rate, args.heads_rate, args.offsets_rate)
    path = args.out / "state.safetensors"
    state = load_state(path, rates, accelerator.device) or build_state(args, rates, args.stages[0][0])
    if accelerator.is_main_process:
        for name in ("log.jsonl", "figures.jsonl"):  # a run that begins may find rows of one killed before its state
            keep_rows(args.out / name, "images", state.images_seen)
    found = state.generator.config
    if found != (asked := config_of(args, found.img_resolution)):
        raise InputError(f"{path}: the run's is {found}, asked for is {asked}; a run keeps its sizes")
    if all(state.images_seen >= until for _, until in args.stages):
        seen = state.images_seen
        told = f"--stages: ends at {args.stages[-1][1]} images, of which {seen} were seen; give a later end"
        if not path.exists():  # nothing would come of it
            raise InputError(told)
        accelerator.print(told, flush=True)
    for resolution, until in args.stages:
        if state.images_seen >= until:
            continue
        if state.generator.config.img_resolution > resolution:
            raise InputError(
                f"--stages {resolution}:{until}: {path} is at {state.generator.config.img_resolution} px already; "
                "leave the stage out, or give another --out"
            )
        if state.generator.config.img_resolution < resolution:
            state = start_stage(state, rates, resolution, args.seed)
        Stage(state, args, accelerator).train(until, deadline)
        if state.images_seen < until:  # the time is up, of which the first process alone decides
            break


class Stage:
    """Training at one resolution."""

    def __init__(self, state: TrainingState, args: argparse.Namespace, accelerator: Accelerator):
        self.state, self.args, self.accelerator = state, args, accelerator
        state.to(accelerator.device)
        self.draws: Draws | None = None  # of the step at hand, always in the same memory
        self.row: Row = {}  # what it gave, likewise
        resolution = state.generator.config.img_resolution
        self.data = Portraits(args.portraits, resolution, args.shares).to(accelerator.device)
        self.validation = held_out(args.validation, resolution)
        dtype = torch.bfloat16 if args.precision == "bf16" else torch.float32
        self.trunk = load_trunk(args.trunk, dtype).to(accelerator.device)
        self.count = args.batch // accelerator.num_processes
        self.rebuilt = round(self.count * args.rebuilt_share)
        if not len(state.codes):
            state.codes = assign_codes(state.ema, self.trunk, self.data.with_mirrored(), args.seed)
        if len(state.codes) != 2 * len(self.data):
            raise InputError(
                f"{len(state.codes)} codes for {len(self.data)} portraits: these are not the run's own; give those, or "
                "another --out and a --start-from folder without codes.safetensors, and latents are assigned anew"
            )
        if not state.measured:
            self.measure_portraits()

    @torch.no_grad()
    def measure_portraits(self) -> None:
        """The portraits' own features, as the heads see them: mean and deviation of each channel, then the moments."""
        draw = torch.Generator().manual_seed(self.args.seed)

        def features() -> Maps:
            portraits = self.data.batch(MEASURE_BATCH, self.args.recolour_share, draw).images
            augment = draw_augmentation(MEASURE_BATCH, self.args.augment_p, draw, portraits.device)
            maps: Maps = self.trunk(augment(portraits))
            return maps

        batches = -(-self.args.measure_images // MEASURE_BATCH)
        self.state.mixing.measure([features() for _ in range(min(batches, DEVIATION_BATCHES))])
        self.state.moments.fit(self.maps(features()) for _ in range(batches))
        self.state.measured = True

    def train(self, until: int, deadline: float) -> None:
        """Until `until` images have been seen or the time is up."""
        state, args = self.state, self.args
        started, started_at, halvings = time.time(), state.images_seen, -1
        while state.images_seen < until and (left := self.seconds_until(deadline)) > 0:
            due = halvings_due(left, 60 * args.cool_minutes)
            if due != halvings:
                halvings, learn = due, self.at_rates(0.5**due)
            self.draw()
            if self.balance_is_due():
                self.step(balance=True)
            else:
                learn()
            move_average(state.ema, state.generator, args.batch, state.images_seen, args.ema_images)
            state.images_seen += args.batch
            self.report((state.images_seen - started_at) / (time.time() - started))
        self.values()
        if self.accelerator.is_main_process:
            save_state(args.out / "state.safetensors", state)
            export_ema(args.out / "generator_ema.safetensors", state)
            write_sheet(args.out / "samples.png", state.ema)

    def seconds_until(self, deadline: float) -> float:
        """By the first process's clock: all are to stop, and to lower their rates, at the same step."""
        left = deadline - time.time()
        if self.accelerator.num_processes == 1:
            return left
        told = torch.tensor([left], dtype=torch.float64, device=self.accelerator.device)
        return float(broadcast(told))

    def at_rates(self, factor: float) -> Callable[[], None]:
        """A step with the rates that were asked for, times factor; on one GPU a graph of CUDA kernels, which knows its
        rates as constants."""
        for optimizer in (self.state.g_optimizer, self.state.d_optimizer):
            for group in optimizer.param_groups:
                group["lr"] = group["full_rate"] * factor
                group["capturable"] = self.accelerator.device.type == "cuda"
        return self.step if self.accelerator.num_processes > 1 else graphed(self.step, self.accelerator.device)

    def draw(self) -> None:
        state, args = self.state, self.args
        draws = draw_step(
            (args.seed, state.images_seen, self.accelerator.process_index), self.data, state.codes,
            state.generator, self.count, self.rebuilt, args.augment_p, args.recolour_share,
        )  # fmt: skip
        if self.draws is None:
            self.draws = draws
        else:
            self.draws.take(draws)

    def step(self, balance: bool = False) -> None:
        """Of all that learns, on self.draws; asks nothing of the device unless the losses are to be weighed anew."""
        assert self.draws is not None
        row, seen = self.generator_step(self.draws, balance)
        row |= self.heads_step(seen)
        if not self.row:
            self.row = {key: torch.zeros_like(value) for key, value in row.items()}
        for key, value in row.items():
            self.row[key].copy_(value)

    def values(self) -> dict[str, float]:
        """What the last step gave, the mean over all processes: the same in each, so that all stop together."""
        means = self.mean(torch.stack(list(self.row.values()))) if self.row else torch.zeros(0)
        values = {key: round(value, 4) for key, value in zip(self.row, means.tolist(), strict=True)}
        if not all(map(math.isfinite, values.values())):
            raise SystemExit(f"not finite after {self.state.images_seen} images: {values}; resume with lower rates")
        return values

    def generator_step(self, draws: Draws, balance: bool) -> tuple[Row, Seen]:
        """One step of generator and offsets; returns what to log, and what the heads see."""
        state, args, n = self.state, self.args, self.rebuilt
        with torch.no_grad():
            real = self.maps(self.trunk(draws.augment(draws.portraits)))
            real_face = self.face_maps(draws.portraits, draws)
        levels = len(real) // 2
        offsets = state.offsets([level[:n] for level in real[:levels]])
        image = self.render(draws, offsets)
        fake = self.maps(self.trunk(draws.augment(image)))
        fake_face = self.face_maps(image, draws)
        for heads in (state.heads, state.face_heads):
            heads.requires_grad_(False).eval()  # eval: their spectral norms move in their own step alone
        with self.accelerator.autocast():
            leading = generator_loss(state.heads(fake[levels:]))
            if fake_face:
                leading = leading + args.face_weight * generator_loss(state.face_heads(fake_face))
        # Of draws of the prior alone: what is rebuilt resembles portraits anyway.
        drawn = args.batch // self.count * (self.count - n)
        moments = state.moments([level[n:] for level in fake], drawn, self.mean)
        pairs = ([level[:n] for level in fake[:levels]], [level[:n] for level in real[:levels]])
        likeness = likeness_loss(image[:n], draws.portraits[:n], *pairs)
        if balance:
            self.balance(image, leading, moments, likeness)
        by_likeness = likeness + args.offsets_decay * offsets.square().mean()
        state.g_optimizer.zero_grad()
        self.accelerator.backward(
            leading + state.weights["moments"] * moments + state.weights["likeness"] * by_likeness
        )
        self.reduce_gradients(state.g_optimizer)
        state.g_optimizer.step()
        row = {"adversarial": leading, "moments": moments, "likeness": likeness}
        row |= {"offsets": offsets.square().mean().sqrt(), "rebuilt_db": decibel(image[:n], draws.portraits[:n])}
        seen = {"heads": (fake[levels:], real[levels:]), "face_heads": (fake_face, real_face)}
        return (
            {key: value.detach() for key, value in row.items()},
            {name: ([x.detach() for x in made], real) for name, (made, real) in seen.items() if made},
        )

    def heads_step(self, seen: Seen) -> Row:
        """One step of the heads; returns their loss and how often they were right."""
        state, row, total = self.state, {}, torch.zeros((), device=self.accelerator.device)
        for name, (fake, real) in seen.items():
            heads = getattr(state, name).requires_grad_(True).train()
            with self.accelerator.autocast():
                real_logits, fake_logits = heads(real), heads(fake)
            loss = heads_loss(real_logits, fake_logits)
            total = total + loss
            row[name] = loss.detach()
            row[name.replace("heads", "accuracy")] = accuracy(real_logits, fake_logits).detach()
        state.d_optimizer.zero_grad()
        self.accelerator.backward(total)
        self.reduce_gradients(state.d_optimizer)
        state.d_optimizer.step()
        return row

    def render(self, draws: Draws, offsets: torch.Tensor) -> torch.Tensor:
        """Images [N,3,R,R]; moves the running mean latent."""
        generator = self.state.generator
        mapping = generator.mapping
        w = torch.unflatten(mapping.to_w(draws.z.flatten(0, 1)), 0, draws.z.shape[:2])
        mapping.w_avg.copy_(self.mean(w[1].detach().mean(0)).lerp(mapping.w_avg, W_AVG_BETA))
        layers = torch.arange(generator.num_ws, device=w.device)
        ws = torch.where((layers < draws.cutoff[:, None])[..., None], w[0][:, None], w[1][:, None])
        ws = torch.cat([ws[: len(offsets)] + offsets, ws[len(offsets) :]])
        with self.accelerator.autocast():
            image: torch.Tensor = generator.synthesis(ws, noise=draws.noise)
        return image.float()

    def maps(self, features: Maps) -> Maps:
        """Normalised features, then their random mixtures."""
        normalised = self.state.mixing.normalised(features)
        with self.accelerator.autocast():
            return [*normalised, *self.state.mixing(normalised)]

    def face_maps(self, images: torch.Tensor, draws: Draws) -> Maps:
        """Mixed features of the enlarged faces (as GFPGAN's discriminators of components, Wang et al. 2021); none
        without a weight."""
        if not self.args.face_weight:
            return []
        side = images.shape[-1]
        top, left, size = (round(side * share) for share in (FACE_TOP, FACE_LEFT, FACE_SIDE))
        face = images[:, :, top : top + size, left : left + size]
        face = F.interpolate(face, size=(side, side), mode="bilinear", align_corners=False)
        maps = self.maps(self.trunk(draws.augment(face)))
        return maps[len(maps) // 2 :]

    def balance(
        self, image: torch.Tensor, leading: torch.Tensor, moments: torch.Tensor, likeness: torch.Tensor
    ) -> None:
        """Weigh the losses anew: their gradients on the image as shares of the heads'."""
        state, args = self.state, self.args
        rows = {"moments": slice(self.rebuilt, None), "likeness": slice(self.rebuilt)}
        for name, loss in (("moments", moments), ("likeness", likeness)):
            share, old = getattr(args, name), state.weights.get(name)
            new = balanced(old, share, leading, loss, image, rows[name], self.mean)
            state.weights.setdefault(name, torch.zeros((), device=image.device)).fill_(new)

    def balance_is_due(self) -> bool:
        return not self.state.weights or self.state.images_seen // self.args.batch % BALANCE_EVERY == 0

    def mean(self, value: torch.Tensor) -> torch.Tensor:
        """Over all processes."""
        reduced: torch.Tensor = self.accelerator.reduce(value, "mean")
        return reduced

    def reduce_gradients(self, optimizer: torch.optim.Optimizer) -> None:
        if self.accelerator.num_processes > 1:
            for parameter in (p for group in optimizer.param_groups for p in group["params"]):
                if parameter.grad is not None:  # the face's heads have none without a weight
                    parameter.grad = self.mean(parameter.grad)

    def report(self, rate: float) -> None:
        """Log; save the state, draw a sheet and take figures when they are due."""
        state, args, seen = self.state, self.args, self.state.images_seen
        logs = seen // args.batch % LOG_EVERY == 0
        saves, shows = (seen % every < args.batch for every in (args.save_every, args.sheet_every))
        # A value that is asked of a GPU makes it wait.
        if self.accelerator.device.type == "cuda" and not (logs or saves or shows):
            return
        row = self.values()
        if not self.accelerator.is_main_process:
            return
        if logs:
            weights = {f"{name}_weight": float(f"{float(value):.4g}") for name, value in state.weights.items()}
            resolution = state.generator.config.img_resolution
            append(args.out / "log.jsonl", {"images": seen, "px": resolution, "rate": round(rate, 2), **row, **weights})
        if saves:
            save_state(args.out / "state.safetensors", state)
        if shows:
            write_sheet(args.out / f"samples_{seen:07d}.png", state.ema)
            export_ema(args.out / "generator_ema.safetensors", state)
            if self.validation:
                append(args.out / "figures.jsonl", {"images": seen} | kernel_distances(state.ema, self.validation))


def halvings_due(left: float, cooling: float) -> int:
    """How often the rates are to be halved with so many seconds left, of which the last `cooling` lower them."""
    return 0 if left >= cooling else min(1 + int(COOLING * (1 - left / cooling)), COOLING)


if __name__ == "__main__":
    main()
