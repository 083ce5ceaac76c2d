"""`helm install` on a real API server, and a chain trained by the operator with the rights that the chart gives it."""

from __future__ import annotations

import secrets
from pathlib import Path

import pytest

from modelchain.commit import verify_stage
from modelchain.crd import CRD_NAME
from tests.chart.audit import AuditLog
from tests.chart.conftest import remove
from tests.chart.helm import CHART
from tests.chart.releases import TWO_RESYNCS_SECONDS, Release
from tests.chart.teams import Operators, Team
from tests.control_plane.plane import ControlPlane
from tests.control_plane.pods import PodRunner
from tests.operator.chains import ClusterChain
from tests.processes import wait_until
from tests.seaweedfs import SeaweedFS

pytestmark = [pytest.mark.long, pytest.mark.xdist_group("chart")]

CHAIN_SECONDS = 400.0
EVERYTHING = Path(__file__).parent / "values" / "everything.yaml"


def test_a_chain_of_any_namespace_is_trained_with_the_rights_of_the_chart(
    release: Release,
    team: Team,
    log: Path,
    operators: Operators,
    audit_log: AuditLog,
    tmp_path: Path,
) -> None:
    notes = release.install()
    assert "trains the chains of all namespaces" in notes
    assert "MISSING" not in notes
    for word in ("kubectl apply -f chain.yaml", "kubectl get modelchains -A -w", "names a Secret"):
        assert word in notes
    operators.start(release, log)
    team.chain.document["spec"]["job"]["nodes"] = 2
    team.chain.apply()
    team.chain.wait("Complete", seconds=CHAIN_SECONDS)
    assert [stage["attempt"] for stage in team.chain.status()["stages"]] == [1, 1]
    (image,) = {pod["spec"]["containers"][0]["image"] for pod in team.chain.pods()}
    assert image == "ghcr.io/modelchain/modelchain-trainer:0.1.0"
    assert not [one for one in audit_log.asked_by("modelchain", release.namespace) if not one.allowed]
    assert '"level": "info"' in log.read_text()
    helm_test(release, tmp_path)


def test_chains_of_listed_namespaces_are_trained_and_nothing_else_can_be_read(
    release: Release,
    team: Team,
    log: Path,
    operators: Operators,
    audit_log: AuditLog,
    tmp_path: Path,
) -> None:
    plane, other = release.plane, f"team-{secrets.token_hex(3)}"
    plane.kubectl("create", "namespace", other)
    notes = release.install({"namespaces": [team.namespace]})
    assert f"kubectl apply -f chain.yaml -n {team.namespace}" in notes
    operators.start(release, log)
    spec = team.chain.document["spec"]
    spec["stages"], spec["training"]["epochs"], spec["job"]["backend"] = spec["stages"][:1], 2, "Job"
    team.chain.apply()
    team.chain.wait("Complete", seconds=CHAIN_SECONDS)
    asked = list(audit_log.asked_by("modelchain", release.namespace))
    assert not [one for one in asked if not one.allowed]
    asked_where = {(one.namespace, one.right.resource == "leases") for one in asked}
    assert asked_where - {(release.namespace, True)} == {(team.namespace, False)}, (
        "nothing is asked of the cluster"
    )
    account = f"system:serviceaccount:{release.namespace}:modelchain"
    for namespace, answer in ((team.namespace, "yes"), (other, "no")):
        may = plane.kubectl("auth", "can-i", "get", "secrets", "-n", namespace, "--as", account, check=False)
        assert may.stdout.strip() == answer
    helm_test(release, tmp_path)
    plane.kubectl("delete", "namespace", other, "--wait=false")


def helm_test(release: Release, folder: Path) -> None:
    """`helm test`, its pod run here. Without the operator's rights it fails, and says what is missing."""
    environment = {"KUBECONFIG": str(release.kubeconfig())}
    node = PodRunner(release.plane, folder / "test", namespace=release.namespace, environment=environment)
    node.start()
    try:
        release("test", release.name)
        (said,) = node.logs().values()
        assert "ModelChain in " in said
        assert said.count("may be listed") == 4
        for binding in release.manifest():
            metadata = binding["metadata"]
            if binding["kind"] == "ClusterRoleBinding":
                release.plane.kubectl("delete", "clusterrolebinding", metadata["name"])
            elif binding["kind"] == "RoleBinding":
                release.plane.kubectl("delete", "rolebinding", metadata["name"], "-n", metadata["namespace"])
        with pytest.raises(AssertionError, match="modelchain-test failed"):
            release("test", release.name)
        (said,) = node.logs().values()
        assert "failed: ModelChain in " in said
    finally:
        node.close()


