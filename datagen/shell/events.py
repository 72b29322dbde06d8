"""What a command tells while it works: lines for people, or with `--log json` one JSON object a line on stderr."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from typing import Any

LOGS = ("text", "json")


class _Log:
    """The process's log; `as_json` is set once, from the command line."""

    as_json = False
    began = time.monotonic()


_log = _Log()


def choose_log(name: str) -> None:
    """Tell all from now on as "text" or "json"; worker processes tell theirs through the one that started them."""
    _log.as_json = name == "json"
    _log.began = time.monotonic()


def is_json() -> bool:
    """Whether stderr holds JSON alone."""
    return _log.as_json


def event(kind: str, **fields: Any) -> None:
    """One line {"event": kind, "seconds": since the command began, fields...} on stderr; nothing in a log of text.

    A field `seconds` of the event's own takes that one's place; fields that are None or empty are left out, numbers
    that are not finite are null. "rank" is added where a launcher started several processes.
    """
    if not _log.as_json:
        return
    known: dict[str, Any] = {"event": kind, "seconds": time.monotonic() - _log.began}
    if os.environ.get("WORLD_SIZE", "1") != "1":
        known["rank"] = os.environ.get("RANK", "0")
    known |= {name: value for name, value in fields.items() if value is not None and value not in ("", [], ())}
    print(json.dumps({name: _plain(value) for name, value in known.items()}), file=sys.stderr, flush=True)


def tell(line: str, kind: str = "note", **fields: Any) -> None:
    """A line on stderr for people; in a log of JSON an event with it as `message`."""
    if _log.as_json:
        event(kind, message=line, **fields)
    else:
        print(line, file=sys.stderr, flush=True)


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 4) if math.isfinite(value) else None
    return value if isinstance(value, str | int | bool | list | dict) else str(value)
