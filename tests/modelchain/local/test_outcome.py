"""With which exit code a run ends, and when it does not end yet."""

from __future__ import annotations

import signal

import pytest

from modelchain.local.outcome import Stopped, exit_code
from modelchain.reconcile.observation import JobPhase, StageFacts, StoreProblem
from modelchain.status import ChainStatus
from tests.modelchain.reconcile.chains import Play, chain, job, manifest

ONE = (("tiny", None),)
NOBODY = Stopped()


def after(**facts: StageFacts) -> ChainStatus:
    """The status after one look at these facts."""
    return Play(chain(ONE)).look(**facts).status  # type: ignore[arg-type]


def failed(code: int, limit: int = 0) -> ChainStatus:
    """The status after an attempt that ended with this code."""
    play = Play(chain(ONE, retry={"limit": limit}))
    play.look()
    play.look(job(play.stage("tiny")))
    return play.look(job(play.stage("tiny"), phase=JobPhase.FAILED, exit_code=code)).status


def test_a_run_goes_on_while_anything_can_happen() -> None:
    assert exit_code(after(), NOBODY) is None
    assert exit_code(failed(1, limit=3), NOBODY) is None
    assert exit_code(after(tiny=StageFacts(problem=StoreProblem.UNAVAILABLE)), NOBODY) is None


def test_a_complete_chain_is_a_success_whatever_came_in_between() -> None:
    complete = after(tiny=StageFacts(manifest=manifest(chain(ONE).stages[0])))
    assert exit_code(complete, NOBODY) == 0
    assert exit_code(complete, Stopped(signal=signal.SIGINT)) == 0


@pytest.mark.parametrize(("code", "expected"), [(1, 1), (137, 1), (65, 65), (78, 78)])
def test_a_permanent_code_is_passed_on_and_spent_retries_are_1(code: int, expected: int) -> None:
    assert exit_code(failed(code), NOBODY) == expected


def test_what_only_a_person_can_mend_ends_the_run() -> None:
    assert exit_code(after(tiny=StageFacts(problem=StoreProblem.FORBIDDEN)), NOBODY) == 77
    assert exit_code(after(tiny=StageFacts(problem=StoreProblem.DAMAGED)), NOBODY) == 65
    assert exit_code(after(tiny=StageFacts(problem=StoreProblem.MISCONFIGURED)), NOBODY) == 78
    assert exit_code(after(tiny=StageFacts(problem=StoreProblem.UNREADABLE)), NOBODY) == 70
    assert exit_code(after(tiny=StageFacts(problem=StoreProblem.UNAVAILABLE)), NOBODY) is None


def test_being_stopped_shows_in_the_code() -> None:
    play = Play(chain(ONE))
    play.more = {"interrupted": True}
    suspended = play.look().status
    assert exit_code(suspended, Stopped(signal=signal.SIGINT)) == 130
    assert exit_code(suspended, Stopped(signal=signal.SIGTERM)) == 143
    assert exit_code(suspended, Stopped(lease_lost=True)) == 80
    assert exit_code(Play(chain(ONE, suspend=True)).look().status, NOBODY) == 78
