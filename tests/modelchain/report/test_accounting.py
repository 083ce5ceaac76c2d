"""Costs, and where each figure comes from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from modelchain.cost import plan
from modelchain.errors import ConfigurationError
from modelchain.report.accounting import Reached, costs, match_baselines, reached
from modelchain.report.data import ChainArtifacts
from modelchain.report.reading import read_chain, read_recorded_chain
from tests.modelchain.report.made_up_chain import COMPUTED, Training, document, resolved, train


def read(folder: Path, how: Training | None = None, **options: object) -> ChainArtifacts:
    chain = resolved(document(folder, **options))  # pyright: ignore[reportArgumentType]
    return read_chain(train(chain, how), chain)


def test_a_finished_chain_costs_what_the_trainer_counted(tmp_path: Path) -> None:
    chain = resolved(document(tmp_path))
    cost = costs(read_chain(train(chain), chain))
    planned = plan(chain)
    assert cost.plan is not None
    assert cost.complete
    assert cost.chain_macs == cost.spent_macs == planned.chain_macs
    assert cost.computed_macs == pytest.approx(COMPUTED * planned.chain_macs)
    assert cost.of_largest == pytest.approx(planned.cost_ratio)
    assert cost.family_speedup == pytest.approx(planned.speedup)


def test_an_unfinished_chain_is_compared_by_its_plan_and_shows_what_it_has_spent(tmp_path: Path) -> None:
    cost = costs(read(tmp_path, Training(until={"vit-s": 0.5, "vit-m": 0})))
    assert cost.plan is not None
    assert cost.chain_macs == cost.plan.chain_macs
    assert 0 < cost.spent_macs < cost.plan.chain_macs / 2
    assert cost.computed_macs == pytest.approx(COMPUTED * cost.spent_macs, rel=0.1), (
        "of lines every five steps"
    )


def test_what_was_computed_is_not_told_where_one_stage_does_not_say(tmp_path: Path) -> None:
    chain = read(tmp_path)
    manifest = chain.stages[0].manifest
    assert manifest is not None
    silent = replace(chain.stages[0], manifest=manifest.model_copy(update={"computed_macs": None}))
    assert costs(replace(chain, stages=(silent, *chain.stages[1:]))).computed_macs is None


def test_without_all_settings_no_comparison_is_invented(tmp_path: Path) -> None:
    chain = resolved(document(tmp_path))
    store = train(chain, Training(until={"vit-m": 0}))
    cost = costs(read_recorded_chain(store, "default", "digits"))
    assert (cost.plan, cost.chain_macs, cost.of_largest, cost.family_speedup) == (None, None, None, None)


def test_the_baselines_epochs_are_those_of_the_chain_also_without_its_file(tmp_path: Path) -> None:
    source = document(tmp_path)
    source["spec"]["baseline"] = {"epochs": 99}  # type: ignore[index]
    chain = resolved(source)
    cost = costs(read_recorded_chain(train(chain), "default", "digits"))
    assert cost.plan is not None
    assert cost.plan == plan(chain)
    assert cost.plan.baseline_epochs == 99


def test_a_stage_that_another_chain_trained_is_counted_and_named(tmp_path: Path) -> None:
    cost = costs(read(tmp_path, Training(trained_by={"vit-t": "team/other"})))
    assert cost.reused == ("vit-t",)
    assert 0 < cost.reused_macs < cost.spent_macs


def test_baselines_are_matched_by_their_model_and_not_by_their_name(tmp_path: Path) -> None:
    chain = read(tmp_path)
    alone = read(tmp_path, Training(final=(0.9,)), only=2, name="alone")
    (baseline,) = match_baselines(chain, [alone])
    assert baseline.stage == "vit-m"
    assert costs(chain, [baseline]).baseline("vit-m") is baseline
    assert costs(chain, [baseline]).baseline("vit-s") is None


def test_what_was_run_alone_takes_the_place_of_what_was_planned(tmp_path: Path) -> None:
    chain = read(tmp_path)
    runs = [
        read(tmp_path / str(i), Training(final=(0.9,)), only=i, name=f"alone-{i}", alone_epochs=7)
        for i in range(3)
    ]
    some, every = costs(chain, match_baselines(chain, runs[1:])), costs(chain, match_baselines(chain, runs))
    macs = [run.stages[0].macs or 0.0 for run in runs]
    for cost in (some, every):
        assert cost.largest_alone is not None
        assert (cost.largest_alone.macs, cost.largest_alone.epochs, cost.largest_alone.run) == (
            macs[2],
            7,
            True,
        )
        assert cost.of_largest == pytest.approx(cost.spent_macs / macs[2])
    assert some.family_alone is not None
    assert some.plan is not None
    assert (some.family_alone.macs, some.family_alone.run) == (some.plan.family_macs, False)
    assert every.family_alone is not None
    assert (every.family_alone.macs, every.family_alone.run) == (pytest.approx(sum(macs)), True)


def test_an_unfinished_run_alone_takes_no_place(tmp_path: Path) -> None:
    chain = read(tmp_path)
    run = read(tmp_path / "b", Training(until={"vit-m": 0.5}), only=2, name="unfinished")
    alone = costs(chain, match_baselines(chain, [run])).largest_alone
    assert alone is not None
    assert not alone.run


def test_what_is_no_baseline_is_refused(tmp_path: Path) -> None:
    chain = read(tmp_path)
    with pytest.raises(ConfigurationError, match="vit-s: a baseline trains a model alone"):
        match_baselines(chain, [chain])
    with pytest.raises(ConfigurationError, match="no stage of default/digits has this model"):
        match_baselines(chain, [read(tmp_path, only=5, name="alone")])


def test_the_chain_is_as_good_as_alone_at_its_first_evaluation_that_is(tmp_path: Path) -> None:
    chain = read(tmp_path)
    (baseline,) = match_baselines(chain, [read(tmp_path, Training(final=(0.94,)), only=2, name="alone")])
    event = reached(chain, baseline, "digits/top1")
    assert event is not None
    assert event.value == 0.94
    assert event.alone_macs == baseline.artifacts.macs
    before = sum(stage.macs or 0 for stage in chain.stages[:2])
    lines = chain.stages[2].metrics.evaluations
    good = next(line for line in lines if line.metrics["digits/top1"] >= 0.94)
    assert event.chain_macs == before + good.macs
    assert event.ratio == pytest.approx((baseline.artifacts.macs or 0) / (before + good.macs))


def test_what_the_chain_never_reached_or_what_is_unknown_is_not_claimed(tmp_path: Path) -> None:
    chain = read(tmp_path)
    (better,) = match_baselines(chain, [read(tmp_path, Training(final=(0.99,)), only=2, name="alone")])
    event = reached(chain, better, "digits/top1")
    assert event is not None
    assert (event.chain_macs, event.ratio) == (None, None)
    assert reached(chain, better, "digits/other") is None
    (running,) = match_baselines(
        chain, [read(tmp_path / "b", Training(until={"vit-s": 0.5}), only=1, name="unfinished")]
    )
    assert reached(chain, running, "digits/top1") is None


def test_of_a_perplexity_lower_is_as_good(tmp_path: Path) -> None:
    chain = read(tmp_path)
    (baseline,) = match_baselines(chain, [read(tmp_path, Training(final=(0.94,)), only=2, name="alone")])
    lines = chain.stages[2].metrics.evaluations
    for metrics in (*(line.metrics for line in lines), baseline.artifacts.final_metrics):
        metrics["topics/perplexity"] = 1 / metrics["digits/top1"]
    assert lines[0].metrics["topics/perplexity"] > 1 / 0.94, "it begins worse than that"
    assert reached(chain, baseline, "topics/perplexity") == replace(
        reached(chain, baseline, "digits/top1") or Reached(0, 0, 0), value=1 / 0.94
    )
