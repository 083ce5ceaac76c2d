"""What watches show of chains under a quota: who had a slot, how long free ones stayed free, and where that time went.

A slot is free from the end of a pod to the making of the next one. Between the two lie five steps:

    pod ends ─► its job is done ─► its Workload is finished, which frees the quota
                          ─► the next Workload is admitted ─► its job is let go ─► its pod is made

The first and the last are the controllers' of the kind of job, the others Kueue's.
"""

from __future__ import annotations

import json
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.simulated_jobs import Api
from modelchain_operator.jobs import backend_of
from modelchain_operator.kubernetes import labels
from modelchain_operator.kubernetes.kinds import CHAIN, POD, WORKLOAD, Kind

QUEUE_ANNOTATION = "benchmark/queue"
STEPS = ("job ends", "quota is freed", "next is admitted", "job is let go", "pod is made")

Object = dict[str, Any]


@dataclass
class Slots:
    """Who had a slot, and when. Times are in monotonic seconds."""

    queues: Sequence[str]
    quota: int
    most: int = 0  # pods at once that nobody has asked to end
    most_with_ending: int = 0  # and with those that were
    waits: list[tuple[float, float]] = field(
        default_factory=list
    )  # when a slot was taken, how long it was free
    preempted: set[str] = field(default_factory=set)  # names of pods
    _live: dict[str, str] = field(default_factory=dict)  # by uid of the pod: its queue
    _ending: set[str] = field(default_factory=set)
    _gone: set[str] = field(default_factory=set)
    _freed: list[float] = field(default_factory=list)  # when slots were freed that nobody has taken yet
    _held: list[tuple[float, dict[str, int]]] = field(
        default_factory=list
    )  # from then on, so many of each queue

    def show(self, kind: str, pod: Object, now: float) -> str:
        """An event of the watch. Returns "made" or "ended" where it is one of these."""
        uid, metadata = pod["metadata"]["uid"], pod["metadata"]
        phase = pod.get("status", {}).get("phase")
        ended = kind == "DELETED" or phase in ("Succeeded", "Failed")
        news = ""
        if ended and uid not in self._gone:
            if phase != "Succeeded":
                self.preempted.add(metadata["name"])
            self._gone.add(uid)
            if self._live.pop(uid, None) is not None:
                news = "ended"
                if len(self._live) < self.quota:  # otherwise its slot was given away while it was ending
                    self._freed.append(now)
        elif not ended and uid not in self._live and uid not in self._gone:
            self._live[uid] = metadata["annotations"][QUEUE_ANNOTATION]
            if self._freed:
                self.waits.append((now, now - self._freed.pop(0)))
            news = "made"
        if metadata.get("deletionTimestamp"):
            self._ending.add(uid)
        if news:
            counts = list(self._live.values())
            self._held.append((now, {queue: counts.count(queue) for queue in self.queues}))
        self.most = max(self.most, sum(uid not in self._ending for uid in self._live))
        self.most_with_ending = max(self.most_with_ending, len(self._live))
        return news

    def shares(self, until: float) -> dict[str, float]:
        """Of the slots, by queue, from the first pod on."""
        total: dict[str, float] = dict.fromkeys(self.queues, 0.0)
        for (begin, counts), (end, _) in zip(self._held, [*self._held[1:], (until, {})], strict=True):
            seconds = max(0.0, min(end, until) - begin)
            for queue, count in counts.items():
                total[queue] += count * seconds
        whole = sum(total.values()) or 1.0
        return {queue: seconds / whole for queue, seconds in total.items()}


