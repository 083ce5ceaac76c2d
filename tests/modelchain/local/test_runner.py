"""`modelchain run` as a program, from what is typed to what is left in the store."""

from __future__ import annotations

import contextlib
import itertools
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelchain.artifacts import Lease
from modelchain.status import ChainPhase, StagePhase
from tests.modelchain.local.runs import Bench, kill, wait_until
from tests.processes import PATIENCE_SECONDS, is_alive, parent_of


@pytest.fixture
def family(tmp_path: Path) -> Iterator[Bench]:
    """A chain of two stages."""
    bench = Bench(tmp_path)
    yield bench
    bench.close()


@pytest.fixture
def bench(family: Bench) -> Bench:
    """A chain of one stage."""
    family.edit(r" *- \{name: small.*\n", "")
    return family


def test_a_chain_is_trained_and_a_second_run_prints_its_result_and_trains_nothing(family: Bench) -> None:
    first = family.run()
    assert first.code == 0, first.err
    assert [event["event"] for event in first.events][:1] == ["run"]
    result = first.events[-1]
    assert (result["event"], result["phase"], result["exitCode"]) == ("result", "Complete", 0)
    assert [stage["phase"] for stage in result["stages"]] == ["Complete", "Complete"]
    weights = Path(result["stages"][1]["weightsUri"]) / "open_clip_model.safetensors"
    assert weights.read_bytes() == b"weights"
    again = family.run()
    assert (again.code, [event["event"] for event in again.events]) == (0, ["result"])
    assert again.events[-1]["stages"] == result["stages"]
    assert [len(family.starts(stage)) for stage in ("tiny", "small")] == [1, 1]


@pytest.mark.parametrize("output", ["lines", "json"])
def test_a_stage_that_only_holds_weights_has_no_steps_to_divide_by(family: Bench, output: str) -> None:
    weights = "training: {epochs: 0}, fromWeights: {uri: s3://weights, sha256: " + "ab" * 32 + "}"
    family.edit("model: ViT-T-16", f"model: ViT-T-16, {weights}")
    ended = family.start("-o", output).end()
    assert ended.code == 0, ended.err
    assert "Traceback" not in ended.err
    if output == "json":
        held, small = ended.events[-1]["stages"]
        assert (held["phase"], held["step"], held["steps"]) == ("Complete", 0, 0)
        assert small["steps"] == 16
        assert ended.events[-1]["speedupPlanned"] > 0
    for command in (["plan"], ["report", "--output", str(family.folder / "report")]):
        shown = subprocess.run(
            [sys.executable, "-m", "modelchain", *command, str(family.file)],
            check=False,
            capture_output=True,
            text=True,
            cwd=family.folder,
        )
        assert shown.returncode == 0, shown.stderr


def test_stages_of_another_chain_in_the_store_are_used_and_not_trained(bench: Bench) -> None:
    assert bench.run().code == 0
    bench.edit("name: family", "name: relatives")
    again = bench.run()
    assert again.code == 0
    assert [stage["phase"] for stage in again.events[-1]["stages"]] == ["Cached"]
    assert (bench.folder / "store/chains/default/relatives.json").exists()
    assert len(bench.starts("tiny")) == 1


def test_editing_the_last_stage_trains_only_that_stage(family: Bench) -> None:
    assert family.run().code == 0
    family.edit("model: ViT-S-16}", "model: ViT-S-16, training: {epochs: 3}}")
    assert family.run().code == 0
    assert [len(family.starts(stage)) for stage in ("tiny", "small")] == [1, 2]


def test_a_failed_attempt_is_retried_and_the_log_shown(bench: Bench) -> None:
    bench.plan("tiny", "silent 3", "commit")
    ended = bench.run()
    assert ended.code == 0
    (failure,) = ended.of("failure")
    assert (failure["stage"], failure["attempt"], failure["exitCode"], failure["counted"]) == (
        "tiny",
        1,
        3,
        True,
    )
    assert "something went wrong and nobody caught it" in failure["tail"]
    assert Path(failure["log"]).read_text().startswith("training tiny")