def test_upgrading_uninstalling_and_installing_again_disturb_no_chain(
    release: Release, team: Team, log: Path, operators: Operators
) -> None:
    chain, plane = team.chain, release.plane
    release.install({"log.level": "debug", "progressSeconds": 1}, chart=EARLIER)
    operator = operators.start(release, log)
    chain.document["spec"]["job"]["backend"] = "Job"
    for stage in ("tiny", "small"):
        team.pods.hold(f"*-{stage}-*", "step:8")
    chain.apply()
    team.pods.wait_for_held("*-tiny-*")
    (first,) = chain.jobs("jobs")

    release.upgrade()
    assert operator.terminate() == 0
    assert crd_chart(plane) == "modelchain-0.1.0"
    operator = operators.start(release, log)
    team.pods.release("*-tiny-*")
    team.pods.wait_for_held("*-small-*")
    assert chain.stage("tiny")["attempt"] == 1
    assert first["metadata"]["uid"] in {job["metadata"]["uid"] for job in chain.jobs("jobs")}

    release.uninstall()
    assert operator.terminate() == 0
    assert left_of(release) == []
    assert crd_chart(plane) == "modelchain-0.1.0"
    (job,) = [
        one for one in chain.jobs("jobs") if one["metadata"]["labels"]["modelchain.dev/stage"] == "small"
    ]
    assert not job["metadata"].get("deletionTimestamp")

    release.install()
    operators.start(release, log)
    team.pods.release()
    chain.wait("Complete", seconds=CHAIN_SECONDS)
    assert [stage["attempt"] for stage in chain.status()["stages"]] == [1, 1]
    assert len(chain.jobs("jobs")) == 2
    release.uninstall()
    assert chain.status()["phase"] == "Complete"
    for stage in chain.resolved().stages:
        assert verify_stage(chain.store, stage.folder, stage.digest) is not None


EARLIER = Path(__file__).parent / "modelchain-0.0.1.tgz"  # the first chart there was, packaged then


def crd_chart(plane: ControlPlane) -> str:
    """Which chart the CRD is of."""
    path = "jsonpath={.metadata.labels.helm\\.sh/chart}"
    return plane.kubectl("get", "crd", CRD_NAME, "-o", path).stdout


def left_of(release: Release) -> list[str]:
    """What carries a release's label, but the CRD and what Kubernetes itself makes of it."""
    kinds = "deployments,pods,serviceaccounts,services,roles,rolebindings,clusterroles,clusterrolebindings"
    selector = f"app.kubernetes.io/instance={release.name},app.kubernetes.io/managed-by=Helm"
    listed = release.plane.kubectl("get", kinds, "--all-namespaces", "-l", selector, "-o", "name")
    return listed.stdout.split()


@pytest.mark.usefixtures("foreign_kinds")  # until the release is removed
def test_everything_that_is_off_by_default_can_be_had(release: Release) -> None:
    release("install", release.name, str(CHART), "--create-namespace", "--values", str(EVERYTHING))
    kinds = "servicemonitor,prometheusrule,poddisruptionbudget,networkpolicy,service,configmap"
    selector = f"app.kubernetes.io/instance={release.name}"
    listed = release.plane.kubectl("get", kinds, "-n", release.namespace, "-l", selector, "-o", "name")
    made = {name.partition(".")[0].partition("/")[0] for name in listed.stdout.split()}
    assert made == set(kinds.split(","))
    release.upgrade({"metrics.serviceMonitor.enabled": False, "prometheusRule.enabled": False})
    listed = release.plane.kubectl("get", kinds, "-n", release.namespace, "-l", selector, "-o", "name")
    assert "monitoring.coreos.com" not in listed.stdout


