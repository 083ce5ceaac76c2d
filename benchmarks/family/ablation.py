"""Recipes of chains beside each other, model by model, on the seeds and folds that all of them have."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence

from benchmarks.family.comparison import Index, units_of
from benchmarks.family.datasets import find_dataset
from benchmarks.family.errors import StudyError
from benchmarks.family.families import family
from benchmarks.family.intervals import interval
from benchmarks.family.report import Question, libraries
from modelchain.report.units import macs


def ablation(index: Index, question: Question) -> str:
    """A table in Markdown for each family: each recipe's mean, and its paired difference to the first recipe.

    Raises StudyError for a family of which no seed and fold has results of all recipes.
    """
    dataset = find_dataset(question.dataset)
    lines = [
        f"# {dataset.title}: {question.split} split, chains beside each other",
        "",
        f"Metric: `{dataset.metric.name}`, in {dataset.metric.unit}; in brackets less the first recipe's.",
        f"Intervals: 95 %, Student's t over the {question.unit}s.",
        "",
    ]
    for name in question.families:
        lines += [*_table(index, question, name), ""]
    return "\n".join([*lines, libraries(index, question)]) + "\n"


def _table(index: Index, question: Question, name: str) -> Iterator[str]:
    metric, models = find_dataset(question.dataset).metric, family(question.dataset, name)
    results = {
        recipe: index.chains(question.dataset, question.split, name, recipe) for recipe in question.recipes
    }
    pairs = sorted(set.intersection(*(set(found) for found in results.values())))
    if not pairs:
        missing = [recipe for recipe, found in results.items() if not found]
        what = f"there are none of {', '.join(missing)}" if missing else "they have none in common"
        raise StudyError(
            f"{question.dataset}, {question.split} split, family {name}: no seed and fold has results of all "
            f"recipes: {what}; `list --recipes` adds them"
        )
    units = units_of(pairs, question.unit)

    def means(recipe: str, model: str) -> list[float]:
        return [statistics.fmean(results[recipe][pair].value(model) for pair in unit) for unit in units]

    def cells(recipe: str) -> Iterator[str]:
        for model in models:
            own, first = means(recipe, model), means(question.recipes[0], model)
            mean = metric.shown(interval([statistics.fmean(own)]))
            less = interval([mine - other for mine, other in zip(own, first, strict=True)])
            yield mean if recipe == question.recipes[0] else f"{mean} ({metric.shown(less, sign=True)})"

    yield f"| family {name}, {_counted(units, question.unit)} | {' | '.join(models)} | chain |"
    yield f"| --- |{' ---: |' * (len(models) + 1)}"
    for recipe in question.recipes:
        spent = statistics.fmean(results[recipe][pair].macs for pair in pairs)
        yield f"| `{recipe}` | {' | '.join(cells(recipe))} | {macs(spent)} |"


def _counted(units: Sequence[object], unit: str) -> str:
    return f"{len(units)} {unit}{'' if len(units) == 1 else 's'}"
