"""How far the making of a folder of pairs or portraits is: what is done, refused and why, how fast, what went wrong."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from pydantic import BaseModel, ValidationError

from stylepairs.datagen.pairs import shards
from stylepairs.datagen.pairs.record import reason_kind
from stylepairs.datagen.portraits.folders import PORTRAITS_FILE, load_portraits
from stylepairs.datagen.shell.decode import Damaged, read_json, read_json_lines
from stylepairs.datagen.shell.errors import InputError, one_line
from stylepairs.datagen.shell.lock import is_held
from stylepairs.datagen.shell.progress_file import Progress, read_progress

_SHOWN = 10


@dataclass(frozen=True)
class Status:
    """unit: pairs or photos. done of total (None: not known), accepted of these; refused: how many by kind of reason;
    running: whether a command is at work; per_second and left_s: of the present run, None where it cannot be told;
    error: the last one, "" for none."""

    unit: str
    done: int
    total: int | None
    accepted: int
    refused: dict[str, int] = field(default_factory=dict)
    running: bool = False
    per_second: float | None = None
    left_s: float | None = None
    error: str = ""

    def lines(self, folder: Path) -> list[str]:
        """For people."""
        share = f" of {self.total}" if self.total is not None else ""
        state = "at work" if self.running else "done" if self.done == self.total else "stopped"
        found = [f"{folder}: {self.done}{share} {self.unit}, {self.accepted} accepted; {state}"]
        kinds = sorted(self.refused.items(), key=lambda item: (-item[1], item[0]))
        found += [f"  refused {count}: {kind}" for kind, count in kinds[:_SHOWN]]
        if len(kinds) > _SHOWN:
            others = kinds[_SHOWN:]
            found.append(f"  refused {sum(count for _, count in others)}: other reasons ({len(others)})")
        if self.per_second is not None:
            left = "" if self.left_s is None else f", about {self.left_s / 60:.0f} min left"
            found.append(f"  {self.per_second:.3g} {self.unit} a second{left}")
        return found + ([f"  last error: {self.error}"] if self.error else [])

    def fields(self) -> dict[str, object]:
        """For programs."""
        return asdict(self)


class _BuildNote(BaseModel):
    pairs: int


class _Skipped(BaseModel):
    photo: str
    reason: str


def status_of(folder: Path) -> Status:
    """The state of a folder that `prepare`, `build`, `import` or `augment` makes, finished or not. Raises InputError.

    While a command is at work its own notes are read; else what is there is counted.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; name one that prepare, build, import or augment makes")
    notes = read_progress(folder)
    running = is_held(folder)
    if notes and running:
        return _of_notes(notes, running)
    error = next((note.error for note in notes if note.error), "")
    if (folder / shards.BUILD_FILE).exists() or shards.shard_paths(folder):
        return _of_pairs(folder, running, error)
    if (folder / PORTRAITS_FILE).exists() or (folder / "skipped.jsonl").exists():
        return _of_portraits(folder, running, error, whole=not notes)
    if notes:
        return _of_notes(notes, running)
    raise InputError(
        f"{folder}: holds neither pairs nor portraits; name one that prepare, build, import or augment makes"
    )


def _of_notes(notes: list[Progress], running: bool) -> Status:
    refused: Counter[str] = Counter()
    for note in notes:
        refused.update(note.refused)
    done, total = sum(note.done for note in notes), sum(note.total for note in notes)
    # Of the moment: what a process noted a while ago has gone on since.
    now = time.time()
    rate = sum((note.done - note.found) / max(now - note.began, 1e-3) for note in notes) if running else 0.0
    return Status(
        notes[0].unit, round(done), round(total), sum(note.accepted for note in notes), dict(refused), running,
        rate or None, (total - done) / rate if rate else None, next((note.error for note in notes if note.error), ""),
    )  # fmt: skip


def _of_pairs(folder: Path, running: bool, error: str) -> Status:
    noted = folder / (shards.MERGE_FILE if (folder / shards.MERGE_FILE).exists() else shards.BUILD_FILE)
    try:
        total = _BuildNote.model_validate(read_json(noted, shards.MAX_BUILD_BYTES)).pairs
    except (Damaged, ValidationError):
        total = None
    done, accepted, refused = 0, 0, Counter[str]()
    for record in shards.each_record(folder, accepted_only=False) if shards.shard_paths(folder) else ():
        done, accepted = done + 1, accepted + record.accepted
        refused.update(record.reason_kinds)
    if done == total and (folder / shards.MANIFEST).exists():
        error = ""  # of a later command, which was refused
    return Status("pairs", done, total, accepted, dict(refused), running, error=error)


def _of_portraits(folder: Path, running: bool, error: str, whole: bool) -> Status:
    # The lists are written at the end; a run that was killed since has left its note.
    portraits = len(load_portraits(folder)) if (folder / PORTRAITS_FILE).exists() else 0
    refused: Mapping[str, int] = {}
    path = folder / "skipped.jsonl"
    if path.exists():
        try:
            rows = [_Skipped.model_validate(row) for row in read_json_lines(path)]
        except (Damaged, ValidationError) as damage:
            raise InputError(f"{path}: damaged ({one_line(damage)}); prepare the photos again") from None
        refused = Counter(reason_kind(row.reason, row.photo) for row in rows)
    return Status("portraits", portraits, portraits if whole else None, portraits, dict(refused), running, error=error)
