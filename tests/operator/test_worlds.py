"""Worlds against the whole reconciler: hostile pods and jobs, namespaces that vanish, other versions of the operator,
stages that are renamed, stores and caches that are old, two operators that know nothing of each other and are killed.

Of an operator nothing is replaced but the API server and the store, which are in memory. MODELCHAIN_WORLDS says how
many worlds are played.
"""

from __future__ import annotations

import asyncio
import copy
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from modelchain.artifacts import Manifest
from modelchain.reconcile.observation import StageFacts
from modelchain.resolved import STAGE_ENVIRONMENT_VARIABLE, ResolvedStage
from modelchain.stage_probe import StoreSnapshot
from modelchain.status import ChainStatus
from modelchain_operator.acceptance import Accepted
from modelchain_operator.app import build_reconciler
from modelchain_operator.chain_limit import ChainLimit
from modelchain_operator.informers.cache import Cache
from modelchain_operator.jobs.names import job_name
from modelchain_operator.kubernetes import labels
from modelchain_operator.kubernetes.api import ApiError, Object, ObjectVersion
from modelchain_operator.kubernetes.key import Key
from modelchain_operator.kubernetes.kinds import CHAIN, JOB, POD, Kind
from modelchain_operator.live_view import LiveView
from modelchain_operator.observe import reference_of, status_of
from modelchain_operator.reconciler import Reconciler
from modelchain_operator.recovered_stages import stage_of
from modelchain_operator.settings import Settings
from modelchain_operator.status_writer import StatusWriter
from modelchain_operator.telemetry.metrics import Metrics
from modelchain_operator.work_queue import KeyQueue
from tests.modelchain.reconcile.chains import NOW, manifest
from tests.operator.memory_api import MemoryApi, key_of

WORLDS = int(os.environ.get("MODELCHAIN_WORLDS", "0"))  # 0: the same few each time
STAYS, LEAVES = Key("stays", "family"), Key("leaves", "family")
ELSEWHERE = "s3://elsewhere/chains"  # a store that no chain names
LIMIT = 2
ROUNDS = 120  # far more than any quiet world needs
NAMES = ("tiny", "small", "little", "petite")


