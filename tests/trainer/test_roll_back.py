"""A stage that meets numbers that are not finite goes back to its last good checkpoint, and on without that data."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from modelchain.artifacts import Manifest, PassedOver, Progress
from modelchain.errors import ExitCode
from modelchain.resolved import ResolvedStage
from modelchain.spec import Sharding
from modelchain_trainer.roll_back import MOST_ROLL_BACKS
from modelchain_trainer.step import MOST_SKIPPED_STEPS, DivergedError
from modelchain_trainer.tasks.contrastive import ContrastiveObjective
from tests.trainer.overflow import environment, overflowing, seen_by
from tests.trainer.results import Lines, assert_alike, manifest_of, metrics_of

StageOf = Callable[..., ResolvedStage]
Train = Callable[..., Any]

CHECKPOINT, STEPS = 6, 12  # the only steps with checkpoints
BAD = range(7, 8 + MOST_SKIPPED_STEPS)  # batches whose loss overflows
PASSED_OVER = (PassedOver(step=CHECKPOINT, batches=BAD.stop - CHECKPOINT),)
SEEN = list(range(BAD.stop + STEPS - CHECKPOINT))
STOPPED = len(SEEN) - 3  # the steps that are finished two before the last; of these none diverged
TERMINATED = int(ExitCode.TERMINATED)


class CutOffError(Exception):
    pass


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The batches that are trained on, by their place in the data. Bad ones overflow."""
    batches: list[int] = []
    monkeypatch.setattr(ContrastiveObjective, "accumulate", overflowing(BAD, batches.append))
    return batches


def bad_data_stage(stage_in: StageOf, store: Path, **training: Any) -> ResolvedStage:
    return stage_in(store, "bad-data", training={"checkpointEverySteps": CHECKPOINT, **training})


def published(stage: ResolvedStage) -> tuple[Manifest, dict[str, Tensor]]:
    manifest = manifest_of(stage)
    assert manifest is not None
    return manifest, load_file(Path(stage.store.uri) / stage.folder / manifest.weights)


def test_bad_data_is_passed_over_from_the_last_good_checkpoint(
    stage_in: StageOf, train: Train, seen: list[int], tmp_path: Path
) -> None:
    stage = bad_data_stage(stage_in, tmp_path)
    train(stage)

    assert seen == SEEN
    manifest, _ = published(stage)
    assert manifest.passed_over == PASSED_OVER
    assert manifest.steps == STEPS
    attempt = tmp_path / stage.folder / "attempts" / manifest.attempt
    assert Progress.model_validate_json((attempt / "progress.json").read_bytes()).passed_over == PASSED_OVER
    files = sorted(attempt.glob("metrics-*.jsonl"))
    lines = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    trained = [(line["step"], line.get("passedOverBatches")) for line in lines if line["kind"] == "train"]
    shift = PASSED_OVER[0].batches
    assert trained == [(step, shift if step > CHECKPOINT else None) for step in range(1, STEPS + 1)]
    assert [line["step"] for line in lines if line["kind"] == "evaluation"] == [0, CHECKPOINT, STEPS]


def test_an_attempt_that_is_cut_off_behind_bad_data_comes_to_the_same_weights(
    stage_in: StageOf, train: Train, seen: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calm = bad_data_stage(stage_in, tmp_path / "calm")
    train(calm)
    seen.clear()

    stage, last = bad_data_stage(stage_in, tmp_path / "cut"), SEEN[-1]
    accumulate = ContrastiveObjective.accumulate

    def cut_off(self: ContrastiveObjective, batch: Any, **options: Any) -> Tensor:
        if batch.step == last and last not in seen:
            seen.append(last)
            raise CutOffError
        return accumulate(self, batch, **options)

    monkeypatch.setattr(ContrastiveObjective, "accumulate", cut_off)
    with pytest.raises(CutOffError):
        train(stage, "uid-1-first")
    train(stage, "uid-2-second")

    assert seen == [*SEEN, *SEEN[CHECKPOINT:]]
    (manifest, weights), (_, expected) = published(stage), published(calm)
    assert manifest.passed_over == PASSED_OVER
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], tensor) for name, tensor in expected.items())


@pytest.fixture(scope="module")
def alone(stage_in: StageOf, fork_server: Any, tmp_path_factory: pytest.TempPathFactory) -> Lines:
    """What one rank comes to, of bad data."""
    folder = tmp_path_factory.mktemp("alone")
    stage = bad_data_stage(stage_in, folder / "store")
    assert run_overflowing(fork_server, stage, folder / "run", ranks=1, bad=[0]) == [SEEN]
    return metrics_of(stage)


def run_overflowing(
    fork_server: Any, stage: ResolvedStage, folder: Path, *, ranks: int, bad: list[int], **options: Any
) -> list[list[int]]:
    """The batches of each rank of an attempt, of which ranks `bad` overflow on bad ones."""
    seen = folder.with_name(f"{folder.name}-seen")
    processes = fork_server.start(
        stage,
        folder,
        ranks=ranks,
        prepare="tests.trainer.overflow",
        environment=environment(BAD, bad, seen),
        **options,
    )
    codes = [process.wait() for process in processes]
    assert codes == [TERMINATED if options else 0] * ranks, processes[0].log.read_text()
    return [seen_by(rank, seen) for rank in range(ranks)]


@pytest.mark.parametrize("sharding", [Sharding.NONE, Sharding.FULL])
@pytest.mark.parametrize("bad", [[0, 1], [1]], ids=["bad on both", "bad on the second"])
def test_two_ranks_pass_over_what_one_does(
    bad: list[int],
    sharding: Sharding,
    alone: Lines,
    stage_in: StageOf,
    fork_server: Any,
    tmp_path: Path,
) -> None:
    stage = bad_data_stage(stage_in, tmp_path / "store", sharding=sharding)
    assert run_overflowing(fork_server, stage, tmp_path / "run", ranks=2, bad=bad) == [SEEN, SEEN]
    manifest, _ = published(stage)
    assert manifest.passed_over == PASSED_OVER
    assert_alike(alone, metrics_of(stage))


def test_two_ranks_that_are_stopped_behind_bad_data_come_to_the_same_bits(
    stage_in: StageOf, fork_server: Any, tmp_path: Path
) -> None:
    calm, stopped = (bad_data_stage(stage_in, tmp_path / name) for name in ("calm", "stopped"))
    run_overflowing(fork_server, calm, tmp_path / "calm-run", ranks=2, bad=[1])
    first = run_overflowing(
        fork_server, stopped, tmp_path / "first", ranks=2, bad=[1], failpoint=f"step:{STOPPED}:TERM"
    )
    assert first == [SEEN[: len(SEEN) - 2]] * 2
    second = run_overflowing(fork_server, stopped, tmp_path / "second", ranks=2, bad=[1])
    assert second == [SEEN[-2:]] * 2
    (manifest, weights), (_, expected) = published(stopped), published(calm)
    assert manifest.passed_over == PASSED_OVER
    assert all(torch.equal(weights[name], tensor) for name, tensor in expected.items())


def test_a_stage_that_diverges_whatever_the_data_fails(
    stage_in: StageOf, train: Train, tmp_path: Path
) -> None:
    stage = bad_data_stage(stage_in, tmp_path, learningRate=1e30, warmupSteps=0)
    with pytest.raises(DivergedError, match=rf"lower training.learningRate.*, {MOST_ROLL_BACKS} times"):
        train(stage)
