"""The commands on a chain in a cluster, as `kubectl modelchain`, against a real API server.

There is no kubelet: which pods and what kubectl is asked for is tested in test_logs.py, and here that a log which can't
be had is one line.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from modelchain import cluster_labels
from modelchain.status import ChainPhase, ChainStatus, Columns, StagePhase, StageStatus
from tests.control_plane import binaries
from tests.control_plane.fixtures import install_modelchain
from tests.control_plane.plane import ControlPlane
from tests.modelchain.documents import digests, document
from tests.modelchain.report import made_up_chain

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("control-plane")]

ROOT = Path(__file__).parents[3]
RESOURCE = "modelchains.modelchain.dev"


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line that it must be."""
        assert self.out == "" and self.err.startswith("error: ") and self.err.count("\n") == 1, self
        return self.err


@pytest.fixture(scope="module")
def bare_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """An API server that knows no ModelChains yet."""
    plane = ControlPlane(tmp_path_factory.mktemp("plane"), kubeflow=False)
    try:
        plane.start()
        yield plane
    finally:
        plane.stop()


@pytest.fixture(scope="module")
def without_crd(bare_plane: ControlPlane) -> Done:
    return plugin(bare_plane, "status", "family")


@pytest.fixture(scope="module")
def plane(bare_plane: ControlPlane, without_crd: Done) -> ControlPlane:
    """An API server with two chains in `default` and one in `research`, of which one has a status."""
    install_modelchain(bare_plane)
    bare_plane.kubectl("create", "namespace", "research")
    bare_plane.apply(document())
    bare_plane.apply(document() | {"metadata": {"name": "fresh"}})
    bare_plane.apply(document() | {"metadata": {"name": "survey", "namespace": "research"}})
    put_status(bare_plane, "family", STATUS)
    return bare_plane


STATUS = ChainStatus(
    phase=ChainPhase.RUNNING,
    observed_generation=1,
    stage="small",
    columns=Columns(progress="420/1560", eta="2h05m", top1="28.1%", speedup_measured="2.09x"),
    stages=(
        StageStatus(
            name="tiny",
            phase=StagePhase.COMPLETE,
            attempt=1,
            step=3120,
            steps=3120,
            metrics={"another/top1": 0.9, "pets/top1": 0.281},
        ),
        StageStatus(
            name="small",
            phase=StagePhase.RUNNING,
            reason="Running",
            attempt=2,
            failures=1,
            step=420,
            steps=1560,
            activity="Training",
            samples_per_second=1234.5,
            eta_seconds=2400,
            loss={"total": 2.3456, "task": 2.1},
        ),
        StageStatus(
            name="base",
            reason="PredecessorIncomplete",
            message="waits for small",
        ),
    ),
)


def put_status(plane: ControlPlane, name: str, status: ChainStatus) -> None:
    patch = {"status": status.model_dump(mode="json", by_alias=True, exclude_none=True)}
    plane.kubectl("patch", RESOURCE, name, "--subresource=status", "--type=merge", "-p", json.dumps(patch))


def plugin(
    plane: ControlPlane,
    *arguments: str,
    directory: Path | None = None,
    environment: dict[str, str] | None = None,
) -> Done:
    """Run `kubectl modelchain ...`: kubectl itself finds and starts the plugin."""
    path = os.pathsep.join(
        (str(Path(sys.executable).parent), str(Path(binaries.kubectl()).parent), os.environ["PATH"])
    )
    own = {key: value for key, value in os.environ.items() if not key.startswith("AWS_")}
    own |= {"KUBECONFIG": str(plane.kubeconfig), "PATH": path, "AWS_EC2_METADATA_DISABLED": "true"}
    done = subprocess.run(
        [binaries.kubectl(), "modelchain", *arguments],
        capture_output=True,
        text=True,
        cwd=directory,
        env=own | (environment or {}),
        timeout=120,
        check=False,
    )
    return Done(done.returncode, done.stdout, done.stderr)


def test_a_cluster_without_the_crd_says_what_to_install(without_crd: Done) -> None:
    assert without_crd.code == 78
    assert "knows no ModelChains" in without_crd.error and "crds/" in without_crd.error