class Stores:
    """What each stage's folder holds, and what the operator last read of it."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.known: dict[tuple[Key, str, str], tuple[StageFacts, float]] = {}

    def facts(self, stage: ResolvedStage) -> StageFacts:
        return StageFacts(manifest=self.world.manifests.get(stage.digest))

    def read(self, key: Key, accepted: Accepted) -> None:
        for stage in accepted.chain.all_stages:
            self.known[key, stage.name, stage.digest] = self.facts(stage), self.world.now

    async def snapshot(self, key: Key, accepted: Accepted, _: ChainStatus | None) -> StoreSnapshot | None:
        stages = accepted.chain.all_stages
        asked = {
            (one.namespace, one.name) for one in (accepted.chain.chain, *(stage.chain for stage in stages))
        }
        assert asked == {key}, "a store is read for the chain that asks, whatever its jobs say"
        read = {one.uri for one in (accepted.chain.store, *(stage.store for stage in stages))}
        assert ELSEWHERE not in {*read, accepted.store.uri}, "nor is another one"
        there = {(key, stage.name, stage.digest) for stage in stages}  # the reader forgets all others
        self.known = {known: one for known, one in self.known.items() if known[0] != key or known in there}
        found = {stage.name: self.known.get((key, stage.name, stage.digest)) for stage in stages}
        if None in found.values():
            self.read(key, accepted)  # the operator's reader does so a moment later
            return None
        known = {name: one for name, one in found.items() if one is not None}
        return StoreSnapshot(
            {name: facts for name, (facts, _) in known.items()},
            NOW,
            {},
            read_at={name: at for name, (_, at) in known.items()},
        )

    async def written(self, key: Key, accepted: Accepted, status: ChainStatus) -> None:
        pass

    def refresh(self, key: Key, stage: str) -> None:
        self.known = {known: one for known, one in self.known.items() if known[:2] != (key, stage)}

    def forget(self, key: Key) -> None:
        self.known = {known: one for known, one in self.known.items() if known[0] != key}


class Operator:
    """One that has just started: it knows nothing but what it is shown."""

    def __init__(self, world: World) -> None:
        self.cache = Cache()
        self.stores = Stores(world)
        self.reconciler = reconciler(world.api, self.cache, self.stores)


def reconciler(api: MemoryApi, cache: Cache, stores: Any) -> Reconciler:
    """As the operator puts it together."""
    metrics, queue = Metrics(), KeyQueue()
    statuses = StatusWriter(api, cache, metrics, "world")
    limit = ChainLimit(None, queue.add)
    operator_settings = Settings(default_image="trainer:test")
    return build_reconciler(
        operator_settings, api, LiveView(api, cache), cache, queue, stores, statuses, limit, metrics
    )


class World(RuleBasedStateMachine):
    """A cluster with two chains, one of which lies in a namespace that may go, and everybody who is up to something."""

    def __init__(self) -> None:
        super().__init__()
        self.now = NOW
        self.api = MemoryApi()
        self.manifests: dict[str, Manifest] = {}
        self.foreign: set[str] = set()  # uids of what others have made with our labels
        self.forged: set[str] = set()  # uids of jobs that nobody can tell from ours
        self.crashes = 0
        self.attempts: dict[tuple[str, str], int] = {}  # by chain's uid and stage: the highest that was said
        self.vanished: dict[str, Manifest] = {}
        # Name and digest of what the status of the chain that stays says is complete; another name is an edit.
        self.complete: set[tuple[str, str]] = set()
        self.api.on_create = self.nothing_is_trained_again
        self.loop = asyncio.new_event_loop()
        self.operators = [Operator(self), Operator(self)]

    @contextmanager
    def time(self) -> Iterator[None]:
        with patch("time.time", lambda: self.now), patch("time.monotonic", lambda: self.now - NOW + 1000):
            yield

    # ---- the chains

    @initialize(names=st.permutations(NAMES))
    def create(self, names: list[str]) -> None:
        for key in (STAYS, LEAVES):
            self.api.put(CHAIN, chain(key, names[:2]))
        self.resync()

    @rule(number=st.integers(0, 1), name=st.sampled_from(NAMES))
    def rename_a_stage(self, number: int, name: str) -> None:
        """The same weights under another name; it may have been another stage's."""
        body = self.api.objects[CHAIN, *STAYS]
        stages = body["spec"]["stages"]
        if name in {stage["name"] for stage in stages}:
            return
        old = stages[number]["name"]
        stages[number]["name"] = name
        for stage in stages:
            if stage.get("from") == old:
                stage["from"] = name
        self.edit(body)

    @rule(epochs=st.integers(1, 2))
    def edit_a_stage(self, epochs: int) -> None:
        body = self.api.objects[CHAIN, *STAYS]
        body["spec"]["stages"][1]["training"] = {"epochs": epochs}
        self.edit(body)

    @rule(suspend=st.booleans())
    def suspend(self, suspend: bool) -> None:
        body = self.api.objects[CHAIN, *STAYS]
        body["spec"]["suspend"] = suspend
        self.edit(body)

    @rule(wrong=st.booleans())
    def an_edit_is_refused(self, wrong: bool) -> None:
        """Or corrected."""
        body = self.api.objects[CHAIN, *STAYS]
        body["spec"]["training"]["epochs"] = -1 if wrong else 1
        self.edit(body)

    @rule(
        name=st.sampled_from(NAMES),
        says=st.sampled_from([STAYS, LEAVES, Key("elsewhere", "family")]),
        late=st.booleans(),
        who=st.integers(0, 1),
    )
    def a_refused_chain_has_a_forged_job(self, name: str, says: Key, late: bool, who: int) -> None:
        """In the place of its own, which is deleted; its environment says that it is of another chain, or that its
        store is another one. It appears before the operator has looked for jobs, or afterwards.
        """
        self.watch(len(self.api.changes))
        self.passes(STAYS, who)
        status = status_of(self.api.objects[CHAIN, *STAYS])
        stage = status.find_stage(name) if status is not None else None
        called = job_name(reference_of(self.api.objects[CHAIN, *STAYS]), name, stage.attempt if stage else 1)
        own = self.api.objects.get((JOB, STAYS.namespace, called))
        if own is None or own["metadata"]["uid"] in self.foreign | self.forged:
            return
        self.api.take(JOB, STAYS.namespace, called)
        self.an_edit_is_refused(wrong=True)
        if late:
            self.resync()
            self.passes(STAYS, who)
        forged = copy.deepcopy(own)
        forged["metadata"] = {key: one for key, one in own["metadata"].items() if key != "uid"}
        forged["spec"]["suspend"] = True
        (container,) = forged["spec"]["template"]["spec"]["containers"]
        variable = next(one for one in container["env"] if one["name"] == STAGE_ENVIRONMENT_VARIABLE)
        told = json.loads(variable["value"])
        told["chain"] |= {"namespace": says.namespace, "name": says.name}
        if says == STAYS:
            told["store"]["uri"] = ELSEWHERE
        variable["value"] = json.dumps(told)
        self.forged.add(self.api.put(JOB, forged)["metadata"]["uid"])
        for _ in range(3):
            self.resync()
            self.passes(STAYS, who)

    def edit(self, body: Object) -> None:
        body["metadata"]["generation"] += 1
        self.api.put(CHAIN, body)

    @rule()
    def a_namespace_vanishes(self) -> None:
        self.api.vanish(LEAVES.namespace)

    # ---- the operators

    @rule(key=st.sampled_from([STAYS, LEAVES]), who=st.integers(0, 1))
    def passes(self, key: Key, who: int) -> None:
        """Also of a chain that is gone. A failed request delays it; nothing else may be raised."""
        self.now += 1
        with self.time():
            try:
                self.loop.run_until_complete(self.operators[who].reconciler.reconcile(key))
            except ApiError:
                self.now += 1
        self.no_job_is_made_twice_and_no_two_run_for_the_same_weights()

    @rule(times=st.integers(1, 6), who=st.integers(0, 1))
    def all_goes_well_for_a_while(self, times: int, who: int) -> None:
        for _ in range(times):
            self.watch(len(self.api.changes))
            self.passes(STAYS, who)
            self.passes(LEAVES, who)
            self.kubelet(0)
            self.now += 10

    @rule(times=st.integers(2, 5), choice=st.integers(0, 3), who=st.integers(0, 1))
    def a_status_is_written_late(self, times: int, choice: int, who: int) -> None:
        """Between the decision and the write, the other operator and the nodes go on."""
        other = self.operators[1 - who]

        async def meanwhile() -> None:
            for _ in range(times):
                self.watch(len(self.api.changes))
                self.kubelet(choice)
                self.now += 10
                with suppress(ApiError):
                    await other.reconciler.reconcile(STAYS)
                self.counters_are_sane()
                self.what_is_complete_is_remembered()

        self.api.before_write = meanwhile
        self.passes(STAYS, who)
        self.api.before_write = None

    @rule(
        number=st.integers(0, 1),
        name=st.sampled_from(NAMES),
        lost=st.booleans(),
        shown=st.integers(1, 4),
        who=st.integers(0, 1),
    )
    def a_stage_is_renamed_while_it_trains(
        self, number: int, name: str, lost: bool, shown: int, who: int
    ) -> None:
        """Of its pods, an operator may see nothing (`lost`), and of its end only a part (`shown` changes a pass)."""
        self.watch(len(self.api.changes))
        self.passes(STAYS, who)
        self.kubelet(2)
        if lost:
            self.watches_lose_everything()
        self.rename_a_stage(number, name)
        for _ in range(4):
            self.watch(shown)
            self.passes(STAYS, who)

    @rule(number=st.integers(0, 1), name=st.sampled_from(NAMES), who=st.integers(0, 1))
    def a_stage_is_renamed_while_its_pods_are_made(self, number: int, name: str, who: int) -> None:
        """After the operator's look at them, and before it ends their job; that the job is gone is shown first."""

        async def meanwhile() -> None:
            for _ in range(2):  # made, and then running
                self.kubelet(2)

        for _ in range(3):  # the store is read, the status is written, the job is made
            self.watch(len(self.api.changes))
            self.passes(STAYS, who)
        self.rename_a_stage(number, name)
        self.watch(len(self.api.changes))
        self.the_store_is_read(who)
        self.api.before_write = meanwhile
        self.passes(STAYS, who)
        self.api.before_write = None
        self.watch(len(self.api.changes), only=JOB)
        self.passes(STAYS, who)

    @rule(who=st.integers(0, 1))
    def an_operator_is_killed(self, who: int) -> None:
        self.operators[who] = Operator(self)
        self.resync()

    @rule(who=st.integers(0, 1))
    def the_store_is_read(self, who: int) -> None:
        operator = self.operators[who]
        for key in (STAYS, LEAVES):
            if (cached := operator.cache.chain(key)) is not None:
                accepted = operator.reconciler.acceptance.validate(cached.body())
                if isinstance(accepted, Accepted):
                    operator.stores.read(key, accepted)

    @rule(count=st.integers(1, 6), only=st.sampled_from([None, None, CHAIN, JOB, POD]))
    def watch(self, count: int, only: Kind | None = None) -> None:
        """Show the next changes; what is not shown yet makes the caches old. Each kind has a watch of its own (`only`):
        they keep no order between them.
        """
        now: list[tuple[Kind, Object, bool]] = []
        later: list[tuple[Kind, Object, bool]] = []
        for change in self.api.changes:
            (now if len(now) < count and only in (None, change[0]) else later).append(change)
        self.api.changes = later
        for cache in (operator.cache for operator in self.operators):
            for kind, item, deleted in now:
                if kind == CHAIN and deleted:
                    cache.drop_chain(key_of(item), item["metadata"]["uid"])
                elif kind == CHAIN:
                    cache.show_chain(item)
                else:
                    cache.show(kind, item, deleted=deleted)

    @rule()
    def watches_lose_everything(self) -> None:
        self.api.changes.clear()

    @rule()
    def resync(self) -> None:
        self.api.changes.clear()
        for cache in (operator.cache for operator in self.operators):
            for kind in (JOB, POD):
                items = self.api.all(kind)
                before = cache.uids(kind)
                for item in items:
                    cache.show(kind, copy.deepcopy(item))
                cache.drop_absent(kind, {item["metadata"]["uid"] for item in items}, before)
            known = cache.chain_uids()
            for item in self.api.all(CHAIN):
                cache.show_chain(copy.deepcopy(item))
            _, gone = cache.stale_chains(map(version_of, self.api.all(CHAIN)), known)
            for key in gone:
                cache.drop_chain(key)

    @precondition(lambda self: (CHAIN, *STAYS) in self.api.objects)
    @rule(number=st.integers(0, 1))
    def another_version_has_written(self, number: int) -> None:
        """One with words that this one does not know; then it was rolled back."""
        body = self.api.objects[CHAIN, *STAYS]
        status = body.get("status")
        if not status or number >= len(status["stages"]):
            return
        stage = status["stages"][number]
        stage |= {"phase": "Hibernating", "reason": "TooCold", "celsius": -4}
        condition = {"type": "Hibernating", "status": "True", "reason": "TooCold", "message": ""}
        condition["lastTransitionTime"] = "2026-11-20T00:00:00Z"
        others = [one for one in status["conditions"] if one["type"] != "Hibernating"]
        status["conditions"] = [*others, condition]
        self.api.put(CHAIN, body)

    # ---- the nodes

    @rule(choice=st.integers(0, 3))
    def kubelet(self, choice: int) -> None:
        """Every job takes its next step; with `choice` 1, and not too often, to failure. With 2 and more, trainers that
        run go on.
        """
        for job in self.own_jobs():
            pods = list(self.api.pods_of(job))
            if not pods and not ended(job):
                self.api.put(POD, pod_of(job))
        for pod in self.api.all(POD):
            if pod["metadata"]["uid"] in self.foreign:
                continue
            if pod["metadata"].get("deletionTimestamp"):
                self.api.take(POD, pod["metadata"]["namespace"], pod["metadata"]["name"])
            elif pod["status"]["phase"] == "Pending":
                pod["spec"]["nodeName"] = "node"
                self.api.put(POD, {**pod, "status": running()})
            elif pod["status"]["phase"] == "Running" and choice < 2:
                fails = choice == 1 and self.crashes < LIMIT
                self.crashes += fails
                self.end(pod, code=1 if fails else 0)

    def end(self, pod: Object, code: int) -> None:
        job = next((job for job in self.own_jobs() if pod in self.api.pods_of(job)), None)
        self.api.put(POD, {**pod, "status": terminated(code)})
        if job is None:
            return
        kind, reason = ("Failed", "BackoffLimitExceeded") if code else ("Complete", "CompletionsReached")
        condition = {"type": kind, "status": "True", "reason": reason, "message": ""}
        self.api.put(JOB, {**job, "status": {"conditions": [condition]}})
        digest = job["metadata"]["annotations"][labels.DIGEST_ANNOTATION]
        if not code and (stage := stage_of(job)) is not None:
            self.manifests.setdefault(digest, manifest(stage))

    def own_jobs(self) -> list[Object]:
        return [job for job in self.api.all(JOB) if job["metadata"]["uid"] not in self.foreign | self.forged]

    def stage_of(self, digest: str) -> ResolvedStage | None:
        for body in self.api.all(CHAIN):
            accepted = self.operators[0].reconciler.acceptance.validate(body)
            if isinstance(accepted, Accepted):
                for stage in accepted.chain.all_stages:
                    if stage.digest == digest:
                        return stage
        return None

    @rule(number=st.integers(0, 1))
    def artifacts_vanish(self, number: int) -> None:
        found = sorted({digest for _, digest in self.complete} & self.manifests.keys())
        if number < len(found):
            self.vanished[found[number]] = self.manifests.pop(found[number])

    # ---- the hostile

    @rule(
        where=st.sampled_from(["stays", "leaves", "elsewhere"]),
        stage=st.sampled_from(NAMES),
        attempt=st.sampled_from(["0", "1", "2", "01", "-1", "٣", str(2**63 - 1), "9" * 40, "", "one"]),
        owner=st.sampled_from([None, "ReplicaSet", "ModelChain", "not controlling"]),
        phase=st.sampled_from(["Pending", "Running", "Succeeded", "Failed"]),
        kind=st.sampled_from([POD, POD, JOB]),
    )
    def somebody_copies_our_labels(
        self, where: str, stage: str, attempt: str, owner: str | None, phase: str, kind: Any
    ) -> None:
        if where in self.api.gone or (CHAIN, *STAYS) not in self.api.objects:
            return
        chain_metadata = self.api.objects[CHAIN, *STAYS]["metadata"]
        references = {
            None: [],
            "ReplicaSet": [reference("apps/v1", "ReplicaSet", "web", "uid-web", controller=True)],
            "ModelChain": [
                reference(CHAIN.api_version, CHAIN.kind, "family", "uid-of-another", controller=True)
            ],
            "not controlling": [
                reference(CHAIN.api_version, CHAIN.kind, "family", chain_metadata["uid"], controller=False)
            ],
        }[owner]
        item = {
            "metadata": {
                "namespace": where,
                "name": f"copy-{len(self.foreign)}",
                "labels": {
                    labels.CHAIN_UID: chain_metadata["uid"],
                    labels.STAGE: stage,
                    labels.ATTEMPT: attempt,
                },
                "annotations": {labels.DIGEST_ANNOTATION: "0" * 64},
                "ownerReferences": references,
            },
            "spec": {"containers": [{"name": "pytorch"}], "nodeName": "node"},
            "status": running() if phase == "Running" else {"phase": phase},
        }
        self.foreign.add(self.api.put(kind, item)["metadata"]["uid"])

    @rule(attempt=st.integers(1, 3))
    def somebody_takes_the_name_of_the_next_job(self, attempt: int) -> None:
        body = self.api.objects[CHAIN, *STAYS]
        name = job_name(reference_of(body), body["spec"]["stages"][0]["name"], attempt)
        if (JOB, STAYS.namespace, name) in self.api.objects:
            return
        made = self.api.put(
            JOB, {"metadata": {"namespace": STAYS.namespace, "name": name}, "spec": {"suspend": True}}
        )
        self.foreign.add(made["metadata"]["uid"])

    @rule(
        name=st.sampled_from(NAMES),
        attempt=st.one_of(st.integers(1, 5), st.sampled_from([10**6 - 1, 10**6, 10**6 + 1, 2**63 - 1])),
        same_weights=st.booleans(),
        times=st.integers(0, 6),
        who=st.integers(0, 1),
    )
    def somebody_forges_a_job(
        self, name: str, attempt: int, same_weights: bool, times: int, who: int
    ) -> None:
        """One that names the chain as its controller and is called as ours would be: whoever may create jobs can. What
        is trained then trains on for a while.
        """
        body = self.api.objects[CHAIN, *STAYS]
        metadata = body["metadata"]
        called = job_name(reference_of(body), name, attempt)
        if (JOB, STAYS.namespace, called) in self.api.objects:
            return
        status = status_of(body)
        stage = status.find_stage(name) if status is not None else None
        owner = reference(CHAIN.api_version, CHAIN.kind, STAYS.name, metadata["uid"], controller=True)
        item = {
            "metadata": {
                "namespace": STAYS.namespace,
                "name": called,
                "labels": {
                    labels.CHAIN_UID: metadata["uid"],
                    labels.STAGE: name,
                    labels.ATTEMPT: str(attempt),
                },
                "annotations": {
                    labels.DIGEST_ANNOTATION: stage.digest if stage is not None and same_weights else "0" * 64
                },
                "ownerReferences": [owner],
            },
            "spec": {"suspend": True},
            "status": {},
        }
        self.forged.add(self.api.put(JOB, item)["metadata"]["uid"])
        for _ in range(times):
            self.watch(len(self.api.changes))
            self.passes(STAYS, who)
            self.kubelet(2)
            self.now += 10

    # ---- what always holds

    @invariant()
    def nothing_of_others_is_touched(self) -> None:
        assert not {item["metadata"]["uid"] for item in self.api.deleted} & self.foreign

    @invariant()
    def no_job_is_made_twice_and_no_two_run_for_the_same_weights(self) -> None:
        assert not [name for name, count in self.api.made.items() if count > 1]
        trainers: dict[tuple[str, str], set[str]] = {}  # jobs that may train, by namespace and digest
        for job in self.own_jobs():
            if not ended(job):
                trainers.setdefault(weights_of(job), set()).add(job["metadata"]["uid"])
        for pod in self.api.all(POD):  # those of a job that is gone run on until the kubelet has ended them
            if pod["metadata"]["uid"] not in self.foreign and pod["status"]["phase"] == "Running":
                (owner,) = pod["metadata"]["ownerReferences"]
                trainers.setdefault(weights_of(pod), set()).add(owner["uid"])
        assert all(len(jobs) == 1 for jobs in trainers.values())

    def nothing_is_trained_again(self, job: Object) -> None:
        """That was complete and is gone from the store: nobody has asked for that."""
        if job["metadata"]["namespace"] == STAYS.namespace:
            metadata = job["metadata"]
            stage = metadata["labels"][labels.STAGE], metadata["annotations"][labels.DIGEST_ANNOTATION]
            assert stage not in self.complete

    @invariant()
    def what_is_complete_is_remembered(self) -> None:
        body = self.api.objects.get((CHAIN, STAYS.namespace, STAYS.name))
        status = status_of(body) if body is not None else None
        if status is None:
            return
        finished = {(stage.name, stage.digest) for stage in status.all_stages if stage.finished}
        there = {(stage.name, stage.digest) for stage in status.all_stages}
        assert not self.complete & there - finished, "what was complete stays so, whoever has written since"
        self.complete = finished  # an edit there and back forgets: then only the store remembers

    @invariant()
    def counters_are_sane(self) -> None:
        for body in self.api.all(CHAIN):
            status = status_of(body)
            for stage in status.all_stages if status is not None else ():
                name = (body["metadata"]["uid"], stage.name)
                assert self.attempts.get(name, 0) <= stage.attempt < 10**6 + 1000, "attempts only grow"
                assert stage.failures <= LIMIT + 1
                self.attempts[name] = stage.attempt

    def teardown(self) -> None:
        """Once everybody leaves it alone, the chain that stays is complete: its own failures were too few to end it."""
        if (CHAIN, *STAYS) in self.api.objects:
            others = self.foreign | self.forged
            for job in [job for job in self.api.all(JOB) if job["metadata"]["uid"] in others]:
                self.api.take(JOB, job["metadata"]["namespace"], job["metadata"]["name"])
            self.manifests.update(self.vanished)
            self.suspend(False)
            self.an_edit_is_refused(wrong=False)
            self.come_to_its_end()
        self.loop.close()

    def come_to_its_end(self) -> None:
        for number in range(ROUNDS):
            who = number % 2
            self.resync()
            self.the_store_is_read(who)
            self.passes(STAYS, who)
            self.no_job_is_made_twice_and_no_two_run_for_the_same_weights()
            self.kubelet(0)
            self.now += 31
            if self.api.objects[CHAIN, *STAYS].get("status", {}).get("phase") == "Complete":
                return
        raise AssertionError(f"does not come to its end: {self.api.objects[CHAIN, *STAYS].get('status')}")


