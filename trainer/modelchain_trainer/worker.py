"""One rank as a process: dies with its launcher, hears SIGTERM, and says in one line why it failed.

What it does in between is in training.py. torch is imported only after signals are handled: it takes seconds.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
import traceback

from modelchain.errors import ExitCode
from modelchain.forking import end_with_parent
from modelchain.resolved import STAGE_ENVIRONMENT_VARIABLE, ResolvedStage
from modelchain_trainer.ending import RankReport, failure_of, terminated_failure
from modelchain_trainer.environment import ProcessEnvironment, UsageError
from modelchain_trainer.position import Position
from modelchain_trainer.stopping import StopRequest, Terminated

PARENT_POLL_SECONDS = 1.0


def main() -> int:
    """Train the stage in the environment as one of its ranks; returns the exit code."""
    stop = StopRequest()
    stop.listen()
    try:
        environment = ProcessEnvironment.read(os.environ)
    except UsageError as error:
        print(f"modelchain_trainer: {error}", file=sys.stderr)
        return int(error.exit_code)
    die_with(environment.launcher_pid)
    _configure_logging(environment.rank)
    position = Position()
    try:
        stage = ResolvedStage.model_validate_json(os.environ[STAGE_ENVIRONMENT_VARIABLE])
        from modelchain_trainer.training import train_stage

        train_stage(stage, environment, stop, position)
    except Terminated:
        failure = terminated_failure(position.stop_message(), environment.rank, position.step)
    except Exception as error:  # noqa: BLE001 - the last resort: whatever it is must reach the launcher
        failure, foreseen = failure_of(error, environment, position.step)
        if not foreseen:
            traceback.print_exc()
    else:
        return int(ExitCode.OK)
    if environment.report is not None:
        RankReport(failure=failure).write(environment.report)
    return failure.exit_code


def die_with(launcher_pid: int | None) -> None:
    """End this process when its launcher does, even if that was killed.

    Linux sends us SIGKILL (PR_SET_PDEATHSIG); elsewhere, and should the launcher be gone before we asked for
    that, a thread notices that our parent has changed.
    """
    if launcher_pid is None:
        return
    end_with_parent()

    def watch() -> None:
        while os.getppid() == launcher_pid:
            time.sleep(PARENT_POLL_SECONDS)
        os._exit(128 + signal.SIGKILL)

    if os.getppid() != launcher_pid:
        os._exit(128 + signal.SIGKILL)
    threading.Thread(target=watch, name="launcher", daemon=True).start()


def _configure_logging(rank: int) -> None:
    """One line a message on standard error; of other ranks than the first only what is wrong."""
    logging.basicConfig(
        level=logging.INFO if rank == 0 else logging.WARNING,
        format=f"%(asctime)s [rank {rank}] %(levelname)s %(message)s",
        stream=sys.stderr,
    )
    logging.getLogger("botocore").setLevel(logging.WARNING)


if __name__ == "__main__":
    code = main()
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(
        code
    )  # threads that wait for a store or a decoder have nothing to finish: all that counts is written
