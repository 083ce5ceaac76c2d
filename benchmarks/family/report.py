"""Tables of the study, in Markdown, from its results alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from benchmarks.family.comparison import (
    SEED,
    AloneMeans,
    Comparison,
    Index,
    ModelComparison,
    Setting,
    alone_means,
    compare,
)
from benchmarks.family.datasets import find_dataset
from benchmarks.family.errors import StudyError
from benchmarks.family.families import find_size
from benchmarks.family.listing import models_of
from benchmarks.family.metric import Metric
from modelchain.report.units import macs

# Of the selection rule: no model of the chain more than half a point (of a loss: 0.005 nats) worse than alone.
ALLOWED_SHORTFALL = 0.005


@dataclass(frozen=True)
class Question:
    """What a report is on."""

    dataset: str
    split: str
    families: tuple[str, ...]
    recipes: tuple[str, ...]  # empty: all that there are results of
    alone: str | None  # None: the best by the rule
    full: int
    unit: str = SEED


def compare_all(index: Index, question: Question) -> tuple[str, list[Comparison], list[str]]:
    """Alone's recipe, all comparisons by family and factor, and why others could not be made. Raises StudyError."""
    alone = question.alone or rank_alone(index, question)[0][0]
    found: list[Comparison] = []
    notes: list[str] = []
    for name, recipe in index.recipes(question.dataset, question.split, alone=False):
        if question.recipes and recipe not in question.recipes:
            continue
        if name not in question.families and not _is_own_family(name):
            continue
        try:
            found.append(
                compare(
                    index,
                    Setting(
                        question.dataset, question.split, name, recipe, alone, question.full, question.unit
                    ),
                )
            )
        except StudyError as error:
            notes.append(str(error))
    if not found:
        raise StudyError("\n".join(["nothing can be compared yet", *notes]))
    order = {name: place for place, name in enumerate(question.families)}
    found.sort(key=lambda each: (order.get(each.setting.family, len(order)), -each.mean_factor.factor))
    return alone, found, notes


def rank_alone(index: Index, question: Question) -> list[tuple[str, AloneMeans]]:
    """Alone's recipes, best first: by the mean over all models of the families, at full epochs.

    Raises StudyError where there is none.
    """
    models = [
        name
        for name in models_of(question.dataset, question.families)
        if find_size(question.dataset, name).wanted
    ]
    recipes = dict.fromkeys(
        recipe for _, recipe in index.recipes(question.dataset, question.split, alone=True)
    )
    means = {
        recipe: found
        for recipe in recipes
        if (found := alone_means(index, question.dataset, question.split, models, recipe, question.full))
    }
    if not means:
        raise StudyError(
            f"{question.dataset}, {question.split} split: no recipe has results of {', '.join(models)} alone at "
            f"{question.full} epochs; `list --alone` adds them"
        )
    sign = find_dataset(question.dataset).metric.sign
    return sorted(means.items(), key=lambda item: -sign * item[1].mean)


def choose(comparisons: Sequence[Comparison]) -> Comparison:
    """The chain that the selection rule takes, of one family."""
    allowed = [each for each in comparisons if each.shortfall <= ALLOWED_SHORTFALL]
    if allowed:
        return max(allowed, key=lambda each: each.mean_factor.factor)
    return min(comparisons, key=lambda each: each.shortfall)


def selection(index: Index, question: Question) -> str:
    """What the selection rule says: alone's recipes and the chains, each by rank, and the choice."""
    lines = [f"# {find_dataset(question.dataset).title}: {question.split} split", ""]
    if question.alone is None:
        lines += list(_alone_table(find_dataset(question.dataset).metric, rank_alone(index, question)))
    alone, comparisons, notes = compare_all(index, question)
    lines += ["", f"Alone: `{alone}`, {question.full} epochs.", ""]
    for name in dict.fromkeys(each.setting.family for each in comparisons):
        of_family = [each for each in comparisons if each.setting.family == name]
        chosen = choose(of_family)
        lines += [*_summary_table(of_family), "", f"Chosen for family {name}: `{chosen.setting.recipe}`", ""]
    return "\n".join([*lines, *_notes(notes)]) + "\n"


