"""Proxies of the environment: one reading for stores, data and the Kubernetes API; a mistake is said at once."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import socketserver
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelchain.errors import ConfigurationError
from modelchain.proxies import proxy_for
from modelchain.resolved import ResolvedStore
from modelchain.store import Credentials, StoreError, StoreUnavailable, open_location, open_store
from modelchain.store.s3_clients import SharedClients
from modelchain_operator.kubernetes.api import KubernetesApi, Unavailable
from modelchain_operator.kubernetes.cluster_access import ClusterAccess, load_access
from modelchain_operator.kubernetes.connection import Connection
from modelchain_operator.kubernetes.credentials import connection_info
from modelchain_operator.kubernetes.kinds import POD
from modelchain_operator.telemetry.logs import TextFormatter

WRONG = [
    "not a url",
    "http://",
    ":",
    "http://proxy:port",
    "http://proxy:99999",
    "http://user:PASSWORD@[::1",
    "http://user:PASSWORD@proxy:99999",
    "http://user:PASS/WORD@proxy:3128",
    "http://us er:PASSWORD@proxy:3128",
    "http://user:PASS@WORD@proxy:3128",
    "http://user:PASSWÖRD@proxy:3128",
    "http://pro\nxy:3128",
    "\udcff",
    f"http://{'a' * 300}:3128",
    "ftp://proxy:3128",
    "socks5://proxy:1080",
]


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for scheme in ("http", "https", "no"):
        monkeypatch.delenv(f"{scheme}_proxy", raising=False)
        monkeypatch.delenv(f"{scheme.upper()}_PROXY", raising=False)


@pytest.mark.parametrize(
    ("named", "proxy"),
    [
        ("http://proxy:3128", "http://proxy:3128"),
        ("http://user:p%40ss@proxy.example:3128/", "http://user:p%40ss@proxy.example:3128/"),
        ("https://[::1]:3128", "https://[::1]:3128"),
        ("proxy:3128", "http://proxy:3128"),
        ("//user@proxy", "http://user@proxy"),
        ("", None),
    ],
)
def test_a_proxy_is_read_as_other_programs_read_it(
    monkeypatch: pytest.MonkeyPatch, named: str, proxy: str | None
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", named)
    assert proxy_for("https://server:443/a") == proxy
    assert proxy_for("http://server/a") is None
    monkeypatch.setenv("NO_PROXY", "server")
    assert proxy_for("https://server:443/a") is None


@pytest.mark.parametrize("named", WRONG)
def test_what_can_be_no_proxy_is_said_by_whoever_would_use_it_and_never_shown(
    monkeypatch: pytest.MonkeyPatch, named: str
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", named)
    access = ResolvedStore(uri="s3://bucket/chains", endpoint_url="https://minio.example")
    cluster = ClusterAccess(server="https://api.example:6443", token="t")

    async def ask_api_server() -> None:
        connection = Connection(cluster)
        try:
            await connection.send("GET", "/api")
        finally:
            await connection.close()

    for ask in (
        open_store(access, patience_seconds=0.0, credentials=Credentials("a", "b")).get,
        lambda key: open_location("https://data.example", access).get_range(key, 0, 1),
        lambda _: asyncio.run(ask_api_server()),
        lambda _: asyncio.run(connection_info(cluster)),
    ):
        with pytest.raises(ConfigurationError, match="HTTPS_PROXY of the environment is no address") as told:
            ask("key")
        assert "PASS" not in str(told.value).replace("USER:PASSWORD", "")


def test_watches_take_the_proxy_that_other_requests_take(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "proxy:3128")
    cluster = ClusterAccess(server="https://api.example:6443", token="t")
    assert asyncio.run(connection_info(cluster)).proxy_url == "http://proxy:3128"


def test_a_proxy_that_can_not_be_reached_is_not_taken_for_the_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    access = ResolvedStore(uri="s3://bucket/chains", endpoint_url="https://minio.example")
    store = open_store(access, patience_seconds=0.0, credentials=Credentials("a", "b"))
    with pytest.raises(StoreUnavailable, match="the proxy that the environment names"):
        store.get("key")


def test_the_operator_ends_at_once_where_no_way_leads_to_its_cluster(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    user = {"name": "u", "user": {"token": "t"}}
    cluster = {"name": "c", "cluster": {"server": "https://api.example:6443"}}
    context = {"name": "c", "context": {"cluster": "c", "user": "u"}}
    file = tmp_path / "config"
    file.write_text(
        json.dumps({"current-context": "c", "contexts": [context], "clusters": [cluster], "users": [user]})
    )
    assert load_access(str(file), None).server == "https://api.example:6443"
    monkeypatch.setenv("HTTPS_PROXY", "http://user:PASSWORD@[::1")
    with pytest.raises(ConfigurationError, match="HTTPS_PROXY of the environment is no address"):
        load_access(str(file), None)


class Refuses(socketserver.StreamRequestHandler):
    """A proxy that lets nothing through."""

    def handle(self) -> None:
        """Answer 407 to whatever it is asked."""
        while self.rfile.readline().strip():
            pass
        self.wfile.write(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")


@pytest.fixture
def refusing_proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Refuses) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("HTTPS_PROXY", f"http://user:PASSWORD@127.0.0.1:{server.server_address[1]}")
        yield
        server.shutdown()


@pytest.mark.usefixtures("refusing_proxy")
def test_a_proxy_that_refuses_is_named_without_its_password() -> None:
    access = ResolvedStore(uri="s3://bucket/chains", endpoint_url="https://minio.example")
    store = open_store(access, patience_seconds=0.0, credentials=Credentials("a", "b"))
    with pytest.raises(
        StoreUnavailable, match=r"the proxy that the environment names.* lets nothing through"
    ) as told:
        store.get("key")
    assert "PASSWORD" not in str(told.value)
    with pytest.raises(
        StoreUnavailable, match="not answer through the proxy that the environment names"
    ) as told:
        open_location("https://data.example", access).get_range("key", 0, 1)
    assert "PASSWORD" not in str(told.value)

    async def ask_api_server() -> None:
        api = KubernetesApi(ClusterAccess(server="https://api.example:6443", token="t"))
        try:
            await api.get(POD, "team", "pod")
        finally:
            await api.close()

    with pytest.raises(Unavailable, match="407") as failed:
        asyncio.run(ask_api_server())
    assert "PASSWORD" not in str(failed.value)


def test_no_line_of_the_log_shows_a_user_of_a_url() -> None:
    told = io.StringIO()
    handler = logging.StreamHandler(told)
    handler.setFormatter(TextFormatter())
    logger = logging.getLogger("tests.proxies")
    logger.addHandler(handler)
    try:
        raise OSError("no way to http://user:PASSWORD@proxy:3128/ or 'http://u:PASS@WORD@[::1]:3128', a@b")
    except OSError as error:
        logger.exception("failed: %r", error)
    finally:
        logger.removeHandler(handler)
    assert "PASS" not in told.getvalue()
    assert "no way to http://proxy:3128/ or 'http://[::1]:3128', a@b" in told.getvalue()


def test_settings_that_aws_s_libraries_refuse_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "nowhere")
    with pytest.raises(ConfigurationError, match=r"AWS settings of the environment can't be used: .*nowhere"):
        SharedClients()


def test_an_address_that_is_none_is_said() -> None:
    with pytest.raises(StoreError, match="is no address that can be asked"):
        open_location("https://[bad", ResolvedStore(uri="unused")).get_range("key", 0, 1)
