"""The trainer as a process of this machine: started as in a pod, stopped as by a kubelet, never left
behind.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from pydantic import ValidationError

from modelchain.artifacts import Failure, attempt_prefix
from modelchain.clock import steady
from modelchain.reconcile.observation import Job, JobPhase
from modelchain.resolved import (
    ATTEMPT_VARIABLE,
    PARENT_PIPE_VARIABLE,
    STAGE_ENVIRONMENT_VARIABLE,
    TERMINATION_LOG_VARIABLE,
    ResolvedStage,
)

KILL_MARGIN_SECONDS = 5.0  # the launcher ends its ranks within the grace period, and then itself
TRAINER = (sys.executable, "-m", "modelchain_trainer")

# A cluster's variables around us must not reach the trainer: its world is this machine.
_WORLD_VARIABLES = frozenset(
    {
        "RANK",
        "LOCAL_RANK",
        "WORLD_SIZE",
        "LOCAL_WORLD_SIZE",
        "MASTER_ADDR",
        "MASTER_PORT",
        "JOB_COMPLETION_INDEX",
    }
)


class TrainerProcess:
    """One attempt: the launcher and, below it, its ranks.

    The launcher holds one end of a pipe whose other end is ours. When we are gone, however that came, it
    reads the end of the pipe, kills its ranks and ends. All of them share a session, so what a killed
    launcher leaves is found.
    """

    def __init__(self, stage: ResolvedStage, attempt: int, *, directory: Path, log: Path) -> None:
        """Start it, working in `directory`; what it says goes to the file `log`."""
        self.stage = stage
        self.attempt = attempt
        self.log = log
        self._started_at = steady()
        self._termination_log = log.with_suffix(".end.json")
        self._ended_at: float | None = None
        self._stop_at: float | None = None  # monotonic; SIGKILL follows then
        self._exit_code: int | None = None
        self.failure: Failure | None = None  # what the launcher said of a bad end, where it could
        read_end, self._pipe = os.pipe()
        try:
            with log.open("ab") as output:
                self._process = subprocess.Popen(
                    TRAINER,
                    cwd=directory,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env=self._environment(read_end),
                    pass_fds=(read_end,),
                    start_new_session=True,  # a terminal's Ctrl-C reaches us; we pass it on, once
                )
        except BaseException:
            os.close(self._pipe)
            raise
        finally:
            os.close(read_end)

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.stage.name}-{self.attempt}"

    @property
    def live(self) -> bool:
        """Whether anything of it lived when `poll` last looked."""
        return self._ended_at is None

    @property
    def pid(self) -> int:
        """The launcher's."""
        return self._process.pid

    def poll(self) -> bool:
        """Whether anything of it lives; what a dead launcher left is killed."""
        if self._ended_at is not None:
            return False
        code = self._process.poll()
        if code is None:
            if self._stop_at is not None and time.monotonic() >= self._stop_at:
                self.kill()
            return True
        if left := _session_members(self.pid):
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            return True
        self._exit_code = 128 - code if code < 0 else code
        self.failure = self._read_failure() if self._exit_code else None
        self._ended_at = steady()
        os.close(self._pipe)
        return False

    def stop(self) -> None:
        """SIGTERM, once; SIGKILL when the grace period is over."""
        if self._stop_at is None and self._ended_at is None:
            self._stop_at = (
                time.monotonic() + self.stage.job.termination_grace_period_seconds + KILL_MARGIN_SECONDS
            )
            self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL to all of it."""
        if self._ended_at is not None:
            return
        for pid in (self.pid, *_session_members(self.pid)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def tail(self, lines: int = 15) -> list[str]:
        """The last lines of what it said."""
        try:
            with self.log.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(0, size - 200 * lines))
                text = file.read().decode(errors="replace")
        except OSError:
            return []
        return text.splitlines()[-lines:]

    def job(self, progress_changed_at: float | None, clock_step: float) -> Job:
        """As the reconcile core sees it; its times are those of `clock.steady`, that many seconds later."""
        return Job(
            stage=self.stage.name,
            attempt=self.attempt,
            digest=self.stage.digest,
            name=self.name,
            phase=self._phase(),
            exit_code=self._exit_code,
            reason=self.failure.reason if self.failure else "",
            message=self.failure.message if self.failure else self._silent_message(),
            started_at=self._started_at + clock_step,
            ended_at=None if self._ended_at is None else self._ended_at + clock_step,
            progress_changed_at=progress_changed_at,
        )

    def _read_failure(self) -> Failure | None:
        try:
            return Failure.model_validate_json(self._termination_log.read_bytes())
        except (OSError, ValidationError):
            return None

    def _phase(self) -> JobPhase:
        if self._ended_at is not None:
            return JobPhase.FAILED if self._exit_code else JobPhase.SUCCEEDED
        return JobPhase.RUNNING if self._stop_at is None else JobPhase.TERMINATING

    def _silent_message(self) -> str:
        if not self._exit_code:
            return ""
        if self._exit_code > 128:
            with contextlib.suppress(ValueError):
                return f"the trainer was ended by {signal.Signals(self._exit_code - 128).name}; its log: {self.log}"
        return f"the trainer ended with exit code {self._exit_code} without a word; its log: {self.log}"

    def _environment(self, pipe: int) -> Mapping[str, str]:
        inherited = {
            name: value
            for name, value in os.environ.items()
            if name not in _WORLD_VARIABLES and not name.startswith("PET_")
        }
        return {
            **inherited,
            "PYTHONUNBUFFERED": "1",
            STAGE_ENVIRONMENT_VARIABLE: self.stage.to_json(),
            ATTEMPT_VARIABLE: attempt_prefix(self.stage.chain.uid, self.attempt),
            PARENT_PIPE_VARIABLE: str(pipe),
            TERMINATION_LOG_VARIABLE: str(self._termination_log),
            "PET_NNODES": "1",
            "PET_NODE_RANK": "0",
            "PET_NPROC_PER_NODE": str(self.stage.job.processes_per_node),
            "MASTER_ADDR": "127.0.0.1",  # the launcher finds a free port
        }


def _session_members(session: int) -> list[int]:
    """Living processes of a session, by /proc; none where there is no /proc."""
    members = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # gone in the meantime
        if fields[0] not in {"Z", "X"} and int(fields[3]) == session:
            members.append(int(stat.parent.name))
    return [pid for pid in members if pid != session]