def test_retries_end_and_running_again_asks_afresh(bench: Bench) -> None:
    bench.plan("tiny", "fail 1 the disk hiccuped", "fail 1 the disk hiccuped", "fail 1 again", "commit")
    failed = bench.run()
    assert failed.code == 1
    assert "retry.limit is 1" in failed.events[-1]["message"]
    assert "the disk hiccuped" in failed.events[-1]["message"]
    assert (len(bench.starts("tiny")), bench.record().status.phase) == (2, ChainPhase.FAILED)
    again = bench.run()
    assert (again.code, len(bench.starts("tiny"))) == (0, 4)


def test_a_permanent_error_ends_the_chain_with_its_message_and_code(family: Bench) -> None:
    family.plan("tiny", "fail 66 s3://data/x.tar: no such object; check data.shards")
    ended = family.run()
    assert ended.code == 66
    assert "s3://data/x.tar: no such object; check data.shards" in ended.events[-1]["message"]
    assert (len(family.starts("tiny")), family.starts("small")) == (1, [])


def test_a_killed_trainer_is_retried(bench: Bench) -> None:
    bench.plan("tiny", "die", "commit")
    ended = bench.run()
    assert ended.code == 0
    assert "SIGKILL" in ended.of("failure")[0]["message"]


def test_a_stage_that_hangs_is_replaced(bench: Bench) -> None:
    bench.edit("limit: 1", "limit: 9, stallSeconds: 4")  # the next attempt may be slow to start, too
    bench.plan("tiny", "hang", "commit")
    ended = bench.run()
    assert (ended.code, ended.of("failure")[0]["reason"]) == (0, "Stalled")


def test_an_error_of_the_run_itself_is_told_and_leaves_no_trainer(bench: Bench) -> None:
    bench.plan("tiny", "hang")
    run = bench.start()
    pid = bench.wait_for_start("tiny")
    (bench.folder / "store.broken").touch()
    ended = run.end()
    assert ended.code != 0
    assert "the store has gone mad" in ended.err
    assert "Traceback" not in ended.err
    wait_until(lambda: not is_alive(pid), "the trainer is gone")


def test_a_step_of_the_clock_ends_nothing(bench: Bench) -> None:
    """As when a laptop wakes up: hours have passed at once, and the trainer had no part of them."""
    bench.plan("tiny", "hang")
    run = bench.start("-o", "json")
    bench.wait_for_start("tiny")
    wait_until(lambda: bench.record().status.stages[0].step == 1, "the run to see the trainer's progress")
    bench.step_clock(hours=8)
    run.signal(signal.SIGTERM)
    ended = run.end()
    assert [event["reason"] for event in ended.of("failure")] == []
    assert len(bench.starts("tiny")) == 1


def test_trainers_that_lose_the_process_they_were_forked_from_are_retried(bench: Bench) -> None:
    bench.plan("tiny", "train", "commit")
    run = bench.start("-o", "json")
    pid = bench.wait_for_start("tiny")
    kill(parent_of(pid))
    ended = run.end()
    assert ended.code == 0
    assert "SIGKILL" in ended.of("failure")[0]["message"]
    assert not is_alive(pid)


@pytest.mark.slow
def test_a_stage_that_hangs_and_hears_no_signal_is_killed_and_replaced(bench: Bench) -> None:
    bench.edit("limit: 1", "limit: 9, stallSeconds: 4")  # the next attempt may be slow to start, too
    bench.plan("tiny", "deaf", "commit")
    run = bench.start("-o", "json")
    pid = bench.wait_for_start("tiny")
    assert run.end().code == 0
    assert not is_alive(pid)


def test_a_trainer_that_leaves_no_manifest_is_not_believed(bench: Bench) -> None:
    bench.plan("tiny", "nothing")
    run = bench.start("-o", "json")
    bench.wait_for_start("tiny")
    wait_until(lambda: not is_alive(int(bench.starts("tiny")[0][0])), "the trainer has ended")
    run.signal(signal.SIGINT)
    ended = run.end()
    assert ended.code == 130
    assert not any(stage["phase"] == "Complete" for stage in ended.events[-1]["stages"])


def test_a_second_run_of_the_chain_is_refused_at_once_and_told_who_runs_it(bench: Bench) -> None:
    bench.plan("tiny", "train")
    first = bench.start("-o", "json")
    bench.wait_for_start("tiny")
    second = bench.run()
    assert second.code == 80
    assert "chain default/family is being run already" in second.err
    assert "Traceback" not in second.err
    assert len(bench.starts("tiny")) == 1
    first.signal(signal.SIGTERM)
    assert first.end().code == 143


