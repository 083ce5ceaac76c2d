"""Whatever is killed, whenever: the weights are those of the run that was never disturbed, to the last bit."""

from __future__ import annotations

import os
import random
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

from modelchain.artifacts import attempt_prefix
from modelchain.commit import verify_stage
from modelchain.local.fitting import fit_stage
from modelchain.resolved import STAGE_ENVIRONMENT_VARIABLE, ResolvedStage, ResolvedStore
from tests.faults import STEPS, Bench, Outcome, Run, document, partial_files, strike
from tests.processes import PATIENCE_SECONDS
from tests.seaweedfs import SeaweedFS

pytestmark = pytest.mark.slow

Calm = Callable[[int], Outcome]
BenchOf = Callable[..., Bench]
KILLS = 20

# One worker of the test run does all of one world size: they share the run that nobody disturbs.
one_process = pytest.mark.xdist_group("faults-1")
two_processes = pytest.mark.xdist_group("faults-2")


@pytest.fixture
def bench_of(tmp_path: Path) -> Iterator[BenchOf]:
    """Makes a bench; whatever still runs on it ends with the test."""
    benches: list[Bench] = []

    def make(access: ResolvedStore | None = None, *, processes: int = 1) -> Bench:
        benches.append(Bench(tmp_path / "chain", access, processes=processes))
        return benches[-1]

    yield make
    for bench in benches:
        bench.close()


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Calm:
    """What the chain makes when nobody disturbs it, for a number of processes."""

    @cache
    def outcome(processes: int) -> Outcome:
        bench = Bench(tmp_path_factory.mktemp("calm") / str(processes), processes=processes)
        run = bench.run()
        assert run.result()["exitCode"] == 0, run.seen
        return bench.outcome()

    return outcome


@one_process
def test_twenty_kills_leave_no_trace(bench_of: BenchOf, calm: Calm) -> None:
    storm = Storm(bench_of(), seed=1)
    storm.kill_during_an_upload("tiny")
    storm.kill_at("tiny", "step:2")
    storm.kill_at("tiny", "checkpoint-file:3")
    storm.kill_at("tiny", "checkpoint-commit:1")
    storm.kill_launcher("tiny")
    storm.kill_at("tiny", "upload-file:1")
    storm.kill_at("tiny", "manifest:1")
    storm.kill_at("tiny", "manifest-committed:1")
    assert storm.bench.is_complete(storm.stage("tiny")), "killed right after its commit, it is complete"
    storm.kill_runner("small")
    storm.kill_at("small", "checkpoint-committed:2")
    storm.kill_while_starting()
    storm.kill_at("small", "upload-file:2")
    storm.kill_at("small", "manifest:1")
    assert not storm.bench.is_complete(storm.stage("small"))
    assert storm.kills >= KILLS
    storm.end_as(calm(1))


@two_processes
def test_kills_of_two_processes_on_s3_leave_no_trace(
    bench_of: BenchOf, calm: Calm, seaweedfs: SeaweedFS
) -> None:
    """Where a store of objects differs from a folder, and a rank that dies from one that is alone."""
    access = seaweedfs.access(f"faults/{secrets.token_hex(6)}")
    storm = Storm(bench_of(access, processes=2), seed=2)
    storm.kill_at("tiny", "checkpoint-file:3")
    storm.kill_at("tiny", "checkpoint-commit:1")
    storm.kill_launcher("tiny")
    storm.kill_at("tiny", "manifest:1")
    storm.kill_at("tiny", "manifest-committed:1")
    assert storm.bench.is_complete(storm.stage("tiny")), "killed right after its commit, it is complete"
    storm.kill_runner("small")
    storm.kill_at("small", "upload-file:2")
    assert not storm.bench.is_complete(storm.stage("small"))
    storm.end_as(calm(2))


