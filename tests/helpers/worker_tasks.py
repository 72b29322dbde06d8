"""Work for the tests of worker processes; a module without torch, so that processes start quickly."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from stylepairs.datagen.shell.errors import InputError


def square(report):
    return lambda item: report((item, item * item))


def visible_gpu(report):
    def handle(item):
        report((os.getpid(), os.environ.get("CUDA_VISIBLE_DEVICES")))
        time.sleep(0.05)  # or one worker takes all

    return handle


def refuse(report):
    def handle(item):
        if item == 3:
            raise InputError("photo.jpg: three is refused; give another")
        report(item)

    return handle


def crash(report):
    return lambda item: 1 // 0


def unprepared(report):
    raise InputError("generator.pkl: damaged; make it again")


def many(report):
    return lambda item: [report((item, number)) for number in range(1000)]


def die(report):
    return lambda item: os.kill(os.getpid(), signal.SIGKILL)


class Linger:
    """Writes its process id to the folder and waits for its end."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __call__(self, report):
        def handle(item):
            (self.folder / str(os.getpid())).touch()
            time.sleep(60)

        return handle
