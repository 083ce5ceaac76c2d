"""Process 1 of a training pod: starts the ranks of this node, passes signals on, says why they ended.

Exit codes are those of modelchain.errors: the root cause's, so that whoever started us knows whether another
attempt can help. Imports no torch: it is up in a moment and costs no memory beside the ranks.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import secrets
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType

from pydantic import ValidationError

from modelchain.artifacts import Failure, new_attempt_token
from modelchain.block import first_problem
from modelchain.errors import CannotWriteError, ConfigurationError, ExitCode, ModelChainError
from modelchain.resolved import (
    ATTEMPT_VARIABLE,
    PARENT_PIPE_VARIABLE,
    STAGE_ENVIRONMENT_VARIABLE,
    ResolvedStage,
)
from modelchain.store.local_files import explain
from modelchain_trainer.distributed.supervision import (
    RankProcess,
    StartRank,
    kill,
    root_cause,
    spawn_rank,
    start_ranks,
    supervise,
)
from modelchain_trainer.ending import one_line, terminated_failure, write_failure, write_termination_message
from modelchain_trainer.environment import (
    LAUNCHER_VARIABLE,
    SCRATCH_VARIABLE,
    TOKEN_FILE,
    TOKEN_VARIABLE,
    JobEnvironment,
    UsageError,
)

STORE_SECONDS = 10.0  # how long an unreachable store may keep us from exiting
SCRATCH_PREFIX = "modelchain-scratch-"
NEW_FOLDER_SECONDS = 60
MAX_ENVIRONMENT_VALUE_BYTES = 120 * 1024  # Linux allows 128 KiB for one variable, its name included

# Threads of torch that have nothing to do sleep. Spinning, they take the cores from the threads that decode, and from
# everybody else: on busy cores a step of a small model took ten times as long.
RANK_ENVIRONMENT = {"OMP_WAIT_POLICY": "PASSIVE"}


def main(
    arguments: list[str] | None = None,
    variables: Mapping[str, str] | None = None,
    start_rank: StartRank = spawn_rank,
) -> int:
    """Train the stage that the environment (or --stage FILE) describes; returns the exit code."""
    variables = dict(os.environ if variables is None else variables)
    options = _arguments(arguments)
    try:
        stage = read_stage(options.stage, variables)
        job = JobEnvironment.read(variables, declared_processes=stage.job.processes_per_node)
        check_world_size(stage, job.world_size)
        return _run(stage, job, variables, start_rank)
    except ModelChainError as error:
        failure = Failure(
            exit_code=int(error.exit_code), reason=type(error).__name__, message=one_line(str(error))
        )
        return _end(failure, variables)


def read_stage(file: Path | None, variables: Mapping[str, str]) -> ResolvedStage:
    """The stage from `file`, or from MODELCHAIN_STAGE. Raises UsageError that names the first wrong field."""
    if file is not None:
        source = str(file)
        try:
            text = file.read_bytes()
        except OSError as error:
            raise UsageError(f"{file}: cannot be read: {error.strerror}") from None
    else:
        source = STAGE_ENVIRONMENT_VARIABLE
        text = variables.get(STAGE_ENVIRONMENT_VARIABLE, "").encode()
        if not text:
            raise UsageError(f"no stage to train: set {STAGE_ENVIRONMENT_VARIABLE} or give --stage FILE")
    try:
        return ResolvedStage.model_validate_json(text)
    except ValidationError as error:
        more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        raise UsageError(
            f"{source}: {first_problem(error)}{more}; expected a resolved stage as JSON"
        ) from None


def check_world_size(stage: ResolvedStage, world_size: int) -> None:
    """Raises ConfigurationError where the global batch cannot be shared out evenly."""
    batch = stage.training.global_batch_size
    if batch % world_size:
        raise ConfigurationError(
            f"stage {stage.name}: training.globalBatchSize {batch} cannot be divided among {world_size} "
            f"processes; use a multiple of {world_size}, or other job.nodes and job.processesPerNode"
        )


def attempt_token(prefix: str | None, chain_uid: str) -> str:
    """A name for this launch: `<prefix>-<nonce>`. Whoever started us made the prefix (artifacts.py)."""
    return f"{prefix}-{secrets.token_hex(4)}" if prefix else new_attempt_token(chain_uid, 0)


class _Stop:
    """Remembers the first SIGTERM or SIGINT."""

    def __init__(self) -> None:
        self.signal: int | None = None
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._handle)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self.signal is None:
            self.signal = number

    def asked(self) -> bool:
        return self.signal is not None


def _arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m modelchain_trainer",
        description="Train one stage of a ModelChain. Jobs start this; `modelchain run` trains a chain.",
    )
    parser.add_argument(
        "--stage",
        type=Path,
        metavar="FILE",
        help=f"the resolved stage; default: ${STAGE_ENVIRONMENT_VARIABLE}",
    )
    return parser.parse_args(arguments)


def _run(stage: ResolvedStage, job: JobEnvironment, variables: dict[str, str], start_rank: StartRank) -> int:
    stop = _Stop()
    stage_json = stage.to_json()
    if len(stage_json.encode()) > MAX_ENVIRONMENT_VALUE_BYTES:
        raise UsageError(f"stage {stage.name}: longer than {MAX_ENVIRONMENT_VALUE_BYTES} bytes as JSON")
    token = attempt_token(variables.get(ATTEMPT_VARIABLE), stage.chain.uid) if job.node_rank == 0 else None
    pipe = _parent_pipe(variables)
    with _scratch_folder() as scratch:
        shared = {
            **RANK_ENVIRONMENT,
            **variables,
            STAGE_ENVIRONMENT_VARIABLE: stage_json,
            SCRATCH_VARIABLE: str(scratch),
            LAUNCHER_VARIABLE: str(os.getpid()),
            **({TOKEN_VARIABLE: token} if token else {}),
        }
        own = [job.rank_variables(local_rank) for local_rank in range(job.processes_per_node)]
        ranks = start_ranks(start_rank, own, shared, scratch)
        if pipe is not None:
            _watch_parent(pipe, ranks)  # a thread, which must not be there when ranks are forked
        grace = stage.job.termination_grace_period_seconds
        endings = supervise(ranks, asked_to_stop=stop.asked, grace_seconds=grace - min(10.0, 0.2 * grace))
        if token is None and (scratch / TOKEN_FILE).exists():
            token = (scratch / TOKEN_FILE).read_text()
    cause = root_cause(endings)
    if cause is None or cause.failure is None:
        return int(ExitCode.OK)
    failure = cause.failure
    if stop.asked() and cause.killed_by_us:
        failure = terminated_failure(
            "asked to end, but a rank did not within its grace period and was killed", cause.rank
        )
        failure = failure.model_copy(update={"exit_code": cause.exit_code})
    code = _end(failure, variables, stage=stage, token=token)
    return int(ExitCode.INTERRUPTED) if code == ExitCode.TERMINATED and stop.signal == signal.SIGINT else code


def _end(
    failure: Failure,
    variables: Mapping[str, str],
    *,
    stage: ResolvedStage | None = None,
    token: str | None = None,
) -> int:
    """Tell everybody why we end; returns the exit code."""
    rank = "" if failure.rank is None else f" (rank {failure.rank})"
    print(f"modelchain_trainer: {failure.reason}{rank}: {failure.message}", file=sys.stderr, flush=True)
    write_termination_message(failure, variables)
    if stage is not None and token is not None:
        write_failure(stage, token, failure, seconds=STORE_SECONDS)
    return failure.exit_code


def _parent_pipe(variables: Mapping[str, str]) -> int | None:
    """Of the process that started us. Raises UsageError."""
    text = variables.get(PARENT_PIPE_VARIABLE)
    if not text:
        return None
    try:
        pipe = int(text)
        os.set_blocking(pipe, True)  # whoever made it may need it otherwise
        os.set_inheritable(pipe, False)
    except (ValueError, OSError):
        raise UsageError(f"{PARENT_PIPE_VARIABLE}={text!r} is no open file descriptor") from None
    return pipe


def _watch_parent(pipe: int, ranks: list[RankProcess]) -> None:
    """Kill the ranks and ourselves when the process that started us is gone, even if it was killed.

    It keeps the other end of the pipe MODELCHAIN_PARENT_PIPE open for as long as it lives. The ranks in turn
    die with us: the kernel sends them SIGKILL, and they look at their parent's id themselves (worker.py).
    """

    def watch() -> None:
        try:
            while os.read(pipe, 1):
                pass
        except OSError as error:  # otherwise nobody would know that this launcher outlives its parent
            what = f"{PARENT_PIPE_VARIABLE}={pipe} can't be read ({error.strerror})"
            print(f"modelchain_trainer: {what}; this launcher ends", file=sys.stderr, flush=True)
        finally:
            try:
                kill(ranks)
            finally:
                os._exit(128 + signal.SIGKILL)

    threading.Thread(target=watch, name="parent", daemon=True).start()


@contextlib.contextmanager
def _scratch_folder() -> Iterator[Path]:
    """A folder for temporary files, removed at the end; what killed launchers left behind is removed, too.

    A launcher holds a lock in its folder, which the kernel releases with the process. Folders of the last
    minute are left alone: one may just be about to be locked.
    """
    try:
        parent = Path(tempfile.gettempdir())
    except FileNotFoundError as error:
        raise CannotWriteError("no folder for temporary files can be written; set TMPDIR to one") from error
    for folder in parent.glob(f"{SCRATCH_PREFIX}*"):
        with contextlib.suppress(OSError), (folder / "lock").open("r+") as lock:
            if time.time() - folder.stat().st_mtime < NEW_FOLDER_SECONDS:
                continue
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
    try:
        folder = Path(tempfile.mkdtemp(prefix=SCRATCH_PREFIX))
    except OSError as error:
        raise explain(error, str(parent), writing=True) from error
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