def test_explain_says_in_a_paragraph_how_the_chain_stands_and_what_it_waits_for(plane: ControlPlane) -> None:
    done = plugin(plane, "explain", "family")
    assert (done.code, done.err) == (0, "")
    (text,) = done.out.splitlines()
    assert "family: stage small is being trained, attempt 2, step 420 of 1560" in text
    unseen = plugin(plane, "explain", "fresh")
    assert (unseen.code, unseen.err) == (0, "")
    assert "No operator has looked at" in unseen.out
    assert plugin(plane, "explain", "famly").code == 66


def test_status_shows_each_stage_with_its_figures(plane: ControlPlane) -> None:
    done = plugin(plane, "status", "family")
    assert (done.code, done.err) == (0, "")
    headline, empty, *table = done.out.splitlines()
    assert headline == (
        "default/family: Running, stage small at 420/1560, 2h05m to go, top-1 28.1%, "
        "2.09x measured against training alone"
    )
    assert empty == ""
    assert [line.split() for line in table] == [
        ["STAGE", "PHASE", "ATTEMPT", "STEP", "SAMPLES/S", "LOSS", "TOP-1", "ETA"],
        ["tiny", "Complete", "1", "3120/3120", "-", "-", "28.1%", "-"],
        ["small", "Running", "2", "420/1560", "1,234", "2.346", "-", "40m"],
        ["base", "Pending", "-", "-", "-", "-", "-", "-"],
    ]


def test_status_as_json_is_the_status_of_the_resource(plane: ControlPlane) -> None:
    shown = json.loads(plugin(plane, "status", "family", "-o", "json").out)
    stored = json.loads(plane.kubectl("get", RESOURCE, "family", "-o", "json").stdout)
    assert shown == {
        "namespace": "default",
        "name": "family",
        "uid": stored["metadata"]["uid"],
        "generation": 1,
        "status": stored["status"],
    }


def test_status_without_a_name_lists_the_chains_of_the_namespace_or_of_all(plane: ControlPlane) -> None:
    here = plugin(plane, "status")
    assert [line.split()[:3] for line in here.out.splitlines()[:3]] == [
        ["NAME", "PHASE", "STAGE"],
        ["family", "Running", "small"],
        ["fresh", "Pending", "-"],
    ]
    assert "fresh: no operator has looked at it yet" in here.out
    everywhere = plugin(plane, "status", "-A")
    assert [line.split()[:2] for line in everywhere.out.splitlines()[1:4]] == [
        ["default", "family"],
        ["default", "fresh"],
        ["research", "survey"],
    ]
    names = [one["name"] for one in json.loads(plugin(plane, "status", "-A", "-o", "json").out)]
    assert names == ["family", "fresh", "survey"]


def test_the_namespace_may_stand_before_and_behind_the_command(plane: ControlPlane) -> None:
    before = plugin(plane, "-n", "research", "status", "survey")
    behind = plugin(plane, "status", "survey", "--namespace=research", "--context=test")
    assert before.code == 0 and before.out.startswith("research/survey: no status yet")
    assert behind == before


def test_an_edit_that_nobody_has_acted_on_is_told(plane: ControlPlane) -> None:
    plane.apply(document() | {"metadata": {"name": "edited"}})
    put_status(plane, "edited", ChainStatus(observed_generation=1))
    plane.kubectl("patch", RESOURCE, "edited", "--type=merge", "-p", '{"spec":{"suspend":true}}')
    assert "the last edit (generation 2) was not acted on yet (generation 1 was)" in (
        plugin(plane, "status", "edited").out
    )
    plane.kubectl("delete", RESOURCE, "edited")


def test_watching_shows_what_changes(plane: ControlPlane) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "modelchain", "status", "fresh", "-w", "-o", "json"],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "KUBECONFIG": str(plane.kubeconfig)},
    )
    try:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline()).get("status") is None
        put_status(plane, "fresh", ChainStatus(phase=ChainPhase.QUEUED))
        assert json.loads(process.stdout.readline())["status"]["phase"] == "Queued"
    finally:
        process.kill()
        process.wait()
        plane.kubectl("patch", RESOURCE, "fresh", "--subresource=status", "--type=json", "-p", REMOVE_STATUS)


REMOVE_STATUS = '[{"op":"remove","path":"/status"}]'


