"""Attempts that are killed, stopped or cut off: whoever goes on ends with the same bits, and commits once."""

import json
import os
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from modelchain.commit import list_checkpoints
from modelchain.errors import ExitCode
from modelchain.resolved import ResolvedStage
from modelchain.shards import expand
from modelchain.spec import Sharding
from modelchain.store.folder import FolderStore
from tests.processes import wait_until
from tests.trainer.results import Lines, assert_alike, manifest_of, metrics_of

StageOf = Callable[..., ResolvedStage]
Result = tuple[str, Lines]

KILLED, TERMINATED = -9, int(ExitCode.TERMINATED)

linux = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
pair = pytest.mark.xdist_group("resume-2")  # they share the run of two ranks that nobody disturbs


def _result(stage: ResolvedStage) -> Result:
    """sha256 of the final weights, and all metrics but for clocks."""
    manifest = manifest_of(stage)
    assert manifest is not None
    (weights,) = [entry.sha256 for entry in manifest.files if entry.path == manifest.weights]
    return weights, metrics_of(stage)


@pytest.fixture(scope="module")
def undisturbed() -> dict[int, Result]:
    """Results of runs that nobody disturbed, by number of ranks; filled by the first test that needs one."""
    return {}


@pytest.fixture
def reference(
    undisturbed: dict[int, Result],
    stage_in: StageOf,
    trained_small: Path,
    fork_server: Any,
    tmp_path: Path,
) -> Callable[[int], Result]:
    """How the stage ends, trained by so many ranks, if nobody disturbs it."""

    def result(ranks: int) -> Result:
        if ranks not in undisturbed:
            calm = _chain_end(stage_in, trained_small, tmp_path / f"calm-{ranks}")
            assert fork_server.run(calm, tmp_path / f"calm-run-{ranks}", ranks=ranks) == 0
            undisturbed[ranks] = _result(calm)
        return undisturbed[ranks]

    return result


@pytest.fixture
def expect(reference: Callable[[int], Result]) -> Callable[..., None]:
    """Checks that a stage ended as the one that nobody disturbed, bit for bit."""

    def check(stage: ResolvedStage, ranks: int = 1) -> None:
        assert _result(stage) == reference(ranks)

    return check


def _chain_end(stage_in: StageOf, trained_small: Path, store: Path) -> ResolvedStage:
    """A stage with predecessor, teacher and projections, whose predecessor is trained."""
    small = stage_in(store, "small")
    shutil.copytree(trained_small, store)
    return stage_in(store, "large", width=32, layers=2, embed_dim=24, predecessor=small)


@pytest.fixture
def stage(stage_in: StageOf, trained_small: Path, tmp_path: Path) -> ResolvedStage:
    return _chain_end(stage_in, trained_small, tmp_path / "store")


@pytest.mark.parametrize(
    "failpoint",
    [
        "indexing",
        "evaluation:1",
        "step:3",
        "step:7",
        "checkpoint-file:1",
        "checkpoint-file:7",
        "checkpoint-commit:2",
        "checkpoint-committed:2",
        "evaluation:3",
        "upload-file:1",
        "upload-file:3",
        "manifest",
    ],
)
def test_a_killed_attempt_leaves_no_trace_in_the_result(
    failpoint: str, stage: ResolvedStage, fork_server: Any, tmp_path: Path, expect: Callable[..., None]
) -> None:
    assert fork_server.run(stage, tmp_path / "killed", failpoint=failpoint) == KILLED
    assert manifest_of(stage) is None, "a killed attempt looks complete"
    assert fork_server.run(stage, tmp_path / "second") == 0
    expect(stage)


def test_a_mix_of_sources_goes_on_with_the_same_bits(
    stage_in: StageOf, squares: str, fork_server: Any, tmp_path: Path
) -> None:
    """56 samples an epoch, three batches of 16: 1.25 times 32, and half of 32."""
    sources = [{"patterns": 1, "samples": 32, "repeat": 1.25}, {"patterns": 1, "samples": 32, "repeat": 0.5}]
    data = {"shards": expand(squares), "samples": 56, "sources": sources}
    calm, killed = (
        stage_in(tmp_path / name, "mixed", data=data, training={"stepsPerEpoch": 3, "steps": 9})
        for name in ("calm", "killed")
    )
    assert fork_server.run(calm, tmp_path / "calm-run") == 0
    (rank,) = fork_server.start(killed, tmp_path / "first", failpoint="step:7")
    assert rank.wait() == KILLED
    assert fork_server.run(killed, tmp_path / "second") == 0
    assert _result(killed) == _result(calm)


