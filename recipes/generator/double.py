"""Double the side of a trained StyleGAN2 by one block more; all below it stays as it is, so that latents, directions
and what an encoder finds keep their meaning.

    python recipes/generator/double.py --generator embedded --encoder embedded --portraits DIR... --out RUN

Each DIR holds aligned/ and index.jsonl as `datagen prepare` writes them. The block learns from portraits that the
encoder brings back at the old side, so that nothing but detail is missing: likeness to the portrait, and heads on
frozen features (stylepairs.datagen.stylegan.projected), both on crops. Renderings of the prior's latents go along. All,
halved, are to be what was rendered before. RUN keeps the state (resumed when it exists), log, sheets and
`generator.safetensors`.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import math
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from figures import write_sheet
from growth import grow_generator
from losses import accuracy, balanced, decibel, likeness_loss
from starts import Starts, find_starts
from state import append, fitting, load_optimizer, move_average, read_state, tensors_of, under, write

from stylepairs.datagen.images.trunk import load_trunk
from stylepairs.datagen.shell.durable import keep_rows, make_folder
from stylepairs.datagen.shell.errors import InputError, exit_on_bad_input
from stylepairs.datagen.shell.lock import folder_lock
from stylepairs.datagen.stylegan.checkpoints import generator_digest, load_generator, save_generator
from stylepairs.datagen.stylegan.generator import Generator, SynthesisBlock
from stylepairs.datagen.stylegan.projected import Heads, Mixing, generator_loss, heads_loss

CROP_PX = 128  # what the heads see
MARGIN = 4  # features around a crop that are rendered and cut off: more than the block's convolutions see
BEYOND = 24  # corners are drawn so far outside of their room, too, and put back: an image's border is to be learned
DECAY_FROM = 0.6  # of --images, after which the rates fall to nothing
PRIOR_SHARE = 0.25  # of a batch: renderings of the prior's latents
PSI = 0.6, 1.0  # truncation of those, between
EMA_IMAGES = 5_000  # half-life of the block's average
EVERY = 50  # steps between balances of the losses, and rows of the log
MEASURED = 128  # crops of portraits that the features' deviations are taken from
FILE = "state.safetensors"
MODULES, OPTIMISERS = ("block", "average", "mixing", "heads"), ("block_optimiser", "heads_optimiser")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--generator", default="embedded", help="a checkpoint")
    add("--encoder", default="embedded", help="that of this generator")
    add("--portraits", type=Path, nargs="+", required=True, help="folders with aligned/ (training only)")
    add("--out", type=Path, required=True)
    add("--trunk", type=Path, help="EfficientNet-Lite0 weights; default: those installed")
    add("--images", type=int, default=60_000, help="renderings to learn from; rates fall to nothing towards the end")
    add("--batch", type=int, default=8)
    add("--learning-rate", type=float, default=0.002)
    add("--heads-rate", type=float, default=0.0004)
    add("--adversarial", type=float, default=0.5, help="the heads' gradient on the images by the likeness'")
    add("--halved", type=float, default=10.0, help="weight of how far the halved renderings are from the old ones")
    add("--save-every", type=int, default=4_000, help="images between saved states, with sheets")
    add("--seed", type=int, default=0)
    args = parser.parse_args()
    for name in ("images", "save_every"):
        if getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')}: must be above 0")
    if not 0 < round(args.batch * PRIOR_SHARE) < args.batch:
        parser.error(f"--batch {args.batch}: too small, as {PRIOR_SHARE:.0%} of it are renderings of the prior")
    return args


def main() -> None:
    args = parse_args()
    with exit_on_bad_input():
        make_folder(args.out)
        with folder_lock(args.out, "double.py"):
            doubling = Doubling(args)
            doubling.train()


class Doubling:
    """The run: networks, optimisers, progress."""

    def __init__(self, args: argparse.Namespace):
        self.args, self.device = args, torch.device("cuda" if torch.cuda.is_available() else "cpu")
        torch.manual_seed(args.seed)
        self.old = load_generator(args.generator)
        self.digest = generator_digest(self.old)
        if 2 * (side := self.old.config.img_resolution) < CROP_PX:
            raise InputError(f"{args.generator}: is of {side} px; crops can be taken from {CROP_PX // 2} px up")
        self.new = grown(self.old)
        self.block: SynthesisBlock = copy.deepcopy(self.new.synthesis.blocks()[-1]).requires_grad_(True)
        self.average = self.new.synthesis.blocks()[-1].requires_grad_(False)
        self.mixing, self.heads = Mixing(), Heads()
        self.images_seen, self.weight = 0, 0.0
        self.trunk = load_trunk(args.trunk).to(self.device)
        self.starts: Starts = find_starts(args.portraits, self.old, args.encoder, self.device)
        for name in MODULES:
            getattr(self, name).to(self.device)
        self.new.to(self.device)
        self.block_optimiser = torch.optim.Adam(self.block.parameters(), args.learning_rate, (0.5, 0.99), eps=1e-8)
        self.heads_optimiser = torch.optim.Adam(self.heads.parameters(), args.heads_rate, (0.0, 0.99), eps=1e-8)
        if not self.resume():
            self.measure()
        keep_rows(args.out / "log.jsonl", "images", self.images_seen)

    @torch.no_grad()
    def measure(self) -> None:
        """The portraits' own features, as the heads see them."""
        draw = torch.Generator().manual_seed(self.args.seed)
        crops = []
        for _ in range(0, MEASURED, self.args.batch):
            rows = torch.randint(len(self.starts.images), (self.args.batch,), generator=draw)
            top, left = self.corner(draw)
            crops.append(self.trunk(self.portraits(rows, top, left)))
        self.mixing.measure(crops)

    def train(self) -> None:
        """Until --images have been seen."""
        args, started, first = self.args, time.time(), self.images_seen
        while self.images_seen < args.images:
            self.set_rates()
            row = self.step()
            self.images_seen += args.batch
            if self.images_seen // args.batch % EVERY == 0:
                rate = round((self.images_seen - first) / (time.time() - started), 2)
                append(
                    args.out / "log.jsonl",
                    {"images": self.images_seen, "rate": rate, "weight": round(self.weight, 4), **row},
                )
            if self.images_seen % args.save_every < args.batch or self.images_seen >= args.images:
                self.save()

    def set_rates(self) -> None:
        left = 1 - self.images_seen / self.args.images
        factor = min(1.0, left / (1 - DECAY_FROM))
        rates = self.args.learning_rate, self.args.heads_rate
        for optimiser, rate in zip((self.block_optimiser, self.heads_optimiser), rates, strict=True):
            for group in optimiser.param_groups:
                group["lr"] = rate * factor

    def step(self) -> dict[str, float]:
        """One step of the block and of the heads, drawn from the progress alone; what to log."""
        args, rebuilt = self.args, self.args.batch - round(self.args.batch * PRIOR_SHARE)
        draw = torch.Generator().manual_seed(hash((args.seed, self.images_seen)) % 2**63)
        rows = torch.randint(len(self.starts.images), (args.batch,), generator=draw)
        corner = self.corner(draw)
        portraits = self.portraits(rows, *corner)
        ws, noise = self.latents(rows[:rebuilt], args.batch - rebuilt, draw)
        image, before = self.render(ws, noise, *corner, draw)
        fake = self.mixing.normalised(self.trunk(image))
        with torch.no_grad():
            real = self.mixing.normalised(self.trunk(portraits))
        pairs = [level[:rebuilt] for level in fake], [level[:rebuilt] for level in real]
        values = {"likeness": likeness_loss(image[:rebuilt], portraits[:rebuilt], *pairs)}
        values["halved"] = self.halved(image, before, *corner)
        mixed = self.mixing(fake)
        self.heads.requires_grad_(False).eval()  # their spectral norms move in their own step alone
        values["adversarial"] = generator_loss(self.heads(mixed))
        self.block_step(values, image, slice(rebuilt))
        values |= self.heads_step([level.detach() for level in mixed], self.mixing(real))
        values["rebuilt_db"] = decibel(image[:rebuilt], portraits[:rebuilt])
        found = {key: round(float(value.detach()), 4) for key, value in values.items()}
        if not all(map(math.isfinite, found.values())):
            raise SystemExit(f"not finite after {self.images_seen} images: {found}; go on with lower rates")
        return found

    def block_step(self, values: dict[str, torch.Tensor], image: torch.Tensor, rebuilt: slice) -> None:
        """By what was lost on the images; the losses are weighed by their gradients on the rebuilt ones."""
        likeness, adversarial = values["likeness"], values["adversarial"]
        if not self.weight or self.images_seen // self.args.batch % EVERY == 0:
            old = torch.tensor(self.weight) if self.weight else None
            self.weight = balanced(old, self.args.adversarial, likeness, adversarial, image, rebuilt, _same)
        self.block_optimiser.zero_grad()
        (likeness + self.weight * adversarial + self.args.halved * values["halved"]).backward()
        self.block_optimiser.step()
        move_average(self.average, self.block, self.args.batch, self.images_seen, EMA_IMAGES)

    def halved(self, image: torch.Tensor, before: torch.Tensor, top: int, left: int) -> torch.Tensor:
        """How far a crop, halved, is from the old rendering, and its outermost pixels at the image's border from the
        old one enlarged: zeros pad there, which two pixels can hide from their mean."""
        room = self.old.config.img_resolution - CROP_PX // 2
        off = (image - F.interpolate(before, scale_factor=2, mode="bilinear")).abs()
        parts = [(F.avg_pool2d(image, 2) - before).abs().mean()]
        parts += [off[:, :, at].mean() for at, touches in ((0, top == 0), (-1, top == room)) if touches]
        parts += [off[:, :, :, at].mean() for at, touches in ((0, left == 0), (-1, left == room)) if touches]
        return torch.stack(parts).mean()

    def heads_step(self, fake: list[torch.Tensor], real: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        self.heads.requires_grad_(True).train()
        real_logits, fake_logits = self.heads(real), self.heads(fake)
        loss = heads_loss(real_logits, fake_logits)
        self.heads_optimiser.zero_grad()
        loss.backward()
        self.heads_optimiser.step()
        return {"heads": loss, "accuracy": accuracy(real_logits, fake_logits)}

    def corner(self, draw: torch.Generator) -> tuple[int, int]:
        """Top and left of a crop at the old side."""
        room = self.old.config.img_resolution - CROP_PX // 2
        top, left = torch.randint(-BEYOND, room + BEYOND + 1, (2,), generator=draw).clamp(0, room).tolist()
        return top, left

    def portraits(self, rows: torch.Tensor, top: int, left: int) -> torch.Tensor:
        crops = self.starts.images[rows][:, :, 2 * top : 2 * top + CROP_PX, 2 * left : 2 * left + CROP_PX]
        return crops.to(self.device).float() / 127.5 - 1

    def latents(self, rows: torch.Tensor, drawn: int, draw: torch.Generator) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Latents [N,L,C] of the old generator and its noise maps: starts of these rows, then draws of the prior."""
        z = torch.randn(drawn, self.old.config.z_dim, generator=draw)
        psi = PSI[0] + (PSI[1] - PSI[0]) * torch.rand(drawn, 1, 1, generator=draw)
        with torch.no_grad():
            w = self.old.mapping(z.to(self.device))
            w = self.old.mapping.w_avg.lerp(w, psi.to(self.device))
        ws = torch.cat([self.starts.ws[rows].float().to(self.device), w])
        noise = [
            torch.cat([level[rows].float(), torch.randn(drawn, *level.shape[1:], generator=draw)]).to(self.device)
            for level in self.starts.noise
        ]
        return ws, noise

    def render(
        self, ws: torch.Tensor, noise: list[torch.Tensor], top: int, left: int, draw: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """A crop by the block [N,3,CROP_PX,CROP_PX], and what the old generator renders there, half as large."""
        features: list[torch.Tensor] = []

        def keep(resolution: int, x: torch.Tensor) -> torch.Tensor:
            if resolution == self.old.config.img_resolution:
                features.append(x)
            return x

        with torch.no_grad():
            image = self.old.synthesis(ws, noise, fuse=keep)
        seen = [(max(0, at - MARGIN), at) for at in (top, left)]  # from where it is rendered and from where it is kept
        around = [slice(start, at + CROP_PX // 2 + MARGIN) for start, at in seen]
        x, small = (each[:, :, around[0], around[1]].contiguous() for each in (features[0], image))
        fresh = [torch.randn(len(ws), 1, *(2 * n for n in x.shape[2:]), generator=draw).to(self.device) for _ in "01"]
        _, crop = self.block(x, small, [ws[:, -1]] * 3, fresh, "const", None)
        kept = [slice(2 * (at - start), 2 * (at - start) + CROP_PX) for start, at in seen]
        before = image[:, :, top : top + CROP_PX // 2, left : left + CROP_PX // 2]
        return crop[:, :, kept[0], kept[1]], before

    def save(self) -> None:
        progress = {"generator": self.digest, "images": str(self.images_seen), "weight": repr(self.weight)}
        write(self.args.out / FILE, tensors_of(self, MODULES, OPTIMISERS), progress)
        save_generator(self.args.out / "generator.safetensors", self.new)
        write_sheet(self.args.out / f"samples_{self.images_seen:07d}.png", self.new, 4, 4)

    def resume(self) -> bool:
        """Whether there was a state to go on from. Raises InputError."""
        path = self.args.out / FILE
        if not path.exists():
            return False
        tensors, metadata = read_state(path, "the state cannot be continued; remove it to start over")
        if metadata.get("generator") != self.digest:
            raise InputError(f"{path}: is of another generator than {self.args.generator}; give that, or another --out")
        with fitting(path, "remove it to start over"):
            for name in MODULES:
                getattr(self, name).load_state_dict(under(tensors, name))
            for name in OPTIMISERS:
                load_optimizer(getattr(self, name), under(tensors, name))
            self.images_seen, self.weight = int(metadata["images"]), float(metadata["weight"])
        return True


def grown(generator: Generator) -> Generator:
    """The same generator with a block more, which renders the same image, enlarged."""
    config = dataclasses.replace(generator.config, img_resolution=2 * generator.config.img_resolution)
    larger = Generator(config)
    grow_generator(generator.state_dict(), larger)
    return larger.eval().requires_grad_(False)


def _same(value: torch.Tensor) -> torch.Tensor:
    return value


if __name__ == "__main__":
    main()