def test_the_plan_of_a_chain_is_that_of_its_file(plane: ControlPlane, tmp_path: Path) -> None:
    (tmp_path / "family.yaml").write_text(yaml.safe_dump(document()))
    of_file = plugin(plane, "plan", "family.yaml", "-o", "json", directory=tmp_path)
    of_chain = plugin(plane, "plan", "family", "-o", "json", directory=tmp_path)
    assert of_chain.code == 0 and json.loads(of_chain.out) == json.loads(of_file.out)
    assert [stage["digest"] for stage in json.loads(of_chain.out)["stages"]] == digests()


def test_a_file_goes_before_a_chain_of_its_name_unless_the_cluster_is_meant(
    plane: ControlPlane, tmp_path: Path
) -> None:
    (tmp_path / "family").write_text(yaml.safe_dump(document() | {"metadata": {"name": "of-the-file"}}))
    assert plugin(plane, "plan", "family", directory=tmp_path).out.startswith("default/of-the-file,")
    meant = plugin(plane, "plan", "family", "-n", "default", directory=tmp_path)
    assert meant.out.startswith("default/family,")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["status", "famly"], r"no chain is named famly in the current namespace; did you mean family\?"),
        (["status", "survey"], "there is one in research: add -n research"),
        (["logs", "xyz"], "there are: family, fresh"),
        (["status", "x", "-n", "nowhere"], "in namespace nowhere, which holds no chain"),
        (["plan", "famly"], "famly: there is no such file, and of the cluster: no chain is named famly"),
        (["report", "famly"], "famly: there is no such file, and of the cluster: no chain is named famly"),
    ],
)
def test_a_wrong_name_is_told_with_those_that_are_near(
    plane: ControlPlane, tmp_path: Path, arguments: list[str], says: str
) -> None:
    done = plugin(plane, *arguments, directory=tmp_path)
    assert done.code == 66
    assert re.search(says, done.error)


def test_whoever_may_not_read_chains_is_told_which_right_is_missing(
    plane: ControlPlane, tmp_path: Path
) -> None:
    token = plane.kubectl("create", "token", "default").stdout.strip()
    config = plane.kubeconfig_for(tmp_path / "config", token)
    done = plugin(plane, "status", "family", "--kubeconfig", str(config))
    assert done.code == 77
    assert 'cannot get resource "modelchains"' in done.error and "ask its administrator" in done.error


def test_credentials_that_the_cluster_does_not_know_are_told(plane: ControlPlane, tmp_path: Path) -> None:
    config = plane.kubeconfig_for(tmp_path / "config", "nobody")
    done = plugin(plane, "status", environment={"KUBECONFIG": str(config)})
    assert done.code == 77
    assert "does not accept your credentials" in done.error


def test_a_credential_plugin_may_talk_to_the_user(plane: ControlPlane, tmp_path: Path) -> None:
    config = json.loads(plane.kubeconfig.read_text())
    credential = {
        "apiVersion": "client.authentication.k8s.io/v1",
        "kind": "ExecCredential",
        "status": {"token": config["users"][0]["user"]["token"]},
    }
    log_in = tmp_path / "log-in"
    log_in.write_text(f"#!/bin/sh\necho open the login page >&2\necho '{json.dumps(credential)}'\n")
    log_in.chmod(0o755)
    config["users"][0]["user"] = {
        "exec": {
            "apiVersion": credential["apiVersion"],
            "command": str(log_in),
            "interactiveMode": "IfAvailable",
        }
    }
    (tmp_path / "config").write_text(json.dumps(config))
    done = plugin(plane, "status", "family", "--kubeconfig", str(tmp_path / "config"))
    assert done.code == 0 and done.out.startswith("default/family: Running")
    assert set(done.err.splitlines()) == {"open the login page"}


def test_a_wrong_context_and_a_missing_kubeconfig_are_told(plane: ControlPlane, tmp_path: Path) -> None:
    done = plugin(plane, "status", "--context", "moon")
    assert done.code == 78 and "moon" in done.error and "get-contexts" in done.error
    done = plugin(plane, "status", "--kubeconfig", str(tmp_path / "none"))
    assert done.code == 78 and "no such file" in done.error