@dataclass
class Admissions:
    """Workloads that have a quota, and how long each step to the next pod took."""

    most: int = 0  # Workloads that had a quota at once, by Kueue's account
    steps: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))  # seconds
    _at: dict[tuple[str, str], float] = field(default_factory=dict)  # by step and chain's uid
    _admitted: set[str] = field(default_factory=set)
    _freed: list[float] = field(default_factory=list)

    def pod(self, chain: str, news: str, now: float) -> None:
        """A pod was made, or has ended."""
        if news == "ended":
            self._at["pod ended", chain] = now
        elif news == "made":
            self._since("let go", chain, "pod is made", now)

    def job(self, chain: str, *, suspended: bool, finished: bool, now: float) -> None:
        """A job was changed."""
        if finished and ("finished", chain) not in self._at:
            self._at["finished", chain] = now
            self._since("pod ended", chain, "job ends", now)
        elif not suspended and ("admitted", chain) in self._at:
            self._since("admitted", chain, "job is let go", now)
            self._at["let go", chain] = now

    def workload(self, chain: str, *, reserved: bool, finished: bool, now: float) -> None:
        """A Workload was changed."""
        if reserved and not finished and chain not in self._admitted:
            self._admitted.add(chain)
            self._at["admitted", chain] = now
            self.most = max(self.most, len(self._admitted))
            if self._freed:
                self.steps["next is admitted"].append(now - self._freed.pop(0))
        elif (finished or not reserved) and chain in self._admitted:
            self._admitted.remove(chain)
            self._freed.append(now)
            if finished:
                self._since("finished", chain, "quota is freed", now)

    def _since(self, step: str, chain: str, name: str, now: float) -> None:
        if (began := self._at.pop((step, chain), None)) is not None:
            self.steps[name].append(max(0.0, now - began))


class Watch:
    """Watches the pods, jobs, Workloads and chains of a namespace, each kind in a thread."""

    def __init__(self, api: Api, namespace: str, job: Kind, queues: Sequence[str], quota: int) -> None:
        self.slots, self.admissions = Slots(queues, quota), Admissions()
        self.complete: set[str] = set()  # names of chains
        self._api, self._lock = api, threading.Lock()
        self._chain_of: dict[str, str] = {}  # by uid of the job: uid of the chain
        for kind, show in (
            (POD, self._show_pod),
            (job, self._show_job),
            (WORKLOAD, self._show_workload),
            (CHAIN, self._show_chain),
        ):
            path = (
                f"{'/apis' if '/' in kind.api_version else '/api'}/{kind.api_version}/namespaces/{namespace}"
            )
            version = api.send("GET", f"{path}/{kind.plural}")["metadata"]["resourceVersion"]
            arguments = (f"{path}/{kind.plural}", version, show)
            threading.Thread(target=self._run, args=arguments, daemon=True).start()

    def _run(self, path: str, version: str, show: Callable[[str, Object, float], None]) -> None:
        for line in self._api.watch(path, version):
            event, now = json.loads(line), time.monotonic()
            with self._lock:
                show(event["type"], event["object"], now)

    def _show_pod(self, kind: str, pod: Object, now: float) -> None:
        chain = (pod["metadata"].get("labels") or {}).get(labels.CHAIN_UID)
        if chain is not None:
            self.admissions.pod(chain, self.slots.show(kind, pod, now), now)

    def _show_job(self, kind: str, job: Object, now: float) -> None:
        chain = (job["metadata"].get("labels") or {}).get(labels.CHAIN_UID)
        if chain is not None and kind != "DELETED":
            self._chain_of[job["metadata"]["uid"]] = chain
            state = backend_of(job).read(job)
            self.admissions.job(chain, suspended=state.suspended, finished=state.finished, now=now)

    def _show_workload(self, kind: str, workload: Object, now: float) -> None:
        owners = workload["metadata"].get("ownerReferences") or [{}]
        chain = self._chain_of.get(owners[0].get("uid", ""))
        if chain is None or kind == "DELETED":
            return
        conditions = {one["type"]: one["status"] for one in workload.get("status", {}).get("conditions", ())}
        self.admissions.workload(
            chain,
            reserved=conditions.get("QuotaReserved") == "True",
            finished=conditions.get("Finished") == "True",
            now=now,
        )

    def _show_chain(self, _: str, chain: Object, __: float) -> None:
        if chain.get("status", {}).get("phase") == "Complete":
            self.complete.add(chain["metadata"]["name"])


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which that share of them lies; 0 of none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else 0.0


def summary(steps: Mapping[str, Sequence[float]]) -> dict[str, tuple[float, float]]:
    """Median and 99th percentile of each step, in seconds."""
    return {name: (quantile(steps.get(name, ()), 0.5), quantile(steps.get(name, ()), 0.99)) for name in STEPS}