def chain(key: Key, names: list[str]) -> Object:
    first, second = names
    return {
        "metadata": {
            "namespace": key.namespace,
            "name": key.name,
            "generation": 1,
            "uid": f"uid-{key.namespace}",
        },
        "spec": {
            "store": {"uri": f"s3://bucket/{key.namespace}", "secretRef": {"name": "s3"}},
            "data": {"shards": ["s3://bucket/{00..03}.tar"], "samples": 1000},
            "training": {"epochs": 1, "globalBatchSize": 10},
            "retry": {"limit": LIMIT, "backoffSeconds": 0, "disruptionLimit": 1000},
            "job": {"backend": "Job", "gpusPerNode": 0},
            "stages": [
                {"name": first, "model": "ViT-T-16"},
                {"name": second, "model": "ViT-T-16", "from": first, "training": {"epochs": 2}},
            ],
        },
    }


def weights_of(item: Object) -> tuple[str, str]:
    """Namespace and digest of what a job or a pod trains."""
    metadata = item["metadata"]
    return metadata["namespace"], metadata["annotations"][labels.DIGEST_ANNOTATION]


def version_of(body: Object) -> ObjectVersion:
    metadata = body["metadata"]
    return ObjectVersion(
        metadata["namespace"], metadata["name"], metadata["uid"], metadata["resourceVersion"]
    )


