"""How a local run is shown: a live table on a terminal, plain lines in a log, JSON events for programs.

All three are fed with the same `ChainStatus` at each look, and decide by themselves what is worth saying.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from typing import Protocol, TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from modelchain.status import ChainStatus, StagePhase, StageStatus, rfc3339

LINE_SECONDS = 10.0  # between lines of progress where there is no terminal
REFRESH_PER_SECOND = 4
BAR_WIDTH = 20

_STYLES: Mapping[StagePhase, str] = {
    StagePhase.RUNNING: "bold cyan",
    StagePhase.RETRYING: "bold yellow",
    StagePhase.COMPLETE: "green",
    StagePhase.CACHED: "green",
    StagePhase.FAILED: "bold red",
    StagePhase.SUSPENDED: "yellow",
    StagePhase.WAITING: "yellow",
}


class Display(Protocol):
    """What a runner tells a person, or a program."""

    def update(self, status: ChainStatus) -> None:
        """How the chain stands. Called at every look; cheap where nothing has changed."""
        ...

    def note(self, text: str) -> None:
        """Something a person should know now, in one line."""
        ...

    def close(self) -> None:
        """No more updates: gives the terminal back."""
        ...


def make_display(output: str, chain: str, stream: TextIO | None = None) -> Display:
    """The display for `-o json` ("json") or for people ("text"): live on a terminal, lines elsewhere."""
    stream = stream or sys.stdout
    if output == "json":
        return JsonDisplay(chain, stream)
    if stream.isatty():
        return LiveDisplay(chain, stream)
    return LineDisplay(chain, stream)


class LiveDisplay:
    """A table that is redrawn in place; notes scroll by above it."""

    def __init__(self, chain: str, stream: TextIO) -> None:
        self._chain = chain
        self._console = Console(file=stream)
        self._live = Live(console=self._console, refresh_per_second=REFRESH_PER_SECOND, transient=False)
        self._started = False

    def update(self, status: ChainStatus) -> None:
        if not self._started:
            self._live.start()
            self._started = True
        self._live.update(self._render(status))

    def note(self, text: str) -> None:
        self._console.print(Text(text, style="dim"))

    def close(self) -> None:
        if self._started:
            self._live.stop()
            self._started = False

    def _render(self, status: ChainStatus) -> Group:
        table = Table(box=None, pad_edge=False, header_style="bold")
        for title in ("STAGE", "PHASE"):
            table.add_column(title, no_wrap=True)
        table.add_column("PROGRESS", width=BAR_WIDTH)
        for title in ("STEP", "SAMPLES/S", "LOSS", "TOP-1", "ETA"):
            table.add_column(title, justify="left" if title == "LOSS" else "right", no_wrap=True)
        for stage in status.stages:
            table.add_row(
                stage.name,
                Text(phase_text(stage), style=_STYLES.get(stage.phase, "dim")),
                ProgressBar(total=stage.steps or 1, completed=stage.step or 0, width=BAR_WIDTH)
                if stage.steps
                else Text(""),
                step_text(stage),
                "" if stage.samples_per_second is None else f"{stage.samples_per_second:,.0f}",
                loss_text(stage.loss),
                top1_text(stage.metrics),
                "" if stage.eta_seconds is None or stage.finished else duration(stage.eta_seconds),
            )
        lines = [f"{stage.name}: {stage.message}" for stage in status.stages if _worth_a_line(stage)]
        head = Text(f"{self._chain}  {status.phase}", style="bold")
        if status.eta:
            head.append(f"  {status.eta} to go", style="dim")
        return Group(head, table, *(Text(line, style="yellow") for line in lines))


class LineDisplay:
    """One line for each change of phase or activity, and one every few seconds of progress."""

    def __init__(self, chain: str, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._chain = chain
        self._stream = stream
        self._clock = clock
        self._said: dict[str, str] = {}
        self._next_progress = 0.0

    def update(self, status: ChainStatus) -> None:
        for stage in status.stages:
            standing = f"{phase_text(stage)} {stage.message}".strip()
            if self._said.get(stage.name) != standing:
                first = stage.name not in self._said
                self._said[stage.name] = standing
                if first and stage.phase is StagePhase.PENDING:
                    continue  # nothing has happened to it yet
                self._line(stage, standing)
                self._next_progress = self._clock() + LINE_SECONDS
            elif stage.phase is StagePhase.RUNNING and self._clock() >= self._next_progress:
                self._next_progress = self._clock() + LINE_SECONDS
                self._line(stage, progress_text(stage))

    def note(self, text: str) -> None:
        print(f"{self._chain}: {text}", file=self._stream, flush=True)

    def close(self) -> None:
        """Nothing to give back."""

    def _line(self, stage: StageStatus, text: str) -> None:
        attempt = f" (attempt {stage.attempt})" if stage.attempt > 1 and not stage.finished else ""
        print(f"{self._chain} {stage.name}{attempt}: {text}", file=self._stream, flush=True)


class JsonDisplay:
    """One JSON object a line.

    {"type": "stage", "time", "chain", "stage": {...}} whenever a stage's status has changed, with the fields of
    `StageStatus`; {"type": "chain", "time", "chain", "phase", "message"} when the chain's phase has;
    {"type": "note", "time", "chain", "text"} for what a person should know.
    """

    def __init__(self, chain: str, stream: TextIO, clock: Callable[[], float] = time.time) -> None:
        self._chain = chain
        self._stream = stream
        self._clock = clock
        self._stages: dict[str, StageStatus] = {}
        self._phase: tuple[str, str] | None = None

    def update(self, status: ChainStatus) -> None:
        for stage in status.stages:
            if self._stages.get(stage.name) != stage:
                self._stages[stage.name] = stage
                self._event("stage", stage=stage.model_dump(mode="json", by_alias=True, exclude_none=True))
        if self._phase != (status.phase, status.message):
            self._phase = (status.phase, status.message)
            self._event("chain", phase=str(status.phase), message=status.message)

    def note(self, text: str) -> None:
        self._event("note", text=text)

    def close(self) -> None:
        """Nothing to give back."""

    def _event(self, kind: str, **fields: object) -> None:
        event = {"type": kind, "time": rfc3339(self._clock()), "chain": self._chain, **fields}
        print(json.dumps(event, allow_nan=False), file=self._stream, flush=True)


def phase_text(stage: StageStatus) -> str:
    """The phase, or what a running trainer is doing."""
    if stage.phase is StagePhase.RUNNING and stage.activity:
        return stage.activity
    return str(stage.phase)


def step_text(stage: StageStatus) -> str:
    """`step/steps`, or nothing where none is known."""
    return f"{stage.step}/{stage.steps}" if stage.step is not None and stage.steps is not None else ""


def loss_text(loss: Mapping[str, float]) -> str:
    """The total, and its terms in brackets where there is more than one."""
    if "total" not in loss:
        return ""
    terms = [f"{name} {value:.3f}" for name, value in loss.items() if name != "total" and value]
    return f"{loss['total']:.3f}" + (f" ({', '.join(terms)})" if len(terms) > 1 else "")


def top1_text(metrics: Mapping[str, float]) -> str:
    """The first zero-shot accuracy in per cent, or nothing."""
    value = next((value for name, value in metrics.items() if name.endswith("/top1")), None)
    return "" if value is None else f"{100 * value:.1f} %"


def duration(seconds: float) -> str:
    """`45s`, `3m20s`, `2h05m` or `4d03h`."""
    seconds = int(seconds)
    if seconds < 60:
        return f"{seconds}s"
    if seconds < 3600:
        return f"{seconds // 60}m{seconds % 60:02}s"
    if seconds < 86400:
        return f"{seconds // 3600}h{seconds % 3600 // 60:02}m"
    return f"{seconds // 86400}d{seconds % 86400 // 3600:02}h"


def progress_text(stage: StageStatus) -> str:
    """All that is known of a running stage, for one line of a log."""
    speed = "" if stage.samples_per_second is None else f"{stage.samples_per_second:,.0f} samples/s"
    loss = loss_text(stage.loss)
    top1 = top1_text(stage.metrics)
    eta = "" if stage.eta_seconds is None else f"{duration(stage.eta_seconds)} to go"
    parts = (
        f"step {step_text(stage)}" if step_text(stage) else phase_text(stage),
        speed,
        f"loss {loss}" if loss else "",
        f"top-1 {top1}" if top1 else "",
        eta,
    )
    return ", ".join(part for part in parts if part)


def _worth_a_line(stage: StageStatus) -> bool:
    return bool(stage.message) and stage.phase not in (StagePhase.PENDING, StagePhase.COMPLETE)
