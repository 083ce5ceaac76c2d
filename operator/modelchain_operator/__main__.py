"""`python -m modelchain_operator`: settings, logs, then the operator until it is told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import sys
from collections.abc import Sequence

from modelchain.errors import ExitCode, ModelChainError
from modelchain_operator.settings import read_settings

M_ARENA_MAX = -8  # of mallopt


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the operator; the exit code is the error's, where there is one."""
    try:
        settings = read_settings(arguments)
        # Here, so that --help and a wrong flag answer at once.
        from modelchain_operator import app, logs

        _share_heaps()
        logs.configure(settings.log_format, settings.log_level)
        return asyncio.run(app.run(settings))
    except ModelChainError as error:
        print(f"error: {error}", file=sys.stderr)
        return int(error.exit_code)
    except KeyboardInterrupt:
        return int(ExitCode.INTERRUPTED)


def _share_heaps() -> None:
    """glibc gives every thread a heap of its own, each with its own free space: a tenth of all memory with a thousand
    chains. https://man7.org/linux/man-pages/man3/mallopt.3.html
    """
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, 2)


if __name__ == "__main__":
    sys.exit(main())
