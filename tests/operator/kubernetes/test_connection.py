"""How the operator's requests carry credentials, and whether they take a proxy. Against a server of our own."""

from __future__ import annotations

import asyncio
import json
import ssl
import subprocess
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from modelchain.errors import ConfigurationError
from modelchain_operator.kubernetes.cluster_access import load_access
from modelchain_operator.kubernetes.connection import Connection
from modelchain_operator.kubernetes.credentials import connection_info
from tests.control_plane.certificates import make_certificates

SEEN = web.AppKey("seen", list[tuple[str, str]])


def ask(
    user: dict[str, Any],
    scenario: Callable[[Connection], Awaitable[None]],
    accepted: str = "",
    server: str | None = None,
) -> list[tuple[str, str]]:
    """Run a scenario against a server that takes one Authorization header (empty: any).

    Returns the header and the path of each request.
    """

    async def answer(request: web.Request) -> web.Response:
        header = request.headers.get("Authorization", "")
        request.app[SEEN].append((header, request.path_qs))
        return web.json_response({}, status=200 if accepted in ("", header) else 401)

    async def run() -> list[tuple[str, str]]:
        application = web.Application()
        application[SEEN] = []
        application.router.add_route("*", "/{path:.*}", answer)
        runner = web.AppRunner(application)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        connection = Connection(config(user, server or f"http://127.0.0.1:{runner.addresses[0][1]}"))
        try:
            await scenario(connection)
        finally:
            await connection.close()
            await runner.cleanup()
        return application[SEEN]

    return asyncio.run(run())


