"""Plots of the study: quality against compute for each model, and the factor by size of the family."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from benchmarks.family.comparison import Comparison
from benchmarks.family.intervals import Interval
from modelchain.report.palette import GRID, MARKERS, MUTED, TEXT, stage_colours

PANELS_A_ROW = 4
PNG_DPI = 160
MAX_RECIPES = 8  # in one plot: more could not be told apart

Style = tuple[str, str]  # colour and marker


def write_plots(comparisons: Sequence[Comparison], folder: Path, prefix: str) -> list[Path]:
    """Write a plot for each family, and one over families where there are several; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    numbered = [each for each in comparisons if each.setting.family.isdigit()]
    families = list(dict.fromkeys(each.setting.family for each in numbered))
    styles = _styles(numbered)
    plots = {
        f"{prefix}-family-{name}.png": _quality(
            [each for each in numbered if each.setting.family == name], styles
        )
        for name in families
    }
    if len(families) > 1:
        plots[f"{prefix}-factors.png"] = _factors(numbered, families, styles)
    paths = []
    for name, figure in plots.items():
        path = folder / name
        figure.savefig(path, dpi=PNG_DPI, facecolor="white", metadata={"Software": None})
        paths.append(path)
    return paths


def _styles(comparisons: Sequence[Comparison]) -> dict[str, Style]:
    """Colour and marker of each recipe, the same in all plots."""
    recipes = list(dict.fromkeys(each.setting.recipe for each in comparisons))[:MAX_RECIPES]
    colours = [colour.light for colour in stage_colours(len(recipes))]
    return dict(zip(recipes, zip(colours, MARKERS, strict=False), strict=True))


def _quality(comparisons: Sequence[Comparison], styles: Mapping[str, Style]) -> Figure:
    """A panel a model: alone's runs by their compute, and each chain's model by all that its chain had spent."""
    shown = [each for each in comparisons if each.setting.recipe in styles]
    models = [model.name for model in shown[0].models]
    metric = shown[0].setting.metric
    columns = min(PANELS_A_ROW, len(models))
    rows = math.ceil(len(models) / columns)
    figure = Figure(figsize=(3.1 * columns + 0.4, 3.0 * rows + 0.9), layout="constrained")
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for place, (panel, name) in enumerate(zip(panels, models, strict=False)):
        curve = next(model.curve for model in shown[0].models if model.name == name)
        panel.errorbar(
            [spent for spent, _ in curve],
            [metric.scale * value.mean for _, value in curve],
            yerr=[metric.scale * _bar(value) for _, value in curve],
            color=MUTED.light,
            marker=".",
            linewidth=1.2,
            elinewidth=0.8,
            capsize=2,
            label=f"alone ({shown[0].setting.alone}), decayed to each point",
        )
        for each in shown:
            colour, marker = styles[each.setting.recipe]
            model = next(model for model in each.models if model.name == name)
            panel.errorbar(
                [model.spent],
                [metric.scale * model.chain.mean],
                yerr=[metric.scale * _bar(model.chain)],
                color=colour,
                marker=marker,
                markersize=5.5,
                linestyle="none",
                elinewidth=0.8,
                capsize=2,
                label=each.setting.recipe,
            )
        panel.set_xscale("log")
        panel.set_title(name, fontsize=10, color=TEXT.light)
        panel.xaxis.set_major_locator(FixedLocator([spent for spent, _ in curve]))
        panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value / 1e9:.3g}"))
        panel.xaxis.set_minor_locator(NullLocator())
        if place >= len(models) - columns:
            panel.set_xlabel("GMACs spent; of a chain, in all", fontsize=8, color=TEXT.light)
        if place % columns == 0:
            panel.set_ylabel(f"{metric.name}, {metric.unit}", fontsize=8, color=TEXT.light)
        _dress(panel)
    for panel in panels[len(models) :]:
        panel.set_visible(False)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=min(2, len(labels)), fontsize=8, frameon=False
    )
    return figure


def _factors(
    comparisons: Sequence[Comparison], families: Sequence[str], styles: Mapping[str, Style]
) -> Figure:
    """Acceleration at equal quality by size of the family, with intervals."""
    figure = Figure(figsize=(5.6, 3.9), layout="constrained")
    panel = figure.subplots()
    spread = 0.08
    for place, (recipe, (colour, marker)) in enumerate(styles.items()):
        found = [each for each in comparisons if each.setting.recipe == recipe]
        shift = (place - (len(styles) - 1) / 2) * spread
        panel.errorbar(
            [families.index(each.setting.family) + shift for each in found],
            [each.factor.mean for each in found],
            yerr=[_bar(each.factor) for each in found],
            color=colour,
            marker=marker,
            markersize=5.5,
            linewidth=1,
            elinewidth=0.8,
            capsize=2,
            label=recipe,
        )
        bounds = [each for each in found if each.at_least]  # hollow: of some unit, a lower bound
        panel.plot(
            [families.index(each.setting.family) + shift for each in bounds],
            [each.factor.mean for each in bounds],
            color=colour,
            marker=marker,
            markersize=5.5,
            markerfacecolor="white",
            linestyle="none",
            zorder=5,
        )
    panel.axhline(1, color=MUTED.light, linewidth=1, linestyle=":")
    panel.set_xticks(range(len(families)), [f"{name} models" for name in families])
    panel.set_ylim(bottom=0)
    panel.set_ylabel("times less compute (hollow: at least)", fontsize=8, color=TEXT.light)
    _dress(panel)
    figure.legend(loc="outside lower center", ncols=1, fontsize=8, frameon=False)
    return figure


def _dress(panel: Axes) -> None:
    panel.grid(color=GRID.light, linewidth=0.6)
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)
    panel.spines[["left", "bottom"]].set_color(GRID.light)
    panel.tick_params(labelsize=8, colors=TEXT.light, length=0)
    panel.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))


def _bar(value: Interval) -> float:
    """Half of its width; nothing where one value tells no width."""
    return 0.0 if math.isnan(value.half_width) else value.half_width
