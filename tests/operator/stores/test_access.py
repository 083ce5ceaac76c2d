"""Whose rights may read which store; and that no secret ever shows."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import logging
import socket
import ssl
import tempfile
import threading
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from pydantic.alias_generators import to_camel

from modelchain.errors import ConfigurationError, ModelChainError, UserDataError
from modelchain.reconcile.observation import StoreProblem
from modelchain.resolved import ResolvedChain
from modelchain.spec import StoreSpec
from modelchain.store import Credentials, Forbidden, Store, StoreUnavailable
from modelchain.store.s3_clients import SharedClients
from modelchain_operator.kubernetes.api import ApiError, Object, Unavailable
from modelchain_operator.kubernetes.api import Forbidden as ApiForbidden
from modelchain_operator.settings import read_settings
from modelchain_operator.stores import access as store_access
from modelchain_operator.stores.access import EndpointRefused, NoAccess, StoreAccess
from tests.modelchain.reconcile.chains import chain
from tests.modelchain.store.odd_server import Answer, make_certificate, serve
from tests.operator.stores.flaky_store import run
from tests.seaweedfs import ACCESS_KEY, BUCKET, SECRET_KEY, SeaweedFS

CANARY = "canary-7c1f-must-not-show"
KEYS = {"AWS_ACCESS_KEY_ID": f"id-{CANARY}", "AWS_SECRET_ACCESS_KEY": f"secret-{CANARY}"}
CHAIN = chain((("tiny", None),))

CERTIFICATE = """-----BEGIN CERTIFICATE-----
MIIBtjCCAVugAwIBAgITBmyf1XSXNmY/Owua2eiedgPySjAKBggqhkjOPQQDAjA5
MQswCQYDVQQGEwJVUzEPMA0GA1UEChMGQW1hem9uMRkwFwYDVQQDExBBbWF6b24g
Um9vdCBDQSAzMB4XDTE1MDUyNjAwMDAwMFoXDTQwMDUyNjAwMDAwMFowOTELMAkG
A1UEBhMCVVMxDzANBgNVBAoTBkFtYXpvbjEZMBcGA1UEAxMQQW1hem9uIFJvb3Qg
Q0EgMzBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABCmXp8ZBf8ANm+gBG1bG8lKl
ui2yEujSLtf6ycXYqm0fc4E7O5hrOXwzpcVOho6AF2hiRVd9RFgdszflZwjrZt6j
QjBAMA8GA1UdEwEB/wQFMAMBAf8wDgYDVR0PAQH/BAQDAgGGMB0GA1UdDgQWBBSr
ttvXBp43rDCGB5Fwx5zEGbF4wDAKBggqhkjOPQQDAgNJADBGAiEA4IWSoxe3jfkr
BqWTrBqYaGFy+uGh0PsceGCmQ5nFuMQCIQCcAu/xlJyzlvnrxir4tiz+OpAUFteM
YyRIHN8wfdVoOw==
-----END CERTIFICATE-----
"""


class Cluster:
    """The Secrets and ConfigMaps of a cluster, at the API's rim."""

    def __init__(self) -> None:
        self.objects: dict[tuple[str, str, str], Object] = {}
        self.error: ApiError | None = None
        self.asked: Counter[str] = Counter()
        self.addresses: list[str] = []  # of its API server, as that tells them

    def secret(self, values: dict[str, str], name: str = "keys", namespace: str = "default") -> None:
        data = {key: base64.b64encode(value.encode()).decode() for key, value in values.items()}
        self.objects["Secret", namespace, name] = {"data": data}

    async def get_secret(self, namespace: str, name: str) -> Object | None:
        return self._find("Secret", namespace, name)

    async def get_config_map(self, namespace: str, name: str) -> Object | None:
        return self._find("ConfigMap", namespace, name)

    async def own_addresses(self) -> list[str]:
        self.asked["addresses"] += 1
        if self.error is not None:
            raise self.error
        return self.addresses

    def _find(self, kind: str, namespace: str, name: str) -> Object | None:
        self.asked[kind] += 1
        if self.error is not None:
            raise self.error
        return self.objects.get((kind, namespace, name))


@pytest.fixture
def cluster() -> Cluster:
    cluster = Cluster()
    cluster.secret(KEYS)
    return cluster


