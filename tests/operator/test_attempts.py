"""What a person does about a stage that can't go on, and what the operator does by itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from modelchain.artifacts import MANIFEST
from modelchain_operator.kubernetes.labels import RETRAIN_MISSING_ANNOTATION
from tests.control_plane.plane import ControlPlane
from tests.control_plane.pods import PodRunner
from tests.operator.chains import ClusterChain
from tests.operator.operator_process import OperatorProcess
from tests.processes import wait_until
from tests.seaweedfs import SeaweedFS

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("control-plane")]

CHAIN_SECONDS = 300.0


def only_stage(chain: ClusterChain) -> None:
    """Leave the chain its first stage."""
    chain.document["spec"]["stages"] = chain.document["spec"]["stages"][:1]


def test_what_is_wrong_for_good_stops_with_the_trainers_words_and_an_edit_trains_only_what_it_changes(
    chain: ClusterChain, operator: OperatorProcess, pod_runner: PodRunner
) -> None:
    operator.start()
    data = chain.document["spec"]["data"]
    chain.apply(data={**data, "shards": ["s3://modelchain/data/nothing/{000..001}.tar"]})
    wait_until(lambda: chain.status().get("phase") == "Failed", "the chain has failed", pause=0.3)
    assert chain.condition("Failed")["status"] == "True"
    failed = chain.stage("tiny")
    assert "s3://modelchain/data/nothing/000.tar" in failed["message"], failed
    assert (failed["attempt"], failed["phase"]) == (1, "Failed"), "what is wrong for good is not tried again"
    assert chain.stage("small")["attempt"] == 0
    chain.wait_until_told(failed["message"])
    chain.wait_at_rest(3)

    chain.apply(data=data)
    chain.wait("Complete", seconds=CHAIN_SECONDS)
    tiny = chain.stage("tiny")
    stages = [dict(stage) for stage in chain.document["spec"]["stages"]]
    stages[1]["training"] = {"epochs": 3}
    chain.apply(stages=stages)
    wait_until(lambda: chain.status()["phase"] != "Complete", "small is to be trained", pause=0.2)
    chain.wait("Complete", seconds=CHAIN_SECONDS)
    assert chain.stage("tiny") == tiny, "its predecessor is what it was"
    assert chain.stage("small")["phase"] == "Complete"


def test_what_runs_of_a_chain_that_is_refused_now_is_looked_after_by_an_operator_that_never_knew_better(
    chain: ClusterChain, operator: OperatorProcess, pod_runner: PodRunner
) -> None:
    only_stage(chain)
    pod_runner.hold("*", "checkpoint-committed:1")
    operator.start()
    chain.apply()
    wait_until(lambda: len(chain.pods()) == 1, "its pod is made", pause=0.2)
    pod_runner.wait_for_held(chain.pods()[0]["metadata"]["name"])
    operator.kill()
    right = chain.document["spec"]["stages"]
    chain.apply(stages=[{"name": "tiny", "model": "no-such-model"}])
    operator.start()
    wait_until(lambda: chain.condition("Accepted").get("status") == "False", "it is refused", pause=0.3)
    assert (chain.status()["phase"], chain.stage("tiny")["phase"]) == ("Running", "Running")
    assert len(chain.pods()) == 1

    pod_runner.release()
    chain.apply(suspend=True)
    wait_until(lambda: not chain.pods(), "it is suspended", pause=0.3)
    wait_until(lambda: chain.status()["phase"] == "Refused", "nothing is said to run", pause=0.3)
    assert chain.stage("tiny")["lastEnded"]["reason"] == "Suspended"

    chain.apply(suspend=False, stages=right)
    chain.wait("Complete", seconds=CHAIN_SECONDS)
    assert chain.stage("tiny")["failures"] == 0


def test_a_job_that_waits_for_an_image_or_a_secret_is_made_anew_when_that_is_corrected(
    chain: ClusterChain,
    operator: OperatorProcess,
    pod_runner: PodRunner,
    control_plane: ControlPlane,
    tmp_path: Path,
) -> None:
    only_stage(chain)
    job = chain.document["spec"]["job"]
    nowhere = {"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "nowhere", "key": "key"}}}
    pod_runner.image_pull_error("modelchain-trainer:test")
    operator.start()
    template = {"spec": {"containers": [{"name": "pytorch", "env": [nowhere]}]}}
    chain.apply(image=None, job={**job, "podTemplate": template})
    wait_until(lambda: "Image" in chain.stage("tiny").get("reason", ""), "the image is missing", pause=0.3)
    operator.kill()

    image = "--default-image=modelchain-trainer:right"  # as after `helm upgrade`
    log = tmp_path / "upgraded.log"
    upgraded = OperatorProcess(control_plane.kubeconfig, chain.namespace, log, image)
    upgraded.start()
    try:
        wait_until(
            lambda: chain.stage("tiny").get("reason") == "CreateContainerConfigError",
            "the next job has the right image, and waits for the Secret",
            pause=0.3,
        )
        chain.apply(job=job)
        chain.wait("Complete", seconds=CHAIN_SECONDS)
    finally:
        upgraded.kill()
    tiny = chain.stage("tiny")
    assert (tiny["attempt"], tiny["failures"]) == (3, 0), tiny
    assert tiny["lastEnded"]["reason"] == "Superseded", tiny


def test_the_pod_of_an_attempt_that_failed_stays_for_its_log_until_the_next_one(
    chain: ClusterChain, operator: OperatorProcess, pod_runner: PodRunner
) -> None:
    only_stage(chain)
    retry = chain.document["spec"]["retry"]
    pod_runner.hold("*", "step:1")
    operator.start()
    chain.apply(retry={**retry, "backoffSeconds": 600})
    pod_runner.wait_for_held("*")
    (pod,) = chain.pods()
    pod_runner.kill(pod["metadata"]["name"])
    wait_until(lambda: chain.stage("tiny").get("reason") == "BackOff", "it has failed", pause=0.3)
    chain.wait_at_rest(3)
    (left,) = chain.pods()
    assert (left["metadata"]["uid"], left["status"]["phase"]) == (pod["metadata"]["uid"], "Failed")


def test_a_stage_that_hangs_is_replaced(
    chain: ClusterChain, operator: OperatorProcess, pod_runner: PodRunner
) -> None:
    only_stage(chain)
    chain.document["spec"]["job"] |= {"terminationGracePeriodSeconds": 5}
    pod_runner.hold("*", "checkpoint-committed:2")
    operator.start()
    chain.apply()
    pod_runner.wait_for_held("*")
    (pod,) = chain.pods()
    pod_runner.freeze(pod["metadata"]["name"])
    pod_runner.release()  # the next attempt does not hang
    retry = chain.document["spec"]["retry"]
    chain.apply(retry={**retry, "stallSeconds": 5})  # edits of what only watches disturb no job
    wait_until(lambda: chain.stage("tiny")["attempt"] == 2, "it is replaced", pause=0.3)
    chain.apply(retry=retry)  # a busy machine takes longer to start a trainer
    ended = chain.stage("tiny")["lastEnded"]
    assert (ended["reason"], ended["counted"]) == ("Stalled", True), ended
    chain.wait("Complete", seconds=CHAIN_SECONDS)
    assert chain.stage("tiny")["attempt"] == 2


def test_artifacts_that_vanish_are_missed_and_trained_again_only_when_that_is_asked_for(
    chain: ClusterChain, operator: OperatorProcess, pod_runner: PodRunner
) -> None:
    only_stage(chain)
    operator.start()
    chain.apply()
    chain.wait("Complete", seconds=CHAIN_SECONDS)
    (stage,) = chain.resolved().stages
    operator.terminate()
    chain.store.delete([f"{stage.folder}/{MANIFEST}"])
    operator.start()  # it looks at all that it has not seen yet
    chain.wait("ArtifactsMissing")
    message = chain.condition("ArtifactsMissing")["message"]
    assert "tiny" in message
    assert stage.folder in message
    chain.wait_at_rest(4)
    assert chain.stage("tiny")["attempt"] == 1
    annotation = f"{RETRAIN_MISSING_ANNOTATION}=true"
    chain.plane.kubectl("annotate", "modelchain", chain.name, "-n", chain.namespace, annotation)
    wait_until(lambda: chain.stage("tiny")["attempt"] == 2, "it is trained again", pause=0.3)
    chain.wait("Complete", seconds=CHAIN_SECONDS)
    assert chain.condition("ArtifactsMissing")["status"] == "False"


def test_a_job_that_a_queue_holds_is_queued(chain: ClusterChain, operator: OperatorProcess) -> None:
    operator.start()
    chain.apply()
    wait_until(lambda: len(chain.jobs()) == 1, "its first job is made", pause=0.2)
    (job,) = chain.jobs()

    def hold(suspended: bool) -> None:
        patch = {"spec": {"runPolicy": {"suspend": suspended}}}
        name = job["metadata"]["name"]
        chain.plane.kubectl(
            "patch", "pytorchjob", name, "-n", chain.namespace, "--type=merge", "-p", json.dumps(patch)
        )

    hold(True)
    chain.wait_for_phase("tiny", "Queued")
    assert chain.status()["phase"] == "Queued"
    assert chain.stage("tiny")["failures"] == 0
    hold(False)
    chain.wait_for_phase("tiny", "Pending", "Running")
    assert chain.stage("tiny")["attempt"] == 1


def test_without_pytorchjobs_a_chain_says_how_to_get_them_and_starts_when_they_are_there(
    new_plane: Callable[..., ControlPlane], seaweedfs: SeaweedFS, tmp_path: Path
) -> None:
    plane = new_plane(kubeflow=False)
    plane.kubectl("create", "namespace", "new")
    chain = ClusterChain(plane, seaweedfs, "new", tmp_path)
    operator = OperatorProcess(plane.kubeconfig, "new", tmp_path / "operator.log", "--resync-seconds=600")
    operator.start()
    try:
        chain.apply()
        wait_until(
            lambda: chain.condition("Progressing").get("reason") == "BackendUnavailable",
            "it says what it lacks",
            pause=0.3,
        )
        assert "install the Kubeflow training operator" in chain.condition("Progressing")["message"]
        chain.wait_at_rest(4)
        plane.install_kubeflow()
        wait_until(lambda: len(chain.jobs()) == 1, "its first job is made", pause=0.5)
    finally:
        operator.kill()
