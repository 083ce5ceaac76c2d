"""`make cluster`: a control plane with an S3 server that stays until Ctrl-C, for trying the operator by hand."""

from __future__ import annotations

import signal
import sys
import tempfile
from pathlib import Path

from tests.control_plane.fixtures import install_modelchain
from tests.control_plane.plane import ControlPlane
from tests.control_plane.pods import PodRunner
from tests.seaweedfs import ACCESS_KEY, BUCKET, SECRET_KEY, SeaweedFS

SECRET_NAME = "s3"  # noqa: S105

HELP = """\
The control plane runs. Pods run as processes of this machine, with the trainer of this checkout; their logs are
in {pods}. In another terminal:

  export KUBECONFIG={kubeconfig}
  export AWS_ACCESS_KEY_ID={access_key} AWS_SECRET_ACCESS_KEY={secret_key}
  .venv/bin/python -m modelchain_operator --http-port 0 --default-image modelchain-trainer:dev

In a third one, with the same exports: put shards into s3://{bucket}/... and apply a chain with

  store: {{uri: "s3://{bucket}/chains", endpointUrl: "{endpoint}", secretName: {secret}}}

  kubectl apply -f chain.yaml
  kubectl get mc -w

Ctrl-C ends everything.
"""


def main() -> int:
    """Start everything, say how to use it, wait."""
    with tempfile.TemporaryDirectory(prefix="modelchain-cluster-") as name:
        folder = Path(name)
        print(
            "starting etcd, kube-apiserver, kube-controller-manager, the training operator, SeaweedFS ...",
            flush=True,
        )
        plane, store = ControlPlane(folder / "plane"), SeaweedFS(folder / "seaweedfs")
        runner = PodRunner(plane, folder / "pods")
        try:
            plane.start()
            install_modelchain(plane)
            store.start()
            _make_secret(plane)
            runner.start()
            print(
                HELP.format(
                    pods=folder / "pods",
                    kubeconfig=plane.kubeconfig,
                    access_key=ACCESS_KEY,
                    secret_key=SECRET_KEY,
                    bucket=BUCKET,
                    endpoint=store.endpoint_url,
                    secret=SECRET_NAME,
                ),
                flush=True,
            )
            signal.pause()
        except KeyboardInterrupt:
            return 0
        finally:
            runner.close()
            store.kill()
            plane.stop()
    return 0


def _make_secret(plane: ControlPlane) -> None:
    keys = {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY}
    plane.apply(
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": SECRET_NAME, "namespace": "default"},
            "stringData": keys,
        }
    )


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main())
