"""A limit of chains a namespace, played against `decide`: never too many, the oldest first, and all in the end."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelchain.reconcile.actions import Decision, RemoveJob, StartJob, StopJob
from modelchain.reconcile.decide import decide
from modelchain.reconcile.observation import Job, JobPhase, Observation, StageFacts, StoreProblem
from modelchain.reconcile.refused import decide_refused
from modelchain.status import ChainPhase, ChainStatus, ConditionType, StageReason
from modelchain_operator.chain_limit import ChainLimit, holds_place
from modelchain_operator.kubernetes.api import Object
from modelchain_operator.kubernetes.key import Key
from modelchain_operator.observe import status_object
from tests.modelchain.reconcile.chains import NOW, Play, chain, empty_store, manifest
from tests.modelchain.reconcile.chains import job as job_of

RETRY = {"limit": 2, "backoffSeconds": 0}
GOES = chain((("tiny", None), ("small", "tiny")), retry=RETRY)
SUSPENDED = chain((("tiny", None), ("small", "tiny")), retry=RETRY, suspend=True)
AWAY = StageFacts(problem=StoreProblem.UNAVAILABLE, message="the store does not answer")
QUIET_ROUNDS = 60


@dataclass
class Member:
    """A chain of a namespace, with its jobs and its store."""

    key: Key
    created: str
    status: ChainStatus | None = None
    suspended: bool = False
    store_away: bool = False
    not_admitted: bool = False  # the API server refuses its jobs
    problem: dict[str, str] = field(default_factory=dict)  # what is known of that, by stage
    jobs: dict[tuple[str, int], Job] = field(default_factory=dict)
    store: dict[str, StageFacts] = field(default_factory=lambda: empty_store(GOES))
    decided: Decision | None = None  # and not yet written

    def body(self) -> Object:
        metadata = {
            "namespace": self.key.namespace,
            "name": self.key.name,
            "creationTimestamp": self.created,
        }
        return {
            "metadata": metadata,
            **({"status": status_object(self.status)} if self.status is not None else {}),
        }

    @property
    def trains(self) -> bool:
        return any(job.live for job in self.jobs.values())

    @property
    def starts(self) -> bool:
        actions = self.decided.actions if self.decided is not None else ()
        return any(isinstance(action, StartJob) for action in actions)

    @property
    def in_line(self) -> bool:
        return self.status is not None and any(
            stage.reason == StageReason.NAMESPACE_LIMIT for stage in self.status.stages
        )


class World:
    """An operator that passes over many chains at once, as the reconciler does."""

    def __init__(self, limit: int, ages: list[int]) -> None:
        self.limit, self.now = limit, NOW
        names = [Key("team", f"chain-{number}") for number in range(len(ages))]
        self.members = {
            key: Member(key, f"2026-11-2{age}T00:00:00Z") for key, age in zip(names, ages, strict=True)
        }
        self.queued: set[Key] = set()
        self.restart()

    def restart(self) -> None:
        """The operator is killed: what it had decided is forgotten, all is listed, and each chain has a pass."""
        self.places = ChainLimit(self.limit, self.queued.add)
        for key, member in self.members.items():
            member.decided = None
            self.places.show(key, member.body())
            self.queued.add(key)

    def look(self, key: Key) -> None:
        """The first half of a pass."""
        member = self.members[key]
        self.now += 1
        store = dict.fromkeys(member.store, AWAY) if member.store_away else member.store
        observed = Observation(
            status=member.status,
            generation=1,
            jobs=tuple(member.jobs.values()),
            store=store,
            store_read_at=dict.fromkeys(store, self.now),
            backend_problem=member.problem,
            namespace_limit=self.places.refusal(key, member.body()),
        )
        member.decided = decide(SUSPENDED if member.suspended else GOES, observed, self.now)
        self.places.decided(key, starts=member.starts)
        if member.starts and not holds_place(member.status):
            others = [one for one in self.members.values() if one is not member]
            taken = [one for one in others if one.starts or holds_place(one.status)]
            older = [one for one in others if one.in_line and not one.starts and one.created < member.created]
            assert len(taken) + len(older) < self.limit, "the oldest that stands in line goes first"

    def write(self, key: Key, *, conflict: bool = False) -> None:
        """The second half; with `conflict`, somebody has edited the chain meanwhile and nothing is written."""
        member = self.members[key]
        decision, member.decided = member.decided, None
        if decision is None:
            return
        if conflict:
            self.places.show(key, member.body())
            self.queued.add(key)
            return
        news = decision.status != member.status
        member.status = decision.status
        if news:
            self.places.show(key, member.body())
        for action in decision.actions:
            self.act(member, action)
        if news or decision.actions:
            self.queued.add(key)
        assert sum(one.trains for one in self.members.values()) <= self.limit, "too many chains train"

    def act(self, member: Member, action: StartJob | StopJob | RemoveJob) -> None:
        if isinstance(action, StartJob) and member.not_admitted:
            member.problem = {action.stage: "a quota refuses it"}
        elif isinstance(action, StartJob):
            stage = GOES.stage(action.stage)
            name = f"{member.key.name}-{stage.name}-{action.attempt}"
            place = (stage.name, action.attempt)
            member.jobs[place] = Job(*place, stage.digest, name, JobPhase.RUNNING, started_at=self.now)
        else:  # it ends at once
            member.jobs.pop((action.job.stage, action.job.attempt), None)

    def end_job(self, key: Key, code: int) -> None:
        member = self.members[key]
        for place, job in member.jobs.items():
            if job.live and not member.store_away:
                phase = JobPhase.FAILED if code else JobPhase.SUCCEEDED
                member.jobs[place] = replace(job, phase=phase, exit_code=code, ended_at=self.now)
                if not code:
                    member.store[job.stage] = StageFacts(manifest=manifest(GOES.stage(job.stage)))
                self.queued.add(key)

    def run_quietly(self) -> None:
        """Only chains that are queued have passes: that the next one is woken is what is tested."""
        for member in self.members.values():
            self.write(member.key)
            member.suspended = member.store_away = member.not_admitted = False
            member.problem = {}
            self.queued.add(member.key)
        for _ in range(QUIET_ROUNDS):
            keys, self.queued = sorted(self.queued), set()
            self.places._wake = self.queued.add
            for key in keys:
                self.look(key)
                self.write(key)
            for key in self.members:
                self.end_job(key, 0)
        for member in self.members.values():
            assert member.status is not None
            done = member.status.phase in (ChainPhase.COMPLETE, ChainPhase.FAILED)
            assert done, f"{member.key.name} waits for ever: {member.status.message}"


STEPS = st.lists(
    st.tuples(
        st.sampled_from(
            ["look", "look", "write", "write", "conflict", "end", "fail", "store", "suspend", "quota", "kill"]
        ),
        st.integers(0, 4),
    ),
    max_size=40,
)


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(limit=st.integers(1, 3), ages=st.permutations([1, 2, 3, 4, 5]), steps=STEPS)
def test_never_too_many_chains_train_the_oldest_go_first_and_all_come_to_their_end(
    limit: int, ages: list[int], steps: list[tuple[str, int]]
) -> None:
    world = World(limit, ages)
    keys = list(world.members)
    for step, number in steps:
        key = keys[number]
        member = world.members[key]
        match step:
            case "look" if member.decided is None:
                world.look(key)
            case "write":
                world.write(key)
            case "conflict":
                world.write(key, conflict=True)
            case "end":
                world.end_job(key, 0)
            case "fail":
                world.end_job(key, 1)
            case "store":
                member.store_away = not member.store_away
            case "suspend":
                member.suspended = not member.suspended
            case "quota":
                member.not_admitted, member.problem = not member.not_admitted, {}
            case "kill":
                world.restart()
            case _:
                pass
    world.run_quietly()


def test_a_chain_that_waits_says_so_once_and_goes_when_the_other_is_deleted() -> None:
    world = World(1, [1, 2])
    first, second = world.members
    for key in (first, second, second):
        world.look(key)
        world.write(key)
    status = world.members[second].status
    assert status is not None
    progressing = status.condition(ConditionType.PROGRESSING)
    assert progressing is not None
    assert (progressing.status, progressing.reason) == ("False", StageReason.NAMESPACE_LIMIT)
    assert "1 chain(s) of namespace team train at a time" in status.message
    world.queued.clear()
    del world.members[first]
    world.places.show(first, None)
    assert world.queued == {second}
    world.look(second)
    world.write(second)
    assert world.members[second].trains


def test_an_attempt_that_was_only_announced_holds_a_place_while_its_job_is_made() -> None:
    """Not while its job is not admitted, nor in a chain that is suspended or refused since."""
    play = Play(GOES)
    play.look()
    announced = play.status
    assert holds_place(announced)
    play.more = {"backend_problem": {"tiny": "a quota refuses it"}}
    play.look(after=30)
    assert (play["tiny"].attempt, play["tiny"].reason) == (1, "BackendUnavailable")
    assert not holds_place(play.status)
    observed = Observation(status=announced, generation=2, store=empty_store(GOES))
    suspended = decide(SUSPENDED, observed, NOW + 30).status
    assert (suspended.stages[0].attempt, holds_place(suspended)) == (1, False)
    refused = decide_refused(None, observed, ["wrong"], generation=2, now=NOW + 30).status
    assert (refused.stages[0].attempt, holds_place(refused)) == (1, False)
    play.more = {}
    play.look(job_of(GOES.stage("tiny"), phase=JobPhase.PENDING))
    assert holds_place(play.status)


def test_one_that_waits_for_its_store_holds_up_nobody_and_without_a_limit_nobody_is_held() -> None:
    world = World(1, [1, 2])
    first, second = world.members
    world.members[first].store_away = True
    for key in (first, second):
        world.look(key)
        world.write(key)
    assert [world.members[key].trains for key in (first, second)] == [False, True]
    free = ChainLimit(None, world.queued.add)
    free.show(first, world.members[first].body())
    assert free.refusal(first, world.members[first].body()) == ""
