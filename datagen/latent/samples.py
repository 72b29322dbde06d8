"""Random latents of a generator and the scores of their images, streamed to Parquet: what directions are fitted to.

Samples come in parts of a fixed size, each drawn from the seed and its own number, so that neither interruptions nor
the number of workers show: a part that is there is not made again, and 400 000 samples need no more memory than one.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from stylepairs.datagen.latent.attributes import ATTRIBUTES
from stylepairs.datagen.latent.scorers import FACE, LEAST_FACE, Scorer, load_scorer
from stylepairs.datagen.reconstruction.rendering import use_channels_last
from stylepairs.datagen.shell.decode import Damaged, decode_json, decoded, decoding
from stylepairs.datagen.shell.durable import remove_stale, replace_file
from stylepairs.datagen.shell.errors import InputError, nearest
from stylepairs.datagen.shell.lock import folder_lock
from stylepairs.datagen.shell.machine import fix_settings, settings_put_back
from stylepairs.datagen.shell.randomness import random_number
from stylepairs.datagen.shell.workers import Report, run_workers
from stylepairs.datagen.stylegan.checkpoints import generator_digest, latents_digest, load_generator
from stylepairs.datagen.stylegan.generator import Generator

if TYPE_CHECKING:
    import pyarrow as pa

PART_SIZE = 512
BATCH = 16  # images rendered together; fixed, so that their bits do not depend on how many there are
SAMPLES_VERSION = 1  # raised whenever the same sampling would give other samples
MAX_WIDTH = 1 << 14  # entries of a latent
LEAST_SPREAD = 1e-6  # standard deviation of a score that says anything
_W = "w"


@dataclass(frozen=True)
class Sampling:
    """What is sampled: count images of a generator, truncated by psi towards its mean latent, scored by `scores`."""

    generator: str
    scores: tuple[str, ...]
    count: int
    seed: int = 0
    psi: float = 1.0
    device: str = "cpu"

    @property
    def parts(self) -> int:
        return -(-self.count // PART_SIZE)

    def rows(self, part: int) -> int:
        """How many samples a part has."""
        return min(PART_SIZE, self.count - part * PART_SIZE)


@dataclass(frozen=True)
class Samples:
    """w [S,C] float32; scores: name -> [S], NaN where a face has no such figure; generator_digest: whose latents."""

    w: torch.Tensor
    scores: dict[str, torch.Tensor]
    generator_digest: str

    @property
    def digest(self) -> str:
        """sha256 of latents and scores."""
        digest = hashlib.sha256(self.w.numpy().tobytes())
        for name in sorted(self.scores):
            digest.update(name.encode() + self.scores[name].numpy().tobytes())
        return digest.hexdigest()

    def scored(self, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Latents [M,C] and scores [M] of the samples that have this score. Raises InputError where it is unknown or
        does not vary."""
        if name not in self.scores:
            advice = nearest(name, self.scores, "there are: " + ", ".join(self.scores))
            if name in ATTRIBUTES:
                advice = "; sample with it among --scores, into another folder"
            raise InputError(f"score {name!r}: the samples have none{advice}")
        known = self.scores[name].isfinite()
        w, score = self.w[known], self.scores[name][known]
        if not float(score.std()) > LEAST_SPREAD:
            raise InputError(f"{name}: does not vary over the samples; sample with a larger --psi, or more of them")
        return w, score


def sample(sampling: Sampling, out: Path, workers: int = 1, on_part: Callable[[int], None] = lambda rows: None) -> None:
    """Make the parts of a sampling that are not in the folder `out` yet; on_part(rows) reports each, old or new.

    Raises InputError: bad input, full disk, a folder that holds another sampling.
    """
    with folder_lock(out, "datagen latent sample"), settings_put_back():
        remove_stale(out)
        missing = [part for part in range(sampling.parts) if not _is_there(sampling, out, part)]
        for part in set(range(sampling.parts)) - set(missing):
            on_part(sampling.rows(part))
        run_workers(functools.partial(_prepare, sampling, out), missing, workers, on_part)


def load_samples(folder: Path, digest: str | None = None) -> Samples:
    """All samples of a folder that are faces. Raises InputError for damaged parts and parts of different samplings, and
    where they are of another generator than that of `digest` (see `latents_digest`)."""
    import numpy as np

    paths = sorted(folder.glob("samples-*.parquet"))
    if not paths:
        raise InputError(f"{folder}: holds no samples; make them with datagen latent sample")
    tables, identities = zip(*(_read(path) for path in paths), strict=True)
    if any(identity != identities[0] for identity in identities[1:]):
        raise InputError(f"{folder}: its parts are of different samplings; sample into another folder")
    if digest not in (None, identities[0]["generator_digest"]):
        raise InputError(f"{folder}: these samples are of another generator; name that one with --generator")
    columns = {
        name: np.concatenate([table[name].to_numpy() for table in tables]) for name in tables[0].column_names[1:]
    }
    flat = np.concatenate([table[_W].combine_chunks().flatten().to_numpy() for table in tables])
    w = torch.from_numpy(flat.reshape(len(columns[FACE]), -1))
    kept = torch.from_numpy(columns.pop(FACE)) >= LEAST_FACE
    scores = {name: torch.from_numpy(values)[kept] for name, values in columns.items()}
    return Samples(w[kept], scores, str(identities[0]["generator_digest"]))


