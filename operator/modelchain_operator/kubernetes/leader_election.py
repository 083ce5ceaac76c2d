"""Which of several operators acts: the one that holds a Lease, as in client-go's `leaderelection`.

A holder renews the Lease every `retry_period_seconds`. One that can't for `renew_deadline_seconds` stops acting, before
anybody else may begin: others wait until they have seen no renewal for `duration_seconds`. Times are never compared
between machines; each measures, by its own clock, since when it has seen no change. Between two of its own renewals a
holder may have been paused, so every write asks `Leadership.is_held` just before it is sent.

https://kubernetes.io/docs/concepts/architecture/leases/
https://pkg.go.dev/k8s.io/client-go/tools/leaderelection
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from modelchain_operator.kubernetes.api import ApiError, Conflict, Forbidden, KubernetesApi, Object
from modelchain_operator.kubernetes.kinds import LEASE

logger = logging.getLogger(__name__)

JITTER = 1.2  # of the standby's period, so that two do not ask in step
RELEASE_PAUSE_SECONDS = 0.1  # between two tries to release the Lease


@dataclass(frozen=True)
class ElectionTerms:
    """By which Lease a leader is elected, and how long its holder may fail to renew it."""

    namespace: str
    name: str
    duration_seconds: float = 15.0
    renew_deadline_seconds: float = 10.0
    retry_period_seconds: float = 2.0

    @property
    def replaced_within_seconds(self) -> float:
        """Until another one holds the Lease after a leader's last renewal, where the API server answers at once: the
        standby sees that renewal up to one period late, and asks again up to one period after the Lease has ended.
        """
        return self.duration_seconds + 2 * JITTER * self.retry_period_seconds


@dataclass(frozen=True)
class LeaseRecord:
    """What a Lease says of its holder."""

    holder: str  # empty: nobody
    duration_seconds: float
    acquired_at: str  # as the holder wrote it; for people
    transitions: int  # how often another one has taken it

    @classmethod
    def of(cls, lease: Object) -> LeaseRecord:
        """Read a Lease as the API server has it. Whoever left fields out holds nothing."""
        spec = lease.get("spec") or {}
        return cls(
            holder=spec.get("holderIdentity") or "",
            duration_seconds=float(spec.get("leaseDurationSeconds") or 0),
            acquired_at=spec.get("acquireTime") or "",
            transitions=int(spec.get("leaseTransitions") or 0),
        )


def may_take(record: LeaseRecord, process: str, *, unchanged_since: float, now: float) -> bool:
    """Whether `process` (`<identity>_<nonce>`) may take or renew a Lease that it has seen unchanged since then.

    It may at once where nobody holds it, and where an earlier process of the same identity does: in a pod, that one is
    dead.
    """
    if not record.holder or _identity(record.holder) == _identity(process):
        return True
    return now >= unchanged_since + record.duration_seconds


class Leadership:
    """Whether this process may act now. It is asked before every write, in any thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.begun = asyncio.Event()  # it has led
        self.problem = "the Lease was not read yet"  # why the election can't be followed; empty: it can
        self._clock = clock
        self._until = -math.inf

    @classmethod
    def unopposed(cls) -> Leadership:
        """Of an operator that takes part in no election."""
        leadership = cls()
        leadership.problem = ""
        leadership.extend(math.inf)
        return leadership

    def is_held(self) -> bool:
        """Whether nobody else may have begun to act meanwhile."""
        return self._clock() < self._until

    @property
    def until(self) -> float:
        """When it ends unless it is extended, by the process's own monotonic clock."""
        return self._until

    def extend(self, until: float) -> None:
        """It is held until then."""
        self._until = until
        self.begun.set()

    def end(self) -> None:
        """It is held no more."""
        self._until = -math.inf


