"""A stage that another chain trains is waited for, and used when it is done."""

from __future__ import annotations

from modelchain.reconcile.actions import StartJob
from modelchain.reconcile.observation import LeaseView, StageFacts
from modelchain.status import ConditionType, StagePhase
from tests.modelchain.reconcile.chains import Play, chain, manifest


def held(*, fresh: bool = True) -> StageFacts:
    return StageFacts(lease=LeaseView("abcd-3-ff", "team-b/other", fresh=fresh))


def test_waits_while_the_lease_is_fresh_and_says_for_whom() -> None:
    play = Play(chain())
    assert play.look(tiny=held()).actions == ()
    assert play["tiny"].phase is StagePhase.WAITING
    assert "team-b/other" in play["tiny"].message
    assert play.status is not None
    progressing = play.status.condition(ConditionType.PROGRESSING)
    assert progressing is not None
    assert (progressing.status, progressing.reason) == ("False", "LeaseHeld")


def test_takes_over_when_the_lease_runs_out() -> None:
    play = Play(chain())
    play.look(tiny=held())
    assert play.look(tiny=held(fresh=False)).actions == (StartJob("tiny", 1),)


def test_uses_what_the_other_chain_has_made() -> None:
    play = Play(chain())
    play.look(tiny=held())
    made = StageFacts(manifest=manifest(play.stage("tiny"), chain_name="team-b/other"))
    assert play.look(tiny=made).actions == (StartJob("small", 1),)
    assert play["tiny"].phase is StagePhase.CACHED
    assert "team-b/other" in play["tiny"].message