class Storm:
    """Runs a chain again and again, kills something each time, and looks at what is left."""

    def __init__(self, bench: Bench, *, seed: int) -> None:
        self.bench = bench
        self.kills = 0
        self._chance = random.Random(seed)
        self._stages = {stage.name: stage for stage in bench.chain.stages}
        self._attempts_when_complete: dict[str, set[str]] = {}

    def stage(self, name: str) -> ResolvedStage:
        return self._stages[name]

    def kill_at(self, stage: str, failpoint: str) -> None:
        """A rank dies at a place in its program; the runner, when it has seen that."""
        run = self.bench.start(failpoint=failpoint)
        run.wait_for(
            lambda event: (
                event.get("stage") == stage
                and (event["event"] == "failure" or event.get("phase") == "Complete")
            ),
            f"{stage} dies at {failpoint}",
        )
        self._end(run, killed=1)

    def kill_launcher(self, stage: str) -> None:
        """The launcher dies in mid-training, and its ranks with it."""
        run = self.bench.start()
        self._wait(stage, run)
        killed = strike(run.launchers())
        assert killed == 1
        run.wait_for(lambda event: event["event"] == "failure", "the launcher's death is seen")
        self._end(run, killed=killed)

    def kill_runner(self, stage: str) -> None:
        """The runner dies in mid-training, and everything below it."""
        run = self.bench.start()
        self._wait(stage, run)
        self._end(run, killed=0)

    def kill_while_starting(self) -> None:
        """The runner dies soon after it was started, at no particular moment."""
        run = self.bench.start()
        run.wait_for(lambda event: event["event"] == "run", "it begins")
        time.sleep(self._chance.uniform(0, 3))
        self._end(run, killed=0)

    def kill_during_an_upload(self, stage: str) -> None:
        """A rank dies while a file of its checkpoint is half in the folder."""
        run = self.bench.start()
        attempts = self.bench.folder / "store" / self.stage(stage).folder / "attempts"
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not any(
            path.suffix != ".json" for path in partial_files(attempts) if "checkpoints" in path.parts
        ):
            assert time.monotonic() < deadline, "no upload was seen"
        killed = strike(run.workers())
        run.wait_for(lambda event: event["event"] == "failure", "the death is seen")
        self._end(run, killed=killed)

    def end_as(self, expected: Outcome) -> None:
        """Disturbed no more, the chain comes to its end, and its weights are these."""
        last = self.bench.run()
        assert last.result()["exitCode"] == 0, last.seen
        self.check()
        assert self.bench.outcome() == expected

    def check(self) -> None:
        """Nothing of what was killed looks complete, and what is complete is not trained again."""
        for name, stage in self._stages.items():
            self.bench.check_checkpoints(stage)
            manifest = self.bench.verified(stage)
            if manifest is None:
                assert name not in self._attempts_when_complete, f"{name} was complete and is no longer"
                continue
            attempts = self.bench.attempts(stage)
            assert manifest.attempt in attempts
            assert attempts == self._attempts_when_complete.setdefault(name, attempts), (
                f"{name} was trained twice"
            )

    def _wait(self, stage: str, run: Run) -> None:
        """Wait for some moment in mid-training."""
        self.bench.wait_for_a_new_checkpoint(self.stage(stage), run)
        time.sleep(self._chance.uniform(0, 0.2))

    def _end(self, run: Run, *, killed: int) -> None:
        run.kill()
        self.kills += killed + 1
        self.check()


@one_process
def test_a_chain_that_is_interrupted_and_continued_is_the_one_that_never_was(
    bench_of: BenchOf, calm: Calm
) -> None:
    bench = bench_of()
    for stage in ("tiny", "small"):
        run = bench.start()
        bench.wait_for_a_new_checkpoint(bench.chain.stage(stage), run)
        run.process.send_signal(signal.SIGINT)
        assert run.wait() == 130, run.seen
        stopped = next(entry for entry in run.result()["stages"] if entry["name"] == stage)
        assert stopped["phase"] == "Suspended"
        assert bench.check_checkpoints(bench.chain.stage(stage)) > 0, "it was stopped at a checkpoint"
    assert bench.run().result()["exitCode"] == 0
    assert bench.outcome() == calm(1)


