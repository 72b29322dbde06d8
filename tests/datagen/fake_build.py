"""A `datagen` command whose heavy steps are fake, as a process of its own that tests can kill or starve."""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import fake_backend

from stylepairs.datagen import cli, pipeline, workers

# The largest file that this process may write, in bytes; with SIGXFSZ ignored (as Python does) writing more fails.
FILE_LIMIT = "FAKE_FILE_LIMIT"

if __name__ == "__main__":
    if FILE_LIMIT in os.environ:
        limit = int(os.environ[FILE_LIMIT])
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    workers.available_cpus = lambda: 1
    pipeline.real_backend = lambda: fake_backend.BACKEND
    cli.main()