def test_a_run_on_another_machine_is_respected_while_it_lives(bench: Bench) -> None:
    lease = bench.folder / "store/chains/default/family.lease.json"
    lease.parent.mkdir(parents=True)
    other = Lease(
        holder="run-1234",
        chain="default/family",
        sequence=1,
        duration_seconds=30,
        host="elsewhere",
        process="boot/1/1",
        renewed_at="2027-01-15T08:00:00Z",
    )
    lease.write_text(other.model_dump_json(by_alias=True))
    run = bench.start("-o", "json")
    for sequence in itertools.count(2):  # the other machine goes on renewing it
        renewed = lease.with_suffix(".new")
        renewed.write_text(other.model_copy(update={"sequence": sequence}).model_dump_json(by_alias=True))
        renewed.replace(lease)
        with contextlib.suppress(subprocess.TimeoutExpired):
            run.process.wait(0.2)
            break
    ended = run.end()
    assert ended.code == 80
    assert "run-1234 holds chain default/family" in ended.of("note")[0]["message"]
    assert "elsewhere" in ended.err
    assert bench.starts("tiny") == []


def test_an_interrupted_run_stops_its_trainer_and_says_how_to_go_on(bench: Bench) -> None:
    bench.plan("tiny", "train", "commit")
    run = bench.start("-o", "json")
    pid = bench.wait_for_start("tiny")
    run.signal(signal.SIGINT)
    ended = run.end()
    assert ended.code == 130
    assert not is_alive(pid)
    assert "go on with: " in ended.events[-1]["message"]
    tiny = bench.record().status.find_stage("tiny")
    assert tiny is not None
    assert (tiny.phase, tiny.failures) == (StagePhase.SUSPENDED, 0)
    assert bench.run().code == 0
    assert len(bench.starts("tiny")) == 2


def test_a_second_interrupt_does_not_wait_for_the_trainer(bench: Bench) -> None:
    bench.edit("PeriodSeconds: 5", "PeriodSeconds: 3600")
    bench.plan("tiny", "deaf")
    run = bench.start("-o", "json")
    pid = bench.wait_for_start("tiny")
    run.signal(signal.SIGINT)
    wait_until(lambda: bench.record().status.phase is ChainPhase.SUSPENDED, "the first is heard")
    assert is_alive(pid)
    run.signal(signal.SIGINT)
    assert run.end().code == 130
    assert not is_alive(pid)


def test_no_trainer_outlives_a_killed_runner_and_the_next_run_goes_on(bench: Bench) -> None:
    bench.plan("tiny", "train", "commit")
    run = bench.start("-o", "json")
    pid = bench.wait_for_start("tiny")
    kill(run.process.pid)
    wait_until(lambda: not is_alive(pid), "the trainer is gone")
    assert bench.run().code == 0
    tiny = bench.record().status.find_stage("tiny")
    assert tiny is not None
    assert (tiny.attempt, tiny.failures) == (2, 0), "a lost runner is not the stage's fault"


def test_what_has_vanished_is_said_and_only_trained_again_when_asked(family: Bench) -> None:
    assert family.run().code == 0
    tiny = family.folder / "store" / family.record().stages[0].folder
    shutil.rmtree(tiny)
    ended = family.run()
    assert ended.code == 66
    assert "--retrain-missing" in ended.events[-1]["message"]
    assert tiny.name in ended.events[-1]["message"]
    assert len(family.starts("tiny")) == 1
    assert family.run("--retrain-missing").code == 0
    assert [len(family.starts(stage)) for stage in ("tiny", "small")] == [2, 1]


def test_a_damaged_manifest_is_named_and_nothing_is_trained_over_it(bench: Bench) -> None:
    assert bench.run().code == 0
    manifest = bench.folder / "store" / bench.record().stages[0].folder / "manifest.json"
    manifest.write_text("{")
    (bench.folder / "store/chains/default/family.json").unlink()
    ended = bench.run()
    assert ended.code == 65
    assert "manifest.json" in ended.events[-1]["message"]
    assert len(bench.starts("tiny")) == 1


def test_a_damaged_record_costs_nothing(bench: Bench) -> None:
    assert bench.run().code == 0
    (bench.folder / "store/chains/default/family.json").write_text("not JSON")
    again = bench.run()
    assert again.code == 0
    assert "damaged" in again.of("note")[0]["message"]
    assert len(bench.starts("tiny")) == 1
    assert bench.record().status.phase is ChainPhase.COMPLETE


