"""The operator's rights are the smallest: over the whole life of chains it uses each of them, and lacks none.

The API server's audit log says what it asked and whether it was let: https://kubernetes.io/docs/tasks/debug/debug-cluster/audit/
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from modelchain_operator.jobs.names import job_name
from tests.chart.audit import AuditLog, Right, granted
from tests.chart.helm import only
from tests.chart.releases import Release
from tests.chart.teams import Operators, Team
from tests.control_plane.kueue import Kueue
from tests.control_plane.trainer import TrainerStack
from tests.operator.chains import ClusterChain
from tests.operator.kueue.queues import API_VERSION, Queues
from tests.processes import wait_until

pytestmark = [pytest.mark.long, pytest.mark.xdist_group("chart")]

PLURALS = {"PyTorchJob": "pytorchjobs", "TrainJob": "trainjobs", "Job": "jobs"}
MISSING = "settings"


def test_each_right_is_used_and_none_is_missing(
    release: Release, team: Team, operators: Operators, audit_log: AuditLog, log: Path
) -> None:
    stack = TrainerStack(release.plane)
    try:
        stack.install()
        release.install()
        operators.start(release, log)
        for backend in PLURALS:
            live(team, backend)
    finally:
        stack.kill()
    ask_for_a_certificate(team, audit_log, release)
    wait_in_a_queue(team, audit_log, release)
    asked = list(audit_log.asked_by("modelchain", release.namespace))
    assert not [one for one in asked if not one.allowed]
    manifest = release.manifest()
    everywhere = only(
        [one for one in manifest if one["metadata"]["name"].endswith(":modelchain")], "ClusterRole"
    )
    at_home = only(manifest, "Role")
    rules = [*everywhere["rules"], *at_home["rules"]]
    given, used = granted(rules), {one.right for one in asked}
    assert given - used == set(), "rights that nothing needs"
    assert used - given == set(), "rights that the chart does not give, and others did"


def live(team: Team, backend: str) -> None:
    """A chain of one stage lives through whatever makes the operator ask for something."""
    chain = team.another_chain(backend.lower())
    spec, plural = chain.document["spec"], PLURALS[backend]
    spec["stages"], spec["training"]["epochs"] = spec["stages"][:1], 12  # more than all attempts take
    team.pods.hold("*", "step:8")  # attempts end when this test wants it
    nodes = 2 if backend == "Job" else 1  # only the pods of an Indexed Job need a Service, to find each other
    spec["job"] |= {"backend": backend, "nodes": nodes, "podTemplate": POD_TEMPLATE}
    chain.apply(suspend=True)
    wait_until(lambda: chain.status().get("phase") == "Suspended", "it is suspended", pause=0.3)

    # A job of somebody else's stands in its way.
    (stage,) = chain.resolved().stages
    name = job_name(stage.chain, stage.name, 1)
    chain.plane.apply(foreign_job(backend, name, chain.namespace))
    chain.apply(suspend=False)
    wait_until(
        lambda: "exists already and is not this stage's" in chain.condition("Progressing").get("message", ""),
        f"it says that {name} stands in its way",
        pause=0.3,
    )
    chain.plane.kubectl("delete", plural, name, "-n", chain.namespace)

    # Its pods lack a ConfigMap, which only Events tell.
    wait_until(
        lambda: f'configmap "{MISSING}" not found' in chain.stage("tiny").get("message", ""),
        "it says what its pods lack",
        pause=0.3,
    )
    chain.plane.kubectl("create", "configmap", MISSING, "-n", chain.namespace)

    # A pod crashes; the chain is suspended, and goes on; pods crash whose job somebody has deleted without them.
    team.pods.wait_for_held("*")
    crash(team, chain)
    chain.wait_for_phase("tiny", "Retrying", "Running")
    wait_until(lambda: chain.stage("tiny").get("failures") == 1, "it has failed once", pause=0.3)
    chain.wait_for_phase("tiny", "Running")
    suspend_and_resume(chain)
    chain.wait_for_phase("tiny", "Running")
    job = chain.jobs(plural)[-1]["metadata"]["name"]
    chain.plane.kubectl("delete", plural, job, "-n", chain.namespace, "--cascade=orphan")
    assert job not in {one["metadata"]["name"] for one in chain.jobs(plural)}
    crash(team, chain)
    wait_until(lambda: chain.stage("tiny").get("attempt") == 4, "it goes on", pause=0.3)
    chain.wait_for_phase("tiny", "Running")
    chain.plane.kubectl("delete", "modelchain", chain.name, "-n", chain.namespace)
    chain.plane.kubectl("delete", "configmap", MISSING, "-n", chain.namespace)


def crash(team: Team, chain: ClusterChain) -> None:
    """All pods of a chain, at once."""
    team.pods.kill_together([pod["metadata"]["name"] for pod in chain.pods()])


def suspend_and_resume(chain: ClusterChain) -> None:
    """Nothing of the chain runs in between."""
    chain.apply(suspend=True)
    wait_until(lambda: not chain.pods(), "it has no pods", pause=0.3)
    chain.apply(suspend=False)


def ask_for_a_certificate(team: Team, audit_log: AuditLog, release: Release) -> None:
    """A chain whose store has a certificate of its own."""
    chain = team.another_chain("certificate")
    chain.document["spec"]["store"]["caBundleRef"] = {"name": "authority"}
    chain.apply()
    wait_until_asked(audit_log, release, Right("", "configmaps", "get"), "the certificate is asked for")
    chain.plane.kubectl("delete", "modelchain", chain.name, "-n", chain.namespace)


def wait_in_a_queue(team: Team, audit_log: AuditLog, release: Release) -> None:
    """A chain whose job Kueue holds in a queue, since it is larger than the quota."""
    chain = team.another_chain("queued")
    kueue = Kueue(chain.plane, frameworks=("batch/job",))
    try:
        kueue.install()
        queues = Queues(chain.plane, chain.namespace)
        queues.quota("0")
        priority = queues.priority("high", 1000)
        chain.document["spec"]["job"] |= {
            "backend": "Job",
            "queueName": "research",
            "labels": {"kueue.x-k8s.io/priority-class": priority},
            "priorityClassName": "system-cluster-critical",
        }
        chain.apply()
        wait_until(lambda: len(chain.jobs("jobs")) == 1, "its job is made", pause=0.3)
        right = Right("kueue.x-k8s.io", "workloads", "list")
        wait_until_asked(audit_log, release, right, "it is asked why the job waits")
        chain.plane.kubectl("delete", "modelchain", chain.name, "-n", chain.namespace)
        workloads = f"apis/{API_VERSION}/workloads"
        wait_until(
            lambda: not chain.plane.read(workloads, chain.namespace)["items"],
            "Kueue has forgotten it",
            pause=0.3,
        )
        queues.remove()
    finally:
        kueue.uninstall()


def wait_until_asked(audit_log: AuditLog, release: Release, right: Right, what: str) -> None:
    """The operator has used the right."""
    wait_until(
        lambda: right in {one.right for one in audit_log.asked_by("modelchain", release.namespace)},
        what,
        pause=0.5,
    )


POD_TEMPLATE = {
    "spec": {
        "volumes": [{"name": "settings", "configMap": {"name": MISSING}}],
        "containers": [
            {"name": "pytorch", "volumeMounts": [{"name": "settings", "mountPath": "/etc/settings"}]}
        ],
    }
}


def foreign_job(backend: str, name: str, namespace: str) -> dict[str, Any]:
    """A job that nobody made for a chain, and that never starts."""
    template = {
        "spec": {
            "restartPolicy": "Never",
            "containers": [{"name": "pytorch", "image": "any", "command": ["true"]}],
        }
    }
    metadata = {"name": name, "namespace": namespace}
    if backend == "Job":
        spec: dict[str, Any] = {"suspend": True, "template": template}
        return {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": spec}
    if backend == "TrainJob":
        trainer = {"image": "any", "command": ["true"]}
        spec = {"suspend": True, "runtimeRef": {"name": "modelchain"}, "trainer": trainer}
        return {
            "apiVersion": "trainer.kubeflow.org/v1alpha1",
            "kind": "TrainJob",
            "metadata": metadata,
            "spec": spec,
        }
    spec = {
        "runPolicy": {"suspend": True},
        "pytorchReplicaSpecs": {"Master": {"replicas": 1, "template": template}},
    }
    return {"apiVersion": "kubeflow.org/v1", "kind": "PyTorchJob", "metadata": metadata, "spec": spec}
