"""Draws the plots: values in, matplotlib figures out. No pyplot, so nothing global is touched.

Every figure comes in two shapes, for a page and for a phone. Compute runs along x everywhere, from the first step of
the chain on; a stage has the same colour and marker in all plots. Text of users is never read as mathtext.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum

import matplotlib as mpl
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from modelchain.report import units
from modelchain.report.palette import GRID, MUTED, SURFACE, TEXT, Colour

MAX_POINTS = 400  # a curve; more are averaged, they could not be told apart
MAX_LABEL = 24
PNG_DPI = 200

Points = Sequence[tuple[float, float]]


class Shape(Enum):
    """Width of a figure in inches; its text has 10 pt."""

    WIDE = 7.6
    NARROW = 4.4


@dataclass(frozen=True)
class StageCurve:
    """One stage, or one model trained alone. x is MACs from the stage's own first step on."""

    label: str
    colour: Colour
    marker: str
    offset: float  # MACs that the chain had spent before
    macs: float  # MACs of the stage
    grown: bool = True  # out of a predecessor
    before: float | None = None  # the predecessor's final value
    values: Points = ()  # evaluation; the one at x = 0 is of the model before its first step
    task: Points = ()  # terms of the loss
    distillation: Points = ()


@dataclass(frozen=True)
class Segment:
    """A part of a cost bar."""

    colour: Colour
    macs: float


@dataclass(frozen=True)
class Bar:
    """What something cost, or would: `label` stands above it."""

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
    """Final metric against compute. `share`: values are shares of one, shown in percent."""
    return Drawing(name, lambda shape: _accuracy(title, share, stages, alone, shape))


def loss(name: str, stages: Sequence[StageCurve], alone: Sequence[StageCurve]) -> Drawing:
    """Task loss against compute, and below it the distillation loss where there is one."""
    return Drawing(name, lambda shape: _loss(stages, alone, shape))


def cost(name: str, bars: Sequence[Bar], legend: Sequence[tuple[str, Colour]]) -> Drawing:
    """Cost bars, the chain's first. `legend`: names of the segments."""
    return Drawing(name, lambda shape: _cost(bars, legend, shape))


def png(drawing: Drawing) -> bytes:
    """The figure as a PNG, on white, for slides and papers."""
    with _style():
        figure = drawing.draw(Shape.WIDE)
        buffer = io.BytesIO()
        figure.savefig(
            buffer, format="png", dpi=PNG_DPI, facecolor=SURFACE.light, metadata={"Software": None}
        )
    return buffer.getvalue()


def svg(drawing: Drawing, shape: Shape) -> str:
    """The figure as matplotlib's SVG, text as text; `modelchain.report.svg` makes it fit for a page."""
    with _style():
        figure = drawing.draw(shape)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return buffer.getvalue()


