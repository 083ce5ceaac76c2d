"""How a run is shown: a live table on a terminal, plain lines in a log, JSON for programs."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable
from typing import Protocol, TextIO

from modelchain.acceleration import Acceleration
from modelchain.evaluations import leading_metrics
from modelchain.local.events import (
    AttemptFailed,
    Event,
    Note,
    ProgressMade,
    RunEnded,
    RunStarted,
    StageChanged,
    to_json,
)
from modelchain.reconcile.summary import duration, percent, top1_of
from modelchain.report.units import macs
from modelchain.resolved import ResolvedChain
from modelchain.status import ChainStatus, StagePhase, StageReason

PROGRESS_LINE_SECONDS = 10.0


class Display(Protocol):
    """Told of every event, and of every new status; closed at the end whatever happens."""

    def tell(self, event: Event) -> None:
        """An event."""
        ...

    def show(self, status: ChainStatus) -> None:
        """The status as it is now."""
        ...

    def close(self) -> None:
        """Leave the terminal as it was."""
        ...


class SteadyDisplay:
    """Passes on to another display until that can't be written to any more: a closed terminal, a reader that has gone.

    Nobody loses a checkpoint because nobody looks.
    """

    def __init__(self, display: Display) -> None:
        self._display: Display | None = display

    def tell(self, event: Event) -> None:
        """An event."""
        self._try(lambda display: display.tell(event))

    def show(self, status: ChainStatus) -> None:
        """The status as it is now."""
        self._try(lambda display: display.show(status))

    def close(self) -> None:
        """Leave the terminal as it was."""
        self._try(lambda display: display.close())

    def _try(self, say: Callable[[Display], None]) -> None:
        if self._display is None:
            return
        try:
            say(self._display)
        except (OSError, ValueError):  # ValueError: the stream was closed
            self._display = None
            # What is left in the buffer must not end the interpreter with an error when it is flushed at exit.
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class JsonDisplay:
    """One event a line."""

    def __init__(self, out: TextIO | None = None) -> None:
        self._out = out or sys.stdout

    def tell(self, event: Event) -> None:
        """Write the event."""
        print(to_json(event), file=self._out, flush=True)

    def show(self, status: ChainStatus) -> None:
        """Events say it all."""

    def close(self) -> None:
        """Nothing to leave."""


class LineDisplay:
    """Lines for a log file: each change of a stage, and its progress every ten seconds."""

    def __init__(self, chain: ResolvedChain, out: TextIO | None = None) -> None:
        self._chain = chain
        self._out = out or sys.stdout
        self._width = max(len(stage.name) for stage in chain.all_stages)
        self._last: dict[str, tuple[str, float]] = {}  # by stage: activity, and when it was last printed

    def tell(self, event: Event) -> None:
        """Write the event as a line or a few; progress only now and then."""
        if isinstance(event, ProgressMade) and (event.activity == "Complete" or not self._is_due(event)):
            return
        clock = time.strftime("%H:%M:%S")
        for line in lines_of(event, self._chain, self._width):
            print(f"{clock} {line}" if not isinstance(event, RunEnded) else line, file=self._out, flush=True)

    def show(self, status: ChainStatus) -> None:
        """Events say it all."""

    def close(self) -> None:
        """Nothing to leave."""

    def _is_due(self, event: ProgressMade) -> bool:
        activity, printed = self._last.get(event.stage, ("", 0.0))
        now = time.monotonic()
        if event.activity == activity and now - printed < PROGRESS_LINE_SECONDS:
            return False
        self._last[event.stage] = (event.activity, now)
        return True


def lines_of(event: Event, chain: ResolvedChain, width: int) -> list[str]:
    """An event for people."""
    match event:
        case RunStarted():
            after = f", then {names}" if (names := _alone(event)) else ""
            return [
                f"chain {event.chain}: {len(event.stages)} stages into {event.store}{after}",
                f"logs: {event.logs}",
            ]
        case StageChanged():
            if event.reason in (StageReason.PREDECESSOR_INCOMPLETE, StageReason.CHAIN_INCOMPLETE) or (
                event.phase is StagePhase.RUNNING and not event.message
            ):
                return []  # the predecessor's line, or the progress that follows, says it
            if event.reason == StageReason.STARTING:
                return [f"{event.stage:<{width}}  {event.message}"]
            attempt = f" (attempt {event.attempt})" if event.attempt > 1 else ""
            text = f": {event.message}" if event.message else ""
            return [f"{event.stage:<{width}}  {event.phase.value}{attempt}{text}"]
        case ProgressMade():
            return [f"{event.stage:<{width}}  {progress_text(event, chain)}"]
        case AttemptFailed():
            counted = "" if event.counted else ", not counted"
            head = f"{event.stage:<{width}}  attempt {event.attempt} ended{counted}: {event.reason}: {event.message}"
            tail = [f"    | {line}" for line in event.tail]
            return [head, *([f"    last lines of {event.log}:", *tail] if tail else [])]
        case Note():
            return [event.message]
        case RunEnded():
            return result_lines(event)


def progress_text(event: ProgressMade, chain: ResolvedChain) -> str:
    """Figures of a running stage on one line."""
    if event.activity != "Training":
        return f"{event.activity}, step {event.step}/{event.steps}"
    parts = [f"step {event.step}/{event.steps}"]
    if event.samples_per_second is not None:
        parts.append(f"{event.samples_per_second:,.0f} samples/s")
    if event.loss:
        parts.append(loss_text(event.loss))
    metric = leading_metric(chain, event.stage, event.metrics)
    if metric:
        parts.append(metric)
    if event.eta_seconds is not None:
        parts.append(f"{duration(event.eta_seconds)} to go")
    return ", ".join(parts)


def loss_text(loss: dict[str, float]) -> str:
    """`loss 2.31 (task 2.10, distillation 0.21)`."""
    terms = ", ".join(f"{name} {value:.3f}" for name, value in loss.items() if name != "total")
    total = f"loss {loss['total']:.3f}" if "total" in loss else "loss"
    return f"{total} ({terms})" if terms else total


def leading_metric(chain: ResolvedChain, stage: str, metrics: dict[str, float]) -> str:
    """Accuracy on the first zero-shot set; else the most telling metric there is."""
    resolved = chain.stage(stage)
    top1 = top1_of(resolved, metrics)
    if top1 is not None:
        return f"top-1 {percent(top1)}"
    names = (*leading_metrics(resolved.evaluation), *metrics)
    first = next((name for name in names if name in metrics), None)
    return f"{first} {metrics[first]:.4g}" if first else ""


def _alone(event: RunStarted) -> str:
    count = len(event.baselines)
    return f"{count} model{'s' * (count != 1)} alone to compare" if count else ""


def result_lines(event: RunEnded) -> list[str]:
    """The end of a run: every stage, its metrics and weights, and the cost: as planned, and as measured."""
    width = max(len(stage.name) for stage in (*event.stages, *event.baselines))
    lines = ["", event.message]
    for stage in (*event.stages, *event.baselines):
        steps = f"{stage.step or 0}/{stage.steps} steps" if stage.steps else ""
        metrics = ", ".join(f"{name} {value:.4g}" for name, value in stage.metrics.items())
        lines.append(
            f"  {stage.name:<{width}}  {stage.phase.value:<9}  {steps}{'  ' + metrics if metrics else ''}"
        )
        if stage.weights_uri:
            lines.append(f"  {'':<{width}}  {stage.weights_uri}")
    if event.phase == "Complete":
        lines.append(
            f"planned: the chain costs {event.cost_ratio_planned:.1%} of training its largest model alone, and every "
            f"model alone {event.speedup_planned:.2f}x the chain"
        )
        lines.extend(_measured(event))
    return lines


def _measured(event: RunEnded) -> list[str]:
    found = event.speedup_measured
    if found is None:
        if event.baselines:
            return []  # the message says why
        return ["measured: nothing yet; spec.baseline.train: [all] trains the models alone too, and compares"]
    factor = Acceleration(found.factor, found.at_least)
    lines = [f"measured: at equal {found.metric} the models alone take {factor} the compute of the chain"]
    width = max(len(model.name) for model in found.models)
    for model in found.models:
        took = f"{'' if model.reached else '>= '}{macs(model.macs)} alone"
        lines.append(f"  {model.name:<{width}}  {took}, to reach {model.target:.4g}")
    return lines
