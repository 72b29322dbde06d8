"""A `datagen` command whose heavy steps are fake, as a process of its own that tests can kill or starve."""

from __future__ import annotations

import os
import resource

from helpers import fake_backend

from stylepairs.datagen import cli
from stylepairs.datagen.build import plan as pipeline
from stylepairs.datagen.build import shard_runner as building

# Not under __main__: worker processes import this module too, and are to find the same steps.
pipeline.real_backend = building.real_backend = lambda: fake_backend.BACKEND

if __name__ == "__main__":
    if fake_backend.FILE_LIMIT in os.environ:
        limit = int(os.environ[fake_backend.FILE_LIMIT])
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    cli.main()
