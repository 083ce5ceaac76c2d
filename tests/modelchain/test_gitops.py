"""What Flux and Argo CD make of a chain: kstatus itself, and the health script in the Lua that Argo CD runs."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from modelchain.reconcile.conditions import refused
from modelchain.reconcile.observation import JobPhase, StageFacts, StoreProblem
from modelchain.status import ChainStatus
from tests.control_plane import binaries
from tests.modelchain.reconcile.chains import NOW, Play, chain, job, manifest, progress

pytestmark = pytest.mark.xdist_group("gitops")

SCRIPT = Path(__file__).parents[2] / "examples" / "gitops" / "argocd-health.lua"
ONE = (("tiny", None),)


def judge(status: ChainStatus | None, *command: str, generation: int = 1) -> tuple[str, str]:
    document: dict[str, Any] = {
        "apiVersion": "modelchain.dev/v1alpha1",
        "kind": "ModelChain",
        "metadata": {"name": "family", "namespace": "default", "generation": generation},
    }
    if status is not None:
        document["status"] = status.model_dump(mode="json", by_alias=True, exclude_none=True)
    run = subprocess.run(
        [binaries.path("gitops"), *command],
        input=json.dumps(document),
        capture_output=True,
        text=True,
        check=True,
    )
    answer = json.loads(run.stdout)
    return answer["status"], answer["message"]


def new() -> ChainStatus:
    return Play(chain(ONE)).look().status


def running() -> ChainStatus:
    play = Play(chain(ONE))
    play.look()
    return play.look(
        job(play.stage("tiny")), tiny=StageFacts(progress=progress(4), progress_attempt=1)
    ).status


def queued() -> ChainStatus:
    play = Play(chain(ONE))
    play.look()
    return play.look(job(play.stage("tiny"), phase=JobPhase.QUEUED)).status


def hung() -> ChainStatus:
    play = Play(chain(ONE, retry={"stallSeconds": 60}))
    play.look()
    first = job(play.stage("tiny"), started_at=play.now)
    play.look(first)
    return play.look(first, after=4000).status


def store_is_away() -> ChainStatus:
    return Play(chain(ONE)).look(tiny=StageFacts(problem=StoreProblem.UNAVAILABLE, message="away")).status


def suspended() -> ChainStatus:
    return Play(chain(ONE, suspend=True)).look().status


def complete() -> ChainStatus:
    play = Play(chain(ONE))
    return play.look(tiny=StageFacts(manifest=manifest(play.stage("tiny")))).status


def artifacts_gone() -> ChainStatus:
    play = Play(chain(ONE))
    play.look(tiny=StageFacts(manifest=manifest(play.stage("tiny"))))
    return play.look(tiny=StageFacts()).status


def failed() -> ChainStatus:
    play = Play(chain(ONE))
    play.look()
    play.look(job(play.stage("tiny")))
    return play.look(
        job(
            play.stage("tiny"), phase=JobPhase.FAILED, exit_code=65, reason="UserDataError", message="no data"
        )
    ).status


def refused_at_first() -> ChainStatus:
    return refused(None, ["spec.store.uri: no"], generation=1, now=NOW)


def refused_while_it_runs() -> ChainStatus:
    return refused(running(), ["spec.store.uri: no"], generation=1, now=NOW)


VERDICTS: list[tuple[Callable[[], ChainStatus], str, str]] = [
    (new, "InProgress", "Progressing"),
    (running, "InProgress", "Progressing"),
    (queued, "InProgress", "Progressing"),
    (hung, "InProgress", "Progressing"),
    (store_is_away, "InProgress", "Progressing"),
    (suspended, "InProgress", "Suspended"),
    (complete, "Current", "Healthy"),
    (artifacts_gone, "Failed", "Degraded"),
    (failed, "Failed", "Degraded"),
    (refused_at_first, "Failed", "Degraded"),
    (refused_while_it_runs, "Failed", "Degraded"),
]


@pytest.mark.parametrize(
    ("situation", "kstatus", "argocd"), VERDICTS, ids=[one[0].__name__ for one in VERDICTS]
)
def test_a_chain_is_seen_as_what_it_is(
    situation: Callable[[], ChainStatus], kstatus: str, argocd: str
) -> None:
    status = situation()
    assert judge(status, "kstatus")[0] == kstatus
    assert judge(status, "argocd", str(SCRIPT))[0] == argocd
    if argocd == "Degraded":
        assert judge(status, "argocd", str(SCRIPT))[1], "it says why"


@pytest.mark.parametrize("situation", [complete, failed, refused_at_first])
def test_an_edit_that_was_not_looked_at_is_waited_for(situation: Callable[[], ChainStatus]) -> None:
    assert judge(situation(), "kstatus", generation=2)[0] == "InProgress"
    assert judge(situation(), "argocd", str(SCRIPT), generation=2)[0] == "Progressing"


def test_a_chain_that_no_operator_has_seen_is_in_progress_for_argo_cd() -> None:
    assert judge(None, "argocd", str(SCRIPT))[0] == "Progressing"
