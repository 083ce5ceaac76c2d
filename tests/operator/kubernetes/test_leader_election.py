"""Who may take a Lease, and until when its holder may act; and electors on a real API server."""

from __future__ import annotations

import asyncio
import itertools
import math
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from modelchain_operator.kubernetes.api import KubernetesApi, Object, Unavailable, load_config
from modelchain_operator.kubernetes.kinds import LEASE, Kind
from modelchain_operator.kubernetes.leader_election import (
    JITTER,
    ElectionTerms,
    LeaderElector,
    Leadership,
    LeaseRecord,
    may_take,
)
from modelchain_operator.settings import Settings
from tests.control_plane.plane import ControlPlane
from tests.processes import PATIENCE_SECONDS

PERIOD = 0.25
VALUES = Path(__file__).parents[3] / "charts" / "modelchain" / "values.yaml"


def record(holder: str, seconds: float = 15) -> LeaseRecord:
    return LeaseRecord(holder, seconds, acquired_at="", transitions=0)


def test_a_lease_is_taken_when_its_holder_was_silent_for_as_long_as_it_said() -> None:
    held = record("a_1", 15)
    assert not may_take(held, "b_1", unchanged_since=100, now=114.9)
    assert may_take(held, "b_1", unchanged_since=100, now=115)


def test_a_lease_that_nobody_holds_or_an_earlier_process_of_the_pod_is_taken_at_once() -> None:
    assert may_take(record(""), "b_1", unchanged_since=100, now=100)
    assert may_take(record("pod_1"), "pod_2", unchanged_since=100, now=100)
    assert not may_take(record("pod_1"), "pod-2_1", unchanged_since=100, now=100)


@given(
    duration=st.floats(3, 600),
    share=st.floats(0.1, 0.99),
    sent=st.floats(0, 1000),
    travelled=st.floats(0, 100),
    noticed=st.floats(0, 100),
    offset=st.floats(-1e6, 1e6),
)
def test_a_leader_stops_before_anybody_else_may_begin_whatever_their_clocks_show(
    duration: float, share: float, sent: float, travelled: float, noticed: float, offset: float
) -> None:
    now = 0.0
    leadership = Leadership(lambda: now)
    leadership.extend(sent + share * duration)  # a renewal that was sent then
    seen = sent + travelled + noticed  # and is seen by another, whose clock shows another time
    for now in (sent, sent + share * duration, seen, seen + duration, seen + 2 * duration):
        theirs = may_take(
            record("a_1", duration), "b_1", unchanged_since=seen + offset, now=now + offset - 1e-6
        )
        assert not (leadership.is_held() and theirs)


@settings(deadline=None)
@given(
    duration=st.floats(3, 600),
    period=st.floats(1, 60),
    waits=st.lists(st.floats(1, JITTER), min_size=1, max_size=20),
    offset=st.floats(0, 1),
)
def test_a_standby_takes_a_dead_leader_s_lease_within_the_time_that_the_terms_say(
    duration: float, period: float, waits: list[float], offset: float
) -> None:
    terms = ElectionTerms("system", "operator", duration, 0.0, period)
    waited = itertools.cycle(waits)
    now = seen = offset * period * waits[0]  # when it first sees the last renewal, which was at 0
    while not may_take(record("a_1", duration), "b_1", unchanged_since=seen, now=now):
        now += period * next(waited)
    assert duration <= now <= terms.replaced_within_seconds + 1e-6


def test_a_killed_leader_is_replaced_within_half_a_minute_by_default() -> None:
    by_default = ElectionTerms("system", "operator")
    chart = yaml.safe_load(VALUES.read_text())["leaderElection"]
    names = ("leaseDurationSeconds", "renewDeadlineSeconds", "retryPeriodSeconds")
    assert ElectionTerms("system", "operator", *(float(chart[name]) for name in names)) == by_default
    flags = Settings()
    assert flags.lease_duration_seconds == by_default.duration_seconds
    assert flags.retry_period_seconds == by_default.retry_period_seconds
    assert by_default.replaced_within_seconds < 30


def test_an_operator_without_an_election_always_acts() -> None:
    leadership = Leadership.unopposed()
    assert leadership.is_held()
    assert leadership.until == math.inf
    assert not leadership.problem


