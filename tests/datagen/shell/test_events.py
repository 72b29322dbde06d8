"""`--log json`: every line on stderr is one event, on every command; `datagen status` says how far a folder is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import typer
from helpers import tiny_build

from stylepairs.datagen import cli
from stylepairs.datagen.build import models
from stylepairs.datagen.build.shard_runner import BuildEvent, build_pairs
from stylepairs.datagen.pairs.status import Status, status_of
from stylepairs.datagen.shell import events
from stylepairs.datagen.shell.command_line import run_app
from stylepairs.datagen.shell.errors import InputError
from stylepairs.datagen.shell.lock import folder_lock
from stylepairs.datagen.shell.progress_file import Progress, progress_file, read_progress
from stylepairs.i2i import cli as i2i_cli


@pytest.fixture(autouse=True)
def _text_again():
    yield
    events.choose_log("text")


def run(app: typer.Typer, monkeypatch, capsys, *arguments: str) -> tuple[int, str, list[dict]]:
    """Exit code, stdout, and the events on stderr."""
    monkeypatch.setattr(sys, "argv", ["command", *arguments])
    with pytest.raises(SystemExit) as ended:
        run_app(app)
    printed = capsys.readouterr()
    return ended.value.code, printed.out, [json.loads(line) for line in printed.err.splitlines()]


def commands(app: typer.Typer) -> list[str]:
    return [each.name or each.callback.__name__.replace("_", "-") for each in app.registered_commands]


@pytest.mark.parametrize("app", [cli.app, i2i_cli.app], ids=["datagen", "i2i"])
def test_every_command_takes_log_and_fails_in_json(app, monkeypatch, capsys) -> None:
    for name in commands(app):
        code, out, told = run(app, monkeypatch, capsys, name, "--log", "json", "--no-such-option")
        assert (code, out) == (2, "")
        assert [event["event"] for event in told] == ["error"]
        assert told[0]["exit_code"] == 2
        assert "--no-such-option" in told[0]["message"]


def test_an_unknown_log_is_one_line(monkeypatch, capsys, tmp_path) -> None:
    monkeypatch.setattr(sys, "argv", ["datagen", "export", str(tmp_path), "--out", "o", "--log", "xml"])
    with pytest.raises(SystemExit) as ended:
        run_app(cli.app)
    assert ended.value.code == 2
    assert capsys.readouterr().err == "--log xml: unknown; choose text or json\n"


def test_a_build_tells_each_pair_and_shard_with_reason_and_seconds(monkeypatch, capsys, tmp_path) -> None:
    monkeypatch.setattr(models, "_analyser", lambda: (None, {}))
    tiny_build.write_portraits(tmp_path / "faces", 2, bald="portrait_001")
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(json.dumps({"datagen": tiny_build.RECIPE, "i2i": {}}))
    build = [
        "build", str(recipe), "--portraits", str(tmp_path / "faces"), "--out", str(tmp_path / "pairs"),
        "--generator", tiny_build.generator_file(), "--workers", "1", "--shard-size", "2", "--log", "json",
    ]  # fmt: skip
    code, out, told = run(cli.app, monkeypatch, capsys, *build)
    assert code == 0
    assert out.count("\n") == 1
    assert [told[0]["event"], told[-1]["event"], told[-1]["exit_code"]] == ["begin", "end", 0]
    pairs = [event for event in told if event["event"] == "pair"]
    assert [event["pair"] for event in pairs] == ["000000", "000001", "000002", "000003"]
    assert all(event["accepted"] != ("reason" in event) for event in pairs)
    assert all("no hair" in event["reason"] for event in pairs[2:])
    assert all(0 <= event["seconds"] < 600 for event in told)
    shards = [(event["shard"], event["accepted"] + event["rejected"]) for event in told if event["event"] == "shard"]
    assert shards == [("pairs-00000.tar", 2), ("pairs-00001.tar", 2)]

    code, out, told = run(cli.app, monkeypatch, capsys, "status", str(tmp_path / "pairs"), "--log", "json")
    found = told[1]
    assert (found["done"], found["total"], found["running"]) == (4, 4, False)
    assert sum(count for kind, count in found["refused"].items() if "no hair" in kind) == 2
    code, out, _ = run(cli.app, monkeypatch, capsys, "status", str(tmp_path / "pairs"))
    assert out.splitlines()[0].startswith(f"{tmp_path / 'pairs'}: 4 of 4 pairs, ")
    assert out.splitlines()[0].endswith("; done")


def test_the_status_of_a_build_at_work_is_what_it_notes(tmp_path) -> None:
    the_plan = tiny_build.plan(tmp_path, limit=3, shard_size=2)
    seen: list[Status] = []

    def look(event: BuildEvent) -> None:
        for note in (tmp_path / "pairs").glob(".progress-*"):
            note.touch()
        if event.shard:
            seen.append(status_of(the_plan.out))

    build_pairs(the_plan, on_event=look)
    assert len(seen) == 3
    assert all(each.running and each.total == 6 for each in seen)
    assert not read_progress(the_plan.out), "a finished build leaves no note"
    done = status_of(the_plan.out)
    assert (done.done, done.total, done.running, done.error) == (6, 6, False, "")


def test_the_last_error_of_a_stopped_build_is_told_and_gone_after_the_next(tmp_path, monkeypatch) -> None:
    the_plan = tiny_build.plan(tmp_path, limit=2, shard_size=2)

    def full(*_arguments):
        raise InputError("pairs-00001.tar: no space left to write it")

    with monkeypatch.context() as patch:
        patch.setattr("stylepairs.datagen.build.shard_runner.shards.write_shard", full)
        with pytest.raises(InputError):
            build_pairs(the_plan)
    found = status_of(the_plan.out)
    assert found.error == "pairs-00001.tar: no space left to write it"
    assert found.lines(the_plan.out)[-1].endswith("no space left to write it")
    assert not found.running
    build_pairs(the_plan)
    assert status_of(the_plan.out).error == ""


def test_a_finished_build_is_done_though_a_later_one_was_refused(tmp_path) -> None:
    the_plan = tiny_build.plan(tmp_path, limit=2, shard_size=2)
    build_pairs(the_plan)
    with pytest.raises(InputError, match="seed was"):
        build_pairs(replace(the_plan, seed=the_plan.seed + 1))
    assert read_progress(the_plan.out)[0].error
    found = status_of(the_plan.out)
    assert (found.done, found.total, found.error) == (4, 4, "")


def test_rates_and_time_left_are_of_this_run_alone(tmp_path) -> None:
    with folder_lock(tmp_path, "a test"), progress_file(tmp_path, "a test", "pairs", 100) as noted:
        noted.add(50, accepted=40, refused={"dull": 10}, now=False)
        noted.add(10, accepted=9, refused={"dull": 1})
        noted.progress.began = time.time() - 20
        noted.write()
        found = status_of(tmp_path)
    assert (found.done, found.total, found.accepted, found.refused) == (60, 100, 49, {"dull": 11})
    assert found.per_second == pytest.approx(0.5, rel=0.1)
    assert found.left_s == pytest.approx(80, rel=0.1)


def test_a_killed_build_is_seen_to_have_stopped(tmp_path) -> None:
    code = (
        "import os, sys; from pathlib import Path\n"
        "from stylepairs.datagen.shell.lock import folder_lock\n"
        "from stylepairs.datagen.shell.progress_file import progress_file\n"
        "out = Path(sys.argv[1])\n"
        "with folder_lock(out, 'x'), progress_file(out, 'datagen build', 'pairs', 7): os.kill(os.getpid(), 9)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert read_progress(tmp_path)
    found = status_of(tmp_path)
    assert (found.running, found.done, found.total) == (False, 0, 7)


def test_what_ctrl_c_or_a_kill_stopped_before_there_was_a_list_is_counted_by_its_note(tmp_path: Path) -> None:
    def stopped() -> None:
        with folder_lock(tmp_path, "x"), progress_file(tmp_path, "datagen prepare", "photos", 7) as noted:
            noted.add(3, accepted=2, refused={"no face found": 1})
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    found = status_of(tmp_path)
    assert (found.done, found.total, found.accepted, found.refused) == (3, 7, 2, {"no face found": 1})
    assert found.lines(tmp_path) == [
        f"{tmp_path}: 3 of 7 photos, 2 accepted; stopped",
        "  refused 1: no face found",
    ]


def test_notes_of_ranks_that_there_are_no_more_are_not_counted(tmp_path: Path) -> None:
    for rank in (0, 1, 5):
        left = tmp_path / f".progress-{rank}.json"
        left.write_text(Progress(command="x", unit="pairs", total=9, process="", began=0, updated=0).model_dump_json())
    with folder_lock(tmp_path, "x", 0, 2), progress_file(tmp_path, "x", "pairs", 4, 0, 2):
        assert status_of(tmp_path).total == 4 + 9, "rank 1 may have begun already, rank 5 is of an earlier run"


def test_portraits_are_done_unless_a_killed_run_left_its_note(tmp_path: Path) -> None:
    (tmp_path / "skipped.jsonl").write_text("")
    assert status_of(tmp_path).lines(tmp_path)[0].endswith("; done")
    with progress_file(tmp_path, "datagen prepare", "photos", 7) as noted:
        assert status_of(tmp_path).lines(tmp_path)[0].endswith("; stopped")
        assert noted.path.exists()


def test_refused_photos_are_counted_by_reason_and_only_the_most_frequent_are_told(tmp_path: Path) -> None:
    reasons = ["no face found", *(f"damaged image ({chr(97 + n)})" for n in range(10)), "no face found"]
    rows = (json.dumps({"photo": f"{number}.png", "reason": reason}) for number, reason in enumerate(reasons))
    (tmp_path / "skipped.jsonl").write_text("\n".join(rows))
    found = status_of(tmp_path)
    assert (len(found.refused), sum(found.refused.values())) == (11, 12)
    told = found.lines(tmp_path)
    assert (told[1], len(told), told[-1]) == ("  refused 2: no face found", 12, "  refused 1: other reasons (1)")
    assert Status("pairs", 3, 9, 3, running=True, per_second=0.05, left_s=120).lines(tmp_path) == [
        f"{tmp_path}: 3 of 9 pairs, 3 accepted; at work",
        "  0.05 pairs a second, about 2 min left",
    ]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"command": 3}', "null", "\0" * 9])
def test_notes_that_are_damaged_are_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / ".progress-0.json").write_text(text)
    with pytest.raises(InputError, match=r"\.progress-0\.json: damaged"):
        status_of(tmp_path)


def test_status_of_anything_else_is_one_line(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none", Path(os.devnull)):
        with pytest.raises(InputError):
            status_of(path)


def test_what_is_not_finite_or_of_another_type_is_still_json(capsys) -> None:
    events.choose_log("json")
    events.event("x", a=float("nan"), path=Path("p"), none=None, empty="", many=[1, 2])
    found = json.loads(capsys.readouterr().err)
    assert found.pop("seconds") >= 0
    assert found == {"event": "x", "a": None, "path": "p", "many": [1, 2]}