def _prepare(sampling: Sampling, out: Path, report: Report) -> Callable[[int], None]:
    import pyarrow.parquet as pq

    fix_settings()
    generator = load_generator(sampling.generator)
    digest = latents_digest(sampling.generator, generator)
    use_channels_last(generator)
    generator.to(sampling.device)
    scorer = load_scorer(sampling.scores, sampling.device)
    identity = _identity(sampling, digest, scorer.digest)
    if generator_digest(generator) != digest:  # an adapted one: its images score otherwise
        identity["rendered_by"] = generator_digest(generator)
    for path in sorted(out.glob("samples-*.parquet"))[:1]:
        if _read(path)[1] != identity:
            raise InputError(f"{out}: holds samples of another generator, scores or seed; choose another --out")

    def make(part: int) -> None:
        table = _table(*_part(sampling, part, generator, scorer), sampling.scores, identity)
        replace_file(out / _name(part), lambda file: pq.write_table(table, file))
        report(sampling.rows(part))

    return make


@torch.no_grad()
def _part(
    sampling: Sampling, part: int, generator: Generator, scorer: Scorer
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Latents [R,C], face scores [R] and scores [R,K] of a part, on the CPU."""
    draw = torch.Generator().manual_seed(random_number("latent sample", sampling.seed, part) >> 1)
    z = torch.randn(PART_SIZE, generator.config.z_dim, generator=draw).to(generator.mapping.w_avg.device)
    # Of a whole part always: sums over fewer rows round differently.
    w = generator.mapping.w_avg.lerp(generator.mapping.to_w(z), sampling.psi)[: sampling.rows(part)]
    faces, scores = [], []
    for start in range(0, len(w), BATCH):
        rows = w[start : start + BATCH]
        padded = torch.cat([rows, rows[-1:].expand(BATCH - len(rows), -1)])
        image = generator.synthesis(padded[:, None].expand(-1, generator.num_ws, -1))
        figures, face = scorer.with_face(image)
        scores.append(figures[: len(rows)].cpu())
        faces.append(face[: len(rows)].cpu())
    return w.cpu(), torch.cat(faces), torch.cat(scores)


def _identity(sampling: Sampling, digest: str, scorer_digest: str) -> dict[str, Any]:
    known = {key: value for key, value in asdict(sampling).items() if key not in ("generator", "count", "device")}
    more = {"generator_digest": digest, "scorer_digest": scorer_digest, "version": SAMPLES_VERSION}
    return {**known, **more, "scores": list(sampling.scores), "part_size": PART_SIZE}


def _table(
    w: torch.Tensor, face: torch.Tensor, scores: torch.Tensor, names: Sequence[str], identity: dict[str, Any]
) -> pa.Table:
    import pyarrow as pa

    rows = pa.FixedSizeListArray.from_arrays(pa.array(w.flatten().numpy()), w.shape[1])
    columns = {_W: rows, FACE: pa.array(face.numpy())}
    columns |= {name: pa.array(scores[:, index].numpy()) for index, name in enumerate(names)}
    return pa.table(columns).replace_schema_metadata({"sampling": json.dumps(identity, sort_keys=True)})


def _read(path: Path) -> tuple[pa.Table, dict[str, Any]]:
    """A part and the identity of its sampling. Raises InputError."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with decoding():
            file = pq.ParquetFile(path)
        with file:
            if file.metadata.num_rows > PART_SIZE:
                raise Damaged(f"{file.metadata.num_rows} rows")
            identity = decode_json((file.schema_arrow.metadata or {}).get(b"sampling", b"null"))
            batches = list(decoded(file.iter_batches()))
        table = pa.Table.from_batches(batches)
        kinds = {name: table.schema.field(name).type for name in table.column_names}
        sound = isinstance(identity, dict) and "generator_digest" in identity and list(kinds)[:2] == [_W, FACE]
        if not sound or not _is_latent(kinds.pop(_W)) or set(kinds.values()) != {pa.float32()}:
            raise Damaged("no samples")
        if any(column.null_count for column in table.columns):
            raise Damaged("values are missing")
        return table, identity
    except Damaged as error:
        raise InputError(f"{path}: damaged samples ({error}); delete the file and sample again") from error


def _is_latent(kind: pa.DataType) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_fixed_size_list(kind) and kind.value_type == pa.float32() and kind.list_size <= MAX_WIDTH)


def _is_there(sampling: Sampling, out: Path, part: int) -> bool:
    path = out / _name(part)
    if not path.exists():
        return False
    table, identity = _read(path)
    if identity["seed"] != sampling.seed or identity["scores"] != list(sampling.scores):
        raise InputError(f"{out}: holds samples of other scores or another seed; choose another --out")
    return bool(len(table) >= sampling.rows(part))  # more, of an earlier and larger count, stay


def _name(part: int) -> str:
    return f"samples-{part:05d}.parquet"
