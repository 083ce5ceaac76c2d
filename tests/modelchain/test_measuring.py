"""What models trained alone show about a chain, from their evaluations."""

from __future__ import annotations

from pathlib import Path

import pytest

from modelchain.artifacts import MANIFEST, EvaluationLine
from modelchain.cost import stage_macs
from modelchain.measuring import Trained, measure, read_measurement
from modelchain.reconcile.observation import Unmeasurable
from modelchain.resolved import ResolvedChain
from modelchain.status import Measurement
from tests.modelchain.reconcile.chains import chain, manifest
from tests.modelchain.report.made_up_chain import Training, document, resolved, train

STAGES = (("tiny", None), ("small", "tiny"), ("base", "small"))
BASELINE = {"train": ["all"], "epochs": 4, "budgetMatched": True}


def trained(
    of: ResolvedChain, ends: dict[str, float], lines: dict[str, list[tuple[float, float]]] | None = None
) -> dict[str, Trained]:
    """Every stage took 100 MACs an epoch and ended with `ends` (0.5 by default)."""
    return {
        stage.name: Trained(
            manifest(stage).model_copy(
                update={
                    "macs": 100.0 * stage.training.epochs,
                    "metrics": {"digits/top1": ends.get(stage.name, 0.5)},
                }
            ),
            tuple(
                EvaluationLine(
                    step=i, samples=0, macs=macs, time=0.0, wall_time=0.0, metrics={"digits/top1": value}
                )
                for i, (macs, value) in enumerate((lines or {}).get(stage.name, []))
            ),
        )
        for stage in of.all_stages
    }


def measured(of: ResolvedChain, results: dict[str, Trained]) -> Measurement:
    found = measure(of, results)
    assert isinstance(found, Measurement)
    return found


def test_compute_alone_is_summed_over_that_of_the_chain() -> None:
    of = chain(STAGES, epochs={"base": 3}, baseline={"train": ["all"], "epochs": 4})
    assert of.baseline is not None
    alone = {run.stage: run.run for run in of.baseline.runs}
    assert len(set(alone.values())) == 1, "all of these are one model, trained alone once"
    results = trained(
        of,
        {"tiny": 0.5, "small": 0.6, "base": 0.9, alone["tiny"]: 0.8},
        {alone["tiny"]: [(100, 0.5), (200, 0.6)]},
    )
    found = measured(of, results)
    assert [(model.name, model.macs, model.reached) for model in found.models] == [
        ("tiny", pytest.approx(100), True),
        ("small", pytest.approx(200), True),
        ("base", 400, False),
    ]
    assert found.chain_macs == 100 * (2 + 2 + 3)
    assert str(found.acceleration) == ">= 1.00x"


def test_a_budget_matched_run_counts_where_it_was_better_sooner() -> None:
    of = chain(STAGES[:2], epochs={"tiny": 1, "small": 1}, baseline=BASELINE | {"train": ["small"]})
    assert of.baseline is not None
    whole, matched = (of.stage(run.run) for run in of.baseline.runs)
    assert (whole.training.epochs, matched.training.epochs) == (4, 2)
    ends = {"small": 0.7, whole.name: 0.8, matched.name: 0.7}
    slow = {whole.name: [(100.0, 0.2), (300.0, 0.6)]}
    found = measured(of, trained(of, ends, slow))
    assert found.models[0].macs == pytest.approx(200), "the end of the shorter run"
    ends[matched.name] = 0.65
    assert 200 < measured(of, trained(of, ends, slow)).models[0].macs < 400


def test_of_a_part_of_the_family_only_what_it_needed_is_counted() -> None:
    of = chain(
        (("tiny", None), ("small", "tiny"), ("other", "tiny")),
        epochs={"tiny": 1, "small": 7, "other": 1},
        baseline=BASELINE | {"train": ["other"], "budgetMatched": False},
    )
    found = measured(of, trained(of, {}))
    assert [model.name for model in found.models] == ["other"]
    assert found.chain_macs == 200, "what small took is none of its business"


def test_what_was_not_measured_is_said() -> None:
    of = chain(STAGES, baseline=BASELINE)
    results = trained(of, {})
    lacking = results["small"].manifest.model_copy(update={"metrics": {}})
    assert measure(of, results | {"small": Trained(lacking)}) == Unmeasurable(
        "stage small ended without digits/top1"
    )


def test_it_is_read_from_the_store_with_all_attempts(tmp_path: Path) -> None:
    source = document(tmp_path)
    source["spec"]["baseline"] = {"train": ["all"], "epochs": 24, "budgetMatched": True}  # type: ignore[index]
    of = resolved(source)
    store = train(of, Training(killed={"vit-m-alone": 1}))
    found = read_measurement(store, of)
    assert isinstance(found, Measurement)
    assert found.metric == "digits/top1"
    assert [model.name for model in found.models] == ["vit-t", "vit-s", "vit-m"]
    assert found.chain_macs == sum(stage_macs(stage) for stage in of.stages)
    assert all(0 < model.macs <= stage_macs(of.stage("vit-m-alone")) for model in found.models)
    store.delete([f"{of.stage('vit-m-alone').folder}/{MANIFEST}"])
    gone = read_measurement(store, of)
    assert isinstance(gone, Unmeasurable)
    assert "has no manifest any more" in gone.message