def test_an_attempt_killed_after_its_commit_has_finished(
    stage: ResolvedStage, fork_server: Any, tmp_path: Path, expect: Callable[..., None]
) -> None:
    assert fork_server.run(stage, tmp_path / "killed", failpoint="manifest-committed") == KILLED
    expect(stage)
    assert fork_server.run(stage, tmp_path / "second") == 0
    expect(stage)


def test_attempts_killed_again_and_again_get_there(
    stage: ResolvedStage, fork_server: Any, tmp_path: Path, expect: Callable[..., None]
) -> None:
    places = ("step:6", "checkpoint-committed:1", "step:2", "step:2", "manifest")
    for number, failpoint in enumerate(places):
        assert fork_server.run(stage, tmp_path / f"killed-{number}", failpoint=failpoint) == KILLED
    assert fork_server.run(stage, tmp_path / "last") == 0
    expect(stage)


@pytest.mark.parametrize(
    ("failpoint", "step"),
    [
        ("indexing:1:TERM", None),
        ("evaluation:1:TERM", None),
        ("step:3:TERM", 3),
        ("step:4:TERM", 4),
        ("evaluation:2:TERM", 6),
        ("evaluation:3:TERM", 12),
        ("upload-file:1:TERM", 12),
    ],
)
def test_an_attempt_that_is_asked_to_end_keeps_what_it_has(
    failpoint: str,
    step: int | None,
    stage: ResolvedStage,
    fork_server: Any,
    tmp_path: Path,
    expect: Callable[..., None],
) -> None:
    (rank,) = fork_server.start(stage, tmp_path / "stopped", failpoint=failpoint)
    assert rank.wait() == TERMINATED
    failure = json.loads(rank.report.read_bytes())["failure"]
    assert failure["reason"] == "Terminated"
    steps = [c.step for c in list_checkpoints(FolderStore(Path(stage.store.uri)), stage.folder) if c.finished]
    assert (steps[0] if steps else None) == step
    assert ("anything to keep" in failure["message"]) == (step is None)
    assert fork_server.run(stage, tmp_path / "second") == 0
    expect(stage)


def test_a_damaged_checkpoint_costs_steps_but_no_bits(
    stage: ResolvedStage, fork_server: Any, tmp_path: Path, expect: Callable[..., None]
) -> None:
    assert fork_server.run(stage, tmp_path / "stopped", failpoint="step:10:TERM") == TERMINATED
    newest = max((Path(stage.store.uri) / stage.folder).glob("attempts/*/checkpoints/*"))
    path = newest / "optimizer.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    (rank,) = fork_server.start(stage, tmp_path / "second")
    assert rank.wait() == 0
    assert "passed over" in rank.log.read_text()
    assert re.search("going on from step (4|8)", rank.log.read_text())
    expect(stage)


@linux
def test_metrics_that_a_purge_takes_while_the_stage_trains_are_written_again(
    stage: ResolvedStage, fork_server: Any, tmp_path: Path, expect: Callable[..., None]
) -> None:
    (rank,) = fork_server.start(stage, tmp_path / "run", failpoint="upload-file:1:STOP")
    stat = Path(f"/proc/{rank.pid}/stat")
    wait_until(lambda: stat.read_text().rpartition(") ")[2].startswith("T"), "it stops")
    oldest = min((Path(stage.store.uri) / stage.folder).glob("attempts/*/metrics-*.jsonl"))
    oldest.unlink()
    os.kill(rank.pid, signal.SIGCONT)
    assert rank.wait() == 0
    assert "was deleted while the stage was trained" in rank.log.read_text()
    expect(stage)