def test_a_log_that_the_node_does_not_give_is_one_line_and_worth_another_try(plane: ControlPlane) -> None:
    uid = json.loads(plane.kubectl("get", RESOURCE, "family", "-o", "json").stdout)["metadata"]["uid"]
    nothing = plugin(plane, "logs", "family")
    assert nothing.code == 66 and "stage small: attempt 2 has no pod yet" in nothing.error
    labels = {
        cluster_labels.CHAIN_UID: uid,
        cluster_labels.STAGE: "small",
        cluster_labels.ATTEMPT: "2",
        "training.kubeflow.org/replica-type": "master",
    }
    container = {"name": cluster_labels.CONTAINER, "image": "trainer"}
    port = {"kubeletEndpoint": {"Port": 1}}
    address = {"addresses": [{"type": "InternalIP", "address": "127.0.0.1"}], "daemonEndpoints": port}
    plane.apply({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"}})
    plane.apply(
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "small-master-0", "namespace": "default", "labels": labels},
            "spec": {
                "nodeName": "n1",
                "containers": [container],
                "tolerations": [{"operator": "Exists"}],
            },
        }
    )
    patch = ("--subresource=status", "--type=merge", "-p")
    plane.kubectl("patch", "node", "n1", *patch, json.dumps({"status": address}))
    pending = plugin(plane, "logs", "family")
    assert pending.code == 1 and "pod small-master-0 has not started" in pending.error
    plane.kubectl("patch", "pod", "small-master-0", *patch, '{"status":{"phase":"Running"}}')
    for arguments in (["--tail", "5"], ["--all-pods"]):
        done = plugin(plane, "logs", "family", *arguments)
        assert done.code == 1
        assert "containerLogs/default/small-master-0/pytorch" in done.error
        assert "kubectl get nodes" in done.error
    wrong = plugin(plane, "logs", "family", "--since", "3 years")
    assert wrong.code == 1 and "--since" in wrong.error


def test_the_report_of_a_chain_takes_its_status_from_the_cluster_and_the_rest_from_the_store(
    plane: ControlPlane, tmp_path: Path
) -> None:
    made_up_chain.train(made_up_chain.resolved(made_up_chain.document(tmp_path / "store", stages=2)))
    in_cluster = json.loads(json.dumps(made_up_chain.document(tmp_path / "store", stages=3)))
    in_cluster["spec"]["store"]["uri"] = f"file://{tmp_path}/store"
    plane.apply(in_cluster)
    put_status(plane, "digits", ChainStatus(phase=ChainPhase.SUSPENDED))
    done = plugin(plane, "report", "digits", "--output", "out", directory=tmp_path)
    assert (done.code, done.out, done.err) == (0, "out/report.html\n", "")
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Suspended" in page
    assert [name for name in ("vit-t", "vit-s", "vit-m") if name not in page] == []


def test_a_store_that_refuses_the_users_own_credentials_is_told_as_that(
    plane: ControlPlane, tmp_path: Path
) -> None:
    source = json.loads(json.dumps(document()))
    source["metadata"]["name"] = "guarded"
    source["spec"]["store"]["secretRef"] = {"name": "s3-credentials"}
    plane.apply(source)
    empty = {name: str(tmp_path / "none") for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE")}
    done = plugin(plane, "report", "guarded", directory=tmp_path, environment=empty)
    assert done.code == 77
    assert "no usable credentials" in done.error
    assert "with your own credentials, not with those of the Secret s3-credentials" in done.error


def test_usage_and_help_name_the_plugin(plane: ControlPlane) -> None:
    assert plugin(plane, "logs", "--help").out.startswith("usage: kubectl modelchain logs")
    wrong = plugin(plane, "-n", "research", "models")
    assert wrong.code == 64
    assert wrong.err.endswith("for commands that look into a cluster; see kubectl modelchain --help\n")


def test_a_cluster_that_does_not_answer_is_worth_another_try(tmp_path: Path, plane: ControlPlane) -> None:
    config = tmp_path / "config"
    config.write_text(re.sub(r"https://127.0.0.1:\d+", "https://127.0.0.1:1", plane.kubeconfig.read_text()))
    done = plugin(plane, "status", "--kubeconfig", str(config))
    assert done.code == 1 and "the cluster does not answer" in done.error
