"""What a part of a run has found so far: a JSON file, whole at any moment."""

from __future__ import annotations

import argparse
import json
import time
import traceback
from collections.abc import Callable
from pathlib import Path

TRACEBACK_LINES = 25  # of its end, which says where


class Record:
    """The entries of one part, written to `path` after each; and how much time the part has left."""

    def __init__(self, path: Path, seconds: float) -> None:
        self.entries: dict[str, object] = {}
        self._path = path
        self._end = time.monotonic() + seconds

    @property
    def seconds_left(self) -> float:
        """Until the part is stopped."""
        return self._end - time.monotonic()

    def put(self, name: str, entry: object) -> None:
        """Keep an entry under this name, and write all of them."""
        self.entries[name] = entry
        write_json(self._path, self.entries)

    def attempt(self, name: str, make: Callable[[], object], *, needs_seconds: float = 0.0) -> bool:
        """Keep what `make` returns, or why it failed; whether it succeeded.

        It is not tried where fewer than `needs_seconds` are left.
        """
        if self.seconds_left < needs_seconds:
            left = f"{needs_seconds:.0f} s are needed and {max(0.0, self.seconds_left):.0f} are left"
            self.put(name, {"outOfTime": left})
            return False
        try:
            entry = make()
        except Exception as error:  # noqa: BLE001 - the next entry may well succeed
            self.put(name, failure(error))
            return False
        self.put(name, entry)
        return True


def failure(error: BaseException) -> dict[str, object]:
    """An error as an entry."""
    lines = "".join(traceback.format_exception(error)).splitlines()
    return {
        "error": f"{type(error).__name__}: {error}"[:2000],
        "traceback": lines[-TRACEBACK_LINES:],
    }


def write_json(path: Path, value: object) -> None:
    """Write a JSON file that is never seen half written."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(value, indent=2) + "\n")
    partial.replace(path)


def part_arguments(description: str | None) -> argparse.Namespace:
    """What run.py tells each part: `record` (file), `device`, `seconds`, `kit` (folder or None)."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--record", type=Path, required=True)
    parser.add_argument("--device", choices=["cpu", "cuda"], required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--kit", type=Path)
    return parser.parse_args()