def config(user: dict[str, Any], server: str, authority: Path | None = None) -> Any:
    cluster = {"server": server, **({"certificate-authority": str(authority)} if authority else {})}
    document = {
        "clusters": [{"name": "c", "cluster": cluster}],
        "users": [{"name": "u", "user": user}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "x",
    }
    folder = Path(tempfile.mkdtemp())
    (folder / "config").write_text(json.dumps(document))
    return load_access(str(folder / "config"), None)


async def once(connection: Connection) -> None:
    await connection.send("GET", "/api")


@pytest.mark.parametrize(
    ("user", "header"),
    [
        ({"token": "abc"}, "Bearer abc"),
        ({"username": "me", "password": "secret"}, "Basic bWU6c2VjcmV0"),
        ({"username": "me", "token": "abc"}, "Bearer abc"),
        ({}, ""),
    ],
    ids=["token", "password", "both", "neither"],
)
def test_the_credentials_of_a_kubeconfig_are_sent(user: dict[str, Any], header: str) -> None:
    assert ask(user, once) == [(header, "/api")]


def test_a_token_that_was_replaced_in_its_file_is_read_again(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("old\n")

    async def scenario(connection: Connection) -> None:
        assert (await connection.send("GET", "/a")).status == 401
        file.write_text("new\n")
        answers = await asyncio.gather(*(connection.send("GET", "/b") for _ in range(3)))
        assert [answer.status for answer in answers] == [200, 200, 200]
        assert (await connection.send("GET", "/c")).status == 200

    seen = ask({"tokenFile": str(file)}, scenario, accepted="Bearer new")
    assert seen[-1] == ("Bearer new", "/c")
    assert seen.count(("Bearer new", "/b")) == 3


def test_a_command_is_asked_for_another_token_once_the_first_is_refused(tmp_path: Path) -> None:
    count, command = tmp_path / "count", tmp_path / "log-in"
    command.write_text(
        f'#!/bin/sh\necho run >> {count}\necho \'{{"status": {{"token": "\'$(wc -l < {count})\'"}}}}\'\n'
    )
    command.chmod(0o700)

    async def scenario(connection: Connection) -> None:
        assert (await connection.send("GET", "/a")).status == 200
        assert (await connection.send("GET", "/b")).status == 200

    user = {"exec": {"apiVersion": "client.authentication.k8s.io/v1beta1", "command": str(command)}}
    seen = ask(user, scenario, accepted="Bearer 2")
    assert seen == [("Bearer 1", "/a"), ("Bearer 2", "/a"), ("Bearer 2", "/b")]


def test_a_token_that_can_not_be_had_says_where_it_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no-such-file"):
        ask({"tokenFile": str(tmp_path / "no-such-file")}, once)


def test_selectors_arrive_as_they_are() -> None:
    async def scenario(connection: Connection) -> None:
        answer = await connection.send("GET", "/api", query={"labelSelector": "a/b=c,d!=e", "limit": "5"})
        assert json.loads(answer.content) == answer.json() == {}

    assert ask({"token": "t"}, scenario) == [("Bearer t", "/api?labelSelector=a/b%3Dc,d!%3De&limit=5")]


def test_the_proxy_of_the_environment_is_used_but_for_hosts_that_it_excepts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    assert len(ask({"token": "t"}, once)) == 1
    monkeypatch.setenv("NO_PROXY", "localhost")
    with pytest.raises(OSError, match=r"127\.0\.0\.1:9"):
        ask({"token": "t"}, once)


def test_an_authority_that_kubectl_accepts_is_accepted_by_every_python(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of Python 3.13 on, contexts refuse authorities without key usage, as many clusters have them."""
    lenient = ssl.create_default_context

    def strict(*arguments: Any, **options: Any) -> ssl.SSLContext:
        context = lenient(*arguments, **options)
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        return context

    files = _without_key_usage(tmp_path)
    monkeypatch.setattr(ssl, "create_default_context", strict)
    asyncio.run(_ask_by_tls(*files))


def test_an_authority_that_is_replaced_in_its_file_is_read_again(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    for folder in (old, new):
        folder.mkdir()
        make_certificates(folder, "localhost", organization="api", authority=folder.name)
    authority = tmp_path / "ca.crt"

    async def run() -> None:
        runner, port = await _serve_tls(old / "tls.crt", old / "tls.key")
        authority.write_bytes((old / "ca.crt").read_bytes())
        connection = Connection(config({"token": "t"}, f"https://localhost:{port}", authority=authority))
        try:
            await once(connection)
            await runner.cleanup()
            runner, port = await _serve_tls(new / "tls.crt", new / "tls.key", port)
            with pytest.raises(aiohttp.ClientSSLError):
                await once(connection)
            authority.write_bytes((new / "ca.crt").read_bytes())
            await once(connection)
        finally:
            await connection.close()
            await runner.cleanup()

    asyncio.run(run())


async def _ask_by_tls(authority: Path, certificate: Path, key: Path) -> None:
    runner, port = await _serve_tls(certificate, key)
    server = f"https://127.0.0.1:{port}"
    known = config({"token": "good"}, server, authority=authority)
    connection = Connection(known)
    try:
        assert (await connection.send("GET", "/version")).status == 200
        context = (await connection_info(known)).as_ssl_context()
        async with aiohttp.ClientSession() as session, session.get(server, ssl=context) as watch:
            assert watch.status == 200
    finally:
        await connection.close()
        await runner.cleanup()


async def _serve_tls(certificate: Path, key: Path, port: int = 0) -> tuple[web.AppRunner, int]:
    """A server that answers everything; which port it has."""
    served = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    served.load_cert_chain(certificate, key)

    async def answer(request: web.Request) -> web.Response:
        return web.json_response({})

    application = web.Application()
    application.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(application)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port, ssl_context=served).start()
    return runner, int(runner.addresses[0][1])


def _without_key_usage(folder: Path) -> tuple[Path, Path, Path]:
    """An authority's certificate, one that it has signed, and the key of that."""
    names = ("ca.crt", "ca.key", "tls.csr", "tls.crt", "tls.key", "tls.ext")
    authority, authority_key, request, certificate, key, extensions = (folder / name for name in names)
    extensions.write_text("subjectAltName=IP:127.0.0.1\n")
    new = ("req", "-newkey", "rsa:2048", "-nodes")
    signed_by = ("-CA", authority, "-CAkey", authority_key, "-CAcreateserial", "-extfile", extensions)
    for command in (
        (*new, "-x509", "-subj", "/CN=authority", "-keyout", authority_key, "-out", authority),
        (*new, "-subj", "/CN=server", "-keyout", key, "-out", request),
        ("x509", "-req", "-in", request, *signed_by, "-out", certificate),
    ):
        subprocess.run(["openssl", *command], check=True, capture_output=True)
    return authority, certificate, key