def report(index: Index, question: Question) -> tuple[str, list[Comparison]]:
    """All tables, and what they were made from. Raises StudyError."""
    alone, comparisons, notes = compare_all(index, question)
    dataset = find_dataset(question.dataset)
    lines = [
        f"# {dataset.title}: {question.split} split",
        "",
        f"Metric: `{dataset.metric.name}`, in {dataset.metric.unit}. Alone: `{alone}`, {question.full} epochs.",
        f"Intervals: 95 %, Student's t over the {question.unit}s.",
        "",
    ]
    for name in dict.fromkeys(each.setting.family for each in comparisons):
        of_family = [each for each in comparisons if each.setting.family == name]
        lines += [*_summary_table(of_family), ""]
        for each in of_family:
            lines += [*_model_table(each), ""]
    return "\n".join([*lines, libraries(index, question), *_notes(notes)]) + "\n", comparisons


def libraries(index: Index, question: Question) -> str:
    """What the split's results were trained with: another library or processor rounds otherwise."""
    found = index.makers(question.dataset, question.split)
    told = ", ".join(f"{maker} ({count})" for maker, count in sorted(found.items()))
    return f"Results of this split, by what trained them: {told}."


def _alone_table(metric: Metric, ranked: Sequence[tuple[str, AloneMeans]]) -> Iterator[str]:
    models = list(ranked[0][1].by_model)
    yield f"| alone | seeds and folds | {' | '.join(models)} | mean |"
    yield f"| --- | ---: |{' ---: |' * (len(models) + 1)}"
    for recipe, means in ranked:
        cells = [metric.rounded(means.by_model[name]) for name in models]
        yield f"| `{recipe}` | {means.pairs} | {' | '.join(cells)} | {metric.rounded(means.mean)} |"


def _summary_table(comparisons: Sequence[Comparison]) -> Iterator[str]:
    models = [model.name for model in comparisons[0].models]
    differences = " | ".join(f"{name}, to alone" for name in models)
    yield (
        f"| family {comparisons[0].setting.family} | seeds and folds | {differences} | chain | all alone "
        "| factor of the means | factor by unit |"
    )
    yield f"| --- | ---: |{' ---: |' * len(models)} ---: | ---: | ---: | ---: |"
    for each in comparisons:
        cells = [each.setting.metric.shown(model.difference, sign=True) for model in each.models]
        bound, capped = (">= ", f" ({each.at_least} of {each.units} a bound)") if each.at_least else ("", "")
        yield (
            f"| `{each.setting.recipe}` | {each.pairs} | {' | '.join(cells)} | {macs(each.chain_macs)} "
            f"| {macs(each.alone_macs)} | {each.mean_factor} | {bound}{each.factor.shown(digits=2)}{capped} |"
        )


def _model_table(each: Comparison) -> Iterator[str]:
    yield (
        f"| family {each.setting.family}, `{each.setting.recipe}` | chain | alone | chain - alone "
        "| chain - alone at equal compute |"
    )
    yield "| --- | ---: | ---: | ---: | ---: |"
    metric = each.setting.metric
    for model in each.models:
        yield (
            f"| {model.name} | {metric.shown(model.chain)} | {metric.shown(model.alone)} "
            f"| {metric.shown(model.difference, sign=True)} | {_budget(metric, model)} |"
        )


def _budget(metric: Metric, model: ModelComparison) -> str:
    if model.budget_epochs is None:
        return ""
    if model.budget_difference is None:
        return f"not run ({model.budget_epochs} epochs)"
    return f"{metric.shown(model.budget_difference, sign=True)} ({model.budget_epochs} epochs)"


def _notes(notes: Sequence[str]) -> list[str]:
    return ["Left out:", "", *(f"- {note}" for note in notes)] if notes else []


def _is_own_family(name: str) -> bool:
    return not name.isdigit()