@contextmanager
def _style() -> Iterator[None]:
    settings = {
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
    with mpl.rc_context(settings):
        yield


def _accuracy(
    title: str, share: bool, stages: Sequence[StageCurve], alone: Sequence[StageCurve], shape: Shape
) -> Figure:
    divisor, prefix = _compute_scale([*stages, *alone])
    factor = 100.0 if share else 1.0
    frame = _Frame(shape, panels=1)
    (axes,) = frame.axes
    for curve in alone:
        x, y = _columns(_thin(curve.values))
        axes.plot(x / divisor, factor * y, "--", color=curve.colour.light, linewidth=1.6)
        axes.plot(x[-1:] / divisor, factor * y[-1:], curve.marker, color=curve.colour.light, markersize=6)
    for curve in stages:
        if not curve.values:
            continue
        x, y = _columns(_thin(curve.values))
        x, y = (curve.offset + x) / divisor, factor * y
        small = curve.marker if len(x) <= 30 else ""
        axes.plot(x, y, color=curve.colour.light, marker=small, markersize=3.5)
        axes.plot(x[-1:], y[-1:], curve.marker, color=curve.colour.light, markersize=7, zorder=4)
        if curve.grown and curve.values[0][0] == 0:
            if curve.before is not None:  # how much growth lost, if anything
                lost = [factor * curve.before, y[0]]
                axes.plot([x[0], x[0]], lost, ":", color=curve.colour.light, linewidth=1.6)
            axes.plot(
                x[:1], y[:1], "o", markersize=11, fillstyle="none", markeredgewidth=1.8,
                color=curve.colour.light, zorder=5,
            )  # fmt: skip
    axes.set_ylabel(f"{title} (%)" if share else title)
    axes.set_xlabel(f"Compute of the chain so far ({prefix}MACs)")
    axes.set_xlim(left=0)
    axes.margins(x=0.02, y=0.08)
    keys: list[Artist] = [_key(MUTED, "o", "end of a stage")]
    if any(curve.grown for curve in stages):
        keys.append(_key(MUTED, "ring", "right after growth, before any step"))
    keys += [_key(curve.colour, "--", f"{_short(curve)} trained alone") for curve in alone]
    frame.finish([_growth(curve, divisor, factor, share) for curve in stages], keys)
    return frame.figure


def _loss(stages: Sequence[StageCurve], alone: Sequence[StageCurve], shape: Shape) -> Figure:
    divisor, prefix = _compute_scale([*stages, *alone])
    distilled = any(curve.distillation for curve in stages)
    frame = _Frame(shape, panels=2 if distilled else 1)
    for curve in alone:
        x, y = _columns(_thin(curve.task))
        frame.axes[0].plot(x / divisor, _smooth(y), "--", color=curve.colour.light, linewidth=1.6)
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
    frame.axes[-1].set_xlabel(f"Compute of the chain so far ({prefix}MACs)")
    for axes in frame.axes:
        axes.set_xlim(left=0)
        axes.margins(x=0.02)
    keys: list[Artist] = [Line2D([], [], color=MUTED.light, linewidth=0.8, alpha=0.6, label="as logged")]
    keys += [Line2D([], [], color=MUTED.light, linewidth=1.8, label="running mean")]
    keys += [_key(curve.colour, "--", f"{_short(curve)} trained alone") for curve in alone]
    frame.finish([_growth(curve, divisor, 1.0, None) for curve in stages], keys)
    return frame.figure


def _cost(bars: Sequence[Bar], legend: Sequence[tuple[str, Colour]], shape: Shape) -> Figure:
    totals = [sum(segment.macs for segment in bar.segments) for bar in bars]
    divisor, prefix = units.scale(max(totals, default=1.0))
    row = 0.62
    bottom = 0.55
    figure = Figure(figsize=(shape.value, row * len(bars) + bottom + 0.1))
    FigureCanvasAgg(figure)
    width, height = figure.get_size_inches()
    axes = figure.add_axes((0.12 / width, bottom / height, 1 - 0.3 / width, row * len(bars) / height))
    for place, bar in enumerate(bars):
        left = 0.0
        for segment in bar.segments:
            axes.barh(
                place + 0.2, segment.macs / divisor, left=left / divisor, height=0.42, color=segment.colour.light,
                alpha=1.0 if bar.real else 0.42, edgecolor=SURFACE.light, linewidth=1.0,
            )  # fmt: skip
            left += segment.macs
        if not bar.real:
            axes.barh(
                place + 0.2, left / divisor, height=0.42, color="none", edgecolor=MUTED.light,
                linewidth=1.0, linestyle=(0, (3, 2)),
            )  # fmt: skip
        text = axes.annotate(
            bar.label,
            (0, place - 0.03),
            xytext=(1, 2),
            textcoords="offset points",
            va="bottom",
            fontweight="bold",
        )
        axes.annotate(
            f"  {bar.note}",
            (1, 0),
            xycoords=text,
            va="bottom",
            ha="left",
            color=MUTED.light,
            annotation_clip=False,
        )
    axes.set_ylim(len(bars) - 0.45, -0.55)
    axes.set_xlim(0, max(totals, default=1.0) / divisor * 1.01)
    axes.set_yticks([])
    axes.grid(visible=False, axis="y")
    axes.spines["left"].set_visible(False)
    axes.set_xlabel(f"Compute ({prefix}MACs)")
    keys = [Patch(color=colour.light, label=units.shorten(label, MAX_LABEL)) for label, colour in legend]
    _legend_below(figure, axes, keys)
    return figure


class _Frame:
    """Panels above each other with a shared x, room for labels of the stages above and for keys below.

    Sizes are in inches, so that text never shrinks: the figure grows instead.
    """

    def __init__(self, shape: Shape, panels: int) -> None:
        wide = shape is Shape.WIDE
        self._panel, self._gap = (3.3 if wide else 2.9) if panels == 1 else 2.05, 0.16
        self._left, self._right = 0.72, 0.16
        self.figure = Figure(figsize=(shape.value, 5.0))
        FigureCanvasAgg(self.figure)
        first = self.figure.add_subplot(panels, 1, 1)
        self.axes: list[Axes] = [first]
        for i in range(1, panels):
            first.tick_params(labelbottom=False)
            self.axes.append(self.figure.add_subplot(panels, 1, i + 1, sharex=first))

    def finish(self, growths: Sequence[_Growth], keys: Sequence[Artist]) -> None:
        """Place everything, mark the growth events and write the keys."""
        width = self.figure.get_size_inches()[0]
        inner = width - self._left - self._right
        low, high = self.axes[0].get_xlim()
        starts = [(growth.x - low) / (high - low) * inner for growth in growths]
        places = _stack(starts, [self._measure(growth) for growth in growths], inner)
        line = 0.2 * (2 if any(growth.note for growth in growths) else 1) + 0.08
        rows = 1 + max((row for _, row in places), default=-1)
        top = rows * line + 0.12
        bottom = 0.55
        panels = len(self.axes)
        height = top + panels * self._panel + (panels - 1) * self._gap + bottom
        self.figure.set_size_inches(width, height)
        for i, axes in enumerate(self.axes):
            below = bottom + (panels - 1 - i) * (self._panel + self._gap)
            axes.set_position((self._left / width, below / height, inner / width, self._panel / height))
        for growth, (x, row) in zip(growths, places, strict=True):
            self._mark(growth, x / inner, 1 + (0.06 + row * line) / self._panel, line / self._panel)
        self.figure.align_ylabels(self.axes)
        _legend_below(self.figure, self.axes[-1], keys)

    def _measure(self, growth: _Growth) -> float:
        """Width of a label in inches."""
        renderer = self.figure.canvas.get_renderer()  # pyright: ignore[reportAttributeAccessIssue] # Agg has it
        widths = []
        for text, options in growth.lines():
            artist = self.figure.text(0, 0, text, **options)
            widths.append(artist.get_window_extent(renderer).width / self.figure.dpi)
            artist.remove()
        return max(widths) + 0.06

    def _mark(self, growth: _Growth, x: float, y: float, line: float) -> None:
        for axes in self.axes:
            axes.axvspan(
                growth.x, growth.x + growth.width, color=growth.colour.light, alpha=0.06, linewidth=0
            )
        if growth.grown:
            for axes in self.axes:
                axes.axvline(
                    growth.x, color=growth.colour.light, linewidth=1.0, linestyle=(0, (4, 3)), alpha=0.8
                )
        first = self.axes[0]
        stem = y + 0.8 * line
        first.plot(
            [growth.x] * 2, [1, stem], color=growth.colour.light, linewidth=1.0, clip_on=False,
            linestyle=(0, (4, 3)) if growth.grown else "-", alpha=0.8, transform=first.get_xaxis_transform(),
        )  # fmt: skip
        lines = growth.lines()
        for i, (text, options) in enumerate(reversed(lines)):
            first.text(
                x, y + i * line * 0.46, text, transform=first.transAxes, va="bottom", ha="left", zorder=6,
                bbox={"facecolor": SURFACE.light, "edgecolor": "none", "pad": 0.4}, **options,
            )  # fmt: skip


@dataclass(frozen=True)
class _Growth:
    """Where a stage begins, and what is written there."""

    x: float  # in the unit of the axis
    width: float
    label: str
    note: str
    colour: Colour
    grown: bool

    def lines(self) -> list[tuple[str, dict[str, object]]]:
        """The lines of the label with their properties, from the top."""
        head: list[tuple[str, dict[str, object]]] = [
            (self.label, {"color": self.colour.light, "fontweight": "bold", "fontsize": 10})
        ]
        return head + ([(self.note, {"color": MUTED.light, "fontsize": 9})] if self.note else [])


def _growth(curve: StageCurve, divisor: float, factor: float, share: bool | None) -> _Growth:
    """`share` None: nothing is said of values."""
    note = ""
    if share is not None and not curve.grown:
        note = "first model"
    elif share is not None and curve.values and curve.values[0][0] == 0:
        unit = " %" if share else ""
        after = f"{factor * curve.values[0][1]:.1f}{unit}"
        note = f"starts at {after}" if curve.before is None else f"{factor * curve.before:.1f} → {after}"
    return _Growth(
        curve.offset / divisor, curve.macs / divisor, _short(curve), note, curve.colour, curve.grown
    )


def _stack(starts: Sequence[float], widths: Sequence[float], room: float) -> list[tuple[float, int]]:
    """Place and row of labels that begin at `starts` (ascending), so that none covers another one.

    From the right to the left, each in the lowest row where it is free: so an earlier label that would run into a
    later one stands above it, and its line passes the later one on the left.
    """
    places: list[tuple[float, int]] = []
    begin_of_row: list[float] = []
    for start, width in reversed(list(zip(starts, widths, strict=True))):
        x = max(0.0, min(start + 0.05, room - width))
        row = next((i for i, begin in enumerate(begin_of_row) if x + width <= begin), len(begin_of_row))
        if row == len(begin_of_row):
            begin_of_row.append(x)
        begin_of_row[row] = x
        # A label must not lie over the lines of those below it, which rise on its left only if it is moved.
        places.append((x, row))
    return places[::-1]


def _legend_below(figure: Figure, axes: Axes, keys: Sequence[Artist]) -> None:
    """Write the keys below the axis label, in as many columns as fit, and make the figure higher for them."""
    if not keys:
        return
    width, height = figure.get_size_inches()
    position = axes.get_position()
    renderer = figure.canvas.get_renderer()  # pyright: ignore[reportAttributeAccessIssue] # Agg has it
    for columns in range(len(keys), 0, -1):
        legend = figure.legend(
            handles=list(keys), loc="lower left", ncols=columns, bbox_to_anchor=(position.x0, 0), borderaxespad=0,
            handlelength=1.8, columnspacing=1.4, labelcolor=MUTED.light, fontsize=9,
        )  # fmt: skip
        extent = legend.get_window_extent(renderer)
        if extent.width / figure.dpi <= width * (1 - position.x0) or columns == 1:
            break
        legend.remove()
    extra = extent.height / figure.dpi + 0.02
    boxes = [part.get_position() for part in figure.axes]
    figure.set_size_inches(width, height + extra)
    for part, box in zip(figure.axes, boxes, strict=True):
        total = height + extra
        part.set_position((box.x0, (box.y0 * height + extra) / total, box.width, box.height * height / total))


def _key(colour: Colour, marker: str, label: str) -> Line2D:
    if marker == "--":
        return Line2D([], [], color=colour.light, linestyle="--", linewidth=1.6, label=label)
    if marker == "ring":
        return Line2D(
            [], [], color=colour.light, linestyle="", marker="o", markersize=9, fillstyle="none",
            markeredgewidth=1.6, label=label,
        )  # fmt: skip
    return Line2D([], [], color=colour.light, linestyle="", marker=marker, markersize=6, label=label)


def _short(curve: StageCurve) -> str:
    return units.shorten(curve.label, MAX_LABEL)


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
    return [points[0], *((float(x), float(y)) for x, y in (part.mean(axis=0) for part in inner)), points[-1]]


def _smooth(values: np.ndarray) -> np.ndarray:
    """Running mean over a twentieth of the curve, over fewer values towards both ends."""
    half = len(values) // 40
    if half == 0:
        return values
    sums = np.concatenate([[0.0], np.cumsum(values)])
    places = np.arange(len(values))
    reach = np.minimum(np.minimum(places, len(values) - 1 - places), half)
    return (sums[places + reach + 1] - sums[places - reach]) / (2 * reach + 1)
