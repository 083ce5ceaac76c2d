"""The frame of a plot over compute: panels above each other, marks where a stage begins, keys below.

Sizes are in inches, so that text keeps its size: where there is much text, the figure grows instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg, RendererAgg
from matplotlib.figure import Figure
from matplotlib.text import Annotation

from modelchain.report.palette import MUTED, SURFACE, Colour

ROW = 0.26  # inches: a row of labels
LEFT, RIGHT, BOTTOM, GAP = 0.72, 0.16, 0.55, 0.16
NOTE_SIZE = 9
DASHES = (0, (4, 3))


class Shape(Enum):
    """Width of a figure in inches; its text has 10 pt."""

    WIDE = 7.6
    NARROW = 4.4


@dataclass(frozen=True)
class Mark:
    """Where a stage begins and how far it goes, in units of the axis, and what is written there."""

    x: float
    width: float
    label: str
    note: str
    colour: Colour
    grown: bool  # out of a predecessor: a growth event


class Frame:
    """Panels with a shared x. Draw into `axes`, then call `finish` once."""

    def __init__(self, shape: Shape, panels: int) -> None:
        self.figure = new_figure(shape.value, 5.0)
        first = self.figure.add_subplot(panels, 1, 1)
        self.axes: list[Axes] = [first]
        for i in range(1, panels):
            first.tick_params(labelbottom=False)
            self.axes.append(self.figure.add_subplot(panels, 1, i + 1, sharex=first))
        self._panel = 2.05 if panels > 1 else 3.3 if shape is Shape.WIDE else 2.9

    def finish(self, marks: Sequence[Mark], keys: Sequence[Artist]) -> None:
        """Place the panels, mark where stages begin and write the keys."""
        width = float(self.figure.get_size_inches()[0])
        inner = width - LEFT - RIGHT
        low, high = self.axes[0].get_xlim()
        starts = [(mark.x - low) / (high - low) * inner for mark in marks]
        places = stack_labels(starts, [self._width(mark) for mark in marks], inner)
        top = ROW * (1 + max((row for _, row in places), default=-1)) + 0.12
        panels = len(self.axes)
        height = top + panels * self._panel + (panels - 1) * GAP + BOTTOM
        self.figure.set_size_inches(width, height)
        for i, axes in enumerate(self.axes):
            below = BOTTOM + (panels - 1 - i) * (self._panel + GAP)
            axes.set_position((LEFT / width, below / height, inner / width, self._panel / height))
        for mark, (x, row) in zip(marks, places, strict=True):
            self._draw(mark, x / inner, 1 + (0.05 + ROW * row) / self._panel)
        self.figure.align_ylabels(self.axes)
        legend_below(self.figure, self.axes[-1], keys)

    def _draw(self, mark: Mark, x: float, y: float) -> None:
        """`x` and `y`: where the label stands, as shares of the first panel."""
        for axes in self.axes:
            axes.axvspan(mark.x, mark.x + mark.width, color=mark.colour.light, alpha=0.06, linewidth=0)
            if mark.grown:
                axes.axvline(mark.x, color=mark.colour.light, linewidth=1.0, linestyle=DASHES, alpha=0.8)
        first = self.axes[0]
        first.plot(
            [mark.x] * 2,
            [1, y + 0.8 * ROW / self._panel],
            color=mark.colour.light,
            linewidth=1.0,
            linestyle=DASHES if mark.grown else "-",
            alpha=0.8,
            clip_on=False,
            transform=first.get_xaxis_transform(),
        )
        self._write(mark, x, y)

    def _write(self, mark: Mark, x: float, y: float) -> list[Annotation]:
        first = self.axes[0]
        box = {"facecolor": SURFACE.light, "edgecolor": "none", "pad": 0.6}
        name = first.annotate(
            mark.label,
            (x, y),
            xycoords="axes fraction",
            color=mark.colour.light,
            fontweight="bold",
            bbox=box,
            zorder=6,
            annotation_clip=False,
        )
        if not mark.note:
            return [name]
        note = first.annotate(
            mark.note,
            (1, y),
            xycoords=(name, "axes fraction"),
            xytext=(5, 0),
            textcoords="offset points",
            color=MUTED.light,
            fontsize=NOTE_SIZE,
            bbox=box,
            zorder=6,
            annotation_clip=False,
        )
        return [name, note]

    def _width(self, mark: Mark) -> float:
        """Width of a label in inches."""
        renderer = renderer_of(self.figure)
        artists = self._write(mark, 0.0, 0.0)
        boxes = [artist.get_window_extent(renderer) for artist in artists]
        for artist in artists:
            artist.remove()
        return (max(box.x1 for box in boxes) - min(box.x0 for box in boxes)) / self.figure.dpi + 0.1


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of so many inches."""
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    return figure


def renderer_of(figure: Figure) -> RendererAgg:
    """The renderer that measures text."""
    canvas = figure.canvas
    assert isinstance(canvas, FigureCanvasAgg)
    return canvas.get_renderer()


def stack_labels(starts: Sequence[float], widths: Sequence[float], room: float) -> list[tuple[float, int]]:
    """Place and row (0 is the lowest) of labels whose lines rise at `starts`, ascending, within `room`.

    A label stands above all later ones whose lines rise within its span. So no label covers another one,
    and no line passes through a label, unless one had to be moved left for want of room.
    """
    places: list[tuple[float, int]] = []
    for start, width in reversed(list(zip(starts, widths, strict=True))):
        x = max(0.0, min(start + 0.05, room - width))
        later = zip(starts[len(starts) - len(places) :], reversed(places), strict=True)
        below = [row for line, (left, row) in later if min(line, left) < x + width]
        places.append((x, 1 + max(below, default=-1)))
    return places[::-1]


def legend_below(figure: Figure, axes: Axes, keys: Sequence[Artist]) -> None:
    """Write the keys below the axis label, in as many columns as fit; the figure becomes higher for them."""
    if not keys:
        return
    width, height = (float(side) for side in figure.get_size_inches())
    left = axes.get_position().x0
    extra = 0.0
    for columns in range(len(keys), 0, -1):
        legend = figure.legend(
            handles=list(keys),
            loc="lower left",
            ncols=columns,
            bbox_to_anchor=(left, 0.08 / height),
            borderaxespad=0,
            borderpad=0.1,
            handlelength=1.8,
            columnspacing=1.4,
            labelcolor=MUTED.light,
            fontsize=NOTE_SIZE,
        )
        extent = legend.get_window_extent(renderer_of(figure))
        extra = extent.height / figure.dpi + 0.12
        if extent.width / figure.dpi <= width * (1 - left) or columns == 1:
            break
        legend.remove()
    boxes = [part.get_position() for part in figure.axes]
    total = height + extra
    figure.set_size_inches(width, total)
    for part, box in zip(figure.axes, boxes, strict=True):
        place = (box.x0, (box.y0 * height + extra) / total, box.width, box.height * height / total)
        part.set_position(place)
