"""One pass over one chain: observe, decide, write the status, act.

A pass begins with what is known already; a chain at rest ends there and costs no request. Before anything is done,
or written that later decisions build on, the API server is asked anew, and `decide` decides on that answer: a stale
cache, a second operator or a lost event can delay a chain, never make it do the wrong thing. Two things are done
without asking, since the API server takes them only if nobody has changed the chain since: telling how a chain
fares, and beginning a stage that never had a job.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from modelchain.reconcile.actions import Action, Decision, RemoveJob, StartJob, StopJob
from modelchain.reconcile.decide import decide
from modelchain.reconcile.observation import Observation
from modelchain.reconcile.refused import decide_refused, under_way
from modelchain.reconcile.start import PREDECESSOR_ENDING
from modelchain.reconcile.trust import only_begins, only_tells
from modelchain.resolved import ResolvedChain
from modelchain.status import ChainPhase, ChainStatus, ConditionType, without_progress
from modelchain_operator import kinds
from modelchain_operator.acceptance import Acceptance, Accepted, Refused
from modelchain_operator.act import Actor, JobRefused
from modelchain_operator.cache import Cache
from modelchain_operator.chain_events import event_of, notes
from modelchain_operator.jobs import JOB_KINDS, kinds_of
from modelchain_operator.jobs.events import Silence, why_it_waits
from modelchain_operator.jobs.trees import job_trees
from modelchain_operator.kept_fields import KeptFields
from modelchain_operator.kinds import POD, Kind
from modelchain_operator.kubernetes_api import (
    ApiError,
    Conflict,
    KubernetesApi,
    NotServed,
    Object,
    Unavailable,
)
from modelchain_operator.metrics import Metrics
from modelchain_operator.observe import (
    ChainMemory,
    CreateRefusal,
    Told,
    View,
    observe,
    queued_jobs,
    reference_of,
    silent_jobs,
    status_object,
    status_of,
    view_of,
)
from modelchain_operator.queue import Key, KeyQueue
from modelchain_operator.queue_waits import ask_why_queued
from modelchain_operator.recovered import recovered
from modelchain_operator.store_looks import StoreLooks

logger = logging.getLogger(__name__)

AT_REST = (ChainPhase.COMPLETE, ChainPhase.FAILED, ChainPhase.SUSPENDED)  # a pass is rare then
ASK_AGAIN_SECONDS = 30.0  # after the API server has refused a job
POD_PATIENCE_SECONDS = 15.0  # for pods to be made and set up, before it is asked why they are not
LONGEST_WAIT_SECONDS = 60.0  # between passes that an error has ended
TRUST_SECONDS = 2.0  # in what the API server has shown, before a job is made or deleted
ENDING_SECONDS = 2.0  # from a stage's manifest to the end of its job, as a rule: both are told in one write
EVENTS_UNDER_WAY = 256
LOOK_AGAIN_SECONDS = 1.0  # after an act, if no watch shows what came of it
PASS_SECONDS = 120.0  # a pass that takes longer has lost its way


@dataclass(frozen=True)
class Pace:
    """How often at most what is written."""

    progress_seconds: float = 15.0  # between writes of a chain where only progress has changed


class Reconciler:
    """Brings chains further, one pass at a time each. Used in one event loop."""

    def __init__(
        self,
        *,
        api: KubernetesApi,
        cache: Cache,
        queue: KeyQueue,
        stores: StoreLooks,
        acceptance: Acceptance,
        actor: Actor,
        metrics: Metrics,
        pace: Pace,
        identity: str,
    ) -> None:
        self._api = api
        self._cache = cache
        self._queue = queue
        self._stores = stores
        self._acceptance = acceptance
        self._actor = actor
        self._metrics = metrics
        self._pace = pace
        self._identity = identity
        self._memories: dict[Key, ChainMemory] = {}
        self._kept = KeptFields()
        self._posting: set[asyncio.Task[None]] = set()
        self.not_served: set[Kind] = set()  # kinds of jobs whose CRD is not installed

    # ---- passes

    async def work(self) -> None:
        """Take chains from the queue until it is closed."""
        while (taken := await self._queue.get()) is not None:
            key, waited = taken
            self._metrics.queue_lag(waited)
            began = time.monotonic()
            try:
                async with asyncio.timeout(PASS_SECONDS):
                    await self.reconcile(key)
            except Exception as error:  # noqa: BLE001  one chain's trouble must not end the operator
                self._retry(key, error)
            else:
                if (memory := self._memories.get(key)) is not None:
                    memory.failures = 0
            finally:
                self._queue.done(key)
                self._metrics.pass_ended(time.monotonic() - began)

    async def close(self, seconds: float) -> None:
        """Give Events that are being posted a few seconds."""
        if self._posting:
            await asyncio.wait(self._posting, timeout=seconds)

    def _retry(self, key: Key, error: Exception) -> None:
        memory = self._memories.get(key)
        failures = memory.failures + 1 if memory is not None else 1
        if memory is not None:
            memory.failures = failures
        wait = min(LONGEST_WAIT_SECONDS, 0.25 * 2.0 ** min(failures, 10)) * random.uniform(0.75, 1.25)  # noqa: S311
        if isinstance(error, Conflict):
            wait = 0.05 * failures
            logger.debug("%s: changed meanwhile: %s", key, error)
        elif isinstance(error, Unavailable):
            wait = max(wait, error.retry_after or 0.0)
            logger.warning("%s: %s; again in %.1f s", key, error, wait)
        elif isinstance(error, ApiError):
            logger.error("%s: %s; again in %.0f s", key, error, wait)
        elif isinstance(error, TimeoutError):
            logger.error("%s: a pass took longer than %.0f s; again in %.0f s", key, PASS_SECONDS, wait)
        else:
            logger.error("%s: a pass failed; again in %.0f s", key, wait, exc_info=error)
        self._metrics.pass_failed(type(error).__name__ if isinstance(error, ApiError) else "Internal")
        self._queue.add_after(key, wait)

    async def reconcile(self, key: Key) -> None:
        """One pass over a chain. Raises ApiError where the API server could not be asked."""
        cached = self._cache.chain(key)
        if cached is None:
            self._forget(key)
            return
        body = cached.body()
        memory = self._memories.get(key)
        if memory is None or memory.uid != cached.uid:
            self._forget(key)
            memory = self._memories[key] = ChainMemory(uid=cached.uid)
        if body["metadata"].get("deletionTimestamp") is not None:
            self._stores.forget(key)
            return
        judged = await self._judge(body, memory)
        if isinstance(judged, Refused):
            await self._refuse(key, body, judged)
            return
        view = self._known_view(key, body, memory)
        decision = await self._decide(key, view, judged, memory)
        if decision is None:  # the store was not looked at yet; it says when it was
            if body.get("status", {}).get("phase") in (None, *AT_REST):  # a thousand may wait for that
                self._acceptance.forget(body)
            return
        if not judged.problems:
            self._metrics.chain_accepted(key, judged.chain)
        ask_again = any(time.monotonic() >= refusal.ask_at for refusal in memory.refusals.values())
        if not ask_again and not self._is_due(key, body, decision, memory):
            self._settle(key, body, decision)
            return
        known = not ask_again and _suffices(view, judged.chain, decision, memory)
        if not (known and await self._carry_out_as_known(key, view, judged, decision, memory)):
            await self._carry_out(key, memory)

    # ---- decide

    async def _judge(self, body: Object, memory: ChainMemory) -> Accepted | Refused:
        """Whether the chain can be trained as it is written; if not, what of it runs all the same."""
        judged = self._acceptance.judge(body)
        open_stages = under_way(status_of(body)) if isinstance(judged, Refused) else ()
        if isinstance(judged, Accepted) or not open_stages:
            memory.going_on = None
            return judged
        generation = _generation(body)
        if memory.going_on is None or memory.going_on[0] != generation:
            jobs = await self._live_jobs([*JOB_KINDS], body["metadata"]["namespace"], memory.uid)
            trees = job_trees(reference_of(body), jobs, ())
            memory.going_on = generation, recovered(body, trees, open_stages)
        running = memory.going_on[1]
        return judged if running is None else replace(running, problems=judged.problems)

    async def _decide(self, key: Key, view: View, accepted: Accepted, memory: ChainMemory) -> Decision | None:
        """What to do about it; None if the store has to be looked at first, after which there is another pass."""
        now = time.time()
        status = status_of(view.body)
        seen = await self._stores.look(key, accepted, status)
        if seen is None:
            return None
        if self._doubt_artifacts(key, status, memory):
            return None
        observed = observe(view, accepted, seen, memory, not_served=self.not_served, now=now)
        await self._ask_why_jobs_wait(key, view, observed, memory)
        await self._ask_why_jobs_are_queued(key, view, observed, memory)
        if self._look_again_at_ended(key, observed, memory):
            return None
        if accepted.problems:
            decision = decide_refused(
                accepted.chain, observed, accepted.problems, generation=view.generation, now=now
            )
        else:
            decision = decide(accepted.chain, observed, now)
        for stage in decision.reads:  # there is another pass when it was read
            self._stores.look_again(key, stage)
        return decision

    async def _ask_why_jobs_wait(
        self, key: Key, view: View, observed: Observation, memory: ChainMemory
    ) -> None:
        """A quota that refuses pods, or a volume that can't be mounted, is told in Events and nowhere else. What
        they say is for the next pass.
        """
        now = time.monotonic()
        silent = silent_jobs(view, observed)
        memory.told = {
            name: told
            if (told := memory.told.get(name)) is not None and told.lacks_pods == one.lacks_pods
            else Told(lacks_pods=one.lacks_pods, ask_at=now + POD_PATIENCE_SECONDS)
            for name, one in silent.items()
        }
        for name, told in memory.told.items():
            if now >= told.ask_at:
                told.ask_at = now + ASK_AGAIN_SECONDS
                said = await self._ask_events(key, silent[name])
                if said != (told.reason, told.message):
                    told.reason, told.message = said
                    self._queue.add(key)
            self._queue.add_after(key, told.ask_at - now)

    async def _ask_why_jobs_are_queued(
        self, key: Key, view: View, observed: Observation, memory: ChainMemory
    ) -> None:
        """What Kueue says is for the next pass, as with Events."""
        now = time.monotonic()
        if await ask_why_queued(self._api, queued_jobs(view, observed), memory.queued, now):
            self._queue.add(key)
        for inquiry in memory.queued.values():
            self._queue.add_after(key, inquiry.ask_at - now)

    async def _ask_events(self, key: Key, silence: Silence) -> tuple[str, str]:
        """Reason and message; both empty if nothing is told, or may be read."""
        try:
            listed = [await self._api.list_events(key.namespace, uid) for uid in silence.uids]
        except ApiError as error:  # a chain goes on without
            logger.warning("%s: %s", key, error)
            return "", ""
        return why_it_waits(event for events in listed for event in events)

    def _doubt_artifacts(self, key: Key, status: ChainStatus | None, memory: ChainMemory) -> bool:
        """Another operator has said that artifacts are missing, or no longer: what we saw of them is older.
        Returns whether they are looked at again.
        """
        before, memory.missing_said = memory.missing_said, _missing_said(status)
        if status is None or before is None or before == memory.missing_said:
            return False
        for stage in status.all_stages:
            if stage.finished:
                self._stores.look_again(key, stage.name)
        return True

    def _look_again_at_ended(self, key: Key, observed: Observation, memory: ChainMemory) -> bool:
        """A job has ended: what the store says about its stage is old. Returns whether that is news."""
        there = {(job.stage, job.attempt) for job in observed.jobs}
        memory.looked_again &= there
        status = observed.status
        news = False
        for job in observed.jobs:
            known = status.find_stage(job.stage) if status is not None else None
            open_end = known is not None and not known.finished and known.attempt > known.settled
            if open_end and not job.live and (job.stage, job.attempt) not in memory.looked_again:
                memory.looked_again.add((job.stage, job.attempt))
                self._stores.look_again(key, job.stage)
                news = True
        return news

    def _is_due(self, key: Key, body: Object, decision: Decision, memory: ChainMemory) -> bool:
        """Whether there is something to do or to write, now. Where mere progress was told not long ago, or a stage
        that is complete gives way to the next in a moment, there is another pass then.
        """
        before, after = status_of(body), self._kept.of(decision.status)
        if not decision.actions and before == after:
            return False
        if before is None or not only_tells(before, decision):
            return True
        now = time.monotonic()
        if without_progress(before) == without_progress(after):
            wait = memory.written_at + self._pace.progress_seconds - now
        elif _begins_soon(decision.status):
            memory.ending_since = memory.ending_since or now
            wait = memory.ending_since + ENDING_SECONDS - now
        else:
            return True
        if wait > 0:
            self._queue.add_after(key, wait)
        return wait <= 0

    # ---- write and act

    async def _carry_out_as_known(
        self, key: Key, view: View, accepted: Accepted, decision: Decision, memory: ChainMemory
    ) -> bool:
        """Write the status over the chain as we know it, and act. Returns whether that is how it was."""
        try:
            await self._write_and_act(key, view, accepted, decision, memory, looked_at=time.monotonic())
        except Conflict:
            return False
        return True

    async def _carry_out(self, key: Key, memory: ChainMemory) -> None:
        """Look at the API server itself, decide on that, write the status, act."""
        body = await self._live_chain(key)
        if body is None:
            return
        accepted = await self._judge(body, memory)
        if isinstance(accepted, Refused):
            self._queue.add(key)
            return
        await self._probe_refusals(body, accepted, memory)
        looked_at = time.monotonic()
        view = await self._live_view(body, accepted, memory)
        decision = await self._decide(key, view, accepted, memory)
        if decision is not None:
            await self._write_and_act(key, view, accepted, decision, memory, looked_at=looked_at)

    async def _write_and_act(
        self,
        key: Key,
        view: View,
        accepted: Accepted,
        decision: Decision,
        memory: ChainMemory,
        *,
        looked_at: float,
    ) -> None:
        body = await self._write(key, view.body, accepted, decision.status, memory)
        acted = False
        for action in decision.actions:
            if acted or time.monotonic() - looked_at > TRUST_SECONDS:
                looked_at = time.monotonic()
                view = await self._live_view(body, accepted, memory)
                again = await self._decide(key, view, accepted, memory)
                if again is None or not _asked_for(action, again):
                    break
            await self._act(key, view, accepted, action, memory)
            acted = True
        if acted:
            self._queue.add_after(key, LOOK_AGAIN_SECONDS)
        self._settle(key, body, decision)

    async def _act(
        self, key: Key, view: View, accepted: Accepted, action: Action, memory: ChainMemory
    ) -> None:
        match action:
            case StartJob():
                try:
                    made = await self._actor.start(accepted, action)
                except JobRefused as error:
                    logger.warning("%s: stage %s: %s", key, action.stage, error)
                    memory.refusals[action.stage] = CreateRefusal(
                        generation=view.generation,
                        attempt=action.attempt,
                        message=str(error),
                        ask_at=time.monotonic() + ASK_AGAIN_SECONDS,
                    )
                    return
                logger.info("%s: stage %s: attempt %d starts", key, action.stage, action.attempt)
                memory.made = {one for one in memory.made if one[0] != action.stage}
                memory.made.add((action.stage, action.attempt))
                for kind, item in made:
                    self._cache.show(kind, item)
            case StopJob():
                await self._actor.stop(action, view)
            case RemoveJob():
                await self._actor.remove(action, view)

    async def _probe_refusals(self, body: Object, accepted: Accepted, memory: ChainMemory) -> None:
        """Whether jobs that were refused would be let in now: asked without making them, so that a chain that can't go
        on writes nothing.
        """
        for stage, refusal in list(memory.refusals.items()):
            if refusal.generation != _generation(body) or stage not in accepted.jobs:
                del memory.refusals[stage]
                continue
            if time.monotonic() < refusal.ask_at:
                continue
            try:
                await self._actor.start(accepted, StartJob(stage, refusal.attempt), dry_run=True)
            except JobRefused as error:
                refusal.message = str(error)
                refusal.ask_at = time.monotonic() + ASK_AGAIN_SECONDS
            else:
                del memory.refusals[stage]

    async def _refuse(self, key: Key, body: Object, judged: Refused) -> None:
        """Say what is wrong with the chain, once. Nothing of it runs."""
        self._stores.forget(key)
        before = status_of(body)
        after = _refused_status(body, judged)
        if before == self._kept.of(after):
            self._metrics.chain_seen(key, after)
            return
        live = await self._live_chain(key)
        if live is None or not isinstance(self._acceptance.judge(live), Refused):
            self._queue.add(key)
            return
        before = status_of(live)
        after = _refused_status(live, judged)
        if before != self._kept.of(after):
            await self._publish(key, live, before, after)

    async def _write(
        self, key: Key, body: Object, accepted: Accepted, status: ChainStatus, memory: ChainMemory
    ) -> Object:
        before = status_of(body)
        if before == self._kept.of(status):
            return body
        written = await self._publish(key, body, before, status)
        memory.written_at = time.monotonic()
        memory.ending_since = None
        memory.written_version = written["metadata"]["resourceVersion"]
        memory.missing_said = _missing_said(status)
        if not accepted.problems:  # the record is of the whole chain
            await self._stores.written(key, accepted, status)
        return written

    async def _publish(
        self, key: Key, body: Object, before: ChainStatus | None, status: ChainStatus
    ) -> Object:
        """Write the status with the version that it was decided on; then tell what has happened."""
        asked = status_object(status)
        written = await self._api.write_status(body, asked)
        self._kept.learn(asked, written.get("status") or {})
        self._cache.show_chain(written)
        self._metrics.status_written(key, before, status)
        said = list(notes(before, self._kept.of(status)))
        for note in said:
            log = logger.warning if note.type == "Warning" else logger.info
            log("%s: %s: %s", key, note.reason, note.message)
        if said:
            await self._post(
                key, [event_of(body, note, time=time.time(), instance=self._identity) for note in said]
            )
        return written

    async def _post(self, key: Key, events: Sequence[Object]) -> None:
        """Post Events while the pass goes on: a courtesy that must not hold up a job."""
        if len(self._posting) >= EVENTS_UNDER_WAY:
            await asyncio.wait(self._posting, return_when=asyncio.FIRST_COMPLETED)

        async def post() -> None:
            for event in events:
                try:
                    await self._api.create_event(event)
                except ApiError as error:
                    logger.warning("%s: no event was posted: %s", key, error)

        task = asyncio.create_task(post())
        self._posting.add(task)
        task.add_done_callback(self._posting.discard)

    def _settle(self, key: Key, body: Object, decision: Decision) -> None:
        """Nothing more to do now: when to look again by the clock alone."""
        self._metrics.chain_seen(key, decision.status)
        memory = self._memories.get(key)
        if decision.wake_at is not None:
            self._queue.add_after(key, max(0.05, decision.wake_at - time.time()))
        for refusal in memory.refusals.values() if memory is not None else ():
            self._queue.add_after(key, max(0.05, refusal.ask_at - time.monotonic()))
        if decision.status.phase in AT_REST:
            self._acceptance.forget(body)

    # ---- the API server itself

    async def _live_chain(self, key: Key) -> Object | None:
        body = await self._api.get_chain(key.namespace, key.name)
        if body is None:
            self._cache.drop_chain(key)
            self._forget(key)
            return None
        self._cache.show_chain(body)
        if body["metadata"].get("deletionTimestamp") is not None:
            self._stores.forget(key)
            return None
        return body

    def _known_view(self, key: Key, body: Object, memory: ChainMemory) -> View:
        """The chain's jobs and pods, as they were last shown."""
        jobs = [job for kind in JOB_KINDS for job in self._cache.objects(kind, key.namespace, memory.uid)]
        return view_of(body, jobs, self._cache.objects(POD, key.namespace, memory.uid), memory)

    async def _live_view(self, body: Object, accepted: Accepted, memory: ChainMemory) -> View:
        """The chain's jobs and pods, asked for now: of every kind that its stages have or had."""
        uid, namespace = body["metadata"]["uid"], body["metadata"]["namespace"]
        wanted = {
            kind for stage in accepted.chain.all_stages for kind in kinds_of(accepted.backend(stage.name))
        }
        wanted |= {kind for kind in JOB_KINDS if self._cache.objects(kind, namespace, uid)}
        jobs, pods = await asyncio.gather(
            self._live_jobs([kind for kind in JOB_KINDS if kind in wanted], namespace, uid),
            self._api.list_pods(namespace, uid),
        )
        for job in jobs:  # or the next pass would decide on less than this one
            self._cache.show(kinds.of(job), job)
        for pod in pods:
            self._cache.show(POD, pod)
        return view_of(body, jobs, pods, memory)

    async def _live_jobs(self, wanted: list[Kind], namespace: str, uid: str) -> list[Object]:
        found: list[Object] = []
        for kind in wanted:
            try:
                found += await self._api.list_labelled(kind, namespace, uid)
            except NotServed:
                self.not_served.add(kind)
            else:
                self.not_served.discard(kind)
        return found

    def _forget(self, key: Key) -> None:
        self._memories.pop(key, None)
        self._stores.forget(key)
        self._metrics.chain_gone(key)


