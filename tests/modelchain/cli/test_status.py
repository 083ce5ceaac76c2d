"""How a status reads: what stands in the table, what below, and what a narrow terminal leaves out."""

from __future__ import annotations

import pytest

from modelchain.cli.cluster import ClusterChain
from modelchain.cli.status import as_list, as_text, notes_of
from modelchain.errors import ExitCode
from modelchain.status import (
    ChainPhase,
    ChainStatus,
    Columns,
    Condition,
    ConditionType,
    EndedAttempt,
    StagePhase,
    StageStatus,
)
from tests.modelchain.documents import document

TIME = "2026-11-24T02:00:00Z"
NOW = 1795492800.0  # 2026-11-24T04:00:00Z


def chain(status: ChainStatus | None, **metadata: object) -> ClusterChain:
    named = {"name": "family", "namespace": "research", "creationTimestamp": TIME, **metadata}
    return ClusterChain.model_validate({"metadata": named, "spec": document()["spec"], "status": status})


def condition(kind: ConditionType, status: bool, reason: str, message: str = "") -> Condition:
    return Condition(type=kind, status=str(status), reason=reason, message=message, last_transition_time=TIME)


FINE = (
    condition(ConditionType.ACCEPTED, True, "Valid"),
    condition(ConditionType.PROGRESSING, True, "Running", "training small"),
    condition(ConditionType.COMPLETE, False, "StagesIncomplete", "1 of 3 stages are complete"),
    condition(ConditionType.FAILED, False, "NotFailed"),
    condition(ConditionType.UNRESPONSIVE, False, "Responsive"),
    condition(ConditionType.ARTIFACTS_MISSING, False, "ArtifactsPresent"),
)
SMALL = StageStatus(
    name="small",
    phase=StagePhase.RUNNING,
    attempt=1,
    step=1000000,
    steps=3000000,
    samples_per_second=123456.7,
    loss={"total": 1.0},
)


def with_conditions(*changed: Condition, **fields: object) -> ChainStatus:
    kinds = {one.type for one in changed}
    kept = tuple(one for one in FINE if one.type not in kinds)
    return ChainStatus.model_validate({"phase": "Running", **fields, "conditions": (*changed, *kept)})


def test_conditions_that_are_fine_are_not_mentioned() -> None:
    assert notes_of(chain(with_conditions(stages=(SMALL,)))) == []


@pytest.mark.parametrize(
    ("kind", "holds", "note"),
    [
        (ConditionType.FAILED, True, "Failed (Why): stage small: correct it"),
        (ConditionType.UNRESPONSIVE, True, "Unresponsive (Why): stage small: correct it"),
        (ConditionType.ARTIFACTS_MISSING, True, "ArtifactsMissing (Why): stage small: correct it"),
        (ConditionType.PROGRESSING, False, "not Progressing (Why): stage small: correct it"),
        (ConditionType.ACCEPTED, False, "not Accepted (Why): stage small: correct it"),
    ],
)
def test_a_condition_that_is_not_fine_is_told_once(kind: ConditionType, holds: bool, note: str) -> None:
    stage = SMALL.model_copy(update={"message": "correct it"})
    status = with_conditions(condition(kind, holds, "Why", "stage small: correct it"), stages=(stage,))
    assert notes_of(chain(status)) == [note]


def test_everything_that_is_wrong_with_a_refused_chain_has_a_line_of_its_own() -> None:
    refused = condition(
        ConditionType.ACCEPTED, False, "Invalid", "spec.a: bad; correct it | spec.b: worse; correct it"
    )
    status = ChainStatus(phase=ChainPhase.REFUSED, message="refused: spec.a ...", conditions=(refused,))
    assert notes_of(chain(status)) == [
        "not Accepted (Invalid): spec.a: bad; correct it",
        "not Accepted (Invalid): spec.b: worse; correct it",
    ]


def test_how_the_last_attempt_ended_is_told_until_its_stage_is_done() -> None:
    ended = EndedAttempt(
        attempt=1, reason="Evicted", message="node n1 was drained", exit_code=143, counted=False, time=TIME
    )
    stage = SMALL.model_copy(update={"attempt": 2, "last_ended": ended})
    note = (
        "stage small: attempt 1 ended (Evicted, exit code 143, not counted as a failure): node n1 was drained"
    )
    assert notes_of(chain(with_conditions(stages=(stage,)))) == [note]
    done = stage.model_copy(update={"phase": StagePhase.COMPLETE})
    assert notes_of(chain(with_conditions(stages=(done,)))) == []


