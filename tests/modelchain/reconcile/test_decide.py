"""A chain from start to end, and what holds over all policies together."""

from __future__ import annotations

import pytest

from modelchain.reconcile.actions import RemoveJob, StartJob, StopJob
from modelchain.reconcile.observation import Job, JobPhase, LeaseView, StageFacts, StoreProblem
from modelchain.status import ChainPhase, ConditionType, Quality, StagePhase, without_progress
from tests.modelchain.reconcile.chains import NOW, Play, chain, job, manifest, progress


def test_a_chain_runs_stage_after_stage_to_its_end() -> None:
    play = Play(chain())
    assert play.look().actions == (StartJob("tiny", 1),)
    for name, following in (("tiny", "small"), ("small", "base"), ("base", None)):
        stage = play.stage(name)
        assert play.look(job(stage, phase=JobPhase.PENDING), after=1).actions == ()
        assert play[name].phase is StagePhase.PENDING
        running = job(stage, started_at=play.now)
        assert play.look(running, after=1).actions == ()
        assert (play[name].phase, play[name].attempt, play[name].failures) == (StagePhase.RUNNING, 1, 0)
        assert play.status is not None
        assert (play.status.phase, play.status.stage) == (ChainPhase.RUNNING, name)
        done = play.look(
            job(stage, phase=JobPhase.SUCCEEDED), after=1, **{name: StageFacts(manifest=manifest(stage))}
        )
        assert play[name].phase is StagePhase.COMPLETE
        assert done.actions == ((StartJob(following, 1),) if following else ())
    assert play.status is not None
    assert play.status.phase is ChainPhase.COMPLETE
    assert play.status.is_true(ConditionType.COMPLETE)
    assert play.status.columns.top1 == "75.0%"
    assert play.status.quality == Quality(metric="digits/top1", value=0.75, higher_is_better=True)
    assert play["base"].weights_uri == f"file:///store/{play.stage('base').folder}/attempts/0123-1-aa"


def test_the_same_look_again_writes_nothing_and_does_nothing_new() -> None:
    play = Play(chain())
    play.look()
    running = job(play.stage("tiny"))
    first = play.look(running)
    again = play.look(running, after=5)
    assert (again.status, again.actions) == (first.status, ())


def test_an_intent_whose_act_was_lost_is_acted_on_again_under_the_same_number() -> None:
    play = Play(chain())
    assert play.look().actions == (StartJob("tiny", 1),)
    assert play.look(after=5).actions == (StartJob("tiny", 1),)


def test_what_an_attempt_is_told_is_recorded_with_its_number() -> None:
    play = Play(chain())
    play.look()
    assert play["tiny"].told_sha256 == play.stage("tiny").sha256()
    assert play["tiny"].model_copy(update={"attempt": 2}).told_sha256 is None


def test_of_an_attempt_that_is_announced_twice_in_other_words_nothing_is_recorded() -> None:
    """The first job may yet be made, under the name of the second."""
    play = Play(chain())
    play.look()
    first = play.stage("tiny").sha256()
    play.chain = chain(retry={"limit": 7})
    assert play.stage("tiny").sha256() != first
    for _ in range(2):
        assert play.look(after=5).actions == (StartJob("tiny", 1),)
        assert play["tiny"].told_sha256 is None
    play.look(job(play.stage("tiny")), after=5)
    assert play["tiny"].told_sha256 is None


def test_branches_of_a_tree_run_at_once_but_each_one_job_at_a_time() -> None:
    tree = Play(chain((("root", None), ("left", "root"), ("right", "root"), ("leaf", "left"))))
    root = StageFacts(manifest=manifest(tree.stage("root")))
    assert tree.look(root=root).actions == (StartJob("left", 1), StartJob("right", 1))
    left, right = job(tree.stage("left")), job(tree.stage("right"))
    assert tree.look(left, right).actions == ()
    committed = StageFacts(manifest=manifest(tree.stage("left")))
    assert tree.look(left, right, left=committed).actions == ()  # left's job has not gone yet
    assert tree["leaf"].reason == "PredecessorEnding"
    assert tree.look(right).actions == (StartJob("leaf", 1),)


