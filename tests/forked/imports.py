"""Imports all that commands import, for the process that `commands` forks them from."""

import importlib

from attack.commands import preload

preload()
for name in ("helpers.tiny_build", "s3fs", "stylepairs.i2i.judging"):
    importlib.import_module(name)
