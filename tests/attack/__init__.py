"""Attacks on the commands: seeded hostile inputs, and kills; `python -m tests.attack --tries 10000 --seed 0` (25 min)."""