def test_a_stage_that_waits_its_turn_is_not_a_note() -> None:
    base = StageStatus(name="base", reason="PredecessorIncomplete", message="waits for small")
    held = StageStatus(name="tiny", phase=StagePhase.QUEUED, reason="Queued", message="a queue holds tiny-1")
    assert notes_of(chain(with_conditions(stages=(held, base)))) == ["stage tiny: a queue holds tiny-1"]


def test_what_the_trainer_does_stands_in_the_place_of_running() -> None:
    stage = SMALL.model_copy(update={"activity": "Evaluating"})
    assert "small  Evaluating  " in as_text(chain(with_conditions(stages=(stage,))), width=None)


@pytest.mark.parametrize("width", [40, 60, 80, 140])
def test_nothing_is_wider_than_the_terminal_and_no_word_is_lost(width: int) -> None:
    text = "stage small: " + "a reason that is long enough for several lines " * 4
    status = with_conditions(condition(ConditionType.UNRESPONSIVE, True, "NoProgress", text), stages=(SMALL,))
    shown = as_text(chain(status), width=width)
    table = next(line for line in shown.splitlines() if line.startswith("STAGE"))
    others = [line for line in shown.splitlines() if line[:6].strip() not in ("STAGE", "small")]
    assert all(len(line) <= width for line in others)
    assert ("LOSS" in table) == (width >= 80)
    assert " ".join(text.split()) in " ".join(shown.split())


def test_control_characters_do_not_reach_the_terminal() -> None:
    status = with_conditions(condition(ConditionType.FAILED, True, "Why", "red \x1b[31m text"))
    assert "\x1b" not in as_text(chain(status), width=80)


def test_a_chain_that_is_being_deleted_says_so() -> None:
    deleted = chain(with_conditions(), deletionTimestamp=TIME)
    assert "is being deleted" in as_text(deleted, width=None)
    assert "Deleting" in as_list([deleted], now=NOW, width=None)


def test_the_list_has_the_columns_of_kubectl_get() -> None:
    status = with_conditions(
        stage="small",
        columns=Columns(progress="1/3", eta="2h05m", top1="93.3%", speedup_measured="2.09x"),
    )
    header, row = as_list([chain(status)], now=NOW, namespaces=True, width=None).splitlines()
    assert header.split() == [
        "NAMESPACE",
        "NAME",
        "PHASE",
        "STAGE",
        "PROGRESS",
        "ETA",
        "TOP-1",
        "SPEEDUP",
        "AGE",
    ]
    assert row.split() == [
        "research",
        "family",
        "Running",
        "small",
        "1/3",
        "2h05m",
        "93.3%",
        "2.09x",
        "2h00m",
    ]


def test_a_name_and_all_namespaces_exclude_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    from modelchain.cli import main

    assert main(["status", "family", "-A"]) == ExitCode.USAGE
    assert capsys.readouterr().err.startswith("error: family: a name and -A don't go together")


def test_models_trained_alone_stand_below_the_stages_and_planned_is_not_measured() -> None:
    compared = condition(
        ConditionType.BASELINE_COMPLETE, False, "Training", "0 of 1 runs are complete; small-alone"
    )
    alone = SMALL.model_copy(update={"name": "small-alone"})
    status = with_conditions(
        compared,
        stages=(SMALL,),
        baselines=(alone,),
        columns=Columns(speedup_planned="3.10x"),
        phase="Complete",
    )
    text = as_text(chain(status), width=None)
    assert [line.split()[0] for line in text.splitlines()[3:5]] == ["small", "small-alone"]
    assert "3.10x planned against training alone" in text
    assert notes_of(chain(status)) == []
    assert as_list([chain(status)], now=NOW, width=None).splitlines()[1].split()[-2] == "-"
    measured = status.model_copy(update={"columns": Columns(speedup_measured=">= 2.50x")})
    assert ">= 2.50x measured against training alone" in as_text(chain(measured), width=None)
    assert ">= 2.50x" in as_list([chain(measured)], now=NOW, width=None)


def test_a_model_that_could_not_be_trained_alone_is_told() -> None:
    failed = condition(ConditionType.BASELINE_COMPLETE, False, "RunsFailed", "small-alone: out of memory")
    assert notes_of(chain(with_conditions(failed, stages=(SMALL,)))) == [
        "not BaselineComplete (RunsFailed): small-alone: out of memory"
    ]
