"""A status that another version has written is read as far as it can be."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from modelchain.reconcile.actions import StartJob
from modelchain.reconcile.observation import StageFacts
from modelchain.status import ChainPhase, ChainStatus, ConditionType, StagePhase, bounded, cut
from tests.modelchain.reconcile.chains import Play, chain, job, manifest


@pytest.fixture
def written() -> dict[str, Any]:
    """The status of a chain whose first stage is complete and whose second runs after a failure."""
    play = Play(chain((("tiny", None), ("small", "tiny"))))
    play.look()
    play.look(job(play.stage("tiny")))
    play.look(tiny=StageFacts(manifest=manifest(play.stage("tiny"))))
    play.look(job(play.stage("small")))
    assert play.status is not None
    return json.loads(play.status.model_dump_json(by_alias=True, exclude_none=True))


def changed(written: dict[str, Any], **stage: Any) -> dict[str, Any]:
    newer = copy.deepcopy(written)
    newer["stages"][0] |= stage
    return newer


def test_nothing_is_counted_or_trained_anew_after_a_roll_back(written: dict[str, Any]) -> None:
    newer = changed(written, phase="Archived", message="x" * 5000, lastEnded={"attempt": 0, "why": "new"})
    newer["phase"] = "Archiving"
    newer["stages"][1] |= {"phase": "Warming", "failures": 2, "retryAt": 5}
    newer["conditions"].append(
        {
            "type": "Archived",
            "status": "True",
            "reason": "New",
            "message": "",
            "lastTransitionTime": "2027-01-15T08:00:00Z",
        }
    )
    status = ChainStatus.model_validate(newer)
    tiny, small = status.stages
    assert (tiny.phase, tiny.attempt, tiny.weights_uri) == (
        StagePhase.COMPLETE, 1, written["stages"][0]["weightsUri"],
    )  # fmt: skip
    assert (small.phase, small.attempt, small.failures, small.retry_at) == (StagePhase.PENDING, 1, 2, None)
    assert status.phase is ChainPhase.PENDING

    play = Play(chain((("tiny", None), ("small", "tiny"))))
    play.status = status
    decision = play.look(job(play.stage("small")))
    assert not [action for action in decision.actions if isinstance(action, StartJob)]
    assert play.status is not None
    assert play.status.is_true(ConditionType.ARTIFACTS_MISSING), "its artifacts are gone: that is told"
    assert [one.status for one in play.status.conditions if one.type == "Archived"] == ["True"], (
        "theirs is kept"
    )
    assert play.status.condition(ConditionType.ACCEPTED) is not None


def test_fields_of_a_newer_version_are_written_back(written: dict[str, Any]) -> None:
    newer = changed(written, insight="deep")
    newer["insight"] = {"depth": 3}
    newer["stages"][1]["insight"] = ["wide"]
    newer["stages"][1]["phase"] = "Warming"  # and one that can't be read beside them
    play = Play(chain((("tiny", None), ("small", "tiny"))))
    play.status = ChainStatus.model_validate(newer)
    play.look(job(play.stage("small")))
    play.look(small=StageFacts(manifest=manifest(play.stage("small"))))
    kept = play.status.model_dump(mode="json", by_alias=True, exclude_none=True)
    assert kept["insight"] == {"depth": 3}
    assert [stage["insight"] for stage in kept["stages"]] == ["deep", ["wide"]]
    assert [stage["phase"] for stage in kept["stages"]] == ["Complete", "Complete"]


@pytest.mark.parametrize(
    "damage",
    [
        {"stages": "none"},
        {"stages": [{"phase": "Running"}, 5]},
        {"conditions": [{}, {"type": "x y"}]},
        {"columns": {"etaSeconds": "soon"}},
    ],
)
def test_whatever_stands_in_it_something_is_read(written: dict[str, Any], damage: dict[str, Any]) -> None:
    status = ChainStatus.model_validate(written | damage)
    assert status.phase is ChainPhase.RUNNING
    assert status.message == written["message"] if "message" in written else True


# ESC, NUL, a line feed, NEL (C1), CSI (C1), LINE SEPARATOR, and what turns the direction of text.
CONTROLS = "\x1b[31m\0\n\x85\x9b\u2028\u202e\u2066"


def test_text_from_elsewhere_holds_no_control_characters_in_a_status() -> None:
    assert cut(f"a{CONTROLS}b") == "a [31m b"
    assert cut("Größe 日本 µ") == "Größe 日本 µ"
    assert bounded({f"a{CONTROLS}": 1.0, "set/top1": 0.5}) == {"set/top1": 0.5}


def test_what_is_no_mapping_is_an_error() -> None:
    with pytest.raises(ValueError, match="ChainStatus"):
        ChainStatus.model_validate([1])
