"""An S3 store that both the pods and this process reach: one that exists, or SeaweedFS as a pod of the run."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import boto3.session
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from modelchain.resolved import ResolvedStore
from modelchain.store import Credentials, Store, open_store
from tests.e2e.cluster import Object, apply, port_forward, wait_for_deployment, wait_until
from tests.e2e.settings import Settings

SECRET_NAME = "s3"  # noqa: S105
NAME, PORT, BUCKET = "seaweedfs", 8333, "modelchain"
START_SECONDS = 300.0  # with the pull of its image


@dataclass(frozen=True)
class S3:
    """Where the run keeps its data and artifacts."""

    uri: str
    endpoint: str | None  # as pods reach it; None: AWS
    local_endpoint: str | None  # as this process reaches it
    keys: Credentials

    def open(self, folder: str = "") -> Store:
        """The store below a folder, for this process."""
        access = ResolvedStore(uri=self.within(folder), endpoint_url=self.local_endpoint)
        return open_store(access, credentials=self.keys)

    def within(self, folder: str) -> str:
        """The URI of a folder."""
        return f"{self.uri}/{folder}".rstrip("/")

    def upload(self, files: Iterable[Path], folder: str) -> None:
        """Put files into a folder."""
        store = self.open(folder)
        for file in files:
            store.put(file.name, file.read_bytes())

    def secret(self, namespace: str) -> Object:
        """The keys, as chains name them."""
        data = {
            "AWS_ACCESS_KEY_ID": self.keys.access_key_id,
            "AWS_SECRET_ACCESS_KEY": self.keys.secret_access_key,
        }
        if self.keys.session_token:
            data["AWS_SESSION_TOKEN"] = self.keys.session_token
        return _secret(namespace, SECRET_NAME, data)


@contextmanager
def open_s3(settings: Settings) -> Iterator[S3]:
    """The store of the run."""
    if settings.store_uri is None:
        with _seaweedfs(settings) as s3:
            yield s3
        return
    keys = Credentials(
        os.environ["AWS_ACCESS_KEY_ID"],
        os.environ["AWS_SECRET_ACCESS_KEY"],
        os.environ.get("AWS_SESSION_TOKEN"),
    )
    uri = f"{settings.store_uri}/e2e-{settings.run}"
    s3 = S3(uri, settings.store_endpoint, settings.store_endpoint, keys)
    try:
        yield s3
    finally:
        if not settings.keep:
            store = s3.open()
            store.delete([info.key for info in store.list("")])


@contextmanager
def _seaweedfs(settings: Settings) -> Iterator[S3]:
    namespace = settings.system_namespace
    keys = Credentials(secrets.token_hex(10), secrets.token_hex(20))
    apply(*_server(namespace, settings.store_image, keys))
    wait_for_deployment(NAME, namespace, seconds=START_SECONDS)
    with port_forward(namespace, f"service/{NAME}", PORT) as port:
        endpoint = f"http://127.0.0.1:{port}"
        wait_until(lambda: _make_bucket(endpoint, keys), "SeaweedFS has a bucket", seconds=60)
        yield S3(f"s3://{BUCKET}", f"http://{NAME}.{namespace}.svc:{PORT}", endpoint, keys)


def _make_bucket(endpoint: str, keys: Credentials) -> bool:
    session = boto3.session.Session(keys.access_key_id, keys.secret_access_key)
    config = Config(
        connect_timeout=5,
        read_timeout=10,
        retries={"total_max_attempts": 1},
        s3={"addressing_style": "path"},
    )
    client = session.client("s3", endpoint_url=endpoint, region_name="us-east-1", config=config)
    try:
        if BUCKET not in {bucket.get("Name") for bucket in client.list_buckets()["Buckets"]}:
            client.create_bucket(Bucket=BUCKET)
        client.put_object(Bucket=BUCKET, Key="started", Body=b"")
    except (BotoCoreError, ClientError):
        return False
    return True


def _server(namespace: str, image: str, keys: Credentials) -> list[Object]:
    labels = {"app.kubernetes.io/name": NAME}
    metadata = {"name": NAME, "namespace": namespace, "labels": labels}
    credentials = {"accessKey": keys.access_key_id, "secretKey": keys.secret_access_key}
    identity = {"name": "e2e", "credentials": [credentials], "actions": ["Admin", "Read", "Write", "List"]}
    service = {"selector": labels, "ports": [{"name": "s3", "port": PORT}]}
    return [
        _secret(namespace, NAME, {"s3.json": json.dumps({"identities": [identity]})}),
        {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": service},
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": metadata,
            "spec": {
                "selector": {"matchLabels": labels},
                "template": {"metadata": {"labels": labels}, "spec": _pod(image)},
            },
        },
    ]


def _pod(image: str) -> Object:
    options = {
        "dir": "/data",
        "ip": "127.0.0.1",
        "ip.bind": "0.0.0.0",  # noqa: S104  (within its pod)
        "master.peers": "none",  # one master: no election to wait for
        "master.telemetry": "false",
        "master.volumeSizeLimitMB": 64,
        "volume.max": 100,
        "filer": "true",
        "s3": "true",
        "s3.port": PORT,
        "s3.config": "/config/s3.json",
    }
    container = {
        "name": "weed",
        "image": image,
        "command": ["weed", "server", *(f"-{name}={value}" for name, value in options.items())],
        "workingDir": "/data",
        "ports": [{"containerPort": PORT}],
        "readinessProbe": {"tcpSocket": {"port": PORT}, "periodSeconds": 1, "failureThreshold": 60},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        },
        "volumeMounts": [
            {"name": "data", "mountPath": "/data"},
            {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108  (in its pod)
            {"name": "config", "mountPath": "/config", "readOnly": True},
        ],
    }
    return {
        "containers": [container],
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": 1000,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "volumes": [
            {"name": "data", "emptyDir": {}},
            {"name": "tmp", "emptyDir": {}},
            {"name": "config", "secret": {"secretName": NAME}},
        ],
    }


def _secret(namespace: str, name: str, data: dict[str, str]) -> Object:
    metadata = {"name": name, "namespace": namespace}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": data}
