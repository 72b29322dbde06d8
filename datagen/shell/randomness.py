"""Random numbers that depend on what they are for, a seed and a digest, and on nothing else: the same on every machine,
in every order of work."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


def random_key(*parts: object) -> bytes:
    """32 bytes that look random and are the same for the same parts, each taken as text: ("grain", seed, digest)."""
    return hashlib.sha256("\0".join(str(part) for part in parts).encode()).digest()


def random_number(*parts: object) -> int:
    """A whole number from 0 to 2**64 - 1 of the same parts."""
    return int.from_bytes(random_key(*parts)[:8], "little")


def random_generator(*parts: object) -> np.random.Generator:
    """A generator of random numbers that begins where its parts say."""
    import numpy as np

    return np.random.default_rng(random_number(*parts))
