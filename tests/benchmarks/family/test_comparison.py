"""What a chain is worth beside its models alone, from results whose answer is known."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from benchmarks.family.ablation import ablation
from benchmarks.family.comparison import PAIR, Index, Setting, compare
from benchmarks.family.errors import StudyError
from benchmarks.family.intervals import interval
from benchmarks.family.report import Question, choose, compare_all, report, selection
from benchmarks.family.results import (
    Machine,
    Point,
    Result,
    StageResult,
    read_result,
    read_results,
    write_result,
)
from benchmarks.family.runs import Run
from modelchain.digest import DIGEST_VERSION

METRIC = "digits/top1"
MACS = {"w32": 1e9, "w64": 4e9}  # an epoch
FULL = 8


def stage(name: str, macs: float, value: float) -> StageResult:
    metrics = {METRIC: value}
    return StageResult(
        name=name,
        digest="0" * 64,
        model={},
        spec={},
        steps=8,
        samples=768,
        macs=macs,
        planned_macs=macs,
        metrics=metrics,
        curve=(Point(step=8, macs=macs, metrics=metrics),),
        train_seconds=1.0,
        shared=False,
    )


def result(
    run: Run, *stages: StageResult, rule: int = 1, digest: int = DIGEST_VERSION, data: str = "0"
) -> Result:
    return Result(
        run=run,
        metric=METRIC,
        digest_version=digest,
        selection_rule_version=rule,
        data_sha256={"fold-0": data},
        train_parts=("fold-0",),
        evaluation_parts=("fold-1",),
        evaluated_samples=360,
        chain={},
        stages=stages,
        wall_seconds=1.0,
        jobs=1,
        versions={},
        machine=Machine(processor="", cores=1, device="cpu", platform=""),
    )


def alone(seed: int, values: dict[str, list[float]], fold: int = 0) -> list[Result]:
    """Each model at 1, 2, 4 and 8 epochs."""
    return [
        result(
            Run(
                dataset="digits",
                split="test",
                fold=fold,
                seed=seed,
                recipe="alone",
                model=name,
                epochs=epochs,
            ),
            stage(name, MACS[name] * epochs, value),
        )
        for name, found in values.items()
        for epochs, value in zip((1, 2, 4, 8), found, strict=True)
    ]


def chain(seed: int, values: tuple[float, float], fold: int = 0, recipe: str = "trunk") -> Result:
    """w32 for 4 epochs, w64 for 2: 12e9 MACs."""
    run = Run(dataset="digits", split="test", fold=fold, seed=seed, recipe=recipe, family="2")
    return result(run, stage("w32", 4e9, values[0]), stage("w64", 8e9, values[1]))


CURVES = {"w32": [0.5, 0.6, 0.7, 0.8], "w64": [0.6, 0.7, 0.8, 0.9]}
SETTING = Setting("digits", "test", "2", "trunk", "alone", FULL)


def test_the_factor_is_alones_compute_at_the_chains_quality_over_the_chains() -> None:
    found = compare(Index([*alone(3, CURVES), chain(3, (0.7, 0.9))]), SETTING)
    assert found.chain_macs == 12e9
    assert found.mean_factor.factor == pytest.approx((4e9 + 32e9) / 12e9)
    assert not found.mean_factor.at_least
    assert found.factor.mean == pytest.approx(found.mean_factor.factor)
    assert math.isnan(found.factor.half_width)  # one seed tells no interval


def test_what_alone_does_not_reach_counts_its_full_cost_as_a_lower_bound() -> None:
    found = compare(Index([*alone(3, CURVES), chain(3, (0.85, 0.95))]), SETTING)
    assert found.mean_factor.factor == pytest.approx((8e9 + 32e9) / 12e9)
    assert found.mean_factor.at_least
    assert found.at_least == 1


def test_differences_are_paired_so_what_a_seed_adds_to_both_widens_nothing() -> None:
    results = [
        each
        for seed, luck in ((3, 0.0), (4, 0.05), (5, -0.05))
        for each in (
            *alone(seed, {name: [value + luck for value in curve] for name, curve in CURVES.items()}),
            chain(seed, (0.81 + luck, 0.88 + luck)),
        )
    ]
    small, large = compare(Index(results), SETTING).models
    assert small.difference.mean == pytest.approx(0.01)
    assert large.difference.mean == pytest.approx(-0.02)
    assert small.difference.half_width == pytest.approx(0, abs=1e-12)
    assert small.chain.half_width == pytest.approx(interval([0.76, 0.81, 0.86]).half_width)


def test_folds_of_a_seed_are_averaged_before_intervals_are_taken() -> None:
    results = [
        each
        for seed in (3, 4)
        for fold, luck in ((0, 0.04), (1, -0.04))
        for each in (*alone(seed, CURVES, fold), chain(seed, (0.7 + luck, 0.8 + luck), fold))
    ]
    by_seed = compare(Index(results), SETTING)
    by_pair = compare(Index(results), Setting(**{**vars(SETTING), "unit": PAIR}))
    assert (by_seed.units, by_seed.pairs, by_pair.units) == (2, 4, 4)
    assert by_seed.models[0].difference.half_width == pytest.approx(0, abs=1e-12)
    assert by_pair.models[0].difference.half_width > 0.03
    assert by_seed.mean_factor.factor == pytest.approx(by_pair.mean_factor.factor)


def test_equal_compute_is_the_whole_chains_and_a_missing_run_is_said() -> None:
    results = [*alone(3, CURVES), chain(3, (0.7, 0.9))]
    _, large = compare(Index(results), SETTING).models
    assert (large.budget_epochs, large.budget_difference) == (3, None)  # 12e9 of 4e9 an epoch
    run = Run(dataset="digits", split="test", seed=3, recipe="alone", model="w64", epochs=3)
    _, large = compare(Index([*results, result(run, stage("w64", 12e9, 0.75))]), SETTING).models
    assert large.budget_difference is not None
    assert large.budget_difference.mean == pytest.approx(0.15)


def test_a_chain_whose_model_falls_short_of_alone_is_not_chosen_however_cheap() -> None:
    index = Index(
        [
            *alone(3, CURVES),
            chain(3, (0.79, 0.9)),  # w32 is one point short
            chain(3, (0.8, 0.896), recipe="paper"),
        ]
    )
    question = Question("digits", "test", ("2",), (), "alone", FULL)
    _, comparisons, _ = compare_all(index, question)
    assert {each.setting.recipe for each in comparisons} == {"trunk", "paper"}
    assert choose(comparisons).setting.recipe == "paper"
    assert "Chosen for family 2: `paper`" in selection(index, question)


def test_recipes_are_compared_on_what_all_of_them_have_and_paired() -> None:
    results = [
        chain(seed, (0.8 + luck, 0.9 + luck), recipe=recipe).model_copy(
            update={"versions": {"torch": "2.11"}}
        )
        for seed, luck in ((3, 0.0), (4, 0.05), (5, -0.05))
        for recipe, luck in (("trunk", luck), ("paper", luck - 0.02))
    ]
    easy = chain(6, (0.99, 0.99))  # of one recipe only
    question = Question("digits", "test", ("2",), ("trunk", "paper"), None, FULL)
    table = ablation(Index([*results, easy]), question)
    assert "| family 2, 3 seeds | w32 | w64 | chain |" in table
    assert "| `trunk` | 80.0 | 90.0 | 12.0 GMACs |" in table
    assert "| `paper` | 78.0 (-2.0 ± 0.0) | 88.0 (-2.0 ± 0.0) | 12.0 GMACs |" in table
    assert table.endswith("torch 2.11 on unknown (6), torch unknown on unknown (1).\n")
    with pytest.raises(StudyError, match="there are none of defaults"):
        ablation(Index(results), Question("digits", "test", ("2",), ("trunk", "defaults"), None, FULL))


def test_of_a_loss_less_is_better() -> None:
    falling = {"w32": [2.0, 1.8, 1.6, 1.4], "w64": [1.9, 1.7, 1.5, 1.3]}
    losses = [
        each.model_copy(
            update={
                "metric": "topics/loss",
                "run": each.run.model_copy(update={"dataset": "topics"}),
                "stages": tuple(
                    part.model_copy(update={"metrics": {"topics/loss": part.metrics[METRIC]}})
                    for part in each.stages
                ),
            }
        )
        for each in (
            *alone(3, falling),
            chain(3, (1.6, 1.31)),
            chain(3, (1.35, 1.3), recipe="paper"),
        )
    ]
    question = Question("topics", "test", ("2",), (), "alone", FULL)
    _, comparisons, _ = compare_all(Index(losses), question)
    by_recipe = {each.setting.recipe: each for each in comparisons}
    assert by_recipe["trunk"].shortfall == pytest.approx(0.2)  # w32: 1.6 against 1.4
    assert by_recipe["paper"].shortfall == pytest.approx(0.0)
    assert by_recipe["paper"].mean_factor.at_least  # 1.35 is better than all that alone has
    assert by_recipe["trunk"].mean_factor.factor == pytest.approx((4e9 + 4e9 * 2 ** (2 + 19 / 20)) / 12e9)
    assert choose(comparisons).setting.recipe == "paper"
    table, _ = report(Index(losses), question)
    assert "Metric: `topics/loss`, in nats." in table
    assert "| w32 | 1.600 | 1.400 | +0.200 |" in table


def test_what_is_missing_is_named() -> None:
    with pytest.raises(StudyError, match="no results of alone for w64 at 1 epochs"):
        compare(Index([*alone(3, {"w32": CURVES["w32"]}), chain(3, (0.7, 0.9))]), SETTING)
    with pytest.raises(StudyError, match="no seed and fold has results of the chain and of every model"):
        compare(Index([*alone(4, CURVES), chain(3, (0.7, 0.9))]), SETTING)
    twice = [chain(3, (0.7, 0.9)), chain(3, (0.7, 0.8))]
    with pytest.raises(StudyError, match="two results of"):
        Index(twice)


def test_an_interval_is_students() -> None:
    found = interval([1.0, 2.0, 3.0])
    assert found.mean == 2
    assert found.half_width == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)
    assert found.shown() == "2.0 ± 2.5"


def test_results_that_cannot_be_compared_are_refused(tmp_path: Path) -> None:
    run = alone(3, CURVES)[0].run
    for name, other, message in (
        ("rule", result(run, stage("w32", 1e9, 0.5), rule=0), "selection rule 0, and this is 1"),
        (
            "digest",
            result(run, stage("w32", 1e9, 0.5), digest=1),
            f"digest version 1, and this is {DIGEST_VERSION}",
        ),
    ):
        write_result(tmp_path / f"{name}.json", other)
        with pytest.raises(StudyError, match=message):
            read_result(tmp_path / f"{name}.json")
        with pytest.raises(StudyError, match=message):
            read_results(tmp_path)
        (tmp_path / f"{name}.json").unlink()
    write_result(tmp_path / "a.json", result(run, stage("w32", 1e9, 0.5)))
    assert read_result(tmp_path / "a.json") == result(run, stage("w32", 1e9, 0.5))
    write_result(
        tmp_path / "b.json", chain(3, (0.7, 0.9)).model_copy(update={"data_sha256": {"fold-0": "1"}})
    )
    with pytest.raises(StudyError, match="its part fold-0 of digits holds other data"):
        read_results(tmp_path)
    (tmp_path / "b.json").write_text("{}")
    with pytest.raises(StudyError, match="is no result of this study"):
        read_results(tmp_path)
