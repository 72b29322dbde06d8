"""The small random generator and its portraits, for all tests of this folder."""

from helpers.small_generator import generator, perceptual, portraits

__all__ = ["generator", "perceptual", "portraits"]
