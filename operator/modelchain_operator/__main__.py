"""`python -m modelchain_operator`: settings, logs, then the operator until it is told to stop."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence

from modelchain.errors import ExitCode, ModelChainError
from modelchain_operator.settings import read_settings

# kopf reads what it watches with Python's json, which counts how deep a value is nested against this limit. The API
# server takes objects 10,000 deep; without room for that, one such chain ends the watch of all chains.
RECURSION_LIMIT = 12_000


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the operator; the exit code is the error's, where there is one."""
    try:
        settings = read_settings(arguments)
        # Here, so that --help and a wrong flag answer at once.
        from modelchain_operator import app, gc_tuning
        from modelchain_operator.telemetry import logs

        sys.setrecursionlimit(RECURSION_LIMIT)
        gc_tuning.share_heaps()
        gc_tuning.collect_rarely()
        logs.configure(settings.log_format, settings.log_level)
        return asyncio.run(app.run(settings))
    except ModelChainError as error:
        print(f"error: {error}", file=sys.stderr)
        return int(error.exit_code)
    except KeyboardInterrupt:
        return int(ExitCode.INTERRUPTED)


if __name__ == "__main__":
    sys.exit(main())
