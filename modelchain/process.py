"""The name of a process that tells whether it still lives, for readers on the same machine.

"<boot>/<pid>/<start time>": the boot id of the kernel with the inode of the PID namespace (containers of
one node share the kernel, not the numbers), the number, and when it started (numbers are used again). Known
on Linux; elsewhere the name says nothing, nobody is ever called gone, and a lease has to run out by time.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path

_UNKNOWN = "-"


def this_host() -> str:
    """The name of this machine, or of this container."""
    return socket.gethostname()


def this_process() -> str:
    """The name of this process."""
    pid = os.getpid()
    return f"{_boot()}/{pid}/{_start_time(pid) or _UNKNOWN}"


def is_near(process: str, host: str) -> bool:
    """Whether the numbers of `process` on `host` mean something here, so that its death would show at once."""
    boot = process.partition("/")[0]
    return host == this_host() and boot == _boot() and boot != _UNKNOWN


def is_gone(process: str, host: str) -> bool:
    """Whether `process` on `host` is certainly dead. False where that can't be known from here."""
    _, _, rest = process.partition("/")
    number, _, start = rest.partition("/")
    if not is_near(process, host) or not number.isdecimal() or start in {"", _UNKNOWN}:
        return False
    pid = int(number)
    try:
        os.kill(pid, 0)  # /proc may hide the processes of others (hidepid), this does not
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        return False  # it lives, but is not ours to signal; its start time would have to be read to know more
    now = _start_time(pid)
    return now is not None and now != start


def _boot() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        namespace = str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return _UNKNOWN
    return f"{boot}+{namespace.strip('pid:[]')}"


def _start_time(pid: int) -> str | None:
    """In clock ticks since boot (proc(5), stat, field 22); "dead" for a zombie; None if unknown."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()  # the command, in parentheses, may hold anything
    return "dead" if fields[0] in {"Z", "X"} else fields[19]
