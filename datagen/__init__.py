"""Before/after pairs from rough edits of portraits."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("stylepairs")
except PackageNotFoundError:  # run from a checkout that is not installed
    __version__ = "unknown"
