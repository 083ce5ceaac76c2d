"""A chain beside its models alone, on the same seeds and folds, by the rules of docs/method.md.

The unit is a seed: what its folds have measured is averaged first, since they share most of their training pictures
and are not independent. With one fold a seed, a unit is a run. Intervals are over units; what is compared is paired.

Acceleration at equal quality is computed for each unit, and once more on the means over all units. Where a model
alone hardly reaches the chain's, noise lowers a unit's factor rather than raising it, since alone's cost has a
ceiling; so the two are stated together.
"""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from benchmarks.family.datasets import find_dataset
from benchmarks.family.errors import StudyError
from benchmarks.family.families import family, find_size
from benchmarks.family.intervals import Interval, interval
from benchmarks.family.listing import Pair, budget_epochs, envelope_epochs
from benchmarks.family.metric import Metric
from benchmarks.family.results import Result
from modelchain.acceleration import Acceleration, acceleration, compute_to_reach

SEED, PAIR = "seed", "pair"
UNITS = (SEED, PAIR)

Curve = list[tuple[float, float]]  # compute, metric
Key = tuple[str, str, str | None, str | None, int | None, str]


class Index:
    """The results of a folder, by what was trained."""

    def __init__(self, results: Iterable[Result]) -> None:
        """Raises StudyError for two results of one run: the study's tables were changed between them."""
        self._found: dict[Key, dict[Pair, Result]] = defaultdict(dict)
        for result in results:
            run = result.run
            key = (run.dataset, run.split, run.family, run.model, run.epochs, run.recipe)
            if (run.seed, run.fold) in self._found[key]:
                raise StudyError(
                    f"there are two results of {run.to_json()}, with other settings of the study's own tables; "
                    "keep those of one kind"
                )
            self._found[key][run.seed, run.fold] = result

    def chains(self, dataset: str, split: str, family: str, recipe: str) -> dict[Pair, Result]:
        """The chains of a family by a recipe."""
        return self._found.get((dataset, split, family, None, None, recipe), {})

    def alone(self, dataset: str, split: str, model: str, epochs: int, recipe: str) -> dict[Pair, Result]:
        """The runs of a model alone."""
        return self._found.get((dataset, split, None, model, epochs, recipe), {})

    def makers(self, dataset: str, split: str) -> Counter[str]:
        """How many results each version of torch has made on each kind of processor."""
        return Counter(
            f"torch {result.versions.get('torch', 'unknown')} on {result.machine.processor or 'unknown'}"
            for (data, part, *_), found in self._found.items()
            if (data, part) == (dataset, split)
            for result in found.values()
        )

    def recipes(self, dataset: str, split: str, *, alone: bool) -> list[tuple[str, str]]:
        """Families (of a model alone, its name) and recipes that there are results of."""
        found = [
            (str(model if alone else name), recipe)
            for data, part, name, model, _, recipe in self._found
            if (data, part) == (dataset, split) and (model is not None) == alone
        ]
        return list(dict.fromkeys(found))


@dataclass(frozen=True)
class Setting:
    """What is compared with what."""

    dataset: str
    split: str
    family: str
    recipe: str
    alone: str  # the recipe of the models alone
    full: int  # epochs of a model alone
    unit: str = SEED

    @property
    def metric(self) -> Metric:
        """That decides."""
        return find_dataset(self.dataset).metric


@dataclass(frozen=True)
class AloneMeans:
    """The mean metric of each model alone at its full epochs."""

    by_model: dict[str, float]
    pairs: int

    @property
    def mean(self) -> float:
        """Over the models."""
        return statistics.fmean(self.by_model.values())


@dataclass(frozen=True)
class ModelComparison:
    """One model of the chain."""

    name: str
    spent: float  # MACs of the chain until this model is there
    chain: Interval
    alone: Interval
    difference: Interval  # chain minus alone at its full epochs
    budget_epochs: int | None  # None: the first model, which the chain trains alone too
    budget_difference: Interval | None  # chain minus alone with all that the chain has spent; None: not run
    curve: tuple[tuple[float, Interval], ...]  # alone's runs, decayed to parts of its epochs


@dataclass(frozen=True)
class Comparison:
    """One chain, over all its units."""

    setting: Setting
    units: int
    pairs: int
    samples: int  # evaluated, all pairs together
    models: tuple[ModelComparison, ...]
    chain_macs: float
    alone_macs: float  # of all models at their full epochs
    factor: Interval  # over units
    at_least: int  # units in which a model alone did not reach the chain's
    mean_factor: Acceleration  # of the means

    @property
    def shortfall(self) -> float:
        """By how much the worst model is below alone, on the mean; negative where none is."""
        return max(-self.setting.metric.sign * model.difference.mean for model in self.models)