def _missing_said(status: ChainStatus | None) -> tuple[str, str] | None:
    """What a status says of missing artifacts, and since when; None if nothing."""
    for condition in status.conditions if status is not None else ():
        if condition.type == ConditionType.ARTIFACTS_MISSING:
            return condition.status, condition.last_transition_time
    return None


def _suffices(view: View, chain: ResolvedChain, decision: Decision, memory: ChainMemory) -> bool:
    """Whether to carry out a decision it is enough that nobody has changed the chain since, which the API server sees
    to. What begins a stage builds on the status, so the last word in it has to be ours.
    """
    before = status_of(view.body)
    if before is None:
        return False
    if only_tells(before, decision):
        return True
    ours = view.body["metadata"]["resourceVersion"] == memory.written_version
    return ours and not memory.refusals and only_begins(before, decision, chain, _attempts(view))


def _refused_status(body: Object, judged: Refused) -> ChainStatus:
    observed = Observation(status=status_of(body))
    now = time.time()
    return decide_refused(None, observed, judged.problems, generation=_generation(body), now=now).status


def _attempts(view: View) -> set[tuple[str, int]]:
    """Stage and attempt of each job object."""
    return {(tree.place.stage, tree.place.attempt) for tree in view.trees if tree.job is not None}


def _begins_soon(status: ChainStatus) -> bool:
    return any(stage.reason == PREDECESSOR_ENDING for stage in status.stages)


def _asked_for(action: Action, decision: Decision) -> bool:
    """Whether another look still asks for it. Of jobs, what they are counts, not how far they have come."""
    if isinstance(action, StartJob):
        return action in decision.actions
    return any(
        type(other) is type(action) and not isinstance(other, StartJob) and other.job.name == action.job.name
        for other in decision.actions
    )


def _generation(body: Object) -> int:
    return int(body["metadata"].get("generation", 0))
