"""Starts trainers within milliseconds: imports torch and the trainer once, then forks for each container and rank.

What is left out is the import alone: a launcher has its own session, folder, environment and output, its ranks are its
children in process groups of their own, and each runs the file that `python -m` would run.

Reads one JSON object a line, {"environment": {...}, "folder": path, "log": file, "marker": text}, and answers with the
process id; {"poll": pid} is answered with its exit code, negative for a signal, or null while it runs.
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
import runpy
import signal
import subprocess
import sys
import traceback
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from tests.control_plane.preloaded import LAUNCHER, MARKER, ROOM, WORKER

_libc = ctypes.CDLL(None)


def _address_of_marker() -> int:
    """Where the value of our marker lies: what is written there, /proc shows as the environment of a process."""
    entries = ctypes.POINTER(ctypes.c_void_p).in_dll(_libc, "environ")
    prefix = f"{MARKER}=".encode()
    number = 0
    while entries[number]:
        if ctypes.string_at(entries[number], len(prefix)) == prefix:
            return entries[number] + len(prefix)
        number += 1
    raise LookupError(f"{MARKER} is not in the environment")


_marker = _address_of_marker()  # before anything is imported that changes the environment

import modelchain_trainer.training  # noqa: E402, F401  no thread of torch exists before a fork
from modelchain_trainer.distributed import supervision  # noqa: E402


class ForkedRank:
    """A rank as `subprocess.Popen` starts one, as far as the launcher asks for it."""

    def __init__(
        self, command: tuple[str, ...], *, stdin: int, env: Mapping[str, str], process_group: int
    ) -> None:
        assert (command, stdin, process_group) == (supervision.WORKER, subprocess.DEVNULL, 0)
        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            os.setpgid(0, 0)
            _become(WORKER, env)
        os.setpgid(self.pid, self.pid)

    def poll(self) -> int | None:
        """Its exit code, negative for a signal; None while it runs."""
        if self.returncode is None:
            self.returncode = _reaped(self.pid)
        return self.returncode


def _reaped(pid: int) -> int | None:
    ended, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if ended else None


def _become(module: str, environment: Mapping[str, str]) -> None:
    """Go on as `python -m module`, in a process that was just forked. Does not return."""
    code = 1
    try:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        os.environ.clear()
        os.environ.update(environment)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        sys.argv = [module]
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:  # noqa: BLE001  as the interpreter does
        traceback.print_exc()
    finally:
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _start_container(request: dict[str, Any]) -> int:
    """Returns the process id once the process is told apart from this one by its session and its marker."""
    told, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.setsid()
        ctypes.memmove(_marker, request["marker"].encode().ljust(ROOM, b"\0"), ROOM)
        os.close(told)
        os.close(tell)
        _become_container(request)
    os.close(tell)
    os.read(told, 1)
    os.close(told)
    return pid


def _become_container(request: dict[str, Any]) -> None:
    os.chdir(request["folder"])
    log = os.open(request["log"], os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    forked = SimpleNamespace(Popen=ForkedRank, DEVNULL=subprocess.DEVNULL)
    setattr(supervision, "subprocess", forked)  # noqa: B010  in its name alone
    _become(LAUNCHER, request["environment"])


def main() -> None:
    """Serve until standard input ends."""
    print("ready", flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        if "poll" in request:
            print(json.dumps(_reaped(request["poll"])), flush=True)
            continue
        print(_start_container(request), flush=True)


main()