def compare(index: Index, setting: Setting) -> Comparison:
    """Raises StudyError where there is nothing to compare on."""
    names = [
        name for name in family(setting.dataset, setting.family) if find_size(setting.dataset, name).wanted
    ]
    chains = index.chains(setting.dataset, setting.split, setting.family, setting.recipe)
    epochs = envelope_epochs(setting.full)
    alone = {
        (name, count): index.alone(setting.dataset, setting.split, name, count, setting.alone)
        for name in names
        for count in epochs
    }
    pairs = sorted(set(chains).intersection(*alone.values()))
    if not pairs:
        raise StudyError(_nothing_in_common(setting, chains, alone))
    units = units_of(pairs, setting.unit)

    def means(value: Callable[[Pair], float]) -> list[float]:
        return [statistics.fmean(value(pair) for pair in unit) for unit in units]

    chain_macs = means(lambda pair: chains[pair].macs)
    curves = {name: _unit_curves(name, epochs, alone, means) for name in names}
    qualities = {name: means(lambda pair, name=name: chains[pair].value(name)) for name in names}
    by_unit = [
        _factor(
            setting.metric,
            [curves[name][i] for name in names],
            [qualities[name][i] for name in names],
            chain_macs[i],
        )
        for i in range(len(units))
    ]
    mean_factor = _factor(
        setting.metric,
        [_mean_curve(curves[name]) for name in names],
        [statistics.fmean(qualities[name]) for name in names],
        statistics.fmean(chain_macs),
    )
    return Comparison(
        setting=setting,
        units=len(units),
        pairs=len(pairs),
        samples=sum(chains[pair].evaluated_samples for pair in pairs),
        models=tuple(
            _compare_model(index, setting, name, chains, pairs, qualities[name], curves[name])
            for name in names
        ),
        chain_macs=statistics.fmean(chain_macs),
        alone_macs=statistics.fmean(
            sum(alone[name, epochs[-1]][pair].macs for name in names) for pair in pairs
        ),
        factor=interval([each.factor for each in by_unit]),
        at_least=sum(each.at_least for each in by_unit),
        mean_factor=mean_factor,
    )


def alone_means(
    index: Index, dataset: str, split: str, models: Sequence[str], recipe: str, full: int
) -> AloneMeans | None:
    """How good a recipe makes these models alone, on the seeds and folds that all have; None without any."""
    found = {name: index.alone(dataset, split, name, full, recipe) for name in models}
    pairs = set.intersection(*(set(each) for each in found.values())) if found else set()
    if not pairs:
        return None
    by_model = {name: statistics.fmean(each[p].value(name) for p in pairs) for name, each in found.items()}
    return AloneMeans(by_model, len(pairs))


def _compare_model(
    index: Index,
    setting: Setting,
    name: str,
    chains: dict[Pair, Result],
    pairs: Sequence[Pair],
    quality: list[float],
    curves: list[Curve],
) -> ModelComparison:
    full = [curve[-1][1] for curve in curves]
    first = chains[pairs[0]]
    place = [stage.name for stage in first.stages].index(name)
    spent = statistics.fmean(sum(stage.macs for stage in chains[p].stages[: place + 1]) for p in pairs)
    epochs, difference = None, None
    if place:
        planned = sum(stage.planned_macs for stage in first.stages[: place + 1])
        epochs = budget_epochs(planned, _macs_an_epoch(index, setting, name, pairs[0]))
        matched = index.alone(setting.dataset, setting.split, name, epochs, setting.alone)
        both = [pair for pair in pairs if pair in matched]
        if both:
            difference = interval(
                [
                    statistics.fmean(chains[p].value(name) - matched[p].value(name) for p in unit)
                    for unit in units_of(both, setting.unit)
                ]
            )
    return ModelComparison(
        name=name,
        spent=spent,
        chain=interval(quality),
        alone=interval(full),
        difference=interval([mine - alone for mine, alone in zip(quality, full, strict=True)]),
        budget_epochs=epochs,
        budget_difference=difference,
        curve=tuple(
            (statistics.fmean(curve[i][0] for curve in curves), interval([curve[i][1] for curve in curves]))
            for i in range(len(curves[0]))
        ),
    )


def _macs_an_epoch(index: Index, setting: Setting, name: str, pair: Pair) -> float:
    result = index.alone(setting.dataset, setting.split, name, setting.full, setting.alone)[pair]
    return result.macs / setting.full


def units_of(pairs: Sequence[Pair], unit: str) -> list[list[Pair]]:
    """The pairs by what intervals are over: each on its own, or those of a seed together."""
    if unit == PAIR:
        return [[pair] for pair in pairs]
    by_seed: dict[int, list[Pair]] = defaultdict(list)
    for pair in pairs:
        by_seed[pair[0]].append(pair)
    return list(by_seed.values())


def _unit_curves(
    name: str,
    epochs: Sequence[int],
    alone: dict[tuple[str, int], dict[Pair, Result]],
    means: Callable[[Callable[[Pair], float]], list[float]],
) -> list[Curve]:
    """For each unit, the ends of alone's runs: those alone are decayed, so they are its curve."""
    runs = [alone[name, count] for count in sorted(epochs)]
    macs = [means(lambda pair, run=run: run[pair].macs) for run in runs]
    values = [means(lambda pair, run=run: run[pair].value(name)) for run in runs]
    return [[(macs[i][unit], values[i][unit]) for i in range(len(runs))] for unit in range(len(macs[0]))]


def _mean_curve(curves: Sequence[Curve]) -> Curve:
    return [
        (statistics.fmean(point[0] for point in points), statistics.fmean(point[1] for point in points))
        for points in zip(*curves, strict=True)
    ]


def _factor(
    metric: Metric, curves: Sequence[Curve], qualities: Sequence[float], chain_macs: float
) -> Acceleration:
    reached = [
        compute_to_reach(curve, quality, higher_is_better=metric.sign > 0)
        for curve, quality in zip(curves, qualities, strict=True)
    ]
    return acceleration(reached, chain_macs)


def _nothing_in_common(
    setting: Setting, chains: dict[Pair, Result], alone: dict[tuple[str, int], dict[Pair, Result]]
) -> str:
    what = f"{setting.dataset}, {setting.split} split, family {setting.family}, {setting.recipe}"
    if not chains:
        return f"{what}: there are no results of this chain"
    missing = [f"{name} at {count} epochs" for (name, count), found in alone.items() if not found]
    if missing:
        return f"{what}: there are no results of {setting.alone} for {', '.join(missing)}"
    return f"{what}: no seed and fold has results of the chain and of every model with {setting.alone}"