def reference(api_version: str, kind: str, name: str, uid: str, *, controller: bool) -> Object:
    return {"apiVersion": api_version, "kind": kind, "name": name, "uid": uid, "controller": controller}


def pod_of(job: Object) -> Object:
    """As the job controller makes it."""
    metadata = job["metadata"]
    template = job["spec"]["template"]["metadata"]
    return {
        "metadata": {
            "namespace": metadata["namespace"],
            "name": f"{metadata['name']}-0",
            "labels": {**template.get("labels", {}), "batch.kubernetes.io/job-completion-index": "0"},
            "annotations": dict(template.get("annotations", {})),
            "ownerReferences": [
                reference(JOB.api_version, JOB.kind, metadata["name"], metadata["uid"], controller=True)
            ],
        },
        "spec": {"containers": [{"name": "pytorch"}]},
        "status": {"phase": "Pending"},
    }


def running() -> Object:
    state = {"running": {"startedAt": "2026-11-20T00:00:00Z"}}
    return {"phase": "Running", "containerStatuses": [{"name": "pytorch", "state": state}]}


def terminated(code: int) -> Object:
    state = {"terminated": {"exitCode": code, "reason": "Error" if code else "Completed"}}
    phase = "Failed" if code else "Succeeded"
    return {"phase": phase, "containerStatuses": [{"name": "pytorch", "state": state}]}


def ended(job: Mapping[str, Any]) -> bool:
    conditions = (job.get("status") or {}).get("conditions") or []
    return any(one["type"] in ("Complete", "Failed") and one["status"] == "True" for one in conditions)


World.TestCase.settings = settings(
    max_examples=WORLDS or 40,
    derandomize=not WORLDS,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
TestWorld = pytest.mark.slow(World.TestCase)
if WORLDS:  # they take as long as they take
    TestWorld = pytest.mark.timeout(0)(TestWorld)
