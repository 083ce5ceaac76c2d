"""Thousands of chains in a cluster within minutes: a few that the operator has brought there, and copies of them, whose
status is written through the API as the operator would write it.

Chains of the same seed have the same digests and share their artifacts, so the status of one is right for all of them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeAlias

from benchmarks.simulated_jobs import THREADS, Api
from modelchain.resolved import ResolvedStore
from tests.faults import document, model

Object: TypeAlias = dict[str, Any]

CHAINS = "/apis/modelchain.dev/v1alpha1"
STAGES = ("tiny", "small", "base")
SECRET = "s3"  # noqa: S105  a name
SUSPENDED_SEED = 10**6  # of chains that never train, and so have no artifacts


class Chains:
    """Makes chains of three stages, spread over namespaces."""

    def __init__(self, api: Api, access: ResolvedStore, namespaces: int) -> None:
        self._api = api
        self._access = access
        self._namespaces = namespaces
        self._made = 0

    def chain(
        self,
        name: str,
        *,
        seed: int = 0,
        suspend: bool = False,
        endpoint: str | None = None,
        namespace: str | None = None,
    ) -> Object:
        """A chain that is not created yet; in the next of the namespaces, unless one is named."""
        chain = document(self._access)
        spec = chain["spec"]
        spec["store"]["secretRef"] = {"name": SECRET}
        if endpoint is not None:
            spec["store"]["endpointUrl"] = endpoint
        spec["training"] |= {"epochs": 1000, "seed": seed}
        spec["retry"]["leaseSeconds"] = 120
        spec["suspend"] = suspend
        spec["stages"] = [
            {"name": stage, "modelConfig": model(16 * (number + 1), number + 1)}
            for number, stage in enumerate(STAGES)
        ]
        chain["metadata"] = {"name": name, "namespace": namespace or f"team-{self._made % self._namespaces}"}
        self._made += 1
        return chain

    def create(self, chains: Iterable[Object]) -> None:
        """Create them all."""
        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(self._create, chains))

    def status(self, chain: Object) -> Object:
        """What the operator has written about it so far."""
        path = f"{_path(chain)}/{chain['metadata']['name']}"
        return self._api.send("GET", path).get("status") or {}

    def copy(self, chains: Sequence[Object], status: Object) -> None:
        """Create them all, with this status. No operator may run meanwhile: it would be as fast as this."""
        text = json.dumps(status)

        def copy(chain: Object) -> None:
            created = self._create(chain)
            created["status"] = json.loads(text)
            self._api.send("PUT", f"{_path(chain)}/{chain['metadata']['name']}/status", created)

        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(copy, chains))

    def delete_all(self, namespace: str) -> None:
        """Delete the chains of a namespace."""
        self._api.send("DELETE", f"{CHAINS}/namespaces/{namespace}/modelchains")

    def _create(self, chain: Object) -> Object:
        return self._api.send("POST", _path(chain), chain)


def _path(chain: Object) -> str:
    return f"{CHAINS}/namespaces/{chain['metadata']['namespace']}/modelchains"
