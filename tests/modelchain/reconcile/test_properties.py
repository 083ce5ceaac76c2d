"""What must hold whatever happens: a simulated world with random chains, jobs, crashes, edits and old
observations.

Two operators act in it at once. Each decides on an observation that may be old, looks again live, writes
the status, and then carries out the actions one at a time, each after another live look; it may crash
between any two of these.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from modelchain.artifacts import Failure, Manifest
from modelchain.measuring import Trained, measure
from modelchain.reconcile.actions import Action, Decision, StartJob, StopJob
from modelchain.reconcile.baseline import FINAL_REASONS, is_due
from modelchain.reconcile.decide import decide
from modelchain.reconcile.observation import (
    Job,
    JobPhase,
    LeaseView,
    Observation,
    StageFacts,
    StoreProblem,
    Unmeasurable,
)
from modelchain.reconcile.stale_reads import is_report_only, only_starts_fresh_stages
from modelchain.resolved import ResolvedChain
from modelchain.status import ChainPhase, ChainStatus, ConditionType, Measurement, StagePhase
from tests.modelchain.reconcile.chains import NOW, chain, manifest

NAMES = ("a", "b", "c", "d")
OTHER_NAMES = ("a", "b", "c", "d", "x")  # that stages are given later; some have been another stage's
LIMIT = 2
DISRUPTION_LIMIT = 3
STALL_SECONDS = 300
MAX_PASSES = 400  # far more than any quiet world needs
RETRY = {
    "limit": LIMIT,
    "disruptionLimit": DISRUPTION_LIMIT,
    "backoffSeconds": 20,
    "stallSeconds": STALL_SECONDS,
}


@dataclass(frozen=True)
class Seen:
    """An observation, and the chain it was made for."""

    chain: ResolvedChain
    observed: Observation


class World(RuleBasedStateMachine):
    """The API server, the store, the jobs; and two operators."""

    def __init__(self) -> None:
        super().__init__()
        self.now = NOW
        self.jobs: dict[tuple[str, int], Job] = {}
        self.manifests: dict[str, Manifest] = {}
        self.failure_files: dict[tuple[str, int], int] = {}
        self.vanished: dict[str, Manifest] = {}
        self.foreign: set[str] = set()  # digests that another chain trains now
        self.store_down = False
        self.full = False  # other chains of the namespace train, as many as may
        self.store_readable_since = 0.0
        self.status: ChainStatus | None = None
        self.generation = 1
        self.epochs: dict[str, int] = {}
        self.suspended = False
        self.tree: list[tuple[str, str | None]] = []
        self.teachers: dict[str, str] = {}
        self.alone: tuple[str, ...] = ()  # models that are trained alone after the chain
        self.limit: int | None = None
        self.pending: list[list[Action]] = [[], []]
        self.history: list[Seen] = []
        self.finished_digests: set[str] = set()  # said to be finished in the status as it is now
        self.names: set[tuple[str, int]] = set()  # stage and attempt of every job that a status has named
        self.starts: Counter[tuple[str, str, int]] = Counter()  # by stage, digest and generation
        self.excuses: Counter[str] = Counter()  # by stage: whatever may end an attempt without counting

    # ---- the start of the world

    @initialize(
        parents=st.lists(st.integers(0, 10), min_size=0, max_size=3),
        teachers=st.lists(st.none() | st.integers(0, 10), min_size=3, max_size=3),
        limit=st.sampled_from([None, 1, 2]),
        known=st.sets(st.sampled_from(NAMES)),
        alone=st.sampled_from([(), ("all",), ("a",)]),
    )
    def build(
        self,
        parents: list[int],
        teachers: list[int | None],
        limit: int | None,
        known: set[str],
        alone: tuple[str, ...],
    ) -> None:
        self.alone = alone
        self.tree = [("a", None)]
        for name, parent, teacher in zip(NAMES[1:], parents, teachers, strict=False):
            if teacher is not None:
                self.teachers[name] = self.tree[teacher % len(self.tree)][0]
            self.tree.append((name, self.tree[parent % len(self.tree)][0]))
        self.limit = limit
        self.rebuild()
        for stage in self.chain.all_stages:
            if stage.name in known:
                self.manifests[stage.digest] = manifest(stage, chain_name="default/other")
        self.remember()

    def rebuild(self) -> None:
        baseline = {"train": list(self.alone), "epochs": 5, "budgetMatched": bool(self.alone)}
        self.chain = chain(
            self.tree,
            teachers=self.teachers,
            epochs=self.epochs,
            retry=RETRY,
            suspend=self.suspended,
            baseline=baseline,
        )

    # ---- looking

    def live(self) -> Seen:
        """What a live look sees."""
        store = {}
        for stage in self.chain.all_stages:
            if self.store_down:
                store[stage.name] = StageFacts(
                    problem=StoreProblem.UNAVAILABLE, message="the store does not answer"
                )
                continue
            lease = (
                LeaseView("other-1-ff", "default/other", fresh=True) if stage.digest in self.foreign else None
            )
            last = max((attempt for name, attempt in self.failure_files if name == stage.name), default=None)
            failure = None
            if last is not None:
                code = self.failure_files[stage.name, last]
                failure = Failure(exit_code=code, reason="Said", message="as it was")
            store[stage.name] = StageFacts(
                manifest=self.manifests.get(stage.digest), lease=lease, failure=failure, failure_attempt=last
            )
        observed = Observation(
            status=self.status,
            generation=self.generation,
            jobs=tuple(self.jobs.values()),
            store=store,
            store_read_at=dict.fromkeys(store, self.now),
            store_readable_since=self.store_readable_since,
            max_parallel_jobs=self.limit,
            namespace_limit="others train" if self.full else "",
            measurement=self.measured(),
        )
        return Seen(self.chain, observed)

    def measured(self) -> Measurement | Unmeasurable | None:
        """What the store's evaluations show, where they are asked for and can be read."""
        if (
            self.store_down
            or not is_due(self.chain, self.status)
            or not self.digests() <= self.manifests.keys()
        ):
            return None
        trained = {stage.name: Trained(self.manifests[stage.digest]) for stage in self.chain.all_stages}
        return measure(self.chain, trained)

    def remember(self) -> None:
        self.history = [*self.history[-12:], self.live()]

    def decided(self, seen: Seen) -> Decision:
        decision = decide(seen.chain, seen.observed, self.now)
        assert decision == decide(seen.chain, seen.observed, self.now)
        return decision

    # ---- the operators

    @rule(who=st.integers(0, 1), age=st.integers(0, 12))
    def look_and_decide(self, who: int, age: int) -> None:
        """Decide on an old observation; if that asks for anything, decide again live and write the status."""
        seen = self.history[max(0, len(self.history) - 1 - age)]
        stale = self.decided(seen)
        if not stale.actions and stale.status == seen.observed.status:
            return
        decision = self.decided(self.live())
        self.write(decision.status)
        self.pending[who] = list(decision.actions)
        self.remember()

    @precondition(lambda self: any(self.pending))
    @rule(who=st.integers(0, 1))
    def act(self, who: int) -> None:
        """Carry out the next action, if a live look still asks for it."""
        if not self.pending[who]:
            return
        action = self.pending[who].pop(0)
        decision = self.decided(self.live())
        if action in decision.actions and decision.status == self.status:
            self.carry_out(action)
            self.remember()

    @rule(who=st.integers(0, 1))
    def crash(self, who: int) -> None:
        self.pending[who] = []

    @rule(passes=st.integers(1, 8), age=st.sampled_from([None, 0, 0, 1, 2, 5, 12]), exits=st.booleans())
    def things_go_well_for_a_while(self, passes: int, age: int | None, exits: bool) -> None:
        """Jobs are seen as they were some observations ago, where that is enough; or looked at each time."""
        for _ in range(passes):
            if age is None or not self.carry_out_as_known(age):
                self.whole_pass()
            self.quiet_jobs(exits=exits)
            self.remember()
            self.now += 10

    @rule(times=st.integers(1, 5), choice=st.integers(0, 5))
    def jobs_fail_again_and_again(self, times: int, choice: int) -> None:
        for _ in range(times):
            for _ in range(3):  # account for the last failure; remove what is left; start
                self.whole_pass()
                self.now += 700
            self.job_moves(choice, queued=False)
            self.job_fails(choice, code=1, disrupted=False)

    def whole_pass(self) -> None:
        """Look, write, and carry out every action that is still asked for."""
        decision = self.decided(self.live())
        self.write(decision.status)
        for action in decision.actions:
            again = self.decided(self.live())
            if action in again.actions and again.status == self.status:
                self.carry_out(action)
        self.remember()

    def carry_out_as_known(self, age: int) -> bool:
        """Write over a chain that nobody has changed since, and act, on jobs seen long ago. Whether that is enough."""
        if self.status is None or self.limit is not None:
            return False
        jobs = self.history[max(0, len(self.history) - 1 - age)].observed.jobs
        now = self.live()
        decision = self.decided(replace(now, observed=replace(now.observed, jobs=jobs)))
        begins = only_starts_fresh_stages(
            self.status, decision, self.chain, {(job.stage, job.attempt) for job in jobs}
        )
        if not begins and not is_report_only(self.status, decision):
            return False
        self.write(decision.status)
        for action in decision.actions:
            self.carry_out(action)
        self.remember()
        return True

    def write(self, status: ChainStatus) -> None:
        before, self.status = self.status, status
        for stage in self.chain.all_stages:
            now = status.find_stage(stage.name)
            then = before.find_stage(stage.name) if before else None
            assert now is not None
            if now.job is not None:
                self.names.add((stage.name, now.attempt))
            if now.finished:
                self.finished_digests.add(stage.digest)
            if then is not None:
                assert now.attempt >= then.attempt, "attempts only grow"
                if then.digest == now.digest:
                    assert now.finished or not then.finished, "completion is final for a digest"
                else:  # the stage was edited: should it be edited back, only the store remembers
                    self.finished_digests.discard(then.digest)
            assert now.failures <= LIMIT + 1
            assert now.disruptions <= DISRUPTION_LIMIT + 1

    def carry_out(self, action: Action) -> None:
        if isinstance(action, StartJob):
            self.start(action)
        elif isinstance(action, StopJob):
            key = (action.job.stage, action.job.attempt)
            if key in self.jobs:
                self.jobs[key] = replace(self.jobs[key], phase=JobPhase.TERMINATING)
        else:
            assert not action.job.live, "only what has ended is removed"
            self.jobs.pop((action.job.stage, action.job.attempt), None)

    def start(self, action: StartJob) -> None:
        stage = self.chain.stage(action.stage)
        status = self.status.find_stage(action.stage) if self.status else None
        assert status is not None
        assert status.attempt == action.attempt, "the intent was written before the act"
        of_stage = [job for job in self.jobs.values() if job.stage == action.stage]
        assert not any(job.live for job in of_stage), "never two live jobs of one stage"
        there = {one.name for one in self.chain.all_stages}
        left = [job for job in self.jobs.values() if job.live and job.stage not in there]
        assert all(job.digest != stage.digest for job in left), "nor of one that has another name now"
        assert stage.digest not in self.manifests, "what is in the store is not trained"
        assert stage.digest not in self.finished_digests, "what was complete is not trained again"
        assert stage.digest not in self.foreign, "what another chain trains now is waited for"
        assert not self.store_down, "nothing is started blindly"
        assert not self.full, "nor past the limit of the namespace"
        assert not self.suspended
        assert self.status is not None
        assert self.status.phase is not ChainPhase.FAILED, "a failed chain starts nothing"
        failed = [one.name for one in self.status.stages if one.phase is StagePhase.FAILED]
        assert stage.name not in self.needing(failed), "nor does a failed branch"
        of_chain = {stage.digest for stage in self.chain.stages}
        assert not self.vanished.keys() & self.finished_digests & of_chain, "nothing beside missing artifacts"
        if stage in self.chain.baselines:
            assert self.status.phase is ChainPhase.COMPLETE, "models are trained alone after the chain"
            assert not any(job.live for job in self.jobs.values() if not job.blocked_by_node), "one at a time"
        self.starts[stage.name, stage.digest, self.generation] += 1
        starts = self.starts[stage.name, stage.digest, self.generation]
        assert starts <= LIMIT + 1 + self.excuses[stage.name], "retries are bounded"
        for other in (stage.predecessor, stage.teacher):
            if other is None:
                continue
            assert other.digest in self.manifests, "a predecessor's and a teacher's weights are there first"
            lingering = [job for job in self.jobs.values() if job.stage == other.name and job.live]
            assert all(job.blocked_by_node for job in lingering), "their jobs have ended first"
        if self.limit is not None:
            assert sum(job.live for job in self.jobs.values()) < self.limit
        self.vanished.pop(stage.digest, None)  # forgotten by an edit there and back: it is trained anew
        key = (action.stage, action.attempt)
        assert key not in self.jobs
        # A job that goes before a pass has seen it was never there, but for the operator that remembers having made it.
        assert key not in self.names, "no job's name comes twice"
        self.jobs[key] = Job(
            stage=action.stage,
            attempt=action.attempt,
            digest=stage.digest,
            name=f"job-{action.stage}-{action.attempt}",
            phase=JobPhase.PENDING,
        )

    def needing(self, names: Iterable[str]) -> set[str]:
        """The stages that need one of these, directly or not."""
        found = set(names)
        for stage in self.chain.stages:  # ascending: what a stage needs stands before it
            if any(other.name in found for other in stage.needs):
                found.add(stage.name)
        return found - set(names)

    def digests(self) -> set[str]:
        return {stage.digest for stage in self.chain.all_stages}

    # ---- the jobs

    def pick(self, choice: int, *phases: JobPhase) -> Job | None:
        candidates = [job for job in self.jobs.values() if job.phase in phases]
        return candidates[choice % len(candidates)] if candidates else None

    def change(self, job: Job | None, **fields: object) -> None:
        if job is not None:
            self.jobs[job.stage, job.attempt] = replace(job, **fields)  # type: ignore[arg-type]
            self.remember()

    @precondition(lambda self: bool(self.jobs))
    @rule(choice=st.integers(0, 5), queued=st.booleans())
    def job_moves(self, choice: int, queued: bool) -> None:
        job = self.pick(choice, JobPhase.PENDING, JobPhase.QUEUED)
        if queued:
            self.change(job, phase=JobPhase.QUEUED)
        else:
            self.change(job, phase=JobPhase.RUNNING, started_at=self.now)

    @precondition(lambda self: bool(self.jobs))
    @rule(choice=st.integers(0, 5), exits=st.booleans())
    def job_commits(self, choice: int, exits: bool) -> None:
        job = self.pick(choice, JobPhase.RUNNING)
        if job is None or self.store_down:
            return
        stage = next((stage for stage in self.chain.all_stages if stage.digest == job.digest), None)
        if stage is not None and job.digest not in self.vanished:
            self.manifests.setdefault(job.digest, manifest(stage))
        if exits:
            self.change(job, phase=JobPhase.SUCCEEDED, exit_code=0, ended_at=self.now)

    @precondition(lambda self: bool(self.jobs))
    @rule(
        choice=st.integers(0, 5), code=st.sampled_from([1, 1, 1, 65, 80, 137, 143]), disrupted=st.booleans()
    )
    def job_fails(self, choice: int, code: int, disrupted: bool) -> None:
        job = self.pick(choice, JobPhase.RUNNING, JobPhase.PENDING, JobPhase.TERMINATING)
        if job is not None:
            self.failure_files[job.stage, job.attempt] = code
            self.excuses[job.stage] += disrupted or code == 80
        self.change(job, phase=JobPhase.FAILED, exit_code=code, disrupted=disrupted, ended_at=self.now)

    @precondition(lambda self: bool(self.jobs))
    @rule(choice=st.integers(0, 5), node=st.booleans())
    def job_is_disrupted(self, choice: int, node: bool) -> None:
        job = self.pick(choice, JobPhase.RUNNING)
        if job is not None:
            self.excuses[job.stage] += 1
        self.change(job, disrupted=True, blocked_by_node="node-1" if node else None)

    @precondition(lambda self: bool(self.jobs))
    @rule(choice=st.integers(0, 5))
    def job_is_deleted_by_hand(self, choice: int) -> None:
        job = self.pick(choice, *JobPhase)
        if job is not None:
            self.excuses[job.stage] += 1
        self.change(job, phase=JobPhase.TERMINATING)

    @precondition(lambda self: bool(self.jobs))
    @rule(choice=st.integers(0, 5))
    def job_goes(self, choice: int) -> None:
        job = self.pick(choice, JobPhase.TERMINATING)
        if job is not None:
            del self.jobs[job.stage, job.attempt]
            self.remember()

    # ---- the rest of the world

    @rule(seconds=st.sampled_from([1.0, 15.0, 45.0, 400.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(down=st.booleans())
    def store_fails_or_comes_back(self, down: bool) -> None:
        if self.store_down and not down:
            self.store_readable_since = self.now
        self.store_down = down
        self.remember()

    @rule(full=st.booleans())
    def other_chains_train_or_are_done(self, full: bool) -> None:
        self.full = full
        self.remember()

    @rule(choice=st.integers(0, 5))
    def another_chain_takes_a_stage(self, choice: int) -> None:
        stage = self.chain.all_stages[choice % len(self.chain.all_stages)]
        if stage.digest not in self.manifests and not any(
            job.digest == stage.digest for job in self.jobs.values()
        ):
            self.foreign.add(stage.digest)
            self.remember()

    @rule(commits=st.booleans())
    def another_chain_ends(self, commits: bool) -> None:
        for stage in self.chain.all_stages:
            if stage.digest in self.foreign and commits and stage.digest not in self.vanished:
                self.manifests.setdefault(stage.digest, manifest(stage, chain_name="default/other"))
        self.foreign.clear()
        self.remember()

    @rule(choice=st.integers(0, 5), teacher=st.integers(0, 5) | st.none())
    def the_teacher_is_another(self, choice: int, teacher: int | None) -> None:
        if len(self.tree) == 1:
            return
        position = 1 + choice % (len(self.tree) - 1)
        name = self.tree[position][0]
        if teacher is None:
            self.teachers.pop(name, None)
        else:
            self.teachers[name] = self.tree[teacher % position][0]
        self.generation += 1
        self.rebuild()
        self.remember()

    @rule(choice=st.integers(0, 5), epochs=st.integers(2, 4))
    def the_chain_is_edited(self, choice: int, epochs: int) -> None:
        self.epochs = {**self.epochs, self.tree[choice % len(self.tree)][0]: epochs}
        self.generation += 1
        self.rebuild()
        self.remember()

    @rule(choice=st.integers(0, 5), names=st.permutations(OTHER_NAMES), passes=st.integers(0, 2))
    def a_stage_is_renamed(self, choice: int, names: list[str], passes: int) -> None:
        """One that trains, if any does; passes then find its job under the old name."""
        there = dict(self.tree)
        busy = [job.stage for job in self.jobs.values() if job.live and job.stage in there] or [*there]
        old = busy[choice % len(busy)]
        name = next(name for name in names if name not in there)
        before = {(stage.name, stage.digest) for stage in self.chain.all_stages}

        def renamed(one: str) -> str:
            return name if one == old else one

        self.tree = [(renamed(one), parent and renamed(parent)) for one, parent in self.tree]
        self.teachers = {renamed(one): renamed(teacher) for one, teacher in self.teachers.items()}
        self.epochs = {renamed(one): epochs for one, epochs in self.epochs.items()}
        self.alone = tuple(map(renamed, self.alone))
        self.generation += 1
        self.rebuild()
        left = before - {(stage.name, stage.digest) for stage in self.chain.all_stages}
        self.finished_digests -= {digest for _, digest in left}  # only the store remembers
        self.remember()
        for _ in range(passes):
            self.whole_pass()

    @rule(suspended=st.booleans())
    def the_chain_is_suspended_or_resumed(self, suspended: bool) -> None:
        if suspended != self.suspended:
            self.suspended = suspended
            self.generation += 1
            self.rebuild()
            self.remember()

    @rule(choice=st.integers(0, 5))
    def an_artifact_vanishes(self, choice: int) -> None:
        stage = self.chain.all_stages[choice % len(self.chain.all_stages)]
        if stage.digest in self.finished_digests and stage.digest in self.manifests:
            self.vanished[stage.digest] = self.manifests.pop(stage.digest)
            self.remember()

    @invariant()
    def no_stage_has_two_live_jobs(self) -> None:
        live = [job.stage for job in self.jobs.values() if job.live]
        assert len(live) == len(set(live))

    # ---- the end of the world: nothing bad happens any more

    def teardown(self) -> None:
        """In a quiet world the chain comes to its end, and then rests; a suspended one only rests."""
        if not self.tree:
            return
        self.store_down = self.full = False
        self.foreign.clear()
        self.manifests.update(self.vanished)
        self.vanished.clear()
        self.come_to_rest()
        if self.suspended:
            self.suspended = False
            self.generation += 1
            self.rebuild()
            self.come_to_rest()
        assert self.status is not None
        if self.status.phase is ChainPhase.COMPLETE:
            assert all(stage.digest in self.manifests for stage in self.chain.stages)
            compared = self.status.condition(ConditionType.BASELINE_COMPLETE)
            assert (compared is not None) == bool(self.alone)
            if compared is None or compared.reason == "RunsFailed":
                return
            assert (compared.status, compared.reason) == ("True", "Measured")
            assert self.digests() <= self.manifests.keys()
            assert self.status.speedup_measured is not None
        else:
            assert self.status.phase is ChainPhase.FAILED
            failed = {one.name for one in self.status.stages if one.phase is StagePhase.FAILED}
            over = failed | self.needing(failed)
            assert all(one.finished or one.name in over for one in self.status.stages), "other branches go on"
            assert any(
                stage.last_ended is not None
                and (
                    stage.failures > LIMIT
                    or stage.disruptions > DISRUPTION_LIMIT
                    or stage.last_ended.exit_code == 65
                )
                for stage in self.status.stages
            ), "a chain only fails for a reason"

    def come_to_rest(self) -> None:
        self.quiet_jobs()  # those that linger exit
        for _ in range(MAX_PASSES):
            before = self.status
            self.whole_pass()
            assert self.status is not None
            if self.status == before and self.rests() and not self.decided(self.live()).actions:
                live = [job for job in self.jobs.values() if job.live]
                assert all(job.phase is JobPhase.TERMINATING for job in live), "at rest nothing runs"
                if not live:
                    return
            self.quiet_jobs()
            self.now += 10
        raise AssertionError(f"does not come to an end: {self.status}")

    def rests(self) -> bool:
        """Whether the status says that nothing more happens by itself."""
        assert self.status is not None
        compared = self.status.condition(ConditionType.BASELINE_COMPLETE)
        if self.status.phase is ChainPhase.COMPLETE and compared is not None:
            return compared.reason in (FINAL_REASONS | {"Suspended"} if self.suspended else FINAL_REASONS)
        return self.status.phase in (ChainPhase.COMPLETE, ChainPhase.FAILED, ChainPhase.SUSPENDED)

    def quiet_jobs(self, *, exits: bool = True) -> None:
        """Every job takes its next step to success. One that no status asks for would go on for ever."""
        for key, job in list(self.jobs.items()):
            stage = next((stage for stage in self.chain.all_stages if stage.digest == job.digest), None)
            status = self.status.find_stage(job.stage) if self.status is not None else None
            if job.phase is JobPhase.TERMINATING:
                del self.jobs[key]
            elif job.phase in (JobPhase.PENDING, JobPhase.QUEUED):
                self.jobs[key] = replace(job, phase=JobPhase.RUNNING, started_at=self.now)
            elif job.phase is JobPhase.RUNNING and not self.store_down and stage is not None:
                if (
                    status is None
                    or job.attempt != status.attempt
                    or job.attempt <= status.last_ended_attempt
                ):
                    continue
                if job.digest not in self.vanished:
                    self.manifests.setdefault(job.digest, manifest(stage))
                if exits:
                    self.jobs[key] = replace(job, phase=JobPhase.SUCCEEDED, exit_code=0, ended_at=self.now)


World.TestCase.settings = settings(
    max_examples=80,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
TestWorld = pytest.mark.slow(World.TestCase)
