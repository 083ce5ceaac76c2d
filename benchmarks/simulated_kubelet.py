"""Asks a program for its health as a kubelet would, with the probes of the chart: what would it have been told, and
would it have ended the container?

https://kubernetes.io/docs/concepts/configuration/liveness-readiness-startup-probes/
"""

from __future__ import annotations

import threading
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

DEPLOYMENT = Path(__file__).parents[1] / "charts" / "modelchain" / "templates" / "deployment.yaml"
FAILURE_THRESHOLD = 3  # Kubernetes' default


@dataclass(frozen=True)
class Probe:
    """A probe of a container. Times are in seconds."""

    path: str
    initial_delay: float
    period: float
    timeout: float
    failure_threshold: int

    @classmethod
    def of_chart(cls, kind: str) -> Probe:
        """The chart's `livenessProbe` or `readinessProbe`."""
        lines = DEPLOYMENT.read_text(encoding="utf-8").splitlines()
        start = next(number for number, line in enumerate(lines) if line.strip() == f"{kind}:")
        indent = len(lines[start]) - len(lines[start].lstrip())
        block = [lines[start]]
        for line in lines[start + 1 :]:
            if len(line) - len(line.lstrip()) <= indent:
                break
            block.append(line)
        found: dict[str, Any] = yaml.safe_load("\n".join(block))[kind]
        return cls(
            path=found["httpGet"]["path"],
            initial_delay=float(found.get("initialDelaySeconds", 0)),
            period=float(found.get("periodSeconds", 10)),
            timeout=float(found.get("timeoutSeconds", 1)),
            failure_threshold=int(found.get("failureThreshold", FAILURE_THRESHOLD)),
        )


@dataclass
class Answers:
    """What the probes of one kind were answered. Times are in seconds."""

    probes: int = 0
    failures: int = 0
    failures_in_a_row: int = 0  # at most
    slowest: float = 0.0  # of those that were answered
    first_success: float | None = None  # since the start
    problems: list[str] = field(default_factory=list)  # of the failures, each once
    would_act: bool = False  # as often in a row as the threshold says


class Kubelet:
    """Probes a program from now on, until it is told to stop."""

    def __init__(self, url: Callable[[], str]) -> None:
        """`url` gives the address of the program; raises OSError as long as it listens nowhere."""
        self._url = url
        self._stop = threading.Event()
        self._began = time.monotonic()
        self.liveness, self.readiness = Answers(), Answers()
        self._threads = [
            threading.Thread(target=self._probe, args=(Probe.of_chart(kind), answers), daemon=True)
            for kind, answers in (("livenessProbe", self.liveness), ("readinessProbe", self.readiness))
        ]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Probe no more; the answers are whole then."""
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _probe(self, probe: Probe, answers: Answers) -> None:
        in_a_row = 0
        wait = probe.initial_delay
        while not self._stop.wait(wait):
            sent = time.monotonic()
            problem = self._ask(probe)
            took = time.monotonic() - sent
            answers.probes += 1
            if problem:
                in_a_row += 1
                answers.failures += 1
                answers.failures_in_a_row = max(answers.failures_in_a_row, in_a_row)
                answers.would_act |= in_a_row >= probe.failure_threshold
                if problem not in answers.problems:
                    answers.problems.append(problem)
            else:
                in_a_row = 0
                answers.slowest = max(answers.slowest, took)
                if answers.first_success is None:
                    answers.first_success = time.monotonic() - self._began
            wait = max(0.0, probe.period - took)

    def _ask(self, probe: Probe) -> str:
        """Why the probe fails; empty if it does not."""
        try:
            with urllib.request.urlopen(f"{self._url()}{probe.path}", timeout=probe.timeout):  # noqa: S310
                return ""
        except OSError as error:  # HTTPError, URLError and TimeoutError among them
            return f"{type(error).__name__}: {error}"
