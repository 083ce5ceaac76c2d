"""The live table of a run on a terminal."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from modelchain.local.display import leading_metric, lines_of
from modelchain.local.events import Event, ProgressMade, StageChanged
from modelchain.reconcile.summary import duration
from modelchain.resolved import ResolvedChain
from modelchain.status import ChainStatus, StagePhase, StageStatus

REFRESH_PER_SECOND = 4
WIDE = 110  # columns of a terminal that has room for everything
NARROW = 92  # below this, the terms of the loss are left out

_TERMS = {"TASK": "task", "DISTIL": "distillation"}  # of the loss, by column

_COLOURS = {
    StagePhase.RUNNING: "cyan",
    StagePhase.COMPLETE: "green",
    StagePhase.CACHED: "green",
    StagePhase.FAILED: "bold red",
    StagePhase.RETRYING: "yellow",
    StagePhase.WAITING: "yellow",
}


class LiveDisplay:
    """A table that is drawn anew in place; everything else is printed above it."""

    def __init__(self, chain: ResolvedChain, console: Console | None = None) -> None:
        self._chain = chain
        self._console = console or Console()
        self._width = max(len(stage.name) for stage in chain.all_stages)
        self._live = Live(console=self._console, refresh_per_second=REFRESH_PER_SECOND, auto_refresh=True)
        self._started = False

    def tell(self, event: Event) -> None:
        """Print what the table does not show."""
        if isinstance(event, ProgressMade):
            return
        if isinstance(event, StageChanged) and event.phase not in (StagePhase.RETRYING, StagePhase.WAITING):
            return
        if event.event == "result":
            self.close()
        for line in lines_of(event, self._chain, self._width):
            self._console.print(Text(line))

    def show(self, status: ChainStatus) -> None:
        """Draw the table of this status."""
        if not self._started:
            self._live.start()
            self._started = True
        self._live.update(table_of(self._chain, status, width=self._console.width))

    def close(self) -> None:
        """Leave the last table standing and the cursor visible."""
        if self._started:
            self._live.stop()
            self._started = False


def table_of(chain: ResolvedChain, status: ChainStatus, *, width: int) -> Group:
    """The stages as a table no wider than `width` columns, and a line on what goes on."""
    terms = _TERMS if width >= NARROW else {}
    bar = 24 if width >= WIDE else 10
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("STAGE", "PHASE", ""):
        table.add_column(column, no_wrap=True)
    for column in ("STEP", "SAMPLES/S", "LOSS", *terms, "TOP-1", "ETA"):
        table.add_column(column, justify="right", no_wrap=True)
    for stage in chain.all_stages:
        known = status.find_stage(stage.name) or StageStatus(name=stage.name)
        table.add_row(*_row(chain, known, ("total", *terms.values()), bar))
    note = Text(status.message, style="dim", overflow="ellipsis", no_wrap=True)
    return Group(table, note) if status.message else Group(table)


def _row(
    chain: ResolvedChain, stage: StageStatus, terms: Iterable[str], width: int
) -> tuple[str | Text | ProgressBar, ...]:
    running = stage.phase is StagePhase.RUNNING
    doing = stage.activity or "Starting"
    shown = doing if running and doing != "Training" else stage.phase.value
    phase = Text(shown, style=_COLOURS.get(stage.phase, "dim"))
    if stage.attempt > 1 and not stage.finished:
        phase.append(f" #{stage.attempt}", style="yellow")
    done, steps = stage.step or 0, stage.steps or 0
    bar = ProgressBar(total=max(1, steps), completed=done, width=width)
    metric = leading_metric(chain, stage.name, stage.metrics).removeprefix("top-1 ")
    return (
        stage.name,
        phase,
        bar,
        f"{done}/{steps}" if steps else "",
        f"{stage.samples_per_second:,.0f}" if running and stage.samples_per_second is not None else "",
        *(f"{stage.loss[term]:.3f}" if term in stage.loss else "" for term in terms),
        metric,
        duration(stage.eta_seconds) if running and stage.eta_seconds is not None else "",
    )
