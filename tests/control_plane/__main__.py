"""`make cluster`: a control plane with an S3 server that stays until Ctrl-C, for trying the operator by hand."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, cast

import yaml

from modelchain.store import Credentials, open_store
from modelchain.yaml_reader import read_documents
from tests.control_plane.fixtures import install_modelchain
from tests.control_plane.plane import ControlPlane
from tests.control_plane.pods import PodRunner
from tests.seaweedfs import ACCESS_KEY, BUCKET, SECRET_KEY, SeaweedFS

SECRET_NAME = "s3"  # noqa: S105
EXAMPLES = Path(__file__).parents[2] / "examples"

HELP = """\
The control plane runs. Pods run as processes of this machine, with the trainer of this checkout; their logs are
in {pods}. In another terminal:

  export KUBECONFIG={kubeconfig}
  export AWS_ACCESS_KEY_ID={access_key} AWS_SECRET_ACCESS_KEY={secret_key}
  .venv/bin/python -m modelchain_operator --http-port 0 --default-image modelchain-trainer:dev --allowed-endpoint "http://127.0.0.1:*"

In a third one, with the same exports, train the quickstart chain, whose data are in the store already:

  kubectl apply -f {chain}
  kubectl get mc -w

Chains of your own name the store like this; put shards into s3://{bucket} with any S3 client:

  store: {{uri: "s3://{bucket}/chains", endpointUrl: "{endpoint}", secretRef: {{name: {secret}}}}}

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
            chain = _quickstart(folder, store)
            runner.start()
            text = instructions(
                pods=folder / "pods", kubeconfig=plane.kubeconfig, chain=chain, endpoint=store.endpoint_url
            )
            print(text, flush=True)
            signal.pause()
        except KeyboardInterrupt:
            return 0
        finally:
            runner.close()
            store.kill()
            plane.stop()
    return 0


def instructions(*, pods: Path, kubeconfig: Path, chain: Path, endpoint: str) -> str:
    """What to type in other terminals."""
    return HELP.format(
        pods=pods,
        kubeconfig=kubeconfig,
        access_key=ACCESS_KEY,
        secret_key=SECRET_KEY,
        chain=chain,
        bucket=BUCKET,
        endpoint=endpoint,
        secret=SECRET_NAME,
    )


def _quickstart(folder: Path, store: SeaweedFS) -> Path:
    """examples/digits.yaml with its data and its store in S3."""
    shards = folder / "digits"
    prepare = [sys.executable, str(EXAMPLES / "prepare_digits.py"), "--output", str(shards)]
    subprocess.run(prepare, check=True, stdout=subprocess.DEVNULL)
    data = open_store(store.access("data/digits"), credentials=Credentials(ACCESS_KEY, SECRET_KEY))
    for shard in shards.glob("*.tar"):
        data.put(shard.name, shard.read_bytes())
    (read,) = read_documents((EXAMPLES / "digits.yaml").read_text())
    document = cast("dict[str, Any]", read.value)
    spec = document["spec"]
    spec["store"] = {
        "uri": f"s3://{BUCKET}/chains",
        "endpointUrl": store.endpoint_url,
        "secretRef": {"name": SECRET_NAME},
    }
    for block in (spec["data"], *(one["data"] for one in spec["evaluation"])):
        block["shards"] = [f"s3://{BUCKET}/data/digits/{Path(shard).name}" for shard in block["shards"]]
    chain = folder / "digits.yaml"
    chain.write_text(yaml.safe_dump(document, sort_keys=False))
    return chain


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
