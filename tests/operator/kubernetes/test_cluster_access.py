"""Where the operator finds the cluster and its credentials: kubeconfigs as kubectl reads them, service accounts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from modelchain.errors import ConfigurationError
from modelchain_operator.kubernetes.cluster_access import ExecCommand, from_service_account, load_access


def kubeconfig(folder: Path, *contexts: str, current: str = "", user: dict[str, Any] | None = None) -> Path:
    """One with a cluster, a user and a context of each of these names."""
    folder.mkdir(exist_ok=True)
    document = {
        "clusters": [
            {
                "name": name,
                "cluster": {"server": f"https://{name}:6443", "certificate-authority": "pki/ca.crt"},
            }
            for name in contexts
        ],
        "users": [{"name": name, "user": user or {"token": f"token of {name}"}} for name in contexts],
        "contexts": [
            {"name": name, "context": {"cluster": name, "user": name, "namespace": f"ns-{name}"}}
            for name in contexts
        ],
        "current-context": current,
    }
    (folder / "config").write_text(yaml.safe_dump(document))
    return folder / "config"


def test_the_current_context_is_taken_unless_another_is_asked_for(tmp_path: Path) -> None:
    path = str(kubeconfig(tmp_path, "a", "b", current="a"))
    access = load_access(path, None)
    assert (access.server, access.token, access.namespace) == ("https://a:6443", "token of a", "ns-a")
    assert load_access(path, "b").server == "https://b:6443"


def test_paths_are_relative_to_their_kubeconfig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    user = {
        "tokenFile": "token",
        "client-certificate": "pki/me.crt",
        "client-key": "/absolute/me.key",
        "exec": {"command": "./log-in", "args": ["now"], "env": [{"name": "ROLE", "value": "reader"}]},
    }
    kubeconfig(tmp_path, "a", current="a", user=user)
    monkeypatch.chdir(tmp_path.parent)
    access = load_access(f"{tmp_path.name}/config", None)
    assert access.ca_path == str(tmp_path / "pki/ca.crt")
    assert access.token_file == str(tmp_path / "token")
    assert access.client_certificate_path == str(tmp_path / "pki/me.crt")
    assert access.client_key_path == "/absolute/me.key"
    assert access.token_command == ExecCommand((str(tmp_path / "log-in"), "now"), {"ROLE": "reader"})
    assert access.token_changes


def test_a_command_without_a_folder_is_looked_for_in_the_path(tmp_path: Path) -> None:
    access = load_access(str(kubeconfig(tmp_path, "a", current="a", user={"exec": {"command": "aws"}})), None)
    assert access.token_command == ExecCommand(("aws",), {})


def test_of_several_kubeconfigs_the_first_that_names_a_thing_counts(tmp_path: Path) -> None:
    first = kubeconfig(tmp_path / "first", "a", "b")
    second = kubeconfig(tmp_path / "second", "b", "c", current="c")
    environment = {"KUBECONFIG": f"{first}:{second}"}
    assert load_access(None, None, environment).server == "https://c:6443"
    assert load_access(None, "b", environment).ca_path == str(tmp_path / "first/pki/ca.crt")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "names no current-context"),
        ("current-context: x", "has no context 'x'"),
        ("current-context: x\ncontexts: [{name: x, context: {cluster: gone}}]", "'gone' is missing"),
        ("current-context: [", "config is not YAML: "),
        ("- a", "config is not a kubeconfig"),
    ],
    ids=["empty", "context", "cluster", "yaml", "list"],
)
def test_a_kubeconfig_that_leads_nowhere_says_why(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "config").write_text(text)
    with pytest.raises(ConfigurationError, match="set KUBECONFIG") as caught:
        load_access(str(tmp_path / "config"), None)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("host", "server"), [("10.0.0.1", "https://10.0.0.1:443"), ("fd00::1", "https://[fd00::1]:443")]
)
def test_a_pod_asks_its_own_cluster_as_its_service_account(tmp_path: Path, host: str, server: str) -> None:
    (tmp_path / "namespace").write_text("team\n")
    access = from_service_account(
        tmp_path, {"KUBERNETES_SERVICE_HOST": host, "KUBERNETES_SERVICE_PORT": "443"}
    )
    assert (access.server, access.namespace) == (server, "team")
    assert (access.token_file, access.ca_path) == (str(tmp_path / "token"), str(tmp_path / "ca.crt"))
    assert access.token_changes
