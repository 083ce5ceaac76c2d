"""How to reach the cluster: by the pod's service account, or a kubeconfig. For kopf's watches and the other requests.

kopf's own logins support neither `exec` commands nor token files of a kubeconfig, and no other context than the current
one.
https://kubernetes.io/docs/concepts/configuration/organize-cluster-access-kubeconfig/
https://kubernetes.io/docs/tasks/run-application/access-api-from-pod/
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from modelchain.errors import ConfigurationError
from modelchain.proxies import proxy_for
from modelchain.text import one_line

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
DEFAULT_KUBECONFIG = "~/.kube/config"


@dataclass(frozen=True)
class ExecCommand:
    """A command that prints a token. https://kubernetes.io/docs/reference/config-api/client-authentication.v1/"""

    command: tuple[str, ...]
    environment: Mapping[str, str]


@dataclass(frozen=True)
class ClusterAccess:
    """A cluster, and the user's credentials for it. Paths are absolute."""

    server: str
    ca_path: str | None = None
    ca_data: str | None = None  # base64 of PEM, as the next two
    client_certificate_path: str | None = None
    client_certificate_data: str | None = None
    client_key_path: str | None = None
    client_key_data: str | None = None
    insecure: bool = False
    username: str | None = None
    password: str | None = None
    token: str | None = None
    token_file: str | None = None  # read again regularly; takes precedence over `token`
    token_command: ExecCommand | None = None  # used without a token
    namespace: str | None = None

    @property
    def token_changes(self) -> bool:
        """Whether a refused token may have been replaced."""
        return self.token_file is not None or self.token_command is not None


def load_access(
    kubeconfig: str | None, context: str | None, environment: Mapping[str, str] | None = None
) -> ClusterAccess:
    """Access from that kubeconfig; without one from the pod's service account, else from KUBECONFIG, else from
    ~/.kube/config. Raises ConfigurationError, also where the proxy on the way to it can be none.
    """
    environment = os.environ if environment is None else environment
    try:
        if not kubeconfig and (SERVICE_ACCOUNT / "token").exists():
            access = from_service_account(SERVICE_ACCOUNT, environment)
        else:
            paths = (kubeconfig or environment.get("KUBECONFIG") or DEFAULT_KUBECONFIG).split(os.pathsep)
            access = from_kubeconfigs([Path(path).expanduser() for path in paths if path], context)
        proxy_for(access.server)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        text = f"{error.args[0]!r} is missing in it" if isinstance(error, KeyError) else str(error)
        raise ConfigurationError(
            f"no way to a Kubernetes cluster: {text}; set KUBECONFIG, or run in a pod with a service account"
        ) from None
    return access


def from_service_account(folder: Path, environment: Mapping[str, str]) -> ClusterAccess:
    """Access by the service account of this pod. Raises KeyError, OSError."""
    namespace = folder / "namespace"
    return ClusterAccess(
        server=service_url(environment),
        ca_path=str(folder / "ca.crt"),
        token_file=str(folder / "token"),
        namespace=namespace.read_text().strip() if namespace.exists() else None,
    )


def service_url(environment: Mapping[str, str]) -> str:
    """The API server of the cluster in which this pod runs. Raises KeyError outside of one."""
    host, port = environment["KUBERNETES_SERVICE_HOST"], environment["KUBERNETES_SERVICE_PORT"]
    return f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"


def from_kubeconfigs(paths: list[Path], context: str | None = None) -> ClusterAccess:
    """Access by kubeconfigs: the first file that has an entry counts, as with kubectl. Raises ValueError, KeyError,
    OSError.
    """
    current = context
    found: dict[str, dict[str, tuple[Any, Path]]] = {"clusters": {}, "users": {}, "contexts": {}}
    for path in paths:
        document = _read(path)
        current = current or document.get("current-context")
        for kind, known in found.items():
            for item in document.get(kind) or ():
                known.setdefault(item["name"], (item.get(kind.removesuffix("s")) or {}, path.parent))
    names = ", ".join(map(str, paths))
    if not current:
        raise ValueError(f"{names} names no current-context")
    if current not in found["contexts"]:
        raise ValueError(f"{names} has no context {current!r}")
    chosen, _ = found["contexts"][current]
    cluster, cluster_folder = found["clusters"][chosen["cluster"]]
    user, user_folder = found["users"].get(chosen.get("user", ""), ({}, Path()))
    return ClusterAccess(
        server=cluster["server"],
        ca_path=_absolute(cluster_folder, cluster.get("certificate-authority")),
        ca_data=cluster.get("certificate-authority-data"),
        client_certificate_path=_absolute(user_folder, user.get("client-certificate")),
        client_certificate_data=user.get("client-certificate-data"),
        client_key_path=_absolute(user_folder, user.get("client-key")),
        client_key_data=user.get("client-key-data"),
        insecure=bool(cluster.get("insecure-skip-tls-verify")),
        username=user.get("username"),
        password=user.get("password"),
        token=user.get("token"),
        token_file=_absolute(user_folder, user.get("tokenFile")),
        token_command=_command(user_folder, user.get("exec")),
        namespace=chosen.get("namespace"),
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        document = yaml.safe_load(path.read_text()) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {one_line(str(error))}") from None
    if not isinstance(document, dict):
        raise ValueError(f"{path} is not a kubeconfig")
    return document


def _absolute(folder: Path, path: str | None) -> str | None:
    return str(folder.absolute() / path) if path else None


def _command(folder: Path, described: Mapping[str, Any] | None) -> ExecCommand | None:
    if not described:
        return None
    program = described["command"]
    if "/" in program:  # a bare name is looked for in PATH
        program = str(folder.absolute() / program)
    environment = {one["name"]: one["value"] for one in described.get("env") or ()}
    return ExecCommand((program, *(described.get("args") or ())), environment)