def spec(**fields: Any) -> StoreSpec:
    return StoreSpec.model_validate(
        {"uri": "s3://models/a", "endpointUrl": "http://minio.example:9000"} | camel_cased(fields)
    )


def camel_cased(fields: dict[str, Any]) -> dict[str, Any]:
    return {to_camel(name): value for name, value in fields.items()}


def resolved(store: StoreSpec) -> ResolvedChain:
    access = CHAIN.store.model_copy(
        update={"uri": store.uri, "endpoint_url": store.endpoint_url, "ca_bundle": "/etc/passwd"}
    )
    return CHAIN.model_copy(update={"store": access})


# What the tests' S3 server needs, which is on this machine.
HERE = (
    "--allowed-endpoint",
    "http://127.0.0.1:*",
    "--allowed-endpoint",
    "https://127.0.0.1:*",
    "--allowed-endpoint",
    "https://localhost:*",
)


def accessing(cluster: Cluster, *flags: str, **options: Any) -> StoreAccess:
    anywhere = () if "--allowed-endpoint" in flags else ("--allowed-endpoint", "*")
    settings = read_settings([*flags, *anywhere], {})
    options.setdefault("resolve_host", lambda _: ["10.0.0.1"])
    return StoreAccess(cluster, settings.own_identity_stores, settings.allowed_endpoints, **options)


async def opened(access: StoreAccess, store: StoreSpec, namespace: str = "default") -> Store | NoAccess:
    return await access.open(namespace, resolved(store), store)


def refusal(
    cluster: Cluster,
    store: StoreSpec,
    *flags: str,
    namespace: str = "default",
    problem: StoreProblem = StoreProblem.FORBIDDEN,
    **options: Any,
) -> str:
    """Why the store is not opened, or not asked."""
    messages: list[str] = []

    async def scenario() -> None:
        answer = await opened(accessing(cluster, *flags, **options), store, namespace)
        if isinstance(answer, NoAccess):
            assert answer.problem is problem
            messages.append(answer.message)
        else:  # what a host name leads to is known when the store is asked
            with pytest.raises(Forbidden) as refused:
                await asyncio.to_thread(answer.get, "key")
            messages.append(str(refused.value))

    run(scenario())
    assert "\n" not in messages[0]
    return messages[0]


def test_a_store_is_opened_with_the_keys_of_the_secret_and_stays_the_same_object(cluster: Cluster) -> None:
    async def scenario() -> None:
        access = accessing(cluster)
        store = await opened(access, spec(secret_ref={"name": "keys"}))
        assert isinstance(store, Store)
        assert await opened(access, spec(secret_ref={"name": "keys"})) is store
        assert cluster.asked["Secret"] == 1

    run(scenario())


def test_keys_lie_where_the_reference_says(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster.secret({"user": f"id-{CANARY}", "password": f"secret-{CANARY}", "AWS_SESSION_TOKEN": "another's"})
    names = {"accessKeyId": "user", "secretAccessKey": "password", "sessionToken": "token"}
    given: list[Credentials] = []
    get = SharedClients.get

    def spy(self: SharedClients, access: Any, credentials: Any) -> Any:
        given.append(credentials)
        return get(self, access, credentials)

    async def scenario() -> None:
        monkeypatch.setattr(SharedClients, "get", spy)
        reference = {"name": "keys", "keys": names}
        access = accessing(cluster, *HERE, resolve_host=lambda _: ["127.0.0.1"])
        store = await opened(access, spec(secret_ref=reference, endpoint_url="http://127.0.0.1:9"))
        assert isinstance(store, Store)
        with pytest.raises(ModelChainError):
            await asyncio.to_thread(store.get, "key")

    run(scenario())
    assert given[0] == Credentials(f"id-{CANARY}", f"secret-{CANARY}", None)
    said = refusal(cluster, spec(secret_ref={"name": "keys", "keys": names | {"accessKeyId": "login"}}))
    assert "has no login; it needs login and password (store.secretRef.keys" in said


def test_the_secret_is_the_one_of_the_chains_own_namespace(cluster: Cluster) -> None:
    message = refusal(cluster, spec(secret_ref={"name": "keys"}), namespace="elsewhere")
    assert message == (
        "Secret elsewhere/keys (store.secretRef) does not exist; create it in the chain's namespace"
    )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "has no AWS_ACCESS_KEY_ID"),
        ({"AWS_ACCESS_KEY_ID": "a"}, "has no AWS_SECRET_ACCESS_KEY"),
        (KEYS | {"AWS_SECRET_ACCESS_KEY": f"{CANARY}\n"}, "AWS_SECRET_ACCESS_KEY in Secret default/keys"),
        (KEYS | {"AWS_ACCESS_KEY_ID": f"{CANARY} x"}, "AWS_ACCESS_KEY_ID in Secret default/keys"),
        (KEYS | {"AWS_SESSION_TOKEN": f"{CANARY}é"}, "AWS_SESSION_TOKEN in Secret default/keys"),
    ],
)
def test_a_secret_without_usable_keys_says_which_one(
    cluster: Cluster, values: dict[str, str], message: str
) -> None:
    cluster.secret(values)
    said = refusal(cluster, spec(secret_ref={"name": "keys"}))
    assert message in said
    assert CANARY not in said


