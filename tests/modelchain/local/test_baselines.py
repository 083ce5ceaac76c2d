"""`modelchain run` trains models alone after the chain; its exit code is the chain's."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelchain.local.outcome import Stopped, exit_code
from modelchain.reconcile.observation import JobPhase, StageFacts, StoreProblem
from modelchain.status import ChainPhase, ConditionType
from tests.modelchain.local.runs import Bench
from tests.modelchain.reconcile.chains import Play, chain, job, manifest


@pytest.fixture
def family(tmp_path: Path) -> Iterator[Bench]:
    """A chain of two stages, whose second model is trained alone too."""
    bench = Bench(tmp_path)
    bench.edit("  stages:\n", "  baseline: {train: [small], epochs: 6, budgetMatched: true}\n  stages:\n")
    yield bench
    bench.close()


def starts(bench: Bench) -> list[int]:
    return [len(bench.starts(f"small{suffix}")) for suffix in ("", "-alone", "-alone-matched")]


def test_the_models_are_trained_alone_last_and_what_they_show_is_measured(family: Bench) -> None:
    done = family.run()
    assert done.code == 0, done.err
    began = [event["stage"] for event in done.of("stage") if event["reason"] == "Starting"]
    assert began == ["tiny", "small", "small-alone", "small-alone-matched"]
    (start,) = done.of("run")
    assert [stage["name"] for stage in start["baselines"]] == ["small-alone", "small-alone-matched"]
    result = done.events[-1]
    assert [stage["phase"] for stage in result["baselines"]] == ["Complete", "Complete"]
    measured = result["speedupMeasured"]
    assert (measured["metric"], measured["chainMacs"], measured["atLeast"]) == ("digits/top1", 2.0, False)
    assert measured["factor"] == 0.5, "the fake trainer counts one MAC a stage"
    assert [model["name"] for model in measured["models"]] == ["small"]
    assert result["speedupPlanned"] > 0
    status = family.record().status
    assert (status.columns.speedup_measured, status.is_true(ConditionType.BASELINE_COMPLETE)) == (
        "0.50x",
        True,
    )
    assert [run.name for run in family.record().baselines] == ["small-alone", "small-alone-matched"]
    again = family.run()
    assert (again.code, [event["event"] for event in again.events]) == (0, ["result"])
    assert again.events[-1]["speedupMeasured"] == measured
    assert starts(family) == [1, 1, 1]


def test_a_run_for_people_tells_planned_and_measured_apart(family: Bench) -> None:
    text = family.start("-o", "lines").end().out
    assert "2 stages into" in text and "then 2 models alone to compare" in text
    assert "\nplanned: the chain costs " in text
    assert "\nmeasured: at equal digits/top1 the models alone take 0.50x the compute of the chain\n" in text
    family.edit("baseline: .*", "baseline: {epochs: 6}")
    text = family.start("-o", "lines").end().out
    assert "\nmeasured: nothing yet; spec.baseline.train: [all]" in text


def test_a_baseline_that_fails_fails_neither_the_chain_nor_the_run(family: Bench) -> None:
    family.plan("small-alone", "fail 66 s3://data/x.tar: no such object", "commit")
    done = family.run()
    assert done.code == 0, done.err
    result = done.events[-1]
    assert (result["phase"], "speedupMeasured" in result) == ("Complete", False)
    assert "is complete; not compared: small-alone" in result["message"]
    assert "s3://data/x.tar: no such object" in result["message"]
    assert family.record().status.phase is ChainPhase.COMPLETE
    assert starts(family) == [1, 1, 1], "the other one is trained all the same"
    again = family.run()
    assert (again.code, again.events[-1]["speedupMeasured"]["factor"]) == (0, 0.5)
    assert starts(family) == [1, 2, 1], "running again asks the failed one again"


def test_asking_for_a_comparison_later_trains_only_what_is_missing(family: Bench) -> None:
    family.edit("  baseline: .*\n", "")
    assert family.run().code == 0
    family.edit("  stages:\n", "  baseline: {train: [all], epochs: 2}\n  stages:\n")
    done = family.run()
    assert done.code == 0
    assert [len(family.starts(name)) for name in ("tiny", "small", "small-alone")] == [1, 1, 1]
    assert family.starts("tiny-alone") == [], "the first stage was trained for as long"
    assert [model["name"] for model in done.events[-1]["speedupMeasured"]["models"]] == ["tiny", "small"]


def test_stopping_stops_a_baseline_at_a_checkpoint_and_says_so(family: Bench) -> None:
    family.plan("small-alone", "train", "commit")
    run = family.start("-o", "json")
    family.wait_for_start("small-alone")
    run.signal(signal.SIGINT)
    stopped = run.end()
    assert stopped.code == 130
    assert stopped.events[-1]["phase"] == "Complete"
    assert "is complete; comparing it was stopped" in stopped.events[-1]["message"]
    assert family.run().code == 0
    assert starts(family) == [1, 2, 1]


# ---- exit codes, by status

STAGES = (("tiny", None), ("small", "tiny"))
NOBODY = Stopped()


def complete() -> Play:
    play = Play(chain(STAGES, baseline={"train": ["small"], "epochs": 8}))
    for name in ("tiny", "small"):
        play.store[name] = StageFacts(manifest=manifest(play.stage(name)))
    play.look()
    return play


def test_a_run_goes_on_while_a_model_is_trained_alone_or_measured() -> None:
    play = complete()
    alone = play.stage("small-alone")
    assert exit_code(play.look(job(alone)).status, NOBODY) is None
    play.store["small-alone"] = StageFacts(manifest=manifest(alone))
    assert exit_code(play.look(job(alone, phase=JobPhase.SUCCEEDED)).status, NOBODY) is None


def test_a_store_that_refuses_a_baseline_ends_the_run_with_the_chains_code() -> None:
    play = complete()
    play.store["small-alone"] = StageFacts(problem=StoreProblem.FORBIDDEN)
    assert exit_code(play.look().status, NOBODY) == 0
    play.store["small-alone"] = StageFacts(problem=StoreProblem.UNAVAILABLE)
    assert exit_code(play.look().status, NOBODY) is None, "it may answer again"


def test_a_chain_suspended_after_its_end_is_complete() -> None:
    play = complete()
    play.chain = play.chain.model_copy(update={"suspend": True})
    assert exit_code(play.look().status, NOBODY) == 0
