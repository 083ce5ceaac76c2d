"""What a run is told by its environment."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from modelchain import __version__

OPERATOR_IMAGE = f"ghcr.io/modelchain/modelchain-operator:{__version__}"
TRAINER_IMAGE = f"ghcr.io/modelchain/modelchain-trainer:{__version__}"
STORE_IMAGE = "docker.io/chrislusf/seaweedfs:4.48"
BACKENDS = ("PyTorchJob", "Job")


class Failed(Exception):  # noqa: N818  (what a run ends with, not a mistake of the program)
    """A step of the run has failed. The message says what was wrong, and where to look."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    operator_image: str
    trainer_image: str
    store_image: str  # of the S3 server that the run starts, unless it is given a store
    store_uri: str | None  # s3://bucket/prefix
    store_endpoint: str | None
    backend: str
    keep: bool  # leave everything in the cluster
    run: str  # tells this run's namespaces from those of another one

    @property
    def system_namespace(self) -> str:
        """Where the release and the S3 server are."""
        return f"modelchain-e2e-{self.run}-system"

    @property
    def release(self) -> str:
        """Its name, which the chart's cluster-wide objects carry."""
        return f"modelchain-e2e-{self.run}"

    @property
    def namespace(self) -> str:
        """Where the chains are."""
        return f"modelchain-e2e-{self.run}"


def read_settings(environment: Mapping[str, str] | None = None) -> Settings:
    """Settings from the environment. Raises Failed."""
    environment = os.environ if environment is None else environment
    uri = environment.get("E2E_STORE_URI") or None
    endpoint = environment.get("E2E_STORE_ENDPOINT") or None
    if uri and (not uri.startswith("s3://") or not urlsplit(uri).netloc):
        raise Failed(f"E2E_STORE_URI: {uri!r} is no place in S3; write s3://bucket or s3://bucket/prefix")
    if endpoint and not uri:
        raise Failed("E2E_STORE_ENDPOINT names a server but no bucket: set E2E_STORE_URI=s3://bucket as well")
    keys = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    if uri and (missing := [key for key in keys if not environment.get(key)]):
        raise Failed(f"{' and '.join(missing)} must be set: the keys of the store {uri}")
    backend = environment.get("E2E_BACKEND") or BACKENDS[0]
    if backend not in BACKENDS:
        raise Failed(f"E2E_BACKEND: {backend!r} is none of {', '.join(BACKENDS)}")
    return Settings(
        operator_image=environment.get("E2E_OPERATOR_IMAGE") or OPERATOR_IMAGE,
        trainer_image=environment.get("E2E_TRAINER_IMAGE") or TRAINER_IMAGE,
        store_image=environment.get("E2E_STORE_IMAGE") or STORE_IMAGE,
        store_uri=uri.rstrip("/") if uri else None,
        store_endpoint=endpoint.rstrip("/") if endpoint else None,
        backend=backend,
        keep=environment.get("E2E_KEEP", "") not in ("", "0"),
        run=secrets.token_hex(3),
    )
