"""The operator as users run it: `python -m modelchain_operator`, a process that can be killed."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

from tests.processes import PATIENCE_SECONDS, wait_until


class OperatorProcess:
    """One operator for one namespace, or for all. `kill` and `start` as often as a test likes."""

    def __init__(self, kubeconfig: Path, namespace: str | None, log: Path, *arguments: str) -> None:
        self.log = log
        self._command = [
            sys.executable,
            "-m",
            "modelchain_operator",
            f"--kubeconfig={kubeconfig}",
            *([f"--namespace={namespace}"] if namespace else []),
            "--http-host=127.0.0.1",
            "--http-port=0",
            "--default-image=modelchain-trainer:test",
            "--progress-seconds=1",
            "--allowed-endpoint=http://127.0.0.1:*",  # the tests' stores are on this machine
            *arguments,
        ]
        self._process: subprocess.Popen[bytes] | None = None
        self._seen = 0  # of the log, when the running process began

    def start(self, *, wait: bool = True) -> None:
        """Start it (again); with `wait`, return when it is ready."""
        assert self._process is None, "it runs already"
        self._seen = self.log.stat().st_size if self.log.exists() else 0
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log, env=dict(os.environ))
        if wait:
            wait_until(self.is_ready, f"the operator is ready; its log is {self.log}")

    def kill(self) -> None:
        """End it as a power failure does."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait(timeout=PATIENCE_SECONDS)

    def terminate(self) -> int:
        """End it as a kubelet does. Returns its exit code."""
        process, self._process = self._process, None
        assert process is not None
        process.send_signal(signal.SIGTERM)
        return process.wait(timeout=PATIENCE_SECONDS)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, SIGSTOP and SIGCONT among them."""
        assert self._process is not None
        self._process.send_signal(number)

    def wait(self, seconds: float) -> int:
        """Its exit code, once it has ended by itself."""
        process, self._process = self._process, None
        assert process is not None
        return process.wait(timeout=seconds)

    def leads(self) -> bool:
        """Whether it acts, by its own metrics."""
        try:
            return "\nmodelchain_leader 1.0\n" in self.metrics()
        except OSError:
            return False

    @property
    def pid(self) -> int:
        """Of the process that runs."""
        assert self._process is not None, "it does not run"
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the process lives."""
        return self._process is not None and self._process.poll() is None

    def is_ready(self) -> bool:
        """Whether it has listed everything and says so."""
        assert self.running, f"the operator has ended:\n{self.log.read_text()[-4000:]}"
        try:
            return self._get("/readyz")[0] == 200
        except OSError:
            return False

    def metrics(self) -> str:
        """What Prometheus reads."""
        status, text = self._get("/metrics")
        assert status == 200
        return text

    def said(self) -> str:
        """The log of all processes so far."""
        return self.log.read_text()

    @property
    def url(self) -> str:
        """Where it answers. Raises ConnectionError as long as it does not."""
        with self.log.open("rb") as log:
            log.seek(self._seen)
            found = re.search(rb"metrics at http://127\.0\.0\.1:(\d+)", log.read())
        if found is None:
            raise ConnectionError("it listens at no port yet")
        return f"http://127.0.0.1:{int(found.group(1))}"

    def _get(self, path: str) -> tuple[int, str]:
        with urllib.request.urlopen(f"{self.url}{path}", timeout=10) as answer:  # noqa: S310  of this machine
            return answer.status, answer.read().decode()