def test_a_stage_waits_for_its_teacher_as_for_its_predecessor() -> None:
    """`polished` grows out of the root, and learns from a sibling of its predecessor's."""
    stages = (("root", None), ("large", "root"), ("polished", "root"))
    tree = Play(chain(stages, teachers={"polished": "large"}))
    assert tree.look(root=StageFacts(manifest=manifest(tree.stage("root")))).actions == (
        StartJob("large", 1),
    )
    assert (tree["polished"].reason, tree["polished"].message) == (
        "PredecessorIncomplete",
        "learns from stage large",
    )
    large = job(tree.stage("large"))
    committed = StageFacts(manifest=manifest(tree.stage("large")))
    assert tree.look(large, large=committed).actions == ()  # the teacher's job has not gone yet
    assert tree["polished"].reason == "PredecessorEnding"
    assert tree.look().actions == (StartJob("polished", 1),)


def test_a_stage_that_only_holds_weights_has_no_steps_to_divide_by() -> None:
    play = Play(chain((("held", None), ("small", "held")), epochs={"held": 0}))
    held = play.stage("held")
    assert held.training.steps == 0
    assert play.look().actions == (StartJob("held", 1),)
    play.more["macs"] = {"held": 0.0, "small": 1e12}
    sign = progress(0, samples_per_second=5.0, eta_seconds=0.0).model_copy(update={"steps": 0})
    play.look(job(held), held=StageFacts(progress=sign, progress_attempt=1))
    assert play.status is not None
    assert (play.status.stage, play.status.step, play.status.eta_seconds) == ("held", None, None)
    done = play.look(held=StageFacts(manifest=manifest(held)))
    assert done.actions == (StartJob("small", 1),)
    assert (play["held"].phase, play["held"].step, play["held"].steps) == (StagePhase.COMPLETE, 0, 0)


@pytest.mark.parametrize(
    ("asked", "observer"), [(None, 1), (1, None), (1, 5), (5, 1)], ids=["runner", "chain", "both", "both-2"]
)
def test_one_job_at_a_time_where_only_one_may_run(asked: int | None, observer: int | None) -> None:
    branches = chain((("root", None), ("left", "root"), ("right", "root")))
    tree = Play(branches.model_copy(update={"max_parallel_stages": asked}))
    tree.more = {"max_parallel_jobs": observer}
    assert tree.look(root=StageFacts(manifest=manifest(tree.stage("root")))).actions == (StartJob("left", 1),)
    assert tree.look(job(tree.stage("left"))).actions == ()
    assert tree["right"].reason == "ParallelLimit"


def test_a_lost_status_is_found_again_from_jobs_and_store() -> None:
    play = Play(chain())
    small = play.stage("small")
    decision = play.look(job(small, attempt=3), tiny=StageFacts(manifest=manifest(play.stage("tiny"))))
    assert decision.actions == ()
    assert (play["tiny"].phase, play["small"].phase, play["small"].attempt) == (
        StagePhase.CACHED,
        StagePhase.RUNNING,
        3,
    )


def test_two_live_jobs_of_one_stage_are_reduced_to_the_newest() -> None:
    play = Play(chain())
    first, second = job(play.stage("tiny"), 1), job(play.stage("tiny"), 2)
    assert play.look(first, second).actions == (StopJob(first, "Superseded"),)