def test_a_full_disk_is_named_and_an_attempt_with_room_goes_on(
    stage: ResolvedStage, fork_server: Any, tmp_path: Path, expect: Callable[..., None]
) -> None:
    (rank,) = fork_server.start(stage, tmp_path / "full", maximum_file_bytes=500_000)
    assert rank.wait() == ExitCode.IO
    failure = json.loads(rank.report.read_bytes())["failure"]
    assert failure["reason"] == "DiskFullError"
    assert "Traceback" not in rank.log.read_text()
    assert fork_server.run(stage, tmp_path / "second") == 0
    expect(stage)


@pair
def test_two_processes_do_what_one_does(reference: Callable[[int], Result]) -> None:
    assert_alike(reference(1)[1], reference(2)[1])


def _sharded(stage: ResolvedStage, sharding: Sharding = Sharding.OPTIMIZER) -> ResolvedStage:
    """The same weights: `sharding` is no part of a digest."""
    training = stage.training.model_copy(update={"sharding": sharding})
    return stage.model_copy(update={"training": training})


@pair
def test_ranks_that_share_the_optimizer_end_with_the_bits_of_those_that_do_not(
    stage: ResolvedStage, fork_server: Any, tmp_path: Path, expect: Callable[..., None]
) -> None:
    ranks = fork_server.start(_sharded(stage), tmp_path / "stopped", ranks=2, failpoint="step:5:TERM")
    assert [rank.wait() for rank in ranks] == [TERMINATED, TERMINATED]
    assert fork_server.run(_sharded(stage), tmp_path / "second", ranks=2) == 0
    expect(stage, ranks=2)


@pair
def test_what_two_ranks_with_parts_of_the_optimizer_saved_one_goes_on_from(
    stage: ResolvedStage, fork_server: Any, tmp_path: Path, reference: Callable[[int], Result]
) -> None:
    first, second = fork_server.start(_sharded(stage), tmp_path / "killed", ranks=2, failpoint="step:6")
    assert (first.wait(), second.wait()) == (KILLED, ExitCode.FAILURE)
    assert fork_server.run(stage, tmp_path / "second") == 0
    assert_alike(reference(1)[1], metrics_of(stage))


@pair
def test_what_two_fully_sharded_ranks_saved_one_goes_on_from(
    stage: ResolvedStage, fork_server: Any, tmp_path: Path, reference: Callable[[int], Result]
) -> None:
    ranks = fork_server.start(
        _sharded(stage, Sharding.FULL), tmp_path / "stopped", ranks=2, failpoint="step:5:TERM"
    )
    assert [rank.wait() for rank in ranks] == [TERMINATED, TERMINATED]
    assert fork_server.run(stage, tmp_path / "second") == 0
    assert_alike(reference(1)[1], metrics_of(stage))


@pair
def test_fully_sharded_ranks_train_and_publish_what_others_do(
    stage: ResolvedStage, fork_server: Any, tmp_path: Path, reference: Callable[[int], Result]
) -> None:
    assert fork_server.run(_sharded(stage, Sharding.FULL), tmp_path / "whole", ranks=2) == 0
    assert_alike(reference(2)[1], metrics_of(stage))


@pair
def test_two_processes_stop_together_and_resume_with_the_same_bits(
    stage: ResolvedStage, fork_server: Any, tmp_path: Path, expect: Callable[..., None]
) -> None:
    ranks = fork_server.start(stage, tmp_path / "stopped", ranks=2, failpoint="step:5:TERM")
    assert [rank.wait() for rank in ranks] == [TERMINATED, TERMINATED]
    assert fork_server.run(stage, tmp_path / "second", ranks=2) == 0
    expect(stage, ranks=2)


@pair
def test_a_rank_that_loses_the_other_says_so_and_may_be_tried_again(
    stage: ResolvedStage, fork_server: Any, tmp_path: Path, expect: Callable[..., None]
) -> None:
    first, second = fork_server.start(stage, tmp_path / "killed", ranks=2, failpoint="step:6")
    assert (first.wait(), second.wait()) == (KILLED, ExitCode.FAILURE)
    failure = json.loads(second.report.read_bytes())["failure"]
    assert failure["reason"] == "LostPeerError"
    assert "rank 1 lost another rank (rank 0 is at 127.0.0.1:" in failure["message"]
    assert "Traceback" not in second.log.read_text()
    assert fork_server.run(stage, tmp_path / "second", ranks=2) == 0
    expect(stage, ranks=2)
