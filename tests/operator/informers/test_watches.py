"""What a watch shows, and in which order chains are reconciled for it."""

from __future__ import annotations

import asyncio
import os
from typing import Any, cast

import pytest

from modelchain_operator.informers.cache import Cache
from modelchain_operator.informers.watches import Watches
from modelchain_operator.kubernetes.api import KubernetesApi, Object
from modelchain_operator.kubernetes.kinds import CHAIN, POD
from modelchain_operator.kubernetes.labels import CHAIN_UID
from modelchain_operator.work_queue import KeyQueue

AT_REST, ENDED, CHANGED = "at-rest", "ended", "changed"


def chain(name: str) -> Object:
    metadata = {"namespace": "team", "name": name, "uid": f"uid-of-{name}", "resourceVersion": "1"}
    return {"apiVersion": CHAIN.api_version, "kind": CHAIN.kind, "metadata": metadata, "spec": {}}


def ended_pod(of: str) -> Object:
    labels = {CHAIN_UID: f"uid-of-{of}"}
    metadata = {"namespace": "team", "name": f"{of}-0", "uid": "p", "resourceVersion": "1", "labels": labels}
    return {"metadata": metadata, "spec": {}, "status": {"phase": "Succeeded"}}


def event(body: Object, kind: str | None = None) -> Any:
    """As kopf gives it: without a type, it is of a listing."""
    return {"type": kind, "object": body}


@pytest.mark.parametrize("pods_first", [False, True], ids=["chains-first", "pods-first"])
def test_what_was_listed_waits_behind_a_stage_that_has_ended_and_a_chain_that_was_changed(
    pods_first: bool,
) -> None:
    async def order() -> list[str]:
        queue = KeyQueue()
        watches = Watches(cast("KubernetesApi", None), Cache(), queue, namespaces=(), on_gap=lambda: None)
        show_pod = watches._on_belonging(POD)
        if pods_first:
            await show_pod(event(ended_pod(of=ENDED)))
        for name in (AT_REST, ENDED):
            await watches._on_chain(event(chain(name)))
        if not pods_first:
            await show_pod(event(ended_pod(of=ENDED)))
        await watches._on_chain(event(chain(CHANGED), "ADDED"))
        taken = [await queue.get() for _ in range(3)]
        return [key.name for key, _ in filter(None, taken)]

    assert asyncio.run(order()) == [ENDED, CHANGED, AT_REST]


def test_a_watch_works_for_a_user_that_has_no_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container whose image does not know the user by whom it runs."""
    monkeypatch.setattr(
        os, "getuid", lambda: 2**31 - 7
    )  # where nothing else names the user, getpass asks for this one
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)

    async def why_ended() -> str:
        stop = asyncio.Event()
        stop.set()
        watches = Watches(
            cast("KubernetesApi", None), Cache(), KeyQueue(), namespaces=(), on_gap=lambda: None
        )
        return await watches._watch(POD, frozenset(), stop)

    assert asyncio.run(why_ended()) == ""
