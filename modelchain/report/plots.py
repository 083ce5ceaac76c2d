"""Draws the plots: values in, matplotlib figures out. No pyplot, so nothing global is touched.

Every figure comes in two shapes, for a page and for a phone. Compute runs along x everywhere, from the first
step of the chain on; a stage has the same colour and marker in all plots. Text of users is never read as
mathtext.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.artist import Artist
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from modelchain.report import units
from modelchain.report.frame import Frame, Mark, Shape, legend_below, new_figure
from modelchain.report.palette import GRID, MUTED, SURFACE, TEXT, Colour

MAX_POINTS = 400  # a curve; more are averaged, they could not be told apart
MAX_MARKERS = 30
MAX_LABEL = 24
PNG_DPI = 200
BAR_ROW = 0.62  # inches

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class StageCurve:
    """One stage, or one model trained alone. x is MACs from the stage's own first step on."""

    label: str
    colour: Colour
    marker: str
    offset: float  # MACs that the chain had spent before
    macs: float  # MACs of the stage
    complete: bool = True
    grown: bool = True  # out of a predecessor
    before: float | None = None  # the predecessor's final value
    budget_matched: bool = False  # alone, for the compute of the chain
    values: Points = ()  # evaluation; the one at x = 0 is of the model before its first step
    task: Points = ()  # terms of the loss
    distillation: Points = ()

    @property
    def start(self) -> float | None:
        """Its value before the first step."""
        return self.values[0][1] if self.values and self.values[0][0] == 0 else None


@dataclass(frozen=True)
class Segment:
    """A part of a cost bar."""

    colour: Colour
    macs: float


@dataclass(frozen=True)
class Bar:
    """What something cost, or would: `label` and `note` stand above it."""

    label: str
    note: str
    segments: tuple[Segment, ...]
    real: bool  # False: an accounting figure, nothing was run


@dataclass(frozen=True)
class Drawing:
    """A figure that can be drawn in any shape."""

    name: str
    draw: Callable[[Shape], Figure]


def accuracy(
    name: str, title: str, share: bool, stages: Sequence[StageCurve], alone: Sequence[StageCurve]
) -> Drawing:
    """A measure against compute. `share`: values are shares of one, shown in percent."""
    return Drawing(name, lambda shape: _accuracy(title, share, stages, alone, shape))


def accuracy_axis_begins(stages: Sequence[StageCurve], alone: Sequence[StageCurve]) -> float | None:
    """Where the axis of values begins, if only the early values of training from scratch lie below it.

    Otherwise what happens after growth would be squeezed to the upper edge. None: all values are shown.
    """
    if not any(curve.grown and curve.values for curve in stages):
        return None
    values = [value for curve in (*stages, *alone) for _, value in curve.values]
    shown = [value for curve in stages if curve.grown for _, value in curve.values]
    shown += [curve.values[-1][1] for curve in (*stages, *alone) if curve.values]
    top, low = max(values), min(shown)
    beginning = top - (top - low) / 0.6
    return beginning if beginning > min(values) + 0.2 * (top - min(values)) else None


def loss(name: str, stages: Sequence[StageCurve], alone: Sequence[StageCurve]) -> Drawing:
    """Task loss against compute, and below it the distillation loss where there is one."""
    return Drawing(name, lambda shape: _loss(stages, alone, shape))


def cost(name: str, bars: Sequence[Bar], legend: Sequence[tuple[str, Colour]]) -> Drawing:
    """Cost bars, the chain's first. `legend`: names of the segments."""
    return Drawing(name, lambda shape: _cost(bars, legend, shape))


def png(drawing: Drawing) -> bytes:
    """The figure as a PNG, on white, for slides and papers."""
    buffer = io.BytesIO()
    with _style():
        figure = drawing.draw(Shape.WIDE)
        figure.savefig(
            buffer, format="png", dpi=PNG_DPI, facecolor=SURFACE.light, metadata={"Software": None}
        )
    return buffer.getvalue()


def svg(drawing: Drawing, shape: Shape) -> str:
    """The figure as matplotlib's SVG, text as text; `modelchain.report.svg` makes it fit for a page."""
    buffer = io.StringIO()
    with _style():
        drawing.draw(shape).savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return buffer.getvalue()


