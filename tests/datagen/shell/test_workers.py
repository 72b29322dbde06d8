"""Worker processes share the work, hand their errors on, and never outlive the process that started them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import worker_tasks

from stylepairs.datagen.shell import workers
from stylepairs.datagen.shell.errors import InputError
from stylepairs.datagen.shell.machine import available_cpus, default_workers, own_gpus
from stylepairs.datagen.shell.workers import run_workers


@pytest.mark.parametrize("count", [1, 2])
def test_every_item_is_handled_once(count):
    seen = []
    run_workers(worker_tasks.square, range(7), count, seen.append)
    assert sorted(seen) == [(i, i * i) for i in range(7)]


@pytest.mark.parametrize("shown, gpus, seen", [(None, 2, "01"), ("3,5", 2, "35"), ("7", 1, "7")])
def test_each_worker_sees_one_gpu_in_turn(monkeypatch, shown, gpus, seen):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if shown:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", shown)
    found = set()
    run_workers(worker_tasks.visible_gpu, range(40), 2, found.add, gpus=gpus)
    assert len(found) == 2
    assert {gpu for _, gpu in found} == set(seen)
    assert os.environ.get("CUDA_VISIBLE_DEVICES") == shown


def test_gpus_are_shared_out_by_the_launcher_where_there_is_one(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert (own_gpus("cuda:0"), default_workers("cuda:0"), own_gpus("cpu")) == (4, 4, 0)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert (own_gpus("cuda:1"), default_workers("cuda:1")) == (0, 1)


@pytest.mark.parametrize("count", [1, 2])
def test_an_input_error_arrives_as_it_was_raised(count):
    with pytest.raises(InputError, match=r"photo\.jpg: three is refused"):
        run_workers(worker_tasks.refuse, range(7), count, lambda event: None)


def test_another_error_arrives_as_itself_with_its_traceback():
    with pytest.raises(ZeroDivisionError) as caught:
        run_workers(worker_tasks.crash, range(2), 2, lambda event: None)
    assert "lambda item: 1 // 0" in str(caught.value.__cause__)


def test_an_error_of_the_preparation_arrives_as_it_was_raised(capfd):
    with pytest.raises(InputError, match=r"generator\.pkl: damaged"):
        run_workers(worker_tasks.unprepared, range(2), 2, lambda event: None)
    assert capfd.readouterr().err == ""


def test_all_that_an_item_reported_is_there_in_order():
    seen = []
    run_workers(worker_tasks.many, range(3), 2, seen.append)
    for item in range(3):
        assert [event for event in seen if event[0] == item] == [(item, number) for number in range(1000)]


def test_many_items_are_handed_out_a_few_at_a_time(monkeypatch):
    waited = []
    real = workers.wait
    monkeypatch.setattr(workers, "wait", lambda some, *options: waited.append(len(some)) or real(some, *options))
    seen = []
    run_workers(worker_tasks.square, range(200), 2, seen.append)
    assert sorted(item for item, _ in seen) == list(range(200))
    assert max(waited) <= 16, "of all that wait each is looked at whenever one is done"


def test_a_killed_worker_is_one_clear_line():
    with pytest.raises(InputError, match=r"killed.*fewer --workers") as caught:
        run_workers(worker_tasks.die, range(2), 2, lambda event: None)
    assert "\n" not in str(caught.value)


def test_workers_end_with_a_parent_that_is_killed(tmp_path):
    code = (
        f"import sys; sys.path.insert(0, {str(Path(worker_tasks.__file__).parent)!r})\n"
        "import worker_tasks, pathlib\n"
        "from stylepairs.datagen.shell.workers import run_workers\n"
        "if __name__ == '__main__':\n"
        f"    run_workers(worker_tasks.Linger(pathlib.Path({str(tmp_path / 'pids')!r})), range(2), 2, print)\n"
    )
    (tmp_path / "pids").mkdir()
    script = tmp_path / "run.py"
    script.write_text(code)
    with subprocess.Popen([sys.executable, str(script)]) as parent:
        _wait_for(lambda: len(list((tmp_path / "pids").iterdir())) == 2)
        parent.send_signal(signal.SIGKILL)
    pids = [int(path.name) for path in (tmp_path / "pids").iterdir()]
    _wait_for(lambda: not any(_is_running(pid) for pid in pids))


def test_there_is_at_least_one_processor():
    assert available_cpus() >= 1


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{pid}/status")
    return not status.exists() or "State:\tZ" not in status.read_text()


def _wait_for(condition, limit_s: float = 30.0) -> None:
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)
