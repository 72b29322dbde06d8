"""An encoder's file: safetensors with its configuration and the digest of the generator that it is for."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

import torch
from pydantic import TypeAdapter, ValidationError

from stylepairs.datagen.encoders.network import Encoder, EncoderConfig
from stylepairs.datagen.shell.decode import Damaged, decoding, finite, read_safetensors
from stylepairs.datagen.shell.durable import safetensors_bytes, write_bytes
from stylepairs.datagen.shell.errors import InputError, one_line
from stylepairs.datagen.stylegan.checkpoints import generator_digest as digest_of
from stylepairs.datagen.stylegan.generator import Generator, lower_part

EMBEDDED_WEIGHTS = Path(__file__).resolve().parent.parent / "weights" / "encoder.safetensors"
EMBEDDED = "embedded"
_KIND = "stylepairs encoder 4"


def encoder_digest(encoder: Encoder) -> str:
    """SHA-256 (hex) over all that shapes its predictions."""
    digest = hashlib.sha256(json.dumps(asdict(encoder.config), sort_keys=True).encode())
    for key, value in sorted(encoder.state_dict().items()):
        digest.update(key.encode())
        digest.update(value.detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
    return digest.hexdigest()


def save_encoder(path: Path, encoder: Encoder, generator_digest: str) -> None:
    """Write the weights in float16 with the digest of the generator that they are for; whole or not at all."""
    tensors = {key: value.detach().cpu().half().contiguous() for key, value in encoder.state_dict().items()}
    data = safetensors_bytes(
        tensors, {"kind": _KIND, "generator": generator_digest, "config": json.dumps(asdict(encoder.config))}
    )
    write_bytes(path, data)


def find_encoder(name: str, generator: Generator, generator_digest: str) -> Encoder | None:
    """The encoder that a build names: a file, "none", or "auto": the package's own where it is for this generator or
    its lower part, else none. Raises InputError."""
    if name == "none":
        return None
    if name != "auto":
        return load_encoder(name, generator, generator_digest)
    if not EMBEDDED_WEIGHTS.is_file():
        return None
    encoder, trained_for = _read(EMBEDDED_WEIGHTS)
    fitting = _part_for(encoder, trained_for, generator, generator_digest)
    return None if fitting is None else _fitting(EMBEDDED, encoder, fitting)


def load_encoder(source: str | Path, generator: Generator, generator_digest: str) -> Encoder:
    """The encoder of a file ("embedded": the package's own), in float32, evaluation mode, frozen, on the CPU: of this
    generator, or of its lower part (see `encoded`).

    Raises InputError for a file that is no encoder, is damaged, or was trained for another generator.
    """
    encoder, trained_for = _read(EMBEDDED_WEIGHTS if str(source) == EMBEDDED else Path(source))
    fitting = _part_for(encoder, trained_for, generator, generator_digest)
    if fitting is None:
        raise InputError(
            f"{source}: this encoder is for generator {trained_for[:12]}, not {generator_digest[:12]}; "
            "train one with `datagen train-encoder`, or do without"
        )
    return _fitting(source, encoder, fitting)


def _part_for(encoder: Encoder, trained_for: str, generator: Generator, digest: str) -> Generator | None:
    """The generator, or the lower part of it, that the encoder was trained for."""
    if trained_for == digest:
        return generator
    side = encoder.config.maps[-1]
    if side >= generator.config.img_resolution:
        return None
    below = lower_part(generator, side)
    return below if trained_for == digest_of(below) else None


def _fitting(source: str | Path, encoder: Encoder, generator: Generator) -> Encoder:
    """The encoder, if its sizes are those of the generator; else InputError."""
    found, maps = encoder.config, tuple(level.shape[-1] for level in generator.noise_maps())
    if (found.num_ws, found.w_dim, found.maps) != (generator.num_ws, generator.config.w_dim, maps):
        raise InputError(f"{source}: its latents do not fit the generator's; the file is damaged, train it again")
    return encoder


def _read(path: Path) -> tuple[Encoder, str]:
    if not path.is_file():
        raise InputError(f"{path}: there is no such file; train an encoder with `datagen train-encoder`")
    try:
        tensors, metadata = read_safetensors(path)
        if metadata.get("kind") != _KIND:
            raise InputError(f"{path}: is not an encoder of this version; train one with `datagen train-encoder`")
        config = TypeAdapter(EncoderConfig).validate_json(metadata.get("config", ""))
        with torch.device("meta"):  # whatever sizes the file claims, memory is that of its tensors
            encoder = Encoder(config)
        with decoding():
            encoder.load_state_dict({name: tensor.float() for name, tensor in tensors.items()}, assign=True)
        if not finite(tensors.values()):
            raise Damaged("numbers that are not finite")
    except (Damaged, ValidationError) as error:
        raise InputError(f"{path}: damaged ({one_line(error)}); train the encoder again") from error
    return encoder.eval().requires_grad_(False), metadata.get("generator", "")