def test_bytes_that_are_no_text_are_refused_unseen(cluster: Cluster) -> None:
    for encoded in ("not base 64!", base64.b64encode(b"\xff\xfe" + CANARY.encode()).decode()):
        cluster.objects["Secret", "default", "keys"] = {"data": {"AWS_ACCESS_KEY_ID": encoded}}
        said = refusal(cluster, spec(secret_ref={"name": "keys"}))
        assert "AWS_ACCESS_KEY_ID in Secret default/keys (store.secretRef) is not text" in said
        assert CANARY not in said


@pytest.mark.parametrize(
    ("store", "flags"),
    [
        (spec(), []),
        (spec(), ["--own-identity-store", "s3://models/b=http://minio.example:9000"]),
        (spec(), ["--own-identity-store", "s3://models"]),
        (spec(uri="s3://models-2/a"), ["--own-identity-store", "s3://models=http://minio.example:9000"]),
        (spec(endpoint_url=None), ["--own-identity-store", "s3://models=http://minio.example:9000"]),
        (spec(endpoint_url="http://evil.example"), ["--own-identity-store", "s3://models"]),
    ],
)
def test_the_operators_own_identity_reads_nothing_that_is_not_listed(
    cluster: Cluster, store: StoreSpec, flags: list[str]
) -> None:
    message = refusal(cluster, store, *flags)
    assert "set store.secretRef" in message
    assert "--own-identity-store" in message


def test_the_operators_own_identity_reads_what_is_listed(cluster: Cluster) -> None:
    async def scenario() -> None:
        access = accessing(cluster, "--own-identity-store", "s3://models=http://minio.example:9000")
        assert isinstance(await opened(access, spec()), Store)
        assert set(cluster.asked) == {"addresses"}  # no Secret of a chain

    run(scenario())


def test_folders_are_read_only_where_listed_and_not_through_links_out_of_there(
    cluster: Cluster, tmp_path: Path
) -> None:
    shared = tmp_path / "shared"
    (shared / "team").mkdir(parents=True)
    (tmp_path / "private").mkdir()
    (shared / "link").symlink_to(tmp_path / "private")
    listed = ("--own-identity-store", f"file://{shared}")

    async def scenario() -> None:
        assert isinstance(await opened(accessing(cluster, *listed), local("team")), Store)

    def local(name: str) -> StoreSpec:
        return StoreSpec(uri=f"file://{shared / name}")

    run(scenario())
    assert "may not read this folder" in refusal(cluster, local("team"))
    assert "may not read this folder" in refusal(cluster, local("link"), *listed)
    assert "may not read this folder" in refusal(cluster, local("../private"), *listed)


@pytest.mark.parametrize(
    "endpoint",
    [
        "http://169.254.169.254",
        "http://169.254.170.2/v2/credentials",
        "http://[fe80::1]:80",
        "http://[fd00:ec2::254]",
        "http://[::ffff:169.254.169.254]",
        "http://100.100.100.200",
        "http://metadata.google.internal",
        "http://METADATA.google.internal.",
        "http://[64:ff9b::169.254.169.254]",
        "http://[64:ff9b:1::169.254.169.254]",
        "http://[2002:a9fe:a9fe::1]",
        "http://[::169.254.169.254]",
    ],
)
def test_cloud_metadata_is_never_asked(cluster: Cluster, endpoint: str) -> None:
    assert "metadata" in refusal(cluster, spec(endpoint_url=endpoint, secret_ref={"name": "keys"}))


