"""An admission rule of a real API server that refuses statuses: the chain says so, and goes on once it may."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.control_plane.plane import ControlPlane
from tests.operator.chains import ClusterChain
from tests.operator.operator_process import OperatorProcess
from tests.processes import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("control-plane")]

GROUP = "admissionregistration.k8s.io/v1"
WORDS = "no attempt may be recorded here"


@pytest.fixture
def rule(control_plane: ControlPlane, namespace: str) -> Iterator[str]:
    """Refuses with 422 what would record an attempt of a stage, in the test's namespace."""
    rules = [
        {
            "apiGroups": ["modelchain.dev"],
            "apiVersions": ["*"],
            "resources": ["modelchains/status"],
            "operations": ["UPDATE"],
        }
    ]
    recorded = "object.status.stages.exists(stage, has(stage.attempt) && stage.attempt > 0)"
    check = {
        "expression": f"!has(object.status) || !has(object.status.stages) || !{recorded}",
        "message": WORDS,
        "reason": "Invalid",
    }
    there = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}}}
    control_plane.apply(
        {
            "apiVersion": GROUP,
            "kind": "ValidatingAdmissionPolicy",
            "metadata": {"name": namespace},
            "spec": {"matchConstraints": {"resourceRules": rules}, "validations": [check]},
        },
        {
            "apiVersion": GROUP,
            "kind": "ValidatingAdmissionPolicyBinding",
            "metadata": {"name": namespace},
            "spec": {"policyName": namespace, "validationActions": ["Deny"], "matchResources": there},
        },
    )
    yield namespace
    kinds = "validatingadmissionpolicybinding,validatingadmissionpolicy"
    control_plane.kubectl("delete", kinds, namespace, "--ignore-not-found", check=False)


def test_a_status_that_a_rule_refuses_is_told_and_nothing_is_done_that_was_not_recorded(
    chain: ClusterChain, operator: OperatorProcess, rule: str
) -> None:
    chain.apply()
    of = ("modelchain", chain.name, "-n", chain.namespace)
    recorded = json.dumps({"status": {"stages": [{"name": "tiny", "attempt": 1}]}})
    probe = ("patch", *of, "--subresource=status", "--type=merge", "--dry-run=server", "-p", recorded)
    wait_until(
        lambda: WORDS in chain.plane.kubectl(*probe, check=False).stderr,
        "the API server goes by the rule",
        pause=0.3,
    )
    operator.start()
    wait_until(
        lambda: chain.condition("Stalled").get("reason") == "StatusRefused",
        "the chain says that its status is refused",
        pause=0.3,
    )
    assert WORDS in chain.condition("Stalled")["message"]
    assert WORDS in chain.status()["message"]
    assert chain.condition("Ready")["status"] == "False"
    assert not any(stage.get("attempt") for stage in chain.status().get("stages", []))
    assert chain.jobs() == []
    chain.wait_until_told("StatusRefused")
    chain.plane.kubectl("delete", "validatingadmissionpolicybinding", rule)
    wait_until(
        lambda: not chain.plane.kubectl(*probe, check=False).returncode,
        "the API server has forgotten the rule",
        pause=0.3,
    )
    chain.plane.kubectl("annotate", *of, "tried=again")  # else it is offered again within a minute or so
    wait_until(lambda: len(chain.jobs()) == 1, "the first stage's job is made", pause=0.3)
    assert chain.condition("Stalled").get("reason") != "StatusRefused"
    assert "Traceback" not in operator.said()
