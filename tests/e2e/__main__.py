"""Install the chart on the cluster of KUBECONFIG, train the quickstart chain on it in spite of all, and clean up.

Its namespaces enforce the `restricted` Pod Security level. The cluster must not have ModelChain yet, and needs the
Kubeflow training operator with an init container that passes (docs/operator.md, "Pod Security"), or E2E_BACKEND=Job.

  E2E_OPERATOR_IMAGE, E2E_TRAINER_IMAGE  the images, where the cluster finds them; default: those of `make images`
  E2E_BACKEND                            PyTorchJob (default) or Job
  E2E_STORE_URI, E2E_STORE_ENDPOINT      a store (s3://bucket/prefix) that pods and this machine reach, with its keys
                                         in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; default: SeaweedFS as a pod
  E2E_STORE_IMAGE                        image of that pod; it has `weed` in its path
  E2E_KEEP=1                             leave everything in the cluster
"""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from modelchain.errors import ExitCode, ModelChainError
from tests.e2e import diagnosis
from tests.e2e.chain import DATA, Chain, Deletion
from tests.e2e.cluster import apply, create_namespace, exists, helm, kubectl
from tests.e2e.release import CRD, Release, has_crd
from tests.e2e.settings import Failed, Settings, read_settings
from tests.e2e.store import S3, open_s3

PREPARE = Path(__file__).parents[2] / "examples" / "prepare_digits.py"
START = time.monotonic()


def main(arguments: list[str]) -> int:
    """Run it; 0 if everything held."""
    if arguments:
        print(__doc__)
        return ExitCode.OK if arguments[0] in ("-h", "--help") else ExitCode.USAGE
    try:
        settings = read_settings()
        check_cluster(settings)
        with removed_at_the_end(settings):
            run(settings)
    except (Failed, ModelChainError) as error:
        print(f"\nfailed: {error}", file=sys.stderr)
        return ExitCode.FAILURE
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
    say("everything held")
    return ExitCode.OK


def check_cluster(settings: Settings) -> None:
    """Raise Failed, before anything is made, where the run can't work or would do harm."""
    server = kubectl("version", timeout=30).splitlines()[-1]
    helm("version")
    if has_crd():
        raise Failed(
            f"the cluster has ModelChain already ({CRD}): a second release would train its chains as well. Take "
            f"another cluster, or, if an earlier run was interrupted and no chain is needed: kubectl delete crd {CRD}"
        )
    if settings.backend == "PyTorchJob" and not exists("crd", "pytorchjobs.kubeflow.org"):
        raise Failed(
            "the cluster has no PyTorchJob: install the Kubeflow training operator, or set E2E_BACKEND=Job"
        )
    say(f"cluster: {server}; jobs are {settings.backend}s")


@contextmanager
def removed_at_the_end(settings: Settings) -> Iterator[None]:
    """Take everything away again, and first show what there is if the run has failed."""
    try:
        yield
    except (Failed, ModelChainError):
        diagnosis.show(settings)
        raise
    finally:
        namespaces = (settings.namespace, settings.system_namespace)
        if settings.keep:
            say(f"E2E_KEEP is set: namespaces {' and '.join(namespaces)} and the CRD stay")
        else:
            for namespace in namespaces:  # the store last: trainers leave a checkpoint there before they end
                kubectl("delete", "namespace", namespace, "--ignore-not-found", timeout=300)
            kubectl("delete", "crd", CRD, "--ignore-not-found")
            cluster_wide = "clusterroles,clusterrolebindings"
            left = kubectl(
                "get", cluster_wide, "-l", f"app.kubernetes.io/instance={settings.release}", "-o", "name"
            )
            if names := left.split():
                kubectl("delete", *names)
            say("everything is removed")


def run(settings: Settings) -> None:
    """The run, from top to bottom."""
    for namespace in (settings.system_namespace, settings.namespace):
        create_namespace(namespace)
        say(f"namespace {namespace} enforces Pod Security restricted")
    with open_s3(settings) as s3:
        say(f"store: {s3.uri} at {s3.endpoint or 'AWS'}")
        prepare(s3, settings)
        release = Release(settings)
        release.install()
        say(f"helm install: {settings.operator_image} is ready; helm test passes")

        one = Chain(s3, settings.namespace, name="digits", nodes=1, backend=settings.backend)
        train_on_one_node(one)
        two = Chain(s3, settings.namespace, name="digits-on-two", nodes=2, backend=settings.backend)
        train_on_two_nodes(two, release)

        release.uninstall()
        if not has_crd():
            raise Failed(f"helm uninstall took the CRD away ({CRD}), and with it all chains")
        for chain in (one, two):
            chain.check_complete()
        say("helm uninstall: the CRD, both chains and all artifacts are still there")


def prepare(s3: S3, settings: Settings) -> None:
    """Put the shards of the quickstart into the store, and its keys into a Secret."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(PREPARE), "--output", folder]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode:
            raise Failed(f"{' '.join(command)}: {done.stderr.strip()}")
        shards = sorted(Path(folder).glob("*.tar"))
        s3.upload(shards, DATA)
    apply(s3.secret(settings.namespace))
    say(f"{len(shards)} shards are in {s3.within(DATA)}")


def train_on_one_node(chain: Chain) -> None:
    """A pod deleted with grace leaves a checkpoint where it was, one deleted without its last one."""
    chain.apply()
    say(f"{chain.name}: applied, with 1 pod a stage")
    finish(chain, [delete_pod(chain, "tiny", 0, grace=True), delete_pod(chain, "small", 0, grace=False)])


def train_on_two_nodes(chain: Chain, release: Release) -> None:
    """The same with the worker and the master; then the release is upgraded in mid-training."""
    chain.apply()
    say(f"{chain.name}: applied, with 2 pods a stage")
    deletions = [delete_pod(chain, "tiny", 1, grace=True), delete_pod(chain, "small", 0, grace=False)]
    chain.wait_for_step("base", 10)
    job = chain.job("base")
    release.upgrade({"log.level": "debug"})
    say(f"{chain.name}: helm upgrade while base is trained: another operator is ready")
    finish(chain, deletions)
    if chain.job("base") != job:
        raise Failed(f"helm upgrade disturbed stage base: its job was {job} and is {chain.job('base')}")
    say(f"{chain.name}: base was trained to its end by {job.name}, which was there before the upgrade")


def delete_pod(chain: Chain, stage: str, node: int, *, grace: bool) -> Deletion:
    """Delete a pod in mid-training, and tell what came of it."""
    deletion = chain.delete_pod(stage, node=node, grace=grace)
    how = "kubectl delete pod" if grace else "kubectl delete pod --force --grace-period=0"
    say(
        f"{chain.name}: {how} {deletion.pod}: attempt {deletion.attempt + 1} of {stage} begins, no failure counts"
    )
    return deletion


def finish(chain: Chain, deletions: list[Deletion]) -> None:
    """Wait for the chain's end, and see that it went on from the checkpoints."""
    chain.wait_complete()
    for deletion in deletions:
        chain.check_went_on(deletion)
        say(
            f"{chain.name}: {deletion.stage} went on from step {deletion.checkpoint} of attempt {deletion.attempt}"
        )
    accuracy = ", ".join(f"{stage} {top1:.1%}" for stage, top1 in chain.check_complete().items())
    say(f"{chain.name}: Complete; zero-shot accuracy: {accuracy}")


def say(text: str) -> None:
    """A line of the run's story."""
    print(f"[{time.monotonic() - START:4.0f}s] {text}", flush=True)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that it cleans up
    sys.exit(main(sys.argv[1:]))