@pytest.mark.parametrize("endpoint", ["http://2852039166", "http://0xa9fea9fe", "http://0251.0376.0251.0376"])
def test_other_ways_to_write_such_an_address_are_known_to_the_resolver(
    cluster: Cluster, endpoint: str
) -> None:
    said = refusal(cluster, spec(endpoint_url=endpoint, secret_ref={"name": "keys"}), resolve_host=None)
    assert "metadata" in said


@pytest.mark.parametrize(
    "endpoint",
    [
        "http://127.0.0.1:9000", "http://127.1.2.3", "http://[::1]:9000", "http://0.0.0.0", "http://[::]",
        "http://[::ffff:127.0.0.1]", "http://[64:ff9b::7f00:1]", "http://[2002:7f00:1::1]",
    ],
)  # fmt: skip
def test_the_operators_own_machine_is_asked_only_where_the_administrator_names_it(
    cluster: Cluster, endpoint: str
) -> None:
    store = spec(endpoint_url=endpoint, secret_ref={"name": "keys"})
    assert "own machine" in refusal(cluster, store)
    for anywhere in ("*", "http://*"):
        assert "own machine" in refusal(cluster, store, "--allowed-endpoint", anywhere)

    async def scenario() -> None:
        assert isinstance(await opened(accessing(cluster, "--allowed-endpoint", endpoint), store), Store)

    run(scenario())


@pytest.mark.parametrize(
    "endpoint",
    [
        "https://kubernetes.default.svc", "https://kubernetes", "https://kubernetes.default.svc.cluster.local:443",
        "https://10.96.0.1", "https://[::ffff:10.96.0.1]", "https://api.example:443", "https://alias.example",
        "http://172.18.0.2:6443", "https://[::ffff:172.18.0.2]:6443", "https://node.example:6443",
    ],
)  # fmt: skip
def test_the_api_server_is_never_asked_as_a_store(cluster: Cluster, endpoint: str) -> None:
    cluster.addresses = ["172.18.0.2:6443"]
    said = refusal(
        cluster,
        spec(endpoint_url=endpoint, secret_ref={"name": "keys"}),
        resolve_host=lambda host: ["172.18.0.2" if host == "node.example" else "10.96.0.1"],
        api_servers=["https://api.example"],
    )
    assert "API server is no store" in said


