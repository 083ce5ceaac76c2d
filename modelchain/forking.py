"""Programs that start within milliseconds: forks of a process that has imported what takes seconds.

A server (`serve`) imports, then forks for each request; a `ForkServer` is the server as who asks sees it. A fork has
the one thread that forked it: a server may import, but must start no thread of its own and touch no GPU. (Those that
OpenBLAS starts it ends around a fork.)
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import logging
import os
import select
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
_HANDLED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_READY = b"ready\n"
_ANSWER_SECONDS = 60.0  # a server that is ready forks and polls at once


class ForkedProcess:
    """A child, as far as `subprocess.Popen` would say the same of it."""

    def __init__(
        self, run: Callable[[], int], environment: Mapping[str, str], *, process_group: int | None = None
    ) -> None:
        """Call `run` in a fork of this process, which has `environment` and ends with the exit code that `run` returns.

        `process_group` as in `Popen`.
        """
        self.returncode: int | None = None  # negative for a signal
        self._waiting = threading.Lock()
        blocked = signal.pthread_sigmask(
            signal.SIG_BLOCK, _HANDLED
        )  # our handlers would swallow the child's signals
        try:
            self.pid = os.fork()
            if self.pid == 0:
                _become(run, environment, process_group, blocked)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        if process_group is not None:
            with contextlib.suppress(OSError):  # the child may have ended, or have done it
                os.setpgid(self.pid, process_group)

    def poll(self) -> int | None:
        """Its exit code; None while it runs. May be called by several threads."""
        with self._waiting:
            if self.returncode is None:
                ended, status = os.waitpid(self.pid, os.WNOHANG)
                self.returncode = os.waitstatus_to_exitcode(status) if ended else None
            return self.returncode


def _become(
    run: Callable[[], int], environment: Mapping[str, str], process_group: int | None, signal_mask: set[int]
) -> None:
    code = 1
    try:
        if process_group is not None:
            os.setpgid(0, process_group)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, signal_mask)
        os.environ.clear()
        os.environ.update(environment)
        code = run()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:  # noqa: BLE001 - as the interpreter does
        traceback.print_exc()
    finally:
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # what the parent has begun is not the child's to end


def end_with_parent() -> None:
    """Let Linux send us SIGKILL when the thread that started us ends. Elsewhere nothing happens."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


# ---- the server


def serve(run: Callable[[], int]) -> None:
    """Fork for each request of a `ForkServer`, until standard input ends; forks end with this process.

    So it hears none of the signals that are sent to all processes at once, by a service manager or at a shutdown: the
    forks do, and need their time.
    """
    gc.freeze()  # pages that nobody writes to stay shared
    for number in _HANDLED:
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # else nothing could be waited for
    server = os.getpid()
    forks: dict[int, ForkedProcess] = {}

    def begin(request: Mapping[str, Any]) -> int:
        end_with_parent()
        if os.getppid() != server:
            return 128 + signal.SIGKILL
        os.setsid()
        log = os.open(request["log"], os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o666)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for wanted, given in ((0, nothing), (1, log), (2, log)):
            os.dup2(given, wanted)
        os.close(nothing)
        os.close(log)
        os.chdir(request["folder"])
        return run()

    os.write(1, _READY)
    for line in sys.stdin:
        request = json.loads(line)
        if (pid := request.get("poll")) is not None:
            answer = forks[pid].poll()
        else:
            fork = ForkedProcess(lambda request=request: begin(request), request["environment"])
            forks[fork.pid] = fork
            answer = fork.pid
        os.write(1, json.dumps(answer).encode() + b"\n")
    os._exit(0)


class ServerEndedError(Exception):
    """The server is gone, and its forks with it."""


class ForkServer:
    """A program that calls `serve`. It ends with this process."""

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        log: Path,
        *,
        pass_fds: Sequence[int] = (),
    ) -> None:
        """Start it; what it says before it is ready goes to `log`. `pass_fds`: what forks find open."""
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                env=environment,
                pass_fds=pass_fds,
                bufsize=0,
                start_new_session=True,
            )
        self._ready = False

    def start(self, environment: Mapping[str, str], folder: Path, log: Path) -> ServedProcess:
        """A process in a session of its own, which works in `folder` and writes to the end of `log`. Raises OSError
        where it can't be written.
        """
        log.open("ab").close()
        return ServedProcess(self, {"environment": dict(environment), "folder": str(folder), "log": str(log)})

    @property
    def ended(self) -> bool:
        """Whether it is gone."""
        return self._process.poll() is not None

    def is_ready(self) -> bool:
        """Whether it has imported all. Raises ServerEndedError."""
        assert self._process.stdout is not None
        if not self._ready and select.select([self._process.stdout], [], [], 0)[0]:
            self._ready = self._answer() == _READY
        return self._ready

    def ask(self, request: Mapping[str, Any]) -> Any:
        """Its answer, at once if it is ready; one that does not answer is ended. Raises ServerEndedError."""
        assert self._process.stdin is not None
        left = memoryview(json.dumps(request).encode() + b"\n")
        try:
            while left:  # a signal may come when a part of it is written
                left = left[self._process.stdin.write(left) :]
        except BrokenPipeError:
            raise ServerEndedError from None
        return json.loads(self._answer())

    def kill(self) -> None:
        """SIGKILL to it and so to all its forks."""
        self._process.kill()

    def wait(self) -> int:
        """How it ended."""
        return self._process.wait()

    def close(self) -> None:
        """End it and all its forks."""
        self._process.kill()
        self._process.communicate()

    def _answer(self) -> bytes:
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], _ANSWER_SECONDS)[0]:
            self.kill()
        if not (line := self._process.stdout.readline()):
            raise ServerEndedError
        return line


class ServedProcess:
    """A fork of a server, as far as `subprocess.Popen` would say the same of it.

    Until the server is ready there is no fork: a signal that would end it ends the server.
    """

    def __init__(self, server: ForkServer, request: Mapping[str, Any]) -> None:
        self._server, self._request = server, request
        self.pid: int | None = None  # None until the server is ready
        self.returncode: int | None = None  # negative for a signal

    def poll(self) -> int | None:
        """Its exit code; None while it runs."""
        if self.returncode is not None:
            return self.returncode
        try:
            if self.pid is not None:
                self.returncode = self._server.ask({"poll": self.pid})
            elif self._server.is_ready():
                self.pid = self._server.ask(self._request)
        except ServerEndedError:
            self.returncode = self._server.wait() or -signal.SIGKILL
            if self.pid is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self.pid, signal.SIGKILL)
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Nothing, if it has ended."""
        if self.poll() is not None:
            return
        if self.pid is None:
            self._server.kill()  # and no other fork: there is none before it is ready
            self.returncode = -number
        else:
            os.kill(self.pid, number)
