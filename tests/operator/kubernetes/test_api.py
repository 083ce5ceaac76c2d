"""The operator's requests, against a real API server."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from modelchain.errors import ConfigurationError
from modelchain_operator.kubernetes import api as kubernetes_api
from modelchain_operator.kubernetes.api import (
    PAGE,
    Conflict,
    Forbidden,
    Invalid,
    KubernetesApi,
    NotServed,
    Object,
    Unavailable,
    load_config,
)
from modelchain_operator.kubernetes.kinds import CHAIN, CONFIG_MAP, JOB, POD, Kind
from tests.control_plane.plane import ControlPlane, free_ports

pytestmark = pytest.mark.xdist_group("control-plane")

NOT_INSTALLED = Kind("absent.example.com/v1", "Absent", "absents")


def chain(namespace: str, name: str = "family") -> Object:
    return {
        "apiVersion": CHAIN.api_version,
        "kind": CHAIN.kind,
        "metadata": {"namespace": namespace, "name": name},
        "spec": {
            "store": {"uri": "s3://bucket/prefix", "secretRef": {"name": "s3"}},
            "data": {"shards": ["s3://bucket/{00..03}.tar"], "samples": 1000},
            "training": {"epochs": 1, "globalBatchSize": 10},
            "stages": [{"name": "s", "model": "ViT-S-16"}],
        },
    }


def with_api(plane: ControlPlane, scenario: Callable[[KubernetesApi], Awaitable[None]]) -> None:
    """Run a scenario with a connection of its own."""

    async def run() -> None:
        api = KubernetesApi(load_config(str(plane.kubeconfig), None))
        try:
            await scenario(api)
        finally:
            await api.close()

    asyncio.run(run())


def test_what_the_api_server_warns_of_is_logged_once(
    control_plane: ControlPlane, namespace: str, caplog: pytest.LogCaptureFixture
) -> None:
    control_plane.restrict_pods(namespace, "warn")

    async def scenario(api: KubernetesApi) -> None:
        for name in ("one", "two"):
            await api.create(JOB, unrestricted_job(namespace, name, "main"), dry_run=True)

    with_api(control_plane, scenario)
    (warned,) = [text for text in caplog.messages if "the API server warns" in text]
    assert warned.startswith(f"create Job {namespace}/one: the API server warns: would violate PodSecurity")
    assert '(container "main" must set' in warned, "quotes are quotes"


def test_that_the_api_server_warns_of_too_much_to_log_is_said_once(
    control_plane: ControlPlane,
    namespace: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(kubernetes_api, "MAX_WARNINGS", 2)
    control_plane.restrict_pods(namespace, "warn")

    async def scenario(api: KubernetesApi) -> None:
        for container in ("one", "two", "three", "two", "four"):  # each in a warning of its own
            await api.create(JOB, unrestricted_job(namespace, "any", container), dry_run=True)

    with_api(control_plane, scenario)
    told = [text for text in caplog.messages if "the API server warns" in text]
    assert ['"one"' in told[0], '"two"' in told[1]] == [True, True]
    assert told[2:] == ["the API server warns of ever more: after 2 texts, no other is logged"]


def unrestricted_job(namespace: str, name: str, container: str) -> Object:
    """A Job whose pod Pod Security's level `restricted` does not allow."""
    pod = {"restartPolicy": "Never", "containers": [{"name": container, "image": "any"}]}
    metadata = {"namespace": namespace, "name": name}
    return {
        "apiVersion": JOB.api_version,
        "kind": JOB.kind,
        "metadata": metadata,
        "spec": {"template": {"spec": pod}},
    }


def test_a_status_is_written_only_over_the_state_that_was_read(
    control_plane: ControlPlane, namespace: str
) -> None:
    async def scenario(api: KubernetesApi) -> None:
        made = await api.create(CHAIN, chain(namespace))
        written = await api.write_status(made, {"phase": "Pending"})
        assert written["status"] == {"phase": "Pending"}
        assert written["metadata"]["generation"] == made["metadata"]["generation"]
        with pytest.raises(Conflict, match=f"update the status of ModelChain {namespace}/family"):
            await api.write_status(made, {"phase": "Failed"})
        live = await api.get_chain(namespace, "family")
        assert live is not None
        assert live["status"] == {"phase": "Pending"}

    with_api(control_plane, scenario)


def test_the_api_server_tells_where_it_is_reached(control_plane: ControlPlane) -> None:
    async def scenario(api: KubernetesApi) -> None:
        assert [f"https://{address}" for address in await api.own_addresses()] == [control_plane.url]

    with_api(control_plane, scenario)


def test_a_status_write_leaves_the_spec_alone(control_plane: ControlPlane, namespace: str) -> None:
    async def scenario(api: KubernetesApi) -> None:
        made = await api.create(CHAIN, chain(namespace))
        changed = {**made, "spec": {**made["spec"], "suspend": True}}
        written = await api.write_status(changed, {"phase": "Pending"})
        assert written["spec"] == made["spec"]

    with_api(control_plane, scenario)


def test_a_chain_that_is_gone_takes_no_status(control_plane: ControlPlane, namespace: str) -> None:
    async def scenario(api: KubernetesApi) -> None:
        made = await api.create(CHAIN, chain(namespace))
        await api.delete(CHAIN, namespace, "family", made["metadata"]["uid"])
        assert await api.get_chain(namespace, "family") is None
        with pytest.raises(Conflict):
            await api.write_status(made, {"phase": "Pending"})

    with_api(control_plane, scenario)


