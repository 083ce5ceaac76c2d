"""Names that others have written lead nowhere else: a request is for the kind and the namespace that the code says."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from modelchain_operator.kubernetes.api import Invalid, KubernetesApi
from modelchain_operator.kubernetes.cluster_access import ClusterAccess
from modelchain_operator.kubernetes.kinds import JOB, PRIORITY_CLASS, SECRET

HOSTILE = (
    "../../../../api/v1/namespaces/victim/secrets/db",
    "..%2F..%2Fsecrets",
    "..",
    ".",
    "",
    "a/b",
    "%2e%2e",
)


@pytest.fixture
def server() -> Iterator[tuple[str, list[str]]]:
    """Its URL, and what was asked of it. It has everything."""
    asked: list[str] = []

    class Everything(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            body = b'{"metadata": {"name": "x"}, "items": []}'
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Everything) as http:
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}", asked
        http.shutdown()
        thread.join()


def play(url: str, scenario: Callable[[KubernetesApi], Awaitable[None]]) -> None:
    async def run() -> None:
        api = KubernetesApi(ClusterAccess(server=url))
        try:
            await scenario(api)
        finally:
            await api.close()

    asyncio.run(run())


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_that_no_object_can_have_is_not_asked_for(server: tuple[str, list[str]], name: str) -> None:
    url, asked = server

    async def scenario(api: KubernetesApi) -> None:
        assert await api.get(PRIORITY_CLASS, "", name) is None
        assert await api.get_secret("team", name) is None
        with pytest.raises(Invalid, match="is not the name of a Kubernetes object"):
            await api.delete(JOB, "team", name, "uid")
        if name:
            with pytest.raises(Invalid, match="is not the name of a Kubernetes object"):
                await api.get(SECRET, name, "db")
            with pytest.raises(Invalid, match="is not the name of a Kubernetes object"):
                await api.list_selected(SECRET, name)

    play(url, scenario)
    assert asked == []


def test_every_other_name_is_one_part_of_the_path(server: tuple[str, list[str]]) -> None:
    url, asked = server

    async def scenario(api: KubernetesApi) -> None:
        await api.get(SECRET, "team", "a b?c=d#e;f\\g\n\u00e9")
        await api.list_selected(SECRET, "team", "app=a&limit=0#/../b")

    play(url, scenario)
    named, listed = asked
    assert named == "/api/v1/namespaces/team/secrets/a%20b%3Fc=d%23e;f%5Cg%0A%C3%A9"
    assert listed.startswith(
        "/api/v1/namespaces/team/secrets?labelSelector=app%3Da%26limit%3D0%23/../b&limit="
    )
