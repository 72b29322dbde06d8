"""A Ray cluster makes the same bytes as one process, whatever dies meanwhile."""

from __future__ import annotations

import hashlib
import os
import signal
import threading
import time
from pathlib import Path

import pytest
from helpers import tiny_build, worker_tasks

from stylepairs.datagen.build.shard_runner import BuildEvent, build_pairs
from stylepairs.datagen.portraits.analysis.prepare import prepare_photos
from stylepairs.datagen.shell.engines import engine
from stylepairs.datagen.shell.errors import InputError

pytestmark = pytest.mark.slow
MEMORY = 80 * 2**20  # of a node's object store, the least that Ray takes


@pytest.fixture(scope="module")
def cluster():
    """Two machines with one processor each, in all but the hardware."""
    pytest.importorskip("ray")
    import ray
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        tests = str(Path(__file__).parents[2])
        patch.setenv("PYTHONPATH", os.pathsep.join([tests, os.environ.get("PYTHONPATH", "")]))
        patch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        patch.setenv("RAY_health_check_period_ms", "500")
        patch.setenv("RAY_health_check_failure_threshold", "4")
        nodes = Cluster(
            initialize_head=True,
            head_node_args={"num_cpus": 1, "object_store_memory": MEMORY, "include_dashboard": False},
        )
        nodes.add_node(num_cpus=1, object_store_memory=MEMORY)
        yield nodes
        ray.shutdown()
        nodes.shutdown()


def run_on(cluster, prepare, items, on_event, workers=None) -> None:
    with engine("ray", cluster.address, "cpu", workers) as place:
        place.run(prepare, items, place.workers, on_event)


def digests(folder: Path) -> dict[str, str]:
    files = [path for path in folder.glob("[!.]*") if path.suffix in (".tar", ".parquet", ".json")]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(files)}


def test_every_item_is_handled_once(cluster):
    seen = []
    run_on(cluster, worker_tasks.square, range(9), seen.append)
    assert sorted(seen) == [(i, i * i) for i in range(9)]


def test_errors_arrive_as_they_were_raised(cluster):
    with pytest.raises(InputError) as caught:
        run_on(cluster, worker_tasks.refuse, range(7), lambda event: None)
    assert str(caught.value) == "photo.jpg: three is refused; give another"
    with pytest.raises(ZeroDivisionError):
        run_on(cluster, worker_tasks.crash, range(2), lambda event: None)


def test_an_item_that_kills_every_worker_is_told_in_one_line(cluster, monkeypatch):
    monkeypatch.setattr("stylepairs.datagen.shell.engines.MOST_DEATHS", 1)
    with pytest.raises(InputError, match="workers died 2 times over one item"):
        run_on(cluster, worker_tasks.die, [0], lambda event: None)


def test_a_build_survives_a_killed_worker_and_a_lost_machine_with_the_same_bytes(cluster, tmp_path):
    assert build_pairs(tiny_build.plan(tmp_path, "local", shard_size=1)).complete
    pids = tmp_path / "pids"
    pids.mkdir()
    planned = tiny_build.SlowPlan(**vars(tiny_build.plan(tmp_path, "ray", shard_size=1)), pids=pids)
    second = cluster.add_node(num_cpus=1, object_store_memory=MEMORY)
    killed: list[str] = []

    def kill() -> None:
        while len(list(pids.glob("*"))) < 2:
            time.sleep(0.05)
        os.kill(int(sorted(pids.glob("*"))[0].name), signal.SIGKILL)
        killed.append("worker")
        cluster.remove_node(second, allow_graceful=False)
        killed.append("node")

    thread = threading.Thread(target=kill)
    events: list[BuildEvent] = []
    with engine("ray", cluster.address, "cpu", None) as place:
        thread.start()
        result = build_pairs(planned, workers=place.workers, on_event=events.append, run=place.run)
    thread.join()
    assert killed == ["worker", "node"]
    assert result.complete
    assert digests(tmp_path / "ray") == digests(tmp_path / "local")
    assert sum(event.accepted + event.rejected for event in events) == planned.job_count
    assert not [path for path in (tmp_path / "ray").iterdir() if path.name.endswith(".tmp")]


def test_there_is_one_line_where_there_is_no_cluster():
    pytest.importorskip("ray")
    with pytest.raises(InputError, match="no Ray cluster to be reached"), engine("ray", "127.0.0.1:1", "cpu", None):
        pass
    with pytest.raises(InputError, match="unknown; choose local or ray"), engine("spark", None, "cpu", None):
        pass


def test_photos_are_prepared_on_a_cluster_and_by_two_processes_with_the_same_bytes(cluster, tmp_path):
    photos = sorted((Path(__file__).parents[3] / "recipes/photos").rglob("*.jpg"))[:3]
    for number, photo in enumerate(photos):  # two of a name, so that who comes first would show
        target = tmp_path / "photos" / str(number) / f"{'same' if number < 2 else 'other'}.jpg"
        target.parent.mkdir(parents=True)
        target.write_bytes(photo.read_bytes())
    (tmp_path / "photos" / "empty.jpg").write_bytes(b"")
    prepare_photos([tmp_path / "photos"], tmp_path / "one", 64)
    prepare_photos([tmp_path / "photos"], tmp_path / "two", 64, workers=2)
    with engine("ray", cluster.address, "cpu", None) as place:
        prepare_photos([tmp_path / "photos"], tmp_path / "many", 64, workers=place.workers, run=place.run)
    one, two, many = (
        {path.relative_to(tmp_path / out): path.read_bytes() for path in sorted((tmp_path / out).rglob("*.*"))}
        for out in ("one", "two", "many")
    )
    assert len([path for path in one if path.parent.name == "aligned"]) >= 3
    assert one == two == many