def test_api_servers_that_are_told_later_are_known_beside_the_first_and_their_machines_may_have_stores(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    def at(endpoint: str) -> StoreSpec:
        return spec(endpoint_url=endpoint, secret_ref={"name": "keys"})

    async def scenario() -> None:
        access = accessing(cluster)
        cluster.error = Unavailable("no answer")
        await opened(access, at("https://172.18.0.9"))
        cluster.error, cluster.addresses = None, ["172.18.0.2:6443"]
        store = await opened(access, at("https://172.18.0.3:6443"))
        assert isinstance(store, Store)
        assert cluster.asked["addresses"] == 2, "again after a failure"
        assert isinstance(await opened(access, at("https://172.18.0.2:9000")), Store)
        assert cluster.asked["addresses"] == 2, "and then not with every store"
        monkeypatch.setattr(store_access, "REREAD_SECONDS", 0.0)
        cluster.addresses = ["172.18.0.3:6443"]
        other = await opened(access, at("https://172.18.0.2:6443"))
        assert isinstance(other, Store)
        for one in (store, other):
            with pytest.raises(Forbidden, match="API server"):
                await asyncio.to_thread(one.get, "key")

    run(scenario())


def test_a_name_that_leads_to_metadata_is_not_asked_and_not_later_either(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_access, "RETRY_SECONDS", 0.0)
    assert "metadata" in refusal(
        cluster, spec(secret_ref={"name": "keys"}), resolve_host=lambda _: ["169.254.169.254"]
    )

    async def scenario() -> None:
        addresses = ["10.0.0.1"]
        access = accessing(cluster, resolve_host=lambda _: addresses)
        store = await opened(access, spec(secret_ref={"name": "keys"}))
        assert isinstance(store, Store)
        addresses[:] = ["169.254.169.254"]
        with pytest.raises(Forbidden, match="metadata"):
            await asyncio.to_thread(store.get, "key")

    run(scenario())


def test_a_name_without_an_address_is_not_asked_and_looked_up_again(cluster: Cluster) -> None:
    answers: list[list[str]] = [[], ["169.254.169.254"]]

    def resolve(_host: str) -> list[str]:
        if not (found := answers.pop(0)):
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        return found

    async def scenario() -> None:
        store = await opened(accessing(cluster, resolve_host=resolve), spec(secret_ref={"name": "keys"}))
        assert isinstance(store, Store)
        with pytest.raises(StoreUnavailable, match=r"no address is known of minio\.example now"):
            await asyncio.to_thread(store.get, "key")
        with pytest.raises(EndpointRefused, match="metadata"):
            await asyncio.to_thread(store.get, "key")

    run(scenario())


def test_a_store_is_not_asked_while_the_api_server_can_not_be_told_from_it(cluster: Cluster) -> None:
    def resolve(host: str) -> list[str]:
        if host == "api.example":
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        return ["10.96.0.1"]

    async def scenario() -> None:
        access = accessing(cluster, resolve_host=resolve, api_servers=["https://api.example"])
        store = await opened(access, spec(endpoint_url="https://alias.example", secret_ref={"name": "keys"}))
        assert isinstance(store, Store)
        with pytest.raises(StoreUnavailable, match=r"no address is known of api\.example now"):
            await asyncio.to_thread(store.get, "key")

    run(scenario())


def test_a_name_that_only_a_proxy_resolves_is_asked_by_it(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    def proxy(_method: str, url: str, _body: bytes) -> Answer:
        asked.append(url)
        return Answer(503)

    def resolve(_host: str) -> list[str]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    asked: list[str] = []

    async def scenario() -> None:
        store = await opened(accessing(cluster, resolve_host=resolve), spec(secret_ref={"name": "keys"}))
        assert isinstance(store, Store)
        with pytest.raises(StoreUnavailable, match="503"):
            await asyncio.to_thread(store.get, "key")

    for variable in ("http_proxy", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    with serve(proxy) as address:
        monkeypatch.setenv("HTTP_PROXY", address)
        run(scenario())
    assert asked == ["http://minio.example:9000/models/a/key"]


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_connection_goes_to_the_address_that_was_checked(
    cluster: Cluster, scheme: str, tmp_path: Path
) -> None:
    """The name is not resolved again: it might lead elsewhere by then. TLS verifies it all the same."""

    async def get(host: str) -> bytes:
        url = f"{scheme}://{host}:{port}"
        access = accessing(cluster, "--allowed-endpoint", url, resolve_host=lambda _: ["127.0.0.1"])
        fields: dict[str, Any] = {"secret_ref": {"name": "keys"}}
        if certificate is not None:
            fields["ca_bundle_ref"] = {"kind": "ConfigMap", "name": "authority", "key": "ca.crt"}
        store = await opened(access, spec(endpoint_url=url, **fields))
        assert isinstance(store, Store), store
        return (await asyncio.to_thread(store.get, "key"))[0]

    certificate = make_certificate(tmp_path, "minio.example") if scheme == "https" else None
    if certificate is not None:
        cluster.objects["ConfigMap", "default", "authority"] = {"data": {"ca.crt": certificate.read_text()}}
    with serve(lambda *_: Answer(200, {}, b"there"), certificate) as endpoint:
        port = endpoint.rpartition(":")[2]
        assert asyncio.run(get("minio.example")) == b"there"
        if certificate is not None:
            with pytest.raises(ConfigurationError, match=r"not for other\.example"):
                asyncio.run(get("other.example"))


def test_what_a_store_says_can_not_fill_the_operators_memory(cluster: Cluster) -> None:
    """Its threads read at once, for all tenants, in one container."""

    async def scenario() -> None:
        access = accessing(cluster, *HERE, resolve_host=lambda _: ["127.0.0.1"])
        at = endpoint.replace("localhost", "127.0.0.1")
        store = await opened(access, spec(endpoint_url=at, secret_ref={"name": "keys"}))
        assert isinstance(store, Store)
        with pytest.raises(UserDataError, match="holds more than 16,777,216 bytes"):
            await asyncio.to_thread(store.get, "key")

    with serve(lambda *_: Answer(200, {}, [b"x" * 65536] * 512)) as endpoint:
        run(scenario())


def test_no_host_name_is_resolved_when_a_store_is_opened(cluster: Cluster) -> None:
    """A name may take long: it is resolved in the thread that reads the store."""
    asked: list[str] = []

    def resolve(host: str) -> list[str]:
        asked.append(host)
        return ["10.0.0.1"]

    async def scenario() -> None:
        store = await opened(accessing(cluster, resolve_host=resolve), spec(secret_ref={"name": "keys"}))
        assert isinstance(store, Store)

    run(scenario())
    assert asked == []


def test_by_default_an_endpoint_is_asked_over_https_alone(cluster: Cluster) -> None:
    defaults = [
        flag for text in read_settings([], {}).allowed_endpoints for flag in ("--allowed-endpoint", text)
    ]
    secret = {"name": "keys"}
    plain = spec(endpoint_url="http://minio.example:9000", secret_ref=secret)
    assert "by default https:// alone" in refusal(cluster, plain, *defaults)
    loopback = spec(endpoint_url="https://127.0.0.1:9000", secret_ref=secret)
    assert "own machine" in refusal(cluster, loopback, *defaults)

    async def scenario() -> None:
        store = spec(endpoint_url="https://minio.example:9000", secret_ref=secret)
        assert isinstance(await opened(accessing(cluster, *defaults), store), Store)

    run(scenario())


@pytest.mark.parametrize(
    ("pattern", "endpoint", "allowed"),
    [
        ("*", "http://anywhere.example", True),
        ("http://minio.example:9000", "http://minio.example:9000", True),
        ("http://minio.example:9000", "http://minio.example:9000/", True),
        ("http://minio.example:9000", "http://minio.example:9001", False),
        ("https://*.example", "https://a.b.example", True),
        ("https://*.example", "http://a.example", False),
        ("https://*.example", "https://evil.test/a.example", False),
        ("https://*.example", "https://a.example.evil.test", False),
        ("http://minio-*.example:9000", "http://MINIO-1.example:9000", True),
    ],
)
def test_only_endpoints_that_the_administrator_allows_are_asked(
    cluster: Cluster, pattern: str, endpoint: str, allowed: bool
) -> None:
    store = spec(endpoint_url=endpoint, secret_ref={"name": "keys"})
    if not allowed:
        assert "does not allow this endpoint" in refusal(cluster, store, "--allowed-endpoint", pattern)
        return

    async def scenario() -> None:
        assert isinstance(await opened(accessing(cluster, "--allowed-endpoint", pattern), store), Store)

    run(scenario())


def test_an_endpoint_with_a_password_is_refused_without_showing_it(cluster: Cluster) -> None:
    store = spec(endpoint_url=f"http://user:{CANARY}@minio.example", secret_ref={"name": "keys"})
    assert CANARY not in refusal(cluster, store, problem=StoreProblem.MISCONFIGURED)


def test_a_secret_that_is_made_later_is_found(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        access = accessing(cluster)
        assert isinstance(await opened(access, spec(secret_ref={"name": "later"})), NoAccess)
        cluster.secret(KEYS, name="later")
        assert isinstance(await opened(access, spec(secret_ref={"name": "later"})), NoAccess), (
            "it is not asked each pass"
        )
        monkeypatch.setattr(store_access, "RETRY_SECONDS", 0.0)
        assert isinstance(await opened(access, spec(secret_ref={"name": "later"})), Store)

    run(scenario())


def test_keys_that_the_store_refuses_are_read_again_and_new_ones_make_a_new_store(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        access = accessing(cluster)
        store = await opened(access, spec(secret_ref={"name": "keys"}))
        assert isinstance(store, Store)
        cluster.secret(KEYS | {"AWS_SECRET_ACCESS_KEY": "new"})
        assert await opened(access, spec(secret_ref={"name": "keys"})) is store
        monkeypatch.setattr(store_access, "RETRY_SECONDS", 0.0)
        assert await opened(access, spec(secret_ref={"name": "keys"})) is store, "nobody has doubted it"
        access.expire_credentials(store)
        other = await opened(access, spec(secret_ref={"name": "keys"}))
        assert isinstance(other, Store)
        assert other is not store

    run(scenario())


def test_an_api_server_that_is_away_costs_no_store_that_was_open(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        access = accessing(cluster)
        store = await opened(access, spec(secret_ref={"name": "keys"}))
        monkeypatch.setattr(store_access, "REREAD_SECONDS", 0.0)
        cluster.error = Unavailable("get Secret default/keys: no answer")
        assert await opened(access, spec(secret_ref={"name": "keys"})) is store
        answer = await opened(access, spec(secret_ref={"name": "other"}))
        assert isinstance(answer, NoAccess)
        assert answer.problem is StoreProblem.UNAVAILABLE

    run(scenario())


def test_without_the_right_to_read_secrets_the_message_says_so(cluster: Cluster) -> None:
    cluster.error = ApiForbidden("get Secret default/keys: no")
    said = refusal(cluster, spec(secret_ref={"name": "keys"}))
    assert "the operator may not read Secret default/keys" in said
    assert "role" in said


@pytest.mark.parametrize(
    "reference", [{"name": "ca"}, {"kind": "Secret", "name": "ca-secret", "key": "authority.pem"}]
)
def test_certificates_that_a_chain_refers_to_are_used_and_never_a_path_of_the_chain(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, reference: dict[str, str]
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    cluster.objects["ConfigMap", "default", "ca"] = {"data": {"ca.crt": CERTIFICATE}}
    cluster.secret({"authority.pem": CERTIFICATE}, name="ca-secret")
    bundles: list[str | None] = []
    kept: list[StoreAccess] = []
    get = SharedClients.get

    def spy(self: SharedClients, access: Any, credentials: Any) -> Any:
        bundles.append(access.ca_bundle)
        return get(self, access, credentials)

    async def scenario() -> None:
        monkeypatch.setattr(SharedClients, "get", spy)
        access = accessing(cluster, *HERE, resolve_host=lambda _: ["127.0.0.1"])
        for fields in ({"ca_bundle_ref": reference}, {}):
            store = await opened(
                access, spec(secret_ref={"name": "keys"}, endpoint_url="https://localhost:9", **fields)
            )
            assert isinstance(store, Store)
            with pytest.raises(ModelChainError):
                await asyncio.to_thread(store.get, "key")
        kept.append(access)

    run(scenario())
    first, second = bundles[0], bundles[-1]
    assert second is None
    assert first is not None
    assert Path(first).read_text() == CERTIFICATE
    assert Path(first).parent.stat().st_mode & 0o077 == 0
    kept[0].close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, "default/ca (store.caBundleRef) does not exist"),
        ({}, "has no ca.crt"),
        ({"ca.crt": "  "}, "has no ca.crt"),
        ({"ca.crt": "no certificate"}, "holds no certificate"),
        ({"ca.crt": CERTIFICATE + CERTIFICATE.replace("M", "*", 9)}, "holds no certificate"),
        ({"ca.crt": CERTIFICATE * 800}, "is larger than 512 KiB"),
    ],
)
@pytest.mark.parametrize("kind", ["ConfigMap", "Secret"])
def test_certificates_that_are_none_are_refused(
    cluster: Cluster, data: dict[str, str] | None, message: str, kind: str
) -> None:
    if data is not None and kind == "Secret":
        cluster.secret(data, name="ca")
    elif data is not None:
        cluster.objects["ConfigMap", "default", "ca"] = {"data": data}
    reference = {"kind": kind, "name": "ca"}
    assert message in refusal(cluster, spec(secret_ref={"name": "keys"}, ca_bundle_ref=reference))


@pytest.mark.parametrize("text", [CERTIFICATE, "no certificate"])
def test_a_bundle_is_looked_at_once_for_all_stores_and_beside_the_event_loop(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    """A tenant's bundle of hundreds of certificates takes a tenth of a second, and others wait for the loop."""
    looked: list[threading.Thread] = []
    create = ssl.SSLContext.load_verify_locations

    def spy(self: ssl.SSLContext, *arguments: Any, **named: Any) -> None:
        looked.append(threading.current_thread())
        create(self, *arguments, **named)

    async def scenario() -> list[Store | NoAccess]:
        access = accessing(cluster)
        stores = [
            spec(uri=f"s3://models/{i}", secret_ref={"name": "keys"}, ca_bundle_ref={"name": "ca"})
            for i in range(5)
        ]
        monkeypatch.setattr(ssl.SSLContext, "load_verify_locations", spy)
        found = await asyncio.gather(*(opened(access, store) for store in stores))
        access.close()
        return found

    cluster.objects["ConfigMap", "default", "ca"] = {"data": {"ca.crt": text}}
    found = asyncio.run(scenario())
    assert all(isinstance(one, NoAccess) == (text != CERTIFICATE) for one in found), found
    assert len(looked) == 1
    assert looked[0] is not threading.main_thread()


def test_what_is_no_address_at_all_is_told_and_no_pass_ends_by_it(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chains of older versions are recovered from their jobs, past the validation."""
    store = spec(endpoint_url="https://[::1", secret_ref={"name": "keys"})
    assert "no address of a server" in refusal(cluster, store, problem=StoreProblem.MISCONFIGURED)
    monkeypatch.setattr(store_access, "is_endpoint", lambda _: True)
    said = refusal(cluster, store, problem=StoreProblem.MISCONFIGURED)
    assert "correct its uri and endpointUrl" in said


@pytest.mark.xdist_group("seaweedfs")
def test_no_secret_shows_in_a_log_a_message_a_repr_or_a_traceback(
    cluster: Cluster, seaweedfs: SeaweedFS, caplog: pytest.LogCaptureFixture
) -> None:
    cluster.secret(KEYS | {"AWS_SESSION_TOKEN": f"token-{CANARY}"})
    shown: list[str] = []

    async def scenario() -> None:
        access = accessing(cluster, *HERE, resolve_host=lambda _: ["127.0.0.1"])
        for endpoint in (seaweedfs.endpoint_url, "http://127.0.0.1:9", "https://127.0.0.1:9"):
            store = await opened(access, spec(secret_ref={"name": "keys"}, endpoint_url=endpoint))
            assert isinstance(store, Store)
            shown.append(f"{store!r} {access!r} {vars(store)!r} {access._known!r}")
            for call in (lambda store=store: store.get("a/b"), lambda store=store: store.put("a/b", b"x")):
                with pytest.raises(ModelChainError) as caught:
                    await asyncio.to_thread(call)
                shown.append("".join(traceback.format_exception(caught.value)))

    with caplog.at_level(logging.INFO):
        run(scenario())
    assert any("refuses the credentials" in text or "denied" in text for text in shown)
    assert CANARY not in "".join(shown)
    assert CANARY not in caplog.text


@pytest.mark.xdist_group("seaweedfs")
def test_each_chain_reads_with_its_own_rights(cluster: Cluster, seaweedfs: SeaweedFS) -> None:
    cluster.secret({"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY}, name="right")
    cluster.secret({"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": "wrong"}, name="wrong")

    async def scenario() -> None:
        access = accessing(cluster, *HERE, resolve_host=lambda _: ["127.0.0.1"])
        place = {"uri": f"s3://{BUCKET}/access", "endpoint_url": seaweedfs.endpoint_url}
        right = await opened(access, spec(secret_ref={"name": "right"}, **place))
        wrong = await opened(access, spec(secret_ref={"name": "wrong"}, **place))
        assert isinstance(right, Store)
        assert isinstance(wrong, Store)
        await asyncio.to_thread(right.put, "file", b"mine")
        assert (await asyncio.to_thread(right.get, "file"))[0] == b"mine"
        with pytest.raises(Forbidden):
            await asyncio.to_thread(wrong.get, "file")

    run(scenario())


@pytest.mark.xdist_group("seaweedfs")
def test_a_thousand_stores_with_one_key_each_make_few_clients(cluster: Cluster, seaweedfs: SeaweedFS) -> None:
    """Same key and endpoint: one client. Different keys: as many as fit, and no more are kept."""

    async def scenario() -> None:
        access = accessing(cluster, *HERE, clients=3, resolve_host=lambda _: ["127.0.0.1"])
        keys = {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY}
        for number in range(1000):
            namespace = f"team-{number}"
            cluster.secret(keys, namespace=namespace)
            place = {"uri": f"s3://{BUCKET}/{namespace}", "endpoint_url": seaweedfs.endpoint_url}
            store = await opened(access, spec(secret_ref={"name": "keys"}, **place), namespace)
            assert isinstance(store, Store)
            if number % 100 == 0:
                assert await asyncio.to_thread(store.find, "nothing") is None
        assert access.clients == 1
        for number in range(5):
            cluster.secret(keys | {"AWS_SESSION_TOKEN": f"t{number}"}, name=f"keys-{number}")
            place = {"uri": f"s3://{BUCKET}/x", "endpoint_url": seaweedfs.endpoint_url}
            store = await opened(access, spec(secret_ref={"name": f"keys-{number}"}, **place))
            assert isinstance(store, Store)
            with contextlib.suppress(ModelChainError):  # the server may or may not mind the token
                await asyncio.to_thread(store.find, "nothing")
        assert access.clients == 3

    run(scenario())
