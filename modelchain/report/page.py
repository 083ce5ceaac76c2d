"""Writes the report: one self-contained HTML page, and the plots as PNGs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import jinja2
import markupsafe

from modelchain import __version__
from modelchain.errors import CannotWriteError, DiskFullError
from modelchain.report import beside, drawings, examples, headline, plots, svg, tables
from modelchain.report.accounting import costs
from modelchain.report.data import Baseline, ChainArtifacts
from modelchain.report.drawings import Plot
from modelchain.report.measures import leading_measures
from modelchain.report.palette import GRID, MUTED, SURFACE, TEXT, Colour, stage_colours
from modelchain.report.savings import savings
from modelchain.store.local_files import partial_file

PAGE = "report.html"
_BEFORE_UNIT = re.compile(r"(?<=\d) (?=(?:%|[kMGTPEZY]?MACs|s|min|h|d|[MBT])(?![\w-]))")
PAPER = "https://arxiv.org/abs/2604.12391"


@dataclass(frozen=True)
class Figure:
    """A plot as the page holds it."""

    id: str
    plot: Plot
    wide: str
    narrow: str


@dataclass(frozen=True)
class Report:
    """A page and the PNGs that belong beside it, by file name."""

    html: str
    pngs: dict[str, bytes]


def make_report(chain: ChainArtifacts, baselines: Sequence[Baseline], now: datetime) -> Report:
    """The report of a chain, made at `now`."""
    cost, colours = costs(chain, baselines), stage_colours(len(chain.stages))
    measures = leading_measures(chain)
    accuracy = [
        drawings.accuracy_plot(
            chain, cost, colours, measure, f"accuracy-compute{f'-{measure.set}' if i else ''}"
        )
        for i, measure in enumerate(measures)
    ]
    loss = drawings.loss_plot(chain, cost, colours)
    cost_bars = drawings.cost_plot(chain, cost, colours)
    first = measures[0] if measures else None
    alone = beside.against_alone(chain, cost, first)
    saved = savings(chain, cost, first)
    cards = examples.example_cards(chain)
    html = _template().render(
        chain=chain,
        costs=cost,
        version=__version__,
        paper=PAPER,
        made=now.strftime("%d %B %Y, %H:%M %Z").strip(),
        colours=(*colours, TEXT, MUTED, GRID, SURFACE),
        verdict=headline.verdict(chain, cost, alone, first, saved),
        tiles=headline.tiles(chain, cost, alone, first, saved),
        measure=first,
        finals=beside.finals(chain, cost, first) if first else [],
        alone=alone,
        saved=saved,
        accuracy=[figure for plot in accuracy if (figure := _figure(plot, colours))],
        loss=_figure(loss, colours),
        cost=_figure(cost_bars, colours),
        growths=tables.growths(chain, measures),
        cost_rows=tables.cost_rows(chain, cost),
        rows=tables.stage_rows(chain, measures),
        example_set=chain.stages[examples.example_stages(chain)[-1]].example_set if cards else None,
        example_scores=_scores(cards),
        cards=cards,
        metrics=tables.metric_rows(chain),
        settings=tables.setting_rows(chain),
        documents=[(stage.model, stage.name, tables.stage_json(stage)) for stage in chain.stages],
        versions=tables.versions(chain),
        models=[stage.model for stage in chain.stages],
    )
    drawn = [plot for plot in (*accuracy, loss, cost_bars) if plot is not None]
    return Report(html, {plot.file: plots.png(plot.drawing) for plot in drawn})


def write_report(report: Report, folder: Path) -> Path:
    """Write the page and its PNGs into `folder`; returns the page's path.

    Each file is there whole or not at all. Raises CannotWriteError or DiskFullError.
    """
    page = folder / PAGE
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in report.pngs.items():
            _write(folder / name, data)
        _write(page, report.html.encode())
    except OSError as error:
        kind = DiskFullError if error.errno in (28, 122) else CannotWriteError  # ENOSPC, EDQUOT
        raise kind(
            f"{folder}: the report can't be written there: {error.strerror}; choose another --output"
        ) from None
    return page


def _write(path: Path, data: bytes) -> None:
    with partial_file(path.parent) as partial:
        partial.write_bytes(data)
        partial.replace(path)


def _figure(plot: Plot | None, colours: Sequence[Colour]) -> Figure | None:
    if plot is None:
        return None
    wide, narrow = (
        svg.inline(
            plots.svg(plot.drawing, shape), f"{plot.drawing.name}-{shape.name.lower()}", plot.words, colours
        )
        for shape in (plots.Shape.WIDE, plots.Shape.NARROW)
    )
    return Figure(plot.drawing.name, plot, wide, narrow)


def _scores(cards: Sequence[examples.ExampleCard]) -> list[tuple[int, str, int, int]]:
    """Stage, model, number of right answers and of answers, over the examples."""
    answers = [answer for card in cards for answer in card.answers]
    models = dict.fromkeys((answer.stage, answer.model) for answer in answers)
    return [
        (
            stage,
            model,
            sum(a.right for a in answers if a.stage == stage),
            sum(a.stage == stage for a in answers),
        )
        for stage, model in models
    ]


def _keep_units(value: object) -> object:
    """Text that does not break between a figure and its unit."""
    if isinstance(value, str) and not isinstance(value, markupsafe.Markup):
        return _BEFORE_UNIT.sub("\u00a0", value)
    return value


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_keep_units,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("template.html")