class LeaderElector:
    """Takes the Lease when nobody else holds it, and keeps it. Used in one event loop."""

    def __init__(
        self, api: KubernetesApi, terms: ElectionTerms, identity: str, leadership: Leadership
    ) -> None:
        """`api` is its own, so that renewals wait for no other request. `identity` is not that of another process that
        runs: in a pod, its name.
        """
        self._api = api
        self._terms = terms
        self._process = f"{identity}_{secrets.token_hex(4)}"
        self._leadership = leadership
        self._lease: Object | None = None  # as it was last seen
        self._unchanged_since = -math.inf
        self._leader: str | None = None  # whom the log has named last

    async def acquire(self) -> None:
        """Stand by until the Lease can be taken, and take it."""
        while True:
            if await self._take_or_renew():
                break
            await asyncio.sleep(self._terms.retry_period_seconds * random.uniform(1, JITTER))  # noqa: S311
        logger.info("leading: %s holds Lease %s", self._process, self._name)

    async def keep(self) -> str:
        """Renew the Lease, again and again. Returns why it is ours no more."""
        try:
            while True:
                async with asyncio.timeout_at(self._leadership.until):
                    await asyncio.sleep(self._terms.retry_period_seconds)
                    if not await self._take_or_renew() and self._leader != self._process:
                        self._leadership.end()
                        return f"{self._leader or 'nobody'} holds Lease {self._name} now"
        except TimeoutError:
            self._leadership.end()
            why = f": {self._leadership.problem}" if self._leadership.problem else ""
            return f"Lease {self._name} was not renewed for {self._terms.renew_deadline_seconds:g} s{why}"

    async def release(self) -> None:
        """Let others begin at once. Nothing of this process acts any more."""
        self._leadership.end()
        if self._leader != self._process:
            return
        try:
            async with asyncio.timeout(self._terms.renew_deadline_seconds / 2):
                while True:
                    if await self._let_go():
                        return
                    await asyncio.sleep(RELEASE_PAUSE_SECONDS)
        except TimeoutError:
            why = f": {self._leadership.problem}" if self._leadership.problem else ""
            logger.warning("Lease %s was not released, so it has to expire%s", self._name, why)

    async def _let_go(self) -> bool:
        """One try. Returns whether this process holds the Lease no more. A renewal that was cancelled may have been
        recorded only after the Lease was read here.
        """
        try:
            lease = await self._api.get(LEASE, self._terms.namespace, self._terms.name)
            if lease is None or LeaseRecord.of(lease).holder != self._process:
                return True
            spec = {**lease["spec"], "holderIdentity": "", "leaseDurationSeconds": 1, "renewTime": _now()}
            await self._api.replace(LEASE, {**lease, "spec": spec})
        except ApiError as error:
            self._leadership.problem = str(error)
            return False
        logger.info("released Lease %s", self._name)
        return True

    @property
    def _name(self) -> str:
        return f"{self._terms.namespace}/{self._terms.name}"

    async def _take_or_renew(self) -> bool:
        """One try. Returns whether the Lease is ours; if it was before, `_leader` tells a failure from a loss."""
        began = time.monotonic()  # before the server can have recorded it: others count from later on
        try:
            async with asyncio.timeout(self._terms.renew_deadline_seconds / 2):
                renewed = await self._renewed()
        except Conflict:
            self._lease = None  # somebody was faster; the next try reads who
            renewed = None
        except Forbidden as error:
            self._report(f"{error}; the operator needs get, create and update of leases there")
            return False
        except ApiError as error:
            self._report(str(error))
            return False
        except TimeoutError:
            self._report(f"the API server has not answered in {self._terms.renew_deadline_seconds / 2:g} s")
            return False
        self._report("")
        if renewed is None:
            return False
        self._observe(renewed)
        self._leadership.extend(began + self._terms.renew_deadline_seconds)
        return True

    async def _renewed(self) -> Object | None:
        """The Lease, renewed; None while another one holds it. Raises Conflict, ApiError."""
        namespace, name = self._terms.namespace, self._terms.name
        if not (self._lease and self._leader == self._process):
            found = await self._api.get(LEASE, namespace, name)
            if found is None:
                metadata = {"namespace": namespace, "name": name}
                body = {"apiVersion": LEASE.api_version, "kind": LEASE.kind, "metadata": metadata}
                return await self._api.create(LEASE, {**body, "spec": self._spec(None)})
            self._observe(found)
        assert self._lease is not None
        record, since = LeaseRecord.of(self._lease), self._unchanged_since
        if not may_take(record, self._process, unchanged_since=since, now=time.monotonic()):
            return None
        if self._leadership.is_held() and record.holder != self._process:
            return None  # a process of this identity has taken it from this one
        return await self._api.replace(LEASE, {**self._lease, "spec": self._spec(record)})

    def _spec(self, before: LeaseRecord | None) -> Object:
        now = _now()
        kept = before is not None and before.holder == self._process
        transitions = 0 if before is None else before.transitions + (not kept)
        return {
            "holderIdentity": self._process,
            "leaseDurationSeconds": math.ceil(self._terms.duration_seconds),
            "acquireTime": before.acquired_at if before is not None and kept else now,
            "renewTime": now,
            "leaseTransitions": transitions,
        }

    def _observe(self, lease: Object) -> None:
        version = lease["metadata"]["resourceVersion"]
        if self._lease is None or self._lease["metadata"]["resourceVersion"] != version:
            self._unchanged_since = time.monotonic()
        self._lease = lease
        leader = LeaseRecord.of(lease).holder
        if leader != self._leader:
            self._leader = leader
            if leader and leader != self._process:
                logger.info("standing by: %s holds Lease %s", leader, self._name)

    def _report(self, problem: str) -> None:
        if problem and problem != self._leadership.problem:
            logger.warning("Lease %s: %s", self._name, problem)
        self._leadership.problem = problem


def _identity(process: str) -> str:
    return process.rpartition("_")[0]


def _now() -> str:
    """As the API has its `MicroTime`."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
