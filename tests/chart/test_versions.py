"""Operator and CRD of different releases: whichever is older, chains go on and nothing is written over and over."""

from __future__ import annotations

import copy
import json
import time
from pathlib import Path
from typing import Any

import pytest

from modelchain.crd import CRD_NAME, custom_resource_definition
from tests.chart.audit import AuditLog, Right
from tests.chart.releases import TWO_RESYNCS_SECONDS, Release
from tests.chart.teams import Operators, Team
from tests.operator.chains import ClusterChain
from tests.processes import wait_until

pytestmark = [pytest.mark.long, pytest.mark.xdist_group("chart")]

STATUS_WRITE = Right("modelchain.dev", "modelchains/status", "update")
# What an older CRD might lack: fields of the chain and of a stage, one of them a time.
NEWER_FIELDS = ("speedupPlanned", "stages[].activity", "stages[].startedAt", "stages[].weightsUri")


def test_an_operator_writes_no_more_often_where_an_older_crd_drops_fields_of_the_status(
    release: Release, team: Team, operators: Operators, audit_log: AuditLog, log: Path
) -> None:
    chain = team.chain
    release.install()
    replace_crd(release, older_crd())
    wait_until(lambda: not knows(release, {"speedupPlanned": 2.0}), "the API server has it", pause=0.2)
    operators.start(release, log)
    shorten(chain)
    chain.apply()
    chain.wait("Complete", seconds=300)
    kept = chain.status()
    assert "speedupPlanned" not in kept
    assert "activity" not in kept["stages"][0]
    wait_until_quiet(audit_log, release)
    before = writes(audit_log, release)
    # Whatever wakes the chain: an annotation is no reason to write.
    for number in range(5):
        chain.plane.kubectl(
            "annotate",
            "modelchain",
            chain.name,
            "-n",
            chain.namespace,
            f"example.com/n={number}",
            "--overwrite",
        )
    wait_until_quiet(audit_log, release)
    assert writes(audit_log, release) == before
    said = log.read_text()
    assert said.count("is older than this operator and drops") <= len(NEWER_FIELDS), "each is told once"
    assert "speedupPlanned" in said
    assert "Traceback" not in said


def test_an_operator_goes_on_under_a_newer_crd_and_names_what_it_does_not_know(
    release: Release, team: Team, operators: Operators, audit_log: AuditLog, log: Path
) -> None:
    chain = team.chain
    release.install()
    replace_crd(release, newer_crd())
    wait_until(lambda: knows(release, {"insight": "deep"}), "the API server has it", pause=0.2)
    operators.start(release, log)
    shorten(chain)
    team.pods.hold("*", "step:4")
    chain.apply()
    team.pods.wait_for_held("*")
    told_by_newer = {"status": {"insight": "deep", "stages": [{**chain.stage("tiny"), "insight": "deep"}]}}
    chain.plane.kubectl(
        *("patch", "modelchain", chain.name, "-n", chain.namespace, "--subresource=status"),
        *("--type=merge", "-p", json.dumps(told_by_newer)),
    )
    team.pods.release()
    chain.wait("Complete", seconds=300)
    assert chain.stage("tiny")["attempt"] == 1
    assert (chain.status()["insight"], chain.stage("tiny")["insight"]) == ("deep", "deep")
    wait_until_quiet(audit_log, release)

    refused = team.another_chain("newer")
    shorten(refused)
    refused.document["spec"]["retry"]["insightSeconds"] = 5
    refused.apply()
    wait_until(lambda: refused.condition("Accepted").get("status") == "False", "it is refused", pause=0.3)
    assert "spec.retry.insightSeconds" in refused.condition("Accepted")["message"]
    refused.wait_at_rest(TWO_RESYNCS_SECONDS)
    assert not refused.jobs("jobs")
    assert "Traceback" not in log.read_text()


def shorten(chain: ClusterChain) -> None:
    """One stage that trains for a moment, and needs no training operator."""
    spec = chain.document["spec"]
    spec["stages"], spec["training"]["epochs"], spec["job"]["backend"] = spec["stages"][:1], 2, "Job"


def replace_crd(release: Release, definition: dict[str, Any]) -> None:
    """Install another CRD in the place of the chart's."""
    release.plane.apply({**definition, "metadata": {"name": CRD_NAME}})


def knows(release: Release, status: dict[str, Any]) -> bool:
    """Whether the API server serves a CRD that has these fields of the status."""
    probe = {"apiVersion": "modelchain.dev/v1alpha1", "kind": "ModelChain", "status": status}
    ask = ("create", "--dry-run=server", "-f", "-")
    text = json.dumps(probe | {"metadata": {"name": "probe", "namespace": "default"}})
    return "unknown field" not in release.plane.kubectl(*ask, text=text, check=False).stderr


def schema(definition: dict[str, Any]) -> dict[str, Any]:
    """Of the objects."""
    return definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]


def older_crd() -> dict[str, Any]:
    """The CRD without some fields of the status."""
    definition: dict[str, Any] = copy.deepcopy(custom_resource_definition())
    status = schema(definition)["properties"]["status"]
    for path in NEWER_FIELDS:
        *parents, last = path.split(".")
        part = status
        for name in parents:
            part = part["properties"][name.removesuffix("[]")]
            part = part["items"] if name.endswith("[]") else part
        del part["properties"][last]
    return definition


def newer_crd() -> dict[str, Any]:
    """The CRD with fields that this operator has never heard of."""
    definition: dict[str, Any] = copy.deepcopy(custom_resource_definition())
    text = {"type": "string", "maxLength": 63, "description": "What a newer release has to say."}
    number = {"type": "integer", "format": "int64", "description": "What a newer release asks."}
    properties = schema(definition)["properties"]
    properties["status"]["properties"]["insight"] = text
    properties["status"]["properties"]["stages"]["items"]["properties"]["insight"] = text
    properties["spec"]["properties"]["retry"]["properties"]["insightSeconds"] = number
    return definition


def writes(audit_log: AuditLog, release: Release) -> int:
    """How often the operator has written a status."""
    return sum(one.right == STATUS_WRITE for one in audit_log.asked_by("modelchain", release.namespace))


def wait_until_quiet(audit_log: AuditLog, release: Release, seconds: float = TWO_RESYNCS_SECONDS) -> None:
    """Until the operator writes nothing for a while."""
    count, since = -1, time.monotonic()

    def is_quiet() -> bool:
        nonlocal count, since
        if (now := writes(audit_log, release)) != count:
            count, since = now, time.monotonic()
        return time.monotonic() - since >= seconds

    wait_until(is_quiet, "the operator writes nothing more to a chain that is complete", pause=0.5)
