"""Models trained alone: which stages they become, and that the chain's own are not touched by them."""

from __future__ import annotations

from typing import Any

import pytest

from modelchain.cost import plan, stage_macs
from modelchain.resolved import ResolvedStage, needed_for
from tests.modelchain.documents import REMOVED, Path, chain, digests, resolved


def baseline(changes: dict[Path, Any] | None = None, **block: Any) -> dict[Path, Any]:
    """Changes that train models alone."""
    return {("baseline",): {"train": ["all"], "epochs": 10} | block, **(changes or {})}


def names(stages: tuple[ResolvedStage, ...]) -> list[str]:
    return [stage.name for stage in stages]


def test_nothing_is_trained_alone_unless_asked_for() -> None:
    assert (resolved().baseline, resolved().baselines) == (None, ())
    only_epochs = resolved({("baseline",): {"epochs": 10}})
    assert (only_epochs.baseline, only_epochs.baselines) == (None, ())


@pytest.mark.parametrize("block", [{}, {"budgetMatched": True}, {"metric": "val/loss"}, {"train": ["base"]}])
def test_the_chains_digests_do_not_know_of_it(block: dict[str, Any]) -> None:
    assert digests(baseline(**block)) == digests()


def test_a_model_alone_is_its_stage_without_predecessor() -> None:
    found = resolved(baseline())
    assert names(found.baselines) == ["tiny-alone", "small-alone", "base-alone"]
    stage, alone = found.stage("base"), found.stage("base-alone")
    assert (alone.predecessor, alone.teacher, alone.from_weights) == (None, None, None)
    assert (alone.model_config_, alone.data, alone.evaluation) == (
        stage.model_config_,
        stage.data,
        stage.evaluation,
    )
    assert (alone.training.epochs, alone.training.learning_rate) == (10, stage.training.learning_rate)
    assert alone.model == stage.model, "people know it by the name of its model"
    assert stage_macs(alone) == plan(found).stages[2].alone_macs, "it costs what was planned"


def test_its_digest_is_that_of_a_chain_of_one_stage() -> None:
    """Whoever has trained the model alone already, under whatever name, need not do it again."""
    (alone,) = resolved(baseline(train=["small"])).baselines
    single = {("stages",): [{"name": "single", "model": "ViT-S-16"}], ("training", "epochs"): 10}
    assert digests(single) == [alone.digest]


def test_the_first_stage_is_its_own_baseline_where_it_is_trained_for_as_long() -> None:
    found = resolved(baseline(epochs=8, budgetMatched=True))
    assert found.baseline is not None
    runs = [(run.stage, run.run) for run in found.baseline.runs]
    assert runs[:2] == [("tiny", "tiny"), ("small", "small-alone")], "its own budget is as long: one run"
    assert "tiny-alone" not in names(found.baselines), "it is trained once"


def test_the_budget_is_all_that_the_chain_spends_up_to_and_with_the_stage() -> None:
    found = resolved(baseline(budgetMatched=True))
    assert found.baseline is not None
    budgets = {run.stage: run.budget_macs for run in found.baseline.runs if run.budget_macs is not None}
    macs = [stage_macs(stage) for stage in found.stages]
    assert budgets == {"tiny": macs[0], "small": sum(macs[:2]), "base": sum(macs)}
    for name, budget in budgets.items():
        alone = found.stage(next(run.run for run in found.baseline.runs if run.stage == name))
        matched = found.stage(
            next(run.run for run in found.baseline.runs if run.stage == name and run.budget_macs)
        )
        epoch = stage_macs(alone) / alone.training.epochs
        assert abs(stage_macs(matched) - budget) <= epoch / 2, "no number of whole epochs comes closer"


def test_a_branch_is_not_charged_for_what_it_did_not_need() -> None:
    found = resolved({("stages", 2, "from"): "tiny"})
    assert names(needed_for(["base"], found.stages)) == ["tiny", "base"]
    taught = resolved({("stages", 2, "from"): "tiny", ("stages", 2, "distillation"): {"teacher": "small"}})
    assert names(needed_for(["base"], taught.stages)) == ["tiny", "small", "base"], "its teacher it needs"


def test_there_is_always_an_epoch() -> None:
    found = resolved(baseline(train=["base"], budgetMatched=True) | {("stages", 2, "from"): "tiny"})
    assert all(stage.training.epochs >= 1 for stage in found.baselines)


def test_a_warm_up_that_does_not_end_within_the_epochs_is_the_default_one() -> None:
    steps_per_epoch = 100000 // 256
    found = resolved(baseline(epochs=1) | {("training", "warmupSteps"): 3 * steps_per_epoch})
    (alone, *_) = found.baselines
    assert alone.training.warmup_steps == steps_per_epoch // 10
    kept = resolved(baseline(epochs=10) | {("training", "warmupSteps"): 3 * steps_per_epoch})
    assert kept.baselines[0].training.warmup_steps == 3 * steps_per_epoch


def test_names_fit_and_are_nobody_elses() -> None:
    long = "a-stage-with-a-name-of-thirty-"[:29] + "x"
    other = long[:-1] + "y"
    stages = [
        {"name": "tiny", "model": "ViT-T-16", "training": {"epochs": 8}},
        {"name": long, "model": "ViT-S-16"},
        {"name": other, "model": "ViT-B-16"},
        {"name": "small-alone", "model": "ViT-L-16"},
        {"name": "small", "model": "ViT-L-16", "from": "tiny", "training": {"seed": 1}},
    ]
    found = resolved(baseline(budgetMatched=True) | {("stages",): stages})
    every = names(found.all_stages)
    assert len(set(every)) == len(every)
    assert max(map(len, every)) <= 30
    assert names(resolved(baseline(budgetMatched=True) | {("stages",): stages}).all_stages) == every


def test_the_metric_is_the_first_zero_shot_sets_accuracy_else_the_first_retrieval_sets_recall() -> None:
    def metric(changes: dict[Path, Any] | None = None, **block: Any) -> str | None:
        found = resolved(baseline(changes, **block)).baseline
        return found.metric if found else None

    assert metric() == "pets/top1"
    assert metric({("evaluation", 1): REMOVED}) == "val/imageToText@1"
    assert metric(metric="val/loss") == "val/loss"
    assert metric({("stages", 2, "evaluation"): [document_set("other")]}, train=["base"]) == "other/top1"


def document_set(name: str) -> dict[str, Any]:
    return {"name": name, "type": "ZeroShot", "data": {"shards": ["s3://data/x.tar"]}, "classes": ["a", "b"]}


def test_of_a_loss_less_is_better() -> None:
    loss, recall = (
        resolved(baseline(metric=metric)).baseline for metric in ("val/loss", "val/textToImage@5")
    )
    assert loss is not None and not loss.higher_is_better
    assert recall is not None and recall.higher_is_better


def test_a_model_alone_costs_the_plan_once() -> None:
    planned = plan(resolved(baseline(epochs=8, budgetMatched=True)))
    assert planned.baseline_macs == sum(
        {run.name: run.macs for run in planned.baselines if not run.own}.values()
    )
    assert planned.chain_macs == plan(resolved()).chain_macs, "the chain costs what it did"


def test_all_is_every_model_also_by_name() -> None:
    by_name = resolved(baseline(train=["base", "tiny", "small"]))
    assert by_name.baselines == resolved(baseline()).baselines
    assert chain(baseline()).spec.baseline is not None
