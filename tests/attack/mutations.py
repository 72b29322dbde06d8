"""Seeded damage: to bytes, to JSON and YAML values, to arrays; every draw comes from one random.Random."""

from __future__ import annotations

import json
import random
from typing import Any

NASTY: list[Any] = [
    None, [], {}, "", "x" * 10_000, -1, 0, 1, 2**31, 2**70, -(2**63), 1e308, float("nan"), float("inf"), True, False,
    "../../outside", "/etc/passwd", "a\nb", "\u202e", "é", [[[[[]]]]], {"a": {"b": {"c": 1}}}, "1e999", "٣", " ", "nan",
    "none", "embedded", "auto", [0.5] * 1000, "#12345", "0,0,0", "{}", 0.5, "../x", ["a", 1, None], "a" * 300,
]  # fmt: skip


def damaged_bytes(rng: random.Random, data: bytes) -> bytes:
    """The data with a few flips, cuts, repeats, insertions, or fields that claim a lot."""
    damaged = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 5, 20))):
        if not damaged:
            break
        # Headers hold the sizes, so half of the damage goes there.
        place = rng.randrange(min(len(damaged), 256) if rng.random() < 0.5 else len(damaged))
        kind = rng.randrange(7)
        if kind == 0:
            damaged[place] ^= 1 << rng.randrange(8)
        elif kind == 1:
            damaged[place] = rng.randrange(256)
        elif kind == 2:
            del damaged[place:]
        elif kind == 3:
            del damaged[place : place + rng.randrange(1, 64)]
        elif kind == 4:
            damaged[place:place] = rng.randbytes(rng.randrange(1, 64))
        elif kind == 5:
            damaged[place : place + 4] = rng.choice(
                (b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", bytes(4), b"\x7f\xff\xff\xff")
            )
        else:
            damaged[place:place] = damaged[place : place + rng.randrange(1, 512)]
    return bytes(damaged)


def damaged_value(rng: random.Random, value: Any) -> Any:
    """A JSON value in which one place holds something else, is missing, is doubled or is new."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        key = rng.choice(list(value))
        kind = rng.random()
        rest = {name: each for name, each in value.items() if name != key}
        if kind < 0.1:
            return rest
        if kind < 0.15:
            return rest | {rng.choice(("x", "", "é", "a.b", str(key) + "s")): value[key]}
        return value | {key: damaged_value(rng, value[key])}
    if isinstance(value, list) and value and rng.random() < 0.8:
        place = rng.randrange(len(value))
        if rng.random() < 0.15:
            return value[:place] + value[place + 1 :]
        return [*value[:place], damaged_value(rng, value[place]), *value[place + 1 :]]
    return rng.choice(NASTY)


def damaged_json(rng: random.Random, text: str) -> bytes:
    """A JSON text with damage to its values or its bytes."""
    if rng.random() < 0.25:
        return damaged_bytes(rng, text.encode())
    return json.dumps(damaged_value(rng, json.loads(text))).encode("utf-8", "surrogatepass")


def damaged_lines(rng: random.Random, text: str) -> bytes:
    """JSON lines with damage to one of them."""
    lines = text.splitlines() or ["{}"]
    place = rng.randrange(len(lines))
    return b"\n".join(damaged_json(rng, line) if i == place else line.encode() for i, line in enumerate(lines)) + b"\n"