@pytest.mark.parametrize("phase", [phase for phase in JobPhase if phase is not JobPhase.SUCCEEDED])
def test_no_attempt_starts_while_anything_of_the_last_one_is_left(phase: JobPhase) -> None:
    play = Play(chain(retry={"backoffSeconds": 0}))
    play.look()
    stage = play.stage("tiny")
    play.look(job(stage))
    play.look(job(stage, phase=JobPhase.FAILED, exit_code=1))
    assert play["tiny"].failures == 1
    left: Job = job(stage, phase=phase, exit_code=1)
    decision = play.look(left, after=60)
    assert not any(isinstance(action, StartJob) for action in decision.actions)
    if not left.live:
        assert decision.actions == (RemoveJob(left),)
    assert play.look(after=1).actions == (StartJob("tiny", 2),)


@pytest.mark.parametrize("problem", list(StoreProblem))
def test_a_store_that_cannot_be_read_starts_nothing_and_fails_nothing(problem: StoreProblem) -> None:
    play = Play(chain())
    facts = StageFacts(problem=problem, message="s3://bucket/key: no")
    assert play.look(tiny=facts, small=facts, base=facts).actions == ()
    assert play.status is not None
    assert play.status.phase is ChainPhase.PENDING
    progressing = play.status.condition(ConditionType.PROGRESSING)
    assert progressing is not None
    assert (progressing.status, progressing.reason) == ("False", problem.value)
    assert "s3://bucket/key" in progressing.message
    assert play.look(after=3600, tiny=StageFacts()).actions == (StartJob("tiny", 1),)


def test_a_job_runs_on_while_its_store_is_away_and_that_is_said() -> None:
    play = Play(chain())
    play.look()
    running = job(play.stage("tiny"))
    away = StageFacts(problem=StoreProblem.UNAVAILABLE, message="s3://bucket does not answer; waiting for it")
    assert play.look(running, tiny=away).actions == ()
    assert play["tiny"].phase is StagePhase.RUNNING
    assert play.status is not None
    progressing = play.status.condition(ConditionType.PROGRESSING)
    assert progressing is not None
    assert (progressing.status, "does not answer" in progressing.message) == ("True", True)
    assert "does not answer" in play.status.message
    play.look(running, tiny=StageFacts())
    assert play.status.message == ""


def test_a_stage_that_was_not_looked_at_is_not_started() -> None:
    play = Play(chain())
    play.store = {}
    assert play.look().actions == ()
    assert play["tiny"].reason == "NotObserved"


def test_jobs_of_a_stage_that_was_removed_are_ended() -> None:
    play = Play(chain())
    gone = Job(stage="old", attempt=1, digest="0" * 64, name="family-old-1", phase=JobPhase.RUNNING)
    assert StopJob(gone, "Superseded") in play.look(gone).actions


def test_a_backend_that_is_not_installed_is_said_and_waited_for() -> None:
    play = Play(chain())
    play.more = {
        "backend_problem": {"tiny": "kubeflow.org/v1 is not installed: install the training operator"}
    }
    assert play.look().actions == ()
    assert "install the training operator" in play["tiny"].message
    play.more = {}
    assert play.look().actions == (StartJob("tiny", 1),)


def test_what_holds_up_one_stage_holds_up_no_other() -> None:
    """A finished stage was a PyTorchJob, which is not installed any more; a sibling's job is refused by a quota."""
    play = Play(chain((("tiny", None), ("small", "tiny"), ("base", "tiny"))))
    play.more = {"backend_problem": {"tiny": "not installed", "small": "exceeded quota"}}
    decision = play.look(tiny=StageFacts(manifest=manifest(play.stage("tiny"))))
    assert decision.actions == (StartJob("base", 1),)
    assert (play["small"].reason, play["small"].message) == ("BackendUnavailable", "exceeded quota")


def test_progress_changes_no_more_than_progress() -> None:
    play = Play(chain())
    play.look()
    running = job(play.stage("tiny"))
    before = play.look(running).status
    after = play.look(
        running,
        tiny=StageFacts(
            progress=progress(4, samples_per_second=8.0, eta_seconds=12.0, loss={"total": 2.0}),
            progress_attempt=1,
        ),
    ).status
    assert (after.columns.progress, after.step, after.steps, play["tiny"].step, play["tiny"].loss) == (
        "4/16",
        4,
        16,
        4,
        {"total": 2.0},
    )
    assert without_progress(after) == without_progress(before)