@one_process
def test_editing_the_last_stage_trains_only_that_one(bench_of: BenchOf, calm: Calm) -> None:
    bench = bench_of()
    assert bench.run().result()["exitCode"] == 0
    tiny = bench.chain.stage("tiny")
    attempts = bench.attempts(tiny)
    edited = document(bench.access)
    edited["spec"]["stages"][1]["training"] = {"epochs": 1}
    bench.write(edited)
    run = bench.run()
    phases = {stage["name"]: (stage["phase"], stage["steps"]) for stage in run.result()["stages"]}
    assert phases == {"tiny": ("Complete", STEPS), "small": ("Complete", STEPS // 12)}
    assert bench.attempts(tiny) == attempts
    outcome = bench.outcome()
    assert outcome.weights["tiny"] == calm(1).weights["tiny"]
    assert outcome.weights["small"] != calm(1).weights["small"]


@one_process
def test_a_chain_survives_a_store_that_is_killed_and_comes_back(
    bench_of: BenchOf, calm: Calm, seaweedfs: SeaweedFS
) -> None:
    bench = bench_of(seaweedfs.access(f"faults/{secrets.token_hex(6)}"))
    run = bench.start()
    run.wait_for(
        # Its first stage may train faster than progress is told; the second one is still to come then.
        lambda event: (
            event.get("phase") == "Complete" or (event["event"] == "progress" and event["step"] > 0)
        ),
        "it trains",
    )
    seaweedfs.kill()
    try:
        time.sleep(8)
        assert run.process.poll() is None, run.end()
    finally:
        seaweedfs.start()  # the tests after this one go on using it
    assert run.wait() == 0, run.seen
    assert [event for event in run.seen if event["event"] == "failure"] == []
    assert bench.outcome() == calm(1)


@one_process
def test_of_two_trainers_of_one_stage_one_commits_and_the_manifest_says_which(
    bench_of: BenchOf, calm: Calm
) -> None:
    """The first is stopped for so long that the second takes over its lease, and then goes on: a zombie."""
    bench = bench_of()
    stage = fit_stage(bench.chain.stage("tiny"), gpus=0, processes=1, micro_batch_size=None)
    with Trainer(bench, stage, attempt=1) as zombie:
        zombie.wait_for_a_checkpoint()
        zombie.signal(signal.SIGSTOP)
        with Trainer(bench, stage, attempt=2) as second:
            assert second.process.wait(PATIENCE_SECONDS) == 0
        zombie.signal(signal.SIGCONT)
        assert zombie.process.wait(PATIENCE_SECONDS) in (0, 80)
    manifest = bench.verified(stage)
    assert manifest is not None
    assert manifest.attempt.startswith(f"{second.prefix}-")
    assert all(entry.path.startswith(f"attempts/{manifest.attempt}/") for entry in manifest.files)
    (weights,) = [entry for entry in manifest.files if entry.path == manifest.weights]
    assert weights.sha256 == calm(1).weights["tiny"]
    assert verify_stage(bench.store, stage.folder, stage.digest) == manifest


class Trainer:
    """`python -m modelchain_trainer` on its own, as a pod would start it."""

    def __init__(self, bench: Bench, stage: ResolvedStage, *, attempt: int) -> None:
        self.prefix = attempt_prefix(stage.chain.uid, attempt)
        self._folder = bench.folder / "store" / stage.folder
        variables = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            STAGE_ENVIRONMENT_VARIABLE: stage.to_json(),
            "MODELCHAIN_ATTEMPT": self.prefix,
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "modelchain_trainer"], env=variables, start_new_session=True
        )

    def __enter__(self) -> Trainer:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.signal(signal.SIGKILL)
            self.process.wait()

    def wait_for_a_checkpoint(self) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not any(self._folder.glob(f"attempts/{self.prefix}-*/checkpoints/*/checkpoint.json")):
            assert time.monotonic() < deadline, "no checkpoint was written"
            assert self.process.poll() is None
            time.sleep(0.01)

    def signal(self, number: int) -> None:
        """To the launcher and to its ranks, each in a group of its own."""
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                session = int(stat.read_text().rpartition(")")[2].split()[3])
            except OSError:
                continue
            if session == self.process.pid:
                os.kill(int(stat.parent.name), number)
