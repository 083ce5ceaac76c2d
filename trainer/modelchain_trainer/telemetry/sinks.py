"""Services beside the store that show a stage's metrics while it is trained; each is a file of its own.

MODELCHAIN_METRIC_SINKS names those that are wanted, e.g. `wandb`. None of them holds up a step or ends a training: a
thread hands them their lines, and one that fails gets no more of them, which the log says. The store's own files (JSON
lines, TensorBoard events) are in metrics_log.py.
"""

from __future__ import annotations

import importlib.util
import logging
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from modelchain.artifacts import MetricsLine
from modelchain.errors import ConfigurationError
from modelchain.resolved import ResolvedStage

logger = logging.getLogger(__name__)

SINKS_VARIABLE = "MODELCHAIN_METRIC_SINKS"
CLOSE_SECONDS = 20.0  # for what was not sent yet


class MetricSink(Protocol):
    """One service. All methods are called by one thread, in order, and may raise anything."""

    def resume(self, history: Sequence[MetricsLine]) -> None:
        """The stage goes on from a checkpoint, after these lines of earlier attempts. Called first, if at all."""

    def write(self, line: MetricsLine) -> None:
        """Send a line."""

    def close(self) -> None:
        """Nothing follows. Send what is left."""


@dataclass(frozen=True)
class SinkKind:
    """A service that can be asked for by its name."""

    package: str  # without which it can't be used
    open: Callable[[ResolvedStage, Path, Mapping[str, str]], MetricSink]  # stage, scratch folder, environment


def _open_wandb(stage: ResolvedStage, scratch: Path, environment: Mapping[str, str]) -> MetricSink:
    from modelchain_trainer.telemetry.wandb_sink import WandbSink

    return WandbSink(stage, scratch, environment)


SINK_KINDS: Mapping[str, SinkKind] = {"wandb": SinkKind("wandb", _open_wandb)}


class MetricSinks:
    """All sinks of an attempt, and the thread that serves them."""

    def __init__(self, sinks: Mapping[str, Callable[[], MetricSink]]) -> None:
        """`sinks` are opened by the thread, with the first line."""
        self._openers = dict(sinks)
        self._open: dict[str, MetricSink] = {}
        self._queue: queue.SimpleQueue[Callable[[MetricSink], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="metric sinks", daemon=True)

    def resume(self, history: Sequence[MetricsLine]) -> None:
        """Before the first line, where there are earlier ones."""
        self._hand_over(lambda sink: sink.resume(history))

    def write(self, line: MetricsLine) -> None:
        """Hand a line to the thread."""
        self._hand_over(lambda sink: sink.write(line))

    def close(self) -> None:
        """Send what is left, as far as that takes no more than CLOSE_SECONDS."""
        if not self._thread.is_alive():
            return
        self._queue.put(None)
        self._thread.join(CLOSE_SECONDS)
        if self._thread.is_alive():
            logger.warning("metrics were not sent to %s in time", ", ".join(self._open))

    def _hand_over(self, call: Callable[[MetricSink], None]) -> None:
        if not self._openers:
            return
        if self._thread.ident is None:
            self._thread.start()
        self._queue.put(call)

    def _run(self) -> None:
        for name, opener in self._openers.items():
            self._guarded(name, lambda name=name, opener=opener: self._open.update({name: opener()}))
        while (call := self._queue.get()) is not None:
            for name, sink in list(self._open.items()):
                self._guarded(name, lambda call=call, sink=sink: call(sink))
        for name, sink in list(self._open.items()):
            self._guarded(name, sink.close)

    def _guarded(self, name: str, call: Callable[[], None]) -> None:
        try:
            call()
        except (Exception, SystemExit) as error:  # noqa: BLE001 - a service's library may raise anything
            self._open.pop(name, None)
            logger.warning(
                "metrics go to %s no more: %s; the training goes on, and they are in the store", name, error
            )


def find_sinks(stage: ResolvedStage, scratch: Path, environment: Mapping[str, str]) -> MetricSinks:
    """The sinks that the environment asks for. Raises ConfigurationError for one that can't be had."""
    names = [name.strip() for name in environment.get(SINKS_VARIABLE, "").split(",") if name.strip()]
    for name in names:
        if name not in SINK_KINDS:
            raise ConfigurationError(
                f"{SINKS_VARIABLE}: no sink is called {name!r}; there are {', '.join(SINK_KINDS)}"
            )
        package = SINK_KINDS[name].package
        if importlib.util.find_spec(package) is None:
            raise ConfigurationError(
                f"{SINKS_VARIABLE}={name} needs the package {package}; install it (in an image: derive one from the "
                f"trainer's), or remove {name}"
            )
    return MetricSinks(
        {name: lambda name=name: SINK_KINDS[name].open(stage, scratch, environment) for name in names}
    )
