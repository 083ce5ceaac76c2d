"""The trainer's place in a pod, for benchmarks of queues: it holds the lease, says how far it is, commits, and ends on
SIGTERM as the trainer does. It trains nothing: `python -m benchmarks.simulated_trainer SECONDS`.
"""

from __future__ import annotations

import os
import secrets
import signal
import sys
import threading
import time

from benchmarks.simulated_jobs import Trainer
from modelchain.resolved import ATTEMPT_VARIABLE, STAGE_ENVIRONMENT_VARIABLE, ResolvedStage
from modelchain.store import open_store

TERMINATED = 143
BEAT_SECONDS = 1.0


def main() -> int:
    """Exit code 0, or 143 where it was told to end."""
    told = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: told.set())
    stage = ResolvedStage.model_validate_json(os.environ[STAGE_ENVIRONMENT_VARIABLE])
    token = f"{os.environ[ATTEMPT_VARIABLE]}-{secrets.token_hex(4)}"
    trainer = Trainer(open_store(stage.store), stage, token)
    trainer.begin()
    until = time.monotonic() + float(sys.argv[1])
    while (left := until - time.monotonic()) > 0 and not told.wait(min(BEAT_SECONDS, left)):
        trainer.tell("Training")
    if told.is_set():
        trainer.release()
        return TERMINATED
    trainer.upload()
    trainer.commit()
    trainer.end()
    return 0


if __name__ == "__main__":
    sys.exit(main())