def test_a_suspended_chain_trains_nothing(bench: Bench) -> None:
    bench.edit("retry:", "suspend: true\n  retry:")
    ended = bench.run()
    assert (ended.code, bench.starts("tiny")) == (78, [])
    assert "spec.suspend" in ended.events[-1]["message"]


def test_a_stage_that_another_chain_trains_is_waited_for_and_then_used(bench: Bench) -> None:
    bench.plan("tiny", "train", "commit")
    other = bench.start("-o", "json")
    bench.wait_for_start("tiny")
    bench.edit("name: family", "name: relatives")
    ours = bench.start("-o", "json")
    relatives = bench.folder / "store/chains/default/relatives.json"
    wait_until(lambda: relatives.exists() and '"Waiting"' in relatives.read_text(), "our run waits")
    assert len(bench.starts("tiny")) == 1
    other.signal(signal.SIGTERM)
    assert other.end().code == 143
    assert ours.end().code == 0  # it takes over what the other let go of
    assert len(bench.starts("tiny")) == 2


def test_a_file_for_a_cluster_keeps_its_global_batch_and_its_memory_here(bench: Bench) -> None:
    bench.edit("globalBatchSize: 8", "globalBatchSize: 32, microBatchSize: 2")
    bench.edit("gpusPerNode: 0", "gpusPerNode: 8")
    ended = bench.run(environment={"CUDA_VISIBLE_DEVICES": ""})
    assert ended.code == 0
    planned = ended.of("run")[0]["stages"][0]
    assert (planned["processes"], planned["microBatchSize"], planned["steps"]) == (1, 2, 4)
    assert bench.starts("tiny")[0][2] == "2"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--processes", "3"], 78, "use --processes 2"),
        (["--processes", "0"], 64, "not a whole number of at least 1"),
        (["--chain", "nobody"], 64, "it has family"),
        (["--store", "gs://bucket/x"], 78, "unknown kind of store"),
        (["--log-dir", "/dev/null/x"], 64, "--log-dir /dev/null/x: cannot be written"),
    ],
)
def test_a_wrong_command_line_ends_in_one_clear_line(
    bench: Bench, arguments: list[str], code: int, message: str
) -> None:
    ended = bench.run(*arguments)
    assert (ended.code, ended.out) == (code, "")
    assert message in ended.err
    assert "Traceback" not in ended.err
    assert bench.starts("tiny") == []


def test_a_store_that_cannot_be_written_is_named(bench: Bench) -> None:
    (bench.folder / "store").write_text("a file where a folder should be")
    ended = bench.run()
    assert ended.code not in (0, 1)
    assert "store" in ended.err
    assert "Traceback" not in ended.err


def test_logs_stay_out_of_version_control_and_beside_the_chain(bench: Bench) -> None:
    assert bench.run().code == 0
    assert (bench.folder / ".modelchain/.gitignore").read_text() == "*\n"
    (run,) = (bench.folder / ".modelchain/logs").iterdir()
    assert [path.name for path in run.glob("*.log")] == ["tiny-1.log"]


def test_a_reader_that_goes_away_does_not_cost_the_training(bench: Bench) -> None:
    run = bench.start("-o", "json")
    assert run.process.stdout is not None
    run.process.stdout.close()
    assert run.process.wait(PATIENCE_SECONDS) == 0
    assert bench.record().status.phase is ChainPhase.COMPLETE


@pytest.mark.slow
def test_a_run_that_another_has_taken_over_stops_its_trainer(bench: Bench) -> None:
    bench.plan("tiny", "train")
    run = bench.start("-o", "json")
    pid = bench.wait_for_start("tiny")
    lease = bench.folder / "store/chains/default/family.lease.json"
    other = Lease.model_validate_json(lease.read_bytes()).model_copy(
        update={"holder": "run-other", "sequence": 99}
    )
    new = lease.with_suffix(".new")
    new.write_text(other.model_dump_json(by_alias=True))
    new.replace(lease)
    ended = run.end()
    assert ended.code == 80
    assert "another run has taken over" in ended.events[-1]["message"]
    assert not is_alive(pid)
    assert Lease.model_validate_json(lease.read_bytes()).holder == "run-other"
