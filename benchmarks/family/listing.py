"""Which runs a question takes: every recipe, and the models alone, on the same seeds and folds."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from benchmarks.family.chain import resolve_run
from benchmarks.family.datasets import SELECTION, DataSet, Part
from benchmarks.family.errors import StudyError
from benchmarks.family.families import family
from benchmarks.family.recipes import variant
from benchmarks.family.runs import Run
from modelchain.cost import stage_macs

SELECTION_SEEDS = (0, 1, 2)
TEST_SEEDS = (3, 4, 5, 6, 7)
ENVELOPE_PARTS = (8, 4, 2, 1)  # alone's runs: its full epochs over each of these

Pair = tuple[int, int]  # seed, fold


def pairs(dataset: DataSet, split: str, seeds: Sequence[int] | None, folds: str) -> list[Pair]:
    """Seeds and folds that are run: `all` folds of each seed, `paired` (one a seed), or numbers as 0,2.

    Raises StudyError, also for seeds of the other split: what was selected on must not be claimed on.
    """
    own, other = (SELECTION_SEEDS, TEST_SEEDS) if split == SELECTION else (TEST_SEEDS, SELECTION_SEEDS)
    chosen = own if seeds is None else tuple(seeds)
    if wrong := sorted(set(chosen) & set(other)):
        raise StudyError(
            f"seeds {', '.join(map(str, wrong))} are not for the {split} split, whose seeds are "
            f"{own[0]} to {own[-1]}"
        )
    if folds == "paired":
        return [(seed, (seed - own[0]) % dataset.folds) for seed in chosen]
    numbers = range(dataset.folds) if folds == "all" else _numbers(folds, dataset)
    return [(seed, fold) for seed in chosen for fold in numbers]


def chain_runs(
    dataset: str, split: str, families: Sequence[str], recipes: Sequence[str], at: Sequence[Pair]
) -> list[Run]:
    """A chain of each family by each recipe; a recipe with a family of its own runs on that once."""
    asked = dict.fromkeys(
        (variant(text).recipe.family or name, variant(text).text) for text in recipes for name in families
    )
    return [
        Run(dataset=dataset, split=split, fold=fold, seed=seed, recipe=recipe, family=name)
        for seed, fold in at
        for name, recipe in asked
    ]


def alone_runs(
    dataset: str,
    split: str,
    models: Sequence[str],
    recipes: Sequence[str],
    at: Sequence[Pair],
    *,
    full: int,
    parts: Sequence[int] = ENVELOPE_PARTS,
) -> list[Run]:
    """Each model alone, its learning rate decayed to each of these parts of its full epochs."""
    return [
        Run(
            dataset=dataset,
            split=split,
            fold=fold,
            seed=seed,
            recipe=variant(recipe).text,
            model=model,
            epochs=epochs,
        )
        for seed, fold in at
        for recipe in recipes
        for model in models
        for epochs in envelope_epochs(full, parts)
    ]


def budget_runs(chains: Sequence[Run], alone: Sequence[str], parts: Mapping[str, Part]) -> list[Run]:
    """Each grown model of these chains alone, with all compute that its chain has spent by then, rounded up."""
    return [
        run
        for chain in chains
        for recipe in alone
        for run in _budget_runs(chain, variant(recipe).text, parts)
    ]


def models_of(dataset: str, families: Sequence[str]) -> list[str]:
    """The models of these families, each once."""
    return list(dict.fromkeys(model for name in families for model in family(dataset, name)))


def envelope_epochs(full: int, parts: Sequence[int] = ENVELOPE_PARTS) -> list[int]:
    """Epochs of alone's runs, rounded up."""
    return list(dict.fromkeys(math.ceil(full / part) for part in parts))


def budget_epochs(spent: float, macs_an_epoch: float) -> int:
    """Whole epochs for a budget; what is not whole is alone's gain. A rounding error is no epoch."""
    return max(1, math.ceil(spent / macs_an_epoch - 1e-9))


def _budget_runs(chain: Run, recipe: str, parts: Mapping[str, Part]) -> Iterator[Run]:
    resolved = resolve_run(chain, parts)
    spent = 0
    for index, stage in enumerate(resolved.stages):
        spent += stage_macs(stage)
        if index:
            alone = chain.model_copy(
                update={"family": None, "recipe": recipe, "model": stage.name, "epochs": 1}
            )
            an_epoch = stage_macs(resolve_run(alone, parts).stages[0])
            yield alone.model_copy(update={"epochs": budget_epochs(spent, an_epoch)})


def _numbers(text: str, dataset: DataSet) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise StudyError(
            f"folds are all, paired, or numbers such as 0,2; {dataset.name} has {dataset.folds}, not {text!r}"
        ) from None