def test_only_the_object_that_was_meant_is_deleted(control_plane: ControlPlane, namespace: str) -> None:
    async def scenario(api: KubernetesApi) -> None:
        made = await api.create(CHAIN, chain(namespace))
        await api.delete(CHAIN, namespace, "family", "another-uid")
        assert await api.get_chain(namespace, "family") is not None
        await api.delete(CHAIN, namespace, "family", made["metadata"]["uid"])
        await api.delete(CHAIN, namespace, "family", made["metadata"]["uid"])
        assert await api.get_chain(namespace, "family") is None

    with_api(control_plane, scenario)


def test_what_exists_already_is_a_conflict(control_plane: ControlPlane, namespace: str) -> None:
    async def scenario(api: KubernetesApi) -> None:
        await api.create(CHAIN, chain(namespace))
        with pytest.raises(Conflict, match="already exists"):
            await api.create(CHAIN, chain(namespace))

    with_api(control_plane, scenario)


def test_a_dry_run_makes_nothing(control_plane: ControlPlane, namespace: str) -> None:
    async def scenario(api: KubernetesApi) -> None:
        await api.create(CHAIN, chain(namespace), dry_run=True)
        assert await api.get_chain(namespace, "family") is None

    with_api(control_plane, scenario)


def test_what_the_schema_refuses_is_invalid_and_names_the_field(
    control_plane: ControlPlane, namespace: str
) -> None:
    async def scenario(api: KubernetesApi) -> None:
        wrong = chain(namespace)
        wrong["spec"]["training"]["epochs"] = -1
        with pytest.raises(Invalid, match=r"spec\.training\.epochs"):
            await api.create(CHAIN, wrong)

    with_api(control_plane, scenario)


def test_a_kind_that_is_not_installed_is_told_from_an_empty_one(
    control_plane: ControlPlane, namespace: str
) -> None:
    async def scenario(api: KubernetesApi) -> None:
        with pytest.raises(NotServed, match=r"absent\.example\.com/v1 Absent"):
            await api.list_labelled(NOT_INSTALLED, namespace, None)
        assert await api.list_pods(namespace, "no-such-chain") == []
        with pytest.raises(Forbidden, match="namespace no-such-namespace is gone"):
            await api.create(CHAIN, chain("no-such-namespace"))

    with_api(control_plane, scenario)


def test_a_kind_that_is_not_installed_is_told_with_rights_in_one_namespace_only(
    control_plane: ControlPlane, namespace: str, tmp_path: Path
) -> None:
    role = {"name": "operator", "namespace": namespace}
    group = "rbac.authorization.k8s.io"
    control_plane.apply(
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": role},
        {
            "apiVersion": f"{group}/v1",
            "kind": "Role",
            "metadata": role,
            "rules": [{"apiGroups": ["absent.example.com"], "resources": ["absents"], "verbs": ["list"]}],
        },
        {
            "apiVersion": f"{group}/v1",
            "kind": "RoleBinding",
            "metadata": role,
            "roleRef": {"apiGroup": group, "kind": "Role", "name": "operator"},
            "subjects": [{"kind": "ServiceAccount", **role}],
        },
    )
    token = control_plane.kubectl("create", "token", "operator", "-n", namespace).stdout.strip()
    kubeconfig = control_plane.kubeconfig_for(tmp_path / "kubeconfig", token)

    async def run() -> None:
        api = KubernetesApi(load_config(str(kubeconfig), None))
        try:
            with pytest.raises(NotServed, match=r"absent\.example\.com/v1 Absent"):
                await api.list_labelled(NOT_INSTALLED, namespace, None)
        finally:
            await api.close()

    asyncio.run(run())


def test_a_listing_goes_over_all_its_pages(control_plane: ControlPlane, namespace: str) -> None:
    names = {f"map-{number:03d}" for number in range(PAGE + 20)}

    async def scenario(api: KubernetesApi) -> None:
        maps: list[Object] = [
            {
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "metadata": {
                    "namespace": namespace,
                    "name": name,
                    "labels": {"modelchain.dev/chain-uid": "u1"},
                },
            }
            for name in names
        ]
        await asyncio.gather(*(api.create(CONFIG_MAP, one) for one in maps))
        listed = await api.list_labelled(CONFIG_MAP, namespace, "u1")
        assert {one["metadata"]["name"] for one in listed} == names
        assert {one["kind"] for one in listed} == {"ConfigMap"}
        assert names <= {one.name for one in await api.list_versions(CONFIG_MAP, namespace)}
        assert await api.list_labelled(CONFIG_MAP, namespace, "u2") == []

    with_api(control_plane, scenario)


def test_somebody_without_rights_is_refused(
    control_plane: ControlPlane, namespace: str, tmp_path: Path
) -> None:
    token = control_plane.kubectl("create", "token", "default", "-n", namespace).stdout.strip()
    kubeconfig = control_plane.kubeconfig_for(tmp_path / "config", token)

    async def scenario() -> None:
        api = KubernetesApi(load_config(str(kubeconfig), None))
        with pytest.raises(Forbidden, match=f"system:serviceaccount:{namespace}:default") as caught:
            await api.get_secret(namespace, "any")
        assert token not in str(caught.value)
        await api.close()

    asyncio.run(scenario())


def test_a_server_that_is_away_is_unavailable(
    control_plane: ControlPlane, namespace: str, tmp_path: Path
) -> None:
    (port,) = free_ports(1)
    text = control_plane.kubeconfig.read_text().replace(control_plane.url, f"https://127.0.0.1:{port}")
    (tmp_path / "config").write_text(text)

    async def scenario() -> None:
        api = KubernetesApi(load_config(str(tmp_path / "config"), None))
        with pytest.raises(Unavailable, match="list pods"):
            await api.list_labelled(POD, None, None)
        await api.close()

    asyncio.run(scenario())


def test_without_a_kubeconfig_it_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="set KUBECONFIG"):
        load_config(str(tmp_path / "absent"), None)