def test_whoever_may_view_or_edit_a_namespace_may_do_so_with_its_chains(release: Release, team: Team) -> None:
    plane = release.plane
    release.install()
    for role in ("view", "edit"):
        plane.kubectl(
            "create", "rolebinding", role, f"--clusterrole={role}", f"--user={role}er", "-n", team.namespace
        )

    def may(user: str, verb: str, *resource: str) -> bool:
        asked = ("auth", "can-i", verb, *resource, "-n", team.namespace, f"--as={user}")
        return plane.kubectl(*asked, check=False).stdout.strip() == "yes"

    wait_until(lambda: may("viewer", "get", "modelchains"), "the roles are aggregated", pause=0.5)
    wait_until(lambda: may("editer", "create", "modelchains"), "the roles are aggregated", pause=0.5)
    assert not may("viewer", "create", "modelchains")
    assert all(may("editer", verb, "modelchains") for verb in ("get", "list", "watch", "patch", "delete"))
    assert not may("editer", "update", "modelchains", "--subresource=status")


def test_without_kubeflow_it_says_what_is_missing_and_goes_on_once_it_is_there(
    seaweedfs: SeaweedFS, log: Path, operators: Operators, tmp_path: Path
) -> None:
    plane = ControlPlane(tmp_path / "plane", kubeflow=False)
    try:
        plane.start()
        for namespace in ("everywhere", "listed"):
            plane.kubectl("create", "namespace", namespace)
        for values in ({}, {"namespaces": ["listed"]}):
            release = Release(plane, namespace=f"system-{len(values)}")
            notes = release.install(values)
            assert "MISSING: the cluster has no PyTorchJob" in notes
            assert "kubectl apply --server-side -k" in notes
            operator = operators.start(release, log)
            chain = ClusterChain(plane, seaweedfs, "listed" if values else "everywhere", tmp_path)
            chain.apply()
            wait_until(
                lambda chain=chain: chain.condition("Progressing").get("reason") == "BackendUnavailable",
                "the chain says why it waits",
                pause=0.5,
            )
            assert "install the Kubeflow training operator" in chain.condition("Progressing")["message"]
            chain.wait_at_rest(3)
            plane.install_training_crds()
            wait_until(lambda chain=chain: bool(chain.jobs()), "its job is made", pause=0.5)
            operator.terminate()
            remove(release)
            plane.kubectl("delete", "crd", "pytorchjobs.kubeflow.org")
    finally:
        plane.stop()


def test_two_releases_in_one_cluster_do_not_fight(
    release: Release, team: Team, tmp_path: Path, operators: Operators
) -> None:
    plane, chain = release.plane, team.chain
    second = Release(plane, namespace=f"system-{secrets.token_hex(3)}")
    try:
        release.install()
        with pytest.raises(AssertionError) as refused:
            second.install()
        assert f"is of the release modelchain in namespace {release.namespace}" in str(refused.value)
        assert "--set crds.enabled=false" in str(refused.value)
        second.install({"crds.enabled": False})
        for one in (release, second):
            operators.start(one, tmp_path / f"{one.namespace}.log")
        spec = chain.document["spec"]
        spec["stages"], spec["training"]["epochs"], spec["job"]["backend"] = spec["stages"][:1], 2, "Job"
        chain.apply()
        chain.wait("Complete", seconds=CHAIN_SECONDS)
        assert chain.stage("tiny")["attempt"] == 1
        assert len(chain.jobs("jobs")) == 1
        reasons = [event["reason"] for event in chain.events()]
        assert len(reasons) == len(set(reasons)), f"told twice: {reasons}"
        chain.wait_at_rest(TWO_RESYNCS_SECONDS)
        release.uninstall()
        account = f"system:serviceaccount:{second.namespace}:modelchain"
        may = plane.kubectl("auth", "can-i", "list", "modelchains", "-A", "--as", account, check=False)
        assert may.stdout.strip() == "yes"
        assert chain.status()["phase"] == "Complete", "the CRD is kept"
    finally:
        remove(second)


def test_a_crd_of_somebody_else_is_taken_over_by_the_commands_that_the_refusal_gives(
    release: Release,
) -> None:
    plane = release.plane
    plane.kubectl("apply", "--server-side", "-f", str(CRD))
    with pytest.raises(AssertionError) as refused:
        release.install()
    told = str(refused.value)
    assert "is of no Helm release" in told
    commands = told.partition("once its owner is gone:  ")[2].splitlines()[0]
    for command in commands.split(" && "):
        plane.kubectl(*command.split()[1:])
    release.install()
    assert crd_chart(plane) == "modelchain-0.1.0"


CRD = Path(__file__).parents[2] / "crds" / "modelchain.dev_modelchains.yaml"
