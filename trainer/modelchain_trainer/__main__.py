"""`python -m modelchain_trainer`: process 1 of a training pod."""

import os
import signal
import sys

from modelchain.errors import ExitCode


def _end(_number: int, _frame: object) -> None:
    os._exit(ExitCode.TERMINATED)  # nothing has been started yet


# Process 1 never hears of a SIGTERM that it has no handler for: a pod deleted while this is being imported would stay
# for all of its grace period.
signal.signal(signal.SIGTERM, _end)

from modelchain_trainer.distributed.launcher import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())