@pytest.mark.xdist_group("control-plane")
def test_of_three_one_leads_and_the_next_follows_when_it_releases(
    control_plane: ControlPlane, namespace: str
) -> None:
    async def scenario() -> None:
        api = KubernetesApi(load_config(str(control_plane.kubeconfig), None))
        terms = ElectionTerms(namespace, "operator", 60, 40, PERIOD)
        leaderships = [Leadership() for _ in range(3)]
        electors = [LeaderElector(api, terms, f"pod-{n}", one) for n, one in enumerate(leaderships)]
        waiting = {asyncio.create_task(one.acquire()): one for one in electors}
        order: list[LeaderElector] = []
        while waiting:
            done, _ = await asyncio.wait(
                waiting, timeout=PATIENCE_SECONDS, return_when=asyncio.FIRST_COMPLETED
            )
            (first,) = done
            assert [one.is_held() for one in leaderships].count(True) == 1
            order.append(waiting.pop(first))
            await order[-1].release()
        lease = await api.get(LEASE, namespace, "operator")
        assert lease is not None
        assert (lease["spec"]["leaseTransitions"], lease["spec"]["holderIdentity"]) == (2, "")
        await api.close()

    asyncio.run(scenario())


class RecordsLate(KubernetesApi):
    """Its API server records a renewal, sent earlier and cancelled, just before the next change of the Lease."""

    late = False

    async def replace(self, kind: Kind, manifest: Object) -> Object:
        """As of any API server, but for that renewal."""
        if self.late:
            self.late = False
            now = await self.get(kind, manifest["metadata"]["namespace"], manifest["metadata"]["name"])
            assert now is not None
            await super().replace(
                kind, {**now, "spec": {**now["spec"], "renewTime": "2026-01-01T00:00:00.000000Z"}}
            )
        return await super().replace(kind, manifest)


@pytest.mark.xdist_group("control-plane")
def test_a_lease_is_released_even_if_the_last_renewal_is_recorded_meanwhile(
    control_plane: ControlPlane, namespace: str
) -> None:
    async def scenario() -> None:
        api = RecordsLate(load_config(str(control_plane.kubeconfig), None))
        elector = LeaderElector(
            api, ElectionTerms(namespace, "operator", 60, 40, PERIOD), "pod-0", Leadership()
        )
        await elector.acquire()
        api.late = True
        await elector.release()
        lease = await api.get(LEASE, namespace, "operator")
        assert lease is not None
        assert lease["spec"]["holderIdentity"] == ""
        await api.close()

    asyncio.run(scenario())


@pytest.mark.xdist_group("control-plane")
def test_a_leader_whose_lease_another_takes_is_told_and_one_that_is_only_edited_goes_on(
    control_plane: ControlPlane, namespace: str
) -> None:
    async def scenario() -> None:
        api = KubernetesApi(load_config(str(control_plane.kubeconfig), None))
        leadership = Leadership()
        elector = LeaderElector(
            api, ElectionTerms(namespace, "operator", 60, 40, PERIOD), "pod-0", leadership
        )
        await elector.acquire()
        keeping = asyncio.create_task(elector.keep())
        control_plane.kubectl("annotate", "lease", "operator", "-n", namespace, "example.com/note=x")
        leadership.begun.clear()
        async with asyncio.timeout(PATIENCE_SECONDS):
            await leadership.begun.wait()  # each renewal sets it
        assert not keeping.done()
        patch = '{"spec": {"holderIdentity": "somebody_1"}}'
        control_plane.kubectl("patch", "lease", "operator", "-n", namespace, "--type=merge", "-p", patch)
        async with asyncio.timeout(PATIENCE_SECONDS):
            assert await keeping == f"somebody_1 holds Lease {namespace}/operator now"
        assert not leadership.is_held()
        fenced = KubernetesApi(api.access, may_write=leadership.is_held)
        with pytest.raises(Unavailable, match="does not lead any more"):
            await fenced.create_event({"metadata": {"namespace": namespace, "name": "late"}})
        await fenced.close()
        await api.close()

    asyncio.run(scenario())