def test_an_attempt_that_has_not_read_its_checkpoint_yet_does_not_show_the_stage_at_its_beginning() -> None:
    play = Play(chain(retry={"backoffSeconds": 0}))
    play.look()
    play.look(job(play.stage("tiny")), tiny=StageFacts(progress=progress(9), progress_attempt=1))
    play.look(job(play.stage("tiny"), phase=JobPhase.FAILED, exit_code=1))
    play.look()
    assert play["tiny"].attempt == 2
    starting = progress(0).model_copy(update={"phase": "Starting"})
    play.look(job(play.stage("tiny"), 2), tiny=StageFacts(progress=starting, progress_attempt=2))
    assert play["tiny"].step == 9
    play.look(job(play.stage("tiny"), 2), tiny=StageFacts(progress=progress(5), progress_attempt=2))
    assert play["tiny"].step == 5, "it went on from a checkpoint at 4"


def test_progress_of_an_earlier_attempt_is_not_taken_for_the_running_ones() -> None:
    play = Play(chain())
    play.look()
    stale = StageFacts(progress=progress(9), progress_attempt=7)
    play.look(job(play.stage("tiny")), tiny=stale)
    assert play["tiny"].step is None


def test_the_time_to_go_counts_the_stages_to_come_by_their_cost() -> None:
    play = Play(chain((("tiny", None), ("small", "tiny"))))
    play.more = {"macs": {"tiny": 1000.0, "small": 3000.0}}
    play.look()
    half = progress(8, samples_per_second=1.0, eta_seconds=64.0)
    play.look(job(play.stage("tiny")), tiny=StageFacts(progress=half, progress_attempt=1))
    assert play.status is not None
    assert (play.status.eta_seconds, play.status.columns.eta) == (
        448,
        "7m",
    )  # 64 s, and three times the whole stage's 128 s


def test_wakes_when_something_is_due_by_the_clock_alone() -> None:
    play = Play(chain(retry={"stallSeconds": 100, "backoffSeconds": 40}))
    play.look()
    assert play.look(job(play.stage("tiny"))).wake_at == NOW + 100
    assert play.look(job(play.stage("tiny"), phase=JobPhase.FAILED, exit_code=1)).wake_at == NOW + 40


def test_a_status_stays_small_however_much_is_said() -> None:
    names = [(f"s{index}", None if index == 0 else f"s{index - 1}") for index in range(32)]
    play = Play(chain(names))
    many = {f"set{number}/{'m' * 100}": 0.5 for number in range(500)}
    facts = {
        stage.name: StageFacts(manifest=manifest(stage).model_copy(update={"metrics": many}))
        for stage in play.chain.stages
    }
    play.store = facts
    status = play.look().status
    assert len(status.model_dump_json(by_alias=True)) < 400_000
    stage = play.stage("s0")
    long = Play(play.chain)
    long.look()
    failed = job(stage, phase=JobPhase.FAILED, exit_code=65, message="x" * 10**6)
    assert len(long.look(failed).status.model_dump_json(by_alias=True)) < 100_000


def test_a_lease_of_our_own_does_not_keep_us_waiting() -> None:
    play = Play(chain())
    own = LeaseView(holder="0123-1-aa", chain="default/family", fresh=True, own=True)
    assert play.look(tiny=StageFacts(lease=own)).actions == (StartJob("tiny", 1),)


def test_the_speedup_reads_well_and_stays_when_it_is_not_known_again() -> None:
    play = Play(chain())
    play.more = {"speedup_planned": 2.0912}
    assert play.look().status.columns.speedup_planned == "2.09x"
    play.more = {}
    assert play.look(after=1).status.columns.speedup_planned == "2.09x"
