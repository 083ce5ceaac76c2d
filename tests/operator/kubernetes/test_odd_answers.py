"""Answers that no API server gives: pages of proxies, endless waits, endless lists. None ends the operator."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import TypeVar

import pytest

from modelchain_operator.kubernetes.api import MAX_EVENTS, MAX_RETRY_AFTER, KubernetesApi, Unavailable
from modelchain_operator.kubernetes.cluster_access import ClusterAccess
from modelchain_operator.kubernetes.kinds import LEASE
from modelchain_operator.kubernetes.leader_election import ElectionTerms, LeaderElector, Leadership
from tests.modelchain.store.odd_server import Answer, serve

T = TypeVar("T")
PAGES = (b"<html>log in</html>", b"", b"[]", b"null", b"{}", b'"text"')


def asking(endpoint: str, ask: Callable[[KubernetesApi], Awaitable[T]]) -> T:
    async def scenario() -> T:
        api = KubernetesApi(ClusterAccess(server=endpoint))
        try:
            return await ask(api)
        finally:
            await api.close()

    return asyncio.run(scenario())


@pytest.mark.parametrize("page", PAGES)
def test_a_page_of_a_proxy_is_no_object(page: bytes) -> None:
    with (
        serve(lambda *_: Answer(200, {}, page)) as endpoint,
        pytest.raises(Unavailable, match="is a proxy between"),
    ):
        asking(endpoint, lambda api: api.get(LEASE, "ns", "lease"))


@pytest.mark.parametrize("page", PAGES)
def test_a_page_of_a_proxy_does_not_end_the_election(page: bytes) -> None:
    async def elect(api: KubernetesApi) -> bool:
        return await LeaderElector(api, ElectionTerms("ns", "lease"), "pod", Leadership())._take_or_renew()

    with serve(lambda *_: Answer(200, {}, page)) as endpoint:
        assert asking(endpoint, elect) is False


@pytest.mark.parametrize(
    ("said", "waited"),
    [
        ("5", 5.0),
        ("inf", MAX_RETRY_AFTER),
        ("1e300", MAX_RETRY_AFTER),
        ("nan", None),
        ("-1", None),
        ("soon", None),
    ],
)
def test_a_server_is_waited_for_no_longer_than_makes_sense(said: str, waited: float | None) -> None:
    answer = Answer(503, {"Retry-After": said}, b"{}")
    with serve(lambda *_: answer) as endpoint, pytest.raises(Unavailable) as unavailable:
        asking(endpoint, lambda api: api.get(LEASE, "ns", "lease"))
    assert unavailable.value.retry_after == waited


def test_events_about_an_object_are_read_up_to_a_bound() -> None:
    page = json.dumps({"items": [{"metadata": {}}] * 100, "metadata": {"continue": "more"}}).encode()
    with serve(lambda *_: Answer(200, {}, page)) as endpoint:
        found = asking(endpoint, lambda api: api.list_events("ns", "uid"))
    assert len(found) == MAX_EVENTS