@contextmanager
def _style() -> Iterator[None]:
    settings: dict[str, Any] = {  # typed by matplotlib, key by key
        "font.family": ["DejaVu Sans"],
        "font.size": 10,
        "text.parse_math": False,
        "text.color": TEXT.light,
        "axes.edgecolor": MUTED.light,
        "axes.labelcolor": TEXT.light,
        "axes.linewidth": 0.8,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": GRID.light,
        "grid.linewidth": 0.8,
        "xtick.color": MUTED.light,
        "ytick.color": MUTED.light,
        "xtick.major.size": 0,
        "ytick.major.size": 0,
        "legend.frameon": False,
        "lines.linewidth": 2.0,
        "lines.solid_capstyle": "round",
        "svg.fonttype": "none",
        "svg.hashsalt": "modelchain",
    }
    with mpl.rc_context(settings):  # pyright: ignore[reportArgumentType]
        yield


def _accuracy(
    title: str, share: bool, stages: Sequence[StageCurve], alone: Sequence[StageCurve], shape: Shape
) -> Figure:
    divisor, prefix = _compute_scale([*stages, *alone])
    factor = 100.0 if share else 1.0
    frame = Frame(shape, panels=1)
    (axes,) = frame.axes
    for curve in (*alone, *stages):
        if not curve.values:
            continue
        colour, chained = curve.colour.light, curve in stages
        x, y = _columns(_thin(curve.values))
        x, y = (curve.offset + x) / divisor, factor * y
        marker = curve.marker if chained and len(x) <= MAX_MARKERS else ""
        dashes, width = ("-", 2.0) if chained else (_dashes(curve), 1.6)
        axes.plot(x, y, dashes, color=colour, linewidth=width, marker=marker, markersize=3.5)
        if curve.complete:
            axes.plot(x[-1:], y[-1:], curve.marker, color=colour, markersize=7, zorder=4)
        if not curve.grown or curve.start is None:
            continue
        if curve.before is not None:  # how much growth lost, if anything
            axes.plot([x[0]] * 2, [factor * curve.before, y[0]], ":", color=colour, linewidth=1.6)
        ring = {"marker": "o", "markersize": 11, "fillstyle": "none", "markeredgewidth": 1.8}
        axes.plot(x[:1], y[:1], color=colour, zorder=5, **ring)
    axes.set_ylabel(f"{title} (%)" if share else title)
    axes.set_xlabel(f"Compute since the first step ({prefix}MACs)")
    axes.set_xlim(left=0)
    axes.margins(x=0.02, y=0.08)
    beginning = accuracy_axis_begins(stages, alone)
    if beginning is not None:
        top = max(value for curve in (*stages, *alone) for _, value in curve.values)
        axes.set_ylim(factor * beginning, factor * (top + 0.08 * (top - beginning)))
    keys: list[Artist] = [_key(MUTED, "end of a stage", linestyle="", marker="o", markersize=6)]
    if any(curve.grown and curve.start is not None for curve in stages):
        ring = {"marker": "o", "markersize": 9, "fillstyle": "none", "markeredgewidth": 1.6}
        keys.append(_key(MUTED, "right after growth, before any step", linestyle="", **ring))
    marks = [_mark(curve, divisor, _growth(curve, factor, share)) for curve in stages]
    frame.finish(marks, keys + _alone_keys(alone))
    return frame.figure


def _loss(stages: Sequence[StageCurve], alone: Sequence[StageCurve], shape: Shape) -> Figure:
    divisor, prefix = _compute_scale([*stages, *alone])
    distilled = any(curve.distillation for curve in stages)
    frame = Frame(shape, panels=2 if distilled else 1)
    for curve in alone:
        x, y = _columns(_thin(curve.task))
        frame.axes[0].plot(x / divisor, _smooth(y), _dashes(curve), color=curve.colour.light, linewidth=1.6)
    for curve in stages:
        for axes, points in zip(frame.axes, (curve.task, curve.distillation), strict=False):
            x, y = _columns(_thin(points))
            x = (curve.offset + x) / divisor
            axes.plot(x, y, color=curve.colour.light, linewidth=0.8, alpha=0.3)
            axes.plot(x, _smooth(y), color=curve.colour.light, linewidth=1.8)
    frame.axes[0].set_ylabel("Task loss (nats)")
    if distilled:
        frame.axes[1].set_ylabel("Distillation loss")
        frame.axes[1].set_ylim(bottom=0)
    frame.axes[-1].set_xlabel(f"Compute since the first step ({prefix}MACs)")
    for axes in frame.axes:
        axes.set_xlim(left=0)
        axes.margins(x=0.02)
    keys: list[Artist] = [
        _key(MUTED, "as logged", linewidth=0.8, alpha=0.6),
        _key(MUTED, "running mean", linewidth=1.8),
    ]
    frame.finish([_mark(curve, divisor, "") for curve in stages], keys + _alone_keys(alone))
    return frame.figure


