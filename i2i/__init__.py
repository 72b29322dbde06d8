"""Single-pass editing networks: training and production."""

from stylepairs.datagen import __version__

__all__ = ["__version__"]
