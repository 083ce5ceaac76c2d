"""What was asked of an API server, by its audit log: https://kubernetes.io/docs/tasks/debug/debug-cluster/audit/"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

POLICY = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "rules": [
        {"level": "Metadata", "userGroups": ["system:serviceaccounts"]},
        {"level": "None"},
    ],
}


class Right(NamedTuple):
    """A verb on a kind of resource."""

    group: str
    resource: str  # with its subresource: pods/log
    verb: str


@dataclass(frozen=True)
class Asked:
    """One request."""

    right: Right
    namespace: str  # empty: all, or of the cluster
    name: str
    allowed: bool


@dataclass(frozen=True)
class AuditLog:
    path: Path

    def asked_by(self, account: str, namespace: str) -> Iterator[Asked]:
        """What a service account has asked of resources, oldest first."""
        user = f"system:serviceaccount:{namespace}:{account}"
        whole, _, _ = self.path.read_text().rpartition("\n")  # the last line may just be written
        for line in whole.splitlines():
            event: dict[str, Any] = json.loads(line)
            about = event.get("objectRef")
            if event["user"]["username"] != user or about is None or event["stage"] == "Panic":
                continue
            resource = "/".join(part for part in (about["resource"], about.get("subresource")) if part)
            yield Asked(
                right=Right(about.get("apiGroup", ""), resource, event["verb"]),
                namespace=about.get("namespace", ""),
                name=about.get("name", ""),
                allowed=event.get("annotations", {}).get("authorization.k8s.io/decision") == "allow",
            )


def granted(rules: Iterable[dict[str, Any]]) -> set[Right]:
    """Every single right that rules of a Role give."""
    return {
        Right(group, resource, verb)
        for rule in rules
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
