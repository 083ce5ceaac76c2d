"""Containers with the trainer without seconds of imports: forks of a process that has imported it."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

LAUNCHER, WORKER = "modelchain_trainer", "modelchain_trainer.worker"
MARKER = "POD_RUNNER"  # in the environment of all that runs for a pod, its grandchildren too
ROOM = 128  # bytes that a marker may have
SERVER = "tests.control_plane.trainer_server"
ROOT = Path(__file__).parents[2]


class TrainerServer:
    """tests/control_plane/trainer_server.py as a process, which ends with this one."""

    def __init__(self) -> None:
        self._asking = threading.Lock()
        self._process = subprocess.Popen(
            [sys.executable, "-m", SERVER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", MARKER: "-" * ROOM},
            start_new_session=True,
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n", "the trainer can't be imported"

    def ask(self, request: Mapping[str, Any]) -> int | None:
        """The answer to a request."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with self._asking:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            return json.loads(self._process.stdout.readline())


class PreloadedTrainer:
    """`python -m modelchain_trainer`, as `subprocess.Popen` would start it in a session of its own."""

    def __init__(self, folder: Path, log: Path, environment: Mapping[str, str], marker: str) -> None:
        assert len(marker) < ROOM
        self.returncode: int | None = None
        request = {
            "folder": str(folder),
            "log": str(log),
            "environment": {**environment, MARKER: marker},
            "marker": marker,
        }
        pid = _server().ask(request)
        assert pid is not None
        self.pid = pid

    def poll(self) -> int | None:
        """Its exit code, negative for a signal; None while it runs."""
        if self.returncode is None:
            self.returncode = _server().ask({"poll": self.pid})
        return self.returncode

    def wait(self) -> int:
        """Its exit code, once it has ended."""
        while (code := self.poll()) is None:
            time.sleep(0.01)
        return code

    def send_signal(self, number: int) -> None:
        """Nothing, if it has ended."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)


def is_trainer(command: Sequence[str]) -> bool:
    """Whether this is what the operator's jobs run."""
    return tuple(command) == ("python", "-m", LAUNCHER)


@cache
def _server() -> TrainerServer:
    """The one of this process."""
    return TrainerServer()