def _cost(bars: Sequence[Bar], legend: Sequence[tuple[str, Colour]], shape: Shape) -> Figure:
    totals = [sum(segment.macs for segment in bar.segments) for bar in bars]
    divisor, prefix = units.scale(max(totals, default=1.0))
    bottom = 0.55
    figure = new_figure(shape.value, BAR_ROW * len(bars) + bottom + 0.1)
    width, height = (float(side) for side in figure.get_size_inches())
    axes = figure.add_axes((0.12 / width, bottom / height, 1 - 0.3 / width, BAR_ROW * len(bars) / height))
    for place, (bar, total) in enumerate(zip(bars, totals, strict=True)):
        left = 0.0
        for segment in bar.segments:
            axes.barh(
                place + 0.2,
                segment.macs / divisor,
                left=left / divisor,
                height=0.42,
                color=segment.colour.light,
                alpha=1.0 if bar.real else 0.42,
                linewidth=0,
            )
            left += segment.macs
        if not bar.real:
            edge = {"edgecolor": MUTED.light, "linewidth": 1.0, "linestyle": (0, (3, 2))}
            axes.barh(place + 0.2, total / divisor, height=0.42, color="none", **edge)
        head = axes.annotate(
            bar.label, (0, place - 0.03), (1, 2), textcoords="offset points", va="bottom", fontweight="bold"
        )
        axes.annotate(
            bar.note,
            (1, 0),
            (9, 0),
            xycoords=head,
            textcoords="offset points",
            va="bottom",
            color=MUTED.light,
        )
    axes.set_ylim(len(bars) - 0.45, -0.55)
    axes.set_xlim(0, max(totals, default=1.0) / divisor * 1.01)
    axes.set_yticks([])
    axes.grid(visible=False)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel(f"Compute ({prefix}MACs)")
    keys = [Patch(color=colour.light, label=units.shorten(label, MAX_LABEL)) for label, colour in legend]
    legend_below(figure, axes, keys)
    return figure


def _mark(curve: StageCurve, divisor: float, note: str) -> Mark:
    label = units.shorten(curve.label, MAX_LABEL)
    return Mark(curve.offset / divisor, curve.macs / divisor, label, note, curve.colour, curve.grown)


def _growth(curve: StageCurve, factor: float, share: bool) -> str:
    """The note at the mark of a stage: the value before growth and the one after it."""
    if not curve.grown:
        return "first model"
    if curve.start is None:
        return ""
    after = f"{factor * curve.start:.1f}{' %' if share else ''}"
    return f"starts at {after}" if curve.before is None else f"{factor * curve.before:.1f} → {after}"


def _alone_keys(alone: Sequence[StageCurve]) -> list[Artist]:
    return [
        _key(
            curve.colour,
            _alone_label(curve),
            linestyle=_dashes(curve),
            linewidth=1.6,
        )
        for curve in alone
    ]


def _alone_label(curve: StageCurve) -> str:
    how = "alone, the chain’s compute" if curve.budget_matched else "trained alone"
    return f"{units.shorten(curve.label, MAX_LABEL)} {how}"


def _dashes(curve: StageCurve) -> str:
    """The line of a model trained alone."""
    return ":" if curve.budget_matched else "--"


def _key(colour: Colour, label: str, **style: object) -> Line2D:
    return Line2D([], [], color=colour.light, label=label, **style)  # pyright: ignore[reportArgumentType]


def _compute_scale(curves: Sequence[StageCurve]) -> tuple[float, str]:
    return units.scale(max((curve.offset + curve.macs for curve in curves), default=1.0))


def _columns(points: Points) -> tuple[np.ndarray, np.ndarray]:
    table = np.asarray(points, dtype=float).reshape(-1, 2)
    return table[:, 0], table[:, 1]


def _thin(points: Points) -> Points:
    """At most MAX_POINTS points: the first and last ones, and means of those between."""
    if len(points) <= MAX_POINTS:
        return points
    inner = np.array_split(np.asarray(points[1:-1], dtype=float), MAX_POINTS - 2)
    means = [(float(x), float(y)) for x, y in (part.mean(axis=0) for part in inner)]
    return [points[0], *means, points[-1]]


def _smooth(values: np.ndarray) -> np.ndarray:
    """Running mean over a twentieth of the curve, over fewer values towards both ends."""
    if len(values) < 10:
        return values
    half = max(1, len(values) // 40)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    places = np.arange(len(values))
    reach = np.minimum(np.minimum(places, len(values) - 1 - places), half)
    return (sums[places + reach + 1] - sums[places - reach]) / (2 * reach + 1)
