"""Recipes and runs: what a text names, and that every chain of the study is valid."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from benchmarks.family import listing
from benchmarks.family.chain import document, identity
from benchmarks.family.datasets import DATASETS, SELECTION, SPLITS, TEST, Part, find_dataset
from benchmarks.family.errors import StudyError
from benchmarks.family.families import FAMILIES
from benchmarks.family.recipes import RECIPES, variant
from benchmarks.family.runs import Run, add_runs, read_runs
from modelchain.validation import load_chains


def parts_of(dataset: str) -> dict[str, Part]:
    """As `prepare` lists them."""
    found = DATASETS[dataset]
    names = {
        name
        for split in SPLITS
        for fold in range(found.folds)
        for name in (*found.parts(split, fold).train, *found.parts(split, fold).evaluation)
    }
    return {name: Part((f"{name}-0000.tar",), 360 * found.row, "0" * 64) for name in names}


def stages_of(run: Run) -> list[dict[str, object]]:
    return document(run, parts_of(run.dataset))["spec"]["stages"]


def chain_of(recipe: str, *, family: str = "3", dataset: str = "digits", split: str = SELECTION) -> Run:
    return Run(dataset=dataset, split=split, seed=0, recipe=recipe, family=family)


@pytest.mark.parametrize("dataset", DATASETS)
def test_every_recipe_of_every_family_is_a_valid_chain(dataset: str, tmp_path: Path) -> None:
    parts = parts_of(dataset)
    runs = [
        chain_of(recipe, family=RECIPES[recipe].family or family, dataset=dataset)
        for recipe in RECIPES
        if not recipe.startswith("alone")
        for family in FAMILIES[dataset]
    ]
    runs += [
        Run(dataset=dataset, split=TEST, seed=3, recipe=recipe, model=FAMILIES[dataset]["3"][0], epochs=4)
        for recipe in ("alone", "alone-wsd")
    ]
    for number, run in enumerate(dict.fromkeys(runs)):
        file = tmp_path / f"{number}.yaml"
        file.write_text(yaml.safe_dump(document(run, parts)))
        (chain,) = load_chains(file)
        assert [stage.name for stage in chain.spec.stages] == list(run.models)


@pytest.mark.parametrize("dataset", DATASETS)
def test_families_share_their_smallest_and_their_largest_model(dataset: str) -> None:
    numbered = {name: models for name, models in FAMILIES[dataset].items() if name.isdigit()}
    assert all(len(models) == int(name) for name, models in numbered.items())
    families = [models for name, models in numbered.items() if name != "2"]
    assert len(families) > 1
    assert len({(models[0], models[-1]) for models in families}) == 1


@pytest.mark.parametrize("dataset", DATASETS)
def test_nothing_is_selected_on_what_is_tested(dataset: str) -> None:
    found = DATASETS[dataset]
    for fold in range(found.folds):
        selection, test = found.parts(SELECTION, fold), found.parts(TEST, fold)
        assert not {*selection.train, *selection.evaluation} & set(test.evaluation)
        assert {*selection.train, *selection.evaluation} <= set(test.train)
        for each in (selection, test):
            assert not set(each.train) & set(each.evaluation)


def test_five_folds_of_digits_test_on_each_part_once() -> None:
    tested = [part for fold in range(5) for part in DATASETS["digits"].parts(TEST, fold).evaluation]
    assert sorted(tested) == [f"fold-{fold}" for fold in range(5)]


def test_settings_reach_the_stages_they_are_for() -> None:
    first, middle, last = (
        stage["training"]
        for stage in stages_of(
            chain_of(
                "trunk:epochs=9/4/3,lr=1e-2,lr_power=1,lr_grown=0.5,wd=0.3,ema=0.99,decay=0.4,warmup_grown=0,"
                "last.training.schedule.type=Cosine,later.training.beta1=0.8"
            )
        )
    )
    assert isinstance(first, dict)
    assert isinstance(middle, dict)
    assert isinstance(last, dict)
    assert [each["epochs"] for each in (first, middle, last)] == [9, 4, 3]
    assert [each["learningRate"] for each in (first, middle, last)] == [1e-2, 2.5e-3, 1.25e-3]
    assert [each["weightDecay"] for each in (first, middle, last)] == [0.3] * 3
    assert [each["emaDecay"] for each in (first, middle, last)] == [0.99] * 3
    assert [each["warmupSteps"] for each in (middle, last)] == [0, 0]
    assert [each.get("beta1") for each in (first, middle, last)] == [None, 0.8, 0.8]
    assert first["schedule"] == {"type": "WarmupStableDecay", "decayFraction": 0.4}
    assert last["schedule"] == {"type": "Cosine"}


def test_one_recipe_has_one_spelling_and_other_settings_are_another_run() -> None:
    one, same = (chain_of(text) for text in ("trunk:wd=0.3,later=3", "trunk:later=3, wd=0.3"))
    other = chain_of("trunk:later=4,wd=0.3")
    assert one == same
    parts = parts_of("digits")
    names = {identity(run, document(run, parts)) for run in (one, same, other)}
    assert len(names) == 2
    watched = document(one, parts, evaluations=5)
    assert identity(one, watched) == identity(one, document(one, parts))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("trnk", "no recipe is called 'trnk'"),
        ("trunk:lr", "'lr' is no NAME=VALUE"),
        ("trunk:rate=1", "no setting is called 'rate'"),
        ("trunk:later=2.5", "later is '2.5', which is no number for it"),
        ("trunk:epochs=3/x", "epochs is '3/x', which is no number for it"),
        ("trunk:later.=3", "no setting is called 'later.'"),
    ],
)
def test_a_recipe_that_means_nothing_is_refused(text: str, message: str) -> None:
    with pytest.raises(StudyError, match=message):
        variant(text)


def test_a_work_list_holds_each_run_once_and_names_the_line_that_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    runs = [chain_of("trunk"), chain_of("paper")]
    assert add_runs(path, runs) == 2
    assert add_runs(path, [*runs, chain_of("trunk:later=3")]) == 1
    assert read_runs(path) == [*runs, chain_of("trunk:later=3")]
    with path.open("a") as file:
        file.write('{"dataset": "digits", "split": "test", "seed": 3, "recipe": "alone", "model": "w32"}\n')
    with pytest.raises(StudyError, match=r"runs.jsonl:4: .*a model alone has a model and epochs"):
        read_runs(path)


def test_seeds_of_selection_are_never_claimed_on() -> None:
    digits = find_dataset("digits")
    assert listing.pairs(digits, TEST, None, "paired") == [(seed, seed - 3) for seed in range(3, 8)]
    assert len(listing.pairs(digits, SELECTION, None, "all")) == 15
    with pytest.raises(StudyError, match="seeds 2 are not for the test split"):
        listing.pairs(digits, TEST, [2, 3], "all")


def test_a_budget_is_all_that_the_chain_has_spent_in_whole_epochs() -> None:
    chain = chain_of("growth-only:epochs=8/4/2")
    runs = listing.budget_runs([chain], ["alone"], parts_of("digits"))
    # Forward MACs a sample: 982,144; 3,670,016; 17,338,368. (8 x w32 + 4 x w64) / w64 = 6.14, and so on.
    assert [(run.model, run.epochs) for run in runs] == [("w64", 7), ("w128", 4)]
    assert listing.envelope_epochs(30) == [4, 8, 15, 30]
    assert listing.budget_epochs(3.0000000000001, 1.0) == 3
