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
from modelchain.forking import ForkServer, ServedProcess
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
# Where processes can be forked, one that has imported torch starts all trainers of a run.
TRAINER_SERVER = (sys.executable, "-m", "modelchain_trainer.fork_server") if sys.platform == "linux" else None

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


class Trainers:
    """Starts the trainers of a run, one import of torch for all of them where processes can be forked.

    The launchers hold one end of a pipe whose other end is ours. When we are gone, however that came, they read the end
    of the pipe, kill their ranks and end.
    """

    def __init__(self, directory: Path) -> None:
        """Trainers work in `directory`."""
        self._directory = directory
        self._read_end, self._pipe = os.pipe()
        self._server: ForkServer | None = None

    def start(self, stage: ResolvedStage, attempt: int, log: Path) -> TrainerProcess:
        """Start an attempt of a stage; what it says goes to the file `log`."""
        termination_log = log.with_suffix(".end.json")
        common = _environment(self._read_end)
        environment = {**common, **_stage_environment(stage, attempt, termination_log)}
        if TRAINER_SERVER is None:
            process = self._spawn(environment, log)
        else:
            if self._server is None or self._server.ended:
                self._server = ForkServer(TRAINER_SERVER, common, log, pass_fds=(self._read_end,))
            process = self._server.start(environment, self._directory, log)
        return TrainerProcess(process, stage, attempt, log=log, termination_log=termination_log)

    def __enter__(self) -> Trainers:
        return self

    def __exit__(self, *_: object) -> None:
        """End what still runs."""
        if self._server is not None:
            self._server.close()
        os.close(self._pipe)
        os.close(self._read_end)

    def _spawn(self, environment: Mapping[str, str], log: Path) -> subprocess.Popen[bytes]:
        with log.open("ab") as output:
            return subprocess.Popen(
                TRAINER,
                cwd=self._directory,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                pass_fds=(self._read_end,),
                start_new_session=True,  # a terminal's Ctrl-C reaches us; we pass it on, once
            )


class TrainerProcess:
    """One attempt: the launcher and, below it, its ranks.

    All of them share a session, so what a killed launcher leaves is found.
    """

    def __init__(
        self,
        process: subprocess.Popen[bytes] | ServedProcess,
        stage: ResolvedStage,
        attempt: int,
        *,
        log: Path,
        termination_log: Path,
    ) -> None:
        self._process = process
        self.stage = stage
        self.attempt = attempt
        self.log = log
        self._started_at = steady()
        self._termination_log = termination_log
        self._ended_at: float | None = None
        self._stop_at: float | None = None  # monotonic; SIGKILL follows then
        self._exit_code: int | None = None
        self.failure: Failure | None = None  # what the launcher said of a bad end, where it could

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.stage.name}-{self.attempt}"

    @property
    def live(self) -> bool:
        """Whether anything of it lived when `poll` last looked."""
        return self._ended_at is None

    def poll(self) -> bool:
        """Whether anything of it lives; what a dead launcher left is killed."""
        if self._ended_at is not None:
            return False
        code = self._process.poll()
        if code is None:
            if self._stop_at is not None and time.monotonic() >= self._stop_at:
                self.kill()
            return True
        if self._kill_session():
            return True
        self._exit_code = 128 - code if code < 0 else code
        self.failure = self._read_failure() if self._exit_code else None
        self._ended_at = steady()
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
        self._process.send_signal(signal.SIGKILL)
        self._kill_session()

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

    def _kill_session(self) -> bool:
        """SIGKILL to what the launcher has started; whether there was any."""
        left = _session_members(self._process.pid) if self._process.pid is not None else []
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return bool(left)


def _environment(pipe: int) -> dict[str, str]:
    """What all trainers of a run find in their environment."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if name not in _WORLD_VARIABLES and not name.startswith("PET_")
    }
    return {**inherited, "PYTHONUNBUFFERED": "1", PARENT_PIPE_VARIABLE: str(pipe)}


def _stage_environment(stage: ResolvedStage, attempt: int, termination_log: Path) -> dict[str, str]:
    return {
        STAGE_ENVIRONMENT_VARIABLE: stage.to_json(),
        ATTEMPT_VARIABLE: attempt_prefix(stage.chain.uid, attempt),
        TERMINATION_LOG_VARIABLE: str(termination_log),
        "PET_NNODES": "1",
        "PET_NODE_RANK": "0",
        "PET_NPROC_PER_NODE": str(stage.job.processes_per_node),
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
