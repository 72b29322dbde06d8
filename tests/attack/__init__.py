"""Attacks on the commands by seeded hostile inputs, and kills: `python -m tests.attack --tries 10000`, 30 minutes."""
